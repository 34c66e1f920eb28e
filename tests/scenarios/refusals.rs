//! What cannot be done is refused or undone: the exit status and the message are what they should
//! be, and the volume group, the boot partition and the disks are as they were before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{is_clean, is_refused};
use crate::vm::guest::{script, script_with};
use crate::vm::{Host, Loader, Vm};

/// For making images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// What is refused, a row a line.
const ROWS: &str = include_str!("refusals.txt");

scenarios![
    ;
    turns:
    a_full_pool_costs_no_layer;
    long:
    bad_input_changes_nothing,
    a_pool_full_of_metadata_costs_no_layer,
];

/// A command, its exit status, and what it says.
struct Row {
    arguments: &'static str,
    status: i32,
    message: &'static str,
}

fn rows() -> Result<Vec<Row>> {
    let is_row = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let parse = |line: &'static str| {
        let (status, rest) = line.split_once("  ")?;
        let (arguments, message) = rest.split_once("  =>  ")?;
        let status = status.parse().ok()?;
        Some(Row {
            arguments,
            status,
            message,
        })
    };
    let rows = ROWS.lines().filter(is_row);
    rows.map(|line| parse(line).with_context(|| format!("no row: {line:?}")))
        .collect()
}

fn bad_input_changes_nothing() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "refusals")?;
    vm.ok_for(&script("make-bad-images")?, SLOW)?;
    vm.ok(&script("make-bad-disks")?)?;
    hostile_surroundings(&mut vm)?;
    let before = state(&mut vm)?;
    boot_partitions_that_cannot_be_used(&mut vm)?;
    assert_eq!(state(&mut vm)?, before);
    let rows = rows()?;
    ensure!(rows.len() >= 140, "{} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        let command = format!("imgbased-helper {}", row.arguments);
        wrong.extend(refuses(&mut vm, &command, row.status, row.message).err());
        ensure!(state(&mut vm)? == before, "{command} changed something");
    }
    vm.say(&format!("{} refusals", rows.len()));
    ensure!(wrong.is_empty(), "{} rows: {wrong:#?}", wrong.len());
    is_clean(&mut vm)
}

fn refuses(vm: &mut Vm, command: &str, status: i32, message: &str) -> Result<()> {
    let disks = [("formatted", 1), ("clean", 2), ("twin1", 3), ("idle", 5)]
        .map(|(name, number)| format!("{name}=/dev/disk/by-id/virtio-tiny{number}; "));
    let got = vm.run_for(
        &format!("cd /root; {} {command} < /dev/null", disks.concat()),
        SLOW,
    )?;
    ensure!(
        got.status == status && got.text.contains(message),
        "{command}: wanted {status} and {message:?}, got {got:?}"
    );
    if status == 1 {
        // The error takes the place of a line of progress.
        let text = got.text.replace("\x1b[K", "\n");
        ensure!(
            text.lines()
                .filter(|line| line.starts_with("error: "))
                .count()
                == 1,
            "{command}: not one error: {got:?}"
        );
    }
    Ok(())
}

/// Everything that a verb could have changed.
fn state(vm: &mut Vm) -> Result<String> {
    vm.ok(&script("all-state")?)
}

/// Other languages, search paths and configurations do not change what is done and shown.
fn hostile_surroundings(vm: &mut Vm) -> Result<()> {
    // The running system writes to the pool.
    let show = "imgbased-helper layout | sed 's/[0-9.]* %/N %/g'";
    let layout = vm.ok(show)?;
    vm.ok(&script("hostile-programs")?)?;
    for environment in [
        "LC_ALL=de_DE.UTF-8 LANGUAGE=de",
        "LC_NUMERIC=fr_FR.UTF-8",
        "PATH=/root/bin:$PATH",
        "IMGBASED_KILL_AFTER=x",
    ] {
        assert_eq!(
            vm.ok(&format!(
                "LANG=C.UTF-8; {environment} LC_CTYPE=C.UTF-8 imgbased-helper layout | tr -d '\\r'"
            ))?
            .lines()
            .count(),
            layout.lines().count(),
            "{environment}"
        );
        ensure!(vm.run("ls /root/evil")?.status != 0, "{environment}");
    }
    vm.ok(&script("hostile-lvm-conf")?)?;
    let hostile = vm.ok(show);
    let added = vm.ok("imgbased-helper layer add Base-0 && imgbased-helper layer remove Base-0.3");
    vm.ok("cp /root/lvm.conf /etc/lvm/lvm.conf")?;
    assert_eq!(hostile?, layout);
    assert_eq!(added?, "Base-0.3");
    Ok(())
}

fn boot_partitions_that_cannot_be_used(vm: &mut Vm) -> Result<()> {
    for verb in [
        "layer add",
        "layer remove Base-0.2",
        "status",
        "boot list",
        "check",
    ] {
        let command = format!("setpriv --reuid 65534 imgbased-helper {verb}");
        refuses(vm, &command, 1, "needs root")?;
    }
    vm.ok("mount -o remount,ro /boot")?;
    for verb in [
        "layer add",
        "base add /root/good.img",
        "layer remove Base-0.2",
        "gc --yes --keep 0",
        "boot default Base-0.2",
        "boot try Base-0.2",
        "boot bless Base-0.2",
    ] {
        refuses(
            vm,
            &format!("imgbased-helper {verb}"),
            1,
            "/boot is mounted read-only",
        )?;
    }
    vm.ok("mount -o remount,rw /boot && echo other > /boot/loader/entries/imgbased-Base-0.3.conf")?;
    refuses(
        vm,
        "imgbased-helper layer add",
        1,
        "imgbased-Base-0.3.conf is in the way",
    )?;
    vm.ok("rm /boot/loader/entries/imgbased-Base-0.3.conf && cp -a /boot/grub/grubenv /root && echo x > /boot/grub/grubenv")?;
    refuses(vm, "imgbased-helper layer add", 1, "grubenv is damaged")?;
    vm.ok(
        "cp -a /root/grubenv /boot/grub/grubenv && free=$(($(stat -f -c '%a * %S' /boot))) && \
           head -c $((free - 500000)) /dev/zero > /boot/filler",
    )?;
    refuses(vm, "imgbased-helper layer add", 1, "KiB are needed")?;
    vm.ok("rm /boot/filler && mkdir /boot/files && cd /boot/files && seq $(stat -f -c %d /boot) | xargs touch; cd /")?;
    refuses(vm, "imgbased-helper layer add", 1, "inodes free")?;
    refuses(
        vm,
        "imgbased-helper boot default Base-0.2",
        1,
        "inodes free",
    )?;
    vm.ok("rm -r /boot/files && sync -f /boot && umount /boot")?;
    for verb in [
        "layer add",
        "layer remove Base-0.2",
        "boot default Base-0.2",
    ] {
        is_refused(vm, verb, "no boot partition is mounted at /boot")?;
    }
    vm.ok("[ ! -e /boot/loader ] && mount /boot")?;
    Ok(())
}

fn a_full_pool_costs_no_layer() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "full")?;
    vm.ok_for(&script("make-small-images")?, SLOW)?;
    vm.ok_for(&script("make-small-group")?, SLOW)?;
    let fill = |mib: u32| {
        format!("dd if=/dev/zero of=/dev/Small/filler bs=1M count={mib} oflag=direct status=none")
    };

    vm.say("nearly filled by somebody else while it is written");
    let before = small_group(&mut vm)?;
    let got = vm.run_for(&script("fill-while-written")?, SLOW)?;
    ensure!(
        got.status == 1 && got.text.contains("would be full: its data space is"),
        "{got:?}"
    );
    assert_eq!(small_group(&mut vm)?, before);
    // One that was full writes again a second after there is room, when it has looked.
    vm.ok("blkdiscard /dev/Small/filler && \
         until dmsetup status Small-ImagePool-tpool | grep -q ' rw '; do sleep 0.1; done")?;

    vm.say("too large for what is left");
    vm.ok_for(&fill(400), SLOW)?;
    let has_room = "the thin pool has room for";
    refused_by_pool(
        &mut vm,
        "--no-share --name Two large.img",
        has_room,
        &before,
    )?;
    refused_by_pool(&mut vm, "--name Two /root/t", has_room, &before)?;
    // How much is shared shows while it is written.
    let no_room = "the thin pool has no room";
    refused_by_pool(&mut vm, "--name Two large.img", no_room, &before)?;

    vm.say("filled by somebody else in the meantime");
    vm.ok("truncate -s 40M /root/t/data")?;
    let got = vm.run_for(&script("fill-while-copied")?, SLOW)?;
    ensure!(got.status == 1 && got.text.contains("error: "), "{got:?}");
    assert_eq!(small_group(&mut vm)?, before);
    all_layers_are_intact(&mut vm)?;

    vm.say("full before anything");
    for verb in ["base add small.img", "layer add One", "layer add One+1"] {
        let got = vm.run(&format!("cd /root; imgbased-helper --vg Small {verb}"))?;
        ensure!(
            got.status == 1 && got.text.contains("data space of Small/ImagePool is"),
            "{verb}: {got:?}"
        );
    }
    let found = vm.run("imgbased-helper --vg Small check")?;
    ensure!(
        found.text.contains("data space of Small/ImagePool"),
        "{found:?}"
    );
    assert_eq!(small_group(&mut vm)?, before);
    all_layers_are_intact(&mut vm)?;

    vm.say("read-only");
    vm.ok(&script("make-pool-read-only")?)?;
    let why = "is read-only, as its metadata could not be written";
    let got = vm.run("imgbased-helper --vg Small layer remove One+1")?;
    ensure!(got.status == 1 && got.text.contains(why), "{got:?}");
    let found = vm.run("imgbased-helper --vg Small check")?;
    ensure!(found.text.contains(why), "{found:?}");
    assert_eq!(small_group(&mut vm)?, before);
    Ok(())
}

fn a_pool_full_of_metadata_costs_no_layer() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "metadata")?;
    vm.ok_for(&script("make-small-images")?, SLOW)?;
    vm.ok_for(&script("make-small-metadata")?, SLOW)?;
    let fill = |percent: &str| script_with("fill-metadata", &[percent]);
    vm.ok_for(&fill("70")?, SLOW)?;
    vm.say("too large for what is left");
    let before = small_group(&mut vm)?;
    refused_by_pool(
        &mut vm,
        "--no-share --name Two large.img",
        "the thin pool has room for",
        &before,
    )?;
    refused_by_pool(
        &mut vm,
        "--name Two large.img",
        "the thin pool has no room",
        &before,
    )?;
    vm.say("full before anything");
    vm.ok_for(&fill("77")?, SLOW)?;
    let before = small_group(&mut vm)?;
    for verb in ["base add small.img", "layer add One", "layer add One+1"] {
        let got = vm.run(&format!("cd /root; imgbased-helper --vg Small {verb}"))?;
        ensure!(
            got.status == 1 && got.text.contains("metadata space of Small/ImagePool is"),
            "{verb}: {got:?}"
        );
    }
    assert_eq!(small_group(&mut vm)?, before);
    all_layers_are_intact(&mut vm)
}

fn refused_by_pool(vm: &mut Vm, add: &str, message: &str, before: &str) -> Result<()> {
    let command = format!("cd /root; imgbased-helper --vg Small base add {add}");
    let got = vm.run_for(&command, SLOW)?;
    ensure!(
        got.status == 1 && got.text.contains(message),
        "{add}: {got:?}"
    );
    assert_eq!(small_group(vm)?, before, "{add}");
    all_layers_are_intact(vm)
}

fn small_group(vm: &mut Vm) -> Result<String> {
    vm.ok("lvm lvs --noheadings -o lv_name,lv_tags,lv_size,lv_uuid Small; ls /boot/loader/entries /boot/imgbased")
}

/// Every base and layer still has a filesystem without errors that can be mounted.
fn all_layers_are_intact(vm: &mut Vm) -> Result<()> {
    vm.ok_for(&script("small-layers-are-intact")?, SLOW)
        .context("a layer is damaged")?;
    Ok(())
}
