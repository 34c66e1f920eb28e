//! Trees of files, which a base's filesystem is filled with: a directory, or a tar archive.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Error, Result, ensure};

use super::judge::Kernel;
use super::layers::Layers;
use super::stream::{Compression, Feed, Feeding};
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;
use crate::sys::mounts::used;
use crate::sys::progress::Progress;
use crate::tree::{Below, Dir, Kind, Place, walk};

/// Files to be copied, with owners, modes, attributes, links and holes.
#[derive(Debug)]
pub enum Tree {
    /// A mount of it by itself, so that nothing else is mounted below it: what is on other filesystems is left out, but
    /// not the subvolumes of a btrfs.
    Directory(PathBuf),
    /// The same, of a squashfs: that does not tell holes from zeros.
    Squashfs(PathBuf),
    /// The feed brings it if it is not on this host. The path is its address then.
    Tar(PathBuf, Option<Compression>, Option<Feed>),
    /// Of an image for containers.
    Layers(Layers),
    /// One that is known by its table of contents. The caller knows what there is of its files, and writes them.
    Listed(Content, Shape),
}

/// What a tree takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// Of all files, in bytes; hard links count once, holes do not.
    pub bytes: u64,
    pub files: u64,
}

impl Content {
    /// The smallest filesystem for it, in bytes: an eighth more, an inode for each 16 KiB as
    /// mke2fs(8) makes them, and a journal.
    pub fn least_size(self) -> u64 {
        let for_files = self.files.saturating_mul(16 << 10);
        let needed = self.bytes.max(for_files);
        let size = needed.saturating_add(needed / 8).saturating_add(64 << 20);
        // In whole MiB.
        size >> 20 << 20
    }
}

/// Where a root has directories with the names of kernel versions.
const MODULES: &[u8] = b"lib/modules/";

/// What is at the top of a tree, and its kernels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub has_usr: bool,
    pub has_etc: bool,
    /// Whether it has the files of an image of a container.
    pub is_container: bool,
    /// A directory that looks as the top should.
    pub below: Option<String>,
    /// Whether each of the directories has a `usr` and an `etc`.
    tops: BTreeMap<Vec<u8>, (bool, bool)>,
    /// Whether there are names of an image and of an initramfs of each kernel version. Links can lead there from
    /// anywhere, so where they lie does not count.
    kernels: BTreeMap<Vec<u8>, [bool; 2]>,
}

impl Shape {
    /// More directories than this at the top are no root filesystem.
    const TOPS_MAX: usize = 1000;
    /// The same for kernels.
    const KERNELS_MAX: usize = 1000;

    pub fn of_directory(dir: &Path) -> Result<Self> {
        let failed = || format!("cannot read {}", dir.display());
        let mut shape = Self::default();
        for entry in fs::read_dir(dir).with_context(failed)? {
            let name = entry.with_context(failed)?.file_name();
            let is_dir = |inside: &str| dir.join(&name).join(inside).is_dir();
            match name.as_bytes() {
                b"usr" | b"etc" if !is_dir("") => continue,
                name => shape.see(name),
            }
            for inside in ["usr", "etc"].into_iter().filter(|inside| is_dir(inside)) {
                shape.see(&[name.as_bytes(), b"/", inside.as_bytes()].concat());
            }
        }
        Ok(shape)
    }

    /// The kernels whose names were seen.
    pub fn kernels(&self) -> Vec<Kernel> {
        let kernel = |(version, &[has_image, has_initramfs]): (&Vec<u8>, &[bool; 2])| Kernel {
            version: String::from_utf8_lossy(version).into_owned(),
            has_image,
            has_initramfs,
        };
        self.kernels.iter().map(kernel).collect()
    }

    /// Takes the name of a file in the tree into account.
    pub fn see(&mut self, name: &[u8]) {
        if let Some((version, [is_image, is_initramfs])) = kernel_of(name) {
            let is_known = self.kernels.contains_key(version);
            if is_known || self.kernels.len() < Self::KERNELS_MAX {
                let has = self.kernels.entry(version.to_owned()).or_default();
                *has = [has[0] || is_image, has[1] || is_initramfs];
            }
        }
        let parts = name.split(|byte| *byte == b'/');
        let mut parts = parts.filter(|part| !part.is_empty() && *part != b".");
        let Some(top) = parts.next() else { return };
        match top {
            b"usr" => self.has_usr = true,
            b"etc" => self.has_etc = true,
            b"oci-layout" | b"manifest.json" => self.is_container = true,
            _ => {
                let inside = parts.next().unwrap_or_default();
                let (is_usr, is_etc) = (inside == b"usr", inside == b"etc");
                if self.below.is_some() || !(is_usr || is_etc) || self.tops.len() > Self::TOPS_MAX {
                    return;
                }
                let has = self.tops.entry(top.to_owned()).or_default();
                *has = (has.0 || is_usr, has.1 || is_etc);
                if *has == (true, true) {
                    self.below = Some(String::from_utf8_lossy(top).into_owned());
                }
            }
        }
    }
}

/// The kernel version that a file is of, and whether it is an image or an initramfs of that. A part of its modules is
/// neither.
fn kernel_of(name: &[u8]) -> Option<(&[u8], [bool; 2])> {
    let mut parts = name
        .rsplit(|byte| *byte == b'/')
        .skip_while(|part| part.is_empty());
    let last = parts.next()?;
    let between = |begin: &[u8], end: &[u8]| last.strip_prefix(begin)?.strip_suffix(end);
    let (version, is) = if let Some(version) = between(b"vmlinuz-", b"") {
        (version, [true, false])
    } else if let Some(version) =
        between(b"initrd.img-", b"").or_else(|| between(b"initramfs-", b".img"))
    {
        (version, [false, true])
    } else if last == b"vmlinuz" {
        (parts.next()?, [true, false])
    } else {
        let at = name
            .windows(MODULES.len())
            .position(|part| part == MODULES)?;
        let below = &name[at + MODULES.len()..];
        (below.split(|byte| *byte == b'/').next()?, [false, false])
    };
    version.first()?.is_ascii_digit().then_some((version, is))
}

impl Tree {
    /// Reads through the tree. Refuses an archive that is damaged.
    pub fn measure(&self, interrupt: &Interrupt) -> Result<(Content, Shape)> {
        match self {
            Self::Directory(dir) | Self::Squashfs(dir) => Ok((
                measure_directory(dir, interrupt)?,
                Shape::of_directory(dir)?,
            )),
            Self::Tar(path, compression, feed) => {
                measure_tar(path, *compression, feed.as_ref(), interrupt)
            }
            Self::Layers(layers) => layers.measure(interrupt),
            Self::Listed(content, shape) => Ok((*content, shape.clone())),
        }
    }

    /// A line for a shell that copies the tree into the directory `to`.
    pub fn copy_line(&self, to: &Path) -> String {
        match self {
            Self::Directory(dir) => copy(dir, "auto", to).to_string(),
            Self::Squashfs(dir) => copy(dir, "always", to).to_string(),
            Self::Tar(path, compression, _) => {
                let path = crate::sys::cmd::quote(path.as_os_str());
                format!("{} < {path}", extract(*compression, to))
            }
            Self::Layers(layers) => layers.copy_line(to),
            Self::Listed(..) => format!("# {} gets what the image lists", to.display()),
        }
    }

    /// The directory with the files, which an archive has not. With that, whether zeros in them are holes.
    pub fn dir(&self) -> Option<(&Path, bool)> {
        match self {
            Self::Directory(dir) => Some((dir, false)),
            Self::Squashfs(dir) => Some((dir, true)),
            Self::Tar(..) | Self::Layers(_) | Self::Listed(..) => None,
        }
    }

    /// A line for a shell that makes the filesystem at `to` hold the tree, and nothing else. What of it is the same
    /// already, it writes again.
    pub fn replace_line(&self, to: &Path) -> String {
        let remove = Cmd::new("find")
            .arg(to)
            .args(["-mindepth", "1", "!", "-path"])
            .arg(to.join("lost+found"))
            .arg("-delete");
        format!("{remove} && {}", self.copy_line(to))
    }

    /// Copies the tree into the root `to` of an empty filesystem.
    ///
    /// Refuses when it takes more than `room` bytes.
    pub fn copy(
        &self,
        to: &Path,
        room: u64,
        interrupt: &Interrupt,
        progress: &mut Progress,
    ) -> Result<()> {
        let (command, (input, feeding)) = match self {
            Self::Directory(dir) => (copy(dir, "auto", to), (Stdio::null(), None)),
            Self::Squashfs(dir) => (copy(dir, "always", to), (Stdio::null(), None)),
            Self::Tar(path, compression, feed) => {
                (extract(*compression, to), input(path, feed.as_ref())?)
            }
            Self::Layers(layers) => return layers.copy(to, room, interrupt, progress),
            Self::Listed(..) => return Err(Error::msg("of its files only the names are here")),
        };
        let empty = used(to)?;
        let running = command.start(input, Stdio::null())?;
        let ran = running.wait_with(|| {
            interrupt.check()?;
            let done = used(to)?.saturating_sub(empty);
            progress.show(done);
            ensure!(
                done <= room,
                "the thin pool has no room: the image needs more than the {} MiB that are left",
                room >> 20
            );
            Ok(())
        });
        let said = end(ran, feeding)?;
        if let Some(warning) = first_and_count(&said) {
            log::warn!("not all of the image is as it was: {warning}");
        }
        Ok(())
    }
}

/// Copies a directory. `sparse` says what becomes of zeros.
fn copy(dir: &Path, sparse: &str, to: &Path) -> Cmd {
    Cmd::new("cp")
        .args(["--recursive", "--no-dereference"])
        .arg("--preserve=mode,ownership,timestamps,links,xattr")
        .arg(format!("--sparse={sparse}"))
        .arg("--no-target-directory")
        .args([dir, to])
}

/// Unpacks an archive that comes from standard input.
pub(super) fn extract(compression: Option<Compression>, to: &Path) -> Cmd {
    tar("--extract", compression)
        .args(["--numeric-owner", "--same-owner", "--preserve-permissions"])
        // With --xattrs alone the labels of SELinux that `tar --selinux` has packed are left out.
        .args(["--xattrs", "--xattrs-include=*", "--acls", "--selinux"])
        // A directory gets its time when all that is in it is there.
        .args(["--sparse", "--delay-directory-restore"])
        .arg("--directory")
        .arg(to)
}

/// What a program says although it has succeeded: its first line, and how many there are. Nothing if it says nothing
/// that counts.
fn first_and_count(said: &str) -> Option<String> {
    // What tar(1) does to names that begin with a slash is right here, and so are times that it wonders about.
    let is_right = |line: &str| line.contains("Removing leading") || line.contains(" time stamp ");
    let mut lines = said
        .lines()
        .filter(|line| !line.is_empty() && !is_right(line));
    let first = lines.next()?;
    Some(match lines.count() {
        0 => first.to_owned(),
        more => format!("{first}; and {more} more of this kind"),
    })
}

fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot read {}", path.display()))
}

/// An archive as the standard input of a program, and what feeds that if it is not on this host.
fn input(path: &Path, feed: Option<&Feed>) -> Result<(Stdio, Option<Feeding>)> {
    let Some(feed) = feed else {
        return Ok((open(path)?.into(), None));
    };
    let (input, feeding) = feed.start()?;
    Ok((input, Some(feeding)))
}

/// What became of a program that may have been fed.
fn end<T>(ran: Result<T>, feeding: Option<Feeding>) -> Result<T> {
    match feeding {
        Some(feeding) => feeding.end(ran),
        None => ran,
    }
}

fn tar(action: &str, compression: Option<Compression>) -> Cmd {
    let cmd = Cmd::new("tar").args([action, "--file=-"]);
    match compression {
        Some(compression) => cmd.arg(format!("--{}", compression.program())),
        None => cmd,
    }
}

/// What is mounted in it is no part of it.
fn measure_directory(dir: &Path, interrupt: &Interrupt) -> Result<Content> {
    let root = Dir::root(dir)?;
    let mut content = Content {
        bytes: root.stat()?.used,
        files: 1,
    };
    let mut named_before = BTreeSet::new();
    walk(&[Some(root)], None, &mut |visit| {
        interrupt.check()?;
        for Place { stat, .. } in visit.places.iter().flatten() {
            let has_one_name = stat.kind == Kind::Dir || stat.links == 1;
            if has_one_name || named_before.insert(stat.id) {
                content.bytes += stat.used;
                content.files += 1;
            }
        }
        Ok(Below::Visit)
    })?;
    Ok(content)
}

/// What tar(1) lists at the end of an archive, and where one has no end: it was cut off between two files. Then tar
/// takes it for whole.
const END: &[u8] = b"** Block of NULs **";
const NO_END: &[u8] = b"** End of File **";

/// What follows the number of a block in a line of `tar --list --block-number`.
fn after_block(line: &[u8]) -> &[u8] {
    let number = line.strip_prefix(b"block ");
    let digits = number.map_or(0, |rest| {
        rest.iter().take_while(|c| c.is_ascii_digit()).count()
    });
    let rest = number.and_then(|rest| rest[digits..].strip_prefix(b": "));
    rest.unwrap_or(line)
}

/// The names are counted, and tar(1) tells how many bytes it has read.
fn measure_tar(
    path: &Path,
    compression: Option<Compression>,
    feed: Option<&Feed>,
    interrupt: &Interrupt,
) -> Result<(Content, Shape)> {
    let (input, feeding) = input(path, feed)?;
    let cmd = tar("--list", compression);
    let cmd = cmd.args(["--totals", "--block-number", "--quoting-style=escape"]);
    let mut running = cmd.start(input, Stdio::piped())?;
    let names = running.stdout().context("tar writes to a pipe")?;
    let mut files = 0;
    let mut shape = Shape::default();
    let mut last = Vec::new();
    for line in BufReader::new(names).split(b'\n') {
        interrupt.check()?;
        let line = line.context("cannot read what tar writes")?;
        let name = after_block(&line);
        last.clear();
        last.extend_from_slice(name);
        if ![END, NO_END].contains(&name) {
            shape.see(name);
            files += 1;
        }
    }
    let ran = running
        .wait()
        .with_context(|| format!("{} cannot be read as a tar archive", path.display()));
    let stderr = end(ran, feeding)?;
    ensure!(
        last != NO_END,
        "the image is truncated: the archive {} has no end",
        path.display()
    );
    let bytes = stderr
        .lines()
        .find_map(|line| line.strip_prefix("Total bytes read: ")?.split(' ').next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("unexpected output of tar: {stderr:?}"))?;
    Ok((Content { bytes, files }, shape))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn sample() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let script = "mkdir etc usr; echo text > etc/file; ln etc/file usr/hard; ln -s ../etc usr/soft; \
            chmod 4751 etc/file; setfattr -n user.x -v y etc/file 2>/dev/null; \
            head -c 300000 /dev/urandom > usr/data; truncate -s 40M usr/sparse";
        let script = format!("cd {} && {script}; true", dir.path().display());
        Cmd::new("sh").args(["-c", &script]).run().unwrap();
        dir
    }

    fn check_copy(tree: &Tree) {
        let (content, shape) = tree.measure(&Interrupt::default()).unwrap();
        assert!(shape.has_usr && shape.has_etc, "{shape:?}");
        assert!((6..=9).contains(&content.files), "{content:?}");
        assert!(
            content.bytes > 300_000 && content.bytes < 2_000_000,
            "{content:?}"
        );
        let to = tempfile::tempdir().unwrap();
        let mut progress = Progress::new("", 1);
        tree.copy(to.path(), u64::MAX, &Interrupt::default(), &mut progress)
            .unwrap();
        let file = fs::metadata(to.path().join("etc/file")).unwrap();
        assert_eq!(
            file.ino(),
            fs::metadata(to.path().join("usr/hard")).unwrap().ino()
        );
        assert_eq!(file.mode() & 0o7777, 0o4751);
        assert_eq!(
            fs::read_link(to.path().join("usr/soft")).unwrap(),
            Path::new("../etc")
        );
        let sparse = fs::metadata(to.path().join("usr/sparse")).unwrap();
        assert_eq!(sparse.len(), 40 << 20);
        assert!(sparse.blocks() < 100);
    }

    #[test]
    fn an_archive_that_is_cut_off_between_two_files_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cd $0; mkdir usr etc; echo text >usr/a; echo text >etc/b; tar -cf whole usr etc; \
            head -c 1536 whole >cut; zstd -q whole cut; head -c 3584 whole >short";
        let script = Cmd::new("sh").args(["-ec", script]).arg(dir.path());
        script.run().unwrap();
        let measure = |name: &str, compression| {
            let path = dir.path().join(name);
            measure_tar(&path, compression, None, &Interrupt::default())
        };
        for (name, compression) in [("cut", None), ("cut.zst", Some(Compression::Zstd))] {
            let error = measure(name, compression).unwrap_err().to_string();
            assert!(error.contains("truncated"), "{error}");
        }
        for (name, compression) in [
            ("whole", None),
            ("whole.zst", Some(Compression::Zstd)),
            // Half of its end is there.
            ("short", None),
        ] {
            let (content, shape) = measure(name, compression).unwrap();
            assert_eq!(content.files, 4, "{name}");
            assert!(shape.has_usr && shape.has_etc, "{name}");
        }
    }

    #[test]
    fn what_a_dry_run_prints_leaves_what_is_in_the_tree() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("kept")).unwrap();
        fs::write(from.path().join("kept/new file"), "new").unwrap();
        for dir in ["kept/gone", "lost+found/inside", "-gone"] {
            fs::create_dir_all(to.path().join(dir)).unwrap();
            fs::write(to.path().join(dir).join("file"), "old").unwrap();
        }
        let line = Tree::Directory(from.path().to_owned()).replace_line(to.path());
        let shell = std::process::Command::new("sh")
            .args(["-ec", &line])
            .status();
        assert!(shell.unwrap().success(), "{line}");
        let names = |dir: &str| {
            let names = fs::read_dir(to.path().join(dir)).unwrap();
            let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(""), ["kept", "lost+found"]);
        assert_eq!(names("kept"), ["new file"]);
        assert!(names("lost+found").is_empty());
    }

    #[test]
    fn directories_are_copied() {
        let dir = sample();
        check_copy(&Tree::Directory(dir.path().to_owned()));
    }

    #[test]
    fn archives_are_copied_and_damaged_ones_refused() {
        let dir = sample();
        let packed = tempfile::tempdir().unwrap();
        for (option, compression) in [
            ("--no-auto-compress", None),
            ("--gzip", Some(Compression::Gzip)),
            ("--xz", Some(Compression::Xz)),
            ("--zstd", Some(Compression::Zstd)),
        ] {
            let path = packed.path().join("archive");
            let pack = Cmd::new("tar").args(["--create", "--sparse", option, "--file"]);
            pack.arg(&path)
                .arg("--directory")
                .arg(dir.path())
                .arg(".")
                .run()
                .unwrap();
            check_copy(&Tree::Tar(path.clone(), compression, None));
            let elsewhere = path.clone();
            let feed = Feed::new(move || Ok(Box::new(open(&elsewhere)?)));
            check_copy(&Tree::Tar("https://h/x".into(), compression, Some(feed)));
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() * 2 / 3]).unwrap();
            let damaged = Tree::Tar(path, compression, None).measure(&Interrupt::default());
            assert!(damaged.is_err(), "{option}");
        }
    }

    #[test]
    fn an_archive_cannot_write_outside() {
        let dir = tempfile::tempdir().unwrap();
        let (archive, root) = (dir.path().join("archive"), dir.path().join("a/b"));
        fs::create_dir_all(&root).unwrap();
        fs::write(dir.path().join("evil"), "x").unwrap();
        let pack = Cmd::new("tar").args(["--create", "--absolute-names", "--directory"]);
        pack.arg(&root)
            .arg("--file")
            .arg(&archive)
            .arg("../../evil")
            .run()
            .unwrap();
        fs::remove_file(dir.path().join("evil")).unwrap();
        let tree = Tree::Tar(archive, None, None);
        let copied = tree.copy(
            &root,
            u64::MAX,
            &Interrupt::default(),
            &mut Progress::new("", 1),
        );
        assert!(copied.unwrap_err().to_string().contains("'..'"));
        assert!(!dir.path().join("evil").exists());
    }

    #[test]
    fn the_shape_of_a_directory_is_that_of_an_archive_of_it() {
        let dir = tempfile::tempdir().unwrap();
        for (script, expected) in [
            ("mkdir usr etc", (true, true, None)),
            ("rmdir etc; touch etc", (true, false, None)),
            ("rm etc; ln -s usr etc", (true, true, None)),
            (
                "rm -r usr etc; mkdir -p a/usr rootfs/usr rootfs/etc",
                (false, false, Some("rootfs")),
            ),
            ("rm -r rootfs; touch a/etc", (false, false, None)),
        ] {
            let script = format!("cd {} && {script}", dir.path().display());
            Cmd::new("sh").args(["-c", &script]).run().unwrap();
            let shape = Shape::of_directory(dir.path()).unwrap();
            let got = (shape.has_usr, shape.has_etc, shape.below.as_deref());
            assert_eq!(got, expected, "{script}");
        }
    }

    #[test]
    fn kernels_are_seen_wherever_links_can_lead_to_them() {
        for (names, expected) in [
            (
                &["etc/passwd", "usr/bin/sh", "boot/", "boot/grub/grub.cfg"][..],
                "",
            ),
            (
                &["./boot/vmlinuz-6.1", "./boot/initrd.img-6.1"],
                "6.1:image+initramfs",
            ),
            (
                &["usr/boot/vmlinuz-6.1", "srv/initramfs-6.1.img"],
                "6.1:image+initramfs",
            ),
            (
                &["/boot/vmlinuz-6.1", "boot/initrd.img-6.2"],
                "6.1:image 6.2:initramfs",
            ),
            (&["usr/lib/modules/6.9.1/vmlinuz"], "6.9.1:image"),
            (
                &[
                    "lib/modules/",
                    "lib/modules/6.1/",
                    "usr/lib/modules/6.2/kernel/fs/ext4.ko",
                ],
                "6.1: 6.2:",
            ),
            (
                &[
                    "boot/vmlinuz",
                    "vmlinuz",
                    "boot/vmlinuz-",
                    "boot/vmlinuz-rescue",
                ],
                "",
            ),
            (
                &["boot/initramfs-6.1", "boot/initrd.img", "usr/modules/6.1/x"],
                "",
            ),
        ] {
            let mut shape = Shape::default();
            for name in names {
                shape.see(name.as_bytes());
            }
            let words = shape.kernels().into_iter().map(|kernel| {
                let files = [
                    (kernel.has_image, "image"),
                    (kernel.has_initramfs, "initramfs"),
                ];
                let files = files
                    .into_iter()
                    .filter_map(|(has, file)| has.then_some(file));
                format!("{}:{}", kernel.version, files.collect::<Vec<_>>().join("+"))
            });
            assert_eq!(words.collect::<Vec<_>>().join(" "), expected, "{names:?}");
        }
        let mut shape = Shape::default();
        for number in 0..2000 {
            shape.see(format!("usr/lib/modules/{number}/x").as_bytes());
        }
        assert_eq!(shape.kernels().len(), Shape::KERNELS_MAX);
    }

    #[test]
    fn what_a_program_complains_of_is_told_in_short() {
        for (said, expected) in [
            ("", None),
            ("tar: Removing leading `/' from member names\n", None),
            (
                "tar: SELinux support is not available\n",
                Some("tar: SELinux support is not available"),
            ),
            (
                "tar: ./x: time stamp 2030-01-01 00:00:00.5 is 9 s in the future\n",
                None,
            ),
            ("a\n\nb\nc\n", Some("a; and 2 more of this kind")),
        ] {
            assert_eq!(first_and_count(said).as_deref(), expected);
        }
    }
}
