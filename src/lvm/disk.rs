//! Which volume group a disk belongs to, as the disk itself says. It answers before lvm2 is started
//! whether all disks of a group are there, and which volumes the group has; lvm2 does all the rest.
//!
//! The format is that of lvm2's `lib/format_text/layout.h` and lib/label/label.h: a label in one of the
//! first four sectors leads to areas, each with a header that leads to a text (see [`super::text`]).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::text;
use crate::model::layout::Role;

const SECTOR: usize = 512;
const LABEL_SECTORS: usize = 4;
const LABEL_ID: &[u8] = b"LABELONE";
const LABEL_TYPE: &[u8] = b"LVM2 001";
/// Where the checksum of a label begins to count.
const LABEL_CHECKED: usize = 20;
/// Length of the UUID of a physical volume in its header, which leaves out the hyphens.
const UUID: usize = 32;
const AREA_HEADER: usize = 512;
const AREA_MAGIC: &[u8] = b" LVM2 x[5A%r0N*>";
/// The first of the pointers to the text behind the fixed part of an area's header.
const POINTER: usize = 40;
const POINTER_IGNORED: u32 = 1;
/// Longer than any text of lvm2, whose areas are 1 MiB if not asked for more.
const TEXT_MAX: u64 = 128 << 20;

/// The begin and the size of each metadata area.
type Areas = Vec<(u64, u64)>;

/// What a physical volume says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PhysicalVolume {
    pub uuid: String,
    /// Not every disk of a group has a copy of its metadata.
    pub metadata: Option<Metadata>,
    /// What is wrong with its copies, where none can be read: lvm2 goes by those of other disks then.
    pub damage: Option<String>,
}

/// A volume group as the metadata on one of its disks describe it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Metadata {
    pub uuid: String,
    /// Each change counts it up by one.
    pub seqno: u64,
    /// The UUIDs of the physical volumes that belong to the group.
    pub disks: Vec<String>,
    /// The visible volumes with what they are to us.
    pub volumes: Vec<(String, Role)>,
    /// Those that layers share, and snapshots of them, with their tags.
    pub shared: Vec<(String, Vec<String>)>,
}

/// Whose a disk is, by its label, whatever lvm2 is configured to see.
#[derive(Debug, PartialEq, Eq)]
pub enum Owner {
    /// It has no label of LVM.
    None,
    /// It is a physical volume of no group.
    Free,
    Group(String),
    /// What would tell is damaged, or on other disks only.
    Unknown,
}

/// Reads whose the device or file `path` is. Refuses what cannot be read. An extended partition of a disk with an MBR
/// has two sectors, and no room for a label.
pub fn owner(path: &Path) -> Result<Owner> {
    let mut file = File::open(path)?;
    let size = file.seek(SeekFrom::End(0))?;
    if size < (LABEL_SECTORS * SECTOR) as u64 {
        return Ok(Owner::None);
    }
    file.rewind()?;
    let Some((_, areas)) = label(&file)? else {
        return Ok(Owner::None);
    };
    let mut owner = if areas.is_empty() {
        Owner::Unknown
    } else {
        Owner::Free
    };
    for (start, size) in areas {
        match read_text(&file, start, size, None) {
            Ok(Some(text)) => {
                let name = text.split([' ', '{']).next().unwrap_or_default();
                return Ok(Owner::Group(name.to_owned()));
            }
            Ok(None) => {}
            Err(_) => owner = Owner::Unknown,
        }
    }
    Ok(owner)
}

/// Reads the label of the device or file `path`, and its metadata if they are those of the group `vg`.
///
/// Refuses what has no label. Metadata count if they have the checksum that was written with them.
pub fn read(path: &Path, vg: &str) -> Result<PhysicalVolume> {
    let file = File::open(path)?;
    let (uuid, areas) = label(&file)?.context("it has no label of LVM")?;
    // A disk can have two copies.
    let read = |&(offset, size): &(u64, u64)| read_area(&file, offset, size, vg);
    let copies: Vec<Result<Option<Metadata>>> = areas.iter().map(read).collect();
    let newest = copies
        .iter()
        .filter_map(|copy| copy.as_ref().ok()?.as_ref());
    let newest = newest.max_by_key(|metadata| metadata.seqno).cloned();
    let mut failed = copies.into_iter().filter_map(Result::err);
    let damage = failed.next().filter(|_| newest.is_none());
    Ok(PhysicalVolume {
        uuid,
        metadata: newest,
        damage: damage.map(|error| format!("{error:#}")),
    })
}

/// The UUID of a physical volume, and the begin and size of its metadata areas; nothing if there is no label.
fn label(mut file: &File) -> Result<Option<(String, Areas)>> {
    let mut head = [0; LABEL_SECTORS * SECTOR];
    file.read_exact(&mut head).context("it is too small")?;
    let Some(header) = head.chunks(SECTOR).find_map(header) else {
        return Ok(None);
    };
    let (uuid, rest) = header
        .split_at_checked(UUID)
        .context("its label is damaged")?;
    // Two lists, of data areas and of metadata areas, each with an empty end. The size of the disk is
    // before them.
    let mut areas = Vec::new();
    let mut lists = 0;
    for pair in rest.get(8..).unwrap_or_default().chunks_exact(16) {
        let (offset, size) = (u64_at(pair, 0)?, u64_at(pair, 8)?);
        match (offset, lists) {
            (0, 0) => lists = 1,
            (0, _) => break,
            (_, 0) => {}
            (_, _) => areas.push((offset, size)),
        }
    }
    Ok(Some((String::from_utf8_lossy(uuid).into_owned(), areas)))
}

/// The header of a physical volume, if the sector is a label.
fn header(sector: &[u8]) -> Option<&[u8]> {
    let is_label = sector.starts_with(LABEL_ID)
        && sector[24..32] == *LABEL_TYPE
        && checksum(&sector[LABEL_CHECKED..]) == u32_at(sector, 16).ok()?;
    let start = usize::try_from(u32_at(sector, 20).ok()?).ok()?;
    sector.get(start..).filter(|_| is_label)
}

/// What a metadata area says of the group `vg`; nothing if it is empty or describes another group.
fn read_area(file: &File, start: u64, size: u64, vg: &str) -> Result<Option<Metadata>> {
    let Some(text) = read_text(file, start, size, Some(vg))? else {
        return Ok(None);
    };
    parse(text.trim_end_matches('\0'), vg).context("its metadata are damaged")
}

/// The text of a metadata area; nothing if it is empty, or describes another group than the one that is wanted.
fn read_text(file: &File, start: u64, size: u64, vg: Option<&str>) -> Result<Option<String>> {
    let mut header = [0; AREA_HEADER];
    file.read_exact_at(&mut header, start)?;
    ensure!(
        header[4..20] == *AREA_MAGIC && checksum(&header[4..]) == u32_at(&header, 0)?,
        "the header of its metadata is damaged"
    );
    let (offset, length) = (u64_at(&header, POINTER)?, u64_at(&header, POINTER + 8)?);
    let flags = u32_at(&header, POINTER + 20)?;
    if offset == 0 || flags & POINTER_IGNORED != 0 {
        return Ok(None);
    }
    let first = AREA_HEADER as u64;
    ensure!(
        size > first && (first..size).contains(&offset) && length <= (size - first).min(TEXT_MAX),
        "the header of its metadata is damaged"
    );
    // The text goes on at the begin of the area when it comes to its end.
    let begin = length.min(size - offset);
    let mut text = vec![0; usize::try_from(length)?];
    let (head, tail) = text.split_at_mut(usize::try_from(begin)?);
    // What belongs to another group can be large.
    if let Some(vg) = vg.filter(|_| tail.is_empty()) {
        let name = head.len().min(vg.len() + 1);
        file.read_exact_at(&mut head[..name], start + offset)?;
        if !(head.starts_with(vg.as_bytes()) && head.get(vg.len()) == Some(&b' ')) {
            return Ok(None);
        }
    }
    file.read_exact_at(head, start + offset)?;
    file.read_exact_at(tail, start + first)?;
    ensure!(
        checksum(&text) == u32_at(&header, POINTER + 16)?,
        "its metadata are damaged"
    );
    // The names of hosts in it can have any bytes.
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

/// Reads the text of the metadata; that of another group than `vg` is nothing.
pub fn parse(text: &str, vg: &str) -> Result<Option<Metadata>> {
    let all = text::parse(text)?;
    let Some(group) = all.section(vg) else {
        return Ok(None);
    };
    let disks = group.section("physical_volumes");
    let mut metadata = Metadata {
        uuid: group.text("id").unwrap_or_default().to_owned(),
        seqno: group.number("seqno").unwrap_or_default(),
        ..Metadata::default()
    };
    for (_, disk) in disks.into_iter().flat_map(text::Section::sections) {
        let uuid = disk.text("id").context("a disk without a UUID")?;
        metadata.disks.push(uuid.replace('-', ""));
    }
    ensure!(!metadata.disks.is_empty(), "no disks");
    let volumes = group.section("logical_volumes");
    for (name, volume) in volumes.into_iter().flat_map(text::Section::sections) {
        if volume.list("status").any(|flag| flag == "VISIBLE") {
            let tags: Vec<&str> = volume.list("tags").collect();
            let mut segments = volume.sections();
            let is_pool = segments.any(|(_, of)| of.text("type") == Some("thin-pool"));
            let role = match Role::of(name, &tags) {
                // Anyone can put a tag on anything.
                Role::Pool if !is_pool => Role::Foreign,
                role => role,
            };
            metadata.volumes.push((name.to_owned(), role));
            if matches!(role, Role::Volume | Role::Snapshot) {
                let tags = tags.into_iter().map(str::to_owned).collect();
                metadata.shared.push((name.to_owned(), tags));
            }
        }
    }
    Ok(Some(metadata))
}

/// `calc_crc` of lvm2 (lib/misc/crc.c): CRC-32 with a begin of its own and no inversion at the end.
fn checksum(bytes: &[u8]) -> u32 {
    const BEGIN: u32 = 0xf597_a6cf;
    const POLYNOMIAL: u32 = 0xedb8_8320;
    let table: [u32; 256] = std::array::from_fn(|n| {
        (0..8).fold(u32::try_from(n).unwrap_or_default(), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL * (crc & 1))
        })
    });
    bytes.iter().fold(BEGIN, |crc, byte| {
        (crc >> 8) ^ table[usize::from(crc.to_le_bytes()[0] ^ byte)]
    })
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let field = bytes.get(at..at + 4).context("cut off")?;
    Ok(u32::from_le_bytes(field.try_into()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Result<u64> {
    let field = bytes.get(at..at + 8).context("cut off")?;
    Ok(u64::from_le_bytes(field.try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The size and place of the only metadata area of [`disk`].
    const AREA: (usize, usize) = (4096, 8192);
    const DISK: &str = "abcdefghijklmnopqrstuvwxyz012345";

    /// The first bytes of a physical volume with `text` at `offset` in its metadata area.
    fn disk(text: &str, offset: usize) -> Vec<u8> {
        let mut image = vec![0; 16384];
        let (start, size) = AREA;
        let mut label = vec![0; SECTOR];
        label[..8].copy_from_slice(LABEL_ID);
        label[20..24].copy_from_slice(&32_u32.to_le_bytes());
        label[24..32].copy_from_slice(LABEL_TYPE);
        label[32..64].copy_from_slice(DISK.as_bytes());
        let locations = [1 << 20, 0, 0, 0, start, size, 0, 0];
        for (at, number) in locations.into_iter().enumerate() {
            label[72 + at * 8..80 + at * 8].copy_from_slice(&(number as u64).to_le_bytes());
        }
        let sum = checksum(&label[LABEL_CHECKED..]);
        label[16..20].copy_from_slice(&sum.to_le_bytes());
        image[SECTOR..2 * SECTOR].copy_from_slice(&label);

        let mut header = vec![0; AREA_HEADER];
        header[4..20].copy_from_slice(AREA_MAGIC);
        header[40..48].copy_from_slice(&(offset as u64).to_le_bytes());
        header[48..56].copy_from_slice(&(text.len() as u64).to_le_bytes());
        header[56..60].copy_from_slice(&checksum(text.as_bytes()).to_le_bytes());
        let sum = checksum(&header[4..]);
        header[..4].copy_from_slice(&sum.to_le_bytes());
        image[start..start + AREA_HEADER].copy_from_slice(&header);
        for (n, byte) in text.bytes().enumerate() {
            let at = offset + n;
            let at = if at < size {
                at
            } else {
                at - size + AREA_HEADER
            };
            image[start + at] = byte;
        }
        image
    }

    const GROUP: &str = "HostVG {\nid = \"Vg-1\"\nseqno = 7\nphysical_volumes {\n\
        pv0 {\nid = \"abcdef-ghij-klmn-opqr-stuv-wxyz-012345\"\n}\npv1 {\nid = \"second\"\n}\n}\n\
        logical_volumes {\nBase-0 {\nstatus = [\"READ\", \"VISIBLE\"]\ntags = [\"imgbased:base\"]\n}\n\
        pool_tmeta {\nstatus = [\"READ\"]\n}\nx {\nstatus = [\"VISIBLE\"]\n}\nhome {\nstatus = [\"VISIBLE\"]\n\
        tags = [\"imgbased:volume\", \"imgbased:mount=/home\"]\n}\n}\n}\n\0";

    fn read_bytes(bytes: &[u8], vg: &str) -> Result<PhysicalVolume> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        std::fs::write(&path, bytes).unwrap();
        read(&path, vg)
    }

    #[test]
    fn the_group_of_a_disk_with_its_disks_and_visible_volumes() {
        // The second text goes on at the begin of the area.
        for offset in [512, AREA.1 - 100] {
            let found = read_bytes(&disk(GROUP, offset), "HostVG").unwrap();
            assert_eq!(found.uuid, DISK);
            let metadata = found.metadata.unwrap();
            assert_eq!((metadata.uuid.as_str(), metadata.seqno), ("Vg-1", 7));
            assert_eq!(metadata.disks, [DISK, "second"]);
            let volumes = [
                ("Base-0".to_owned(), Role::Base),
                ("x".to_owned(), Role::Foreign),
                ("home".to_owned(), Role::Volume),
            ];
            assert_eq!(metadata.volumes, volumes);
            let tags = ["imgbased:volume", "imgbased:mount=/home"].map(str::to_owned);
            assert_eq!(metadata.shared, [("home".to_owned(), tags.to_vec())]);
            for other in ["Host", "HostVG2", "x"] {
                let found = read_bytes(&disk(GROUP, offset), other).unwrap();
                assert_eq!(found.metadata, None, "{other}");
            }
        }
    }

    #[test]
    fn the_owner_of_a_disk_is_known_whatever_group_is_looked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let owner_of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            owner(&path).unwrap()
        };
        let group = Owner::Group("HostVG".to_owned());
        for offset in [512, AREA.1 - 3] {
            assert_eq!(owner_of(&disk(GROUP, offset)), group);
        }
        // As pvcreate leaves it.
        assert_eq!(owner_of(&disk("", 0)), Owner::Free);
        // A byte of the text is damaged, and there is no other copy.
        let mut damaged = disk(GROUP, 512);
        damaged[AREA.0 + 600] ^= 1;
        assert_eq!(owner_of(&damaged), Owner::Unknown);
        assert_eq!(owner_of(&[0; 4096]), Owner::None);
        // What the kernel gives of an extended partition.
        assert_eq!(owner_of(&[0; 1024]), Owner::None);
    }

    #[test]
    fn no_damaged_byte_is_taken_for_a_group() {
        let whole = disk(GROUP, 512);
        let sound = read_bytes(&whole, "HostVG").unwrap();
        let text = AREA.0 + 512..AREA.0 + 512 + GROUP.len();
        for at in (SECTOR..2 * SECTOR)
            .chain(AREA.0..AREA.0 + AREA_HEADER)
            .chain(text)
        {
            let mut image = whole.clone();
            image[at] ^= 0x55;
            if let Ok(found) = read_bytes(&image, "HostVG") {
                assert!(found.metadata.is_none() || found == sound, "byte {at}");
                // The disk is there all the same.
                assert!(at < AREA.0 || found.uuid == DISK, "byte {at}");
                assert!(found.metadata.is_none() || found.damage.is_none());
            }
        }
        for length in (0..whole.len()).step_by(100) {
            let found = read_bytes(&whole[..length], "HostVG");
            assert!(found.is_err() || found.is_ok_and(|f| f.metadata.is_none() || f == sound));
        }
    }

    #[test]
    fn places_outside_of_the_disk_are_refused() {
        // With a right checksum, as someone who means it would write it.
        for (at, value) in [(40, u64::MAX), (48, u64::MAX), (40, 1), (48, 1 << 40)] {
            let mut image = disk(GROUP, 512);
            let header = &mut image[AREA.0..AREA.0 + AREA_HEADER];
            header[at..at + 8].copy_from_slice(&value.to_le_bytes());
            let sum = checksum(&header[4..]);
            header[..4].copy_from_slice(&sum.to_le_bytes());
            let found = read_bytes(&image, "HostVG").unwrap();
            assert_eq!((found.metadata, found.damage.is_some()), (None, true));
        }
    }
}
