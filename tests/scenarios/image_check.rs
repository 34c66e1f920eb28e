//! What `image check` finds in an image, and that one boots in which it finds nothing. Each kind of finding is wrong on
//! the hosts of that image, or a risk, which is shown here; for `packages`, what it takes is shown in `volumes.rs`.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::claims::{GIVEN_UP, has_come_up, has_root, is_clean, is_refused, json, restart};
use crate::vm::guest::{script, script_with};
use crate::vm::qemu::Kernel;
use crate::vm::{Host, HostDisk, Loader, OPTIONS, RootImage, Start, Vm, package, store};

/// For lsinitrd(1), dracut and copies, under software emulation.
const SLOW: Duration = Duration::from_secs(900);
/// The same for an image with all drivers.
const VERY_SLOW: Duration = Duration::from_secs(3600);
/// Where the image is.
const IMAGE: &str = "/mnt/next";

scenarios![
    ; long:
    an_image_that_is_prepared_boots_on_old_hosts_and_new_ones,
    what_is_found_in_an_image_is_wrong_on_its_hosts,
    layers_of_images_in_which_something_is_found_do_not_boot_or_update,
    a_host_that_is_built_as_a_container_boots,
];

/// What is so in a layer of the image that an update has made: a command, and what it prints.
const AFTERWARDS: &[(&str, &str)] = &[
    ("readlink /var/lib/dpkg", "../../usr/lib/sysimage/dpkg"),
    ("dpkg --audit; dpkg-query -W -f '${Package}' lvm2", "lvm2"),
    ("apt-get -qq check && echo whole", "whole"),
    ("grep -c '^IMAGE_VERSION=2-1$' /etc/os-release", "1"),
    ("grep -c UUID /etc/fstab", "0"),
    ("grep -o resume= /proc/cmdline | wc -l", "0"),
    ("ls /etc/ssh/ssh_host_rsa_key 2>/dev/null | wc -l", "0"),
];

/// Of which no base is made: what is found, what was done to the tree, and why it is refused.
const REFUSED: &[(&str, &str, &str)] = &[
    (
        "kernel",
        "rm -r boot/vmlinuz-9.9 usr/lib/modules/9.9",
        "has no kernel",
    ),
    ("kernel-pair", "rm boot/vmlinuz-9.9", "has no kernel"),
    (
        "initramfs",
        "rm boot/initrd.img-9.9",
        "without its initramfs",
    ),
    (
        "initramfs",
        "echo damaged >boot/initrd.img-9.9",
        "lsinitrd(1) cannot read it",
    ),
    (
        "module",
        "sed -i s/imgbased/x-module/ boot/initrd.img-9.9",
        "it has no dracut module imgbased, and the root has no /usr/bin/dracut",
    ),
];

/// What fails where users and groups are not sound: what was done to the tree, what fails, and why.
const ACCOUNTS: &[(&str, &str, &str)] = &[
    (
        "echo 'x-test:!::' >etc/gshadow && mkdir -p usr/lib/sysusers.d && \
         echo 'g x-test -' >usr/lib/sysusers.d/x-test.conf",
        "systemd-sysusers --root=/root/wrong",
        "\"x-test\" already exists",
    ),
    (
        "tail -n 1 etc/passwd >>etc/passwd",
        "usermod --prefix /root/wrong --comment x web",
        "Multiple entries named 'web'",
    ),
    (
        "sed -i /^web/d etc/shadow",
        // Of the running system, since it has what asks for passwords.
        "echo x-test:x:3333:65534::/:/bin/false >>/etc/passwd; su -s /bin/sh x-test -c true; status=$?; \
         sed -i /^x-test:/d /etc/passwd; (exit $status)",
        "Authentication",
    ),
];

/// Has the root tree hold what is of one host. It gets another kernel, of which only a part is there.
const OF_ONE_HOST: &str = "cp boot/vmlinuz-9.9 boot/vmlinuz-9.8 && cp boot/initrd.img-9.9 boot/initrd.img-9.8 && \
    mkdir -p /root/of-initramfs/etc/cmdline.d && \
    echo resume=UUID=1-2 >/root/of-initramfs/etc/cmdline.d/95resume.conf && \
    (cd /root/of-initramfs && printf '%s\\n' usr/lib/dracut/modules.txt etc/cmdline.d/95resume.conf | \
    cpio --quiet -o -H newc) >boot/initrd.img-9.9 && \
    echo secret >etc/ssh/ssh_host_rsa_key && echo 0123456789abcdef0123456789abcdef >etc/machine-id && \
    echo resume=UUID=3-4 >etc/kernel/cmdline";
const FOUND_OF_ONE_HOST: [&str; 5] = [
    "kernel-pair",
    "initramfs-options",
    "host-keys",
    "machine-id",
    "kernel-options",
];

/// The kinds of what is found in the image, beside a base that it is compared with.
fn found(vm: &mut Vm) -> Result<Vec<String>> {
    found_in(vm, &format!("{IMAGE} --against Base-0"))
}

/// The kinds of what `image check` finds with these arguments.
fn found_in(vm: &mut Vm, arguments: &str) -> Result<Vec<String>> {
    let check = format!("imgbased-helper --json image check {arguments} 2>/dev/null");
    let got = vm.run_for(&check, SLOW)?;
    let data: Value = serde_json::from_str(&got.text).with_context(|| got.text.clone())?;
    let findings = data["findings"].as_array().context("a list")?;
    let ids = findings.iter().filter_map(|finding| finding["id"].as_str());
    let ids: Vec<String> = ids.map(str::to_owned).collect();
    let wanted = if ids.is_empty() { 0 } else { 3 };
    ensure!(got.status == wanted, "{got:?}");
    Ok(ids)
}

fn an_image_that_is_prepared_boots_on_old_hosts_and_new_ones() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "image-check")?;
    let vm = &mut vm;
    vm.ok(&script("make-next")?)?;
    vm.ok(&script_with("spoil-image", &[IMAGE])?)?;
    let wanted = [
        "host-keys",
        "machine-id",
        "kernel-options",
        "fstab",
        "packages",
    ];
    assert_eq!(found(vm)?, wanted);
    let prepare = format!("imgbased-helper image prepare --name next-2-1 {IMAGE}");
    vm.ok_for(&prepare, SLOW)?;
    assert_eq!(vm.ok_for(&prepare, SLOW)?, "");
    assert_eq!(found(vm)?, [""; 0]);

    // An initramfs of this machine, with the root of its layer in it, and one that boots no layer.
    let initrd = format!("{IMAGE}/boot/initrd.img-$(uname -r)");
    vm.ok(&format!("cp {initrd} /root/right.img"))?;
    let of_one = "dracut --quiet --force --hostonly --hostonly-cmdline";
    vm.ok_for(&format!("{of_one} {initrd}"), SLOW)?;
    let ids = found(vm)?;
    ensure!(
        ids.first().map(String::as_str) == Some("hostonly"),
        "{ids:?}"
    );
    // A driver that the image has, and this machine needs none of.
    vm.ok("find /usr/lib/modules -name 'vmw_pvscsi.ko*' | grep -q .")?;
    let held = vm.ok_for(
        &format!("lsinitrd {initrd} | grep -c vmw_pvscsi[.]ko || true"),
        SLOW,
    )?;
    assert_eq!(held, "0");
    vm.ok(&format!(
        "cd /root && mkdir -p usr/lib/dracut && echo base >usr/lib/dracut/modules.txt && \
         echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >{initrd}"
    ))?;
    assert_eq!(found(vm)?, ["module"]);
    vm.ok(&format!("cp /root/right.img {initrd}"))?;

    // An account that has another number there keeps that of the host, whatever a program of the image takes it for.
    let number = vm.ok("id -u _apt")?;
    vm.ok(&format!(
        "sed -i 's/^\\(_apt:[^:]*\\):[0-9]*:/\\1:987:/' {IMAGE}/etc/passwd"
    ))?;
    assert_eq!(found(vm)?, ["ids"]);

    let id = vm.ok("cat /etc/machine-id")?;
    vm.ok_for(&format!("imgbased-helper update {IMAGE}"), SLOW)?;
    restart(vm)?;
    has_root(vm, "HostVG", "Base-1.1")?;
    has_come_up(vm)?;
    for (command, wanted) in AFTERWARDS {
        let got = vm.run(command)?;
        assert_eq!(got.text.trim(), *wanted, "{command}");
    }
    assert_eq!(vm.ok("cat /etc/machine-id")?, id);
    assert_eq!(vm.ok("id -u _apt")?, number);
    is_clean(vm)?;

    // A host that is made of it anew.
    vm.ok("imgbased-helper layer add Base-1 && imgbased-helper boot once Base-1.2")?;
    restart(vm)?;
    has_root(vm, "HostVG", "Base-1.2")?;
    has_come_up(vm)?;
    let own = vm.ok("grep -xE '[0-9a-f]{32}' /etc/machine-id")?;
    ensure!(own != id, "{own}");
    Ok(())
}

/// Copies the small root tree to `/root/NAME`, changes it, and returns what is found in it.
fn changed(vm: &mut Vm, name: &str, change: &str) -> Result<Vec<String>> {
    let tree = format!("/root/{name}");
    vm.ok(&format!(
        "rm -rf {tree} && cp -a /root/right {tree} && cd {tree} && {change} && cd /root"
    ))?;
    found_in(vm, &tree)
}

fn what_is_found_in_an_image_is_wrong_on_its_hosts() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "image-found")?;
    let vm = &mut vm;
    vm.ok(&script("make-small-tree")?)?;
    assert_eq!(found_in(vm, "/root/right")?, [""; 0]);
    let bases = vm.ok("imgbased-helper base list")?;
    for (id, change, why) in REFUSED {
        assert_eq!(changed(vm, "wrong", change)?, [*id], "{change}");
        is_refused(vm, "base add /root/wrong", why)?;
    }
    assert_eq!(vm.ok("imgbased-helper base list")?, bases);
    is_clean(vm)?;

    for (change, command, why) in ACCOUNTS {
        assert_eq!(changed(vm, "wrong", change)?, ["accounts"], "{change}");
        let failed = vm.run(command)?;
        ensure!(
            failed.status != 0 && failed.text.contains(why),
            "{command}: {failed:?}"
        );
    }
    of_one_host(vm)?;
    is_full(vm)?;
    has_no_version(vm)?;
    is_clean(vm)
}

/// Two layers stand for two hosts: what is of one is on both.
fn of_one_host(vm: &mut Vm) -> Result<()> {
    assert_eq!(changed(vm, "of-one", OF_ONE_HOST)?, FOUND_OF_ONE_HOST);
    vm.ok_for("imgbased-helper base add --name Base-1 /root/of-one", SLOW)?;
    for layer in ["Base-1.1", "Base-1.2"] {
        vm.ok("imgbased-helper layer add Base-1")?;
        let look = "cat etc/ssh/ssh_host_rsa_key etc/machine-id";
        assert_eq!(
            vm.ok(&script_with("look-into", &[layer, look])?)?,
            "secret\n0123456789abcdef0123456789abcdef"
        );
        // No entry boots the kernel without modules.
        let entries = format!("/boot/loader/entries/*{layer}.conf");
        assert_eq!(vm.ok(&format!("sed -n 's/^version //p' {entries}"))?, "9.9");
        vm.ok(&format!("grep -q '^options.*resume=UUID=3-4' {entries}"))?;
        vm.ok(&format!(
            "grep -q resume=UUID=1-2 /boot/$(sed -n 's/^initrd //p' {entries})"
        ))?;
    }
    Ok(())
}

/// A layer has no more room than its image.
fn is_full(vm: &mut Vm) -> Result<()> {
    vm.ok(&script("fill-image")?)?;
    assert_eq!(found_in(vm, "/root/full.img")?, ["size"]);
    vm.ok_for(
        "imgbased-helper base add --name Base-2 /root/full.img",
        SLOW,
    )?;
    vm.ok("imgbased-helper layer add Base-2")?;
    vm.ok(
        "lvm lvchange -qq -K -ay HostVG/Base-2.1 && mkdir -p /mnt/full && \
         mount $(imgbased-helper layer path Base-2.1) /mnt/full",
    )?;
    let written = vm.run("head -c 1M /dev/zero >/mnt/full/new")?;
    ensure!(
        written.status != 0 && written.text.contains("No space left"),
        "{written:?}"
    );
    vm.ok("umount /mnt/full && lvm lvchange -qq -an HostVG/Base-2.1")?;
    Ok(())
}

/// An older image is told by its version only.
fn has_no_version(vm: &mut Vm) -> Result<()> {
    const OLDER: &str = "is of version 5, which is older than 6 that runs";
    let check = "imgbased-helper update --check /root/other";
    vm.ok("echo IMAGE_VERSION=6 >>/usr/lib/os-release")?;
    assert_eq!(changed(vm, "other", "true")?, [""; 0]);
    let told = vm.run_for(check, SLOW)?;
    ensure!(told.text.contains(OLDER), "{told:?}");
    let without = "sed -i /IMAGE_VERSION/d usr/lib/os-release";
    assert_eq!(changed(vm, "other", without)?, ["version"]);
    let told = vm.run_for(check, SLOW)?;
    ensure!(!told.text.contains("which is older than"), "{told:?}");
    vm.ok("sed -i /^IMAGE_VERSION=6/d /usr/lib/os-release")?;
    Ok(())
}

/// Changes what is in a layer that is not active.
fn change_layer(vm: &mut Vm, layer: &str, change: &str) -> Result<()> {
    vm.ok(&format!(
        "lvm lvchange -qq -K -ay HostVG/{layer} && mkdir -p /mnt/change && \
         mount $(imgbased-helper layer path {layer}) /mnt/change && cd /mnt/change && {change} && cd / && \
         umount /mnt/change && lvm lvchange -qq -an HostVG/{layer}"
    ))?;
    Ok(())
}

/// Each layer stands for an image in which one thing is found: `helper`, `os-release`, `fstab` and `boot`.
fn layers_of_images_in_which_something_is_found_do_not_boot_or_update() -> Result<()> {
    let (disk, mut vm) = Host::running_unattended(Loader::Grub, "image-found-boots")?;
    vm.ok("for n in 3 4 5; do imgbased-helper layer add; done")?;
    for (layer, change) in [
        ("Base-0.2", "rm usr/bin/imgbased-helper"),
        ("Base-0.3", "rm etc/os-release usr/lib/os-release"),
        // With a time limit of its own, so that it is no matter of minutes.
        (
            "Base-0.4",
            "mkdir -p srv && echo 'UUID=1-2 /srv ext4 x-systemd.device-timeout=5s' >>etc/fstab",
        ),
        (
            "Base-0.5",
            "sed -i '/[[:space:]]\\/boot[[:space:]]/d' etc/fstab",
        ),
    ] {
        change_layer(&mut vm, layer, change)?;
    }
    // Nobody finds that it has come up.
    vm.ok("imgbased-helper boot default Base-0.2")?;
    vm.type_line("systemctl reboot")?;
    vm.wait_for(GIVEN_UP)?;
    vm.switch_off()?;

    let mut vm = start(&disk, "os-release", "Base-0.3")?;
    vm.enter_emergency_shell()?;
    vm.ok("journalctl --boot --no-pager | grep -q 'os-release file is missing'")?;
    vm.switch_off()?;

    let mut vm = start(&disk, "fstab", "Base-0.4")?;
    vm.enter_emergency_shell()?;
    vm.ok("journalctl --boot --no-pager | grep -q 'Dependency failed for .*/srv'")?;
    vm.switch_off()?;

    // It comes up, but no entry can be written there.
    let mut vm = start(&disk, "boot", "Base-0.5")?;
    vm.log_in()?;
    has_root(&mut vm, "HostVG", "Base-0.5")?;
    is_refused(
        &mut vm,
        "layer add",
        "no boot partition is mounted at /boot",
    )
}

/// Starts a layer of the host by its kernel.
fn start(disk: &HostDisk, name: &str, layer: &str) -> Result<Vm> {
    let image = RootImage::prepared()?;
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd: &image.initrd(),
        cmdline: &format!("{OPTIONS} imgbased.layer={layer}"),
    };
    let start = Start {
        kernel: Some(&kernel),
        ..Start::default()
    };
    disk.start(name, Vec::new(), start)
}

fn a_host_that_is_built_as_a_container_boots() -> Result<()> {
    let package = package()?;
    let content = fs::read(package).with_context(|| package.display().to_string())?;
    let [script, recipe]: [&[u8]; 2] = [
        include_bytes!("../../ci/container"),
        include_bytes!("../../ci/Containerfile"),
    ];
    let built = store::cached("container", &[script, recipe, &content], |new| {
        store::run_script("container", &[package, new]).map(drop)
    })?;
    let saved = Host::saved(Loader::Grub)?;
    let disk = saved.disk("container")?;
    disk.fill("spare", &built.join("root.tar"))?;
    let mut vm = saved.go_on(&disk, true)?;
    // That of the image has none, and cannot log in.
    vm.ok("echo root:of-the-host | chpasswd")?;
    let image = "/dev/disk/by-id/virtio-spare";
    let said = vm.ok_for(&format!("imgbased-helper update {image} 2>&1"), VERY_SLOW)?;
    ensure!(
        said.contains("Base-1.1 is a layer of Base-1, which holds"),
        "{said}"
    );
    vm.type_line("systemctl reboot")?;
    vm.log_in_with(Some("of-the-host"))?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    assert_eq!(json(&mut vm, "status")?["default"], "Base-1.1");
    // Which its image does not have.
    vm.ok("test -s /etc/ssh/ssh_host_ed25519_key && systemctl is-active ssh.service")?;
    is_clean(&mut vm)
}
