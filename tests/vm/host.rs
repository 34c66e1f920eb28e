//! The prepared disk: a host with one base and two layers, installed inside a machine with the
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

/// The part of the README whose commands make a host of a blank disk.
const INSTALL: &str = "### The disk";

/// The installed disk, which is never written to again.
pub struct Host {
    disk: PathBuf,
}

/// A disk that starts as a copy of the installed one and keeps what its machines write.
pub struct HostDisk {
    path: PathBuf,
    name: String,
}

impl Host {
    /// The host that all tests of this process share; made if there is none of the same parts.
    pub fn prepared() -> Result<&'static Self> {
        static HOST: OnceLock<Result<Host, String>> = OnceLock::new();
        store::once(&HOST, Self::build)
    }

    fn build() -> Result<Self> {
        let image = RootImage::prepared()?;
        let key = image
            .directory()
            .file_name()
            .context("the image's directory has a name")?;
        let recipe = include_bytes!("host.rs");
        let commands = readme::commands(INSTALL)?.join("\n");
        let parts = [key.as_encoded_bytes(), recipe, commands.as_bytes()];
        let directory = store::cached("host", &parts, |new| install(image, new))?;
        Ok(Self {
            disk: directory.join("host.qcow2"),
        })
    }

    /// A fresh disk for the scenario `name`.
    pub fn disk(&self, name: &str) -> Result<HostDisk> {
        let path = store::scratch(name)?.join("disk.qcow2");
        qemu::create_overlay(&path, &self.disk, "qcow2")?;
        Ok(HostDisk {
            path,
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
        Vm::start_unattended(&format!("{}-{boot}", self.name), &disks)
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
        Vm::start(&format!("{}-{boot}", self.name), &disks, None, echo)
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

/// Installs a host on a blank disk in the directory `new`.
fn install(image: &RootImage, new: &Path) -> Result<()> {
    let disk = new.join("host.qcow2");
    qemu::create_disk(&disk, "8G")?;
    let disks = vec![
        Disk::raw_read_only(&image.filesystem(), "image"),
        Disk::writable(&disk, "target"),
    ];
    let mut vm = boot_image(image, "install", disks)?;
    for command in readme::commands(INSTALL)? {
        vm.say(&command);
        vm.ok_for(&command, SLOW)?;
    }
    vm.power_off().map(drop)
}
