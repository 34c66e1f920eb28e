//! Reading and replaying the log of a disk's writes.

#[allow(dead_code, reason = "power_cut reads whole files")]
#[path = "vm/write_log.rs"]
mod write_log;

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::Result;

use write_log::{Change, parse};

const SECTOR: usize = 512;

/// A log of `entries`, each with its sector, its number of sectors, its flags and its data.
fn log(entries: &[(u64, u64, u64, &[u8])]) -> Vec<u8> {
    let mut log = Vec::new();
    let mut block = |numbers: &[u64], data: &[u8]| {
        let mut bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.resize(SECTOR, 0);
        bytes.extend_from_slice(data);
        log.extend(bytes);
    };
    let count = entries.len() as u64;
    block(&[0x006a_7366_7773_6872, 1, count, SECTOR as u64], &[]);
    for (sector, sectors, flags, data) in entries {
        block(&[*sector, *sectors, *flags, 0], data);
    }
    log
}

fn write(sector: u64, data: Vec<u8>) -> Change {
    let offset = sector * SECTOR as u64;
    Change::Write { offset, data }
}

#[test]
fn flushes_divide_the_writes_into_epochs() -> Result<()> {
    let (one, two) = (vec![1; SECTOR], vec![2; 2 * SECTOR]);
    let log = log(&[
        (0, 0, 1, &[]),
        (7, 1, 0, &one),
        (9, 8, 4, &[]),
        (0, 0, 1, &[]),
        (0, 0, 1, &[]),
        (7, 2, 0, &two),
    ]);
    let discard = Change::Discard {
        offset: 9 * 512,
        length: 8 * 512,
    };
    assert_eq!(
        parse(&log)?,
        [vec![write(7, one), discard], vec![write(7, two)]]
    );
    Ok(())
}

#[test]
fn damaged_logs_are_refused() {
    let good = log(&[(7, 1, 0, &[1; SECTOR]), (0, 0, 1, &[])]);
    assert!(parse(&good).is_ok());
    assert!(parse(&[]).is_err());
    assert!(parse(&good[..good.len() - SECTOR]).is_err());
    let refused = |at: usize, value: u8, reason: &str| {
        let mut bad = good.clone();
        bad[at] = value;
        let error = parse(&bad).expect_err(reason).to_string();
        assert!(error.contains(reason), "{error}");
    };
    refused(0, 0, "magic number");
    refused(8, 2, "version 2");
    refused(16, 9, "cut off");
    refused(25, 0, "sectors of 0 bytes");
    refused(SECTOR + 16, 2, "flags 0x2");
    refused(SECTOR + 16, 8, "flags 0x8");
}

#[test]
fn replaying_does_to_an_image_what_was_done_to_the_disk() -> Result<()> {
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().write_all_at(&vec![9; 64 * SECTOR], 0)?;
    let discard = Change::Discard {
        offset: 8 * 512,
        length: 8 * 512,
    };
    for change in [write(1, vec![3; SECTOR]), discard] {
        change.apply(image.as_file())?;
    }
    let content = fs::read(image.path())?;
    let expected = |sector: usize| match sector {
        1 => 3,
        8..16 => 0,
        _ => 9,
    };
    for (at, byte) in content.iter().enumerate() {
        assert_eq!(*byte, expected(at / SECTOR), "byte {at}");
    }
    assert_eq!(content.len(), 64 * SECTOR);
    Ok(())
}
