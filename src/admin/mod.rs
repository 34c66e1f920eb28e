//! The half that runs in the installed system: one file a noun, each loads, plans and applies.

pub mod after_merge;
mod asked;
mod base;
mod boot;
mod check;
pub mod cli;
mod diff;
mod filesystem;
mod gc;
mod hooks;
mod image;
pub mod imgbase;
mod initramfs;
mod install;
mod json_path;
pub mod labels;
mod layer;
mod layered;
mod layout;
mod layout_init;
mod look;
pub mod merge_report;
mod news;
pub mod packages;
mod persist;
mod removal;
mod renamed;
mod rollback;
mod roots;
mod source;
mod space;
mod status;
mod text;
mod text_diff;
mod update;
mod view;
mod volume;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;
use serde::Serialize;

use filesystem::Filesystem;
use look::Look;
use text::Paint;

use crate::boot::BootPartition;
use crate::boot::arrange::Arrangement;
use crate::boot::entry::{BootSpec, Entry};
use crate::image::superblock::FsKind;
use crate::lvm::{Lvm, living_maker};
use crate::model::kernel_options;
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::pool::{self, Mismatch};
use crate::sys::cmd::Cmd;
use crate::sys::logger::STDOUT;
use crate::sys::mounts;
use crate::sys::progress::wipe;
use crate::sys::transaction::{Transaction, Writer};

/// How long a second caller waits for the first, and for each hook that this one runs.
const LOCK_WAIT: Duration = Duration::from_secs(120);
/// The exit status where something was found and is not repaired.
const FOUND: u8 = 3;

/// What every verb is told on the command line.
pub struct Context {
    pub lvm: Lvm,
    pub pool: LvName,
    /// Below which /boot and the configuration are.
    pub root: PathBuf,
    pub dry_run: bool,
    pub json: bool,
    /// Of what people read.
    pub paint: Paint,
}

impl Context {
    /// Reads the volume group. Refuses when there is none.
    fn load(&self) -> Result<Group> {
        need_root()?;
        self.complete(self.lvm.load()?)
    }

    /// The same for a verb that changes the pool: refuses one as [`Context::check_pool`] does.
    fn load_sound(&self) -> Result<Group> {
        need_root()?;
        let (group, status) = self.lvm.load_with_pool()?;
        let group = self.complete(group)?;
        pool::check_changeable(&group)?;
        let told = group.pool().zip(status);
        // Another command of lvm2 can come between the two, so nothing is refused by them.
        if !told.is_some_and(|(pool, status)| self.lvm.was_as_recorded(pool, &status)) {
            self.check_pool(&group)?;
        }
        Ok(group)
    }

    /// The same for showing it. Calls `meanwhile` while lvm2 reads.
    fn load_to_show<T>(&self, meanwhile: impl FnOnce() -> T) -> Result<(Group, T)> {
        need_root()?;
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

    /// Whether the pool is not what LVM takes it for.
    fn pool_mismatch(&self, group: &Group) -> Result<Option<Mismatch>> {
        let mismatch = group.pool().map(|pool| self.lvm.pool_mismatch(pool));
        mismatch.transpose().map(Option::flatten)
    }

    /// Refuses a pool that the kernel cannot write to, and one that lvm2 can neither activate nor change. What lvm2 is told
    /// to remove from such a pool is gone from its metadata all the same.
    fn check_pool(&self, group: &Group) -> Result<()> {
        pool::check_changeable(group)?;
        if let Some(mismatch) = self.pool_mismatch(group)? {
            bail!(
                "the thin pool of {} {mismatch}; `imgbased-helper check` says what to do",
                group.name
            );
        }
        Ok(())
    }

    /// The room in a pool that was perhaps inactive when `group` was read, in bytes, once a volume in it is active.
    /// Refuses one that is too full.
    fn room_when_active(&self, group: &Group) -> Result<u64> {
        let is_known = group.pool().is_some_and(|pool| pool.active);
        if is_known || self.dry_run {
            return pool_with_room(group);
        }
        pool_with_room(&self.load()?)
    }

    /// Does work that writes much to the pool, and ends before the pool is full, whoever else writes to it.
    fn filling_pool<T>(
        &self,
        tx: &mut Transaction,
        group: &Group,
        work: impl FnOnce(&mut Transaction) -> Result<T>,
    ) -> Result<T> {
        let (false, Some(pool)) = (self.dry_run, group.pool()) else {
            return work(tx);
        };
        let (lvm, pool) = (self.lvm.clone(), pool.name.parse()?);
        tx.watched(move || lvm.check_while_written(&pool), work)
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

    /// In a dry run, has a volume active for as long as the result lives: what is done depends on what it holds.
    fn look(&self, group: &Group, name: &LvName) -> Result<Option<Look>> {
        let look = || Look::at(self, group, name);
        self.dry_run.then(look).transpose()
    }

    /// Mounts an active volume with these options for as long as `look` takes. A dry run looks at `seen`, which holds
    /// the same; where there is no such thing, nothing is returned.
    fn mounted<T>(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        filesystem: &Filesystem,
        options: &str,
        seen: Option<&Look>,
        look: impl FnOnce(&mut Transaction, &Path) -> Result<T>,
    ) -> Result<Option<T>> {
        let dir = filesystem::mount_point(name.as_str());
        let mounted = filesystem.mount(tx, &dir, options)?;
        let found = match seen {
            _ if !self.dry_run => Some(look(tx, &dir)?),
            Some(seen) => {
                let _mounted = seen.mounted(&dir)?;
                Some(look(tx, &dir)?)
            }
            None => None,
        };
        mounted.unmount(tx)?;
        Ok(found)
    }

    /// What a dry run prints of another verb that is a part of this one.
    fn say_verb(&self, words: &[&str]) -> Result<()> {
        let mut line = Cmd::new("imgbased-helper").args(["--vg", self.lvm.vg().as_str()]);
        if self.root != Path::new("/") {
            line = line.arg("--root").arg(&self.root);
        }
        say(&format!("{}\n", line.args(words)))
    }

    /// The filesystem on an active volume. In a dry run, where that does not exist yet, one as
    /// `origin` has.
    fn filesystem(&self, name: &LvName, origin: &LvName) -> Result<Filesystem> {
        let device = self.lvm.device(name)?;
        if !self.dry_run {
            return Filesystem::on(&device);
        }
        let found = Filesystem::on(&self.lvm.device(origin)?);
        Ok(found.map_or_else(
            |_| Filesystem::expected(FsKind::Ext4, &device, false),
            |found| found.copied_to(&device),
        ))
    }

    /// Writes what people read to standard output, or its data as JSON.
    fn show<T: Serialize>(&self, data: &T, text: impl FnOnce() -> String) -> Result<()> {
        let text = if self.json { as_json(data)? } else { text() };
        say(&text)
    }
}

/// A document for programs, as `schemas/` describes it.
fn as_json(data: &impl Serialize) -> Result<String> {
    Ok(serde_json::to_string_pretty(data)? + "\n")
}

/// Refuses anyone but root: lvm2 shows nothing to others, and has a page of warnings for them instead. A dry run comes
/// as far as it can.
fn need_root() -> Result<()> {
    ensure!(
        Uid::effective().is_root(),
        "imgbased-helper needs root, as lvm2 does; run it with sudo(8)"
    );
    Ok(())
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

/// How many bytes can still be added to the pool for a new volume, as far as is known. Refuses one that is too full for
/// that. An inactive one tells nothing, and is asked again by [`Context::room_when_active`].
fn pool_with_room(group: &Group) -> Result<u64> {
    Ok(pool::room(group)?.unwrap_or(u64::MAX))
}

/// The same for volumes that are there.
fn pool_left(group: &Group) -> Result<u64> {
    Ok(pool::left(group)?.unwrap_or(u64::MAX))
}

/// The kernel options of the layer that runs, as its entry has them. Those of an installer, or what
/// was typed in the boot menu, do not belong into another entry.
fn running_options(group: &Group, boot: &BootPartition) -> Result<String> {
    let entry = match view::booted(group)? {
        Some(name) => boot.entry_of(&name.parse()?)?,
        None => None,
    };
    Ok(entry.map_or_else(String::new, |entry| entry.spec().options))
}

/// The kernels of a base, which boot with what unlocks the disks of this host as well: its image knows nothing of that.
fn reaching_disks(mut kernels: Vec<BootSpec>, host: &str) -> Vec<BootSpec> {
    for kernel in &mut kernels {
        kernel.options = kernel_options::with_disks(&kernel.options, host);
    }
    kernels
}

/// The kernels of a root, which boot with what its entries have unlocked until now, where the root itself names nothing.
fn keeping_disks(mut kernels: Vec<BootSpec>, before: &[Entry]) -> Vec<BootSpec> {
    let before = options_of(before);
    for kernel in &mut kernels {
        kernel.options = kernel_options::keeping_disks(&kernel.options, &before);
    }
    kernels
}

/// The kernel options of the first of these entries.
fn options_of(entries: &[Entry]) -> String {
    let first = entries.first().map(|entry| entry.spec().options);
    first.unwrap_or_default()
}

/// The exit status of a verb that looks for something.
fn found_status(is_found: bool) -> ExitCode {
    ExitCode::from(if is_found { FOUND } else { 0 })
}

/// Restarts the host once what was to be done is committed.
fn restart_host(writer: &Writer, done: &str) -> Result<()> {
    writer
        .transaction(|tx| tx.run(&Cmd::new("systemctl").arg("reboot")))
        .with_context(|| format!("the {done} is done, but not the restart"))
}

fn say(text: &str) -> Result<()> {
    wipe();
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context(STDOUT)
}

/// A line of a dry run that is no command.
fn comment(text: &str) -> Result<()> {
    say(&format!("# {text}\n"))
}
