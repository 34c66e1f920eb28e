//! A host that was installed with the helper's own commands boots from its own boot sector: GRUB,
//! kernel, initramfs, systemd, login. The machines are in `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use std::fs;

use anyhow::{Result, ensure};

use vm::{Echo, Host, RootImage, Vm, boot_image};

/// How much the dracut module may add to an initramfs, in bytes.
const MODULE_LIMIT: u64 = 2 * 1024 * 1024;
/// How large the stripped binary may be, in bytes.
const BINARY_LIMIT: u64 = 2_097_152;

#[test]
fn the_default_entry_boots_the_first_layer() -> Result<()> {
    let mut vm = Host::prepared()?
        .disk("default")?
        .boot("once", Echo::Silent)?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.1")
}

#[test]
fn the_entry_picked_with_the_arrow_keys_boots_its_own_layer() -> Result<()> {
    let disk = Host::prepared()?.disk("picked")?;

    let mut first = disk.boot("first", Echo::Silent)?;
    first.menu()?.choose("Base-0.1")?;
    first.log_in()?;
    first.ok("echo written in Base-0.1 > /root/mark")?;
    first.power_off()?;

    let mut second = disk.boot("second", Echo::Silent)?;
    second.menu()?.choose("Base-0.2")?;
    second.log_in()?;
    assert_runs_layer(&mut second, "Base-0.2")?;
    assert_ne!(
        second.run("cat /root/mark")?.status,
        0,
        "the layers share a file"
    );
    second.power_off()?;

    let mut first = disk.boot("first-again", Echo::Silent)?;
    first.menu()?.choose("Base-0.1")?;
    first.log_in()?;
    assert_eq!(first.ok("cat /root/mark")?, "written in Base-0.1");
    Ok(())
}

#[test]
fn a_wrong_layer_typed_in_the_editor_is_named_before_the_emergency_shell() -> Result<()> {
    let mut vm = Host::prepared()?
        .disk("wrong-layer")?
        .boot("once", Echo::Silent)?;
    vm.menu()?.boot_with("imgbased.layer=Base-9.9")?;
    let console = vm.enter_emergency_shell()?;
    let wanted = "imgbased: no layer Base-9.9 in HostVG; there are: Base-0 Base-0.1 Base-0.2";
    ensure!(
        console.contains(wanted),
        "no line on the console that says\n{wanted}\n{console}"
    );
    assert_eq!(vm.ok("findmnt -n /sysroot || echo none")?, "none");
    assert!(
        vm.ok("cat /proc/cmdline")?
            .ends_with("imgbased.layer=Base-9.9")
    );
    assert_eq!(active_volumes(&mut vm)?, "");
    Ok(())
}

#[test]
fn a_root_that_disagrees_is_neither_mounted_nor_waited_for() -> Result<()> {
    let disk = Host::prepared()?.disk("other-root")?;
    let mut vm = disk.boot("once", Echo::Silent)?;
    vm.menu()?.boot_with("root=/dev/nonexistent")?;
    vm.log_in()?;
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, layer_device("Base-0.1"));
    let log = vm.ok("journalctl --boot --no-pager --identifier imgbased")?;
    assert!(log.contains("root=/dev/nonexistent is ignored"), "{log}");
    Ok(())
}

#[test]
fn what_a_dry_run_prints_does_the_same_when_it_is_pasted() -> Result<()> {
    let disk = Host::prepared()?.disk("dry-run")?;
    let mut vm = disk.boot("once", Echo::Silent)?;
    vm.log_in()?;
    let state = "lvm lvs --noheadings -o lv_name,lv_tags; find /boot -type f -exec sha256sum {} +";
    let before = vm.ok(state)?;
    vm.ok("imgbased-helper --dry-run layer add > /root/plan")?;
    assert_eq!(vm.ok(state)?, before, "a dry run changed something");
    vm.ok("sh -e /root/plan")?;
    let layers = vm.ok("imgbased-helper --json layer list")?;
    let layers: serde_json::Value = serde_json::from_str(&layers)?;
    let names: Vec<_> = layers["layers"].as_array().into_iter().flatten().collect();
    assert_eq!(names.len(), 3);
    assert_eq!(names[2]["name"], "Base-0.3");
    assert_eq!(names[2]["bootable"], true);
    assert_eq!(names[0]["booted"], true);
    assert_eq!(names[0]["default"], true);
    vm.power_off()?;

    let mut vm = disk.boot("pasted", Echo::Silent)?;
    vm.menu()?.choose("Base-0.3")?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.3")
}

#[test]
fn an_entry_boots_once_or_from_now_on() -> Result<()> {
    let disk = Host::prepared()?.disk("once")?;
    let mut vm = disk.boot("first", Echo::Silent)?;
    vm.log_in()?;
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
        let got = vm.run(&format!("imgbased-helper {command}"))?;
        ensure!(got.status == 1 && got.text.contains(reason), "{got:?}");
    }
    let list = vm.ok("imgbased-helper boot list")?;
    ensure!(
        list.contains("next start only") && list.contains("booted, default"),
        "{list}"
    );
    vm.power_off()?;

    let mut vm = disk.boot("tried", Echo::Silent)?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.2")?;
    // GRUB has forgotten it and kept all else.
    assert_eq!(
        vm.ok("grep '^next_entry' /boot/grub/grubenv || true")?,
        "next_entry="
    );
    assert_eq!(vm.ok(others)?, before);
    vm.power_off()?;

    let mut vm = disk.boot("back", Echo::Silent)?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.1")?;
    vm.ok("imgbased-helper boot default Base-0.2")?;
    vm.power_off()?;

    let mut vm = disk.boot("default", Echo::Silent)?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.2")?;

    // As grub-mkconfig rewrites entries on some systems, a disk loses bits, and people lose files.
    vm.ok("cd /boot && sed -i 's/^options .*/options root=UUID=1 ro/' loader/entries/imgbased-Base-0.2.conf && \
           printf x | dd of=$(ls imgbased/vmlinuz-*) bs=1 seek=100000 conv=notrunc status=none && \
           rm grub/imgbased.cfg loader/entries/imgbased-Base-0.conf && cd /")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found
            .text
            .contains("Base-0.2: its boot entry was changed by another program"),
        "{found:?}"
    );
    vm.ok("echo gone > /boot/grub/grubenv && imgbased-helper boot repair")?;
    assert_eq!(
        vm.ok("imgbased-helper boot repair && imgbased-helper check")?,
        ""
    );
    vm.power_off()?;

    let mut vm = disk.boot("repaired", Echo::Silent)?;
    vm.log_in()?;
    assert_runs_layer(&mut vm, "Base-0.2")
}

#[test]
fn the_everyday_commands_of_the_readme_work() -> Result<()> {
    let disk = Host::prepared()?.disk("readme")?;
    let mut vm = disk.boot("once", Echo::Silent)?;
    vm.log_in()?;
    for command in vm::readme::commands("### Every day")? {
        vm.ok(&command)?;
    }
    let status = vm.ok("imgbased-helper --json status")?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    assert_eq!(status["booted"], "Base-0.1");
    assert_eq!(status["base"], "Base-0");
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Base-0.4");
    assert_eq!(status["layers"], 3);
    Ok(())
}

#[test]
fn a_layer_is_removed_with_its_entry_but_not_what_is_booted_or_the_default() -> Result<()> {
    let disk = Host::prepared()?.disk("remove")?;
    let mut vm = disk.boot("once", Echo::Silent)?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    for (arguments, reason) in [
        ("layer remove Base-0.1", "is the default"),
        ("layer remove Base-0.2", "is booted"),
        ("base remove --yes Base-0", "is booted"),
        ("base remove Base-0", "its layers Base-0.1 Base-0.2?"),
        ("layer remove Base-0", "has no layer Base-0"),
        ("layer remove Config", "has no layer Config"),
    ] {
        let refused = vm.run(&format!("imgbased-helper {arguments}"))?;
        assert_eq!(refused.status, 1, "{arguments}: {}", refused.text);
        assert!(
            refused.text.contains(reason),
            "{arguments}: {}",
            refused.text
        );
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
    Ok(())
}

#[test]
fn the_factory_entry_boots_the_base_and_forgets_what_was_written() -> Result<()> {
    let disk = Host::prepared()?.disk("factory")?;
    for boot in ["once", "again"] {
        let mut vm = disk.boot(boot, Echo::Silent)?;
        vm.menu()?.choose("Base-0")?;
        vm.log_in()?;
        assert_eq!(vm.ok("findmnt -no FSTYPE /")?, "overlay");
        assert_ne!(
            vm.run("cat /root/mark")?.status,
            0,
            "a file outlived the boot"
        );
        vm.ok("echo gone > /root/mark && cat /root/mark")?;
        vm.power_off()?;
    }
    Ok(())
}

#[test]
fn the_same_initramfs_boots_an_ordinary_root() -> Result<()> {
    let image = RootImage::prepared()?;
    let mut vm = boot_image(image, "ordinary-root", Vec::new())?;
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, "/dev/vda");
    // systemd says of units that their conditions are not met.
    let log =
        vm.ok("journalctl --boot --no-pager --grep imgbased | grep -v 'unmet condition' || true")?;
    assert!(
        !log.contains("imgbased"),
        "the helper had something to say: {log}"
    );
    let ldd = vm.run("ldd /usr/bin/imgbased-helper")?.text;
    assert!(ldd.contains("statically linked"), "{ldd}");
    let size: u64 = vm.ok("stat -c %s /usr/bin/imgbased-helper")?.parse()?;
    assert!(size <= BINARY_LIMIT, "the binary has {size} bytes");
    vm.power_off().map(drop)
}

#[test]
fn the_initramfs_grows_by_two_mebibytes_at_most() -> Result<()> {
    let image = RootImage::prepared()?;
    let with = fs::metadata(image.initrd())?.len();
    let without = fs::metadata(image.initrd_without_module())?.len();
    let added = with.saturating_sub(without);
    vm::say(&format!(
        "initramfs: {with} bytes, {added} of them for the module"
    ));
    assert!(added > 0, "the module is not in the initramfs");
    assert!(added <= MODULE_LIMIT, "the module adds {added} bytes");
    Ok(())
}

/// Checks from inside that `layer` is what runs, and that no other was activated.
fn assert_runs_layer(vm: &mut Vm, layer: &str) -> Result<()> {
    let device = layer_device(layer);
    let name = vm.ok("cat /sys/dev/block/$(mountpoint -d /)/dm/name")?;
    assert_eq!(format!("/dev/mapper/{name}"), device);
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, device);
    let cmdline = vm.ok("cat /proc/cmdline")?;
    assert!(
        cmdline
            .split(' ')
            .any(|word| word == format!("imgbased.layer={layer}")),
        "{cmdline}"
    );
    assert!(!cmdline.contains("root="), "{cmdline}");
    assert_eq!(active_volumes(vm)?, layer);
    let state = vm.ok("systemctl is-system-running --wait")?;
    assert_eq!(state, "running");
    Ok(())
}

fn layer_device(layer: &str) -> String {
    format!("/dev/mapper/HostVG-{}", layer.replace('-', "--"))
}

/// The active layers and bases of the group, by name, in one line.
fn active_volumes(vm: &mut Vm) -> Result<String> {
    let list = vm.ok(
        "LVM_SUPPRESS_FD_WARNINGS=1 lvm lvs --noheadings --options lv_name \
         --select 'vg_name=HostVG && lv_active=active && lv_name=~^Base-'",
    )?;
    Ok(list.split_whitespace().collect::<Vec<_>>().join(" "))
}
