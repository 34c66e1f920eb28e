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

/// Copies the first `size` bytes into an empty file, or as many as there still are.
pub fn copy(from: &File, to: &File, mut size: u64) -> io::Result<()> {
    let mut block = Vec::new();
    let mut at = 0;
    while let Some(data) = next_data(from, at)?.filter(|data| *data < size) {
        let length = BLOCK.min(size - data);
        if !read_block(from, data, length, &mut block)? {
            let left = from.metadata()?.len();
            if left >= data + length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            (size, at) = (left, data);
            continue;
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

#[cfg(test)]
mod tests {
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
}
