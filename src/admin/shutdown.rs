//! Prepares the end: a root on a thin volume can only be unmounted from another root, and systemd
//! goes to the one in /run/initramfs if it is there (bootup(7)).

use std::env;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::boot::BootPartition;
use crate::early;
use crate::sys::cmd::Cmd;
use crate::sys::mounts;

const INITRAMFS: &str = "/run/initramfs";
/// What systemd starts there.
const SHUTDOWN: &str = "/run/initramfs/shutdown";

/// Unpacks the initramfs that the running layer was booted with; nothing if it is there already.
pub fn unpack() -> Result<()> {
    if Path::new(SHUTDOWN).exists() {
        return Ok(());
    }
    let record = early::read_record().context("no layer was booted")?;
    let boot = BootPartition::at(Path::new("/"), &record.vg.parse()?)?;
    let entry = boot.entry_of(&record.layer.parse()?)?;
    let entry = entry.with_context(|| format!("{} has no boot entry", record.layer))?;
    let image = boot.path_of(&entry.payload().initrd);
    fs::create_dir_all(INITRAMFS).context(INITRAMFS)?;
    if !mounts::is_mount_point(Path::new(INITRAMFS))? {
        // Nothing can be run from /run after some kinds of initramfs, and it is small.
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let options = Some("mode=0755");
        mount(Some("initramfs"), INITRAMFS, Some("tmpfs"), flags, options)
            .with_context(|| format!("cannot mount {INITRAMFS}"))?;
    }
    env::set_current_dir(INITRAMFS).context(INITRAMFS)?;
    let unpacked = Cmd::new("lsinitrd").arg("--unpack").arg(&image).run();
    let unpacked = unpacked.and_then(|_| {
        let is_there = Path::new(SHUTDOWN).exists();
        ensure!(is_there, "{} has no {SHUTDOWN}", image.display());
        Ok(())
    });
    // systemd takes what is there, be it whole or not.
    unpacked.inspect_err(|_| {
        let _ = umount2(INITRAMFS, MntFlags::MNT_DETACH);
    })
}
