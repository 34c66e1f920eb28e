//! All entries of a boot partition, and those of one layer or base.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail, ensure};

use super::entry::{self, Entry};
use super::files::Files;
use super::id;
use crate::model::name::{LvName, VgName};
use crate::sys::files::read_if_there;

/// Puts the entry with this id before all others, which stay in their order.
pub fn put_first(entries: &mut [Entry], id: &str) {
    if let Some(at) = entries.iter().position(|entry| entry.id == id) {
        entries[..=at].rotate_right(1);
    }
}

/// All entries that boot a layer or a base, of whatever group, in the order of the menu. Those of others
/// are passed over.
pub fn all(files: &Files) -> Result<Vec<Entry>> {
    read(files, |_| true)
}

/// Those whose id is wanted.
fn read(files: &Files, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for path in files.entries()? {
        let Some(id) = id::of_file(&path).filter(|id| is_wanted(id)) else {
            continue;
        };
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        match Entry::parse(id, &String::from_utf8_lossy(&text)) {
            Ok(entry) => entries.extend(entry),
            Err(error) => warn_once(&format!("{error:#}")),
        }
    }
    Entry::sort(&mut entries);
    // One that was interrupted while it was renamed has two names.
    entries.dedup_by(|a, b| a.id == b.id);
    Ok(entries)
}

/// Each verb reads the entries several times.
fn warn_once(problem: &str) {
    static TOLD: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    let is_new = TOLD
        .lock()
        .is_ok_and(|mut told| told.insert(problem.to_owned()));
    if is_new {
        log::warn!("{problem}");
    }
}

/// The entries of the layers and bases of one group.
pub struct Entries<'a> {
    pub files: &'a Files,
    pub vg: &'a VgName,
}

impl Entries<'_> {
    /// The entry that we wrote for a layer or base, with the kernel that it boots; nothing if there is none, or
    /// if another program has changed it so that it boots something else.
    ///
    /// Refuses a file in its place that was never ours.
    pub fn first_of(&self, layer: &LvName) -> Result<Option<Entry>> {
        let id = id::of_layer(self.vg, layer);
        let Some((path, text)) = self.files.entry_text(&id)? else {
            return Ok(None);
        };
        match Entry::parse(&id, &text) {
            Ok(Some(entry)) if entry.boots(self.vg, layer.as_str()) => Ok(Some(entry)),
            _ if entry::was_ours(&text, layer) => Ok(None),
            _ => bail!(self.in_the_way(&path, layer)),
        }
    }

    fn in_the_way(&self, path: &Path, layer: &LvName) -> String {
        let (path, vg) = (path.display(), self.vg);
        format!(
            "{path} is in the way: it is no boot entry of {vg}/{layer}, or of one whose name differs only in \
             upper and lower case, which FAT does not tell apart; move it away or choose another name"
        )
    }

    /// Whether another program, such as grub-mkconfig or grubby, has changed the entry of a layer or base
    /// so that it boots something else.
    pub fn is_rewritten(&self, layer: &LvName) -> Result<bool> {
        let path = self.files.entry_path(&id::of_layer(self.vg, layer))?;
        Ok(path.exists() && self.first_of(layer)?.is_none())
    }

    /// Tells of any layer or base whether it has an entry, by the names of the files alone: there can be
    /// hundreds.
    pub fn has_entry(&self) -> Result<impl Fn(&LvName) -> bool + use<>> {
        let files = self.files.entries()?;
        let ids = files.iter().filter_map(|path| id::of_file(path));
        let mut ids: Vec<String> = ids.map(str::to_owned).collect();
        ids.sort_unstable();
        let vg = self.vg.clone();
        Ok(move |name: &LvName| ids.binary_search(&id::of_layer(&vg, name)).is_ok())
    }

    /// The entries that we wrote for a layer or base: first that of the kernel which it boots, then the newest.
    ///
    /// Refuses a file in the place of the first that is something else.
    pub fn of(&self, layer: &LvName) -> Result<Vec<Entry>> {
        self.first_of(layer)?;
        let mut entries = read(self.files, |id| id::is_of(self.vg, layer, id))?;
        entries.retain(|entry| entry.is_of(self.vg, layer));
        put_first(&mut entries, &id::of_layer(self.vg, layer));
        Ok(entries)
    }

    /// The layers and bases of our group that have an entry which we wrote.
    pub fn named_by(&self, entries: &[Entry]) -> Vec<LvName> {
        let is_ours = |entry: &Entry| {
            let name: LvName = entry.layer()?.parse().ok()?;
            entry.is_of(self.vg, &name).then_some(name)
        };
        // Those of one layer follow each other unless one of its kernels is on trial.
        let mut known = BTreeSet::new();
        let names = entries.iter().filter_map(is_ours);
        names
            .filter(|name| known.insert(name.to_string()))
            .collect()
    }

    /// Which of these layers and bases the entry with this id boots, or would boot if it were there as we
    /// have written it.
    pub fn owner_of(&self, id: &str, names: &[LvName]) -> Option<String> {
        let wrote = |name: &&LvName| id::is_of(self.vg, name, id);
        let written = || names.iter().find(wrote).map(LvName::to_string);
        self.layer_of(id).or_else(written)
    }

    /// The layer or base of our group that the entry with this id boots.
    pub fn layer_of(&self, id: &str) -> Option<String> {
        let (_, text) = self.files.entry_text(id).ok()??;
        let entry = Entry::parse(id, &text).ok()??;
        let is_ours = entry.vg() == self.vg.as_str();
        entry.layer().filter(|_| is_ours).map(str::to_owned)
    }

    /// The files of entries that we wrote for a layer or base, and that boot it no more.
    pub fn changed(&self, layer: &LvName) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for path in self.files.entries()? {
            let Some(id) = id::of_file(&path).filter(|id| id::is_of(self.vg, layer, id)) else {
                continue;
            };
            let Some((_, text)) = self.files.entry_text(id)? else {
                continue;
            };
            let is_whole =
                matches!(Entry::parse(id, &text), Ok(Some(entry)) if entry.is_of(self.vg, layer));
            if !is_whole && entry::was_ours(&text, layer) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Refuses to write an entry of a layer or base in the place of a file that is something else.
    pub fn check_place(&self, id: &str, layer: &LvName) -> Result<()> {
        let path = self.files.entry_path(id)?;
        let text = read_if_there(&path)?;
        ensure!(
            text.is_none_or(|text| entry::was_ours(&String::from_utf8_lossy(&text), layer)),
            self.in_the_way(&path, layer)
        );
        Ok(())
    }
}
