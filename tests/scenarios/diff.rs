//! What a layer has changed is shown, and nothing else.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{active_volumes, is_clean, is_refused, json};
use crate::vm::guest::script;
use crate::vm::{Host, Loader};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

scenarios![
    ;
    turns:
    what_a_layer_has_changed_is_told_path_by_path,
    what_lives_on_with_a_newer_base_is_told_before,
];

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
        "M ..l... /etc/alternatives/awk",
    ] {
        ensure!(told.lines().any(|told| told == line), "{line}: {told}");
    }
    // Not what was there, nor what is mounted over the layer.
    ensure!(
        !told.contains("/etc/passwd-") && !told.contains("/etc/group"),
        "{told}"
    );
    for path in ["/mnt/below/hidden", "/etc/isue"] {
        let command = format!("diff --exit-code --path {path}");
        is_refused(&mut vm, &command, &format!("has {path}"))?;
    }
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
    let content = vm.ok("imgbased-helper diff --content --path /etc/issue")?;
    ensure!(
        content.contains("--- Base-0:/etc/issue\n") && content.contains("\n+more"),
        "{content}"
    );
    let limited = vm.ok("imgbased-helper diff --content --max-size 1 --path /etc/issue")?;
    assert_eq!(
        limited,
        "M .c.... /etc/issue\nnot shown: larger than --max-size"
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

fn what_lives_on_with_a_newer_base_is_told_before() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "persist")?;
    // The next image has a few files of this one, and another greeting.
    vm.ok(&script("make-tree")?)?;
    vm.ok(
        "cp -a /etc/issue /etc/shells /etc/passwd /etc/group /etc/shadow /root/tree/etc/ && \
           echo next >/root/tree/etc/issue",
    )?;
    vm.ok(&script("change-layer")?)?;
    vm.ok_for("imgbased-helper base add --name Next /root/tree", SLOW)?;
    let before = active_volumes(&mut vm, "HostVG")?;
    let told = vm.ok("imgbased-helper persist preview")?;
    let verdict = |path: &str| {
        let mut lines = told.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(of, _)| *of == path);
        found.map(|(_, verdict)| verdict.trim().to_owned())
    };
    for (path, wanted) in [
        (
            "/etc/issue",
            "conflict: here modified, in the base modified; the result is ours (content)",
        ),
        ("/etc/shells", "kept (mode)"),
        ("/etc/two\\nlines", "kept"),
        (
            "/etc/profile",
            "conflict: here modified, in the base deleted; the result is ours",
        ),
        ("/etc/machine-id", "of this host"),
    ] {
        assert_eq!(verdict(path).as_deref(), Some(wanted), "{path}: {told}");
    }
    for silent in [
        "/etc/passwd",
        "/etc/debian_version",
        "/etc/ld.so.cache",
        "/etc/bash.bashrc",
    ] {
        assert_eq!(verdict(silent), None, "{silent}: {told}");
    }

    let data = json(&mut vm, "persist preview --to Next")?;
    assert_eq!(
        (&data["old"], &data["new"]),
        (&"Base-0".into(), &"Next".into())
    );
    let rows = data["merge"].as_array().context("rows")?;
    let issue = rows.iter().find(|row| row["path"] == "/etc/issue");
    assert_eq!(issue.context("a row")?["conflict"], "both");
    // With its own base there is nothing that both have changed.
    let same = json(&mut vm, "persist preview --to Base-0")?;
    assert_eq!(same["counts"]["conflicts"], 0);
    ensure!(same["counts"]["kept"].as_u64() > Some(3), "{same}");
    is_refused(&mut vm, "persist preview --to Base-9", "has no base Base-9")?;
    vm.ok("imgbased-helper -n persist preview")?;
    assert_eq!(active_volumes(&mut vm, "HostVG")?, before);
    is_clean(&mut vm)
}
