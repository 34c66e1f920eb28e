//! Directories of a tree, held open.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::{Context, Result};
use rustix::fs::{self, AtFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;

use super::node::{Id, Node, Stat};
use crate::sys::rooted::open;

/// For one name in a directory: nothing else is looked at, and no other mount.
const ONE_NAME: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// For a path with links: the root is `/` for them.
const IN_ROOT: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::CLOEXEC);
const HANDLE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// A directory of a tree, or its root.
#[derive(Debug)]
pub struct Dir {
    pub(super) fd: OwnedFd,
}

impl Dir {
    /// The root of a tree. It is ours, so links in its path are followed.
    pub fn root(path: &Path) -> Result<Self> {
        let fd = fs::open(path, DIRECTORY, Mode::empty())
            .map_err(io::Error::from)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { fd })
    }

    /// The same directory once more.
    pub fn again(&self) -> io::Result<Self> {
        let fd = self.fd.try_clone()?;
        Ok(Self { fd })
    }

    /// The directory of this name in it. Refuses links, and what is mounted there.
    pub fn child(&self, name: &OsStr) -> io::Result<Self> {
        let fd = open(&self.fd, name, DIRECTORY, Mode::empty(), ONE_NAME)?;
        Ok(Self { fd })
    }

    /// The directory at `path` below it, without following links; `None` if there is none.
    pub fn descend(&self, path: &Path) -> io::Result<Option<Self>> {
        let mut dir = self.again()?;
        for component in path.components() {
            let Component::Normal(name) = component else {
                let message = format!("{} leads out of the tree", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
            };
            dir = match dir.child(name) {
                Ok(child) => child,
                Err(error) if is_no_dir(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(Some(dir))
    }

    /// The directory that `path` leads to, where this is the root; `None` if there is none.
    pub fn resolve_dir(&self, path: &Path) -> io::Result<Option<Self>> {
        match open(&self.fd, in_root(path), DIRECTORY, Mode::empty(), IN_ROOT) {
            Ok(fd) => Ok(Some(Self { fd })),
            Err(error) if leads_to_nothing(error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What `path` leads to, where this is the root; `None` if there is nothing.
    pub fn resolve(&self, path: &Path) -> io::Result<Option<Node>> {
        match open(&self.fd, in_root(path), HANDLE, Mode::empty(), IN_ROOT) {
            Ok(fd) => Node::new(fd).map(Some),
            Err(error) if leads_to_nothing(error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The directory above, if it is still that one.
    pub(super) fn above(&self, wanted: Id) -> io::Result<Self> {
        let fd = fs::openat(&self.fd, c"..", DIRECTORY, Mode::empty())?;
        let dir = Self { fd };
        if dir.stat()?.id != wanted {
            return Err(io::Error::other("it was moved while it was read"));
        }
        Ok(dir)
    }

    pub fn stat(&self) -> io::Result<Stat> {
        let flags = AtFlags::EMPTY_PATH;
        Ok(Stat::new(&fs::statx(
            &self.fd,
            c"",
            flags,
            StatxFlags::BASIC_STATS,
        )?))
    }

    /// What the name in it is; `None` if it is gone.
    pub fn stat_of(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        // To look at what mounts itself must not mount it.
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match fs::statx(&self.fd, name, flags, StatxFlags::BASIC_STATS) {
            Ok(stat) => Ok(Some(Stat::new(&stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Holds what the name in it is: a link itself, and no device is opened.
    pub fn node(&self, name: &OsStr) -> io::Result<Node> {
        let flags = HANDLE | OFlags::NOFOLLOW;
        Node::new(open(&self.fd, name, flags, Mode::empty(), ONE_NAME)?)
    }

    /// The names in it, in the order of their bytes.
    pub fn names(&self) -> io::Result<Vec<OsString>> {
        let mut names = Vec::new();
        self.each_name(&mut |name| names.push(name.to_owned()))?;
        sort_names(&mut names);
        Ok(names)
    }

    /// The names in it, in any order.
    pub(super) fn each_name(&self, each: &mut dyn FnMut(&OsStr)) -> io::Result<()> {
        for entry in fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(OsStr::from_bytes(name));
            }
        }
        Ok(())
    }
}

/// In the order of their bytes.
pub(super) fn sort_names(names: &mut [OsString]) {
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
}

/// Whether a path leads to nothing: that is no error of who asks, also where no system could follow it.
fn leads_to_nothing(error: Errno) -> bool {
    matches!(
        error,
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG
    )
}

/// Whether a name is among sorted ones.
pub(super) fn has_name(names: &[OsString], name: &OsStr) -> bool {
    let compare = |other: &OsString| other.as_bytes().cmp(name.as_bytes());
    names.binary_search_by(compare).is_ok()
}

/// Whether an error says that there is no such directory here: it is gone, or something else now.
pub(super) fn is_no_dir(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV)
    )
}

/// An empty path is no path for the kernel.
fn in_root(path: &Path) -> &Path {
    if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    }
}
