//! What a layer has changed is shown, and nothing else.

use anyhow::{Context, Result, ensure};

use crate::claims::{active_volumes, is_clean, is_refused, json};
use crate::vm::guest::script;
use crate::vm::{Host, Loader};

scenarios![what_a_layer_has_changed_is_told_path_by_path];

fn what_a_layer_has_changed_is_told_path_by_path() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "diff")?;
    let layer = vm.ok("imgbased-helper layer current")?;
    vm.ok(&script("change-layer")?)?;
    let before = active_volumes(&mut vm, "HostVG")?;
    let told = vm.ok("imgbased-helper diff --path /etc")?;
    for line in [
        "M .c.... /etc/issue",
        "M ...m.. /etc/shells",
        "M ....o. /etc/profile",
        "M .....x /etc/host.conf",
        "D ...... /etc/debian_version",
        "M t..... /etc/issue.net",
        "A ...... /etc/two\\nlines",
        "M ..l... /etc/os-release",
    ] {
        ensure!(told.lines().any(|told| told == line), "{line}: {told}");
    }
    // Not what was there, nor what is mounted over the layer.
    ensure!(
        !told.contains("/etc/passwd-") && !told.contains("/etc/group"),
        "{told}"
    );
    assert_eq!(vm.ok("imgbased-helper diff --path /mnt/below/hidden")?, "");
    // To read everything finds no more.
    assert_eq!(vm.ok("imgbased-helper diff --verify --path /etc")?, told);
    assert_eq!(
        vm.ok(&format!("imgbased-helper diff Base-0 {layer} --path /etc"))?,
        told
    );
    let only = vm.run("imgbased-helper diff --exit-code --path /etc/issue")?;
    assert_eq!(
        (only.status, only.text.as_str()),
        (3, "M .c.... /etc/issue")
    );
    let none = vm.run("imgbased-helper diff --exit-code --path /etc --exclude '*'")?;
    assert_eq!((none.status, none.text.as_str()), (0, ""));

    let data = json(&mut vm, "diff --path /etc --packages")?;
    let entries = data["entries"].as_array().context("entries")?;
    let entry = entries.iter().find(|entry| entry["path"] == "/etc/shells");
    let entry = entry.context("the entry of a path")?;
    assert_eq!(entry["change"], "modified");
    assert_eq!(entry["parts"][0], "mode");
    assert_eq!(
        (&entry["a"]["mode"], &entry["b"]["mode"]),
        (&"0644".into(), &"0600".into())
    );
    assert_eq!(data["packages"].as_array().map(Vec::len), Some(0));
    assert_eq!(
        data["counts"]["modified"].as_u64(),
        Some(told.matches("\nM ").count() as u64 + u64::from(told.starts_with('M')))
    );

    let second = vm.ok("imgbased-helper layer add")?;
    let told = vm.ok(&format!("imgbased-helper diff Base-0 {second}"))?;
    // Its own line for the root, if that.
    ensure!(
        told.lines().all(|line| line.ends_with("/etc/fstab")),
        "{told}"
    );
    is_refused(&mut vm, "diff Base-0 Base-0", "compared with itself")?;
    is_refused(&mut vm, "diff Base-0 Config", "no base or layer Config")?;
    vm.ok("imgbased-helper -n diff")?;
    assert_eq!(active_volumes(&mut vm, "HostVG")?, before);
    is_clean(&mut vm)
}
