//! A layer that never came up is tried a number of times, and costs the host no more than that. The
//! machines start again by themselves. What GRUB makes of menus and of its environment block is tried in
//! many more states in `tests/grub.rs`.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::claims::{GIVEN_UP, has_come_up, has_root, is_clean, is_refused, json, restart};
use crate::vm::guest::{script, script_with};
use crate::vm::{Disk, Host, Loader, PANIC, Rescue, Start, Vm};

/// For lsinitrd(1) and copies, under software emulation.
const SLOW: Duration = Duration::from_secs(300);
/// What the initramfs says of a layer without a filesystem.
const WIPED: &str = "HostVG-Base--0.2 holds no filesystem";

/// How much of a story is told: with what comes before the trial and how it stays afterwards, or without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Short,
    Whole,
}

scenarios![
    a_layer_that_cannot_be_mounted_is_given_up,
    a_layer_that_comes_up_becomes_the_default_and_boots_when_it_was_repaired;
    long:
    a_layer_that_comes_up_stays_the_default,
    a_layer_that_comes_up_becomes_the_default_where_grub_reads_the_entries,
    a_layer_that_comes_up_becomes_the_default_of_systemd_boot,
    a_layer_that_cannot_be_mounted_stays_given_up,
    a_layer_that_cannot_be_mounted_is_given_up_where_grub_reads_the_entries,
    a_layer_that_cannot_be_mounted_is_given_up_by_systemd_boot,
    a_layer_that_is_not_healthy_is_given_up,
    a_layer_that_is_not_healthy_is_given_up_where_grub_reads_the_entries,
    a_layer_that_is_not_healthy_is_given_up_by_systemd_boot,
    a_layer_that_hangs_is_given_up,
    a_layer_that_hangs_is_given_up_by_systemd_boot,
    a_layer_that_ends_in_emergency_mode_is_given_up,
    a_layer_whose_kernel_panics_is_given_up,
    a_layer_whose_kernel_panics_is_given_up_where_grub_reads_the_entries,
    a_layer_whose_kernel_panics_is_given_up_by_systemd_boot,
    a_layer_whose_kernel_is_lost_is_given_up,
    a_layer_whose_kernel_is_lost_is_given_up_where_grub_reads_the_entries,
    a_layer_whose_kernel_is_lost_is_passed_over_by_systemd_boot,
    without_an_environment_block_grub_boots_what_has_come_up,
    where_the_default_is_gone_grub_boots_what_has_come_up,
    where_the_default_is_gone_grub_that_reads_the_entries_boots_what_has_come_up,
    a_default_that_fails_as_well_stops_the_host,
    a_trial_has_systemd_answer_a_watchdog,
];

fn a_layer_that_comes_up_becomes_the_default_and_boots_when_it_was_repaired() -> Result<()> {
    become_default(Loader::Grub, "trial-good", Extent::Short)
}

fn a_layer_that_comes_up_stays_the_default() -> Result<()> {
    become_default(Loader::Grub, "trial-good-whole", Extent::Whole)
}

fn a_layer_that_comes_up_becomes_the_default_where_grub_reads_the_entries() -> Result<()> {
    become_default(Loader::GrubOnUefi, "trial-good-uefi", Extent::Whole)
}

fn a_layer_that_comes_up_becomes_the_default_of_systemd_boot() -> Result<()> {
    become_default(
        Loader::SystemdBoot,
        "trial-good-systemd-boot",
        Extent::Whole,
    )
}

/// Has Base-0.2 tried, which comes up.
fn become_default(loader: Loader, name: &str, extent: Extent) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    let said = vm.ok("imgbased-helper boot default Base-0.2")?;
    ensure!(said.contains("it is tried 3 times"), "{said}");
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Base-0.2");
    is_refused(&mut vm, "layer remove Base-0.2", "Base-0.2 is on trial")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.2")?;
    ensure!(vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    is_default(&mut vm, "Base-0.2")?;
    ensure!(
        vm.ok("lvm lvs --noheadings -o lv_tags HostVG/Base-0.2")?
            .contains("imgbased:good")
    );
    let restarts = match extent {
        Extent::Whole => 2,
        Extent::Short => {
            gets_no_kernel_before_it_has_come_up(&mut vm)?;
            lose_and_repair(&mut vm)?;
            1
        }
    };
    for _ in 0..restarts {
        restart(&mut vm)?;
        runs(&mut vm, "Base-0.2")?;
        ensure!(!vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    }
    is_default(&mut vm, "Base-0.2")
}

/// A kernel that is installed while Base-0.2 is on trial would be blessed without having been booted.
fn gets_no_kernel_before_it_has_come_up(vm: &mut Vm) -> Result<()> {
    const BLESSED: &str = "/run/imgbased/blessed";
    vm.ok(&script_with("link-kernel", &["Base-0.2", "9.9"])?)?;
    let versions = "cat /boot/loader/entries/imgbased-Base-0.2*.conf | sed -n 's/^version *//p'";
    vm.ok(&format!("mv {BLESSED} /run/was-blessed"))?;
    vm.ok_for("imgbased-helper boot refresh --added 9.9", SLOW)?;
    assert_eq!(vm.ok(versions)?, vm.ok("uname -r")?);
    vm.ok(&format!("mv /run/was-blessed {BLESSED}"))?;
    // As kernel-install(8) runs them. Between them that of GRUB makes another entry the default.
    vm.ok_for(
        "cd /usr/lib/kernel/install.d && ./05-imgbased.install add 9.9 && \
         grub-editenv - set saved_entry=0123456789abcdef-9.9 && ./21-imgbased.install add 9.9 && \
         ./95-imgbased.install add 9.9",
        SLOW,
    )?;
    ensure!(vm.ok(versions)?.lines().any(|version| version == "9.9"));
    assert_eq!(
        vm.ok("cd /; grub-editenv - list | grep ^saved_entry; ls /run/imgbased/saved_entry 2>/dev/null || true")?,
        "saved_entry=imgbased-Base-0.2"
    );
    vm.ok("rm -r /usr/lib/modules/9.9 /boot/*-9.9 && imgbased-helper boot refresh --removed 9.9")?;
    is_clean(vm)
}

/// Damages the boot partition of a host whose default is Base-0.2, and has it repaired.
fn lose_and_repair(vm: &mut Vm) -> Result<()> {
    vm.ok(&script("damage-boot")?)?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found
            .text
            .contains("Base-0.2: its boot entry was changed by another program"),
        "{found:?}"
    );
    vm.ok("echo gone > /boot/grub/grubenv && imgbased-helper boot repair")?;
    assert_eq!(vm.ok("imgbased-helper boot repair")?, "");
    is_clean(vm)
}

fn a_layer_that_cannot_be_mounted_is_given_up() -> Result<()> {
    give_up_wiped(Loader::Grub, "trial-wiped", Extent::Short)
}

fn a_layer_that_cannot_be_mounted_stays_given_up() -> Result<()> {
    give_up_wiped(Loader::Grub, "trial-wiped-whole", Extent::Whole)
}

fn a_layer_that_cannot_be_mounted_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up_wiped(Loader::GrubOnUefi, "trial-wiped-uefi", Extent::Whole)
}

fn a_layer_that_cannot_be_mounted_is_given_up_by_systemd_boot() -> Result<()> {
    give_up_wiped(
        Loader::SystemdBoot,
        "trial-wiped-systemd-boot",
        Extent::Whole,
    )
}

/// Has Base-0.2, which cannot be mounted, booted once and tried twice.
fn give_up_wiped(loader: Loader, name: &str, extent: Extent) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    vm.ok(&script_with("wipe", &["Base-0.2"])?)?;
    if extent == Extent::Whole {
        vm.ok("imgbased-helper boot try Base-0.2")?;
        vm.type_line("systemctl reboot")?;
        vm.wait_for(WIPED)?;
        vm.log_in()?;
        runs(&mut vm, "Base-0.1")?;
    }

    vm.ok("imgbased-helper boot default --tries 2 Base-0.2")?;
    vm.type_line("systemctl reboot")?;
    for _ in 0..2 {
        vm.wait_for(WIPED)?;
    }
    vm.log_in()?;
    match extent {
        Extent::Short => is_given_up(&mut vm, 2),
        Extent::Whole => stays_given_up(&mut vm, 2),
    }
}

fn a_layer_that_is_not_healthy_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-ill", "unhealthy", GIVEN_UP)
}

fn a_layer_that_is_not_healthy_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up(Loader::GrubOnUefi, "trial-ill-uefi", "unhealthy", GIVEN_UP)
}

fn a_layer_that_is_not_healthy_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(
        Loader::SystemdBoot,
        "trial-ill-systemd-boot",
        "unhealthy",
        GIVEN_UP,
    )
}

fn a_layer_that_hangs_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-hang", "hanging", GIVEN_UP)
}

/// systemd would take the counter off when boot-complete.target is reached.
fn a_layer_that_hangs_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(
        Loader::SystemdBoot,
        "trial-hang-systemd-boot",
        "hanging",
        GIVEN_UP,
    )
}

fn a_layer_that_ends_in_emergency_mode_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-emergency", "emergency", GIVEN_UP)
}

fn a_layer_whose_kernel_panics_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-panic", "without_init", PANIC)
}

fn a_layer_whose_kernel_panics_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up(
        Loader::GrubOnUefi,
        "trial-panic-uefi",
        "without_init",
        PANIC,
    )
}

fn a_layer_whose_kernel_panics_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(
        Loader::SystemdBoot,
        "trial-panic-systemd-boot",
        "without_init",
        PANIC,
    )
}

/// Has Base-0.2, harmed in this way, tried once; the machine says `sign` then.
fn give_up(loader: Loader, name: &str, harm: &str, sign: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    vm.ok(&script_with("harm", &[harm])?)?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    vm.type_line("systemctl reboot")?;
    vm.wait_for(sign)?;
    vm.log_in()?;
    stays_given_up(&mut vm, 1)
}

/// Base-0.2, which has never come up, is the first in the menu, and GRUB could count no tries of it.
fn without_an_environment_block_grub_boots_what_has_come_up() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "trial-environment")?;
    vm.ok("imgbased-helper boot default Base-0.2 && echo lost >/boot/grub/grubenv")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.1")?;
    // One that somebody picks comes up all the same.
    vm.type_line("systemctl reboot")?;
    vm.wait_for("reboot: Restarting system")?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.2")?;
    vm.ok("test -e /run/imgbased/blessed")?;
    vm.ok("imgbased-helper check --repair")?;
    is_default(&mut vm, "Base-0.2")
}

fn where_the_default_is_gone_grub_boots_what_has_come_up() -> Result<()> {
    lose_default(Loader::Grub, "trial-default")
}

fn where_the_default_is_gone_grub_that_reads_the_entries_boots_what_has_come_up() -> Result<()> {
    lose_default(Loader::GrubOnUefi, "trial-default-uefi")
}

/// Base-0.2, which has never come up, is the first in the menu, and GRUB would count no tries of it.
fn lose_default(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    vm.ok(
        "cd /boot/grub && sed -i 's/^saved_entry=imgbased-Base-0.1/saved_entry=imgbased-Base-0.9/' grubenv && \
         grep -q Base-0.9 grubenv",
    )?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.1")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found.text.contains("make Base-0.1 the default"),
        "{found:?}"
    );
    vm.ok("imgbased-helper check --repair")?;
    is_default(&mut vm, "Base-0.1")
}

fn a_layer_whose_kernel_is_lost_is_given_up() -> Result<()> {
    give_up_lost(Loader::Grub, "trial-lost")
}

fn a_layer_whose_kernel_is_lost_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up_lost(Loader::GrubOnUefi, "trial-lost-uefi")
}

fn a_layer_whose_kernel_is_lost_is_passed_over_by_systemd_boot() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::SystemdBoot, "trial-lost-systemd-boot")?;
    try_lost(&mut vm)?;
    // It does not list such an entry; the trial begins when the kernel is there again.
    assert_eq!(json(&mut vm, "status")?["trial"]["name"], "Base-0.2");
    vm.ok("imgbased-helper check --repair")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.2")?;
    is_default(&mut vm, "Base-0.2")
}

fn give_up_lost(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    try_lost(&mut vm)?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["failed"][0]["name"], "Base-0.2");
    assert_eq!(status["failed"][0]["failure"]["tries"], 2);
    vm.ok("imgbased-helper check --repair")?;
    is_given_up(&mut vm, 2)
}

/// Has Base-0.2, whose kernel is not there, tried twice, and waits for Base-0.1.
fn try_lost(vm: &mut Vm) -> Result<()> {
    vm.ok(&script("lose-kernel")?)?;
    vm.ok("imgbased-helper boot default --tries 2 Base-0.2 && rm /boot/imgbased/lost")?;
    restart(vm)?;
    runs(vm, "Base-0.1")
}

fn a_default_that_fails_as_well_stops_the_host() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "trial-stop")?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    vm.power_off()?;
    let host = Disk::writable(disk.path(), "host");
    let mut rescue = Rescue::prepared()?.with("trial-rescue", host)?;
    for layer in ["Base-0.2", "Base-0.1"] {
        rescue.ok(&script_with("wipe", &[layer])?)?;
    }
    rescue.switch_off()?;
    let mut vm = disk.boot_unattended("stopped")?;
    vm.wait_for(WIPED)?;
    let said = vm.enter_emergency_shell()?;
    ensure!(
        said.contains("HostVG-Base--0.1 holds no filesystem"),
        "{said}"
    );
    Ok(())
}

/// It restarts the machine where systemd does not answer it any more.
fn a_trial_has_systemd_answer_a_watchdog() -> Result<()> {
    let disk = Host::prepared()?.disk("trial-watchdog")?;
    let start = Start {
        restarts: true,
        has_watchdog: true,
        ..Start::default()
    };
    let mut vm = disk.start("once", Vec::new(), start)?;
    vm.log_in()?;
    vm.ok(&script_with("harm", &["watched"])?)?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    let answers = |vm: &mut Vm| {
        vm.ok("journalctl --boot --no-pager | grep -c 'Using hardware watchdog' || true")
    };
    for is_answered in ["1", "0"] {
        restart(&mut vm)?;
        runs(&mut vm, "Base-0.2")?;
        vm.ok("test -e /dev/watchdog0")?;
        assert_eq!(answers(&mut vm)?, is_answered);
        // The kernel's own, for processors that are locked up.
        let panics = vm.ok("cat /proc/sys/kernel/hardlockup_panic")?;
        assert_eq!(panics, is_answered);
    }
    is_default(&mut vm, "Base-0.2")
}

fn runs(vm: &mut Vm, layer: &str) -> Result<()> {
    has_root(vm, "HostVG", layer)?;
    has_come_up(vm)
}

/// The default is `layer`, nothing is on trial, and nothing is wrong.
fn is_default(vm: &mut Vm, layer: &str) -> Result<()> {
    let status = json(vm, "status")?;
    assert_eq!(status["default"], layer);
    assert_eq!(status["trial"], Value::Null);
    let entry = vm.ok(&format!(
        "grep ^options /boot/loader/entries/imgbased-{layer}.conf"
    ))?;
    ensure!(!entry.contains("imgbased.trial"), "{entry}");
    is_clean(vm)
}

/// So it is now and after two more starts.
fn stays_given_up(vm: &mut Vm, tries: u64) -> Result<()> {
    is_given_up(vm, tries)?;
    for _ in 0..2 {
        restart(vm)?;
        is_given_up(vm, tries)?;
    }
    Ok(())
}

/// Base-0.1 runs and is the default, and tells of the other layer.
fn is_given_up(vm: &mut Vm, tries: u64) -> Result<()> {
    runs(vm, "Base-0.1")?;
    is_default(vm, "Base-0.1")?;
    let status = json(vm, "status")?;
    let failed = &status["failed"][0];
    assert_eq!(failed["name"], "Base-0.2");
    assert_eq!(failed["failure"]["tries"], tries);
    let message = vm.ok("cat /run/motd.d/imgbased")?;
    ensure!(
        message.contains(&format!("Base-0.2 did not come up in {tries} tries")),
        "{message}"
    );
    let list = vm.ok("imgbased-helper boot list")?;
    ensure!(list.contains(&format!("failed {tries} times")), "{list}");
    Ok(())
}
