//! What `status` and `check` tell of a host that somebody has to look after, before it is too late.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{is_clean, is_refused, json};
use crate::vm::guest::script;
use crate::vm::{Disk, Host, Loader, Rescue, Vm};

scenarios![
    ;
    turns:
    what_is_full_is_told_before_nothing_can_be_written,
    a_pool_that_fills_is_extended_by_itself,
    a_pool_that_cannot_be_activated_is_explained_and_loses_nothing;
    long:
    a_boot_partition_that_is_not_mounted_keeps_no_volume_from_repair,
];

/// For filling a pool, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// Claims that both tell of something.
fn is_told(vm: &mut Vm, root: &str, text: &str) -> Result<()> {
    let found = vm.run(&format!("imgbased-helper --root {root} check"))?;
    ensure!(
        found.status == 3 && found.text.contains(text),
        "{text}: {found:?}"
    );
    let status = json(vm, &format!("--root {root} status"))?;
    let problems = status["problems"].as_array().into_iter().flatten();
    let mut problems = problems.filter_map(|problem| problem.as_str());
    ensure!(problems.any(|problem| problem.contains(text)), "{status}");
    Ok(())
}

/// Leaves 8 MiB of what any user can write.
fn fill(dir: &str) -> String {
    format!(
        "fallocate -l $(($(stat -f -c '%a * %S' {dir}) - 8388608)) {dir}/filler && sync -f {dir}"
    )
}

fn what_is_full_is_told_before_nothing_can_be_written() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "told")?;
    let status = json(&mut vm, "status")?;
    ensure!(status["root_percent"].is_number(), "{status}");
    assert_eq!(status["problems"].as_array().map(Vec::len), Some(0));
    for (dir, subject) in [
        ("/", "root filesystem: is 9"),
        ("/boot", "boot partition: is 9"),
    ] {
        vm.ok(&fill(dir))?;
        is_told(&mut vm, "/", subject)?;
        vm.ok(&format!("rm {dir}/filler && sync -f {dir}"))?;
    }
    vm.ok("lvm lvchange -qq --zero n HostVG/ImagePool")?;
    is_told(&mut vm, "/", "ImagePool: does not zero new chunks")?;
    vm.ok("lvm lvchange -qq --zero y HostVG/ImagePool")?;
    is_clean(&mut vm)?;
    // The root is in use, so this waits for its next activation.
    vm.ok("lvm lvcreate -qq -y -s -n snap HostVG/Base-0.1")?;
    vm.ok("lvm lvconvert -qq -y --merge HostVG/snap")?;
    is_told(&mut vm, "/", "Base-0.1: a snapshot is being merged into it")
}

fn a_pool_that_fills_is_extended_by_itself() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "extended")?;
    vm.ok_for(&script("fill-until-extended")?, SLOW)?;
    // So small a group has no room to do so again.
    let found = vm.run("imgbased-helper --vg Small check")?;
    ensure!(
        found
            .text
            .contains("ImagePool: cannot be extended: its group has"),
        "{found:?}"
    );
    Ok(())
}

fn a_pool_that_cannot_be_activated_is_explained_and_loses_nothing() -> Result<()> {
    let disk = Host::prepared()?.disk("mismatch")?;
    let host = Disk::writable(disk.path(), "host");
    let mut vm = Rescue::prepared()?.with("mismatch", host)?;
    vm.ok("mkdir -p /mnt/boot && mount /dev/disk/by-id/virtio-host-part2 /mnt/boot")?;
    vm.ok("vgchange -qq -an HostVG")?;
    assert_eq!(vm.ok("imgbased-helper --root /mnt check")?, "");
    let layout = vm.ok("imgbased-helper --root /mnt layout")?;
    ensure!(layout.contains("thin pool, not active"), "{layout}");
    vm.ok(&script("wrong-transaction")?)?;
    is_told(&mut vm, "/mnt", "and LVM takes it to be at 99")?;
    let state = "lvs -a --noheadings -o lv_name,lv_tags; cat /mnt/boot/loader/entries/*";
    let before = vm.ok(state)?;
    for verb in ["layer remove Base-0.2", "layer add"] {
        is_refused(
            &mut vm,
            &format!("--root /mnt {verb}"),
            "it is at transaction",
        )?;
        assert_eq!(vm.ok(state)?, before, "{verb}");
    }
    vm.ok("vgcfgrestore -qq --force --file /root/right.vg HostVG")?;
    assert_eq!(vm.ok("imgbased-helper --root /mnt check")?, "");
    vm.ok("imgbased-helper --root /mnt layer remove Base-0.2")?;
    assert_eq!(vm.ok("imgbased-helper --root /mnt check")?, "");
    Ok(())
}

fn a_boot_partition_that_is_not_mounted_keeps_no_volume_from_repair() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "no-boot")?;
    vm.ok("lvm lvchange -qq --permission rw HostVG/Base-0 && umount /boot")?;
    let repaired = vm.run("imgbased-helper check --repair")?;
    ensure!(
        repaired.status == 3
            && repaired
                .text
                .contains("done: make the volume Base-0 read-only")
            && repaired
                .text
                .contains("no boot partition is mounted at /boot"),
        "{repaired:?}"
    );
    vm.ok("mount /boot")?;
    is_clean(&mut vm)
}
