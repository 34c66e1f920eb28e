//! Entries that name our group as it was called before: after vgrename(8), or on a copy of its disk that has
//! got a name and a UUID of its own.

use anyhow::{Result, bail, ensure};

use super::BootPartition;
use super::entry::Entry;
use super::next::{Next, Why};
use crate::model::name::{LvName, VgUuid};
use crate::sys::transaction::Transaction;

/// What tells our group from others.
pub struct Known<'a> {
    /// As lvm2 prints it.
    pub uuid: &'a str,
    /// Its layers and bases.
    pub bootable: &'a [LvName],
    /// Whether the group that an entry names is not there, by its UUID if the entry has one.
    pub is_gone: &'a dyn Fn(&Entry) -> bool,
}

impl BootPartition {
    /// The entries that we wrote for our group under other names. Those come first of which one boots next:
    /// of several names their layers are what counts.
    ///
    /// Its UUID tells them. With another UUID they are those of layers that the group has, and of a group
    /// that is not there. Where the partition has entries of our group already, the others belong to a
    /// group whose disks may only be away.
    pub fn renamed(&self, entries: &[Entry], known: &Known) -> Result<Vec<Entry>> {
        let is_named = entries.iter().any(|entry| self.is_ours(entry));
        let is_renamed = |entry: &&Entry| {
            let Some((vg, name)) = entry.place() else {
                return false;
            };
            let is_copied =
                || !is_named && known.bootable.contains(&name) && (known.is_gone)(entry);
            vg != self.vg && (entry.vgid() == Some(known.uuid) || is_copied())
        };
        let mut found: Vec<Entry> = entries.iter().filter(is_renamed).cloned().collect();
        // A damaged grubenv names none.
        let next = self.next_start().ok();
        let next = next.as_ref().and_then(Next::id);
        let next = found.iter().find(|entry| Some(entry.id.as_str()) == next);
        let vg = next.map(|entry| entry.vg().to_owned());
        found.sort_by_key(|entry| vg.as_deref().is_some_and(|vg| entry.vg() != vg));
        Ok(found)
    }

    /// Whether we wrote this entry for our group as it is called now.
    fn is_ours(&self, entry: &Entry) -> bool {
        entry.place().is_some_and(|(vg, _)| vg == self.vg)
    }

    /// Writes `old`, which [`BootPartition::renamed`] has found, as entries of our group. What booted next boots
    /// next, and a trial goes on with the tries that it has left.
    ///
    /// Whatever is interrupted leaves the old entries or the new ones to boot, and the rest for a second
    /// time. Refuses what is too long for a boot loader with the new name, and a file in the way.
    pub fn rename(&self, tx: &mut Transaction, old: &[Entry], uuid: Option<&VgUuid>) -> Result<()> {
        let before = self.next_start()?;
        let all = self.entries()?;
        let mut new: Vec<Entry> = Vec::new();
        let mut ids = Vec::new();
        for entry in old {
            let Some(mut moved) = entry.moved_to(&self.vg, uuid) else {
                continue;
            };
            let mut known = all.iter().filter(|known| self.is_ours(known));
            if let Some(known) = known.find(|known| known.id == moved.id) {
                moved = self.in_place_of(entry, known);
            }
            if let Some(excess) = moved.excess() {
                bail!(
                    "the kernel options of {} are {excess} bytes too long with the name {}; make them shorter",
                    entry.id,
                    self.vg
                );
            }
            ids.push((entry.id.clone(), moved.id.clone()));
            if new.iter().all(|other| other.id != moved.id) {
                if let Some((_, name)) = moved.place() {
                    self.our().check_place(&moved.id, &name)?;
                }
                new.push(moved);
            }
        }
        self.claim(tx, old, uuid)?;
        self.put_renamed(tx, &new, &ids)?;
        let mut left = self.entries()?;
        // In a dry run they are not there.
        left.retain(|entry| new.iter().all(|new| new.id != entry.id));
        left.extend_from_slice(&new);
        Entry::sort(&mut left);
        self.write_menu(tx, &left)?;
        self.files.flush(tx)?;
        self.loader.rename(tx, &ids)?;
        left.retain(|entry| ids.iter().all(|(old, _)| *old != entry.id));
        self.write_menu(tx, &left)?;
        self.remove_files(tx, old)?;
        self.discard_kernels(tx, old, &new, old)?;
        self.check_renamed(tx, &before, &ids)
    }

    /// An entry under the new name that is there already, where a kernel was installed meanwhile: it keeps
    /// what it boots, and gets what the old one has of a trial.
    fn in_place_of(&self, old: &Entry, known: &Entry) -> Entry {
        let known = known.clone().confirmed();
        let known = if old.is_trial() {
            known.on_trial()
        } else {
            known
        };
        self.loader.in_place_of(Some(old), &known)
    }

    /// Has the old entries name the group by its UUID, which tells them when the new ones are there.
    fn claim(&self, tx: &mut Transaction, old: &[Entry], uuid: Option<&VgUuid>) -> Result<()> {
        let Some(uuid) = uuid else { return Ok(()) };
        for entry in old {
            let claimed = entry.clone().of_group(uuid);
            if entry.vgid() != Some(uuid.as_str()) {
                let path = self.files.entry_path(&entry.id)?;
                tx.write(&path, claimed.render().as_bytes(), 0o644)?;
            }
        }
        Ok(())
    }

    /// Writes the new entries, each under the name of the old file with what systemd-boot has counted in it.
    fn put_renamed(
        &self,
        tx: &mut Transaction,
        new: &[Entry],
        ids: &[(String, String)],
    ) -> Result<()> {
        for entry in new {
            let old = ids.iter().find(|(_, id)| *id == entry.id);
            let Some((old, _)) = old else { continue };
            let file = self.files.entry_path(old)?;
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            let counter = stem.strip_prefix(old.as_str()).unwrap_or_default();
            let path = self.files.new_entry_path(&format!("{}{counter}", entry.id));
            let there = self.files.entry_path(&entry.id)?;
            if there.exists() && there != path {
                tx.rename(&there, &path)?;
            }
            tx.write(&path, entry.render().as_bytes(), 0o644)?;
        }
        Ok(())
    }

    fn check_renamed(
        &self,
        tx: &Transaction,
        before: &Next,
        ids: &[(String, String)],
    ) -> Result<()> {
        let is_open = matches!(
            before,
            Next::Entry {
                why: Why::Instead,
                ..
            }
        );
        let Some(id) = before.id().filter(|_| !is_open && !tx.is_dry_run()) else {
            return Ok(());
        };
        let renamed = ids.iter().find(|(old, _)| old == id);
        let wanted = renamed.map_or(id, |(_, new)| new);
        let after = self.next_start()?;
        ensure!(
            after.id() == Some(wanted),
            "the next start boots {before}; under the new name of the group it would not, but: {after}"
        );
        Ok(())
    }
}
