//! Kernels come and go by the package manager of a layer that runs, and each layer boots its own. The
//! machines are in `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use vm::{Disk, Echo, Host, Vm, store};

/// For a package's scripts, with an initramfs to be made, under software emulation.
const SLOW: Duration = Duration::from_secs(1200);
/// The release whose kernel is newer than that of the host.
const NEWER: &str = "trixie-backports";

/// The packages of another kernel, as a tar archive.
fn other_kernel() -> Result<PathBuf> {
    let recipe = include_bytes!("../ci/kernel-package");
    let directory = store::cached("kernel", &[recipe, NEWER.as_bytes()], |new| {
        store::run_script("kernel-package", &[Path::new(NEWER), new]).map(drop)
    })?;
    Ok(directory.join("kernel.tar"))
}

#[test]
fn kernels_of_a_running_layer_are_updated_and_removed_for_it_alone() -> Result<()> {
    let disk = Host::prepared()?.disk("kernels")?;
    let packages = vec![Disk::raw_read_only(&other_kernel()?, "packages")];
    let mut vm = disk.boot_with("update", packages, Echo::Silent)?;
    vm.log_in()?;
    let old = vm.ok("uname -r")?;
    vm.ok_for(
        "mkdir /root/packages && tar -xf /dev/disk/by-id/virtio-packages -C /root/packages && \
         dpkg --install /root/packages/*.deb",
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

    // Another initramfs, which could not boot the layer.
    vm.ok_for(
        &format!("dracut --force --omit imgbased /boot/initrd.img-{new} {new}"),
        SLOW,
    )?;
    let mounts = vm.ok("findmnt --raw")?;
    vm.ok_for("imgbased-helper boot refresh", SLOW)?;
    assert_eq!(vm.ok("findmnt --raw")?, mounts);
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both);
    let copies = vm.ok(&format!("ls /boot/imgbased/initrd-{new}-*"))?;
    assert_eq!(copies.lines().count(), 1, "{copies}");
    vm.ok("imgbased-helper check")?;
    vm.power_off()?;

    let mut vm = disk.boot("updated", Echo::Silent)?;
    vm.log_in()?;
    assert_runs(&mut vm, "Base-0.1", &new)?;
    vm.ok_for(
        &format!(
            "export DEBIAN_FRONTEND=noninteractive && \
             dpkg --purge linux-image-cloud-amd64 linux-image-{old}"
        ),
        SLOW,
    )?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both[..1]);
    assert_eq!(entries_of(&mut vm, "Base-0.2")?, [other]);
    vm.ok("imgbased-helper check")?;
    // The last kernel of the layer has no entry to spare.
    vm.ok(&format!("imgbased-helper boot refresh --removed {new}"))?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both[..1]);
    vm.power_off()?;

    let mut vm = disk.boot("other", Echo::Silent)?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    assert_runs(&mut vm, "Base-0.2", &old)
}

/// The end of an entry's id, the layer, and the kernel's version, as `boot list` has them.
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
    let list: serde_json::Value =
        serde_json::from_str(&vm.ok("imgbased-helper --json boot list")?)?;
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
