//! Checks the filesystem of a layer or base and mounts it as the new root.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use nix::mount::{MntFlags, umount2};

use super::cmdline::{Check, CheckMode, Repair, Request};
use crate::sys::cmd::Cmd;
use crate::sys::run::{BASE, OVERLAY};
use crate::sys::{mounts, probe};

const SYSROOT: &str = "/sysroot";
/// What a system needs for the files that it writes while it starts, in bytes.
const OVERLAY_MIN: u64 = 64 << 20;

/// Whether that volume is the root already, by an earlier run or by a person in the emergency shell.
pub fn is_mounted(dm_name: &str) -> bool {
    let is_at = |path: &str| {
        mounts::dm_name_at(Path::new(path)).is_ok_and(|name| name.as_deref() == Some(dm_name))
    };
    is_at(SYSROOT) || is_at(BASE) && mounts::is_mount_point(Path::new(SYSROOT)).unwrap_or(false)
}

/// What a device holds that is to become the root.
pub struct Filesystem<'a> {
    request: &'a Request,
    device: &'a Path,
    dm_name: &'a str,
    kind: String,
}

impl<'a> Filesystem<'a> {
    /// Refuses a device that holds no filesystem.
    pub fn find(request: &'a Request, device: &'a Path, dm_name: &'a str) -> Result<Self> {
        let path = device.display();
        let Some(signature) = probe::signature(device)? else {
            bail!("{path} holds no filesystem that is known; boot another layer");
        };
        Ok(Self {
            request,
            device,
            dm_name,
            kind: signature.kind,
        })
    }

    /// Repairs what can be repaired without asking, unless the command line wants more or less. XFS
    /// does that while mounting.
    pub fn check(&self) -> Result<()> {
        let Check { mode, repair } = self.request.check;
        if !self.kind.starts_with("ext") || mode == CheckMode::Skip {
            return Ok(());
        }
        let mut cmd = Cmd::new("e2fsck").arg(match repair {
            Repair::Preen => "-p",
            Repair::Yes => "-y",
            Repair::No => "-n",
        });
        if mode == CheckMode::Force {
            cmd = cmd.arg("-f");
        }
        // e2fsck(8): 1 is "errors corrected"; 2 asks for a reboot if the filesystem was mounted, and
        // it was not. With 4 errors are left. With 8 it could not work, as with a feature that it does
        // not know: mounting shows whether that matters.
        let accepted = &[0, 1, 2, 3, 8];
        let checked = cmd.arg(self.device).accept(accepted).run();
        checked.map(drop).with_context(|| {
            let device = self.device.display();
            format!("the filesystem on {device} is damaged; repair it with: e2fsck -f {device}")
        })
    }

    /// Mounts a layer, writable unless the command line says `ro`.
    pub fn mount_layer(&self) -> Result<()> {
        let access = if self.request.read_only { "ro" } else { "rw" };
        self.mount(Path::new(SYSROOT), access)
    }

    /// Mounts a base read-only under an overlay that is kept in memory, so that nothing changes it.
    pub fn mount_base(&self) -> Result<()> {
        // A journal cannot be replayed on a read-only device, and a base has nothing to replay.
        let access = match self.kind.as_str() {
            "xfs" => "ro,norecovery,nouuid",
            "ext3" | "ext4" => "ro,noload",
            _ => "ro",
        };
        let available = memory_available()?;
        ensure!(
            available >= OVERLAY_MIN,
            "not enough memory for the changes to a base: {} MiB are available, {} MiB are needed; boot a layer instead",
            available >> 20,
            OVERLAY_MIN >> 20
        );
        for dir in [BASE, OVERLAY] {
            fs::create_dir_all(dir).with_context(|| format!("cannot create {dir}"))?;
        }
        self.mount(Path::new(BASE), access)?;
        Cmd::new("mount")
            .args(["-t", "tmpfs", "-o", "mode=0755"])
            .args(["imgbased-overlay", OVERLAY])
            .run()?;
        let (upper, work) = (format!("{OVERLAY}/upper"), format!("{OVERLAY}/work"));
        for dir in [&upper, &work] {
            fs::create_dir(dir).with_context(|| format!("cannot create {dir}"))?;
        }
        let options = format!("lowerdir={BASE},upperdir={upper},workdir={work}");
        Cmd::new("mount")
            .args(["-t", "overlay", "-o", &options])
            .args(["imgbased-overlay", SYSROOT])
            .run()?;
        Ok(())
    }

    /// Mounts the device and makes sure that it is what is mounted now.
    fn mount(&self, target: &Path, access: &str) -> Result<()> {
        let kind = self.request.rootfstype.as_deref().unwrap_or(&self.kind);
        let options = match &self.request.rootflags {
            Some(flags) => format!("{flags},{access}"),
            None => access.to_owned(),
        };
        Cmd::new("mount")
            .args(["-t", kind, "-o", &options])
            .arg(self.device)
            .arg(target)
            .run()
            .with_context(|| {
                let device = self.device.display();
                match kind {
                    "xfs" => format!("cannot mount {device}; if it is damaged, repair it with: xfs_repair {device}"),
                    _ => format!("cannot mount {device} as {kind} with the options {options}"),
                }
            })?;
        let mounted = mounts::dm_name_at(target)?;
        ensure!(
            mounted.as_deref() == Some(self.dm_name),
            "{} is on {} instead of {}",
            target.display(),
            mounted.as_deref().unwrap_or("another device"),
            self.dm_name
        );
        Ok(())
    }
}

/// Whether something is mounted where the root belongs.
pub fn is_taken() -> bool {
    mounts::is_mount_point(Path::new(SYSROOT)).unwrap_or(false)
}

/// Takes off what a failed attempt has mounted, so that the next one finds nothing in its way.
pub fn unmount() {
    for target in [SYSROOT, OVERLAY, BASE] {
        while mounts::is_mount_point(Path::new(target)).unwrap_or(false) {
            if let Err(errno) = umount2(target, MntFlags::MNT_DETACH) {
                log::warn!("cannot unmount {target}: {errno}");
                break;
            }
        }
    }
}

/// Whether the mounted root holds the modules of the kernel that runs. A layer with another kernel
/// only would come up without its drivers.
pub fn has_modules_of(release: &str) -> bool {
    let sysroot = Path::new(SYSROOT);
    ["usr/lib/modules", "lib/modules"]
        .iter()
        .any(|dir| sysroot.join(dir).join(release).is_dir())
}

/// How much memory can still be used, in bytes (`MemAvailable` in `proc_meminfo(5)`).
fn memory_available() -> Result<u64> {
    const FILE: &str = "/proc/meminfo";
    let text = fs::read_to_string(FILE).context(FILE)?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    let kib: u64 = kib
        .with_context(|| format!("{FILE} has no MemAvailable"))?
        .parse()?;
    Ok(kib << 10)
}
