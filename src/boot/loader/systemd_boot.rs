//! systemd-boot: EFI variables and loader.conf say what boots, names of entries count tries.
//! <https://systemd.io/BOOT_LOADER_INTERFACE/>, loader.conf(5), bootctl(1).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::sys::statfs::{MSDOS_SUPER_MAGIC, statfs};

use super::{Ignoring, Loader, counting};
use crate::boot::entries;
use crate::boot::entry::Entry;
use crate::boot::files::Files;
use crate::boot::next::{Next, Why};
use crate::boot::trial::Trial;
use crate::sys::cmd::Cmd;
use crate::sys::files::read_if_there;
use crate::sys::transaction::Transaction;

const EFIVARS: &str = "/sys/firmware/efi/efivars";
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const DEFAULT: &str = "LoaderEntryDefault";
const ONCE: &str = "LoaderEntryOneShot";

/// The variables that systemd-boot and the running system share.
#[derive(Clone)]
pub struct Variables(PathBuf);

impl Variables {
    pub fn of_this_machine() -> Self {
        Self(EFIVARS.into())
    }

    /// A variable that holds text; nothing if there is none, or it is empty. What is no text has
    /// replacement characters.
    pub fn read(&self, name: &str) -> Result<Option<String>> {
        let content = read_if_there(&self.0.join(format!("{name}-{VENDOR}")))?;
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
        let mut ids = self.defaults()?;
        for id in &mut ids {
            if let Some(found) = self.files.id_like(id)? {
                return Ok(Some(found));
            }
        }
        match ids.into_iter().next() {
            Some(id) => Ok(Some(id)),
            None => self.fallback_id(),
        }
    }

    fn once_id(&self) -> Result<Option<String>> {
        match self.read(ONCE)? {
            Some(id) => self.files.id_like(&id),
            None => Ok(None),
        }
    }

    fn trial(&self) -> Result<Option<Trial>> {
        self.counted_trial()
    }

    fn set_default(&self, tx: &mut Transaction, id: &str) -> Result<()> {
        self.confirm_default(tx, id)
    }

    /// Refuses where systemd-boot has not started the running system.
    fn set_once(&self, tx: &mut Transaction, id: Option<&str>) -> Result<()> {
        ensure!(
            self.variables.is_some(),
            "systemd-boot has not started this system, and keeps what boots once in an EFI variable"
        );
        self.set(tx, "set-oneshot", ONCE, id)
    }

    fn replace(&self, tx: &mut Transaction, gone: &[Entry], new: &str) -> Result<()> {
        let is_gone = |id: Option<String>| gone.iter().any(|e| Some(&e.id) == id.as_ref());
        if is_gone(self.default_id()?) {
            self.set_default(tx, new)?;
        }
        if is_gone(self.once_id()?) {
            self.set_once(tx, Some(new))?;
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

    /// As its manual says: what boots once, else the default, else the first entry that has tries left.
    fn next_start(&self, ignoring: Ignoring) -> Result<Next> {
        let entries = entries::all(&self.files)?;
        let boots = |id: String, why| match entries.iter().find(|entry| entry.id == id) {
            Some(entry) if !self.files.has(&entry.linux) => Next::Stop(id),
            Some(entry) if !entry.initrds().all(|path| self.files.has(path)) => Next::Stop(id),
            Some(_) => Next::Entry { id, why },
            None => Next::Other(id),
        };
        if let (Ignoring::Nothing, Some(id)) = (ignoring, self.once_id()?) {
            return Ok(boots(id, Why::Once));
        }
        for id in self.defaults()? {
            if let Some(id) = self.files.id_like(&id)? {
                return Ok(boots(id, Why::Default));
            }
        }
        if ignoring != Ignoring::OnceAndTrial {
            if let Some(trial) = self.counted_trial()?.filter(|trial| !trial.is_over()) {
                return Ok(boots(trial.id, Why::Try));
            }
        }
        if let Some(id) = self.fallback_id()? {
            return Ok(boots(id, Why::Default));
        }
        let first = entries.first().map(|entry| entry.id.clone());
        Ok(first.map_or(Next::Wait, |id| boots(id, Why::Instead)))
    }

    fn in_place_of(&self, old: Option<&Entry>, entry: &Entry) -> Entry {
        counting::with_rank_of(old, entry)
    }
}

impl SystemdBoot {
    /// The ids of what boots by default, the one that counts first; they can name what is not there.
    /// Patterns are taken as they stand.
    pub fn defaults(&self) -> Result<Vec<String>> {
        let variable = self.read(DEFAULT)?;
        let line = self.config()?.and_then(|text| default_line(&text));
        Ok(variable.into_iter().chain(line).collect())
    }

    fn read(&self, name: &str) -> Result<Option<String>> {
        let Some(variables) = &self.variables else {
            return Ok(None);
        };
        let value = variables.read(name)?;
        Ok(value.map(|value| id_of(&value).to_owned()))
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
        let old = self.read(name)?;
        if old.as_deref() == id {
            return Ok(());
        }
        let bootctl = |id: Option<&str>| {
            let file = id.map(|id| format!("{id}.conf")).unwrap_or_default();
            Cmd::new("bootctl").arg(verb).arg(file)
        };
        tx.run_undoable(&bootctl(id), bootctl(old.as_deref()))?;
        ensure!(
            tx.is_dry_run() || self.read(name)?.as_deref() == id,
            "the EFI variable {name} does not hold what was written to it"
        );
        Ok(())
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

/// The id on the last `default` line of a loader.conf.
fn default_line(text: &str) -> Option<String> {
    let line = text.lines().rfind(|line| key(line) == "default")?;
    let value = line.trim().strip_prefix("default")?.trim();
    (!value.is_empty()).then(|| id_of(value).to_owned())
}

fn with_default(text: &str, id: Option<&str>) -> String {
    let mut new = String::new();
    for line in text.lines().filter(|line| key(line) != "default") {
        new += line;
        new.push('\n');
    }
    if let Some(id) = id {
        new += &format!("default {id}.conf\n");
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_attributes_and_utf_16() {
        let dir = tempfile::tempdir().unwrap();
        let variables = Variables(dir.path().into());
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
        assert_eq!(default_line(old).as_deref(), Some("b-*"));
        let kept = "timeout 3\n#default x\nconsole-mode keep\n";
        assert_eq!(with_default(old, None), kept);
        assert_eq!(default_line(kept), None);
        let new = with_default(old, Some("c"));
        assert_eq!(new, format!("{kept}default c.conf\n"));
        assert_eq!(default_line(&new).as_deref(), Some("c"));
        assert_eq!(default_line("default\n"), None);
    }
}
