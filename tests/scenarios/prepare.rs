//! What the scenarios start from. It is made here, so that no scenario waits for another lane, and so that
//! its time shows.

use anyhow::Result;

use crate::vm::{Host, Loader, Rescue, RootImage, debian};

scenarios![
    the_host_with_grub_runs,
    the_images_of_other_releases_are_made,
    the_host_with_grub_on_uefi_runs,
    the_host_with_systemd_boot_runs,
    the_rescue_system_runs,
];

fn the_host_with_grub_runs() -> Result<()> {
    Host::saved(Loader::Grub).map(drop)
}

fn the_host_with_grub_on_uefi_runs() -> Result<()> {
    Host::saved(Loader::GrubOnUefi).map(drop)
}

fn the_host_with_systemd_boot_runs() -> Result<()> {
    Host::saved(Loader::SystemdBoot).map(drop)
}

fn the_images_of_other_releases_are_made() -> Result<()> {
    let suites = ["bookworm", "forky"];
    // Another lane builds the package meanwhile, which has one processor busy for a minute.
    for suite in suites {
        debian(suite)?;
    }
    for suite in suites {
        RootImage::of(suite)?;
    }
    Ok(())
}

fn the_rescue_system_runs() -> Result<()> {
    Rescue::prepared().map(drop)
}
