//! One writer at a time.

use std::fs::{DirBuilder, File, OpenOptions, symlink_metadata};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Uid;

use super::interrupt::Interrupt;
use super::process::is_below;
use super::progress::Waiting;
use super::run;

const NAME: &str = "lock";
const RETRY: Duration = Duration::from_millis(100);

/// What the file says, before the number of the holder. After that and a comma can come what it does.
const HOLDER: &str = "process ";

/// Opens a file that is root's alone, to be locked before its content is changed. Makes one if there is none, and follows
/// no link.
pub fn open_to_lock(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}

/// Held while it lives, except between [`Lock::release`] and [`Lock::retake`].
pub struct Lock {
    path: PathBuf,
    wait: Duration,
    held: Option<Flock<File>>,
}

impl Lock {
    /// Takes the lock of this host, waiting up to `wait` for each other holder, who is then named.
    pub fn take(wait: Duration, interrupt: &Interrupt) -> Result<Self> {
        Self::take_in(Path::new(run::DIR), wait, interrupt)
    }

    pub(super) fn take_in(dir: &Path, wait: Duration, interrupt: &Interrupt) -> Result<Self> {
        check_own(dir)?;
        let mut lock = Self {
            path: dir.join(NAME),
            wait,
            held: None,
        };
        lock.retake(interrupt)?;
        Ok(lock)
    }

    /// Lets others have it.
    pub fn release(&mut self) {
        self.held = None;
    }

    pub fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Tells those that wait what the holder does now, if there is something to say. Whenever that is something else,
    /// they wait as long as for another holder.
    pub fn tell(&self, what: Option<&str>) -> io::Result<()> {
        let Some(held) = &self.held else {
            return Ok(());
        };
        let mut text = format!("{HOLDER}{}", std::process::id());
        if let Some(what) = what {
            text += &format!(", which {what}");
        }
        // At each moment it begins with the holder.
        held.write_all_at(text.as_bytes(), 0)?;
        held.set_len(text.len() as u64)
    }

    /// Takes it again, with the same patience. Fails at once where the holder waits for this process, or a signal asks
    /// to end.
    pub fn retake(&mut self, interrupt: &Interrupt) -> Result<()> {
        let path = self.path.display();
        let mut file =
            open_to_lock(&self.path).with_context(|| format!("cannot open the lock {path}"))?;
        let mut deadline = Instant::now() + self.wait;
        let mut holder = String::new();
        let mut waiting = None;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(mut locked) => {
                    locked.set_len(0)?;
                    locked.rewind()?;
                    write!(*locked, "{HOLDER}{}", std::process::id())?;
                    self.held = Some(locked);
                    return Ok(());
                }
                Err((mut unlocked, Errno::EWOULDBLOCK)) => {
                    interrupt.check()?;
                    let mut now = String::new();
                    unlocked.rewind()?;
                    unlocked.read_to_string(&mut now)?;
                    if now != holder {
                        refuse_below(&now)?;
                        // Of many that wait, each gets its turn.
                        holder = now;
                        deadline = Instant::now() + self.wait;
                        // For the one before nobody waits any more.
                        drop(waiting.take());
                        waiting = Some(Waiting::new(|| format!("waiting for {holder}")));
                    }
                    if Instant::now() >= deadline {
                        bail!(
                            "another change is being made by {holder}, gave up after {} s",
                            self.wait.as_secs()
                        );
                    }
                    file = unlocked;
                    sleep(RETRY);
                }
                Err((_, errno)) => {
                    return Err(errno).with_context(|| format!("cannot lock {path}"));
                }
            }
        }
    }
}

/// Refuses to wait for a holder that has started this process, as a command starts a hook: that waits for this one.
/// What was started in another way, and belongs to nobody's hook any more, waits as everybody does.
fn refuse_below(holder: &str) -> Result<()> {
    let pid = holder.strip_prefix(HOLDER).unwrap_or_default();
    let pid = pid.split(',').next().unwrap_or_default();
    ensure!(
        !pid.parse().is_ok_and(is_below),
        "a hook of {HOLDER}{pid} cannot change the host as well; systemd-run(1) can have it done after that process"
    );
    Ok(())
}

/// Makes the directory of the lock. Refuses one in which somebody else could put a file in its place.
fn check_own(dir: &Path) -> Result<()> {
    let shown = dir.display();
    match DirBuilder::new().mode(0o755).create(dir) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("cannot create {shown}"));
        }
        _ => (),
    }
    let metadata = symlink_metadata(dir).with_context(|| format!("cannot look at {shown}"))?;
    ensure!(
        metadata.is_dir()
            && metadata.uid() == Uid::effective().as_raw()
            && metadata.mode() & 0o022 == 0,
        "{shown} is no directory that only root can write to; remove it"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{Permissions, metadata, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;
    use std::thread;

    /// Nobody asks to end.
    fn take_in(dir: &Path, wait: Duration) -> Result<Lock> {
        Lock::take_in(dir, wait, &Interrupt::default())
    }

    #[test]
    fn who_waits_can_be_told_to_end() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("imgbased");
        let interrupt = Interrupt::default();
        let wait = Duration::from_secs(3600);
        let _held = Lock::take_in(&dir, wait, &interrupt).unwrap();
        let told = interrupt.clone();
        let waiting = thread::spawn(move || Lock::take_in(&dir, wait, &told).map(drop));
        thread::sleep(2 * RETRY);
        interrupt.set();
        let error = waiting.join().unwrap().unwrap_err();
        assert_eq!(error.to_string(), "interrupted");
    }

    #[test]
    fn the_second_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("imgbased");
        let mut held = take_in(&dir, Duration::ZERO).unwrap();
        let second = || take_in(&dir, Duration::ZERO).err();
        let error = second().unwrap().to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        held.release();
        assert!(!held.is_held());
        assert!(second().is_none());
        held.retake(&Interrupt::default()).unwrap();
        assert!(second().is_some());
        drop(held);
        assert!(second().is_none());
    }

    #[test]
    fn whoever_waits_is_told_what_the_holder_does_and_waits_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("imgbased");
        let held = take_in(&dir, Duration::ZERO).unwrap();
        let wait = Duration::from_millis(500);
        let waiting = std::thread::spawn({
            let dir = dir.clone();
            move || take_in(&dir, wait).map(drop)
        });
        // Each of these takes less time than it waits, and all together take more.
        for what in ["runs one", "runs another", "runs one", "runs another"] {
            held.tell(Some(what)).unwrap();
            sleep(wait / 2);
        }
        let error = take_in(&dir, Duration::ZERO).err().unwrap();
        let pid = std::process::id();
        let named = format!("made by process {pid}, which runs another, gave up");
        assert!(error.to_string().contains(&named), "{error}");
        held.tell(None).unwrap();
        let text = std::fs::read_to_string(dir.join(NAME)).unwrap();
        assert_eq!(text, format!("process {pid}"));
        drop(held);
        waiting.join().unwrap().unwrap();
    }

    /// The name of a test, which runs itself once more below the holder.
    const BELOW: &str = "sys::lock::tests::whoever_the_holder_waits_for_is_refused_at_once";

    #[test]
    fn whoever_the_holder_waits_for_is_refused_at_once() {
        let take = |dir: &Path| take_in(&dir.join("run"), Duration::from_secs(3600));
        if let Some(dir) = std::env::var_os("IMGBASED_TEST_DIR") {
            let parent = std::env::var("IMGBASED_TEST_PARENT").unwrap();
            let error = take(Path::new(&dir)).err().unwrap().to_string();
            assert!(
                error.starts_with(&format!("a hook of process {parent} cannot")),
                "{error}"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let held = take(dir.path()).unwrap();
        let run = || {
            // By way of another program, and without the lock's file.
            Command::new("sh")
                .args(["-c", "\"$@\"; exit $?", "sh"])
                .arg(std::env::current_exe().unwrap())
                .args(["--exact", BELOW])
                .env("IMGBASED_TEST_DIR", dir.path())
                .env("IMGBASED_TEST_PARENT", std::process::id().to_string())
                .output()
                .unwrap()
        };
        let output = run();
        assert!(output.status.success(), "{output:?}");
        drop(held);
        // The file still names it, but nobody holds it.
        assert!(take(dir.path()).is_ok());
        assert!(!run().status.success());
    }

    #[test]
    fn its_directory_is_no_place_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let take = |name: &str| take_in(&path(name), Duration::ZERO).map(drop);
        take("new").unwrap();
        let mode = metadata(path("new")).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0);
        for mode in [0o777, 0o1777, 0o775] {
            set_permissions(path("new"), Permissions::from_mode(mode)).unwrap();
            assert!(take("new").is_err(), "{mode:o}");
        }
        set_permissions(path("new"), Permissions::from_mode(0o755)).unwrap();
        symlink("new", path("link")).unwrap();
        write(path("file"), "").unwrap();
        for name in ["link", "file", "a/b"] {
            assert!(take(name).is_err(), "{name}");
        }
        take("new").unwrap();
    }
}
