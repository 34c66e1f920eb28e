//! Makes a tree of its table in an empty filesystem: with the content of those files only that are not there already
//! where it goes.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::plan::{From, Plan};
use super::{Content, Entry, What};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::tree::content;
use crate::tree::dir::Dir;
use crate::tree::name::escaped;
use crate::tree::node::Kind;

/// So much is read at once, in bytes.
const BLOCK: usize = 64 << 10;

/// Opens the file at a path of a tree that is known, by its number. Nothing where it is not there.
pub type Others<'a> = dyn FnMut(usize, &Path) -> Result<Option<File>> + 'a;

/// Opens a file of another tree to be read, if it is there.
pub fn file_of(root: &Dir, path: &Path) -> Option<File> {
    let dir = root.descend(path.parent()?).ok()??;
    dir.node(path.file_name()?).ok()?.open().ok()
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
    /// The directory that was used last.
    last: Option<(PathBuf, Dir)>,
}

impl<'a> Build<'a> {
    /// Begins to make the entries, in their order, below the root `to`. Refuses to write more than `room` bytes.
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
            last: None,
        }
    }

    /// Makes all that has a name, and copies what others have. A file that is at its place already gets its size only.
    /// Returns the numbers of files that others do not have any more, although their listings say so.
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
        let Some(name) = entry.path.file_name() else {
            return Ok(true);
        };
        let from = self.plan.files.get(&number);
        let dir = self.above(&entry.path)?;
        match &entry.what {
            // The filesystem can have made one.
            What::Dir
                if dir
                    .stat_of(name)?
                    .is_some_and(|stat| stat.kind == Kind::Dir) => {}
            What::Dir => dir.make_dir(name)?,
            What::Link(target) => dir.make_link(name, target)?,
            What::Special(kind, device) => dir.make_special(name, *kind, *device)?,
            What::HardLink(_) => {}
            What::File(content) => {
                let file = dir.create(name)?;
                match from {
                    Some(From::Origin) => file.set_len(content.size)?,
                    Some(From::Other(tree, path)) => {
                        let other = others(*tree, path)?;
                        let is_right = match other {
                            Some(other) => self.copied(&other, &file, &entry.path, content)?,
                            None => false,
                        };
                        if !is_right {
                            file.set_len(0)?;
                            return Ok(false);
                        }
                    }
                    Some(From::Layers | From::Twin(_)) | None => {}
                }
            }
        }
        Ok(true)
    }

    /// Copies a file of another tree. Returns whether it is the right one.
    fn copied(&mut self, from: &File, to: &File, path: &Path, content: &Content) -> Result<bool> {
        self.count(content.size)?;
        content::copy(from, to, content.size)?;
        let there = self.file(path)?;
        let interrupt = self.interrupt;
        let sum = content::sum(&there, &mut Vec::new(), &mut |_| interrupt.check())?;
        Ok(sum == content.sha256)
    }

    /// Gives the files of these numbers their content, as [`read_contents`] reads it.
    pub fn contents(&mut self, files: &[usize], input: &mut dyn Read) -> Result<()> {
        let interrupt = self.interrupt;
        let mut open: Option<(usize, File)> = None;
        read_contents(
            self.entries,
            files,
            input,
            interrupt,
            &mut |number, at, bytes| {
                let entry = &self.entries[number];
                let last = open.take().filter(|(of, _)| *of == number);
                let file = if let Some((_, file)) = last {
                    file
                } else {
                    let name = entry.path.file_name().context("it has no name")?;
                    let file = self.above(&entry.path)?.node(name)?.open_to_write()?;
                    file.set_len(entry.content().map_or(0, |content| content.size))?;
                    file
                };
                self.count(bytes.len() as u64)?;
                file.write_all_at(bytes, at)?;
                open = Some((number, file));
                Ok(())
            },
        )
    }

    /// Makes what needs all contents: files that are equal to others, further names, and what each path has beside its
    /// content.
    pub fn end(mut self) -> Result<()> {
        let entries = self.entries;
        for (number, from) in &self.plan.files {
            let (From::Twin(first), Some(content)) = (from, entries[*number].content()) else {
                continue;
            };
            let entry = &entries[*number];
            let mut copy = || {
                let from = self.file(&entries[*first].path)?;
                let name = entry.path.file_name().context("it has no name")?;
                let to = self.above(&entry.path)?.node(name)?.open_to_write()?;
                self.copied(&from, &to, &entry.path, content)
            };
            ensure!(copy().with_context(|| failed(entry))?, "a copy failed");
        }
        for entry in entries {
            if let What::HardLink(target) = &entry.what {
                self.link(&entry.path, target)
                    .with_context(|| failed(entry))?;
            }
        }
        // A directory comes after all that changes its time.
        for entry in entries.iter().rev() {
            self.interrupt.check()?;
            if !matches!(entry.what, What::HardLink(_)) {
                self.complete(entry).with_context(|| failed(entry))?;
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let above = self.above(target)?.again()?;
        let (Some(name), Some(of)) = (path.file_name(), target.file_name()) else {
            bail!("it has no name");
        };
        Ok(self.above(path)?.link(name, &above, of)?)
    }

    fn complete(&mut self, entry: &Entry) -> Result<()> {
        let name = entry.path.file_name().unwrap_or(OsStr::new("."));
        let dir = self.above(&entry.path)?;
        Ok(dir.set_meta(name, &entry.meta, Some(entry.mtime))?)
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
        self.written += bytes;
        self.progress.show(self.written);
        ensure!(
            self.written <= self.room,
            "the thin pool has no room: what is new needs more than the {} MiB that are left",
            self.room >> 20
        );
        Ok(())
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
    let mut block = vec![0; BLOCK];
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
            let part = usize::try_from(left).unwrap_or(BLOCK).min(BLOCK);
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
