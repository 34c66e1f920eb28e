//! Which entry boots: the default, what boots once, and trials.

use anyhow::{Context, Result, bail, ensure};

use super::BootPartition;
use super::entry::Entry;
use super::id;
use super::loader::Ignoring;
use super::next::Next;
use super::trial::{OnTrial, TRIES_MAX, Trial};
use crate::model::name::LvName;
use crate::sys::transaction::Transaction;

/// What boots, by the names of layers and bases of our group.
#[derive(Default)]
pub struct Selection {
    pub default: Option<String>,
    /// Boots at the next start only.
    pub once: Option<String>,
    /// Boots until it has come up, or its tries are used up.
    pub trial: Option<OnTrial>,
}

impl BootPartition {
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

    /// The id of the default entry; `None` if that was never set.
    pub fn default_id(&self) -> Result<Option<String>> {
        self.loader.default_id()
    }

    /// The id of the entry that boots at the next start only.
    pub fn once_id(&self) -> Result<Option<String>> {
        self.loader.once_id()
    }

    /// The entry on trial, also one whose tries are used up.
    pub fn trial(&self) -> Result<Option<Trial>> {
        self.loader.trial()
    }

    /// What the boot loader does at the next start.
    pub fn next_start(&self) -> Result<Next> {
        self.loader.next_start(Ignoring::Nothing)
    }

    /// Refuses where an entry that was just chosen would not boot.
    fn check_chosen(&self, tx: &Transaction, id: &str, ignoring: Ignoring) -> Result<()> {
        if tx.is_dry_run() {
            return Ok(());
        }
        let next = self.loader.next_start(ignoring)?;
        if let (Some(problem), true) = (next.problem(), next.id().is_none_or(|next| next == id)) {
            bail!("{id} would not boot: {problem}");
        }
        ensure!(
            next.id() == Some(id),
            "{id} would not boot, but {next}: grub.cfg says so; GRUB_DEFAULT=saved in /etc/default/grub and \
             update-grub change that"
        );
        Ok(())
    }

    /// Whether the default is one of these entries, of whatever group, or another system's. Of a damaged
    /// grubenv counts what can be salvaged.
    pub fn has_default(&self, entries: &[Entry]) -> Result<bool> {
        let id = self.loader.salvaged_default_id()?;
        Ok(id.is_some_and(|id| !id::is_ours(&id) || entries.iter().any(|entry| entry.id == id)))
    }

    /// What is wrong with grubenv, if GRUB would not load it.
    pub fn damage_of_env(&self) -> Result<Option<String>> {
        self.loader.damage()
    }

    /// Writes what can be salvaged of a damaged grubenv into a new one.
    pub fn rebuild_env(&self, tx: &mut Transaction) -> Result<()> {
        self.loader.rebuild(tx)
    }

    /// See [`super::loader::Loader::set_default`].
    pub fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        self.loader.set_default(tx, id)
    }

    /// See [`super::loader::Loader::set_once`].
    ///
    /// Refuses where it would not boot.
    pub fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        self.loader.set_once(tx, id)?;
        id.map_or(Ok(()), |id| self.check_chosen(tx, id, Ignoring::Nothing))
    }

    /// See [`super::loader::Loader::end_trial`].
    pub fn end_trial(&self, tx: &mut Transaction) -> Result<()> {
        self.loader.end_trial(tx)
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
            self.check_chosen(tx, &entry.id, Ignoring::Once)?;
            return Ok(None);
        }
        self.loader
            .check_trial()
            .context("no trial is possible, and --tries 0 goes without one")?;
        let next = self.loader.next_start(Ignoring::OnceAndTrial)?;
        if let Some(problem) = next.problem() {
            bail!(
                "the default {} is no entry to fall back to: {problem}. --tries 0 goes without a trial",
                self.default_id()?.unwrap_or_default()
            );
        }
        if !entry.is_trial() {
            self.change_entries(tx, name, Entry::on_trial)?;
        }
        self.loader
            .start_trial(tx, &entry.id, tries.min(TRIES_MAX))?;
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
}
