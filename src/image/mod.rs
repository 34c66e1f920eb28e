//! What a base is made of: images of several kinds, recognised by their content, and how they get
//! into a volume.

pub mod blocks;
pub mod digest;
mod direct;
mod features;
mod head;
mod holder;
pub mod host;
pub mod judge;
pub mod layers;
pub mod stream;
pub mod superblock;
pub mod tree;

use std::fs::{File, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::sys::cmd::{Cmd, quote};
use crate::sys::files::in_memory;
use crate::sys::mounts::{self, Mount};
use crate::sys::probe;
use crate::sys::rooted::descriptor;
use crate::sys::transaction::{Transaction, UndoStep};
use direct::Buffer;
use head::{Found, HEAD, Usable};
use holder::Claim;
pub use holder::user_of_disk;
use stream::{Compression, Feed, Stream};
use superblock::Superblock;
use tree::{Shape, Tree};

/// Where the root filesystem is in a live image's squashfs (dracut's dmsquash-live).
const LIVE_ROOTS: [&str; 2] = ["LiveOS/rootfs.img", "LiveOS/ext3fs.img"];

/// An image that was recognised.
pub enum Image {
    /// A whole filesystem.
    Filesystem {
        path: PathBuf,
        compression: Option<Compression>,
        superblock: Superblock,
        /// Of its file or device, in bytes.
        length: u64,
        /// Nobody begins to write to it as long as this is here.
        claim: Claim,
        /// What brings it, if it is not on this host. The path is its address then.
        feed: Option<Feed>,
    },
    Tree(Tree),
}

/// An image with what is mounted to read it.
pub struct Opened {
    pub image: Image,
    mounted: Option<UndoStep>,
    /// Of one in a file of this host: what that was before any of it was read.
    before: Option<Seen>,
}

/// A file as it was once. Whoever writes to it, or puts another one in its place, makes it another one.
#[derive(Clone)]
pub struct Seen {
    path: PathBuf,
    metadata: Metadata,
}

impl Seen {
    /// Nothing of what is no file.
    pub fn of(path: &Path) -> Option<Self> {
        let metadata = std::fs::metadata(path).ok().filter(Metadata::is_file)?;
        let path = path.to_owned();
        Some(Self { path, metadata })
    }

    /// Refuses a file that is another one now.
    pub fn check(&self) -> Result<()> {
        let told = |of: &Metadata| {
            let times = [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()];
            (of.dev(), of.ino(), of.size(), times)
        };
        let now = std::fs::metadata(&self.path);
        let is_same = now.is_ok_and(|now| told(&now) == told(&self.metadata));
        ensure!(
            is_same,
            "{} has changed while it was read, so no base was made of it; start again when nobody writes to it",
            self.path.display()
        );
        Ok(())
    }
}

impl Opened {
    /// The same image, of a file that was seen before anything of it was read.
    pub fn seen(self, before: Option<Seen>) -> Self {
        Self { before, ..self }
    }

    /// Refuses a file that is another one than it was before. To be asked when all of it was read.
    pub fn check_unchanged(&self) -> Result<()> {
        self.before.as_ref().map_or(Ok(()), Seen::check)
    }

    /// Opens a file, block device or directory, which people call `name`. A squashfs or directory is mounted at
    /// `mount_at` until it is closed; only this process sees that.
    ///
    /// Refuses what is not known, and what somebody else can write to while it is copied.
    pub fn open(tx: &mut Transaction, path: &Path, name: &str, mount_at: &Path) -> Result<Self> {
        open_as(tx, path, name, mount_at)
    }

    /// Recognises an image that is not on this host by its first bytes, `head`. It has `length` bytes, and comes by
    /// `feed`.
    ///
    /// Refuses what has to be on the host to be read.
    pub fn remote(name: &str, head: &[u8], length: u64, feed: Feed) -> Result<Self> {
        let file = in_memory(head)?;
        let (found, compression) = recognise(&descriptor(&file), name)?;
        // Nobody has signed what is decided by so far.
        let feed = Some(feed.beginning_with(head));
        let path = name.into();
        Ok(Self::from(
            match judge::of_kind(name, found, length, compression)? {
                Usable::Filesystem(superblock) => Image::Filesystem {
                    path,
                    compression,
                    superblock,
                    length,
                    claim: Claim::default(),
                    feed,
                },
                Usable::Tar => Image::Tree(Tree::Tar(path, compression, feed)),
                Usable::Squashfs => bail!(
                    "{name} is a squashfs, which has to be on this host as a whole to be read; there is no room for it, and \
                 Spool= in imgbased.conf names another place"
                ),
            },
        ))
    }

    /// Unmounts what was mounted, once nothing is read any more.
    pub fn close(&self, tx: &mut Transaction) -> Result<()> {
        self.mounted
            .as_ref()
            .map_or(Ok(()), |step| tx.undo_now(step))
    }
}

impl From<Image> for Opened {
    fn from(image: Image) -> Self {
        Self {
            image,
            mounted: None,
            before: None,
        }
    }
}

/// Opens what the user calls `name`.
fn open_as(tx: &mut Transaction, path: &Path, name: &str, mount_at: &Path) -> Result<Opened> {
    let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {name}"))?;
    if metadata.is_dir() {
        return directory(tx, path, name, mount_at);
    }
    ensure!(
        metadata.is_file() || metadata.file_type().is_block_device(),
        "{name} is neither a file, a block device nor a directory"
    );
    let length = File::open(path)
        .and_then(|file| probe::size(&file))
        .with_context(|| format!("cannot read {name}"))?;
    let (mut found, compression) = recognise(path, name)?;
    if found.is_none() && compression.is_none() {
        found = ask_libblkid(path, name)?;
    }
    match judge::of_kind(name, found, length, compression)? {
        Usable::Filesystem(superblock) => {
            let (claim, holder) = holder::claim(path, &metadata)?;
            judge::of_holder(name, holder.as_ref())?;
            let path = path.to_owned();
            Ok(Opened::from(Image::Filesystem {
                path,
                compression,
                superblock,
                length,
                claim,
                feed: None,
            }))
        }
        Usable::Squashfs => squashfs(tx, path, name, mount_at),
        Usable::Tar => Ok(Opened::from(Image::Tree(Tree::Tar(
            path.to_owned(),
            compression,
            None,
        )))),
    }
}

/// What an image holds by its first bytes, and how it is compressed.
fn recognise(path: &Path, name: &str) -> Result<(Option<Found>, Option<Compression>)> {
    let mut head = read_head(path, None)?;
    let compression = Compression::of(&head);
    if let Some(compression) = compression {
        compression.decompress().check_installed()?;
        head = read_head(path, Some(compression))?;
    }
    let found = head::recognise(&head).with_context(|| name.to_owned())?;
    Ok((found, compression))
}

/// What libblkid finds further behind, or by more than a magic number.
fn ask_libblkid(path: &Path, name: &str) -> Result<Option<Found>> {
    let Some(signature) = probe::signature(path)? else {
        return Ok(None);
    };
    let known = head::of_name(&signature.kind).map(Found::Other);
    ensure!(
        known.is_some(),
        "{name} holds {}; ext4, XFS, squashfs, a tar archive or a directory is needed",
        signature.kind
    );
    Ok(known)
}

/// The first bytes of an image, decompressed.
fn read_head(path: &Path, compression: Option<Compression>) -> Result<Vec<u8>> {
    let failed = || format!("cannot read {}", path.display());
    let mut head = Buffer::new();
    head.resize(HEAD as u64);
    let mut stream = Stream::open(path, compression)?;
    let count = stream.fill(&mut head).with_context(failed)?;
    if count < HEAD {
        // The decompressor knows why.
        stream.finish()?;
    }
    Ok(head[..count].to_vec())
}

/// A directory as a mount by itself: what is mounted below it stays out, and is named. The subvolumes of a btrfs are no
/// mounts, and stay in.
fn directory(tx: &mut Transaction, dir: &Path, name: &str, mount_at: &Path) -> Result<Opened> {
    judge::of_shape(name, &Shape::of_directory(dir)?)?;
    let real = dir
        .canonicalize()
        .with_context(|| format!("cannot read {name}"))?;
    let below = mounted_below(mounts::all()?, &real);
    if !below.is_empty() {
        log::warn!(
            "what is mounted below {name} is left out: {}",
            below.join(", ")
        );
    }
    let bind = Cmd::new("mount").args(["--bind", "-o", "ro"]).arg(real);
    let mounted = Some(mount(tx, bind, mount_at)?);
    let image = Image::Tree(Tree::Directory(mount_at.to_owned()));
    Ok(Opened {
        mounted,
        ..Opened::from(image)
    })
}

/// Mounts something at a directory, also in a dry run, which has to look at it.
fn mount(tx: &mut Transaction, command: Cmd, at: &Path) -> Result<UndoStep> {
    tx.run_always(&Cmd::new("mkdir").arg("-p").arg(at))?;
    tx.run_always(&command.arg(at))?;
    Ok(tx.on_failure(Cmd::new("umount").arg(at)))
}

/// The places below `dir` where something is mounted, without those below another one.
fn mounted_below(all: Vec<Mount>, dir: &Path) -> Vec<String> {
    let points = all.into_iter().map(|mount| mount.point);
    let mut points: Vec<PathBuf> = points
        .filter(|point| point.starts_with(dir) && point != dir)
        .collect();
    points.sort_unstable();
    points.dedup_by(|point, above| point.starts_with(above));
    let shown = |point: PathBuf| point.display().to_string();
    points.into_iter().map(shown).collect()
}

fn squashfs(tx: &mut Transaction, path: &Path, name: &str, mount_at: &Path) -> Result<Opened> {
    let command = Cmd::new("mount")
        // What it holds can come from anywhere.
        .args(["-t", "squashfs", "-o", "ro,nosuid,nodev,noexec"])
        .arg(path);
    let mounted = mount(tx, command, mount_at)
        .with_context(|| format!("{name} is a squashfs that cannot be mounted"))?;
    let mounted = Some(mounted);
    let inside = mount_at.canonicalize()?;
    for live in LIVE_ROOTS {
        if let Ok(root) = inside.join(live).canonicalize() {
            ensure!(
                root.starts_with(&inside) && root.is_file(),
                "{live} in {name} is not a file"
            );
            let Opened { image, .. } = open_as(tx, &root, &format!("{live} in {name}"), mount_at)?;
            ensure!(
                matches!(image, Image::Filesystem { .. }),
                "{live} in {name} is no filesystem"
            );
            return Ok(Opened {
                mounted,
                ..Opened::from(image)
            });
        }
    }
    judge::of_shape(name, &Shape::of_directory(mount_at)?)?;
    let image = Image::Tree(Tree::Squashfs(mount_at.to_owned()));
    Ok(Opened {
        mounted,
        ..Opened::from(image)
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_written_to_or_replaced_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let [path, other] = ["image", "other"].map(|name| dir.path().join(name));
        let write = |path: &Path| std::fs::write(path, "content").unwrap();
        write(&path);
        let before = Seen::of(&path);
        let image = || Image::Tree(Tree::Tar(path.clone(), None, None));
        let opened = || Opened::from(image()).seen(before.clone());
        opened().check_unchanged().unwrap();
        // With the same length, and the same time.
        let time = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(20));
        write(&path);
        File::open(&path).unwrap().set_modified(time).unwrap();
        let refused = || format!("{:#}", opened().check_unchanged().unwrap_err());
        assert!(refused().contains("has changed while it was read"));
        write(&other);
        std::fs::rename(&other, &path).unwrap();
        assert!(refused().contains("has changed while it was read"));
        std::fs::remove_file(&path).unwrap();
        assert!(refused().contains("has changed while it was read"));
        // A directory, or what comes from elsewhere.
        assert!(Seen::of(dir.path()).is_none());
        Opened::from(image()).check_unchanged().unwrap();
    }

    #[test]
    fn what_is_mounted_below_a_directory_is_named_once() {
        let mount = |point: &str| Mount {
            id: 1,
            parent: 1,
            point: point.into(),
        };
        let all = || -> Vec<Mount> {
            let points = [
                "/",
                "/srv",
                "/srv/x/proc",
                "/srv/x",
                "/srv/x/dev/pts",
                "/srv/x/dev",
                "/srv/x/dev-old",
            ];
            points
                .into_iter()
                .chain(["/srv/x/proc"])
                .map(mount)
                .collect()
        };
        for (dir, expected) in [
            (
                "/srv/x",
                &["/srv/x/dev", "/srv/x/dev-old", "/srv/x/proc"][..],
            ),
            ("/srv", &["/srv/x"]),
            ("/srv/x/dev", &["/srv/x/dev/pts"]),
            ("/srv/x/proc", &[]),
            ("/sr", &[]),
        ] {
            assert_eq!(mounted_below(all(), Path::new(dir)), expected, "{dir}");
        }
    }
}
