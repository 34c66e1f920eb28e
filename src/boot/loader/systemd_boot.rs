//! systemd-boot: EFI variables and loader.conf say what boots, names of entries count tries.
//! <https://systemd.io/BOOT_LOADER_INTERFACE/>, loader.conf(5), bootctl(1).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};

use super::systemd_menu::{self, Item, is_found, name_of};
use super::{Ignoring, Loader, counting};
use crate::boot::entries;
use crate::boot::entry::Entry;
use crate::boot::files::Files;
use crate::boot::id;
use crate::boot::next::{Next, Why};
use crate::model::trial::Trial;
use crate::sys::cmd::Cmd;
use crate::sys::files::read_if_there;
use crate::sys::transaction::Transaction;

const EFIVARS: &str = "/sys/firmware/efi/efivars";
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const DEFAULT: &str = "LoaderEntryDefault";
const ONCE: &str = "LoaderEntryOneShot";
/// Counts before the default, since version 260.
const PREFERRED: &str = "LoaderEntryPreferred";

/// The variables that systemd-boot and the running system share.
#[derive(Clone)]
pub struct Variables {
    dir: PathBuf,
    /// What writes them.
    bootctl: Cmd,
}

impl Variables {
    pub fn of_this_machine() -> Self {
        Self::new(EFIVARS.into(), Cmd::new("bootctl"))
    }

    /// Those in the directory `dir`, as efivarfs shows them, which this program writes as bootctl(1) does.
    pub fn new(dir: PathBuf, bootctl: Cmd) -> Self {
        Self { dir, bootctl }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}-{VENDOR}"))
    }

    /// A variable that holds text; nothing if there is none, or it is empty. What is no text has
    /// replacement characters.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let content = read_if_there(&self.path(name))?;
        let text = content.map(|content| text(&content)).unwrap_or_default();
        Ok(Some(text).filter(|text| !text.is_empty()))
    }
}

/// The text in a file of efivarfs: four bytes of attributes, then UTF-16 up to a NUL.
fn text(content: &[u8]) -> String {
    let text = content.get(4..).unwrap_or_default();
    let units: Vec<u16> = text
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]))
        .take_while(|unit| *unit != 0)
        .collect();
    String::from_utf16_lossy(&units)
}

#[derive(Clone)]
pub struct SystemdBoot {
    pub files: Files,
    /// Where the EFI system partition is mounted.
    pub esp: Option<PathBuf>,
    /// Where it has started the running system.
    pub variables: Option<Variables>,
}

impl Loader for SystemdBoot {
    fn name(&self) -> &'static str {
        "systemd-boot"
    }

    fn id(&self) -> &'static str {
        "systemd-boot"
    }

    fn check_reads(&self) -> Result<()> {
        let boot = self.files.dir();
        let at = |path: &Path| format!("cannot look at {}", path.display());
        let kind = statfs(boot).with_context(|| at(boot))?.filesystem_type();
        ensure!(
            kind == MSDOS_SUPER_MAGIC,
            "{} is not FAT, so systemd-boot may not read entries there; mount the EFI system partition \
             or a FAT extended boot loader partition there",
            boot.display()
        );
        if self.variables.is_none() {
            return Ok(());
        }
        let path = Cmd::new("bootctl").arg("--print-boot-path").run()?;
        let path = Path::new(path.trim_end());
        let device = |path: &Path| {
            fs::metadata(path)
                .map(|m| m.dev())
                .with_context(|| at(path))
        };
        ensure!(
            device(path)? == device(boot)?,
            "systemd-boot reads entries from the partition at {}, not from the one at {}; mount it there",
            path.display(),
            boot.display()
        );
        Ok(())
    }

    fn default_id(&self) -> Result<Option<String>> {
        if let Some(id) = self.default_that_is_there()? {
            return Ok(Some(id));
        }
        match self.fallback_id()? {
            Some(id) => Ok(Some(id)),
            None => Ok(self.defaults()?.first().map(|name| id_of(name).to_owned())),
        }
    }

    fn unset_default(&self) -> Result<Option<String>> {
        let Next::Other(first) = self.next_start(Ignoring::OnceAndTrial)? else {
            return Ok(None);
        };
        // Where one is tried that has not come up yet, a default would take its count away.
        for item in self.items()?.iter().filter(|item| !item.is_counted()) {
            if self.is_of_others(item)? {
                return Ok(Some(item.id.clone()));
            }
        }
        Ok(Some(first))
    }

    fn once_id(&self) -> Result<Option<String>> {
        match self.read(ONCE)? {
            Some(name) => self.named(&name),
            None => Ok(None),
        }
    }

    fn trial(&self) -> Result<Option<Trial>> {
        self.counted_trial()
    }

    fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        self.confirm_default(tx, id)?;
        if self.variables.is_none() {
            let variables = Variables::of_this_machine();
            for variable in [PREFERRED, DEFAULT] {
                let told = variables.read(variable).ok().flatten();
                if let Some(name) = told.filter(|name| self.counts_before(name, id)) {
                    log::warn!(
                        "the EFI variable {variable} of this machine is {name}, which counts before loader.conf; if the \
                         disks are of this machine, take it away: chattr -i FILE && rm FILE, where FILE is {}",
                        variables.path(variable).display()
                    );
                }
            }
        }
        Ok(())
    }

    /// Refuses where systemd-boot has not started the running system.
    fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        ensure!(
            self.variables.is_some(),
            "systemd-boot has not started this system, and keeps what boots once in an EFI variable"
        );
        if let Some(id) = id {
            self.uncount(tx, id)?;
        }
        self.set(tx, "set-oneshot", ONCE, id)
    }

    fn replace(&self, tx: &mut Transaction, gone: &[Entry], new: &str) -> Result<()> {
        let is_gone = |id: Option<String>| gone.iter().any(|e| Some(&e.id) == id.as_ref());
        if is_gone(self.default_id()?) {
            match self.counted_trial()? {
                Some(trial) => self.fall_back_to(tx, &trial.id, new)?,
                None => self.set_default(tx, new)?,
            }
        }
        if is_gone(self.once_id()?) {
            self.set_once(tx, Some(new))?;
        }
        Ok(())
    }

    /// A trial, and what that falls back to, are in the files of the entries.
    fn rename(&self, tx: &mut Transaction, ids: &[(String, String)]) -> Result<()> {
        let new = |old: Option<String>| {
            let old = old?;
            let is_old = |(id, _): &&(String, String)| id.eq_ignore_ascii_case(id_of(&old));
            let (_, new) = ids.iter().find(is_old)?;
            Some(new.as_str())
        };
        // First what counts only where the variable is lost.
        if let Some(id) = new(self.config_default()?) {
            self.write_config(tx, Some(id))?;
        }
        for (verb, name) in [("set-default", DEFAULT), ("set-oneshot", ONCE)] {
            if let Some(id) = new(self.read(name)?) {
                self.set(tx, verb, name, Some(id))?;
            }
        }
        Ok(())
    }

    /// A default would hide an entry on trial, so it has to be known, and to be taken away.
    fn check_trial(&self) -> Result<()> {
        ensure!(
            self.esp.is_some(),
            "the EFI system partition is mounted neither at /efi nor at /boot nor at /boot/efi, so it is \
             not known whether its loader.conf names a default; mount it there"
        );
        ensure!(
            self.variables.is_some(),
            "systemd-boot has not started this system, so it is not known whether an EFI variable names a \
             default"
        );
        if let Some(name) = self.preferred()?.first() {
            bail!(
                "systemd-boot prefers {name}, whatever is tried; take the EFI variable {PREFERRED} and the line \
                 preferred of loader.conf away"
            );
        }
        Ok(())
    }

    fn start_trial(&self, tx: &mut Transaction, id: &str, tries: u32) -> Result<()> {
        self.start_counted(tx, id, tries)
    }

    fn end_trial(&self, tx: &mut Transaction) -> Result<()> {
        match self.default_id()? {
            Some(id) => self.set_default(tx, &id),
            None => Ok(()),
        }
    }

    /// As its manual says: what boots once, else the default, else the first entry of the menu.
    fn next_start(&self, ignoring: Ignoring) -> Result<Next> {
        let items = self.items()?;
        let find = |name: &String| items.iter().find(|item| item.is_named(name));
        let once = match ignoring {
            Ignoring::Nothing => self.read(ONCE)?,
            _ => None,
        };
        let defaults = self.defaults()?;
        let named = once.iter().map(|name| (name, true));
        for (name, is_once) in named.chain(defaults.iter().map(|name| (name, false))) {
            match find(name) {
                Some(item) if is_once => return self.boots(item, Why::Once),
                Some(item) if item.has_tries() => return self.boots(item, Why::Try),
                Some(item) => return self.boots(item, Why::Default),
                None if is_found(name) => return Ok(Next::Other(name.clone())),
                None => {}
            }
        }
        let trial = self.counted_trial()?;
        let is_trial = |item: &Item| trial.as_ref().is_some_and(|trial| trial.id == item.id);
        let is_ignored = |item: &Item| ignoring == Ignoring::OnceAndTrial && is_trial(item);
        let Some(first) = items.iter().find(|item| !is_ignored(item)) else {
            return Ok(Next::Wait);
        };
        let why = if first.has_tries() {
            Why::Try
        } else if self.fallback_id()?.as_ref() == Some(&first.id) {
            Why::Default
        } else {
            Why::Instead
        };
        self.boots(first, why)
    }

    fn in_place_of(&self, old: Option<&Entry>, entry: &Entry) -> Entry {
        counting::with_rank_of(old, entry)
    }
}

impl SystemdBoot {
    /// See [`systemd_menu::items`].
    pub fn items(&self) -> Result<Vec<Item>> {
        systemd_menu::items(&self.files, self.esp.as_deref())
    }

    /// What names the default, the one that counts first: files of entries, or patterns of their names. They
    /// can be those of what is not there.
    pub fn defaults(&self) -> Result<Vec<String>> {
        let mut names = self.preferred()?;
        names.extend(self.read(DEFAULT)?);
        names.extend(self.config_default()?);
        Ok(names)
    }

    /// What boots whatever the default is, unless it was tried in vain.
    fn preferred(&self) -> Result<Vec<String>> {
        let line = self.config()?.and_then(|text| value_of("preferred", &text));
        let mut names: Vec<String> = self.read(PREFERRED)?.into_iter().chain(line).collect();
        if !names.is_empty() {
            let items = self.items()?;
            names.retain(|name| {
                let item = items.iter().find(|item| item.is_named(name));
                !item.is_some_and(Item::is_exhausted)
            });
        }
        Ok(names)
    }

    fn config_default(&self) -> Result<Option<String>> {
        Ok(self.config()?.and_then(|text| value_of("default", &text)))
    }

    /// What becomes of an entry that is chosen. Where a file of it cannot be read, systemd-boot ends.
    fn boots(&self, item: &Item, why: Why) -> Result<Next> {
        let id = item.id.clone();
        if self.is_of_others(item)? {
            return Ok(Next::Other(id));
        }
        let is_there = |path: &String| self.files.path_of(path).is_file();
        Ok(
            if !self.files.has(&item.linux) || !item.initrds.iter().all(is_there) {
                Next::Stop(id)
            } else if !item.initrds.iter().any(|path| self.files.has(path)) {
                Next::KernelOnly(id)
            } else {
                Next::Entry { id, why }
            },
        )
    }

    /// Whether it belongs to another system.
    pub fn is_of_others(&self, item: &Item) -> Result<bool> {
        Ok(item.is_elsewhere || !id::is_ours(&item.id) && !self.is_ours(&item.id)?)
    }

    /// Whether it is the id of an entry that boots a layer or base.
    pub fn is_ours(&self, id: &str) -> Result<bool> {
        let mut entries = entries::all(&self.files)?.into_iter();
        Ok(entries.any(|entry| entry.id == id))
    }

    /// The first of them that names an entry.
    pub fn default_that_is_there(&self) -> Result<Option<String>> {
        for name in self.defaults()? {
            if let Some(found) = self.named(&name)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// The id of an entry that is there, by the name of its file or a pattern of that.
    fn named(&self, name: &str) -> Result<Option<String>> {
        let items = self.items()?;
        match items.into_iter().find(|item| item.is_named(name)) {
            Some(item) => Ok(Some(item.id)),
            // Whether it is there, systemd-boot alone knows.
            None if is_found(name) => Ok(Some(name.to_owned())),
            // Also one whose kernel is lost.
            None => match name.strip_suffix(".conf") {
                Some(id) => self.files.id_like(id),
                None => Ok(None),
            },
        }
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        let Some(variables) = &self.variables else {
            return Ok(None);
        };
        variables.read(name)
    }

    /// Makes an entry the default, or none: in the variable, which counts, and in loader.conf, for when
    /// the firmware has lost its variables.
    ///
    /// Refuses where there is neither.
    pub fn write_default(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        ensure!(
            self.variables.is_some() || self.esp.is_some(),
            "systemd-boot has not started this system, and its EFI system partition is mounted neither \
             at /efi nor at /boot nor at /boot/efi; mount it there"
        );
        if self.variables.is_some() {
            self.set(tx, "set-default", DEFAULT, id)?;
        }
        self.write_config(tx, id)
    }

    fn write_config(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        let (Some(path), Some(esp)) = (self.config_path(), &self.esp) else {
            return Ok(());
        };
        let old = self.config()?.unwrap_or_default();
        let new = with_default(&old, id);
        if new != old {
            tx.write(&path, new.as_bytes(), 0o644)?;
            tx.flush(esp)?;
        }
        Ok(())
    }

    fn set(&self, tx: &mut Transaction, verb: &str, name: &str, id: Option<&str>) -> Result<()> {
        let (old, new) = (self.read(name)?, id.map(name_of));
        let (false, Some(variables)) = (old == new, &self.variables) else {
            return Ok(());
        };
        let bootctl = |file: &Option<String>| {
            let file = file.as_deref().unwrap_or_default();
            variables.bootctl.clone().arg(verb).arg(file)
        };
        tx.run_undoable(&bootctl(&new), bootctl(&old))?;
        ensure!(
            tx.is_dry_run() || self.read(name)? == new,
            "the EFI variable {name} does not hold what was written to it"
        );
        Ok(())
    }

    /// Whether this name in the firmware of the machine, which may be another one, would keep an entry from being the
    /// default.
    fn counts_before(&self, name: &str, id: &str) -> bool {
        let items = self.items().unwrap_or_default();
        let mut items = items.iter();
        let named = items.find(|item| item.is_named(name));
        named.is_some_and(|item| item.id != id)
    }

    fn config_path(&self) -> Option<PathBuf> {
        Some(self.esp.as_ref()?.join("loader/loader.conf"))
    }

    fn config(&self) -> Result<Option<String>> {
        let Some(path) = self.config_path() else {
            return Ok(None);
        };
        let Some(text) = read_if_there(&path)? else {
            return Ok(None);
        };
        let text = String::from_utf8(text);
        text.map(Some)
            .with_context(|| format!("{} is no text", path.display()))
    }
}

/// An id without the ending that it has for systemd-boot.
fn id_of(file: &str) -> &str {
    file.strip_suffix(".conf").unwrap_or(file)
}

fn key(line: &str) -> &str {
    line.split_ascii_whitespace().next().unwrap_or_default()
}

/// What the last `default` line of a loader.conf names.
/// What a line of loader.conf with this key says, the last one of several.
fn value_of(name: &str, text: &str) -> Option<String> {
    let line = text.lines().rfind(|line| key(line) == name)?;
    let value = line.trim().strip_prefix(name)?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

fn with_default(text: &str, id: Option<&str>) -> String {
    let mut new = String::new();
    for line in text.lines().filter(|line| key(line) != "default") {
        new += line;
        new.push('\n');
    }
    if let Some(id) = id {
        new += &format!("default {}\n", name_of(id));
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::files::ENTRIES;

    #[test]
    fn variables_are_attributes_and_utf_16() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables::new(dir.path().into(), Cmd::new("bootctl"));
        assert_eq!(variables.read(DEFAULT).unwrap(), None);
        let cases: [(&[u8], Option<&str>); 6] = [
            (b"\x07\0\0\0a\0.\0\0\0", Some("a.")),
            (b"\x07\0\0\0a\0\0\0b\0", Some("a")),
            (b"\x07\0\0\0a\0b", Some("a")),
            (b"\x07\0\0\0\x00\xd8", Some("\u{fffd}")),
            (b"\x07\0\0\0", None),
            (b"\x07", None),
        ];
        for (content, wanted) in cases {
            fs::write(dir.path().join(format!("{DEFAULT}-{VENDOR}")), content).unwrap();
            assert_eq!(variables.read(DEFAULT).unwrap().as_deref(), wanted);
        }
    }

    #[test]
    fn the_default_line_is_replaced_and_all_else_kept() {
        let old = "timeout 3\n default  a.conf\n#default x\ndefault\tb-*\nconsole-mode keep\n";
        assert_eq!(value_of("default", old).as_deref(), Some("b-*"));
        let kept = "timeout 3\n#default x\nconsole-mode keep\n";
        assert_eq!(with_default(old, None), kept);
        assert_eq!(value_of("default", kept), None);
        let new = with_default(old, Some("c"));
        assert_eq!(new, format!("{kept}default c.conf\n"));
        assert_eq!(value_of("default", &new).as_deref(), Some("c.conf"));
        assert_eq!(value_of("default", "default\n"), None);
    }

    #[test]
    fn from_a_rescue_system_it_is_told_that_the_firmware_names_another_default() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ENTRIES);
        fs::create_dir_all(&path).unwrap();
        fs::write(dir.path().join("good"), "x").unwrap();
        for name in ["imgbased-Base-0.1", "imgbased-Base-0.2"] {
            let text = format!("title {name}\nlinux /good\n");
            fs::write(path.join(format!("{name}.conf")), text).unwrap();
        }
        let boot = SystemdBoot {
            files: Files::new(dir.path()),
            esp: Some(dir.path().to_owned()),
            variables: None,
        };
        for (named, counts) in [
            ("imgbased-Base-0.1.conf", false),
            ("imgbased-Base-0.2.conf", true),
            // It is of another machine.
            ("imgbased-Base-7.1.conf", false),
            ("", false),
        ] {
            assert_eq!(
                boot.counts_before(named, "imgbased-Base-0.1"),
                counts,
                "{named}"
            );
        }
    }

    /// The next start of a host with these entries, where the options tell what they boot, and this default.
    fn start(entries: &[(&str, &str)], default: &str, once: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ENTRIES);
        fs::create_dir_all(&path).unwrap();
        for (file, content) in [("good", "x"), ("empty", ""), ("initrd", "x")] {
            fs::write(dir.path().join(file), content).unwrap();
        }
        for (name, lines) in entries {
            let rank = if lines.contains("trial") { "zz-" } else { "" };
            let text = format!(
                "title {name}\nversion 6.1\nsort-key {rank}imgbased-layer\nlinux /good\ninitrd /initrd\noptions {lines}\n"
            );
            fs::write(path.join(format!("{name}.conf")), text).unwrap();
        }
        let ending = if default.ends_with(['*', '.']) {
            ""
        } else {
            ".conf"
        };
        let (key, default) = match default.split_once(' ') {
            Some((key, name)) => (key, name),
            None => ("default", default),
        };
        let config = format!("{key} {}{ending}\n", default.trim_end_matches('.'));
        fs::write(dir.path().join("loader/loader.conf"), config).unwrap();
        let units = format!("{once}.conf\0");
        let content = units.encode_utf16().flat_map(u16::to_le_bytes);
        let content: Vec<u8> = [7, 0, 0, 0].into_iter().chain(content).collect();
        fs::write(dir.path().join(format!("{ONCE}-{VENDOR}")), content).unwrap();
        let boot = SystemdBoot {
            files: Files::new(dir.path()),
            esp: Some(dir.path().to_owned()),
            variables: Some(Variables::new(dir.path().into(), Cmd::new("bootctl"))),
        };
        boot.next_start(Ignoring::Nothing).unwrap().to_string()
    }

    /// States in which it was not as foretold when a real systemd-boot was started.
    #[test]
    fn the_next_start_is_what_systemd_boot_does() {
        let good = ("imgbased-Base-0.1", "imgbased.layer=Base-0.1");
        let trial = (
            "imgbased-Base-0.2",
            "imgbased.layer=Base-0.2 imgbased.trial",
        );
        let exhausted = ("imgbased-Base-0.2+0-3", trial.1);
        let tried = "imgbased.layer=Base-0.2 imgbased.trial\nsort-key 0-imgbased-layer";
        let foreign = ("other", "root=/dev/sda1\nsort-key other");
        let lost = (good.0, "imgbased.layer=Base-0.1\nlinux /gone");
        let instead = "imgbased-Base-0.1, as the default is not there";
        for (entries, default, once, expected) in [
            // What has never come up does not boot where the default is gone, though it be newer.
            (&[good, trial][..], "imgbased-Base-9.9", "", instead),
            (&[good, exhausted], "", "", instead),
            (&[good, foreign], "0", "", instead),
            // An entry whose kernel is lost is in no menu, and chosen in vain.
            (&[good, (trial.0, lost.1)], trial.0, trial.0, instead),
            (&[lost, foreign], lost.0, "", "another system, other"),
            (&[lost], lost.0, "", "the boot loader waits for somebody"),
            // Without its initramfs it stops, as does what is no kernel.
            (
                &[(good.0, "imgbased.layer=Base-0.1\ninitrd /gone"), trial],
                good.0,
                "",
                "the boot loader stops at imgbased-Base-0.1",
            ),
            (
                &[(good.0, "imgbased.layer=Base-0.1\nlinux /empty")],
                good.0,
                "",
                "the boot loader stops at imgbased-Base-0.1",
            ),
            // It is tried also where the default was changed to what is not there.
            (
                &[good, ("imgbased-Base-0.2+1-0", tried)],
                "imgbased-Base-9.9",
                "",
                "imgbased-Base-0.2, on trial",
            ),
            // Or to a pattern that stands for it as well.
            (
                &[good, ("imgbased-Base-0.2+1-0", tried)],
                "*",
                "",
                "imgbased-Base-0.2, on trial",
            ),
            // What is preferred counts before all of that, unless it was tried in vain.
            (
                &[good, ("imgbased-Base-0.2+1-0", tried)],
                "preferred imgbased-Base-0.1",
                "",
                good.0,
            ),
            (
                &[good, exhausted],
                "preferred imgbased-Base-0.2",
                "",
                instead,
            ),
            // Names are those of files, or patterns of them.
            (&[good, foreign], "OTH*", "", "another system, other"),
            (&[good, foreign], "imgbased-Base-?.1.c[nmo]*", "", good.0),
            (&[good, foreign], "other.", "", instead),
            // What nobody but us reads in it is no matter.
            (
                &[(good.0, "imgbased.layer=Base-0.1 x=16M$0x8000000"), trial],
                good.0,
                "",
                good.0,
            ),
            (
                &[good, exhausted],
                good.0,
                trial.0,
                "imgbased-Base-0.2, once",
            ),
        ] {
            let next = start(entries, default, once);
            assert!(next.starts_with(expected), "{next} and not {expected}");
        }
    }
}
