//! Whether a base can be made of a source where it is to go, and how. All of that is decided from a few facts, before
//! the first byte is copied and before anything is made. A refusal says what is wrong, why, and what to do.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

use super::features::{self, Version};
use super::head::{Advice, Found, Other, Usable};
use super::host::Host;
use super::stream::Compression;
use super::superblock::{FsKind, Superblock};
use super::tree::{Content, Shape};

/// mkfs.xfs(8) makes none that is smaller, in bytes.
const XFS_LEAST: u64 = 300 << 20;
/// A filesystem that is made for a tree of files gets this many times what the files need.
const SPARE_FACTOR: u64 = 2;
/// From which version of Linux on a filesystem can have blocks that are larger than a page.
const LARGE_BLOCKS_OF_EXT4: Version = (6, 19);
const LARGE_BLOCKS_OF_XFS: Version = (6, 12);
/// lvm2 takes whole sectors only, in bytes.
const SECTOR: u64 = 512;
/// A feature of ext4: directories can find names in any case.
const CASEFOLD: u32 = 0x20000;
/// A base that holds so many times as much as another one, and this many bytes, has hardly anything in common with it.
const FAR_MORE: u64 = 4;
const LITTLE: u64 = 64 << 20;

/// What has a source in its hands and may write to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// It is mounted there, and not read-only.
    Mount(PathBuf),
    /// It is a part of this block device.
    Device(String),
    Swap,
    /// It is a disk of a virtual machine that runs.
    Machine,
    /// Another program has it for itself.
    Program,
}

/// What a source is.
pub enum What<'a> {
    Filesystem {
        superblock: &'a Superblock,
        /// Of its file or device, in bytes; nothing where it is compressed.
        length: Option<u64>,
    },
    Tree {
        content: Content,
        kind: Option<FsKind>,
    },
}

/// Where a base is to go.
pub struct Place<'a> {
    pub host: &'a Host,
    /// What the pool can take, in bytes.
    pub room: u64,
    /// Whether another base has a part of the content already, how much shows only when it is read.
    pub shares: bool,
}

/// The volume of a base, and what is copied into it. Sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    pub kind: FsKind,
    pub size: u64,
    pub content: u64,
}

/// A kernel version of a source, and which of its files are there or on the boot partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    pub has_image: bool,
    pub has_initramfs: bool,
}

/// What was recognised, if a base can be made of something like that. `name` is how the user calls the source.
pub fn of_kind(
    name: &str,
    found: Option<Found>,
    length: u64,
    compression: Option<Compression>,
) -> Result<Usable> {
    let packed = compression.map_or(String::new(), |compression| {
        format!("is compressed by {} and ", compression.program())
    });
    match (found, compression) {
        (Some(Found::Usable(Usable::Squashfs)), Some(_)) => {
            bail!("{name} is a compressed squashfs; decompress it first")
        }
        (Some(Found::Other(other)), _) => bail!(
            "{name} {packed}holds {}, and no base can be made of that as it is; {}",
            other.called,
            what_to_do(other, name)
        ),
        (Some(Found::Usable(usable)), _) => Ok(usable),
        (None, None) if length == 0 => bail!("{name} is empty"),
        (None, _) => bail!(
            "{name} {packed}holds nothing that is known; ext4, XFS, squashfs, a tar archive or a directory is needed"
        ),
    }
}

/// What a person can do with something of which no base can be made.
fn what_to_do(other: Other, name: &str) -> String {
    match other.advice {
        Advice::Mount => "mount it and give the directory",
        Advice::LiveImage => "mount it and give the squashfs in it, such as LiveOS/squashfs.img",
        Advice::Partition => {
            return format!(
                "give its root partition: `losetup --find --show --read-only --partscan {name}` has a file's partitions \
                 become devices"
            );
        }
        Advice::Convert => {
            return format!(
                "`qemu-img convert -O raw {name} {name}.raw` makes a plain disk of it, whose root partition can be given"
            );
        }
        Advice::Unlock => "unlock it, and give the device below /dev/mapper",
        Advice::Assemble => "give the volume or array that it is a part of",
        Advice::Decompress => "decompress it; gzip, xz and zstd are read as they are",
        Advice::Unpack => "unpack it and give the directory",
        Advice::DownloadAgain => "its download has failed",
        Advice::Nothing => "give a root filesystem",
    }
    .to_owned()
}

/// Refuses a source that changes while it is copied.
pub fn of_holder(name: &str, holder: Option<&Holder>) -> Result<()> {
    match holder {
        None => Ok(()),
        Some(Holder::Mount(point)) => {
            let point = point.display();
            bail!(
                "{name} is mounted at {point} and can be written to, so a copy of it would be torn; give the directory \
                 {point}, or mount it read-only; `imgbased-helper layout init --from {point}` takes over a system on a \
                 thin volume"
            )
        }
        Some(Holder::Device(device)) => bail!(
            "{name} is a part of {device}, which can change it while it is copied; give {device}, or release it first"
        ),
        Some(Holder::Swap) => bail!("{name} is in use as swap"),
        Some(Holder::Machine) => bail!(
            "{name} is a disk of a virtual machine that runs, so a copy of it would be torn; shut that down first"
        ),
        Some(Holder::Program) => bail!(
            "{name} is in use by a program that has it for itself, so a copy of it would be torn; end that program first"
        ),
    }
}

/// Refuses a tree that is no root filesystem.
pub fn of_shape(name: &str, shape: &Shape) -> Result<()> {
    if shape.has_usr && shape.has_etc {
        return Ok(());
    }
    ensure!(
        !shape.is_container,
        "{name} is an image of a container, with its files in layers; `podman export` of a container of it makes one \
         archive"
    );
    if let Some(below) = &shape.below {
        bail!(
            "{name} holds no root filesystem at its top, but in {below}; give that directory, or pack it with \
             `tar --directory {below} --create .`"
        );
    }
    bail!("{name} holds no root filesystem: it has no /usr or no /etc")
}

/// The filesystem that a base of this source has.
pub fn filesystem_of(what: &What) -> FsKind {
    match what {
        What::Filesystem { superblock, .. } => superblock.kind,
        What::Tree { kind, .. } => kind.unwrap_or(FsKind::Ext4),
    }
}

/// The volume that a base gets, with `size` bytes if they were asked for. Refuses what cannot be made, mounted or
/// changed there.
pub fn of_place(name: &str, what: &What, size: Option<u64>, place: &Place) -> Result<Fit> {
    if let Some(lacks) = &place.host.lacks {
        bail!("{lacks}");
    }
    let kind = filesystem_of(what);
    let (least, usual, content) = match what {
        What::Filesystem { superblock, length } => {
            if let Some(length) = length.filter(|length| *length < superblock.size) {
                bail!(
                    "{name} is truncated: its filesystem has {} bytes, {length} are there",
                    superblock.size
                );
            }
            (superblock.size, superblock.size, superblock.used)
        }
        What::Tree { content, .. } => {
            let least = content.least_size();
            let usual = least.saturating_mul(SPARE_FACTOR);
            if kind == FsKind::Xfs {
                let asked = size.unwrap_or(XFS_LEAST);
                ensure!(
                    asked >= XFS_LEAST,
                    "--size {} is less than the {} that an XFS needs at least; leave it away, or choose --fstype ext4",
                    mebibytes(asked),
                    mebibytes(XFS_LEAST)
                );
                (least, usual.max(XFS_LEAST), content.bytes)
            } else {
                (least, usual, content.bytes)
            }
        }
    };
    let size = size.unwrap_or(usual) / SECTOR * SECTOR;
    ensure!(
        size >= least,
        "--size {} is less than the {} that {name} needs",
        mebibytes(size),
        mebibytes(least.next_multiple_of(1 << 20))
    );
    if let What::Filesystem { superblock, .. } = what {
        of_filesystem(name, superblock, size, place)?;
    }
    ensure!(
        place.shares || content <= place.room,
        "{name} needs {}, the thin pool has room for {}; extend it with lvextend(8) or remove layers",
        mebibytes(content),
        mebibytes(place.room)
    );
    Ok(Fit {
        kind,
        size,
        content,
    })
}

/// The size in bytes of a base that begins as a snapshot of `name`, and whose files become those of a source then.
/// `origin` is the filesystem of that other one, on a volume of `have` bytes, and `fit` what the base would get by
/// itself.
///
/// Refuses a filesystem of another kind, one that has no place for the files or cannot be grown for them, one that
/// holds far more, and is not worth it, or so little that the pool has no room for the rest.
pub fn of_origin(
    name: &str,
    what: &What,
    fit: &Fit,
    origin: &Superblock,
    have: u64,
    place: &Place,
) -> Result<u64> {
    let (own, other) = (fit.kind.name(), origin.kind.name());
    let needed = match what {
        What::Filesystem { superblock, .. } => {
            ensure!(
                own == other,
                "that has an {other} filesystem and the image an {own}; to share, mount the image and give the directory, \
                 with --fstype {other}"
            );
            superblock.inodes.map_or(0, |(_, used)| used)
        }
        What::Tree { content, .. } => {
            ensure!(
                own == other,
                "that has an {other} filesystem and this one gets an {own}; --fstype {other} shares them"
            );
            let ignores_case =
                origin.kind == FsKind::Ext4 && origin.features.incompatible & CASEFOLD != 0;
            ensure!(
                !ignores_case,
                "that can have directories in which upper and lower case are the same (casefold)"
            );
            content.files
        }
    };
    let most = fit.content.saturating_mul(FAR_MORE).saturating_add(LITTLE);
    ensure!(
        origin.used <= most,
        "that holds {}, far more than the {} of this one, and can have little in common with it; nothing is to be done",
        mebibytes(origin.used),
        mebibytes(fit.content)
    );
    let lacks = fit.content.saturating_sub(origin.used);
    ensure!(
        lacks <= place.room,
        "that lacks {} of this one at least, and the thin pool has room for {}; extend it with lvextend(8) or remove \
         layers",
        mebibytes(lacks),
        mebibytes(place.room)
    );
    let size = fit.size.max(have);
    // A volume that stays as it is needs no larger filesystem.
    let wanted = if size > have { size } else { origin.size };
    of_filesystem(name, origin, wanted, place)?;
    if let Some((all, _)) = origin.inodes {
        // Each part that is added has as many as the others.
        let all = u128::from(all) * u128::from(wanted) / u128::from(origin.size.max(1));
        ensure!(
            u128::from(needed) < all,
            "that has inodes for {all} files, and this one has {needed}; a larger --size has more"
        );
    }
    Ok(size)
}

/// Why a base shares nothing with `base`, the nearest one, whose volume of `have` bytes is larger than the `size` that
/// the new one gets.
pub fn of_larger(name: &str, base: &str, have: u64, size: u64) -> String {
    format!(
        "{name} shares nothing with {base}: the new base gets {}, and a snapshot of {base} has {} at least; `--size {}M` \
         shares what is equal",
        mebibytes(size),
        mebibytes(have),
        have.div_ceil(1 << 20)
    )
}

/// Refuses a filesystem that cannot be mounted, changed or grown as a base has to be.
fn of_filesystem(name: &str, superblock: &Superblock, size: u64, place: &Place) -> Result<()> {
    const SIXTY_FOUR_BIT: u32 = 0x80;
    let &Superblock {
        kind,
        block_size,
        sector,
        ..
    } = superblock;
    let grows = size > superblock.size;
    let what = match kind {
        FsKind::Ext4 => format!("{name} holds an ext4"),
        FsKind::Xfs => format!("{name} holds an XFS"),
    };
    if superblock.has_foreign_journal {
        let mend = match kind {
            FsKind::Ext4 => "`tune2fs -O ^has_journal` and then `tune2fs -j` put one inside",
            FsKind::Xfs => "mount it with its logdev= and give the directory",
        };
        bail!("{what} with its journal on another device, which does not come with it; {mend}");
    }
    ensure!(
        !superblock.has_realtime,
        "{what} with a realtime part on another device, which does not come with it; mount it and give the directory"
    );
    if let Some(obstacle) = features::obstacle(superblock, grows, place.host.linux) {
        bail!(
            "{what} with the feature {}: {}",
            obstacle.feature,
            obstacle.reason
        );
    }
    let large_blocks = match kind {
        FsKind::Ext4 => LARGE_BLOCKS_OF_EXT4,
        FsKind::Xfs => LARGE_BLOCKS_OF_XFS,
    };
    ensure!(
        block_size <= place.host.page || place.host.linux >= large_blocks,
        "{what} with blocks of {} KiB, which this Linux mounts only with pages of that size, and its pages have {} KiB; \
         mount it where that is so, and pack it with tar",
        block_size >> 10,
        place.host.page >> 10
    );
    ensure!(
        sector >= place.host.sector,
        "{what} for disks with sectors of {sector} bytes, and those of the volume group have {}, so it cannot be mounted \
         there; make it anew with {}, or mount it and give the directory",
        place.host.sector,
        match kind {
            FsKind::Ext4 => format!("`mke2fs -b {}`", place.host.sector.max(4096)),
            FsKind::Xfs => format!("`mkfs.xfs -s size={}`", place.host.sector),
        }
    );
    let blocks = size / block_size.max(1);
    let is_short = kind == FsKind::Ext4 && superblock.features.incompatible & SIXTY_FOUR_BIT == 0;
    ensure!(
        !(grows && is_short && blocks > u64::from(u32::MAX)),
        "{what} without the feature 64bit, which cannot have {blocks} blocks; `resize2fs -b` gives it the feature"
    );
    Ok(())
}

/// Refuses another filesystem than that of an image.
pub fn of_fstype(name: &str, found: FsKind, asked: Option<FsKind>) -> Result<()> {
    ensure!(
        asked.is_none_or(|asked| asked == found),
        "{name} is an {} filesystem and stays one; mount it and give the directory to have another",
        found.name()
    );
    Ok(())
}

/// Refuses a source that has no kernel with an initramfs.
pub fn of_kernels(name: &str, kernels: &[Kernel]) -> Result<()> {
    if kernels
        .iter()
        .any(|kernel| kernel.has_image && kernel.has_initramfs)
    {
        return Ok(());
    }
    if let Some(Kernel { version, .. }) = kernels.iter().find(|kernel| kernel.has_image) {
        bail!(
            "{name} has Linux {version} without its initramfs, so nothing could boot it; have dracut make \
             /boot/initrd.img-{version} or /boot/initramfs-{version}.img in it"
        );
    }
    bail!(
        "{name} has no kernel, neither /boot/vmlinuz-VERSION nor /usr/lib/modules/VERSION/vmlinuz, so nothing could boot \
         it; install one in it, with an initramfs"
    )
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::head;
    use crate::image::superblock::Features;

    /// What is judged, a row a line.
    const ROWS: &str = include_str!("judge.txt");
    const GIB: u64 = 1 << 30;

    /// All that a row tells.
    struct Facts {
        /// Nothing for a tree.
        superblock: Option<Superblock>,
        length: Option<u64>,
        content: Content,
        kind: Option<FsKind>,
        asked: Option<u64>,
        host: Host,
        room: u64,
        shares: bool,
    }

    impl Facts {
        fn parse(row: &str) -> Self {
            let (what, rest) = row.split_once(' ').unwrap_or((row, ""));
            let mut facts = Self {
                superblock: match what {
                    "ext4" => Some(ext4()),
                    "xfs" => Some(xfs()),
                    "tree" => None,
                    _ => panic!("{row}"),
                },
                length: Some(GIB),
                content: Content::default(),
                kind: None,
                asked: None,
                host: Host {
                    sector: 512,
                    page: 4096,
                    linux: (6, 12),
                    lacks: None,
                },
                room: 2 * GIB,
                shares: false,
            };
            for word in rest.split_whitespace() {
                let (key, value) = word.split_once('=').unwrap_or((word, ""));
                facts.take(key, value);
            }
            facts
        }

        fn take(&mut self, key: &str, value: &str) {
            match key {
                "asked" => self.asked = Some(number(value)),
                "length" => self.length = self.length.map(|_| number(value)),
                "compressed" => self.length = None,
                "room" => self.room = number(value),
                "shared" => self.shares = true,
                "disks" => self.host.sector = number(value),
                "page" => self.host.page = number(value),
                "lacks" => self.host.lacks = Some(value.to_owned()),
                "linux" => {
                    let (major, minor) = value.split_once('.').unwrap();
                    self.host.linux = (major.parse().unwrap(), minor.parse().unwrap());
                }
                "files" => self.content.files = number(value),
                "make" => self.kind = (value == "xfs").then_some(FsKind::Xfs),
                _ => match &mut self.superblock {
                    Some(superblock) => take(superblock, key, value),
                    None if key == "used" => self.content.bytes = number(value),
                    None => panic!("{key}"),
                },
            }
        }
    }

    fn take(superblock: &mut Superblock, key: &str, value: &str) {
        let bit = || u32::from_str_radix(value.trim_start_matches("0x"), 16).unwrap();
        let features = &mut superblock.features;
        match key {
            "size" => superblock.size = number(value),
            "used" => superblock.used = number(value),
            "block" => superblock.block_size = number(value),
            "sector" => superblock.sector = number(value),
            "foreign-journal" => superblock.has_foreign_journal = true,
            "realtime" => superblock.has_realtime = true,
            "compatible" => features.compatible |= bit(),
            "incompatible" => features.incompatible |= bit(),
            "read-only" => features.read_only |= bit(),
            "no-64bit" => features.incompatible &= !0x80,
            "version-4" => *features = Features::default(),
            _ => panic!("{key}"),
        }
    }

    fn number(text: &str) -> u64 {
        let digits = text.trim_end_matches(['M', 'G', 'T']);
        let shift = match &text[digits.len()..] {
            "M" => 20,
            "G" => 30,
            "T" => 40,
            _ => 0,
        };
        digits.parse::<u64>().unwrap() << shift
    }

    /// As mke2fs(8) makes it.
    fn ext4() -> Superblock {
        Superblock {
            kind: FsKind::Ext4,
            size: GIB,
            used: 100 << 20,
            block_size: 4096,
            sector: 4096,
            features: Features {
                compatible: 0x3c,
                incompatible: 0x2c2,
                read_only: 0x46b,
            },
            inodes: Some((65_536, 1000)),
            has_foreign_journal: false,
            has_realtime: false,
            uuid_in_checksums: true,
        }
    }

    /// As mkfs.xfs(8) makes it.
    fn xfs() -> Superblock {
        Superblock {
            kind: FsKind::Xfs,
            sector: 512,
            features: Features {
                compatible: 0,
                incompatible: 0x2b,
                read_only: 0xf,
            },
            ..ext4()
        }
    }

    /// Facts and what is said of them, where the facts are some of these.
    fn rows(are: impl Fn(&str) -> bool) -> Vec<(&'static str, &'static str)> {
        let is_row = |line: &&str| !line.is_empty() && !line.starts_with('#') && are(line);
        let lines = ROWS.lines().filter(is_row);
        lines.map(|line| line.split_once(" => ").unwrap()).collect()
    }

    /// Claims that what is said is what a row expects.
    fn matches(facts: &str, said: Result<String>, expected: &str) {
        match (said, expected.strip_prefix("error: ")) {
            (Ok(said), None) => assert_eq!(said, expected, "{facts}"),
            (Err(error), Some(parts)) => {
                let said = error.to_string();
                for part in parts.split(" | ") {
                    assert!(said.contains(part), "{facts}: {said}");
                }
                assert!(said.len() < 280 && !said.contains('\n'), "{facts}: {said}");
            }
            (said, _) => panic!("{facts}: {said:?}"),
        }
    }

    #[test]
    fn sources_are_judged_by_a_few_facts() {
        let rows = rows(|row| !row.starts_with("head ") && !row.starts_with("kernels"));
        assert!(rows.len() >= 80, "{}", rows.len());
        for (row, expected) in rows {
            let facts = Facts::parse(row);
            let what = match &facts.superblock {
                Some(superblock) => What::Filesystem {
                    superblock,
                    length: facts.length,
                },
                None => What::Tree {
                    content: facts.content,
                    kind: facts.kind,
                },
            };
            let place = Place {
                host: &facts.host,
                room: facts.room,
                shares: facts.shares,
            };
            let fit = of_place("img", &what, facts.asked, &place);
            if let Ok(fit) = &fit {
                assert_eq!((fit.size % SECTOR, fit.kind), (0, filesystem_of(&what)));
            }
            matches(row, fit.map(|fit| mebibytes(fit.size)), expected);
        }
    }

    #[test]
    fn a_source_needs_a_kernel_with_an_initramfs() {
        let rows = rows(|row| row.starts_with("kernels"));
        assert!(rows.len() >= 8, "{}", rows.len());
        for (facts, expected) in rows {
            let kernels = facts.split(' ').skip(1).map(|word| {
                let (version, files) = word.split_once(':').unwrap();
                Kernel {
                    version: version.to_owned(),
                    has_image: files.contains("image"),
                    has_initramfs: files.contains("initramfs"),
                }
            });
            let said = of_kernels("img", &kernels.collect::<Vec<_>>());
            matches(facts, said.map(|()| "bootable".to_owned()), expected);
        }
    }

    /// What becomes of a base on a volume of `have` MiB, with room for 400 MiB, as the origin of one for which a
    /// volume of `size` MiB is fit, and `content` MiB in 900 files.
    fn judged_origin(
        [content, size, have]: [u64; 3],
        image: Option<&Superblock>,
        origin: &Superblock,
    ) -> Result<u64> {
        let host = Host {
            sector: 512,
            page: 4096,
            linux: (6, 12),
            lacks: None,
        };
        let place = Place {
            host: &host,
            room: 400 << 20,
            shares: true,
        };
        let fit = Fit {
            kind: FsKind::Ext4,
            size: size << 20,
            content: content << 20,
        };
        let what = match image {
            Some(superblock) => What::Filesystem {
                superblock,
                length: None,
            },
            None => What::Tree {
                content: Content {
                    bytes: fit.content,
                    files: 900,
                },
                kind: None,
            },
        };
        let size = of_origin("Base-1", &what, &fit, origin, have << 20, &place)?;
        Ok(size >> 20)
    }

    /// The sizes, what the base has that is not usual, and what is said.
    type Row = ([u64; 3], fn(&mut Superblock), Result<u64, &'static str>);

    #[test]
    fn a_base_that_is_alike_and_large_enough_is_an_origin() {
        let usual = |_: &mut Superblock| {};
        let big_allocation = |origin: &mut Superblock| origin.features.read_only = 0x200;
        let xfs = |origin: &mut Superblock| origin.kind = FsKind::Xfs;
        let few_inodes = |origin: &mut Superblock| origin.inodes = Some((900, 0));
        let any_inodes = |origin: &mut Superblock| origin.inodes = None;
        let small_sectors = |origin: &mut Superblock| origin.sector = 256;
        let any_case = |origin: &mut Superblock| origin.features.incompatible |= CASEFOLD;
        let rows: [Row; 15] = [
            ([100, 300, 1024], usual, Ok(1024)),
            ([100, 1024, 1024], usual, Ok(1024)),
            ([100, 2048, 1024], usual, Ok(2048)),
            // It holds 100 MiB.
            ([9, 300, 1024], usual, Ok(1024)),
            (
                [8, 300, 1024],
                usual,
                Err("holds 100 MiB, far more than the 8 MiB"),
            ),
            ([500, 1024, 1024], usual, Ok(1024)),
            (
                [501, 1024, 1024],
                usual,
                Err("lacks 401 MiB of this one at least"),
            ),
            (
                [100, 300, 1024],
                xfs,
                Err("an xfs filesystem and this one gets an ext4; --fstype xfs"),
            ),
            (
                [100, 300, 1024],
                few_inodes,
                Err("inodes for 900 files, and this one has 900; a larger"),
            ),
            ([100, 300, 1024], any_case, Err("upper and lower case")),
            // Twice as large it has twice as many.
            ([100, 2048, 1024], few_inodes, Ok(2048)),
            ([100, 300, 1024], any_inodes, Ok(1024)),
            // It cannot be grown.
            ([100, 300, 1024], big_allocation, Ok(1024)),
            (
                [100, 2048, 1024],
                big_allocation,
                Err("Base-1 holds an ext4 with the feature bigalloc"),
            ),
            (
                [100, 300, 1024],
                small_sectors,
                Err("Base-1 holds an ext4 for disks with sectors of 256"),
            ),
        ];
        for (sizes, change, expected) in rows {
            let mut origin = ext4();
            change(&mut origin);
            let found = judged_origin(sizes, None, &origin).map_err(|error| error.to_string());
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(*found, expected, "{sizes:?}"),
                (Err(said), Err(text)) => {
                    let is_line = said.len() < 280 && !said.contains('\n');
                    assert!(said.contains(text) && is_line, "{said}");
                }
                _ => panic!("{sizes:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn an_image_with_another_filesystem_than_a_base_is_to_be_mounted() {
        let said = judged_origin([100, 1024, 1024], Some(&ext4()), &xfs()).unwrap_err();
        let said = said.to_string();
        assert!(
            said.contains("give the directory, with --fstype xfs"),
            "{said}"
        );
        let found = judged_origin([100, 1024, 1024], Some(&ext4()), &ext4());
        assert_eq!(found.unwrap(), 1024);
    }

    #[test]
    fn a_base_that_is_too_large_to_be_shared_is_named_with_its_size() {
        assert_eq!(
            of_larger("tree.squashfs", "Base-0", GIB - 1, 500 << 20),
            "tree.squashfs shares nothing with Base-0: the new base gets 500 MiB, and a snapshot of Base-0 has 1023 MiB at \
             least; `--size 1024M` shares what is equal"
        );
    }

    /// Bytes as a row has them, with `\x20` for a space.
    fn bytes(text: &str) -> Vec<u8> {
        let mut parts = text.split("\\x");
        let mut bytes = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            bytes.push(u8::from_str_radix(&part[..2], 16).unwrap());
            bytes.extend(&part.as_bytes()[2..]);
        }
        bytes
    }

    #[test]
    fn first_bytes_tell_what_no_base_can_be_made_of() {
        let rows = rows(|row| row.starts_with("head "));
        assert!(rows.len() >= 25, "{}", rows.len());
        for (facts, expected) in rows {
            let words: Vec<&str> = facts.split(' ').collect();
            let (at, magic) = (words[1].parse::<usize>().unwrap(), bytes(words[2]));
            let compression = words.get(3).map(|name| match *name {
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                _ => panic!("{facts}"),
            });
            let mut head = vec![0; head::HEAD];
            head[at..at + magic.len()].copy_from_slice(&magic);
            let found = head::recognise(&head).unwrap();
            let judged = of_kind("img", found, head.len() as u64, compression);
            matches(facts, judged.map(|found| format!("{found:?}")), expected);
        }
        let empty = of_kind("img", None, 0, None).unwrap_err();
        assert_eq!(empty.to_string(), "img is empty");
    }

    #[test]
    fn what_somebody_writes_to_is_refused() {
        for (holder, expected) in [
            (None, None),
            (
                Some(Holder::Mount("/".into())),
                Some("layout init --from /"),
            ),
            (
                Some(Holder::Mount("/srv/x".into())),
                Some("give the directory /srv/x"),
            ),
            (Some(Holder::Device("md0".into())), Some("a part of md0")),
            (Some(Holder::Swap), Some("as swap")),
            (Some(Holder::Machine), Some("shut that down")),
            (Some(Holder::Program), Some("end that program")),
        ] {
            let said = of_holder("/dev/vdb", holder.as_ref()).err();
            match (said, expected) {
                (None, None) => {}
                (Some(said), Some(text)) => assert!(said.to_string().contains(text), "{said}"),
                (said, _) => panic!("{holder:?}: {said:?}"),
            }
        }
    }

    #[test]
    fn trees_of_another_shape_are_refused_and_the_right_one_is_named() {
        let shape = |names: &[&str]| {
            let mut shape = Shape::default();
            for name in names {
                shape.see(name.as_bytes());
            }
            of_shape("img", &shape).err().map(|error| error.to_string())
        };
        for names in [
            &["usr/bin/sh", "etc/passwd"][..],
            &["./", "./etc/", "./usr/"],
            &["/usr/", "/etc/"],
        ] {
            assert_eq!(shape(names), None, "{names:?}");
        }
        for (names, expected) in [
            (
                &["rootfs/", "rootfs/etc/", "rootfs/usr/"][..],
                "at its top, but in rootfs;",
            ),
            (
                &["./a/b", "./sys.d/usr/x", "./sys.d/etc/x"],
                "but in sys.d;",
            ),
            (&["usr/bin/sh", "bin"], "no /usr or no /etc"),
            (&["usr", "a/etc"], "no /usr or no /etc"),
            (&[], "no /usr or no /etc"),
            (
                &["oci-layout", "index.json", "blobs/"],
                "image of a container",
            ),
            (
                &["manifest.json", "abc/layer.tar", "repositories"],
                "image of a container",
            ),
        ] {
            let said = shape(names).unwrap();
            assert!(said.contains(expected), "{names:?}: {said}");
        }
    }

    #[test]
    fn an_image_stays_what_it_is() {
        let ext4 = FsKind::Ext4;
        assert!(of_fstype("img", ext4, None).is_ok());
        assert!(of_fstype("img", ext4, Some(ext4)).is_ok());
        let error = of_fstype("img", ext4, Some(FsKind::Xfs)).unwrap_err();
        assert!(error.to_string().contains("stays one"));
    }
}
