//! What comes with an image, or from the caller, changes nothing but what it should: programs of an image reach
//! nothing of the host and end with the verb, and variables reach no tool.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{is_clean, restart, runs};
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{KILLED, interrupted};
use crate::vm::{Host, Loader, Output, Vm};

/// For making a whole initramfs, under software emulation.
const SLOW: Duration = Duration::from_secs(1200);
const ADD: &str = "imgbased-helper base add --name Hostile /root/hostile";

scenarios![
    ;
    turns:
    programs_of_an_image_reach_nothing_of_the_host,
    variables_of_the_caller_change_no_base_and_end_no_verb;
    long:
    programs_of_an_image_end_with_the_verb,
    dracut_of_a_layer_makes_an_initramfs_that_boots_it,
];

/// A running host with a hostile image in /root/hostile.
fn host(name: &str) -> Result<Vm> {
    let (_disk, mut vm) = Host::running(Loader::Grub, name)?;
    let dracut = script("hostile-dracut")?;
    vm.ok_for(&script_with("make-hostile-image", &[&dracut])?, SLOW)?;
    Ok(vm)
}

/// Runs a command, which has the image do what `mode` says, and claims that nothing of it runs after that.
fn in_mode(vm: &mut Vm, mode: &str, command: &str) -> Result<Output> {
    vm.ok(&format!("echo {mode} >/root/hostile/etc/mode"))?;
    let got = vm.run_for(command, SLOW)?;
    assert_eq!(is_anything_left(vm)?, "no", "{mode}: {got:?}");
    Ok(got)
}

/// Whether a process of the image, or the control group of one, is there.
fn is_anything_left(vm: &mut Vm) -> Result<String> {
    let has = script("has-hostile-processes")?;
    let groups = "find /sys/fs/cgroup -name 'imgbased-sandbox-*' | grep -q .";
    vm.ok(&format!("({has} || {groups}) && echo yes || echo no"))
}

fn state(vm: &mut Vm) -> Result<String> {
    vm.ok(&script("all-state")?)
}

/// What the host has that a program could have changed, beside its volumes, disks and boot partition.
fn surroundings(vm: &mut Vm) -> Result<String> {
    vm.ok(
        "ls -d /hostile /run/hostile /tmp/hostile /root/called 2>&1; stat -c %a /dev/null; \
         cat /root/open /proc/sys/kernel/domainname /proc/sys/kernel/core_pattern; \
         dmesg | grep -ci -e hostile -e sysrq; ls -A /run/imgbased/mounts/dracut 2>/dev/null || true",
    )
}

fn programs_of_an_image_reach_nothing_of_the_host() -> Result<()> {
    let mut vm = host("sandbox")?;
    vm.ok("touch /root/open")?;
    let (before, around) = (state(&mut vm)?, surroundings(&mut vm)?);
    let of_tar = "tar -C /root/hostile -cf /root/hostile.tar . && exec 9>>/root/open; HOSTILE=1 \
        imgbased-helper base add --name Hostile /root/hostile.tar";
    let got = in_mode(&mut vm, "attack", &format!("({of_tar})"))?;
    ensure!(
        got.status == 1 && got.text.contains("tried everything, got through: nothing"),
        "{got:?}"
    );
    assert_eq!(state(&mut vm)?, before);
    assert_eq!(surroundings(&mut vm)?, around);
    // Whoever has the network of the host gets through.
    vm.ok("bash -c 'exec 3<>/dev/tcp/127.0.0.1/4242' && sleep 1 && ls /root/called")?;

    let got = in_mode(&mut vm, "link", ADD)?;
    ensure!(
        got.status == 1
            && got
                .text
                .contains("cannot use /run/imgbased/mounts/dracut/run/initrd-9.9"),
        "{got:?}"
    );
    let limited = interrupted("IMGBASED_TIME_LIMIT=5", ADD);
    let got = in_mode(&mut vm, "forever", &limited)?;
    ensure!(
        got.status == 1 && got.text.contains("it was ended after 5 s"),
        "{got:?}"
    );
    assert_eq!(state(&mut vm)?, before);

    let got = in_mode(&mut vm, "daemon", ADD)?;
    ensure!(got.status == 0 && got.text.ends_with("Hostile"), "{got:?}");
    is_clean(&mut vm)
}

fn programs_of_an_image_end_with_the_verb() -> Result<()> {
    let mut vm = host("sandbox-ends")?;
    let before = state(&mut vm)?;
    let got = in_mode(&mut vm, "memory", ADD)?;
    ensure!(
        got.status == 1 && got.text.contains("tried memory, got through: nothing"),
        "{got:?}"
    );
    assert_eq!(state(&mut vm)?, before);
    let got = in_mode(&mut vm, "herd", ADD)?;
    ensure!(
        got.status == 1 && got.text.contains("it was ended, as it wants more than"),
        "{got:?}"
    );
    assert_eq!(state(&mut vm)?, before);
    let got = in_mode(
        &mut vm,
        "forever",
        &script_with("end-while-shut-in", &["TERM"])?,
    )?;
    ensure!(
        got.status == 1 && got.text.contains("interrupted"),
        "{got:?}"
    );
    assert_eq!(state(&mut vm)?, before);

    vm.ok("echo forever >/root/hostile/etc/mode")?;
    let kill = script_with("end-while-shut-in", &["KILL"])?;
    let got = vm.run_for(&kill, SLOW)?;
    assert_eq!(got.status, KILLED, "{got:?}");
    // Nobody was left to wait for it.
    vm.ok("sleep 1")?;
    assert_eq!(is_anything_left(&mut vm)?, "no");
    vm.ok("imgbased-helper check --repair")?;
    assert_eq!(state(&mut vm)?, before);
    is_clean(&mut vm)
}

fn variables_of_the_caller_change_no_base_and_end_no_verb() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "variables")?;
    vm.ok(&script("make-extra")?)?;
    vm.ok("tar -C /root/Extra -cf /root/extra.tar .")?;
    vm.ok_for(
        "TAR_OPTIONS=--exclude=./etc/data MKE2FS_CONFIG=/dev/null TMPDIR=/nonexistent \
         BASH_ENV=/root/evil imgbased-helper base add --name Extra /root/extra.tar",
        SLOW,
    )?;
    let sums = "sha256sum <etc/data";
    let wanted = vm.ok(&format!("cd /root/Extra && {sums}"))?;
    assert_eq!(vm.ok(&script_with("look-into", &["Extra", sums])?)?, wanted);
    // Where no tests are, nothing is killed.
    vm.ok("rm -f /run/imgbased/testing")?;
    let added = "IMGBASED_KILL_AFTER=1 IMGBASED_FAIL_AT=1 imgbased-helper layer add Base-0";
    assert_eq!(vm.ok(added)?, "Base-0.3");
    let got = vm.run(&interrupted(
        "IMGBASED_KILL_AFTER=1",
        "imgbased-helper layer add Base-0",
    ))?;
    assert_eq!(got.status, KILLED, "{got:?}");
    Ok(())
}

fn dracut_of_a_layer_makes_an_initramfs_that_boots_it() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "own-dracut")?;
    vm.ok(&script_with("spoil-initramfs", &["Base-0.2"])?)?;
    let said = vm.ok_for("imgbased-helper boot refresh Base-0.2", SLOW)?;
    ensure!(said.contains("dracut makes another"), "{said}");
    is_clean(&mut vm)?;
    let initrd = vm.ok("sed -n 's/^initrd *//p' /boot/loader/entries/imgbased-Base-0.2.conf")?;
    let modules = vm.ok_for(&format!("lsinitrd --mod /boot{initrd}"), SLOW)?;
    for module in ["imgbased", "lvm", "kernel-modules", "systemd"] {
        ensure!(modules.lines().any(|line| line == module), "{modules}");
    }
    vm.ok("imgbased-helper boot once Base-0.2")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.2")
}
