//! Filesystems that systemd mounts when somebody looks at them (systemd.automount(5)), and does not mount any more once
//! the system goes down. What is done then needs them as much.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::libc::EHOSTDOWN;
use nix::mount::{MntFlags, umount2};

use super::cmd::Cmd;
use super::mounts::make_private;

/// Mounts those of these directories, from above, that systemd does not mount any more. Only this process and its
/// children see that, so nothing is in the way of the end.
pub fn reach(dirs: &[PathBuf]) -> Result<()> {
    for dir in dirs.iter().filter(|dir| is_refused(dir)) {
        mount(dir).with_context(|| {
            format!(
                "systemd does not mount {} any more, and neither can this",
                dir.display()
            )
        })?;
    }
    Ok(())
}

/// Whether systemd refuses to mount something on this directory, as it is about to stop doing so.
fn is_refused(dir: &Path) -> bool {
    // To look at the directory itself mounts nothing.
    fs::read_dir(dir).is_err_and(|error| error.raw_os_error() == Some(EHOSTDOWN))
}

fn mount(dir: &Path) -> Result<()> {
    let shown = Cmd::new("systemctl")
        .args(["show", "--property=What,Type,Options", "--"])
        .arg(unit(dir));
    let mount = command(&shown.run()?, dir);
    log::debug!("{}: {}", dir.display(), mount.line());
    make_private()?;
    // What is there for systemd would refuse this one as well.
    umount2(dir, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
        .with_context(|| format!("cannot unmount {}", dir.display()))?;
    mount.run().map(drop)
}

/// The unit that mounts a directory with a simple name (systemd-escape(1)).
fn unit(dir: &Path) -> String {
    let path = dir.to_string_lossy();
    format!("{}.mount", path.trim_matches('/').replace('/', "-"))
}

/// What mounts a directory as its unit does, whose properties are in `shown`.
fn command(shown: &str, dir: &Path) -> Cmd {
    let value = |name: &str| {
        let mut lines = shown.lines().filter_map(|line| line.split_once('='));
        let found = lines.find(|(found, _)| *found == name);
        found
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty())
    };
    let mut mount = Cmd::new("mount");
    for (option, name) in [("-t", "Type"), ("-o", "Options")] {
        if let Some(value) = value(name) {
            mount = mount.args([option, value]);
        }
    }
    mount
        .arg("--")
        .arg(value("What").unwrap_or_default())
        .arg(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_mounted_as_its_unit_does() {
        for (dir, shown, unit_of, line) in [
            (
                "/boot",
                "What=/dev/disk/by-uuid/AB-CD\nType=vfat\nOptions=rw,nofail,umask=0077\n",
                "boot.mount",
                "mount -t vfat -o rw,nofail,umask=0077 -- /dev/disk/by-uuid/AB-CD /boot",
            ),
            (
                "/boot/efi",
                "Type=\nOptions=\nWhat=/dev/vda1\n",
                "boot-efi.mount",
                "mount -- /dev/vda1 /boot/efi",
            ),
        ] {
            let dir = Path::new(dir);
            assert_eq!(unit(dir), unit_of);
            assert_eq!(command(shown, dir).line(), line);
        }
    }

    #[test]
    fn what_is_there_or_not_there_at_all_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let [there, gone] = ["there", "gone"].map(|name| dir.path().join(name));
        fs::create_dir(&there).unwrap();
        reach(&[there, gone]).unwrap();
    }
}
