//! What a thin pool says of itself, and the ways out where it and lvm2 do not agree.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};

use super::Lvm;
use crate::model::layout::Volume;
use crate::model::name::LvName;
use crate::model::percent::Percent;
use crate::model::pool::{Fault, Found, Mismatch, Status};
use crate::sys::cmd::Cmd;

/// Where the extents of a disk begin, their size, the first one of a segment and its place in its volume, in extents;
/// the volume, and the disk, whose name can have any character.
const SEGMENT_COLUMNS: &str = "pe_start,vg_extent_size,pvseg_start,seg_start_pe,lv_name,pv_name";
/// What is read of a disk at once: a block of the pool's metadata, in bytes.
const BLOCK: usize = 4096;
/// The superblock of a pool: `struct thin_disk_superblock` of drivers/md/dm-thin-metadata.c.
const MAGIC: u64 = 27_022_010;
const MAGIC_AT: usize = 32;
const TRANSACTION_AT: usize = 48;

/// What device-mapper says of an active pool, and how it calls that.
pub struct PoolStatus {
    device: String,
    status: Option<Status>,
}

impl Lvm {
    /// Nothing where no pool is active, or where something else is wrong.
    pub(super) fn active_pool_status(&self) -> Option<PoolStatus> {
        let device = self.active_pool()?;
        let status = parse_status(&status_of(&device).ok()?);
        Some(PoolStatus { device, status })
    }

    /// Refuses to have more written to an active pool: it is as full as it may get, or cannot be written to.
    pub fn check_while_written(&self, pool: &LvName) -> Result<()> {
        // Where it says nothing, something else is wrong.
        let status = self.pool_status(pool);
        status.map_or(Ok(()), |status| status.check_while_written(&self.vg))
    }

    /// Whether a pool was what LVM takes it for when it said so.
    pub fn was_as_recorded(&self, pool: &Volume, status: &PoolStatus) -> bool {
        let name = pool.name.parse().ok();
        let device = name.and_then(|name| self.pool_device(&name).ok());
        let made = status.status.and_then(|status| status.transaction);
        let made = made.map(Found::Transaction);
        let told = pool.transaction_id.zip(made);
        device.as_ref() == Some(&status.device)
            && told.is_some_and(|(recorded, made)| Mismatch::of(recorded, made).is_none())
    }

    /// Whether a pool is not what LVM takes it for. It need not be active; nothing is activated.
    pub fn pool_mismatch(&self, pool: &Volume) -> Result<Option<Mismatch>> {
        let Some(recorded) = pool.transaction_id else {
            return Ok(None);
        };
        let name = pool.name.parse()?;
        // Where it cannot be read, something else is wrong, of which lvm2 tells.
        let found = if pool.active {
            let made = self.pool_status(&name).ok();
            let made = made.and_then(|status| status.transaction);
            made.map_or(Found::Unknown, Found::Transaction)
        } else {
            let superblock = self.superblock(&name);
            superblock.unwrap_or_else(|error| {
                log::debug!("the metadata of {name} cannot be read: {error:#}");
                Found::Unknown
            })
        };
        Ok(Mismatch::of(recorded, found))
    }

    /// What device-mapper says of an active pool.
    fn pool_status(&self, pool: &LvName) -> Result<Status> {
        let text = status_of(&self.pool_device(pool)?)?;
        parse_status(&text).with_context(|| format!("unexpected output of dmsetup: {text:?}"))
    }

    fn pool_device(&self, pool: &LvName) -> Result<String> {
        Ok(format!("{}-tpool", self.vg.dm_name(pool)?))
    }

    /// What the superblock of an inactive pool says. Of metadata on several disks nothing is known.
    fn superblock(&self, pool: &LvName) -> Result<Found> {
        let report = self
            .reporting("pvs")
            .args(["--segments", "--noheadings", "--separator", "|"])
            .args(["--units", "b", "--nosuffix"])
            .args(["--select", &format!("vg_name={}", self.vg)])
            .args(["-o", SEGMENT_COLUMNS])
            .run()?;
        match begin_of(&format!("{pool}_tmeta"), &report) {
            None => Ok(Found::Unknown),
            Some((disk, offset)) => {
                let block = read_block(Path::new(disk), offset);
                Ok(found_in(
                    &block.with_context(|| format!("cannot read {disk}"))?,
                ))
            }
        }
    }

    /// The way out where a power cut left a volume that lvm2 has queued to be made, and device-mapper
    /// has made already: lvm2 tries again and fails, whatever it is asked to do with the pool. Deletes
    /// what device-mapper has; lvm2 can then make it, or remove it. Nothing if that is not the case.
    ///
    /// Only for a volume that was never finished: what is deleted is lost.
    pub fn delete_thin_device(&self, lv: &LvName, pool: &LvName) -> Result<Option<Cmd>> {
        let ask = |column: &str, lv: &LvName| -> Result<u64> {
            let output = self
                .reporting("lvs")
                .args(["--noheadings", "-o", column])
                .arg(self.full_name(lv))
                .run()?;
            let number = output.trim().parse();
            number.with_context(|| format!("unexpected {column} from lvm2: {output:?}"))
        };
        let status = self.pool_status(pool)?;
        // lvm2 counts a change before it is made, device-mapper when it is done.
        let next = status.transaction.and_then(|made| made.checked_add(1));
        if Some(ask("transaction_id", pool)?) != next {
            return Ok(None);
        }
        let message = format!("delete {}", ask("thin_id", lv)?);
        Ok(Some(Cmd::new("dmsetup").args([
            "message",
            &self.pool_device(pool)?,
            "0",
            &message,
        ])))
    }

    /// Whether the kernel refuses to write to an active pool before it was checked as a whole. Since
    /// thin-provisioning-tools 1.0 such a pool is not even activated without that.
    pub fn needs_check(&self, pool: &str) -> Result<bool> {
        let text = status_of(&self.pool_device(&pool.parse()?)?)?;
        Ok(parse_status(&text).is_some_and(|status| status.fault == Some(Fault::NeedsCheck)))
    }
}

/// The disk that a volume begins on, and where on it, in bytes: of a report with [`SEGMENT_COLUMNS`]. A mirror has
/// volumes of other names there.
fn begin_of<'a>(volume: &str, report: &'a str) -> Option<(&'a str, u64)> {
    report.lines().find_map(|line| {
        let fields: Vec<&str> = line.trim().split('|').collect();
        let [start, extent, first, in_volume, name, disk] = fields[..] else {
            return None;
        };
        // What is hidden is in brackets.
        let is_begin = name.trim_matches(['[', ']']) == volume && in_volume == "0";
        let number = |text: &str| text.parse::<u64>().ok();
        let extents = number(first)?.checked_mul(number(extent)?)?;
        let offset = number(start)?.checked_add(extents)?;
        is_begin.then_some((disk, offset))
    })
}

/// Reads a block past the page cache, which knows nothing of what the pool wrote while it was active.
fn read_block(disk: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut memory = vec![0; 2 * BLOCK];
    let start = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
    let block = &mut memory[start..start + BLOCK];
    let disk = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(disk)?;
    disk.read_exact_at(block, offset)?;
    Ok(block.to_vec())
}

fn found_in(superblock: &[u8]) -> Found {
    let number = |at: usize| {
        let bytes = superblock.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    match (number(MAGIC_AT), number(TRANSACTION_AT)) {
        (Some(MAGIC), Some(transaction)) => Found::Transaction(transaction),
        _ => Found::Damaged,
    }
}

fn status_of(device: &str) -> Result<String> {
    Cmd::new("dmsetup")
        .args(["status", "--noflush", device])
        .run()
}

/// What a pool says of itself (linux/Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Status"). The mode
/// comes before what is discarded and what a full pool does; behind those is whether it has to be checked.
fn parse_status(text: &str) -> Option<Status> {
    let mut words = text.split_whitespace().skip(2);
    if words.next()? != "thin-pool" {
        return None;
    }
    let none = Status {
        transaction: None,
        data: Percent::new(0),
        metadata: Percent::new(0),
        fault: Some(Fault::Failed),
    };
    let Ok(transaction) = words.next()?.parse() else {
        return Some(none);
    };
    let mut share = || -> Option<Percent> {
        let (used, total) = words.next()?.split_once('/')?;
        Some(Percent::share(used.parse().ok()?, total.parse().ok()?))
    };
    let (metadata, data) = (share()?, share()?);
    let mut words = words.skip(1);
    let mode = words.next()?;
    let needs_check = words.any(|word| word == "needs_check");
    Some(Status {
        transaction: Some(transaction),
        data,
        metadata,
        fault: match mode {
            _ if needs_check => Some(Fault::NeedsCheck),
            "ro" => Some(Fault::of_read_only(Some(metadata))),
            "out_of_data_space" => Some(Fault::NoSpace),
            _ => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_begin_of_a_volume_is_found_on_its_disk() {
        let report = "  1048576|4194304|0|0|[lvol0_pmspare]|/dev/vdb3\n  1048576|4194304|16|0|[Pool_tdata]|/dev/vdb3\n  \
                      1048576|4194304|2563|0|[Pool_tmeta]|/dev/vdb3\n  1048576|4194304|7|16|[Pool_tmeta]|/dev/a\n  \
                      1048576|4194304|9|0||/dev/vdb3\n  1048576|4194304|3|0|[Two_tmeta_rimage_0]|/dev/b\n";
        for (volume, expected) in [
            (
                "Pool_tmeta",
                Some(("/dev/vdb3", (1 << 20) + 2563 * (4 << 20))),
            ),
            ("lvol0_pmspare", Some(("/dev/vdb3", 1 << 20))),
            ("Two_tmeta", None),
            ("Pool", None),
        ] {
            assert_eq!(begin_of(volume, report), expected, "{volume}");
        }
        assert_eq!(begin_of("x", "x\n\n"), None);
    }

    #[test]
    fn a_superblock_tells_its_transaction() {
        let mut block = vec![0; BLOCK];
        assert_eq!(found_in(&block), Found::Damaged);
        block[MAGIC_AT..MAGIC_AT + 8].copy_from_slice(&MAGIC.to_le_bytes());
        block[TRANSACTION_AT..TRANSACTION_AT + 8].copy_from_slice(&9_u64.to_le_bytes());
        assert_eq!(found_in(&block), Found::Transaction(9));
        assert_eq!(found_in(&block[..50]), Found::Damaged);
    }

    #[test]
    fn the_status_of_a_pool_tells_its_transaction_how_full_it_is_and_what_is_wrong() {
        let status = |rest: &str| {
            parse_status(&format!("0 13885440 thin-pool {rest}")).map(|status| {
                let [metadata, data] =
                    [status.metadata, status.data].map(|share| share.to_string());
                (status.transaction, metadata, data, status.fault)
            })
        };
        let expected = |fault| Some((Some(7), "10.3 %".to_owned(), "5.6 %".to_owned(), fault));
        for (rest, fault) in [
            ("rw discard_passdown queue_if_no_space - 1024", None),
            (
                "rw discard_passdown queue_if_no_space needs_check 1024",
                Some(Fault::NeedsCheck),
            ),
            (
                "ro discard_passdown error_if_no_space - 1024",
                Some(Fault::ReadOnly),
            ),
            (
                "out_of_data_space ignore_discard queue_if_no_space - 1024",
                Some(Fault::NoSpace),
            ),
        ] {
            let found = status(&format!("7 1693/16384 6170/108480 - {rest}"));
            assert_eq!(found, expected(fault), "{rest}");
        }
        let failed = status("Fail").unwrap();
        assert_eq!((failed.0, failed.3), (None, Some(Fault::Failed)));
        for odd in ["", "7", "7 1/2", "7 a/b 1/2 - rw", "7 1/2 1/2 -"] {
            assert_eq!(status(odd), None, "{odd}");
        }
        assert_eq!(parse_status("0 8 linear 253:0 0"), None);
    }

    #[test]
    fn a_block_is_read_where_it_is() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let path = dir.path().join("disk");
        let mut content = vec![0; 3 * BLOCK];
        content[BLOCK] = 7;
        std::fs::write(&path, content).unwrap();
        // Some filesystems have only the way through the cache; no device is on one.
        if let Ok(block) = read_block(&path, BLOCK as u64) {
            assert_eq!((block[0], block.len()), (7, BLOCK));
        }
    }
}
