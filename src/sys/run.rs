//! What there is in /run/imgbased: what the initramfs, the running system and its units tell each other in
//! one boot.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Root's own. Units and the dracut module look for files here.
pub const DIR: &str = "/run/imgbased";
/// What was booted, and how long it took.
pub const BOOT_RECORD: &str = "/run/imgbased/boot.json";
/// There once the layer was mounted in the initramfs, or was not: what dracut's loop waits for.
pub const TRIED: &str = "/run/imgbased/tried";
/// The volumes that layers mount, for a generator that starts no program.
pub const VOLUMES: &str = "/run/imgbased/volumes.json";
/// Where the runs before the last, in the initramfs, leave their times.
pub const TIMES: &str = "/run/imgbased/times.json";
/// The process in the initramfs that restarts the machine when the boot takes too long there.
pub const LIMIT: &str = "/run/imgbased/limit.pid";
/// There once the running layer is known to be good: the units of a trial leave this boot alone.
pub const BLESSED: &str = "/run/imgbased/blessed";
/// What there is of an update that waits for a restart.
pub const UPDATE: &str = "/run/imgbased/update.json";
/// What was merged and carried by that, as the layer that runs had it then.
pub const UPDATE_RECORD: &str = "/run/imgbased/update.record";
/// There on hosts of the tests only: what makes a verb end at one of its steps counts where this is.
pub const TESTING: &str = "/run/imgbased/testing";
/// Where volumes are mounted while they are looked at.
pub const MOUNTS: &str = "/run/imgbased/mounts";
/// Where the layer is mounted by itself for a moment, without what is mounted on it.
pub const OWN: &str = "/run/imgbased/own";
/// Where a base and its volatile overlay are mounted. They move on with /run.
pub const BASE: &str = "/run/imgbased/base";
pub const OVERLAY: &str = "/run/imgbased/overlay";

/// Reads what [`write_json`] wrote; `None` where there is nothing that can be read.
pub fn read_json<T: DeserializeOwned>(path: &str) -> Option<T> {
    let read = || Ok(serde_json::from_slice(&fs::read(path)?)?);
    read()
        .inspect_err(|error: &anyhow::Error| log::debug!("{path}: {error:#}"))
        .ok()
}

/// Writes a file in [`DIR`], which need not be there yet.
pub fn write_json(path: &str, value: &impl Serialize) -> Result<()> {
    let write = || -> Result<()> {
        fs::create_dir_all(Path::new(path).parent().unwrap_or(Path::new(DIR)))?;
        Ok(fs::write(path, serde_json::to_vec_pretty(value)?)?)
    };
    write().with_context(|| format!("cannot write {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_what_is_damaged_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("imgbased/times.json");
        let path = path.to_str().unwrap();
        assert_eq!(read_json::<Vec<u32>>(path), None);
        write_json(path, &[1, 2]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(path).unwrap(), [1, 2]);
        fs::write(path, "[1,").unwrap();
        assert_eq!(read_json::<Vec<u32>>(path), None);
    }
}
