//! Brings one tree to equality with another one: what is equal is not touched, so that a snapshot has it only once.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::syncfs;

use super::ahead::{Ahead, Same};
use super::content::{Blocks, Wanted, update};
use super::dir::Dir;
use super::listing::Listing;
use super::name::escaped;
use super::node::{Id, Kind, Node, Stat};
use super::walk::{Below, Visit, Visitor, walk, walk_by};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;

/// What mke2fs(8) makes at the root, and e2fsck(8) wants there. It stays, and is emptied.
pub(super) const LOST_AND_FOUND: &str = "lost+found";
/// A file that is written to takes this much of a disk at least, in bytes.
const BLOCK: u64 = 4096;

/// Where the files come from.
pub struct Source<'a> {
    pub root: &'a Dir,
    /// Whether zeros in its files are holes, since it does not tell which of them were, as a squashfs.
    pub zeros_are_holes: bool,
}

/// A tree that is made equal to one that is used meanwhile, once ahead and once when nobody writes any more.
pub struct Again<'a> {
    /// A name at its top that stays, whatever the source has there.
    pub mark: &'a OsStr,
    /// When it was begun to copy ahead, in seconds since 1970, with all flushed that was written by then. A file that
    /// was not changed since, and has the same size and time, is not read: what changes a file sets its ctime.
    pub begun: Option<i64>,
}

impl Again<'_> {
    fn is_settled(&self, from: &Stat, to: &Stat) -> bool {
        self.begun.is_some_and(|begun| from.ctime.0 < begun)
            && (from.size, from.mtime) == (to.size, to.mtime)
    }

    /// Whether a directory may have got another name since. That sets its ctime, as do other changes.
    fn is_moved(&self, dir: &Stat) -> bool {
        self.begun.is_some_and(|begun| dir.ctime.0 >= begun)
    }
}

/// What was done to a tree. Directories and links count as files do.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Synced {
    /// Files that were right already.
    pub kept: u64,
    /// Those that are new, or of which anything was changed.
    pub written: u64,
    /// Names that are gone, each with all that was below it.
    pub removed: u64,
    /// How much of files was written, in bytes.
    pub bytes: u64,
}

/// Makes the tree below `to` equal to the source, but for the times of access: content, links, owners, modes,
/// attributes, times, and the flags of chattr(1) that lock a file. Files that are there are changed where they are, block
/// by block, so nothing may use the tree meanwhile. What of the source changes meanwhile is in the tree as it was at
/// some moment. Flushes all to the disk.
///
/// Of a tree that is a snapshot there can be the listing of what it is a snapshot of: what that lists is not read.
///
/// Refuses when more than `room` bytes are to be written.
pub fn sync(
    source: &Source,
    to: &Dir,
    listing: Option<Listing>,
    room: u64,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Synced> {
    let meter = Meter::new(room, interrupt, progress);
    thread::scope(|scope| {
        let start = |listing| Ahead::start(scope, source, to, listing, interrupt);
        let ahead = listing.map(start).transpose()?;
        bring(source, to, None, ahead, meter)
    })
}

/// The same for a tree that is copied in two steps.
pub fn sync_again(
    source: &Source,
    to: &Dir,
    again: &Again,
    room: u64,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Synced> {
    let meter = Meter::new(room, interrupt, progress);
    bring(source, to, Some(again), None, meter)
}

fn bring(
    source: &Source,
    to: &Dir,
    again: Option<&Again>,
    ahead: Option<Ahead>,
    meter: Meter,
) -> Result<Synced> {
    let roots = [Some(source.root.again()?), Some(to.again()?)];
    // What goes makes room for what comes.
    let mut removed = 0;
    walk(&roots, None, &mut |visit| {
        meter.interrupt.check()?;
        if is_mark(again, visit.path) {
            return Ok(Below::Skip);
        }
        remove(visit, &mut removed)
    })?;
    let mut syncer = Syncer {
        to,
        again,
        moved: None,
        ahead,
        zeros_are_holes: source.zeros_are_holes,
        meter,
        blocks: Blocks::default(),
        names: BTreeMap::new(),
        taken: BTreeSet::new(),
        kept: 0,
        written: 0,
    };
    walk_by(&roots, None, &mut syncer)?;
    syncer.meter.progress.hint("flushing");
    syncfs(&to.fd).map_err(io::Error::from)?;
    Ok(Synced {
        kept: syncer.kept,
        written: syncer.written,
        removed,
        bytes: syncer.meter.written,
    })
}

fn is_mark(again: Option<&Again>, path: &Path) -> bool {
    again.is_some_and(|again| path == Path::new(again.mark))
}

/// Removes what the source does not have, or what is something else there.
fn remove(visit: &Visit, removed: &mut u64) -> Result<Below> {
    let [from, Some(there)] = visit.places else {
        return Ok(Below::Skip);
    };
    let is_kept = match from {
        Some(from) => from.stat.kind == there.stat.kind,
        None => visit.path == Path::new(LOST_AND_FOUND) && there.stat.kind == Kind::Dir,
    };
    if is_kept {
        return Ok(Below::Visit);
    }
    there
        .dir
        .remove_all(there.name)
        .with_context(|| format!("cannot remove /{}", escaped(visit.path)))?;
    *removed += 1;
    Ok(Below::Skip)
}

/// How much was done. In bytes.
struct Meter<'a> {
    interrupt: &'a Interrupt,
    progress: &'a mut Progress,
    room: u64,
    compared: u64,
    written: u64,
}

impl<'a> Meter<'a> {
    fn new(room: u64, interrupt: &'a Interrupt, progress: &'a mut Progress) -> Self {
        Self {
            interrupt,
            progress,
            room,
            compared: 0,
            written: 0,
        }
    }

    /// Fails when it is time to end, or too much was written.
    fn count(&mut self, compared: u64, written: u64) -> Result<()> {
        self.interrupt.check()?;
        self.compared += compared;
        self.written += written.next_multiple_of(BLOCK);
        self.progress.show(self.compared);
        ensure!(
            self.written <= self.room,
            "the thin pool has no room: what is copied needs more than the {} MiB that are left",
            self.room >> 20
        );
        Ok(())
    }
}

struct Syncer<'a> {
    to: &'a Dir,
    again: Option<&'a Again<'a>>,
    /// The directory that may have got another name since it was copied ahead. What is below it was not at its path then,
    /// though it was not changed since.
    moved: Option<PathBuf>,
    ahead: Option<Ahead>,
    zeros_are_holes: bool,
    meter: Meter<'a>,
    blocks: Blocks,
    /// Files of several names in the source: the first name, and the file that it is now.
    names: BTreeMap<Id, (PathBuf, Id)>,
    /// Files of several names that are made equal to one file of the source already.
    taken: BTreeSet<Id>,
    kept: u64,
    written: u64,
}

impl Visitor for Syncer<'_> {
    fn visit(&mut self, visit: &Visit) -> Result<Below> {
        self.meter.interrupt.check()?;
        self.put(visit)
            .with_context(|| format!("cannot write /{}", escaped(visit.path)))
    }

    /// Gives a directory what it has beside its content. Only now nothing changes its time any more.
    fn leave(&mut self, path: &Path, dirs: &[Option<&Dir>]) -> Result<()> {
        self.moved.take_if(|moved| moved == path);
        let [Some(from), Some(to)] = dirs else {
            return Ok(());
        };
        let this = OsStr::new(".");
        let is_changed = from
            .node(this)
            .and_then(|node| complete(&node, to, this, &to.node(this)?))
            .with_context(|| format!("cannot write /{}", escaped(path)))?;
        self.count(is_changed);
        Ok(())
    }
}

impl Syncer<'_> {
    fn count(&mut self, is_changed: bool) {
        let counter = if is_changed {
            &mut self.written
        } else {
            &mut self.kept
        };
        *counter += 1;
    }

    fn put(&mut self, visit: &Visit) -> Result<Below> {
        let [Some(from), there] = visit.places else {
            return Ok(Below::Skip);
        };
        if is_mark(self.again, visit.path) {
            return Ok(Below::Skip);
        }
        let is_moved = |again: &Again| from.stat.kind == Kind::Dir && again.is_moved(&from.stat);
        if self.moved.is_none() && self.again.is_some_and(is_moved) {
            self.moved = Some(visit.path.to_owned());
        }
        let is_settled = |again: &Again| {
            let to = there.as_ref().filter(|to| to.stat.kind == Kind::File);
            from.stat.kind == Kind::File
                && to.is_some_and(|to| again.is_settled(&from.stat, &to.stat))
        };
        if self.moved.is_none() && self.again.is_some_and(is_settled) {
            self.count(false);
            self.meter.count(from.stat.used, 0)?;
            return Ok(Below::Skip);
        }
        if let (Some(ahead), Some(to)) = (&mut self.ahead, there)
            && ahead.compared(visit.path, [&from.stat, &to.stat]) == Same::All
        {
            self.count(false);
            self.meter.count(from.stat.used, 0)?;
            return Ok(Below::Skip);
        }
        let name = from.name;
        let to = visit.dir(1).context("its directory is gone")?;
        let there = there.as_ref().map(|there| there.stat);
        let Some(node) = from.node()? else {
            // It is gone meanwhile, or something else.
            to.remove_all(name)?;
            return Ok(Below::Skip);
        };
        let stat = node.stat;
        let there = match there {
            Some(there) if there.kind != stat.kind => {
                to.remove_all(name)?;
                None
            }
            there => there,
        };
        if stat.kind == Kind::Dir {
            if there.is_none() {
                to.unlocked(name, || to.make_dir(name))?;
            }
            return Ok(Below::Visit);
        }
        let kept = match self.further_name(&stat, to, name, there)? {
            Some(kept) => kept,
            None => self.made(visit.path, &node, to, name, there)?,
        };
        let is_changed = matches!(kept, Kept::No);
        let there = match kept {
            Kept::AsSeen(there) => there,
            Kept::Yes | Kept::No => to.node(name)?,
        };
        let is_completed = complete(&node, to, name, &there)?;
        self.count(is_changed || is_completed);
        Ok(Below::Skip)
    }

    /// Makes a name be a further one of what was made already, if it is that in the source. Returns whether it was.
    fn further_name(
        &mut self,
        stat: &Stat,
        to: &Dir,
        name: &OsStr,
        there: Option<Stat>,
    ) -> Result<Option<Kept>> {
        let Some((first, id)) = self.names.get(&stat.id).filter(|_| stat.links > 1) else {
            return Ok(None);
        };
        if there.is_some_and(|there| there.id == *id) {
            return Ok(Some(Kept::Yes));
        }
        let above = first.parent().unwrap_or(Path::new(""));
        let (Some(dir), Some(first)) = (self.to.descend(above)?, first.file_name()) else {
            bail!("the first of its names is gone");
        };
        to.remove(name)?;
        dir.unlocked(first, || to.unlocked(name, || to.link(name, &dir, first)))?;
        Ok(Some(Kept::No))
    }

    /// Makes what is no directory have its content, target or device. Returns whether it had it.
    fn made(
        &mut self,
        path: &Path,
        node: &Node,
        to: &Dir,
        name: &OsStr,
        there: Option<Stat>,
    ) -> Result<Kept> {
        let stat = node.stat;
        // Where two of the source are one here, each but the first becomes one of its own.
        let there = there.filter(|there| there.links < 2 || self.taken.insert(there.id));
        let kept = match stat.kind {
            Kind::File | Kind::Dir => self.file(path, node, to, name, there)?,
            Kind::Link => {
                let target = node.target()?;
                let old = there.map(|_| to.node(name)).transpose()?;
                if let Some(old) = old
                    && old.target()? == target
                {
                    Kept::AsSeen(old)
                } else {
                    to.remove(name)?;
                    to.unlocked(name, || to.make_link(name, &target))?;
                    Kept::No
                }
            }
            Kind::Fifo | Kind::Socket | Kind::Char | Kind::Block => {
                if there.is_some_and(|there| there.device == stat.device) {
                    Kept::Yes
                } else {
                    to.remove(name)?;
                    to.unlocked(name, || to.make_special(name, stat.kind, stat.device))?;
                    Kept::No
                }
            }
        };
        if stat.links > 1 {
            let made = to.stat_of(name)?.context("it is gone")?;
            self.names.insert(stat.id, (path.to_owned(), made.id));
            self.taken.insert(made.id);
        }
        Ok(kept)
    }

    /// Makes a file have its content. Returns whether it had it.
    fn file(
        &mut self,
        path: &Path,
        node: &Node,
        to: &Dir,
        name: &OsStr,
        there: Option<Stat>,
    ) -> Result<Kept> {
        let stat = node.stat;
        if let (Some(ahead), Some(there)) = (&mut self.ahead, &there)
            && ahead.compared(path, [&stat, there]) != Same::No
        {
            self.meter.count(stat.used, 0)?;
            return Ok(Kept::AsSeen(to.node(name)?));
        }
        let (meter, blocks) = (&mut self.meter, &mut self.blocks);
        let wanted = Wanted {
            file: &node.open()?,
            size: stat.size,
            zeros_are_holes: self.zeros_are_holes,
        };
        let mut is_changed = there.is_none();
        let mut seen = None;
        let mut tell = |compared, written| meter.count(compared, written);
        if there.is_some() {
            let old = to.node(name)?;
            let mut open = || {
                is_changed = true;
                to.unlocked(name, || to.node(name)?.open_to_write())
            };
            update(&wanted, &old.open()?, blocks, &mut open, &mut tell)?;
            seen = Some(old);
        } else {
            to.remove(name)?;
            let new = to.unlocked(name, || to.create(name))?;
            update(&wanted, &new, blocks, &mut || new.try_clone(), &mut tell)?;
        }
        Ok(match seen {
            _ if is_changed => Kept::No,
            Some(seen) => Kept::AsSeen(seen),
            None => Kept::Yes,
        })
    }
}

/// Whether what has a name already is what the source has there, but for its owner and the like.
enum Kept {
    No,
    Yes,
    /// It was looked at, and nothing was done to it since.
    AsSeen(Node),
}

/// Gives what is `there` at a name the owner, mode, attributes, flags and time of its like in the source. Returns whether
/// it had others.
fn complete(from: &Node, to: &Dir, name: &OsStr, there: &Node) -> io::Result<bool> {
    let (wanted, locks) = (from.meta()?, from.locks()?);
    let is_other = there.meta()? != wanted;
    let locked = there.locks()?;
    let (is_locked, has_other_locks) = (!locked.is_empty(), locked != locks);
    let has_other_time = there.stat.mtime != from.stat.mtime;
    if is_other {
        to.set_meta(name, &wanted, None)?;
    }
    if has_other_time {
        to.set_mtime(name, from.stat.mtime)?;
    }
    // What was changed has lost them.
    if has_other_locks || is_locked {
        to.node(name)?.set_locks(locks)?;
    }
    Ok(is_other || has_other_time || has_other_locks)
}

#[cfg(test)]
mod tests;
