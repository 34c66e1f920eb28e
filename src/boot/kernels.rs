//! The store of kernels: copies of kernels and initramfs images on the boot partition, each stored once by
//! its content and shared by all entries that name it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

use super::entry::{BootSpec, Entry, Extra};
use super::files::Files;
use super::id;
use super::root::{self, Kernel, Root, Source};
use crate::sys::process::booted_at;
use crate::sys::transaction::Transaction;

/// The directory of the store on the boot partition.
pub const KERNELS: &str = "imgbased";
/// How many digits of the digest of a kernel or initramfs its name ends in.
const DIGITS: usize = 16;
/// What is left free after kernels were copied, for entries and menus.
const RESERVE: u64 = 1 << 20;
/// The same in files: an entry, a menu, directories, and two names of a file that is replaced.
const RESERVED_INODES: u64 = 8;

/// What is known of a layer when its kernels are looked for.
pub struct Known<'a> {
    /// The entries that it, or what it is a copy of, has had until now.
    pub entries: &'a [Entry],
    /// The kernel options, where neither its root nor an entry has any.
    pub options: &'a str,
    /// The version of the one kernel that was changed, or that is about to be removed: the entries of
    /// others stay as they are.
    pub added: Option<&'a str>,
    pub removed: Option<&'a str>,
    /// Whether it is the layer that runs.
    pub is_running: bool,
    /// Whether what the root has was made for it just now, whatever the clock says.
    pub is_made: bool,
}

/// Looks at the initramfs of a kernel version, and returns another to be used instead.
pub type Replace<'a> = dyn FnMut(&mut Transaction, &str, &Path) -> Result<Option<PathBuf>> + 'a;

/// The kernels of a root, as [`Store::kernels_of`] has found them.
pub struct Kernels {
    /// What the entries have to boot, the newest kernel first.
    specs: Vec<BootSpec>,
    files: Vec<KernelFile>,
}

/// Where a file of a kernel comes from.
enum File {
    New(PathBuf),
    /// A copy on the boot partition, by the path that entries have.
    Copied(String),
}

/// A file of a root that an entry needs on the boot partition.
struct KernelFile {
    source: PathBuf,
    target: PathBuf,
    /// Whether the partition had it, whole, when that was looked at.
    is_there: bool,
}

/// The store of a boot partition.
pub struct Store<'a> {
    pub files: &'a Files,
}

impl Store<'_> {
    /// Whether the kernel and initramfs of an entry are on the partition.
    pub fn has(&self, spec: &BootSpec) -> bool {
        let mut paths = [&spec.linux, &spec.initrd].into_iter();
        paths.all(|path| self.files.has(path))
    }

    /// Whether they are there as they were copied.
    pub fn has_whole(&self, spec: &BootSpec) -> Result<bool> {
        let is_damaged = |path: &str| is_damaged(&self.files.path_of(path));
        Ok(self.has(spec) && !is_damaged(&spec.linux)? && !is_damaged(&spec.initrd)?)
    }

    /// Looks for the kernels of a mounted root, and changes nothing yet. A kernel whose files are gone is
    /// booted from the copies that an entry has had until now. Each initramfs that the partition does not
    /// have yet is shown to `replace`, which may return another file.
    ///
    /// Refuses when the partition has no room for them.
    pub fn kernels_of(
        &self,
        tx: &mut Transaction,
        root: &Path,
        known: &Known,
        replace: &mut Replace,
    ) -> Result<Kernels> {
        let found = Root::at(root)
            .with_boot(self.files.dir())
            .running(known.is_running);
        let options = found.options()?;
        let name = found.name();
        let newest = known.entries.first().map(Entry::spec);
        let mut before = Vec::new();
        for entry in known.entries {
            let spec = entry.spec();
            if self.has_whole(&spec)? {
                before.push(spec);
            }
        }
        let mut files = Vec::new();
        let mut specs = Vec::new();
        for Kernel {
            version,
            image,
            initrd,
        } in found.kernels()
        {
            if known.removed == Some(&version) {
                continue;
            }
            let of_version = before.iter().filter(|spec| spec.version == version);
            let only = known.added.or(known.removed);
            if only.is_some_and(|only| only != version) && of_version.clone().next().is_some() {
                specs.extend(of_version.cloned());
                continue;
            }
            let before = of_version.clone().next();
            let is_right = known.is_made || known.added == Some(&version);
            let copies = |of: fn(&BootSpec) -> &str| of_version.clone().map(of).collect::<Vec<_>>();
            let image = self.choose(image, &copies(|spec| &spec.linux), is_right)?;
            let initrd = self.choose(initrd, &copies(|spec| &spec.initrd), is_right)?;
            let [linux, initrd] = if let (Some(image), Some(initrd)) = (image, initrd) {
                let mut replace = |initrd: &Path| replace(tx, &version, initrd);
                [
                    self.place("vmlinuz", &version, image, &mut files, &mut |_| Ok(None))?,
                    self.place("initrd", &version, initrd, &mut files, &mut replace)?,
                ]
            } else {
                let Some(copies) = self.copies_of(&version)? else {
                    log::warn!(
                        "Linux {version} gets no boot entry: its image or initramfs was not found"
                    );
                    continue;
                };
                copies
            };
            let like = before.or(newest.as_ref());
            let fallback = || like.map_or(known.options, |spec| &spec.options);
            specs.push(BootSpec {
                version,
                linux,
                initrd,
                options: options.clone().unwrap_or_else(|| fallback().to_owned()),
                extra: like.map_or_else(Extra::default, |spec| spec.extra.clone()),
                system: name.clone(),
            });
        }
        if specs.is_empty() && !before.is_empty() {
            log::warn!("no other kernel with an initramfs was found: the boot entries stay");
            specs = before;
        }
        ensure!(
            !specs.is_empty(),
            "no kernel with an initramfs was found: /boot/vmlinuz-VERSION or \
             /usr/lib/modules/VERSION/vmlinuz, with /boot/initrd.img-VERSION or \
             /boot/initramfs-VERSION.img"
        );
        self.check_room(files.iter().filter(|file| !file.is_there))?;
        Ok(Kernels { specs, files })
    }

    /// What an entry is to boot of a file that was found, and of the copies that entries of that version have until now, the
    /// one that boots first. What is on the partition can be of another root, and what the root has can be older than what
    /// has come up since; the copy is of this root, and has. What another entry has already is no such file, nor is one of
    /// which it is known that it `is_right`.
    fn choose(
        &self,
        found: Option<Source>,
        copies: &[&str],
        is_right: bool,
    ) -> Result<Option<File>> {
        let Some((copy, others)) = copies.split_first() else {
            return Ok(found.map(|found| File::New(found.path)));
        };
        let is_of_other = |path: &Path| -> Result<bool> {
            if others.is_empty() {
                return Ok(false);
            }
            let digest = digest(path)?;
            Ok(others
                .iter()
                .any(|other| other.ends_with(&digest[..DIGITS])))
        };
        Ok(Some(match found.filter(|found| found.is_own) {
            Some(found)
                if is_right
                    || self.is_newer(&found.path, &[*copy])?
                        && !self.is_of_other_layer(&found.path)?
                    || is_of_other(&found.path)? =>
            {
                File::New(found.path)
            }
            _ => File::Copied((*copy).to_owned()),
        }))
    }

    /// The versions of kernels of the running root whose image or initramfs is newer than all copies that these
    /// entries boot, and another one, or which have no entry.
    pub fn changed(&self, root: &Root, entries: &[Entry]) -> Result<Vec<String>> {
        let mut changed = Vec::new();
        for kernel in root.kernels() {
            let of_version = || entries.iter().filter(|e| e.version == kernel.version);
            let images: Vec<&str> = of_version().map(|e| e.linux.as_str()).collect();
            let initrds: Vec<&str> = of_version().map(|e| e.initrd.as_str()).collect();
            // What the partition hides of the root's own /boot is not seen here.
            let has_both = kernel.image.is_some() && kernel.initrd.is_some();
            let is_newer = |source: Option<&Source>, copies: &[&str]| -> Result<bool> {
                let source = source.filter(|_| has_both || !copies.is_empty());
                let Some(Source { path, .. }) = source else {
                    return Ok(false);
                };
                Ok(self.is_newer(path, copies)?
                    && (copies.is_empty() || !self.is_of_other_layer(path)?))
            };
            if is_newer(kernel.image.as_ref(), &images)?
                || is_newer(kernel.initrd.as_ref(), &initrds)?
            {
                changed.push(kernel.version);
            }
        }
        Ok(changed)
    }

    /// Whether another layer has left a file on the partition, which all share: there is a copy of it already, and what runs
    /// has not written it.
    fn is_of_other_layer(&self, source: &Path) -> Result<bool> {
        let time = fs::metadata(source).and_then(|file| file.modified()).ok();
        if time
            .zip(booted_at())
            .is_none_or(|(time, booted)| time >= booted)
        {
            return Ok(false);
        }
        let digest = digest(source)?;
        let is_copy = |path: &PathBuf| path.to_string_lossy().ends_with(&digest[..DIGITS]);
        let is_of_other = self.files.list(KERNELS)?.iter().any(is_copy);
        if is_of_other {
            log::info!("{} is of another layer", source.display());
        }
        Ok(is_of_other)
    }

    /// Whether a file is newer than all of these copies, and its content is that of none. Most files are older,
    /// which costs no reading.
    fn is_newer(&self, source: &Path, copies: &[&str]) -> Result<bool> {
        let time = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
        let newest = copies
            .iter()
            .filter_map(|copy| time(&self.files.path_of(copy)));
        if newest.max() >= time(source) {
            return Ok(false);
        }
        let digest = digest(source)?;
        Ok(!copies.iter().any(|copy| copy.ends_with(&digest[..DIGITS])))
    }

    /// Copies kernels to their places on the boot partition, unless they are there, and returns what the
    /// entries have to boot, the newest kernel first.
    ///
    /// Refuses when the partition has no room, before anything is written, or when another command has
    /// removed a copy that an entry was to keep.
    pub fn store(&self, tx: &mut Transaction, kernels: Kernels) -> Result<Vec<BootSpec>> {
        let Kernels { specs, mut files } = kernels;
        files.retain(|file| !(file.is_there && file.target.exists()));
        self.check_room(&files)?;
        tx.create_dir(&self.files.dir().join(KERNELS))?;
        for file in &files {
            tx.copy(&file.source, &file.target, 0o600)?;
            ensure!(
                tx.is_dry_run() || !is_damaged(&file.target)?,
                "{} was changed while it was copied; try it again when nothing writes there",
                file.source.display()
            );
        }
        tx.flush(self.files.dir())?;
        let is_whole = |spec: &BootSpec| self.has(spec);
        ensure!(
            tx.is_dry_run() || specs.iter().all(is_whole),
            "another command has removed a kernel from {}; try it again",
            self.files.dir().display()
        );
        Ok(specs)
    }

    /// Whether an image and an initramfs of that kernel version are on the partition, whatever root they are of.
    pub fn has_files_of(&self, version: &str) -> Result<[bool; 2]> {
        let is_there = |names: &[String]| {
            let mut paths = names.iter().map(|name| self.files.dir().join(name));
            paths.any(|path| path.is_file())
        };
        let [image, initrd] = root::names_of(version);
        let found = [is_there(&image), is_there(&initrd)];
        if found == [true, true] || self.copies_of(version)?.is_none() {
            return Ok(found);
        }
        Ok([true, true])
    }

    /// The kernel and initramfs of that version which are on the partition, whole, whatever entry they were
    /// copied for; the latest of several.
    fn copies_of(&self, version: &str) -> Result<Option<[String; 2]>> {
        let files = self.files.list(KERNELS)?;
        let latest = |kind: &str| -> Result<Option<String>> {
            let begin = format!("{kind}-{version}-");
            let mut found = Vec::new();
            for path in &files {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let end = name.strip_prefix(&begin);
                if end.is_some_and(|end| end.len() == DIGITS && !end.contains('-'))
                    && !is_damaged(path)?
                {
                    let time = fs::metadata(path).and_then(|file| file.modified());
                    found.push((time.ok(), format!("/{KERNELS}/{name}")));
                }
            }
            Ok(found.into_iter().max().map(|(_, path)| path))
        };
        Ok(latest("vmlinuz")?.zip(latest("initrd")?).map(Into::into))
    }

    /// The path that an entry has to name for a file of a kernel, which is added to `files`.
    fn place(
        &self,
        kind: &str,
        version: &str,
        file: File,
        files: &mut Vec<KernelFile>,
        replace: &mut dyn FnMut(&Path) -> Result<Option<PathBuf>>,
    ) -> Result<String> {
        let source = match file {
            File::New(source) => source,
            File::Copied(path) => return Ok(path),
        };
        let place = |source: &Path| -> Result<(String, PathBuf, bool)> {
            let digest = digest(source)?;
            let path = format!("/{KERNELS}/{kind}-{version}-{}", &digest[..DIGITS]);
            let target = self.files.path_of(&path);
            // A file of that name with other content was cut off or damaged.
            let is_there = target.exists() && self::digest(&target)? == digest;
            Ok((path, target, is_there))
        };
        let (mut path, mut target, mut is_there) = place(&source)?;
        let mut source = source;
        if !is_there && let Some(other) = replace(&source)? {
            source = other;
            (path, target, is_there) = place(&source)?;
        }
        files.push(KernelFile {
            source,
            target,
            is_there,
        });
        Ok(path)
    }

    /// Refuses a boot partition without room for another entry.
    pub fn check_reserve(&self) -> Result<()> {
        self.check_room(&[])
    }

    /// Refuses a boot partition without room for this file and another entry.
    pub fn check_room_for(&self, source: &Path) -> Result<()> {
        self.check_room(&[KernelFile {
            source: source.to_owned(),
            target: PathBuf::new(),
            is_there: false,
        }])
    }

    /// Refuses a boot partition without room for copies of these files.
    fn check_room<'a>(&self, files: impl IntoIterator<Item = &'a KernelFile>) -> Result<()> {
        let (mut needed, mut inodes) = (RESERVE, RESERVED_INODES);
        for KernelFile { source, .. } in files {
            needed += fs::metadata(source)
                .with_context(|| format!("cannot look at {}", source.display()))?
                .len();
            inodes += 1;
        }
        let stat = statvfs(self.files.dir())?;
        let dir = self.files.dir().display();
        let free = stat.blocks_available() * stat.fragment_size();
        ensure!(
            free >= needed,
            "{dir} has {} KiB free, {} KiB are needed",
            free >> 10,
            needed >> 10
        );
        // FAT and others have no fixed number of inodes, and tell none.
        let files = stat.files_available();
        ensure!(
            stat.files() == 0 || files >= inodes,
            "{dir} has {files} inodes free, {inodes} are needed"
        );
        Ok(())
    }

    /// Our copies of kernels that neither `written` nor any entry file but those of `removed` mentions.
    /// Entries that others wrote count as well.
    pub fn unused(&self, removed: &[Entry], written: &[Entry]) -> Result<Vec<PathBuf>> {
        let is_gone = |path: &Path| {
            let mut gone = removed.iter().chain(written);
            gone.any(|e| id::of_file(path) == Some(&e.id))
        };
        let mut texts: Vec<String> = written.iter().map(Entry::render).collect();
        for path in self.files.entries()? {
            if !is_gone(&path) {
                let text =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                texts.push(String::from_utf8_lossy(&text).into_owned());
            }
        }
        let mut kernels = self.files.list(KERNELS)?;
        kernels.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !texts.iter().any(|text| text.contains(&*name))
        });
        Ok(kernels)
    }

    /// Our copies of kernels whose content is not what their names say.
    pub fn damaged(&self) -> Result<Vec<PathBuf>> {
        let mut damaged = Vec::new();
        for path in self.files.list(KERNELS)? {
            if is_damaged(&path)? {
                damaged.push(path);
            }
        }
        Ok(damaged)
    }
}

/// Whether the content of one of our copies of kernels is not what its name says, which ends in the begin
/// of its digest.
fn is_damaged(path: &Path) -> Result<bool> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let wanted = name.rsplit('-').next().unwrap_or_default();
    Ok(wanted.len() == DIGITS && !digest(path)?.starts_with(wanted))
}

/// SHA-256 of a file's content, as hexadecimal digits.
fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    fs::File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", hash.finalize()))
}
