//! Volumes of a host that is being made: nothing runs from its layer yet.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::OFlags;

use super::add::make;
use crate::admin::filesystem::mount_point;
use crate::admin::{Context, pool_with_room, text};
use crate::boot::root::Root;
use crate::image::superblock::FsKind;
use crate::image::tree::{Content, Tree};
use crate::model::fstab;
use crate::model::name::LvName;
use crate::model::volume::{self, Mount};
use crate::sys::progress::Progress;
use crate::sys::rooted::open_beneath;
use crate::sys::transaction::Transaction;

/// A volume that is to be made. The size is in bytes.
pub struct NewVolume {
    pub mount: Mount,
    size: u64,
}

impl NewVolume {
    /// For a path, with a name that is not among those.
    pub fn of(path: String, size: u64, taken: &[String]) -> Result<Self> {
        let name = volume::name_for(&path, &|name| taken.iter().any(|taken| taken == name))?;
        let mount = Mount {
            path,
            name: name.to_string(),
            options: String::new(),
            moving: false,
        };
        mount.tags()?;
        Ok(Self { mount, size })
    }
}

/// Makes a volume with what the layer that is mounted at `root` has at its path. What is there stays below it.
pub fn make_for_new_host(
    context: &Context,
    tx: &mut Transaction,
    volume: &NewVolume,
    root: &Path,
) -> Result<()> {
    let NewVolume { mount, size } = volume;
    let path = &mount.path;
    let inside = path.trim_start_matches('/');
    let source = Tree::Directory(root.join(inside));
    // A dry run does not see it.
    let (mut is_there, mut held, mut free) = (true, Content::default(), u64::MAX);
    if !tx.is_dry_run() {
        let fstab = Root::at(root).fstab()?;
        ensure!(
            !fstab.is_some_and(|fstab| fstab::has(&fstab.text, path)),
            "the fstab of the image has a line for {path}, which would count; remove that line, or leave {path} out of \
             --volumes"
        );
        is_there = has_directory(root, inside)?;
        free = pool_with_room(&context.load()?)?;
        if is_there {
            held = source.measure(tx.interrupt())?.0;
        }
    }
    ensure!(
        *size >= held.least_size(),
        "a volume of {} is too small for {path}: what the image has there needs {} at least",
        text::size(*size),
        text::size(held.least_size())
    );
    let (lvm, name) = (&context.lvm, mount.name.parse::<LvName>()?);
    let create = lvm.create_thin(&name, &context.pool, *size, false);
    tx.run_undoable(&create, lvm.remove(&name))?;
    // The pool of a new group zeroes what it gives.
    let filesystem = make(tx, FsKind::Ext4, &lvm.device(&name)?, true, mount)?;
    if is_there {
        let to = mount_point(&mount.name);
        let mounted = filesystem.mount(tx, &to, "rw")?;
        tx.work(&source.copy_line(&to), |interrupt| {
            let mut progress = Progress::new(path, held.bytes);
            source.copy(&to, free, interrupt, &mut progress)
        })?;
        mounted.unmount(tx)?;
    }
    tx.run(&lvm.commit_active(&name, &mount.tags()?))
}

/// Whether a root has a directory there. Refuses a path with a link in it: in another layer it can lead elsewhere.
fn has_directory(root: &Path, inside: &str) -> Result<bool> {
    let dir = File::open(root).with_context(|| format!("cannot open {}", root.display()))?;
    match open_beneath(dir, inside, OFlags::PATH | OFlags::DIRECTORY) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => bail!(
            "/{inside} of the image is a symbolic link or has one in it; name the path that it leads to in --volumes, \
             or leave it out"
        ),
        Err(error) => Err(error).with_context(|| format!("cannot open /{inside} of the image")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_volume_gets_a_name_of_its_own_and_tags() {
        let taken = ["home".to_owned(), "Config".to_owned()];
        for (path, name) in [
            ("/home", "home-2"),
            ("/var", "var"),
            ("/srv/a b", "srv-a.b"),
        ] {
            let volume = NewVolume::of(path.to_owned(), 1 << 30, &taken).unwrap();
            assert_eq!(volume.mount.name, name);
            let tags = volume.mount.tags().unwrap();
            assert_eq!(Mount::of(name, &tags).unwrap().unwrap(), volume.mount);
        }
    }

    #[test]
    fn a_link_in_the_image_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("var/home")).unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        symlink("var/home", dir.path().join("home")).unwrap();
        let found = |path: &str| has_directory(dir.path(), path);
        assert!(found("var/home").unwrap());
        assert!(!found("srv").unwrap());
        for (path, message) in [
            ("home", "symbolic link"),
            ("home/a", "symbolic link"),
            ("file", "cannot open"),
        ] {
            let error = format!("{:#}", found(path).unwrap_err());
            assert!(error.contains(message), "{path}: {error}");
        }
    }
}
