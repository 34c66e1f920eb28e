//! A host goes back to the layer that came up before: what boots next, what is told, and what is held.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::claims::{is_clean, is_refused, json, restart, runs};
use crate::vm::verbs::ROLL_BACK;
use crate::vm::{Host, Loader, Vm};

scenarios![
    a_rollback_takes_the_newest_choice_back;
    long:
    a_base_that_was_left_is_held_until_somebody_names_a_layer_of_it,
    a_rollback_takes_the_newest_choice_back_under_systemd_boot,
    a_rollback_restarts_into_the_layer_before,
    a_rollback_restarts_into_the_layer_before_under_systemd_boot,
];

/// For a layer of a new base, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// Has the host go back, and claims what boots then, and what the last line says of that.
fn go_back(vm: &mut Vm, arguments: &str, layer: &str) -> Result<String> {
    let told = vm.ok(&format!("imgbased-helper rollback {arguments}"))?;
    ensure!(told.ends_with(&format!("next start: {layer}")), "{told}");
    let status = json(vm, "status")?;
    assert_eq!(status["default"], layer, "{told}");
    assert_eq!(status["trial"], Value::Null, "{told}");
    assert_eq!(status["next"], format!("imgbased-{layer}"), "{told}");
    assert_eq!(status["next_problem"], Value::Null, "{told}");
    Ok(told)
}

fn a_rollback_takes_the_newest_choice_back() -> Result<()> {
    take_back(Loader::Grub, "rollback")
}

fn a_rollback_takes_the_newest_choice_back_under_systemd_boot() -> Result<()> {
    take_back(Loader::SystemdBoot, "rollback-systemd-boot")
}

fn take_back(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running(loader, name)?;
    is_refused(&mut vm, "rollback", "no other layer that has come up")?;
    is_refused(&mut vm, "rollback --to Base-0", "no layer Base-0")?;

    // A trial that waits for the next start.
    vm.ok("imgbased-helper boot default Base-0.2")?;
    let told = go_back(&mut vm, "", "Base-0.1")?;
    ensure!(told.contains("Base-0.2 has waited for a start"), "{told}");
    is_clean(&mut vm)?;

    // What was to boot once does not, and what never came up is tried.
    vm.ok("imgbased-helper boot once Base-0")?;
    let told = vm.ok("imgbased-helper rollback --to Base-0.2")?;
    ensure!(told.contains("Base-0 does not boot once"), "{told}");
    ensure!(told.contains("it is tried 3 times"), "{told}");
    assert_eq!(json(&mut vm, "status")?["trial"]["name"], "Base-0.2");
    go_back(&mut vm, "", "Base-0.1")?;

    // Two layers that have come up; nobody knows when the second did.
    vm.ok("imgbased-helper boot bless Base-0.2")?;
    let told = go_back(&mut vm, "", "Base-0.2")?;
    ensure!(
        told.contains("/etc of Base-0.2 is as it was left"),
        "{told}"
    );
    ensure!(told.contains("layers share Config"), "{told}");
    let told = go_back(&mut vm, "", "Base-0.2")?;
    ensure!(told.contains("is the default already"), "{told}");
    go_back(&mut vm, "--to Base-0.1", "Base-0.1")?;
    is_clean(&mut vm)
}

fn a_base_that_was_left_is_held_until_somebody_names_a_layer_of_it() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "rollback-held")?;
    let vm = &mut vm;
    vm.ok_for(&ROLL_BACK.prepare()?, SLOW)?;
    vm.ok("imgbased-helper boot bless Base-0.2")?;
    let report = json(vm, "rollback --to Base-0.1")?;
    assert_eq!(report["version"], 1);
    assert_eq!(report["from"], "Base-1.1");
    assert_eq!(report["to"], "Base-0.1");
    assert_eq!(report["next"], "imgbased-Base-0.1");
    assert_eq!(report["held"][0], "Base-1");
    assert_eq!(json(vm, "status")?["held"][0], "Base-1");
    assert_eq!(json(vm, "base list")?["bases"][1]["held"], true);
    assert_eq!(vm.ok("imgbased-helper base list")?, "Base-0\nBase-1  held");
    // Nobody has named it.
    go_back(vm, "", "Base-0.2")?;
    go_back(vm, "--to Base-0.1", "Base-0.1")?;
    let told = go_back(vm, "--to Base-1.1", "Base-1.1")?;
    ensure!(told.contains("Base-1 is held no more"), "{told}");
    assert_eq!(
        json(vm, "status")?["held"].as_array().map(Vec::len),
        Some(0)
    );
    is_clean(vm)
}

fn a_rollback_restarts_into_the_layer_before() -> Result<()> {
    restart_into_the_layer_before(Loader::Grub, "rollback-restart")
}

fn a_rollback_restarts_into_the_layer_before_under_systemd_boot() -> Result<()> {
    restart_into_the_layer_before(Loader::SystemdBoot, "rollback-restart-systemd-boot")
}

/// Base-0.2 comes up on trial, and is left once more for Base-0.1.
fn restart_into_the_layer_before(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    vm.ok("echo kept >/etc/mark && imgbased-helper boot default Base-0.2")?;
    restart(&mut vm)?;
    runs(&mut vm, "Base-0.2")?;
    let time = good_at(&mut vm, "Base-0.2")?;
    ensure!(time > good_at(&mut vm, "Base-0.1")?, "{time}");
    vm.type_line("imgbased-helper rollback --apply")?;
    vm.wait_for("next start: Base-0.1")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    assert_eq!(vm.ok("cat /etc/mark")?, "kept");
    assert_eq!(json(&mut vm, "status")?["default"], "Base-0.1");
    // It came up last of all now.
    ensure!(good_at(&mut vm, "Base-0.1")? > time, "{time}");
    is_clean(&mut vm)
}

/// When a layer came up last.
fn good_at(vm: &mut Vm, layer: &str) -> Result<String> {
    vm.ok(&format!(
        "lvm lvs --noheadings -o lv_tags HostVG/{layer} | grep -o 'imgbased:good=[^,]*'"
    ))
}
