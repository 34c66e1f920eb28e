//! Prepares the way down while the system runs.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount, umount};

use crate::sys::files;

/// Where systemd looks for another root when all units have ended (bootup(7)).
const ROOT: &str = "/run/initramfs";
/// What it starts there.
const SHUTDOWN: &str = "shutdown";
/// Where systemd mounts what the new root needs, and the old root. It makes what is missing.
const MOUNT_POINTS: [&str; 5] = ["dev", "oldroot", "proc", "run", "sys"];

/// Copies this program to where systemd finds it in the end. What is there already stays. A program in use is
/// removed while its package is upgraded, and the copy needs neither the old root nor any of its libraries.
pub fn stage() -> Result<()> {
    let root = Path::new(ROOT);
    if root.join(SHUTDOWN).exists() {
        return Ok(());
    }
    fs::create_dir_all(root).context(ROOT)?;
    // A filesystem of its own: nothing can be run from /run after some kinds of initramfs. It also hides the
    // file by which dracut's unit knows that it has to unpack an initramfs there (dracut-shutdown.service(8)).
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let options = Some("mode=0755,size=16m");
    mount(Some("imgbased"), root, Some("tmpfs"), flags, options)
        .with_context(|| format!("cannot mount {ROOT}"))?;
    fill(root, Path::new("/proc/self/exe")).inspect_err(|_| {
        // Without it systemd does what it can by itself.
        if let Err(error) = umount(root) {
            log::warn!("cannot unmount {ROOT}: {error}");
        }
    })
}

/// Systemd takes what is there, be it whole or not: it gets its name when it is.
fn fill(root: &Path, program: &Path) -> Result<()> {
    for point in MOUNT_POINTS {
        fs::create_dir_all(root.join(point)).context(point)?;
    }
    let shutdown = root.join(SHUTDOWN);
    files::replace(&shutdown, 0o755, |file| {
        io::copy(&mut File::open(program)?, file).map(drop)
    })
    .with_context(|| format!("cannot write {}", shutdown.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_root_for_the_end_has_the_program_and_the_mount_points_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::write(&program, "content").unwrap();
        let root = dir.path().join("root");
        fs::create_dir(&root).unwrap();
        fill(&root, &program).unwrap();
        let mut names: Vec<_> = fs::read_dir(&root)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["dev", "oldroot", "proc", "run", "shutdown", "sys"]);
        assert_eq!(fs::read(root.join("shutdown")).unwrap(), b"content");
        let mode = fs::metadata(root.join("shutdown"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o755);
    }

    #[test]
    fn a_program_that_cannot_be_copied_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let error = fill(dir.path(), Path::new("/nonexistent")).unwrap_err();
        assert!(format!("{error:#}").contains("shutdown"), "{error:#}");
        assert!(!dir.path().join("shutdown").exists());
    }
}
