//! The packages that are installed in a root.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::asked::ask;
use crate::merge::dpkg;
use crate::model::package::{self, Package};
use crate::sys::rooted::real_path;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, Kind, READ_MAX};

/// The programs of a root that know what is installed there.
pub const DPKG: &str = "/usr/bin/dpkg";
pub const RPM: &str = "/usr/bin/rpm";

/// Has rpm(8) say what is installed, a line for each: name with architecture, and version.
const LIST_OF_RPM: &str = "exec rpm --query --all --queryformat \
    '%{NAME}.%{ARCH}\\t%|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\n' >/run/answer";

/// Packages with their versions.
pub type Versions = BTreeMap<String, String>;

/// The packages that dpkg(1) has installed in a root; `None` if nothing there tells.
pub fn of_dpkg(root: &Dir) -> Result<Option<Vec<Package>>> {
    let status = dpkg::status(root).context("cannot read the record of dpkg")?;
    Ok(status.map(|status| package::installed(&status)))
}

/// The packages that apt-get(8) has installed only since others need them; all others were asked for.
pub fn automatic(root: &Dir) -> Result<BTreeSet<String>> {
    const STATES: &str = "var/lib/apt/extended_states";
    let states = root.resolve(Path::new(STATES))?;
    let Some(states) = states.filter(|states| states.stat.kind == Kind::File) else {
        return Ok(BTreeSet::new());
    };
    let content = states.read(READ_MAX);
    let content = content.with_context(|| format!("cannot read /{STATES}"))?;
    Ok(package::automatic(&String::from_utf8_lossy(&content)))
}

/// The packages of the roots that are mounted there, as [`read`] tells them; none of any, where one does not tell.
pub fn of_each(tx: &mut Transaction, paths: [&Path; 3]) -> Result<[Versions; 3]> {
    let mut all = <[Versions; 3]>::default();
    for (packages, path) in all.iter_mut().zip(paths) {
        match read(tx, path)? {
            Some(found) => *packages = found,
            None => return Ok(Default::default()),
        }
    }
    Ok(all)
}

/// The packages of the root that is mounted at `path`, also those of rpm, of which its own rpm(8) tells shut in. Where
/// that cannot be, a warning says why, and nothing is returned.
pub fn read(tx: &mut Transaction, path: &Path) -> Result<Option<Versions>> {
    match of_dpkg(&Dir::root(path)?)? {
        Some(packages) => Ok(Some(versions(packages))),
        None => read_rpm(tx, path),
    }
}

/// The same of rpm only.
pub fn read_rpm(tx: &mut Transaction, path: &Path) -> Result<Option<Versions>> {
    if !has_rpm_database(&Dir::root(path)?)? {
        return Ok(Some(BTreeMap::new()));
    }
    let listed = of_rpm(tx, path)?;
    if let Err(error) = &listed {
        log::warn!("packages are not compared: {error:#}");
    }
    Ok(listed.ok())
}

pub fn versions(packages: Vec<Package>) -> Versions {
    let version = |package: Package| (package.key(), package.version);
    packages.into_iter().map(version).collect()
}

/// Whether the root that is mounted at `path` has such a program.
pub fn has_program(path: &Path, program: &str) -> bool {
    real_path(path, program).is_ok_and(|program| program.is_file())
}

fn has_rpm_database(root: &Dir) -> Result<bool> {
    for dir in ["usr/lib/sysimage/rpm", "var/lib/rpm"] {
        if root.resolve_dir(Path::new(dir))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The inner error is that of its rpm(8).
fn of_rpm(tx: &mut Transaction, path: &Path) -> Result<Result<Versions>> {
    if !has_program(path, RPM) || tx.is_dry_run() {
        return Ok(not_read(path));
    }
    let listed = ask(tx, path, LIST_OF_RPM, b"")?;
    let listed = listed.map(|list| listed_by_rpm(&String::from_utf8_lossy(&list)));
    Ok(listed.context("rpm(8) of the root does not list them"))
}

fn not_read(path: &Path) -> Result<Versions> {
    bail!(
        "{} has a database of rpm, and no {RPM} that can read it",
        path.display()
    )
}

/// Reads such a list. Several versions of a package can be there at once, as of kernels; there is a comma between them.
fn listed_by_rpm(list: &str) -> Versions {
    let mut versions = BTreeMap::new();
    for (name, version) in list.lines().filter_map(|line| line.split_once('\t')) {
        let of: &mut String = versions.entry(name.to_owned()).or_default();
        if !of.is_empty() {
            of.push_str(", ");
        }
        of.push_str(version);
    }
    versions
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_list_of_rpm_has_all_versions_of_a_package() {
        let list = "bash.x86_64\t5.2.26-4.fc41\nkernel.x86_64\t6.11-1\nkernel.x86_64\t6.12-1\n\
            shadow-utils.x86_64\t2:4.15-1\nno version\n";
        let found = listed_by_rpm(list);
        let found: Vec<(&str, &str)> = found
            .iter()
            .map(|(name, version)| (name.as_str(), version.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("bash.x86_64", "5.2.26-4.fc41"),
                ("kernel.x86_64", "6.11-1, 6.12-1"),
                ("shadow-utils.x86_64", "2:4.15-1"),
            ]
        );
    }

    #[test]
    fn a_database_of_rpm_without_rpm_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let root = || Dir::root(dir.path()).unwrap();
        assert!(!has_rpm_database(&root()).unwrap());
        fs::create_dir_all(dir.path().join("var/lib/rpm")).unwrap();
        assert!(has_rpm_database(&root()).unwrap());
        assert!(not_read(dir.path()).unwrap_err().to_string().contains(RPM));
    }
}
