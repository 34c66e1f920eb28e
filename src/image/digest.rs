//! The digest of what a base holds, by which a change is noticed; and of an image while it is copied, which is what
//! the volume has to hold afterwards.
//!
//! It is the SHA-256 of the volume's size and of the SHA-256 of each segment that is not all zeros,
//! each after its number; a segment's is that of its blocks that are not all zeros, followed by their
//! numbers. Numbers and sizes are little-endian, of 64 bits.
//!
//! What is copied is compared with what was read of the image by a checksum of the same parts, XXH64: a disk or a driver
//! that damages what it gets has no will of its own, and SHA-256 takes longer than reading and writing do.

use std::fs::{File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Read, Seek};
use std::mem;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use twox_hash::XxHash64;

use super::blocks::is_zero;
use super::direct::{self, Buffer};
use crate::sys::interrupt::Interrupt;
use crate::sys::probe;
use crate::sys::progress::Progress;

/// In bytes. A segment is the work of one thread.
const SEGMENT: u64 = 16 << 20;
const BLOCK: usize = 64 << 10;

/// Computes a value of bytes that are put one after the other.
trait Hash: Default {
    type Value: Ord + Send;

    fn put(&mut self, bytes: &[u8]);
    fn end(self) -> Self::Value;
}

impl Hash for Sha256 {
    type Value = [u8; 32];

    fn put(&mut self, bytes: &[u8]) {
        self.update(bytes);
    }

    fn end(self) -> Self::Value {
        self.finalize().into()
    }
}

impl Hash for XxHash64 {
    type Value = u64;

    fn put(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }

    fn end(self) -> Self::Value {
        self.finish()
    }
}

/// The segments of a content that are not all zeros, in their order: their numbers, and what was computed of each.
#[derive(Debug, PartialEq, Eq)]
pub struct Segments<V> {
    /// Of the content, in bytes.
    size: u64,
    values: Vec<(u64, V)>,
}

impl Segments<[u8; 32]> {
    /// The digest of the whole, as hexadecimal digits.
    fn whole(&self) -> String {
        let mut whole = Sha256::new();
        whole.update(self.size.to_le_bytes());
        for (number, digest) in &self.values {
            whole.update(number.to_le_bytes());
            whole.update(digest);
        }
        format!("{:x}", whole.finalize())
    }
}

/// What tells whether a copy holds what was read.
pub type Checksums = Segments<u64>;

impl Checksums {
    /// Where the first segment begins that is not the same in `other`, in bytes.
    fn first_difference(&self, other: &Self) -> Option<u64> {
        let missing = |from: &Self, of: &Self| {
            let mut values = of.values.iter();
            let found = values.find(|value| from.values.binary_search(value).is_err());
            found.map(|(number, _)| number * SEGMENT)
        };
        let content = [missing(self, other), missing(other, self)];
        let size = (self.size != other.size).then_some(self.size.min(other.size));
        content.into_iter().chain([size]).flatten().min()
    }
}

/// Computes the checksums of what is read once, from its beginning.
#[derive(Default)]
pub struct Summer {
    offset: u64,
    segment: Segment<XxHash64>,
    values: Vec<(u64, u64)>,
}

impl Summer {
    /// Goes on with `bytes`. Each piece but the last has whole blocks.
    pub fn put(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK) {
            if self.offset.is_multiple_of(SEGMENT) {
                self.end_segment();
            }
            self.segment.put(block, self.offset);
            self.offset += block.len() as u64;
        }
    }

    fn end_segment(&mut self) {
        let number = (self.offset / SEGMENT).saturating_sub(1);
        let value = mem::take(&mut self.segment).end();
        self.values.extend(value.map(|value| (number, value)));
    }

    pub fn end(mut self) -> Checksums {
        let size = self.offset;
        self.offset = size.next_multiple_of(SEGMENT);
        self.end_segment();
        let values = self.values;
        Segments { size, values }
    }
}

/// The digest of a device, as hexadecimal digits. Several threads read it; `label` says what for.
pub fn of(device: &Path, label: &str, interrupt: &Interrupt) -> Result<String> {
    Ok(read::<Sha256>(device, None, label, interrupt)?.whole())
}

/// The SHA-256 of an image, as sha256sum(1) prints it. `label` says what for.
pub fn of_image(image: &Path, label: &str, interrupt: &Interrupt) -> Result<String> {
    let failed = || format!("cannot read {}", image.display());
    let mut file = File::open(image).with_context(failed)?;
    let mut progress = Progress::new(label, probe::size(&file).with_context(failed)?);
    // Its size was asked for by going to its end.
    file.rewind().with_context(failed)?;
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = 0;
    loop {
        interrupt.check()?;
        let count = file.read(&mut buffer).with_context(failed)?;
        if count == 0 {
            return Ok(format!("{:x}", sum.finalize()));
        }
        sum.update(&buffer[..count]);
        done += count as u64;
        progress.show(done);
    }
}

/// Fails unless a volume holds at its beginning what was put there. It is read from the disk.
pub fn check_copy(
    put: &Checksums,
    device: &Path,
    label: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    let found = read::<XxHash64>(device, Some(put.size), label, interrupt)?;
    match put.first_difference(&found) {
        None => Ok(()),
        Some(offset) => bail!(
            "{} does not hold what was written to it, first between {} and {} MiB; a disk of the volume group or its \
             driver is damaged",
            device.display(),
            offset >> 20,
            (offset + SEGMENT) >> 20
        ),
    }
}

/// Reads the first `size` bytes of a device, or all of it.
fn read<H: Hash>(
    device: &Path,
    size: Option<u64>,
    label: &str,
    interrupt: &Interrupt,
) -> Result<Segments<H::Value>> {
    let failed = || format!("cannot read {}", device.display());
    // Through the page cache it takes several times as long, and all else is pushed out of that. What was
    // written a moment ago would come from there, and not from the disk.
    let file = direct::open(OpenOptions::new().read(true), device).with_context(failed)?;
    let size = match size {
        Some(size) => size,
        None => probe::size(&file).with_context(failed)?,
    };
    let mut progress = Progress::new(label, size);
    let segments = size.div_ceil(SEGMENT);
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(4) as u64);
    let done = AtomicU64::new(0);
    // Each thread takes every nth segment.
    let work = |first: u64, mut progress: Option<&mut Progress>| -> Result<Vec<(u64, H::Value)>> {
        let mut found = Vec::new();
        let mut buffer = Buffer::new();
        for number in (first..segments).step_by(usize::try_from(threads)?) {
            interrupt.check()?;
            let value = segment::<H>(&file, number * SEGMENT, size, &mut buffer);
            found.extend(value.with_context(failed)?.map(|value| (number, value)));
            let done = SEGMENT * (done.fetch_add(1, Ordering::Relaxed) + 1);
            if let Some(progress) = &mut progress {
                progress.show(done.min(size));
            }
        }
        Ok(found)
    };
    let mut values = thread::scope(|scope| -> Result<_> {
        let others: Vec<_> = (1..threads)
            .map(|first| {
                let work = &work;
                scope.spawn(move || work(first, None))
            })
            .collect();
        let mut values = work(0, Some(&mut progress))?;
        for other in others {
            match other.join() {
                Ok(result) => values.extend(result?),
                Err(_) => bail!("reading {} ended early", device.display()),
            }
        }
        Ok(values)
    })?;
    values.sort_unstable();
    Ok(Segments { size, values })
}

/// The value of a segment; nothing if it is all zeros.
fn segment<H: Hash>(
    file: &File,
    start: u64,
    size: u64,
    buffer: &mut Buffer,
) -> io::Result<Option<H::Value>> {
    let mut segment = Segment::<H>::default();
    let end = size.min(start + SEGMENT);
    let mut offset = start;
    while offset < end {
        let count = direct::portion(end - offset);
        direct::read(file, buffer, count, offset)?;
        for block in buffer[..count].chunks(BLOCK) {
            segment.put(block, offset);
            offset += block.len() as u64;
        }
    }
    Ok(segment.end())
}

/// A segment whose value is being computed.
#[derive(Default)]
struct Segment<H> {
    hash: H,
    /// Of the blocks that are not all zeros. They are hashed at the end, and not before each block, which would
    /// no longer lie at an aligned place: that makes the hash slower, under emulation five times.
    numbers: Vec<u8>,
}

impl<H: Hash> Segment<H> {
    fn put(&mut self, block: &[u8], offset: u64) {
        if !is_zero(block) {
            self.hash.put(block);
            self.numbers.extend((offset / BLOCK as u64).to_le_bytes());
        }
    }

    /// Nothing if it is all zeros.
    fn end(mut self) -> Option<H::Value> {
        self.hash.put(&self.numbers);
        (!self.numbers.is_empty()).then(|| self.hash.end())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::cmd::Cmd;

    fn digest(content: impl FnOnce(&File)) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len((40 << 20) + 4096).unwrap();
        content(file.as_file());
        of(file.path(), "", &Interrupt::default()).unwrap()
    }

    #[test]
    fn the_digest_of_an_image_is_that_of_its_content() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, "abc").unwrap();
        let digest = of_image(&image, "test", &Interrupt::default()).unwrap();
        // FIPS 180-2, appendix B.1.
        assert_eq!(
            digest,
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }

    #[test]
    fn each_byte_its_place_and_the_size_count() {
        let data = digest(|f| f.write_all_at(b"x", 20 << 20).unwrap());
        assert_eq!(data, digest(|f| f.write_all_at(b"x", 20 << 20).unwrap()));
        for other in [
            digest(|_| ()),
            digest(|f| f.write_all_at(b"y", 20 << 20).unwrap()),
            digest(|f| f.write_all_at(b"x", (20 << 20) + BLOCK as u64).unwrap()),
            digest(|f| f.write_all_at(b"x", 36 << 20).unwrap()),
            digest(|f| f.write_all_at(b"x", (40 << 20) + 4095).unwrap()),
            digest(|f| {
                f.write_all_at(b"x", 20 << 20).unwrap();
                f.set_len((40 << 20) + 8192).unwrap();
            }),
        ] {
            assert_ne!(data, other);
        }
    }

    #[test]
    fn is_what_its_description_says() {
        // The same by a shell: size 42 MiB - 4096, one block with data in segment 1.
        let script = r#"
            number() { printf "\\x$(printf %02x $1)\0\0\0\0\0\0\0"; }
            size() { printf '\0\20\200\2\0\0\0\0'; }
            block=$(mktemp); (printf x; head -c 65535 /dev/zero) > $block
            segment=$(mktemp); (cat $block; printf '\100\1\0\0\0\0\0\0') | sha256sum | cut -c 1-64 |
                sed 's/../\\x&/g' > $segment
            (size; number 1; printf "$(cat $segment)") | sha256sum | cut -c 1-64
        "#;
        let wanted = Cmd::new("bash").args(["-c", script]).run().unwrap();
        let got = digest(|f| f.write_all_at(b"x", 20 << 20).unwrap());
        assert_eq!(got, wanted.trim());
    }

    #[test]
    fn what_is_read_piece_by_piece_has_the_same_checksums() {
        let mut content = vec![0; (40 << 20) + 5000];
        content[100] = 1;
        content[17 << 20..18 << 20].fill(2);
        content[(40 << 20) + 4999] = 3;
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&content, 0).unwrap();
        // What follows is not a part of it.
        file.as_file().write_all_at(b"more", 41 << 20).unwrap();
        for piece in [4 << 20, BLOCK, 64 << 20] {
            let mut summer = Summer::default();
            content.chunks(piece).for_each(|bytes| summer.put(bytes));
            let put = summer.end();
            let size = Some(content.len() as u64);
            let found = read::<XxHash64>(file.path(), size, "", &Interrupt::default()).unwrap();
            assert_eq!(put, found, "{piece}");
            check_copy(&put, file.path(), "", &Interrupt::default()).unwrap();
        }
        let empty = Summer::default().end();
        assert_eq!((empty.size, empty.values.len()), (0, 0));
        let mut summer = Summer::default();
        summer.put(&content[..16 << 20]);
        assert_eq!(summer.end().values.len(), 1);
    }

    #[test]
    fn a_copy_that_differs_is_refused_and_the_place_is_named() {
        let content = vec![7; 40 << 20];
        let mut summer = Summer::default();
        summer.put(&content);
        let put = summer.end();
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().write_all_at(&content, 0).unwrap();
        for (at, segment) in [(0, "0 and 16 MiB"), (33 << 20, "32 and 48 MiB")] {
            for other in [0, 8] {
                file.as_file()
                    .write_all_at(&vec![other; BLOCK], at)
                    .unwrap();
                let error = check_copy(&put, file.path(), "", &Interrupt::default()).unwrap_err();
                assert!(error.to_string().contains(segment), "{error:#}");
            }
            file.as_file().write_all_at(&vec![7; BLOCK], at).unwrap();
        }
        check_copy(&put, file.path(), "", &Interrupt::default()).unwrap();
        file.as_file().set_len(39 << 20).unwrap();
        assert!(check_copy(&put, file.path(), "", &Interrupt::default()).is_err());
    }
}
