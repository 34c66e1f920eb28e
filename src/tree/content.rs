//! The bytes of files, with holes: those cost neither time nor space, whatever their size.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use anyhow::Result;
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

/// How much is read at once.
const BLOCK: u64 = 128 << 10;
/// The same for a digest.
const SUMMED: usize = 128 << 10;
/// What is compared by itself, in bytes: a block of most filesystems.
const PIECE: usize = 4096;

/// All of a file. Refuses one that has more than `limit` bytes, also if it grows while it is read.
pub fn read(file: &File, limit: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        let message = format!("it has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

/// Whether two files have the same first `size` bytes.
pub fn same(a: &File, b: &File, size: u64) -> io::Result<bool> {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    let mut at = 0;
    while let Some(from) = first(next_data(a, at)?, next_data(b, at)?) {
        if from >= size {
            break;
        }
        let length = BLOCK.min(size - from);
        if !read_block(a, from, length, &mut of_a)? || !read_block(b, from, length, &mut of_b)? {
            // One has become shorter meanwhile.
            return Ok(false);
        }
        if of_a != of_b {
            return Ok(false);
        }
        at = from + length;
    }
    Ok(true)
}

/// Copies the first `size` bytes into an empty file. A file that has become shorter meanwhile ends there, also if it
/// has grown again since.
pub fn copy(from: &File, to: &File, mut size: u64) -> io::Result<()> {
    let mut block = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(from, at)?.filter(|data| *data < size) {
        let length = BLOCK.min(size - data);
        let count = fill(from, data, length, &mut block)?;
        to.write_all_at(&block[..count], data)?;
        at = data + count as u64;
        if at < data + length {
            size = at;
        }
    }
    to.set_len(size.min(from.metadata()?.len()))
}

/// The SHA-256 of a file, as hexadecimal digits. `tell` is told how many bytes were read.
pub fn sum(
    file: &File,
    block: &mut Vec<u8>,
    tell: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<String> {
    block.resize(SUMMED, 0);
    let mut sum = Sha256::new();
    let mut at = 0;
    loop {
        match file.read_at(block, at) {
            Ok(0) => return Ok(format!("{:x}", sum.finalize())),
            Ok(count) => {
                sum.update(&block[..count]);
                at += count as u64;
                tell(count as u64)?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A file that another one is made equal to.
pub struct Wanted<'a> {
    pub file: &'a File,
    /// In bytes.
    pub size: u64,
    /// Whether zeros are holes, since nothing tells which of them were.
    pub zeros_are_holes: bool,
}

/// What is read of two files that are compared. Kept from file to file, as most are small.
#[derive(Default)]
pub struct Blocks {
    new: Vec<u8>,
    old: Vec<u8>,
}

/// Makes `there` hold what is wanted, and writes only what differs: where both are zeros, a file that is not empty keeps
/// its holes. `open` opens it to be written to, where that is needed. A file that has become shorter meanwhile ends
/// there. `tell` is told how many bytes were compared, and how many of them were in blocks of which something was
/// written.
pub fn update(
    wanted: &Wanted,
    there: &File,
    Blocks { new, old }: &mut Blocks,
    open: &mut dyn FnMut() -> io::Result<File>,
    tell: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let length = there.metadata()?.len();
    let is_empty = length == 0;
    let mut writer = None;
    let mut end = wanted.size;
    let mut at = 0;
    while at < end {
        let in_old = if is_empty {
            None
        } else {
            next_data(there, at)?
        };
        let next = first(next_data(wanted.file, at)?, in_old);
        let Some(from) = next.filter(|from| *from < end) else {
            break;
        };
        let count = fill(wanted.file, from, BLOCK.min(end - from), new)?;
        if count < new.len() {
            end = from + count as u64;
            new.truncate(count);
        }
        at = from + new.len() as u64;
        if is_empty {
            old.clear();
            old.resize(new.len(), 0);
        } else {
            fill(there, from, new.len() as u64, old)?;
            if new == old {
                tell(new.len() as u64, 0)?;
                continue;
            }
        }
        let mut is_written = false;
        for Run { what, start, bytes } in runs(new, old, is_empty) {
            let offset = from + start as u64;
            if writer.is_none() && what != Piece::Same {
                writer = Some(open()?);
            }
            let Some(writer) = writer.as_ref().filter(|_| what != Piece::Same) else {
                continue;
            };
            let is_hole = what == Piece::Zeros
                && (wanted.zeros_are_holes || is_hole(wanted.file, offset, bytes.len())?);
            if !is_hole {
                writer.write_all_at(bytes, offset)?;
                is_written = true;
            } else if !is_empty {
                make_hole(writer, offset, bytes)?;
            }
        }
        tell(
            new.len() as u64,
            if is_written { new.len() as u64 } else { 0 },
        )?;
    }
    let end = end.min(wanted.file.metadata()?.len());
    if length != end {
        match &writer {
            Some(writer) => writer.set_len(end)?,
            None => open()?.set_len(end)?,
        }
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Same,
    Zeros,
    Data,
}

/// Bytes that are to be treated alike.
struct Run<'a> {
    what: Piece,
    start: usize,
    bytes: &'a [u8],
}

/// The runs of a block, beside what is there. Where nothing is there, zeros are not the same as a hole.
fn runs<'a>(new: &'a [u8], old: &[u8], is_empty: bool) -> Vec<Run<'a>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut start = 0;
    for (bytes, old) in new.chunks(PIECE).zip(old.chunks(PIECE)) {
        let is_same = bytes == old;
        let what = if is_same && !is_empty {
            Piece::Same
        } else if bytes.iter().all(|byte| *byte == 0) {
            Piece::Zeros
        } else {
            Piece::Data
        };
        let end = start + bytes.len();
        match runs.last_mut().filter(|run| run.what == what) {
            Some(run) => run.bytes = &new[run.start..end],
            None => runs.push(Run { what, start, bytes }),
        }
        start = end;
    }
    runs
}

fn is_hole(file: &File, at: u64, length: usize) -> io::Result<bool> {
    let data = next_data(file, at)?;
    Ok(data.is_none_or(|data| data >= at + length as u64))
}

/// Gives back what `zeros` would take.
fn make_hole(file: &File, at: u64, zeros: &[u8]) -> io::Result<()> {
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match fallocate(file, mode, at, zeros.len() as u64) {
        Err(Errno::NOTSUP | Errno::NOSYS) => file.write_all_at(zeros, at),
        done => Ok(done?),
    }
}

fn first(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// Where the next byte is that is in no hole.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns false where the file ends before.
#[allow(clippy::cast_possible_truncation, reason = "it is a block at most")]
fn read_block(file: &File, at: u64, length: u64, block: &mut Vec<u8>) -> io::Result<bool> {
    block.resize(length as usize, 0);
    match file.read_exact_at(block, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads up to `length` bytes, and returns how many there are. The rest of the block is zeros.
#[allow(clippy::cast_possible_truncation, reason = "it is a block at most")]
fn fill(file: &File, at: u64, length: u64, block: &mut Vec<u8>) -> io::Result<usize> {
    block.resize(length as usize, 0);
    let mut count = 0;
    while count < block.len() {
        match file.read_at(&mut block[count..], at + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    block[count..].fill(0);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// A file with a few bytes here and there, and holes between them.
    fn sparse(size: u64, data: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn holes_are_zeros_that_are_not_read() {
        // Ten terabytes of zeros would take hours.
        const SIZE: u64 = 10 << 40;
        let end: &[(u64, &[u8])] = &[(5, b"x"), (SIZE - 2, b"y")];
        let zeros = vec![0; 1 << 20];
        let with_zeros: &[(u64, &[u8])] = &[(5, b"x"), (SIZE - 2, b"y"), (1 << 30, &zeros)];
        let one = sparse(SIZE, end);
        assert!(same(&one, &sparse(SIZE, with_zeros), SIZE).unwrap());
        for other in [&[(5, &b"x"[..])][..], &[(6, b"x"), (SIZE - 2, b"y")], &[]] {
            assert!(!same(&one, &sparse(SIZE, other), SIZE).unwrap());
        }
        let to = tempfile::tempfile().unwrap();
        copy(&one, &to, SIZE).unwrap();
        assert!(same(&one, &to, SIZE).unwrap());
        assert_eq!(to.metadata().unwrap().len(), SIZE);
    }

    #[test]
    fn a_file_that_changes_its_size_is_read_to_its_former_end() {
        let long = sparse(1 << 20, &[(0, b"begin"), (1 << 19, b"later")]);
        let short = sparse(5, &[(0, b"begin")]);
        assert!(same(&long, &short, 5).unwrap());
        assert!(!same(&long, &short, 1 << 20).unwrap());
        let to = tempfile::tempfile().unwrap();
        copy(&short, &to, 1 << 20).unwrap();
        assert_eq!(to.metadata().unwrap().len(), 5);
        assert!(same(&short, &to, 5).unwrap());
        assert!(read(&long, 4).is_err());
    }

    #[test]
    fn a_file_that_shrinks_and_grows_all_the_time_is_copied() {
        let file = sparse(5, &[(0, b"begin")]);
        std::thread::scope(|scope| {
            // Is dropped where a copy fails, too.
            let copies = Arc::new(());
            let are_made = Arc::downgrade(&copies);
            let file = &file;
            scope.spawn(move || {
                while are_made.upgrade().is_some() {
                    file.set_len(5).unwrap();
                    file.set_len(1 << 18).unwrap();
                }
            });
            for _ in 0..2000 {
                let to = tempfile::tempfile().unwrap();
                copy(file, &to, 1 << 18).unwrap();
                assert!(to.metadata().unwrap().len() <= 1 << 18);
            }
        });
    }
}
