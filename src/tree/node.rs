//! What one path of a tree is, without opening it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::Hash;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    self, AtFlags, FileType, IFlags, Mode, OFlags, Statx, StatxAttributes, StatxFlags,
};
use rustix::io::Errno;

use super::content;

/// Attributes that decide who may do what with a file.
const DECIDING: [&[u8]; 4] = [
    b"security.capability",
    b"security.selinux",
    b"system.posix_acl_access",
    b"system.posix_acl_default",
];

/// What the kernel counts the space of files in, in bytes (`stat(2)`).
const BLOCK: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    File,
    Dir,
    Link,
    Fifo,
    Socket,
    Char,
    Block,
}

impl Kind {
    fn of(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Link,
            FileType::Fifo => Self::Fifo,
            FileType::Socket => Self::Socket,
            FileType::CharacterDevice => Self::Char,
            FileType::BlockDevice => Self::Block,
            _ => Self::File,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "directory",
            Self::Link => "link",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
            Self::Char => "character device",
            Self::Block => "block device",
        }
    }

    pub fn is_device(self) -> bool {
        matches!(self, Self::Char | Self::Block)
    }
}

/// The flags of chattr(1) that keep a file as it is.
const LOCKS: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Seconds and nanoseconds.
pub type Time = (i64, u32);

/// Tells files of one host apart, whatever their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Id {
    pub dev: u64,
    pub ino: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    pub kind: Kind,
    /// Permission bits, with set-uid and the like.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// The bytes that it takes of its filesystem: holes take none.
    pub used: u64,
    pub mtime: Time,
    pub ctime: Time,
    pub id: Id,
    /// Of a device: which one.
    pub device: u64,
    /// How many names it has.
    pub links: u64,
    /// See [`Node::locks`]; `None` where the filesystem does not tell them with the rest.
    pub(super) locks: Option<IFlags>,
}

impl Stat {
    pub(super) fn new(stat: &Statx) -> Self {
        let kind = Kind::of(stat.stx_mode.into());
        Self {
            kind,
            mode: u32::from(stat.stx_mode) & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            size: stat.stx_size,
            used: stat.stx_blocks.saturating_mul(BLOCK),
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            id: Id {
                dev: fs::makedev(stat.stx_dev_major, stat.stx_dev_minor),
                ino: stat.stx_ino,
            },
            device: if kind.is_device() {
                fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor)
            } else {
                0
            },
            links: stat.stx_nlink.into(),
            locks: if matches!(kind, Kind::File | Kind::Dir) {
                told_locks(stat)
            } else {
                Some(IFlags::empty())
            },
        }
    }

    /// Whether this is what overlayfs has where a name was deleted: a device that there is not, which a container's
    /// files cannot do without.
    pub fn is_whiteout(&self) -> bool {
        self.kind == Kind::Char && self.device == 0
    }

    /// Whether it is told that another one has the same owner, mode, time, and flags of chattr(1).
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let meta = |stat: &Self| (stat.kind, stat.mode, stat.uid, stat.gid, stat.mtime);
        meta(self) == meta(other) && self.locks.is_some() && self.locks == other.locks
    }

    /// What is another one after each change of it. What a file takes of the disk can change by itself.
    pub fn version(&self) -> impl Hash + use<> {
        (
            (self.kind.name(), self.mode, self.uid, self.gid),
            (self.size, self.mtime, self.ctime, self.id.ino),
        )
    }

    /// Whether this is the same file in a snapshot, and neither was touched since: what changes a file
    /// sets its ctime.
    pub fn is_untouched(&self, other: &Self) -> bool {
        self.kind == other.kind && self.id.ino == other.id.ino && self.ctime == other.ctime
    }
}

/// The number of a device; nothing if Linux cannot have it. mknod(2) takes 32 bits, and what is cut off can leave that of
/// a whiteout.
pub(super) fn device(major: u32, minor: u32) -> Option<u64> {
    let number = fs::makedev(major, minor);
    u32::try_from(number).is_ok().then_some(number)
}

/// Extended attributes with their values: also ACLs, capabilities and labels.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// Something in a tree that is held by a descriptor which can neither read nor write it (`O_PATH`).
pub struct Node {
    pub(super) fd: OwnedFd,
    pub stat: Stat,
}

impl Node {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let found = fs::statx(&fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        let stat = Stat::new(&found);
        Ok(Self { fd, stat })
    }

    /// A path that leads to exactly this, also to a link itself.
    pub(super) fn path(&self) -> String {
        format!("/proc/self/fd/{}", self.fd.as_raw_fd())
    }

    /// Where a link leads.
    pub fn target(&self) -> io::Result<OsString> {
        let target = fs::readlinkat(&self.fd, c"", Vec::new())?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    pub fn xattrs(&self) -> io::Result<Xattrs> {
        let path = self.path();
        let mut xattrs = Xattrs::new();
        let names = match sized(|buffer| fs::listxattr(&path, buffer)) {
            Ok(names) => names,
            // XFS takes more than listxattr(2) can tell. Those that decide who may do what are asked for by name.
            Err(Errno::TOOBIG) => DECIDING.join(&0),
            Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => return Ok(xattrs),
            Err(error) => return Err(error.into()),
        };
        // How XFS keeps its ACLs, which it names as ACLs too.
        let is_one = |name: &&[u8]| !name.is_empty() && !name.starts_with(b"trusted.SGI_ACL_");
        for name in names.split(|byte| *byte == 0).filter(is_one) {
            match sized(|buffer| fs::getxattr(&path, name, buffer)) {
                Ok(value) => {
                    xattrs.insert(OsStr::from_bytes(name).to_owned(), value);
                }
                // Removed meanwhile, or the filesystem names what it does not give.
                Err(Errno::NODATA | Errno::NOTSUP) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(xattrs)
    }

    /// Opens a file or directory to read it. Refuses everything else: to open a device can do something.
    pub(super) fn open(&self) -> io::Result<File> {
        if !matches!(self.stat.kind, Kind::File | Kind::Dir) {
            let message = format!("a {} is not opened", self.stat.kind.name());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlags::RDONLY | OFlags::NOCTTY | OFlags::CLOEXEC;
        let open = |flags| fs::open(self.path(), flags, Mode::empty());
        match open(flags | OFlags::NONBLOCK) {
            // A program has a lease on it, which it has to give back within a minute (fcntl(2)).
            Err(Errno::AGAIN) if self.stat.kind == Kind::File => Ok(open(flags)?.into()),
            opened => Ok(opened?.into()),
        }
    }

    /// Opens a file to write into it.
    pub(super) fn open_to_write(&self) -> io::Result<File> {
        if self.stat.kind != Kind::File {
            let message = format!("a {} is not written to", self.stat.kind.name());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(fs::open(self.path(), flags, Mode::empty())?.into())
    }

    /// The content of a file of at most `limit` bytes.
    pub fn read(&self, limit: u64) -> io::Result<Vec<u8>> {
        content::read(&self.open()?, limit)
    }

    /// Whether two files hold the same bytes.
    pub fn has_same_content(&self, other: &Self) -> io::Result<bool> {
        if self.stat.size != other.stat.size {
            return Ok(false);
        }
        content::same(&self.open()?, &other.open()?, self.stat.size)
    }

    /// Copies the content of a file, with its holes, into an empty one.
    pub fn copy_to(&self, to: &File) -> io::Result<()> {
        content::copy(&self.open()?, to, self.stat.size)
    }

    /// The flags of chattr(1) that keep it as it is; none where the filesystem has no flags.
    pub fn locks(&self) -> io::Result<IFlags> {
        if let Some(locks) = self.stat.locks {
            return Ok(locks);
        }
        // A descriptor that can read has to be asked.
        let flags = fs::ioctl_getflags(self.open()?).unwrap_or(IFlags::empty());
        Ok(flags & LOCKS)
    }

    /// Sets those flags, and no others. Where there are none, nothing is to be done.
    pub fn set_locks(&self, locks: IFlags) -> io::Result<()> {
        let file = self.open()?;
        let Ok(flags) = fs::ioctl_getflags(&file) else {
            return Ok(());
        };
        if flags & LOCKS == locks {
            return Ok(());
        }
        Ok(fs::ioctl_setflags(&file, (flags - LOCKS) | locks)?)
    }
}

/// See [`Node::locks`]; `None` where the filesystem does not tell all of them.
fn told_locks(found: &Statx) -> Option<IFlags> {
    const ALL: [(StatxAttributes, IFlags); 2] = [
        (StatxAttributes::IMMUTABLE, IFlags::IMMUTABLE),
        (StatxAttributes::APPEND, IFlags::APPEND),
    ];
    let is_told = |(told, _): &(_, _)| found.stx_attributes_mask.contains(*told);
    let is_set = |(told, _): &&(_, _)| found.stx_attributes.contains(*told);
    let locks = || ALL.iter().filter(is_set).map(|(_, flag)| *flag).collect();
    ALL.iter().all(is_told).then(locks)
}

/// What a call writes into a buffer, which is made larger where that is needed.
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    // The kernel gives no more than 64 KiB (linux/limits.h).
    const MOST: usize = 64 << 10;
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(size) => {
                buffer.truncate(size);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < MOST => buffer.resize(MOST, 0),
            Err(error) => return Err(error),
        }
    }
}
