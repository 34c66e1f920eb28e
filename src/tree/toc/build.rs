//! Makes a filesystem hold the tree of a table: an empty one, or a snapshot of another tree. What is there already is not
//! touched, so that a snapshot has it only once.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::mem;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{IFlags, syncfs};
use sha2::{Digest, Sha256};

use super::plan::{From, Plan, number_of};
use super::{Content, Entry, What};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::tree::content::{self, Blocks, Wanted};
use crate::tree::dir::Dir;
use crate::tree::listing::{Listing, sum_of};
use crate::tree::name::escaped;
use crate::tree::node::{Kind, Node, Stat, Xattrs};
use crate::tree::sync::LOST_AND_FOUND;
use crate::tree::walk::{Below, Place, in_order, walk};
use crate::tree::write::Meta;

/// So much is read at once, in bytes.
const PORTION: usize = 64 << 10;
/// What is written takes whole blocks of this size, in bytes; what has a name takes at least the size of an inode.
const BLOCK: u64 = 4096;
const INODE: u64 = 512;

/// Opens the file at a path of a tree that is known, by its number. Nothing where it is not there.
pub type Others<'a> = dyn FnMut(usize, &Path) -> Result<Option<File>> + 'a;

/// Opens a file of another tree to be read, if it is there.
pub fn file_of(root: &Dir, path: &Path) -> Option<File> {
    let dir = root.descend(path.parent()?).ok()??;
    dir.node(path.file_name()?).ok()?.open().ok()
}

/// How much of an entry is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    /// A file of another content, which this one is written over.
    Old,
    /// What it is, with its content.
    Content,
    /// Also the owner, mode, attributes, time, and no flag of chattr(1) that locks it.
    All,
}

/// A tree that is being made.
pub struct Build<'a> {
    entries: &'a [Entry],
    plan: &'a Plan,
    to: &'a Dir,
    /// How many bytes may be written.
    room: u64,
    written: u64,
    interrupt: &'a Interrupt,
    progress: &'a mut Progress,
    /// Of each entry.
    there: Vec<There>,
    /// The directory that was used last.
    last: Option<(PathBuf, Dir)>,
    blocks: Blocks,
}

impl<'a> Build<'a> {
    /// Begins to make the entries, which are in the order of their paths, below the root `to`. Refuses to write more than
    /// `room` bytes.
    pub fn new(
        entries: &'a [Entry],
        plan: &'a Plan,
        to: &'a Dir,
        room: u64,
        interrupt: &'a Interrupt,
        progress: &'a mut Progress,
    ) -> Self {
        Self {
            entries,
            plan,
            to,
            room,
            written: 0,
            interrupt,
            progress,
            there: vec![There::Nothing; entries.len()],
            last: None,
            blocks: Blocks::default(),
        }
    }

    /// Finds what is there already, and removes all else. `listing` is that of the tree that this one began as a snapshot
    /// of: of what it lists, nothing but what stat(2) tells is read, and where links lead.
    ///
    /// Refuses a tree for which there is no room.
    pub fn compare(&mut self, mut listing: Option<Listing>) -> Result<()> {
        let top = self.to.node(OsStr::new("."))?;
        if !top.locks()?.is_empty() {
            top.set_locks(IFlags::empty())?;
        }
        let mut there = mem::take(&mut self.there);
        let (mut entries, mut next) = (self.entries.iter().enumerate(), None);
        let mut removed = 0;
        walk(&[Some(self.to.again()?)], None, &mut |visit| {
            self.interrupt.check()?;
            let [Some(place)] = visit.places else {
                return Ok(Below::Skip);
            };
            let take = || Ok(entries.next());
            let entry = in_order(&mut next, visit.path, |(_, entry)| &entry.path, take)?;
            let number = entry.map(|(number, _)| *number);
            let shown = || format!("/{}", escaped(visit.path));
            let found = match number {
                Some(number) => self.look(number, place, &mut listing).with_context(shown)?,
                None if is_lost_and_found(visit.path, &place.stat) => return Ok(Below::Visit),
                None => There::Nothing,
            };
            if found == There::Nothing {
                let gone = place.dir.remove_all(place.name);
                gone.with_context(|| format!("cannot remove {}", shown()))?;
                removed += 1;
                return Ok(Below::Skip);
            }
            if let Some(number) = number {
                there[number] = found;
            }
            Ok(Below::Visit)
        })?;
        let count = |wanted: There| there.iter().filter(|found| **found == wanted).count();
        log::debug!(
            "of {} paths {} are there, {} have another content, {} others are gone",
            there.len(),
            count(There::Content) + count(There::All),
            count(There::Old),
            removed
        );
        self.there = there;
        let new = (0..self.entries.len()).filter(|at| self.there[*at] == There::Nothing);
        let bytes = new.map(|at| self.plan.bytes(self.entries, at));
        self.check_room(bytes.fold(0, u64::saturating_add))
    }

    /// Refuses to write `more` bytes where there is no room for them.
    fn check_room(&self, more: u64) -> Result<()> {
        ensure!(
            self.written.saturating_add(more) <= self.room,
            "the thin pool has no room: what is new needs more than the {} MiB that are left",
            self.room >> 20
        );
        Ok(())
    }

    /// How much of the entry of this number is at its path.
    fn look(&self, number: usize, place: &Place, listing: &mut Option<Listing>) -> Result<There> {
        let (entry, stat) = (&self.entries[number], &place.stat);
        let is_file = stat.kind == Kind::File;
        let is_it = match &entry.what {
            What::Dir => stat.kind == Kind::Dir,
            // Another name would have the same owner, mode and time.
            What::Special(..) | What::Link(_) if stat.links > 1 => false,
            What::Special(kind, device) => (stat.kind, stat.device) == (*kind, *device),
            What::Link(target) => {
                stat.kind == Kind::Link
                    && match place.node()? {
                        Some(node) => node.target()? == *target,
                        None => false,
                    }
            }
            What::HardLink(of) => {
                let is_same = is_file && self.kept(of) == Some(stat.id.ino);
                return Ok(if is_same { There::All } else { There::Nothing });
            }
            What::File(content) => match self.plan.files.get(&number) {
                Some(From::Origin(inode)) => {
                    let is_it = is_file && (stat.id.ino, stat.size) == (*inode, content.size);
                    ensure!(is_it, "it is not what the listing of its base says");
                    true
                }
                // Another name would have the new content as well.
                _ if !is_file || stat.links > 1 => false,
                None => stat.size == 0,
                // What is zeros is a hole, and nothing is written there.
                Some(From::Layers) if content.has_holes() => false,
                Some(_) => return Ok(There::Old),
            },
        };
        if !is_it {
            return Ok(There::Nothing);
        }
        let listed = match listing {
            Some(listing) => listing.untouched(&entry.path, stat)?,
            None => None,
        };
        // What changes a file sets its ctime.
        if let (What::File(content), None) = (&entry.what, &listed)
            && let Some(From::Origin(_)) = self.plan.files.get(&number)
        {
            let node = place.node()?.context("it is gone")?;
            let sum = content::sum(&node.open()?, &mut Vec::new(), &mut |_| {
                self.interrupt.check()
            })?;
            ensure!(
                sum == content.sha256,
                "it is not what the listing of its base says"
            );
        }
        let is_all = has_meta(stat, entry)
            && listed.is_some_and(|listed| listed.xattrs == sum_of(&entry.meta.xattrs));
        Ok(if is_all { There::All } else { There::Content })
    }

    /// The inode number of the file at a path of the table, if that is there already.
    fn kept(&self, path: &Path) -> Option<u64> {
        match self.plan.files.get(&number_of(self.entries, path)?)? {
            From::Origin(inode) => Some(*inode),
            _ => None,
        }
    }

    /// Makes all that has a name and is not there, and copies what others have. Returns the numbers of files that others
    /// do not have any more, although their listings say so.
    pub fn names(&mut self, others: &mut Others) -> Result<Vec<usize>> {
        let mut lost = Vec::new();
        for (number, entry) in self.entries.iter().enumerate() {
            self.interrupt.check()?;
            let made = self.name(number, entry, others);
            if !made.with_context(|| failed(entry))? {
                lost.push(number);
            }
        }
        Ok(lost)
    }

    /// Returns whether it has its content, or gets it later.
    fn name(&mut self, number: usize, entry: &Entry, others: &mut Others) -> Result<bool> {
        let there = self.there[number];
        let Some(name) = entry.path.file_name() else {
            return Ok(true);
        };
        if matches!(there, There::Content | There::All) {
            return Ok(true);
        }
        if there == There::Nothing {
            self.count(if entry.what == What::Dir {
                BLOCK
            } else {
                INODE
            })?;
        }
        let dir = self.above(&entry.path)?;
        match &entry.what {
            What::Dir => dir.make_dir(name)?,
            What::Link(target) => dir.make_link(name, target)?,
            What::Special(kind, device) => dir.make_special(name, *kind, *device)?,
            What::HardLink(_) => {}
            What::File(_) => {
                if there == There::Nothing {
                    dir.create(name)?;
                }
                match self.plan.files.get(&number) {
                    Some(From::Origin(_)) => bail!("it is not what the listing of its base says"),
                    Some(From::Other(tree, path)) => {
                        return match others(*tree, path)? {
                            Some(other) => self.copied(&other, number),
                            None => Ok(false),
                        };
                    }
                    Some(From::Layers | From::Twin(_)) | None => {}
                }
            }
        }
        Ok(true)
    }

    /// Gives the file of this number the content of another one. Returns whether that is the right one.
    fn copied(&mut self, from: &File, number: usize) -> Result<bool> {
        let entry = &self.entries[number];
        let content = entry.content().context("it is no file")?;
        let name = entry.path.file_name().context("it has no name")?;
        let dir = self.above(&entry.path)?.again()?;
        let there = dir.node(name)?.open()?;
        let wanted = Wanted {
            file: from,
            size: content.size,
            zeros_are_holes: false,
        };
        let mut blocks = mem::take(&mut self.blocks);
        let mut open = || dir.unlocked(name, || dir.node(name)?.open_to_write());
        let mut tell = |_, written: u64| self.count(written.next_multiple_of(BLOCK));
        content::update(&wanted, &there, &mut blocks, &mut open, &mut tell)?;
        self.blocks = blocks;
        let interrupt = self.interrupt;
        let sum = content::sum(&there, &mut Vec::new(), &mut |_| interrupt.check())?;
        Ok(sum == content.sha256)
    }

    /// Gives the files of these numbers their content, as [`read_contents`] reads it. Of what they had before, that stays
    /// which is the same.
    pub fn contents(&mut self, files: &[usize], input: &mut dyn Read) -> Result<()> {
        let (entries, interrupt) = (self.entries, self.interrupt);
        let mut open: Option<(usize, Opened)> = None;
        let mut put = |number: usize, at: u64, bytes: &[u8]| {
            let last = open.take().filter(|(of, _)| *of == number);
            let mut opened = match last {
                Some((_, opened)) => opened,
                None => self.open(number)?,
            };
            if !opened.has(at, bytes)? {
                self.count((bytes.len() as u64).next_multiple_of(BLOCK))?;
                opened.file.write_all_at(bytes, at)?;
            }
            open = Some((number, opened));
            Ok(())
        };
        read_contents(entries, files, input, interrupt, &mut put)
    }

    /// Opens the file of this number to be written to, which gets its size.
    fn open(&mut self, number: usize) -> Result<Opened> {
        let entry = &self.entries[number];
        let name = entry.path.file_name().context("it has no name")?;
        let is_old = self.there[number] == There::Old;
        let dir = self.above(&entry.path)?;
        let file = dir.unlocked(name, || dir.node(name)?.open_to_write())?;
        file.set_len(entry.content().map_or(0, |content| content.size))?;
        let old = is_old.then(|| dir.node(name)?.open()).transpose()?;
        Ok(Opened {
            file,
            old,
            block: Vec::new(),
        })
    }

    /// Makes what needs all contents: files that are equal to others, further names, and what each path has beside its
    /// content. Flushes all to the disk.
    pub fn end(mut self) -> Result<()> {
        let entries = self.entries;
        for (number, from) in &self.plan.files {
            let From::Twin(first) = from else {
                continue;
            };
            let mut copy = || {
                let from = self.file(&entries[*first].path)?;
                self.copied(&from, *number)
            };
            let is_copied = copy().with_context(|| failed(&entries[*number]))?;
            ensure!(is_copied, "a copy failed");
        }
        for (number, entry) in entries.iter().enumerate() {
            if let (What::HardLink(target), There::Nothing) = (&entry.what, self.there[number]) {
                self.link(&entry.path, target)
                    .with_context(|| failed(entry))?;
            }
        }
        let has_root = entries.first().is_some_and(|it| it.path == Path::new(""));
        if !has_root {
            // As mke2fs(8) makes it.
            let meta = Meta {
                uid: 0,
                gid: 0,
                mode: 0o755,
                xattrs: Xattrs::new(),
            };
            self.to.set_meta(OsStr::new("."), &meta, None)?;
        }
        // A directory comes after all that changes its time.
        for (number, entry) in entries.iter().enumerate().rev() {
            self.interrupt.check()?;
            self.complete(number).with_context(|| failed(entry))?;
        }
        Ok(syncfs(&self.to.fd).map_err(io::Error::from)?)
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let above = self.above(target)?.again()?;
        let (Some(name), Some(of)) = (path.file_name(), target.file_name()) else {
            bail!("it has no name");
        };
        Ok(self.above(path)?.link(name, &above, of)?)
    }

    fn complete(&mut self, number: usize) -> Result<()> {
        let entry = &self.entries[number];
        let name = entry.path.file_name().unwrap_or(OsStr::new("."));
        match (&entry.what, self.there[number]) {
            (What::Dir, There::All) => {
                let dir = self.above(&entry.path)?;
                // What was made or removed in it has set its time.
                if dir.stat_of(name)?.is_some_and(|it| it.mtime != entry.mtime) {
                    dir.set_mtime(name, entry.mtime)?;
                }
            }
            // Another name has all with the first one.
            (What::HardLink(_), _) | (_, There::All) => {}
            (_, There::Content) => {
                let dir = self.above(&entry.path)?;
                if !is_complete(&dir.node(name)?, entry)? {
                    dir.set_meta(name, &entry.meta, Some(entry.mtime))?;
                }
            }
            (_, There::Nothing | There::Old) => {
                let dir = self.above(&entry.path)?;
                dir.set_meta(name, &entry.meta, Some(entry.mtime))?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> io::Result<File> {
        let name = path.file_name().unwrap_or_default();
        self.above(path)?.node(name)?.open()
    }

    /// The directory that a path is in.
    fn above(&mut self, path: &Path) -> io::Result<&Dir> {
        let above = path.parent().unwrap_or(Path::new(""));
        let last = self.last.take().filter(|(last, _)| last == above);
        let last = if let Some(last) = last {
            last
        } else {
            let dir = self.to.descend(above)?;
            (above.to_owned(), dir.ok_or(io::ErrorKind::NotFound)?)
        };
        Ok(&self.last.insert(last).1)
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.check_room(bytes)?;
        self.written += bytes;
        self.progress.show(self.written);
        Ok(())
    }
}

/// It stays, and is emptied: mke2fs(8) makes it, and e2fsck(8) wants it.
fn is_lost_and_found(path: &Path, stat: &Stat) -> bool {
    path == Path::new(LOST_AND_FOUND) && stat.kind == Kind::Dir
}

/// Whether what is there has the owner, mode and time of an entry, and nothing keeps it as it is.
fn has_meta(stat: &Stat, entry: &Entry) -> bool {
    let meta = &entry.meta;
    (stat.uid, stat.gid, stat.mtime) == (meta.uid, meta.gid, entry.mtime)
        && (stat.mode == meta.mode || stat.kind == Kind::Link)
        && stat.locks == Some(IFlags::empty())
}

/// The same of all that it has beside its content. What has no label may have got one of the host (selinux(8)).
fn is_complete(there: &Node, entry: &Entry) -> io::Result<bool> {
    let label = OsStr::new("security.selinux");
    let mut xattrs = there.xattrs()?;
    if !entry.meta.xattrs.contains_key(label) {
        xattrs.remove(label);
    }
    Ok(has_meta(&there.stat, entry) && xattrs == entry.meta.xattrs)
}

/// A file that is written.
struct Opened {
    file: File,
    /// The same to be read, where it had a content before.
    old: Option<File>,
    block: Vec<u8>,
}

impl Opened {
    /// Whether it has these bytes at this place already.
    fn has(&mut self, at: u64, bytes: &[u8]) -> io::Result<bool> {
        let Some(old) = &self.old else {
            return Ok(false);
        };
        self.block.resize(bytes.len(), 0);
        old.read_exact_at(&mut self.block, at)?;
        Ok(self.block == bytes)
    }
}

fn failed(entry: &Entry) -> String {
    format!("cannot write /{}", escaped(&entry.path))
}

/// Takes bytes of the file of a number, and where in the file they are.
pub type Put<'a> = dyn FnMut(usize, u64, &[u8]) -> Result<()> + 'a;

/// Reads the contents of the files of these numbers from `input`, which has all their chunks one after the other,
/// decompressed. A file gets no bytes for what of it is zeros, but at its begin.
///
/// Refuses a chunk or a file that has not its digest, and what comes after the last one.
pub fn read_contents(
    entries: &[Entry],
    files: &[usize],
    input: &mut dyn Read,
    interrupt: &Interrupt,
    put: &mut Put,
) -> Result<()> {
    let mut block = vec![0; PORTION];
    for number in files {
        let entry = &entries[*number];
        let Some(content) = entry.content() else {
            continue;
        };
        // So that it gets its size also where it has nothing else.
        put(*number, 0, &[])?;
        read_content(content, input, &mut block, interrupt, &mut |at, bytes| {
            put(*number, at, bytes)
        })
        .with_context(|| format!("/{} is not what was fetched", escaped(&entry.path)))?;
    }
    ensure!(
        input.read(&mut block)? == 0,
        "more was fetched than was asked for"
    );
    Ok(())
}

fn read_content(
    content: &Content,
    input: &mut dyn Read,
    block: &mut [u8],
    interrupt: &Interrupt,
    put: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let mut whole = Sha256::new();
    let mut at = 0;
    // One chunk has the digest of the file.
    let is_one = matches!(&content.chunks[..], [only] if only.sha256 == content.sha256);
    for chunk in &content.chunks {
        let mut sum = Sha256::new();
        let mut left = chunk.size;
        if chunk.place.is_none() {
            block.fill(0);
        }
        while left > 0 {
            interrupt.check()?;
            let part = usize::try_from(left).unwrap_or(PORTION).min(PORTION);
            let part = &mut block[..part];
            if chunk.place.is_some() {
                input.read_exact(part).context("it is too short")?;
                if !is_one {
                    sum.update(&*part);
                }
                put(at, part)?;
            }
            whole.update(&*part);
            at += part.len() as u64;
            left -= part.len() as u64;
        }
        ensure!(
            is_one || chunk.place.is_none() || format!("{:x}", sum.finalize()) == chunk.sha256,
            "a chunk has another digest"
        );
    }
    ensure!(
        format!("{:x}", whole.finalize()) == content.sha256,
        "it has another digest"
    );
    Ok(())
}
