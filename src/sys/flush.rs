//! Brings a filesystem to a state on its disk that a boot loader can read, which replays no journal.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::statfs::{XFS_SUPER_MAGIC, statfs};
use nix::unistd::syncfs;

use super::cmd::Cmd;

/// Freezes the filesystem and thaws it again. Should the shell be killed in between, what runs in the
/// background thaws it; so does it where freezing takes too long.
const FREEZE: &str = "\
    { sleep 10; fsfreeze --unfreeze \"$1\"; } </dev/null >/dev/null 2>&1 & watchdog=$!; \
    fsfreeze --freeze \"$1\" && fsfreeze --unfreeze \"$1\"; status=$?; \
    kill $watchdog; exit $status";

/// Writes everything that the filesystem of `dir` has in memory to its place on the disk.
pub fn flush(dir: &Path) -> Result<()> {
    if needs_freeze(dir) {
        return command(dir).run().map(drop);
    }
    File::open(dir)
        .and_then(|dir| Ok(syncfs(dir)?))
        .with_context(|| format!("cannot flush {}", dir.display()))
}

/// A command that does the same.
pub fn command(dir: &Path) -> Cmd {
    if needs_freeze(dir) {
        // Not to be interrupted: nothing else thaws it.
        let freeze = Cmd::new("sh").args(["-c", FREEZE, "freeze"]).arg(dir);
        return freeze.uninterrupted();
    }
    Cmd::new("sync").arg("-f").arg(dir)
}

/// After syncfs(2) ext4 has everything in its place, and FAT has no journal. XFS has it in its log. A boot
/// partition is never the root that this runs from, which must not be frozen.
fn needs_freeze(dir: &Path) -> bool {
    let device = |path: &Path| path.metadata().map(|file| file.dev()).ok();
    statfs(dir).is_ok_and(|kind| kind.filesystem_type() == XFS_SUPER_MAGIC)
        && device(dir) != device(Path::new("/"))
}
