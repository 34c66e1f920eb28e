//! What a base is made of: images of several kinds, recognised by their content, and how they get
//! into a volume.

pub mod blocks;
pub mod digest;
mod direct;
pub mod stream;
pub mod superblock;
pub mod tree;

use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::sys::cmd::{Cmd, quote};
use crate::sys::probe;
use crate::sys::transaction::Transaction;
use direct::Buffer;
use stream::{Compression, Stream};
use superblock::{PREFIX, Superblock};
use tree::Tree;

/// Where the root filesystem is in a live image's squashfs (dracut's dmsquash-live).
const LIVE_ROOTS: [&str; 2] = ["LiveOS/rootfs.img", "LiveOS/ext3fs.img"];

/// An image that was recognised.
pub enum Image {
    /// A whole filesystem.
    Filesystem {
        path: PathBuf,
        compression: Option<Compression>,
        superblock: Superblock,
    },
    Tree(Tree),
}

impl Image {
    /// Recognises a file, block device or directory. A squashfs is mounted at `mount_at` for as
    /// long as this process lives.
    ///
    /// Refuses what is not known, and a filesystem that does not fit into its file.
    pub fn open(tx: &mut Transaction, path: &Path, mount_at: &Path) -> Result<Self> {
        let shown = path.display();
        let failed = || format!("cannot read {shown}");
        let metadata = std::fs::metadata(path).with_context(failed)?;
        if metadata.is_dir() {
            return Ok(Self::Tree(Tree::Directory(root_directory(path)?)));
        }
        ensure!(
            metadata.is_file() || metadata.file_type().is_block_device(),
            "{shown} is neither a file, a block device nor a directory"
        );
        let (prefix, length) = prefix(path, None)?;
        let compression = Compression::of(&prefix);
        let prefix = match compression {
            Some(compression) => {
                compression.decompress().check_installed()?;
                self::prefix(path, Some(compression))?.0
            }
            None => prefix,
        };
        let found = superblock::read(&prefix).with_context(|| shown.to_string())?;
        if let Some(superblock) = found {
            ensure!(
                compression.is_some() || length >= superblock.size,
                "{shown} is truncated: its filesystem has {} bytes, {length} are there",
                superblock.size
            );
            return Ok(Self::Filesystem {
                path: path.to_owned(),
                compression,
                superblock,
            });
        }
        match (kind(&prefix), compression) {
            (Some(Packed::Tar), _) => Ok(Self::Tree(Tree::Tar(path.to_owned(), compression))),
            (Some(Packed::Squashfs), None) => squashfs(tx, path, mount_at),
            (Some(Packed::Squashfs), Some(_)) => {
                bail!("{shown} is a compressed squashfs; decompress it first")
            }
            (None, Some(compression)) => bail!(
                "{shown} is compressed by {}, but holds neither ext4, XFS nor a tar archive",
                compression.program()
            ),
            (None, None) => {
                let held =
                    probe::signature(path)?.map_or("nothing that is known".into(), |s| s.kind);
                bail!(
                    "{shown} holds {held}; ext4, XFS, squashfs, a tar archive or a directory is needed"
                )
            }
        }
    }
}

enum Packed {
    Tar,
    Squashfs,
}

/// The magic numbers of POSIX tar and of squashfs 4.
fn kind(prefix: &[u8]) -> Option<Packed> {
    if prefix.get(257..262) == Some(b"ustar") {
        Some(Packed::Tar)
    } else if prefix.starts_with(b"hsqs") {
        Some(Packed::Squashfs)
    } else {
        None
    }
}

/// The first bytes of an image, decompressed, and the length of its file in bytes.
fn prefix(path: &Path, compression: Option<Compression>) -> Result<(Vec<u8>, u64)> {
    let failed = || format!("cannot read {}", path.display());
    let mut prefix = Buffer::new();
    prefix.resize(PREFIX as u64);
    let mut stream = Stream::open(path, compression)?;
    let count = stream.fill(&mut prefix).with_context(failed)?;
    if count < PREFIX {
        // The decompressor knows why.
        stream.finish()?;
    }
    let length = File::open(path)
        .and_then(|file| probe::size(&file))
        .with_context(failed)?;
    Ok((prefix[..count].to_vec(), length))
}

/// The directory itself. Refuses one that is not the root of a system.
fn root_directory(dir: &Path) -> Result<PathBuf> {
    ensure!(
        dir.join("usr").is_dir() && dir.join("etc").is_dir(),
        "{} holds no root filesystem: it has no /usr or no /etc",
        dir.display()
    );
    Ok(dir.to_owned())
}

fn squashfs(tx: &mut Transaction, path: &Path, mount_at: &Path) -> Result<Image> {
    tx.run_always(&Cmd::new("mkdir").arg("-p").arg(mount_at))?;
    let mount = Cmd::new("mount")
        // What it holds can come from anywhere.
        .args(["-t", "squashfs", "-o", "ro,nosuid,nodev,noexec"])
        .arg(path)
        .arg(mount_at);
    tx.run_always(&mount)?;
    let inside = mount_at.canonicalize()?;
    for live in LIVE_ROOTS {
        if let Ok(root) = inside.join(live).canonicalize() {
            ensure!(
                root.starts_with(&inside) && root.is_file(),
                "{live} in {} is not a file",
                path.display()
            );
            return match Image::open(tx, &root, mount_at)? {
                image @ Image::Filesystem { .. } => Ok(image),
                Image::Tree(_) => bail!("{live} in {} is no filesystem", path.display()),
            };
        }
    }
    let root = root_directory(mount_at).with_context(|| path.display().to_string())?;
    Ok(Image::Tree(Tree::Squashfs(root)))
}

/// What [`blocks::copy`] does, as a line for a shell. Where the target is shared, that writes less.
pub fn copy_line(
    path: &Path,
    compression: Option<Compression>,
    size: u64,
    target: &blocks::Target,
) -> String {
    let sparse = if target.is_shared { "" } else { "sparse," };
    let dd = format!(
        "dd of={} bs=4M conv={sparse}fsync iflag=fullblock,count_bytes count={size}",
        quote(target.device.as_os_str())
    );
    match compression {
        Some(compression) => {
            let decompress = compression.decompress();
            format!("{decompress} < {} | {dd}", quote(path.as_os_str()))
        }
        None => format!("{dd} if={}", quote(path.as_os_str())),
    }
}
