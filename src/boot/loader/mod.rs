//! Boot loaders: each answers the same questions about what boots, and is told the same way. Another one
//! is another file here, and a line in [`detect`].

mod counting;
pub mod detect;
pub mod grub;
pub mod grub_menu;
mod grub_start;
pub mod grubenv;
pub mod systemd_boot;
mod systemd_menu;
mod uki;

use std::path::PathBuf;

use anyhow::Result;

use super::entry::Entry;
use super::next::Next;
use crate::model::trial::Trial;
use crate::sys::transaction::Transaction;

/// What is left out when the next start is foretold.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ignoring {
    Nothing,
    /// What boots once.
    Once,
    OnceAndTrial,
}

/// What a boot loader knows and can be told. Entries are named by their ids.
pub trait Loader {
    /// Its name for people.
    fn name(&self) -> &'static str;

    /// Its name for programs.
    fn id(&self) -> &'static str;

    /// Refuses a boot partition from which it would read nothing.
    fn check_reads(&self) -> Result<()>;

    /// What boots by default; `None` if that was never set.
    fn default_id(&self) -> Result<Option<String>>;

    /// What boots while no default was ever set, if that is another system: as a default names it.
    fn unset_default(&self) -> Result<Option<String>>;

    /// The same as [`Self::default_id`], as far as damaged files still say.
    fn salvaged_default_id(&self) -> Result<Option<String>> {
        self.default_id()
    }

    /// What boots at the next start only.
    fn once_id(&self) -> Result<Option<String>>;

    /// What is on trial, also if its tries are used up.
    fn trial(&self) -> Result<Option<Trial>>;

    /// Makes an entry the default, and ends any trial.
    fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()>;

    /// Boots an entry at the next start, and the default again after that; `None` takes that back.
    ///
    /// Refuses where the loader could not forget it, and would boot it for ever.
    fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()>;

    /// Has `new` be the default, and what boots once, where those were one of `gone`. A trial goes on.
    fn replace(&self, tx: &mut Transaction, gone: &[Entry], new: &str) -> Result<()>;

    /// Has what boots by default, once and on trial be the second of each pair of ids where that was the
    /// first. Where the names of files say it, that is so already.
    fn rename(&self, tx: &mut Transaction, ids: &[(String, String)]) -> Result<()>;

    /// Refuses where the loader could not count tries, or would find nothing to fall back to.
    fn check_trial(&self) -> Result<()>;

    /// Boots an entry from now on, `tries` times at most unless it is made the default by then.
    fn start_trial(&self, tx: &mut Transaction, id: &str, tries: u32) -> Result<()>;

    /// Boots the default again.
    fn end_trial(&self, tx: &mut Transaction) -> Result<()>;

    /// The file and the text of the menu, where the loader has one beside the entries.
    fn menu(&self, _entries: &[Entry]) -> Result<Option<(PathBuf, String)>> {
        Ok(None)
    }

    /// An entry as it is written, in place of `old` if that is there, with what the loader keeps in it.
    fn in_place_of(&self, _old: Option<&Entry>, entry: &Entry) -> Entry {
        entry.clone()
    }

    /// What it does at the next start, as the files are now.
    fn next_start(&self, ignoring: Ignoring) -> Result<Next>;

    /// What is wrong with the file that holds the default, if the loader would not read it.
    fn damage(&self) -> Result<Option<String>> {
        Ok(None)
    }

    /// Writes what can be salvaged of that file into a new one.
    fn rebuild(&self, _tx: &mut Transaction) -> Result<()> {
        Ok(())
    }
}
