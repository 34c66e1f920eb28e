//! The prepared hosts: with one base and two layers, installed inside a machine with the commands of
//! the README, and saved once more while they run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};

use super::image::RootImage;
use super::qemu::{self, Disk, Kernel, Start, Vm};
use super::{guest, readme, store};

/// Copying a whole image into the thin pool, under software emulation.
const SLOW: Duration = Duration::from_secs(1800);

/// The empty disks in a machine that is saved while it runs, and their sizes: what is in a machine then
/// is in it whenever it goes on.
const SPARES: [(&str, &str); 8] = [
    ("spare", "4G"),
    ("small", "700M"),
    ("other", "1300M"),
    ("tiny1", "64M"),
    ("tiny2", "64M"),
    ("tiny3", "64M"),
    ("tiny4", "64M"),
    ("tiny5", "64M"),
];

/// What a host is started by.
#[derive(Clone, Copy, Debug)]
pub enum Loader {
    /// GRUB 2.12 on BIOS, with the rendered menu.
    Grub,
    /// GRUB 2.14 on UEFI, which reads the entries itself.
    GrubOnUefi,
    /// systemd-boot; the ESP is the boot partition.
    SystemdBoot,
}

impl Loader {
    /// The part of the README whose commands make a host with GRUB on BIOS.
    pub const README_OF_GRUB: &str = "### The disk";

    /// The name of the host in the store, the release of Debian that it runs, and the part of the README
    /// whose commands make it of a blank disk.
    fn recipe(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Grub => ("host", "trixie", Self::README_OF_GRUB),
            Self::GrubOnUefi => ("uefi-grub", "forky", "#### With GRUB"),
            Self::SystemdBoot => ("uefi-systemd-boot", "trixie", "#### With systemd-boot"),
        }
    }

    fn is_uefi(self) -> bool {
        !matches!(self, Self::Grub)
    }
}

/// The installed disk, which is never written to again.
pub struct Host {
    directory: PathBuf,
    loader: Loader,
}

impl Host {
    /// The host with GRUB on BIOS that all tests of this process share; made if there is none of the
    /// same parts.
    pub fn prepared() -> Result<&'static Self> {
        Self::with(Loader::Grub)
    }

    /// The same with another boot loader.
    pub fn with(loader: Loader) -> Result<&'static Self> {
        static HOSTS: [OnceLock<Result<Host, String>>; 3] = [const { OnceLock::new() }; 3];
        store::once(&HOSTS[loader as usize], || Self::build(loader))
    }

    fn build(loader: Loader) -> Result<Self> {
        let (name, suite, heading) = loader.recipe();
        let image = RootImage::of(suite)?;
        let recipe = include_bytes!("host.rs");
        let commands = readme::commands(heading)?;
        let text = commands.join("\n");
        let parts = [image.key()?, recipe, text.as_bytes()];
        let install = |new: &Path| install(image, name, &commands, new);
        let directory = store::cached(name, &parts, install)?;
        Ok(Self { directory, loader })
    }

    /// The disk of a host with any release of Debian, made for the scenario `name` alone, by the same part of the
    /// README.
    pub fn of_release(suite: &'static str, loader: Loader, name: &str) -> Result<HostDisk> {
        let (_, _, heading) = loader.recipe();
        let image = RootImage::of(suite)?;
        let directory = store::scratch(name)?;
        install(image, name, &readme::commands(heading)?, &directory)?;
        let variables = loader.is_uefi().then(|| directory.join("variables"));
        if let Some(variables) = &variables {
            qemu::create_variables(variables)?;
        }
        Ok(HostDisk {
            path: directory.join("host.qcow2"),
            variables,
            name: name.into(),
        })
    }

    /// A key of all that went into the host.
    pub fn key(&self) -> Result<&[u8]> {
        store::key_of(&self.directory)
    }

    /// A fresh disk for the scenario `name`.
    pub fn disk(&self, name: &str) -> Result<HostDisk> {
        let path = store::scratch(name)?.join("disk.qcow2");
        qemu::create_overlay(&path, &self.directory.join("host.qcow2"), "qcow2")?;
        let variables = path.with_file_name("variables");
        if self.loader.is_uefi() {
            qemu::create_variables(&variables)?;
        }
        Ok(HostDisk {
            path,
            variables: self.loader.is_uefi().then_some(variables),
            name: name.into(),
        })
    }

    /// The host of this boot loader while it runs: Base-0.1 was booted by default, and root has logged
    /// in. Its disk is that of the scenario `name`, and the disks of [`SPARES`] are there, empty.
    pub fn running(loader: Loader, name: &str) -> Result<(HostDisk, Vm)> {
        Self::running_as(loader, name, false)
    }

    /// The same on a machine that starts again by itself when its system restarts or panics.
    pub fn running_unattended(loader: Loader, name: &str) -> Result<(HostDisk, Vm)> {
        Self::running_as(loader, name, true)
    }

    fn running_as(loader: Loader, name: &str, restarts: bool) -> Result<(HostDisk, Vm)> {
        let saved = Self::saved(loader)?;
        let disk = saved.disk(name)?;
        let vm = saved.go_on(&disk, restarts)?;
        Ok((disk, vm))
    }

    /// The running host that all tests of this process share.
    pub fn saved(loader: Loader) -> Result<&'static Saved> {
        static SAVED: [OnceLock<Result<Saved, String>>; 3] = [const { OnceLock::new() }; 3];
        store::once(&SAVED[loader as usize], || {
            let host = Self::with(loader)?;
            let name = format!("running-{}", loader.recipe().0);
            let parts = [
                host.key()?,
                include_bytes!("host.rs"),
                include_bytes!("qemu.rs"),
            ];
            let directory = store::cached(&name, &parts, |new| host.save_running(&name, new))?;
            Ok(Saved::in_directory(directory, loader.is_uefi()))
        })
    }

    /// Boots the host, has it do once what is slow the first time, and saves it in the directory `new`.
    fn save_running(&self, name: &str, new: &Path) -> Result<()> {
        let (disk, saved) = (
            self.disk(name)?,
            Saved::in_directory(new.to_owned(), self.loader.is_uefi()),
        );
        fs::rename(disk.path(), saved.disk_path())?;
        for (serial, size) in SPARES {
            qemu::create_disk(&saved.spare_path(serial), size)?;
        }
        if let Some(variables) = &disk.variables {
            fs::rename(variables, saved.variables_path())?;
        }
        let saved_disk = HostDisk {
            path: saved.disk_path(),
            variables: disk.variables.map(|_| saved.variables_path()),
            name: name.into(),
        };
        let spares = SPARES.map(|(serial, _)| saved_disk.existing(serial));
        let mut vm = saved_disk.boot_with("once", spares.into())?;
        vm.log_in()?;
        vm.ok_for(&guest::script("warm-up")?, SLOW)?;
        vm.save(&saved.state_path())
    }
}

/// A running machine that was saved with its disks: memory, devices, the host's disk, the spare ones and
/// the variables of UEFI are of the same moment.
pub struct Saved {
    directory: PathBuf,
    is_uefi: bool,
}

impl Saved {
    fn in_directory(directory: PathBuf, is_uefi: bool) -> Self {
        Self { directory, is_uefi }
    }

    /// The disk of the host, as it was at that moment.
    pub fn disk_path(&self) -> PathBuf {
        self.directory.join("disk.qcow2")
    }

    fn spare_path(&self, serial: &str) -> PathBuf {
        self.directory.join(serial).with_extension("qcow2")
    }

    fn variables_path(&self) -> PathBuf {
        self.directory.join("variables")
    }

    fn state_path(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Fresh disks for the scenario `name`, as they were when the machine was saved.
    pub fn disk(&self, name: &str) -> Result<HostDisk> {
        let path = store::scratch(name)?.join("disk.qcow2");
        let disk = HostDisk {
            variables: self.is_uefi.then(|| path.with_file_name("variables")),
            path,
            name: name.into(),
        };
        self.reset(&disk)?;
        Ok(disk)
    }

    /// Makes the disks again what they were when the machine was saved.
    fn reset(&self, disk: &HostDisk) -> Result<()> {
        qemu::create_overlay(&disk.path, &self.disk_path(), "qcow2")?;
        for (serial, _) in SPARES {
            let path = disk.spare_path(serial);
            qemu::create_overlay(&path, &self.spare_path(serial), "qcow2")?;
        }
        if let Some(variables) = &disk.variables {
            fs::copy(self.variables_path(), variables)?;
        }
        Ok(())
    }

    /// The machine as it was, on disks that are as they were.
    pub fn again(&self, disk: &HostDisk) -> Result<Vm> {
        self.reset(disk)?;
        self.go_on(disk, false)
    }

    /// The machine as it was. Its spare disks may hold something else than they did.
    pub fn go_on(&self, disk: &HostDisk, restarts: bool) -> Result<Vm> {
        self.go_on_with(disk, Disk::writable(&disk.path, "host"), restarts)
    }

    /// The machine as it was, with a log of what it writes to the disk of the host from here on.
    pub fn go_on_logged(&self, disk: &HostDisk, log: &Path) -> Result<Vm> {
        self.go_on_with(disk, Disk::logged(&disk.path, log, "host")?, false)
    }

    fn go_on_with(&self, disk: &HostDisk, host: Disk, restarts: bool) -> Result<Vm> {
        let start = Start {
            variables: disk.variables.as_deref(),
            saved: Some(&self.state_path()),
            restarts,
            ..Start::default()
        };
        let spares = SPARES.map(|(serial, _)| disk.existing(serial));
        let disks: Vec<Disk> = [host].into_iter().chain(spares).collect();
        Vm::start(&format!("{}-running", disk.name), &disks, &start)
    }

    /// Saves a machine that [`Host::running`] or [`Saved::again`] has returned, with its disks, under the
    /// name of its scenario.
    pub fn of(disk: HostDisk, vm: Vm) -> Result<Self> {
        let spares = SPARES.map(|(serial, _)| (serial, disk.spare_path(serial)));
        let HostDisk {
            path,
            variables,
            name,
        } = disk;
        let directory = store::scratch(&format!("{name}-saved"))?;
        let saved = Self::in_directory(directory, variables.is_some());
        vm.save(&saved.state_path())?;
        fs::rename(path, saved.disk_path())?;
        for (serial, path) in spares {
            fs::rename(path, saved.spare_path(serial))?;
        }
        if let Some(variables) = variables {
            fs::rename(variables, saved.variables_path())?;
        }
        Ok(saved)
    }
}

/// A disk that starts as a copy of the installed one and keeps what its machines write.
pub struct HostDisk {
    path: PathBuf,
    /// Of the firmware, where that is UEFI.
    variables: Option<PathBuf>,
    name: String,
}

impl HostDisk {
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Switches a machine on that boots from this disk. `boot` tells the scenario's boots apart.
    pub fn boot(&self, boot: &str) -> Result<Vm> {
        self.start(boot, Vec::new(), Start::default())
    }

    /// The same with the disks `others` in the machine as well.
    pub fn boot_with(&self, boot: &str, others: Vec<Disk>) -> Result<Vm> {
        self.start(boot, others, Start::default())
    }

    /// The same for a machine that starts again by itself when the system in it restarts or panics.
    pub fn boot_unattended(&self, boot: &str) -> Result<Vm> {
        let start = Start {
            restarts: true,
            ..Start::default()
        };
        self.start(boot, Vec::new(), start)
    }

    /// Switches a machine on that begins as `start` says; the firmware is that of the host.
    pub fn start(&self, boot: &str, others: Vec<Disk>, start: Start) -> Result<Vm> {
        let mut disks = vec![Disk::writable(&self.path, "host")];
        disks.extend(others);
        // QEMU starts a kernel by a BIOS of its own.
        let variables = self.variables.as_deref().filter(|_| start.kernel.is_none());
        let start = Start { variables, ..start };
        Vm::start(&format!("{}-{boot}", self.name), &disks, &start)
    }

    /// A new, empty disk beside this one, of `size` as qemu-img understands it.
    pub fn spare(&self, serial: &'static str, size: &str) -> Result<Disk> {
        qemu::create_disk(&self.spare_path(serial), size)?;
        Ok(self.existing(serial))
    }

    /// A disk that [`HostDisk::spare`] made, or that was in a running machine, as earlier machines have
    /// left it.
    pub fn existing(&self, serial: &'static str) -> Disk {
        Disk::writable(&self.spare_path(serial), serial)
    }

    /// Has one of the [`SPARES`] begin with the content of a file, before the machine goes on.
    pub fn fill(&self, serial: &str, content: &Path) -> Result<()> {
        let spare = SPARES.iter().find(|(name, _)| *name == serial);
        let (_, size) = spare.with_context(|| format!("there is no disk {serial}"))?;
        qemu::create_filled_disk(&self.spare_path(serial), content, size)
    }

    fn spare_path(&self, serial: &str) -> PathBuf {
        self.path.with_file_name(serial).with_extension("qcow2")
    }
}

/// Boots `image` as the ordinary root of a machine and logs in; `disks` are there as well.
pub fn boot_image(image: &RootImage, name: &str, disks: Vec<Disk>) -> Result<Vm> {
    let root = store::scratch(name)?.join("root.qcow2");
    qemu::create_overlay(&root, &image.filesystem(), "raw")?;
    boot_root(image, &root, name, disks)
}

/// The kernel options of a root image: see `ci/root-image`. Without `quiet`, so that a log has all.
pub const OPTIONS: &str =
    "console=ttyS0,115200 mitigations=off lsm=lockdown,yama,apparmor cryptomgr.notests=1";

/// Like [`boot_image`], with the file `root`, an overlay of the image, as the root.
pub fn boot_root(image: &RootImage, root: &Path, name: &str, disks: Vec<Disk>) -> Result<Vm> {
    let mut all = vec![Disk::writable(root, "root")];
    all.extend(disks);
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd: &image.small_initrd(),
        // No fstab: systemd would wait for the boot partition of a host.
        cmdline: &format!("root=/dev/vda rw fstab=no {OPTIONS}"),
    };
    let start = Start {
        kernel: Some(&kernel),
        ..Start::default()
    };
    let mut vm = Vm::start(name, &all, &start)?;
    vm.log_in()?;
    Ok(vm)
}

/// Installs a host on a blank disk in the directory `new`, with these commands.
fn install(image: &RootImage, name: &str, commands: &[String], new: &Path) -> Result<()> {
    let disk = new.join("host.qcow2");
    qemu::create_disk(&disk, "8G")?;
    let disks = vec![
        Disk::raw_read_only(&image.filesystem(), "image"),
        Disk::writable(&disk, "target"),
    ];
    let mut vm = boot_image(image, &format!("install-{name}"), disks)?;
    for command in commands {
        vm.say(command);
        vm.ok_for(command, SLOW)?;
    }
    vm.power_off().map(drop)
}
