//! Trials: a layer that never came up boots a number of times, and the default again after that, until
//! it has come up. GRUB counts, in its environment block; systemd-boot counts, in the names of entries
//! (src/boot/counting.rs).

use anyhow::{Result, ensure};

use super::loader::Kind;
use super::{BootPartition, DEFAULT, OnTrial, entry, grub};
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
