//! Archives as tar(1) writes them, with the additions of POSIX (pax) and of GNU. They can come from anywhere.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::node::{self, Kind, Time, Xattrs};
use super::write::Meta;

/// Of a header, and what contents are filled up to. In bytes.
const BLOCK: usize = 512;
/// What may come before a header to complete it, in bytes: one part of it. All together may have twice as much.
const MORE_MOST: u64 = 1 << 20;
/// A path is shorter than this, in bytes (`PATH_MAX`).
const PATH_MOST: usize = 4096;

/// A path of an archive, and what is there.
#[derive(Debug)]
pub struct Entry {
    /// From the root, with nothing that leads up; empty for the root itself.
    pub path: PathBuf,
    pub what: What,
    pub meta: Meta,
    pub mtime: Time,
}

#[derive(Debug, PartialEq, Eq)]
pub enum What {
    /// Of so many bytes, which are read of the archive next.
    File(u64),
    Dir,
    /// A symbolic link to this.
    Link(OsString),
    /// Another name of the file at this path.
    Name(PathBuf),
    /// A pipe or device.
    Special(Kind, u64),
}

/// An archive that is read once, from its beginning. Between two entries it reads as the content of the first.
pub struct Archive<R> {
    input: R,
    /// Of the content of a file, in bytes.
    left: u64,
    /// What follows the content, in bytes.
    padding: u64,
    /// What came before the next header to complete it, in bytes.
    told: u64,
}

/// What is told of a file before its header. It counts more than that.
#[derive(Debug, Default, PartialEq, Eq)]
struct More {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<Time>,
    xattrs: Xattrs,
}

impl<R: Read> Archive<R> {
    pub fn new(input: R) -> Self {
        Self {
            input,
            left: 0,
            padding: 0,
            told: 0,
        }
    }

    /// The next path; nothing at the end. What was not read of the content before is passed over.
    pub fn next_entry(&mut self) -> Result<Option<Entry>> {
        let mut more = More::default();
        self.told = 0;
        loop {
            let rest = self.left.saturating_add(self.padding);
            self.left = 0;
            self.padding = 0;
            let passed = io::copy(&mut (&mut self.input).take(rest), &mut io::sink())?;
            ensure!(passed == rest, "it ends in the middle of a file");
            let Some(header) = self.header()? else {
                return Ok(None);
            };
            let size = header.size()?;
            match header.kind() {
                b'x' => more.take(&self.all(size)?)?,
                b'g' => {
                    let mut of_all = More::default();
                    of_all.take(&self.all(size)?)?;
                    ensure!(
                        of_all == More::default(),
                        "it says something of all its files, which is not known"
                    );
                }
                b'L' => more.path = Some(text(&self.all(size)?).to_owned()),
                b'K' => more.link = Some(text(&self.all(size)?).to_owned()),
                _ => {
                    let entry = header.entry(more)?;
                    if let What::File(size) = entry.what {
                        self.left = size;
                        self.padding = padding(size);
                    }
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// Nothing at the end, which is a block of zeros.
    fn header(&mut self) -> Result<Option<Header>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..])? {
                0 if filled == 0 => return Ok(None),
                0 => bail!("it ends in the middle of a header"),
                count => filled += count,
            }
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header(block);
        ensure!(header.has_right_sum(), "it is no tar archive, or damaged");
        Ok(Some(header))
    }

    /// The content of what completes a header.
    fn all(&mut self, size: u64) -> Result<Vec<u8>> {
        ensure!(size <= MORE_MOST, "a name or attribute has {size} bytes");
        // There can be any number of them, also of empty ones.
        self.told = self.told.saturating_add(size + BLOCK as u64);
        ensure!(
            self.told <= 2 * MORE_MOST,
            "a file has more names and attributes than any needs"
        );
        let mut content = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut content)?;
        ensure!(
            content.len() as u64 == size,
            "it ends in the middle of a name"
        );
        self.padding = padding(size);
        Ok(content)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = buffer.len().min(most);
        let count = self.input.read(&mut buffer[..most])?;
        if count == 0 && most > 0 {
            let message = "it ends in the middle of a file";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

struct Header([u8; BLOCK]);

impl Header {
    fn field(&self, from: usize, length: usize) -> &[u8] {
        &self.0[from..from + length]
    }

    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn has_right_sum(&self) -> bool {
        let at = |(at, byte): (usize, &u8)| match at {
            148..156 => u64::from(b' '),
            _ => u64::from(*byte),
        };
        let sum: u64 = self.0.iter().enumerate().map(at).sum();
        number(self.field(148, 8)) == Some(i64::try_from(sum).unwrap_or(0))
    }

    fn number(&self, from: usize, length: usize, what: &str) -> Result<u64> {
        let number = number(self.field(from, length)).and_then(|it| u64::try_from(it).ok());
        number.with_context(|| format!("the {what} of a file is no number"))
    }

    fn size(&self) -> Result<u64> {
        self.number(124, 12, "size")
    }

    fn name(&self) -> Vec<u8> {
        let name = text(self.field(0, 100));
        let prefix = text(self.field(345, 155));
        // GNU has something else there.
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_owned();
        }
        [prefix, b"/", name].concat()
    }

    fn entry(&self, told: More) -> Result<Entry> {
        let name = told.path.unwrap_or_else(|| self.name());
        let shown = &name[..name.len().min(PATH_MOST)];
        let shown = String::from_utf8_lossy(shown).into_owned();
        let link = told
            .link
            .unwrap_or_else(|| text(self.field(157, 100)).to_owned());
        let entry = || {
            let what = match self.kind() {
                // As it was before there was a type for directories.
                0 if name.ends_with(b"/") => What::Dir,
                0 | b'0' | b'7' => What::File(match told.size {
                    Some(size) => size,
                    None => self.size()?,
                }),
                b'1' => What::Name(inside(&link)?),
                b'2' => {
                    ensure!(!link.is_empty(), "it is a link to nowhere");
                    What::Link(OsString::from_vec(link))
                }
                b'3' => What::Special(Kind::Char, self.device()?),
                b'4' => What::Special(Kind::Block, self.device()?),
                b'5' => What::Dir,
                b'6' => What::Special(Kind::Fifo, 0),
                b'S' => bail!("it is a sparse file; pack it without --sparse"),
                other => bail!("it has the unknown type {:?}", char::from(other)),
            };
            let owner = |given: Option<u64>, from, what| {
                let id = given.map_or_else(|| self.number(from, 8, what), Ok)?;
                let id = u32::try_from(id).ok().filter(|id| *id != u32::MAX);
                id.with_context(|| format!("its {what} is no number of one"))
            };
            let mode = self.number(100, 8, "mode")? & 0o7777;
            Ok(Entry {
                path: inside(&name)?,
                what,
                meta: Meta {
                    uid: owner(told.uid, 108, "owner")?,
                    gid: owner(told.gid, 116, "group")?,
                    mode: u32::try_from(mode)?,
                    xattrs: told.xattrs,
                },
                mtime: match told.mtime {
                    Some(mtime) => mtime,
                    None => (
                        number(self.field(136, 12)).context("its time is no number")?,
                        0,
                    ),
                },
            })
        };
        entry().with_context(|| format!("{shown:?}"))
    }

    fn device(&self) -> Result<u64> {
        let [major, minor] = [329, 337].map(|at| self.number(at, 8, "device"));
        node::device(u32::try_from(major?)?, u32::try_from(minor?)?)
            .context("it is a device that Linux cannot have")
    }
}

impl More {
    /// Takes records of the kind `LENGTH KEY=VALUE` (pax(1)), each with a newline at its end.
    fn take(&mut self, records: &[u8]) -> Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            let odd = "an attribute of a file is damaged";
            let space = rest.iter().position(|byte| *byte == b' ').context(odd)?;
            let length = std::str::from_utf8(&rest[..space])?;
            let length: usize = length.parse().context(odd)?;
            let record = rest.get(space + 1..length).context(odd)?;
            let record = record.strip_suffix(b"\n").context(odd)?;
            let equals = record.iter().position(|byte| *byte == b'=').context(odd)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let key = String::from_utf8_lossy(key);
            self.set(&key, value)
                .with_context(|| format!("the attribute {key:?} of a file"))?;
            rest = &rest[length..];
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<()> {
        let as_text = || std::str::from_utf8(value).context("it is no text");
        let as_number = || Ok::<_, anyhow::Error>(as_text()?.parse::<u64>()?);
        let some = || (!value.is_empty()).then(|| value.to_owned());
        match key {
            "path" => self.path = some(),
            "linkpath" => self.link = some(),
            "size" => self.size = Some(as_number()?),
            "uid" => self.uid = Some(as_number()?),
            "gid" => self.gid = Some(as_number()?),
            "mtime" => self.mtime = Some(time(as_text()?).context("it is no time")?),
            // tar(1) leaves out the zero at its end.
            "RHT.security.selinux" => {
                let label = [value, b"\0"].concat();
                self.xattrs.insert("security.selinux".into(), label);
            }
            _ if key.starts_with("GNU.sparse.") => {
                bail!("it is a sparse file; pack it without --sparse")
            }
            _ if key.starts_with("SCHILY.acl.") => {
                bail!("it has an ACL as text; pack it without --acls")
            }
            _ => {
                let name = key.strip_prefix("SCHILY.xattr.");
                if let Some(name) = name.filter(|name| !is_of_overlay(name)) {
                    self.xattrs.insert(name.into(), value.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// Whether an attribute is what overlayfs keeps for itself, and no content.
pub fn is_of_overlay(name: &str) -> bool {
    let (_, rest) = name.split_once('.').unwrap_or_default();
    rest.starts_with("overlay.")
}

/// What comes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// In octal digits; or in binary, as GNU has it for what needs more.
fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if *first & 0x80 == 0 {
        let digits = std::str::from_utf8(text(field)).ok()?.trim();
        return match digits {
            "" => Some(0),
            _ if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                i64::from_str_radix(digits, 8).ok()
            }
            _ => None,
        };
    }
    // The second bit tells whether it is below zero.
    let begin = i64::from(*first & 0x3f) - i64::from(*first & 0x40);
    let mut bytes = rest.iter();
    bytes.try_fold(begin, |number, byte| {
        number.checked_mul(256)?.checked_add(i64::from(*byte))
    })
}

/// Seconds with a fraction, which can be before 1970.
fn time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.into_iter().try_fold(0, |number: u32, digit| {
        digit
            .is_ascii_digit()
            .then(|| number * 10 + u32::from(digit - b'0'))
    })?;
    let seconds: i64 = whole.parse().ok()?;
    Some(match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => (seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds),
        _ => (seconds, nanoseconds),
    })
}

/// A path below the root. Refuses one that leads up.
fn inside(path: &[u8]) -> Result<PathBuf> {
    ensure!(!path.contains(&0), "its name has a zero byte");
    ensure!(
        path.len() < PATH_MOST,
        "its name has {} bytes; fewer than {PATH_MOST} are needed",
        path.len()
    );
    let mut clean = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(path)).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => bail!("it leads out of the root"),
            _ => {}
        }
    }
    Ok(clean)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A header with its sum.
    pub fn header(name: &str, kind: u8, size: usize, change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[136..147].copy_from_slice(b"00000000777");
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        change(&mut block);
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn filled(content: &[u8]) -> Vec<u8> {
        let mut content = content.to_vec();
        content.resize(content.len().next_multiple_of(BLOCK), 0);
        content
    }

    pub fn file(name: &str, content: &[u8]) -> Vec<u8> {
        [header(name, b'0', content.len(), |_| ()), filled(content)].concat()
    }

    pub fn link(name: &str, kind: u8, target: &str) -> Vec<u8> {
        header(name, kind, 0, |block| {
            block[157..157 + target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// What completes the header that follows.
    fn more(kind: u8, content: &[u8]) -> Vec<u8> {
        [header("more", kind, content.len(), |_| ()), filled(content)].concat()
    }

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let lengths = rest.len()..rest.len() + 10;
        let length = lengths
            .into_iter()
            .find(|all| all.to_string().len() + rest.len() == *all);
        [length.unwrap().to_string().as_bytes(), &rest].concat()
    }

    pub fn pax(key: &str, value: &[u8]) -> Vec<u8> {
        more(b'x', &record(key, value))
    }

    fn all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>> {
        let mut archive = Archive::new(archive);
        let mut found = Vec::new();
        while let Some(entry) = archive.next_entry()? {
            let mut content = Vec::new();
            archive.read_to_end(&mut content)?;
            found.push((entry, content));
        }
        Ok(found)
    }

    #[test]
    fn what_is_in_an_archive_is_read() {
        let long = "d/".repeat(150) + "file";
        let archive = [
            header("./", b'5', 0, |_| ()),
            file("/a/./b", b"text"),
            file("empty", b""),
            header("old/", 0, 0, |_| ()),
            link("a/hard", b'1', "./a/b"),
            link("soft", b'2', "../../etc/passwd"),
            header("null", b'3', 0, |block| {
                block[329..344].copy_from_slice(b"0000001\x000000003");
            }),
            header("pipe", b'6', 0, |_| ()),
            more(b'L', format!("{long}\0").as_bytes()),
            file("short", b"x"),
            header("name", b'0', 0, |block| {
                block[345..349].copy_from_slice(b"dirs");
            }),
            vec![0; 2 * BLOCK],
            b"what follows".to_vec(),
        ]
        .concat();
        let found = all(&archive).unwrap();
        let names: Vec<&str> = found
            .iter()
            .map(|(entry, _)| entry.path.to_str().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "",
                "a/b",
                "empty",
                "old",
                "a/hard",
                "soft",
                "null",
                "pipe",
                &long,
                "dirs/name"
            ]
        );
        let expected = [
            What::Dir,
            What::File(4),
            What::File(0),
            What::Dir,
            What::Name("a/b".into()),
            What::Link("../../etc/passwd".into()),
            What::Special(Kind::Char, rustix::fs::makedev(1, 3)),
            What::Special(Kind::Fifo, 0),
            What::File(1),
            What::File(0),
        ];
        for ((entry, _), what) in found.iter().zip(expected) {
            assert_eq!(entry.what, what);
            assert_eq!((entry.meta.mode, entry.mtime), (0o644, (0o777, 0)));
        }
        assert_eq!(found[1].1, b"text");
        // Nobody has to read the contents.
        let mut archive = Archive::new(&archive[..]);
        let mut count = 0;
        while archive.next_entry().unwrap().is_some() {
            count += 1;
        }
        assert_eq!(count, 10);
    }

    #[test]
    fn attributes_count_more_than_the_header() {
        let archive = [
            pax("path", b"b/c"),
            more(
                b'x',
                &[
                    record("uid", b"100000"),
                    record("gid", b"5"),
                    record("mtime", b"-1.25"),
                    record("atime", b"7"),
                    record("SCHILY.xattr.user.x", b"a\nb\0"),
                    record("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                    record("RHT.security.selinux", b"system_u:object_r:etc_t:s0"),
                ]
                .concat(),
            ),
            file("a", b"text"),
            more(b'g', &record("comment", b"made by x")),
            header("z", b'0', 0, |block| {
                block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0, 0x20, 0, 1]);
                block[136..148].copy_from_slice(&[0xff; 12]);
            }),
        ]
        .concat();
        let found = all(&archive).unwrap();
        let (entry, content) = &found[0];
        assert_eq!(
            (entry.path.to_str(), &content[..]),
            (Some("b/c"), &b"text"[..])
        );
        assert_eq!((entry.meta.uid, entry.meta.gid), (100_000, 5));
        assert_eq!(entry.mtime, (-2, 750_000_000));
        let xattrs: Vec<_> = entry.meta.xattrs.iter().collect();
        assert_eq!(
            xattrs,
            [
                (
                    &"security.selinux".into(),
                    &b"system_u:object_r:etc_t:s0\0".to_vec()
                ),
                (&"user.x".into(), &b"a\nb\0".to_vec())
            ]
        );
        let (entry, _) = &found[1];
        assert_eq!((entry.meta.uid, entry.mtime), (0x20_0001, (-1, 0)));
        assert!(entry.meta.xattrs.is_empty());
    }

    #[test]
    fn what_could_do_harm_or_is_damaged_is_refused() {
        let damaged = {
            let mut header = file("a", b"");
            header[0] = b'b';
            header
        };
        let number = |text: &'static [u8]| {
            header("a", b'0', 0, |block| {
                block[124..124 + text.len()].copy_from_slice(text);
            })
        };
        for (archive, why) in [
            (b"not a tar archive".to_vec(), "in the middle of a header"),
            (vec![b'x'; BLOCK], "no tar archive"),
            (damaged, "no tar archive"),
            (
                file("a", b"text")[..BLOCK + 2].to_vec(),
                "in the middle of a file",
            ),
            (
                header("a", b'0', 1 << 32, |_| ()),
                "in the middle of a file",
            ),
            (
                number(&[
                    0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ]),
                "no number",
            ),
            (number(&[0xff; 12]), "no number"),
            (number(b"-0000000001"), "no number"),
            (number(b"00000000009"), "no number"),
            (file("../a", b""), "leads out of the root"),
            (file("a/../../b", b""), "leads out of the root"),
            (link("a", b'1', "../etc/passwd"), "leads out of the root"),
            (link("a", b'2', ""), "link to nowhere"),
            (header("a", b'S', 0, |_| ()), "sparse"),
            (header("a", b'V', 0, |_| ()), "unknown type 'V'"),
            (
                header("a", b'0', 0, |block| {
                    block[108..116].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
                }),
                "its owner",
            ),
            (
                [pax("uid", b"4294967295"), file("a", b"")].concat(),
                "its owner",
            ),
            ([pax("path", b"a\0b"), file("a", b"")].concat(), "zero byte"),
            (
                [pax("path", b"x/../.."), file("a", b"")].concat(),
                "leads out of the root",
            ),
            (
                [pax("size", b"-1"), file("a", b"")].concat(),
                "attribute \"size\"",
            ),
            (
                [pax("size", b"600"), file("a", b"text")].concat(),
                "in the middle of a file",
            ),
            ([pax("mtime", b"1.x"), file("a", b"")].concat(), "no time"),
            (
                [pax("GNU.sparse.major", b"1"), file("a", b"")].concat(),
                "sparse",
            ),
            (
                [pax("SCHILY.acl.access", b"user::rw-"), file("a", b"")].concat(),
                "ACL",
            ),
            (
                [more(b'x', b"9999 path=a\n"), file("a", b"")].concat(),
                "damaged",
            ),
            (
                [more(b'x', b"3 path=a\n"), file("a", b"")].concat(),
                "damaged",
            ),
            (
                [more(b'x', b"0 path=a\n"), file("a", b"")].concat(),
                "damaged",
            ),
            ([more(b'x', b"x"), file("a", b"")].concat(), "damaged"),
            (
                [more(b'g', &record("uid", b"0")), file("a", b"")].concat(),
                "all its files",
            ),
            (header("a", b'L', 1 << 30, |_| ()), "1073741824 bytes"),
            (header("a", b'x', 100, |_| ()), "in the middle of a name"),
        ] {
            let error = format!("{:#}", all(&archive).unwrap_err());
            assert!(error.contains(why), "{why}: {error}");
        }
        assert!(all(b"").unwrap().is_empty());
    }

    #[test]
    fn what_needs_more_than_linux_has_is_refused() {
        let device = |numbers: &'static [u8]| {
            header("a", b'3', 0, |block| {
                block[329..344].copy_from_slice(numbers);
            })
        };
        for (archive, why) in [
            // What would be kept of it has no end.
            (
                pax("SCHILY.xattr.user.x", &vec![b'x'; 1_000_000]).repeat(3),
                "more names and attributes",
            ),
            (more(b'L', b"").repeat(5000), "more names and attributes"),
            (
                [pax("path", &[b'a'; 4096]), file("a", b"")].concat(),
                "4096 bytes",
            ),
            // mknod(2) would cut off all of these numbers that is not zero.
            (device(b"0010000\x000000000"), "that Linux cannot have"),
            (device(b"0000000\x004000000"), "that Linux cannot have"),
        ] {
            let error = format!("{:#}", all(&archive).unwrap_err());
            assert!(error.contains(why), "{why}: {error:.300}");
        }
    }

    #[test]
    fn what_is_passed_over_has_to_be_there() {
        let mut archive = file("a", &[7; 5000]);
        archive.truncate(3000);
        let mut archive = Archive::new(&archive[..]);
        archive.next_entry().unwrap().unwrap();
        let error = archive.next_entry().unwrap_err().to_string();
        assert_eq!(error, "it ends in the middle of a file");
    }
}
