//! Hosts with UEFI, started by GRUB 2.14, which reads the entries itself, and by systemd-boot.

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::claims::{is_clean, is_refused, json};
use crate::vm::guest::{script, script_with};
use crate::vm::{Host, HostDisk, Loader, Vm};

scenarios![
    grub_reads_the_entries_itself,
    systemd_boot_boots_once_and_by_default;
    long:
    grub_can_read_on_xfs_what_a_verb_has_changed,
];

fn grub_reads_the_entries_itself() -> Result<()> {
    boots_by_default_once_and_by_the_new_default(Loader::GrubOnUefi, "grub-blscfg")
}

fn systemd_boot_boots_once_and_by_default() -> Result<()> {
    boots_by_default_once_and_by_the_new_default(Loader::SystemdBoot, "systemd-boot")
}

/// Boots the default, another layer once, and the default again.
fn boots_by_default_once_and_by_the_new_default(loader: Loader, id: &str) -> Result<()> {
    let (disk, mut vm) = Host::running(loader, id)?;
    assert_eq!(json(&mut vm, "status")?["booted"], "Base-0.1");
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
    is_refused(&mut vm, "layer remove Base-0.2", "is the default")?;
    is_clean(&mut vm)?;
    if matches!(loader, Loader::SystemdBoot) {
        vm.ok("test ! -e /boot/grub")?;
    }
    vm.power_off().map(drop)
}

/// GRUB replays no journal, and after syncfs(2) XFS has its metadata there: what a verb has changed has to
/// be in its place when the verb returns, and the filesystem thawed whatever happens meanwhile.
fn grub_can_read_on_xfs_what_a_verb_has_changed() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "xfs")?;
    vm.ok(&script("boot-on-xfs")?)?;
    vm.ok("echo x >/boot/synced && sync -f /boot")?;
    ensure!(
        !is_seen_by_grub(&mut vm, "synced")?,
        "no log has to be flushed for GRUB"
    );
    for (verb, there) in [
        ("layer add Base-0", true),
        ("boot default Base-0.3", true),
        ("boot default --tries 0 Base-0.2", true),
        ("boot try Base-0.3", true),
        ("boot try --cancel", true),
        ("layer remove Base-0.3", false),
    ] {
        vm.ok(&format!("imgbased-helper {verb}"))?;
        let entry = "loader/entries/imgbased-Base-0.3.conf";
        for file in [entry, "grub/imgbased.cfg", "grub/grubenv"] {
            let is_wanted = there || file != entry;
            assert_eq!(is_seen_by_grub(&mut vm, file)?, is_wanted, "{verb}: {file}");
        }
    }
    is_clean(&mut vm)?;

    // Killed after the freeze, so that only the watchdog is left.
    vm.ok(&script("kill-after-freeze")?)?;
    let got = vm.run("imgbased-helper layer add Base-0")?;
    ensure!(got.status == 1, "{got:?}");
    vm.ok("umount /usr/sbin/fsfreeze && timeout 30 touch /boot/thawed")?;
    vm.ok("imgbased-helper check --repair && imgbased-helper layer add Base-0")?;
    vm.power_off().map(drop)
}

/// Whether GRUB's own code finds a file of the boot partition on the disk, with the same content.
fn is_seen_by_grub(vm: &mut Vm, file: &str) -> Result<bool> {
    let compare = script_with("compare-with-grub", &[file])?;
    Ok(vm.run(&compare)?.status == 0)
}

/// Boots without a hand on the keyboard, into `layer`.
fn boot(disk: &HostDisk, boot: &str, layer: &str) -> Result<Vm> {
    let mut vm = disk.boot(boot)?;
    vm.log_in()?;
    assert_eq!(json(&mut vm, "status")?["booted"], layer);
    Ok(vm)
}

/// The layers and bases that have a mark in the list of entries.
fn names(list: &Value, mark: &str) -> Vec<String> {
    let entries = list["entries"].as_array().into_iter().flatten();
    let marked = entries.filter(|entry| entry[mark] == true);
    let name = |entry: &Value| entry["name"].as_str().unwrap_or_default().to_owned();
    marked.map(name).collect()
}
