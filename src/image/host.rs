//! What the host brings that a base has to be mounted on: its kernel, and the disks of a pool.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::features::Version;
use super::superblock::FsKind;
use crate::sys::cmd::Cmd;
use crate::sys::mounts::disk_of;

/// Sizes are bytes.
pub struct Host {
    /// The logical sectors of the disks.
    pub sector: u64,
    /// The pages of memory.
    pub page: u64,
    pub linux: Version,
    /// Why the filesystem cannot be made or mounted.
    pub lacks: Option<String>,
}

impl Host {
    /// With these disks of the pool, for a filesystem.
    pub fn with(disks: &[PathBuf], kind: FsKind) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let linux = version(&release).unwrap_or((u32::MAX, 0));
        let lacks = (!mounts(kind)).then(|| {
            format!(
                "the kernel that runs has no {}, or not the module of it: install that, or start the kernel that is \
                 installed",
                kind.name()
            )
        });
        Self {
            sector: disks
                .iter()
                .filter_map(|disk| sector_of(disk))
                .max()
                .unwrap_or(512),
            page: page(&fs::read("/proc/self/auxv").unwrap_or_default()).unwrap_or(4096),
            linux,
            lacks,
        }
    }
}

/// Whether the kernel has a filesystem, or a module of it.
fn mounts(kind: FsKind) -> bool {
    let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if list
        .lines()
        .any(|line| line.ends_with(&format!("\t{}", kind.name())))
    {
        return true;
    }
    let load = Cmd::new("modprobe").args(["--dry-run", "--quiet", kind.name()]);
    // Where nobody can be asked, mount(8) will say it.
    load.check_installed().is_err() || load.run().is_ok()
}

/// The size of the sectors of a disk, in bytes.
pub fn sector_of(disk: &Path) -> Option<u64> {
    let directory = disk_of(fs::metadata(disk).ok()?.rdev())?;
    let size = fs::read_to_string(directory.join("queue/logical_block_size")).ok()?;
    size.trim().parse().ok()
}

/// The first two numbers of a release.
fn version(release: &str) -> Option<Version> {
    let mut numbers = release.trim().split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The size of a page, among what the kernel tells each process (getauxval(3)).
fn page(auxiliary: &[u8]) -> Option<u64> {
    const PAGE_SIZE: u64 = 6;
    let words = auxiliary.chunks_exact(8);
    let words = words.map(|word| word.try_into().map_or(0, u64::from_ne_bytes));
    let words: Vec<u64> = words.collect();
    let mut pairs = words.chunks_exact(2);
    pairs.find(|pair| pair[0] == PAGE_SIZE).map(|pair| pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_running_kernel_and_its_pages_are_known() {
        for (release, expected) in [
            ("6.12.118+deb13-cloud-amd64\n", Some((6, 12))),
            ("5.10.0-9", Some((5, 10))),
            ("6.1-rc3", Some((6, 1))),
            ("7.0", Some((7, 0))),
            ("x.y", None),
            ("", None),
        ] {
            assert_eq!(version(release), expected, "{release}");
        }
        let host = Host::with(&[], FsKind::Ext4);
        assert!(host.linux > (3, 0) && host.linux < (100, 0));
        assert!(host.page >= 4096 && host.page.is_power_of_two());
        assert_eq!(host.sector, 512);
        let pair = |key: u64, value: u64| [key.to_ne_bytes(), value.to_ne_bytes()].concat();
        let vector = [pair(3, 6), pair(6, 65536), pair(0, 0)].concat();
        assert_eq!(page(&vector), Some(65536));
        assert_eq!(page(&vector[..16]), None);
    }
}
