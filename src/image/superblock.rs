//! The superblocks of ext4 and XFS: what a filesystem is and how large, from its first bytes.

use anyhow::{Result, ensure};
use serde::Serialize;

/// How much of an image has to be read to recognise it, in bytes.
pub const PREFIX: usize = 4096;

/// The filesystems that a base can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    Ext4,
    Xfs,
}

impl FsKind {
    /// As mount(8) names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// What a superblock says. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Superblock {
    pub kind: FsKind,
    pub size: u64,
    pub used: u64,
    /// Whether a new UUID means new checksums for all of an ext4's metadata (`metadata_csum`
    /// without `metadata_csum_seed`).
    pub uuid_in_checksums: bool,
}

/// Reads the superblock in the first bytes of a device; nothing if there is no filesystem that a
/// base can have. Refuses one that cannot be right.
pub fn read(prefix: &[u8]) -> Result<Option<Superblock>> {
    let found = ext4(prefix).or_else(|| xfs(prefix));
    let Some((superblock, block_size)) = found else {
        return Ok(None);
    };
    ensure!(
        (512..=65536).contains(&block_size) && superblock.size > 0,
        "its {} superblock is damaged",
        superblock.kind.name()
    );
    Ok(Some(superblock))
}

/// `linux/Documentation/filesystems/ext4/super.rst`. Only with extents: what is older is not ext4.
fn ext4(prefix: &[u8]) -> Option<(Superblock, u64)> {
    const EXTENTS: u32 = 0x40;
    const SIXTY_FOUR_BIT: u32 = 0x80;
    const CHECKSUM_SEED: u32 = 0x2000;
    const METADATA_CHECKSUMS: u32 = 0x400;
    let block = prefix.get(1024..2048)?;
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let incompatible = word(0x60);
    if block[0x38..0x3a] != [0x53, 0xef] || incompatible & EXTENTS == 0 {
        return None;
    }
    let count = |low: usize, high: usize| {
        let high = if incompatible & SIXTY_FOUR_BIT == 0 {
            0
        } else {
            word(high)
        };
        u64::from(high) << 32 | u64::from(word(low))
    };
    let block_size = 1024_u64.checked_shl(word(0x18)).unwrap_or(0);
    let (blocks, free) = (count(0x4, 0x150), count(0xc, 0x158));
    let superblock = Superblock {
        kind: FsKind::Ext4,
        size: blocks.checked_mul(block_size).unwrap_or(0),
        used: blocks.saturating_sub(free).saturating_mul(block_size),
        uuid_in_checksums: word(0x64) & METADATA_CHECKSUMS != 0
            && incompatible & CHECKSUM_SEED == 0,
    };
    Some((superblock, block_size))
}

/// `struct xfs_dsb` of `linux/fs/xfs/libxfs/xfs_format.h`.
fn xfs(prefix: &[u8]) -> Option<(Superblock, u64)> {
    let long = |at: usize| {
        let bytes = prefix.get(at..at + 8)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    };
    if prefix.get(..4)? != b"XFSB" {
        return None;
    }
    let block_size = long(4)? >> 32;
    let blocks = long(8)?;
    let superblock = Superblock {
        kind: FsKind::Xfs,
        size: blocks.checked_mul(block_size).unwrap_or(0),
        used: blocks.saturating_sub(long(144)?).saturating_mul(block_size),
        uuid_in_checksums: false,
    };
    Some((superblock, block_size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cmd::Cmd;
    use std::fs::{self, File};

    fn made_by(program: &'static str, args: &[&str], mib: u64) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        File::create(&image).unwrap().set_len(mib << 20).unwrap();
        Cmd::new(program).args(args).arg(&image).run().unwrap();
        fs::read(&image).unwrap()[..PREFIX].to_vec()
    }

    #[test]
    fn ext4_with_and_without_a_checksum_seed() {
        for (features, uuid_in_checksums) in [
            ("metadata_csum,^metadata_csum_seed", true),
            ("metadata_csum,metadata_csum_seed", false),
            ("^metadata_csum,^64bit", false),
        ] {
            let prefix = made_by("mke2fs", &["-q", "-t", "ext4", "-O", features], 24);
            let found = read(&prefix).unwrap().unwrap();
            assert_eq!((found.kind, found.size), (FsKind::Ext4, 24 << 20));
            assert_eq!(found.uuid_in_checksums, uuid_in_checksums, "{features}");
            assert!(found.used > 1 << 20 && found.used < 12 << 20, "{found:?}");
        }
    }

    #[test]
    fn xfs_superblock() {
        let mut prefix = vec![0; PREFIX];
        prefix[..4].copy_from_slice(b"XFSB");
        prefix[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        prefix[8..16].copy_from_slice(&100_000_u64.to_be_bytes());
        prefix[144..152].copy_from_slice(&90_000_u64.to_be_bytes());
        let found = read(&prefix).unwrap().unwrap();
        assert_eq!(found.kind, FsKind::Xfs);
        assert_eq!((found.size, found.used), (409_600_000, 40_960_000));
    }

    #[test]
    fn others_and_damaged_ones() {
        assert_eq!(
            read(&made_by("mke2fs", &["-q", "-t", "ext2"], 8)).unwrap(),
            None
        );
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[0; PREFIX]).unwrap(), None);
        assert_eq!(read(b"XFSB").unwrap(), None);
        let mut damaged = made_by("mke2fs", &["-q", "-t", "ext4"], 24);
        damaged[1024 + 0x18] = 60;
        assert!(read(&damaged).is_err());
        damaged[1024 + 0x18] = 2;
        damaged[1024 + 4..1024 + 8].fill(0);
        assert!(read(&damaged).is_err());
    }
}
