//! What is mounted where, by device number rather than by name.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{major, minor};

/// Has the mounts that this process makes from here on be seen by it and its children alone, so that
/// none is left behind when it is killed. Mounts made elsewhere still arrive.
pub fn make_private() -> Result<()> {
    let nothing: Option<&str> = None;
    unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| {
            mount(
                nothing,
                "/",
                nothing,
                MsFlags::MS_REC | MsFlags::MS_SLAVE,
                nothing,
            )
        })
        .context("cannot make a mount namespace")
}

/// The device-mapper name of the device that the filesystem at `path` is on; nothing if it is on
/// no such device.
pub fn dm_name_at(path: &Path) -> Result<Option<String>> {
    let metadata =
        fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    let (major, minor) = (major(metadata.dev()), minor(metadata.dev()));
    match fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/dm/name")) {
        Ok(name) => Ok(Some(name.trim_end().to_owned())),
        Err(_) => Ok(None),
    }
}

/// Where sysfs has the disk that a block device is a part of, or that it is itself; nothing if there is no
/// such device.
pub fn disk_of(device: u64) -> Option<PathBuf> {
    let (major, minor) = (major(device), minor(device));
    let path = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")).ok()?;
    let is_partition = path.join("partition").exists();
    let disk = path.parent().filter(|_| is_partition);
    Some(disk.map_or(path.clone(), Path::to_owned))
}

/// Whether another filesystem than that of the directory above is mounted at `path`.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let device = |path: &Path| {
        fs::metadata(path)
            .map(|m| m.dev())
            .with_context(|| format!("cannot look at {}", path.display()))
    };
    Ok(device(path)? != device(&path.join(".."))?)
}
