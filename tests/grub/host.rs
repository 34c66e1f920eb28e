//! A host as its boot loader sees it: what the verbs write on the boot partition, and what starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use imgbased_helper::boot::arrange::{Arrangement, Told};
use imgbased_helper::boot::entry::Entry;
use imgbased_helper::boot::grubenv::GrubEnv;
use imgbased_helper::boot::next::{Next, Why};
use imgbased_helper::boot::{BootPartition, Known, Variables, id};
use imgbased_helper::model::name::LvName;
use imgbased_helper::model::trial::{State, Trial};
use imgbased_helper::sys::cmd::Cmd;
use imgbased_helper::sys::transaction::{Transaction, Writer};
use tempfile::TempDir;

use super::emulator::{Emulator, Kernel, Machine, SIGNATURE, Start, variables};

/// How often a new kernel is tried.
pub const TRIES: u32 = 3;
/// The entry of another system.
pub const FOREIGN_ID: &str = "other";
/// What an entry has that no menu of ours can have.
pub const UNREADABLE: &str = "x=16M$0x8000000";
/// That of the system which grub-mkconfig(8) has found. It boots until a layer is the default.
pub const STOCK_ID: &str = "gnulinux-simple-1";

const ENTRIES: &str = "loader/entries";
const LOADER_CONF: &str = "loader/loader.conf";
/// Of GRUB on UEFI.
pub const MODULES: &str = "grub/x86_64-efi";
/// Beside the boot partition: what stands for the variables of the firmware, and their names.
pub const EFIVARS: &str = "efivars";
pub const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const DEFAULT: &str = "LoaderEntryDefault";

/// The boot loader, and where grub.cfg comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Config {
    Ours,
    /// grub-mkconfig(8), with this value of `GRUB_DEFAULT`.
    Mkconfig(&'static str),
    /// Ours, read by a GRUB that lists the entries itself.
    Listed,
    /// systemd-boot, which has started the host before.
    SystemdBoot,
}

/// Those that GRUB's emulator reads.
pub const CONFIGS: [Config; 3] = [
    Config::Ours,
    Config::Mkconfig("${saved_entry}"),
    Config::Mkconfig("0"),
];

impl Config {
    /// That of GRUB.
    fn text(self) -> Result<String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        let Self::Mkconfig(default) = self else {
            return Ok(fs::read_to_string(dir.join("grub/grub.cfg"))?);
        };
        let part = Command::new("sh")
            .arg(dir.join("grub/09_imgbased"))
            .output()?;
        let text = include_str!("mkconfig.cfg").replace("@GRUB_DEFAULT@", default);
        Ok(text.replace("@09_imgbased@", std::str::from_utf8(&part.stdout)?))
    }
}

/// Makes the machine of a host, whose boot partition is the first directory and whose own one is the second.
pub type Maker<'a> = &'a (dyn Fn(&Path, &Path) -> Result<Box<dyn Machine>> + Sync);

/// GRUB as a program.
pub fn emulated(boot: &Path, dir: &Path) -> Result<Box<dyn Machine>> {
    Ok(Box::new(Emulator::new(boot, dir)?))
}

pub struct Host {
    dir: TempDir,
    config: Config,
    pub boot: BootPartition,
    machine: Box<dyn Machine>,
    /// One for all verbs: each listens for signals, and the more do, the longer that takes.
    writer: Writer,
    /// The layers that the volume group knows as come up.
    pub good: BTreeSet<String>,
}

impl Host {
    /// A boot partition with that configuration and the kernel of another system.
    pub fn empty(config: Config, machine: Maker) -> Result<Self> {
        // In memory, where there is some: a verb waits for the disk several times.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            tempfile::tempdir_in(memory)
        } else {
            tempfile::tempdir()
        }?;
        let partition = dir.path().join("boot");
        fs::create_dir_all(partition.join("imgbased"))?;
        fs::write(partition.join("imgbased/other"), "kernel")?;
        let host = Self {
            boot: boot(config, dir.path())?,
            machine: machine(&partition, &dir.path().join("machine"))?,
            writer: Writer::new("test", Duration::ZERO, false)?,
            good: BTreeSet::new(),
            config,
            dir,
        };
        if config == Config::SystemdBoot {
            return Ok(host);
        }
        host.customize("")?;
        Ok(host)
    }

    /// The base Base-0, its layer Base-0.1, which is the default and has come up, and layers that never
    /// came up.
    pub fn with(layers: &[&str]) -> Result<Self> {
        Self::configured(Config::Ours, layers)
    }

    /// The same with that configuration.
    pub fn configured(config: Config, layers: &[&str]) -> Result<Self> {
        let mut host = Self::empty(config, &emulated)?;
        host.add("Base-0")?;
        host.add("Base-0.1")?;
        host.choose_first("Base-0.1")?;
        host.come_up("Base-0.1")?;
        for layer in layers {
            host.add(layer)?;
        }
        Ok(host)
    }

    /// Runs a verb, and undoes one that fails.
    fn change<T>(
        &self,
        verb: impl FnOnce(&BootPartition, &mut Transaction) -> Result<T>,
    ) -> Result<T> {
        self.writer.transaction(|tx| verb(&self.boot, tx))
    }

    /// A file on the boot partition.
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir
            .path()
            .join("boot")
            .join(path.trim_start_matches('/'))
    }

    /// The root filesystem of a layer or base.
    pub fn root(&self, name: &str) -> PathBuf {
        self.dir.path().join("roots").join(name)
    }

    /// GRUB's configuration of the administrator. There is nobody to wait for.
    pub fn customize(&self, commands: &str) -> Result<()> {
        let text = format!("set timeout=0\n{commands}");
        Ok(fs::write(self.path("grub/custom.cfg"), text)?)
    }

    /// An entry of another system beside ours, as an administrator makes it.
    pub fn add_foreign(&self) -> Result<()> {
        let options = format!("root=/dev/sda1 {}", self.machine.options());
        if self.config == Config::SystemdBoot {
            let text = format!("title Other\nlinux /imgbased/other\noptions {options}\n");
            let path = self.path(&format!("{ENTRIES}/{FOREIGN_ID}.conf"));
            return Ok(fs::write(path, text)?);
        }
        self.customize(&format!(
            "menuentry 'Other' --id '{FOREIGN_ID}' {{\n    linux ($root)/imgbased/other {options}\n}}\n"
        ))
    }

    /// Lets everybody boot an entry where superusers are set.
    pub fn open_entry(&self, id: &str) -> Result<()> {
        let path = self.entry_file(id).context("it is there")?;
        let text = fs::read_to_string(&path)?;
        fs::write(path, text + "grub_arg --unrestricted\n")?;
        self.render_menu()
    }

    /// Sets superusers. What is there now may be booted by everybody.
    pub fn lock(&self) -> Result<()> {
        for id in self.entry_ids() {
            self.open_entry(&id)?;
        }
        self.customize("set superusers=\"admin\"\n")
    }

    /// Makes a layer or base with one kernel.
    pub fn add(&self, name: &str) -> Result<()> {
        self.install_kernel(name, "6.1")?;
        self.refresh(name)
    }

    /// Makes the first layer the default where that is still another system, without a trial.
    pub fn choose_first(&self, name: &str) -> Result<()> {
        if self.boot.default_id()?.as_deref() == Some(STOCK_ID) {
            self.make_default(name, 0)?;
        }
        Ok(())
    }

    /// Puts a kernel into the root of a layer or base. No two have the same.
    pub fn install_kernel(&self, name: &str, version: &str) -> Result<()> {
        let root = self.root(name);
        fs::create_dir_all(root.join("usr/lib/modules").join(version).join("kernel"))?;
        fs::create_dir_all(root.join("boot"))?;
        for file in ["vmlinuz", "initrd.img"] {
            let path = root.join(format!("boot/{file}-{version}"));
            fs::write(path, format!("{file} {version} of {name}"))?;
        }
        Ok(())
    }

    /// Writes the entries of a layer or base from its kernels. What never came up is on trial where
    /// there is another default; the first layer becomes that where there is none.
    pub fn refresh(&self, name: &str) -> Result<()> {
        let layer: LvName = name.parse()?;
        let before = self.boot.entries_of(&layer)?;
        let known = Known {
            entries: &before,
            options: self.machine.options(),
            added: None,
            removed: None,
            is_running: false,
            is_made: false,
        };
        let is_base = !name.contains('.');
        self.change(|boot, tx| {
            let default = boot.keep_default(tx)?;
            let kernels = boot.kernels_of(tx, &self.root(name), &known, &mut |_, _, _| Ok(None))?;
            let kernels = boot.store_kernels(tx, kernels)?;
            let kernels = Arrangement::plain(kernels);
            let mut entries = Entry::of_kernels(&"HostVG".parse()?, &layer, is_base, &kernels)?;
            if !is_base && !self.good.contains(name) && default.is_some() {
                entries = entries.into_iter().map(Entry::on_trial).collect();
            }
            boot.write_entries(tx, &layer, &entries)?;
            match entries.first() {
                Some(entry) if default.is_none() && !is_base => boot.set_default(tx, &entry.id),
                _ => Ok(()),
            }
        })
    }

    /// What the hook of a kernel's package does in a layer that runs and has come up. Returns whether the
    /// kernel is tried.
    pub fn update(&self, name: &str, version: &str) -> Result<bool> {
        self.install_kernel(name, version)?;
        let layer: LvName = name.parse()?;
        let before = self.boot.entries_of(&layer)?;
        let known = Known {
            entries: &before,
            options: self.machine.options(),
            added: Some(version),
            removed: None,
            is_running: true,
            is_made: false,
        };
        self.change(|boot, tx| {
            let found = boot.kernels_of(tx, &self.root(name), &known, &mut |_, _, _| Ok(None))?;
            let found = boot.store_kernels(tx, found)?;
            let kernels = boot.arrange(found, &before, &Told::new_layer(boot.can_try()));
            let entries = Entry::of_kernels(&"HostVG".parse()?, &layer, false, &kernels)?;
            boot.write_entries(tx, &layer, &entries)?;
            let new = kernels.new.map(|at| &entries[at]);
            let tried = new.map(|new| boot.try_kernel(tx, &layer, new, TRIES));
            // It waits where another one is on trial.
            Ok(matches!(tried, Some(Ok(Some(_)))))
        })
    }

    /// `boot default --tries`. Returns whether it is tried first.
    pub fn make_default(&self, name: &str, tries: u32) -> Result<bool> {
        let (layer, entry) = self.entry(name)?;
        let state = if self.good.contains(name) {
            State::Good
        } else {
            State::New
        };
        let fallback =
            self.change(|boot, tx| boot.make_default(tx, &layer, &entry, state, tries))?;
        Ok(fallback.is_some())
    }

    /// `boot once`
    pub fn once(&self, name: &str) -> Result<()> {
        let (_, entry) = self.entry(name)?;
        self.change(|boot, tx| boot.set_once(tx, Some(&entry.id)))
    }

    /// `boot once --cancel`
    pub fn cancel_once(&self) -> Result<()> {
        self.change(|boot, tx| boot.set_once(tx, None))
    }

    /// Removes the entries of a layer or base, though it be on trial.
    pub fn remove(&self, name: &str) -> Result<()> {
        self.change(|boot, tx| boot.remove_last(tx, &[name.parse()?]))
    }

    /// `boot bless` of the layer that runs, as at the end of a boot that succeeds, with the kernel that it boots
    /// by itself.
    pub fn come_up(&mut self, name: &str) -> Result<()> {
        let (layer, entry) = self.entry(name)?;
        self.bless(name, &layer, &entry)
    }

    /// The same with the kernel that was started.
    pub fn come_up_with(&mut self, name: &str, kernel: &Kernel) -> Result<()> {
        let layer: LvName = name.parse()?;
        let entry = self
            .boot
            .running_entry(&layer, kernel.version(), kernel.is_trial())?;
        self.bless(name, &layer, &entry.context("it has an entry")?)
    }

    fn bless(&mut self, name: &str, layer: &LvName, entry: &Entry) -> Result<()> {
        // A damaged grubenv counts no tries.
        let trial = self.boot.trial().unwrap_or_default();
        self.good.insert(name.to_owned());
        self.change(|boot, tx| boot.bless(tx, layer, entry, trial.as_ref()))?;
        let trial = self.boot.trial().unwrap_or_default();
        let Some(trial) = trial.filter(Trial::is_over) else {
            return Ok(());
        };
        let is_good = |name: &LvName| self.good.contains(name.as_str());
        self.change(|boot, tx| boot.end_exhausted(tx, &trial, is_good, |_, _, _| Ok(())))
    }

    /// The first entry of a layer or base.
    pub fn entry(&self, name: &str) -> Result<(LvName, Entry)> {
        let layer: LvName = name.parse()?;
        let entry = self.boot.entry_of(&layer)?;
        Ok((
            layer,
            entry.with_context(|| format!("{name} has no entry"))?,
        ))
    }

    /// Makes the entry with this id the default, whether it is there or not.
    pub fn set_default(&self, id: &str) -> Result<()> {
        self.change(|boot, tx| boot.set_default(tx, id))
    }

    /// Names another default as other programs and people do, whatever is on trial: by grub-editenv(1), or
    /// in the EFI variable, or in loader.conf, or in both.
    pub fn name_default(&self, id: &str, way: u64) -> Result<()> {
        if self.config != Config::SystemdBoot {
            return self.edit_environment(&[("saved_entry", id)]);
        }
        let variable = self.efi_variable(DEFAULT);
        let mut config = "timeout 0\n".to_owned();
        // By the name of the file, by a pattern, or by a name that is none.
        let name = match (id, way / 3 % 4) {
            ("", _) => String::new(),
            (_, 0) => {
                let (start, last) = id.split_at(id.len() - 1);
                format!("{start}[{last}]*")
            }
            (_, 1) => id.to_owned(),
            _ => format!("{id}.conf"),
        };
        if !way.is_multiple_of(3) && !id.is_empty() {
            config += &format!("default {name}\n");
        }
        fs::write(self.path(LOADER_CONF), config)?;
        if way % 3 == 1 {
            return remove_if_there(&variable);
        }
        let variables = self.efi_variables();
        bootctl(&variables).arg("set-default").arg(name).run()?;
        Ok(())
    }

    /// Sets variables of grubenv as grub-editenv(1) does.
    pub fn edit_environment(&self, variables: &[(&str, &str)]) -> Result<()> {
        let path = self.path("grub/grubenv");
        let mut environment = GrubEnv::parse(&fs::read(&path)?)?;
        for (name, value) in variables {
            environment.set(name, value);
        }
        Ok(fs::write(path, environment.render()?)?)
    }

    fn efi_variables(&self) -> PathBuf {
        self.dir.path().join(EFIVARS)
    }

    fn efi_variable(&self, name: &str) -> PathBuf {
        self.efi_variables().join(format!("{name}-{VENDOR}"))
    }

    /// Takes away the file that holds the default: grubenv, or loader.conf.
    pub fn lose_default(&self) -> Result<()> {
        let path = if self.config == Config::SystemdBoot {
            LOADER_CONF
        } else {
            "grub/grubenv"
        };
        Ok(fs::remove_file(self.path(path))?)
    }

    /// Damages grubenv. The firmware loses its variables where that is systemd-boot's.
    pub fn damage_default(&self, size: Option<usize>) -> Result<()> {
        if self.config == Config::SystemdBoot {
            fs::remove_dir_all(self.efi_variables())?;
            return Ok(fs::create_dir(self.efi_variables())?);
        }
        let path = self.path("grub/grubenv");
        let block = match size {
            None => vec![0xff; 1024],
            Some(size) => {
                let mut block = fs::read(&path)?;
                block.resize(size, b'#');
                block
            }
        };
        Ok(fs::write(path, block)?)
    }

    /// `check --repair` of a damaged grubenv.
    pub fn repair_environment(&self) -> Result<()> {
        self.change(BootPartition::rebuild_env)
    }

    /// `check --repair` of a menu that is not what the entries say.
    pub fn render_menu(&self) -> Result<()> {
        self.change(BootPartition::render_menu)
    }

    /// The default as the boot loader reads it, which is no choice where its entry is gone.
    pub fn saved_entry(&self) -> Result<Option<String>> {
        if self.config != Config::SystemdBoot {
            return Ok(self.saved_in_environment());
        }
        let variable =
            Variables::new(self.efi_variables(), bootctl(&self.efi_variables())).read(DEFAULT)?;
        let config = fs::read_to_string(self.path(LOADER_CONF)).unwrap_or_default();
        let lines = config
            .lines()
            .filter_map(|line| line.strip_prefix("default "));
        let mut names = variable.into_iter().chain(lines.map(str::to_owned));
        let is_of = |id: &str, name: &str| match name.strip_suffix("]*") {
            Some(start) => id.starts_with(&start.replace('[', "")),
            None => name.strip_suffix(".conf") == Some(id),
        };
        let ids = self.entry_ids();
        Ok(names.find_map(|name| ids.iter().find(|id| is_of(id, &name)).cloned()))
    }

    /// As GRUB reads it, which looks at the signature of the block and not at its size.
    fn saved_in_environment(&self) -> Option<String> {
        let block = fs::read(self.path("grub/grubenv")).ok()?;
        let text = String::from_utf8(block).ok()?;
        let mut lines = text.strip_prefix(SIGNATURE)?.lines();
        lines.find_map(|line| line.strip_prefix("saved_entry=").map(str::to_owned))
    }

    fn entry_ids(&self) -> Vec<String> {
        let files = fs::read_dir(self.path(ENTRIES)).into_iter().flatten();
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        paths
            .filter_map(|path| id::of_file(&path).map(str::to_owned))
            .collect()
    }

    /// The file of an entry, whether its tries are counted or not.
    pub fn entry_file(&self, id: &str) -> Option<PathBuf> {
        let files = fs::read_dir(self.path(ENTRIES)).ok()?;
        let mut paths = files.filter_map(|file| Some(file.ok()?.path()));
        paths.find(|path| id::of_file(path) == Some(id))
    }

    /// The kernel of an entry.
    pub fn linux_of(&self, id: &str) -> Result<String> {
        let path = self
            .entry_file(id)
            .with_context(|| format!("{id} is no entry"))?;
        let text = fs::read_to_string(path)?;
        let linux = text.lines().find_map(|line| line.strip_prefix("linux "));
        Ok(linux.context("it has a kernel")?.to_owned())
    }

    /// Switches the machine on.
    pub fn start(&mut self) -> Result<Start> {
        self.machine.start(None)
    }

    /// Switches the machine on, and picks the entry with that number in the menu.
    pub fn pick(&mut self, number: usize) -> Result<Start> {
        let custom = fs::read_to_string(self.path("grub/custom.cfg"))?;
        self.customize("set timeout=-1\n")?;
        let keys = format!("{HOME}{}\r", DOWN.repeat(number));
        let start = self.machine.start(Some(&keys));
        fs::write(self.path("grub/custom.cfg"), custom)?;
        start
    }

    /// Whether an entry is left that does not restart by itself.
    pub fn has_good(&self) -> Result<bool> {
        Ok(self.boot.entries()?.iter().any(|entry| !entry.is_trial()))
    }

    /// Whether that start is what was foretold.
    pub fn is_foretold(&self, foretold: &Next, start: &Start) -> Result<bool> {
        let linux = |id: &str| self.linux_of(id);
        Ok(match (foretold, start) {
            (Next::Entry { id, why }, Start::Kernel(kernel)) => {
                let is_chosen = matches!(why, Why::Once | Why::Try);
                kernel.linux == linux(id)?
                    && kernel.initrd.is_some()
                    && (is_chosen || !kernel.is_trial() || !self.has_good()?)
            }
            (Next::KernelOnly(id), Start::Kernel(kernel)) => {
                kernel.linux == linux(id)? && kernel.initrd.is_none()
            }
            (Next::Other(_), Start::Kernel(kernel)) => kernel.layer().is_none(),
            (Next::Restart(_), Start::Restart)
            | (Next::Password(_), Start::Prompt)
            | (Next::Stop(_) | Next::Wait, Start::Nothing) => true,
            _ => false,
        })
    }

    /// Switches the machine on, which has to do what `expected` says.
    pub fn starts(&mut self, expected: &str) -> Result<()> {
        let start = self.start()?;
        ensure!(
            start.to_string() == expected,
            "{start} and not {expected}\n{}",
            self.describe()
        );
        Ok(())
    }

    /// Switches the machine on, and returns the kernel that boots.
    pub fn starts_kernel(&mut self) -> Result<Kernel> {
        match self.start()? {
            Start::Kernel(kernel) => Ok(kernel),
            other => bail!("{other}"),
        }
    }

    /// Switches the machine on, and returns the path of the kernel that boots.
    pub fn starts_linux(&mut self) -> Result<String> {
        Ok(self.starts_kernel()?.linux)
    }

    /// Base-0.2 was tried so often, and Base-0.1 is the default.
    pub fn is_tried(&self, done: u32, tries: u32) -> Result<()> {
        let expected = format!("saved_entry=Base-0.1 trial=Base-0.2 tried={done} tries={tries}");
        let found = self.environment()?;
        ensure!(found == expected, "{found} and not {expected}");
        Ok(())
    }

    /// What is needed to understand a start.
    pub fn describe(&self) -> String {
        let read = |path| fs::read(self.path(path)).unwrap_or_default();
        let text = |path| {
            String::from_utf8_lossy(&read(path))
                .trim_end_matches('#')
                .to_owned()
        };
        let mut told = Vec::new();
        for path in ["grub/grubenv", "grub/imgbased.cfg", LOADER_CONF] {
            told.push(text(path));
        }
        if self.config == Config::SystemdBoot {
            let names = |dir: &Path| {
                let files = fs::read_dir(dir).into_iter().flatten().flatten();
                let mut names: Vec<_> = files.map(|file| file.file_name()).collect();
                names.sort();
                format!("{names:?}")
            };
            told.push(names(&self.path(ENTRIES)));
            told.push(names(&self.efi_variables()));
        }
        told.push(self.machine.screen());
        told.retain(|part| !part.is_empty());
        told.join("\n")
    }

    /// The variables of grubenv that hold something.
    pub fn variables(&self) -> Result<BTreeMap<String, String>> {
        variables(&fs::read(self.path("grub/grubenv"))?)
    }

    /// The same in order, as one line, without what most names and ids begin with.
    pub fn environment(&self) -> Result<String> {
        let variables = self.variables()?.into_iter();
        let short = |text: String| text.replace("imgbased-", "").replace("imgbased_", "");
        let mut lines: Vec<String> = variables
            .map(|(name, value)| short(format!("{name}={value}")))
            .collect();
        lines.sort();
        Ok(lines.join(" "))
    }
}

/// The boot partition of a new host below `dir`, with what its boot loader has there.
fn boot(config: Config, dir: &Path) -> Result<BootPartition> {
    let (partition, vg) = (dir.join("boot"), "HostVG".parse()?);
    if config == Config::SystemdBoot {
        fs::create_dir_all(partition.join(ENTRIES))?;
        fs::write(partition.join(LOADER_CONF), "timeout 0\n")?;
        let variables = dir.join(EFIVARS);
        fs::create_dir(&variables)?;
        let variables = Variables::new(variables.clone(), bootctl(&variables));
        return Ok(BootPartition::started_by_systemd_boot(
            &partition, &vg, variables,
        ));
    }
    fs::create_dir_all(partition.join("grub"))?;
    fs::write(partition.join("grub/grub.cfg"), config.text()?)?;
    if config == Config::Listed {
        let modules = partition.join(MODULES);
        fs::create_dir(&modules)?;
        fs::write(modules.join("blsuki.mod"), "")?;
    }
    BootPartition::in_dir(&partition, &dir.join("root"), &vg)
}

/// What writes the variables in a directory as bootctl(1) does those of the firmware.
fn bootctl(variables: &Path) -> Cmd {
    const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grub/bin/bootctl");
    Cmd::new(SCRIPT).arg(variables)
}

fn remove_if_there(path: &Path) -> Result<()> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Keys of GRUB's menu: Ctrl and a letter.
const HOME: &str = "\x01";
const DOWN: &str = "\x0e";
