//! Repairs what was found, one after the other.

use anyhow::{Result, anyhow, bail};

use super::finding::{Finding, Phase, Repair};
use crate::admin::base::listings;
use crate::admin::{Context, boot, comment, layer, say, volume};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::model::name::{LvName, VgUuid};
use crate::model::saved;
use crate::sys::transaction::{Transaction, Writer};

/// What is looked at and repaired.
pub trait Host {
    /// All that is wrong now.
    fn find(&self, writer: &Writer) -> Result<Vec<Finding>>;
    /// Has all name the group as it is called now: several units of work.
    fn rename(&self, writer: &Writer) -> Result<()>;
    fn apply(&self, tx: &mut Transaction, repair: &Repair) -> Result<()>;
    /// Prints the command that does what is left when one repair was made: what that is depends on it.
    fn say_rest(&self) -> Result<()>;
}

/// Repairs what is found, phase by phase, and says what became of it. Each repair is a unit of work: one that fails
/// is undone at once, and does not keep the others from being done. Returns whether all is right then.
pub fn each(host: &impl Host, writer: &Writer, phases: &[Phase]) -> Result<bool> {
    let mut is_clean = true;
    let mut tried = Vec::new();
    let mut phases = phases.to_vec();
    if writer.is_dry_run() {
        // It may end before the last one.
        phases.rotate_right(1);
    }
    for phase in phases {
        // Everything is looked at anew after each repair: an entry that was written may name a kernel that
        // nothing used before, and the lock is free while an initramfs is made.
        loop {
            let mut findings = host.find(writer)?.into_iter();
            let is_next = |f: &Finding| f.repair.phase() == phase && !tried.contains(&f.name());
            let Some(finding) = findings.find(is_next) else {
                break;
            };
            tried.push(finding.name());
            let (subject, problem, repair) = (&finding.subject, &finding.problem, &finding.repair);
            let done = match repair {
                Repair::Advice(advice) => Err(anyhow!("{advice}")),
                Repair::Rename => host.rename(writer),
                repair => writer.transaction(|tx| host.apply(tx, repair)),
            };
            if let Err(error) = done {
                // The next one may be more important.
                is_clean = false;
                let text = format!("{subject}: {problem}; {error:#}");
                if writer.is_dry_run() {
                    comment(&text)?;
                } else {
                    say(&format!("{text}\n"))?;
                }
                writer.interrupt().check()?;
                continue;
            }
            if !writer.is_dry_run() {
                say(&format!("{subject}: {problem}; done: {repair}\n"))?;
            } else if phase != Phase::Volumes {
                // Entries, menus and what boots depend on each other.
                let is_left = |f: &Finding| f.repair.is_automatic() && !tried.contains(&f.name());
                if host.find(writer)?.iter().any(is_left) {
                    host.say_rest()?;
                }
                return Ok(is_clean);
            }
            if matches!(repair, Repair::RemoveGroup) {
                return Ok(true);
            }
        }
    }
    Ok(is_clean)
}

/// Does one repair, as a part of a transaction.
pub fn apply(context: &Context, tx: &mut Transaction, repair: &Repair) -> Result<()> {
    let lvm = &context.lvm;
    // Only a new entry needs room for a kernel.
    let writable = || -> Result<BootPartition> {
        let boot = context.boot_partition()?;
        boot.check_writable()?;
        Ok(boot)
    };
    match repair {
        Repair::RemoveGroup => {
            let disks = lvm.disks()?;
            tx.run(&lvm.remove_group())?;
            tx.run(&lvm.forget_devices(&disks))
        }
        Repair::RemoveVolume(name) => remove_volume(context, tx, name),
        Repair::MakeReadOnly(name) => tx.run(&lvm.make_read_only(name)),
        Repair::SkipActivation(name) => tx.run(&lvm.skip_activation(name)),
        Repair::AutoExtend(name) => tx.run(&lvm.auto_extend(name)),
        Repair::ImportDevices => tx.run(&lvm.import_devices()),
        Repair::Exchange => {
            let group = context.load()?;
            volume::exchange(context, tx, &group, &saved::begun(&group))
        }
        Repair::RemoveListings => listings::tidy(context, tx, &[]),
        Repair::WriteEntry(name) => {
            let all = layer::KernelChange::default();
            let boot = context.boot_partition()?;
            boot.check_ready()?;
            layer::write_entries(context, tx, &context.load()?, &boot, name, &all).map(drop)
        }
        Repair::Identify(name) => {
            let boot = writable()?;
            let uuid: VgUuid = context.load()?.uuid.parse()?;
            boot.change_entries(tx, name, |entry| entry.of_group(&uuid))
        }
        Repair::RemoveEntry(name) => writable()?.remove_last(tx, std::slice::from_ref(name)),
        Repair::WriteMenu => writable()?.render_menu(tx),
        Repair::RebuildEnv => writable()?.rebuild_env(tx),
        Repair::SetDefault(name) => {
            let boot = writable()?;
            match boot.entry_of(name)? {
                Some(entry) => boot.confirm(tx, name, &entry),
                None => bail!("{name} has no boot entry"),
            }
        }
        Repair::Confirm(name, id) => writable()?.change_entry(tx, name, id, Entry::confirmed),
        Repair::EndTrial => writable()?.end_trial(tx),
        Repair::RecordFailure => boot::record_failure(context, tx, &writable()?, &context.load()?),
        Repair::RemoveFile(path) => {
            let path = path.clone();
            tx.discard(move || Ok(vec![path]));
            Ok(())
        }
        // That is several units of work.
        Repair::Rename | Repair::Advice(_) => Ok(()),
    }
}

/// Removes a volume that was never finished.
fn remove_volume(context: &Context, tx: &mut Transaction, name: &LvName) -> Result<()> {
    let lvm = &context.lvm;
    context.check_pool(&context.load()?)?;
    let Err(error) = tx.run(&lvm.remove(name)) else {
        return Ok(());
    };
    let group = context.load()?;
    let Some(pool) = group.pool() else {
        return Err(error);
    };
    match lvm.delete_thin_device(name, &pool.name.parse()?)? {
        Some(unmake) => {
            tx.run(&unmake)?;
            tx.run(&lvm.remove(name))
        }
        None => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use super::*;
    use crate::admin::check::Part;
    use crate::sys::cmd::Cmd;

    /// A directory whose files are what was repaired. What is to be repaired to a file of the name `bad` fails
    /// after the file was made.
    struct Files {
        dir: tempfile::TempDir,
        wanted: Vec<(&'static str, Repair)>,
        /// All that was tried, in its order.
        tried: RefCell<Vec<String>>,
    }

    impl Files {
        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        fn there(&self) -> Vec<String> {
            let files = std::fs::read_dir(self.dir.path()).unwrap();
            let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<String> = names.collect();
            names.sort_unstable();
            names
        }
    }

    impl Host for Files {
        fn find(&self, _: &Writer) -> Result<Vec<Finding>> {
            let missing = self
                .wanted
                .iter()
                .filter(|(name, _)| !self.path(name).exists());
            let finding = |(name, repair): &(&str, Repair)| Finding {
                part: Part::default(),
                subject: (*name).to_owned(),
                problem: "is not there".to_owned(),
                repair: repair.clone(),
            };
            Ok(missing.map(finding).collect())
        }

        fn rename(&self, _: &Writer) -> Result<()> {
            self.tried.borrow_mut().push("rename".to_owned());
            Ok(std::fs::write(self.path("renamed"), "")?)
        }

        fn apply(&self, tx: &mut Transaction, repair: &Repair) -> Result<()> {
            let name = match repair {
                Repair::RemoveVolume(name) | Repair::WriteEntry(name) => name.to_string(),
                Repair::RemoveFile(path) => path.display().to_string(),
                _ => bail!("{repair} is nothing to be done"),
            };
            self.tried.borrow_mut().push(name.clone());
            let path = self.path(&name);
            let (touch, rm) = (Cmd::new("touch").arg(&path), Cmd::new("rm").arg(&path));
            tx.run_undoable(&touch, rm)?;
            if name == "bad" && !tx.is_dry_run() {
                bail!("it cannot be made");
            }
            Ok(())
        }

        fn say_rest(&self) -> Result<()> {
            self.tried.borrow_mut().push("rest".to_owned());
            Ok(())
        }
    }

    fn repaired(wanted: Vec<(&'static str, Repair)>, dry_run: bool) -> (bool, Files) {
        let host = Files {
            dir: tempfile::tempdir().unwrap(),
            wanted,
            tried: RefCell::default(),
        };
        let writer = Writer::new("test", Duration::ZERO, dry_run).unwrap();
        let is_clean = each(&host, &writer, &Phase::ALL).unwrap();
        (is_clean, host)
    }

    fn volume(name: &str) -> Repair {
        Repair::RemoveVolume(name.parse().unwrap())
    }

    #[test]
    fn a_repair_that_fails_is_undone_and_the_others_are_done() {
        let wanted = vec![
            ("bad", volume("bad")),
            ("good", volume("good")),
            (
                "by hand",
                Repair::Advice("only a person can make it".to_owned()),
            ),
            ("later", Repair::WriteEntry("later".parse().unwrap())),
        ];
        let (is_clean, host) = repaired(wanted, false);
        assert!(!is_clean);
        assert_eq!(host.there(), ["good", "later"]);
        assert_eq!(*host.tried.borrow(), ["bad", "good", "later"]);
    }

    #[test]
    fn volumes_come_before_entries_and_files_come_last() {
        let wanted = vec![
            ("file", Repair::RemoveFile(Path::new("file").to_owned())),
            ("renamed", Repair::Rename),
            ("entry", Repair::WriteEntry("entry".parse().unwrap())),
            ("volume", volume("volume")),
        ];
        let (is_clean, host) = repaired(wanted, false);
        assert!(is_clean);
        assert_eq!(*host.tried.borrow(), ["volume", "rename", "entry", "file"]);
        assert_eq!(host.there(), ["entry", "file", "renamed", "volume"]);
    }

    #[test]
    fn a_dry_run_tells_what_a_person_can_do() {
        let by_hand = Repair::Advice("a person can do it".to_owned());
        let entry = Repair::WriteEntry("entry".parse().unwrap());
        let (is_clean, _) = repaired(vec![("entry", entry), ("by hand", by_hand)], true);
        assert!(!is_clean);
    }

    #[test]
    fn what_a_repair_has_done_with_is_left_to_nobody() {
        let by_hand = Repair::Advice("a person can do it, too".to_owned());
        let wanted = vec![("renamed", by_hand), ("renamed", Repair::Rename)];
        let (is_clean, host) = repaired(wanted, false);
        assert!(is_clean);
        assert_eq!(*host.tried.borrow(), ["rename"]);
    }

    #[test]
    fn a_dry_run_leaves_what_depends_on_an_entry_to_another_command() {
        let entry = |name: &str| Repair::WriteEntry(name.parse().unwrap());
        for (wanted, expected) in [
            (
                vec![("a", volume("a")), ("b", volume("b"))],
                &["a", "b"][..],
            ),
            (vec![("a", volume("a")), ("b", entry("b"))], &["a", "b"]),
            (
                vec![("a", volume("a")), ("b", entry("b")), ("c", entry("c"))],
                &["a", "b", "rest"],
            ),
        ] {
            let (_, host) = repaired(wanted, true);
            assert_eq!(*host.tried.borrow(), expected);
            assert!(host.there().is_empty());
        }
    }
}
