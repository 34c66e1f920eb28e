//! The example image on what brings it to a machine: the live system on it starts from a DVD, from a stick and from the
//! network, and makes a host of a blank disk by answers that nobody has to give. Such a disk is there as well.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::claims::{is_clean, runs};
use crate::vm::example::{self, DISK, PASSWORD, SLOW, install, with_answers};
use crate::vm::guest::script_with;
use crate::vm::{Disk, Medium, Start, Vm, qemu, scratch, web};

scenarios![
    ; long:
    the_disk_image_is_a_host_with_bios_and_uefi,
    a_dvd_makes_a_host_that_updates_and_rolls_back,
    a_stick_makes_an_encrypted_host_on_uefi,
    the_network_makes_a_host_on_a_machine_without_a_medium,
];

/// What a host of such an image has to have, and what tells.
const CLAIMS: &[(&str, &str)] = &[
    ("lvm vgs --noheadings -o vg_name | xargs", "HostVG"),
    (
        "lvm lvs --noheadings -o segtype HostVG/ImagePool | xargs",
        "thin-pool",
    ),
    (
        "lvm lvs --noheadings -o lv_permissions HostVG/Base-0 | xargs",
        "read-only",
    ),
    (
        "lvm lvs --noheadings -o origin HostVG/Base-0.1 | xargs",
        "Base-0",
    ),
    (
        "lvm lvs --noheadings -o lv_name HostVG/Config | xargs",
        "Config",
    ),
    ("imgbase layout", "Base-0\n +- Base-0.1"),
    ("imgbase w", "You are on Base-0.1"),
    ("imgbase check | head -n 1", "Status: OK"),
    ("imgbased-helper check && echo fine", "fine"),
    ("findmnt -no TARGET --target /etc", "/"),
    ("findmnt -no SOURCE /var", "/dev/mapper/HostVG-var"),
    ("findmnt -no SOURCE /home", "/dev/mapper/HostVG-home"),
    ("findmnt -no FSTYPE /tmp", "tmpfs"),
    ("mountpoint -q /boot && echo mounted", "mounted"),
    // What a pool gets back of files that are gone.
    ("systemctl is-enabled fstrim.timer", "enabled"),
    (
        "for tool in imgbased-helper imgbase lvm thin_check dracut mke2fs; do command -v $tool >/dev/null || echo $tool; done",
        "",
    ),
];

/// In percent of the pool. More is written before, and all but that has to be free again.
const TOLERANCE: f64 = 5.0;

/// `ci/image --check` runs this.
fn the_disk_image_is_a_host_with_bios_and_uefi() -> Result<()> {
    let directory = scratch("disk-image-host")?;
    let [disk, other, variables] =
        ["bios.qcow2", "uefi.qcow2", "variables"].map(|name| directory.join(name));

    example::disk(&disk)?;
    let mut vm = start(&disk, "disk-image-bios", None)?;
    has_claims(&mut vm)?;
    a_layer_boots_and_gives_its_space_back(&mut vm)?;
    vm.power_off()?;

    example::disk(&other)?;
    qemu::create_variables(&variables)?;
    let mut vm = start(&other, "disk-image-uefi", Some(&variables))?;
    vm.ok("test -d /sys/firmware/efi")?;
    has_claims(&mut vm)?;
    vm.power_off().map(drop)
}

/// Starts a host on a BIOS, or on UEFI with these variables, and logs in.
fn start(disk: &Path, name: &str, variables: Option<&Path>) -> Result<Vm> {
    let start = Start {
        variables,
        restarts: true,
        ..Start::default()
    };
    let mut vm = Vm::start(name, &[Disk::writable(disk, "host")], &start)?;
    vm.log_in_with(PASSWORD)?;
    Ok(vm)
}

/// Restarts the host, in which `layer` runs then.
fn restart(vm: &mut Vm, layer: &str) -> Result<()> {
    vm.type_line("systemctl reboot")?;
    vm.log_in_with(PASSWORD)?;
    runs(vm, layer)
}

fn has_claims(vm: &mut Vm) -> Result<()> {
    runs(vm, "Base-0.1")?;
    for (command, expected) in CLAIMS {
        let got = vm.ok(command)?;
        ensure!(got == *expected, "`{command}`: {got:?}, not {expected:?}");
    }
    Ok(())
}

/// Fills another layer, and a directory that all layers share, and empties both.
fn a_layer_boots_and_gives_its_space_back(vm: &mut Vm) -> Result<()> {
    let before = used(vm)?;
    assert_eq!(vm.ok("imgbased-helper layer add")?, "Base-0.2");
    vm.ok("imgbased-helper boot once Base-0.2")?;
    restart(vm, "Base-0.2")?;
    for (path, mebibytes) in [("/root/filler", 700), ("/var/tmp/filler", 700)] {
        let fill = format!("dd if=/dev/zero of={path} bs=1M count={mebibytes} conv=fsync");
        vm.ok_for(&fill, SLOW)?;
    }
    let full = used(vm)?;
    ensure!(full - before > 2.0 * TOLERANCE, "{before} %, then {full} %");

    restart(vm, "Base-0.1")?;
    // ext4 gives up the blocks of a file with the transaction in which the file goes.
    vm.ok("rm /var/tmp/filler && sync && fstrim /var && fstrim /")?;
    vm.ok("imgbased-helper layer remove Base-0.2")?;
    let after = used(vm)?;
    ensure!(
        (after - before).abs() <= TOLERANCE,
        "{before} %, then {full} %, and {after} % at last"
    );
    is_clean(vm)
}

/// How full the pool is, in percent.
fn used(vm: &mut Vm) -> Result<f64> {
    // The pool says what it has written down, which it does once a second.
    let text =
        vm.ok("sync; sleep 2; lvm lvs --noheadings -o data_percent HostVG/ImagePool | xargs")?;
    text.parse()
        .with_context(|| format!("a percentage: {text}"))
}

fn a_dvd_makes_a_host_that_updates_and_rolls_back() -> Result<()> {
    let disk = scratch("iso-dvd")?.join("disk.qcow2");
    // A DVD has made it.
    example::disk(&disk)?;
    let mut vm = start(&disk, "iso-dvd-host", None)?;
    runs(&mut vm, "Base-0.1")?;
    is_clean(&mut vm)?;
    vm.ok("echo own >/etc/issue")?;
    vm.ok(&script_with("make-next", &["14"])?)?;
    vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    restart(&mut vm, "Base-1.1")?;
    assert_eq!(
        vm.ok("cat /etc/issue && imgbased-helper layer latest")?,
        "own\nBase-1.1"
    );
    vm.ok_for("imgbased-helper rollback", SLOW)?;
    restart(&mut vm, "Base-0.1")?;
    is_clean(&mut vm)
}

fn a_stick_makes_an_encrypted_host_on_uefi() -> Result<()> {
    let answers = format!("disk={DISK}\nencrypt=yes\npassphrase=a secret\n");
    let (disk, iso) = with_answers(&example::images()?, "iso-stick", &answers)?;
    let variables = disk.with_file_name("variables");
    qemu::create_variables(&variables)?;
    let on_uefi = Start {
        variables: Some(&variables),
        ..Start::default()
    };
    let start = Start {
        medium: Some(Medium::UsbStick(&iso)),
        ..on_uefi
    };
    install(&disk, "iso-stick", &start)?;

    let mut vm = Vm::start("iso-stick-host", &[Disk::writable(&disk, "host")], &on_uefi)?;
    vm.wait_for("Please enter passphrase")?;
    vm.type_line("a secret")?;
    vm.log_in_with(PASSWORD)?;
    runs(&mut vm, "Base-0.1")?;
    // The firmware was told of the disk, as it has a shell that it would start before an unknown one.
    vm.ok("efibootmgr | grep -q '^Boot[0-9A-F]*[*] imgbased'")?;
    is_clean(&mut vm)?;
    vm.power_off().map(drop)
}

/// The firmware gets a script by TFTP; all else comes from a web server.
fn the_network_makes_a_host_on_a_machine_without_a_medium() -> Result<()> {
    let directory = scratch("network")?;
    let [disk, tftp, www] = ["disk.qcow2", "tftp", "www"].map(|name| directory.join(name));
    fs::create_dir(&tftp)?;
    fs::create_dir(&www)?;
    let images = example::images()?;
    for file in [
        "boot.ipxe",
        "vmlinuz",
        "initrd.img",
        "runtime-layout.squash",
    ] {
        symlink(images.join(file), www.join(file)).context("making a link to an image")?;
    }
    fs::write(www.join("answers"), format!("disk={DISK}\n"))?;
    let server = format!("http://{}:{}", web::HOST, web::serve(&www)?);
    fs::write(
        tftp.join("boot.ipxe"),
        format!(
            "#!ipxe\nset server {server}\nset options imgbased.answers={server}/answers\n\
             chain {server}/boot.ipxe\n"
        ),
    )?;
    qemu::create_disk(&disk, "12G")?;
    let start = Start {
        medium: Some(Medium::Network(&tftp)),
        ..Start::default()
    };
    install(&disk, "network", &start)
}
