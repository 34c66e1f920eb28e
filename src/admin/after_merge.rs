//! What follows from a merge, in the root of a layer that has not been booted yet.

use std::ffi::OsStr;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::filesystem::mount_point;
use crate::sys::cmd::Cmd;
use crate::sys::rooted::real_path;
use crate::sys::sandbox::Sandbox;
use crate::sys::transaction::Transaction;
use crate::tree::{Below, Dir, Kind, READ_MAX, walk};

/// Where systemd leaves a file that says what has been brought up to date (systemd-update-done.service(8)).
const UPDATED_IN: [&str; 2] = ["etc", "var"];
const UPDATED: &str = ".updated";
const LDCONFIG: &str = "/sbin/ldconfig";
/// Where that is mounted which programs can write to beside the root.
const SCRATCH: &str = "caches";
/// What each of them can write into a layer, in bytes. What they make is far smaller.
const CACHES_MAX: u64 = 256 << 20;

/// Where administrators put certificates of authorities that they trust or do not trust, from the root, and the program
/// that makes the list of all of them: of Debian and SUSE, and of Fedora and Arch.
const CERTIFICATES: [(&[&str], &[&str]); 2] = [
    (
        &["usr/local/share/ca-certificates", "etc/pki/trust"],
        &["/usr/sbin/update-ca-certificates"],
    ),
    (
        &[
            "etc/pki/ca-trust/source",
            "etc/ca-certificates/trust-source",
        ],
        &["/usr/bin/update-ca-trust", "extract"],
    ),
];
/// Where Debian's program is told which of the image's are not trusted: those with a mark before their names.
const DISTRUSTED: &str = "etc/ca-certificates.conf";
const MARK: u8 = b'!';
/// What such a directory is searched for: certificates, in some form.
const ENDINGS: [&str; 6] = ["crt", "pem", "cer", "der", "p11-kit", "p7c"];

/// Has the layer that is mounted at `root` find the libraries of what was merged, trust the authorities that the host
/// trusts, and bring up to date what it keeps of /usr when it starts. Its own ldconfig(8) and the like are run shut in;
/// where one fails, a warning says so.
pub fn refresh_caches(tx: &mut Transaction, root: &Path) -> Result<()> {
    let stamps = UPDATED_IN.map(|dir| root.join(dir).join(UPDATED));
    tx.work(&Cmd::new("rm").arg("-f").args(stamps), |_| {
        forget_updated(root)
    })?;
    let mut programs: Vec<(&[&str], &str)> = vec![(&[LDCONFIG], "the cache of shared libraries")];
    let opened = Dir::root(root)?;
    for (dirs, program) in CERTIFICATES {
        if has_own_certificates(&opened, dirs)? {
            programs.push((program, "the list of trusted authorities"));
        }
    }
    drop(opened);
    let is_there = |program: &str| real_path(root, program).is_ok_and(|path| path.is_file());
    programs.retain(|(program, _)| program.first().is_some_and(|program| is_there(program)));
    if programs.is_empty() {
        return Ok(());
    }
    let sandbox = Sandbox::writable(tx, root, &mount_point(SCRATCH))?.with_room(CACHES_MAX);
    for (program, made) in programs {
        if let Err(error) = sandbox.attempt(tx, program)? {
            log::warn!("{made} of the new layer stays as it is: {error:#}");
        }
    }
    sandbox.close(tx)
}

/// Whether the host has certificates of its own at or below these directories, or does not trust one of the image's.
fn has_own_certificates(root: &Dir, dirs: &[&str]) -> Result<bool> {
    let failed = "cannot look for certificates";
    for dir in dirs {
        let found = root.resolve_dir(Path::new(dir)).context(failed)?;
        let mut has = false;
        walk(&[found], None, &mut |visit| {
            let ending = visit.path.extension();
            let is_one = ending.is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known));
            has |= is_one && !visit.path.ends_with("ca-bundle.legacy.crt");
            Ok(if has { Below::Skip } else { Below::Visit })
        })?;
        if has {
            return Ok(true);
        }
    }
    let list = root.resolve(Path::new(DISTRUSTED)).context(failed)?;
    let Some(list) = list.filter(|list| list.stat.kind == Kind::File) else {
        return Ok(false);
    };
    let list = list.read(READ_MAX).context(failed)?;
    Ok(list
        .split(|byte| *byte == b'\n')
        .any(|line| line.first() == Some(&MARK)))
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
