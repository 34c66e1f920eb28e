//! `volume`: directories that all layers share, each on a volume of its own.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use nix::sys::statvfs::statvfs;
use rustix::fs::OFlags;
use serde::Serialize;

use super::cli::parse_fstype;
use super::filesystem::{self, Filesystem, Mounted, mount_point};
use super::view::{self, JSON_VERSION};
use super::{Context, LOCK_WAIT, hooks, pool_with_room, say, text};
use crate::image::superblock::FsKind;
use crate::image::tree::{Content, Tree as Source};
use crate::model::layout::{Group, Role, Volume, tag};
use crate::model::name::LvName;
use crate::model::volume::{self, Mount, Volumes};
use crate::model::{fstab, mount_unit};
use crate::sys::cmd::Cmd;
use crate::sys::progress::Progress;
use crate::sys::transaction::{Transaction, Writer};
use crate::sys::{holders, mounts, probe, rooted, run};
use crate::tree::{Below, Dir, Kind, Place, Visit, escaped, walk};

/// Units of the administrator, which come before those of a generator.
const OWN_UNITS: &str = "/etc/systemd/system";
/// Where the journal keeps its files open.
const JOURNAL: &str = "/var/log/journal";
/// mkfs.xfs(8) makes none that is smaller, in bytes.
const XFS_LEAST: u64 = 300 << 20;
/// What the label of an XFS can hold.
const LABEL_MAX: usize = 12;
/// What to do where an initramfs is older than volumes.
const NEW_INITRAMFS: &str =
    "make it anew with dracut(8), run `imgbased-helper boot refresh`, and restart";
/// So many processes are named in a message.
const SHOWN_MAX: usize = 3;

#[derive(Subcommand)]
pub enum Verb {
    /// Make a volume for a directory, such as /home or /var, with what the running layer has there
    ///
    /// From then on every layer mounts it, also an older one. A directory that programs use, such as /var, moves when
    /// the system goes down, and is on its volume at the next start. What the layer has there stays below it.
    Add {
        /// Directory; it need not be there
        path: String,
        /// Size of the volume, such as 4G. It takes what is written to it
        #[arg(long, value_parser = text::parse_size)]
        size: u64,
        /// Filesystem to make: ext4 or xfs
        #[arg(long, value_name = "TYPE", value_parser = parse_fstype, default_value = "ext4")]
        fstype: FsKind,
        /// Options of the mount, with commas
        #[arg(long, default_value = "", hide_default_value = true)]
        options: String,
        /// Copy nothing
        #[arg(long)]
        empty: bool,
    },
    /// List the volumes that layers share
    List,
    /// Make a volume and its filesystem larger, also while it is mounted
    Grow {
        /// Directory that is on the volume
        path: String,
        /// New size of the volume, such as 8G
        #[arg(value_parser = text::parse_size)]
        size: u64,
    },
    /// Have the layers use their own directory again; the volume stays, but for its tags
    Remove {
        /// Directory that is on the volume
        path: String,
        /// Remove the volume as well, with all that is on it
        #[arg(long)]
        delete: bool,
    },
    /// Copy what moves to a volume, as imgbased-move.service does when the system goes down
    Move,
}

/// What `volume add` is told. The size is in bytes.
struct Add<'a> {
    path: &'a str,
    size: u64,
    fstype: FsKind,
    options: &'a str,
    /// Whether nothing is copied.
    empty: bool,
}

pub fn run(context: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Add {
            path,
            size,
            fstype,
            options,
            empty,
        } => {
            let add = Add {
                path: &path,
                size,
                fstype,
                options: &options,
                empty,
            };
            self::add(context, &add)
        }
        Verb::List => list(context),
        Verb::Grow { path, size } => grow(context, &path, size),
        Verb::Remove { path, delete } => remove(context, &path, delete),
        Verb::Move => move_all(context),
    }
}

/// What the verbs do as one transaction. All of them hand over the same type, so the code of one is there once.
type Work<'a> = &'a mut dyn FnMut(&mut Transaction) -> Result<()>;

fn transaction(writer: &Writer, work: Work) -> Result<()> {
    writer.transaction(work)
}

fn unlocked(tx: &mut Transaction, work: Work) -> Result<()> {
    tx.unlocked(work)
}

/// When layers mount a new volume.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    Now,
    /// At the next start, with the content that its path has when the system goes down.
    Moved,
    /// At the next start.
    Next,
}

/// Makes a volume for a directory of the layer that runs. The lock is free while its files are counted and copied.
fn add(context: &Context, add: &Add) -> Result<()> {
    let path = volume::path(add.path)?;
    volume::check_options(add.options)?;
    Filesystem::check_tools(add.fstype)?;
    let writer = context.writer("volume add", LOCK_WAIT)?;
    let (mut added, mut said) = (None, String::new());
    transaction(&writer, &mut |tx| {
        // Refused again with the lock, but no file is counted in vain.
        ready(context, &path)?;
        let is_there = look_at(&path)?;
        let users = users_of(&path)?;
        let source = if is_there && !add.empty {
            Some(Copied::open(context, tx, &path)?)
        } else {
            None
        };
        check_size(add, source.as_ref())?;
        let when = match &source {
            _ if users.is_empty() => When::Now,
            Some(_) => When::Moved,
            None => When::Next,
        };
        tx.lock()?;
        let (group, _) = ready(context, &path)?;
        let name = volume::name_for(&path, &|name| group.volume(name).is_some())?;
        group.name.dm_name(&name)?;
        let mount = Mount {
            path: path.clone(),
            name: name.to_string(),
            options: add.options.to_owned(),
            moving: when == When::Moved,
        };
        let tags = mount.tags()?;
        check_room(&path, source.as_ref(), pool_with_room(&group)?)?;
        let filesystem = create(context, tx, &group, &mount, add)?;
        let room = context.room_when_active(&group)?;
        let copy = match &source {
            Some(source) if when == When::Now => {
                Some(source.copy(tx, &mount, &filesystem, room)?)
            }
            _ => None,
        };
        // The lock was free.
        let (_, others) = ready(context, &path)?;
        tx.run(&context.lvm.commit_active(&name, &tags))?;
        if when != When::Next {
            hand_over(context, tx, others, Some(mount.clone()))?;
        }
        if let (Some(source), Some(copy)) = (&source, copy) {
            source.check_copy(context, tx, &mount)?;
            copy.unmount(tx)?;
        }
        if let Some(source) = source {
            source.mounted.unmount(tx)?;
        }
        begin(tx, &mount, when)?;
        said = announced(&format!("{}/{name}", group.name), &path, when, &users);
        added = Some(name);
        Ok(())
    })?;
    if let Some(name) = &added {
        hooks::after_volume(context, &writer, "volume-added", name, &path);
    }
    if context.dry_run {
        return Ok(());
    }
    say(&said)
}

/// What becomes of a new volume, for people.
fn announced(name: &str, path: &str, when: When, users: &[String]) -> String {
    let users = shown(users);
    match when {
        When::Now => format!("{path} is on {name} now\n"),
        When::Moved => format!(
            "{path} is in use by {users}; it moves to {name} when this system goes down, and is there at the next start\n"
        ),
        When::Next => {
            format!("{path} is in use by {users}; {name} is mounted there from the next start on\n")
        }
    }
}

/// The group and the volumes that are mounted already. Refuses where another one cannot be made for this path.
fn ready(context: &Context, path: &str) -> Result<(Group, Vec<Mount>)> {
    let group = context.load()?;
    check_running(&group)?;
    context.check_pool(&group)?;
    let others = mounts_of(&group);
    check_free(path, &others)?;
    Ok((group, others))
}

/// Mounts a new volume, or has its content copied when the system goes down.
fn begin(tx: &mut Transaction, mount: &Mount, when: When) -> Result<()> {
    let unit = match when {
        When::Now => mount_unit::name(&mount.path),
        When::Moved => mount_unit::MOVE.to_owned(),
        When::Next => return Ok(()),
    };
    let since = match when {
        When::Now => users_of(&mount.path)?,
        _ => Vec::new(),
    };
    ensure!(
        since.is_empty(),
        "{} is in use by {} since it was copied; try it again",
        mount.path,
        shown(&since)
    );
    tx.run_undoable(&systemctl("start", &unit), systemctl("stop", &unit))?;
    Ok(())
}

/// Makes the volume and its filesystem.
fn create(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    mount: &Mount,
    add: &Add,
) -> Result<Filesystem> {
    let lvm = &context.lvm;
    let name: LvName = mount.name.parse()?;
    let pool = group.pool().context("there is a pool")?;
    let create = lvm.create_thin(&name, &pool.name.parse()?, add.size, false);
    tx.run_undoable(&create, lvm.remove(&name))?;
    make(tx, add.fstype, &lvm.device(&name)?, pool.zeroes, mount)
}

fn make(
    tx: &mut Transaction,
    kind: FsKind,
    device: &Path,
    is_zero: bool,
    mount: &Mount,
) -> Result<Filesystem> {
    let label = &mount.name[..mount.name.len().min(LABEL_MAX)];
    Filesystem::make(tx, kind, device, is_zero, Some(label))
}

/// A directory of the layer that runs, without what is mounted below it.
struct Copied {
    dir: PathBuf,
    mounted: Mounted,
    size: Content,
}

impl Copied {
    fn open(context: &Context, tx: &mut Transaction, path: &str) -> Result<Self> {
        let dir = mount_point("moved");
        let mounted = filesystem::mount_again(tx, Path::new(path), &dir)?;
        let mut size = Content::default();
        if !context.dry_run {
            let source = Source::Directory(dir.clone());
            unlocked(tx, &mut |tx| {
                size = source.measure(tx.interrupt())?.0;
                Ok(())
            })?;
        }
        Ok(Self { dir, mounted, size })
    }

    /// Copies it to the volume, which stays mounted. The lock is free meanwhile.
    fn copy(
        &self,
        tx: &mut Transaction,
        mount: &Mount,
        filesystem: &Filesystem,
        room: u64,
    ) -> Result<Mounted> {
        let to = mount_point(&mount.name);
        let volume = filesystem.mount(tx, &to, "rw")?;
        let source = Source::Directory(self.dir.clone());
        unlocked(tx, &mut |tx| {
            tx.work(&source.copy_line(&to), |interrupt| {
                let mut progress = Progress::new(&mount.path, self.size.bytes);
                source.copy(&to, room, interrupt, &mut progress)
            })?;
            tx.flush(&to)
        })?;
        Ok(volume)
    }

    /// Refuses where something was changed since it was copied.
    fn check_copy(&self, context: &Context, tx: &Transaction, mount: &Mount) -> Result<()> {
        if context.dry_run {
            return Ok(());
        }
        let to = mount_point(&mount.name);
        let roots = [Some(Dir::root(&self.dir)?), Some(Dir::root(&to)?)];
        walk(&roots, None, &mut |visit| {
            tx.interrupt().check()?;
            ensure!(
                is_copied(visit),
                "{}/{} was changed while it was copied; try it again when nothing writes there",
                mount.path,
                escaped(visit.path)
            );
            Ok(Below::Visit)
        })
    }
}

/// Whether a path is the same in both trees, by what shows without reading it.
fn is_copied(visit: &Visit) -> bool {
    match visit.places {
        [Some(from), Some(to)] => is_same(from, to),
        // No program finds its socket there after a restart.
        [Some(from), None] => from.stat.kind == Kind::Socket,
        // mke2fs(8) makes it.
        _ => visit.path.starts_with("lost+found"),
    }
}

fn is_same(from: &Place, to: &Place) -> bool {
    let (a, b) = (&from.stat, &to.stat);
    let content = |stat: &crate::tree::Stat| match stat.kind {
        // That of a directory is visited.
        Kind::Dir => (0, (0, 0)),
        _ => (stat.size, stat.mtime),
    };
    (a.kind, a.mode, a.uid, a.gid, a.device) == (b.kind, b.mode, b.uid, b.gid, b.device)
        && content(a) == content(b)
}

/// Refuses a volume that is too small for what is to be on it.
fn check_size(add: &Add, source: Option<&Copied>) -> Result<()> {
    let least = match add.fstype {
        FsKind::Ext4 => 0,
        FsKind::Xfs => XFS_LEAST,
    };
    let content = source.map_or_else(Content::default, |source| source.size);
    let least = least.max(content.least_size());
    ensure!(
        add.size >= least,
        "--size {} is too small: {} needs {} at least for what it holds now",
        text::size(add.size),
        add.path,
        text::size(least)
    );
    Ok(())
}

/// Refuses a pool without room for the copy.
fn check_room(path: &str, source: Option<&Copied>, room: u64) -> Result<()> {
    let needed = source.map_or(0, |source| source.size.bytes);
    ensure!(
        needed <= room,
        "the thin pool has no room: {path} holds {}, {} are left",
        text::size(needed),
        text::size(room)
    );
    Ok(())
}

/// Whether there is a directory at `path`. Refuses a path with a link in it: in another layer it can lead elsewhere.
fn look_at(path: &str) -> Result<bool> {
    let root = File::open("/").context("cannot open /")?;
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    for above in Path::new(path).ancestors() {
        let inside = above.to_string_lossy();
        let inside = inside.trim_start_matches('/');
        if inside.is_empty() {
            break;
        }
        match rooted::open_beneath(&root, inside, directory) {
            Ok(_) => return Ok(above == Path::new(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                let real = fs::canonicalize(above).unwrap_or_default();
                bail!(
                    "{} is a symbolic link or has one in it; give the path that it leads to: {}",
                    above.display(),
                    real.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", above.display()));
            }
        }
    }
    Ok(false)
}

/// Who uses a directory, so that nothing can be mounted there, or unmounted. Of /var there is always somebody.
fn users_of(path: &str) -> Result<Vec<String>> {
    let mut users = holders::of(Path::new(path));
    for mount in mounts::all()? {
        if mount.point != Path::new(path) && mount.point.starts_with(path) {
            users.push(format!("the mount at {}", mount.point.display()));
        }
    }
    if users.is_empty() && path == "/var" {
        users.push("the system".to_owned());
    }
    Ok(users)
}

/// The first of them, and how many there are.
fn shown(users: &[String]) -> String {
    let first = users.iter().take(SHOWN_MAX).map(String::as_str);
    let first = first.collect::<Vec<_>>().join(", ");
    match users.len().saturating_sub(SHOWN_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Refuses where something else is mounted at a path, or would be.
fn check_free(path: &str, others: &[Mount]) -> Result<()> {
    if let Some(other) = others.iter().find(|other| other.path == path) {
        bail!("{path} is a volume already: {}", other.name);
    }
    let at = Path::new(path);
    ensure!(
        mounts::all()?.iter().all(|mount| mount.point != at),
        "something else is mounted at {path}; unmount it, and see that nothing mounts it again"
    );
    let fstab = fs::read("/etc/fstab").unwrap_or_default();
    ensure!(
        !fstab::has(&fstab, path),
        "/etc/fstab has a line for {path}, which would count in this layer; remove that first"
    );
    let unit = Path::new(OWN_UNITS).join(mount_unit::name(path));
    ensure!(
        fs::symlink_metadata(&unit).is_err(),
        "{} is there, and would count in this layer; remove it first",
        unit.display()
    );
    Ok(())
}

/// Refuses where what runs would not mount the volume at its next start.
fn check_running(group: &Group) -> Result<()> {
    let booted = view::booted(group)?;
    let volume = booted.and_then(|name| group.volume(&name));
    ensure!(
        volume.is_some_and(|volume| volume.role == Role::Layer),
        "no layer of {} runs; a volume is made from the layer whose directory it takes over",
        group.name
    );
    ensure!(
        Path::new(run::VOLUMES).exists(),
        "the initramfs that this layer was booted with mounts no volumes, as it is of an earlier version; {NEW_INITRAMFS}"
    );
    Ok(())
}

/// The volumes that the layer that runs does not have mounted although they are due, each with what to do.
pub fn unmounted(context: &Context, group: &Group) -> Result<Vec<(Mount, String)>> {
    let booted = view::booted(group)?.and_then(|name| group.volume(&name));
    if booted.is_none_or(|volume| volume.role != Role::Layer) {
        return Ok(Vec::new());
    }
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    let mut found = Vec::new();
    for mount in volume::mounts_of(group, &mut |_| ()) {
        let is_due = |handed: &Volumes| handed.volumes.contains(&mount);
        if mount.moving
            || !handed.as_ref().is_none_or(is_due)
            || is_mounted(context, &mount.name, &mount.path)?
        {
            continue;
        }
        let advice = match handed {
            None => NEW_INITRAMFS.to_owned(),
            Some(_) => format!(
                "`systemctl status '{}'` says why",
                mount_unit::name(&mount.path)
            ),
        };
        found.push((mount, advice));
    }
    Ok(found)
}

/// Where the volumes of a group are mounted.
fn mounts_of(group: &Group) -> Vec<Mount> {
    volume::mounts_of(group, &mut |problem| log::warn!("{problem}"))
}

/// Has systemd know of these volumes and of one more.
fn hand_over(
    context: &Context,
    tx: &mut Transaction,
    volumes: Vec<Mount>,
    new: Option<Mount>,
) -> Result<()> {
    let reload = Cmd::new("systemctl").arg("daemon-reload");
    // After the file is what it was.
    tx.on_failure(reload.clone());
    write_volumes(context, tx, volumes, new)?;
    tx.run(&reload)
}

/// Leaves word of them for the generator of mount units.
fn write_volumes(
    context: &Context,
    tx: &mut Transaction,
    mut volumes: Vec<Mount>,
    new: Option<Mount>,
) -> Result<()> {
    if let Some(new) = new {
        let at = volumes.partition_point(|other| other.path < new.path);
        volumes.insert(at, new);
    }
    let volumes = Volumes {
        version: 1,
        vg: context.lvm.vg().to_string(),
        volumes,
    };
    tx.create_dir(Path::new(run::DIR))?;
    let text = serde_json::to_vec_pretty(&volumes)?;
    tx.write(Path::new(run::VOLUMES), &text, 0o644)
}

fn systemctl(verb: &str, unit: &str) -> Cmd {
    Cmd::new("systemctl").args([verb, "--", unit])
}

/// The volume of a path.
fn find<'a>(group: &'a Group, mounts: &[Mount], path: &str) -> Result<(&'a Volume, Mount)> {
    let mount = mounts.iter().find(|mount| mount.path == path);
    let mount = mount.with_context(|| {
        format!("{path} is no volume; `imgbased-helper volume list` shows those that there are")
    })?;
    let volume = group.volume(&mount.name).context("it is in the group")?;
    Ok((volume, mount.clone()))
}

/// Whether a volume is what is mounted at a path.
fn is_mounted(context: &Context, name: &str, path: &str) -> Result<bool> {
    let dm_name = context.lvm.vg().dm_name(&name.parse()?)?;
    let mounted = mounts::dm_name_at(Path::new(path)).ok().flatten();
    Ok(mounted == Some(dm_name) && mounts::is_mount_point(Path::new(path))?)
}

/// Makes a volume and its filesystem larger. What is larger stays so when the filesystem cannot follow, and it can be
/// tried again.
fn grow(context: &Context, path: &str, size: u64) -> Result<()> {
    let path = volume::path(path)?;
    let writer = context.locked_writer("volume grow")?;
    transaction(&writer, &mut |tx| {
        let group = context.load()?;
        context.check_pool(&group)?;
        pool_with_room(&group)?;
        let (volume, mount) = find(&group, &mounts_of(&group), &path)?;
        ensure!(
            size >= volume.size,
            "{path} has {} already, and a volume does not become smaller",
            text::size(volume.size)
        );
        let name: LvName = mount.name.parse()?;
        let _look = context.look(&group, &name)?;
        context.activated(tx, &name, volume.active, |tx| {
            let filesystem = Filesystem::on(&context.lvm.device(&name)?)?;
            Filesystem::check_tools(filesystem.kind)?;
            if !is_mounted(context, &mount.name, &path)? {
                filesystem.check(tx, false)?;
            }
            if size > volume.size {
                tx.run(&context.lvm.extend(&name, size))?;
            }
            filesystem.grow(tx)
        })
    })?;
    if context.dry_run {
        return Ok(());
    }
    say(&format!("{path} has {} now\n", text::size(size)))
}

/// Has the layers use their own directory again. The volume stays, and is none of ours any more; with `delete` it is
/// removed.
fn remove(context: &Context, path: &str, delete: bool) -> Result<()> {
    let path = volume::path(path)?;
    let writer = context.locked_writer("volume remove")?;
    let (mut removed, mut said) = (None, String::new());
    transaction(&writer, &mut |tx| {
        let group = context.load()?;
        let mut mounts = mounts_of(&group);
        let (volume, mount) = find(&group, &mounts, &path)?;
        mounts.retain(|other| other.path != path);
        let (lvm, name) = (&context.lvm, mount.name.parse::<LvName>()?);
        let is_mounted = is_mounted(context, &mount.name, &path)?;
        let users = if is_mounted {
            users_of(&path)?
        } else {
            Vec::new()
        };
        let stays = !users.is_empty() || is_mounted && mount.is_required();
        if delete {
            context.check_pool(&group)?;
            ensure!(
                !stays,
                "{path} is in use by {}; without --delete its layers have their own again from the next start on, and \
                 `lvremove {}/{name}` removes the volume then",
                if users.is_empty() {
                    "the system".to_owned()
                } else {
                    shown(&users)
                },
                group.name
            );
        }
        if is_mounted && !stays {
            let unit = mount_unit::name(&path);
            tx.run_undoable(&systemctl("stop", &unit), systemctl("start", &unit))?;
        }
        hand_over(context, tx, mounts, None)?;
        if delete {
            // Nothing takes that back.
            tx.run(&lvm.remove(&name))?;
        } else {
            let is_of_it = |tag: &&str| {
                let values = [tag::MOUNT, tag::MOVING, tag::MOUNT_OPTIONS];
                *tag == tag::VOLUME || values.iter().any(|value| tag.starts_with(value))
            };
            let tags = volume.tags.iter().map(String::as_str);
            let tags: Vec<&str> = tags.filter(is_of_it).collect();
            tx.run(&lvm.retag(&name, &tags, None))?;
        }
        let full = format!("{}/{name}", group.name);
        let kept = match (delete, stays) {
            (true, _) => format!("{full} is gone"),
            (_, false) => format!("{full} is kept; lvremove(8) removes it"),
            (_, true) => {
                format!("{full} is mounted until then, and is kept; lvremove(8) removes it")
            }
        };
        let from = if stays {
            "from the next start on"
        } else {
            "again"
        };
        said = format!("each layer has its own {path} {from}; {kept}\n");
        removed = Some(name);
        Ok(())
    })?;
    if let Some(name) = &removed {
        hooks::after_volume(context, &writer, "volume-removed", name, &path);
    }
    if context.dry_run {
        return Ok(());
    }
    say(&said)
}

/// Copies what waits for it to its volume. Does nothing while the system runs: what is written afterwards would stay
/// behind.
fn move_all(context: &Context) -> Result<()> {
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    if handed.is_none_or(|handed| handed.volumes.iter().all(|mount| !mount.moving)) {
        return Ok(());
    }
    let state = Cmd::new("systemctl")
        .arg("is-system-running")
        .accept(&[0, 1]);
    if state.run()?.trim() != "stopping" {
        log::warn!("nothing moves before the system goes down");
        return Ok(());
    }
    let writer = context.locked_writer("volume move")?;
    let mut moved = Ok(());
    for mount in mounts_of(&context.load()?)
        .into_iter()
        .filter(|mount| mount.moving)
    {
        let done = transaction(&writer, &mut |tx| move_one(context, tx, &mount));
        moved = moved.and(done.with_context(|| format!("{} stays where it is", mount.path)));
        writer.check_interrupt()?;
    }
    moved
}

fn move_one(context: &Context, tx: &mut Transaction, mount: &Mount) -> Result<()> {
    let group = context.load()?;
    context.check_pool(&group)?;
    let room = pool_with_room(&group)?;
    let (volume, _) = find(&group, std::slice::from_ref(mount), &mount.path)?;
    let (lvm, name) = (&context.lvm, mount.name.parse::<LvName>()?);
    let device = lvm.device(&name)?;
    if !volume.active {
        tx.run_undoable(&lvm.activate(&name), lvm.deactivate(&name))?;
    }
    if Path::new(JOURNAL).starts_with(&mount.path) {
        // Its last lines stay in memory, else it would write on.
        let journal = |verb| Cmd::new("journalctl").arg(verb);
        tx.run_undoable(&journal("--relinquish-var"), journal("--flush"))?;
    }
    let source = Copied::open(context, tx, &mount.path)?;
    check_room(&mount.path, Some(&source), room)?;
    // An attempt that was interrupted has left its part.
    let kind = Filesystem::on(&device).map_or(FsKind::Ext4, |found| found.kind);
    tx.run(&Cmd::new("blkdiscard").arg("--force").arg(&device))?;
    let zeroes = group.pool().is_some_and(|pool| pool.zeroes);
    let filesystem = make(tx, kind, &device, zeroes, mount)?;
    let copy = source.copy(tx, mount, &filesystem, room)?;
    copy.unmount(tx)?;
    source.mounted.unmount(tx)?;
    let moved = Mount {
        moving: false,
        ..mount.clone()
    };
    let mut others = mounts_of(&context.load()?);
    others.retain(|other| other.path != mount.path);
    // What starts next without an initramfs, after a soft reboot, mounts it.
    write_volumes(context, tx, others, Some(moved.clone()))?;
    tx.run(&lvm.retag(&name, &[&mount.path_tag()], Some(&moved.path_tag())))
}

/// Sizes are bytes.
#[derive(Serialize)]
struct Row {
    /// Of Config, and of what is not mounted anywhere, none is known.
    path: Option<String>,
    name: String,
    /// Only an active volume shows it.
    fstype: Option<String>,
    size: u64,
    /// Only a mounted one tells it.
    used: Option<u64>,
    mounted: bool,
    required: bool,
    options: String,
    /// Whether it waits for the content of the path.
    moving: bool,
}

#[derive(Serialize)]
struct List {
    version: u32,
    volumes: Vec<Row>,
}

/// Lists the volumes that layers share, also those that imgbased made.
fn list(context: &Context) -> Result<()> {
    let group = context.load()?;
    let mounts = mounts_of(&group);
    let mut rows: Vec<Row> = Vec::new();
    for volume in group.with_role(Role::Volume) {
        let row = row(context, volume, &mounts)?;
        let at = rows.partition_point(|other| (&other.path, &other.name) < (&row.path, &row.name));
        rows.insert(at, row);
    }
    let list = List {
        version: JSON_VERSION,
        volumes: rows,
    };
    context.show(&list, || {
        let line = |row: &Row| {
            let used = row.used.map(text::size).unwrap_or_default();
            let marks = text::marks(&[
                (true, &row.name),
                (
                    row.fstype.is_some(),
                    row.fstype.as_deref().unwrap_or_default(),
                ),
                (row.used.is_some(), &format!("{used} used")),
                (row.required, "required"),
                (row.moving, "moves when the system goes down"),
                (
                    row.path.is_some() && !row.mounted && !row.moving,
                    "not mounted",
                ),
            ]);
            let path = row.path.clone().unwrap_or_else(|| "-".to_owned());
            (path, format!("{:>10}  {marks}", text::size(row.size)))
        };
        text::columns(&list.volumes.iter().map(line).collect::<Vec<_>>())
    })
}

fn row(context: &Context, volume: &Volume, mounts: &[Mount]) -> Result<Row> {
    let mount = mounts.iter().find(|mount| mount.name == volume.name);
    let path = match mount {
        Some(mount) => Some(mount.path.clone()),
        None => path_of_unit(context, &volume.name),
    };
    let mounted = match &path {
        Some(path) => is_mounted(context, &volume.name, path)?,
        None => false,
    };
    let device = context.lvm.device(&volume.name.parse()?)?;
    let signature = volume
        .active
        .then(|| probe::signature(&device).ok())
        .flatten();
    let space = path
        .as_ref()
        .filter(|_| mounted)
        .and_then(|path| statvfs(path.as_str()).ok());
    Ok(Row {
        name: volume.name.clone(),
        fstype: signature.flatten().map(|signature| signature.kind),
        size: volume.size,
        used: space.map(|space| {
            let used = space.blocks().saturating_sub(space.blocks_free());
            used.saturating_mul(space.fragment_size())
        }),
        mounted,
        required: mount.is_some_and(Mount::is_required),
        options: mount.map_or_else(String::new, |mount| mount.options.clone()),
        moving: mount.is_some_and(|mount| mount.moving),
        path,
    })
}

/// Where a unit of the layer itself mounts a volume: so imgbased does it, and no name of a volume tells for certain
/// which path is meant.
fn path_of_unit(context: &Context, name: &str) -> Option<String> {
    let devices = [
        context.lvm.device(&name.parse().ok()?).ok()?,
        PathBuf::from(format!("/dev/{}/{name}", context.lvm.vg())),
    ];
    for entry in fs::read_dir(OWN_UNITS).ok()?.flatten() {
        if entry.path().extension().is_none_or(|kind| kind != "mount") {
            continue;
        }
        let unit = fs::read_to_string(entry.path()).unwrap_or_default();
        if let Some((device, path)) = mount_unit::device_and_path(&unit)
            && devices.iter().any(|known| known == Path::new(device))
        {
            return Some(path.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_changed_after_the_copy_is_seen() {
        let differs = |change: &str| {
            let dir = tempfile::tempdir().unwrap();
            let script = format!(
                "cd {} && mkdir -p a/d && echo 1 >a/d/file && ln -s x a/link && mkfifo a/pipe && cp -a a b && \
                 mkdir b/lost+found; {change}",
                dir.path().display()
            );
            Cmd::new("sh").args(["-c", &script]).run().unwrap();
            let root = |name: &str| Some(Dir::root(&dir.path().join(name)).unwrap());
            let mut differs = false;
            walk(&[root("a"), root("b")], None, &mut |visit| {
                differs |= !is_copied(visit);
                Ok(Below::Visit)
            })
            .unwrap();
            differs
        };
        for change in [
            "true",
            "touch a/d",
            "perl -MIO::Socket::UNIX -e 'IO::Socket::UNIX->new(Local=>\"a/s\",Listen=>1)'",
        ] {
            assert!(!differs(change), "{change}");
        }
        for change in [
            "echo 2 >a/d/file",
            "touch a/d/file",
            "chmod 600 a/d/file",
            "rm a/pipe",
            "touch a/d/new",
            "ln -sfn yy a/link",
            "rm a/pipe && mkdir a/pipe",
        ] {
            assert!(differs(change), "{change}");
        }
    }

    #[test]
    fn a_directory_is_found_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("home")).unwrap();
        symlink("home", root.join("link")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let look = |path: &str| look_at(root.join(path).to_str().unwrap());
        assert!(look("home").unwrap());
        assert!(!look("home/a/b").unwrap());
        for (path, message) in [
            ("link", "give the path that it leads to"),
            ("link/a", "give the path that it leads to"),
            ("file", "cannot open"),
            ("file/a", "cannot open"),
        ] {
            let error = format!("{:#}", look(path).unwrap_err());
            assert!(error.contains(message), "{path}: {error}");
        }
    }

    #[test]
    fn of_many_users_the_first_are_named() {
        let users = |count: usize| (1..=count).map(|n| format!("{n} (x)")).collect::<Vec<_>>();
        assert_eq!(shown(&users(1)), "1 (x)");
        assert_eq!(shown(&users(5)), "1 (x), 2 (x), 3 (x) and 2 more");
    }
}
