//! What follows from a merge, in the root of a layer that has not been booted yet.

use std::ffi::{OsStr, OsString};
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

/// A program that makes a list of all authorities that are trusted.
struct Trust {
    program: &'static [&'static str],
    /// Where administrators say which, from the root: directories with the endings that certificates at or below them have;
    /// without any, each file is one.
    places: &'static [(&'static str, &'static [&'static str])],
}

/// Of Debian and SUSE, and of Fedora and Arch.
const TRUST: [Trust; 2] = [
    Trust {
        // Also the links to those that it knows already.
        program: &["/usr/sbin/update-ca-certificates", "--fresh"],
        places: &[
            ("etc/pki/trust", &[]),
            ("usr/local/share/ca-certificates", &["crt", "pem"]),
            (LINKED, &["crt", "pem"]),
        ],
    },
    Trust {
        program: &["/usr/bin/update-ca-trust", "extract"],
        places: &[
            ("etc/pki/ca-trust/source", &[]),
            ("etc/ca-certificates/trust-source", &[]),
        ],
    },
];
/// Where the first program puts links to all certificates.
const LINKED: &str = "etc/ssl/certs";
/// What the image itself has in such directories.
const NO_CERTIFICATES: [&str; 3] = ["README", "ca-bundle.legacy.crt", "ca-certificates.crt"];
/// Where Debian's program is told which of the image's are not trusted: those with a mark before their names.
const DISTRUSTED: &str = "etc/ca-certificates.conf";
const MARK: u8 = b'!';
/// Where a policy of `SELinux` keeps what was changed by semanage(8) and the like, below the directory of its name.
const POLICIES: &str = "var/lib/selinux";
/// The modules, by their priorities, and a list of those that are disabled. Packages have these priorities.
const MODULES: &str = "active/modules";
const OF_PACKAGES: [&str; 2] = ["100", "200"];
/// There where semodule(8) was told to have all be audited.
const AUDITS_ALL: &str = "disable_dontaudit";
/// What update-crypto-policies(8) makes for each library, where that is no link to what the image has.
const BACK_ENDS: &str = "etc/crypto-policies/back-ends";
const UPDATE_CRYPTO_POLICIES: [&str; 2] = ["/usr/bin/update-crypto-policies", "--no-reload"];
const SEMODULE: &str = "/usr/sbin/semodule";

/// Has the layer that is mounted at `root` find the libraries of what was merged, trust the authorities that the host
/// trusts, and bring up to date what it keeps of /usr when it starts. Its own ldconfig(8) and the like are run shut in;
/// where one fails, a warning says so.
pub fn refresh_caches(tx: &mut Transaction, root: &Path) -> Result<()> {
    let stamps = UPDATED_IN.map(|dir| root.join(dir).join(UPDATED));
    tx.work(&Cmd::new("rm").arg("-f").args(stamps), |_| {
        forget_updated(root)
    })?;
    let mut programs: Vec<(Vec<String>, &str)> = Vec::new();
    let mut add = |program: &[&str], made| {
        programs.push((program.iter().map(ToString::to_string).collect(), made));
    };
    add(&[LDCONFIG], "the cache of shared libraries");
    let opened = Dir::root(root)?;
    for trust in &TRUST {
        if has_own_certificates(&opened, trust)? {
            add(trust.program, "the list of trusted authorities");
        }
    }
    for policy in changed_policies(&opened).context("cannot look for policies of SELinux")? {
        // The policy is the image's, without the ports and modules of the host.
        add(
            &[SEMODULE, "-s", &policy, "-N", "-B"],
            "the policy of SELinux",
        );
    }
    if has_own_back_ends(&opened).context("cannot look for policies of cryptography")? {
        // They were made of the policies of the image before.
        add(&UPDATE_CRYPTO_POLICIES, "the policy of cryptography");
    }
    drop(opened);
    let is_there = |program: &str| real_path(root, program).is_ok_and(|path| path.is_file());
    programs.retain(|(program, _)| program.first().is_some_and(|program| is_there(program)));
    if programs.is_empty() {
        return Ok(());
    }
    let sandbox = Sandbox::writable(tx, root, &mount_point(SCRATCH))?.with_room(CACHES_MAX);
    for (program, made) in programs {
        let program: Vec<&str> = program.iter().map(String::as_str).collect();
        if let Err(error) = sandbox.attempt(tx, &program)? {
            log::warn!("{made} of the new layer stays as it is: {error:#}");
        }
    }
    sandbox.close(tx)
}

/// Whether the host has certificates of its own for a program, or does not trust one of the image's.
fn has_own_certificates(root: &Dir, trust: &Trust) -> Result<bool> {
    let failed = "cannot look for certificates";
    for (dir, endings) in trust.places {
        // The image has links of its own there.
        let is_of_links = *dir == LINKED;
        let found = if is_of_links {
            root.descend(Path::new(dir)).context(failed)?
        } else {
            root.resolve_dir(Path::new(dir)).context(failed)?
        };
        let mut has = false;
        walk(&[found], None, &mut |visit| {
            let path = visit.path;
            let kind = visit.places[0].as_ref().map(|place| place.stat.kind);
            let is_file = kind == Some(Kind::File) || kind == Some(Kind::Link) && !is_of_links;
            let is_known = path
                .file_name()
                .is_none_or(|name| NO_CERTIFICATES.iter().any(|known| name == *known));
            let ending = path.extension();
            let is_meant = endings.is_empty()
                || ending.is_some_and(|ending| endings.iter().any(|known| ending == *known));
            has |= is_file && is_meant && !is_known;
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

/// The policies that the host has changed: with modules of its own or without some of the image's, or with local settings.
fn changed_policies(root: &Dir) -> Result<Vec<String>> {
    let mut changed = Vec::new();
    let Some(policies) = root.resolve_dir(Path::new(POLICIES))? else {
        return Ok(changed);
    };
    for name in policies.names()? {
        let names = |below: &str| -> Result<Vec<OsString>> {
            let dir = policies.resolve_dir(&Path::new(&name).join(below))?;
            Ok(dir.map_or(Ok(Vec::new()), |dir| dir.names())?)
        };
        let Some(plain) = name.to_str().filter(|name| !name.starts_with('-')) else {
            continue;
        };
        let is_local = |name: &OsString| {
            name == AUDITS_ALL || Path::new(name).extension() == Some(OsStr::new("local"))
        };
        let mut is_changed = names("active")?.iter().any(is_local);
        for kind in names(MODULES)? {
            let is_of_packages = OF_PACKAGES.iter().any(|known| kind == *known);
            let dir = Path::new(MODULES).join(&kind);
            is_changed |= !is_of_packages && !names(&dir.to_string_lossy())?.is_empty();
        }
        if is_changed {
            changed.push(plain.to_owned());
        }
    }
    changed.sort_unstable();
    Ok(changed)
}

/// Whether the host has chosen more than one of the policies that the image has ready.
fn has_own_back_ends(root: &Dir) -> Result<bool> {
    let Some(dir) = root.resolve_dir(Path::new(BACK_ENDS))? else {
        return Ok(false);
    };
    for name in dir.names()? {
        if dir
            .stat_of(&name)?
            .is_some_and(|stat| stat.kind == Kind::File)
        {
            return Ok(true);
        }
    }
    Ok(false)
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
