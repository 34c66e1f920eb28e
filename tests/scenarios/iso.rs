//! The example image on a medium: the live system on it starts from a DVD and from a stick, and makes a host of a
//! blank disk by answers that nobody has to give.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{is_clean, runs};
use crate::vm::guest::script;
use crate::vm::{Disk, Medium, RootImage, Start, Vm, qemu, scratch, store};

scenarios![
    ; long:
    a_dvd_makes_a_host_that_updates_and_rolls_back,
    a_stick_makes_an_encrypted_host_on_uefi,
];

/// For starting from a medium, and for copying a whole system, under software emulation.
const SLOW: Duration = Duration::from_secs(1800);
/// That of the example image.
const PASSWORD: Option<&str> = Some("r");
const DISK: &str = "/dev/disk/by-id/virtio-host";

/// The directory that `ci/image` fills.
fn images() -> Result<PathBuf> {
    let recipes = [
        include_bytes!("../../ci/debian-base").as_slice(),
        include_bytes!("../../ci/image"),
        include_bytes!("../../ci/iso"),
        include_bytes!("../../ci/live-install"),
        include_bytes!("../../ci/live-install.service"),
        // It has the package in it.
        RootImage::prepared()?.key()?,
    ];
    store::cached("iso", &recipes, |new| {
        store::run_script("image", &[new]).map(drop)
    })
}

/// A blank disk, and a medium that makes a host of it by these answers.
fn with_answers(name: &str, answers: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = scratch(name)?;
    let [disk, iso, file] =
        ["disk.qcow2", "medium.iso", "answers"].map(|name| directory.join(name));
    qemu::create_disk(&disk, "12G")?;
    fs::write(&file, answers)?;
    let made = Command::new("ci/iso")
        .arg(images()?)
        .args([&iso, &file])
        .output()
        .context("starting ci/iso")?;
    ensure!(made.status.success(), "{made:?}");
    Ok((disk, iso))
}

/// The live system installs, and switches the machine off.
fn install(disk: &Path, name: &str, start: &Start) -> Result<()> {
    let vm = Vm::start(name, &[Disk::writable(disk, "host")], start)?;
    let said = vm.wait_for_power_off(SLOW)?;
    ensure!(said.contains("starts Base-0.1 by"), "nothing was installed");
    Ok(())
}

fn a_dvd_makes_a_host_that_updates_and_rolls_back() -> Result<()> {
    let answers = format!("disk={DISK}\nfirmware=both\n");
    let (disk, iso) = with_answers("iso-dvd", &answers)?;
    let start = Start {
        medium: Some(Medium::Dvd(&iso)),
        ..Start::default()
    };
    install(&disk, "iso-dvd", &start)?;

    let mut vm = Vm::start(
        "iso-dvd-host",
        &[Disk::writable(&disk, "host")],
        &Start {
            restarts: true,
            ..Start::default()
        },
    )?;
    vm.log_in_with(PASSWORD)?;
    runs(&mut vm, "Base-0.1")?;
    assert_eq!(vm.ok("findmnt -no SOURCE /var")?, "/dev/mapper/HostVG-var");
    is_clean(&mut vm)?;
    vm.ok("echo own >/etc/issue")?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    vm.type_line("systemctl reboot")?;
    vm.log_in_with(PASSWORD)?;
    runs(&mut vm, "Base-1.1")?;
    assert_eq!(
        vm.ok("cat /etc/issue && imgbased-helper layer latest")?,
        "own\nBase-1.1"
    );
    vm.ok_for("imgbased-helper rollback", SLOW)?;
    vm.type_line("systemctl reboot")?;
    vm.log_in_with(PASSWORD)?;
    runs(&mut vm, "Base-0.1")?;
    is_clean(&mut vm)
}

fn a_stick_makes_an_encrypted_host_on_uefi() -> Result<()> {
    let answers = format!("disk={DISK}\nencrypt=yes\npassphrase=a secret\n");
    let (disk, iso) = with_answers("iso-stick", &answers)?;
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
    is_clean(&mut vm)?;
    vm.power_off().map(drop)
}
