//! The features of ext4 and XFS that keep a filesystem from becoming a base: its tools or the kernel cannot do with
//! it what a base needs.

use super::superblock::{Features, FsKind, Superblock};

/// A version of Linux: its first two numbers.
pub type Version = (u32, u32);

/// What a feature means for a base.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Fine,
    /// Fine from this version of Linux on.
    Since(u32, u32),
    /// It cannot be made larger.
    NotGrown(&'static str),
    /// Why not, and what to do.
    Never(&'static str),
}
use Verdict::{Fine, Never, NotGrown, Since};

/// The flags of a word, by their bits.
type Table = &'static [(u32, &'static str, Verdict)];

/// What e2fsprogs 1.47 knows (lib/ext2fs/ext2fs.h), without what no kernel mounts. e2fsck(8) refuses all others, the
/// compatible ones as well.
const EXT4_COMPATIBLE: Table = &[
    (0x1, "dir_prealloc", Fine),
    (0x2, "imagic_inodes", Fine),
    (0x4, "has_journal", Fine),
    (0x8, "ext_attr", Fine),
    (0x10, "resize_inode", Fine),
    (0x20, "dir_index", Fine),
    (0x200, "sparse_super2", Fine),
    (0x400, "fast_commit", Since(5, 10)),
    (
        0x800,
        "stable_inodes",
        Never(
            "its UUID is a part of the keys of encrypted files and can never change, but a base gets one of its own; mount \
             it and give the directory",
        ),
    ),
    (0x1000, "orphan_file", Since(5, 15)),
];
const EXT4_INCOMPATIBLE: Table = &[
    (0x2, "filetype", Fine),
    (0x4, "needs_recovery", Fine),
    (0x10, "meta_bg", Fine),
    (0x40, "extents", Fine),
    (0x80, "64bit", Fine),
    (0x100, "mmp", Fine),
    (0x200, "flex_bg", Fine),
    (0x400, "ea_inode", Since(4, 13)),
    (
        0x1000,
        "dirdata",
        Never("only Lustre can mount it; mount it there and give the directory"),
    ),
    (0x2000, "metadata_csum_seed", Since(4, 4)),
    (0x4000, "large_dir", Since(4, 13)),
    (0x8000, "inline_data", Fine),
    (0x10000, "encrypt", Fine),
    (0x20000, "casefold", Since(5, 2)),
];
const EXT4_READ_ONLY: Table = &[
    (0x1, "sparse_super", Fine),
    (0x2, "large_file", Fine),
    (0x4, "btree_dir", Fine),
    (0x8, "huge_file", Fine),
    (0x10, "uninit_bg", Fine),
    (0x20, "dir_nlink", Fine),
    (0x40, "extra_isize", Fine),
    (0x100, "quota", Fine),
    (
        0x200,
        "bigalloc",
        NotGrown(
            "resize2fs(8) does not make such a filesystem larger; leave --size away, or mount it and give the directory",
        ),
    ),
    (0x400, "metadata_csum", Fine),
    (
        0x1000,
        "read-only",
        Never("no layer of it could be written to; `tune2fs -O ^read-only` takes it off"),
    ),
    (0x2000, "project", Fine),
    (
        0x4000,
        "shared_blocks",
        Never("no layer of it could be written to; `e2fsck -E unshare_blocks` takes it off"),
    ),
    (0x8000, "verity", Since(5, 4)),
    (0x10000, "orphan_present", Since(5, 15)),
];

/// `linux/fs/xfs/libxfs/xfs_format.h`. No compatible feature is known.
const XFS_INCOMPATIBLE: Table = &[
    (0x1, "ftype", Fine),
    (0x2, "sparse inodes", Since(4, 2)),
    (0x4, "meta_uuid", Since(4, 3)),
    (0x8, "bigtime", Since(5, 10)),
    (
        0x10,
        "needsrepair",
        Never("it is damaged, or an upgrade of it was not finished; xfs_repair(8) mends that"),
    ),
    (0x20, "nrext64", Since(5, 19)),
    (0x40, "exchange", Since(6, 10)),
    (0x80, "parent", Since(6, 10)),
    (0x100, "metadir", Since(6, 13)),
];
const XFS_READ_ONLY: Table = &[
    (0x1, "finobt", Since(3, 16)),
    (0x2, "rmapbt", Since(4, 8)),
    (0x4, "reflink", Since(4, 9)),
    (0x8, "inobtcount", Since(5, 10)),
];

/// What keeps a filesystem from becoming a base: a feature, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct Obstacle {
    pub feature: String,
    /// With what to do.
    pub reason: String,
}

/// The first obstacle among the features of a filesystem under this version of Linux. `grows`: whether it is to be
/// made larger.
pub fn obstacle(superblock: &Superblock, grows: bool, linux: Version) -> Option<Obstacle> {
    let Features {
        compatible,
        incompatible,
        read_only,
    } = superblock.features;
    let words = match superblock.kind {
        FsKind::Ext4 => [
            (incompatible, EXT4_INCOMPATIBLE),
            (read_only, EXT4_READ_ONLY),
            (compatible, EXT4_COMPATIBLE),
        ],
        FsKind::Xfs => [
            (incompatible, XFS_INCOMPATIBLE),
            (read_only, XFS_READ_ONLY),
            (compatible, &[]),
        ],
    };
    let mut flags = words.into_iter().flat_map(|(word, table)| {
        let bits = (0..u32::BITS).map(|bit| 1_u32 << bit);
        bits.filter(move |bit| word & bit != 0)
            .map(move |bit| (bit, table))
    });
    flags.find_map(|(bit, table)| of_flag(bit, table, grows, linux))
}

fn of_flag(bit: u32, table: Table, grows: bool, linux: Version) -> Option<Obstacle> {
    let known = table.iter().find(|(known, ..)| *known == bit);
    let Some((_, name, verdict)) = known else {
        return Some(Obstacle {
            feature: format!("{bit:#x}, which is not known"),
            reason: "what it changes nobody here can tell; mount it and give the directory"
                .to_owned(),
        });
    };
    let reason = match verdict {
        Fine => return None,
        Since(major, minor) if linux >= (*major, *minor) => return None,
        Since(major, minor) => format!(
            "Linux mounts that from {major}.{minor} on, and {}.{} runs; mount it there and pack it with tar",
            linux.0, linux.1
        ),
        NotGrown(_) if !grows => return None,
        NotGrown(reason) | Never(reason) => (*reason).to_owned(),
    };
    Some(Obstacle {
        feature: (*name).to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::superblock::{self, PREFIX};
    use crate::sys::cmd::Cmd;
    use std::fs::{self, File};
    use std::path::Path;

    const LINUX: Version = (6, 12);

    fn superblock_of(image: &Path) -> Superblock {
        let bytes = fs::read(image).unwrap();
        superblock::read(&bytes[..PREFIX]).unwrap().unwrap()
    }

    fn runs(program: &'static str, args: &[&str], image: &Path) -> bool {
        let cmd = Cmd::new(program).args(args).arg(image).accept(&[0, 1]);
        cmd.run().is_ok()
    }

    /// The tools are asked: what is said to be possible is, and what is refused is not.
    #[test]
    fn each_feature_of_ext4_is_judged_as_its_tools_do() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        for (features, options, can_become, can_grow) in [
            ("^has_journal", &[][..], true, true),
            ("^64bit", &[], true, true),
            ("^metadata_csum", &[], true, true),
            ("metadata_csum_seed", &[], true, true),
            ("^resize_inode", &[], true, true),
            ("meta_bg,^resize_inode", &[], true, true),
            ("^flex_bg", &[], true, true),
            ("sparse_super2,^resize_inode", &[], true, true),
            ("inline_data", &[], true, true),
            ("large_dir", &[], true, true),
            ("ea_inode", &[], true, true),
            ("quota,project", &[], true, true),
            ("encrypt", &[], true, true),
            ("verity", &[], true, true),
            ("casefold", &[], true, true),
            ("fast_commit", &[], true, true),
            ("orphan_file", &[], true, true),
            ("bigalloc", &["-C", "16384"], true, false),
            ("stable_inodes", &[], false, true),
        ] {
            File::create(&image).unwrap().set_len(32 << 20).unwrap();
            let make = ["-q", "-t", "ext4", "-b", "4096", "-O", features];
            assert!(
                runs("mke2fs", &[&make, options].concat(), &image),
                "{features}"
            );
            let superblock = superblock_of(&image);
            let is_accepted = |grows| obstacle(&superblock, grows, LINUX).is_none();
            assert_eq!(is_accepted(false), can_become, "{features}");
            assert_eq!(is_accepted(true), can_become && can_grow, "{features}");

            assert!(runs("e2fsck", &["-fp"], &image), "{features}");
            // As a base gets its own.
            let seed: &[&str] = if superblock.uuid_in_checksums {
                &["-O", "metadata_csum_seed"]
            } else {
                &[]
            };
            let renew = Cmd::new("tune2fs").args(seed).args(["-U", "random"]);
            assert_eq!(renew.arg(&image).run().is_ok(), can_become, "{features}");
            let file = File::options().write(true).open(&image).unwrap();
            file.set_len(64 << 20).unwrap();
            let grown = Cmd::new("resize2fs").arg(&image);
            assert_eq!(grown.run().is_ok(), can_grow, "{features}");
            assert!(runs("e2fsck", &["-fn"], &image), "{features}");
        }
    }

    fn of_kind(kind: FsKind, features: Features) -> Superblock {
        Superblock {
            kind,
            size: 1 << 30,
            used: 1 << 20,
            block_size: 4096,
            sector: 4096,
            features,
            inodes: None,
            has_foreign_journal: false,
            has_realtime: false,
            uuid_in_checksums: false,
        }
    }

    #[test]
    fn features_are_named_with_the_reason() {
        for (kind, word, bit, linux, expected) in [
            (
                FsKind::Ext4,
                1,
                0x800,
                LINUX,
                Some(("stable_inodes", "UUID")),
            ),
            (FsKind::Ext4, 1, 0x100, LINUX, Some(("0x100", "nobody"))),
            (
                FsKind::Ext4,
                1,
                0x1000,
                (5, 10),
                Some(("orphan_file", "5.15")),
            ),
            (FsKind::Ext4, 2, 0x1, LINUX, Some(("0x1", "nobody"))),
            (FsKind::Ext4, 2, 0x1000, LINUX, Some(("dirdata", "Lustre"))),
            (FsKind::Ext4, 2, 0x2_0000, (5, 1), Some(("casefold", "5.2"))),
            (FsKind::Ext4, 2, 0x2_0000, (5, 2), None),
            (
                FsKind::Ext4,
                3,
                0x1000,
                LINUX,
                Some(("read-only", "tune2fs")),
            ),
            (
                FsKind::Ext4,
                3,
                0x4000,
                LINUX,
                Some(("shared_blocks", "e2fsck")),
            ),
            (
                FsKind::Ext4,
                3,
                0x8_0000,
                LINUX,
                Some(("0x80000", "nobody")),
            ),
            (FsKind::Xfs, 1, 0x1, LINUX, Some(("0x1", "nobody"))),
            (
                FsKind::Xfs,
                2,
                0x10,
                LINUX,
                Some(("needsrepair", "xfs_repair")),
            ),
            (FsKind::Xfs, 2, 0x20, (5, 15), Some(("nrext64", "5.19"))),
            (FsKind::Xfs, 2, 0x20, LINUX, None),
            (FsKind::Xfs, 2, 0x100, LINUX, Some(("metadir", "6.13"))),
            (FsKind::Xfs, 2, 0x200, (7, 0), Some(("0x200", "nobody"))),
            (FsKind::Xfs, 3, 0x8, (5, 9), Some(("inobtcount", "5.10"))),
            (FsKind::Xfs, 3, 0xf, LINUX, None),
        ] {
            let mut features = Features::default();
            match word {
                1 => features.compatible = bit,
                2 => features.incompatible = bit,
                _ => features.read_only = bit,
            }
            let found = obstacle(&of_kind(kind, features), false, linux);
            let Some((feature, reason)) = expected else {
                assert_eq!(found, None, "{kind:?} {word} {bit:#x}");
                continue;
            };
            let found = found.unwrap();
            assert!(found.feature.starts_with(feature), "{found:?}");
            assert!(found.reason.contains(reason), "{found:?}");
        }
    }
}
