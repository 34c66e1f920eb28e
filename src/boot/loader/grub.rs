//! GRUB: its environment block says what boots and counts tries, its configuration shows the menu.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, statfs};

use super::grub_menu::{self, MENU};
use super::grub_start::{self, Facts, Item};
use super::grubenv::GrubEnv;
use super::{Ignoring, Loader};
use crate::boot::entries;
use crate::boot::entry::Entry;
use crate::boot::files::Files;
use crate::boot::id;
use crate::boot::next::Next;
use crate::model::trial::Trial;
use crate::sys::cmd::Cmd;
use crate::sys::files::read_if_there;
use crate::sys::transaction::Transaction;

/// GRUB's configuration.
pub const CONFIG: &str = "grub.cfg";

/// Variables of grubenv: the id of the entry that boots, and of one that boots once, before it.
const DEFAULT: &str = "saved_entry";
const ONCE: &str = "next_entry";
/// Those that the head of the menu reads: the id of the entry on trial, how often it may boot, and how often
/// it did.
const TRIAL: &str = "imgbased_trial";
const TRIES: &str = "imgbased_tries";
const TRIED: &str = "imgbased_tried";

const OURS: [&str; 5] = [DEFAULT, ONCE, TRIAL, TRIES, TRIED];

pub struct Grub {
    pub files: Files,
    /// Whether it reads the entries itself.
    pub reads_entries: bool,
    /// Whether its configuration can show the rendered menu. That is also where there are entries, for a
    /// configuration that falls back to the menu.
    pub has_menu: bool,
}

/// /boot/grub, or /boot/grub2 as on Fedora. Where both are there, because a layer of another distribution has
/// made the second, it is the one with a configuration, and then the one with our menu.
pub fn directory(boot: &Path) -> PathBuf {
    let has = |dir: &Path, name: &str| dir.join(name).is_file();
    let rank = |dir: &PathBuf| (has(dir, CONFIG), has(dir, MENU), dir.is_dir());
    let [grub, grub2] = ["grub", "grub2"].map(|name| boot.join(name));
    if rank(&grub2) > rank(&grub) || rank(&grub2) == rank(&grub) && grub2.is_dir() {
        grub2
    } else {
        grub
    }
}

impl Loader for Grub {
    fn name(&self) -> &'static str {
        if self.reads_entries {
            "GRUB, which reads the entries"
        } else {
            "GRUB with the menu of imgbased.cfg"
        }
    }

    fn id(&self) -> &'static str {
        if self.reads_entries {
            "grub-blscfg"
        } else {
            "grub"
        }
    }

    fn check_reads(&self) -> Result<()> {
        Ok(())
    }

    fn default_id(&self) -> Result<Option<String>> {
        self.variable(DEFAULT)
    }

    fn unset_default(&self) -> Result<Option<String>> {
        self.with_facts(Ignoring::OnceAndTrial, grub_start::unset_default)
    }

    fn salvaged_default_id(&self) -> Result<Option<String>> {
        let env = self.salvaged_env()?;
        Ok(env
            .get(DEFAULT)
            .filter(|id| !id.is_empty())
            .map(str::to_owned))
    }

    fn once_id(&self) -> Result<Option<String>> {
        self.variable(ONCE)
    }

    fn trial(&self) -> Result<Option<Trial>> {
        let env = self.env()?;
        let number = |name| {
            env.get(name)
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        let id = env.get(TRIAL).filter(|id| !id.is_empty());
        Ok(id.map(|id| Trial {
            id: id.to_owned(),
            tries: number(TRIES),
            tried: number(TRIED),
        }))
    }

    /// One write ends a trial and sets the default.
    fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        let default = (DEFAULT, id);
        match self.trial()? {
            None => self.set(tx, &[default]),
            Some(_) => self.set(tx, &[default, (TRIAL, ""), (TRIES, ""), (TRIED, "")]),
        }
    }

    fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        if id.is_some() {
            self.check_config("next_entry", "boot an entry once")?;
            self.check_writable()?;
        }
        self.set(tx, &[(ONCE, id.unwrap_or_default())])
    }

    fn replace(&self, tx: &mut Transaction, gone: &[Entry], new: &str) -> Result<()> {
        for (variable, id) in [(DEFAULT, self.default_id()?), (ONCE, self.once_id()?)] {
            if gone.iter().any(|entry| Some(&entry.id) == id.as_ref()) {
                self.set(tx, &[(variable, new)])?;
            }
        }
        Ok(())
    }

    /// One write, so that nothing of it is half done.
    fn rename(&self, tx: &mut Transaction, ids: &[(String, String)]) -> Result<()> {
        let env = self.env()?;
        let new = |variable| {
            let old = env.get(variable)?;
            let (_, new) = ids.iter().find(|(id, _)| id == old)?;
            Some((variable, new.as_str()))
        };
        let changed: Vec<_> = [DEFAULT, ONCE, TRIAL].into_iter().filter_map(new).collect();
        match changed[..] {
            [] => Ok(()),
            _ => self.set(tx, &changed),
        }
    }

    fn check_trial(&self) -> Result<()> {
        // The ids of others are known to GRUB only.
        if let Some(id) = self.default_id()?.filter(|id| id::is_ours(id)) {
            ensure!(
                self.files.entry_text(&id)?.is_some(),
                "the default {id} is no entry to fall back to"
            );
        }
        self.check_config(MENU, "count the tries of an entry on trial")?;
        self.check_writable()
    }

    fn start_trial(&self, tx: &mut Transaction, id: &str, tries: u32) -> Result<()> {
        let tries = tries.to_string();
        self.set(tx, &[(TRIAL, id), (TRIES, &tries), (TRIED, "0")])
    }

    fn end_trial(&self, tx: &mut Transaction) -> Result<()> {
        self.set(tx, &[(TRIAL, ""), (TRIES, ""), (TRIED, "")])
    }

    fn menu(&self, entries: &[Entry]) -> Result<Option<(PathBuf, String)>> {
        if !self.has_menu {
            return Ok(None);
        }
        let mut shown = entries.to_vec();
        shown.extend(self.unreadable()?);
        Entry::sort(&mut shown);
        Ok(Some((self.dir().join(MENU), grub_menu::render(&shown))))
    }

    fn next_start(&self, ignoring: Ignoring) -> Result<Next> {
        self.with_facts(ignoring, grub_start::next)
    }

    fn damage(&self) -> Result<Option<String>> {
        let Some(block) = read_if_there(&self.env_path())? else {
            return Ok(None);
        };
        Ok(match GrubEnv::parse(&block) {
            Err(error) => Some(format!("is damaged, so GRUB knows no default: {error}")),
            Ok(env) => OURS.iter().find(|name| env.repeats(name)).map(|name| {
                format!("has {name} more than once: GRUB reads the last, and writes to the first")
            }),
        })
    }

    fn rebuild(&self, tx: &mut Transaction) -> Result<()> {
        let mut env = self.salvaged_env()?;
        for name in OURS {
            if let (true, Some(value)) = (env.repeats(name), env.get(name).map(str::to_owned)) {
                env.set(name, &value);
            }
        }
        let block = env.render()?;
        let path = self.env_path();
        tx.write(&path, &block, 0o644)?;
        self.files.flush(tx)
    }
}

impl Grub {
    fn dir(&self) -> PathBuf {
        directory(self.files.dir())
    }

    /// What follows from the files as they are.
    fn with_facts<T>(&self, ignoring: Ignoring, answer: impl Fn(&Facts) -> T) -> Result<T> {
        let block = read_if_there(&self.env_path())?.unwrap_or_default();
        let mut env = GrubEnv::load(&block).unwrap_or_default();
        if ignoring != Ignoring::Nothing {
            env.set(ONCE, "");
        }
        if ignoring == Ignoring::OnceAndTrial {
            env.set(TRIAL, "");
        }
        let path = self.dir().join(CONFIG);
        let items = self.items()?;
        Ok(answer(&Facts {
            config: self.config()?.as_deref(),
            config_path: &path.to_string_lossy(),
            items: items.as_deref(),
            reads_entries: self.reads_entries,
            env: &env,
            has_file: &|path| self.files.has(path),
            has_entry: &|id| self.files.new_entry_path(id).is_file(),
        }))
    }

    /// The entries that GRUB shows: of our menu as it is now, or those that it reads itself.
    fn items(&self) -> Result<Option<Vec<Item>>> {
        if self.has_menu {
            let menu = read_if_there(&self.dir().join(MENU))?;
            return Ok(menu.map(|menu| grub_start::items(&String::from_utf8_lossy(&menu))));
        }
        let menu = grub_menu::render(&entries::all(&self.files)?);
        Ok(Some(grub_start::items(&menu)))
    }

    /// What the menu shows of entries that were changed since so that no menu can have them, or that they
    /// name no layer: it can be the default, which has to stay.
    fn unreadable(&self) -> Result<Vec<Entry>> {
        let mut found = Vec::new();
        for item in self.items()?.unwrap_or_default() {
            let text = self.files.entry_text(&item.id)?;
            let is_lost = |(_, text): (PathBuf, String)| {
                !matches!(Entry::parse(&item.id, &text), Ok(Some(_)))
            };
            if text.is_some_and(is_lost) {
                let (linux, options) = (&item.linux, &item.options);
                let shown = Entry::of_menu(&item.id, &item.title, linux, &item.initrds, options);
                found.extend(shown.map(|mut entry| {
                    if item.is_open {
                        entry.extra.lines.push("grub_arg --unrestricted".to_owned());
                    }
                    entry
                }));
            }
        }
        Ok(found)
    }

    /// grub.cfg, with custom.cfg in the place where it is sourced.
    fn config(&self) -> Result<Option<String>> {
        let read = |name: &str| -> Result<Option<String>> {
            let text = read_if_there(&self.dir().join(name))?;
            Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
        };
        let custom = read("custom.cfg")?.unwrap_or_default();
        Ok(read(CONFIG)?.map(|config| {
            let lines = config.lines().map(|line| match line.trim_start() {
                command if command.starts_with("source") && command.contains("/custom.cfg") => {
                    &custom
                }
                _ => line,
            });
            lines.collect::<Vec<_>>().join("\n")
        }))
    }

    fn variable(&self, name: &str) -> Result<Option<String>> {
        let env = self.env()?;
        let id = env.get(name).filter(|id| !id.is_empty());
        Ok(id.map(str::to_owned))
    }

    /// Sets variables of grubenv, all at once.
    fn set(&self, tx: &mut Transaction, variables: &[(&str, &str)]) -> Result<()> {
        let mut env = self.env()?;
        let path = self.env_path();
        let mut editenv = Cmd::new("grub-editenv").arg(&path).arg("set");
        for (name, value) in variables {
            env.set(name, value);
            editenv = editenv.arg(format!("{name}={value}"));
        }
        tx.write_as(&path, &env.render()?, 0o644, &editenv)?;
        self.files.flush(tx)?;
        ensure!(
            tx.is_dry_run() || self.env()? == env,
            "{} does not hold what was written to it",
            path.display()
        );
        Ok(())
    }

    fn env(&self) -> Result<GrubEnv> {
        let path = self.env_path();
        match read_if_there(&path)? {
            Some(block) => GrubEnv::parse(&block).with_context(|| {
                let path = path.display();
                format!("{path} is damaged; `imgbased-helper check --repair` makes a new one")
            }),
            None => Ok(GrubEnv::default()),
        }
    }

    fn salvaged_env(&self) -> Result<GrubEnv> {
        let block = read_if_there(&self.env_path())?.unwrap_or_default();
        Ok(GrubEnv::parse(&block).unwrap_or_else(|_| GrubEnv::salvage(&block)))
    }

    /// The file that GRUB reads, where the usual name is a link to another place.
    fn env_path(&self) -> PathBuf {
        let path = self.dir().join("grubenv");
        path.canonicalize().unwrap_or(path)
    }

    /// Refuses a configuration that does not look at `what`.
    fn check_config(&self, what: &str, purpose: &str) -> Result<()> {
        let config = self.dir().join(CONFIG);
        let text =
            fs::read(&config).with_context(|| format!("cannot read {}", config.display()))?;
        ensure!(
            String::from_utf8_lossy(&text).contains(what),
            "{} does not look at {what}, so GRUB would not {purpose}; run update-grub, or take \
             /usr/share/imgbased-helper/grub.cfg",
            config.display()
        );
        Ok(())
    }

    /// Refuses where GRUB cannot write to its environment block (its manual, "Environment block").
    fn check_writable(&self) -> Result<()> {
        let environment = self.env_path();
        let reason = |what: &str| {
            format!(
                "GRUB cannot write to {}, which is on {what}, and would boot the entry for ever",
                environment.display()
            )
        };
        let at = || format!("cannot look at {}", environment.display());
        let device = fs::metadata(&environment).with_context(at)?.dev();
        let device = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let device = Path::new(&device);
        for device in [device.to_owned(), device.join("..")] {
            let problem = unwritable(&device);
            ensure!(problem.is_none(), reason(problem.unwrap_or_default()));
        }
        let kind = statfs(&environment).with_context(at)?.filesystem_type();
        ensure!(kind != BTRFS_SUPER_MAGIC, reason("btrfs"));
        Ok(())
    }
}

/// What a device is, by its directory in sysfs, if GRUB could not write to what is on it. Of multipath and of a RAID of
/// the firmware it sees one disk with the same content.
fn unwritable(device: &Path) -> Option<&'static str> {
    let read = |name: &str| fs::read_to_string(device.join(name)).unwrap_or_default();
    if device.join("dm").exists() {
        let uuid = read("dm/uuid");
        let of_whole = uuid
            .strip_prefix("part")
            .and_then(|rest| Some(rest.split_once('-')?.1));
        let is_multipath = of_whole.unwrap_or(&uuid).starts_with("mpath-");
        return (!is_multipath).then_some("a device-mapper volume");
    }
    if device.join("md").exists() {
        let is_of_firmware = read("md/metadata_version").starts_with("external:");
        return (!is_of_firmware).then_some("a software RAID");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::transaction::change;

    #[test]
    fn grub_writes_to_what_the_firmware_shows_as_a_disk() {
        for (file, text, expected) in [
            ("size", "1", None),
            ("dm/uuid", "LVM-abc", Some("a device-mapper volume")),
            ("dm/uuid", "CRYPT-LUKS2-abc", Some("a device-mapper volume")),
            (
                "dm/uuid",
                "part2-LVM-mpath-",
                Some("a device-mapper volume"),
            ),
            ("dm/uuid", "mpath-3600", None),
            ("dm/uuid", "part2-mpath-3600", None),
            ("md/metadata_version", "1.2", Some("a software RAID")),
            ("md/metadata_version", "external:/md127/0", None),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            assert_eq!(unwritable(dir.path()), expected, "{file} {text}");
        }
    }

    #[test]
    fn the_directory_is_the_one_that_grub_reads() {
        for (files, expected) in [
            (&[][..], "grub"),
            (&["grub2/grubenv"], "grub2"),
            (&["grub/grub.cfg", "grub2/grubenv"], "grub"),
            (&["grub/grubenv", "grub2/grub.cfg"], "grub2"),
            (&["grub/imgbased.cfg", "grub2/grubenv"], "grub"),
            (
                &["grub/grub.cfg", "grub/imgbased.cfg", "grub2/grub.cfg"],
                "grub",
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            for file in files {
                let path = dir.path().join(file);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
            assert_eq!(
                directory(dir.path()),
                dir.path().join(expected),
                "{files:?}"
            );
        }
    }

    #[test]
    fn a_default_that_is_there_twice_is_damage_and_is_repaired_to_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let grub = Grub {
            files: Files::new(dir.path()),
            reads_entries: false,
            has_menu: true,
        };
        fs::create_dir(dir.path().join("grub")).unwrap();
        let mut block = b"# GRUB Environment Block\nsaved_entry=a\nx=1\nsaved_entry=b\n".to_vec();
        block.resize(1024, b'#');
        fs::write(dir.path().join("grub/grubenv"), block).unwrap();
        let damage = grub.damage().unwrap().unwrap();
        assert!(
            damage.starts_with("has saved_entry more than once"),
            "{damage}"
        );
        change(|tx| grub.rebuild(tx)).unwrap();
        assert_eq!(grub.damage().unwrap(), None);
        assert_eq!(grub.default_id().unwrap().as_deref(), Some("b"));
        assert_eq!(grub.env().unwrap().get("x"), Some("1"));
    }

    #[test]
    fn an_entry_boots_once_only_where_grub_looks_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let grub = Grub {
            files: Files::new(dir.path()),
            reads_entries: false,
            has_menu: true,
        };
        fs::create_dir(dir.path().join("grub")).unwrap();
        let (config, environment) = (
            dir.path().join("grub/grub.cfg"),
            dir.path().join("grub/grubenv"),
        );
        let error = || {
            let result = change(|tx| grub.set_once(tx, Some("x")));
            format!("{:#}", result.unwrap_err())
        };
        assert!(error().contains("grub.cfg: No such file"), "{}", error());
        fs::write(&config, "set default=0\n").unwrap();
        assert!(
            error().contains("does not look at next_entry"),
            "{}",
            error()
        );
        fs::write(&config, "if [ \"${next_entry}\" ]; then\n").unwrap();
        assert!(error().contains("grubenv: No such file"), "{}", error());
        fs::write(&environment, GrubEnv::default().render().unwrap()).unwrap();
        change(|tx| grub.set_once(tx, Some("x"))).unwrap();
        assert_eq!(grub.once_id().unwrap().as_deref(), Some("x"));
    }
}
