//! Files that several commands may use at a time: who reads one or writes to it has it locked, and who would remove it
//! looks at that first.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::sys::lock::open_to_lock;

/// A file that is read. Nobody removes it as long as this is here.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    lock: Flock<File>,
}

impl Held {
    /// Nothing if there is no such file.
    pub fn of(path: &Path) -> Result<Option<Self>> {
        let failed = || format!("cannot read {}", path.display());
        loop {
            let file = match File::open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                file => file.with_context(failed)?,
            };
            // Who has it alone looks whether it can go, which takes no time.
            let lock = Flock::lock(file, FlockArg::LockShared);
            let lock = lock.map_err(|(_, error)| error).with_context(failed)?;
            if leads_to(path, &lock).with_context(failed)? {
                let path = path.to_owned();
                return Ok(Some(Self { path, lock }));
            }
        }
    }

    /// Gives a file that was written a name, under which others can read it as well.
    pub fn renamed(lock: Flock<File>, from: &Path, to: PathBuf) -> Result<Self> {
        lock.relock(FlockArg::LockShared)
            .map_err(io::Error::from)
            .and_then(|()| fs::rename(from, &to))
            .with_context(|| format!("cannot write to {}", from.display()))?;
        Ok(Self { path: to, lock })
    }

    /// The file, to be read from where it was read up to.
    pub fn file(&mut self) -> &mut File {
        &mut self.lock
    }

    /// Lets it go, where nobody reads it any more.
    pub fn release(self) -> PathBuf {
        self.path
    }
}

impl AsRef<Path> for Held {
    fn as_ref(&self) -> &Path {
        &self.path
    }
}

/// Opens a file that is written to by one command at a time, and locks it. Nothing where another one has it.
pub fn locked(path: &Path) -> Result<Option<Flock<File>>> {
    let failed = || format!("cannot write to {}", path.display());
    loop {
        let file = open_to_lock(path).with_context(failed)?;
        let Ok(lock) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        if leads_to(path, &lock).with_context(failed)? {
            return Ok(Some(lock));
        }
    }
}

/// Whether a path still leads to a file that was opened by it: until the file is locked, others may remove it.
fn leads_to(path: &Path, file: &File) -> io::Result<bool> {
    let id = |found: &Metadata| (found.dev(), found.ino());
    let opened = id(&file.metadata()?);
    Ok(fs::symlink_metadata(path).is_ok_and(|found| id(&found) == opened))
}

/// Does `work` with the lock of a file, unless somebody has it. Where there is no file, nobody has.
pub fn if_free(lock: &Path, work: impl FnOnce() -> Result<()>) -> Result<()> {
    // NFS wants a descriptor that can write.
    let file = File::options().read(true).write(true).open(lock).ok();
    let held = file.map(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock));
    match held {
        Some(Err(_)) => Ok(()),
        Some(Ok(_)) | None => work(),
    }
}

/// Whether nobody has locked a file.
pub fn is_free(lock: &Path) -> bool {
    let mut is_free = false;
    let seen = if_free(lock, || {
        is_free = true;
        Ok(())
    });
    seen.is_ok() && is_free
}
