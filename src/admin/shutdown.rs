//! Prepares the end: a root on a thin volume can only be unmounted from another root, and systemd
//! goes to the one in /run/initramfs if it is there (bootup(7)).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::mount::{MsFlags, mount};

use super::view;
use crate::boot::BootPartition;
use crate::model::boot_record::BootRecord;
use crate::sys::cmd::Cmd;
use crate::sys::run::INITRAMFS as STAGE;

const INITRAMFS: &str = "/run/initramfs";
/// What systemd starts there.
const SHUTDOWN: &str = "/run/initramfs/shutdown";

/// The initramfs in the entry of what was booted.
fn initramfs_of(record: &BootRecord) -> Result<Option<PathBuf>> {
    let boot = BootPartition::at(Path::new("/"), &record.vg.parse()?)?;
    let entry = boot.entry_of(&record.layer.parse()?)?;
    Ok(entry.map(|entry| boot.path_of(&entry.payload().initrd)))
}

/// Unpacks the initramfs that the running layer was booted with; nothing if it is there already.
pub fn unpack() -> Result<()> {
    if Path::new(SHUTDOWN).exists() {
        return Ok(());
    }
    let record = view::boot_record().context("no layer was booted")?;
    let image = initramfs_of(&record)?;
    let image = match (image, view::recorded_boot()) {
        // Its group was renamed since, and the entries were not.
        (None, Some(recorded)) => initramfs_of(&recorded)?,
        (image, _) => image,
    };
    let image = image.with_context(|| format!("{} has no boot entry", record.layer))?;
    // systemd takes what is there, be it whole or not: it gets there when it is. Nothing can be run from
    // /run after some kinds of initramfs, and it is small.
    for dir in [STAGE, INITRAMFS] {
        fs::create_dir_all(dir).context(dir)?;
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(
        Some("initramfs"),
        STAGE,
        Some("tmpfs"),
        flags,
        Some("mode=0755"),
    )
    .with_context(|| format!("cannot mount {STAGE}"))?;
    env::set_current_dir(STAGE).context(STAGE)?;
    Cmd::new("lsinitrd").arg("--unpack").arg(&image).run()?;
    ensure!(
        Path::new("shutdown").exists(),
        "{} has no shutdown script",
        image.display()
    );
    let nothing: Option<&str> = None;
    mount(Some(STAGE), INITRAMFS, nothing, MsFlags::MS_BIND, nothing)
        .with_context(|| format!("cannot mount {INITRAMFS}"))
}
