//! The prepared disks: hosts with one base and two layers, installed inside a machine with the
//! commands of the README.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result};

use super::console::Echo;
use super::image::RootImage;
use super::qemu::{self, Disk, Kernel, Vm};
use super::{readme, store};

/// Copying a whole image into the thin pool, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// What a host is started by.
#[derive(Clone, Copy)]
pub enum Loader {
    /// GRUB 2.12 on BIOS, with the rendered menu.
    Grub,
    /// GRUB 2.14 on UEFI, which reads the entries itself.
    GrubOnUefi,
    /// systemd-boot; the ESP is the boot partition.
    SystemdBoot,
}

impl Loader {
    /// The name of the host in the store, the release of Debian that it runs, and the part of the README
    /// whose commands make it of a blank disk.
    fn recipe(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Grub => ("host", "trixie", "### The disk"),
            Self::GrubOnUefi => ("uefi-grub", "forky", "#### With GRUB"),
            Self::SystemdBoot => ("uefi-systemd-boot", "trixie", "#### With systemd-boot"),
        }
    }
}

/// The installed disk, which is never written to again.
pub struct Host {
    disk: PathBuf,
    loader: Loader,
}

/// A disk that starts as a copy of the installed one and keeps what its machines write.
pub struct HostDisk {
    path: PathBuf,
    /// Of the firmware, where that is UEFI.
    variables: Option<PathBuf>,
    name: String,
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
        let key = image
            .directory()
            .file_name()
            .context("the image's directory has a name")?;
        let recipe = include_bytes!("host.rs");
        let commands = readme::commands(heading)?;
        let text = commands.join("\n");
        let parts = [key.as_encoded_bytes(), recipe, text.as_bytes()];
        let install = |new: &Path| install(&image, name, &commands, new);
        let directory = store::cached(name, &parts, install)?;
        Ok(Self {
            disk: directory.join("host.qcow2"),
            loader,
        })
    }

    /// A fresh disk for the scenario `name`.
    pub fn disk(&self, name: &str) -> Result<HostDisk> {
        let path = store::scratch(name)?.join("disk.qcow2");
        qemu::create_overlay(&path, &self.disk, "qcow2")?;
        let variables = match self.loader {
            Loader::Grub => None,
            Loader::GrubOnUefi | Loader::SystemdBoot => {
                let path = path.with_file_name("variables");
                qemu::create_variables(&path)?;
                Some(path)
            }
        };
        Ok(HostDisk {
            path,
            variables,
            name: name.into(),
        })
    }
}

impl HostDisk {
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Switches a machine on that boots from this disk. `boot` tells the scenario's boots apart.
    pub fn boot(&self, boot: &str, echo: Echo) -> Result<Vm> {
        self.boot_with(boot, Vec::new(), echo)
    }

    /// The same for a machine that starts again by itself when the system in it restarts or panics.
    pub fn boot_unattended(&self, boot: &str) -> Result<Vm> {
        let disks = [Disk::writable(&self.path, "host")];
        let name = format!("{}-{boot}", self.name);
        Vm::start_unattended(&name, &disks, self.variables.as_deref())
    }

    /// A new, empty disk beside this one, of `size` as qemu-img understands it.
    pub fn spare(&self, serial: &'static str, size: &str) -> Result<Disk> {
        let path = self.path.with_file_name(format!("{serial}.qcow2"));
        qemu::create_disk(&path, size)?;
        Ok(Disk::writable(&path, serial))
    }

    /// A disk that [`HostDisk::spare`] made, as earlier machines have left it.
    pub fn existing(&self, serial: &'static str) -> Disk {
        let path = self.path.with_file_name(format!("{serial}.qcow2"));
        Disk::writable(&path, serial)
    }

    /// Like [`HostDisk::boot`], with the disks `others` in the machine as well.
    pub fn boot_with(&self, boot: &str, others: Vec<Disk>, echo: Echo) -> Result<Vm> {
        let mut disks = vec![Disk::writable(&self.path, "host")];
        disks.extend(others);
        let name = format!("{}-{boot}", self.name);
        match &self.variables {
            Some(variables) => Vm::start_uefi(&name, &disks, variables, echo),
            None => Vm::start(&name, &disks, None, echo),
        }
    }

    /// Like [`HostDisk::boot_with`], but QEMU starts the `kernel` itself.
    pub fn boot_kernel(
        &self,
        boot: &str,
        kernel: &Kernel,
        others: Vec<Disk>,
        echo: Echo,
    ) -> Result<Vm> {
        let mut disks = vec![Disk::writable(&self.path, "host")];
        disks.extend(others);
        let name = format!("{}-{boot}", self.name);
        Vm::start(&name, &disks, Some(kernel), echo)
    }
}

/// Boots `image` as the ordinary root of a machine and logs in; `disks` are there as well.
pub fn boot_image(image: &RootImage, name: &str, disks: Vec<Disk>) -> Result<Vm> {
    let root = store::scratch(name)?.join("root.qcow2");
    qemu::create_overlay(&root, &image.filesystem(), "raw")?;
    boot_root(image, &root, name, disks)
}

/// Like [`boot_image`], with the file `root`, an overlay of the image, as the root.
pub fn boot_root(image: &RootImage, root: &Path, name: &str, disks: Vec<Disk>) -> Result<Vm> {
    let mut all = vec![Disk::writable(root, "root")];
    all.extend(disks);
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd: &image.initrd(),
        cmdline: "root=/dev/vda rw console=ttyS0,115200",
    };
    let mut vm = Vm::start(name, &all, Some(&kernel), Echo::Silent)?;
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
