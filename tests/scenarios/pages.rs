//! What the manual pages and the README have people type, typed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{has_come_up, has_root, is_clean, json, restart, runs, works_every_day};
use crate::vm::guest::script_with;
use crate::vm::readme::{commands, examples};
use crate::vm::{Disk, Host, HostDisk, Loader, Rescue, Vm};

/// A base that is read as a whole, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

scenarios![
    ;
    turns:
    the_readme_has_a_layer_that_fails_given_up;
    long:
    the_examples_of_the_pages_run,
    the_readme_makes_a_layer_where_none_boots,
    the_readme_brings_back_a_lost_menu,
    debian_12_follows_the_readme_with_grub_on_bios,
    debian_12_follows_the_readme_with_grub_on_uefi,
    debian_12_follows_the_readme_with_systemd_boot,
    debian_13_follows_the_readme_with_grub_on_uefi,
    debian_testing_follows_the_readme_with_grub_on_bios,
    debian_testing_follows_the_readme_with_systemd_boot,
];

fn the_examples_of_the_pages_run() -> Result<()> {
    let saved = Host::saved(Loader::Grub)?;
    let disk = saved.disk("pages")?;
    let examples = examples()?;
    ensure!(examples.len() > 10, "{} pages", examples.len());
    for (page, commands) in examples {
        let mut vm = saved.again(&disk)?;
        vm.say(&page);
        for command in commands {
            vm.ok_for(&command, SLOW).with_context(|| page.clone())?;
        }
    }
    Ok(())
}

fn the_readme_has_a_layer_that_fails_given_up() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "step-2")?;
    vm.ok("imgbased-helper boot default Base-0.2")?;
    walk(&mut vm, "### Step 2: another layer")?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    ensure!(status["trial"].is_null(), "{status}");
    is_clean(&mut vm)
}

fn the_readme_makes_a_layer_where_none_boots() -> Result<()> {
    let (disk, vm) = Host::running(Loader::Grub, "step-3")?;
    vm.power_off()?;
    let mut vm = rescue("step-3", &disk)?;
    for layer in ["Base-0.1", "Base-0.2"] {
        vm.ok(&script_with("wipe", &[layer])?)?;
    }
    vm.power_off()?;

    let mut vm = disk.boot_unattended("factory")?;
    vm.menu()?.choose("Base-0")?;
    vm.log_in()?;
    walk(&mut vm, "### Step 3: the factory state")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-0.3")?;
    has_come_up(&mut vm)?;
    assert_eq!(json(&mut vm, "status")?["default"], "Base-0.3");
    vm.power_off().map(drop)
}

fn the_readme_brings_back_a_lost_menu() -> Result<()> {
    let (disk, vm) = Host::running(Loader::Grub, "step-5")?;
    vm.power_off()?;
    let mut vm = rescue("step-5", &disk)?;
    vm.ok("mkdir -p /mnt/boot && mount /dev/vdb2 /mnt/boot")?;
    vm.ok("rm -r /mnt/boot/loader/entries/* /mnt/boot/grub/imgbased.cfg && umount /mnt/boot")?;
    walk(&mut vm, "### Step 5: no menu, or no entries in it")?;
    vm.ok("sync")?;
    vm.power_off()?;

    let mut vm = disk.boot("mended")?;
    vm.log_in()?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    is_clean(&mut vm)?;
    vm.power_off().map(drop)
}

fn debian_12_follows_the_readme_with_grub_on_bios() -> Result<()> {
    follows_the_readme("bookworm", Loader::Grub, "readme-12-bios")
}

fn debian_12_follows_the_readme_with_grub_on_uefi() -> Result<()> {
    follows_the_readme("bookworm", Loader::GrubOnUefi, "readme-12-uefi")
}

fn debian_12_follows_the_readme_with_systemd_boot() -> Result<()> {
    follows_the_readme("bookworm", Loader::SystemdBoot, "readme-12-systemd")
}

fn debian_13_follows_the_readme_with_grub_on_uefi() -> Result<()> {
    follows_the_readme("trixie", Loader::GrubOnUefi, "readme-13-uefi")
}

fn debian_testing_follows_the_readme_with_grub_on_bios() -> Result<()> {
    follows_the_readme("forky", Loader::Grub, "readme-testing-bios")
}

fn debian_testing_follows_the_readme_with_systemd_boot() -> Result<()> {
    follows_the_readme("forky", Loader::SystemdBoot, "readme-testing-systemd")
}

/// Makes a host of a release in a system of that release, with the package and the README alone, starts it, and goes on
/// with what is done every day. [`Host::prepared`] and its kin have done so with the others.
fn follows_the_readme(suite: &'static str, loader: Loader, name: &str) -> Result<()> {
    let mut vm = Host::of_release(suite, loader, name)?.boot("first")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    works_every_day(&mut vm)?;
    vm.power_off().map(drop)
}

/// Does what the README says below `heading`, but for the restart at the end. Its disk is another one in a rescue
/// system.
fn walk(vm: &mut Vm, heading: &str) -> Result<()> {
    let mut commands = commands(heading)?;
    commands.retain(|command| command != "systemctl reboot");
    for command in commands {
        vm.ok(&command.replace("/dev/vdc", "/dev/vdb"))?;
    }
    Ok(())
}

fn rescue(name: &str, disk: &HostDisk) -> Result<Vm> {
    Rescue::prepared()?.with(
        &format!("{name}-rescue"),
        Disk::writable(disk.path(), "host"),
    )
}
