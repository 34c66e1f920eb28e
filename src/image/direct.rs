//! Reading and writing past the page cache (open(2), `O_DIRECT`).

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// How much is read or written at once at most, in bytes.
pub const BUFFER: usize = 4 << 20;
/// What the place in memory and in the file and the length have to be multiples of, in bytes: at most a
/// page.
pub const ALIGNMENT: usize = 4096;

/// How much of the bytes that are left is read or written at once.
pub fn portion(left: u64) -> usize {
    usize::try_from(left).map_or(BUFFER, |left| left.min(BUFFER))
}

/// Opens a file or device. Some filesystems, but no device, have only the way through the cache.
pub fn open(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options
        .clone()
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .or_else(|_| options.open(path))
}

/// Reads from `offset`, which is aligned, until `buffer` is full or the file ends; returns the number of
/// bytes.
pub fn fill(file: &File, buffer: &mut Buffer, offset: u64) -> io::Result<usize> {
    buffer.fill_by(|rest, filled| file.read_at(rest, offset + filled as u64))
}

/// Reads the `count` bytes at `offset`, which is aligned, to the beginning of `buffer`. What follows
/// may be read as well.
pub fn read(file: &File, buffer: &mut Buffer, count: usize, offset: u64) -> io::Result<()> {
    if fill(file, buffer, offset)? < count {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Up to [`BUFFER`] bytes at an aligned place in memory.
pub struct Buffer {
    memory: Vec<u8>,
    len: usize,
}

impl Buffer {
    pub fn new() -> Self {
        Self {
            memory: vec![0; BUFFER + ALIGNMENT],
            len: BUFFER,
        }
    }

    /// Makes it as long as the next portion of the bytes that are left.
    pub fn resize(&mut self, left: u64) {
        self.len = portion(left);
    }

    /// Reads until it is full or there is no more; returns the number of bytes. `read` is given what is
    /// to be filled, and the number of bytes before that.
    pub fn fill_by(
        &mut self,
        mut read: impl FnMut(&mut [u8], usize) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut filled = 0;
        while filled < self.len {
            match read(&mut self[filled..], filled) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn begin(&self) -> usize {
        self.memory.as_ptr().align_offset(ALIGNMENT)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let begin = self.begin();
        &self.memory[begin..begin + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (begin, len) = (self.begin(), self.len);
        &mut self.memory[begin..begin + len]
    }
}
