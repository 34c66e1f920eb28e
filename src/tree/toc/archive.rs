//! The table of a layer that has none: it is read through, and the digest of each file taken.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::table::EMPTY;
use super::{Chunk, Content, Entry, Limits, Place, What};
use crate::sys::interrupt::Interrupt;
use crate::tree::name::escaped;
use crate::tree::tar::{self, Archive};

/// How much is read at once, in bytes.
const PORTION: usize = 128 << 10;
/// How much is passed over at once, in bytes.
const GAP: u64 = 4 << 20;
/// All contents that are kept, in bytes.
const KEPT_MOST: u64 = 32 << 20;

/// Contents that were read of archives and are not known yet, as far as there is room for them. They need not be read
/// once more.
#[derive(Debug)]
pub struct Kept {
    /// The digests that are known.
    known: BTreeSet<String>,
    file: File,
    /// Where in the file each content begins, by its digest, and where they end. In bytes.
    begins: BTreeMap<String, u64>,
    end: u64,
    /// How long the file may become, in bytes.
    room: u64,
}

impl Kept {
    /// None so far. They go into an empty file.
    pub fn new(known: BTreeSet<String>, file: File) -> Self {
        Self {
            known,
            file,
            begins: BTreeMap::new(),
            end: 0,
            room: KEPT_MOST,
        }
    }

    /// Takes a part of a content that has `size` bytes. Where that fails, nothing more is kept.
    fn put(&mut self, at: u64, bytes: &[u8], size: u64) {
        if self.has_room(size) && self.file.write_all_at(bytes, self.end + at).is_err() {
            self.room = 0;
        }
    }

    fn has_room(&self, size: u64) -> bool {
        self.end.saturating_add(size) <= self.room
    }

    /// Keeps the content that was put last, unless it is known.
    fn keep(&mut self, sha256: &str, size: u64) {
        if self.has_room(size) && self.known.insert(sha256.to_owned()) {
            self.begins.insert(sha256.to_owned(), self.end);
            self.end += size;
        }
    }

    /// The content of a file, if it was kept.
    pub fn content(&self, content: &Content) -> Option<impl Read + '_> {
        let begin = *self.begins.get(&content.sha256)?;
        Some(Slice {
            file: &self.file,
            at: begin,
            end: begin + content.size,
        })
    }
}

/// A part of a file.
struct Slice<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end - self.at).unwrap_or(usize::MAX);
        let most = buffer.len().min(left);
        let count = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Reads through the archive of the layer `layer`, from its beginning: the paths in its order. Each file is one chunk,
/// whose place is where its content is in the archive, decompressed. `tell` is called now and then, and fails when it is
/// time to end.
///
/// Refuses what a table cannot have as well, and what takes more of the memory than `room` bytes, of which it takes what
/// the table needs.
pub fn of_archive(
    input: &mut dyn Read,
    layer: usize,
    room: &mut usize,
    kept: &mut Kept,
    tell: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Entry>> {
    let at = Cell::new(0);
    let mut counted = Counted { input, read: &at };
    let mut archive = Archive::new(&mut counted as &mut dyn Read);
    let mut portion = vec![0; PORTION];
    let mut entries = Vec::new();
    let mut seen = BTreeSet::new();
    let mut content = 0_u64;
    while let Some(found) = archive.next_entry()? {
        tell()?;
        let left = room.checked_sub(memory(&found));
        *room = left.context("it has too many paths, or too long ones")?;
        let shown = || escaped(&found.path);
        ensure!(
            seen.insert(found.path.clone()),
            "{} is there twice",
            shown()
        );
        let what = match found.what {
            tar::What::Dir => What::Dir,
            tar::What::Link(target) => What::Link(target),
            tar::What::Name(of) => What::HardLink(of),
            tar::What::Special(kind, device) => What::Special(kind, device),
            tar::What::File(size) => {
                content = content.saturating_add(size);
                ensure!(content <= Limits::CONTENT_MOST, "its files hold too much");
                let from = at.get();
                let read = summed(&mut archive, size, &mut portion, kept, tell);
                let sha256 = read.with_context(|| format!("of {}", shown()))?;
                kept.keep(&sha256, size);
                let place = Place {
                    layer,
                    from,
                    end: from + size,
                };
                What::File(whole(size, sha256, place))
            }
        };
        let entry = Entry {
            path: found.path,
            what,
            meta: found.meta,
            mtime: found.mtime,
        };
        entry
            .check()
            .with_context(|| format!("of {}", escaped(&entry.path)))?;
        entries.push(entry);
    }
    Ok(entries)
}

/// What an entry takes of the memory, in bytes: rather more than less. Its path is there three times.
fn memory(found: &tar::Entry) -> usize {
    let more = match &found.what {
        tar::What::Link(target) => target.len(),
        tar::What::Name(of) => of.as_os_str().len(),
        // Two digests.
        tar::What::File(_) => 256,
        tar::What::Dir | tar::What::Special(..) => 0,
    };
    let xattrs = found.meta.xattrs.iter();
    let xattrs: usize = xattrs
        .map(|(name, value)| 64 + name.len() + value.len())
        .sum();
    2 * size_of::<Entry>()
        + 3 * (size_of::<PathBuf>() + found.path.as_os_str().len())
        + more
        + xattrs
}

/// The content of a file that is one chunk.
fn whole(size: u64, sha256: String, place: Place) -> Content {
    if size == 0 {
        return Content {
            size,
            sha256: EMPTY.to_owned(),
            chunks: Vec::new(),
        };
    }
    let chunk = Chunk {
        size,
        sha256: sha256.clone(),
        place: Some(place),
    };
    Content {
        size,
        sha256,
        chunks: vec![chunk],
    }
}

/// The digest of the next `size` bytes.
fn summed(
    input: &mut dyn Read,
    size: u64,
    portion: &mut [u8],
    kept: &mut Kept,
    tell: &mut dyn FnMut() -> Result<()>,
) -> Result<String> {
    let mut sum = Sha256::new();
    let mut at = 0;
    while at < size {
        tell()?;
        let most = usize::try_from(size - at).unwrap_or(PORTION).min(PORTION);
        let count = input.read(&mut portion[..most])?;
        ensure!(count > 0, "it ends in the middle");
        sum.update(&portion[..count]);
        kept.put(at, &portion[..count], size);
        at += count as u64;
    }
    Ok(format!("{:x}", sum.finalize()))
}

/// Hands over those bytes of an archive that are at `places`, which are in order, one after the other. What comes after
/// the last one is not read.
pub struct Pieces<'a> {
    input: &'a mut dyn Read,
    interrupt: &'a Interrupt,
    /// Of the archive, in bytes.
    at: u64,
    places: &'a [Place],
}

impl<'a> Pieces<'a> {
    pub fn new(input: &'a mut dyn Read, places: &'a [Place], interrupt: &'a Interrupt) -> Self {
        Self {
            input,
            interrupt,
            at: 0,
            places,
        }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((place, rest)) = self.places.split_first() {
            if self.at >= place.end {
                self.places = rest;
                continue;
            }
            if self.at < place.from {
                // Much can come between two of them.
                self.interrupt.check().map_err(io::Error::other)?;
                let gap = (place.from - self.at).min(GAP);
                let passed = io::copy(&mut (&mut self.input).take(gap), &mut io::sink())?;
                if passed < gap {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.at += gap;
                continue;
            }
            let left = usize::try_from(place.end - self.at).unwrap_or(usize::MAX);
            let most = buffer.len().min(left);
            let count = self.input.read(&mut buffer[..most])?;
            if count == 0 && most > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.at += count as u64;
            return Ok(count);
        }
        Ok(0)
    }
}

/// Tells how many bytes were read.
struct Counted<'a> {
    input: &'a mut dyn Read,
    read: &'a Cell<u64>,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::tar::tests::{file, header, link};

    /// Keeps what is none of these.
    fn kept(known: &[&str]) -> Kept {
        let sum = |content: &&str| format!("{:x}", Sha256::digest(content));
        let file = tempfile::tempfile().unwrap();
        Kept::new(known.iter().map(sum).collect(), file)
    }

    fn table(archive: &[u8], mut most: usize) -> Result<Vec<Entry>> {
        of_archive(&mut &archive[..], 7, &mut most, &mut kept(&[]), &mut || {
            Ok(())
        })
    }

    #[test]
    fn each_path_has_its_line_and_each_content_its_place() {
        let archive = [
            header("./", b'5', 0, |_| ()),
            file("a", b"one"),
            file("empty", b""),
            link("l", b'2', "a"),
            link("h", b'1', "./a"),
            file("b", &[b'x'; 1000]),
        ];
        let archive = [archive.concat(), vec![0; 1024]].concat();
        let entries = table(&archive, 9000).unwrap();
        let paths: Vec<_> = entries.iter().map(|it| it.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["", "a", "empty", "l", "h", "b"]);
        let of = |number: usize| entries[number].content().unwrap();
        assert_eq!(of(1).sha256, format!("{:x}", Sha256::digest("one")));
        assert_eq!(of(2).chunks, []);
        assert_eq!(entries[4].what, What::HardLink("a".into()));
        let places = [1, 5].map(|number| of(number).chunks[0].place.unwrap());
        let mut read = Vec::new();
        Pieces::new(&mut &archive[..], &places, &Interrupt::default())
            .read_to_end(&mut read)
            .unwrap();
        assert!(read == [b"one".to_vec(), vec![b'x'; 1000]].concat());
        // It ends before all of them.
        let cut = &archive[..archive.len() - 2000];
        let error =
            Pieces::new(&mut &cut[..], &places, &Interrupt::default()).read_to_end(&mut Vec::new());
        assert_eq!(error.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_content_is_kept_that_is_not_known_and_has_room() {
        let large = vec![b'x'; usize::try_from(KEPT_MOST).unwrap()];
        let files = [
            ("a", "one"),
            ("b", "two"),
            ("c", "three"),
            ("d", "two"),
            ("e", ""),
        ];
        let mut archive = files
            .map(|(name, text)| file(name, text.as_bytes()))
            .concat();
        archive.extend(file("f", &large));
        let mut kept = kept(&["one"]);
        let entries =
            of_archive(&mut &archive[..], 0, &mut 9000, &mut kept, &mut || Ok(())).unwrap();
        let found: Vec<Option<String>> = entries
            .iter()
            .map(|entry| {
                let mut text = String::new();
                let mut read = kept.content(entry.content().unwrap())?;
                read.read_to_string(&mut text).unwrap();
                Some(text)
            })
            .collect();
        let wanted = [
            None,
            Some("two"),
            Some("three"),
            Some("two"),
            Some(""),
            None,
        ];
        assert_eq!(found, wanted.map(|text| text.map(str::to_owned)));
        assert_eq!(kept.end, "twothree".len() as u64);
    }

    #[test]
    fn where_nothing_can_be_kept_the_table_is_the_same() {
        let archive = [file("a", b"one"), file("b", b"two")].concat();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut kept = Kept::new(BTreeSet::new(), full);
        let entries =
            of_archive(&mut &archive[..], 7, &mut 9000, &mut kept, &mut || Ok(())).unwrap();
        assert_eq!(entries, table(&archive, 9000).unwrap());
        assert!(kept.content(entries[0].content().unwrap()).is_none());
    }

    #[test]
    fn what_no_table_has_is_refused() {
        let root = file("./", b"x");
        let zero = header("dev", b'3', 0, |_| ());
        let large = header("a", b'0', 4 << 30, |_| ());
        for (archive, most, why) in [
            (
                [file("a", b"1"), file("b", b"2")].concat(),
                1000,
                "too many paths",
            ),
            (
                [file("a", b"1"), file("./a", b"2")].concat(),
                9000,
                "is there twice",
            ),
            (root, 9000, "the root is no directory"),
            (zero, 9000, "the device 0:0"),
            (large, 9000, "ends in the middle of a file"),
        ] {
            let error = format!("{:#}", table(&archive, most).unwrap_err());
            assert!(error.contains(why), "{why}: {error}");
        }
        let mut left = 3;
        let archive = file("a", &vec![0; 1 << 20]);
        let error = of_archive(&mut &archive[..], 0, &mut 9000, &mut kept(&[]), &mut || {
            left -= 1;
            ensure!(left > 0, "it is time to end");
            Ok(())
        });
        assert_eq!(
            format!("{:#}", error.unwrap_err()),
            "of a: it is time to end"
        );
    }
}
