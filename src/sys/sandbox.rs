//! Runs programs of a root filesystem that can come from anywhere, such as dracut of an image. They change
//! nothing outside, and nothing of them is left when they have ended.
//!
//! What they see: their root, which is read-only unless they are to change it; `/run` and `/tmp` in memory, empty at first; five devices that
//! hold nothing; and themselves in `/proc`. There is no disk, no `/sys`, no network, no process and no file of
//! the host. Of the capabilities they have those for files of any owner. Each of them has limits, and where the host
//! can have another control group, all of them together.
//!
//! The verb starts this program as `sandbox`, which makes a namespace of processes and watches the time. That
//! starts it once more as `sandbox-init`: the first process of the namespace, which shuts itself in and then
//! becomes the program. So no code of ours runs among theirs. The kernel ends all processes of a namespace with
//! its first, and lets that one be waited for when they are gone. It is killed when the time is over, when
//! `sandbox` ends, in whatever way, and when nobody reads from that any more, since the verb has ended.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write as _};
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, makedev, mknodat, umask};
use nix::sys::sysinfo::sysinfo;
use nix::unistd::{chdir, pivot_root, setsid, symlinkat};
use rustix::fs::OFlags;
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

use super::cgroup::{self, Leaf};
use super::cmd::{Cmd, ENVIRONMENT};
use super::interrupt::Interrupt;
use super::limited::{self, TIME_LIMIT_OF_TESTS, WORDS_MAX};
use super::mounts::used;
use super::progress::Waiting;
use super::rooted::{descriptor, open_beneath};
use super::seccomp;
use super::steps::number_of_tests;
use super::syscalls::close_on_exec;
use super::transaction::{Transaction, UndoStep};

/// The words by which this program is started as one of the two.
pub const SANDBOX: &str = "sandbox";
pub const INIT: &str = "sandbox-init";

/// How long a program may run if nothing else is said, in seconds. dracut takes minutes on a slow machine.
const TIME_LIMIT: u32 = 15 * 60;

/// What programs can write to, in memory: half of the machine's, as for any tmpfs. It is for root to look at.
const MEMORY: &str = "size=50%,mode=0700,nosuid,nodev,noexec";
/// The largest file that they can write, in bytes.
pub const FILE_MAX: u64 = 1 << 30;
/// The memory that each process can have at least, in bytes, be the machine as small as it may.
const PROCESS_MIN: u64 = 512 << 20;
/// In the place of a control group where there can be none.
const NO_GROUP: &str = "-";

/// The character devices, by their numbers (null(4), full(4), random(4)).
const DEVICES: [(&str, u64, u64); 5] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
];
/// What a shell expects to be in /dev.
const LINKS: [(&str, &str); 4] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];
/// What tells of the host in a /proc that has no process of it.
const HIDDEN: [&str; 4] = ["kcore", "keys", "kmsg", "timer_list"];

/// Any owner, group and mode for files that they write, reading what is for others, and chroot(2), which ldconfig
/// wants. `CAP_MKNOD` is not among them, and `CAP_DAC_READ_SEARCH` would let them open any file of a filesystem by
/// its number.
const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SYS_CHROOT);

/// Whether programs may change their root, in words.
const READ_ONLY: &str = "ro";
const WRITABLE: &str = "rw";

/// A root filesystem whose programs are shut in.
pub struct Sandbox {
    root: PathBuf,
    access: &'static str,
    /// Where what they have as /run and /tmp is mounted.
    scratch: PathBuf,
    mounted: UndoStep,
    /// How long a program may run, in seconds.
    limit: u32,
    /// What a program can take of the filesystem of the root, in bytes.
    room: u64,
}

impl Sandbox {
    /// For programs of the root that is mounted at `root`. What they may write to is mounted at `scratch`.
    pub fn open(tx: &mut Transaction, root: &Path, scratch: &Path) -> Result<Self> {
        Self::with(tx, root, scratch, READ_ONLY)
    }

    /// For programs of a root that nothing has been booted from yet, which they may change as well. What they do to it
    /// is not undone by itself.
    pub fn writable(tx: &mut Transaction, root: &Path, scratch: &Path) -> Result<Self> {
        Self::with(tx, root, scratch, WRITABLE)
    }

    fn with(
        tx: &mut Transaction,
        root: &Path,
        scratch: &Path,
        access: &'static str,
    ) -> Result<Self> {
        tx.create_dir(scratch)?;
        let mount = Cmd::new("mount").args(["-t", "tmpfs", "-o", MEMORY, "tmpfs"]);
        let undo = Cmd::new("umount").arg(scratch);
        Ok(Self {
            root: root.to_owned(),
            access,
            scratch: scratch.to_owned(),
            mounted: tx.run_undoable(&mount.arg(scratch), undo)?,
            limit: TIME_LIMIT,
            room: FILE_MAX,
        })
    }

    /// The same with another limit of time for each program, in seconds.
    pub fn within(self, limit: u32) -> Self {
        Self { limit, ..self }
    }

    /// The same where each program can take so many bytes of the filesystem of the root, and not 1 GiB.
    pub fn with_room(self, room: u64) -> Self {
        Self { room, ..self }
    }

    /// Runs a program with its arguments, and ends all that it has started.
    ///
    /// Fails as [`Cmd::run`] does, also when it takes too long. A signal ends it.
    pub fn run(&self, tx: &mut Transaction, program: &[&str]) -> Result<()> {
        self.attempt(tx, program)?
    }

    /// Does the same where it does no harm if the program fails, which is the inner result.
    pub fn attempt(&self, tx: &mut Transaction, program: &[&str]) -> Result<Result<()>> {
        let limit = number_of_tests(TIME_LIMIT_OF_TESTS).unwrap_or(self.limit);
        let cmd = Cmd::this()
            .args([SANDBOX, &limit.to_string(), self.access])
            .args([&self.root, &self.scratch])
            .args(program)
            .uninterrupted()
            .ends_unread();
        let mut done = Ok(());
        let _waiting = Waiting::new(|| program.join(" "));
        tx.work(&cmd, |interrupt| {
            let before = used(&self.root)?;
            let running = cmd.start(Stdio::null(), Stdio::piped())?;
            let ended = running.wait_with(|| {
                interrupt.check()?;
                // A thin pool may have less than its volumes say. Where it is full, the host cannot write any more. What
                // is written over what was there takes room as well, and is not seen here.
                let taken = used(&self.root)?.saturating_sub(before);
                ensure!(
                    self.access == READ_ONLY || taken <= self.room,
                    "it was ended, as it has written more than {} MiB",
                    self.room >> 20
                );
                Ok(())
            });
            done = ended.map(drop);
            interrupt.check()
        })?;
        Ok(done)
    }

    /// Where a file is that a program has written at `path`, which is in `run/` or `tmp/`, once it has ended.
    ///
    /// Refuses a link, a device and all else that is no file, and one that is too large.
    pub fn file(&self, path: &str) -> Result<PathBuf> {
        let shown = self.scratch.join(path);
        let look = || -> Result<()> {
            let file = open_beneath(File::open(&self.scratch)?, path, OFlags::PATH)?;
            let metadata = File::from(file).metadata()?;
            ensure!(metadata.is_file(), "it is no file");
            ensure!(
                metadata.len() <= FILE_MAX,
                "it has more than {} MiB",
                FILE_MAX >> 20
            );
            Ok(())
        };
        look().with_context(|| format!("cannot use {}", shown.display()))?;
        Ok(shown)
    }

    /// Forgets what programs have written.
    pub fn close(&self, tx: &mut Transaction) -> Result<()> {
        tx.undo_now(&self.mounted)
    }
}

/// Runs a program shut in: `SECONDS ACCESS ROOT SCRATCH PROGRAM [ARGUMENT...]`. Says its last words, and ends as it does.
///
/// Fails when the time is over, and when nobody reads its standard output any more.
pub fn watch(mut args: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let seconds = args.next().and_then(|limit| limit.to_str()?.parse().ok());
    let limit = Duration::from_secs(seconds.context("`sandbox` is for this program itself")?);
    let interrupt = Interrupt::by_signals()?;
    unshare(CloneFlags::CLONE_NEWPID).context("cannot make a namespace of processes")?;
    let leaf = Leaf::with_memory(all_memory()?);
    let group = leaf.as_ref().map_or(Path::new(NO_GROUP), Leaf::path);
    let mut command = Cmd::this().arg(INIT).arg(group).args(args).command();
    // The kernel ends all others with it, before it has been waited for.
    let go_on = || {
        interrupt.check()?;
        ensure!(is_read(), "interrupted");
        Ok(())
    };
    let end = limited::watch(&mut command, limit, &go_on, false, WORDS_MAX)?;
    if !end.words.is_empty() {
        let _ = writeln!(io::stderr(), "{}", end.words);
    }
    if let Some(why) = end.cut_off {
        bail!(why);
    }
    if let Some(memory) = leaf.as_ref().and_then(Leaf::exceeded) {
        bail!(
            "it was ended, as it wants more than {} MiB of memory",
            memory >> 20
        );
    }
    let code = end.status.code();
    let code = code.with_context(|| end.status.to_string())?;
    Ok(ExitCode::from(u8::try_from(code)?))
}

/// Whether somebody still reads what this process writes to its standard output. Of anything but a pipe that is
/// not known.
fn is_read() -> bool {
    let output = io::stdout();
    let mut files = [PollFd::new(output.as_fd(), PollFlags::empty())];
    let polled = poll(&mut files, PollTimeout::ZERO);
    let events = files[0].revents().filter(|_| polled.is_ok());
    !events.is_some_and(|events| events.contains(PollFlags::POLLERR))
}

/// Shuts this process in, and becomes a program: `GROUP ACCESS ROOT SCRATCH PROGRAM [ARGUMENT...]`. Returns
/// only if that fails.
pub fn enter(mut args: impl Iterator<Item = OsString>) -> Result<Infallible> {
    let mut word = || args.next();
    let words = [word(), word(), word(), word(), word()];
    let [
        Some(group),
        Some(access),
        Some(root),
        Some(scratch),
        Some(program),
    ] = words
    else {
        bail!("`{INIT}` is run by `{SANDBOX}`");
    };
    ensure!(
        std::process::id() == 1,
        "`{INIT}` is run by `{SANDBOX}`, in a namespace of its own"
    );
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    // The other one may have ended before that.
    ensure!(is_read(), "`{SANDBOX}` has ended");
    // No terminal sends it signals.
    setsid()?;
    if group != NO_GROUP
        && let Err(error) = cgroup::enter(group.as_ref())
    {
        log::debug!("no limits for all together: {error}");
    }
    // Where memory becomes scarce, the kernel ends it first.
    fs::write("/proc/self/oom_score_adj", "1000").context("cannot write oom_score_adj")?;
    let is_writable = access == WRITABLE;
    build(root.as_ref(), scratch.as_ref(), is_writable).context("cannot shut it in")?;
    limit_resources().context("cannot limit what it uses")?;
    let mut command = Command::new(&program);
    command
        .args(args)
        .env_clear()
        .envs(ENVIRONMENT)
        // As programs expect it of a container (https://systemd.io/CONTAINER_INTERFACE): dracut makes no device
        // nodes there.
        .env("container", "imgbased")
        // What this process has is the host's, whose mode could be changed by it.
        .stdin(File::open("/dev/null").context("cannot open /dev/null")?);
    close_on_exec(3).context("cannot close files")?;
    drop_capabilities().context("cannot drop capabilities")?;
    seccomp::deny().context("cannot deny system calls")?;
    let shown = Path::new(&program).display();
    Err(command.exec()).with_context(|| format!("cannot run {shown}"))
}

/// Makes `root` the root, in namespaces of its own, with nothing else below it than what programs need.
fn build(root: &Path, scratch: &Path, is_writable: bool) -> Result<()> {
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("cannot make namespaces")?;
    mount_at("/", None, None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    umask(Mode::empty());
    for (name, mode) in [("root", 0o755), ("run", 0o755), ("tmp", 0o1777)] {
        match DirBuilder::new().mode(mode).create(scratch.join(name)) {
            // That of a program before.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("cannot make {name} for it"))?,
        }
    }
    let harmless = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let top = scratch.join("root");
    mount_at(&top, Some(root), None, MsFlags::MS_BIND)?;
    let mut flags = MsFlags::MS_BIND | harmless;
    flags.set(MsFlags::MS_RDONLY, !is_writable);
    change_mount(&top, flags)?;
    let dir = File::open(&top).with_context(|| top.display().to_string())?;
    // Nothing that the root holds is followed: what is mounted is where it seems to be. It is opened anew when
    // something is mounted there.
    let place = |name: &str| {
        open_beneath(&dir, name, OFlags::PATH | OFlags::DIRECTORY)
            .with_context(|| format!("/{name} of the root has to be a directory"))
    };
    for name in ["run", "tmp"] {
        let source = scratch.join(name);
        mount_at(
            descriptor(&place(name)?),
            Some(&source),
            None,
            MsFlags::MS_BIND,
        )?;
        change_mount(descriptor(&place(name)?), MsFlags::MS_BIND | harmless)?;
    }
    let nothing_runs = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at(
        descriptor(&place("dev")?),
        None,
        Some("tmpfs"),
        nothing_runs,
    )?;
    let dev = place("dev")?;
    let (anybody, kind) = (Mode::from_bits_truncate(0o666), SFlag::S_IFCHR);
    for (name, major, minor) in DEVICES {
        mknodat(&dev, name, kind, anybody, makedev(major, minor))?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name)?;
    }
    change_mount(descriptor(&dev), MsFlags::MS_RDONLY | nothing_runs)?;
    // It has the processes of this namespace. What is the whole machine's in it can be read at most.
    let proc = harmless | nothing_runs | MsFlags::MS_RDONLY;
    mount_at(descriptor(&place("proc")?), None, Some("proc"), proc)?;
    let (proc, null) = (place("proc")?, open_beneath(&dev, "null", OFlags::PATH)?);
    for name in HIDDEN {
        // Not every kernel has each.
        if let Ok(file) = open_beneath(&proc, name, OFlags::PATH) {
            mount_at(
                descriptor(&file),
                Some(&descriptor(&null)),
                None,
                MsFlags::MS_BIND,
            )?;
        }
    }
    // What was the root lies above the new one then, and goes (pivot_root(2)).
    chdir(&top)?;
    pivot_root(".", ".").context("cannot change the root")?;
    umount2(".", MntFlags::MNT_DETACH).context("cannot leave the root of the host")?;
    chdir("/")?;
    umask(Mode::S_IWGRP | Mode::S_IWOTH);
    Ok(())
}

fn mount_at(
    target: impl AsRef<Path>,
    source: Option<&Path>,
    kind: Option<&str>,
    flags: MsFlags,
) -> Result<()> {
    let (target, options) = (target.as_ref(), None::<&str>);
    mount(source, target, kind, flags, options)
        .with_context(|| format!("cannot mount at {}", target.display()))
}

/// Gives what is mounted at a place other flags.
fn change_mount(target: impl AsRef<Path>, flags: MsFlags) -> Result<()> {
    mount_at(target, None, None, MsFlags::MS_REMOUNT | flags)
}

/// The memory that each process may have, in bytes.
pub fn process_memory() -> Result<u64> {
    Ok((sysinfo()?.ram_total() / 2).max(PROCESS_MIN))
}

/// The memory that all of them may have, with what they write, in bytes.
fn all_memory() -> Result<u64> {
    Ok((sysinfo()?.ram_total() / 4 * 3).max(PROCESS_MIN))
}

fn limit_resources() -> Result<()> {
    for (resource, limit) in [
        (Resource::RLIMIT_AS, process_memory()?),
        (Resource::RLIMIT_FSIZE, FILE_MAX),
        // With any other limit, even of 0, a crash starts a program of the host where that collects core dumps
        // (`do_coredump` in linux/fs/coredump.c).
        (Resource::RLIMIT_CORE, 1),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    Ok(())
}

/// Keeps [`CAPABILITIES`], for this process and all that it becomes and starts.
fn drop_capabilities() -> Result<()> {
    for bit in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        if CAPABILITIES.contains(capability) {
            continue;
        }
        match remove_capability_from_bounding_set(capability) {
            // The kernel has no more of them.
            Err(rustix::io::Errno::INVAL) => break,
            done => done?,
        }
    }
    clear_ambient_capability_set()?;
    let kept = capabilities(None)?.permitted & CAPABILITIES;
    let sets = CapabilitySets {
        effective: kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    // Only one that still has another may filter system calls without this.
    prctl::set_no_new_privs()?;
    Ok(set_capabilities(None, sets)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::unistd::mkfifo;

    use super::*;
    use crate::sys::transaction::change;

    #[test]
    fn only_a_file_is_taken_out_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("run");
        fs::create_dir(&run).unwrap();
        fs::write(run.join("file"), "x").unwrap();
        File::create(run.join("large"))
            .and_then(|file| file.set_len(FILE_MAX + 1))
            .unwrap();
        symlink("file", run.join("link")).unwrap();
        symlink("/etc/shadow", run.join("leading-out")).unwrap();
        mkfifo(&run.join("fifo"), Mode::S_IRWXU).unwrap();
        symlink("run", dir.path().join("tmp")).unwrap();
        change(|tx| {
            let sandbox = Sandbox {
                root: "/".into(),
                access: READ_ONLY,
                scratch: dir.path().to_owned(),
                mounted: tx.on_failure(Cmd::new("true")),
                room: FILE_MAX,
                limit: TIME_LIMIT,
            };
            for (path, why) in [
                ("run/file", None),
                ("run", Some("it is no file")),
                ("run/fifo", Some("it is no file")),
                ("run/link", Some("")),
                ("run/leading-out", Some("")),
                ("tmp/file", Some("")),
                ("run/../run/file", None),
                ("../file", Some("")),
                ("run/missing", Some("No such file")),
                ("run/large", Some("it has more than 1024 MiB")),
            ] {
                let found = sandbox.file(path).map_err(|error| format!("{error:#}"));
                match (found, why) {
                    (Ok(found), None) => assert_eq!(found, dir.path().join(path)),
                    (Err(error), Some(why)) => assert!(error.contains(why), "{path}: {error}"),
                    (found, _) => panic!("{path}: {found:?}"),
                }
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn neither_of_the_two_is_for_people() {
        let words = |text: &str| {
            let words = text.split_whitespace().map(OsString::from);
            words.collect::<Vec<_>>().into_iter()
        };
        for text in ["", "x ro / /tmp true", "-1 ro / /tmp true"] {
            let error = watch(words(text)).unwrap_err().to_string();
            assert!(error.contains("for this program itself"), "{text}: {error}");
        }
        for text in ["", "- ro / /tmp", "- ro / /tmp true"] {
            let error = enter(words(text)).unwrap_err().to_string();
            assert!(error.contains("is run by"), "{text}: {error}");
        }
    }
}
