//! The way down: what systemd cannot release itself, as the root is on it, is released before the machine goes
//! off or restarts.

use anyhow::{Result, ensure};

use crate::claims::runs;
use crate::vm::qemu::Disk;
use crate::vm::{Host, HostDisk, Loader, Rescue, Vm};

scenarios![
    a_layer_goes_down_to_the_disk_also_by_force_and_after_a_soft_reboot;
    turns:
    a_machine_goes_off_whatever_holds_its_root_and_without_a_way_down,
];

/// What is removed below the root, in this order or, of the last two, the other one.
const BELOW_THE_ROOT: [&str; 4] = [
    "HostVG-Base--0.1",
    "HostVG-ImagePool-tpool",
    "HostVG-ImagePool_tdata",
    "HostVG-ImagePool_tmeta",
];
/// The most that may stay in memory for the way down, in KiB.
const STAGED_MAX: u64 = 4096;

fn a_layer_goes_down_to_the_disk_also_by_force_and_after_a_soft_reboot() -> Result<()> {
    let (disk, mut vm) = Host::running_unattended(Loader::Grub, "down")?;
    vm.type_line("systemctl soft-reboot")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    // Neither the file for dracut nor what it unpacks is there.
    assert_eq!(
        vm.ok("ls -A /run/initramfs")?
            .split_whitespace()
            .collect::<Vec<_>>(),
        ["dev", "oldroot", "proc", "run", "shutdown", "sys"]
    );
    let staged = vm.ok("findmnt -no USED --bytes /run/initramfs")?;
    ensure!(staged.parse::<u64>()? <= STAGED_MAX << 10, "{staged} bytes");
    let in_vain = vm.run("/run/initramfs/shutdown poweroff")?;
    ensure!(
        in_vain.status == 1 && in_vain.text.contains("use `systemctl poweroff`"),
        "{in_vain:?}"
    );

    show_what_is_removed(&mut vm)?;
    // No unit is stopped. systemd would wait 90 seconds for this one, which ends only when nothing is monitored.
    vm.ok("systemctl kill --signal KILL dm-event.service")?;
    vm.type_line("systemctl reboot --force")?;
    let restart = vm.wait_for("imgbased: removed the device HostVG-ImagePool_tmeta")?;
    ensure!(!restart.contains("imgbased: cannot"), "{restart}");
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    show_what_is_removed(&mut vm)?;
    let console = vm.power_off()?;
    // Of this start only.
    let (_, console) = console.rsplit_once("Linux version ").unwrap_or_default();
    let mut at = 0;
    for name in BELOW_THE_ROOT {
        let line = format!("imgbased: removed the device {name}");
        let found = console.find(&line);
        ensure!(found >= Some(at), "not {line:?}, or too early: {console}");
        if !name.contains('_') {
            at = found.unwrap_or_default();
        }
    }
    ensure!(!console.contains("imgbased: cannot"), "{console}");
    is_left_clean(&disk, "down-look")
}

fn a_machine_goes_off_whatever_holds_its_root_and_without_a_way_down() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "held")?;
    // systemd kills no process of this name (https://systemd.io/ROOT_STORAGE_DAEMONS).
    vm.ok("systemd-run --quiet --property DefaultDependencies=no \
         bash -c 'exec -a @holder sleep infinity' && touch /root/mark")?;
    show_what_is_removed(&mut vm)?;
    let console = vm.power_off()?;
    for message in [
        "imgbased: cannot unmount /oldroot: EBUSY",
        "imgbased: cannot remove the device HostVG-Base--0.1: Device or resource busy",
        "(sleep)",
        "imgbased: /oldroot is read-only",
    ] {
        ensure!(console.contains(message), "not {message:?}: {console}");
    }
    // It is the volume that is busy, not what is below it.
    ensure!(
        !console.contains("imgbased: cannot remove the device HostVG-ImagePool"),
        "{console}"
    );
    is_left_clean(&disk, "held-look")?;

    let mut vm = disk.boot("noexec")?;
    vm.log_in()?;
    vm.ok("mount -o remount,noexec /run/initramfs && touch /root/mark")?;
    show_what_is_removed(&mut vm)?;
    let console = vm.power_off()?;
    ensure!(!console.contains("imgbased: removed"), "{console}");
    is_left_clean(&disk, "noexec-look")
}

/// Has the kernel show on the console what the helper says.
fn show_what_is_removed(vm: &mut Vm) -> Result<()> {
    vm.ok("dmesg -n debug").map(drop)
}

/// Claims that the layer's journal is empty and that its pool needs no check, as a system sees it that has the
/// disk as another one.
fn is_left_clean(disk: &HostDisk, name: &str) -> Result<()> {
    let host = Disk::forgetful(disk.path(), "qcow2", "host");
    let mut vm = Rescue::prepared()?.with(name, host)?;
    vm.ok("lvm lvchange -q -K -ay HostVG/Base-0.1")?;
    let head = vm.ok("dumpe2fs -h /dev/HostVG/Base-0.1 2>&1")?;
    ensure!(!head.contains("needs_recovery"), "{head}");
    let clean = head.lines().any(|line| {
        line.strip_prefix("Filesystem state:")
            .is_some_and(|state| state.trim() == "clean")
    });
    ensure!(clean, "{head}");
    let state = "lvm lvs --noheadings -o lv_health_status,lv_check_needed HostVG/ImagePool";
    assert_eq!(vm.ok(state)?, "");
    Ok(())
}
