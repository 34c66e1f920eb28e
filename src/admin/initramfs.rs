//! The initramfs of a kernel: whether it can boot a layer, and making another in the root that it is of
//! where it cannot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{comment, filesystem};
use crate::boot::entry::Payload;
use crate::boot::{BootPartition, Kernels, Known};
use crate::sys::cmd::Cmd;
use crate::sys::transaction::{Transaction, UndoStep};

/// What the helper needs in an initramfs (dracut.modules(7)).
const MODULE: &str = "imgbased";
/// Where the root is mounted once more while dracut runs in it.
const CHROOT: &str = "dracut";

/// Kernels of a mounted root that can boot a layer. They are on their way to the boot partition: what was
/// read of that before has to be read again.
#[must_use]
pub struct Found {
    kernels: Kernels,
    chroot: Option<UndoStep>,
}

/// Looks for the kernels of a mounted root, and makes an initramfs for each that has none which can boot a
/// layer. That can take minutes, for which the lock is free.
pub fn kernels_of(
    tx: &mut Transaction,
    boot: &BootPartition,
    root: &Path,
    known: &Known,
) -> Result<Found> {
    let mut maker = Maker { root, chroot: None };
    let kernels = tx.unlocked(|tx| {
        boot.kernels_of(tx, root, known, &mut |tx, version, initrd| {
            maker.replace(tx, version, initrd)
        })
    })?;
    Ok(Found {
        kernels,
        chroot: maker.chroot,
    })
}

impl Found {
    /// Copies them to the boot partition, and returns what the entries have to boot.
    pub fn store(self, tx: &mut Transaction, boot: &BootPartition) -> Result<Vec<Payload>> {
        let payloads = boot.store_kernels(tx, self.kernels)?;
        end(tx, self.chroot)?;
        Ok(payloads)
    }

    /// Copies nothing.
    pub fn leave(self, tx: &mut Transaction) -> Result<()> {
        end(tx, self.chroot)
    }
}

fn end(tx: &mut Transaction, chroot: Option<UndoStep>) -> Result<()> {
    chroot.map_or(Ok(()), |chroot| tx.undo_now(&chroot))
}

/// The root whose initramfs images are looked at.
struct Maker<'a> {
    root: &'a Path,
    /// Where it is mounted once more, from when that is needed on.
    chroot: Option<UndoStep>,
}

impl Maker<'_> {
    /// The file of an initramfs that is made instead of `found`, which is of this kernel version; nothing
    /// if that can boot a layer.
    ///
    /// Refuses where the root cannot make one.
    fn replace(
        &mut self,
        tx: &mut Transaction,
        version: &str,
        found: &Path,
    ) -> Result<Option<PathBuf>> {
        let shown = found.display();
        let reason = match modules(found)? {
            Ok(modules) if modules.iter().any(|module| module == MODULE) => return Ok(None),
            Ok(_) => format!("it has no dracut module {MODULE}"),
            Err(error) => format!("lsinitrd(1) cannot read it: {error:#}"),
        };
        for needed in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            ensure!(
                self.root.join(needed).exists(),
                "{shown} cannot boot a layer, {reason}, and the root has no /{needed} to make one that can: \
                 install dracut and imgbased-helper in it"
            );
        }
        if tx.is_dry_run() {
            comment(&format!(
                "{shown} cannot boot a layer, {reason}: dracut makes another"
            ))?;
            return Ok(None);
        }
        let dir = filesystem::mount_point(CHROOT);
        if self.chroot.is_none() {
            self.chroot = Some(prepare(tx, self.root, &dir)?);
        }
        log::warn!("{shown} is not used, {reason}; dracut makes another, which can take minutes");
        let inside = format!("/run/initrd-{version}");
        let dracut = Cmd::new("chroot")
            .arg(&dir)
            .args(["dracut", "--quiet", "--force", "--tmpdir", "/run"])
            .args(["--no-hostonly", "--no-hostonly-cmdline"])
            .args([&inside, version]);
        tx.run(&dracut)
            .with_context(|| format!("{shown} cannot boot a layer, {reason}"))?;
        let made = dir.join(inside.trim_start_matches('/'));
        ensure!(
            modules(&made)?.is_ok_and(|modules| modules.iter().any(|module| module == MODULE)),
            "dracut makes no initramfs with the module {MODULE} of this root; \
             /etc/dracut.conf.d in it may omit it"
        );
        Ok(Some(made))
    }
}

/// The dracut modules of an initramfs, or why dracut's own tool cannot tell.
fn modules(initramfs: &Path) -> Result<Result<Vec<String>>> {
    let list = Cmd::new("lsinitrd").arg("--mod").arg(initramfs);
    list.check_installed()?;
    let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect();
    Ok(list.run().map(lines))
}

/// Mounts the root at `dir` with what dracut needs; nothing can be written to it, but to /run and /tmp,
/// which are in memory.
fn prepare(tx: &mut Transaction, root: &Path, dir: &Path) -> Result<UndoStep> {
    let mount =
        |options: &[&str], inside: &str| Cmd::new("mount").args(options).arg(dir.join(inside));
    let bind = Cmd::new("mount").arg("--bind").arg(root).arg(dir);
    tx.create_dir(dir)?;
    let undo = Cmd::new("umount").arg("--recursive").arg(dir);
    let step = tx.run_undoable(&bind, undo)?;
    tx.run(&mount(&["-o", "remount,bind,ro,exec,suid,dev"], ""))?;
    tx.run(&mount(&["-t", "proc", "proc"], "proc"))?;
    tx.run(&mount(&["-t", "sysfs", "sysfs"], "sys"))?;
    tx.run(&mount(&["--bind", "/dev"], "dev"))?;
    for inside in ["run", "tmp"] {
        tx.run(&mount(&["-t", "tmpfs", "tmpfs"], inside))?;
    }
    Ok(step)
}
