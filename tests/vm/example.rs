//! The example image: what `ci/image` makes of it, media with it, and a disk on which it is a host.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::image::RootImage;
use super::qemu::{self, Disk, Medium, Start, Vm};
use super::store::{self, scratch};

/// For starting from a medium, and for copying a whole system, under software emulation.
pub const SLOW: Duration = Duration::from_secs(1800);
pub const PASSWORD: Option<&str> = Some("r");
/// The disk that becomes a host.
pub const DISK: &str = "/dev/disk/by-id/virtio-host";

/// A directory that `ci/image` has filled for somebody. What is in it is tested then.
const GIVEN: &str = "IMGBASED_IMAGES";
const SIZE: &str = "12G";
/// A host on that disk, in which a layer has room for more than the image.
const ANSWERS: &str = "firmware=both\nbase-size=4G\n";
const DISK_IMAGE: &str = "runtime-layout.img";

/// The directory with what `ci/image` makes.
pub fn images() -> Result<PathBuf> {
    if let Some(given) = env::var_os(GIVEN) {
        return Ok(given.into());
    }
    let recipes = [
        include_bytes!("../../ci/debian-base").as_slice(),
        include_bytes!("../../ci/image"),
        include_bytes!("../../ci/iso"),
        include_bytes!("../../ci/boot.ipxe"),
        include_bytes!("../../ci/live-install"),
        include_bytes!("../../ci/live-install.service"),
        // It has the package in it.
        RootImage::prepared()?.key()?,
    ];
    store::cached("iso", &recipes, |new| {
        store::run_script("image", &[Path::new("--no-disk"), new]).map(drop)
    })
}

/// A fresh disk at `path` that starts as the one of `ci/image`.
pub fn disk(path: &Path) -> Result<()> {
    let images = images()?;
    let directory = if env::var_os(GIVEN).is_some() {
        images
    } else {
        let parts = [
            store::key_of(&images)?,
            include_bytes!("example.rs").as_slice(),
        ];
        store::cached("disk-image", &parts, |new| make_disk(&images, new))?
    };
    qemu::create_overlay(path, &directory.join(DISK_IMAGE), "qcow2")
}

/// Has the live system of these images make a host of a blank disk, which is put into the directory `new`. This kernel
/// need not have device-mapper: all of it is made inside a machine.
pub fn make_disk(images: &Path, new: &Path) -> Result<()> {
    let answers = format!("disk={DISK}\n{ANSWERS}");
    let (disk, iso) = with_answers(images, "disk-image", &answers)?;
    let start = Start {
        medium: Some(Medium::Dvd(&iso)),
        ..Start::default()
    };
    install(&disk, "disk-image", &start)?;
    qemu::compress(&disk, &new.join(DISK_IMAGE))
}

/// A blank disk, and a medium of these images that makes a host of it by these answers.
pub fn with_answers(images: &Path, name: &str, answers: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = scratch(name)?;
    let [disk, iso, file] =
        ["disk.qcow2", "medium.iso", "answers"].map(|name| directory.join(name));
    qemu::create_disk(&disk, SIZE)?;
    fs::write(&file, answers).with_context(|| file.display().to_string())?;
    let made = Command::new("ci/iso")
        .arg(images)
        .args([&iso, &file])
        .output()
        .context("starting ci/iso")?;
    ensure!(made.status.success(), "ci/iso: {made:?}");
    Ok((disk, iso))
}

/// The live system installs, and switches the machine off.
pub fn install(disk: &Path, name: &str, start: &Start) -> Result<()> {
    let vm = Vm::start(name, &[Disk::writable(disk, "host")], start)?;
    let said = vm.wait_for_power_off(SLOW)?;
    ensure!(said.contains("starts Base-0.1 by"), "nothing was installed");
    Ok(())
}
