//! The bytes of an image, decompressed by the tool that made them.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::Path;
use std::process::{ChildStdout, Stdio};

use anyhow::{Context, Result};

use crate::sys::cmd::{Cmd, Running};

/// A compression that is recognised by its magic number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    Gzip,
    Xz,
    Zstd,
}

impl Compression {
    /// By the first bytes (RFC 1952, the .xz file format, RFC 8878).
    pub fn of(prefix: &[u8]) -> Option<Self> {
        [
            (&[0x1f, 0x8b][..], Self::Gzip),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
        ]
        .into_iter()
        .find_map(|(magic, found)| prefix.starts_with(magic).then_some(found))
    }

    pub fn program(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
        }
    }

    /// Decompresses standard input to standard output.
    pub fn decompress(self) -> Cmd {
        Cmd::new(self.program()).arg("-dc")
    }
}

/// An image that is read once, from its beginning.
pub struct Stream {
    /// Its offset is where reading is, also when a decompressor reads: it has the same open file.
    file: File,
    decompressor: Option<(ChildStdout, Running)>,
}

impl Stream {
    /// Opens an image. Refuses what cannot be read from any position, as a pipe.
    pub fn open(path: &Path, compression: Option<Compression>) -> Result<Self> {
        let read = || format!("cannot read {}", path.display());
        let mut file = File::open(path).with_context(read)?;
        file.rewind().with_context(read)?;
        let decompressor = match compression {
            Some(compression) => {
                let input = file.try_clone().with_context(read)?;
                let mut running = compression
                    .decompress()
                    .start(input.into(), Stdio::piped())?;
                let output = running
                    .stdout()
                    .context("a decompressor writes to a pipe")?;
                Some((output, running))
            }
            None => None,
        };
        Ok(Self { file, decompressor })
    }

    /// How many bytes of the file were read, before decompression.
    pub fn position(&self) -> u64 {
        (&self.file).stream_position().unwrap_or(0)
    }

    /// Ends reading at the end of the image; fails if the decompressor met an error. What follows
    /// is read as well, so that a damaged end is noticed.
    pub fn finish(mut self) -> Result<()> {
        if self.decompressor.is_some() {
            io::copy(&mut self, &mut io::sink()).context("cannot read the image")?;
        }
        match self.decompressor {
            Some((output, running)) => {
                drop(output);
                running.wait().map(drop)
            }
            None => Ok(()),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.decompressor {
            Some((output, _)) => output.read(buffer),
            None => self.file.read(buffer),
        }
    }
}

/// Reads until `buffer` is full or the stream ends; returns the number of bytes.
pub fn fill(stream: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn compressed_files_are_read_and_damaged_ones_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let plain = dir.path().join("plain");
        let text: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        fs::write(&plain, &text).unwrap();
        for (program, wanted) in [
            ("gzip", Compression::Gzip),
            ("xz", Compression::Xz),
            ("zstd", Compression::Zstd),
        ] {
            let packed = dir.path().join(program);
            let script = format!("{program} -c < {} > {}", plain.display(), packed.display());
            Cmd::new("sh").args(["-c", &script]).run().unwrap();
            let mut bytes = fs::read(&packed).unwrap();
            assert_eq!(Compression::of(&bytes), Some(wanted));

            let mut stream = Stream::open(&packed, Some(wanted)).unwrap();
            let mut read = Vec::new();
            stream.read_to_end(&mut read).unwrap();
            assert!(read == text);
            assert_eq!(stream.position(), bytes.len() as u64);
            stream.finish().unwrap();

            bytes.truncate(bytes.len() / 2);
            fs::write(&packed, &bytes).unwrap();
            let error = Stream::open(&packed, Some(wanted))
                .unwrap()
                .finish()
                .unwrap_err();
            assert!(error.to_string().contains(program), "{error:#}");
        }
        assert_eq!(Compression::of(&text), None);
    }
}
