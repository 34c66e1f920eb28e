//! The bytes of files, with holes: those cost neither time nor space, whatever their size.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;

/// How much is read at once.
const BLOCK: u64 = 128 << 10;

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

/// Copies the first `size` bytes into an empty file.
pub fn copy(from: &File, to: &File, size: u64) -> io::Result<()> {
    let mut block = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(from, at)?.filter(|data| *data < size) {
        let length = BLOCK.min(size - data);
        if !read_block(from, data, length, &mut block)? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&block, data)?;
        at = data + length;
    }
    to.set_len(size)
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
