//! A directory of the layer that runs, and its copy on a volume.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::unlocked;
use crate::admin::Context;
use crate::admin::filesystem::{self, Filesystem, Mounted, mount_point};
use crate::image::tree::{Content, Tree};
use crate::model::volume::Mount;
use crate::sys::progress::Progress;
use crate::sys::transaction::Transaction;
use crate::tree::{Below, Dir, Kind, Place, Stat, Visit, escaped, walk};

/// There as long as a copy is not complete.
const PARTIAL: &str = ".imgbased-partial";

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

    /// Copies it to the volume, which stays mounted. The lock is free meanwhile.
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
        let mark = to.join(PARTIAL);
        unlocked(tx, &mut |tx| {
            tx.work(&source.copy_line(&to), |interrupt| {
                let mut progress = Progress::new(&mount.path, self.size.bytes);
                let failed = || format!("cannot write {}", mark.display());
                let marked = File::create(&mark).and_then(|mark| mark.sync_all());
                marked.with_context(failed)?;
                source.copy(&to, room, interrupt, &mut progress)?;
                fs::remove_file(&mark).with_context(failed)?;
                // That has changed the time of the directory.
                let time = fs::metadata(&self.dir).and_then(|dir| dir.modified());
                let set = time.and_then(|time| File::open(&to)?.set_modified(time));
                set.with_context(|| format!("cannot write {}", to.display()))
            })?;
            tx.flush(&to)
        })?;
        Ok(volume)
    }

    /// Refuses where something was changed since it was copied.
    pub fn check_copy(&self, context: &Context, tx: &Transaction, mount: &Mount) -> Result<()> {
        if context.dry_run {
            return Ok(());
        }
        let to = mount_point(&mount.name);
        let roots = [Some(Dir::root(&self.dir)?), Some(Dir::root(&to)?)];
        walk(&roots, None, &mut |visit| {
            tx.interrupt().check()?;
            ensure!(
                is_copied(visit),
                "{}/{} was changed while it was copied; try it again when nothing writes there",
                mount.path,
                escaped(visit.path)
            );
            Ok(Below::Visit)
        })
    }
}

/// Refuses a volume that holds more than a part of a copy: what is mounted by a layer holds its data.
pub fn check_overwritable(tx: &mut Transaction, name: &str, filesystem: &Filesystem) -> Result<()> {
    let dir = mount_point(name);
    let mounted = filesystem.mount(tx, &dir, "ro")?;
    let failed = || format!("cannot read {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(&dir).with_context(failed)? {
        names.push(entry.with_context(failed)?.file_name());
    }
    mounted.unmount(tx)?;
    let is_partial = names.iter().any(|name| name == PARTIAL);
    names.retain(|name| name != "lost+found");
    ensure!(
        is_partial || names.is_empty(),
        "{name} holds files already, and nothing is written over them; `imgbased-helper volume remove` keeps the volume"
    );
    Ok(())
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
    use crate::sys::cmd::Cmd;

    #[test]
    fn what_was_changed_after_the_copy_is_seen() {
        let differs = |change: &str| {
            let dir = tempfile::tempdir().unwrap();
            let script = format!(
                "cd {} && mkdir -p a/d && echo 1 >a/d/file && ln -s x a/link && mkfifo a/pipe && cp -a a b && \
                 mkdir b/lost+found; {change}",
                dir.path().display()
            );
            Cmd::new("sh").args(["-c", &script]).run().unwrap();
            let root = |name: &str| Some(Dir::root(&dir.path().join(name)).unwrap());
            let mut differs = false;
            walk(&[root("a"), root("b")], None, &mut |visit| {
                differs |= !is_copied(visit);
                Ok(Below::Visit)
            })
            .unwrap();
            differs
        };
        for change in [
            "true",
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
