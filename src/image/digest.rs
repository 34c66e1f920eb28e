//! The digest of what a base holds, by which a change is noticed.
//!
//! It is the SHA-256 of the volume's size and of the SHA-256 of each segment that is not all zeros,
//! each after its number; a segment's is that of its blocks that are not all zeros, followed by their
//! numbers. Numbers and sizes are little-endian, of 64 bits.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use super::blocks::is_zero;
use super::direct::{self, Buffer};
use crate::sys::interrupt::Interrupt;
use crate::sys::probe;
use crate::sys::progress::Progress;

/// In bytes. A segment is the work of one thread.
const SEGMENT: u64 = 16 << 20;
const BLOCK: usize = 64 << 10;

/// The digest of a device, as hexadecimal digits. Several threads read it; `label` says what for.
pub fn of(device: &Path, label: &str, interrupt: &Interrupt) -> Result<String> {
    let failed = || format!("cannot read {}", device.display());
    // Through the page cache it takes several times as long, and all else is pushed out of that.
    let file = direct::open(OpenOptions::new().read(true), device).with_context(failed)?;
    let size = probe::size(&file).with_context(failed)?;
    let mut progress = Progress::new(label, size);
    let segments = size.div_ceil(SEGMENT);
    let threads = thread::available_parallelism().map_or(1, |n| n.get().min(4) as u64);
    let done = AtomicU64::new(0);
    // Each thread takes every nth segment.
    let work = |first: u64, mut progress: Option<&mut Progress>| -> Result<Vec<(u64, [u8; 32])>> {
        let mut found = Vec::new();
        let mut buffer = Buffer::new();
        for number in (first..segments).step_by(usize::try_from(threads)?) {
            interrupt.check()?;
            let digest =
                segment(&file, number * SEGMENT, size, &mut buffer).with_context(failed)?;
            found.extend(digest.map(|digest| (number, digest)));
            let done = SEGMENT * (done.fetch_add(1, Ordering::Relaxed) + 1);
            if let Some(progress) = &mut progress {
                progress.show(done.min(size));
            }
        }
        Ok(found)
    };
    let mut digests = thread::scope(|scope| -> Result<_> {
        let others: Vec<_> = (1..threads)
            .map(|first| {
                let work = &work;
                scope.spawn(move || work(first, None))
            })
            .collect();
        let mut digests = work(0, Some(&mut progress))?;
        for other in others {
            match other.join() {
                Ok(result) => digests.extend(result?),
                Err(_) => bail!("reading {} ended early", device.display()),
            }
        }
        Ok(digests)
    })?;
    digests.sort_unstable();
    let mut whole = Sha256::new();
    whole.update(size.to_le_bytes());
    for (number, digest) in digests {
        whole.update(number.to_le_bytes());
        whole.update(digest);
    }
    Ok(format!("{:x}", whole.finalize()))
}

/// The digest of a segment; nothing if it is all zeros.
fn segment(
    file: &File,
    start: u64,
    size: u64,
    buffer: &mut Buffer,
) -> io::Result<Option<[u8; 32]>> {
    let mut hash = Sha256::new();
    // At the end, and not before each block, which would no longer lie at an aligned place: that
    // makes the hash slower, under emulation five times.
    let mut numbers = Vec::new();
    let end = size.min(start + SEGMENT);
    let mut offset = start;
    while offset < end {
        let count = direct::portion(end - offset);
        direct::read(file, buffer, count, offset)?;
        for block in buffer[..count].chunks(BLOCK) {
            if !is_zero(block) {
                hash.update(block);
                numbers.extend((offset / BLOCK as u64).to_le_bytes());
            }
            offset += block.len() as u64;
        }
    }
    hash.update(&numbers);
    Ok((!numbers.is_empty()).then(|| hash.finalize().into()))
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
}
