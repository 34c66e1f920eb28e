//! The bytes of an image, decompressed by the tool that made them.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::process::{ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;

use super::direct::{self, Buffer};
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
        // Frames without content, with which pzstd(1) begins.
        if let Some(rest) = after_skippable_frame(prefix) {
            return Self::of(rest).or(rest.is_empty().then_some(Self::Zstd));
        }
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

/// What follows a skippable frame of zstd; nothing if no such frame is at the beginning.
fn after_skippable_frame(prefix: &[u8]) -> Option<&[u8]> {
    let (magic, rest) = prefix.split_first_chunk::<4>()?;
    let (size, rest) = rest.split_first_chunk::<4>()?;
    if u32::from_le_bytes(*magic) & !0xf != 0x184d_2a50 {
        return None;
    }
    let size = usize::try_from(u32::from_le_bytes(*size)).ok()?;
    Some(rest.get(size..).unwrap_or_default())
}

/// An image that is read once, from its beginning.
pub enum Stream {
    /// Past the page cache, which costs more time than a disk where the image is large.
    Plain { file: File, offset: u64 },
    /// The offset of the file is where its decompressor reads: it has the same open file.
    Packed {
        file: File,
        output: ChildStdout,
        decompressor: Running,
    },
    /// What is not on this host.
    Fed {
        output: Input,
        /// How many bytes have come.
        read: Arc<AtomicU64>,
        /// Of what is compressed: who decompresses it, and who feeds that.
        packed: Option<(Running, Feeding)>,
    },
}

/// Bytes that are read once. The end is reached only if all of them were right.
pub type Input = Box<dyn Read + Send>;

/// Begins to read something that is not on this host, from its beginning.
pub struct Feed(Box<dyn Fn() -> Result<Input>>);

impl Feed {
    pub fn new(open: impl Fn() -> Result<Input> + 'static) -> Self {
        Self(Box::new(open))
    }

    pub fn open(&self) -> Result<Input> {
        (self.0)()
    }

    /// The same, if it begins with `head`: what was decided by that would be of something else.
    pub fn beginning_with(self, head: &[u8]) -> Self {
        let head = head.to_vec();
        Self::new(move || {
            let (input, head) = (self.open()?, head.clone());
            Ok(Box::new(Beginning { input, head, at: 0 }))
        })
    }

    /// The same as the standard input of a program.
    pub fn start(&self) -> Result<(Stdio, Feeding)> {
        feed(self.open()?)
    }
}

/// Fails where it does not begin as it has to.
struct Beginning {
    input: Input,
    head: Vec<u8>,
    /// How much of it was compared.
    at: usize,
}

impl Read for Beginning {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        let left = &self.head[self.at..];
        let compared = count.min(left.len());
        let is_cut = count == 0 && !buffer.is_empty() && !left.is_empty();
        if is_cut || buffer[..compared] != left[..compared] {
            let message =
                "it does not begin as it did when it was looked at, so nothing was made of it";
            return Err(io::Error::other(message));
        }
        self.at += compared;
        Ok(count)
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}

/// What brings bytes to a program. It ends soon when this is dropped.
pub struct Feeding {
    thread: Option<JoinHandle<io::Result<()>>>,
    is_over: Arc<AtomicBool>,
}

impl Feeding {
    /// Says what became of a program that was fed. Where it has succeeded, all bytes were the right ones; where it has
    /// failed since they were not, that is told.
    pub fn end<T>(mut self, ran: Result<T>) -> Result<T> {
        let thread = self.thread.take();
        let thread = thread.filter(|thread| ran.is_ok() || thread.is_finished());
        told(thread, ran)
    }

    /// The same of a file of this host, which is read to its end for that.
    pub fn end_of_file<T>(mut self, ran: Result<T>) -> Result<T> {
        told(self.thread.take(), ran)
    }
}

/// Joins the thread that has read what a program was fed, if there is one.
fn told<T>(thread: Option<JoinHandle<io::Result<()>>>, ran: Result<T>) -> Result<T> {
    match thread.map(JoinHandle::join) {
        Some(Ok(fed)) => fed.context("cannot read the image").and(ran),
        Some(Err(_)) => bail!("reading the image ended early"),
        None => ran,
    }
}

impl Drop for Feeding {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Has a thread feed a program, whose standard input is returned.
pub(super) fn feed(input: Input) -> Result<(Stdio, Feeding)> {
    let (from, to) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let is_over = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_over);
    let thread = thread::spawn(move || pump(input, &File::from(to), &seen));
    let feeding = Feeding {
        thread: Some(thread),
        is_over,
    };
    Ok((from.into(), feeding))
}

/// Reads to the end, also what the program does not read: only there it shows whether it was right.
fn pump(mut input: Input, mut to: &File, is_over: &AtomicBool) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut is_read = true;
    loop {
        let count = input.read(&mut buffer)?;
        if count == 0 || (!is_read && is_over.load(Ordering::Relaxed)) {
            return Ok(());
        }
        if is_read {
            match to.write_all(&buffer[..count]) {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => is_read = false,
                written => written?,
            }
        }
    }
}

/// Counts what is read.
struct Counted {
    input: Input,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

impl Stream {
    /// Reads what comes from elsewhere.
    pub fn fed(input: Input, compression: Option<Compression>) -> Result<Self> {
        let read = Arc::new(AtomicU64::new(0));
        let input: Input = Box::new(Counted {
            input,
            read: Arc::clone(&read),
        });
        let Some(compression) = compression else {
            return Ok(Self::Fed {
                output: input,
                read,
                packed: None,
            });
        };
        let (packed, feeding) = feed(input)?;
        let mut decompressor = compression.decompress().start(packed, Stdio::piped())?;
        let output = decompressor
            .stdout()
            .context("a decompressor writes to a pipe")?;
        Ok(Self::Fed {
            output: Box::new(output),
            read,
            packed: Some((decompressor, feeding)),
        })
    }

    /// Opens an image. Refuses what cannot be read from any position, as a pipe.
    pub fn open(path: &Path, compression: Option<Compression>) -> Result<Self> {
        let read = || format!("cannot read {}", path.display());
        let Some(compression) = compression else {
            let file = direct::open(File::options().read(true), path).with_context(read)?;
            return Ok(Self::Plain { file, offset: 0 });
        };
        let mut file = File::open(path).with_context(read)?;
        file.rewind().with_context(read)?;
        let input = file.try_clone().with_context(read)?;
        let mut decompressor = compression
            .decompress()
            .start(input.into(), Stdio::piped())?;
        let output = decompressor
            .stdout()
            .context("a decompressor writes to a pipe")?;
        Ok(Self::Packed {
            file,
            output,
            decompressor,
        })
    }

    /// How many bytes of the file were read, before decompression.
    pub fn position(&self) -> u64 {
        match self {
            Self::Plain { offset, .. } => *offset,
            Self::Packed { file, .. } => (&*file).stream_position().unwrap_or(0),
            Self::Fed { read, .. } => read.load(Ordering::Relaxed),
        }
    }

    /// Reads until `buffer`, whose length is aligned, is full or the image ends; returns the number of
    /// bytes.
    pub fn fill(&mut self, buffer: &mut Buffer) -> io::Result<usize> {
        match self {
            Self::Plain { file, offset } => {
                let count = direct::fill(file, buffer, *offset)?;
                *offset += count as u64;
                Ok(count)
            }
            Self::Packed { output, .. } => buffer.fill_by(|rest, _| output.read(rest)),
            Self::Fed { output, .. } => buffer.fill_by(|rest, _| output.read(rest)),
        }
    }

    /// Ends reading at the end of the image; fails if the decompressor met an error. What follows
    /// is read as well, so that a damaged end is noticed.
    pub fn finish(self) -> Result<()> {
        match self {
            Self::Plain { .. } => Ok(()),
            Self::Packed {
                mut output,
                decompressor,
                ..
            } => {
                io::copy(&mut output, &mut io::sink()).context("cannot read the image")?;
                drop(output);
                decompressor.wait().map(drop)
            }
            Self::Fed {
                mut output, packed, ..
            } => {
                io::copy(&mut output, &mut io::sink()).context("cannot read the image")?;
                drop(output);
                packed.map_or(Ok(()), |(decompressor, feeding)| {
                    feeding.end(decompressor.wait().map(drop))
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_is_fed_begins_as_it_was_seen() {
        for (head, content, is_good) in [
            ("", "", true),
            ("ab", "ab", true),
            ("ab", "abc", true),
            ("ab", "a", false),
            ("ab", "", false),
            ("ab", "ax", false),
            ("ab", "xb", false),
        ] {
            let open = move || Ok(Box::new(content.as_bytes()) as Input);
            let feed = Feed::new(open).beginning_with(head.as_bytes());
            let mut read = String::new();
            let done = feed.open().unwrap().read_to_string(&mut read);
            assert_eq!(done.is_ok(), is_good, "{head} {content}");
            assert!(!is_good || read == content);
        }
    }

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
            let mut read = Buffer::new();
            assert_eq!(stream.fill(&mut read).unwrap(), text.len());
            assert!(read[..text.len()] == text);
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

    #[test]
    fn frames_that_zstd_skips_come_before_what_counts() {
        let frame = |number: u8, size: u32, content: &[u8]| {
            let head = [&[0x50 | number, 0x2a, 0x4d, 0x18][..], &size.to_le_bytes()].concat();
            [&head, content].concat()
        };
        let zstd = [0x28, 0xb5, 0x2f, 0xfd];
        for (bytes, expected) in [
            (frame(0, 4, b"size"), Some(Compression::Zstd)),
            (
                [frame(0, 4, b"size"), zstd.to_vec()].concat(),
                Some(Compression::Zstd),
            ),
            (
                [frame(15, 0, b""), frame(1, 1, b"x"), zstd.to_vec()].concat(),
                Some(Compression::Zstd),
            ),
            // It ends beyond what was read.
            (frame(0, 1 << 30, b"more"), Some(Compression::Zstd)),
            ([frame(0, 4, b"size"), b"other".to_vec()].concat(), None),
            (frame(0, 4, b"size")[..7].to_vec(), None),
            (vec![0x50, 0x2a, 0x4d, 0x19, 0, 0, 0, 0], None),
        ] {
            assert_eq!(Compression::of(&bytes), expected, "{bytes:x?}");
        }
    }

    /// Fails at its end.
    struct Wrong(&'static [u8]);

    impl Read for Wrong {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("it is the wrong one")),
                count => Ok(count),
            }
        }
    }

    #[test]
    fn what_comes_from_elsewhere_is_read_and_has_to_be_right() {
        let text: Vec<u8> = (0..500_000_u32).flat_map(u32::to_le_bytes).collect();
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (dir.path().join("plain"), dir.path().join("packed"));
        fs::write(&plain, &text).unwrap();
        let script = format!("zstd -c < {} > {}", plain.display(), packed.display());
        Cmd::new("sh").args(["-c", &script]).run().unwrap();
        let bytes = fs::read(&packed).unwrap();
        let read = |input: Input, compression| -> Result<Vec<u8>> {
            let mut stream = Stream::fed(input, compression)?;
            let mut buffer = Buffer::new();
            let mut all = Vec::new();
            loop {
                let count = stream.fill(&mut buffer).context("cannot read")?;
                all.extend_from_slice(&buffer[..count]);
                if count < buffer.len() {
                    break;
                }
            }
            stream.finish()?;
            Ok(all)
        };
        let input = |bytes: &[u8]| -> Input { Box::new(io::Cursor::new(bytes.to_vec())) };
        assert_eq!(read(input(&text), None).unwrap(), text);
        assert_eq!(read(input(&bytes), Some(Compression::Zstd)).unwrap(), text);
        let error = read(input(&bytes[..bytes.len() / 2]), Some(Compression::Zstd)).unwrap_err();
        assert!(format!("{error:#}").contains("zstd"), "{error:#}");
        let bytes: &'static [u8] = bytes.leak();
        for compression in [None, Some(Compression::Zstd)] {
            let error = read(Box::new(Wrong(bytes)), compression).unwrap_err();
            assert!(
                format!("{error:#}").ends_with("it is the wrong one"),
                "{error:#}"
            );
        }
        // It ends although nobody reads it to the end.
        drop(Stream::fed(Box::new(io::repeat(0)), Some(Compression::Zstd)).unwrap());
    }
}
