//! Where a volume can be mounted in the layer that runs, and who is in its way.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::OFlags;

use super::OWN_UNITS;
use crate::model::volume::Mount;
use crate::model::{fstab, mount_unit};
use crate::sys::namespaces::Namespaces;
use crate::sys::{holders, mounts, rooted};

/// So many processes are named in a message.
const SHOWN_MAX: usize = 3;

/// Whether there is a directory at `path`. Refuses a path with a link in it: in another layer it can lead elsewhere.
pub fn look_at(path: &str) -> Result<bool> {
    let root = File::open("/").context("cannot open /")?;
    let directory = OFlags::PATH | OFlags::DIRECTORY;
    for above in Path::new(path).ancestors() {
        let inside = above.to_string_lossy();
        let inside = inside.trim_start_matches('/');
        if inside.is_empty() {
            break;
        }
        match rooted::open_beneath(&root, inside, directory) {
            Ok(_) => return Ok(above == Path::new(path)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
                let real = fs::canonicalize(above).unwrap_or_default();
                bail!(
                    "{} is a symbolic link or has one in it; give the path that it leads to: {}",
                    above.display(),
                    real.display()
                );
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot open {}", above.display()));
            }
        }
    }
    Ok(false)
}

/// Who uses a directory, so that nothing can be mounted there, or unmounted. Of /var there is always somebody.
pub fn users_of(path: &str) -> Result<Vec<String>> {
    let dir = Path::new(path);
    let mut users = holders::of(dir);
    users.extend(holders::of_kernel(dir));
    users.extend(Namespaces::read()?.users(dir));
    if users.is_empty() && path == "/var" {
        users.push("the system".to_owned());
    }
    Ok(users)
}

/// Refuses a directory with a file that is swap: what is in it changes at all times, and where its blocks are counts.
pub fn check_no_swap(path: &str) -> Result<()> {
    if let Some(file) = holders::swap_files(Path::new(path)).first() {
        let file = file.display();
        bail!("{file} is swap, which cannot move while it is used; run `swapoff {file}` first");
    }
    Ok(())
}

/// The first of them, and how many there are.
pub fn shown(users: &[String]) -> String {
    let first = users.iter().take(SHOWN_MAX).map(String::as_str);
    let first = first.collect::<Vec<_>>().join(", ");
    match users.len().saturating_sub(SHOWN_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Refuses where something else is mounted at a path, or would be.
pub fn check_free(path: &str, others: &[Mount]) -> Result<()> {
    if let Some(other) = others.iter().find(|other| other.path == path) {
        bail!("{path} is a volume already: {}", other.name);
    }
    let at = Path::new(path);
    ensure!(
        mounts::all()?.iter().all(|mount| mount.point != at),
        "something else is mounted at {path}; unmount it, and see that nothing mounts it again"
    );
    let fstab = fs::read("/etc/fstab").unwrap_or_default();
    ensure!(
        !fstab::has(&fstab, path),
        "/etc/fstab has a line for {path}, which would count in this layer; remove that first"
    );
    let unit = Path::new(OWN_UNITS).join(mount_unit::name(path));
    ensure!(
        fs::symlink_metadata(&unit).is_err(),
        "{} is there, and would count in this layer; remove it first",
        unit.display()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_is_found_and_a_link_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("home")).unwrap();
        symlink("home", root.join("link")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        let look = |path: &str| look_at(root.join(path).to_str().unwrap());
        assert!(look("home").unwrap());
        assert!(!look("home/a/b").unwrap());
        for (path, message) in [
            ("link", "give the path that it leads to"),
            ("link/a", "give the path that it leads to"),
            ("file", "cannot open"),
            ("file/a", "cannot open"),
        ] {
            let error = format!("{:#}", look(path).unwrap_err());
            assert!(error.contains(message), "{path}: {error}");
        }
    }

    #[test]
    fn of_many_users_the_first_are_named() {
        let users = |count: usize| (1..=count).map(|n| format!("{n} (x)")).collect::<Vec<_>>();
        assert_eq!(shown(&users(1)), "1 (x)");
        assert_eq!(shown(&users(5)), "1 (x), 2 (x), 3 (x) and 2 more");
    }
}
