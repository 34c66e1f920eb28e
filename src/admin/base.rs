//! `base`: read-only images that layers start from.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::filesystem::{Filesystem, mount_point};
use super::view::{self, BaseView, JSON_VERSION};
use super::{
    Context, comment, found_status, initramfs, pool_with_room, running_options, say, text,
};
use crate::boot::system::System;
use crate::boot::{BootPartition, Known};
use crate::image::blocks::{self, Target};
use crate::image::stream::Stream;
use crate::image::superblock::{FsKind, Superblock};
use crate::image::tree::Tree;
use crate::image::{Image, copy_line, digest};
use crate::model::fstab;
use crate::model::layout::{Base, Group, tag};
use crate::model::name::{LvName, next_base};
use crate::sys::changes::Changes;
use crate::sys::progress::Progress;

/// Where a squashfs is mounted while it is read.
const IMAGE_MOUNT: &str = "image";
/// A filesystem that is made for a tree of files gets this many times what the files need.
const SPARE_FACTOR: u64 = 2;

/// What `base add` is told. Sizes are bytes.
pub struct Add {
    pub image: PathBuf,
    pub name: Option<LvName>,
    pub size: Option<u64>,
    /// For a tree of files; a filesystem image brings its own.
    pub fstype: Option<FsKind>,
    /// Whether to store once what an earlier base has as well.
    pub share: bool,
}

/// Makes a base from an image.
pub fn add(context: &Context, add: &Add) -> Result<()> {
    let (_lock, mut changes) = context.change().context("base add")?;
    let image = Image::open(&mut changes, &add.image, &mount_point(IMAGE_MOUNT))?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    let room = pool_with_room(&group)?;
    let plan = Plan::new(&changes, add, &image, &group, room)?;
    let Plan { name, size, .. } = &plan;
    boot.entry_of(name)?;
    let fallback_options = running_options(&group, &boot)?;
    let lvm = &context.lvm;
    let device = lvm.device(name)?;

    let target = Target {
        device: &device,
        is_shared: plan.origin.is_some(),
        room,
    };
    let create = match &plan.origin {
        Some((origin, _)) => lvm.create_snapshot(name, origin, None),
        None => lvm.create_thin(name, &plan.pool, *size, true),
    };
    changes.run_undoable(&create, lvm.remove(name))?;
    if plan.origin.as_ref().is_some_and(|(_, have)| have < size) {
        changes.run(&lvm.extend(name, *size))?;
    }
    let filesystem = match &image {
        Image::Filesystem {
            path,
            compression,
            superblock,
        } => {
            let line = copy_line(path, *compression, superblock.size, &target);
            changes.work(&line, |interrupt| {
                let stream = Stream::open(path, *compression)?;
                let total = match compression {
                    Some(_) => path.metadata()?.len(),
                    None => superblock.size,
                };
                let mut progress = Progress::new(name.as_str(), total);
                blocks::copy(stream, superblock.size, &target, interrupt, &mut progress)
            })?;
            fill_up(&mut changes, superblock, &target, *size)?
        }
        Image::Tree(tree) => unpack(&mut changes, tree, &plan, &target)?,
    };
    finish(
        context,
        &mut changes,
        &boot,
        name,
        &filesystem,
        &fallback_options,
    )
    .with_context(|| format!("{} did not become a base", add.image.display()))
}

/// Makes a base of an incomplete, active volume: with an identity of its own, a digest, and an entry
/// for what it boots.
pub fn finish(
    context: &Context,
    changes: &mut Changes,
    boot: &BootPartition,
    name: &LvName,
    filesystem: &Filesystem,
    fallback_options: &str,
) -> Result<()> {
    filesystem.renew_uuid(changes)?;
    let found = context.mounted(changes, name, filesystem, "ro", |changes, root| {
        let has_root = System::at(root)
            .fstab()?
            .is_some_and(|f| fstab::has_root(&f.text));
        let known = Known {
            entries: &[],
            options: fallback_options,
            added: None,
            removed: None,
            is_running: false,
        };
        Ok((initramfs::publish(changes, boot, root, &known)?, has_root))
    })?;
    let mut tags = vec![tag::BASE.to_owned()];
    let entries = match &found {
        Some((kernels, has_root)) => {
            if *has_root {
                tags.push(tag::ROOT_LINE.to_owned());
            }
            let label = format!("{name} digest");
            let digest = digest::of(&context.lvm.device(name)?, &label, changes.interrupt())?;
            tags.push(format!("{}{digest}", tag::SHA256));
            Some(context.entries(name, true, kernels, false)?)
        }
        None => None,
    };
    changes.run(&context.lvm.complete(name, &tags))?;
    changes.keep();
    let Some(entries) = entries else {
        return comment(&format!("the boot entry of {name} is written"));
    };
    boot.write_entries(changes, name, &entries)
        .with_context(|| format!("{name} was made, but has no boot entry"))?;
    changes.keep();
    say(&format!("{name}\n"))
}

/// The name of a new base: the one given, else the next free one. Refuses one that is taken.
pub fn new_name(group: &Group, given: Option<LvName>) -> Result<LvName> {
    let name = match given {
        Some(name) => name,
        None => next_base(group.taken())?,
    };
    ensure!(
        group.volume(name.as_str()).is_none(),
        "{}/{name} exists already",
        group.name
    );
    let same = group
        .bootable()
        .into_iter()
        .find(|n| n.shares_entry_with(&name));
    if let Some(same) = same {
        bail!("GRUB would take the entries of {name} and {same} for one; choose another name");
    }
    // The name of a layer is longer; a base that can have none is of no use.
    group.name.dm_name(&name.layer(u64::from(u32::MAX))?)?;
    Ok(name)
}

/// What is made, decided before anything is.
struct Plan {
    name: LvName,
    pool: LvName,
    /// In bytes.
    size: u64,
    kind: FsKind,
    /// What the files of a tree take, in bytes.
    content: u64,
    /// The base to start as a snapshot of, and its size.
    origin: Option<(LvName, u64)>,
}

impl Plan {
    /// Refuses what cannot be made: for want of room, tools or a name.
    fn new(changes: &Changes, add: &Add, image: &Image, group: &Group, room: u64) -> Result<Self> {
        let name = new_name(group, add.name.clone())?;
        let shown = add.image.display();
        let (least, size, needed, kind) = match image {
            Image::Filesystem { superblock, .. } => {
                ensure!(
                    add.fstype.is_none_or(|kind| kind == superblock.kind),
                    "{shown} is an {} filesystem and stays one",
                    superblock.kind.name()
                );
                (
                    superblock.size,
                    superblock.size,
                    superblock.used,
                    superblock.kind,
                )
            }
            Image::Tree(tree) => {
                let content = tree.measure(changes.interrupt())?;
                let least = content.least_size();
                let size = least.saturating_mul(SPARE_FACTOR);
                (
                    least,
                    size,
                    content.bytes,
                    add.fstype.unwrap_or(FsKind::Ext4),
                )
            }
        };
        Filesystem::check_tools(kind)?;
        // lvm2 takes whole sectors only.
        let size = add.size.unwrap_or(size) / 512 * 512;
        ensure!(
            size >= least,
            "--size {} is less than the {} of {shown}",
            text::size(size),
            text::size(least)
        );
        let nearest = match image {
            Image::Filesystem { .. } if add.share => group.nearest(&name, size),
            _ => None,
        };
        let origin = nearest.map(|base| (base.name, base.volume.size));
        ensure!(
            origin.is_some() || needed <= room,
            "{shown} needs {}, the thin pool has room for {}; extend it with lvextend(8) or remove layers",
            text::size(needed),
            text::size(room)
        );
        let pool = group.pool().context("there is a pool")?;
        Ok(Self {
            name,
            pool: pool.name.parse()?,
            size,
            kind,
            content: needed,
            origin,
        })
    }
}

/// Checks a filesystem that was copied, and lets it fill its volume of `size` bytes.
fn fill_up(
    changes: &mut Changes,
    superblock: &Superblock,
    target: &Target,
    size: u64,
) -> Result<Filesystem> {
    let seedless = superblock.uuid_in_checksums;
    let filesystem = Filesystem::expected(superblock.kind, target.device, seedless);
    filesystem.check(changes, target.is_shared)?;
    if size > superblock.size {
        filesystem.grow(changes)?;
    }
    Ok(filesystem)
}

/// Makes a filesystem and copies a tree of files into it.
fn unpack(changes: &mut Changes, tree: &Tree, plan: &Plan, target: &Target) -> Result<Filesystem> {
    let filesystem = Filesystem::make(changes, plan.kind, target.device)?;
    let dir = mount_point(plan.name.as_str());
    let mounted = filesystem.mount(changes, &dir, "rw")?;
    changes.work(&tree.copy_line(&dir), |interrupt| {
        let mut progress = Progress::new(plan.name.as_str(), plan.content);
        tree.copy(&dir, target.room, interrupt, &mut progress)
    })?;
    mounted.unmount(changes)?;
    filesystem.check(changes, false)?;
    Ok(filesystem)
}

#[derive(Serialize)]
struct List<'a> {
    version: u32,
    bases: &'a [BaseView],
}

/// Lists the bases, oldest first.
pub fn list(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    let list = List {
        version: JSON_VERSION,
        bases: &view.bases,
    };
    context.show(&list, || {
        view.bases.iter().map(|b| format!("{}\n", b.name)).collect()
    })
}

/// Prints the name of the latest base. Refuses when there is none.
pub fn latest(context: &Context) -> Result<()> {
    let group = context.load()?;
    match group.bases().pop() {
        Some(base) => say(&format!("{}\n", base.name)),
        None => bail!("{} has no base", group.name),
    }
}

/// What `base verify` says of a base.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Unchanged,
    Altered,
    /// No digest was recorded, as for the bases that imgbased made.
    Unknown,
}

#[derive(Serialize)]
struct Verified {
    name: String,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Report {
    version: u32,
    bases: Vec<Verified>,
}

/// Reads bases, all if none are named, and says which are not what they were when they were made.
/// The exit status tells whether one was altered.
pub fn verify(context: &Context, names: &[LvName]) -> Result<ExitCode> {
    let (_lock, mut changes) = context.change().context("base verify")?;
    let group = context.load()?;
    let bases = group.bases();
    for name in names {
        ensure!(
            bases.iter().any(|base| base.name == *name),
            "{} has no base {name}",
            group.name
        );
    }
    let mut report = Report {
        version: JSON_VERSION,
        bases: Vec::new(),
    };
    for base in bases
        .iter()
        .filter(|b| names.is_empty() || names.contains(&b.name))
    {
        let verdict = match base.volume.digest() {
            None => Verdict::Unknown,
            Some(wanted) => {
                let found = read_digest(context, &mut changes, base)?;
                if found.is_none_or(|found| found == wanted) {
                    Verdict::Unchanged
                } else {
                    Verdict::Altered
                }
            }
        };
        report.bases.push(Verified {
            name: base.name.to_string(),
            verdict,
        });
    }
    if context.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    context.show(&report, || {
        let line = |base: &Verified| {
            let verdict = match base.verdict {
                Verdict::Unchanged => "unchanged",
                Verdict::Altered => "altered since it was made; do not use it for new layers",
                Verdict::Unknown => "unknown, it has no digest",
            };
            format!("{}: {verdict}\n", base.name)
        };
        report.bases.iter().map(line).collect()
    })?;
    let is_altered = |base: &Verified| base.verdict == Verdict::Altered;
    Ok(found_status(report.bases.iter().any(is_altered)))
}

/// The digest of what a base holds now; nothing in a dry run.
fn read_digest(context: &Context, changes: &mut Changes, base: &Base) -> Result<Option<String>> {
    let name = &base.name;
    context.activated(changes, name, base.volume.active, |changes| {
        if context.dry_run {
            comment(&format!("{name} is read"))?;
            return Ok(None);
        }
        let device = context.lvm.device(name)?;
        digest::of(&device, name.as_str(), changes.interrupt()).map(Some)
    })
}
