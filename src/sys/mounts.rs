//! What is mounted where, by device number rather than by name.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{major, minor};
use nix::sys::statvfs::statvfs;

/// How much the filesystem at `root` holds, in bytes.
pub fn used(root: &Path) -> Result<u64> {
    let stat = statvfs(root).with_context(|| format!("cannot look at {}", root.display()))?;
    Ok((stat.blocks() - stat.blocks_free()) * stat.fragment_size())
}

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

/// The UUID that device-mapper has for a block device, or for the disk that it is a part of; nothing if that is none of its
/// devices. Those of lvm2 begin with `LVM-` and the UUIDs of group and volume.
pub fn dm_uuid(device: u64) -> Option<String> {
    fs::read_to_string(disk_of(device)?.join("dm/uuid")).ok()
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

/// A mount as the kernel lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mount {
    pub id: u32,
    /// The mount that it is mounted on; that of the root is not in the list.
    pub parent: u32,
    /// As seen from this process.
    pub point: PathBuf,
}

/// All mounts that this process sees.
pub fn all() -> Result<Vec<Mount>> {
    const PATH: &str = "/proc/self/mountinfo";
    let list = fs::read(PATH).with_context(|| format!("cannot read {PATH}"))?;
    Ok(parse(&list))
}

/// Reads `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`). A line that is not understood is left out.
pub fn parse(list: &[u8]) -> Vec<Mount> {
    let lines = list.split(|byte| *byte == b'\n');
    let mount = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let mut number = || std::str::from_utf8(fields.next()?).ok()?.parse().ok();
        let (id, parent) = (number()?, number()?);
        let point = unescape(fields.nth(2)?);
        Some(Mount {
            id,
            parent,
            point: OsString::from_vec(point).into(),
        })
    };
    lines.filter_map(mount).collect()
}

/// White space and backslashes in a path of /proc are written as a backslash and three octal digits.
pub fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let (byte, tail) = match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if *first == b'\\' => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), tail)
            }
            _ => (*first, tail),
        };
        path.push(byte);
        rest = tail;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_of_mounts_is_read() {
        let list = b"28 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/a rw\n\
            40 28 0:25 /sub /mnt/with\\040space\\134 rw - tmpfs tmpfs rw,size=1k\n\
            not a mount\n\
            41 28 0:26 /\n";
        let mount = |id, parent, point: &str| Mount {
            id,
            parent,
            point: point.into(),
        };
        assert_eq!(
            parse(list),
            [mount(28, 1, "/"), mount(40, 28, "/mnt/with space\\")]
        );
        assert!(
            all()
                .unwrap()
                .iter()
                .any(|mount| mount.point == Path::new("/"))
        );
    }

    #[test]
    fn only_whole_octal_numbers_are_unescaped() {
        for (field, path) in [
            ("/a", "/a"),
            ("\\011\\012", "\t\n"),
            ("/a\\04", "/a\\04"),
            ("/a\\400", "/a\\400"),
            ("/a\\x", "/a\\x"),
        ] {
            assert_eq!(unescape(field.as_bytes()), path.as_bytes(), "{field}");
        }
    }
}
