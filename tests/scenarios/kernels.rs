//! Kernels come and go by the package manager of a layer that runs. Each layer boots its own, and a new one
//! only when it has come up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::claims::{GIVEN_UP, has_come_up, json, restart};
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{KILLED, STEPS_MAX, interrupted};
use crate::vm::{Host, HostDisk, Loader, PANIC, Vm, store};

scenarios![
    a_new_initramfs_is_tried_and_one_that_panics_is_given_up;
    long:
    a_new_kernel_is_tried_and_what_fails_is_given_up,
    a_new_kernel_is_tried_and_what_panics_is_given_up_by_systemd_boot,
    a_new_initramfs_is_tried_and_one_that_panics_is_given_up_where_grub_reads_the_entries,
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

/// A running host, and another kernel installed in its layer: the versions of both.
fn updated(loader: Loader, name: &str) -> Result<(HostDisk, Vm, String, String)> {
    let saved = Host::saved(loader)?;
    let disk = saved.disk(name)?;
    disk.fill("other", &other_kernel()?)?;
    let mut vm = saved.go_on(&disk, true)?;
    let old = vm.ok("uname -r")?;
    vm.ok_for(&script("install-kernel")?, SLOW)?;
    let new = vm.ok("ls /usr/lib/modules | grep -vxF $(uname -r)")?;
    is_on_trial(&mut vm, &old, &new)?;
    Ok((disk, vm, old, new))
}

fn a_new_kernel_is_tried_and_what_fails_is_given_up() -> Result<()> {
    let (_disk, mut vm, old, new) = updated(Loader::Grub, "kernel-grub")?;
    for kind in ["unhealthy", "hanging"] {
        vm.ok(&script_with("harm-kernel", &[kind, &new])?)?;
        let again = format!("boot default --tries 1 --kernel {new} Base-0.1");
        vm.ok(&format!("imgbased-helper {again}"))?;
        vm.type_line("systemctl reboot")?;
        vm.wait_for(GIVEN_UP)?;
        vm.log_in()?;
        is_given_up(&mut vm, &old, &new, 1)?;
    }
    vm.ok(&script_with("harm-kernel", &["none", &new])?)?;
    // The package manager's clean-up does not take the last kernel that is known to come up.
    vm.ok(&format!("imgbased-helper boot refresh --removed {old}"))?;
    let kept = [other_entry(&new), entry("", &old)];
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, kept);
    vm.ok(&format!(
        "imgbased-helper boot default --kernel {new} Base-0.1"
    ))?;
    comes_up(&mut vm, &new)?;

    let removed = format!("dpkg --purge linux-image-cloud-amd64 linux-image-{old}");
    vm.ok_for(&removed, SLOW)?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, [entry("", &new)]);
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    restart(&mut vm)?;
    assert_runs(&mut vm, "Base-0.1", &new)
}

fn a_new_kernel_is_tried_and_what_panics_is_given_up_by_systemd_boot() -> Result<()> {
    let (_disk, mut vm, old, new) = updated(Loader::SystemdBoot, "kernel-systemd-boot")?;
    comes_up(&mut vm, &new)?;
    let both = [entry("", &new), other_entry(&old)];
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, both);
    panics(&mut vm, &new)
}

fn a_new_initramfs_is_tried_and_one_that_panics_is_given_up() -> Result<()> {
    try_initramfs(Loader::Grub, "initramfs-grub")
}

fn a_new_initramfs_is_tried_and_one_that_panics_is_given_up_where_grub_reads_the_entries()
-> Result<()> {
    try_initramfs(Loader::GrubOnUefi, "initramfs-uefi")
}

fn try_initramfs(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    let version = vm.ok("uname -r")?;
    // The same with some padding. The end of this boot has it tried.
    vm.ok("initrd=$(readlink -f /boot/imgbased/initrd-$(uname -r)-*) && head -c 512 /dev/zero >/run/padding && \
           cat $initrd /run/padding >/boot/initrd.img-$(uname -r)")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(found.text.contains("its initramfs made anew"), "{found:?}");
    comes_up(&mut vm, &version)?;
    panics(&mut vm, &version)
}

/// Has an initramfs of the kernel that runs be replaced by one that panics.
fn panics(vm: &mut Vm, version: &str) -> Result<()> {
    vm.ok("echo 1 >/etc/kernel/tries")?;
    vm.ok(&script_with("harm-kernel", &["panicking", version])?)?;
    vm.ok("imgbased-helper boot refresh")?;
    is_on_trial(vm, version, version)?;
    vm.type_line("systemctl reboot")?;
    vm.wait_for(PANIC)?;
    vm.log_in()?;
    is_given_up(vm, version, version, 1)?;
    // As at the end of the next boot, which has the same version and the old initramfs.
    vm.ok("imgbased-helper boot bless")?;
    is_given_up(vm, version, version, 1)
}

/// Base-0.1 is the default with its old kernel, and the new one is on trial.
fn is_on_trial(vm: &mut Vm, old: &str, new: &str) -> Result<()> {
    let status = json(vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["kernel"], new);
    assert_eq!(status["next"], format!("imgbased-Base-0.1@{new}, on trial"));
    let entries = entries_of(vm, "Base-0.1")?;
    ensure!(entries.contains(&entry("", old)), "{entries:?}");
    ensure!(entries.contains(&other_entry(new)), "{entries:?}");
    Ok(())
}

/// Restarts into the kernel on trial, which becomes the one that the layer boots.
fn comes_up(vm: &mut Vm, new: &str) -> Result<()> {
    restart(vm)?;
    assert_runs(vm, "Base-0.1", new)?;
    ensure!(vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    let status = json(vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"], Value::Null);
    assert_eq!(status["failed"], json!([]));
    assert_eq!(status["next"], "imgbased-Base-0.1");
    let entries = entries_of(vm, "Base-0.1")?;
    assert_eq!(
        entries.iter().find(|entry| entry.0 == "imgbased-Base-0.1"),
        Some(&entry("", new))
    );
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    Ok(())
}

/// The old kernel runs and is the default, and the host tells of the new one.
fn is_given_up(vm: &mut Vm, old: &str, new: &str, tries: u64) -> Result<()> {
    assert_runs(vm, "Base-0.1", old)?;
    ensure!(!vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    let status = json(vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"], Value::Null);
    assert_eq!(status["next"], "imgbased-Base-0.1");
    let failed = &status["failed"][0]["failed_kernels"][0];
    assert_eq!(failed["kernel"], new);
    assert_eq!(failed["tries"], tries);
    let said = format!("Linux {new} of Base-0.1 did not come up in {tries} tries");
    for told in ["cat /run/motd.d/imgbased", "journalctl --boot --no-pager"] {
        ensure!(vm.ok(told)?.contains(&said), "{told}");
    }
    let entries = entries_of(vm, "Base-0.1")?;
    ensure!(entries.contains(&entry("", old)), "{entries:?}");
    ensure!(entries.contains(&other_entry(new)), "{entries:?}");
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    Ok(())
}

fn kernels_of_a_running_layer_are_updated_and_removed_for_it_alone() -> Result<()> {
    let (_disk, mut vm, old, new) = updated(Loader::Grub, "kernels")?;
    let other = entry_of("Base-0.2", "", &old);
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
    is_on_trial(&mut vm, &old, &new)?;
    let copies = vm.ok(&format!("ls /boot/imgbased/initrd-{new}-*"))?;
    assert_eq!(copies.lines().count(), 1, "{copies}");
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    comes_up(&mut vm, &new)?;

    vm.ok_for(
        &format!("dpkg --purge linux-image-cloud-amd64 linux-image-{old}"),
        SLOW,
    )?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, [entry("", &new)]);
    assert_eq!(entries_of(&mut vm, "Base-0.2")?, [other]);
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    // The last kernel of the layer has no entry to spare.
    vm.ok(&format!("imgbased-helper boot refresh --removed {new}"))?;
    assert_eq!(entries_of(&mut vm, "Base-0.1")?, [entry("", &new)]);
    // The package has written another grub.cfg, with a menu that is not on the serial line.
    vm.ok("imgbased-helper boot try Base-0.2")?;
    restart(&mut vm)?;
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
            let variable = format!("IMGBASED_KILL_AFTER={step}");
            let status = vm.run(&interrupted(&variable, &refresh))?.status;
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

/// The entry by which Base-0.1 boots by itself.
fn entry(end: &str, version: &str) -> Row {
    entry_of("Base-0.1", end, version)
}

/// That of another one of its kernels.
fn other_entry(version: &str) -> Row {
    entry(&format!("@{version}"), version)
}

fn entry_of(layer: &str, end: &str, version: &str) -> Row {
    (
        format!("imgbased-{layer}{end}"),
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
    has_come_up(vm)
}
