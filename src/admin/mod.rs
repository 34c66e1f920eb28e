//! The half that runs in the installed system: one file a noun, each loads, plans and applies.

mod base;
mod boot;
mod check;
pub mod cli;
mod diff;
mod filesystem;
mod initramfs;
mod layer;
mod layout;
mod layout_init;
mod persist;
mod removal;
mod renamed;
mod roots;
mod status;
mod text;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;
use serde::Serialize;

use filesystem::Filesystem;

use crate::boot::BootPartition;
use crate::boot::arrange::Arrangement;
use crate::boot::entry::Entry;
use crate::image::superblock::FsKind;
use crate::lvm::{Lvm, PROFILE, living_maker};
use crate::model::layout::{Group, Volume};
use crate::model::name::LvName;
use crate::model::percent::Percent;
use crate::sys::mounts;
use crate::sys::transaction::{Transaction, Writer};

/// How long a second caller waits for the first.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// From here on nothing is added to a pool: a full one makes every layer read-only.
const POOL_FULL: Percent = Percent::new(95);
/// When our profile has a pool extended (src/lvm/imgbased.profile).
const POOL_EXTENDED: Percent = Percent::new(80);
/// What the pool's metadata needs for a chunk at most, in bytes: a leaf of its tree holds 126 chunks
/// in 4 KiB and is at least half full (linux/Documentation/admin-guide/device-mapper/persistent-data).
const METADATA_PER_CHUNK: u64 = 80;
/// The exit status where something was found and is not repaired.
const FOUND: u8 = 3;
const ROOT_ONLY: &str = "only root can do this";

/// What every verb is told on the command line.
pub struct Context {
    pub lvm: Lvm,
    pub pool: LvName,
    /// Below which /boot and the configuration are.
    pub root: PathBuf,
    pub dry_run: bool,
    pub json: bool,
}

impl Context {
    /// Reads the volume group. Refuses when there is none.
    fn load(&self) -> Result<Group> {
        self.complete(self.lvm.load()?)
    }

    /// The same for showing it. Calls `meanwhile` while lvm2 reads.
    fn load_to_show<T>(&self, meanwhile: impl FnOnce() -> T) -> Result<(Group, T)> {
        let (group, seen) = self.lvm.load_to_show(meanwhile)?;
        Ok((self.complete(group)?, seen))
    }

    fn complete(&self, group: Option<Group>) -> Result<Group> {
        let vg = self.lvm.vg();
        let group = group.with_context(|| {
            format!(
                "there is no volume group {vg}; `imgbased-helper layout init` makes one, --vg names another"
            )
        })?;
        refuse_incomplete(&group)?;
        Ok(group)
    }

    /// Starts a verb that changes something, as root. Its transactions take the lock where they need it.
    fn writer(&self, verb: &'static str, wait: Duration) -> Result<Writer> {
        if Uid::effective().is_root() {
            mounts::make_private()?;
        } else if !self.dry_run {
            bail!("{verb}: {ROOT_ONLY}");
        }
        Writer::new(verb, wait, self.dry_run)
    }

    /// Starts a verb that is alone from beginning to end, but for [`Transaction::unlocked`].
    fn locked_writer(&self, verb: &'static str) -> Result<Writer> {
        let writer = self.writer(verb, LOCK_WAIT)?;
        writer.lock()?;
        Ok(writer)
    }

    /// Does such a verb as one transaction: what `work` does stays done as a whole, or is undone.
    fn change<T>(
        &self,
        verb: &'static str,
        work: impl FnOnce(&mut Transaction) -> Result<T>,
    ) -> Result<T> {
        self.locked_writer(verb)?.transaction(work)
    }

    fn boot_partition(&self) -> Result<BootPartition> {
        BootPartition::at(&self.root, self.lvm.vg())
    }

    /// Activates a volume for as long as `look` takes, unless it is active already.
    fn activated<T>(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        is_active: bool,
        look: impl FnOnce(&mut Transaction) -> Result<T>,
    ) -> Result<T> {
        if is_active {
            return look(tx);
        }
        let active = tx.run_undoable(&self.lvm.activate(name), self.lvm.deactivate(name))?;
        let found = look(tx)?;
        if let Err(error) = tx.undo_now(&active) {
            // Another command looks at it as well, which can begin while the lock is free.
            log::warn!("{name} stays active: {error:#}");
        }
        Ok(found)
    }

    /// Mounts an active volume with these options for as long as `look` takes. In a dry run there
    /// is nothing to look at, and nothing is returned.
    fn mounted<T>(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        filesystem: &Filesystem,
        options: &str,
        look: impl FnOnce(&mut Transaction, &Path) -> Result<T>,
    ) -> Result<Option<T>> {
        let dir = filesystem::mount_point(name.as_str());
        let mounted = filesystem.mount(tx, &dir, options)?;
        let found = if self.dry_run {
            comment(&format!(
                "the kernel and initramfs of {name} are copied to the boot partition"
            ))?;
            None
        } else {
            Some(look(tx, &dir)?)
        };
        mounted.unmount(tx)?;
        Ok(found)
    }

    /// The filesystem on an active volume. In a dry run, where that does not exist yet, one as
    /// `origin` has.
    fn filesystem(&self, name: &LvName, origin: &LvName) -> Result<Filesystem> {
        let device = self.lvm.device(name)?;
        if !self.dry_run {
            return Filesystem::on(&device);
        }
        let kind = Filesystem::on(&self.lvm.device(origin)?).map_or(FsKind::Ext4, |f| f.kind);
        Ok(Filesystem::expected(kind, &device, false))
    }

    /// Writes what people read to standard output, or its data as JSON.
    fn show<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json {
            serde_json::to_string_pretty(data)? + "\n"
        } else {
            text()
        };
        say(&text)
    }
}

/// The entries of a layer or base with these kernels. They name the group by its UUID as well.
fn new_entries(
    group: &Group,
    name: &LvName,
    is_base: bool,
    kernels: &Arrangement,
    is_trial: bool,
) -> Result<Vec<Entry>> {
    let mut entries = Entry::of_kernels(&group.name, name, is_base, kernels)?;
    if let Ok(uuid) = group.uuid.parse() {
        entries = entries.into_iter().map(|e| e.of_group(&uuid)).collect();
    }
    if is_trial {
        entries = entries.into_iter().map(Entry::on_trial).collect();
    }
    Ok(entries)
}

fn refuse_incomplete(group: &Group) -> Result<()> {
    if let Some(maker) = living_maker(&group.tags) {
        bail!(
            "volume group {} is being made by process {}",
            group.name,
            maker.pid()
        );
    }
    ensure!(
        !group.is_incomplete(),
        "volume group {} was interrupted while it was made; `imgbased-helper check --repair` removes it",
        group.name
    );
    Ok(())
}

/// How many bytes can still be added to the pool. Refuses one that is too full.
fn pool_with_room(group: &Group) -> Result<u64> {
    let Some(pool) = group.pool() else {
        bail!(
            "volume group {} has no thin pool with the tag imgbased:pool",
            group.name
        );
    };
    let (data_full, metadata_full) = limits(pool);
    for (what, percent, full) in [
        ("data", pool.data_percent, data_full),
        ("metadata", pool.metadata_percent, metadata_full),
    ] {
        let percent = percent.unwrap_or(Percent::new(0));
        ensure!(
            percent < full,
            "the {what} space of {}/{} is {percent} full, less than {full} is \
             needed; extend it with lvextend(8) or remove layers",
            group.name,
            pool.name
        );
    }
    let left = |size: u64, full: Percent, percent: Option<Percent>| {
        let used = percent.unwrap_or(Percent::new(0)).of(size);
        full.of(size).saturating_sub(used)
    };
    let data = left(pool.size, POOL_FULL, pool.data_percent);
    let chunks =
        left(pool.metadata_size, metadata_full, pool.metadata_percent) / METADATA_PER_CHUNK;
    Ok(data.min(chunks.saturating_mul(pool.chunk_size)))
}

/// How full data and metadata of a pool may be for lvm2 to make another volume in it
/// (`thin_pool_below_threshold` in its `lib/metadata/thin_manip.c`): less than when it is extended, and
/// a quarter or 4 MiB of the metadata have to be free. At most what we want ourselves.
fn limits(pool: &Volume) -> (Percent, Percent) {
    const METADATA_FREE: u64 = 4 << 20;
    let data = if pool.profile == PROFILE {
        POOL_EXTENDED
    } else {
        POOL_FULL
    };
    let free = (METADATA_FREE * 100).checked_div(pool.metadata_size);
    let free = free.map_or(25, |percent| percent.min(25));
    let metadata = Percent::new(100 - u32::try_from(free).unwrap_or(25));
    (data, metadata.min(POOL_FULL))
}

/// The kernel options of the layer that runs, as its entry has them. Those of an installer, or what
/// was typed in the boot menu, do not belong into another entry.
fn running_options(group: &Group, boot: &BootPartition) -> Result<String> {
    let entry = match view::booted(group)? {
        Some(name) => boot.entry_of(&name.parse()?)?,
        None => None,
    };
    Ok(entry.map_or_else(String::new, |entry| entry.payload().options))
}

/// The exit status of a verb that looks for something.
fn found_status(is_found: bool) -> ExitCode {
    ExitCode::from(if is_found { FOUND } else { 0 })
}

fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

/// A line of a dry run that is no command.
fn comment(text: &str) -> Result<()> {
    say(&format!("# {text}\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_pool() {
        for (profile, mib, data, metadata) in [
            ("imgbased", 2, 80, 75),
            ("", 16, 95, 75),
            ("", 40, 95, 90),
            ("other", 1024, 95, 95),
            ("", 0, 95, 75),
        ] {
            let pool = Volume {
                profile: profile.into(),
                metadata_size: mib << 20,
                ..Volume::default()
            };
            assert_eq!(
                limits(&pool),
                (Percent::new(data), Percent::new(metadata)),
                "{profile} {mib}"
            );
        }
    }

    #[test]
    fn the_limit_is_that_of_the_profile() {
        let profile = include_str!("../lvm/imgbased.profile");
        assert!(profile.contains("thin_pool_autoextend_threshold = 80\n"));
        assert_eq!(POOL_EXTENDED, Percent::new(80));
    }
}
