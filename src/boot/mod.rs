//! The boot partition: entries, menus, kernels and what boots. This is the face of the room: it orders the
//! steps, so that whatever is interrupted leaves entries that boot.

pub mod arrange;
pub mod entries;
pub mod entry;
mod files;
pub mod id;
mod kernels;
mod loader;
pub mod next;
pub mod renamed;
pub mod root;
mod selection;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statvfs::{FsFlags, statvfs};

use crate::model::kernel_options::{self, BOOT_IMAGE};
use crate::model::mount_unit;
use crate::model::name::{LvName, VgName};
use crate::model::trial::Trial;
use crate::sys::automount;
use crate::sys::files::{directory, is_temporary, read_if_there};
use crate::sys::mounts;
use crate::sys::transaction::Transaction;
use arrange::{Arrangement, arrange};
use entries::Entries;
use entry::{BootSpec, Entry};
use files::{ENTRIES, Files};
use kernels::{KERNELS, Store};
use loader::systemd_boot::SystemdBoot;
use loader::{Loader, detect};
use next::{Next, Why};
use root::Root;

pub use kernels::{Kernels, Known, Replace};
pub use loader::grubenv;
pub use loader::systemd_boot::Variables;
pub use selection::Selection;

/// The boot partition of a host, `$BOOT` of the Boot Loader Specification.
pub struct BootPartition {
    files: Files,
    vg: VgName,
    pub loader: Box<dyn Loader>,
    /// How the loader is known.
    pub loader_reason: String,
}

impl BootPartition {
    /// The boot partition mounted at `root`/boot, for the layers of the group `vg`.
    ///
    /// Refuses one that is not mounted: what was written then would be seen by one layer only.
    pub fn at(root: &Path, vg: &VgName) -> Result<Self> {
        let dir = root.join("boot");
        if root == Path::new("/") {
            automount::reach(&dir, &mount_unit::name("/boot"))?;
        }
        ensure!(
            mounts::is_mount_point(&dir)?,
            "no boot partition is mounted at {}: layers share one, mount it there",
            dir.display()
        );
        Self::in_dir(&dir, root, vg)
    }

    /// The boot partition whose files are in `dir`, mounted or not, of the host whose root is at `root`.
    pub fn in_dir(dir: &Path, root: &Path, vg: &VgName) -> Result<Self> {
        let files = Files::new(dir);
        let (loader, loader_reason) = detect::detect(root, &files)?;
        Ok(Self {
            files,
            vg: vg.clone(),
            loader,
            loader_reason,
        })
    }

    /// The number of the device that the partition is.
    pub fn device(&self) -> Result<u64> {
        let dir = self.files.dir();
        let metadata = dir.metadata();
        let metadata = metadata.with_context(|| format!("cannot look at {}", dir.display()))?;
        Ok(metadata.dev())
    }

    /// The EFI system partition in `dir` of a host that systemd-boot has started, with these variables.
    pub fn started_by_systemd_boot(dir: &Path, vg: &VgName, variables: Variables) -> Self {
        let files = Files::new(dir);
        let loader = SystemdBoot {
            files: files.clone(),
            esp: Some(dir.to_owned()),
            variables: Some(variables),
        };
        Self {
            files,
            vg: vg.clone(),
            loader: Box::new(loader),
            loader_reason: "it has started the host".to_owned(),
        }
    }

    /// Refuses a boot partition that cannot be written to, that the loader does not read, or that has no
    /// room for another entry.
    pub fn check_ready(&self) -> Result<()> {
        self.check_writable()?;
        self.store().check_reserve()
    }

    /// Refuses a boot partition that cannot be written to, or that the loader does not read. What replaces
    /// small files by others of the same size needs no more.
    pub fn check_writable(&self) -> Result<()> {
        let dir = self.files.dir();
        let stat = statvfs(dir).with_context(|| format!("cannot look at {}", dir.display()))?;
        ensure!(
            !stat.flags().contains(FsFlags::ST_RDONLY),
            "{} is mounted read-only",
            dir.display()
        );
        self.loader.check_reads()
    }

    /// How the partition is too full for another entry, if it is.
    pub fn want_of_room(&self) -> Option<String> {
        let error = self.store().check_reserve().err();
        error.map(|error| format!("{error:#}"))
    }

    fn our(&self) -> Entries<'_> {
        Entries {
            files: &self.files,
            vg: &self.vg,
        }
    }

    fn store(&self) -> Store<'_> {
        Store { files: &self.files }
    }

    /// See [`entries::all`].
    pub fn entries(&self) -> Result<Vec<Entry>> {
        entries::all(&self.files)
    }

    /// See [`Entries::first_of`].
    pub fn entry_of(&self, layer: &LvName) -> Result<Option<Entry>> {
        self.our().first_of(layer)
    }

    /// The same, if its kernel is there.
    pub fn whole_entry_of(&self, layer: &LvName) -> Result<Option<Entry>> {
        let entry = self.entry_of(layer)?;
        Ok(entry.filter(|entry| self.has_kernel(&entry.spec())))
    }

    /// See [`Entries::of`].
    pub fn entries_of(&self, layer: &LvName) -> Result<Vec<Entry>> {
        self.our().of(layer)
    }

    /// See [`Entries::is_rewritten`].
    pub fn is_rewritten(&self, layer: &LvName) -> Result<bool> {
        self.our().is_rewritten(layer)
    }

    /// See [`Entries::has_entry`].
    pub fn has_entry(&self) -> Result<impl Fn(&LvName) -> bool + use<>> {
        self.our().has_entry()
    }

    /// See [`Entries::named_by`].
    pub fn named_by(&self, entries: &[Entry]) -> Vec<LvName> {
        self.our().named_by(entries)
    }

    /// See [`Entries::owner_of`].
    pub fn owner_of(&self, id: &str, names: &[LvName]) -> Option<String> {
        self.our().owner_of(id, names)
    }

    /// See [`Entries::layer_of`].
    pub fn layer_of(&self, id: &str) -> Option<String> {
        self.our().layer_of(id)
    }

    /// See [`Files::path_of`].
    pub fn path_of(&self, path: &str) -> PathBuf {
        self.files.path_of(path)
    }

    /// See [`Store::has`].
    pub fn has_kernel(&self, spec: &BootSpec) -> bool {
        self.store().has(spec)
    }

    /// See [`Store::kernels_of`].
    pub fn kernels_of(
        &self,
        tx: &mut Transaction,
        root: &Path,
        known: &Known,
        replace: &mut Replace,
    ) -> Result<Kernels> {
        self.store().kernels_of(tx, root, known, replace)
    }

    /// See [`Store::check_room_for`].
    pub fn check_room_for(&self, source: &Path) -> Result<()> {
        self.store().check_room_for(source)
    }

    /// See [`Store::has_files_of`].
    pub fn has_files_of(&self, version: &str) -> Result<[bool; 2]> {
        self.store().has_files_of(version)
    }

    /// See [`Store::changed`].
    pub fn changed_kernels(&self, entries: &[Entry]) -> Result<Vec<String>> {
        let root = Root::at(Path::new("/"));
        let root = root.with_boot(self.files.dir()).running(true);
        self.store().changed(&root, entries)
    }

    /// The path of the kernel that GRUB has read for the system with this command line, if it is one of our
    /// copies and is not there: GRUB has read another partition, or that kernel was removed since.
    pub fn missing_boot_image(&self, cmdline: &str) -> Option<String> {
        let image = kernel_options::value(cmdline, BOOT_IMAGE)?;
        let path = image.rsplit_once(')').map_or(image, |(_, path)| path);
        let is_copy = path.starts_with(&format!("/{KERNELS}/"));
        (is_copy && !self.files.has(path)).then(|| path.to_owned())
    }

    /// See [`Store::store`].
    pub fn store_kernels(&self, tx: &mut Transaction, kernels: Kernels) -> Result<Vec<BootSpec>> {
        self.store().store(tx, kernels)
    }

    /// See [`arrange`].
    pub fn arrange(
        &self,
        found: Vec<BootSpec>,
        before: &[Entry],
        told: &arrange::Told,
    ) -> Arrangement {
        let is_whole = |spec: &BootSpec| self.store().has_whole(spec).unwrap_or(false);
        arrange(found, before, told, is_whole)
    }

    /// See [`Store::damaged`].
    pub fn damaged_kernels(&self) -> Result<Vec<PathBuf>> {
        self.store().damaged()
    }

    /// Does `work`, which changes entries and menus, but not what was chosen to boot.
    ///
    /// Refuses where the next start would boot something else, or nothing.
    fn keep_next<T>(
        &self,
        tx: &mut Transaction,
        work: impl FnOnce(&mut Transaction) -> Result<T>,
    ) -> Result<T> {
        let before = self.next_start()?;
        let (mut default, mut was_lost) = (None, false);
        if let Next::Other(_) = before {
            default = self.loader.salvaged_default_id()?;
            was_lost = !self.has_menu_of(&self.entries()?)?;
        }
        let done = work(tx)?;
        let after = self.next_start()?;
        let is_kept = match &before {
            _ if tx.is_dry_run() => true,
            Next::Entry {
                why: Why::Instead, ..
            } => true,
            // What was removed on purpose is somebody's choice, and so is a trial, whose entry may come back.
            Next::Entry { id, .. } => {
                let is_try = matches!(after, Next::Entry { why: Why::Try, .. });
                after.id() == Some(id) || is_try || self.files.entry_text(id)?.is_none()
            }
            // The default itself boots again, in whose place that did, as the menu was lost.
            Next::Other(_) if default.is_some() && after.id() == default.as_deref() => true,
            Next::Other(_) if was_lost && after.is_chosen() => true,
            Next::Other(id) => after == Next::Other(id.clone()),
            _ => true,
        };
        if !is_kept {
            let text = before
                .id()
                .map(|id| self.files.entry_text(id))
                .transpose()?;
            let id = before.id().unwrap_or_default();
            let wrong = text
                .flatten()
                .and_then(|(_, text)| Entry::parse(id, &text).err());
            let wrong = wrong
                .map(|error| format!(": {error:#}"))
                .unwrap_or_default();
            bail!(
                "the next start boots {before}; after this it would not, but: {after}{wrong}. Choose with \
                 `imgbased-helper boot default` or grub-set-default(8) what boots, or mend the entry"
            );
        }
        Ok(done)
    }

    /// Writes the entries of a layer or base, first that of the kernel which it boots, in place of those that
    /// it has, and the menus. The kernels that they name are on disk already; those that no entry names any
    /// more are removed with the commit. A trial of an entry that is no more there ends.
    ///
    /// Refuses to replace a file that is something else, and to change what boots next.
    pub fn write_entries(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entries: &[Entry],
    ) -> Result<()> {
        self.keep_next(tx, |tx| {
            // What is damaged is mended by `check`, and keeps nothing from coming up.
            if self.damage_of_env()?.is_none() {
                self.keep_default(tx)?;
            }
            self.put_entries(tx, name, entries)
        })
    }

    fn put_entries(&self, tx: &mut Transaction, name: &LvName, entries: &[Entry]) -> Result<()> {
        self.end_trial_of_gone(tx, name, entries)?;
        let is_ours = |entry: &Entry| entry.is_of(&self.vg, name);
        let (mut before, mut all): (Vec<Entry>, Vec<Entry>) =
            self.entries()?.into_iter().partition(is_ours);
        for entry in entries {
            if before.iter().all(|before| before.id != entry.id) {
                self.our().check_place(&entry.id, name)?;
            }
        }
        let old = |entry: &Entry| before.iter().find(|old| old.id == entry.id);
        let entries = entries
            .iter()
            .map(|entry| self.loader.in_place_of(old(entry), entry));
        let entries: Vec<Entry> = entries.collect();
        all.extend_from_slice(&entries);
        Entry::sort(&mut all);
        let first = id::of_layer(&self.vg, name);
        entries::put_first(&mut before, &first);
        if before == entries && self.has_menu_of(&all)? {
            return Ok(());
        }
        tx.create_dir(&self.files.dir().join(ENTRIES))?;
        // The first last: it takes the id of the one before, which has got another by then.
        for entry in entries.iter().rev().filter(|entry| !before.contains(entry)) {
            let path = self.files.entry_path(&entry.id)?;
            tx.write(&path, entry.render().as_bytes(), 0o644)?;
        }
        self.write_menu(tx, &all)?;
        self.files.flush(tx)?;
        if before.is_empty() {
            return Ok(());
        }
        let is_stale = |old: &&Entry| entries.iter().all(|entry| entry.id != old.id);
        let stale: Vec<Entry> = before.iter().filter(is_stale).cloned().collect();
        if let (false, Some(first)) = (stale.is_empty(), entries.first()) {
            self.loader.replace(tx, &stale, &first.id)?;
            let trial = self.trial().unwrap_or_default();
            if trial.is_some_and(|trial| stale.iter().any(|entry| entry.id == trial.id)) {
                self.end_trial(tx)?;
            }
        }
        self.remove_files(tx, &stale)?;
        self.discard_kernels(tx, &stale, &entries, &before)
    }

    /// Ends the trial of an entry that is not among the new ones of a layer, before it goes: it must not come back
    /// where that is interrupted. A kernel that gets its place has come up, and its trial ends after that.
    fn end_trial_of_gone(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entries: &[Entry],
    ) -> Result<()> {
        let is_gone = |trial: &Trial| {
            id::is_of(&self.vg, name, &trial.id) && entries.iter().all(|entry| entry.id != trial.id)
        };
        let Some(trial) = self.trial().unwrap_or_default().filter(is_gone) else {
            return Ok(());
        };
        let before = self.entries_of(name).unwrap_or_default().into_iter();
        let mut tried = before
            .filter(|entry| entry.id == trial.id)
            .map(|entry| entry.spec());
        let has_place = |tried: BootSpec| {
            let first = entries.first();
            first.is_some_and(|first| !first.is_trial() && first.boots_kernel(&tried))
        };
        if tried.any(has_place) {
            return Ok(());
        }
        self.end_trial(tx)
    }

    /// Changes all entries of a layer or base alike.
    pub fn change_entries(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        change: impl Fn(Entry) -> Entry,
    ) -> Result<()> {
        let entries = self.entries_of(name)?.into_iter().map(change);
        self.write_entries(tx, name, &entries.collect::<Vec<_>>())
    }

    /// Changes one entry of a layer or base.
    pub fn change_entry(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        id: &str,
        change: fn(Entry) -> Entry,
    ) -> Result<()> {
        let mut entries = self.entries_of(name)?;
        for entry in entries.iter_mut().filter(|entry| entry.id == id) {
            *entry = change(entry.clone());
        }
        self.write_entries(tx, name, &entries)
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
        let changed = match layers.last() {
            Some(last) => self.our().changed(last)?,
            None => Vec::new(),
        };
        if removed.is_empty() && changed.is_empty() {
            return Ok(());
        }
        // First out of the menu that boots it, then out of the source of that menu. What others have changed
        // stays in the menu for as long as its file is there.
        self.keep_next(tx, |tx| {
            for path in &changed {
                tx.remove(path)?;
            }
            self.write_menu(tx, &left)?;
            self.remove_files(tx, &removed)
        })?;
        self.discard_kernels(tx, &gone, &[], &removed)
    }

    /// Removes the files of entries that are in no menu.
    fn remove_files(&self, tx: &mut Transaction, removed: &[Entry]) -> Result<()> {
        for path in self.files.entries()? {
            if removed.iter().any(|e| id::of_file(&path) == Some(&e.id)) {
                tx.remove(&path)?;
            }
        }
        self.files.flush(tx)
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
        let mut unused = self.store().unused(removed, written)?;
        unused.retain(|path| kernels.contains(path));
        let (files, is_dry_run) = (self.files.clone(), tx.is_dry_run());
        tx.discard(move || {
            // By then another entry may have come to need one. In a dry run nothing was written.
            if !is_dry_run && !unused.is_empty() {
                let still = Store { files: &files }.unused(&[], &[])?;
                unused.retain(|path| still.contains(path));
            }
            Ok(unused)
        });
        Ok(())
    }

    /// What an interrupted command can leave: files of ours that are not finished, and kernels that
    /// no entry names. Those are needed if an entry of ours is lost, of which it is told.
    pub fn leftovers(&self, is_entry_lost: bool) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        if !is_entry_lost {
            found = self.store().unused(&[], &[])?;
        }
        for dir in [ENTRIES, KERNELS, "grub", "grub2"] {
            let files = self.files.list(dir)?;
            found.extend(files.into_iter().filter(|path| is_temporary(path)));
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Renders the menu from the entries.
    pub fn render_menu(&self, tx: &mut Transaction) -> Result<()> {
        self.keep_next(tx, |tx| {
            self.write_menu(tx, &self.entries()?)?;
            self.files.flush(tx)
        })
    }

    /// Whether the menu is what these entries say, where something reads it.
    pub fn has_menu_of(&self, entries: &[Entry]) -> Result<bool> {
        let Some((path, text)) = self.loader.menu(entries)? else {
            return Ok(true);
        };
        Ok(read_if_there(&path)?.as_deref() == Some(text.as_bytes()))
    }

    fn write_menu(&self, tx: &mut Transaction, entries: &[Entry]) -> Result<()> {
        let Some((path, text)) = self.loader.menu(entries)? else {
            return Ok(());
        };
        tx.create_dir(directory(&path))?;
        tx.write(&path, text.as_bytes(), 0o644)
    }
}

#[cfg(test)]
mod tests;
