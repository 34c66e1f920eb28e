//! The one place that changes a host: runs commands, writes and removes files.
//!
//! A dry run prints each change as a command for a shell instead. Changes that are given an undo
//! step are undone, last first, unless [`Changes::keep`] is reached.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::unistd::syncfs;

use super::cmd::{Cmd, quote};

/// The changes that one verb makes.
pub struct Changes {
    dry_run: bool,
    undo: Vec<(u32, Undo)>,
    next_step: u32,
}

enum Undo {
    Run(Cmd),
    Remove(PathBuf),
}

/// Names an undo step, to run it early with [`Changes::undo_now`].
pub struct Step(u32);

impl Changes {
    pub fn new(dry_run: bool) -> Self {
        Self {
            dry_run,
            undo: Vec::new(),
            next_step: 0,
        }
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Runs a command that changes something.
    pub fn run(&mut self, cmd: &Cmd) -> Result<()> {
        if self.dry_run {
            return print(&cmd.to_string());
        }
        cmd.run().map(drop)
    }

    /// Runs a command, and `undo` if the verb fails later.
    pub fn run_undoable(&mut self, cmd: &Cmd, undo: Cmd) -> Result<Step> {
        self.run(cmd)?;
        Ok(self.on_failure(undo))
    }

    /// Has `undo` run if the verb fails from here on.
    pub fn on_failure(&mut self, undo: Cmd) -> Step {
        self.remember(Undo::Run(undo))
    }

    /// Runs the undo of a step as a part of the verb, as unmounting what was mounted for a while.
    pub fn undo_now(&mut self, step: &Step) -> Result<()> {
        match self.undo.iter().position(|(id, _)| *id == step.0) {
            Some(at) => {
                let (_, undo) = self.undo.remove(at);
                self.apply(&undo)
            }
            None => Ok(()),
        }
    }

    /// Forgets the undo steps: the verb has reached its commit.
    pub fn keep(&mut self) {
        self.undo.clear();
    }

    /// Writes a file as a whole: the new content is on disk before it takes the place of the old.
    /// `mode` are its permission bits.
    pub fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.write_as(path, content, mode, &here_document(path, content))
    }

    /// Writes a file as a whole. A dry run shows `command`, which does the same.
    pub fn write_as(
        &mut self,
        path: &Path,
        content: &[u8],
        mode: u32,
        command: &str,
    ) -> Result<()> {
        if self.dry_run {
            return print(command);
        }
        replace(path, mode, |file| file.write_all(content))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Writes a file that was not there before; it is removed if the verb fails.
    pub fn write_new(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.write(path, content, mode)?;
        self.remember(Undo::Remove(path.to_owned()));
        Ok(())
    }

    /// Copies a file to a new name, which is removed if the verb fails.
    pub fn copy_new(&mut self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        if self.dry_run {
            let install = Cmd::new("install").arg("-m").arg(format!("{mode:04o}"));
            return print(&install.arg(from).arg(to).to_string());
        }
        let mut source =
            File::open(from).with_context(|| format!("cannot read {}", from.display()))?;
        replace(to, mode, |file| io::copy(&mut source, file).map(drop))
            .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
        self.remember(Undo::Remove(to.to_owned()));
        Ok(())
    }

    /// Creates a directory and those above it; nothing if it is there.
    pub fn create_dir(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        if self.dry_run {
            return print(&Cmd::new("mkdir").arg("-p").arg(path).to_string());
        }
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
    }

    /// Writes everything that the filesystem of `dir` has in memory to its disk, so that a boot
    /// loader, which replays no journal, finds it.
    pub fn flush(&mut self, dir: &Path) -> Result<()> {
        if self.dry_run {
            return print(&Cmd::new("sync").arg("-f").arg(dir).to_string());
        }
        File::open(dir)
            .and_then(|file| Ok(syncfs(file)?))
            .with_context(|| format!("cannot flush {}", dir.display()))
    }

    fn remember(&mut self, undo: Undo) -> Step {
        let id = self.next_step;
        self.next_step += 1;
        self.undo.push((id, undo));
        Step(id)
    }

    fn apply(&self, undo: &Undo) -> Result<()> {
        match undo {
            Undo::Run(cmd) if self.dry_run => print(&cmd.to_string()),
            Undo::Run(cmd) => cmd.run().map(drop),
            Undo::Remove(path) if self.dry_run => print(&Cmd::new("rm").arg(path).to_string()),
            Undo::Remove(path) => {
                fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
            }
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if self.dry_run {
            return;
        }
        while let Some((_, undo)) = self.undo.pop() {
            if let Err(error) = self.apply(&undo) {
                log::error!("while undoing: {error:#}");
            }
        }
    }
}

/// Puts new content in the place of `path`: temporary file beside it, flush, rename, flush of the
/// directory.
fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    // A boot loader that lists the directory must not take it for an entry: it ends in `.tmp`.
    let mut temporary = tempfile::Builder::new()
        .prefix(".imgbased-")
        .suffix(".tmp")
        .tempfile_in(dir)?;
    fill(temporary.as_file_mut())?;
    let content = temporary.as_file();
    content.set_permissions(fs::Permissions::from_mode(mode))?;
    content.sync_all()?;
    temporary.persist(path)?;
    File::open(dir)?.sync_all()
}

fn print(line: &str) -> Result<()> {
    writeln!(io::stdout().lock(), "{line}").context("cannot write to standard output")
}

/// A command for a shell that writes `content` to `path`.
fn here_document(path: &Path, content: &[u8]) -> String {
    let text = String::from_utf8_lossy(content);
    let path = quote(path.as_os_str());
    format!("cat > {path} <<'EOF'\n{}\nEOF", text.trim_end_matches('\n'))
}

/// Reads a file that need not exist.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn undone_last_first_unless_kept() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let note =
            |text: &str| Cmd::new("sh").args(["-c", &format!("echo {text} >> {}", log.display())]);
        let mut changes = Changes::new(false);
        let first = changes.run_undoable(&note("do1"), note("undo1")).unwrap();
        let _second = changes.run_undoable(&note("do2"), note("undo2")).unwrap();
        let _third = changes.run_undoable(&note("do3"), note("undo3")).unwrap();
        changes.undo_now(&first).unwrap();
        drop(changes);
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            "do1\ndo2\ndo3\nundo1\nundo3\nundo2\n"
        );
        let mut changes = Changes::new(false);
        changes
            .write_new(&dir.path().join("kept"), b"x", 0o600)
            .unwrap();
        changes.keep();
        changes
            .write_new(&dir.path().join("undone"), b"x", 0o600)
            .unwrap();
        drop(changes);
        assert_eq!(names(dir.path()), ["kept", "log"]);
    }

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry.conf");
        let mut changes = Changes::new(false);
        changes.write(&path, b"old", 0o644).unwrap();
        changes.write(&path, b"new", 0o600).unwrap();
        drop(changes);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(dir.path()), ["entry.conf"]);
        let error = Changes::new(false).copy_new(
            &dir.path().join("missing"),
            &dir.path().join("to"),
            0o644,
        );
        assert!(error.is_err());
        assert_eq!(names(dir.path()), ["entry.conf"]);
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut changes = Changes::new(true);
        changes.write_new(&path, b"x", 0o644).unwrap();
        changes.create_dir(&dir.path().join("sub")).unwrap();
        let step = changes
            .run_undoable(&Cmd::new("touch").arg(&path), Cmd::new("rm").arg(&path))
            .unwrap();
        changes.undo_now(&step).unwrap();
        drop(changes);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_dry_run_shows_files_as_a_shell_writes_them() {
        let text = here_document(Path::new("/boot/a b"), b"one\n$two\n");
        assert_eq!(text, "cat > '/boot/a b' <<'EOF'\none\n$two\nEOF");
    }
}
