//! What the firmware of the machine is, from sysfs, which is at `sys`.

use std::fs;
use std::path::Path;

pub fn is_uefi(sys: &Path) -> bool {
    sys.join("firmware/efi").is_dir()
}

/// Whether it starts only what is signed. The variable has four bytes of attributes before its value
/// (linux/Documentation/filesystems/efivarfs.rst).
pub fn is_secure_boot(sys: &Path) -> bool {
    const VARIABLE: &str = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    fs::read(sys.join(VARIABLE)).is_ok_and(|value| value.get(4) == Some(&1))
}
