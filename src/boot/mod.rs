//! The boot partition: entries, menus, kernels and the default.

mod counting;
pub mod entry;
mod grub;
mod grub_defaults;
pub mod grubenv;
mod loader;
pub mod system;
mod systemd_boot;
pub mod trial;

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statvfs::{FsFlags, statvfs};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::model::name::{LvName, VgName};
use crate::sys::cmd::{Cmd, quote};
use crate::sys::files::{is_temporary, read_if_there};
use crate::sys::mounts;
use crate::sys::transaction::Transaction;
use entry::{Entry, Payload};
use grubenv::GrubEnv;
use loader::{Kind, Loader};
use system::{Kernel, System};
use trial::Trial;

/// Directories on the boot partition.
const ENTRIES: &str = "loader/entries";
const KERNELS: &str = "imgbased";
/// Variables of grubenv: the id of the entry that boots, and of one that boots once, before it.
const DEFAULT: &str = "saved_entry";
const ONCE: &str = "next_entry";
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
}

/// Looks at the initramfs of a kernel version, and returns another to be used instead.
pub type Replace<'a> = dyn FnMut(&mut Transaction, &str, &Path) -> Result<Option<PathBuf>> + 'a;

/// The kernels of a root, as [`BootPartition::kernels_of`] has found them.
pub struct Kernels {
    /// What the entries have to boot, the newest kernel first.
    payloads: Vec<Payload>,
    files: Vec<KernelFile>,
}

/// A file of a root that an entry needs on the boot partition.
struct KernelFile {
    source: PathBuf,
    target: PathBuf,
    /// Whether the partition had it, whole, when that was looked at.
    is_there: bool,
}

/// The boot partition of a host, `$BOOT` of the Boot Loader Specification.
#[derive(Clone)]
pub struct BootPartition {
    dir: PathBuf,
    vg: VgName,
    pub loader: Loader,
}

/// What boots, by the names of layers and bases of our group.
#[derive(Default)]
pub struct Selection {
    pub default: Option<String>,
    /// Boots at the next start only.
    pub once: Option<String>,
    /// Boots until it has come up, or its tries are used up.
    pub trial: Option<OnTrial>,
}

/// A layer on trial.
#[derive(Clone, Serialize)]
pub struct OnTrial {
    pub name: String,
    pub tries: u32,
    pub tried: u32,
}

impl fmt::Display for OnTrial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tried {} of {} times", self.tried, self.tries)
    }
}

impl BootPartition {
    /// The boot partition mounted at `root`/boot, for the layers of the group `vg`.
    ///
    /// Refuses one that is not mounted: what was written then would be seen by one layer only.
    pub fn at(root: &Path, vg: &VgName) -> Result<Self> {
        let dir = root.join("boot");
        ensure!(
            mounts::is_mount_point(&dir)?,
            "no boot partition is mounted at {}: layers share one, mount it there",
            dir.display()
        );
        Self::in_dir(&dir, root, vg)
    }

    /// The boot partition whose files are in `dir`, mounted or not, of the host whose root is at `root`.
    pub fn in_dir(dir: &Path, root: &Path, vg: &VgName) -> Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            vg: vg.clone(),
            loader: Loader::detect(root, dir)?,
        })
    }

    /// Refuses a boot partition that cannot be written to, that the loader does not read, or that has no
    /// room for another entry.
    pub fn check_ready(&self) -> Result<()> {
        let stat =
            statvfs(&self.dir).with_context(|| format!("cannot look at {}", self.dir.display()))?;
        ensure!(
            !stat.flags().contains(FsFlags::ST_RDONLY),
            "{} is mounted read-only",
            self.dir.display()
        );
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            loader.check_reads(&self.dir)?;
        }
        self.check_room(&[])
    }

    /// All entries that boot a layer or a base, in the order of the menu. Those of others are
    /// passed over.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        self.entries_with(|_| true)
    }

    /// Those whose id is wanted.
    fn entries_with(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for path in self.files_in(ENTRIES)? {
            let Some(id) = entry_id(&path).filter(|id| is_wanted(id)) else {
                continue;
            };
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            match Entry::parse(id, &String::from_utf8_lossy(&text)) {
                Ok(entry) => entries.extend(entry),
                Err(error) => log::warn!("{error:#}"),
            }
        }
        Entry::sort(&mut entries);
        // One that was interrupted while it was renamed has two names.
        entries.dedup_by(|a, b| a.id == b.id);
        Ok(entries)
    }

    /// The entry that we wrote for a layer or base, with its newest kernel; nothing if there is none, or if
    /// another program has changed it so that it boots something else.
    ///
    /// Refuses a file in its place that was never ours.
    pub fn entry_of(&self, layer: &LvName) -> Result<Option<Entry>> {
        let id = entry::id(&self.vg, layer);
        let Some((path, text)) = self.entry_text(&id)? else {
            return Ok(None);
        };
        match Entry::parse(&id, &text) {
            Ok(Some(entry)) if entry.boots(&self.vg, layer.as_str()) => Ok(Some(entry)),
            _ if entry::was_ours(&text, layer) => Ok(None),
            _ => bail!(self.in_the_way(&path, layer)),
        }
    }

    fn in_the_way(&self, path: &Path, layer: &LvName) -> String {
        let (path, vg) = (path.display(), &self.vg);
        format!("{path} is in the way: it is no boot entry of {vg}/{layer}")
    }

    /// Whether another program, such as grub-mkconfig or grubby, has changed the entry of a layer or base
    /// so that it boots something else.
    pub fn is_rewritten(&self, layer: &LvName) -> Result<bool> {
        let path = self.entry_path(&entry::id(&self.vg, layer))?;
        Ok(path.exists() && self.entry_of(layer)?.is_none())
    }

    /// Tells of any layer or base whether it has an entry, by the names of the files alone: there can be
    /// hundreds.
    pub fn has_entry(&self) -> Result<impl Fn(&LvName) -> bool + use<>> {
        let files = self.files_in(ENTRIES)?;
        let ids = files.iter().filter_map(|path| entry_id(path));
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        ids.sort_unstable();
        let vg = self.vg.clone();
        Ok(move |name: &LvName| ids.binary_search(&entry::id(&vg, name)).is_ok())
    }

    /// The entries that we wrote for a layer or base, the newest kernel first.
    ///
    /// Refuses a file in the place of the first that is something else.
    pub fn entries_of(&self, layer: &LvName) -> Result<Vec<Entry>> {
        self.entry_of(layer)?;
        let first = entry::id(&self.vg, layer);
        let is_wanted = |id: &str| {
            let rest = id.strip_prefix(first.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('@'))
        };
        let mut entries = self.entries_with(is_wanted)?;
        entries.retain(|entry| entry.is_of(&self.vg, layer));
        Ok(entries)
    }

    /// The file with that id, and what is in it.
    fn entry_text(&self, id: &str) -> Result<Option<(PathBuf, String)>> {
        let path = self.entry_path(id)?;
        // An id can come from elsewhere, and lead out of the directory.
        if entry_id(&path) != Some(id) {
            return Ok(None);
        }
        let text = read_if_there(&path)?;
        Ok(text.map(|text| (path, String::from_utf8_lossy(&text).into_owned())))
    }

    /// Whether the kernel and initramfs of an entry are on the partition.
    pub fn has_kernel(&self, payload: &Payload) -> bool {
        [&payload.linux, &payload.initrd].iter().all(|path| {
            let path = self.path_of(path);
            fs::metadata(path).is_ok_and(|file| file.is_file() && file.len() > 0)
        })
    }

    /// Where a file is that an entry names by its path on the partition.
    pub fn path_of(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
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
        let system = System::at(root)
            .with_boot(&self.dir)
            .running(known.is_running);
        let options = system.options()?;
        let name = system.name();
        let newest = known.entries.first().map(Entry::payload);
        let mut before = known.entries.iter().map(Entry::payload).collect::<Vec<_>>();
        before.retain(|payload| self.has_kernel(payload));
        let mut files = Vec::new();
        let mut payloads = Vec::new();
        for Kernel {
            version,
            image,
            initrd,
        } in system.kernels()
        {
            if known.removed == Some(&version) {
                continue;
            }
            let before = before.iter().find(|payload| payload.version == version);
            let only = known.added.or(known.removed);
            if let (Some(before), true) = (before, only.is_some_and(|only| only != version)) {
                payloads.push(before.clone());
                continue;
            }
            let [linux, initrd] = match (image, initrd, before) {
                (Some(image), Some(initrd), _) => [
                    self.place("vmlinuz", &version, image, &mut files, &mut |_| Ok(None))?,
                    self.place("initrd", &version, initrd, &mut files, &mut |initrd| {
                        replace(tx, &version, initrd)
                    })?,
                ],
                (_, _, Some(before)) => [before.linux.clone(), before.initrd.clone()],
                _ => {
                    let Some(copies) = self.copies_of(&version)? else {
                        log::warn!(
                            "Linux {version} gets no boot entry: its image or initramfs was not found"
                        );
                        continue;
                    };
                    copies
                }
            };
            let like = before.or(newest.as_ref());
            let fallback = || like.map_or(known.options, |payload| &payload.options);
            payloads.push(Payload {
                version,
                linux,
                initrd,
                options: options.clone().unwrap_or_else(|| fallback().to_owned()),
                grub: like.map_or_else(Vec::new, |payload| payload.grub.clone()),
                system: name.clone(),
            });
        }
        if payloads.is_empty() && !before.is_empty() {
            log::warn!("no other kernel with an initramfs was found: the boot entries stay");
            payloads = before;
        }
        ensure!(
            !payloads.is_empty(),
            "no kernel with an initramfs was found: /boot/vmlinuz-VERSION or \
             /usr/lib/modules/VERSION/vmlinuz, with /boot/initrd.img-VERSION or \
             /boot/initramfs-VERSION.img"
        );
        self.check_room(files.iter().filter(|file| !file.is_there))?;
        Ok(Kernels { payloads, files })
    }

    /// Copies kernels to their places on the boot partition, unless they are there, and returns what the
    /// entries have to boot, the newest kernel first.
    ///
    /// Refuses when the partition has no room, before anything is written, or when another command has
    /// removed a copy that an entry was to keep.
    pub fn store(&self, tx: &mut Transaction, kernels: Kernels) -> Result<Vec<Payload>> {
        let Kernels {
            payloads,
            mut files,
        } = kernels;
        files.retain(|file| !(file.is_there && file.target.exists()));
        self.check_room(&files)?;
        tx.create_dir(&self.dir.join(KERNELS))?;
        for file in &files {
            tx.copy(&file.source, &file.target, 0o600)?;
        }
        tx.flush(&self.dir)?;
        let is_whole = |payload: &Payload| self.has_kernel(payload);
        ensure!(
            tx.is_dry_run() || payloads.iter().all(is_whole),
            "another command has removed a kernel from {}; try it again",
            self.dir.display()
        );
        Ok(payloads)
    }

    /// The kernel and initramfs of that version which are on the partition, whole, whatever entry they were
    /// copied for; the latest of several.
    fn copies_of(&self, version: &str) -> Result<Option<[String; 2]>> {
        let files = self.files_in(KERNELS)?;
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
        source: PathBuf,
        files: &mut Vec<KernelFile>,
        replace: &mut dyn FnMut(&Path) -> Result<Option<PathBuf>>,
    ) -> Result<String> {
        let place = |source: &Path| -> Result<(String, PathBuf, bool)> {
            let digest = digest(source)?;
            let path = format!("/{KERNELS}/{kind}-{version}-{}", &digest[..DIGITS]);
            let target = self.path_of(&path);
            // A file of that name with other content was cut off or damaged.
            let is_there = target.exists() && self::digest(&target)? == digest;
            Ok((path, target, is_there))
        };
        let (mut path, mut target, mut is_there) = place(&source)?;
        let mut source = source;
        if !is_there {
            if let Some(other) = replace(&source)? {
                source = other;
                (path, target, is_there) = place(&source)?;
            }
        }
        files.push(KernelFile {
            source,
            target,
            is_there,
        });
        Ok(path)
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
        let stat = statvfs(&self.dir)?;
        let dir = self.dir.display();
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

    /// Writes the entries of a layer or base, with the newest kernel first, in place of those that it
    /// has, and the menus. The kernels that they name are on disk already; those that no entry names any
    /// more are removed with the commit.
    ///
    /// Refuses to replace a file that is something else.
    pub fn write_entries(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entries: &[Entry],
    ) -> Result<()> {
        let is_ours = |entry: &Entry| entry.is_of(&self.vg, name);
        let (before, mut all): (Vec<Entry>, Vec<Entry>) =
            self.entries()?.into_iter().partition(is_ours);
        for entry in entries {
            let path = self.entry_path(&entry.id)?;
            let is_ours = before.iter().any(|e| e.id == entry.id);
            let text = read_if_there(&path)?;
            ensure!(
                is_ours || text.is_none_or(|t| entry::was_ours(&String::from_utf8_lossy(&t), name)),
                self.in_the_way(&path, name)
            );
        }
        all.extend_from_slice(entries);
        Entry::sort(&mut all);
        if before == entries && self.has_menu_of(&all)? {
            return Ok(());
        }
        tx.create_dir(&self.dir.join(ENTRIES))?;
        // The newest last: it takes the id of the one before, which has got another by then.
        for entry in entries.iter().rev().filter(|entry| !before.contains(entry)) {
            let path = self.entry_path(&entry.id)?;
            let old = before.iter().find(|old| old.id == entry.id);
            let text = counting::with_rank_of(old, &entry.render());
            tx.write(&path, text.as_bytes(), 0o644)?;
        }
        self.write_menu(tx, &all)?;
        tx.flush(&self.dir)?;
        if before.is_empty() {
            return Ok(());
        }
        let is_stale = |old: &&Entry| entries.iter().all(|entry| entry.id != old.id);
        let stale: Vec<Entry> = before.iter().filter(is_stale).cloned().collect();
        if !stale.is_empty() {
            self.keep_chosen(tx, &stale, entries)?;
        }
        self.remove_files(tx, &stale)?;
        self.discard_kernels(tx, &stale, entries, &before)
    }

    /// Changes all entries of a layer or base alike.
    pub fn change_entries(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        change: fn(Entry) -> Entry,
    ) -> Result<()> {
        let entries = self.entries_of(name)?.into_iter().map(change);
        self.write_entries(tx, name, &entries.collect::<Vec<_>>())
    }

    /// Has what was to boot be the newest kernel of the layer where it was a kernel that is gone.
    fn keep_chosen(&self, tx: &mut Transaction, gone: &[Entry], left: &[Entry]) -> Result<()> {
        let Some(newest) = left.first() else {
            return Ok(());
        };
        let is_gone = |id: Option<String>| gone.iter().any(|e| Some(&e.id) == id.as_ref());
        if is_gone(self.default_id()?) {
            match &self.loader.kind {
                Kind::Grub { .. } => self.set_variables(tx, &[(DEFAULT, &newest.id)])?,
                Kind::SystemdBoot(_) => self.set_default(tx, &newest.id)?,
            }
        }
        if is_gone(self.once_id()?) {
            match &self.loader.kind {
                Kind::Grub { .. } => self.set_variables(tx, &[(ONCE, &newest.id)])?,
                Kind::SystemdBoot(loader) => loader.set_once(tx, Some(&newest.id))?,
            }
        }
        Ok(())
    }

    /// The entries of `layers`, and all others. Refuses where all would go.
    fn without(&self, layers: &[LvName]) -> Result<(Vec<Entry>, Vec<Entry>)> {
        let is_gone = |entry: &Entry| layers.iter().any(|layer| entry.is_of(&self.vg, layer));
        let (gone, left): (Vec<Entry>, Vec<Entry>) = self.entries()?.into_iter().partition(is_gone);
        ensure!(
            gone.is_empty() || !left.is_empty(),
            "no boot entry would be left"
        );
        Ok((gone, left))
    }

    /// Refuses to remove `layers` when no entry of a layer or base would be left.
    pub fn check_removable(&self, layers: &[LvName]) -> Result<()> {
        self.without(layers).map(drop)
    }

    /// Removes the entries of the last of `layers` from the menus, and with the commit the kernels that no
    /// entry names any more. Those before it were removed, which a dry run cannot see.
    ///
    /// Refuses when no entry of a layer or base would be left.
    pub fn remove_last(&self, tx: &mut Transaction, layers: &[LvName]) -> Result<()> {
        let (gone, left) = self.without(layers)?;
        let is_last = |entry: &&Entry| layers.last().is_some_and(|l| entry.is_of(&self.vg, l));
        let removed: Vec<Entry> = gone.iter().filter(is_last).cloned().collect();
        if removed.is_empty() {
            return Ok(());
        }
        // First out of the menu that boots it, then out of the source of that menu.
        self.write_menu(tx, &left)?;
        self.remove_files(tx, &removed)?;
        self.discard_kernels(tx, &gone, &[], &removed)
    }

    /// Removes the files of entries that are in no menu.
    fn remove_files(&self, tx: &mut Transaction, removed: &[Entry]) -> Result<()> {
        for path in self.files_in(ENTRIES)? {
            if removed.iter().any(|e| entry_id(&path) == Some(&e.id)) {
                tx.remove(&path)?;
            }
        }
        tx.flush(&self.dir)
    }

    /// Removes, with the commit, the kernels of `before` that neither one of `written` names nor any other
    /// entry but those of `removed`.
    fn discard_kernels(
        &self,
        tx: &mut Transaction,
        removed: &[Entry],
        written: &[Entry],
        before: &[Entry],
    ) -> Result<()> {
        let kernels = before.iter().flat_map(|e| [&e.linux, &e.initrd]);
        let kernels: Vec<PathBuf> = kernels.map(|path| self.path_of(path)).collect();
        let mut unused = self.unused_kernels(removed, written)?;
        unused.retain(|path| kernels.contains(path));
        let (boot, is_dry_run) = (self.clone(), tx.is_dry_run());
        tx.discard(move || {
            // By then another entry may have come to need one. In a dry run nothing was written.
            if !is_dry_run && !unused.is_empty() {
                let still = boot.unused_kernels(&[], &[])?;
                unused.retain(|path| still.contains(path));
            }
            Ok(unused)
        });
        Ok(())
    }

    /// Our copies of kernels that neither `written` nor any entry file but those of `removed` mentions.
    /// Entries that others wrote count as well.
    fn unused_kernels(&self, removed: &[Entry], written: &[Entry]) -> Result<Vec<PathBuf>> {
        let is_gone = |path: &Path| {
            let mut gone = removed.iter().chain(written);
            gone.any(|e| entry_id(path) == Some(&e.id))
        };
        let mut texts: Vec<String> = written.iter().map(Entry::render).collect();
        for path in self.files_in(ENTRIES)? {
            if !is_gone(&path) {
                let text =
                    fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                texts.push(String::from_utf8_lossy(&text).into_owned());
            }
        }
        let mut kernels = self.files_in(KERNELS)?;
        kernels.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            !texts.iter().any(|text| text.contains(&*name))
        });
        Ok(kernels)
    }

    /// Our copies of kernels whose content is not what their names say.
    pub fn damaged_kernels(&self) -> Result<Vec<PathBuf>> {
        let mut damaged = Vec::new();
        for path in self.files_in(KERNELS)? {
            if is_damaged(&path)? {
                damaged.push(path);
            }
        }
        Ok(damaged)
    }

    /// What an interrupted command can leave: files of ours that are not finished, and kernels that
    /// no entry names. Those are needed if an entry of ours is lost, of which it is told.
    pub fn leftovers(&self, is_entry_lost: bool) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if !is_entry_lost {
            found = self.unused_kernels(&[], &[])?;
        }
        for dir in [ENTRIES, KERNELS, "grub", "grub2"] {
            let files = self.files_in(dir)?;
            found.extend(files.into_iter().filter(|path| is_temporary(path)));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// The layers and bases of our group that have an entry which we wrote.
    pub fn named_by(&self, entries: &[Entry]) -> Vec<LvName> {
        let is_ours = |entry: &Entry| {
            let name: LvName = entry.layer()?.parse().ok()?;
            entry.is_of(&self.vg, &name).then_some(name)
        };
        // In the order of the menu those of one layer follow each other.
        let mut names: Vec<LvName> = entries.iter().filter_map(is_ours).collect();
        names.dedup();
        names
    }

    /// The files in a directory of the partition, none if there is no such directory.
    fn files_in(&self, dir: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join(dir);
        let read = || format!("cannot read {}", dir.display());
        match fs::read_dir(&dir) {
            Ok(files) => files
                .map(|file| Ok(file.with_context(read)?.path()))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(read),
        }
    }

    /// The file of an entry, whether its tries are counted or not, else where it would be.
    fn entry_path(&self, id: &str) -> Result<PathBuf> {
        let uncounted = self.dir.join(ENTRIES).join(format!("{id}.conf"));
        if uncounted.exists() {
            return Ok(uncounted);
        }
        let mut files = self.files_in(ENTRIES)?.into_iter();
        let found = files.find(|path| entry_id(path) == Some(id));
        Ok(found.unwrap_or(uncounted))
    }

    /// Renders the menu from the entries.
    pub fn render_menu(&self, tx: &mut Transaction) -> Result<()> {
        self.write_menu(tx, &self.entries()?)?;
        tx.flush(&self.dir)
    }

    /// Whether the menu is what these entries say, where something reads it.
    pub fn has_menu_of(&self, entries: &[Entry]) -> Result<bool> {
        if !self.has_menu() {
            return Ok(true);
        }
        let rendered = grub::render_menu(entries);
        let menu = read_if_there(&self.menu_path())?;
        Ok(menu.as_deref() == Some(rendered.as_bytes()))
    }

    fn menu_path(&self) -> PathBuf {
        self.grub_dir().join(grub::MENU)
    }

    fn has_menu(&self) -> bool {
        matches!(self.loader.kind, Kind::Grub { has_menu: true, .. })
    }

    fn write_menu(&self, tx: &mut Transaction, entries: &[Entry]) -> Result<()> {
        if !self.has_menu() {
            return Ok(());
        }
        tx.create_dir(&self.grub_dir())?;
        let menu = grub::render_menu(entries);
        tx.write(&self.menu_path(), menu.as_bytes(), 0o644)
    }

    /// The id of the default entry; nothing if none was ever set.
    pub fn default_id(&self) -> Result<Option<String>> {
        let Kind::SystemdBoot(loader) = &self.loader.kind else {
            return self.variable(DEFAULT);
        };
        let mut ids = loader.defaults()?;
        for id in &mut ids {
            if let Some(found) = self.id_like(id)? {
                return Ok(Some(found));
            }
        }
        match ids.into_iter().next() {
            Some(id) => Ok(Some(id)),
            None => self.fallback_id(),
        }
    }

    /// The id of the entry that boots at the next start only; nothing if none does.
    pub fn once_id(&self) -> Result<Option<String>> {
        match &self.loader.kind {
            Kind::Grub { .. } => self.variable(ONCE),
            Kind::SystemdBoot(loader) => {
                let once = loader.once()?.map(|id| self.id_like(&id));
                Ok(once.transpose()?.flatten())
            }
        }
    }

    fn variable(&self, name: &str) -> Result<Option<String>> {
        let env = self.grub_env()?;
        let id = env.get(name).filter(|id| !id.is_empty());
        Ok(id.map(str::to_owned))
    }

    /// The id of an entry that is there, as systemd-boot compares it.
    fn id_like(&self, wanted: &str) -> Result<Option<String>> {
        let files = self.files_in(ENTRIES)?;
        let mut ids = files.iter().filter_map(|path| entry_id(path));
        let found = ids.find(|id| id.eq_ignore_ascii_case(wanted));
        Ok(found.map(str::to_owned))
    }

    /// Whether the default is one of these entries, of whatever group, or another system's. Of a damaged
    /// grubenv counts what can be salvaged.
    pub fn has_default(&self, entries: &[Entry]) -> Result<bool> {
        let id = match &self.loader.kind {
            Kind::Grub { .. } => self.salvaged_env()?.get(DEFAULT).map(str::to_owned),
            Kind::SystemdBoot(_) => self.default_id()?,
        };
        let id = id.filter(|id| !id.is_empty());
        Ok(id
            .is_some_and(|id| !entry::is_our_id(&id) || entries.iter().any(|entry| entry.id == id)))
    }

    /// What is wrong with grubenv, if GRUB would not load it.
    pub fn damage_of_env(&self) -> Result<Option<String>> {
        if matches!(self.loader.kind, Kind::SystemdBoot(_)) {
            return Ok(None);
        }
        let block = read_if_there(&self.grub_env_path())?;
        let error = block.and_then(|block| GrubEnv::parse(&block).err());
        Ok(error.map(|error| error.to_string()))
    }

    /// Writes what can be salvaged of a damaged grubenv into a new one.
    pub fn rebuild_env(&self, tx: &mut Transaction) -> Result<()> {
        let block = self.salvaged_env()?.render()?;
        let path = self.grub_env_path();
        let [text, file] = [OsStr::from_bytes(&block), path.as_os_str()].map(quote);
        let print = Cmd::new("sh")
            .arg("-c")
            .arg(format!("printf %s {text} > {file}"));
        tx.write_as(&path, &block, 0o644, &print)?;
        tx.flush(&self.dir)
    }

    fn salvaged_env(&self) -> Result<GrubEnv> {
        let block = read_if_there(&self.grub_env_path())?.unwrap_or_default();
        Ok(GrubEnv::parse(&block).unwrap_or_else(|_| GrubEnv::salvage(&block)))
    }

    /// What boots next, and from then on.
    pub fn selection(&self) -> Result<Selection> {
        let layer = |id: Option<String>| self.layer_of(&id?);
        let on_trial = |trial: Trial| Some(trial.of_layer(self.layer_of(&trial.id)?));
        Ok(Selection {
            default: layer(self.default_id()?),
            once: layer(self.once_id()?),
            trial: self.trial()?.and_then(on_trial),
        })
    }

    /// Which of these layers and bases the entry with this id boots, or would boot if it were there as we
    /// have written it.
    pub fn owner_of(&self, id: &str, names: &[LvName]) -> Option<String> {
        let wrote = |name: &&LvName| entry::is_id_of(&self.vg, name, id);
        let written = || names.iter().find(wrote).map(LvName::to_string);
        self.layer_of(id).or_else(written)
    }

    /// The layer or base of our group that the entry with this id boots.
    pub fn layer_of(&self, id: &str) -> Option<String> {
        let (_, text) = self.entry_text(id).ok()??;
        let entry = Entry::parse(id, &text).ok()??;
        let is_ours = entry.vg() == self.vg.as_str();
        entry.layer().filter(|_| is_ours).map(str::to_owned)
    }

    /// Has an entry boot at the next start, and the default again after that; no entry takes that back.
    ///
    /// Refuses where GRUB could not forget it, and would boot it for ever.
    pub fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            return loader.set_once(tx, id);
        }
        if id.is_some() {
            grub::check_once(&self.grub_dir().join(grub::CONFIG), &self.grub_env_path())?;
        }
        self.set_variables(tx, &[(ONCE, id.unwrap_or_default())])
    }

    /// Sets variables of grubenv, all at once.
    fn set_variables(&self, tx: &mut Transaction, variables: &[(&str, &str)]) -> Result<()> {
        let mut env = self.grub_env()?;
        let path = self.grub_env_path();
        let mut editenv = Cmd::new("grub-editenv").arg(&path).arg("set");
        for (name, value) in variables {
            env.set(name, value);
            editenv = editenv.arg(format!("{name}={value}"));
        }
        tx.write_as(&path, &env.render()?, 0o644, &editenv)?;
        tx.flush(&self.dir)?;
        ensure!(
            tx.is_dry_run() || self.grub_env()? == env,
            "{} does not hold what was written to it",
            path.display()
        );
        Ok(())
    }

    fn grub_env(&self) -> Result<GrubEnv> {
        let path = self.grub_env_path();
        match read_if_there(&path)? {
            Some(block) => GrubEnv::parse(&block).with_context(|| {
                let path = path.display();
                format!("{path} is damaged; `imgbased-helper check --repair` makes a new one")
            }),
            None => Ok(GrubEnv::default()),
        }
    }

    /// The file that GRUB reads, where the usual name is a link to another place.
    fn grub_env_path(&self) -> PathBuf {
        let path = self.grub_dir().join("grubenv");
        path.canonicalize().unwrap_or(path)
    }

    fn grub_dir(&self) -> PathBuf {
        grub::directory(&self.dir)
    }
}

fn entry_id(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?.strip_suffix(".conf")?;
    (!name.starts_with('.')).then_some(systemd_boot::split_counter(name).0)
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
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(format!("{:x}", hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::transaction::change;
    use tempfile::TempDir;

    const KERNEL: &str = "boot/vmlinuz-6.1-amd64";
    const INITRD: &str = "boot/initrd.img-6.1-amd64";

    /// A directory that stands for a mounted boot partition.
    fn partition() -> (TempDir, BootPartition) {
        let dir = tempfile::tempdir().unwrap();
        let (root, vg) = (dir.path().join("root"), "HostVG".parse().unwrap());
        let boot = BootPartition::in_dir(dir.path(), &root, &vg).unwrap();
        (dir, boot)
    }

    fn system() -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join(KERNEL), "kernel").unwrap();
        fs::write(dir.path().join(INITRD), "initramfs").unwrap();
        dir
    }

    fn publish(boot: &BootPartition, system: &TempDir) -> Payload {
        let payloads = change(|tx| look_for_kernels(boot, tx, system, &known(&[])));
        payloads.unwrap().into_iter().next().unwrap()
    }

    fn known(entries: &[Entry]) -> Known<'_> {
        Known {
            entries,
            options: "quiet",
            added: None,
            removed: None,
            is_running: false,
        }
    }

    fn look_for_kernels(
        boot: &BootPartition,
        tx: &mut Transaction,
        system: &TempDir,
        known: &Known,
    ) -> Result<Vec<Payload>> {
        let kernels = boot.kernels_of(tx, system.path(), known, &mut |_, _, _| Ok(None))?;
        boot.store(tx, kernels)
    }

    fn add(boot: &BootPartition, name: &str, payload: &Payload) -> Result<Entry> {
        let is_base = !name.contains('.');
        let name: LvName = name.parse()?;
        let entry = Entry::new(&boot.vg, &name, is_base, payload)?;
        change(|tx| boot.write_entries(tx, &name, std::slice::from_ref(&entry)))?;
        Ok(entry)
    }

    fn files_below(dir: &Path) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(next) = dirs.pop() {
            for file in fs::read_dir(next).unwrap() {
                let path = file.unwrap().path();
                if path.is_dir() {
                    dirs.push(path);
                } else {
                    found.push(path.strip_prefix(dir).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn kernels_are_stored_once_by_content() {
        let (dir, boot) = partition();
        let system = system();
        let payload = publish(&boot, &system);
        assert_eq!(payload.options, "quiet");
        assert_eq!(publish(&boot, &system), payload);
        assert_eq!(files_below(dir.path()).len(), 2);
        let stored = |path: &str| dir.path().join(path.trim_start_matches('/'));
        assert_eq!(fs::read(stored(&payload.linux)).unwrap(), b"kernel");

        // Rebuilt in the image: another file, the old one stays for the layers that use it.
        fs::write(system.path().join(INITRD), "other initramfs").unwrap();
        let rebuilt = publish(&boot, &system);
        assert_eq!(rebuilt.linux, payload.linux);
        assert_ne!(rebuilt.initrd, payload.initrd);
        assert_eq!(files_below(dir.path()).len(), 3);

        // Cut off by a crash of the filesystem: written again.
        fs::write(stored(&payload.linux), "ker").unwrap();
        publish(&boot, &system);
        assert_eq!(fs::read(stored(&payload.linux)).unwrap(), b"kernel");
    }

    #[test]
    fn an_entry_that_others_have_rewritten_is_written_again() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        let entry = add(&boot, "Base-0.1", &payload).unwrap();
        let name: LvName = "Base-0.1".parse().unwrap();
        assert!(!boot.is_rewritten(&name).unwrap());
        let path = dir.path().join("loader/entries/imgbased-Base-0.1.conf");
        for options in ["root=/dev/sda1 ro", "a;b imgbased.layer=Base-0.1"] {
            let text = entry.render().replace(&entry.options, options);
            fs::write(&path, text).unwrap();
            assert!(boot.is_rewritten(&name).unwrap(), "{options}");
            assert!(boot.entries_of(&name).unwrap().is_empty());
            add(&boot, "Base-0.1", &payload).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), entry.render());
        }
        fs::write(&path, "title Mine\noptions root=/dev/sda1\n").unwrap();
        assert!(boot.is_rewritten(&name).is_err());
        assert!(add(&boot, "Base-0.1", &payload).is_err());
    }

    #[test]
    fn kernels_with_other_content_are_found() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        assert!(boot.damaged_kernels().unwrap().is_empty());
        let path = dir.path().join(payload.linux.trim_start_matches('/'));
        fs::write(&path, "kernal").unwrap();
        assert_eq!(boot.damaged_kernels().unwrap(), [path]);
    }

    #[test]
    fn a_lost_entry_is_made_from_the_copies_of_its_kernel() {
        let (dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        install(&system, "6.1");
        let entries = refresh(&boot, &system, None, None);
        let name: LvName = "Base-0.1".parse().unwrap();
        let before = boot.entries_of(&name).unwrap();
        fs::remove_dir_all(system.path().join("boot")).unwrap();
        fs::remove_file(dir.path().join(ENTRIES).join("imgbased-Base-0.1.conf")).unwrap();
        // As long as it is lost, they are no leftovers.
        assert!(boot.leftovers(true).unwrap().is_empty());
        assert_eq!(boot.leftovers(false).unwrap().len(), 2);
        // What is not whole does not count, nor what is of another version.
        for (file, content) in [("vmlinuz-6.1-0123456789abcdef", "x"), ("vmlinuz-6.1", "x")] {
            fs::write(dir.path().join(KERNELS).join(file), content).unwrap();
        }
        let kernels = change(|tx| look_for_kernels(&boot, tx, &system, &known(&[])));
        let found = Entry::of_kernels(&boot.vg, &name, false, &kernels.unwrap()).unwrap();
        assert_eq!(found.len(), entries.len());
        assert_eq!(
            (&found[0].linux, &found[0].initrd),
            (&before[0].linux, &before[0].initrd)
        );
    }

    #[test]
    fn a_default_of_another_system_is_a_default() {
        let (_dir, boot) = partition();
        let entry = add(&boot, "Base-0.1", &publish(&boot, &system())).unwrap();
        for (id, expected) in [
            ("", false),
            ("imgbased-Base-0.1", true),
            ("imgbased-Base-0.9", false),
            ("Advanced options>Debian", true),
        ] {
            change(|tx| boot.set_variables(tx, &[(DEFAULT, id)])).unwrap();
            let entries = std::slice::from_ref(&entry);
            assert_eq!(boot.has_default(entries).unwrap(), expected, "{id}");
        }
    }

    #[test]
    fn the_default_belongs_to_its_layer_also_while_its_entry_is_lost() {
        let (_dir, boot) = partition();
        add(&boot, "Base-0.1", &publish(&boot, &system())).unwrap();
        let names = ["Base-0", "Base-0.1", "Base-0.11"].map(|name| name.parse().unwrap());
        for (id, owner) in [
            ("imgbased-Base-0.1", Some("Base-0.1")),
            ("imgbased-Base-0.11@6.1", Some("Base-0.11")),
            ("imgbased-Base-0.12", None),
            ("Debian", None),
        ] {
            assert_eq!(boot.owner_of(id, &names).as_deref(), owner, "{id}");
        }
    }

    #[test]
    fn a_failed_verb_takes_its_copies_back() {
        let (dir, boot) = partition();
        let failed: Result<()> = change(|tx| {
            look_for_kernels(&boot, tx, &system(), &known(&[]))?;
            bail!("later")
        });
        assert_eq!(failed.unwrap_err().to_string(), "later");
        assert!(files_below(dir.path()).is_empty());
    }

    /// Has the package of a kernel put its files into a root.
    fn install(system: &TempDir, version: &str) {
        let modules = system.path().join("usr/lib/modules").join(version);
        fs::create_dir_all(modules.join("kernel")).unwrap();
        let boot = system.path().join("boot");
        for name in ["vmlinuz", "initrd.img"] {
            let path = boot.join(format!("{name}-{version}"));
            fs::write(path, format!("{name} {version}")).unwrap();
        }
    }

    /// Writes the entries of Base-0.1 anew, for a change of one kernel or of all, and returns them as the
    /// ends of their ids and their versions.
    fn refresh(
        boot: &BootPartition,
        system: &TempDir,
        added: Option<&str>,
        removed: Option<&str>,
    ) -> Vec<(String, String)> {
        let name: LvName = "Base-0.1".parse().unwrap();
        let entries = boot.entries_of(&name).unwrap();
        let known = Known {
            added,
            removed,
            ..known(&entries)
        };
        let entries = change(|tx| {
            let kernels = look_for_kernels(boot, tx, system, &known)?;
            let entries = Entry::of_kernels(&boot.vg, &name, false, &kernels)?;
            boot.write_entries(tx, &name, &entries)?;
            Ok(entries)
        })
        .unwrap();
        assert_eq!(boot.entries_of(&name).unwrap(), entries);
        assert!(boot.leftovers(false).unwrap().is_empty());
        for entry in &entries {
            assert!(boot.has_kernel(&entry.payload()), "{}", entry.id);
        }
        let short = |id: &str| id.replace("imgbased-Base-0.1", "");
        let entries = entries.into_iter();
        entries.map(|e| (short(&e.id), e.version)).collect()
    }

    fn expected(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = |(id, version): &(&str, &str)| ((*id).to_owned(), (*version).to_owned());
        entries.iter().map(owned).collect()
    }

    #[test]
    fn each_kernel_of_a_layer_has_an_entry_and_the_newest_that_of_the_layer() {
        let (dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        install(&system, "6.1-9");
        assert_eq!(
            refresh(&boot, &system, None, None),
            expected(&[("", "6.1-9")])
        );
        install(&system, "6.1-10");
        assert_eq!(
            refresh(&boot, &system, Some("6.1-10"), None),
            expected(&[("", "6.1-10"), ("@6.1-9", "6.1-9")])
        );
        let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
        let ids: Vec<&str> = menu
            .lines()
            .filter_map(|line| line.split("--id ").nth(1))
            .collect();
        assert_eq!(
            ids,
            ["'imgbased-Base-0.1' {", "'imgbased-Base-0.1@6.1-9' {"]
        );

        // What boots is still there when it goes, and its copies go with it.
        change(|tx| boot.set_default(tx, "imgbased-Base-0.1@6.1-9")).unwrap();
        assert_eq!(
            refresh(&boot, &system, None, Some("6.1-9")),
            expected(&[("", "6.1-10")])
        );
        assert_eq!(
            boot.default_id().unwrap().as_deref(),
            Some("imgbased-Base-0.1")
        );
        assert_eq!(fs::read_dir(dir.path().join(KERNELS)).unwrap().count(), 2);

        // Never the last one.
        fs::remove_dir_all(system.path().join("usr/lib/modules/6.1-9")).unwrap();
        assert_eq!(
            refresh(&boot, &system, None, Some("6.1-10")),
            expected(&[("", "6.1-10")])
        );
    }

    #[test]
    fn all_kernels_of_a_layer_are_on_trial_together() {
        let (dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        install(&system, "6.1");
        install(&system, "6.2");
        refresh(&boot, &system, None, None);
        let name: LvName = "Base-0.1".parse().unwrap();
        let before = boot.entries_of(&name).unwrap();
        let reboots = |to: fn(Entry) -> Entry| {
            change(|tx| boot.change_entries(tx, &name, to)).unwrap();
            let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
            menu.matches("imgbased.onfail=reboot").count()
        };
        // Each in the list, and by itself for GRUB that has listed the entries.
        assert_eq!(reboots(Entry::on_trial), 2 * 2);
        assert_eq!(reboots(Entry::confirmed), 0);
        assert_eq!(boot.entries_of(&name).unwrap(), before);
    }

    #[test]
    fn a_kernel_without_files_is_booted_from_its_copies_while_its_modules_are_there() {
        let (_dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        for version in ["6.1", "6.2", "6.3"] {
            install(&system, version);
        }
        refresh(&boot, &system, None, None);
        // Another layer's package manager has removed it from the partition that they share.
        for name in ["vmlinuz-6.1", "initrd.img-6.1", "initrd.img-6.3"] {
            fs::remove_file(system.path().join("boot").join(name)).unwrap();
        }
        fs::remove_dir_all(system.path().join("usr/lib/modules/6.2")).unwrap();
        let left = expected(&[("", "6.3"), ("@6.1", "6.1")]);
        assert_eq!(refresh(&boot, &system, None, None), left);
        // It has no initramfs yet.
        install(&system, "6.4");
        fs::remove_file(system.path().join("boot/initrd.img-6.4")).unwrap();
        assert_eq!(refresh(&boot, &system, Some("6.4"), None), left);
    }

    #[test]
    fn the_entry_of_a_kernel_that_was_not_changed_stays_as_it_is() {
        let (_dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        install(&system, "6.1");
        refresh(&boot, &system, None, None);
        let initrd = |version: &str| {
            let entries = boot.entries_of(&"Base-0.1".parse().unwrap()).unwrap();
            let entry = entries.into_iter().find(|e| e.version == version).unwrap();
            fs::read_to_string(boot.path_of(&entry.initrd)).unwrap()
        };
        // As another layer has made it, on the partition that they share.
        fs::write(system.path().join("boot/initrd.img-6.1"), "other").unwrap();
        install(&system, "6.2");
        refresh(&boot, &system, Some("6.2"), None);
        assert_eq!(initrd("6.1"), "initrd.img 6.1");
        refresh(&boot, &system, None, None);
        assert_eq!(initrd("6.1"), "other");
    }

    #[test]
    fn only_an_initramfs_that_is_new_is_looked_at() {
        let (dir, boot) = partition();
        let system = system();
        let other = dir.path().join("other");
        fs::write(&other, "with the module").unwrap();
        let mut looked_at = Vec::new();
        for _ in 0..2 {
            let mut replace = |_: &mut Transaction, version: &str, initrd: &Path| {
                looked_at.push((version.to_owned(), initrd.to_owned()));
                Ok(Some(other.clone()).filter(|_| looked_at.len() == 1))
            };
            let payloads = change(|tx| {
                let kernels = boot.kernels_of(tx, system.path(), &known(&[]), &mut replace)?;
                boot.store(tx, kernels)
            })
            .unwrap();
            let initrd = fs::read_to_string(boot.path_of(&payloads[0].initrd)).unwrap();
            let is_replaced = looked_at.len() == 1;
            assert_eq!(initrd == "with the module", is_replaced, "{initrd}");
        }
        publish(&boot, &system);
        let initrd = system.path().canonicalize().unwrap().join(INITRD);
        assert_eq!(looked_at, vec![("6.1-amd64".to_owned(), initrd); 2]);
    }

    #[test]
    fn a_failure_gives_a_layer_its_entries_and_kernels_back() {
        let (dir, boot) = partition();
        let system = tempfile::tempdir().unwrap();
        fs::create_dir(system.path().join("boot")).unwrap();
        install(&system, "6.1");
        refresh(&boot, &system, None, None);
        install(&system, "6.2");
        // The menu cannot be written.
        fs::remove_file(dir.path().join("grub/imgbased.cfg")).unwrap();
        fs::create_dir(dir.path().join("grub/imgbased.cfg")).unwrap();
        let name: LvName = "Base-0.1".parse().unwrap();
        let before = boot.entries_of(&name).unwrap();
        let files = files_below(dir.path());
        let failed = change(|tx| {
            let kernels = look_for_kernels(&boot, tx, &system, &known(&before))?;
            let entries = Entry::of_kernels(&boot.vg, &name, false, &kernels)?;
            boot.write_entries(tx, &name, &entries)
        });
        assert!(failed.is_err());
        assert_eq!(boot.entries_of(&name).unwrap(), before);
        assert!(before.iter().all(|e| boot.has_kernel(&e.payload())));
        assert_eq!(files_below(dir.path()), files);
    }

    #[test]
    fn menu_default_and_entries_are_undone_as_a_whole() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        let first = add(&boot, "Base-0.1", &payload).unwrap();
        change(|tx| boot.set_default(tx, &first.id)).unwrap();
        let state = || {
            let text = |path| fs::read_to_string(dir.path().join(path)).unwrap();
            let menu_and_env = text("grub/imgbased.cfg") + &text("grub/grubenv");
            (files_below(dir.path()), menu_and_env)
        };
        let before = state();
        let name: LvName = "Base-0.2".parse().unwrap();
        let failed: Result<()> = change(|tx| {
            let entry = Entry::new(&boot.vg, &name, false, &payload)?;
            boot.write_entries(tx, &name, std::slice::from_ref(&entry))?;
            boot.set_default(tx, &entry.id)?;
            boot.remove_last(tx, &["Base-0.1".parse()?])?;
            assert_ne!(state(), before);
            bail!("later")
        });
        assert_eq!(failed.unwrap_err().to_string(), "later");
        assert_eq!(state(), before);
    }

    #[test]
    fn a_kernel_that_a_later_part_needs_again_stays() {
        let (_dir, boot) = partition();
        let (system, name) = (system(), "Base-0.2".parse().unwrap());
        let payload = publish(&boot, &system);
        add(&boot, "Base-0.1", &payload).unwrap();
        fs::write(system.path().join(INITRD), "other initramfs").unwrap();
        add(&boot, "Base-0", &publish(&boot, &system)).unwrap();
        change(|tx| {
            boot.remove_last(tx, &["Base-0.1".parse()?])?;
            let entry = Entry::new(&boot.vg, &name, false, &payload)?;
            boot.write_entries(tx, &name, &[entry])
        })
        .unwrap();
        assert!(boot.has_kernel(&payload));
    }

    #[test]
    fn entries_menu_and_default_of_several_layers() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        assert_eq!(boot.default_id().unwrap(), None);
        for name in ["Base-0", "Base-0.9", "Base-0.10"] {
            add(&boot, name, &payload).unwrap();
        }
        let layers: Vec<String> = boot
            .entries()
            .unwrap()
            .iter()
            .filter_map(|e| e.layer().map(str::to_owned))
            .collect();
        assert_eq!(layers, ["Base-0.10", "Base-0.9", "Base-0"]);
        let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
        let titles: Vec<&str> = menu
            .lines()
            .filter_map(|line| line.strip_prefix("menuentry '")?.split(' ').next())
            .collect();
        assert_eq!(titles, ["Base-0.10", "Base-0.9", "Base-0"]);

        change(|tx| boot.set_default(tx, "imgbased-Base-0.9")).unwrap();
        assert_eq!(
            boot.default_id().unwrap().as_deref(),
            Some("imgbased-Base-0.9")
        );
        let block = fs::read(dir.path().join("grub/grubenv")).unwrap();
        assert_eq!(block.len(), 1024);
    }

    #[test]
    fn what_others_have_on_the_partition_stays_as_it_is() {
        let (dir, boot) = partition();
        let foreign = [
            (
                "loader/entries/debian.conf",
                "title Debian\nlinux /vmlinuz\noptions root=/dev/sda1\n",
            ),
            ("loader/entries/.hidden.conf", "options imgbased.layer=x\n"),
            ("loader/entries/notes.txt", "options imgbased.layer=x\n"),
            ("vmlinuz", "their kernel"),
            ("grub/grub.cfg", "their menu"),
        ];
        for (path, content) in foreign {
            fs::create_dir_all(dir.path().join(path).parent().unwrap()).unwrap();
            fs::write(dir.path().join(path), content).unwrap();
        }
        let mut env = GrubEnv::default();
        env.set("their_variable", "x");
        fs::write(dir.path().join("grub/grubenv"), env.render().unwrap()).unwrap();

        let payload = publish(&boot, &system());
        let entry = add(&boot, "Base-0.1", &payload).unwrap();
        change(|tx| boot.set_default(tx, &entry.id)).unwrap();
        assert_eq!(boot.entries().unwrap(), [entry]);
        for (path, content) in foreign {
            assert_eq!(
                fs::read_to_string(dir.path().join(path)).unwrap(),
                content,
                "{path}"
            );
        }
        assert_eq!(boot.grub_env().unwrap().get("their_variable"), Some("x"));
    }

    fn remove(boot: &BootPartition, layers: &[&str]) -> Result<()> {
        let layers: Vec<LvName> = layers.iter().map(|l| l.parse().unwrap()).collect();
        boot.check_removable(&layers)?;
        (1..=layers.len()).try_for_each(|n| change(|tx| boot.remove_last(tx, &layers[..n])))
    }

    #[test]
    fn the_last_reference_removes_a_kernel() {
        let (dir, boot) = partition();
        let system = system();
        let old = publish(&boot, &system);
        fs::write(system.path().join(INITRD), "other initramfs").unwrap();
        let new = publish(&boot, &system);
        add(&boot, "Base-0.1", &old).unwrap();
        add(&boot, "Base-0.2", &old).unwrap();
        add(&boot, "Base-0.3", &new).unwrap();
        let exists = |path: &str| dir.path().join(path.trim_start_matches('/')).exists();

        remove(&boot, &["Base-0.1"]).unwrap();
        assert!(exists(&old.linux) && exists(&old.initrd));
        remove(&boot, &["Base-0.2"]).unwrap();
        assert!(exists(&old.linux) && !exists(&old.initrd) && exists(&new.initrd));
        let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
        assert_eq!(menu.matches("menuentry").count(), 1);
    }

    #[test]
    fn a_kernel_that_an_entry_of_others_names_is_kept() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        add(&boot, "Base-0.1", &payload).unwrap();
        add(&boot, "Base-1.1", &publish(&boot, &system())).unwrap();
        let theirs = format!("title Memtest\nlinux {}\n", payload.linux);
        fs::write(dir.path().join("loader/entries/theirs.conf"), theirs).unwrap();
        remove(&boot, &["Base-0.1"]).unwrap();
        assert!(
            dir.path()
                .join(payload.linux.trim_start_matches('/'))
                .exists()
        );
    }

    #[test]
    fn the_last_entry_is_not_removed() {
        let (_dir, boot) = partition();
        let payload = publish(&boot, &system());
        add(&boot, "Base-0", &payload).unwrap();
        add(&boot, "Base-0.1", &payload).unwrap();
        let error = remove(&boot, &["Base-0", "Base-0.1"])
            .unwrap_err()
            .to_string();
        assert_eq!(error, "no boot entry would be left");
        assert_eq!(boot.entries().unwrap().len(), 2);
    }

    #[test]
    fn a_file_in_the_place_of_an_entry_is_not_replaced() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        add(&boot, "a+1", &payload).unwrap();
        let path = dir.path().join("loader/entries/imgbased-Base-0.1.conf");
        fs::write(&path, "title mine\noptions root=/dev/sda1\n").unwrap();
        for name in ["a+1_", "Base-0.1"] {
            let error = add(&boot, name, &payload).unwrap_err().to_string();
            assert!(error.contains("is in the way"), "{error}");
        }
        assert!(fs::read_to_string(&path).unwrap().starts_with("title mine"));
    }

    #[test]
    fn entries_of_another_group_are_its_own() {
        let (_dir, mut boot) = partition();
        let payload = publish(&boot, &system());
        let ours = add(&boot, "Base-0.1", &payload).unwrap();
        boot.vg = "TestVG".parse().unwrap();
        assert_eq!(boot.entry_of(&"Base-0.1".parse().unwrap()).unwrap(), None);
        let theirs = add(&boot, "Base-0.1", &payload).unwrap();
        assert_ne!(ours.id, theirs.id);
        assert_eq!(boot.entries().unwrap().len(), 2);
        remove(&boot, &["Base-0.1"]).unwrap();
        assert_eq!(boot.entries().unwrap(), [ours]);
    }

    #[test]
    fn an_entry_that_would_break_the_menu_is_left_out_of_it() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        let entry = add(&boot, "Base-0.1", &payload).unwrap();
        let debug = entry
            .render()
            .replace("title Base-0.1", "title Bob's debug");
        fs::write(dir.path().join("loader/entries/debug.conf"), debug).unwrap();
        add(&boot, "Base-0.2", &payload).unwrap();
        let menu = fs::read_to_string(dir.path().join("grub/imgbased.cfg")).unwrap();
        assert!(!menu.contains("Bob"), "{menu}");
        assert_eq!(menu.matches("menuentry").count(), 2);
    }

    #[test]
    fn an_entry_whose_kernel_is_gone_is_noticed() {
        let (dir, boot) = partition();
        let payload = publish(&boot, &system());
        assert!(boot.has_kernel(&payload));
        fs::write(dir.path().join(payload.initrd.trim_start_matches('/')), "").unwrap();
        assert!(!boot.has_kernel(&payload));
    }

    #[test]
    fn a_damaged_grubenv_is_reported_and_rebuilt_only_when_asked() {
        let (dir, boot) = partition();
        let path = dir.path().join("grub/grubenv");
        fs::create_dir(dir.path().join("grub")).unwrap();
        fs::write(&path, "saved_entry=x\n").unwrap();
        let error = change(|tx| boot.set_default(tx, "y")).unwrap_err();
        assert!(format!("{error:#}").contains("is damaged"), "{error:#}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "saved_entry=x\n");
        assert!(boot.damage_of_env().unwrap().is_some());
        change(|tx| boot.rebuild_env(tx)).unwrap();
        assert_eq!(boot.damage_of_env().unwrap(), None);
        assert_eq!(boot.default_id().unwrap().as_deref(), Some("x"));
        assert_eq!(fs::metadata(&path).unwrap().len(), 1024);
    }

    #[test]
    fn a_directory_that_nothing_is_mounted_at_is_no_boot_partition() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        let error = BootPartition::at(root.path(), &"HostVG".parse().unwrap())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("no boot partition is mounted at"), "{error}");
    }
}
