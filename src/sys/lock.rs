//! One writer at a time.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

const PATH: &str = "/run/lock/imgbased-helper.lock";
const RETRY: Duration = Duration::from_millis(100);

/// Held while it lives.
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes the lock of this host, waiting up to `wait` for each other holder, who is then named.
    pub fn take(wait: Duration) -> Result<Self> {
        Self::take_at(Path::new(PATH), wait)
    }

    fn take_at(path: &Path, wait: Duration) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .with_context(|| format!("cannot open the lock {}", path.display()))?;
        // Anyone can create files in that directory.
        ensure!(
            file.metadata()?.uid() == Uid::effective().as_raw(),
            "the lock {} belongs to another user, remove it",
            path.display()
        );
        let mut deadline = Instant::now() + wait;
        let mut holder = String::new();
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut locked) => {
                    locked.set_len(0)?;
                    locked.rewind()?;
                    write!(*locked, "process {}", std::process::id())?;
                    return Ok(Self { _file: locked });
                }
                Err((mut unlocked, Errno::EWOULDBLOCK)) => {
                    let mut now = String::new();
                    unlocked.rewind()?;
                    unlocked.read_to_string(&mut now)?;
                    if now != holder {
                        // Of many that wait, each gets its turn.
                        holder = now;
                        deadline = Instant::now() + wait;
                    }
                    if Instant::now() >= deadline {
                        bail!(
                            "another change is being made by {holder}, gave up after {} s",
                            wait.as_secs()
                        );
                    }
                    file = unlocked;
                    sleep(RETRY);
                }
                Err((_, errno)) => {
                    return Err(errno).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take_at(&path, Duration::ZERO).unwrap();
        let error = Lock::take_at(&path, Duration::ZERO)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        assert!(Lock::take_at(&path, Duration::ZERO).is_ok());
    }
}
