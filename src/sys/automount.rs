//! Filesystems that systemd mounts when somebody looks at them (systemd.automount(5)), and does not mount any more once
//! the system goes down. What is done then needs them as much.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::EHOSTDOWN;
use nix::mount::{MntFlags, umount2};

use super::cmd::Cmd;
use super::mounts::make_private;

/// Has what `unit` mounts be in a directory, also where systemd does not mount it any more. Only this process and its
/// children see that then, so nothing is in the way of the end.
pub fn reach(dir: &Path, unit: &str) -> Result<()> {
    if !is_refused(dir) {
        return Ok(());
    }
    mount(dir, unit).with_context(|| {
        format!(
            "systemd does not mount {} any more, and neither can this",
            dir.display()
        )
    })
}

/// Whether systemd refuses to mount something on a directory, as it is about to stop doing so. What it does not refuse
/// is mounted then.
fn is_refused(dir: &Path) -> bool {
    // To look at the directory itself mounts nothing. A link leads to another one.
    let refuses = |error: io::Error| error.raw_os_error() == Some(EHOSTDOWN);
    !dir.is_symlink() && fs::read_dir(dir).is_err_and(refuses)
}

fn mount(dir: &Path, unit: &str) -> Result<()> {
    let show = ["show", "--property=What,Type,Options", "--", unit];
    let shown = Cmd::new("systemctl").args(show).run()?;
    let mount = command(&shown, dir, unit)?;
    log::debug!("{}", mount.line());
    make_private()?;
    // What is there for systemd would refuse this one as well.
    match umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // It has ended by itself.
        Err(Errno::EINVAL) => {}
        done => done.with_context(|| format!("cannot unmount {}", dir.display()))?,
    }
    mount.run().map(drop)
}

/// Options that say when something is mounted, and not how. With nofail, mount(8) says that a missing device is well.
const OF_FSTAB: [&str; 4] = ["auto", "noauto", "fail", "nofail"];

/// What mounts a directory as its unit does, whose properties are in `shown`.
fn command(shown: &str, dir: &Path, unit: &str) -> Result<Cmd> {
    let value = |name: &str| {
        let mut lines = shown.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(found, _)| *found == name);
        found
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    };
    let what = value("What").with_context(|| format!("{unit} names no device"))?;
    let options = value("Options").unwrap_or_default().split(',');
    let options: Vec<&str> = options
        .filter(|option| !OF_FSTAB.contains(option))
        .collect();
    let mut mount = Cmd::new("mount");
    for (option, value) in [
        ("-t", value("Type").unwrap_or_default()),
        ("-o", &options.join(",")),
    ] {
        if !value.is_empty() {
            mount = mount.args([option, value]);
        }
    }
    Ok(mount.arg("--").arg(what).arg(dir))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_mounted_as_its_unit_does() {
        for (dir, shown, line) in [
            (
                "/boot",
                "What=/dev/disk/by-uuid/AB-CD\nType=vfat\nOptions=rw,nofail,x-systemd.automount,noauto,umask=0077\n",
                "mount -t vfat -o rw,x-systemd.automount,umask=0077 -- /dev/disk/by-uuid/AB-CD /boot",
            ),
            (
                "/efi",
                "What=LABEL=x\nType=ext4\nOptions=nofail\n",
                "mount -t ext4 -- LABEL=x /efi",
            ),
            (
                "/boot/efi",
                "Type=\nOptions=\nWhat=/dev/vda1\n",
                "mount -- /dev/vda1 /boot/efi",
            ),
        ] {
            assert_eq!(command(shown, Path::new(dir), "").unwrap().line(), line);
        }
        let error = command("What=\nType=\n", Path::new("/boot"), "boot.mount").unwrap_err();
        assert_eq!(error.to_string(), "boot.mount names no device");
    }

    #[test]
    fn what_is_there_or_not_there_at_all_is_not_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path(), &dir.path().join("gone")] {
            assert!(!is_refused(path));
        }
    }
}
