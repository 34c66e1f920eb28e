//! Kernels come and go by the package manager of a layer that runs, and each layer boots its own.
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::json;
use crate::vm::guest::script;
use crate::vm::verbs::{KILLED, STEPS_MAX};
use crate::vm::{Disk, Host, Loader, Vm, store};

scenarios![;
    long:
    kernels_of_a_running_layer_are_updated_and_removed_for_it_alone,
    a_refresh_that_is_killed_leaves_entries_that_boot,
];

/// For a package's scripts, with an initramfs to be made, under software emulation.
const SLOW: Duration = Duration::from_secs(1200);
/// The release whose kernel is newer than that of the host.
const NEWER: &str = "trixie-backports";

/// The packages of another kernel, as a tar archive.
fn other_kernel() -> Result<PathBuf> {
    let recipe = include_bytes!("../../ci/kernel-package");
    let directory = store::cached("kernel", &[recipe, NEWER.as_bytes()], |new| {
        store::run_script("kernel-package", &[Path::new(NEWER), new]).map(drop)
    })?;
    Ok(directory.join("kernel.tar"))
}

fn kernels_of_a_running_layer_are_updated_and_removed_for_it_alone() -> Result<()> {
    let disk = Host::prepared()?.disk("kernels")?;
    let packages = vec![Disk::raw_read_only(&other_kernel()?, "packages")];
    let mut vm = disk.boot_with("update", packages)?;
    vm.log_in()?;
    let old = vm.ok("uname -r")?;
    vm.ok_for(
        "mkdir /root/packages && tar -xf /dev/disk/by-id/virtio-packages -C /root/packages && \
         export DEBIAN_FRONTEND=noninteractive && \
         dpkg --install /root/packages/linux-base_*.deb && dpkg --install /root/packages/*.deb",
        SLOW,
    )?;
    let new = vm.ok("ls /usr/lib/modules | grep -vxF $(uname -r)")?;
    let both = vec![
        entry("", "Base-0.1", &new),
        entry(&format!("@{old}"), "Base-0.1", &old),
    ];
    let other = entry("", "Base-0.2", &old);
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both);
    assert_eq!(
        entries_of(&mut vm, "Base-0.2")?,
        std::slice::from_ref(&other)
    );

    // Another initramfs, which could not boot the layer; what boots next is the one made instead.
    vm.ok(&format!(
        "cd / && echo etc/hostname | cpio --quiet -o -H newc >/boot/initrd.img-{new}"
    ))?;
    let mounts = vm.ok("findmnt --raw")?;
    vm.ok_for("imgbased-helper boot refresh", SLOW)?;
    assert_eq!(vm.ok("findmnt --raw")?, mounts);
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both);
    let copies = vm.ok(&format!("ls /boot/imgbased/initrd-{new}-*"))?;
    assert_eq!(copies.lines().count(), 1, "{copies}");
    vm.ok("imgbased-helper check")?;
    vm.power_off()?;

    let mut vm = disk.boot("updated")?;
    vm.log_in()?;
    assert_runs(&mut vm, "Base-0.1", &new)?;
    vm.ok_for(
        &format!("dpkg --purge linux-image-cloud-amd64 linux-image-{old}"),
        SLOW,
    )?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both[..1]);
    assert_eq!(entries_of(&mut vm, "Base-0.2")?, [other]);
    vm.ok("imgbased-helper check")?;
    // The last kernel of the layer has no entry to spare.
    vm.ok(&format!("imgbased-helper boot refresh --removed {new}"))?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both[..1]);
    // The package has written another grub.cfg, with a menu that is not on the serial line.
    vm.ok("imgbased-helper boot try Base-0.2")?;
    vm.power_off()?;

    let mut vm = disk.boot("other")?;
    vm.log_in()?;
    assert_runs(&mut vm, "Base-0.2", &old)
}

fn a_refresh_that_is_killed_leaves_entries_that_boot() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "killed-refresh")?;
    vm.ok(&script("make-kernel")?)?;
    let is_whole = script("is-whole")?;
    for (before, change) in [("--removed", "--added"), ("--added", "--removed")] {
        for step in 1.. {
            vm.ok(&format!("imgbased-helper boot refresh {before} 99.9"))?;
            let refresh = format!("imgbased-helper boot refresh {change} 99.9");
            let status = vm
                .run(&format!("IMGBASED_KILL_AFTER={step} {refresh}"))?
                .status;
            vm.ok(&is_whole)?;
            vm.ok("imgbased-helper check --repair")?;
            vm.ok(&is_whole)?;
            if status == 0 {
                ensure!(step > 5, "{change} ended after {step} steps");
                break;
            }
            assert_eq!(status, KILLED);
            ensure!(step < STEPS_MAX, "{change} goes on after {step} steps");
        }
    }
    Ok(())
}

/// An entry's id, its layer, and its kernel's version, as `boot list` has them.
type Row = (String, String, String);

fn entry(id: &str, layer: &str, version: &str) -> Row {
    (
        format!("imgbased-{layer}{id}"),
        layer.to_owned(),
        version.to_owned(),
    )
}

/// The entries of a layer in the order of the menu. Fails for one that cannot be booted.
fn entries_of(vm: &mut Vm, layer: &str) -> Result<Vec<Row>> {
    let list = json(vm, "boot list")?;
    let mut rows = Vec::new();
    for entry in list["entries"].as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
        if entry["name"] == layer {
            ensure!(entry["bootable"] == true, "{entry}");
            rows.push((text("id"), text("name"), text("kernel")));
        }
    }
    Ok(rows)
}

fn assert_runs(vm: &mut Vm, layer: &str, kernel: &str) -> Result<()> {
    assert_eq!(vm.ok("imgbased-helper layer current")?, layer);
    assert_eq!(vm.ok("uname -r")?, kernel);
    assert_eq!(vm.ok("systemctl is-system-running --wait")?, "running");
    Ok(())
}
