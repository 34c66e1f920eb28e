//! Trials under systemd-boot, which counts the tries of an entry in the name of its file: the Boot
//! Loader Specification, "Boot counting".
//!
//! systemd-boot boots a default that is set whether it has tries left or not. So while a trial is on
//! there is none: the entry on trial comes first in the menu and the one to fall back to second, by
//! their sort keys. An entry without tries left comes last, wherever it would be.
//!
//! It also boots its first entry where the default is gone, and counts nothing if that has no tries. So an
//! entry that has never come up, and restarts by itself, comes after all others.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::Loader as _;
use super::systemd_boot::SystemdBoot;
use super::systemd_menu::Item;
use crate::boot::entries;
use crate::boot::entry::Entry;
use crate::boot::id::{self, Counter, split_counter};
use crate::model::trial::Trial;
use crate::sys::transaction::Transaction;

/// What sort keys begin with: of the entry on trial, of the one to fall back to, and of those that have never
/// come up. Those of other systems begin with their names.
const TRIAL: &str = "0-";
const FALLBACK: &str = "1-";
const UNTRIED: &str = "zz-";

impl SystemdBoot {
    /// Has systemd-boot boot an entry by default, `tries` times at most if it is not blessed, and then
    /// what is the default now.
    pub(super) fn start_counted(&self, tx: &mut Transaction, id: &str, tries: u32) -> Result<()> {
        let fallback = self
            .default_id()?
            .context("there is no default to fall back to")?;
        ensure!(
            fallback != id
                && (self.is_ours(&fallback)?
                    || self.foreign_beside(id)?.as_ref() == Some(&fallback)),
            "the default {fallback} is no entry to fall back to: without {id}, systemd-boot would boot something \
             else; --tries 0 goes without a trial"
        );
        self.fall_back_to(tx, id, &fallback)?;
        self.rename_entry(tx, id, &format!("{id}+{tries}-0"))?;
        self.files.flush(tx)?;
        self.write_default(tx, None)
    }

    /// Has the trial of `id` fall back to the entry `fallback`.
    pub(super) fn fall_back_to(
        &self,
        tx: &mut Transaction,
        id: &str,
        fallback: &str,
    ) -> Result<()> {
        self.rank(tx, |other| match other {
            _ if other == fallback => FALLBACK,
            _ if other == id => TRIAL,
            _ => "",
        })
    }

    /// The trial that is on, if there is one.
    pub(super) fn counted_trial(&self) -> Result<Option<Trial>> {
        if self.default_that_is_there()?.is_some() {
            return Ok(None);
        }
        let Some(path) = self.ranked(TRIAL)? else {
            return Ok(None);
        };
        let (id, counter) = split_counter(stem(&path));
        // systemd-bless-boot(8) may have been quicker than our blessing.
        let Counter { left, done } = counter.unwrap_or(Counter { left: 1, done: 0 });
        Ok(Some(Trial {
            id: id.to_owned(),
            tries: left.saturating_add(done),
            tried: done,
        }))
    }

    /// What a trial falls back to.
    pub(super) fn fallback_id(&self) -> Result<Option<String>> {
        let id =
            |path: Option<PathBuf>| path.and_then(|path| id::of_file(&path).map(str::to_owned));
        if let Some(fallback) = id(self.ranked(FALLBACK)?) {
            return Ok(Some(fallback));
        }
        match id(self.ranked(TRIAL)?) {
            Some(trial) => self.foreign_beside(&trial),
            None => Ok(None),
        }
    }

    /// The first of the menu but for this entry, and one whose place it takes as the entry on trial, if that belongs to
    /// another system.
    fn foreign_beside(&self, id: &str) -> Result<Option<String>> {
        let tried = self.counted_trial()?.map(|trial| trial.id);
        let is_beside = |item: &&Item| item.id != id && Some(&item.id) != tried.as_ref();
        let items = self.items()?;
        let Some(first) = items.iter().find(is_beside) else {
            return Ok(None);
        };
        // One that is tried may be gone from there when it is to boot.
        let is_fallback = !first.is_counted() && self.is_of_others(first)?;
        Ok(is_fallback.then(|| first.id.clone()))
    }

    /// Makes an entry the default without counting its tries, and ends a trial.
    pub(super) fn confirm_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        // Tries of another system's entry are counted on.
        if self.is_ours(id)? {
            self.rename_entry(tx, id, id)?;
        }
        self.files.flush(tx)?;
        self.write_default(tx, Some(id))?;
        self.rank(tx, |_| "")?;
        self.files.flush(tx)
    }

    /// Gives each entry of ours the rank that `rank` says for its id.
    fn rank<'a>(&self, tx: &mut Transaction, rank: impl Fn(&str) -> &'a str) -> Result<()> {
        let entries = entries::all(&self.files)?;
        // What is fallen back to has its place before the others change theirs.
        for is_fallback in [true, false] {
            for entry in &entries {
                let rank = rank(&entry.id);
                if is_fallback != (rank == FALLBACK) {
                    continue;
                }
                let ranked = with_rank(entry, rank);
                if ranked != *entry {
                    let path = self.files.entry_path(&entry.id)?;
                    tx.write(&path, ranked.render().as_bytes(), 0o644)?;
                }
            }
        }
        Ok(())
    }

    /// Takes the tries of a trial that is over off an entry. Before version 258 systemd-boot finds no file by a name
    /// without them.
    pub(super) fn uncount(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        let is_tried = self.counted_trial()?.is_some_and(|trial| trial.id == id);
        if is_tried || !self.is_ours(id)? {
            return Ok(());
        }
        self.rename_entry(tx, id, id)?;
        self.files.flush(tx)
    }

    fn rename_entry(&self, tx: &mut Transaction, id: &str, name: &str) -> Result<()> {
        let from = self.files.entry_path(id)?;
        let to = self.files.new_entry_path(name);
        if from == to {
            return Ok(());
        }
        tx.rename(&from, &to)
    }

    /// The file of the first entry of ours with that rank.
    fn ranked(&self, rank: &str) -> Result<Option<PathBuf>> {
        let entries = entries::all(&self.files)?;
        let found = entries.iter().find(|e| e.sort_key.starts_with(rank));
        found
            .map(|entry| self.files.entry_path(&entry.id))
            .transpose()
    }
}

/// An entry that takes the place of `old`, if that is there, with its rank.
pub fn with_rank_of(old: Option<&Entry>, entry: &Entry) -> Entry {
    let has = |rank: &&&str| old.is_some_and(|old| old.sort_key.starts_with(**rank));
    with_rank(entry, [TRIAL, FALLBACK].iter().find(has).unwrap_or(&""))
}

/// The same entry with this rank before its sort key, or with that which it has by itself.
fn with_rank(entry: &Entry, rank: &str) -> Entry {
    let key = &entry.sort_key;
    let mut ranks = [TRIAL, FALLBACK, UNTRIED].iter();
    let plain = ranks.find_map(|rank| key.strip_prefix(rank));
    let rank = match rank {
        "" if entry.is_trial() => UNTRIED,
        _ => rank,
    };
    Entry {
        sort_key: format!("{rank}{}", plain.unwrap_or(key)),
        ..entry.clone()
    }
}

fn stem(path: &Path) -> &str {
    path.file_stem()
        .and_then(|name| name.to_str())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::files::{ENTRIES, Files};
    use crate::boot::loader::{Ignoring, uki};
    use crate::boot::next::Next;
    use crate::sys::transaction::change;
    use std::fs;
    use tempfile::TempDir;

    /// An ESP with layers 1 and 2, of which the first is the default, and an entry of another system.
    fn esp() -> (TempDir, SystemdBoot) {
        let dir = tempfile::tempdir().unwrap();
        let entries = dir.path().join(ENTRIES);
        fs::create_dir_all(&entries).unwrap();
        fs::create_dir_all(dir.path().join("EFI/systemd")).unwrap();
        for name in ["Base-0.1", "Base-0.2", "Base-0"] {
            let text = format!(
                "title {name}\nversion 1\nsort-key imgbased-layer\nlinux /l\ninitrd /ucode\ninitrd /i\nmachine-id x\n\
                 options imgbased.layer={name}\n"
            );
            fs::write(entries.join(format!("imgbased-{name}.conf")), text).unwrap();
        }
        fs::write(
            entries.join("arch.conf"),
            "title x\nsort-key arch\nlinux /l\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("loader/loader.conf"),
            "timeout 1\ndefault imgbased-Base-0.1.conf\n",
        )
        .unwrap();
        let boot = SystemdBoot {
            files: Files::new(dir.path()),
            esp: Some(dir.path().to_owned()),
            variables: None,
        };
        (dir, boot)
    }

    fn start(boot: &SystemdBoot, id: &str) -> Result<()> {
        change(|tx| boot.start_counted(tx, id, 3))
    }

    fn confirm(boot: &SystemdBoot, id: &str) {
        change(|tx| boot.confirm_default(tx, id)).unwrap();
    }

    /// The names of the entries' files and their sort keys, as systemd-boot sorts them.
    fn menu(dir: &TempDir) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for file in fs::read_dir(dir.path().join(ENTRIES)).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let key = text.lines().find_map(|l| l.strip_prefix("sort-key "));
            found.push((key.unwrap().to_owned(), stem(&path).to_owned()));
        }
        found.sort_by(|a, b| (&a.0, &b.1).cmp(&(&b.0, &a.1)));
        found
    }

    #[test]
    fn a_trial_comes_first_and_what_it_falls_back_to_second() {
        let (dir, boot) = esp();
        let before = menu(&dir);
        start(&boot, "imgbased-Base-0.2").unwrap();
        let trial = Trial {
            id: "imgbased-Base-0.2".into(),
            tries: 3,
            tried: 0,
        };
        assert_eq!(boot.counted_trial().unwrap(), Some(trial));
        let names: Vec<String> = menu(&dir).into_iter().map(|(_, name)| name).collect();
        assert_eq!(
            names[..3],
            ["imgbased-Base-0.2+3-0", "imgbased-Base-0.1", "arch"]
        );
        // The default is what it was until the trial has succeeded.
        assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");
        let config = dir.path().join("loader/loader.conf");
        assert_eq!(fs::read_to_string(&config).unwrap(), "timeout 1\n");
        let ids = entries::all(&boot.files).unwrap().into_iter().map(|e| e.id);
        assert!(
            ids.collect::<Vec<_>>()
                .contains(&"imgbased-Base-0.2".to_owned())
        );

        // An entry that is written anew keeps its place.
        let old = entries::all(&boot.files).unwrap();
        let fallback = old.iter().find(|e| e.id == "imgbased-Base-0.1").unwrap();
        let other = old.iter().find(|e| e.id == "imgbased-Base-0").unwrap();
        assert_eq!(
            with_rank_of(Some(fallback), other).sort_key,
            "1-imgbased-layer"
        );
        assert_eq!(
            with_rank_of(Some(other), fallback).sort_key,
            "imgbased-layer"
        );

        // systemd-boot has counted one try.
        let entries = dir.path().join(ENTRIES);
        let counted = |name: &str| entries.join(format!("imgbased-Base-0.2+{name}.conf"));
        fs::rename(counted("3-0"), counted("2-1")).unwrap();
        confirm(&boot, "imgbased-Base-0.2");
        assert_eq!(menu(&dir), before);
        assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.2");
        assert_eq!(boot.counted_trial().unwrap(), None);
        assert_eq!(
            fs::read_to_string(&config).unwrap(),
            "timeout 1\ndefault imgbased-Base-0.2.conf\n"
        );
        let text = fs::read_to_string(entries.join("imgbased-Base-0.2.conf")).unwrap();
        assert!(text.contains("initrd /ucode\ninitrd /i\n") && text.contains("machine-id x\n"));
    }

    #[test]
    fn a_trial_that_cannot_start_leaves_the_menu_as_it_was() {
        let (dir, boot) = esp();
        let before = menu(&dir);
        let config = fs::read_to_string(dir.path().join("loader/loader.conf")).unwrap();
        let failed: Result<()> = change(|tx| {
            boot.start_counted(tx, "imgbased-Base-0.2", 3)?;
            assert_ne!(menu(&dir), before);
            anyhow::bail!("later")
        });
        assert_eq!(failed.unwrap_err().to_string(), "later");
        assert_eq!(menu(&dir), before);
        let now = fs::read_to_string(dir.path().join("loader/loader.conf")).unwrap();
        assert_eq!(now, config);
    }

    #[test]
    fn an_exhausted_trial_stays_counted_when_what_it_fell_back_to_is_blessed() {
        let (dir, boot) = esp();
        start(&boot, "imgbased-Base-0.2").unwrap();
        let entries = dir.path().join(ENTRIES);
        let counted = |name: &str| entries.join(format!("imgbased-Base-0.2+{name}.conf"));
        fs::rename(counted("3-0"), counted("0-3")).unwrap();
        let trial = boot.counted_trial().unwrap().unwrap();
        assert_eq!((trial.tries, trial.tried), (3, 3));
        confirm(&boot, "imgbased-Base-0.1");
        assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");
        assert!(counted("0-3").exists());
        change(|tx| boot.uncount(tx, "imgbased-Base-0.2")).unwrap();
        assert!(!counted("0-3").exists());
        // It gets new tries when it is tried again.
        start(&boot, "imgbased-Base-0.2").unwrap();
        assert!(counted("3-0").exists() && !counted("0-3").exists());
    }

    #[test]
    fn what_has_never_come_up_comes_last_until_it_is_tried() {
        let (dir, boot) = esp();
        let all = entries::all(&boot.files).unwrap();
        let entry = all
            .into_iter()
            .find(|e| e.id == "imgbased-Base-0.2")
            .unwrap();
        let trial = with_rank_of(None, &entry.clone().on_trial());
        assert_eq!(trial.sort_key, "zz-imgbased-layer");
        let path = boot.files.entry_path(&trial.id).unwrap();
        fs::write(&path, trial.render()).unwrap();
        let place = || {
            menu(&dir)
                .iter()
                .position(|(_, name)| name.starts_with(&trial.id))
        };
        assert_eq!(place(), Some(3));
        start(&boot, &trial.id).unwrap();
        assert_eq!(place(), Some(0));
        confirm(&boot, "imgbased-Base-0.1");
        assert_eq!(place(), Some(3));
        let confirmed = with_rank_of(Some(&trial), &trial.clone().confirmed());
        assert_eq!(confirmed.sort_key, "imgbased-layer");
    }

    #[test]
    fn a_trial_goes_on_where_what_it_falls_back_to_is_replaced() {
        let (_dir, boot) = esp();
        start(&boot, "imgbased-Base-0.2").unwrap();
        let all = entries::all(&boot.files).unwrap();
        let gone: Vec<Entry> = all
            .into_iter()
            .filter(|e| e.id == "imgbased-Base-0.1")
            .collect();
        change(|tx| boot.replace(tx, &gone, "imgbased-Base-0")).unwrap();
        assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0");
        let trial = boot.counted_trial().unwrap().unwrap();
        assert_eq!((trial.id.as_str(), trial.tries), ("imgbased-Base-0.2", 3));
    }

    #[test]
    fn a_second_trial_takes_the_place_of_the_first() {
        let (_dir, boot) = esp();
        start(&boot, "imgbased-Base-0.2").unwrap();
        start(&boot, "imgbased-Base-0").unwrap();
        let trial = boot.counted_trial().unwrap().unwrap();
        assert_eq!(trial.id, "imgbased-Base-0");
        assert_eq!(boot.default_id().unwrap().unwrap(), "imgbased-Base-0.1");
    }

    #[test]
    fn a_trial_falls_back_to_another_system_that_is_second_by_itself() {
        let (dir, boot) = esp();
        let config = dir.path().join("loader/loader.conf");
        let images = dir.path().join("EFI/Linux");
        fs::create_dir_all(&images).unwrap();
        for kernel in ["l", "ucode", "i"] {
            fs::write(dir.path().join(kernel), "x").unwrap();
        }
        let trial = "imgbased-Base-0.2";
        let default = |name: &str| fs::write(&config, format!("default {name}\n")).unwrap();
        default("arch.conf");
        start(&boot, trial).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "");
        assert_eq!(boot.counted_trial().unwrap().unwrap().id, trial);
        assert_eq!(boot.default_id().unwrap().as_deref(), Some("arch"));
        // Another one takes its place.
        start(&boot, "imgbased-Base-0.1").unwrap();
        let second = boot.counted_trial().unwrap().unwrap();
        assert_eq!(second.id, "imgbased-Base-0.1");
        assert_eq!(boot.default_id().unwrap().as_deref(), Some("arch"));
        start(&boot, trial).unwrap();
        change(|tx| boot.end_trial(tx)).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "default arch.conf\n");
        assert_eq!(boot.counted_trial().unwrap(), None);

        // The same with a unified kernel image, once there is nothing before it.
        let system = |name: &str, id: &str| {
            let image = uki::tests::image(&format!("ID={id}\nVERSION_ID=1\n"));
            fs::write(images.join(name), image).unwrap();
        };
        system("b.efi", "b");
        default("b.efi");
        let error = start(&boot, trial).unwrap_err().to_string();
        assert!(error.contains("would boot something else"), "{error}");
        system("b.efi", "a");
        start(&boot, trial).unwrap();
        assert_eq!(boot.default_id().unwrap().as_deref(), Some("b.efi"));
        let next = |ignoring| boot.next_start(ignoring).unwrap();
        assert_eq!(next(Ignoring::Nothing).id(), Some(trial));
        assert_eq!(next(Ignoring::OnceAndTrial), Next::Other("b.efi".into()));
        change(|tx| boot.end_trial(tx)).unwrap();
        assert_eq!(fs::read_to_string(&config).unwrap(), "default b.efi\n");
        assert_eq!(boot.counted_trial().unwrap(), None);

        // What systemd-boot finds by itself never boots unless it was chosen.
        default("auto-windows");
        assert_eq!(boot.default_id().unwrap().as_deref(), Some("auto-windows"));
        assert_eq!(next(Ignoring::Nothing), Next::Other("auto-windows".into()));
        assert!(start(&boot, trial).is_err());
    }

    #[test]
    fn where_a_unified_kernel_image_boots_by_itself_it_stays_what_boots() {
        let (dir, boot) = esp();
        for file in ["loader/loader.conf", "loader/entries/arch.conf"] {
            fs::remove_file(dir.path().join(file)).unwrap();
        }
        assert_eq!(boot.unset_default().unwrap(), None);
        fs::create_dir_all(dir.path().join("EFI/Linux")).unwrap();
        let image = uki::tests::image("ID=arch\nBUILD_ID=rolling\n");
        fs::write(dir.path().join("EFI/Linux/arch.efi"), image).unwrap();
        assert_eq!(boot.default_id().unwrap(), None);
        assert_eq!(boot.unset_default().unwrap().as_deref(), Some("arch.efi"));

        // One that is tried goes on being counted, and the default is one that is not.
        let tried = dir.path().join(ENTRIES).join("new+3.conf");
        fs::write(dir.path().join("l"), "x").unwrap();
        fs::write(&tried, "title x\nsort-key a\nlinux /l\n").unwrap();
        let next = boot.next_start(Ignoring::Nothing).unwrap();
        assert_eq!(next, Next::Other("new".into()));
        assert_eq!(boot.unset_default().unwrap().as_deref(), Some("arch.efi"));
        confirm(&boot, "new");
        assert!(tried.exists());
    }

    #[test]
    fn without_something_to_fall_back_to_there_is_no_trial() {
        let (dir, boot) = esp();
        let before = menu(&dir);
        assert!(start(&boot, "imgbased-Base-0.1").is_err());
        fs::write(dir.path().join("loader/loader.conf"), "default gone\n").unwrap();
        let error = start(&boot, "imgbased-Base-0.2").unwrap_err().to_string();
        assert!(
            error.starts_with("the default gone is no entry to fall back to"),
            "{error}"
        );
        fs::remove_file(dir.path().join("loader/loader.conf")).unwrap();
        let error = start(&boot, "imgbased-Base-0.2").unwrap_err().to_string();
        assert_eq!(error, "there is no default to fall back to");
        assert_eq!(menu(&dir), before);
    }
}
