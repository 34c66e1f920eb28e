//! Layers of an image for containers: each is an archive of what it adds to those below it, and of what it takes away, as
//! the OCI image specification has it ("Image Layer Filesystem Changeset"). They can come from anywhere.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::dir::{Dir, is_no_dir};
use super::name::escaped;
use super::node::{Kind, Stat, Time, Xattrs};
use super::sync::LOST_AND_FOUND;
use super::tar::{Archive, Entry, What};
use super::write::Meta;

/// A file of this name and another one says that the other one is gone.
const WHITEOUT: &[u8] = b".wh.";
/// A file of this name says that all is gone that the layers below have in the directory.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What the first filesystem of this kind kept for itself.
const INTERNAL: &[u8] = b".wh..wh.";
/// What all that is taken away may take of the memory, in bytes: some 200000 names.
pub const REMOVALS_MOST: usize = 32 << 20;
/// What the times of all directories may take of the memory, in bytes: those of some 500000.
const TIMES_MOST: usize = 64 << 20;
/// What the paths of the directories of a layer may take of the memory, in bytes.
const DIRS_MOST: usize = 32 << 20;
/// What a file with a content takes of a disk at least, in bytes.
const BLOCK: u64 = 4096;
/// What anything takes, in bytes: an inode, or a name.
const INODE: u64 = 512;
/// Up to so many bytes a link, or all attributes of a file, are in its inode (ext4).
const INLINE: usize = 60;
/// How much is copied at once, in bytes.
const PORTION: usize = 256 << 10;

/// What a layer takes away from those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    dir: PathBuf,
    what: Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Gone {
    /// What has this name in the directory.
    Name(OsString),
    /// All that is in the directory.
    All,
    /// The link that the directory takes the place of. What is gone from the directory is not what the link leads to.
    Link,
}

impl Removal {
    /// What it takes of the memory, in bytes.
    fn memory(&self) -> usize {
        let name = match &self.what {
            Gone::Name(name) => name.len(),
            Gone::All | Gone::Link => 0,
        };
        size_of::<Self>() + self.dir.as_os_str().len() + name
    }
}

/// What a layer says of one path.
enum Said {
    Put(Entry),
    Remove(Removal),
    Nothing,
}

/// What is in a layer.
#[derive(Debug, Default)]
pub struct Survey {
    /// Of all its files, in bytes.
    pub bytes: u64,
    pub files: u64,
    pub removals: Vec<Removal>,
    /// What those take of the memory, in bytes.
    pub memory: usize,
}

impl Survey {
    /// Has the links go first which directories of the layer take the place of, where anything is gone below these.
    fn remove_links(&mut self, dirs: &Dirs) -> Result<()> {
        let above = self.removals.iter().flat_map(|of| of.dir.ancestors());
        // A directory comes before those below it.
        let replaced: BTreeSet<&Path> = above.filter(|dir| dirs.paths.contains(*dir)).collect();
        let link = |dir: &Path| Removal {
            dir: dir.to_owned(),
            what: Gone::Link,
        };
        let links: Vec<Removal> = replaced.into_iter().map(link).collect();
        let others = std::mem::take(&mut self.removals);
        self.memory = 0;
        links
            .into_iter()
            .chain(others)
            .try_for_each(|removal| self.remove(removal))
    }

    fn remove(&mut self, removal: Removal) -> Result<()> {
        self.memory += removal.memory();
        ensure!(self.memory <= REMOVALS_MOST, "it takes away too many names");
        self.removals.push(removal);
        Ok(())
    }
}

/// Called with the number of bytes that were read or written meanwhile. Fails when it is time to end.
pub type Tell<'a> = dyn FnMut(u64) -> Result<()> + 'a;

/// Reads through a layer. `see` is given each name that it adds.
///
/// Refuses what is damaged, leads out of the root, or is odd in what it takes away.
pub fn survey(input: &mut dyn Read, see: &mut dyn FnMut(&[u8]), tell: &mut Tell) -> Result<Survey> {
    let mut archive = Archive::new(input);
    let mut survey = Survey::default();
    let mut dirs = Dirs::default();
    let mut portion = vec![0; PORTION];
    while let Some(entry) = archive.next_entry()? {
        match said(entry)? {
            Said::Put(entry) => {
                let size = space(&entry);
                tell(size)?;
                see(entry.path.as_os_str().as_bytes());
                survey.bytes = survey.bytes.saturating_add(size);
                survey.files += 1;
                if entry.what == What::Dir {
                    dirs.add(entry.path)?;
                }
            }
            Said::Remove(removal) => survey.remove(removal)?,
            Said::Nothing => {}
        }
        pass(&mut archive, &mut portion, tell)?;
    }
    survey.remove_links(&dirs)?;
    Ok(survey)
}

/// The directories of a layer.
#[derive(Default)]
struct Dirs {
    paths: BTreeSet<PathBuf>,
    /// What they take of the memory, in bytes.
    memory: usize,
}

impl Dirs {
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let memory = size_of::<PathBuf>() + path.as_os_str().len();
        if self.paths.insert(path) {
            self.memory += memory;
        }
        ensure!(self.memory <= DIRS_MOST, "it has too many directories");
        Ok(())
    }
}

/// Passes over the rest of a content, which can be long, and takes little where it is compressed.
fn pass(content: &mut dyn Read, portion: &mut [u8], tell: &mut Tell) -> Result<()> {
    tell(0)?;
    while content.read(portion)? > 0 {
        tell(0)?;
    }
    Ok(())
}

/// What a path takes of a disk, in bytes: rather more than less, or any number of some kind takes nothing.
fn space(entry: &Entry) -> u64 {
    let whole = |bytes: u64| bytes.checked_next_multiple_of(BLOCK).unwrap_or(u64::MAX);
    let content = match &entry.what {
        What::File(size) => whole((*size).max(1)),
        What::Dir => BLOCK,
        What::Link(target) if target.len() >= INLINE => BLOCK,
        What::Link(_) | What::Name(_) | What::Special(..) => INODE,
    };
    let xattrs = entry.meta.xattrs.iter();
    let xattrs: usize = xattrs.map(|(name, value)| name.len() + value.len()).sum();
    if xattrs <= INLINE {
        return content;
    }
    content.saturating_add(whole(xattrs as u64))
}

fn said(entry: Entry) -> Result<Said> {
    let shown = escaped(&entry.path);
    let is_root = entry.path.as_os_str().is_empty();
    ensure!(
        !is_root || entry.what == What::Dir,
        "its root is no directory"
    );
    let name = entry.path.file_name().unwrap_or_default().as_bytes();
    let mut above = entry.path.parent().into_iter().flatten();
    ensure!(
        !above.any(|name| name.as_bytes().starts_with(WHITEOUT)),
        "/{shown} is below a name that says that something is gone"
    );
    let is_device = matches!(entry.what, What::Special(Kind::Char, 0));
    ensure!(
        !is_device,
        "/{shown} is the device 0:0, which overlayfs takes for a deleted file"
    );
    let Some(gone) = name.strip_prefix(WHITEOUT) else {
        return Ok(Said::Put(entry));
    };
    let is_internal = name.starts_with(INTERNAL) && name != OPAQUE;
    // Of the first filesystem of this kind all of them are names of one file.
    ensure!(
        matches!(entry.what, What::File(0) | What::Name(_)) || is_internal,
        "/{shown} says that something is gone, and is no empty file"
    );
    let dir = entry.path.parent().unwrap_or(Path::new("")).to_owned();
    if name == OPAQUE {
        let what = Gone::All;
        return Ok(Said::Remove(Removal { dir, what }));
    }
    if is_internal {
        return Ok(Said::Nothing);
    }
    ensure!(
        !matches!(gone, b"" | b"." | b".."),
        "/{shown} says that something is gone which is no name"
    );
    let what = Gone::Name(OsStr::from_bytes(gone).to_owned());
    Ok(Said::Remove(Removal { dir, what }))
}

/// Puts layers into a root, one on another. Links in it are followed as in that root, and never out of it.
pub struct Unpacking<'a> {
    to: &'a Dir,
    /// How much may be written, in bytes.
    room: u64,
    written: u64,
    tell: &'a mut Tell<'a>,
    /// The directory that was written to last.
    last: Option<(PathBuf, Dir)>,
    /// Of directories. What is put into them changes it, so they get it at the end.
    times: BTreeMap<PathBuf, Time>,
    /// What those take of the memory, in bytes.
    times_memory: usize,
    portion: Vec<u8>,
}

impl<'a> Unpacking<'a> {
    pub fn new(to: &'a Dir, room: u64, tell: &'a mut Tell<'a>) -> Self {
        Self {
            to,
            room,
            written: 0,
            tell,
            last: None,
            times: BTreeMap::new(),
            times_memory: 0,
            portion: vec![0; PORTION],
        }
    }

    /// Puts the next layer on those that are there. What it takes away was told by [`survey`], and goes first: that
    /// says nothing of what it adds itself.
    pub fn add(&mut self, removals: &[Removal], input: &mut dyn Read) -> Result<()> {
        for removal in removals {
            self.remove(removal).with_context(|| {
                format!("cannot remove what is gone from /{}", escaped(&removal.dir))
            })?;
        }
        let mut archive = Archive::new(input);
        while let Some(entry) = archive.next_entry()? {
            if let Said::Put(entry) = said(entry)? {
                self.put(&entry, &mut archive)
                    .with_context(|| format!("cannot write /{}", escaped(&entry.path)))?;
            }
            pass(&mut archive, &mut self.portion, self.tell)?;
        }
        Ok(())
    }

    /// Ends it, after the last layer.
    pub fn finish(self) -> Result<()> {
        for (path, time) in &self.times {
            let (above, name) = split(path);
            let Some(dir) = self.to.resolve_dir(above)? else {
                continue;
            };
            let is_dir = |stat: Stat| stat.kind == Kind::Dir;
            if dir.stat_of(name)?.is_some_and(is_dir) {
                dir.set_mtime(name, *time)?;
            }
        }
        Ok(())
    }

    /// Forgets the times of directories that are gone.
    fn forget_times(&mut self, path: &Path) {
        let from = (Bound::Included(path), Bound::Unbounded);
        let below = self.times.range::<Path, _>(from).map(|(path, _)| path);
        let gone: Vec<PathBuf> = below
            .take_while(|below| below.starts_with(path))
            .cloned()
            .collect();
        for path in gone {
            self.times_memory -= memory_of_time(&path);
            self.times.remove(&path);
        }
    }

    fn remove(&mut self, removal: &Removal) -> Result<()> {
        (self.tell)(0)?;
        // What is cached can be gone.
        self.last = None;
        let (above, name) = split(&removal.dir);
        match &removal.what {
            Gone::Name(name) => {
                if let Some(dir) = self.to.resolve_dir(&removal.dir)? {
                    dir.remove_all(name)?;
                }
                self.forget_times(&removal.dir.join(name));
            }
            Gone::Link => {
                if let Some(above) = self.to.resolve_dir(above)?
                    && above
                        .stat_of(name)?
                        .is_some_and(|there| there.kind == Kind::Link)
                {
                    above.remove_all(name)?;
                }
            }
            Gone::All => {
                // The layer has a directory there. What a link in the layers below it leads to stays.
                let Some(above) = self.to.resolve_dir(above)? else {
                    return Ok(());
                };
                let dir = match above.child(name) {
                    Err(error) if is_no_dir(&error) => return Ok(()),
                    dir => dir?,
                };
                let is_top = dir.stat()?.id == self.to.stat()?.id;
                for name in dir.names()? {
                    // It is of the filesystem, and no layer has it.
                    if !(is_top && name == LOST_AND_FOUND) {
                        dir.remove_all(&name)?;
                        self.forget_times(&removal.dir.join(&name));
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts one path in the place of what is there. `content` is that of a file.
    pub fn put(&mut self, entry: &Entry, content: &mut dyn Read) -> Result<()> {
        self.count(space(entry))?;
        let (above, name) = split(&entry.path);
        let dir = self.dir(above)?;
        let is_dir = entry.what == What::Dir;
        match dir.stat_of(name)? {
            Some(there) if is_dir && there.kind == Kind::Dir => {}
            Some(there) => {
                if there.kind != Kind::File {
                    self.last = None;
                }
                if there.kind == Kind::Dir {
                    self.forget_times(&entry.path);
                }
                dir.remove_all(name)?;
                if is_dir {
                    dir.make_dir(name)?;
                }
            }
            None if is_dir => dir.make_dir(name)?,
            None => {}
        }
        match &entry.what {
            What::Dir => {
                if self.times.insert(entry.path.clone(), entry.mtime).is_none() {
                    self.times_memory += memory_of_time(&entry.path);
                }
                ensure!(
                    self.times_memory <= TIMES_MOST,
                    "its layers have too many directories"
                );
            }
            What::File(size) => {
                let mut file = dir.create(name)?;
                let mut left = *size;
                while left > 0 {
                    let most = usize::try_from(left).unwrap_or(PORTION).min(PORTION);
                    let count = content.read(&mut self.portion[..most])?;
                    ensure!(count > 0, "it ends in the middle");
                    file.write_all(&self.portion[..count])?;
                    left -= count as u64;
                    (self.tell)(0)?;
                }
            }
            What::Link(target) => dir.make_link(name, target)?,
            What::Special(kind, device) => dir.make_special(name, *kind, *device)?,
            What::Name(of) => {
                let (above, of) = split(of);
                let from = self.to.resolve_dir(above)?;
                let from = from.context("what it is another name of is not there")?;
                let is_file = |stat: Stat| stat.kind != Kind::Dir;
                ensure!(
                    from.stat_of(of)?.is_some_and(is_file),
                    "what it is another name of is not there"
                );
                // It has all else already.
                dir.link(name, &from, of)?;
                self.last = Some((above_of(entry), dir));
                return Ok(());
            }
        }
        dir.set_meta(name, &entry.meta, Some(entry.mtime))?;
        self.last = Some((above_of(entry), dir));
        Ok(())
    }

    fn count(&mut self, bytes: u64) -> Result<()> {
        self.written = self.written.saturating_add(bytes);
        ensure!(
            self.written <= self.room,
            "the thin pool has no room: the image needs more than the {} MiB that are left",
            self.room >> 20
        );
        (self.tell)(bytes)
    }

    /// The directory that a path leads to. Those that no layer has told of are made.
    fn dir(&mut self, path: &Path) -> Result<Dir> {
        if let Some((_, dir)) = self.last.take().filter(|(last, _)| last == path) {
            return Ok(dir);
        }
        if let Some(dir) = self.to.resolve_dir(path)? {
            return Ok(dir);
        }
        let mut dir = self.to.again()?;
        let mut above = PathBuf::new();
        for name in path {
            above.push(name);
            dir = match self.to.resolve_dir(&above)? {
                Some(next) => next,
                None if dir.stat_of(name)?.is_none() => {
                    self.count(BLOCK)?;
                    dir.make_dir(name)?;
                    let meta = Meta {
                        uid: 0,
                        gid: 0,
                        mode: 0o755,
                        xattrs: Xattrs::new(),
                    };
                    dir.set_meta(name, &meta, None)?;
                    dir.child(name)?
                }
                None => bail!("/{} is no directory", escaped(&above)),
            };
        }
        Ok(dir)
    }
}

/// What the time of a directory takes of the memory, in bytes.
fn memory_of_time(path: &Path) -> usize {
    size_of::<(PathBuf, Time)>() + path.as_os_str().len()
}

fn above_of(entry: &Entry) -> PathBuf {
    split(&entry.path).0.to_owned()
}

/// The directory above and the name in it, which for the root is itself.
fn split(path: &Path) -> (&Path, &OsStr) {
    match (path.parent(), path.file_name()) {
        (Some(above), Some(name)) => (above, name),
        _ => (Path::new(""), OsStr::new(".")),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;
    use crate::tree::tar::tests::{file, header, link, pax};

    /// Rows such as `d a`, `f a/b text`, `l link target` and `h name of`.
    fn layer(rows: &[&str]) -> Vec<u8> {
        let mut archive = Vec::new();
        for row in rows {
            let mut words = row.split(' ');
            let [kind, path, more] = [0; 3].map(|_| words.next().unwrap_or_default());
            archive.extend(match kind {
                "d" => header(&format!("{path}/"), b'5', 0, |block| block[104] = b'7'),
                "f" => file(path, more.as_bytes()),
                "l" => link(path, b'2', more),
                "h" => link(path, b'1', more),
                "null" => header(path, b'3', 0, |block| {
                    block[329..344].copy_from_slice(b"0000001\x000000003");
                }),
                "zero" => header(path, b'3', 0, |_| ()),
                "block" => header(path, b'4', 0, |_| ()),
                _ => panic!("{row}"),
            });
        }
        archive.resize(archive.len() + 1024, 0);
        archive
    }

    /// What has become of a root: its names with contents.
    fn listed(dir: &Path, below: &str, found: &mut Vec<String>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(Result::unwrap).collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = format!("{below}{}", entry.file_name().display());
            let (path, kind) = (entry.path(), entry.file_type().unwrap());
            if kind.is_dir() {
                found.push(format!("{name}/"));
                listed(&path, &format!("{name}/"), found);
            } else if kind.is_symlink() {
                found.push(format!(
                    "{name}->{}",
                    fs::read_link(path).unwrap().display()
                ));
            } else if kind.is_file() {
                found.push(format!("{name}={}", fs::read_to_string(path).unwrap()));
            } else {
                found.push(format!("{name}!"));
            }
        }
    }

    pub fn unpack(to: &Path, layers: &[Vec<u8>], room: u64) -> Result<()> {
        let to = Dir::root(to)?;
        let mut tell = |_| Ok(());
        let mut surveys = Vec::new();
        for layer in layers {
            surveys.push(survey(&mut &layer[..], &mut |_| (), &mut tell)?);
        }
        let mut unpacking = Unpacking::new(&to, room, &mut tell);
        for (layer, survey) in layers.iter().zip(&surveys) {
            unpacking.add(&survey.removals, &mut &layer[..])?;
        }
        unpacking.finish()
    }

    /// How often reading an archive could have ended.
    fn told(
        mut archive: &[u8],
        read: &mut dyn FnMut(&mut dyn Read, &mut Tell) -> Result<()>,
    ) -> usize {
        let mut told = 0;
        let mut tell = |_| {
            told += 1;
            Ok(())
        };
        read(&mut archive, &mut tell).unwrap();
        told
    }

    /// The root that layers make, or why they are refused.
    fn made(layers: &[&[&str]]) -> Result<String> {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<_> = layers.iter().map(|rows| layer(rows)).collect();
        unpack(dir.path(), &layers, u64::MAX)?;
        let mut found = Vec::new();
        listed(dir.path(), "", &mut found);
        Ok(found.join(" "))
    }

    #[test]
    fn layers_are_put_one_on_another() {
        for (layers, expected) in [
            (&[&["d a", "f a/b 1"][..]][..], "a/ a/b=1"),
            (&[&["f a 1", "f b 1"], &["f a 2"]], "a=2 b=1"),
            // What is gone.
            (
                &[&["d a", "f a/b 1", "f a/c 1"], &["f a/.wh.b"]],
                "a/ a/c=1",
            ),
            (&[&["d a", "f a/b 1"], &["f .wh.a"]], ""),
            (
                &[&["d a", "f a/b 1"], &["f .wh.none", "f none/.wh.b"]],
                "a/ a/b=1",
            ),
            (&[&["l a none"], &["f .wh.a"]], ""),
            (&[&["f a 1"], &["f .wh.a"], &["f a 3"]], "a=3"),
            // It says nothing of its own layer, in any order.
            (&[&["f a 1"], &["f .wh.a", "f a 2"]], "a=2"),
            (&[&["f a 1"], &["f a 2", "f .wh.a"]], "a=2"),
            (
                &[&["d a", "f a/b 1"], &["d a", "f a/c 2", "f .wh.a"]],
                "a/ a/c=2",
            ),
            // Opaque directories.
            (
                &[
                    &["d a", "d a/d", "f a/d/b 1"],
                    &["d a", "f a/.wh..wh..opq", "f a/c 2"],
                ],
                "a/ a/c=2",
            ),
            (
                &[&["d a", "f a/b 1"], &["f a/c 2", "f a/.wh..wh..opq"]],
                "a/ a/c=2",
            ),
            (&[&["f a 1"], &["f .wh..wh..opq", "f b 2"]], "b=2"),
            (
                &[&["d lost+found", "f a 1"], &["f .wh..wh..opq"]],
                "lost+found/",
            ),
            (&[&["f a 1"], &["f a/.wh..wh..opq"]], "a=1"),
            (
                &[&["f a 1"], &["h .wh.a .wh..wh.aufs", "f .wh..wh.aufs"]],
                "",
            ),
            // One kind in the place of another.
            (&[&["d a", "f a/b 1"], &["f a 2"]], "a=2"),
            (&[&["d a", "f a/b 1"], &["l a c"]], "a->c"),
            (&[&["f a 1"], &["d a", "f a/b 2"]], "a/ a/b=2"),
            (&[&["l a b", "d b"], &["d a", "f a/c 2"]], "a/ a/c=2 b/"),
            (&[&["d a", "f a/b 1"], &["f a 2"], &["d a"]], "a/"),
            // Links in a path lead to where they lead in the root.
            (
                &[&["d usr", "d usr/lib", "l lib usr/lib"], &["f lib/x 2"]],
                "lib->usr/lib usr/ usr/lib/ usr/lib/x=2",
            ),
            (
                &[
                    &["d usr", "l lib /usr", "f usr/x 1", "f usr/y 1"],
                    &["f lib/.wh.x"],
                ],
                "lib->/usr usr/ usr/y=1",
            ),
            (
                &[
                    &["d c", "d c/b", "f c/b/x 1", "l a c"],
                    &["f a/b/.wh..wh..opq"],
                ],
                "a->c c/ c/b/",
            ),
            // Directories that nobody has told of.
            (&[&["f a/b/c 1"]], "a/ a/b/ a/b/c=1"),
            // Names of one file.
            (&[&["f a 1", "h b a"]], "a=1 b=1"),
            (&[&["f a 1", "h b a"], &["f a 2"]], "a=2 b=1"),
            (&[&["f a 1", "h b a"], &["f .wh.a"]], "b=1"),
            (&[&["f a 1"], &["h b a"]], "a=1 b=1"),
            (&[&["f a 1"], &["f .wh.a", "h b a"]], "not there"),
            (&[&["null a"]], "a!"),
        ] {
            let found = made(layers).unwrap_or_else(|error| format!("{error:#}"));
            if expected == "not there" {
                assert!(found.contains(expected), "{layers:?}: {found}");
            } else {
                assert_eq!(found, expected, "{layers:?}");
            }
        }
    }

    #[test]
    fn a_directory_in_the_place_of_a_link_says_nothing_of_what_that_leads_to() {
        for (layers, expected) in [
            (
                &[&["d b", "f b/x 1", "l a b"][..], &["f a/.wh..wh..opq"][..]][..],
                "a->b b/ b/x=1",
            ),
            (
                &[
                    &["d usr", "f usr/x 1", "l a usr"],
                    &["d a", "f a/.wh..wh..opq"],
                ],
                "a/ usr/ usr/x=1",
            ),
            (
                &[
                    &["d b", "f b/x 1", "f b/y 1", "l a b"],
                    &["d a", "f a/.wh.x", "f a/y 2"],
                ],
                "a/ a/y=2 b/ b/x=1 b/y=1",
            ),
            (
                &[
                    &["d c", "d c/b", "f c/b/x 1", "l a c"],
                    &["d a", "d a/b", "f a/b/.wh.x"],
                ],
                "a/ a/b/ c/ c/b/ c/b/x=1",
            ),
            // In any order.
            (
                &[&["d b", "f b/x 1", "l a b"], &["d a", "d c", "f a/.wh.x"]],
                "a/ b/ b/x=1 c/",
            ),
            (
                &[&["d b", "f b/x 1", "l a b"], &["f a/.wh.x", "d a"]],
                "a/ b/ b/x=1",
            ),
            (
                &[
                    &["d b", "f b/x 1", "f b/y 1", "l a b"],
                    &["d other", "f a/.wh.x"],
                ],
                "a->b b/ b/y=1 other/",
            ),
        ] {
            let found = made(layers).unwrap_or_else(|error| format!("{error:#}"));
            assert_eq!(found, expected, "{layers:?}");
        }
    }

    #[test]
    fn layers_that_are_made_to_harm_are_refused() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let out = outside.path().display();
        let to_out = format!("l a {out}");
        let up = format!("l a ../../../../../../../../..{out}");
        for (layers, why) in [
            (&[&["f a 1"][..], &["f .wh..."]][..], "no name"),
            (&[&["f .wh.."]], "no name"),
            (&[&["f .wh."]], "no name"),
            (&[&["d a", "f a/.wh..."]], "no name"),
            (&[&["f ../.wh.etc"]], "leads out of the root"),
            (&[&["f a/../../.wh.etc"]], "leads out of the root"),
            (&[&["zero .wh.a"]], "0:0"),
            (&[&["zero a"]], "0:0"),
            (&[&["block .wh.a"]], "no empty file"),
            (&[&["block .wh..wh..opq"]], "no empty file"),
            (&[&["f .wh.a text"]], "no empty file"),
            (&[&["l .wh.a b"]], "no empty file"),
            (&[&["d .wh.a", "f .wh.a/b"]], "no empty file"),
            (&[&["f .wh.a/b"]], "below a name"),
            (&[&["h a /../etc/passwd"]], "leads out of the root"),
            (&[&["h a etc/passwd"]], "not there"),
            (&[&["d b", "h a b"]], "not there"),
            (&[&["h a a"]], "not there"),
            (&[&["f a 1"], &["f a/b 2"]], "no directory"),
            (&[&["l a none"], &["f a/b 2"]], "no directory"),
            (&[&["l a a"], &["f a/b 2"]], "no directory"),
            // Outside there is nothing of this name in the root.
            (&[&[to_out.as_str()], &["f a/secret 2"]], "no directory"),
            (&[&[up.as_str()], &["f a/secret 2"]], "no directory"),
            (&[&["l a /proc/self/root"], &["f a/b 2"]], "no directory"),
        ] {
            let error = format!("{:#}", made(layers).unwrap_err());
            assert!(error.contains(why), "{layers:?}: {error}");
        }
        // What is gone outside is not there in the root.
        for row in ["f a/.wh.secret", "f a/.wh..wh..opq", "h b a/secret"] {
            drop(made(&[&[&to_out], &[row]]));
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        let whole = layer(&["f a 1"]);
        let dir = tempfile::tempdir().unwrap();
        symlink(&secret, dir.path().join("a")).unwrap();
        unpack(dir.path(), std::slice::from_ref(&whole), u64::MAX).unwrap();
        assert_eq!(fs::read_to_string(&secret).unwrap(), "secret");
        let error = unpack(dir.path(), &[whole[..600].to_vec()], u64::MAX).unwrap_err();
        assert!(error.to_string().contains("in the middle"), "{error:#}");
    }

    #[test]
    fn no_more_is_written_than_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [layer(&["d a", "f a/b 1", "f a/c 1"]), layer(&["f a/b 2"])];
        unpack(dir.path(), &layers, 4 * BLOCK).unwrap();
        let error = format!("{:#}", unpack(dir.path(), &layers, 3 * BLOCK).unwrap_err());
        assert!(error.contains("the thin pool has no room"), "{error}");
        // Each of these takes something, however little is in it.
        let target = "x".repeat(99);
        for (row, most) in [
            (&*format!("l a {target}"), BLOCK),
            ("l a b", INODE),
            ("f a", BLOCK),
            ("f a/a/a", 3 * BLOCK),
            ("null a", INODE),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let layers = [layer(&[row])];
            assert!(unpack(dir.path(), &layers, most - 1).is_err(), "{row}");
            let dir = tempfile::tempdir().unwrap();
            unpack(dir.path(), &layers, most).unwrap();
        }
        let entry = |xattr: usize| Entry {
            path: "a".into(),
            what: What::File(1),
            meta: Meta {
                uid: 0,
                gid: 0,
                mode: 0,
                xattrs: [("user.x".into(), vec![0; xattr])].into(),
            },
            mtime: (0, 0),
        };
        let spaces = [1, 1000, 60000].map(|xattr| space(&entry(xattr)) / BLOCK);
        assert_eq!(spaces, [1, 2, 16]);
        let bomb = header("a", b'0', 4 << 30, |_| ());
        let mut seen = Vec::new();
        let mut tell = |bytes: u64| {
            ensure!(bytes < 1 << 30, "too much");
            Ok(())
        };
        let told = survey(
            &mut &bomb[..],
            &mut |name| seen.push(name.to_owned()),
            &mut tell,
        );
        assert_eq!(told.unwrap_err().to_string(), "too much");
    }

    #[test]
    fn what_is_taken_away_is_limited() {
        let name = format!("{}/.wh.x", "a".repeat(4000));
        let whiteout = [pax("path", name.as_bytes()), file("a", b"")].concat();
        let whiteouts = whiteout.repeat(REMOVALS_MOST / 4000);
        let error = survey(&mut &whiteouts[..], &mut |_| (), &mut |_| Ok(())).unwrap_err();
        assert_eq!(error.to_string(), "it takes away too many names");
    }

    #[test]
    fn the_times_of_directories_are_limited() {
        let dir = tempfile::tempdir().unwrap();
        let to = Dir::root(dir.path()).unwrap();
        let mut tell = |_| Ok(());
        let mut unpacking = Unpacking::new(&to, u64::MAX, &mut tell);
        let mut add = |name: &str| {
            let layer = header(&format!("{name}/"), b'5', 0, |_| ());
            unpacking.add(&[], &mut &layer[..])?;
            unpacking.times_memory += TIMES_MOST / 2;
            Ok::<_, anyhow::Error>(())
        };
        add("a").unwrap();
        // Told of once more, it takes no more.
        add("a").unwrap();
        let error = format!("{:#}", add("b").unwrap_err());
        assert!(error.contains("too many directories"), "{error}");
    }

    #[test]
    fn a_directory_that_is_gone_gives_no_other_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str, time: u8| {
            header(&format!("{path}/"), b'5', 0, |block| {
                block[146] = b'0' + time;
            })
        };
        let first = [
            at("run", 1),
            at("run/lock", 1),
            at("var", 2),
            at("var/run", 2),
            at("var/run/lock", 2),
        ];
        let layers = [first.concat(), layer(&["l var/run /run"])];
        unpack(dir.path(), &layers, u64::MAX).unwrap();
        let time = |path: &str| fs::metadata(dir.path().join(path)).unwrap().mtime();
        assert_ne!(time("run"), time("var"));
        assert_eq!(time("run/lock"), time("run"));
    }

    #[test]
    fn it_can_end_in_the_middle_of_what_is_passed_over() {
        let zeros = vec![0; 8 * PORTION];
        let kept = layer(&["f .wh.a", "f .wh.b", "f .wh.c"]);
        let internal = file(".wh..wh.x", &zeros);
        let file = file("a", &zeros);
        for (archive, least) in [(&kept, 3), (&internal, 8), (&file, 8)] {
            let surveyed = told(archive, &mut |input, tell| {
                survey(input, &mut |_| (), tell).map(drop)
            });
            let added = told(archive, &mut |input, tell| {
                let dir = tempfile::tempdir().unwrap();
                let to = Dir::root(dir.path())?;
                Unpacking::new(&to, u64::MAX, tell).add(&[], input)
            });
            assert!(
                surveyed >= least && added >= least,
                "{surveyed}, {added} of {least}"
            );
        }
    }

    #[test]
    fn files_and_directories_get_what_the_archive_says() {
        let dir = tempfile::tempdir().unwrap();
        let layers = [
            layer(&["d a", "f a/b 1"]),
            [header("c", b'0', 0, |block| {
                block[100..107].copy_from_slice(b"0004751");
            })]
            .concat(),
            layer(&["f a/d 2"]),
        ];
        unpack(dir.path(), &layers, u64::MAX).unwrap();
        for (name, mode) in [("a", 0o744), ("a/b", 0o644), ("c", 0o4751), ("a/d", 0o644)] {
            let found = fs::symlink_metadata(dir.path().join(name)).unwrap();
            let time = (found.mtime(), found.mtime_nsec());
            assert_eq!((found.mode() & 0o7777, time), (mode, (0o777, 0)), "{name}");
        }
        let found = survey(&mut &layers[0][..], &mut |_| (), &mut |_| Ok(())).unwrap();
        assert_eq!((found.bytes, found.files), (2 * BLOCK, 2));
    }
}
