//! Checks the filesystem of a layer or base and mounts it as the new root.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::cmdline::Request;
use crate::sys::cmd::Cmd;
use crate::sys::{mounts, probe};

const SYSROOT: &str = "/sysroot";
/// Where a base and its volatile overlay are mounted. It moves on with /run.
const BASE: &str = "/run/imgbased/base";
const OVERLAY: &str = "/run/imgbased/overlay";

/// Whether that volume is the root already, by an earlier run or by a person in the emergency shell.
pub fn is_mounted(dm_name: &str) -> bool {
    let is_at = |path: &str| {
        mounts::dm_name_at(Path::new(path)).is_ok_and(|name| name.as_deref() == Some(dm_name))
    };
    is_at(SYSROOT) || is_at(BASE) && mounts::is_mount_point(Path::new(SYSROOT)).unwrap_or(false)
}

/// Mounts a layer, writable unless the command line says `ro`.
pub fn mount_layer(request: &Request, device: &Path, dm_name: &str) -> Result<()> {
    let kind = filesystem(device)?;
    check(&kind, device)?;
    let access = if request.read_only { "ro" } else { "rw" };
    mount(request, &kind, device, Path::new(SYSROOT), access, dm_name)
}

/// Mounts a base read-only under an overlay that is kept in memory, so that nothing changes it.
pub fn mount_base(request: &Request, device: &Path, dm_name: &str) -> Result<()> {
    let kind = filesystem(device)?;
    // A journal cannot be replayed on a read-only device, and a base has nothing to replay.
    let access = match kind.as_str() {
        "xfs" => "ro,norecovery,nouuid",
        "ext3" | "ext4" => "ro,noload",
        _ => "ro",
    };
    for dir in [BASE, OVERLAY] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {dir}"))?;
    }
    mount(request, &kind, device, Path::new(BASE), access, dm_name)?;
    Cmd::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            "mode=0755",
            "imgbased-overlay",
            OVERLAY,
        ])
        .run()?;
    let (upper, work) = (format!("{OVERLAY}/upper"), format!("{OVERLAY}/work"));
    for dir in [&upper, &work] {
        fs::create_dir(dir).with_context(|| format!("cannot create {dir}"))?;
    }
    let options = format!("lowerdir={BASE},upperdir={upper},workdir={work}");
    Cmd::new("mount")
        .args(["-t", "overlay", "-o", &options, "imgbased-overlay", SYSROOT])
        .run()?;
    Ok(())
}

fn filesystem(device: &Path) -> Result<String> {
    match probe::signature(device)? {
        Some(signature) => Ok(signature.kind),
        None => bail!("{} holds no filesystem that is known", device.display()),
    }
}

/// Repairs what can be repaired without asking. XFS does that while mounting.
fn check(kind: &str, device: &Path) -> Result<()> {
    if !kind.starts_with("ext") {
        return Ok(());
    }
    // e2fsck(8): 1 is "errors corrected"; 2 asks for a reboot if the filesystem was mounted, and
    // it was not. From 4 on errors are left.
    Cmd::new("e2fsck")
        .arg("-p")
        .arg(device)
        .accept(&[0, 1, 2, 3])
        .run()
        .with_context(|| {
            let device = device.display();
            format!("the filesystem on {device} is damaged; repair it with: e2fsck -f {device}")
        })?;
    Ok(())
}

/// Mounts `device` and makes sure that it is what is mounted now.
fn mount(
    request: &Request,
    kind: &str,
    device: &Path,
    target: &Path,
    access: &str,
    dm_name: &str,
) -> Result<()> {
    let options = match &request.rootflags {
        Some(flags) => format!("{flags},{access}"),
        None => access.to_owned(),
    };
    Cmd::new("mount")
        .args(["-t", request.rootfstype.as_deref().unwrap_or(kind)])
        .args(["-o", &options])
        .arg(device)
        .arg(target)
        .run()?;
    let mounted = mounts::dm_name_at(target)?;
    ensure!(
        mounted.as_deref() == Some(dm_name),
        "{} is on {} instead of {dm_name}",
        target.display(),
        mounted.as_deref().unwrap_or("another device")
    );
    Ok(())
}
