//! `layout init`: makes the volume group on empty disks, or takes over a system that is installed on
//! a thin volume already.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::filesystem::{Filesystem, superblock_on};
use super::{
    Context, base, hooks, layer, news, pool_with_room, refuse_incomplete, say, text, view,
};
use crate::image::host::{Host, sector_of};
use crate::image::judge::{self, Place, What};
use crate::image::user_of_disk;
use crate::lvm::disk::{self, Owner};
use crate::lvm::{Located, Lvm, PoolSize};
use crate::model::kernel_options::without_root;
use crate::model::layout::{Group, Role, tag};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::transaction::Transaction;
use crate::sys::{mounts, probe};

/// The share of the group that the pool gets, in percent. The rest is for its growth and repair.
const POOL_PERCENT: u8 = 90;
/// The volume for what is carried from base to base. Thin: it takes what is written to it.
pub const CONFIG: &str = "Config";
const CONFIG_SIZE: u64 = 1 << 30;

/// In bytes, from lvmthin(7): the smallest chunk is the best for snapshots, and metadata cannot be
/// larger than 15.81 GiB.
const LEAST_CHUNK: u64 = 64 << 10;
const METADATA_MAX: u64 = 15 << 30;
/// The smallest group: that of metadata is what lvm2 makes at least (`DEFAULT_THIN_POOL_MIN_METADATA_SIZE`), and it is
/// there twice. A base needs far more.
const GROUP_LEAST: u64 = 64 << 20;
/// What the labels and metadata of the group take at most, and what is lost in extents that are not whole.
const GROUP_METADATA: u64 = 8 << 20;
/// A pool that is smaller does not hold the filesystem of the Config volume.
const CONFIG_LEAST: u64 = 32 << 20;
/// lvm2 wants 4 MiB of it to be free; in a small group it is not to take more than this part.
const METADATA_LEAST: u64 = 64 << 20;
const METADATA_SHARE: u64 = 32;
/// What each chunk of the pool gets of metadata, in bytes: twice what it takes once, for the trees of
/// many snapshots.
const METADATA_PER_CHUNK: u64 = 128;

/// A group that is to be made, with its thin pool and the Config volume. Sizes are bytes.
pub struct NewGroup {
    devices: Vec<PathBuf>,
    data: PoolSize,
    metadata: u64,
    chunk: u64,
    /// What the devices have together.
    size: u64,
}

impl NewGroup {
    /// On devices of `size` bytes together. Refuses where the pool has no room there, or not the one that is asked for.
    pub fn on(devices: Vec<PathBuf>, size: u64, pool_size: Option<u64>) -> Result<Self> {
        let (metadata, chunk) = pool_sizes(size)?;
        let data = match pool_size {
            Some(data) => PoolSize::Bytes(fitting(data, metadata, size)?),
            None => PoolSize::Percent(POOL_PERCENT),
        };
        Ok(Self {
            devices,
            data,
            metadata,
            chunk,
            size,
        })
    }

    /// What the pool can take.
    pub fn room(&self) -> u64 {
        match self.data {
            PoolSize::Bytes(bytes) => bytes,
            PoolSize::Percent(percent) => {
                let free = self.size.saturating_sub(2 * self.metadata + GROUP_METADATA);
                free / 100 * u64::from(percent)
            }
        }
    }

    /// Makes it, as a part of a verb.
    pub fn make(&self, context: &Context, tx: &mut Transaction) -> Result<()> {
        let (lvm, devices) = (&context.lvm, &self.devices);
        lvm.vg().dm_name(&CONFIG.parse()?)?;
        tx.run(&lvm.create_group(devices))?;
        tx.on_failure(lvm.forget_devices(devices));
        tx.on_failure(lvm.remove_group());
        tx.run(&lvm.create_pool(&context.pool, self.data, self.metadata, self.chunk))?;
        make_config(tx, lvm, &context.pool)?;
        tx.run(&lvm.commit_group())
    }
}

/// Makes the volume group on `devices`, with its thin pool, of `pool_size` bytes if that is given, and the Config
/// volume. What `wipe` allows to be lost is signatures, never something in use.
pub fn on_devices(
    context: &Context,
    devices: &[PathBuf],
    wipe: bool,
    pool_size: Option<u64>,
) -> Result<()> {
    let (lvm, vg) = (&context.lvm, context.lvm.vg());
    vg.dm_name(&CONFIG.parse()?)?;
    let writer = context.locked_writer("layout init")?;
    let mut size = 0;
    let mut seen = Vec::new();
    for device in devices {
        size += check_unused(device, wipe)?;
        let real = device.canonicalize()?;
        ensure!(!seen.contains(&real), "{} is named twice", device.display());
        seen.push(real);
    }
    let sectors: BTreeSet<u64> = devices.iter().filter_map(|disk| sector_of(disk)).collect();
    ensure!(
        sectors.len() <= 1 || !wipe,
        "the devices have sectors of several sizes, {sectors:?} bytes, and lvm2 makes no group of such unless lvm.conf has \
         it do so; nothing was wiped, as wipefs(8) can do it before"
    );
    refuse_existing(lvm)?;
    let group = NewGroup::on(devices.to_owned(), size, pool_size)?;

    writer.transaction(|tx| {
        if wipe {
            // Nothing takes that back: it is what was asked for.
            tx.run(&wipe_all(devices))?;
        }
        group.make(context, tx)
    })?;
    if !context.dry_run {
        say(&format!("volume group {vg} is ready for a base\n"))?;
    }
    Ok(())
}

/// Overwrites all signatures of these devices.
pub fn wipe_all(devices: &[PathBuf]) -> Cmd {
    Cmd::new("wipefs").args(["--all", "--quiet"]).args(devices)
}

/// Refuses where there is such a group.
pub fn refuse_existing(lvm: &Lvm) -> Result<()> {
    if let Some(group) = lvm.load()? {
        refuse_incomplete(&group)?;
        bail!(
            "volume group {} exists already; `imgbased-helper layout` shows it",
            lvm.vg()
        );
    }
    // Where lvm2 has the volumes of a group.
    let place = Path::new("/dev").join(lvm.vg().as_str());
    ensure!(
        fs::symlink_metadata(&place).is_err(),
        "{} is something else, so no volume group can have that name; choose another one with --vg",
        place.display()
    );
    Ok(())
}

/// Makes the Config volume in this pool. It is active then.
pub fn make_config(tx: &mut Transaction, lvm: &Lvm, pool: &LvName) -> Result<()> {
    let config: LvName = CONFIG.parse()?;
    tx.run_undoable(
        &lvm.create_thin(&config, pool, CONFIG_SIZE, false),
        lvm.remove(&config),
    )?;
    tx.run(
        &Cmd::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", CONFIG])
            .arg(lvm.device(&config)?),
    )?;
    tx.run(&lvm.commit_active(&config, &[tag::VOLUME.to_owned()]))
}

/// The sizes of the metadata and the chunks of a pool in a group of `size` bytes. Refuses a group that is too small.
fn pool_sizes(size: u64) -> Result<(u64, u64)> {
    ensure!(
        size >= GROUP_LEAST,
        "{} is too small for a thin pool; {} is the least, and a base of a whole system needs some GiB",
        text::size(size),
        text::size(GROUP_LEAST)
    );
    let least = METADATA_LEAST.min(size / METADATA_SHARE);
    let mut chunk = LEAST_CHUNK;
    while size / chunk * METADATA_PER_CHUNK > METADATA_MAX {
        chunk *= 2;
    }
    let metadata = (size / chunk * METADATA_PER_CHUNK).max(least);
    // In whole MiB, which every group can give.
    Ok((metadata >> 20 << 20, chunk))
}

/// The size that was asked for of a pool in a group of `size` bytes. Refuses one that does not fit in with its metadata,
/// which are there twice, and those of the group.
fn fitting(data: u64, metadata: u64, size: u64) -> Result<u64> {
    let room = size.saturating_sub(2 * metadata + GROUP_METADATA);
    ensure!(
        (CONFIG_LEAST..=room).contains(&data),
        "a thin pool of {} is not possible: from {} to {} are, as its metadata need {}",
        text::size(data),
        text::size(CONFIG_LEAST),
        text::size(room),
        text::size(2 * metadata)
    );
    Ok(data)
}

/// The size of a block device in bytes. Refuses what is no block device, holds anything, or is in
/// use.
pub fn check_unused(device: &Path, wipe: bool) -> Result<u64> {
    let shown = device.display();
    let metadata = fs::metadata(device).with_context(|| format!("cannot use {shown}"))?;
    ensure!(
        metadata.file_type().is_block_device(),
        "{shown} is not a block device"
    );
    // The kernel refuses exclusive access to what is mounted or part of something else.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
        .with_context(|| format!("{shown} is in use"))?;
    for part in [device.to_owned()].into_iter().chain(partitions(device)?) {
        let part_shown = part.display();
        let user = user_of_disk(&part).with_context(|| format!("cannot use {part_shown}"))?;
        if let Some(user) = user {
            bail!("{part_shown} is in use by {user}; end that first");
        }
    }
    if let Some(signature) = probe::signature(device)? {
        ensure!(
            wipe,
            "{shown} is not empty: it holds {}; if nothing of it is needed, --wipe overwrites it",
            signature.kind
        );
        let uuid = mounts::dm_uuid(metadata.rdev());
        ensure!(
            !uuid.is_some_and(|uuid| uuid.starts_with("LVM-")),
            "{shown} is a logical volume, and lvm2 makes no group of such unless lvm.conf has it do so; nothing was wiped, \
             as wipefs(8) can do it before"
        );
        refuse_disk_of_group(device)?;
        for partition in partitions(device)? {
            refuse_disk_of_group(&partition)?;
        }
    }
    probe::size(&opened).with_context(|| format!("cannot read {shown}"))
}

/// Refuses a disk of a volume group, also of one that lvm2 does not show here: its devices file or a filter can
/// hide it, or it belongs to another system.
fn refuse_disk_of_group(device: &Path) -> Result<()> {
    let shown = device.display();
    match disk::owner(device).with_context(|| format!("cannot read {shown}"))? {
        Owner::None | Owner::Free => Ok(()),
        Owner::Group(group) => bail!(
            "{shown} is a disk of the volume group {group:?}, whether lvm2 shows that here or not; vgreduce(8) or \
             vgremove(8) frees it"
        ),
        Owner::Unknown => bail!(
            "{shown} may be a disk of a volume group: it has a label of LVM, and does not tell which; pvremove(8) \
             frees it"
        ),
    }
}

/// The partitions of a disk.
fn partitions(device: &Path) -> Result<Vec<PathBuf>> {
    let real = device.canonicalize()?;
    let name = real.file_name().context("a device has a name")?;
    let directory = Path::new("/sys/class/block").join(name);
    let failed = || format!("cannot read {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(&directory).with_context(failed)? {
        let entry = entry.with_context(failed)?;
        if entry.path().join("partition").exists() {
            found.push(Path::new("/dev").join(entry.file_name()));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Makes a base of the system that is installed on a thin volume, and a layer of that base. The
/// volume itself stays what it is.
///
/// These are two units of work: the group becomes one of ours, and stays that when the base or the layer
/// fails.
pub fn from_volume(context: Context, from: &str, name: Option<LvName>) -> Result<()> {
    let writer = context.locked_writer("layout init")?;
    let Located { vg, lv, pool } = locate(&context.lvm, from)?;
    // The volume says which group it is.
    let context = Context {
        lvm: Lvm::new(vg.clone()),
        pool: pool.clone(),
        ..context
    };
    let lvm = &context.lvm;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let mut group = context.load()?;
    let found = group
        .volume(lv.as_str())
        .with_context(|| format!("{vg} has no volume {lv}"))?;
    ensure!(
        found.role == Role::Foreign,
        "{vg}/{lv} is managed already; `imgbased-helper layout` shows it"
    );
    if found.active {
        check_filesystem(lvm, &lv)?;
    }
    if let Some(other) = group.pool().filter(|p| p.name != pool.as_str()) {
        bail!("{vg}/{lv} is not in the pool {}", other.name);
    }
    mark_pool(&mut group, &pool)?;
    pool_with_room(&group)?;
    let name = base::new_name(&group, name)?;
    boot.entry_of(&name)?;
    let options = running_kernel_options(lvm, &lv)?;
    writer.transaction(|tx| adopt_group(tx, lvm, &group, &pool))?;
    let layer = writer.transaction(|tx| {
        tx.run_undoable(&lvm.create_snapshot(&name, &lv, None), lvm.remove(&name))?;
        let filesystem = context.filesystem(&name, &lv)?;
        Filesystem::check_tools(filesystem.kind)?;
        tx.unlocked(|tx| filesystem.check(tx, false))?;
        let filled = base::Filled {
            name: &name,
            filesystem: &filesystem,
            options: &options,
            tags: vec![tag::ADOPTED.to_owned()],
            listing: None,
        };
        filled
            .finish(&context, tx, &boot, &mut |_| Ok(Vec::new()))
            .with_context(|| format!("{vg}/{lv} did not become a base"))?;
        if context.dry_run {
            context.say_verb(&["layer", "add", name.as_str()])?;
            return Ok(None);
        }
        let (layer, _) = layer::make(&context, tx, Some(name.clone()), None)?;
        Ok(Some(layer))
    })?;
    // In a dry run, what it will be called.
    let first = layer.clone().map_or_else(|| name.layer(1), Ok)?;
    news::base_added(&context, &name);
    news::layer_added(&context, &first, &name);
    hooks::after_init(&context, &writer, [&lv, &name, &first]);
    match layer {
        Some(layer) => say(&format!("{name}\n{layer}\n")),
        None => Ok(()),
    }
}

/// Refuses an active volume with a filesystem that no base can have, or not here.
fn check_filesystem(lvm: &Lvm, lv: &LvName) -> Result<()> {
    let superblock = superblock_on(&lvm.device(lv)?)?;
    Filesystem::check_tools(superblock.kind)?;
    let what = What::Filesystem {
        superblock: &superblock,
        length: None,
    };
    // A snapshot takes no room.
    let place = Place {
        host: &Host::with(&lvm.disks()?, superblock.kind),
        room: u64::MAX,
        shares: true,
    };
    judge::of_place(&format!("{}/{lv}", lvm.vg()), &what, None, &place)?;
    Ok(())
}

/// Makes a group one of ours, with the Config volume if it has none.
fn adopt_group(tx: &mut Transaction, lvm: &Lvm, group: &Group, pool: &LvName) -> Result<()> {
    let pool_tags = group.volume(pool.as_str()).map(|pool| &pool.tags);
    for (volume, tag, tags) in [
        (Some(pool), tag::POOL, pool_tags),
        (None, tag::VG, Some(&group.tags)),
    ] {
        if tags.is_none_or(|tags| tags.iter().all(|t| t != tag)) {
            tx.run_undoable(&lvm.add_tag(volume, tag), lvm.remove_tag(volume, tag))?;
        }
    }
    if group.volume(CONFIG).is_none() {
        make_config(tx, lvm, pool)?;
    }
    Ok(())
}

/// Which volume is meant: one named as GROUP/VOLUME or by its device, or the one mounted at a directory.
fn locate(lvm: &Lvm, from: &str) -> Result<Located> {
    let device = if from.starts_with("/dev/") {
        from.to_owned()
    } else if from.starts_with('/') {
        let dm_name = mounts::dm_name_at(Path::new(from))?
            .with_context(|| format!("what is mounted at {from} is no logical volume"))?;
        format!("/dev/mapper/{dm_name}")
    } else {
        let Some((vg, lv)) = from.split_once('/') else {
            bail!("--from {from} is neither a directory nor GROUP/VOLUME");
        };
        format!(
            "{}/{}",
            vg.parse::<crate::model::name::VgName>()?,
            lv.parse::<LvName>()?
        )
    };
    lvm.find_thin(&device)
}

/// The group as it will be with the tag on its pool.
fn mark_pool(group: &mut Group, pool: &LvName) -> Result<()> {
    let volume = group.volumes.iter_mut().find(|v| v.name == pool.as_str());
    volume
        .with_context(|| format!("there is no pool {pool}"))?
        .role = Role::Pool;
    Ok(())
}

/// The options that this system was booted with, if it is the one on the volume.
fn running_kernel_options(lvm: &Lvm, lv: &LvName) -> Result<String> {
    if mounts::dm_name_at(Path::new("/"))? != Some(lvm.vg().dm_name(lv)?) {
        return Ok(String::new());
    }
    Ok(without_root(&view::kernel_command_line()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_grows_with_the_pool_and_chunks_when_it_cannot() {
        const GIB: u64 = 1 << 30;
        for (size, metadata, chunk) in [
            (64 << 20, 2 << 20, 64 << 10),
            (GIB, 32 << 20, 64 << 10),
            (8 * GIB, 64 << 20, 64 << 10),
            (1024 * GIB, 2 * GIB, 64 << 10),
            (7000 * GIB, 7000 * GIB / 512, 64 << 10),
            (8000 * GIB, 8000 * GIB / 1024, 128 << 10),
        ] {
            let sizes = (metadata >> 20 << 20, chunk);
            assert_eq!(pool_sizes(size).unwrap(), sizes, "{size}");
        }
        for (data, is_possible) in [
            (GIB, true),
            (8 * GIB - (136 << 20), true),
            (8 * GIB - (135 << 20), false),
            (8 * GIB, false),
            (1 << 20, false),
        ] {
            let found = fitting(data, 64 << 20, 8 * GIB);
            assert_eq!(found.ok(), is_possible.then_some(data), "{data}");
        }
        for size in [0, 24 << 20, (64 << 20) - 512] {
            let error = pool_sizes(size).unwrap_err().to_string();
            assert!(error.contains("too small"), "{error}");
        }
    }
}
