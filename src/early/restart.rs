//! Restarts the machine, so that the boot loader can choose another entry: when no layer can be mounted, and
//! when the initramfs takes too long.

use std::sync::mpsc;
use std::thread::{self, sleep};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::reboot::{RebootMode, reboot};

use super::is_initramfs;
use crate::sys::run;

/// How long the reason stays on the screen.
const DELAY: Duration = Duration::from_secs(5);
/// How long the disks have to write what is in memory.
const SYNC: Duration = Duration::from_secs(10);

/// Says that the machine restarts, and why, and restarts it. Returns only if the kernel refuses.
pub fn restart(reason: String) -> Result<()> {
    // A console that is stopped blocks the thread that writes to it, a disk that hangs the one that waits for
    // it. Neither may keep the machine from restarting.
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        log::error!("restarting in {} s, {reason}", DELAY.as_secs());
        sleep(DELAY);
        nix::unistd::sync();
        sender.send(())
    });
    // Whether it is done or the time is over makes no difference.
    let _ = receiver.recv_timeout(DELAY + SYNC);
    reboot(RebootMode::RB_AUTOBOOT).context("cannot restart")?;
    Ok(())
}

/// Restarts the machine if it is still in the initramfs after this time. The process is ended when the root is
/// switched to.
pub fn restart_after(limit: Duration) -> Result<()> {
    // For a hook of dracut, which ends this process.
    run::write_json(run::LIMIT, &std::process::id())?;
    sleep(limit);
    // The files of an initramfs go when its root is left.
    if !is_initramfs() {
        return Ok(());
    }
    let seconds = limit.as_secs();
    restart(format!("the initramfs took longer than {seconds} s"))
}
