//! A host that was installed with the helper's own commands boots from its own boot sector: GRUB,
//! kernel, initramfs, systemd, login.

use std::fs;

use anyhow::{Result, ensure};

use crate::claims::{active_volumes, is_clean, is_refused, json, runs, works_every_day};
use crate::vm::{self, Host, Loader, Rescue, RootImage, guest};

/// How much the dracut module may add to an initramfs, in bytes.
const MODULE_LIMIT: u64 = 2_359_296;
/// How large the stripped binary may be, in bytes.
const BINARY_LIMIT: u64 = 4_128_768;

scenarios![
    an_entry_boots_once_and_then_the_default_again,
    the_default_entry_boots_the_first_layer,
    the_everyday_commands_of_the_readme_work,
    where_no_default_is_set_a_new_layer_is_tried,
    a_layer_is_removed_with_its_entry_but_not_what_is_booted_or_the_default,
    the_same_initramfs_boots_an_ordinary_root,
    the_initramfs_grows_by_no_more_than_the_module_may_add;
    turns:
    a_pasted_dry_run_makes_a_layer_that_boots_when_it_is_picked,
    the_factory_entry_boots_the_base_and_forgets_what_was_written,
    a_wrong_layer_typed_in_the_editor_is_named_before_the_emergency_shell,
];

fn the_default_entry_boots_the_first_layer() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "default")?;
    runs(&mut vm, "Base-0.1")
}

fn a_pasted_dry_run_makes_a_layer_that_boots_when_it_is_picked() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "picked")?;
    let state = "lvm lvs --noheadings -o lv_name,lv_tags; find /boot -type f -exec sha256sum {} +";
    let before = vm.ok(state)?;
    vm.ok("imgbased-helper --dry-run layer add > /root/plan")?;
    assert_eq!(vm.ok(state)?, before, "a dry run changed something");
    vm.ok("sh -e /root/plan")?;
    let layers = json(&mut vm, "layer list")?;
    let names: Vec<_> = layers["layers"].as_array().into_iter().flatten().collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2]["name"], "Base-0.3");
    assert_eq!(names[2]["bootable"], true);
    assert_eq!(names[0]["booted"], true);
    assert_eq!(names[0]["default"], true);
    vm.ok("echo written in Base-0.1 > /root/mark")?;
    vm.power_off()?;

    let mut vm = disk.boot("picked")?;
    vm.menu()?.choose("Base-0.3")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.3")?;
    assert_ne!(
        vm.run("cat /root/mark")?.status,
        0,
        "the layers share a file"
    );
    Ok(())
}

fn a_wrong_layer_typed_in_the_editor_is_named_before_the_emergency_shell() -> Result<()> {
    let mut vm = Host::prepared()?.disk("wrong-layer")?.boot("once")?;
    vm.menu()?.boot_with("imgbased.layer=Base-9.9")?;
    let console = vm.enter_emergency_shell()?;
    let wanted = "imgbased: no layer Base-9.9 in HostVG; there are: Base-0 Base-0.1 Base-0.2";
    ensure!(
        console.contains(wanted),
        "no line on the console that says\n{wanted}\n{console}"
    );
    assert_eq!(vm.ok("findmnt -n /sysroot || echo none")?, "none");
    ensure!(
        vm.ok("cat /proc/cmdline")?
            .ends_with("imgbased.layer=Base-9.9")
    );
    assert_eq!(active_volumes(&mut vm, "HostVG")?, "");
    Ok(())
}

fn an_entry_boots_once_and_then_the_default_again() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "once")?;
    vm.ok("echo written in Base-0.1 > /root/mark")?;
    let others = "grep -v -e '^#' -e '^next_entry=' /boot/grub/grubenv";
    let before = vm.ok(others)?;
    vm.ok("imgbased-helper boot try Base-0.2 && imgbased-helper boot try --cancel")?;
    vm.ok("imgbased-helper boot try Base-0.2")?;
    for (command, reason) in [
        ("layer remove Base-0.2", "Base-0.2 is what boots next"),
        ("boot try Base-0.9", "HostVG has no layer or base Base-0.9"),
        (
            "boot default ImagePool",
            "HostVG has no layer or base ImagePool",
        ),
    ] {
        is_refused(&mut vm, command, reason)?;
    }
    let list = vm.ok("imgbased-helper boot list")?;
    ensure!(
        list.contains("next start only") && list.contains("booted, default"),
        "{list}"
    );
    vm.power_off()?;

    let mut vm = disk.boot("tried")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.2")?;
    assert_ne!(
        vm.run("cat /root/mark")?.status,
        0,
        "the layers share a file"
    );
    // GRUB has forgotten it and kept all else.
    assert_eq!(
        vm.ok("grep '^next_entry' /boot/grub/grubenv || true")?,
        "next_entry="
    );
    assert_eq!(vm.ok(others)?, before);
    vm.power_off()?;

    let mut vm = disk.boot("back")?;
    vm.menu()?.choose("Base-0.1")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    assert_eq!(vm.ok("cat /root/mark")?, "written in Base-0.1");
    Ok(())
}

/// As after a lost grubenv.
fn where_no_default_is_set_a_new_layer_is_tried() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "no-default")?;
    let chosen = "grub-editenv - list | grep ^saved_entry= || true";
    vm.ok("grub-editenv - unset saved_entry")?;
    assert_eq!(vm.ok(chosen)?, "");
    vm.ok("imgbased-helper layer add")?;
    assert_eq!(vm.ok(chosen)?, "saved_entry=imgbased-Base-0.1");
    let options = vm.ok("grep ^options /boot/loader/entries/imgbased-Base-0.3.conf")?;
    ensure!(options.contains("imgbased.trial"), "{options}");
    is_clean(&mut vm)
}

fn the_everyday_commands_of_the_readme_work() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "readme")?;
    works_every_day(&mut vm)
}

fn a_layer_is_removed_with_its_entry_but_not_what_is_booted_or_the_default() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "remove")?;
    vm.ok("imgbased-helper boot default --tries 0 Base-0.2")?;
    for (arguments, reason) in [
        ("layer remove Base-0.2", "is the default"),
        ("layer remove Base-0.1", "is booted"),
        ("base remove --yes Base-0", "is booted"),
        ("base remove Base-0", "is booted"),
        ("layer remove Base-0", "has no layer Base-0"),
        ("layer remove Config", "has no layer Config"),
    ] {
        is_refused(&mut vm, arguments, reason)?;
    }
    let layers = "imgbased-helper layer list | cut -d ' ' -f 1 | xargs";
    assert_eq!(vm.ok(layers)?, "Base-0.1 Base-0.2");

    assert_eq!(vm.ok("imgbased-helper layer add Base-0.2")?, "Base-0.3");
    let kernels = vm.ok("ls /boot/imgbased")?;
    vm.ok("imgbased-helper layer remove Base-0.3")?;
    assert_eq!(vm.ok(layers)?, "Base-0.1 Base-0.2");
    let found = vm.ok("lvm lvs --noheadings -o lv_name | grep -c Base-0.3 || true")?;
    assert_eq!(found, "0");
    assert_eq!(
        vm.ok("grep -rl Base-0.3 /boot/loader /boot/grub/imgbased.cfg || true")?,
        ""
    );
    assert_eq!(
        vm.ok("ls /boot/imgbased")?,
        kernels,
        "a kernel in use was removed"
    );
    is_clean(&mut vm)
}

fn the_factory_entry_boots_the_base_and_forgets_what_was_written() -> Result<()> {
    let mut vm = Host::prepared()?.disk("factory")?.boot("once")?;
    vm.menu()?.choose("Base-0")?;
    vm.log_in()?;
    assert_eq!(vm.ok("findmnt -no FSTYPE /")?, "overlay");
    vm.ok("echo gone > /root/mark && cat /root/mark && sync")?;
    // On the volume below the overlay there is nothing.
    vm.ok(&guest::script("factory-base")?)?;
    let verified = vm.ok("imgbased-helper base verify 2>/dev/null")?;
    assert_eq!(verified, "Base-0: unchanged");
    Ok(())
}

fn the_same_initramfs_boots_an_ordinary_root() -> Result<()> {
    let disk = Host::prepared()?.disk("ordinary-root")?;
    let host = vm::Disk::writable(disk.path(), "host");
    let mut vm = Rescue::prepared()?.with("ordinary-root", host)?;
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, "/dev/vda");
    // systemd says of units that their conditions are not met.
    let log = vm.ok("grep -v 'unmet condition' /root/imgbased.log || true")?;
    ensure!(
        !log.contains("imgbased"),
        "the helper had something to say: {log}"
    );
    let ldd = vm.run("ldd /usr/bin/imgbased-helper")?.text;
    ensure!(ldd.contains("statically linked"), "{ldd}");
    let size: u64 = vm.ok("stat -c %s /usr/bin/imgbased-helper")?.parse()?;
    ensure!(size <= BINARY_LIMIT, "the binary has {size} bytes");
    Ok(())
}

fn the_initramfs_grows_by_no_more_than_the_module_may_add() -> Result<()> {
    let image = RootImage::prepared()?;
    let with = fs::metadata(image.initrd())?.len();
    let without = fs::metadata(image.initrd_without_module())?.len();
    let added = with.saturating_sub(without);
    vm::say(&format!(
        "initramfs: {with} bytes, {added} of them for the module"
    ));
    ensure!(added > 0, "the module is not in the initramfs");
    ensure!(added <= MODULE_LIMIT, "the module adds {added} bytes");
    Ok(())
}
