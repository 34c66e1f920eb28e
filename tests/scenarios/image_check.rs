//! What `image check` finds in an image, and that one boots in which it finds nothing.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::claims::{has_come_up, has_root, is_clean, restart};
use crate::vm::guest::{script, script_with};
use crate::vm::{Host, Loader, Vm};

/// For lsinitrd(1), dracut and copies, under software emulation.
const SLOW: Duration = Duration::from_secs(900);
/// Where the image is.
const IMAGE: &str = "/mnt/next";

scenarios![
    ; long:
    an_image_that_is_prepared_boots_on_old_hosts_and_new_ones,
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

/// The kinds of what is found in the image, beside a base that it is compared with.
fn found(vm: &mut Vm) -> Result<Vec<String>> {
    let check = format!("imgbased-helper --json image check {IMAGE} --against Base-0 2>/dev/null");
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
    vm.ok(&format!(
        "cd /root && mkdir -p usr/lib/dracut && echo base >usr/lib/dracut/modules.txt && \
         echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >{initrd}"
    ))?;
    assert_eq!(found(vm)?, ["module"]);
    vm.ok(&format!("cp /root/right.img {initrd}"))?;

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
