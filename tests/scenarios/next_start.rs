//! What `next_start` foretells, held against real boot loaders: machines with a disk made of a boot partition in
//! a random state, which stop at the first lines of their kernel. tests/grub does the same with GRUB's emulator,
//! and has the states and the claims.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use imgbased_helper::boot::id;
use imgbased_helper::boot::next::{Next, Why};

use crate::seed;
use crate::vm::qemu::create_variables;
use crate::vm::{Disk, Heard, Start as On, Vm, cpio, debian, forgiven, say, scratch};

#[allow(dead_code, reason = "tests/grub uses the rest")]
#[path = "../grub/chains.rs"]
mod chains;
#[allow(dead_code, reason = "tests/grub uses the rest")]
#[path = "../grub/emulator.rs"]
mod emulator;
#[allow(dead_code, reason = "tests/grub uses the rest")]
#[path = "../grub/host.rs"]
mod host;

use chains::{Ground, State};
use emulator::{Kernel, Machine, SIGNS, Start, run};
use host::{Config, EFIVARS, Host, MODULES, VENDOR};

scenarios![
    ;
    turns:
    grub_that_lists_entries_does_what_is_foretold,
    systemd_boot_does_what_is_foretold;
    long:
    grub_that_lists_entries_does_what_is_foretold_in_many_states,
    systemd_boot_does_what_is_foretold_in_many_states,
    systemd_boot_tries_a_layer_beside_a_unified_kernel_image,
];

/// States in the complete run, where a start takes ten seconds, and in the long one.
const FEW: u64 = 2;
const MANY: u64 = 30;

fn grub_that_lists_entries_does_what_is_foretold() -> Result<()> {
    try_states("foretold-grub", Config::Listed, FEW, 2)
}

fn systemd_boot_does_what_is_foretold() -> Result<()> {
    try_states("foretold-systemd-boot", Config::SystemdBoot, FEW, 2)
}

fn grub_that_lists_entries_does_what_is_foretold_in_many_states() -> Result<()> {
    try_states("foretold-grub-many", Config::Listed, MANY, 3)
}

fn systemd_boot_does_what_is_foretold_in_many_states() -> Result<()> {
    try_states("foretold-systemd-boot-many", Config::SystemdBoot, MANY, 3)
}

/// Starts a host from each of so many random states, so often in a row, unless `IMGBASED_STATES` and
/// `IMGBASED_STATE` say how many, and which. The name is that of the directory for its disks.
fn try_states(name: &str, config: Config, states: u64, starts: usize) -> Result<()> {
    let number = |name: &str| -> Result<Option<u64>> {
        let text = std::env::var(name).ok();
        text.map(|text| text.parse().with_context(|| name.to_owned()))
            .transpose()
    };
    let states = number("IMGBASED_STATES")?.unwrap_or(states);
    let parts = Arc::new(Parts::unpack(config, scratch(name)?)?);
    let make = |boot: &Path, _: &Path| -> Result<Box<dyn Machine>> {
        Ok(Box::new(Real::new(name, config, Arc::clone(&parts), boot)))
    };
    let ground = Ground {
        configs: &[config],
        machine: &make,
        starts,
        simplifies: false,
    };
    let base = number("IMGBASED_STATE")?;
    let mut rng = seed::rng(name);
    let mut wrong = Vec::new();
    for at in 0..states {
        let seed = base.map_or_else(|| rng.u64(..), |base| base.wrapping_add(at));
        let state = State::random(&mut Rng::with_seed(seed), ground.configs);
        let again = format!("IMGBASED_STATE={seed} IMGBASED_STATES=1");
        match forgiven(&format!("{name}: {again}"), || state.check(&ground)) {
            Ok(starts) => say(&format!("{name}: {starts} starts as foretold, {again}")),
            // All that is wrong shows in one run.
            Err(error) => {
                say(&format!("{name}: {again}: {error:#}"));
                wrong.push(again);
            }
        }
    }
    ensure!(wrong.is_empty(), "not as foretold: {}", wrong.join(", "));
    Ok(())
}

/// A host that boots an image of another system by itself goes on to do so until a layer has come up.
fn systemd_boot_tries_a_layer_beside_a_unified_kernel_image() -> Result<()> {
    let name = "foretold-uki";
    let parts = Arc::new(Parts::unpack(Config::SystemdBoot, scratch(name)?)?);
    let make = |boot: &Path, _: &Path| -> Result<Box<dyn Machine>> {
        let parts = Arc::clone(&parts);
        Ok(Box::new(Real::new(name, Config::SystemdBoot, parts, boot)))
    };
    let mut host = Host::empty(Config::SystemdBoot, &make)?;
    let other = Next::Other("other.efi".into());
    fs::create_dir_all(host.path(IMAGES))?;
    let image = host.path(IMAGES).join("other.efi");
    fs::write(image, parts.image("ID=arch\nBUILD_ID=rolling\n")?)?;
    for layer in ["Base-0", "Base-0.1"] {
        does(&mut host, &other)?;
        host.add(layer)?;
    }
    does(&mut host, &other)?;
    ensure!(host.make_default("Base-0.1", 1)?, "it is not tried");
    let id = "imgbased-Base-0.1".to_owned();
    let why = Why::Try;
    does(&mut host, &Next::Entry { id, why })?;
    does(&mut host, &other)?;
    let trial = host.boot.trial()?;
    ensure!(trial.is_some_and(|trial| trial.is_over()), "it is not over");
    host.come_up("Base-0")?;
    assert_eq!(host.boot.trial()?, None);
    does(&mut host, &other)
}

/// Claims that the host does this when it starts, as is foretold.
fn does(host: &mut Host, expected: &Next) -> Result<()> {
    let foretold = host.boot.next_start()?;
    assert_eq!(foretold, *expected, "{}", host.describe());
    let start = host.start()?;
    ensure!(
        host.is_foretold(expected, &start)?,
        "{start} and not {expected}\n{}",
        host.describe()
    );
    Ok(())
}

/// From the firmware to the kernel, in a busy machine.
const LIMIT: Duration = Duration::from_secs(180);
/// What the firmware says when it goes on to a loader, and when that has given up.
const FIRMWARE_STARTS: &str = "BdsDxe: starting ";
const FIRMWARE_FAILS: [&str; 2] = ["BdsDxe: failed to start ", "BdsDxe: No bootable option"];
/// GRUB goes on after ten seconds, or a key.
const ANY_KEY: &str = "Press any key to continue...";
/// What systemd-boot has under its cursor where nothing else is in its menu: the firmware's setup, which waits
/// for somebody. A machine that has no setup starts again.
const SETUP_PICKED: &str = "\x1b[47m   Reboot Into Firmware Interface";
/// What the kernel says before it, and after that, whether it has an initramfs.
const COMMAND_LINE: &str = "] Command line: ";
const RAMDISK: &str = "] RAMDISK: ";
const ZONES: &str = "] Zone ranges:";
/// What an entry has on the disk beside its own options.
const MARK: &str = "marked.entry=";
/// Where unified kernel images are.
const IMAGES: &str = "EFI/Linux";

const MIB: u64 = 1 << 20;
/// Where the partitions begin, in bytes.
const FIRST: u64 = MIB;
const SECOND: u64 = 48 * MIB;

/// What all disks of a scenario have.
struct Parts {
    dir: PathBuf,
}

impl Parts {
    /// Takes the boot loader and a kernel out of the release of Debian that has them.
    fn unpack(config: Config, dir: PathBuf) -> Result<Self> {
        let (suite, files, partitions) = match config {
            Config::SystemdBoot => (
                "trixie",
                "./usr/lib/systemd/boot/efi",
                "start=1MiB, size=510MiB, type=uefi\n",
            ),
            _ => (
                "forky",
                "./usr/lib/grub/x86_64-efi",
                "start=1MiB, size=40MiB, type=uefi\nstart=48MiB, size=64MiB, type=linux\n",
            ),
        };
        let parts = Self { dir };
        let loader = parts.path("BOOTX64.EFI");
        let archive = debian(suite)?.join("root.tar");
        run(Command::new("tar")
            .arg("--extract")
            .arg("--file")
            .arg(archive)
            .arg("--directory")
            .arg(&parts.dir)
            .args(["./boot", files]))?;
        let kernel = fs::read_dir(parts.path("boot"))?
            .filter_map(|file| Some(file.ok()?.path()))
            .find(|path| path.to_string_lossy().contains("/vmlinuz-"));
        fs::rename(kernel.context("there is a kernel")?, parts.kernel())?;
        fs::write(parts.initramfs(), cpio::archive(&[]))?;
        if config == Config::SystemdBoot {
            fs::rename(parts.path(files).join("systemd-bootx64.efi"), &loader)?;
        } else {
            // As grub-install(8) does.
            run(Command::new("grub-mkimage")
                .args(["--format=x86_64-efi", "--prefix=(hd0,gpt2)/grub"])
                .arg("--directory")
                .arg(parts.path(files))
                .arg("--output")
                .arg(&loader)
                .args(["part_gpt", "ext2"]))?;
            fs::rename(parts.path(files), parts.modules())?;
        }
        let disk = parts.template();
        let size = if config == Config::SystemdBoot {
            512
        } else {
            82
        };
        fs::File::create(&disk)?.set_len(size * MIB)?;
        let table = parts.path("table");
        fs::write(&table, format!("label: gpt\n{partitions}"))?;
        run(Command::new("/usr/sbin/sfdisk")
            .arg("--quiet")
            .arg(&disk)
            .stdin(fs::File::open(&table)?))?;
        let (kind, mebibytes) = match config {
            Config::SystemdBoot => ("32", 510),
            _ => ("16", 40),
        };
        let blocks = mebibytes * MIB / 1024;
        run(Command::new("/usr/sbin/mkfs.vfat")
            .args(["-F", kind])
            .arg(format!("--offset={}", FIRST / 512))
            .arg(&disk)
            .arg(blocks.to_string()))?;
        run(mtool("mmd", &disk).args(["::/EFI", "::/EFI/BOOT"]))?;
        run(mtool("mcopy", &disk).arg(&loader).arg("::/EFI/BOOT/"))?;
        Ok(parts)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A unified kernel image of a system.
    fn image(&self, os_release: &str) -> Result<Vec<u8>> {
        let stub = self.path("usr/lib/systemd/boot/efi/linuxx64.efi.stub");
        let content = fs::read(&stub)?;
        let bytes =
            |at: usize, count: usize| content.get(at..at + count).context("it is too short");
        let word = |at| anyhow::Ok(u32::from_le_bytes(bytes(at, 4)?.try_into()?));
        // What is in the headers of PE: the address and the size of all that is there before.
        let header = usize::try_from(word(0x3c)?)? + 24;
        let base = u64::from_le_bytes(bytes(header + 24, 8)?.try_into()?);
        let mut address = base + u64::from(word(header + 56)?);
        let options = "console=ttyS0,115200 earlyprintk=ttyS0,115200 marked.entry=other.efi";
        fs::write(self.path("osrel"), os_release)?;
        fs::write(self.path("cmdline"), options)?;
        let mut objcopy = Command::new("objcopy");
        for (name, file) in [
            ("osrel", "osrel"),
            ("cmdline", "cmdline"),
            ("linux", "kernel"),
        ] {
            let path = self.path(file);
            objcopy
                .arg(format!("--add-section=.{name}={}", path.display()))
                .arg(format!("--change-section-vma=.{name}={address:#x}"));
            address += fs::metadata(path)?.len().next_multiple_of(4096);
        }
        let image = self.path("image");
        run(objcopy.args([&stub, &image]))?;
        Ok(fs::read(image)?)
    }

    fn kernel(&self) -> PathBuf {
        self.path("kernel")
    }

    fn initramfs(&self) -> PathBuf {
        self.path("initramfs")
    }

    fn modules(&self) -> PathBuf {
        self.path("modules")
    }

    /// A disk without what belongs to a host.
    fn template(&self) -> PathBuf {
        self.path("template")
    }
}

/// A machine with UEFI, whose kernels are all the same.
struct Real {
    name: String,
    config: Config,
    parts: Arc<Parts>,
    boot: PathBuf,
    shown: String,
}

impl Real {
    fn new(name: &str, config: Config, parts: Arc<Parts>, boot: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        Self {
            name: format!("{name}-{number}"),
            config,
            parts,
            boot: boot.to_owned(),
            shown: String::new(),
        }
    }

    fn disk(&self) -> PathBuf {
        self.parts.path("disk")
    }

    fn variables(&self) -> PathBuf {
        self.parts.path("variables")
    }

    /// Makes the disk, with a real kernel in the place of each that is there.
    fn make_disk(&self) -> Result<()> {
        let stage = self.parts.path("stage");
        if stage.exists() {
            fs::remove_dir_all(&stage)?;
        }
        self.copy(&self.boot, &stage)?;
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([self.parts.template(), self.disk()]))?;
        if self.config == Config::SystemdBoot {
            run(mtool("mcopy", &self.disk())
                .arg("-s")
                .args([stage.join("loader"), stage.join("imgbased")])
                .arg("::/"))?;
            let images = stage.join(IMAGES);
            if !images.exists() {
                return Ok(());
            }
            return run(mtool("mcopy", &self.disk())
                .arg("-s")
                .arg(images)
                .arg("::/EFI/"));
        }
        let modules = stage.join(MODULES);
        fs::remove_dir_all(&modules)?;
        fs::create_dir(&modules)?;
        for file in fs::read_dir(self.parts.modules())? {
            let file = file?;
            if file.file_type()?.is_file() {
                fs::hard_link(file.path(), modules.join(file.file_name()))?;
            }
        }
        run(Command::new("/usr/sbin/mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&stage)
            .arg("-E")
            .arg(format!("offset={SECOND}"))
            .arg(self.disk())
            .arg("64M"))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        fs::create_dir(to)?;
        for file in fs::read_dir(from)? {
            let (path, name) = (
                file.as_ref().map(fs::DirEntry::path),
                file.as_ref().map(fs::DirEntry::file_name),
            );
            let (Ok(path), Ok(name)) = (path, name) else {
                continue;
            };
            let (to, name) = (to.join(&name), name.to_string_lossy().into_owned());
            if path.is_dir() {
                self.copy(&path, &to)?;
            } else if name.starts_with("vmlinuz-") || name == "other" {
                fs::hard_link(self.parts.kernel(), to)?;
            } else if name.starts_with("initrd-") {
                fs::hard_link(self.parts.initramfs(), to)?;
            } else {
                let mut content = fs::read(&path)?;
                if let (Some(id), Config::SystemdBoot) = (id::of_file(&path), self.config)
                    && path.parent().is_some_and(|dir| dir.ends_with("entries"))
                {
                    content.extend(format!("options {MARK}{id}\n").bytes());
                }
                fs::write(to, content)?;
            }
        }
        Ok(())
    }

    /// Waits for what the boot loader does.
    fn watch(&self, vm: &mut Vm) -> Result<Start> {
        let mut answered = 0;
        let found = vm.look_for("end of the boot loader", LIMIT, |said| {
            if said.contains(ZONES) {
                return Heard::Found(None);
            }
            if FIRMWARE_FAILS
                .iter()
                .chain([&SETUP_PICKED])
                .any(|sign| said.contains(sign))
            {
                return Heard::Found(Some(Start::Nothing));
            }
            if said.matches(FIRMWARE_STARTS).count() > 1 {
                return Heard::Found(Some(Start::Restart));
            }
            if let Some((_, start)) = SIGNS.iter().find(|(sign, _)| said.contains(sign)) {
                return Heard::Found(Some(start.clone()));
            }
            // On the serial line and on the screen, which are the same to UEFI.
            if said.matches(ANY_KEY).count() > answered {
                answered = said.matches(ANY_KEY).count();
                return Heard::Answer(" ");
            }
            Heard::Nothing
        })?;
        match found {
            None => Ok(Start::Restart),
            Some(Some(start)) => Ok(start),
            Some(None) => Ok(Start::Kernel(self.kernel(&vm.said())?)),
        }
    }

    /// Reads the first lines of a kernel.
    fn kernel(&self, said: &str) -> Result<Kernel> {
        let (_, line) = said.split_once(COMMAND_LINE).context("no command line")?;
        let options = line.lines().next().unwrap_or_default().trim_end();
        let value = |key: &str| options.split(' ').find_map(|word| word.strip_prefix(key));
        let linux = if self.config == Config::SystemdBoot {
            let id = value(MARK).context("no entry is named")?;
            if self.boot.join(IMAGES).join(id).exists() {
                return Ok(Kernel {
                    linux: format!("/{IMAGES}/{id}"),
                    initrd: None,
                    options: options.to_owned(),
                });
            }
            let path = self.entry_files()?.remove(id).context("it is no entry")?;
            let text = fs::read_to_string(path)?;
            let linux = text.lines().find_map(|line| line.strip_prefix("linux "));
            linux.context("it has a kernel")?.to_owned()
        } else {
            let image = value("BOOT_IMAGE=").context("no kernel is named")?;
            let path = image.split_once(')').map_or(image, |(_, path)| path);
            path.to_owned()
        };
        Ok(Kernel {
            linux,
            initrd: said.contains(RAMDISK).then(|| "there is one".to_owned()),
            options: options.to_owned(),
        })
    }

    /// The files of entries by their ids.
    fn entry_files(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut found = BTreeMap::new();
        for file in fs::read_dir(self.boot.join("loader/entries"))? {
            let path = file?.path();
            if let Some(id) = id::of_file(&path) {
                found.insert(id.to_owned(), path.clone());
            }
        }
        Ok(found)
    }

    /// Keeps what the boot loader has written.
    fn read_back(&self) -> Result<()> {
        if self.config == Config::SystemdBoot {
            self.read_names_back()?;
            return self.read_variables_back();
        }
        let path = self.boot.join("grub/grubenv");
        if !path.exists() {
            return Ok(());
        }
        let disk = format!("{}?offset={SECOND}", self.disk().display());
        let copy = self.parts.path("grubenv");
        run(Command::new("/usr/sbin/debugfs")
            .arg("-R")
            .arg(format!("dump /grub/grubenv {}", copy.display()))
            .arg(disk))?;
        fs::copy(copy, path).map(drop)?;
        Ok(())
    }

    /// The tries of an entry are counted in the name of its file.
    fn read_names_back(&self) -> Result<()> {
        let output = mtool("mdir", &self.disk())
            .args(["-b", "::/loader/entries"])
            .output()?;
        ensure!(output.status.success(), "mdir: {output:?}");
        let text = String::from_utf8(output.stdout)?;
        let mut files = self.entry_files()?;
        for line in text.lines() {
            let path = Path::new(line.trim());
            let (Some(id), Some(name)) = (id::of_file(path), path.file_name()) else {
                continue;
            };
            let old = files.remove(id).with_context(|| format!("{id} is new"))?;
            fs::rename(&old, old.with_file_name(name))?;
        }
        ensure!(files.is_empty(), "systemd-boot has lost {files:?}:\n{text}");
        Ok(())
    }

    fn efi_variables(&self) -> PathBuf {
        self.boot.with_file_name(EFIVARS)
    }

    /// Makes the firmware's own variables from the directory that stands for them.
    fn make_variables(&self) -> Result<()> {
        create_variables(&self.variables())?;
        if self.config != Config::SystemdBoot {
            return Ok(());
        }
        let mut records = Vec::new();
        for file in fs::read_dir(self.efi_variables())? {
            let file = file?;
            let name = file.file_name().to_string_lossy().into_owned();
            let name = name
                .strip_suffix(&format!("-{VENDOR}"))
                .context("it is of systemd-boot")?;
            records.extend(record(name, &fs::read(file.path())?));
        }
        let mut store = fs::File::options().write(true).open(self.variables())?;
        store.seek(SeekFrom::Start(STORE))?;
        Ok(store.write_all(&records)?)
    }

    fn read_variables_back(&self) -> Result<()> {
        let mut store = Vec::new();
        fs::File::open(self.variables())?.read_to_end(&mut store)?;
        let mut found = records(&store)?;
        for name in ["LoaderEntryDefault", "LoaderEntryOneShot"] {
            let path = self.efi_variables().join(format!("{name}-{VENDOR}"));
            match found.remove(name) {
                Some(content) => fs::write(path, content)?,
                None if path.exists() => fs::remove_file(path)?,
                None => {}
            }
        }
        Ok(())
    }
}

impl Machine for Real {
    fn options(&self) -> &'static str {
        "console=ttyS0,115200 earlyprintk=ttyS0,115200"
    }

    fn start(&mut self, keys: Option<&str>) -> Result<Start> {
        ensure!(keys.is_none(), "nobody is there to type");
        self.make_disk()?;
        self.make_variables()?;
        let variables = self.variables();
        let on = On {
            variables: Some(&variables),
            ..On::default()
        };
        let mut vm = Vm::start(&self.name, &[Disk::raw(&self.disk(), "boot")], &on)?;
        let start = self.watch(&mut vm);
        self.shown = vm.said();
        let start = start?;
        if start != Start::Restart {
            vm.switch_off()?;
        }
        self.read_back()?;
        Ok(start)
    }

    fn screen(&self) -> String {
        let lines: Vec<&str> = self.shown.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// Where the first variable is in the file that OVMF keeps its variables in: after the headers of the volume
/// and of the store (`VariableFormat.h` of EDK II).
const STORE: u64 = 0x64;
/// Of each variable.
const HEADER: usize = 60;
const START_OF_RECORD: [u8; 2] = [0xaa, 0x55];
/// Of one that was not deleted.
const ADDED: u8 = 0x3f;
/// [`VENDOR`] as UEFI writes it.
const VENDOR_BYTES: [u8; 16] = [
    0x82, 0xb0, 0x67, 0x4a, 0x4c, 0x0a, 0xcf, 0x41, 0xb6, 0xc7, 0x44, 0x0b, 0x29, 0xbb, 0x8c, 0x4f,
];

/// A variable of systemd-boot with the content of its file in efivarfs, which begins with its attributes.
fn record(name: &str, content: &[u8]) -> Vec<u8> {
    let (attributes, data) = content.split_at(4);
    let name: Vec<u8> = name
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
    let mut record = START_OF_RECORD.to_vec();
    record.extend([ADDED, 0]);
    record.extend(attributes);
    // A counter, a time and the number of a key, for variables that are signed.
    record.extend([0; 8 + 16 + 4]);
    record.extend(size(&name));
    record.extend(size(data));
    record.extend(VENDOR_BYTES);
    record.extend(name);
    record.extend(data);
    record.resize(record.len().next_multiple_of(4), 0xff);
    record
}

/// The variables of systemd-boot in the firmware's file, as efivarfs has them.
fn records(store: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut at = usize::try_from(STORE)?;
    while let Some(header) = store
        .get(at..at + HEADER)
        .filter(|h| h[..2] == START_OF_RECORD)
    {
        let size = |from: usize| -> Result<usize> {
            let bytes: [u8; 4] = header[from..from + 4].try_into()?;
            Ok(usize::try_from(u32::from_le_bytes(bytes))?)
        };
        let (name_end, end) = (at + HEADER + size(36)?, at + HEADER + size(36)? + size(40)?);
        let name = store
            .get(at + HEADER..name_end)
            .context("the name is cut off")?;
        let data = store.get(name_end..end).context("the data is cut off")?;
        if header[2] == ADDED && header[44..60] == VENDOR_BYTES {
            let units = name
                .chunks_exact(2)
                .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
            let units: Vec<u16> = units.take_while(|unit| *unit != 0).collect();
            let content = [&header[4..8], data].concat();
            found.insert(String::from_utf16(&units)?, content);
        }
        at = end.next_multiple_of(4);
    }
    Ok(found)
}

/// A program that works on the first partition of a disk.
fn mtool(program: &str, disk: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env("MTOOLS_SKIP_CHECK", "1")
        .arg("-i")
        .arg(format!("{}@@{FIRST}", disk.display()));
    command
}
