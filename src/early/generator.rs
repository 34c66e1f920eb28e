//! A systemd generator for the initramfs (systemd.generator(7)): where the command line names a
//! layer, our unit provides /sysroot and nothing else does.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use super::cmdline;

const UNIT: &str = "imgbased-sysroot.service";
const DRIVERS_UNIT: &str = "imgbased-drivers.service";
/// Restarts the machine where a boot that is to restart when it fails takes too long.
const LIMIT_UNIT: &str = "imgbased-limit.service";
pub const UNIT_DIR: &str = "/usr/lib/systemd/system";

/// What systemd-fstab-generator and systemd-gpt-auto-generator make of a `root=`, or of its
/// absence. It would wait for another device, or mount it. The early directory wins over theirs.
/// As well, what `systemd.volatile=` makes of a root that systemd itself has mounted.
const MASKED: [&str; 5] = [
    "sysroot.mount",
    "systemd-volatile-root.service",
    "initrd-root-fs.target.requires/systemd-volatile-root.service",
    "initrd-root-fs.target.requires/sysroot.mount",
    "initrd-root-device.target.d/50-root-device.conf",
];

/// Where dracut breaks before its pre-mount hooks.
const AFTER_PRE_MOUNT: &str = "[Unit]\nAfter=dracut-pre-mount.service\n";
/// As dracut-mount(8) does it.
const BREAK_AT_MOUNT: &str = "[Service]\nExecStartPre=-/bin/sh -c 'export DRACUT_SYSTEMD=1; . /lib/dracut-lib.sh; emergency_shell -n mount \"Break before mount\"'\n";

/// Writes links and drop-ins into `early_dir`, the second argument of a generator.
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
    pull_in(DRIVERS_UNIT, "initrd.target.wants")?;
    if cmdline::limit(cmdline).is_some() {
        pull_in(LIMIT_UNIT, "initrd.target.wants")?;
    }
    let is_break_at = |point| cmdline::breaks_at(cmdline, point);
    if is_break_at("mount") {
        // dracut's own comes when the root is mounted, and has nothing else to do.
        link(
            Path::new("/dev/null"),
            &early_dir.join("dracut-mount.service"),
        )?;
        write_break(early_dir, &format!("{AFTER_PRE_MOUNT}{BREAK_AT_MOUNT}"))
    } else if is_break_at("pre-mount") {
        write_break(early_dir, AFTER_PRE_MOUNT)
    } else {
        Ok(())
    }
}

/// Has a shell of dracut come before the root is mounted. It costs the wait for dracut's loop, which other boots
/// do not need.
fn write_break(early_dir: &Path, text: &str) -> Result<()> {
    let dir = early_dir.join(format!("{UNIT}.d"));
    fs::create_dir_all(&dir)
        .and_then(|()| fs::write(dir.join("break.conf"), text))
        .with_context(|| format!("cannot write to {}", dir.display()))
}

/// Generators run again when systemd reloads, in an empty directory or in the old one.
pub fn link(target: &Path, path: &Path) -> Result<()> {
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
        let wanted = fs::read_dir(dir.path().join("initrd.target.wants")).unwrap();
        let wanted: Vec<_> = wanted.map(|link| link.unwrap().file_name()).collect();
        assert_eq!(wanted, ["imgbased-drivers.service"]);
        assert!(!dir.path().join("imgbased-sysroot.service.d").exists());
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

    #[test]
    fn a_break_before_the_mount_holds_our_unit_back() {
        for (point, shells, is_masked) in [("pre-mount", 0, false), ("mount", 1, true)] {
            let dir = tempfile::tempdir().unwrap();
            let cmdline = format!("imgbased.layer=L rd.break={point}");
            for _ in 0..2 {
                run(cmdline.as_bytes(), dir.path()).unwrap();
            }
            let text = dir.path().join("imgbased-sysroot.service.d/break.conf");
            let text = fs::read_to_string(text).unwrap();
            assert!(text.contains("After=dracut-pre-mount.service"), "{text}");
            assert_eq!(text.matches("emergency_shell").count(), shells, "{point}");
            let mask = dir.path().join("dracut-mount.service");
            assert_eq!(fs::read_link(mask).is_ok(), is_masked, "{point}");
        }
    }
}
