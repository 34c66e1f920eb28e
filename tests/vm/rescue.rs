//! A system that prepares the disk of a host, or looks at it, from outside: booted once, saved, and there
//! again within a second for each disk.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::Result;

use super::host::{Host, boot_root};
use super::image::RootImage;
use super::qemu::{self, Disk, Start, Vm};
use super::{guest, store};

/// The saved system.
pub struct Rescue {
    directory: PathBuf,
}

impl Rescue {
    /// The size of the disk beside the host's, which is empty unless a scenario brings its own.
    pub const SPARE_SIZE: &str = "1G";

    /// The system that all tests of this process share.
    pub fn prepared() -> Result<&'static Self> {
        static RESCUE: OnceLock<Result<Rescue, String>> = OnceLock::new();
        store::once(&RESCUE, || {
            let image = RootImage::prepared()?;
            let host = Host::prepared()?;
            let parts = [
                image.key()?,
                host.key()?,
                include_bytes!("rescue.rs"),
                include_bytes!("qemu.rs"),
            ];
            let directory = store::cached("rescue", &parts, |new| boot(image, host, new))?;
            Ok(Self { directory })
        })
    }

    /// The system with the host's disk `disk`, at a shell's prompt. `name` is the name of its log.
    pub fn with(&self, name: &str, disk: Disk) -> Result<Vm> {
        let spare = Disk::forgetful(&self.directory.join("spare.qcow2"), "qcow2", "spare");
        self.restore(name, disk, spare)
    }

    /// The same with a disk of [`Rescue::SPARE_SIZE`] beside it. The system had an empty one when it was
    /// saved, which udev and lvm2 remember.
    pub fn with_both(&self, name: &str, disk: Disk, spare: Disk) -> Result<Vm> {
        let mut vm = self.restore(name, disk, spare)?;
        vm.ok("rm -f /run/lvm/hints && udevadm trigger --settle /dev/disk/by-id/virtio-spare")?;
        Ok(vm)
    }

    fn restore(&self, name: &str, disk: Disk, spare: Disk) -> Result<Vm> {
        let root = Disk::forgetful(&self.directory.join("root.qcow2"), "qcow2", "root");
        let start = Start {
            saved: Some(&self.directory.join("state")),
            ..Start::default()
        };
        Vm::start(name, &[root, disk, spare], &start)
    }
}

fn boot(image: &RootImage, host: &Host, new: &Path) -> Result<()> {
    let host = host.disk("rescue-host")?;
    let (root, spare) = (new.join("root.qcow2"), new.join("spare.qcow2"));
    qemu::create_overlay(&root, &image.filesystem(), "raw")?;
    qemu::create_disk(&spare, Rescue::SPARE_SIZE)?;
    let disks = vec![
        Disk::writable(host.path(), "host"),
        Disk::writable(&spare, "spare"),
    ];
    let mut vm = boot_root(image, &root, "rescue", disks)?;
    vm.ok(&guest::script("make-extra")?)?;
    vm.ok(&guest::script("rescue")?)?;
    vm.save(&new.join("state"))
}
