//! What a file or device holds, as its first bytes say.

use anyhow::Result;

use super::superblock::{self, Superblock};

/// How much is read to recognise it, in bytes: the superblock of btrfs is 64 KiB from the beginning.
pub const HEAD: usize = 128 << 10;

/// What was recognised.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Usable(Usable),
    Other(Other),
}

/// Something of which a base can be made.
#[derive(Debug, PartialEq, Eq)]
pub enum Usable {
    Filesystem(Superblock),
    Squashfs,
    Tar,
}

/// Something of which no base can be made as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// As in "it holds …".
    pub called: &'static str,
    pub advice: Advice,
}

/// What a person can do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// The kernel mounts it.
    Mount,
    /// It is mounted, and a squashfs is in it.
    LiveImage,
    /// It is a disk with partitions.
    Partition,
    /// qemu-img(1) makes a plain disk of it.
    Convert,
    /// It is encrypted.
    Unlock,
    /// It is a part of something else, which is a device of its own.
    Assemble,
    /// By the program that has made it.
    Decompress,
    /// It holds files, but is no tar archive.
    Unpack,
    /// It is a page about an error, most often.
    DownloadAgain,
    /// There are no files in it.
    Nothing,
}

struct Kind {
    /// How libblkid calls it; empty for what that does not look for.
    name: &'static str,
    called: &'static str,
    advice: Advice,
    /// Any of these tells.
    magic: &'static [(usize, &'static [u8])],
}

const fn kind(
    name: &'static str,
    called: &'static str,
    advice: Advice,
    magic: &'static [(usize, &'static [u8])],
) -> Kind {
    Kind {
        name,
        called,
        advice,
        magic,
    }
}

/// In the order in which they are looked for: what has a boot sector or a partition table beside itself comes before
/// those. Magic numbers as in libblkid and file(1).
const KINDS: &[Kind] = &[
    kind(
        "",
        "a qcow2 disk image",
        Advice::Convert,
        &[(0, b"QFI\xfb")],
    ),
    kind(
        "",
        "a VMDK disk image",
        Advice::Convert,
        &[(0, b"KDMV"), (0, b"COWD"), (0, b"# Disk Descriptor")],
    ),
    kind(
        "",
        "a VDI disk image",
        Advice::Convert,
        &[(0x40, b"\x7f\x10\xda\xbe")],
    ),
    kind(
        "",
        "a VHDX disk image",
        Advice::Convert,
        &[(0, b"vhdxfile")],
    ),
    kind("", "a VHD disk image", Advice::Convert, &[(0, b"conectix")]),
    kind("", "a QED disk image", Advice::Convert, &[(0, b"QED\0")]),
    kind(
        "",
        "a disk image of Parallels",
        Advice::Convert,
        &[(0, b"WithoutFreeSpace"), (0, b"WithouFreSpacExt")],
    ),
    kind(
        "iso9660",
        "an ISO 9660 filesystem",
        Advice::LiveImage,
        &[(0x8001, b"CD001")],
    ),
    kind("udf", "UDF", Advice::LiveImage, &[(0x8001, b"BEA01")]),
    kind(
        "crypto_LUKS",
        "LUKS",
        Advice::Unlock,
        &[(0, b"LUKS\xba\xbe")],
    ),
    kind(
        "BitLocker",
        "BitLocker",
        Advice::Unlock,
        &[(3, b"-FVE-FS-")],
    ),
    kind(
        "LVM2_member",
        "a physical volume of LVM",
        Advice::Assemble,
        &[
            (0x218, b"LVM2 001"),
            (0x018, b"LVM2 001"),
            (0x418, b"LVM2 001"),
            (0x618, b"LVM2 001"),
        ],
    ),
    kind(
        "linux_raid_member",
        "a part of a RAID array",
        Advice::Assemble,
        &[(0x1000, b"\xfc\x4e\x2b\xa9"), (0, b"\xfc\x4e\x2b\xa9")],
    ),
    kind("btrfs", "btrfs", Advice::Mount, &[(0x10040, b"_BHRfS_M")]),
    kind(
        "bcachefs",
        "bcachefs",
        Advice::Mount,
        &[(0x1018, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9")],
    ),
    kind(
        "f2fs",
        "F2FS",
        Advice::Mount,
        &[(1024, b"\x10\x20\xf5\xf2")],
    ),
    kind(
        "erofs",
        "EROFS",
        Advice::Mount,
        &[(1024, b"\xe2\xe1\xf5\xe0")],
    ),
    kind("jfs", "JFS", Advice::Mount, &[(0x8000, b"JFS1")]),
    kind(
        "reiserfs",
        "ReiserFS",
        Advice::Mount,
        &[(0x10034, b"ReIsEr")],
    ),
    kind("ntfs", "NTFS", Advice::Mount, &[(3, b"NTFS    ")]),
    kind("exfat", "exFAT", Advice::Mount, &[(3, b"EXFAT   ")]),
    kind(
        "vfat",
        "a FAT filesystem",
        Advice::Mount,
        &[
            (82, b"FAT32   "),
            (54, b"FAT16   "),
            (54, b"FAT12   "),
            (54, b"FAT     "),
        ],
    ),
    kind(
        "swap",
        "swap",
        Advice::Nothing,
        &[(4086, b"SWAPSPACE2"), (4086, b"SWAP-SPACE")],
    ),
    kind(
        "gpt",
        "a GPT partition table",
        Advice::Partition,
        &[(512, b"EFI PART"), (4096, b"EFI PART")],
    ),
    kind(
        "",
        "a squashfs before version 4",
        Advice::Mount,
        &[(0, b"sqsh")],
    ),
    kind("", "a bzip2 stream", Advice::Decompress, &[(0, b"BZh")]),
    kind(
        "",
        "an lz4 stream",
        Advice::Decompress,
        &[(0, b"\x04\x22\x4d\x18"), (0, b"\x02\x21\x4c\x18")],
    ),
    kind("", "an lzip stream", Advice::Decompress, &[(0, b"LZIP")]),
    kind("", "an lzop stream", Advice::Decompress, &[(0, b"\x89LZO")]),
    kind(
        "",
        "an lzma stream",
        Advice::Decompress,
        &[(0, b"\x5d\0\0")],
    ),
    kind(
        "",
        "a stream of compress(1)",
        Advice::Decompress,
        &[(0, b"\x1f\x9d")],
    ),
    kind(
        "",
        "a cpio archive",
        Advice::Unpack,
        &[
            (0, b"070701"),
            (0, b"070702"),
            (0, b"070707"),
            (0, b"\xc7\x71"),
            (0, b"\x71\xc7"),
        ],
    ),
    kind("", "a zip archive", Advice::Unpack, &[(0, b"PK\x03\x04")]),
    kind(
        "",
        "a 7z archive",
        Advice::Unpack,
        &[(0, b"7z\xbc\xaf\x27\x1c")],
    ),
    kind("", "a RAR archive", Advice::Unpack, &[(0, b"Rar!\x1a\x07")]),
    kind(
        "",
        "an ar archive, as a Debian package is",
        Advice::Unpack,
        &[(0, b"!<arch>\n")],
    ),
    kind(
        "",
        "an RPM package",
        Advice::Unpack,
        &[(0, b"\xed\xab\xee\xdb")],
    ),
    kind("", "a WIM archive", Advice::Unpack, &[(0, b"MSWIM\0\0\0")]),
    kind(
        "",
        "a page of HTML",
        Advice::DownloadAgain,
        &[
            (0, b"<!DOCTYPE"),
            (0, b"<!doctype"),
            (0, b"<html"),
            (0, b"<HTML"),
        ],
    ),
    kind(
        "",
        "a program, as a kernel is",
        Advice::Nothing,
        &[(0, b"MZ"), (0, b"\x7fELF")],
    ),
    // What only libblkid looks for.
    kind("ext2", "ext2", Advice::Mount, &[]),
    kind("ext3", "ext3", Advice::Mount, &[]),
    kind("ext4", "ext4 without extents", Advice::Mount, &[]),
    kind("dos", "an MBR partition table", Advice::Partition, &[]),
    kind("jbd", "the journal of an ext4", Advice::Nothing, &[]),
    kind(
        "xfs_external_log",
        "the journal of an XFS",
        Advice::Nothing,
        &[],
    ),
    kind("zfs_member", "a part of a ZFS pool", Advice::Assemble, &[]),
    kind("bcache", "a part of a bcache device", Advice::Assemble, &[]),
    kind(
        "mpath_member",
        "a path of a multipath device",
        Advice::Assemble,
        &[],
    ),
    kind(
        "DM_verity_hash",
        "hashes of dm-verity",
        Advice::Nothing,
        &[],
    ),
];

/// Recognises a file or device by its first bytes; nothing if they say nothing. Refuses a filesystem that cannot be
/// right.
pub fn recognise(head: &[u8]) -> Result<Option<Found>> {
    if let Some(superblock) = superblock::read(head)? {
        return Ok(Some(Found::Usable(Usable::Filesystem(superblock))));
    }
    let has = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    if has(0, b"hsqs") {
        return Ok(Some(Found::Usable(Usable::Squashfs)));
    }
    if is_tar(head) {
        return Ok(Some(Found::Usable(Usable::Tar)));
    }
    let mut kinds = KINDS.iter();
    let by_magic = kinds.find(|kind| kind.magic.iter().any(|(at, magic)| has(*at, magic)));
    let found = by_magic
        .map(Kind::other)
        .or_else(|| old_ext(head))
        .or_else(|| has_partitions(head).then(|| of_name("dos")).flatten());
    Ok(found.map(Found::Other))
}

/// What libblkid calls so, if there is something to say of it.
pub fn of_name(name: &str) -> Option<Other> {
    let mut kinds = KINDS.iter();
    kinds
        .find(|kind| !kind.name.is_empty() && kind.name == name)
        .map(Kind::other)
}

impl Kind {
    fn other(&self) -> Other {
        Other {
            called: self.called,
            advice: self.advice,
        }
    }
}

/// What has the superblock of an ext4, but is none (linux/Documentation/filesystems/ext4/super.rst).
fn old_ext(head: &[u8]) -> Option<Other> {
    const JOURNAL: u8 = 0x4;
    const JOURNAL_DEVICE: u8 = 0x8;
    let block = head.get(1024..2048)?;
    if block[0x38..0x3a] != [0x53, 0xef] {
        return None;
    }
    of_name(if block[0x60] & JOURNAL_DEVICE != 0 {
        "jbd"
    } else if block[0x5c] & JOURNAL != 0 {
        "ext3"
    } else {
        "ext2"
    })
}

/// Whether there is a master boot record with a partition. Boot sectors end in the same bytes.
fn has_partitions(head: &[u8]) -> bool {
    let Some(table) = head.get(446..512) else {
        return false;
    };
    let mut entries = table[..64].chunks_exact(16);
    let is_sound = entries.clone().all(|entry| matches!(entry[0], 0 | 0x80));
    table[64..] == [0x55, 0xaa] && is_sound && entries.any(|entry| entry[4] != 0)
}

/// Whether a tar archive begins here. That before POSIX has no magic number, but each has a checksum of the first
/// header (tar(5)).
fn is_tar(head: &[u8]) -> bool {
    const CHECKSUM: std::ops::Range<usize> = 148..156;
    let Some(header) = head.get(..512) else {
        return false;
    };
    if header[257..262] == *b"ustar" {
        return true;
    }
    let field = String::from_utf8_lossy(&header[CHECKSUM]);
    let field = field.trim_matches([' ', '\0']);
    let Ok(written) = u32::from_str_radix(field, 8) else {
        return false;
    };
    // The field itself counts as spaces.
    let byte = |(at, byte): (usize, &u8)| {
        if CHECKSUM.contains(&at) { b' ' } else { *byte }
    };
    let bytes = || header.iter().enumerate().map(byte);
    let sum = bytes().map(u32::from).sum::<u32>();
    // Some have added up signed numbers.
    let signed = bytes()
        .map(|byte| i32::from(i8::from_ne_bytes([byte])))
        .sum::<i32>();
    header[0] != 0 && (written == sum || i64::from(written) == i64::from(signed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cmd::Cmd;
    use std::fs::{self, File};

    fn with(at: usize, magic: &[u8]) -> Vec<u8> {
        let mut head = vec![0; HEAD];
        head[at..at + magic.len()].copy_from_slice(magic);
        head
    }

    fn called(head: &[u8]) -> Option<&'static str> {
        match recognise(head).unwrap() {
            Some(Found::Other(other)) => Some(other.called),
            None => None,
            Some(Found::Usable(found)) => panic!("{found:?}"),
        }
    }

    #[test]
    fn each_kind_is_recognised_by_each_of_its_magic_numbers() {
        for kind in KINDS {
            for (at, magic) in kind.magic {
                assert_eq!(called(&with(*at, magic)), Some(kind.called), "{at}");
                let mut cut = with(*at, magic);
                cut.truncate(at + magic.len() - 1);
                assert_ne!(called(&cut), Some(kind.called), "{at}");
            }
            if !kind.name.is_empty() {
                assert_eq!(of_name(kind.name), Some(kind.other()));
            }
        }
        assert_eq!(of_name(""), None);
        assert_eq!(of_name("unheard"), None);
        for nothing in [&[][..], &vec![0; HEAD], b"text\n", &[0x55; 600]] {
            assert_eq!(recognise(nothing).unwrap(), None);
        }
    }

    #[test]
    fn what_has_a_partition_table_beside_itself_is_that() {
        // As an ISO image that starts from a stick has it.
        let mut iso = with(0x8001, b"CD001");
        iso[446..512].copy_from_slice(
            &[&[0x80, 0, 1, 0, 0xcd, 1, 1, 1][..], &[0; 56], &[0x55, 0xaa]].concat(),
        );
        assert_eq!(called(&iso), Some("an ISO 9660 filesystem"));
        iso[0x8001] = 0;
        assert_eq!(called(&iso), Some("an MBR partition table"));
        // Nothing but code is there.
        iso[450] = 0;
        assert_eq!(called(&iso), None);
        iso[450] = 0xcd;
        iso[446] = 0x11;
        assert_eq!(called(&iso), None);
    }

    #[test]
    fn what_tools_make_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for (script, expected) in [
            ("mke2fs -q -t ext2 $0", "ext2"),
            ("mke2fs -q -t ext3 $0", "ext3"),
            ("mke2fs -q -O journal_dev $0", "the journal of an ext4"),
            ("mkswap -q $0", "swap"),
            (
                "echo label: dos | sfdisk -q $0 && echo , | sfdisk -q $0",
                "an MBR partition table",
            ),
            ("echo label: gpt | sfdisk -q $0", "a GPT partition table"),
        ] {
            File::create(&path).unwrap().set_len(16 << 20).unwrap();
            Cmd::new("sh")
                .args(["-c", script])
                .arg(&path)
                .run()
                .unwrap();
            let head = fs::read(&path).unwrap();
            assert_eq!(called(&head[..HEAD]), Some(expected), "{script}");
        }
    }

    #[test]
    fn archives_of_each_format_are_recognised() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive");
        fs::write(dir.path().join("file"), "x").unwrap();
        for format in ["v7", "oldgnu", "gnu", "ustar", "pax"] {
            let pack = Cmd::new("tar").args(["--create", "--format", format, "--file"]);
            pack.arg(&path)
                .arg("--directory")
                .arg(dir.path())
                .arg("file")
                .run()
                .unwrap();
            let mut head = fs::read(&path).unwrap();
            let tar = Some(Found::Usable(Usable::Tar));
            assert_eq!(recognise(&head).unwrap(), tar, "{format}");
            assert_eq!(recognise(&head[..511]).unwrap(), None);
            head[0] ^= 1;
            let is_tar = recognise(&head).unwrap() == tar;
            // POSIX has a magic number, and tar(1) says what is damaged.
            assert_eq!(is_tar, format != "v7", "{format}");
        }
        // An empty archive is no archive of a system.
        assert_eq!(recognise(&[0; 10240]).unwrap(), None);
    }
}
