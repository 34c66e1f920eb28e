//! The listing of a tree: what each path of it is, and the SHA-256 of the content of each file. By that it is known what
//! a base holds, without reading it.
//!
//! It is text, one line a path:
//!
//! ```text
//! imgbased-listing 1 OF
//! KIND MODE UID GID SIZE MTIME CTIME INODE XATTRS CONTENT PATH
//! end SHA256
//! ```
//!
//! - `OF` is the digest of the volume that holds the tree. As long as the volume has that, the listing is right.
//! - `KIND` is a letter as in find(1), `MODE` is octal, `SIZE` in bytes. The times are seconds, a point, and nanoseconds.
//! - `XATTRS` is the SHA-256 of all extended attributes in the order of their names: each name, a zero, the length of the
//!   value as 64 bits in little-endian, and the value.
//! - `CONTENT` is the SHA-256 of a file, as sha256sum(1) prints it.
//! - Either is `-` where there is none. A file with large holes has no digest, since they would be read for hours.
//! - `PATH` begins at the root, without a slash, and is escaped as in C. The paths come in the order of
//!   [`walk`], so that a listing and a tree are compared in one pass.
//! - A line that begins in another way is for later versions, and passed over: such as parts of large files.
//! - `SHA256` is that of all lines before. A listing without it was not finished, and counts as lost.
//!
//! So a content is found by its digest in one pass through the listings: the base, the path, and the place in the file,
//! which is its beginning. Names with several links are listed each by itself.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, IntoInnerError, Read, Seek, Write};
use std::path::{Path, PathBuf};
#[cfg(test)]
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::content;
use super::dir::{Dir, is_no_dir};
use super::name::{escaped, unescaped};
use super::node::{Kind, Node, Stat, Time, Xattrs};
use super::walk::{Below, in_order, walk};

const MAGIC: &str = "imgbased-listing 1";
/// The longest line, in bytes. A path has 4096 at most where a program can name it.
const LINE_MAX: u64 = 64 << 10;
/// A file of which so much is holes has no digest, in bytes.
const HOLES_MAX: u64 = 64 << 20;
/// Some filesystems keep times in whole seconds. What was changed shortly before its listing was written to its place is
/// read again; nothing is changed between that and the draft of it.
const COARSE: i64 = 2;
/// So much is collected before it is written, in bytes.
const BUFFER: usize = 64 << 10;

/// What was done for a listing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Listed {
    pub paths: u64,
    /// Paths whose lines are those of the listing before.
    pub kept: u64,
    /// How much of files was read, in bytes.
    pub bytes: u64,
}

/// What a listing says of a tree, but for the volume that holds the tree: the digest of that may come later.
pub struct Draft(File);

impl Draft {
    /// Lists the tree below `root` in an empty file. `before` is the listing of a tree that this one began as a snapshot
    /// of: what was not touched since is not read. `tell` is told at each path how much of files was read until then, in
    /// bytes, and ends the work by its error.
    pub fn of(
        root: &Dir,
        mut before: Option<Listing>,
        file: File,
        tell: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<(Self, Listed)> {
        let mut lines = BufWriter::with_capacity(BUFFER, file);
        let mut listed = Listed::default();
        let mut block = Vec::new();
        walk(&[Some(root.again()?)], None, &mut |visit| {
            tell(listed.bytes)?;
            let [Some(place)] = visit.places else {
                return Ok(Below::Skip);
            };
            let failed = || format!("cannot list /{}", escaped(visit.path));
            let known = match &mut before {
                Some(before) => before
                    .untouched(visit.path, &place.stat)
                    .context("cannot read a listing")?,
                None => None,
            };
            listed.paths += 1;
            if let Some(known) = known {
                listed.kept += 1;
                lines.write_all(&known.line).with_context(failed)?;
                return Ok(Below::Visit);
            }
            let Some(node) = place.node().with_context(failed)? else {
                return Ok(Below::Skip);
            };
            let content = if has_digest(&node.stat) {
                let file = node.open().with_context(failed)?;
                let mut tell = |more| {
                    listed.bytes += more;
                    tell(listed.bytes)
                };
                Some(content::sum(&file, &mut block, &mut tell).with_context(failed)?)
            } else {
                None
            };
            let line = line(&node, content, visit.path).with_context(failed)?;
            if (line.len() as u64) < LINE_MAX {
                lines.write_all(line.as_bytes()).with_context(failed)?;
            }
            Ok(Below::Visit)
        })?;
        let file = lines.into_inner().map_err(IntoInnerError::into_error)?;
        Ok((Self(file), listed))
    }

    /// Writes the listing of the volume with the digest `of`, which holds the tree.
    pub fn write(&self, of: &str, to: &mut File) -> io::Result<()> {
        let mut lines = &self.0;
        lines.rewind()?;
        let mut sum = Sha256::new();
        let mut block = format!("{MAGIC} {of}\n").into_bytes();
        while !block.is_empty() {
            sum.update(&block);
            to.write_all(&block)?;
            block.clear();
            lines.take(BUFFER as u64).read_to_end(&mut block)?;
        }
        to.write_all(last_line(sum).as_bytes())
    }
}

/// Writes the listing of a tree to a new file, for tests. Returns the file as well.
#[cfg(test)]
pub(super) fn list(root: &Dir, of: &str, before: Option<Listing>, path: &Path) -> (Listed, File) {
    let lines = tempfile::tempfile().unwrap();
    let (draft, listed) = Draft::of(root, before, lines, &mut |_| Ok(())).unwrap();
    let mut file = File::create(path).unwrap();
    draft.write(of, &mut file).unwrap();
    (listed, file)
}

/// The listing of a tree in a new file of the directory `at`, as if that had been written later: what was changed just
/// before is looked at once more.
#[cfg(test)]
pub(super) fn settled(root: &Dir, at: &Path) -> Listing {
    let (_, file) = list(root, "of", None, &at.join("listing"));
    let later = SystemTime::now() + Duration::from_secs(60);
    file.set_modified(later).unwrap();
    let dir = Dir::root(at).unwrap();
    let listing = Listing::open(&dir, OsStr::new("listing"), "of");
    listing.unwrap().unwrap()
}

fn last_line(sum: Sha256) -> String {
    format!("end {:x}\n", sum.finalize())
}

fn has_digest(stat: &Stat) -> bool {
    stat.kind == Kind::File && stat.size.saturating_sub(stat.used) <= HOLES_MAX
}

fn letter(kind: Kind) -> char {
    match kind {
        Kind::File => 'f',
        Kind::Dir => 'd',
        Kind::Link => 'l',
        Kind::Fifo => 'p',
        Kind::Socket => 's',
        Kind::Char => 'c',
        Kind::Block => 'b',
    }
}

fn line(node: &Node, content: Option<String>, path: &Path) -> io::Result<String> {
    let Stat {
        kind,
        mode,
        uid,
        gid,
        size,
        mtime,
        ctime,
        id,
        ..
    } = node.stat;
    let nothing = || "-".to_owned();
    Ok(format!(
        "{} {mode:o} {uid} {gid} {size} {}.{:09} {}.{:09} {} {} {} {}\n",
        letter(kind),
        mtime.0,
        mtime.1,
        ctime.0,
        ctime.1,
        id.ino,
        sum_of(&node.xattrs()?).unwrap_or_else(nothing),
        content.unwrap_or_else(nothing),
        escaped(path)
    ))
}

/// What a listing says of extended attributes.
pub(super) fn sum_of(xattrs: &Xattrs) -> Option<String> {
    let mut sum = Sha256::new();
    for (name, value) in xattrs {
        sum.update(name.as_encoded_bytes());
        sum.update([0]);
        sum.update((value.len() as u64).to_le_bytes());
        sum.update(value);
    }
    (!xattrs.is_empty()).then(|| format!("{:x}", sum.finalize()))
}

/// A path in a listing.
#[derive(Debug)]
pub struct Entry {
    pub path: PathBuf,
    /// Of a file, in bytes.
    pub size: u64,
    /// The SHA-256 of a file, as hexadecimal digits.
    pub content: Option<String>,
    kind: char,
    pub(super) inode: u64,
    /// The SHA-256 of its extended attributes, as hexadecimal digits.
    pub(super) xattrs: Option<String>,
    ctime: Time,
    /// As it is in the listing.
    line: Vec<u8>,
}

impl Entry {
    /// Nothing where the line is none of a path.
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.strip_suffix(b"\n")?.splitn(11, |byte| *byte == b' ');
        let mut text = || std::str::from_utf8(fields.next()?).ok();
        let kind = text()?;
        let [_mode, _uid, _gid] = [text()?, text()?, text()?];
        let size = text()?.parse().ok()?;
        let _mtime = text()?;
        let (seconds, nanoseconds) = text()?.split_once('.')?;
        let inode = text()?.parse().ok()?;
        let [xattrs, content] = [text()?, text()?];
        let sum = |text: &str| (text != "-").then(|| text.to_owned());
        let path = unescaped(fields.next()?)?;
        Some(Self {
            path: path.into(),
            size,
            content: sum(content),
            xattrs: sum(xattrs),
            kind: kind.parse().ok()?,
            inode,
            ctime: (seconds.parse().ok()?, nanoseconds.parse().ok()?),
            line: line.to_vec(),
        })
    }

    /// Whether what a snapshot has at the path is still this: what changes a file sets its ctime.
    fn is_untouched(&self, stat: &Stat) -> bool {
        self.kind == letter(stat.kind) && self.inode == stat.id.ino && self.ctime == stat.ctime
    }
}

/// A listing that is read from its beginning to its end.
pub struct Listing {
    lines: BufReader<File>,
    next: Option<Entry>,
    /// A change of a file since has another time than those that are listed with times before this one, in seconds.
    settled: i64,
}

impl Listing {
    /// The listing of this name in a directory. Nothing where it is not there, is not whole, or is not of the volume
    /// with the digest `of`.
    pub fn open(dir: &Dir, name: &OsStr, of: &str) -> io::Result<Option<Self>> {
        let node = match dir.node(name) {
            Ok(node) if node.stat.kind == Kind::File => node,
            Ok(_) => return Ok(None),
            Err(error) if is_no_dir(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = BufReader::new(node.open()?);
        let (mut line, mut last) = (Vec::new(), Vec::new());
        let mut sum = Sha256::new();
        read_line(&mut lines, &mut line)?;
        if line != format!("{MAGIC} {of}\n").as_bytes() {
            return Ok(None);
        }
        while !line.is_empty() {
            sum.update(&last);
            std::mem::swap(&mut line, &mut last);
            read_line(&mut lines, &mut line)?;
        }
        if last != last_line(sum).as_bytes() {
            return Ok(None);
        }
        lines.rewind()?;
        Ok(Some(Self {
            lines,
            next: None,
            settled: node.stat.mtime.0.saturating_sub(COARSE),
        }))
    }

    /// The same from a copy in an empty file, so that the filesystem of the first one can be unmounted.
    pub fn copied_to(mut self, mut file: File) -> io::Result<Self> {
        io::copy(&mut self.lines, &mut file)?;
        file.rewind()?;
        Ok(Self {
            lines: BufReader::new(file),
            ..self
        })
    }

    /// The same from its beginning. One of all that were made so is read at a time, since they share their place in the
    /// file.
    pub fn again(&self) -> io::Result<Self> {
        let mut file = self.lines.get_ref().try_clone()?;
        file.rewind()?;
        Ok(Self {
            lines: BufReader::new(file),
            next: None,
            settled: self.settled,
        })
    }

    /// The next path; nothing at the end.
    pub fn read(&mut self) -> io::Result<Option<Entry>> {
        read_entry(&mut self.lines)
    }

    /// What is listed of a path, if it is still that in a snapshot of what is listed. Each path that is asked for comes
    /// after the one before in the order of a walk.
    pub(super) fn untouched(&mut self, path: &Path, stat: &Stat) -> io::Result<Option<&Entry>> {
        let settled = self.settled;
        let is_same = |known: &&Entry| known.is_untouched(stat) && known.ctime.0 < settled;
        Ok(self.at(path)?.filter(is_same))
    }

    /// What is listed of a path.
    fn at(&mut self, path: &Path) -> io::Result<Option<&Entry>> {
        let Self { lines, next, .. } = self;
        in_order(next, path, |entry| &entry.path, || read_entry(lines))
    }
}

fn read_entry(lines: &mut BufReader<File>) -> io::Result<Option<Entry>> {
    let mut line = Vec::new();
    loop {
        read_line(lines, &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        if let Some(entry) = Entry::parse(&line) {
            return Ok(Some(entry));
        }
    }
}

/// The next line with its end; nothing after the last one. What is longer than any line comes in pieces.
fn read_line(lines: &mut BufReader<File>, line: &mut Vec<u8>) -> io::Result<()> {
    line.clear();
    lines.take(LINE_MAX).read_until(b'\n', line).map(drop)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs::{self, Permissions};
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
    use std::thread::sleep;
    use std::time::{Duration, SystemTime};

    use super::*;

    struct Tree {
        dir: tempfile::TempDir,
    }

    impl Tree {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            for name in ["root/b", "lists"] {
                fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            let tree = Self { dir };
            fs::write(tree.root("b/file"), "text\n").unwrap();
            fs::write(tree.root("b.d"), "").unwrap();
            fs::hard_link(tree.root("b/file"), tree.root("z")).unwrap();
            symlink("/nowhere", tree.root("link")).unwrap();
            fs::write(tree.root(OsStr::from_bytes(b"b/two\nlines \xff")), "x").unwrap();
            let holes = File::create(tree.root("holes")).unwrap();
            holes.set_len(10 << 40).unwrap();
            holes.write_all_at(b"end", (10 << 40) - 3).unwrap();
            tree
        }

        fn root(&self, path: impl AsRef<OsStr>) -> PathBuf {
            self.dir.path().join("root").join(path.as_ref())
        }

        fn lists(&self) -> Dir {
            Dir::root(&self.dir.path().join("lists")).unwrap()
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("lists").join(name)
        }

        fn open(&self, name: &str, of: &str) -> Option<Listing> {
            Listing::open(&self.lists(), OsStr::new(name), of).unwrap()
        }

        fn write(&self, name: &str, of: &str, before: Option<Listing>) -> Listed {
            let root = Dir::root(&self.root("")).unwrap();
            list(&root, of, before, &self.path(name)).0
        }
    }

    /// Each path with its content.
    fn all(mut listing: Listing) -> BTreeMap<PathBuf, Option<String>> {
        let mut found = BTreeMap::new();
        while let Some(entry) = listing.read().unwrap() {
            found.insert(entry.path, entry.content);
        }
        found
    }

    #[test]
    fn what_is_written_is_read_again_with_the_digest_of_each_file() {
        let tree = Tree::new();
        let listed = tree.write("a", "of", None);
        assert_eq!((listed.paths, listed.kept, listed.bytes), (7, 0, 11));
        let text = fs::read_to_string(tree.path("a")).unwrap();
        let begin: Vec<&str> = text.lines().map(|line| &line[..2]).collect();
        assert_eq!(
            begin,
            ["im", "d ", "f ", "f ", "f ", "f ", "l ", "f ", "en"]
        );
        let mut listing = tree.open("a", "of").unwrap();
        listing.read().unwrap();
        let found = all(listing.again().unwrap());
        // printf 'text\n' | sha256sum
        let sum = "b9e68e1bea3e5b19ca6b2f98b73a54b73daafaa250484902e09982e07a12e733";
        let of = |path: &[u8]| found[Path::new(OsStr::from_bytes(path))].as_deref();
        assert_eq!([of(b"b/file"), of(b"z")], [Some(sum); 2]);
        // sha256sum </dev/null
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(of(b"b.d"), Some(empty));
        assert!(of(b"b/two\nlines \xff").is_some());
        assert_eq!([of(b"b"), of(b"link"), of(b"holes")], [None; 3]);
    }

    #[test]
    fn what_was_not_touched_since_is_not_read_again() {
        let tree = Tree::new();
        tree.write("a", "of", None);
        // Too soon after the files were made, nothing is known of them.
        assert_eq!(tree.write("b", "new", tree.open("a", "of")).kept, 0);
        let later = SystemTime::now() + Duration::from_secs(10);
        let listing = File::options().append(true).open(tree.path("a")).unwrap();
        listing.set_modified(later).unwrap();
        // The clock of the kernel's files goes in steps.
        sleep(Duration::from_millis(50));
        fs::write(tree.root("b/file"), "other\n").unwrap();
        fs::write(tree.root("b/new"), "new").unwrap();
        fs::set_permissions(tree.root("b.d"), Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(tree.root("link")).unwrap();
        let before = tree.open("a", "of").unwrap();
        let before = before.copied_to(tempfile::tempfile().unwrap()).unwrap();
        let listed = tree.write("b", "new", Some(before));
        // The directory and the file with two names were changed too.
        assert_eq!((listed.paths, listed.kept, listed.bytes), (7, 2, 15));
        tree.write("c", "new", None);
        assert_eq!(
            fs::read_to_string(tree.path("b")).unwrap(),
            fs::read_to_string(tree.path("c")).unwrap()
        );
    }

    #[test]
    fn a_listing_that_is_damaged_or_of_another_volume_counts_as_lost() {
        let tree = Tree::new();
        tree.write("a", "of", None);
        let text = fs::read(tree.path("a")).unwrap();
        assert!(tree.open("a", "of").is_some());
        assert!(tree.open("a", "other").is_none());
        assert!(tree.open("none", "of").is_none());
        for (what, content) in [
            ("empty", Vec::new()),
            ("cut off", text[..text.len() - 10].to_vec()),
            ("without its end", text[..text.len() / 2].to_vec()),
            ("longer", [&text[..], b"f"].concat()),
            (
                "changed",
                String::from_utf8_lossy(&text)
                    .replace("link", "lynk")
                    .into(),
            ),
            ("one long line", vec![b'x'; 300_000]),
        ] {
            assert_ne!(content, text, "{what}");
            fs::write(tree.path("a"), content).unwrap();
            assert!(tree.open("a", "of").is_none(), "{what}");
        }
        fs::remove_file(tree.path("a")).unwrap();
        symlink("/dev/zero", tree.path("a")).unwrap();
        assert!(tree.open("a", "of").is_none());
    }

    #[test]
    fn lines_of_later_versions_are_passed_over() {
        for (line, expected) in [
            (
                "f 644 0 0 5 1.000000002 3.000000004 9 - 0a b/x y\\n\n",
                Some("b/x y\n"),
            ),
            ("d 755 0 0 5 -1.5 -3.5 9 aa - b\n", Some("b")),
            ("part 0 4096 0a\n", None),
            ("end 0a\n", None),
            ("f 644 0 0 5 1.0 3.0 9 - 0a b", None),
            ("f 644 0 0 x 1.0 3.0 9 - 0a b\n", None),
            ("f 644 0 0 5 1.0 3.0 9 - 0a b\\q\n", None),
        ] {
            let found = Entry::parse(line.as_bytes());
            let path = expected.map(PathBuf::from);
            assert_eq!(found.map(|entry| entry.path), path, "{line}");
        }
    }
}
