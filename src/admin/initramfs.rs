//! The initramfs of a kernel: whether it can boot a layer, and making another in the root that it is of
//! where it cannot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{comment, filesystem};
use crate::boot::entry::Payload;
use crate::boot::{BootPartition, Known};
use crate::sys::changes::{Changes, Step};
use crate::sys::cmd::Cmd;

/// What the helper needs in an initramfs (dracut.modules(7)).
const MODULE: &str = "imgbased";
/// Where the root is mounted once more while dracut runs in it.
const CHROOT: &str = "dracut";

/// Copies the kernels of a mounted root to the boot partition, each with an initramfs that can boot a
/// layer.
pub fn publish(
    changes: &mut Changes,
    boot: &BootPartition,
    root: &Path,
    known: &Known,
) -> Result<Vec<Payload>> {
    let mut maker = Maker { root, chroot: None };
    let kernels = boot.publish(changes, root, known, &mut |changes, version, initrd| {
        maker.replace(changes, version, initrd)
    })?;
    if let Some(chroot) = maker.chroot {
        changes.undo_now(&chroot)?;
    }
    Ok(kernels)
}

/// The root whose initramfs images are looked at.
struct Maker<'a> {
    root: &'a Path,
    /// Where it is mounted once more, from when that is needed on.
    chroot: Option<Step>,
}

impl Maker<'_> {
    /// The file of an initramfs that is made instead of `found`, which is of this kernel version; nothing
    /// if that can boot a layer.
    ///
    /// Refuses where the root cannot make one.
    fn replace(
        &mut self,
        changes: &mut Changes,
        version: &str,
        found: &Path,
    ) -> Result<Option<PathBuf>> {
        if has_module(found)? {
            return Ok(None);
        }
        let shown = found.display();
        for needed in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            ensure!(
                self.root.join(needed).exists(),
                "{shown} cannot boot a layer, it has no dracut module {MODULE}, and the root has no \
                 /{needed} to make one that can: install dracut and imgbased-helper in it"
            );
        }
        if changes.is_dry_run() {
            comment(&format!(
                "{shown} has no dracut module {MODULE}: dracut makes another"
            ))?;
            return Ok(None);
        }
        let dir = filesystem::mount_point(CHROOT);
        if self.chroot.is_none() {
            self.chroot = Some(prepare(changes, self.root, &dir)?);
        }
        let inside = format!("/run/initrd-{version}");
        let dracut = Cmd::new("chroot")
            .arg(&dir)
            .args(["dracut", "--quiet", "--force", "--tmpdir", "/run"])
            .args(["--no-hostonly", "--no-hostonly-cmdline"])
            .args([&inside, version]);
        changes
            .run(&dracut)
            .with_context(|| format!("{shown} has no dracut module {MODULE}"))?;
        let made = dir.join(inside.trim_start_matches('/'));
        ensure!(
            has_module(&made)?,
            "dracut makes no initramfs with the module {MODULE} of this root; \
             /etc/dracut.conf.d in it may omit it"
        );
        Ok(Some(made))
    }
}

/// One that dracut's own tool cannot read has no modules.
fn has_module(initramfs: &Path) -> Result<bool> {
    let list = Cmd::new("lsinitrd").arg("--mod").arg(initramfs);
    list.check_installed()?;
    let list = list.run();
    Ok(list.is_ok_and(|list| list.lines().any(|line| line.trim() == MODULE)))
}

/// Mounts the root at `dir` with what dracut needs; nothing can be written to it, but to /run and /tmp,
/// which are in memory.
fn prepare(changes: &mut Changes, root: &Path, dir: &Path) -> Result<Step> {
    let mount =
        |options: &[&str], inside: &str| Cmd::new("mount").args(options).arg(dir.join(inside));
    let bind = Cmd::new("mount").arg("--bind").arg(root).arg(dir);
    changes.create_dir(dir)?;
    let undo = Cmd::new("umount").arg("--recursive").arg(dir);
    let step = changes.run_undoable(&bind, undo)?;
    changes.run(&mount(&["-o", "remount,bind,ro,exec,suid,dev"], ""))?;
    changes.run(&mount(&["-t", "proc", "proc"], "proc"))?;
    changes.run(&mount(&["-t", "sysfs", "sysfs"], "sys"))?;
    changes.run(&mount(&["--bind", "/dev"], "dev"))?;
    for inside in ["run", "tmp"] {
        changes.run(&mount(&["-t", "tmpfs", "tmpfs"], inside))?;
    }
    Ok(step)
}
