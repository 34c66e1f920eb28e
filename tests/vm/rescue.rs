//! A system that looks at the disk of a host from outside: booted once, saved, and there again
//! within a second for each disk.

use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::Result;

use super::host::{Host, boot_root};
use super::image::RootImage;
use super::qemu::{self, Disk, Vm};
use super::store;
use super::verbs::MAKE_EXTRA;

/// What makes the first look as fast as the later ones, and then leaves the disk alone. A device
/// that nobody has open has nothing in the cache that another disk could contradict.
const WARM_UP: &str = "\
    lvm lvchange --sysinit -K -ay HostVG/Base-0 HostVG/Base-0.1 && \
    e2fsck -fp /dev/HostVG/Base-0.1 && mount -o ro /dev/HostVG/Base-0.1 /mnt && umount /mnt && \
    mountpoint -q /boot && imgbased-helper check && umount /boot && \
    vgchange -q -an HostVG && udevadm settle && sync && echo 3 >/proc/sys/vm/drop_caches";

/// The saved system.
pub struct Rescue {
    root: PathBuf,
    state: PathBuf,
}

impl Rescue {
    /// The system that all tests of this process share.
    pub fn prepared() -> Result<&'static Self> {
        static RESCUE: OnceLock<Result<Rescue, String>> = OnceLock::new();
        store::once(&RESCUE, Self::boot)
    }

    fn boot() -> Result<Self> {
        let host = Host::prepared()?.disk("rescue-host")?;
        let image = RootImage::prepared()?;
        let directory = store::scratch("rescue")?;
        let (root, state) = (directory.join("root.qcow2"), directory.join("state"));
        qemu::create_overlay(&root, &image.filesystem(), "raw")?;
        let disks = vec![Disk::writable(host.path(), "host")];
        let mut vm = boot_root(image, &root, "rescue", disks)?;
        vm.ok(MAKE_EXTRA)?;
        vm.ok(WARM_UP)?;
        vm.save(&state)?;
        Ok(Self { root, state })
    }

    /// The system with the host's disk `disk`, at a shell's prompt. `name` is the name of its log.
    pub fn with(&self, name: &str, disk: Disk) -> Result<Vm> {
        let root = Disk::forgetful(&self.root, "qcow2", "root");
        Vm::restore(name, &[root, disk], &self.state)
    }
}
