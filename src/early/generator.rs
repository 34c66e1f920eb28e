//! A systemd generator for the initramfs (systemd.generator(7)): where the command line names a
//! layer, our unit provides /sysroot and nothing else does.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::cmdline;

const UNIT: &str = "imgbased-sysroot.service";
/// Restarts the machine where a boot that is to restart when it fails takes too long.
const LIMIT_UNIT: &str = "imgbased-limit.service";
const UNIT_DIR: &str = "/usr/lib/systemd/system";

/// What systemd-fstab-generator and systemd-gpt-auto-generator make of a `root=`, or of its
/// absence. It would wait for another device, or mount it. The early directory wins over theirs.
const MASKED: [&str; 3] = [
    "sysroot.mount",
    "initrd-root-fs.target.requires/sysroot.mount",
    "initrd-root-device.target.d/50-root-device.conf",
];

/// Writes links into `early_dir`, the second argument of a generator.
pub fn run(cmdline: &[u8], early_dir: &Path) -> Result<()> {
    if !cmdline::is_layer_boot(cmdline) {
        return Ok(());
    }
    for path in MASKED {
        link(Path::new("/dev/null"), &early_dir.join(path))?;
    }
    let pull_in = |unit: &str, by: &str| {
        let unit_file = Path::new(UNIT_DIR).join(unit);
        link(&unit_file, &early_dir.join(by).join(unit))
    };
    pull_in(UNIT, "initrd-root-fs.target.requires")?;
    if cmdline::limit(cmdline).is_some() {
        pull_in(LIMIT_UNIT, "initrd.target.wants")?;
    }
    Ok(())
}

/// Generators run again when systemd reloads, in an empty directory or in the old one.
fn link(target: &Path, path: &Path) -> Result<()> {
    let result = fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))
        .and_then(|()| symlink(target, path));
    match result {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("cannot create {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_the_key_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        run(b"root=/dev/sda1 quiet\n", dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn with_the_key_our_unit_is_wanted_and_others_are_masked() {
        let dir = tempfile::tempdir().unwrap();
        for _ in 0..2 {
            run(b"root=/dev/sda1 imgbased.layer=../x\n", dir.path()).unwrap();
        }
        let target = |path: &str| fs::read_link(dir.path().join(path)).unwrap();
        assert_eq!(target("sysroot.mount"), Path::new("/dev/null"));
        assert_eq!(
            target("initrd-root-fs.target.requires/imgbased-sysroot.service"),
            Path::new("/usr/lib/systemd/system/imgbased-sysroot.service")
        );
        assert!(!dir.path().join("initrd.target.wants").exists());
    }

    #[test]
    fn a_boot_that_restarts_when_it_fails_is_limited() {
        let dir = tempfile::tempdir().unwrap();
        run(b"imgbased.layer=L imgbased.onfail=reboot\n", dir.path()).unwrap();
        let link = dir
            .path()
            .join("initrd.target.wants/imgbased-limit.service");
        assert_eq!(
            fs::read_link(link).unwrap(),
            Path::new("/usr/lib/systemd/system/imgbased-limit.service")
        );
    }
}
