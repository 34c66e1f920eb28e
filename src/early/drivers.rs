//! Loads the drivers of disks before udev looks at all devices of the machine.
//!
//! udev takes devices in the order in which the kernel named them. A disk whose controller needs a
//! driver comes after hundreds of others: it waits until udev has come to the controller, and then
//! once more for each driver between the two.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::sys::cmd::Cmd;

/// Where controllers and disks of virtual machines are found.
const BUSES: [&str; 4] = ["pci", "virtio", "vmbus", "xen"];
/// What kinds of devices ask for by `modalias` that have to do with disks.
const DISKS: [&str; 4] = [
    // virtio_ids.h: a block device and a SCSI host.
    "virtio:d00000002",
    "virtio:d00000008",
    // hyperv.h: HV_SCSI_GUID.
    "vmbus:d96361baa104294db60572e2ffb1dc7f",
    "xen:vbd",
];
/// A disk on a SCSI host. It is found some time after the host's driver is loaded.
const SCSI_DISK: &str = "scsi:t-0x00";
/// What a layer is on.
const THIN_POOL: &str = "dm-thin-pool";

/// Loads drivers until there is no device of a disk without.
pub fn load() -> Result<()> {
    let mut known = BTreeSet::new();
    loop {
        // A driver brings new devices: a virtio disk is behind one on the PCI bus.
        let new: Vec<String> = modaliases(Path::new("/sys/bus"))
            .filter(|modalias| is_of_disk(modalias) && known.insert(modalias.clone()))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        // It fails where the kernel needs no module.
        Cmd::new("modprobe")
            .args(["--all", "--use-blacklist", "--quiet", SCSI_DISK, THIN_POOL])
            .args(new)
            .accept(&[0, 1])
            .run()?;
    }
}

/// By what names the devices ask for drivers.
fn modaliases(buses: &Path) -> impl Iterator<Item = String> {
    let devices = |bus| fs::read_dir(buses.join(bus).join("devices"));
    let devices = BUSES.into_iter().flat_map(devices).flatten().flatten();
    devices
        .filter_map(|device| fs::read_to_string(device.path().join("modalias")).ok())
        .map(|modalias| modalias.trim().to_owned())
}

fn is_of_disk(modalias: &str) -> bool {
    // Base class 1 of the PCI Code and ID Assignment Specification: mass storage controllers.
    let is_controller = modalias.starts_with("pci:") && modalias.contains("bc01sc");
    is_controller || DISKS.iter().any(|disk| modalias.starts_with(disk))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_disks_are_known_by_their_modalias() {
        for disk in [
            "pci:v00001AF4d00001042sv00001AF4sd00001100bc01sc00i00",
            "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
            "virtio:d00000002v00001AF4",
            "virtio:d00000008v00001AF4",
        ] {
            assert!(is_of_disk(disk), "{disk}");
        }
        for other in [
            "pci:v00008086d000010D3sv00008086sd00000000bc02sc00i00",
            "virtio:d00000001v00001AF4",
            "usb:v1D6Bp0002d0601dc09dsc00dp00ic09isc00ip00in00",
            "",
        ] {
            assert!(!is_of_disk(other), "{other}");
        }
    }

    #[test]
    fn modaliases_are_read_from_all_buses() {
        let buses = tempfile::tempdir().unwrap();
        for (device, modalias) in [
            ("pci/devices/0000:00:02.0", "pci:v1\n"),
            ("virtio/devices/virtio0", "virtio:d1\n"),
        ] {
            let device = buses.path().join(device);
            fs::create_dir_all(&device).unwrap();
            fs::write(device.join("modalias"), modalias).unwrap();
        }
        fs::create_dir(buses.path().join("pci/devices/without")).unwrap();
        let found: Vec<String> = modaliases(buses.path()).collect();
        assert_eq!(found, ["pci:v1", "virtio:d1"]);
    }
}
