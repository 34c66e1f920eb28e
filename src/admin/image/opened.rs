//! The root in an image, to be looked at: mounted read-only, or unpacked to a filesystem in a file of its own.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::statvfs::statvfs;
use tempfile::NamedTempFile;

use crate::admin::base;
use crate::admin::filesystem::{Filesystem, mount_point};
use crate::admin::look::Look;
use crate::image::blocks::{self, BLOCK, Target};
use crate::image::stream::Stream;
use crate::image::superblock::FsKind;
use crate::image::tree::{Shape, Tree};
use crate::image::{Image, Opened, judge};
use crate::model::image::Space;
use crate::sys::mounts;
use crate::sys::progress::Progress;
use crate::sys::transaction::Transaction;

/// Where an image is unpacked.
const SCRATCH: &str = "/var/tmp";
/// Where the root of an image is mounted.
const ROOT_MOUNT: &str = "root";
/// The filesystem of an archive is so many times as large as its files need.
const SPARE_FACTOR: u64 = 2;

/// What there is to be looked at.
pub struct Inside {
    pub root: PathBuf,
    /// How much its files take, in bytes; nothing where that cannot be told.
    pub size: Option<u64>,
    /// Of an image that is a filesystem.
    pub space: Option<Space>,
}

/// Looks at it.
pub type Looker<'a> = &'a mut dyn FnMut(&mut Transaction, &Inside) -> Result<()>;

/// Hands over the root in an image. Refuses what `base add` does not know.
pub fn look_into(tx: &mut Transaction, image: &Path, look: Looker) -> Result<()> {
    let shown = image.display().to_string();
    if let Err(error) = mounts::make_private() {
        // In the build of a container nothing can be mounted. What is below a directory then is mounted by that.
        ensure!(
            image.is_dir(),
            "{shown} cannot be mounted here: {error:#}; unpack it, and give the directory"
        );
        judge::of_shape(&shown, &Shape::of_directory(image)?)?;
        let root = image.to_owned();
        let (size, space) = (None, None);
        return look(tx, &Inside { root, size, space });
    }
    let opened = base::open(tx, image, None)?;
    look_into_opened(tx, &shown, &opened, look)?;
    opened.close(tx)
}

fn look_into_opened(
    tx: &mut Transaction,
    shown: &str,
    opened: &Opened,
    look: Looker,
) -> Result<()> {
    let (path, compression, superblock) = match &opened.image {
        Image::Tree(tree) => {
            let Some((root, _)) = tree.dir() else {
                return look_into_archive(tx, shown, tree, look);
            };
            let (content, _) = tree.measure(tx.interrupt())?;
            let root = root.to_owned();
            let (size, space) = (Some(content.bytes), None);
            return look(tx, &Inside { root, size, space });
        }
        Image::Filesystem {
            path,
            compression,
            superblock,
            ..
        } => (path, *compression, superblock),
    };
    if compression.is_none() {
        return look_into_filesystem(tx, path, superblock.kind, look);
    }
    let file = scratch(superblock.size)?;
    let target = Target {
        device: file.path(),
        is_shared: false,
        unit: BLOCK,
        room: room()?,
    };
    let mut progress = Progress::new(shown, path.metadata()?.len());
    let stream = Stream::open(path, compression)?;
    blocks::copy(
        stream,
        superblock.size,
        &target,
        tx.interrupt(),
        &mut progress,
    )
    .with_context(|| format!("cannot unpack {shown} to {SCRATCH}"))?;
    drop(progress);
    look_into_filesystem(tx, file.path(), superblock.kind, look)
}

fn look_into_filesystem(
    tx: &mut Transaction,
    path: &Path,
    kind: FsKind,
    look: Looker,
) -> Result<()> {
    let root = mount_point(ROOT_MOUNT);
    let mounted = Look::at_image(path, kind).mounted(&root);
    let _mounted = mounted.context(
        "it cannot be looked into as it is; e2fsck(8) or xfs_repair(8) may put that right",
    )?;
    let stat = statvfs(&root)?;
    let unit = stat.fragment_size();
    let space = Space {
        used: (stat.blocks() - stat.blocks_free()) * unit,
        size: stat.blocks() * unit,
    };
    let (size, space) = (Some(space.used), Some(space));
    look(tx, &Inside { root, size, space })
}

/// Unpacks an archive as `base add` does, into a filesystem that takes its owners and attributes whatever that of
/// [`SCRATCH`] takes, and that cannot grow beyond its size.
fn look_into_archive(tx: &mut Transaction, shown: &str, tree: &Tree, look: Looker) -> Result<()> {
    let (content, shape) = tree.measure(tx.interrupt())?;
    judge::of_shape(shown, &shape)?;
    let free = room()?;
    ensure!(
        content.bytes <= free,
        "{shown} needs {} MiB when it is unpacked, and {SCRATCH} has room for {} MiB",
        content.bytes >> 20,
        free >> 20
    );
    let file = scratch(content.least_size().saturating_mul(SPARE_FACTOR))?;
    let filesystem = Filesystem::make(tx, FsKind::Ext4, file.path(), true, None)?;
    let root = mount_point(ROOT_MOUNT);
    let mounted = filesystem.mount(tx, &root, "rw,loop")?;
    let mut progress = Progress::new(shown, content.bytes);
    tree.copy(&root, free, tx.interrupt(), &mut progress)
        .with_context(|| format!("cannot unpack {shown} to {SCRATCH}"))?;
    drop(progress);
    let (size, space) = (Some(content.bytes), None);
    look(tx, &Inside { root, size, space })?;
    mounted.unmount(tx)
}

/// A file of this size that is all zeros, and takes no room. It is gone with the result.
fn scratch(size: u64) -> Result<NamedTempFile> {
    let failed = || format!("cannot make a file in {SCRATCH}");
    let file = NamedTempFile::new_in(SCRATCH).with_context(failed)?;
    file.as_file().set_len(size).with_context(failed)?;
    Ok(file)
}

/// What can be written there, in bytes.
fn room() -> Result<u64> {
    let stat = statvfs(SCRATCH).with_context(|| format!("cannot look at {SCRATCH}"))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}
