//! Hosts with UEFI, started by GRUB 2.14, which reads the entries itself, and by systemd-boot.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Result, ensure};
use serde_json::Value;

use vm::{Echo, Host, HostDisk, Loader, Vm};

#[test]
fn grub_reads_the_entries_itself() -> Result<()> {
    boots_by_default_once_and_by_the_new_default(Loader::GrubOnUefi, "grub-blscfg")
}

#[test]
fn systemd_boot_boots_once_and_by_default() -> Result<()> {
    boots_by_default_once_and_by_the_new_default(Loader::SystemdBoot, "systemd-boot")
}

/// Boots the default, another layer once, and the default again.
fn boots_by_default_once_and_by_the_new_default(loader: Loader, id: &str) -> Result<()> {
    let disk = Host::with(loader)?.disk(id)?;
    let mut vm = boot(&disk, "first", "Base-0.1")?;
    let list = json(&mut vm, "boot list")?;
    assert_eq!(list["loader"], id);
    let reason = list["loader_reason"].as_str().unwrap_or_default();
    let wanted = match loader {
        Loader::SystemdBoot => "LoaderInfo is systemd-boot",
        _ => "/boot/grub/grub.cfg is there",
    };
    ensure!(reason.contains(wanted), "{list}");
    assert_eq!(names(&list, "default"), ["Base-0.1"]);
    vm.ok("imgbased-helper boot try Base-0.1 && imgbased-helper boot try --cancel")?;
    assert_eq!(names(&json(&mut vm, "boot list")?, "once"), [""; 0]);
    vm.ok("imgbased-helper boot try Base-0.2")?;
    assert_eq!(names(&json(&mut vm, "boot list")?, "once"), ["Base-0.2"]);
    vm.ok("sed -i 's/nofail/&,x-systemd.automount/' /etc/fstab")?;
    vm.power_off()?;

    boot(&disk, "tried", "Base-0.2")?.power_off()?;

    let mut vm = boot(&disk, "back", "Base-0.1")?;
    vm.ok("systemctl is-active boot.automount")?;
    let list = json(&mut vm, "boot list")?;
    assert_eq!(names(&list, "once"), [""; 0]);
    vm.ok("imgbased-helper --dry-run boot default Base-0.2 >/root/plan && sh -e /root/plan")?;
    assert_eq!(names(&json(&mut vm, "boot list")?, "default"), ["Base-0.2"]);
    vm.ok("imgbased-helper layer add && imgbased-helper layer remove Base-0.3")?;
    let refused = vm.run("imgbased-helper layer remove Base-0.2")?;
    ensure!(refused.text.contains("is the default"), "{refused:?}");
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    if matches!(loader, Loader::SystemdBoot) {
        vm.ok("test ! -e /boot/grub")?;
    }
    vm.power_off().map(drop)
}

/// Boots without a hand on the keyboard, into `layer`.
fn boot(disk: &HostDisk, boot: &str, layer: &str) -> Result<Vm> {
    let mut vm = disk.boot(boot, Echo::Silent)?;
    vm.log_in()?;
    assert_eq!(json(&mut vm, "status")?["booted"], layer);
    Ok(vm)
}

fn json(vm: &mut Vm, arguments: &str) -> Result<Value> {
    let text = vm.ok(&format!("imgbased-helper --json {arguments}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// The layers and bases that have a mark in the list of entries.
fn names(list: &Value, mark: &str) -> Vec<String> {
    let entries = list["entries"].as_array().into_iter().flatten();
    let marked = entries.filter(|entry| entry[mark] == true);
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    marked.map(name).collect()
}
