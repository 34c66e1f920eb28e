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
    pub block_size: u64,
    /// The largest logical sector of a disk on which it can be mounted.
    pub sector: u64,
    pub features: Features,
    /// How many inodes it has, and how many of them are in use; nothing where they are made as they are needed.
    pub inodes: Option<(u64, u64)>,
    /// Whether its journal is on another device.
    pub has_foreign_journal: bool,
    /// Whether a part of an XFS is on another device.
    pub has_realtime: bool,
    /// Whether a new UUID means new checksums for all of an ext4's metadata (`metadata_csum`
    /// without `metadata_csum_seed`).
    pub uuid_in_checksums: bool,
}

/// The feature flags of a filesystem: those that a kernel may not know and all the same write, not mount at all,
/// or only read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    pub compatible: u32,
    pub incompatible: u32,
    pub read_only: u32,
}

/// Reads the superblock in the first bytes of a device; nothing if there is no filesystem that a
/// base can have. Refuses one that cannot be right.
pub fn read(prefix: &[u8]) -> Result<Option<Superblock>> {
    let Some(superblock) = ext4(prefix).or_else(|| xfs(prefix)) else {
        return Ok(None);
    };
    let is_sound = (512..=65536).contains(&superblock.block_size)
        && superblock.size > 0
        && superblock.sector >= 512;
    ensure!(
        is_sound,
        "its {} superblock is damaged",
        superblock.kind.name()
    );
    Ok(Some(superblock))
}

/// `linux/Documentation/filesystems/ext4/super.rst`. Only with extents: what is older is not ext4.
fn ext4(prefix: &[u8]) -> Option<Superblock> {
    const JOURNAL: u32 = 0x4;
    const EXTENTS: u32 = 0x40;
    const SIXTY_FOUR_BIT: u32 = 0x80;
    const CHECKSUM_SEED: u32 = 0x2000;
    const METADATA_CHECKSUMS: u32 = 0x400;
    let block = prefix.get(1024..2048)?;
    let word =
        |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let features = Features {
        compatible: word(0x5c),
        incompatible: word(0x60),
        read_only: word(0x64),
    };
    if block[0x38..0x3a] != [0x53, 0xef] || features.incompatible & EXTENTS == 0 {
        return None;
    }
    let count = |low: usize, high: usize| {
        let high = if features.incompatible & SIXTY_FOUR_BIT == 0 {
            0
        } else {
            word(high)
        };
        u64::from(high) << 32 | u64::from(word(low))
    };
    let block_size = 1024_u64.checked_shl(word(0x18)).unwrap_or(0);
    let (blocks, free) = (count(0x4, 0x150), count(0xc, 0x158));
    Some(Superblock {
        kind: FsKind::Ext4,
        size: blocks.checked_mul(block_size).unwrap_or(0),
        used: blocks.saturating_sub(free).saturating_mul(block_size),
        block_size,
        sector: block_size,
        features,
        inodes: Some((word(0).into(), word(0).saturating_sub(word(0x10)).into())),
        // No inode of it is the journal.
        has_foreign_journal: features.compatible & JOURNAL != 0 && word(0xe0) == 0,
        has_realtime: false,
        uuid_in_checksums: features.read_only & METADATA_CHECKSUMS != 0
            && features.incompatible & CHECKSUM_SEED == 0,
    })
}

/// `struct xfs_dsb` of `linux/fs/xfs/libxfs/xfs_format.h`.
fn xfs(prefix: &[u8]) -> Option<Superblock> {
    const VERSION: u16 = 0xf;
    if prefix.get(..4)? != b"XFSB" {
        return None;
    }
    let block = prefix.get(..512)?;
    let short = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
    let word =
        |at: usize| u32::from_be_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
    let long = |at: usize| u64::from(word(at)) << 32 | u64::from(word(at + 4));
    let block_size = u64::from(word(4));
    let blocks = long(8);
    Some(Superblock {
        kind: FsKind::Xfs,
        size: blocks.checked_mul(block_size).unwrap_or(0),
        used: blocks.saturating_sub(long(144)).saturating_mul(block_size),
        block_size,
        sector: u64::from(short(102)),
        // Version 4 has none of these.
        features: if short(100) & VERSION == 5 {
            Features {
                compatible: word(208),
                read_only: word(212),
                incompatible: word(216),
            }
        } else {
            Features::default()
        },
        inodes: None,
        has_foreign_journal: long(48) == 0,
        has_realtime: long(16) != 0,
        uuid_in_checksums: false,
    })
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
            // Those of the filesystem itself, and of lost+found.
            assert_eq!(found.inodes.map(|(_, used)| used), Some(11));
            assert!(
                found.inodes.is_some_and(|(all, _)| all >= 6000),
                "{found:?}"
            );
        }
    }

    #[test]
    fn ext4_with_its_features_and_blocks() {
        for (options, block_size, compatible, incompatible, foreign) in [
            (&["-O", "stable_inodes"][..], 1024, 0x800, 0x40, false),
            (
                &["-b", "4096", "-O", "meta_bg,^resize_inode"],
                4096,
                0x4,
                0x50,
                false,
            ),
            (&["-O", "^has_journal,casefold"], 1024, 0, 0x2_0040, false),
        ] {
            let args = [&["-q", "-t", "ext4"], options].concat();
            let found = read(&made_by("mke2fs", &args, 24)).unwrap().unwrap();
            assert_eq!((found.block_size, found.sector), (block_size, block_size));
            let features = found.features;
            assert_eq!(features.compatible & compatible, compatible, "{options:?}");
            assert_eq!(
                features.incompatible & incompatible,
                incompatible,
                "{options:?}"
            );
            assert_eq!(found.has_foreign_journal, foreign, "{options:?}");
        }
        let mut prefix = made_by("mke2fs", &["-q", "-t", "ext4"], 24);
        prefix[1024 + 0xe0] = 0;
        assert!(read(&prefix).unwrap().unwrap().has_foreign_journal);
    }

    /// With blocks of 4096 bytes, sectors of 512, and a journal of its own.
    fn xfs_of_version_5() -> Vec<u8> {
        let mut prefix = vec![0; PREFIX];
        prefix[..4].copy_from_slice(b"XFSB");
        prefix[4..8].copy_from_slice(&4096_u32.to_be_bytes());
        prefix[8..16].copy_from_slice(&100_000_u64.to_be_bytes());
        prefix[48..56].copy_from_slice(&65_542_u64.to_be_bytes());
        prefix[100..102].copy_from_slice(&0xb4a5_u16.to_be_bytes());
        prefix[102..104].copy_from_slice(&512_u16.to_be_bytes());
        prefix[144..152].copy_from_slice(&90_000_u64.to_be_bytes());
        prefix[212..216].copy_from_slice(&0xd_u32.to_be_bytes());
        prefix[216..220].copy_from_slice(&0xb_u32.to_be_bytes());
        prefix
    }

    #[test]
    fn xfs_superblock() {
        let found = read(&xfs_of_version_5()).unwrap().unwrap();
        assert_eq!(found.kind, FsKind::Xfs);
        assert_eq!((found.size, found.used), (409_600_000, 40_960_000));
        assert_eq!((found.block_size, found.sector), (4096, 512));
        let features = Features {
            compatible: 0,
            incompatible: 0xb,
            read_only: 0xd,
        };
        assert_eq!(found.features, features);
        assert!(!found.has_foreign_journal && !found.has_realtime);

        let mut other = xfs_of_version_5();
        other[100..102].copy_from_slice(&0xb4a4_u16.to_be_bytes());
        other[16..24].copy_from_slice(&1_u64.to_be_bytes());
        other[48..56].fill(0);
        let found = read(&other).unwrap().unwrap();
        assert_eq!(found.features, Features::default());
        assert!(found.has_foreign_journal && found.has_realtime);
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
