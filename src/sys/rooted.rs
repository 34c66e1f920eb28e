//! Paths inside a root filesystem that can come from anywhere: no link in it leads out of it.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// How often the kernel is asked again when it could not be sure, since something was mounted or renamed
/// meanwhile (openat2(2)).
const TRIES: usize = 100;

/// The real path of what is at `path` in the root that is mounted at `root`. Links are followed as in that root
/// itself: an absolute one begins there, and no `..` leads above it.
pub fn real_path(root: &Path, path: &str) -> io::Result<PathBuf> {
    let inside = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = open(File::open(root)?, path, OFlags::PATH, Mode::empty(), inside)?;
    fs::read_link(descriptor(&found))
}

/// Opens what is at `path` below the directory `dir`. Refuses where any part of the path is a link.
pub fn open_beneath(dir: impl AsFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    Ok(open(dir, path, flags, Mode::empty(), beneath)?)
}

/// Opens what is at `path` from the directory `dir`, as openat2(2) does with these. No program that is run gets
/// it.
pub fn open(
    dir: impl AsFd,
    path: impl AsRef<Path>,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let ask = || openat2(&dir, path.as_ref(), flags | OFlags::CLOEXEC, mode, resolve);
    for _ in 1..TRIES {
        match ask() {
            Err(Errno::AGAIN) => {}
            found => return found,
        }
    }
    ask()
}

/// A path that leads to an open file, whatever its names are.
pub fn descriptor(file: &impl AsRawFd) -> PathBuf {
    format!("/proc/self/fd/{}", file.as_raw_fd()).into()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_are_followed_inside_the_root_and_never_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret");
        fs::write(&secret, "").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::write(root.join("usr/lib/file"), "").unwrap();
        for (link, target) in [
            ("relative", Path::new("usr/lib/file")),
            ("absolute", Path::new("/usr/lib/file")),
            ("above", Path::new("../../../../../../usr/lib/file")),
            ("lib", Path::new("/usr/lib")),
            ("outside", outside.path()),
            ("secret", &secret),
            ("self", Path::new("self")),
            ("magic", Path::new("/proc/self/root")),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        for (path, found) in [
            ("usr/lib/file", Some("usr/lib/file")),
            ("/usr/lib/file", Some("usr/lib/file")),
            ("relative", Some("usr/lib/file")),
            ("absolute", Some("usr/lib/file")),
            ("above", Some("usr/lib/file")),
            ("lib/file", Some("usr/lib/file")),
            ("lib", Some("usr/lib")),
            ("../usr/lib", Some("usr/lib")),
            ("missing", None),
            ("outside", None),
            ("outside/secret", None),
            ("secret", None),
            ("self", None),
            ("magic", None),
        ] {
            let wanted = found.map(|found| root.join(found));
            assert_eq!(real_path(&root, path).ok(), wanted, "{path}");
        }
        assert!(real_path(&root.join("missing"), "usr").is_err());
    }

    #[test]
    fn beneath_a_directory_no_part_of_a_path_is_a_link() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("run")).unwrap();
        fs::write(dir.path().join("run/file"), "").unwrap();
        symlink("run", dir.path().join("link")).unwrap();
        symlink("file", dir.path().join("run/link")).unwrap();
        let top = File::open(dir.path()).unwrap();
        for (path, is_found) in [
            ("run", true),
            ("run/file", true),
            ("link", false),
            ("link/file", false),
            ("run/link", false),
            ("../run", false),
            ("/run", false),
            ("run/missing", false),
        ] {
            let found = open_beneath(&top, path, OFlags::PATH);
            assert_eq!(found.is_ok(), is_found, "{path}: {found:?}");
        }
    }
}
