//! The half that runs in the installed system: one file a noun, each loads, plans and applies.

mod base;
mod check;
pub mod cli;
mod layer;
mod layout;
mod removal;
mod status;
mod text;
mod view;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;
use serde::Serialize;

use crate::boot::BootPartition;
use crate::boot::entry::{Entry, Payload};
use crate::lvm::Lvm;
use crate::model::layout::{Group, Volume};
use crate::model::name::LvName;
use crate::model::percent::Percent;
use crate::sys::changes::Changes;
use crate::sys::cmd::Cmd;
use crate::sys::lock::Lock;
use crate::sys::mounts;

/// How long a second caller waits for the first.
const LOCK_WAIT: Duration = Duration::from_secs(60);
/// From here on nothing is added to a pool: a full one makes every layer read-only.
const POOL_FULL: Percent = Percent::new(95);
/// Where volumes are mounted while they are looked at.
const MOUNTS: &str = "/run/imgbased/mounts";

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
        let group = self.lvm.load()?;
        group.with_context(|| {
            let vg = self.lvm.vg();
            format!("there is no volume group {vg} with volumes in it; `imgbased-helper layout init` makes one")
        })
    }

    /// Starts a verb that changes something: one at a time, as root.
    fn change(&self) -> Result<(Option<Lock>, Changes)> {
        if self.dry_run {
            return Ok((None, Changes::new(true)?));
        }
        ensure!(Uid::effective().is_root(), "only root can do this");
        mounts::make_private()?;
        Ok((Some(Lock::take(LOCK_WAIT)?), Changes::new(false)?))
    }

    fn boot_partition(&self) -> Result<BootPartition> {
        BootPartition::at(&self.root, self.lvm.vg())
    }

    /// Mounts an active volume read-only, copies its kernel to the boot partition and returns what
    /// its entry has to boot, with `fallback_options` where the image asks for none. In a dry run
    /// nothing can be looked at, and nothing is returned.
    fn publish(
        &self,
        changes: &mut Changes,
        boot: &BootPartition,
        name: &LvName,
        fallback_options: &str,
    ) -> Result<Option<Payload>> {
        let dir = PathBuf::from(MOUNTS).join(name.as_str());
        changes.create_dir(&dir)?;
        let mount = Cmd::new("mount")
            // What it holds can come from anywhere.
            .args(["-o", "ro,nosuid,nodev,noexec"])
            .arg(self.lvm.device(name)?)
            .arg(&dir);
        let mounted = changes.run_undoable(&mount, Cmd::new("umount").arg(&dir))?;
        let payload = if changes.is_dry_run() {
            comment(&format!(
                "the kernel and initramfs of {name} are copied to the boot partition"
            ))?;
            None
        } else {
            Some(boot.publish(changes, &dir, fallback_options)?)
        };
        changes.undo_now(&mounted)?;
        Ok(payload)
    }

    fn entry(&self, name: &LvName, is_base: bool, payload: &Payload) -> Result<Entry> {
        Entry::new(self.lvm.vg(), name, is_base, payload)
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

/// The pool, unless it is too full to be added to.
fn pool_with_room(group: &Group) -> Result<&Volume> {
    let Some(pool) = group.pool() else {
        bail!(
            "volume group {} has no thin pool with the tag imgbased:pool",
            group.name
        );
    };
    for (what, percent) in [
        ("data", pool.data_percent),
        ("metadata", pool.metadata_percent),
    ] {
        let percent = percent.unwrap_or(Percent::new(0));
        ensure!(
            percent < POOL_FULL,
            "the {what} space of {}/{} is {percent} full, less than {POOL_FULL} is \
             needed; extend it with lvextend(8) or remove layers",
            group.name,
            pool.name
        );
    }
    Ok(pool)
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

/// Checks a filesystem that is not mounted from end to end and repairs it. From status 4 on e2fsck(8)
/// has left errors.
fn full_check(device: &Path) -> Cmd {
    Cmd::new("e2fsck")
        .arg("-fp")
        .arg(device)
        .accept(&[0, 1, 2, 3])
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
