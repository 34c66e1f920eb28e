//! `image prepare`: a root tree becomes what an image has to be.
//!
//! The tree is not the host, so nothing of it is undone. All that can be refused is refused before the first change,
//! and each change leaves the tree nearer to its end: after an error the next run goes on.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::admin::{Context, LOCK_WAIT, say};
use crate::model::name::LvName;
use crate::model::os_release::OsRelease;
use crate::model::package_records::RECORDS;
use crate::model::{fstab, kernel_options};
use crate::sys::cmd::{Cmd, quote};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::sys::rooted::real_path;
use crate::sys::transaction::{Transaction, Writer, write_line};
use crate::tree::{
    Below, Dir, Globs, Kind, Meta, Source, Stat, Visit, Xattrs, escaped, sync, walk,
};

/// What is looked through for traces of a host.
const TOPS: [&str; 6] = ["boot", "efi", "etc", "home", "root", "var"];
/// What tells a host from others, or what somebody has done on it: files, by their paths. The links that some systems
/// have there stay.
const TRACES: [&str; 33] = [
    "boot/loader/random-seed",
    "efi/loader/random-seed",
    "etc/hostname",
    "etc/krb5.keytab",
    "etc/lvm/archive/*",
    "etc/lvm/backup/*",
    "etc/lvm/devices/system.devices",
    "etc/nvme/hostid",
    "etc/nvme/hostnqn",
    "etc/NetworkManager/system-connections/*",
    "etc/resolv.conf",
    "etc/ssh/ssh_host_*_key",
    "etc/ssh/ssh_host_*_key-cert.pub",
    "etc/ssh/ssh_host_*_key.pub",
    "home/*/.*_history",
    "home/*/.lesshst",
    "home/*/.viminfo",
    "root/.*_history",
    "root/.lesshst",
    "root/.viminfo",
    "var/db/dhcpcd/**",
    "var/lib/NetworkManager/*.lease",
    "var/lib/NetworkManager/secret_key",
    "var/lib/NetworkManager/seen-bssids",
    "var/lib/NetworkManager/timestamps",
    "var/lib/dbus/machine-id",
    "var/lib/dhclient/*",
    "var/lib/dhcp/*",
    "var/lib/dhcpcd/**",
    "var/lib/systemd/credential.secret",
    "var/lib/systemd/network/**",
    "var/lib/systemd/random-seed",
    "var/lib/urandom/random-seed",
];
const JOURNAL: &str = "var/log/journal";
const LOGS: &str = "var/log";
/// What logrotate(8) and others add to the names of old logs.
const OLD_LOGS: [&str; 6] = ["gz", "xz", "bz2", "zst", "old", "journal"];
/// The directories that other filesystems are mounted at.
const MOUNT_POINTS: [(&str, u32); 10] = [
    ("boot", 0o755),
    ("dev", 0o755),
    ("home", 0o755),
    ("mnt", 0o755),
    ("proc", 0o555),
    ("run", 0o755),
    ("srv", 0o755),
    ("sys", 0o555),
    ("tmp", 0o1777),
    ("var", 0o755),
];
/// From this version on systemd knows this word for an id that is still to be made (machine-id(5)).
const UNINITIALIZED: (u32, &[u8]) = (247, b"uninitialized\n");
const ISCSI_NAME: &str = "etc/iscsi/initiatorname.iscsi";
/// On Debian this makes a name where the file has this line, and fails where there is no file. Elsewhere a unit does so
/// where there is none.
const ISCSI_MAKER: (&str, &str) = ("usr/lib/open-iscsi/startup-checks.sh", "GenerateName=yes\n");
/// Where records of packages are, and where they move.
const STATE: &str = "var/lib";
const SYSIMAGE: &str = "usr/lib/sysimage";
/// Where imgbased has name, version and release of an image.
const NVR: (&str, &str) = ("usr/share/imgbase/build/meta", "nvr");
/// The largest text that is read, in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// What `image prepare` is told.
#[derive(Args)]
pub struct Prepare {
    /// Root of the tree
    dir: PathBuf,
    /// Name and version that the image gets, in os-release and for imgbased, such as myhost-1.0-1
    #[arg(long, value_name = "NAME-VERSION")]
    name: Option<LvName>,
    /// Leave this path or pattern as it is, with what is below it; may be given several times
    #[arg(long, value_name = "PATH")]
    keep: Vec<String>,
    /// DIR is /, where this runs in the build of a container, or in a chroot
    #[arg(long)]
    container: bool,
}

/// Prepares a tree, and tells what was changed.
pub fn run(context: &Context, prepare: &Prepare) -> Result<()> {
    let root = Dir::root(&prepare.dir)?;
    check_tree(prepare, &root)?;
    let top = prepare.dir.canonicalize();
    let top = top.with_context(|| format!("cannot read {}", prepare.dir.display()))?;
    let changes = Planner::new(&root, &top, &prepare.keep)?.plan(prepare.name.as_ref())?;
    let writer = Writer::new("image prepare", LOCK_WAIT, context.dry_run)?;
    let tree = Tree { root, top };
    writer.transaction(|tx| changes.iter().try_for_each(|change| tree.apply(tx, change)))?;
    if context.dry_run {
        return Ok(());
    }
    say(&changes
        .iter()
        .map(|change| format!("{change}\n"))
        .collect::<String>())
}

/// Refuses what is no root tree, and the root of a system that runs.
fn check_tree(prepare: &Prepare, root: &Dir) -> Result<()> {
    let shown = prepare.dir.display();
    let has = |path: &str| Ok::<_, io::Error>(root.resolve_dir(Path::new(path))?.is_some());
    ensure!(
        has("usr")? && has("etc")?,
        "{shown} has no /usr or no /etc, so it is not the root of a system; give the directory that has both"
    );
    let is_own = root.stat()?.id == Dir::root(Path::new("/"))?.stat()?.id;
    ensure!(
        !has("run/systemd/system")?,
        "{shown} is the root of a system that runs, which would lose what makes it this host; prepare a copy of it, or \
         empty /run where it is one"
    );
    ensure!(
        prepare.container || !is_own,
        "{shown} is the root of this system, which would lose what makes it this host; give another directory, or say \
         --container in the build of a container or in a chroot"
    );
    ensure!(
        is_own || !prepare.container,
        "--container is for the root that this runs in, and {shown} is another one; leave it away"
    );
    Ok(())
}

/// What is done at a path.
#[derive(Debug, PartialEq, Eq)]
enum Act {
    Remove(Kind),
    /// A file gets other content; owner, mode and attributes stay.
    Write(Vec<u8>),
    /// The same, with nothing in it.
    Empty,
    /// A directory with these permissions.
    Make(u32),
    /// A directory moves there, and this link leads to it.
    Move(PathBuf, PathBuf),
    Link(PathBuf),
}

/// A change of the tree, at a path from the root that has no link in it.
#[derive(Debug, PartialEq, Eq)]
struct Change {
    path: PathBuf,
    act: Act,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = match &self.act {
            Act::Remove(_) => "removed",
            Act::Write(_) => "written",
            Act::Empty => "emptied",
            Act::Make(_) => "made",
            Act::Move(to, _) => {
                return write!(f, "/{}: moved to /{}", escaped(&self.path), escaped(to));
            }
            Act::Link(to) => {
                return write!(
                    f,
                    "/{}: leads to {} again",
                    escaped(&self.path),
                    escaped(to)
                );
            }
        };
        write!(f, "/{}: {done}", escaped(&self.path))
    }
}

/// Finds what is to be done.
struct Planner<'a> {
    root: &'a Dir,
    /// Where the root is, without links.
    top: &'a Path,
    keep: Globs,
    changes: Vec<Change>,
}

impl<'a> Planner<'a> {
    fn new(root: &'a Dir, top: &'a Path, keep: &[String]) -> Result<Self> {
        Ok(Self {
            root,
            top,
            keep: Globs::new(keep)?,
            changes: Vec::new(),
        })
    }

    /// All changes in their order: what is moved comes last.
    fn plan(mut self, name: Option<&LvName>) -> Result<Vec<Change>> {
        self.traces()?;
        self.machine_id()?;
        self.iscsi_name()?;
        self.rewrite("etc/kernel/cmdline", false, &|text| {
            let options = std::str::from_utf8(text).context("it is not UTF-8")?;
            if kernel_options::of_one_host(options).is_empty() {
                return Ok(text.to_vec());
            }
            Ok((kernel_options::of_any_host(options) + "\n").into_bytes())
        })?;
        self.rewrite("etc/fstab", true, &|text| Ok(fstab::of_any_host(text)))?;
        if let Some(name) = name {
            self.name(name)?;
        }
        for (path, mode) in MOUNT_POINTS {
            if self.root.stat_of(OsStr::new(path))?.is_none() {
                self.add(path.into(), Act::Make(mode));
            }
        }
        for record in RECORDS {
            self.record(record)?;
        }
        Ok(self.changes)
    }

    fn add(&mut self, path: PathBuf, act: Act) {
        let is_known = self.changes.iter().any(|change| change.path == path);
        if !is_known && !self.is_kept(&path) {
            self.changes.push(Change { path, act });
        }
    }

    fn is_kept(&self, path: &Path) -> bool {
        path.ancestors().any(|above| self.keep.matches(above))
    }

    /// Removes what is of one host, and empties logs.
    fn traces(&mut self) -> Result<()> {
        let traces = Globs::new(&TRACES.map(str::to_owned))?;
        let mut found = Vec::new();
        for top in TOPS {
            walk(
                &[Some(self.root.again()?)],
                Some(OsStr::new(top)),
                &mut |visit| {
                    let act = trace(visit, &traces);
                    let act =
                        act.with_context(|| format!("cannot look at /{}", escaped(visit.path)))?;
                    let below = match act {
                        Some(Act::Remove(Kind::Dir)) => Below::Skip,
                        _ => Below::Visit,
                    };
                    found.extend(act.map(|act| (visit.path.to_owned(), act)));
                    Ok(below)
                },
            )?;
        }
        for (path, act) in found {
            self.add(path, act);
        }
        Ok(())
    }

    fn machine_id(&mut self) -> Result<()> {
        let version = systemd_version(self.root)?;
        self.rewrite("etc/machine-id", false, &|text| {
            Ok(machine_id(text, version))
        })
    }

    fn iscsi_name(&mut self) -> Result<()> {
        let (maker, line) = ISCSI_MAKER;
        let has_maker = self.root.resolve(Path::new(maker))?.is_some();
        let Some((path, text)) = self.file(ISCSI_NAME)? else {
            return Ok(());
        };
        let mut lines = text.split(|byte| *byte == b'\n');
        if lines.any(|line| line.starts_with(b"InitiatorName=")) {
            self.add(
                path,
                if has_maker {
                    Act::Write(line.into())
                } else {
                    Act::Remove(Kind::File)
                },
            );
        }
        Ok(())
    }

    /// Has a file hold what `right` makes of its content; one that is not there, if it `is_needed`.
    fn rewrite(
        &mut self,
        path: &str,
        is_needed: bool,
        right: &dyn Fn(&[u8]) -> Result<Vec<u8>>,
    ) -> Result<()> {
        let (real, content) = match self.file(path)? {
            Some((real, content)) => (real, Some(content)),
            None if is_needed => (self.free(path)?, None),
            None => return Ok(()),
        };
        let new = right(content.as_deref().unwrap_or_default());
        let new = new.with_context(|| format!("cannot change /{path}"))?;
        if content.as_ref() != Some(&new) {
            self.add(real, Act::Write(new));
        }
        Ok(())
    }

    /// Writes name and version of the image.
    fn name(&mut self, name: &LvName) -> Result<()> {
        let (id, version) = name.name_and_version().with_context(|| {
            format!("{name} is a name without a version; give both, such as myhost-1.0-1")
        })?;
        ensure!(
            self.file("etc/os-release")?.is_some(),
            "there is no /etc/os-release to write the version to; install the package that brings it, such as base-files"
        );
        // Readers take the first of these, and either can be a file of its own.
        for path in ["etc/os-release", "usr/lib/os-release"] {
            self.rewrite(path, false, &|text| {
                let text = std::str::from_utf8(text).context("it is not UTF-8")?;
                Ok(OsRelease::with_image(text, id, version).into_bytes())
            })?;
        }
        let (dir, file) = NVR;
        let dir = self.dirs(dir)?;
        let nvr = format!("{name}\n").into_bytes();
        if self
            .file(&format!("{}/{file}", NVR.0))?
            .map(|(_, content)| content)
            != Some(nvr.clone())
        {
            self.add(dir.join(file), Act::Write(nvr));
        }
        Ok(())
    }

    /// Moves a record of packages out of /var.
    fn record(&mut self, name: &str) -> Result<()> {
        let Some(path) = self.entry(&format!("{STATE}/{name}"))? else {
            return Ok(());
        };
        let to = format!("{SYSIMAGE}/{name}");
        let is_there = self.root.resolve_dir(Path::new(&to))?.is_some();
        match self.stat(&path)?.map(|stat| stat.kind) {
            Some(Kind::Dir) if self.is_kept(&path) => {}
            Some(Kind::Dir) => {
                ensure!(
                    !is_there,
                    "/{} and /{to} are both there, and one of them is the record of what is installed; remove the other",
                    escaped(&path)
                );
                let (above, last) = to.rsplit_once('/').unwrap_or_default();
                let to = self.dirs(above)?.join(last);
                let link = link_to(&path, &to);
                self.add(path, Act::Move(to, link));
            }
            // It was interrupted before it has made the link.
            None if is_there => {
                let to = self.relative(&to)?.unwrap_or_default();
                let link = link_to(&path, &to);
                self.add(path, Act::Link(link));
            }
            _ => {}
        }
        Ok(())
    }

    /// A path with the directories that there have to be, from the root and without links.
    fn dirs(&mut self, path: &str) -> Result<PathBuf> {
        let mut real = PathBuf::new();
        for name in Path::new(path) {
            let next = real.join(name);
            let inside = self.root.resolve_dir(&next)?;
            if inside.is_some() {
                real = self.relative(&next)?.unwrap_or(next);
                continue;
            }
            // A link that leads nowhere in the tree is none either.
            ensure!(
                self.stat(&next)?.is_none(),
                "/{} is no directory",
                escaped(&next)
            );
            self.add(next.clone(), Act::Make(0o755));
            real = next;
        }
        Ok(real)
    }

    /// Where a path leads, from the root and without links; `None` where nothing is.
    fn relative(&self, path: impl AsRef<Path>) -> Result<Option<PathBuf>> {
        let path = path.as_ref();
        let failed = || format!("cannot look at /{}", escaped(path));
        let text = path.to_str().with_context(failed)?;
        match real_path(self.top, text) {
            Ok(real) => {
                let inside = real.strip_prefix(self.top).with_context(failed)?;
                Ok(Some(inside.to_owned()))
            }
            Err(error) if is_nothing(&error) => Ok(None),
            Err(error) => Err(error).with_context(failed),
        }
    }

    /// The same for a name itself, in the directory that its path leads to.
    fn entry(&self, path: &str) -> Result<Option<PathBuf>> {
        let (above, name) = path.rsplit_once('/').unwrap_or_default();
        Ok(self.relative(above)?.map(|above| above.join(name)))
    }

    /// Where a file can be made. Refuses where there is something else.
    fn free(&self, path: &str) -> Result<PathBuf> {
        let entry = self
            .entry(path)?
            .with_context(|| format!("/{path} has no directory"))?;
        ensure!(
            self.stat(&entry)?.is_none(),
            "/{path} is no file of this tree, and one is needed there; remove it"
        );
        Ok(entry)
    }

    /// A file and its content. What is mounted there is not of this tree.
    fn file(&self, path: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
        let Some(real) = self.relative(path)? else {
            return Ok(None);
        };
        let failed = || format!("cannot read /{path}");
        let Some((dir, name)) = place(self.root, &real).with_context(failed)? else {
            return Ok(None);
        };
        let node = match dir.node(&name) {
            Ok(node) if node.stat.kind == Kind::File => node,
            Ok(_) => return Ok(None),
            Err(error) if is_nothing(&error) => return Ok(None),
            Err(error) => return Err(error).with_context(failed),
        };
        let content = node.read(TEXT_MAX).with_context(failed)?;
        Ok(Some((real, content)))
    }

    fn stat(&self, path: &Path) -> Result<Option<Stat>> {
        let failed = || format!("cannot look at /{}", escaped(path));
        match place(self.root, path).with_context(failed)? {
            Some((dir, name)) => dir.stat_of(&name).with_context(failed),
            None => Ok(None),
        }
    }
}

/// Whether an error says that there is nothing, or that something else is mounted there.
fn is_nothing(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::CrossesDevices
    )
}

/// The directory that a path is in, which has no link in it, and its name there.
fn place(root: &Dir, path: &Path) -> io::Result<Option<(Dir, OsString)>> {
    let dir = root.descend(path.parent().unwrap_or(Path::new("")))?;
    let name = path.file_name().unwrap_or_default();
    Ok(dir.map(|dir| (dir, name.to_owned())))
}

/// The link at a path that leads to another one.
fn link_to(path: &Path, to: &Path) -> PathBuf {
    let up = path.components().skip(1).map(|_| "..");
    up.collect::<PathBuf>().join(to)
}

/// What is done with what was found, if anything.
fn trace(visit: &Visit, traces: &Globs) -> Result<Option<Act>> {
    let [Some(place)] = visit.places else {
        return Ok(None);
    };
    let stat = place.stat;
    // Each journal is in a directory with the name of its machine.
    let is_journal = stat.kind == Kind::Dir && visit.path.parent() == Some(Path::new(JOURNAL));
    let act = if is_journal {
        Act::Remove(stat.kind)
    } else if stat.kind != Kind::File {
        return Ok(None);
    } else if traces.matches(visit.path) {
        Act::Remove(stat.kind)
    } else if !visit.path.starts_with(LOGS) {
        return Ok(None);
    } else if stat.links > 1 || is_old_log(place.name) {
        Act::Remove(stat.kind)
    } else if stat.size > 0 {
        Act::Empty
    } else {
        return Ok(None);
    };
    // In the build of a container some are mounted there, and no part of the tree.
    Ok(place.node()?.map(|_| act))
}

fn is_old_log(name: &OsStr) -> bool {
    let ending = Path::new(name).extension().and_then(OsStr::to_str);
    ending.is_some_and(|ending| {
        OLD_LOGS.contains(&ending) || ending.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// What the file of the machine id is to hold. Both words for no id stay, as they differ: with an empty file the first
/// boot is one as any other (machine-id(5)).
fn machine_id(text: &[u8], systemd: Option<u32>) -> Vec<u8> {
    let (from, word) = UNINITIALIZED;
    let id = text.trim_ascii();
    if id.is_empty() || id == word.trim_ascii() {
        text.to_vec()
    } else if systemd.is_some_and(|version| version >= from) {
        word.to_vec()
    } else {
        Vec::new()
    }
}

/// The version of systemd, by the name of its library.
fn systemd_version(root: &Dir) -> io::Result<Option<u32>> {
    let mut dirs = vec![PathBuf::from("usr/lib"), PathBuf::from("usr/lib64")];
    if let Some(lib) = root.resolve_dir(Path::new("usr/lib"))? {
        // As Debian has them.
        let names = lib.names()?.into_iter();
        let names = names.filter(|name| {
            name.as_encoded_bytes()
                .windows(7)
                .any(|part| part == b"-linux-")
        });
        dirs.extend(names.map(|name| Path::new("usr/lib").join(name)));
    }
    for dir in dirs {
        let Some(dir) = root.resolve_dir(&dir.join("systemd"))? else {
            continue;
        };
        let version = dir.names()?.iter().find_map(|name| {
            let rest = name.to_str()?.strip_prefix("libsystemd-shared-")?;
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        });
        if version.is_some() {
            return Ok(version);
        }
    }
    Ok(None)
}

/// The tree that is changed.
struct Tree {
    root: Dir,
    top: PathBuf,
}

impl Tree {
    fn apply(&self, tx: &mut Transaction, change: &Change) -> Result<()> {
        let failed = || format!("cannot change /{}", escaped(&change.path));
        let work = |interrupt: &Interrupt| self.change(change, interrupt).with_context(failed);
        tx.work(&self.line(change), work)
    }

    /// The change as a line for a shell.
    fn line(&self, change: &Change) -> String {
        let path = self.top.join(&change.path);
        match &change.act {
            Act::Remove(Kind::Dir) => Cmd::new("rm").arg("-r").arg(path).to_string(),
            Act::Remove(_) => Cmd::new("rm").arg(path).to_string(),
            Act::Write(content) => write_line(&path, content),
            Act::Empty => Cmd::new("truncate").args(["-s", "0"]).arg(path).to_string(),
            Act::Make(mode) => {
                let mode = format!("{mode:04o}");
                Cmd::new("mkdir").args(["-m", &mode]).arg(path).to_string()
            }
            Act::Move(to, link) => {
                let moved = Cmd::new("mv").arg(&path).arg(self.top.join(to));
                format!(
                    "{moved} && ln -s {} {}",
                    quote(link.as_os_str()),
                    quote(path.as_os_str())
                )
            }
            Act::Link(to) => Cmd::new("ln").arg("-s").arg(to).arg(path).to_string(),
        }
    }

    fn change(&self, change: &Change, interrupt: &Interrupt) -> Result<()> {
        let (dir, name) = self.place(&change.path)?;
        match &change.act {
            Act::Remove(_) => dir.remove_all(&name)?,
            Act::Write(content) => self.write(&dir, &name, content)?,
            Act::Empty => self.write(&dir, &name, b"")?,
            Act::Make(mode) => {
                dir.make_dir(&name)?;
                dir.set_meta(&name, &self.meta(*mode)?, None)?;
            }
            Act::Move(to, link) => {
                let (to, to_name) = self.place(to)?;
                match to.exchange(&to_name, &dir, &name) {
                    // What a layer of a container has is moved by nobody.
                    Err(error) if error.kind() == ErrorKind::CrossesDevices => {
                        copied(&dir, &name, &to, &to_name, interrupt)?;
                    }
                    moved => moved?,
                }
                dir.make_link(&name, link.as_os_str())?;
            }
            Act::Link(to) => dir.make_link(&name, to.as_os_str())?,
        }
        Ok(())
    }

    fn place(&self, path: &Path) -> Result<(Dir, OsString)> {
        let place = place(&self.root, path)?;
        place.context("its directory is not there, or something is mounted there")
    }

    /// That of a new file: its owner is that of the root.
    fn meta(&self, mode: u32) -> io::Result<Meta> {
        let stat = self.root.stat()?;
        Ok(Meta {
            uid: stat.uid,
            gid: stat.gid,
            mode,
            xattrs: Xattrs::new(),
        })
    }

    /// Puts a file of this content in the place of what has the name. What else has the same file keeps it.
    fn write(&self, dir: &Dir, name: &OsStr, content: &[u8]) -> Result<()> {
        let meta = match dir.stat_of(name)? {
            Some(_) => dir.node(name)?.meta()?,
            None => self.meta(0o644)?,
        };
        let temporary = dir.free_name()?;
        let put = || -> io::Result<()> {
            let mut file = dir.create(&temporary)?;
            file.write_all(content)?;
            file.sync_all()?;
            dir.set_meta(&temporary, &meta, None)?;
            dir.rename(&temporary, name)
        };
        let done = put();
        if done.is_err() {
            // The first error says why.
            let _ = dir.remove(&temporary);
        }
        Ok(done?)
    }
}

/// Copies a directory to another place, and removes it when all of the copy is there.
fn copied(
    from: &Dir,
    name: &OsStr,
    to: &Dir,
    to_name: &OsStr,
    interrupt: &Interrupt,
) -> Result<()> {
    let temporary = to.free_name()?;
    to.make_dir(&temporary)?;
    let copy = || -> Result<()> {
        let source = Source {
            root: &from.child(name)?,
            zeros_are_holes: false,
        };
        let mut progress = Progress::new("packages", 0);
        sync(
            &source,
            &to.child(&temporary)?,
            None,
            u64::MAX,
            interrupt,
            &mut progress,
        )?;
        Ok(to.rename(&temporary, to_name)?)
    };
    if let Err(error) = copy() {
        to.remove_all(&temporary)?;
        return Err(error);
    }
    Ok(from.remove_all(name)?)
}

#[cfg(test)]
mod tests;
