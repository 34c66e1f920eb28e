//! The packages that are installed in a root.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::tree::{Dir, Kind, READ_MAX};

/// The packages that dpkg(1) has installed in a root, with their versions.
pub fn of(root: &Dir) -> Result<BTreeMap<String, String>> {
    const STATUS: &str = "var/lib/dpkg/status";
    let status = root.resolve(Path::new(STATUS))?;
    if let Some(status) = status.filter(|status| status.stat.kind == Kind::File) {
        let content = status.read(READ_MAX);
        return Ok(installed(
            &content.with_context(|| format!("cannot read /{STATUS}"))?,
        ));
    }
    for dir in ["usr/lib/sysimage/rpm", "var/lib/rpm"] {
        if root.resolve_dir(Path::new(dir))?.is_some() {
            log::warn!("packages of rpm are not compared; `rpm --root DIR -qa` lists them");
            break;
        }
    }
    Ok(BTreeMap::new())
}

/// Reads dpkg's record of packages (`deb-control(5)`). A package of another architecture has that in its name.
pub fn installed(status: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8_lossy(status);
    let mut packages = BTreeMap::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| {
            let value = |line: &str| {
                Some(
                    line.strip_prefix(name)?
                        .strip_prefix(':')?
                        .trim()
                        .to_owned(),
                )
            };
            paragraph.lines().find_map(value)
        };
        let is_installed = field("Status").is_some_and(|status| status.ends_with(" installed"));
        if let (Some(name), Some(version), true) =
            (field("Package"), field("Version"), is_installed)
        {
            let foreign = field("Multi-Arch").filter(|kind| kind == "same");
            let architecture = foreign.and_then(|_| field("Architecture"));
            let name = architecture.map_or_else(|| name.clone(), |of| format!("{name}:{of}"));
            packages.insert(name, version);
        }
    }
    packages
}
