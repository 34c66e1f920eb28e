//! What follows from a merge, in the root of a layer that has not been booted yet.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::filesystem::mount_point;
use crate::sys::cmd::Cmd;
use crate::sys::rooted::real_path;
use crate::sys::sandbox::Sandbox;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// Where systemd leaves a file that says what has been brought up to date (systemd-update-done.service(8)).
const UPDATED_IN: [&str; 2] = ["etc", "var"];
const UPDATED: &str = ".updated";
const LDCONFIG: &str = "/sbin/ldconfig";
/// Where that is mounted which it can write to beside the root.
const SCRATCH: &str = "caches";

/// Has the layer that is mounted at `root` find the libraries of what was merged, and bring up to date what it
/// keeps of /usr when it starts. Its own ldconfig(8) is run shut in; where that fails, a warning says so.
pub fn refresh_caches(tx: &mut Transaction, root: &Path) -> Result<()> {
    let stamps = UPDATED_IN.map(|dir| root.join(dir).join(UPDATED));
    tx.work(&Cmd::new("rm").arg("-f").args(stamps), |_| {
        forget_updated(root)
    })?;
    let ldconfig = real_path(root, LDCONFIG);
    if !ldconfig.is_ok_and(|path| path.is_file()) {
        return Ok(());
    }
    let sandbox = Sandbox::writable(tx, root, &mount_point(SCRATCH))?;
    if let Err(error) = sandbox.attempt(tx, &[LDCONFIG])? {
        log::warn!("the cache of shared libraries of the new layer stays as it is: {error:#}");
    }
    sandbox.close(tx)
}

fn forget_updated(root: &Path) -> Result<()> {
    let root = Dir::root(root)?;
    for name in UPDATED_IN {
        let forget = || match root.descend(Path::new(name))? {
            Some(dir) => dir.remove(OsStr::new(UPDATED)).map(drop),
            None => Ok(()),
        };
        forget().with_context(|| format!("cannot remove /{name}/{UPDATED}"))?;
    }
    Ok(())
}
