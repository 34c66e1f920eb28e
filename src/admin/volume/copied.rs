//! A directory of the layer that runs, and its copy on a volume.

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use rustix::fs::syncfs;

use super::unlocked;
use crate::admin::Context;
use crate::admin::filesystem::{self, Filesystem, Mounted, mount_point};
use crate::image::tree::{Content, Tree};
use crate::model::volume::Mount;
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::sys::transaction::Transaction;
use crate::tree::{Again, Below, Dir, Kind, Place, Source, Stat, Visit, escaped, sync_again, walk};

/// There as long as no layer mounts a copy. It holds the time from which on files may have changed, in seconds since
/// 1970, once all was copied ahead.
const PARTIAL: &str = ".imgbased-partial";
/// So much earlier than it was begun to copy counts what was changed, in seconds: the kernel's own time is late.
const MARGIN: u64 = 2;

/// A directory of the layer that runs, without what is mounted below it.
pub struct Copied {
    dir: PathBuf,
    pub mounted: Mounted,
    /// What it holds.
    pub size: Content,
}

impl Copied {
    pub fn open(context: &Context, tx: &mut Transaction, path: &str) -> Result<Self> {
        let dir = mount_point("moved");
        let mounted = filesystem::mount_again(tx, Path::new(path), &dir)?;
        let mut size = Content::default();
        if !context.dry_run {
            let source = Tree::Directory(dir.clone());
            unlocked(tx, &mut |tx| {
                size = source.measure(tx.interrupt())?.0;
                Ok(())
            })?;
        }
        Ok(Self { dir, mounted, size })
    }

    /// Copies it to the volume, which stays mounted, and is marked. The lock is free meanwhile.
    pub fn copy(
        &self,
        tx: &mut Transaction,
        mount: &Mount,
        filesystem: &Filesystem,
        room: u64,
    ) -> Result<Mounted> {
        let to = mount_point(&mount.name);
        let volume = filesystem.mount(tx, &to, "rw")?;
        let source = Tree::Directory(self.dir.clone());
        unlocked(tx, &mut |tx| {
            tx.work(&source.copy_line(&to), |interrupt| {
                let mut progress = Progress::new(&mount.path, self.size.bytes);
                write_mark(&to, "")?;
                source.copy(&to, room, interrupt, &mut progress)
            })?;
            tx.flush(&to)
        })?;
        Ok(volume)
    }

    /// Copies it to the volume while programs use it, so that little is left for when the system goes down. The lock is
    /// free meanwhile.
    pub fn copy_ahead(
        &self,
        tx: &mut Transaction,
        mount: &Mount,
        filesystem: &Filesystem,
        room: u64,
    ) -> Result<()> {
        let to = mount_point(&mount.name);
        let volume = filesystem.mount(tx, &to, "rw")?;
        unlocked(tx, &mut |tx| {
            tx.work(&self.line(&to), |interrupt| {
                write_mark(&to, "")?;
                let begun = SystemTime::now().duration_since(UNIX_EPOCH)?;
                // What is changed in memory only has the time of an earlier change.
                let flushed = File::open(&self.dir).and_then(|dir| Ok(syncfs(dir)?));
                flushed.with_context(|| format!("cannot flush {}", mount.path))?;
                self.sync(&to, None, room, interrupt, mount)?;
                write_mark(&to, &begun.as_secs().saturating_sub(MARGIN).to_string())
            })?;
            tx.flush(&to)
        })?;
        volume.unmount(tx)
    }

    /// Copies what was changed since it was copied ahead, which began at this time.
    pub fn copy_rest(
        &self,
        tx: &mut Transaction,
        mount: &Mount,
        filesystem: &Filesystem,
        room: u64,
        begun: i64,
    ) -> Result<Mounted> {
        let to = mount_point(&mount.name);
        let volume = filesystem.mount(tx, &to, "rw")?;
        unlocked(tx, &mut |tx| {
            tx.work(&self.line(&to), |interrupt| {
                self.sync(&to, Some(begun), room, interrupt, mount)
            })?;
            tx.flush(&to)
        })?;
        Ok(volume)
    }

    /// What does the same, for a shell.
    fn line(&self, to: &Path) -> String {
        let source = Tree::Directory(self.dir.clone());
        source.replace_line(to)
    }

    fn sync(
        &self,
        to: &Path,
        begun: Option<i64>,
        room: u64,
        interrupt: &Interrupt,
        mount: &Mount,
    ) -> Result<()> {
        let mut progress = Progress::new(&mount.path, self.size.bytes);
        let source = Source {
            root: &Dir::root(&self.dir)?,
            zeros_are_holes: false,
        };
        let again = Again {
            mark: PARTIAL.as_ref(),
            begun,
        };
        let to = Dir::root(to)?;
        let done = sync_again(&source, &to, &again, room, interrupt, &mut progress)?;
        log::debug!("{}: {done:?}", mount.path);
        Ok(())
    }

    /// Takes the mark off what is copied, and mounted still.
    pub fn complete(&self, tx: &mut Transaction, mount: &Mount) -> Result<()> {
        let to = mount_point(&mount.name);
        let mark = to.join(PARTIAL);
        // What a dry run prints copies without a mark.
        tx.work(&Cmd::new("rm").arg("-f").arg(&mark), |_| {
            fs::remove_file(&mark).with_context(|| format!("cannot remove {}", mark.display()))?;
            // That has changed the time of the directory.
            let time = fs::metadata(&self.dir).and_then(|dir| dir.modified());
            let set = time.and_then(|time| File::open(&to)?.set_modified(time));
            set.with_context(|| format!("cannot write {}", to.display()))
        })
    }

    /// Refuses where something was changed since it was copied. Returns the state that was compared.
    pub fn check_copy(&self, tx: &Transaction, mount: &Mount) -> Result<State> {
        let copy = Dir::root(&mount_point(&mount.name))?;
        State::of(&self.dir, Some(copy), &mut |visit| {
            tx.interrupt().check()?;
            ensure!(
                is_copied(visit),
                "{}/{} was changed while it was copied; try it again when nothing writes there",
                mount.path,
                escaped(visit.path)
            );
            Ok(())
        })
    }

    /// Tells of what was changed since then: the volume is mounted over it now.
    pub fn tell_of_changes(&self, compared: &State, mount: &Mount) {
        let path = &mount.path;
        match State::of(&self.dir, None, &mut |_| Ok(())) {
            Ok(now) if now == *compared => {}
            Ok(_) => log::warn!(
                "something in {path} was changed in the moment when the volume was mounted over it, and is not on the \
                 volume; `mount --bind / /mnt` shows what the layer has there as /mnt{path}"
            ),
            Err(error) => log::warn!("what is below {path} cannot be read again: {error:#}"),
        }
    }
}

/// Takes the mark off a volume that a layer has mounted at this path: the power was cut right after its move was
/// recorded.
pub fn remove_mark(tx: &mut Transaction, path: &str) -> Result<()> {
    let mark = Path::new(path).join(PARTIAL);
    if fs::symlink_metadata(&mark).is_err() {
        return Ok(());
    }
    tx.run(&Cmd::new("rm").args(["-f", "--"]).arg(mark))
}

/// Marks a copy that no layer mounts yet.
fn write_mark(to: &Path, text: &str) -> Result<()> {
    let mark = to.join(PARTIAL);
    let marked = fs::write(&mark, text).and_then(|()| File::open(&mark)?.sync_all());
    marked.with_context(|| format!("cannot write {}", mark.display()))
}

/// Since when files may have changed that were copied ahead; nothing where only a part of them was. Refuses a volume
/// that holds more than a part of a copy: what is mounted by a layer holds its data.
pub fn copied_ahead(
    tx: &mut Transaction,
    name: &str,
    filesystem: &Filesystem,
) -> Result<Option<i64>> {
    let dir = mount_point(name);
    let mounted = filesystem.mount(tx, &dir, "ro")?;
    let failed = || format!("cannot read {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(failed)? {
        names.push(entry.with_context(failed)?.file_name());
    }
    let mark = fs::read_to_string(dir.join(PARTIAL)).unwrap_or_default();
    mounted.unmount(tx)?;
    let is_partial = names.iter().any(|name| name == PARTIAL);
    names.retain(|name| name != "lost+found");
    ensure!(
        is_partial || names.is_empty(),
        "{name} holds files already, and nothing is written over them; `imgbased-helper volume remove` keeps the volume"
    );
    Ok(mark.parse().ok())
}

/// A number that is another one when anything in a directory was changed.
#[derive(Debug, PartialEq, Eq)]
pub struct State(u64);

impl State {
    /// Each path that it has, or a `copy` of it, is shown to `see`.
    fn of(
        dir: &Path,
        copy: Option<Dir>,
        see: &mut dyn FnMut(&Visit) -> Result<()>,
    ) -> Result<Self> {
        let mut hasher = DefaultHasher::new();
        walk(&[Some(Dir::root(dir)?), copy], None, &mut |visit| {
            see(visit)?;
            if let Some(place) = &visit.places[0] {
                (visit.path, place.stat.version()).hash(&mut hasher);
            }
            Ok(Below::Visit)
        })?;
        Ok(Self(hasher.finish()))
    }
}

/// Whether a path is the same in both trees, by what shows without reading it.
fn is_copied(visit: &Visit) -> bool {
    match visit.places {
        [Some(from), Some(to)] => is_same(from, to),
        // No program finds its socket there after a restart.
        [Some(from), None] => from.stat.kind == Kind::Socket,
        // mke2fs(8) makes it.
        _ => visit.path.starts_with("lost+found"),
    }
}

fn is_same(from: &Place, to: &Place) -> bool {
    let (a, b) = (&from.stat, &to.stat);
    let content = |stat: &Stat| match stat.kind {
        // That of a directory is visited.
        Kind::Dir => (0, (0, 0)),
        _ => (stat.size, stat.mtime),
    };
    (a.kind, a.mode, a.uid, a.gid, a.device) == (b.kind, b.mode, b.uid, b.gid, b.device)
        && content(a) == content(b)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_after_the_copy_is_seen() {
        let differs = |change: &str| {
            let dir = tempfile::tempdir().unwrap();
            let run = |script: &str| {
                let script = format!("cd {} && {script}", dir.path().display());
                Cmd::new("sh").args(["-c", &script]).run().unwrap();
            };
            run(
                "mkdir -p a/d && echo 1 >a/d/file && ln -s x a/link && mkfifo a/pipe && cp -a a b && \
                 mkdir b/lost+found",
            );
            let (from, copy) = (dir.path().join("a"), dir.path().join("b"));
            let state = |see: &mut dyn FnMut(&Visit) -> Result<()>| {
                State::of(&from, Some(Dir::root(&copy).unwrap()), see).unwrap()
            };
            let before = state(&mut |_| Ok(()));
            run(change);
            let mut differs = false;
            let after = state(&mut |visit| {
                differs |= !is_copied(visit);
                Ok(())
            });
            assert_eq!(after == before, change == "cat a/d/file", "{change}");
            differs
        };
        for change in [
            "cat a/d/file",
            "touch a/d",
            "perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local=>\"a/s\",Listen=>1)'",
        ] {
            assert!(!differs(change), "{change}");
        }
        for change in [
            "echo 2 >a/d/file",
            "touch a/d/file",
            "chmod 600 a/d/file",
            "rm a/pipe",
            "touch a/d/new",
            "ln -sfn yy a/link",
            "rm a/pipe && mkdir a/pipe",
        ] {
            assert!(differs(change), "{change}");
        }
    }
}
