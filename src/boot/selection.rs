//! Which entry boots: the default, what boots once, and trials.

use anyhow::{Context, Result, bail, ensure};

use super::BootPartition;
use super::entry::Entry;
use super::id;
use super::loader::Ignoring;
use super::next::Next;
use crate::model::name::LvName;
use crate::model::trial::{Event, OnTrial, State, Trial};
use crate::sys::transaction::Transaction;

/// What boots, by the names of layers and bases of our group.
#[derive(Default, PartialEq, Eq)]
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
        let on_trial = |trial: Trial| {
            let name = self.layer_of(&trial.id)?;
            let kernel = self.kernel_of(&name, &trial.id);
            Some(trial.of_layer(name, kernel))
        };
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

    /// The id of the default entry. Where none was ever set and another system boots by itself, that becomes the
    /// default: it stays what boots until a layer has come up, whatever the menu gets.
    pub fn keep_default(&self, tx: &mut Transaction) -> Result<Option<String>> {
        if let Some(id) = self.default_id()? {
            return Ok(Some(id));
        }
        let other = self.loader.unset_default()?;
        if let (Some(id), None) = (&other, self.trial()?) {
            self.loader.set_default(tx, id)?;
        }
        Ok(other)
    }

    /// The id of the entry that boots at the next start only.
    pub fn once_id(&self) -> Result<Option<String>> {
        self.loader.once_id()
    }

    /// Whether a layer that was removed still has a say in what boots, by its name: a new one of that name would
    /// boot without having been chosen.
    pub fn remembers(&self, layer: &LvName) -> Result<bool> {
        let trial = self.trial()?.map(|trial| trial.id);
        let chosen = [self.default_id()?, self.once_id()?, trial];
        let mut chosen = chosen.iter().flatten();
        Ok(chosen.any(|id| id::is_of(&self.vg, layer, id)) || !self.entries_of(layer)?.is_empty())
    }

    /// The entry on trial, also one whose tries are used up.
    pub fn trial(&self) -> Result<Option<Trial>> {
        self.loader.trial()
    }

    /// The version of the kernel that the entry with this id boots, where it is not the one that this layer
    /// boots by itself.
    pub fn kernel_of(&self, layer: &str, id: &str) -> Option<String> {
        let name: LvName = layer.parse().ok()?;
        let mut entries = self.entries_of(&name).ok()?.into_iter();
        let entry = entries.find(|entry| entry.id == id)?;
        (id != id::of_layer(&self.vg, &name)).then_some(entry.version)
    }

    /// The entry by which a layer or base runs with this kernel, on trial or not.
    pub fn running_entry(
        &self,
        layer: &LvName,
        release: &str,
        is_trial: bool,
    ) -> Result<Option<Entry>> {
        let entries = self.entries_of(layer)?.into_iter();
        Ok(entries.min_by_key(|e| (e.version != release, e.is_trial() != is_trial)))
    }

    /// Whether a new kernel of the layer that runs can be tried before it is the default.
    pub fn can_try(&self) -> bool {
        let checked = self.loader.check_trial();
        if let Err(error) = &checked {
            log::warn!("a new kernel boots at once, no trial is possible: {error:#}");
        }
        checked.is_ok()
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
        if next.id() != Some(id) {
            // systemd-boot lists no such entry.
            let chosen = self.entries()?.into_iter().find(|entry| entry.id == id);
            ensure!(
                chosen.is_none_or(|entry| self.has_kernel(&entry.spec())),
                "{id} would not boot, but {next}: its kernel or initramfs cannot be read; `imgbased-helper boot \
                 repair` writes it"
            );
        }
        ensure!(
            next.id() == Some(id),
            "{id} would not boot, but {next}: grub.cfg says so, or the line preferred of systemd-boot's loader.conf; \
             GRUB_DEFAULT=saved in /etc/default/grub and update-grub change the one"
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
    /// times, if there is another default to fall back to. Then that one is returned: its layer, its kernel
    /// if the layer is the same, or the id of its entry if that is another system's.
    ///
    /// Refuses where no trial is possible.
    pub fn make_default(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entry: &Entry,
        state: State,
        tries: u32,
    ) -> Result<Option<String>> {
        let fallback = self.keep_default(tx)?.filter(|id| *id != entry.id);
        let chosen = Event::Chosen {
            tries,
            has_fallback: fallback.is_some(),
        };
        let (State::OnTrial { tries, .. }, Some(fallback)) = (state.after(chosen), fallback) else {
            self.confirm(tx, name, entry)?;
            self.check_chosen(tx, &entry.id, Ignoring::Once)?;
            return Ok(None);
        };
        self.check_trial(&fallback)?;
        if !entry.is_trial() {
            self.change_entry(tx, name, &entry.id, Entry::on_trial)?;
        }
        self.loader.start_trial(tx, &entry.id, tries)?;
        self.check_chosen(tx, &entry.id, Ignoring::Once)?;
        self.check_fallback(tx, &fallback)?;
        Ok(Some(self.describe(name, fallback)))
    }

    /// Refuses so many tries of a new layer where none is possible, before the layer is made. Where the menu is lost, that
    /// shows when it is written anew.
    pub fn check_can_try(&self, tries: u32) -> Result<()> {
        if !self.has_menu_of(&self.entries()?)? {
            return Ok(());
        }
        let fallback = match self.default_id()? {
            None => self.loader.unset_default()?,
            default => default,
        };
        let fallback = fallback.filter(|_| tries > 0);
        fallback.map_or(Ok(()), |fallback| self.check_trial(&fallback))
    }

    fn check_trial(&self, fallback: &str) -> Result<()> {
        self.loader
            .check_trial()
            .context("no trial is possible, and --tries 0 goes without one")?;
        let next = self.loader.next_start(Ignoring::OnceAndTrial)?;
        if let Some(problem) = next.problem() {
            bail!(
                "the default {fallback} is no entry to fall back to: {problem}. --tries 0 goes without a trial"
            );
        }
        Ok(())
    }

    /// Refuses a trial after which something else than this would boot, where the boot loader goes by the order of its menu.
    fn check_fallback(&self, tx: &Transaction, fallback: &str) -> Result<()> {
        if tx.is_dry_run() || !id::is_ours(fallback) {
            return Ok(());
        }
        let next = self.loader.next_start(Ignoring::OnceAndTrial)?;
        ensure!(
            next.id() == Some(fallback),
            "the default {fallback} is no entry to fall back to: {next} would boot after the trial. --tries 0 goes without \
             a trial"
        );
        Ok(())
    }

    /// Has a new kernel of a layer be tried. Returns what boots again if it does not come up.
    ///
    /// Refuses, and changes nothing, where the layer is not the default, or another one is on trial.
    pub fn try_kernel(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entry: &Entry,
        tries: u32,
    ) -> Result<Option<String>> {
        let default = self.selection()?.default;
        ensure!(
            default.as_deref() == Some(name.as_str()),
            "{name} is not the default"
        );
        let other = self.trial()?.filter(|trial| {
            let layer = self.layer_of(&trial.id);
            !trial.is_over() && layer.as_deref() != Some(name.as_str())
        });
        if let Some(other) = other {
            bail!("{} is on trial", other.id);
        }
        tx.scope(|tx| self.make_default(tx, name, entry, State::New, tries))
    }

    /// What an id stands for, beside an entry of `name`.
    fn describe(&self, name: &LvName, id: String) -> String {
        let is_same = |entry: &Entry| entry.id == id;
        let entries = self.entries_of(name).unwrap_or_default();
        match (entries.into_iter().find(is_same), self.layer_of(&id)) {
            (Some(entry), _) => format!("Linux {}", entry.version),
            (None, Some(layer)) => layer,
            // Also what belongs to another system can be fallen back to.
            (None, None) => id,
        }
    }

    /// Makes an entry the default that stops where it fails: there is nothing to go on to.
    pub fn confirm(&self, tx: &mut Transaction, name: &LvName, entry: &Entry) -> Result<()> {
        if entry.is_trial() {
            self.change_entry(tx, name, &entry.id, Entry::confirmed)?;
        }
        self.set_default(tx, &entry.id)?;
        Ok(())
    }

    /// Has a layer boot this one of its kernels from now on, which was on trial, and makes it the default.
    fn promote(&self, tx: &mut Transaction, name: &LvName, entry: &Entry) -> Result<()> {
        let first = id::of_layer(&self.vg, name);
        if entry.id == first {
            return self.confirm(tx, name, entry);
        }
        self.put_in_front(tx, name, entry)?;
        self.set_default(tx, &first)
    }

    /// Has a layer boot this one of its kernels from now on. The one until now gets an entry of its own, unless that is
    /// of the same version.
    fn put_in_front(&self, tx: &mut Transaction, name: &LvName, entry: &Entry) -> Result<()> {
        let mut entries = vec![Entry {
            id: id::of_layer(&self.vg, name),
            ..entry.clone().confirmed()
        }];
        for old in self.entries_of(name)? {
            if old.version == entry.version {
                continue;
            }
            let id = id::of_other(&self.vg, name, &old.version);
            if entries.iter().all(|entry| entry.id != id) {
                entries.push(Entry { id, ..old });
            }
        }
        self.write_entries(tx, name, &entries)
    }

    /// Has an entry that has come up boot without the options of a trial from now on. Its layer and kernel
    /// become the default if they are what was on trial. A layer that has come up boots a kernel that has: where its
    /// first one is on trial, what runs takes that place.
    pub fn bless(
        &self,
        tx: &mut Transaction,
        name: &LvName,
        entry: &Entry,
        trial: Option<&Trial>,
    ) -> Result<()> {
        let first = self.entry_of(name)?;
        let behind = first.filter(|first| first.id != entry.id && first.is_trial());
        let is_of_layer = |trial: &Trial| behind.as_ref().is_some_and(|first| first.id == trial.id);
        match trial {
            Some(trial) if trial.id == entry.id || is_of_layer(trial) => {
                self.promote(tx, name, entry)
            }
            _ if behind.is_some() => self.put_in_front(tx, name, entry),
            _ if entry.is_trial() => self.change_entry(tx, name, &entry.id, Entry::confirmed),
            _ => Ok(()),
        }
    }

    /// Ends a trial whose tries are used up. `record` is told of its layer before that, and of the version
    /// where a kernel was on trial. One that has come up, as `is_good` knows of the layer, becomes the default
    /// all the same: the power was cut before that was recorded as a whole.
    pub fn end_exhausted(
        &self,
        tx: &mut Transaction,
        trial: &Trial,
        is_good: impl FnOnce(&LvName) -> bool,
        record: impl FnOnce(&mut Transaction, &LvName, Option<&str>) -> Result<()>,
    ) -> Result<()> {
        if let Some(layer) = self.layer_of(&trial.id) {
            let name: LvName = layer.parse()?;
            let kernel = self.kernel_of(&layer, &trial.id);
            let entries = self.entries_of(&name)?;
            let tried = entries.iter().find(|entry| entry.id == trial.id);
            let first = self.entry_of(&name)?;
            let has_come_up = match (&kernel, &first) {
                (None, _) => is_good(&name),
                // It has got its place already.
                (Some(_), Some(first)) if !first.is_trial() => {
                    tried.is_some_and(|tried| first.boots_kernel(&tried.spec()))
                }
                (Some(_), _) => false,
            };
            let state = if has_come_up {
                State::Good
            } else {
                trial.state()
            };
            match (state.after(Event::FellBack), &kernel, first) {
                (State::Failed, ..) => record(tx, &name, kernel.as_deref())?,
                (State::Good, None, Some(entry)) => return self.confirm(tx, &name, &entry),
                _ => {}
            }
        }
        self.end_trial(tx)
    }
}
