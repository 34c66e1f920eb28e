//! A layer that never came up is tried a number of times, and costs the host no more than that. The
//! machines, in `vm/`, start again by themselves.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Result, ensure};
use serde_json::Value;

use vm::{Disk, Host, Loader, PANIC, Rescue, Vm};

/// Makes Base-0.2 a volume without a filesystem, so that the initramfs cannot mount it.
const WIPE: &str = "lvm lvchange -q -K -ay HostVG/Base-0.2 && wipefs -qa /dev/HostVG/Base-0.2 && \
                    lvm lvchange -q -an HostVG/Base-0.2";
/// What the initramfs says then.
const WIPED: &str = "HostVG-Base--0.2 holds no filesystem";
/// Commands in a root that keep it from coming up: a health check fails, or there is no init.
const ILL: &str = "printf '[Unit]\\nBefore=boot-complete.target\\n[Service]\\nType=oneshot\\nExecStart=false\\n' \
         >etc/systemd/system/ill.service && mkdir etc/systemd/system/boot-complete.target.requires && \
         ln -s ../ill.service etc/systemd/system/boot-complete.target.requires/";
/// systemd in the initramfs looks for this before /sbin/init.
const NO_INIT: &str = "ln -sf /bin/false usr/lib/systemd/systemd";
/// It reaches boot-complete.target, but never the end of the boot.
const HANGS: &str = "cd etc/systemd/system && mkdir -p multi-user.target.wants imgbased-give-up.timer.d && \
         printf '[Unit]\nBefore=multi-user.target\n[Service]\nType=oneshot\nExecStart=sleep infinity\n' \
         >hang.service && ln -s ../hang.service multi-user.target.wants/ && \
         printf '[Timer]\nOnActiveSec=\nOnActiveSec=60\n' >imgbased-give-up.timer.d/soon.conf";
/// What a machine says then.
const GIVEN_UP: &str = "the layer on trial did not come up, restarting";

/// How much of a story is told: with what comes before the trial and how it stays afterwards, or without.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Short,
    Whole,
}

#[test]
fn a_layer_that_comes_up_becomes_the_default() -> Result<()> {
    become_default(Loader::Grub, "trial-good", Extent::Short)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_comes_up_stays_the_default() -> Result<()> {
    become_default(Loader::Grub, "trial-good-whole", Extent::Whole)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_comes_up_becomes_the_default_where_grub_reads_the_entries() -> Result<()> {
    become_default(Loader::GrubOnUefi, "trial-good-uefi", Extent::Whole)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_comes_up_becomes_the_default_of_systemd_boot() -> Result<()> {
    become_default(
        Loader::SystemdBoot,
        "trial-good-systemd-boot",
        Extent::Whole,
    )
}

/// Has Base-0.2 tried, which comes up.
fn become_default(loader: Loader, name: &str, extent: Extent) -> Result<()> {
    let mut vm = Host::with(loader)?.disk(name)?.boot_unattended("all")?;
    vm.log_in()?;
    let said = vm.ok("imgbased-helper boot default Base-0.2")?;
    ensure!(said.contains("it is tried 3 times"), "{said}");
    let status = status(&mut vm)?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Base-0.2");
    let got = vm.run("imgbased-helper layer remove Base-0.2")?;
    ensure!(
        got.status == 1 && got.text.contains("Base-0.2 is on trial"),
        "{got:?}"
    );
    restart(&mut vm)?;
    assert_runs(&mut vm, "Base-0.2")?;
    ensure!(vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    assert_default(&mut vm, "Base-0.2")?;
    ensure!(
        vm.ok("lvm lvs --noheadings -o lv_tags HostVG/Base-0.2")?
            .contains("imgbased:good")
    );
    let restarts = if extent == Extent::Whole { 2 } else { 1 };
    for _ in 0..restarts {
        restart(&mut vm)?;
        assert_runs(&mut vm, "Base-0.2")?;
        ensure!(!vm.ok("cat /proc/cmdline")?.contains("imgbased.trial"));
    }
    assert_default(&mut vm, "Base-0.2")
}

#[test]
fn a_layer_that_cannot_be_mounted_is_given_up() -> Result<()> {
    give_up_wiped(Loader::Grub, "trial-wiped", Extent::Short)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_cannot_be_mounted_stays_given_up() -> Result<()> {
    give_up_wiped(Loader::Grub, "trial-wiped-whole", Extent::Whole)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_cannot_be_mounted_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up_wiped(Loader::GrubOnUefi, "trial-wiped-uefi", Extent::Whole)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_cannot_be_mounted_is_given_up_by_systemd_boot() -> Result<()> {
    give_up_wiped(
        Loader::SystemdBoot,
        "trial-wiped-systemd-boot",
        Extent::Whole,
    )
}

/// Has Base-0.2, which cannot be mounted, booted once and tried twice.
fn give_up_wiped(loader: Loader, name: &str, extent: Extent) -> Result<()> {
    let mut vm = Host::with(loader)?.disk(name)?.boot_unattended("all")?;
    vm.log_in()?;
    vm.ok(WIPE)?;
    if extent == Extent::Whole {
        vm.ok("imgbased-helper boot try Base-0.2")?;
        vm.type_line("systemctl reboot")?;
        vm.wait_for(WIPED)?;
        vm.log_in()?;
        assert_runs(&mut vm, "Base-0.1")?;
    }

    vm.ok("imgbased-helper boot default --tries 2 Base-0.2")?;
    vm.type_line("systemctl reboot")?;
    for _ in 0..2 {
        vm.wait_for(WIPED)?;
    }
    vm.log_in()?;
    match extent {
        Extent::Short => assert_given_up(&mut vm, 2),
        Extent::Whole => assert_stays_given_up(&mut vm, 2),
    }
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_is_not_healthy_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-ill", ILL, GIVEN_UP)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_is_not_healthy_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up(Loader::GrubOnUefi, "trial-ill-uefi", ILL, GIVEN_UP)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_is_not_healthy_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(Loader::SystemdBoot, "trial-ill-systemd-boot", ILL, GIVEN_UP)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_hangs_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-hang", HANGS, GIVEN_UP)
}

/// systemd would take the counter off when boot-complete.target is reached.
#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_hangs_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(
        Loader::SystemdBoot,
        "trial-hang-systemd-boot",
        HANGS,
        GIVEN_UP,
    )
}

/// Base-0.2, which has never come up, is the first in the menu, and GRUB could count no tries of it.
#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn without_an_environment_block_grub_boots_what_has_come_up() -> Result<()> {
    let disk = Host::prepared()?.disk("trial-environment")?;
    let mut vm = disk.boot_unattended("all")?;
    vm.log_in()?;
    vm.ok("imgbased-helper boot default Base-0.2 && echo lost >/boot/grub/grubenv")?;
    restart(&mut vm)?;
    assert_runs(&mut vm, "Base-0.1")?;
    // One that somebody picks comes up all the same.
    vm.type_line("systemctl reboot")?;
    vm.wait_for("reboot: Restarting system")?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    assert_runs(&mut vm, "Base-0.2")?;
    vm.ok("test -e /run/imgbased/blessed")?;
    vm.ok("imgbased-helper check --repair")?;
    assert_default(&mut vm, "Base-0.2")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn where_the_default_is_gone_grub_boots_what_has_come_up() -> Result<()> {
    lose_default(Loader::Grub, "trial-default")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn where_the_default_is_gone_grub_that_reads_the_entries_boots_what_has_come_up() -> Result<()> {
    lose_default(Loader::GrubOnUefi, "trial-default-uefi")
}

/// Base-0.2, which has never come up, is the first in the menu, and GRUB would count no tries of it.
fn lose_default(loader: Loader, name: &str) -> Result<()> {
    let mut vm = Host::with(loader)?.disk(name)?.boot_unattended("all")?;
    vm.log_in()?;
    vm.ok("cd /boot/grub && sed -i 's/^saved_entry=imgbased-Base-0.1/saved_entry=imgbased-Base-0.9/' grubenv && \
         grep -q Base-0.9 grubenv")?;
    restart(&mut vm)?;
    assert_runs(&mut vm, "Base-0.1")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found.text.contains("make Base-0.1 the default"),
        "{found:?}"
    );
    vm.ok("imgbased-helper check --repair")?;
    assert_default(&mut vm, "Base-0.1")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_that_ends_in_emergency_mode_is_given_up() -> Result<()> {
    give_up(
        Loader::Grub,
        "trial-emergency",
        "printf '/dev/disk/by-label/lost /lost ext4 x-systemd.device-timeout=5 0 2\\n' >>etc/fstab",
        GIVEN_UP,
    )
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_panics_is_given_up() -> Result<()> {
    give_up(Loader::Grub, "trial-panic", NO_INIT, PANIC)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_panics_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up(Loader::GrubOnUefi, "trial-panic-uefi", NO_INIT, PANIC)
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_panics_is_given_up_by_systemd_boot() -> Result<()> {
    give_up(
        Loader::SystemdBoot,
        "trial-panic-systemd-boot",
        NO_INIT,
        PANIC,
    )
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_is_lost_is_given_up() -> Result<()> {
    give_up_lost(Loader::Grub, "trial-lost")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_is_lost_is_given_up_where_grub_reads_the_entries() -> Result<()> {
    give_up_lost(Loader::GrubOnUefi, "trial-lost-uefi")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_whose_kernel_is_lost_is_passed_over_by_systemd_boot() -> Result<()> {
    let disk = Host::with(Loader::SystemdBoot)?.disk("trial-lost-systemd-boot")?;
    let mut vm = disk.boot_unattended("all")?;
    try_lost(&mut vm)?;
    // It does not list such an entry; the trial begins when the kernel is there again.
    assert_eq!(status(&mut vm)?["trial"]["name"], "Base-0.2");
    vm.ok("imgbased-helper check --repair")?;
    restart(&mut vm)?;
    assert_runs(&mut vm, "Base-0.2")?;
    assert_default(&mut vm, "Base-0.2")
}

fn give_up_lost(loader: Loader, name: &str) -> Result<()> {
    let mut vm = Host::with(loader)?.disk(name)?.boot_unattended("all")?;
    try_lost(&mut vm)?;
    let status = status(&mut vm)?;
    assert_eq!(status["failed"][0]["name"], "Base-0.2");
    assert_eq!(status["failed"][0]["failure"]["tries"], 2);
    vm.ok("imgbased-helper check --repair")?;
    assert_given_up(&mut vm, 2)
}

/// Has Base-0.2, whose kernel is not there, tried twice, and waits for Base-0.1.
fn try_lost(vm: &mut Vm) -> Result<()> {
    vm.log_in()?;
    // Not the kernel itself: Base-0.1 has the same. Starting a trial does not render the menu.
    vm.ok("cd /boot/imgbased && cp vmlinuz-* lost && \
         sed -i 's|^linux .*|linux /imgbased/lost|' ../loader/entries/imgbased-Base-0.2*.conf && \
         find .. -name imgbased.cfg -exec \
         sed -i '/imgbased.layer=Base-0.2/s|/imgbased/vmlinuz-[^ ]*|/imgbased/lost|' {} +")?;
    vm.ok("imgbased-helper boot default --tries 2 Base-0.2 && rm lost")?;
    restart(vm)?;
    assert_runs(vm, "Base-0.1")
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_default_that_fails_as_well_stops_the_host() -> Result<()> {
    let disk = Host::prepared()?.disk("trial-stop")?;
    let mut vm = disk.boot_unattended("first")?;
    vm.log_in()?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    vm.power_off()?;
    let mut rescue =
        Rescue::prepared()?.with("trial-rescue", Disk::writable(disk.path(), "host"))?;
    rescue.ok(WIPE)?;
    rescue.ok(&WIPE.replace("Base-0.2", "Base-0.1"))?;
    rescue.ok("sync")?;
    drop(rescue);
    let mut vm = disk.boot_unattended("stopped")?;
    vm.wait_for(WIPED)?;
    let said = vm.enter_emergency_shell()?;
    ensure!(
        said.contains("HostVG-Base--0.1 holds no filesystem"),
        "{said}"
    );
    Ok(())
}

/// Has Base-0.2, changed by the command `harm` in its root, tried once; the machine says `sign` then.
fn give_up(loader: Loader, name: &str, harm: &str, sign: &str) -> Result<()> {
    let mut vm = Host::with(loader)?.disk(name)?.boot_unattended("all")?;
    vm.log_in()?;
    vm.ok("lvm lvchange -q -K -ay HostVG/Base-0.2 && mount /dev/HostVG/Base-0.2 /mnt")?;
    vm.ok(&format!("cd /mnt && {harm}"))?;
    vm.ok("cd / && umount /mnt && lvm lvchange -q -an HostVG/Base-0.2")?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    vm.type_line("systemctl reboot")?;
    vm.wait_for(sign)?;
    vm.log_in()?;
    assert_stays_given_up(&mut vm, 1)
}

fn restart(vm: &mut Vm) -> Result<()> {
    vm.type_line("systemctl reboot")?;
    vm.log_in()
}

fn status(vm: &mut Vm) -> Result<Value> {
    Ok(serde_json::from_str(
        &vm.ok("imgbased-helper --json status")?,
    )?)
}

fn assert_runs(vm: &mut Vm, layer: &str) -> Result<()> {
    let device = format!("/dev/mapper/HostVG-{}", layer.replace('-', "--"));
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, device);
    assert_eq!(vm.run("systemctl is-system-running")?.text, "running");
    Ok(())
}

/// The default is `layer`, nothing is on trial, and nothing is wrong.
fn assert_default(vm: &mut Vm, layer: &str) -> Result<()> {
    let status = status(vm)?;
    assert_eq!(status["default"], layer);
    assert_eq!(status["trial"], Value::Null);
    let entry = vm.ok(&format!(
        "grep ^options /boot/loader/entries/imgbased-{layer}.conf"
    ))?;
    ensure!(!entry.contains("imgbased.trial"), "{entry}");
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    Ok(())
}

/// So it is now and after two more starts.
fn assert_stays_given_up(vm: &mut Vm, tries: u64) -> Result<()> {
    assert_given_up(vm, tries)?;
    for _ in 0..2 {
        restart(vm)?;
        assert_given_up(vm, tries)?;
    }
    Ok(())
}

/// Base-0.1 runs and is the default, and tells of the other layer.
fn assert_given_up(vm: &mut Vm, tries: u64) -> Result<()> {
    assert_runs(vm, "Base-0.1")?;
    assert_default(vm, "Base-0.1")?;
    let status = status(vm)?;
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
