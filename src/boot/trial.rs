//! Trials: a layer that never came up boots a number of times, and the default again after that, until
//! it has come up. GRUB counts, in its environment block; systemd-boot counts, in the names of entries
//! (src/boot/counting.rs).

use anyhow::{Context, Result, ensure};

use super::entry::Entry;
use super::loader::Kind;
use super::{BootPartition, DEFAULT, OnTrial, entry, grub};
use crate::model::name::LvName;
use crate::sys::transaction::Transaction;

/// Variables of grubenv that the head of the menu reads (src/boot/grub.rs): the id of the entry, how often
/// it may boot, and how often it did.
const ENTRY: &str = "imgbased_trial";
const TRIES: &str = "imgbased_tries";
const TRIED: &str = "imgbased_tried";

/// As many as the head of the menu can count, and one digit on FAT.
pub const TRIES_MAX: u32 = 9;

/// An entry on trial.
#[derive(Debug, PartialEq, Eq)]
pub struct Trial {
    pub id: String,
    pub tries: u32,
    pub tried: u32,
}

impl Trial {
    /// Whether it boots no more.
    pub fn is_over(&self) -> bool {
        self.tried >= self.tries
    }

    /// The same by the name of the layer that the entry boots.
    pub fn of_layer(&self, name: String) -> OnTrial {
        OnTrial {
            name,
            tries: self.tries,
            tried: self.tried,
        }
    }
}

impl BootPartition {
    /// The entry on trial, also one whose tries are used up.
    pub fn trial(&self) -> Result<Option<Trial>> {
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            return self.counted_trial(loader);
        }
        let env = self.grub_env()?;
        let number = |name| {
            env.get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        let id = env.get(ENTRY).filter(|id| !id.is_empty());
        Ok(id.map(|id| Trial {
            id: id.to_owned(),
            tries: number(TRIES),
            tried: number(TRIED),
        }))
    }

    /// Makes a layer or base with this entry the default. One that never came up is tried first, `tries`
    /// times, if there is another default to fall back to. Then that one is returned: its layer, or the id
    /// of its entry if that is another system's.
    ///
    /// Refuses where no trial is possible.
    pub fn make_default(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entry: &Entry,
        is_good: bool,
        tries: u32,
    ) -> Result<Option<String>> {
        // Also what belongs to another system can be fallen back to.
        let default = self
            .default_id()?
            .map(|id| self.layer_of(&id).unwrap_or(id));
        let fallback = default.filter(|default| tries > 0 && !is_good && default != name.as_str());
        if fallback.is_none() {
            self.confirm(tx, name, entry)?;
            return Ok(None);
        }
        self.check_trial()
            .context("no trial is possible, and --tries 0 goes without one")?;
        if !entry.is_trial() {
            self.change_entries(tx, name, Entry::on_trial)?;
        }
        self.start_trial(tx, &entry.id, tries)?;
        Ok(fallback)
    }

    /// Makes an entry the default that stops where it fails: there is nothing to go on to.
    pub fn confirm(&self, tx: &mut Transaction, name: &LvName, entry: &Entry) -> Result<()> {
        if entry.is_trial() {
            self.change_entries(tx, name, Entry::confirmed)?;
        }
        self.set_default(tx, &entry.id)?;
        Ok(())
    }

    /// Has a layer or base that has come up boot without the options of a trial from now on. It becomes
    /// the default if it is what was on trial.
    pub fn bless(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entry: &Entry,
        trial: Option<&Trial>,
    ) -> Result<()> {
        match trial {
            Some(trial) if trial.id == entry.id => self.confirm(tx, name, entry),
            _ if entry.is_trial() => self.change_entries(tx, name, Entry::confirmed),
            _ => Ok(()),
        }
    }

    /// Ends a trial whose tries are used up. `record` is told of its layer before that. One that `is_good`
    /// knows as come up becomes the default all the same: the power was cut before that was recorded as a
    /// whole.
    pub fn end_exhausted(
        &self,
        tx: &mut Transaction,
        trial: &Trial,
        is_good: impl FnOnce(&LvName) -> bool,
        record: impl FnOnce(&mut Transaction, &LvName) -> Result<()>,
    ) -> Result<()> {
        if let Some(name) = self.layer_of(&trial.id) {
            let name: LvName = name.parse()?;
            if let (true, Some(entry)) = (is_good(&name), self.entry_of(&name)?) {
                return self.confirm(tx, &name, &entry);
            }
            record(tx, &name)?;
        }
        self.end_trial(tx)?;
        Ok(())
    }

    /// Refuses where the loader could not count the tries, and would boot an entry for ever, or where it
    /// would find nothing to fall back to.
    pub fn check_trial(&self) -> Result<()> {
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            return loader.check_trial();
        }
        // The ids of others are known to GRUB only.
        if let Some(id) = self.default_id()?.filter(|id| entry::is_our_id(id)) {
            ensure!(
                self.entry_text(&id)?.is_some(),
                "the default {id} is no entry to fall back to"
            );
        }
        grub::check_trial(&self.grub_dir().join(grub::CONFIG), &self.grub_env_path())
    }

    /// Boots an entry from now on, `tries` times at most unless it is made the default by then.
    pub fn start_trial(&self, tx: &mut Transaction, id: &str, tries: u32) -> Result<()> {
        let tries = tries.min(TRIES_MAX);
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            return self.start_counted(tx, loader, id, tries);
        }
        let tries = tries.to_string();
        self.set_variables(tx, &[(ENTRY, id), (TRIES, &tries), (TRIED, "0")])
    }

    /// Boots the default again.
    pub fn end_trial(&self, tx: &mut Transaction) -> Result<()> {
        if let Kind::SystemdBoot(_) = &self.loader.kind {
            return match self.default_id()? {
                Some(id) => self.set_default(tx, &id),
                None => Ok(()),
            };
        }
        self.set_variables(tx, &[(ENTRY, ""), (TRIES, ""), (TRIED, "")])
    }

    /// Makes an entry the default, in the same write that ends any trial, where GRUB boots it.
    pub fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        if let Kind::SystemdBoot(loader) = &self.loader.kind {
            return self.settle(tx, loader, id);
        }
        let default = (DEFAULT, id);
        match self.trial()? {
            None => self.set_variables(tx, &[default]),
            Some(_) => self.set_variables(tx, &[default, (ENTRY, ""), (TRIES, ""), (TRIED, "")]),
        }
    }
}
