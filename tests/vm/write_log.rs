//! The log of a disk's writes, in their order, as QEMU's blklogwrites driver keeps it, and replaying
//! a part of it. The format is that of the kernel's dm-log-writes target.
//! <https://docs.kernel.org/admin-guide/device-mapper/log-writes.html>
//!
//! QEMU logs a write before it tells the machine that it is done, and a machine has its writes done
//! before it flushes them: a write that a flush is about comes before that flush in the log.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::{FallocateFlags, fallocate};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;

const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// What happened to a disk; offsets and lengths in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Write { offset: u64, data: Vec<u8> },
    Discard { offset: u64, length: u64 },
}

/// The changes between two flushes: when the power is cut, each of them may or may not have reached
/// the disk. All are there once the flush at the end is done.
pub type Epoch = Vec<Change>;

/// Reads a log. A flush with nothing before it adds no epoch; what follows the last flush is the last
/// epoch.
///
/// Refuses a log that is cut off, of another version, or with what QEMU does not write.
pub fn read(path: &Path) -> Result<Vec<Epoch>> {
    let log = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    parse(&log).with_context(|| format!("the log {}", path.display()))
}

pub fn parse(log: &[u8]) -> Result<Vec<Epoch>> {
    let number = |at: usize| {
        let bytes = log.get(at..at + 8).context("is cut off")?;
        anyhow::Ok(u64::from_le_bytes(bytes.try_into()?))
    };
    ensure!(number(0)? == MAGIC, "does not start with the magic number");
    ensure!(number(8)? == VERSION, "has version {}", number(8)?);
    let entries = number(16)?;
    let sector = number(24)? & u64::from(u32::MAX);
    ensure!(
        (512..=1 << 20).contains(&sector),
        "has sectors of {sector} bytes"
    );
    let size = usize::try_from(sector)?;

    let mut epochs = Vec::new();
    let mut epoch = Epoch::new();
    let mut position = size;
    for entry in 0..entries {
        let (offset, length) = (number(position)? * sector, number(position + 8)? * sector);
        let flags = number(position + 16)?;
        position += size;
        match flags {
            0 => {
                let end = position + usize::try_from(length)?;
                let data = log.get(position..end).context("is cut off")?.to_vec();
                position = end;
                epoch.push(Change::Write { offset, data });
            }
            DISCARD => epoch.push(Change::Discard { offset, length }),
            FLUSH if length == 0 => {
                if !epoch.is_empty() {
                    epochs.push(std::mem::take(&mut epoch));
                }
            }
            _ => bail!("has flags {flags:#x} (FUA {FUA:#x}, mark {MARK:#x}) in entry {entry}"),
        }
    }
    if !epoch.is_empty() {
        epochs.push(epoch);
    }
    Ok(epochs)
}

impl Change {
    /// Where it begins, in bytes.
    pub fn offset(&self) -> u64 {
        match self {
            Self::Write { offset, .. } | Self::Discard { offset, .. } => *offset,
        }
    }

    /// Does to the raw image `disk` what was done to the recorded one. What is discarded reads as
    /// zeros.
    pub fn apply(&self, disk: &File) -> Result<()> {
        match self {
            Self::Write { offset, data } => disk.write_all_at(data, *offset)?,
            Self::Discard { offset, length } => fallocate(
                disk.as_fd(),
                FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE,
                i64::try_from(*offset)?,
                i64::try_from(*length)?,
            )?,
        }
        Ok(())
    }
}
