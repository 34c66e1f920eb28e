//! Changing a tree: one name in an open directory at a time.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps,
    UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::dir::{Dir, is_no_dir};
use super::name::escaped;
use super::node::{Kind, Node, Time, Xattrs};
use crate::sys::rooted::open;

/// What a file has beside its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    pub uid: u32,
    pub gid: u32,
    pub mode: u32,
    pub xattrs: Xattrs,
}

impl Dir {
    /// Makes an empty file that only root can read. Refuses a name that is there.
    pub fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let mode = Mode::RUSR | Mode::WUSR;
        self.unlocked(name, || {
            Ok(open(&self.fd, name, flags, mode, resolve)?.into())
        })
    }

    pub fn make_dir(&self, name: &OsStr) -> io::Result<()> {
        self.unlocked(name, || Ok(fs::mkdirat(&self.fd, name, Mode::RWXU)?))
    }

    /// The directory at `path` below it; `None` where something else is in the way. Those that are not there are made,
    /// and only root can enter them.
    pub fn make_dirs(&self, path: &Path) -> io::Result<Option<Self>> {
        let mut dir = self.again()?;
        for name in path {
            if dir.stat_of(name)?.is_none() {
                dir.make_dir(name)?;
            }
            dir = match dir.child(name) {
                Err(error) if is_no_dir(&error) => return Ok(None),
                child => child?,
            };
        }
        Ok(Some(dir))
    }

    pub fn make_link(&self, name: &OsStr, target: &OsStr) -> io::Result<()> {
        self.unlocked(name, || Ok(fs::symlinkat(target, &self.fd, name)?))
    }

    /// As [`super::Stat::is_whiteout`].
    pub fn make_whiteout(&self, name: &OsStr) -> io::Result<()> {
        let (kind, mode) = (FileType::CharacterDevice, Mode::empty());
        self.unlocked(name, || Ok(fs::mknodat(&self.fd, name, kind, mode, 0)?))
    }

    /// Makes a device, pipe or socket that only root can use.
    pub fn make_special(&self, name: &OsStr, kind: Kind, device: u64) -> io::Result<()> {
        let kind = match kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
            Kind::Socket => FileType::Socket,
            _ => FileType::Fifo,
        };
        let mode = Mode::RUSR | Mode::WUSR;
        self.unlocked(name, || {
            Ok(fs::mknodat(&self.fd, name, kind, mode, device)?)
        })
    }

    /// Gives the file `of` in `dir` this name here as well.
    pub fn link(&self, name: &OsStr, dir: &Self, of: &OsStr) -> io::Result<()> {
        let flags = AtFlags::empty();
        self.unlocked(name, || Ok(fs::linkat(&dir.fd, of, &self.fd, name, flags)?))
    }

    /// Puts one name in the place of another, which is no directory or an empty one.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        self.unlocked(to, || Ok(fs::renameat(&self.fd, from, &self.fd, to)?))
    }

    /// Has what is at a name here and what is at one in `other` change places, in one moment. One of them need not
    /// be there. Both keep their flags of chattr(1). The same once more undoes it.
    pub fn exchange(&self, name: &OsStr, other: &Self, of: &OsStr) -> io::Result<()> {
        let held = [self.held(name)?, other.held(of)?];
        let exchange = || self.exchange_unlocked(name, other, of);
        let exchange = || lifted(held[1].as_ref(), exchange);
        lifted(held[0].as_ref(), exchange)
    }

    /// What has this name, if anything has.
    fn held(&self, name: &OsStr) -> io::Result<Option<Node>> {
        match self.node(name) {
            Err(error) if is_no_dir(&error) => Ok(None),
            node => node.map(Some),
        }
    }

    fn exchange_unlocked(&self, name: &OsStr, other: &Self, of: &OsStr) -> io::Result<()> {
        let here = (&self.fd, name, self.stat_of(name)?.is_some());
        let there = (&other.fd, of, other.stat_of(of)?.is_some());
        let (from, to) = if there.2 {
            (there, here)
        } else {
            (here, there)
        };
        if !from.2 {
            return Ok(());
        }
        let flags = if to.2 {
            RenameFlags::EXCHANGE
        } else {
            RenameFlags::NOREPLACE
        };
        let exchange = || fs::renameat_with(from.0, from.1, to.0, to.1, flags).map_err(Into::into);
        self.unlocked(name, || other.unlocked(of, exchange))
    }

    /// Removes a name, if it is there. Of directories only empty ones are removed; returns whether it is
    /// gone.
    pub fn remove(&self, name: &OsStr) -> io::Result<bool> {
        let Some(stat) = self.stat_of(name)? else {
            return Ok(true);
        };
        let flags = if stat.kind == Kind::Dir {
            AtFlags::REMOVEDIR
        } else {
            AtFlags::empty()
        };
        match self.unlocked(name, || Ok(fs::unlinkat(&self.fd, name, flags)?)) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes what has this name, with all that is in it. Links in it are removed and not followed.
    pub fn remove_all(&self, name: &OsStr) -> io::Result<()> {
        let mut dir = self.again()?;
        let mut above = Vec::new();
        let mut names = vec![vec![name.to_owned()]];
        while let Some(level) = names.last_mut() {
            let Some(name) = level.pop() else {
                names.pop();
                if let Some(id) = above.pop() {
                    dir = dir.above(id)?;
                }
                continue;
            };
            if dir.remove(&name)? {
                continue;
            }
            let child = dir.child(&name)?;
            // When it is empty, it goes too.
            level.push(name);
            names.push(child.names()?);
            above.push(dir.stat()?.id);
            dir = child;
        }
        Ok(())
    }

    /// Makes a file, link or directory have these. The time is that of its content.
    pub fn set_meta(&self, name: &OsStr, meta: &Meta, mtime: Option<Time>) -> io::Result<()> {
        self.unlocked(name, || {
            let node = self.node(name)?;
            node.set_owner(meta)?;
            node.set_xattrs(&meta.xattrs)?;
            // An ACL brings mode bits with it, a new owner takes some away.
            node.set_mode(meta.mode)
        })?;
        match mtime {
            Some(mtime) => self.set_mtime(name, mtime),
            None => Ok(()),
        }
    }

    pub fn set_mtime(&self, name: &OsStr, (seconds, nanoseconds): Time) -> io::Result<()> {
        let time = |tv_nsec| Timespec {
            tv_sec: seconds,
            tv_nsec,
        };
        let times = Timestamps {
            last_access: time(UTIME_OMIT),
            last_modification: time(nanoseconds.into()),
        };
        let set =
            || fs::utimensat(&self.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(Into::into);
        self.unlocked(name, set)
    }

    /// Does something to a name. If chattr(1) has made that or the directory immutable, that is lifted; the
    /// directory gets it back, what has the name does not.
    pub(super) fn unlocked<T>(
        &self,
        name: &OsStr,
        act: impl Fn() -> io::Result<T>,
    ) -> io::Result<T> {
        match act() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let above = self.node(OsStr::new("."))?;
                let locks = above.locks()?;
                if !locks.is_empty() {
                    above.set_locks(fs::IFlags::empty())?;
                }
                if let Some(node) = self.held(name)?
                    && !node.locks()?.is_empty()
                {
                    node.set_locks(fs::IFlags::empty())?;
                }
                let done = act();
                if !locks.is_empty() {
                    above.set_locks(locks)?;
                }
                done
            }
            done => done,
        }
    }

    /// Has what `make` makes under another name take the place of what has this one, when it is complete. Of a
    /// directory there, all that is in it goes before.
    pub fn replace(
        &self,
        name: &OsStr,
        make: &mut dyn FnMut(&OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        let temporary = self.free_name()?;
        let done = make(&temporary).and_then(|()| {
            if self.stat_of(name)?.map(|stat| stat.kind) == Some(Kind::Dir) {
                self.remove_all(name)?;
            }
            self.rename(&temporary, name)
        });
        // What could not be completed. Where both are one file, rename(2) does nothing.
        let removed = self.remove(&temporary);
        done.and(removed.map(drop))
    }

    /// A name that nothing here has, for what takes another's place when it is complete.
    pub fn free_name(&self) -> io::Result<OsString> {
        for number in 0..u32::MAX {
            let name = OsString::from(format!(".imgbased-{number}.tmp"));
            if self.stat_of(&name)?.is_none() {
                return Ok(name);
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

/// See [`Node::lifted`].
fn lifted<T>(node: Option<&Node>, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match node {
        Some(node) => node.lifted(act),
        None => act(),
    }
}

impl Node {
    /// Does something to a file or directory that chattr(1) may have made immutable. It stays that.
    pub fn lifted<T, E: From<io::Error>>(
        &self,
        act: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let locks = self.locks()?;
        if locks.is_empty() {
            return act();
        }
        self.set_locks(fs::IFlags::empty())?;
        let done = act();
        self.set_locks(locks)?;
        done
    }

    pub fn meta(&self) -> io::Result<Meta> {
        Ok(Meta {
            uid: self.stat.uid,
            gid: self.stat.gid,
            mode: self.stat.mode,
            xattrs: self.xattrs()?,
        })
    }

    fn set_owner(&self, meta: &Meta) -> io::Result<()> {
        if (self.stat.uid, self.stat.gid) == (meta.uid, meta.gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(meta.uid), Gid::from_raw(meta.gid));
        let flags = AtFlags::EMPTY_PATH;
        Ok(fs::chownat(&self.fd, c"", Some(uid), Some(gid), flags)?)
    }

    fn set_mode(&self, mode: u32) -> io::Result<()> {
        if self.stat.kind == Kind::Link {
            return Ok(());
        }
        Ok(fs::chmod(self.path(), Mode::from_raw_mode(mode))?)
    }

    /// What a filesystem does not take is left out, as cp(1) does.
    fn set_xattrs(&self, wanted: &Xattrs) -> io::Result<()> {
        let path = self.path();
        let there = self.xattrs()?;
        let is_left = |error: Errno| matches!(error, Errno::NOTSUP | Errno::PERM | Errno::NODATA);
        // ext4 takes less for all of a file than XFS for one.
        let is_too_much = |name: &OsStr, error: Errno| {
            name.as_bytes().starts_with(b"user.")
                && matches!(error, Errno::NOSPC | Errno::TOOBIG | Errno::RANGE)
        };
        for name in there.keys().filter(|name| !wanted.contains_key(*name)) {
            // SELinux labels each file, and has nobody take a label away.
            let stays = |error| name == "security.selinux" && error == Errno::ACCESS;
            match fs::removexattr(&path, name.as_os_str()) {
                Err(error) if !is_left(error) && !stays(error) => return Err(error.into()),
                _ => {}
            }
        }
        for (name, value) in wanted
            .iter()
            .filter(|(name, value)| there.get(*name) != Some(*value))
        {
            match fs::setxattr(&path, name.as_os_str(), value, XattrFlags::empty()) {
                Err(error) if is_too_much(name, error) => log::warn!(
                    "the attribute {} of a file is left out: {error}",
                    escaped(name)
                ),
                Err(error) if !is_left(error) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }
}
