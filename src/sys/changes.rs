//! The one place that changes a host: runs commands, writes and removes files.
//!
//! A dry run prints each change as a command for a shell instead. Changes that are given an undo
//! step are undone, last first, unless [`Changes::keep`] is reached.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, raise};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use super::cmd::{Cmd, quote};
use super::flush::{self, flush};

/// For tests: the number of the step after which the process is killed, counted from 1.
const KILL_AFTER: &str = "IMGBASED_KILL_AFTER";

/// The changes that one verb makes.
pub struct Changes {
    dry_run: bool,
    undo: Vec<(u32, Undo)>,
    undo_steps: u32,
    interrupt: Interrupt,
    steps: u32,
    kill_after: Option<u32>,
}

/// Set when a signal asks the program to end.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Fails when it is time to end.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// One change. Displayed as a command for a shell.
enum Action<'a> {
    Run(&'a Cmd),
    /// With the command that a dry run shows, if it is not to be the content itself.
    Write(&'a Path, &'a [u8], u32, Option<&'a Cmd>),
    Rewrite(&'a Path, &'a [u8]),
    Copy(&'a Path, &'a Path, u32),
    CreateDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    Flush(&'a Path),
}

enum Undo {
    Run(Cmd),
    Remove(PathBuf),
}

/// Names an undo step, to run it early with [`Changes::undo_now`].
pub struct Step(u32);

impl Changes {
    /// Starts the changes of a verb. From here on the signals that end a program make the next
    /// step fail, so that what was done is undone.
    pub fn new(dry_run: bool) -> Result<Self> {
        let interrupt = Interrupt::default();
        if !dry_run {
            for signal in [SIGINT, SIGTERM, SIGHUP] {
                signal_hook::flag::register(signal, Arc::clone(&interrupt.0))
                    .context("cannot handle signals")?;
            }
        }
        let kill_after = std::env::var(KILL_AFTER).ok();
        Ok(Self {
            dry_run,
            undo: Vec::new(),
            undo_steps: 0,
            interrupt,
            steps: 0,
            kill_after: kill_after.and_then(|number| number.parse().ok()),
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Runs a command that changes something.
    pub fn run(&mut self, cmd: &Cmd) -> Result<()> {
        self.step(&Action::Run(cmd))
    }

    /// Runs a command that changes nothing but this process' own mounts, also in a dry run.
    pub fn run_always(&mut self, cmd: &Cmd) -> Result<()> {
        if self.dry_run {
            cmd.run()?;
        }
        self.run(cmd)
    }

    /// Does work of this program's own, which has to look at the interrupt now and then. A dry run
    /// shows `command`, which does the same.
    pub fn work(
        &mut self,
        command: &dyn fmt::Display,
        work: impl FnOnce(&Interrupt) -> Result<()>,
    ) -> Result<()> {
        self.interrupt.check()?;
        if self.dry_run {
            return show(command);
        }
        log::debug!("+ {command}");
        work(&self.interrupt)?;
        self.count_step()
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Runs a command, and `undo` if the verb fails later.
    pub fn run_undoable(&mut self, cmd: &Cmd, undo: Cmd) -> Result<Step> {
        self.run(cmd)?;
        Ok(self.on_failure(undo))
    }

    /// Has `undo` run if the verb fails from here on.
    pub fn on_failure(&mut self, undo: Cmd) -> Step {
        self.remember(Undo::Run(undo.uninterrupted()))
    }

    /// Runs the undo of a step as a part of the verb, as unmounting what was mounted for a while.
    pub fn undo_now(&mut self, step: &Step) -> Result<()> {
        let Some(at) = self.undo.iter().position(|(id, _)| *id == step.0) else {
            return Ok(());
        };
        let (id, undo) = self.undo.remove(at);
        let result = self.perform(&undo.action());
        if result.is_err() {
            self.undo.insert(at, (id, undo));
        }
        result
    }

    /// Forgets the undo steps: the verb has reached its commit.
    pub fn keep(&mut self) {
        self.undo.clear();
    }

    /// Writes a file as a whole: the new content is on disk before it takes the place of the old.
    /// `mode` are its permission bits. One that was not there before is removed if the verb fails.
    pub fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.create(path, &Action::Write(path, content, mode, None))
    }

    /// Writes a file as a whole. A dry run shows `command`, which does the same.
    pub fn write_as(
        &mut self,
        path: &Path,
        content: &[u8],
        mode: u32,
        command: &Cmd,
    ) -> Result<()> {
        self.create(path, &Action::Write(path, content, mode, Some(command)))
    }

    /// Copies a file, with the same care as [`Changes::write`].
    pub fn copy(&mut self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        self.create(to, &Action::Copy(from, to, mode))
    }

    fn create(&mut self, path: &Path, action: &Action) -> Result<()> {
        let is_new = !path.exists();
        self.step(action)?;
        if is_new {
            self.remember(Undo::Remove(path.to_owned()));
        }
        Ok(())
    }

    /// Creates a directory and those above it; nothing if it is there.
    pub fn create_dir(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.step(&Action::CreateDir(path))
    }

    /// Changes the content of a file in a volume that is still being made: owner, mode and
    /// attributes stay, and nobody sees it half-written.
    pub fn rewrite(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.step(&Action::Rewrite(path, content))
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.step(&Action::Rename(from, to))
    }

    pub fn remove(&mut self, path: &Path) -> Result<()> {
        self.step(&Action::Remove(path))
    }

    /// Writes everything that the filesystem of `dir` has in memory to its disk, so that a boot
    /// loader, which replays no journal, finds it.
    pub fn flush(&mut self, dir: &Path) -> Result<()> {
        self.step(&Action::Flush(dir))
    }

    fn step(&mut self, action: &Action) -> Result<()> {
        self.interrupt.check()?;
        self.perform(action)
    }

    fn perform(&mut self, action: &Action) -> Result<()> {
        if self.dry_run {
            return show(action);
        }
        action.perform()?;
        self.count_step()
    }

    fn count_step(&mut self) -> Result<()> {
        self.steps += 1;
        if self.kill_after == Some(self.steps) {
            raise(Signal::SIGKILL)?;
        }
        Ok(())
    }

    fn remember(&mut self, undo: Undo) -> Step {
        let id = self.undo_steps;
        self.undo_steps += 1;
        self.undo.push((id, undo));
        Step(id)
    }
}

fn show(command: &dyn fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{command}").context("cannot write to standard output")
}

impl Drop for Changes {
    fn drop(&mut self) {
        if self.dry_run {
            return;
        }
        while let Some((_, undo)) = self.undo.pop() {
            if let Err(error) = undo.action().perform() {
                log::error!("while undoing: {error:#}");
            }
        }
    }
}

impl Undo {
    fn action(&self) -> Action<'_> {
        match self {
            Self::Run(cmd) => Action::Run(cmd),
            Self::Remove(path) => Action::Remove(path),
        }
    }
}

impl Action<'_> {
    fn perform(&self) -> Result<()> {
        if !matches!(self, Self::Run(_)) {
            log::debug!("+ {self}");
        }
        let done = match self {
            // Its error says all that there is to say.
            Self::Run(cmd) => return cmd.run().map(drop),
            Self::Flush(dir) => return flush(dir),
            Self::Write(path, content, mode, _) => {
                replace(path, *mode, |file| file.write_all(content))
            }
            Self::Rewrite(path, content) => File::options()
                .write(true)
                .truncate(true)
                .open(path)
                .and_then(|mut file| file.write_all(content)),
            Self::Copy(from, to, mode) => File::open(from).and_then(|mut source| {
                replace(to, *mode, |file| io::copy(&mut source, file).map(drop))
            }),
            Self::CreateDir(path) => fs::create_dir_all(path),
            Self::Rename(from, to) => fs::rename(from, to),
            Self::Remove(path) => fs::remove_file(path),
        };
        done.with_context(|| match self {
            Self::Run(_) | Self::Flush(_) => self.to_string(),
            Self::Write(path, ..) | Self::Rewrite(path, _) => {
                format!("cannot write {}", path.display())
            }
            Self::Copy(from, to, _) => {
                format!("cannot copy {} to {}", from.display(), to.display())
            }
            Self::CreateDir(path) => format!("cannot create {}", path.display()),
            Self::Rename(path, _) => format!("cannot rename {}", path.display()),
            Self::Remove(path) => format!("cannot remove {}", path.display()),
        })
    }
}

impl fmt::Display for Action<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Run(cmd) | Self::Write(.., Some(cmd)) => cmd.fmt(f),
            Self::Write(path, content, ..) | Self::Rewrite(path, content) => {
                let text = String::from_utf8_lossy(content);
                let (path, text) = (quote(path.as_os_str()), text.trim_end_matches('\n'));
                write!(f, "cat > {path} <<'EOF'\n{text}\nEOF")
            }
            Self::Copy(from, to, mode) => {
                let install = Cmd::new("install").arg("-m").arg(format!("{mode:04o}"));
                install.arg(from).arg(to).fmt(f)
            }
            Self::CreateDir(path) => Cmd::new("mkdir").arg("-p").arg(path).fmt(f),
            Self::Rename(from, to) => Cmd::new("mv").arg(from).arg(to).fmt(f),
            Self::Remove(path) => Cmd::new("rm").arg(path).fmt(f),
            Self::Flush(dir) => flush::command(dir).fmt(f),
        }
    }
}

/// What temporary files are called. A boot loader that lists the directory must not take one for an
/// entry, so they do not end in `.conf`.
const TEMPORARY: (&str, &str) = (".imgbased-", ".tmp");

/// Whether a file is a temporary one that an interrupted write has left.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Puts new content in the place of `path`: temporary file beside it, flush, rename, flush of the
/// directory.
///
/// A boot loader replays no journal: it sees the name, the new file and the end of the old file change
/// one after the other, in any order. So the new file is in its place on the disk before its name is,
/// and the old one has a second name until then.
fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .tempfile_in(dir)?;
    fill(temporary.as_file_mut())?;
    let content = temporary.as_file();
    content.set_permissions(fs::Permissions::from_mode(mode))?;
    content.sync_all()?;
    if !path.exists() {
        temporary.persist(path)?;
        return File::open(dir)?.sync_all();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let old = dir.join(format!("{}old-{name}{}", TEMPORARY.0, TEMPORARY.1));
    // Left by an earlier attempt. FAT has no second names, and no journal: what is open keeps its place on
    // the disk until it is closed.
    drop(fs::remove_file(&old));
    let _open = File::open(path)?;
    let is_kept = fs::hard_link(path, &old).is_ok();
    flush(dir).map_err(io::Error::other)?;
    temporary.persist(path)?;
    flush(dir).map_err(io::Error::other)?;
    if is_kept {
        fs::remove_file(&old)?;
    }
    Ok(())
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
        let mut changes = Changes::new(false).unwrap();
        let first = changes.run_undoable(&note("do1"), note("undo1")).unwrap();
        let _second = changes.run_undoable(&note("do2"), note("undo2")).unwrap();
        let _third = changes.run_undoable(&note("do3"), note("undo3")).unwrap();
        changes.undo_now(&first).unwrap();
        drop(changes);
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            "do1\ndo2\ndo3\nundo1\nundo3\nundo2\n"
        );
        let mut changes = Changes::new(false).unwrap();
        for name in ["kept", "undone"] {
            let path = dir.path().join(name);
            changes.write(&path, b"x", 0o600).unwrap();
            if name == "kept" {
                changes.keep();
            }
        }
        drop(changes);
        assert_eq!(names(dir.path()), ["kept", "log"]);
    }

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry.conf");
        let mut changes = Changes::new(false).unwrap();
        changes.write(&path, b"old", 0o644).unwrap();
        changes.write(&path, b"new", 0o600).unwrap();
        changes.keep();
        drop(changes);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(names(dir.path()), ["entry.conf"]);
        let error = Changes::new(false).unwrap().copy(
            &dir.path().join("missing"),
            &dir.path().join("to"),
            0o644,
        );
        assert!(error.is_err());
        assert_eq!(names(dir.path()), ["entry.conf"]);
    }

    #[test]
    fn a_signal_fails_the_next_step_and_what_was_done_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mounted");
        let mut changes = Changes::new(false).unwrap();
        let touch = Cmd::new("touch").arg(&path);
        let step = changes
            .run_undoable(&touch, Cmd::new("rm").arg(&path))
            .unwrap();
        changes.interrupt.set();
        assert_eq!(changes.run(&touch).unwrap_err().to_string(), "interrupted");
        changes.undo_now(&step).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn an_undo_that_failed_is_tried_again_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let (busy, done) = (dir.path().join("busy"), dir.path().join("done"));
        fs::write(&busy, "").unwrap();
        let script = format!("test ! -e {} && touch {}", busy.display(), done.display());
        let mut changes = Changes::new(false).unwrap();
        let step = changes
            .run_undoable(&Cmd::new("true"), Cmd::new("sh").args(["-c", &script]))
            .unwrap();
        assert!(changes.undo_now(&step).is_err());
        fs::remove_file(&busy).unwrap();
        drop(changes);
        assert!(done.exists());
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut changes = Changes::new(true).unwrap();
        changes.write(&path, b"x", 0o644).unwrap();
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
        let action = Action::Write(Path::new("/boot/a b"), b"one\n$two\n", 0o644, None);
        assert_eq!(
            action.to_string(),
            "cat > '/boot/a b' <<'EOF'\none\n$two\nEOF"
        );
    }
}
