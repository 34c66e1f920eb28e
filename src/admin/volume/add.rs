//! `volume add`.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::copied::Copied;
use super::place::{check_free, check_no_swap, look_at, shown, users_of};
use super::{NEW_INITRAMFS, hand_over_at, mounts_of, systemctl, transaction, wait_for_next_start};
use crate::admin::filesystem::{Filesystem, mount_point};
use crate::admin::{Context, LOCK_WAIT, hooks, news, pool_with_room, say, text, view};
use crate::image::superblock::FsKind;
use crate::image::tree::Content;
use crate::model::layout::{Group, tag};
use crate::model::mount_unit;
use crate::model::name::LvName;
use crate::model::volume::{self, Mount};
use crate::sys::cmd::Cmd;
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// mkfs.xfs(8) makes none that is smaller, in bytes.
const XFS_LEAST: u64 = 300 << 20;

/// What the label of an XFS can hold.
const LABEL_MAX: usize = 12;

/// What `volume add` is told. The size is in bytes.
pub struct Add<'a> {
    pub path: &'a str,
    pub size: u64,
    pub fstype: FsKind,
    pub options: &'a str,
    /// Whether nothing is copied.
    pub empty: bool,
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
pub fn add(context: &Context, add: &Add) -> Result<()> {
    let path = volume::path(add.path)?;
    volume::check_no_record(&path)?;
    volume::check_options(add.options)?;
    Filesystem::check_tools(add.fstype)?;
    let writer = context.writer("volume add", LOCK_WAIT)?;
    let (mut added, mut said) = (None, String::new());
    transaction(&writer, &mut |tx| {
        // Refused again with the lock, but no file is counted in vain.
        ready(context, &path)?;
        let is_there = look_at(&path)?;
        check_no_swap(&path)?;
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
        let group = ready(context, &path)?;
        let name = volume::name_for(&path, &|name| group.volume(name).is_some())?;
        group.name.dm_name(&name)?;
        let mount = Mount {
            path: path.clone(),
            name: name.to_string(),
            options: add.options.to_owned(),
            moving: when == When::Moved,
        };
        let mut tags = mount.tags()?;
        if mount.moving {
            // Another layer has other files there.
            tags.extend(view::booted(&group)?.map(|layer| format!("{}{layer}", tag::OF)));
        }
        check_room(&path, source.as_ref(), pool_with_room(&group)?)?;
        let filesystem = create(context, tx, &group, &mount, add)?;
        try_options(tx, &filesystem, &mount, is_there)?;
        let room = context.room_when_active(&group)?;
        let copy = match &source {
            Some(source) if when == When::Now => {
                let copy = context
                    .filling_pool(tx, &group, |tx| source.copy(tx, &mount, &filesystem, room))?;
                source.complete(tx, &mount)?;
                Some(copy)
            }
            Some(source) if when == When::Moved => {
                context.filling_pool(tx, &group, |tx| {
                    source.copy_ahead(tx, &mount, &filesystem, room)
                })?;
                None
            }
            _ => None,
        };
        // The lock was free.
        ready(context, &path)?;
        // That can take minutes. After it the volume is recorded, and mounted at once.
        let mut compared = None;
        if let (Some(source), Some(copy)) = (&source, copy) {
            if !context.dry_run {
                compared = Some(source.check_copy(tx, &mount)?);
            }
            copy.unmount(tx)?;
        }
        if when == When::Next {
            // Else `check` would take it for one that was to be mounted at once.
            wait_for_next_start(context, tx, &path)?;
        }
        tx.run(&context.lvm.commit_active(&name, &tags))?;
        if when != When::Next {
            hand_over_at(context, tx, &path, Some(mount.clone()))?;
        }
        begin(tx, &mount, when)?;
        if let Some(source) = source {
            // A program that nobody saw may have written there until now.
            if let Some(compared) = &compared {
                source.tell_of_changes(compared, &mount);
            }
            source.mounted.unmount(tx)?;
        }
        said = announced(&format!("{}/{name}", group.name), &path, when, &users);
        added = Some(name);
        Ok(())
    })?;
    if let Some(name) = &added {
        news::volume_added(context, name, &path);
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

/// The group. Refuses where another volume cannot be made for this path.
fn ready(context: &Context, path: &str) -> Result<Group> {
    let group = context.load()?;
    check_running(&group)?;
    context.check_pool(&group)?;
    check_free(path, &mounts_of(&group))?;
    Ok(group)
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

/// Mounts the volume as layers will: they do not come up where that fails. Its top gets what the directory has beside
/// its content, if that is there: also ACLs and a security label.
fn try_options(
    tx: &mut Transaction,
    filesystem: &Filesystem,
    mount: &Mount,
    is_there: bool,
) -> Result<()> {
    let dir = mount_point(&mount.name);
    let options = match mount.options.as_str() {
        "" => "rw",
        options => options,
    };
    let mounted = filesystem.mount(tx, &dir, options)?;
    mounted.unmount(tx)?;
    if !is_there {
        return Ok(());
    }
    let mounted = filesystem.mount(tx, &dir, "rw")?;
    let line = |program| {
        let reference = format!("--reference={}", mount.path);
        Cmd::new(program).arg(reference).arg(&dir).to_string()
    };
    let line = format!("{} && {} # attributes too", line("chown"), line("chmod"));
    tx.work(&line, |_| make_like(Path::new(&mount.path), &dir))?;
    mounted.unmount(tx)
}

/// Has a directory have what another one has beside its content.
fn make_like(from: &Path, to: &Path) -> Result<()> {
    let make = || -> Result<()> {
        let top = OsStr::new(".");
        let meta = Dir::root(from)?.node(top)?.meta()?;
        Ok(Dir::root(to)?.set_meta(top, &meta, None)?)
    };
    make().with_context(|| format!("cannot make {} like {}", to.display(), from.display()))
}

pub fn make(
    tx: &mut Transaction,
    kind: FsKind,
    device: &Path,
    is_zero: bool,
    mount: &Mount,
) -> Result<Filesystem> {
    let label = &mount.name[..mount.name.len().min(LABEL_MAX)];
    Filesystem::make(tx, kind, device, is_zero, Some(label))
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
pub fn check_room(path: &str, source: Option<&Copied>, room: u64) -> Result<()> {
    let needed = source.map_or(0, |source| source.size.bytes);
    ensure!(
        needed <= room,
        "the thin pool has no room: {path} holds {}, {} are left",
        text::size(needed),
        text::size(room)
    );
    Ok(())
}

/// Refuses where what runs would not mount the volume at its next start.
fn check_running(group: &Group) -> Result<()> {
    ensure!(
        view::booted_layer(group)?.is_some(),
        "no layer of {} runs; a volume is made from the layer whose directory it takes over",
        group.name
    );
    ensure!(
        Path::new(run::VOLUMES).exists(),
        "the initramfs that this layer was booted with mounts no volumes, as it is of an earlier version; {NEW_INITRAMFS}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{Mode, XattrFlags, chmod, lsetxattr};

    #[test]
    fn the_top_of_a_volume_is_like_the_directory_that_it_is_mounted_on() {
        let parent = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| parent.path().join(name));
        let meta = |path: &Path| {
            let node = Dir::root(path).unwrap().node(OsStr::new(".")).unwrap();
            node.meta().unwrap()
        };
        for path in [&from, &to] {
            std::fs::create_dir(path).unwrap();
        }
        chmod(&from, Mode::from_raw_mode(0o1751)).unwrap();
        // Not every filesystem takes it.
        let set =
            |path: &Path, name: &str| lsetxattr(path, name, b"x", XattrFlags::empty()).is_ok();
        let takes_attributes = set(&from, "user.note") && set(&to, "user.other");
        make_like(&from, &to).unwrap();
        let found = meta(&to);
        assert_eq!(found, meta(&from));
        assert_eq!(found.mode, 0o1751);
        assert_eq!(
            found.xattrs.contains_key(OsStr::new("user.note")),
            takes_attributes
        );
    }
}
