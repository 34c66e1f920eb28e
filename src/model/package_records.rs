//! Where a root has its record of packages.

use std::path::{Path, PathBuf};

/// Where programs look for it.
pub const PACKAGES: &str = "/var/lib";

/// The directories there with what programs record of packages: dpkg and apt, rpm and dnf, with what goes with
/// them.
pub const RECORDS: [&str; 8] = [
    "apt",
    "dnf",
    "dpkg",
    "pam",
    "rpm",
    "systemd/deb-systemd-helper-enabled",
    "systemd/deb-systemd-helper-masked",
    "ucf",
];

/// Where programs look for each of them.
pub fn paths() -> impl Iterator<Item = PathBuf> {
    RECORDS.iter().map(|name| Path::new(PACKAGES).join(name))
}
