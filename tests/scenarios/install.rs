//! One command makes a host of an image on a blank disk, and that disk starts it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{is_clean, is_refused, json, restart, runs};
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::interrupted;
use crate::vm::{Disk, Host, Rescue, RootImage, Start, Vm, qemu, scratch};

scenarios![
    ;
    turns:
    disks_that_hold_something_are_not_installed_to;
    long:
    a_blank_disk_becomes_a_host_that_grub_starts_on_bios_and_uefi,
    answers_make_a_host_that_systemd_boot_starts,
    an_encrypted_host_asks_for_its_passphrase,
    secure_boot_starts_a_host_and_a_trial_that_fails_falls_back,
    an_installation_that_fails_leaves_a_blank_disk,
    a_pasted_dry_run_makes_a_host,
];

/// For copying a whole system, and for an initramfs, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

const DISK: &str = "/dev/disk/by-id/virtio-host";
const IMAGE: &str = "/dev/disk/by-id/virtio-spare";

/// A blank disk, and the rescue system beside it with an image.
fn with_blank_disk(name: &str) -> Result<(PathBuf, Vm)> {
    let disk = scratch(name)?.join("disk.qcow2");
    let vm = beside_image(&disk, name, &RootImage::prepared()?.filesystem())?;
    Ok((disk, vm))
}

/// The rescue system with this image beside the blank disk `disk`, which is made.
fn beside_image(disk: &Path, name: &str, image: &Path) -> Result<Vm> {
    qemu::create_disk(disk, "8G")?;
    let host = Disk::writable(disk, "host");
    let image = Disk::forgetful(image, "raw", "spare");
    let mut vm = Rescue::prepared()?.with_both(name, host, image)?;
    vm.ok(&script("exchange-disk")?)?;
    vm.ok(&script_with("is-blank", &[DISK])?)?;
    Ok(vm)
}

fn leave(mut vm: Vm) -> Result<()> {
    vm.ok("sync")?;
    vm.switch_off()
}

/// Starts the disk on a BIOS, or on UEFI with these variables, without another one beside it.
fn start(disk: &Path, name: &str, variables: Option<&Path>) -> Result<Vm> {
    let start = Start {
        variables,
        ..Start::default()
    };
    Vm::start(name, &[Disk::writable(disk, "host")], &start)
}

fn on_uefi(disk: &Path, name: &str) -> Result<Vm> {
    let variables = disk.with_file_name("variables");
    qemu::create_variables(&variables)?;
    start(disk, name, Some(&variables))
}

/// Claims that the first layer runs, that /boot and the volumes are those of the disk, and that the host can be worked
/// with.
fn is_host(vm: &mut Vm, loader: &str) -> Result<()> {
    runs(vm, "Base-0.1")?;
    for (path, device) in [("/var", "HostVG-var"), ("/home", "HostVG-home")] {
        let found = vm.ok(&format!("findmnt -no SOURCE {path}"))?;
        assert_eq!(found, format!("/dev/mapper/{device}"));
    }
    vm.ok("test -d /var/lib/dpkg/info && test -d /var/log && mountpoint -q /boot")?;
    let line = vm.ok("grep ' /boot ' /etc/fstab")?;
    ensure!(line.starts_with("UUID="), "{line}");
    let status = json(vm, "status")?;
    assert_eq!(status["booted"], "Base-0.1");
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(json(vm, "boot list")?["loader"], loader);
    vm.ok("imgbased-helper boot bless")?;
    assert_eq!(vm.ok("imgbased-helper layer add")?, "Base-0.2");
    vm.ok("imgbased-helper layer remove Base-0.2")?;
    is_clean(vm)
}

fn disks_that_hold_something_are_not_installed_to() -> Result<()> {
    let disk = Host::prepared()?.disk("install-refused")?;
    let host = Disk::writable(disk.path(), "host");
    let mut vm = Rescue::prepared()?.with("install-refused", host)?;
    let state = format!("sha256sum {DISK}-part1; head -c 4M {DISK} | sha256sum");
    let before = vm.ok(&state)?;
    for (words, reason) in [
        ("--disk /dev/vda", "/dev/vda is in use"),
        (&format!("--disk {DISK}"), "it holds gpt"),
        (
            &format!("--wipe --disk {DISK}"),
            "is a disk of the volume group \"HostVG\"",
        ),
        (&format!("--disk {DISK}-part1"), "is a partition"),
        (&format!("--disk {IMAGE}"), "the disk is too small"),
        (
            &format!("--boot-size 128M --disk {IMAGE}"),
            "volume group HostVG exists already",
        ),
        (
            &format!("--vg New --boot-size 128M --volumes none --disk {IMAGE}"),
            "standard input is no terminal",
        ),
        (
            &format!("--vg New --yes --boot-size 128M --disk {IMAGE} --encrypt"),
            "give --passphrase-file",
        ),
        (
            &format!(
                "--vg New --yes --boot-size 128M --disk {IMAGE} --loader systemd-boot --firmware both"
            ),
            "starts hosts on UEFI only",
        ),
        (
            &format!(
                "--vg New --yes --boot-size 128M --disk {IMAGE} --secure-boot --firmware bios"
            ),
            "a BIOS knows no Secure Boot",
        ),
        (
            &format!("--vg New --yes --boot-size 128M --disk {IMAGE}"),
            "holds nothing that is known",
        ),
    ] {
        is_refused(&mut vm, &format!("install /etc/hostname {words}"), reason)?;
    }
    // That claims no disk.
    vm.ok(&format!("modprobe loop && losetup /dev/loop5 {DISK}"))?;
    is_refused(
        &mut vm,
        &format!("install /etc/hostname --wipe --disk {DISK}"),
        "is in use by the loop device loop5",
    )?;
    vm.ok("losetup --detach /dev/loop5")?;
    assert_eq!(vm.ok(&state)?, before);
    let found = vm.ok(&format!("wipefs --no-act --noheadings {IMAGE}"))?;
    assert_eq!(found, "");
    Ok(())
}

fn a_blank_disk_becomes_a_host_that_grub_starts_on_bios_and_uefi() -> Result<()> {
    let (disk, mut vm) = with_blank_disk("install-grub")?;
    let install = format!("imgbased-helper install {IMAGE} --disk {DISK} --firmware both --yes");
    let said = vm.ok_for(&install, SLOW)?;
    ensure!(
        said.contains("starts Base-0.1 by GRUB on BIOS and UEFI"),
        "{said}"
    );
    assert_eq!(vm.ok("dmsetup ls")?, "No devices found");
    leave(vm)?;

    let mut vm = start(&disk, "install-grub-bios", None)?;
    vm.menu()?.choose("Base-0.1")?;
    vm.log_in()?;
    is_host(&mut vm, "grub")?;
    vm.power_off()?;

    let mut vm = on_uefi(&disk, "install-grub-uefi")?;
    vm.log_in()?;
    is_host(&mut vm, "grub")?;
    vm.power_off().map(drop)
}

fn answers_make_a_host_that_systemd_boot_starts() -> Result<()> {
    let (disk, mut vm) = with_blank_disk("install-answers")?;
    vm.ok(&format!(
        "printf '%s\\n' '# A host.' image={IMAGE} disk={DISK} loader=systemd-boot volumes=/var=2G,/home \
         >/root/answers"
    ))?;
    vm.ok_for("imgbased-helper install --answers /root/answers", SLOW)?;
    leave(vm)?;

    let mut vm = on_uefi(&disk, "install-answers-uefi")?;
    vm.log_in()?;
    is_host(&mut vm, "systemd-boot")?;
    let size = vm.ok("lvm lvs --noheadings --units g -o lv_size HostVG/var")?;
    ensure!(size.contains("2.00g"), "{size}");
    vm.power_off().map(drop)
}

fn an_encrypted_host_asks_for_its_passphrase() -> Result<()> {
    let (disk, mut vm) = with_blank_disk("install-encrypted")?;
    vm.ok("printf '%s\\n' encrypt=yes 'passphrase=a secret' >/root/answers")?;
    let install = format!("imgbased-helper install {IMAGE} --disk {DISK} --answers /root/answers");
    vm.ok_for(&install, SLOW)?;
    assert_eq!(vm.ok("dmsetup ls")?, "No devices found");
    let holds = vm.ok(&format!("blkid -o value -s TYPE {DISK}-part3"))?;
    assert_eq!(holds, "crypto_LUKS");
    leave(vm)?;

    let mut vm = start(&disk, "install-encrypted-bios", None)?;
    vm.wait_for("Please enter passphrase")?;
    vm.type_line("a secret")?;
    vm.log_in()?;
    is_host(&mut vm, "grub")?;
    let name = vm.ok("grep -o '^luks-[^ ]*' /etc/crypttab")?;
    vm.ok(&format!(
        "cryptsetup status {name} | grep -q 'is active and is in use'"
    ))?;
    // The base has it as well, whose image knows nothing of it.
    let entries = vm.ok("grep -l rd.luks.uuid= /boot/loader/entries/*.conf | wc -l")?;
    assert_eq!(entries, "2");
    // So has each layer of it, whose root has options of its own.
    vm.ok_for(
        "name=$(imgbased-helper layer add) && imgbased-helper boot refresh $name && \
         grep -q rd.luks.uuid= /boot/loader/entries/imgbased-$name.conf",
        SLOW,
    )?;
    vm.power_off().map(drop)
}

fn secure_boot_starts_a_host_and_a_trial_that_fails_falls_back() -> Result<()> {
    const ENFORCED: &str = "od -An -tx1 -j4 -N1 /sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    let disk = scratch("install-secure")?.join("disk.qcow2");
    let image = disk.with_file_name("signed.img");
    RootImage::prepared()?.with_signed_loaders(&image)?;
    let mut vm = beside_image(&disk, "install-secure", &image)?;
    let install = format!(
        "imgbased-helper install {IMAGE} --disk {DISK} --firmware uefi --secure-boot --yes"
    );
    let said = vm.ok_for(&install, SLOW)?;
    ensure!(said.contains("signed for Secure Boot"), "{said}");
    leave(vm)?;

    let variables = disk.with_file_name("variables");
    qemu::create_secure_variables(&variables)?;
    let start = Start {
        variables: Some(&variables),
        is_secure: true,
        restarts: true,
        ..Start::default()
    };
    let disks = [Disk::writable(&disk, "host")];
    let mut vm = Vm::start("install-secure-first", &disks, &start)?;
    vm.log_in()?;
    assert_eq!(vm.ok(ENFORCED)?, "01");
    is_host(&mut vm, "grub")?;
    vm.ok("imgbased-helper layer add")?;
    vm.ok(&script_with("wipe", &["Base-0.2"])?)?;
    vm.ok("imgbased-helper boot default --tries 1 Base-0.2")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.1")?;
    ensure!(vm.said().contains("HostVG-Base--0.2 holds no filesystem"));
    let list = vm.ok("imgbased-helper boot list")?;
    ensure!(list.contains("failed 1 time"), "{list}");
    vm.power_off().map(drop)
}

fn an_installation_that_fails_leaves_a_blank_disk() -> Result<()> {
    let (_, mut vm) = with_blank_disk("install-fails")?;
    let install = format!("imgbased-helper install {IMAGE} --disk {DISK} --yes --volumes /home");
    for step in [2, 6, 12, 15, 26] {
        let failing = interrupted(&format!("IMGBASED_FAIL_AT={step}"), &install);
        let got = vm.run_for(&failing, SLOW)?;
        ensure!(got.status == 1, "{step}: {got:?}");
        ensure!(!got.text.contains("not undone"), "{step}: {got:?}");
        vm.ok(&script_with("is-blank", &[DISK])?)?;
    }
    vm.power_off().map(drop)
}

fn a_pasted_dry_run_makes_a_host() -> Result<()> {
    let (disk, mut vm) = with_blank_disk("install-pasted")?;
    vm.ok(&format!(
        "imgbased-helper --dry-run install {IMAGE} --disk {DISK} >/root/plan"
    ))?;
    vm.ok(&script_with("is-blank", &[DISK])?)?;
    vm.ok_for("sh -e /root/plan", SLOW)?;
    leave(vm)?;

    let mut vm = start(&disk, "install-pasted-first", None)?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    assert_eq!(vm.ok("findmnt -no SOURCE /var")?, "/dev/mapper/HostVG-var");
    is_clean(&mut vm)
}
