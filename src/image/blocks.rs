//! Copies a filesystem block by block: only what is not on the target already.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::digest::{Checksums, Summer};
use super::direct::{self, Buffer};
use super::stream::Stream;
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;

/// The unit of comparison in bytes, unless a pool needs another: its smallest chunk (lvmthin(7)).
pub const BLOCK: usize = 64 << 10;

/// The unit of comparison for a thin pool with chunks of this size, in bytes. A pool that does not zero new
/// chunks fills what is not written with what was there before, so each chunk is written whole, or not at all.
///
/// Refuses chunks that cannot be written so.
pub fn unit(chunk: u64, zeroes: bool) -> Result<usize> {
    if zeroes {
        return Ok(BLOCK);
    }
    let unit = usize::try_from(chunk).unwrap_or_default();
    ensure!(
        unit > 0 && direct::BUFFER.is_multiple_of(unit),
        "the thin pool does not zero new chunks, and those of {} KiB cannot be written whole; `lvchange --zero y` \
         has it zero them",
        chunk >> 10
    );
    Ok(unit)
}

/// A volume to be filled.
pub struct Target<'a> {
    pub device: &'a Path,
    /// Whether it starts with the content of something else; if not, it is all zeros.
    pub is_shared: bool,
    /// The size in bytes of what is written or not, of [`unit`].
    pub unit: usize,
    /// How many bytes may be written at most.
    pub room: u64,
}

/// What was read of an image.
#[derive(Debug)]
pub struct Copied {
    pub checksums: Checksums,
    /// How many bytes are in blocks that are not all zeros, and how many of them the target had already.
    pub data: u64,
    pub same: u64,
}

impl Copied {
    /// Whether the target, which had something else before, has hardly anything of that any more. An image of a few
    /// bytes tells nothing.
    pub fn is_another(&self) -> bool {
        const LEAST: u64 = 64 << 20;
        const PERCENT: u64 = 5;
        self.data >= LEAST && self.same < self.data / 100 * PERCENT
    }
}

/// Copies `size` bytes of an image to `target` and flushes them to its disk. Zeros stay holes where
/// the target has nothing.
///
/// Refuses an image that ends before, and one that takes more room than there is.
pub fn copy(
    mut stream: Stream,
    size: u64,
    target: &Target,
    interrupt: &Interrupt,
    progress: &mut Progress,
) -> Result<Copied> {
    let mut writer = Writer::open(target)?;
    // Reading and hashing go on while blocks are compared and written.
    let (sender, read) = sync_channel::<(Buffer, u64)>(2);
    let (hashed, filled) = sync_channel::<(Buffer, u64)>(2);
    let (give_back, free) = sync_channel::<Buffer>(6);
    let reader = thread::spawn(move || -> Result<Stream> {
        let mut left = size;
        while left > 0 {
            let mut buffer = free.try_recv().unwrap_or_else(|_| Buffer::new());
            let count = stream.fill(&mut buffer).context("cannot read the image")?;
            // Only the last is shorter, and none is filled after it.
            buffer.resize(left);
            if count < buffer.len() {
                // The decompressor knows better why.
                stream.finish()?;
                bail!(
                    "the image is truncated: {} of {size} bytes are there",
                    size - left + count as u64
                );
            }
            left -= buffer.len() as u64;
            // The other side is gone if it met an error.
            if sender.send((buffer, stream.position())).is_err() {
                break;
            }
        }
        Ok(stream)
    });
    let sums = thread::spawn(move || {
        let mut summer = Summer::default();
        for (buffer, position) in read {
            summer.put(&buffer);
            if hashed.send((buffer, position)).is_err() {
                break;
            }
        }
        summer.end()
    });
    let mut offset = 0;
    for (buffer, position) in filled {
        interrupt.check()?;
        writer.put(&buffer, offset)?;
        offset += buffer.len() as u64;
        progress.show(position);
        // The reader takes it, or has ended.
        let _ = give_back.try_send(buffer);
    }
    let stream = match reader.join() {
        Ok(result) => result?,
        Err(_) => bail!("reading the image ended early"),
    };
    stream.finish()?;
    let Ok(checksums) = sums.join() else {
        bail!("hashing the image ended early");
    };
    progress.hint("flushing");
    writer
        .file
        .sync_all()
        .with_context(|| format!("cannot write to {}", target.device.display()))?;
    Ok(Copied {
        checksums,
        data: writer.data,
        same: writer.same,
    })
}

struct Writer<'a> {
    file: File,
    /// The same past the page cache, from which a block device is written in pages of 4 KiB: of each
    /// chunk that is new or shared the pool would first write all, zeros or the old content.
    direct: File,
    target: &'a Target<'a>,
    /// What the target holds, to compare.
    old: Buffer,
    /// In bytes.
    written: u64,
    data: u64,
    same: u64,
}

impl<'a> Writer<'a> {
    fn open(target: &'a Target) -> Result<Self> {
        let failed = || format!("cannot open {}", target.device.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true);
        let direct = direct::open(&mut options, target.device).with_context(failed)?;
        let file = options
            // Fails for a device that is mounted.
            .custom_flags(libc::O_EXCL)
            .open(target.device)
            .with_context(failed)?;
        Ok(Self {
            file,
            direct,
            target,
            old: Buffer::new(),
            written: 0,
            data: 0,
            same: 0,
        })
    }

    /// Makes the target hold `new` at `offset`.
    fn put(&mut self, new: &[u8], offset: u64) -> Result<()> {
        let failed = || format!("cannot write to {}", self.target.device.display());
        if self.target.is_shared {
            direct::read(&self.direct, &mut self.old, new.len(), offset).with_context(failed)?;
            let blocks = new.chunks(BLOCK).zip(self.old[..new.len()].chunks(BLOCK));
            for (block, old) in blocks.filter(|(block, _)| !is_zero(block)) {
                self.data += block.len() as u64;
                self.same += if block == old { block.len() as u64 } else { 0 };
            }
        }
        let differs = |at: usize, block: &[u8]| {
            if self.target.is_shared {
                block != &self.old[at..at + block.len()]
            } else {
                !is_zero(block)
            }
        };
        let block_at = |at: usize| &new[at..new.len().min(at + self.target.unit)];
        let mut start = 0;
        while start < new.len() {
            let mut end = start;
            while end < new.len() && differs(end, block_at(end)) {
                end += block_at(end).len();
            }
            if end == start {
                start += block_at(start).len();
                continue;
            }
            self.written += (end - start) as u64;
            ensure!(
                self.written <= self.target.room,
                "the thin pool has no room: the image needs more than the {} MiB that are left",
                self.target.room >> 20
            );
            self.write(&new[start..end], offset + start as u64)
                .with_context(failed)?;
            start = end;
        }
        Ok(())
    }

    /// `offset` is that of a block.
    fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let (whole, rest) = bytes.split_at(bytes.len() - bytes.len() % direct::ALIGNMENT);
        self.direct.write_all_at(whole, offset)?;
        self.file.write_all_at(rest, offset + whole.len() as u64)
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // An array is compared faster than its bytes one by one.
    let mut chunks = bytes.chunks_exact(4096);
    chunks.by_ref().all(|chunk| chunk == [0; 4096]) && chunks.remainder().iter().all(|b| *b == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::digest;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::PathBuf;

    const SIZE: usize = 9 << 20;

    struct Case {
        dir: tempfile::TempDir,
        image: Vec<u8>,
    }

    impl Case {
        /// An image with data at its beginning, in its middle and at its odd end.
        fn new() -> Self {
            let mut image = vec![0; SIZE + 5000];
            image[..100_000].fill(1);
            image[5 << 20..6 << 20].fill(2);
            image[SIZE + 4000..].fill(3);
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("image"), &image).unwrap();
            Self { dir, image }
        }

        fn target(&self, content: Option<&[u8]>) -> PathBuf {
            let path = self.dir.path().join("target");
            let file = File::create(&path).unwrap();
            file.set_len(self.image.len() as u64 + 100).unwrap();
            if let Some(content) = content {
                file.write_all_at(content, 0).unwrap();
            }
            path
        }

        fn copy(&self, device: &Path, size: usize, is_shared: bool, room: u64) -> Result<()> {
            let copied = self.copied(device, size, is_shared, room)?;
            digest::check_copy(&copied.checksums, device, "", &Interrupt::default())
        }

        fn copied(&self, device: &Path, size: usize, is_shared: bool, room: u64) -> Result<Copied> {
            let stream = Stream::open(&self.dir.path().join("image"), None).unwrap();
            let target = Target {
                device,
                is_shared,
                unit: BLOCK,
                room,
            };
            let (mut progress, interrupt) = (Progress::new("", 1), Interrupt::default());
            copy(stream, size as u64, &target, &interrupt, &mut progress)
        }
    }

    #[test]
    fn an_empty_target_keeps_its_holes() {
        let case = Case::new();
        let target = case.target(None);
        case.copy(&target, case.image.len(), false, u64::MAX)
            .unwrap();
        assert!(fs::read(&target).unwrap()[..case.image.len()] == case.image);
        assert!(fs::metadata(&target).unwrap().blocks() * 512 < 2 << 20);
    }

    /// What is not written of a chunk is what was there before.
    #[test]
    fn chunks_that_are_not_zeroed_are_written_whole_or_not_at_all() {
        let case = Case::new();
        let chunk: u64 = 1 << 20;
        let mut image = vec![0; SIZE];
        image[(3 << 20) + BLOCK] = 1;
        fs::write(case.dir.path().join("image"), &image).unwrap();
        let mut stale = vec![0; SIZE];
        stale[3 << 20..4 << 20].fill(0xa5);
        let copy = |is_shared: bool, room: u64| {
            let path = case.target(Some(if is_shared { &image[..3 << 20] } else { &stale }));
            let target = Target {
                device: &path,
                is_shared,
                unit: unit(chunk, false).unwrap(),
                room,
            };
            let stream = Stream::open(&case.dir.path().join("image"), None).unwrap();
            let (size, mut progress) = (SIZE as u64, Progress::new("", 1));
            copy(stream, size, &target, &Interrupt::default(), &mut progress)?;
            assert!(fs::read(&path).unwrap()[..SIZE] == image);
            Ok::<_, anyhow::Error>(())
        };
        for is_shared in [false, true] {
            copy(is_shared, chunk).unwrap();
            assert!(copy(is_shared, chunk - 1).is_err());
        }
    }

    #[test]
    fn chunks_that_cannot_be_written_whole_are_refused() {
        for (chunk, zeroes, expected) in [
            (64 << 10, false, Some(64 << 10)),
            (4 << 20, false, Some(4 << 20)),
            (8 << 20, true, Some(BLOCK)),
            (192 << 10, true, Some(BLOCK)),
            (8 << 20, false, None),
            (192 << 10, false, None),
            (0, false, None),
        ] {
            assert_eq!(unit(chunk, zeroes).ok(), expected, "{chunk}");
        }
    }

    #[test]
    fn only_what_differs_is_written() {
        let case = Case::new();
        let mut old = case.image.clone();
        old[7 << 20] = 9;
        old[(5 << 20) + 1] = 9;
        let target = case.target(Some(&old));
        case.copy(&target, case.image.len(), true, 2 * BLOCK as u64)
            .unwrap();
        assert!(fs::read(&target).unwrap()[..case.image.len()] == case.image);
    }

    #[test]
    fn an_image_with_hardly_anything_in_common_is_told() {
        let copied = |data: u64, same: u64| Copied {
            checksums: Summer::default().end(),
            data: data << 20,
            same: same << 20,
        };
        for (data, same, expected) in [
            (1000, 0, true),
            (1000, 49, true),
            (1000, 50, false),
            (1000, 1000, false),
            (63, 0, false),
            (0, 0, false),
        ] {
            assert_eq!(
                copied(data, same).is_another(),
                expected,
                "{same} of {data}"
            );
        }
        let case = Case::new();
        let mut old = case.image.clone();
        old[(5 << 20) + 1] = 9;
        old[8 << 20] = 9;
        let target = case.target(Some(&old));
        let copied = case.copied(&target, case.image.len(), true, u64::MAX);
        let copied = copied.unwrap();
        // Two blocks at the beginning, a MiB in the middle of which one block is another one, and the end.
        let end = 5000;
        let blocks = 2 + (1 << 20) / BLOCK as u64;
        assert_eq!(copied.data, blocks * BLOCK as u64 + end);
        assert_eq!(copied.data - copied.same, BLOCK as u64);
    }

    #[test]
    fn an_image_that_needs_more_room_is_refused() {
        let case = Case::new();
        let target = case.target(None);
        let error = case
            .copy(&target, case.image.len(), false, 1 << 20)
            .unwrap_err();
        assert!(error.to_string().contains("no room"), "{error:#}");
    }

    #[test]
    fn a_truncated_image_is_refused() {
        let case = Case::new();
        let target = case.target(None);
        let error = case
            .copy(&target, case.image.len() + 1, false, u64::MAX)
            .unwrap_err();
        assert!(error.to_string().contains("truncated"), "{error:#}");
    }

    #[test]
    fn an_interrupted_copy_ends() {
        let case = Case::new();
        let stream = Stream::open(&case.dir.path().join("image"), None).unwrap();
        let target = case.target(None);
        let target = Target {
            device: &target,
            is_shared: false,
            unit: BLOCK,
            room: u64::MAX,
        };
        let interrupt = Interrupt::default();
        interrupt.set();
        let error = copy(
            stream,
            SIZE as u64,
            &target,
            &interrupt,
            &mut Progress::new("", 1),
        );
        assert_eq!(error.unwrap_err().to_string(), "interrupted");
    }
}
