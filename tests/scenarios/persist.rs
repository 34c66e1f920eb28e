//! What an update has left open is settled, and what lives on with newer bases is listed.

use anyhow::{Result, ensure};

use crate::claims::{active_volumes, is_clean, is_refused, json};
use crate::vm::guest::script;
use crate::vm::verbs::{KILLED, interrupted};
use crate::vm::{Host, Loader, Vm};

scenarios![
    conflicts_of_an_update_are_settled_one_by_one,
    a_path_is_the_old_or_the_new_one_whatever_ends_the_verb,
    what_is_carried_is_listed_in_the_volume_of_all_layers,
];

/// The report, and all else that a layer keeps for itself.
const KEPT: &str = "ls -A /usr/lib/sysimage/imgbased";

/// Claims that a path is as in the base of what runs.
fn is_as_in_base(vm: &mut Vm, path: &str) -> Result<()> {
    let told = vm.ok(&format!("imgbased-helper diff --verify --path {path}"))?;
    ensure!(told.is_empty(), "{path}: {told}");
    Ok(())
}

fn open_conflicts(vm: &mut Vm) -> Result<usize> {
    Ok(vm.ok("imgbased-helper persist conflicts")?.lines().count())
}

fn conflicts_of_an_update_are_settled_one_by_one() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "conflicts")?;
    assert_eq!(open_conflicts(&mut vm)?, 0);
    is_refused(&mut vm, "persist keep /etc/issue", "made by no update")?;
    vm.ok(&script("after-update")?)?;
    let before = active_volumes(&mut vm, "HostVG")?;

    let told = vm.ok("imgbased-helper persist conflicts")?;
    assert_eq!(told.lines().count(), 5, "{told}");
    for path in ["/etc/issue", "/etc/own.conf", "/etc/latin\\344"] {
        let has_line = told.lines().any(|line| line.starts_with(path));
        ensure!(has_line, "{path}: {told}");
    }
    let data = json(&mut vm, "persist conflicts")?;
    assert_eq!(
        (&data["layer"], &data["conflicts"][0]["conflict"]),
        (&"Base-0.2".into(), &"both".into())
    );
    let told = vm.ok("imgbased-helper persist diff /etc/issue")?;
    for part in [
        "+before",
        "--- Base-0:/etc/issue",
        "+++ here:/etc/issue",
        "mode 0600",
    ] {
        ensure!(told.contains(part), "{part}: {told}");
    }

    for (arguments, reason) in [
        ("persist take /etc/shells", "is no conflict"),
        ("persist take /root/x", "is not below /etc"),
        ("persist reset /etc/passwd", "usermod(8)"),
        ("persist reset /etc/issue.net", "is a directory: with --yes"),
        ("persist pull /usr/bin/ls", "is of the image"),
        ("persist keep /etc/issue /etc/shells", "is no conflict"),
    ] {
        is_refused(&mut vm, arguments, reason)?;
    }
    let told = vm.ok("imgbased-helper -n persist take /etc/issue")?;
    ensure!(told.contains("cp -aT --remove-destination /run/"), "{told}");
    assert_eq!(vm.ok("cat /etc/issue")?, "ours");
    assert_eq!(open_conflicts(&mut vm)?, 5);

    vm.ok("imgbased-helper persist keep /etc/latin*")?;
    assert_eq!(open_conflicts(&mut vm)?, 4);
    let told = vm.ok(
        "imgbased-helper persist take /etc/issue /etc/host.conf /etc/debian_version /etc/own.conf",
    )?;
    ensure!(told.contains("/etc/own.conf is removed"), "{told}");
    assert_eq!(open_conflicts(&mut vm)?, 0);
    for path in [
        "/etc/issue",
        "/etc/host.conf",
        "/etc/debian_version",
        "/etc/own.conf",
    ] {
        is_as_in_base(&mut vm, path)?;
    }
    is_refused(&mut vm, "persist take /etc/issue", "is no conflict")?;

    vm.ok("chmod 600 /etc/shells")?;
    vm.ok("imgbased-helper persist reset --yes /etc/issue.net /etc/shells")?;
    is_as_in_base(&mut vm, "/etc/issue.net")?;
    is_as_in_base(&mut vm, "/etc/shells")?;
    vm.ok("imgbased-helper persist pull /etc/issue /root/before")?;
    assert_eq!(vm.ok("cat /etc/issue /root/before/file")?, "before\nbefore");
    assert_eq!(vm.ok("stat -c %a /root/before")?, "700");
    assert_eq!(vm.ok(KEPT)?, "merge.json");
    assert_eq!(active_volumes(&mut vm, "HostVG")?, before);
    is_clean(&mut vm)
}

fn a_path_is_the_old_or_the_new_one_whatever_ends_the_verb() -> Result<()> {
    const TAKE: &str = "imgbased-helper persist take /etc/issue /etc/own.conf";
    let (_disk, mut vm) = Host::running(Loader::Grub, "take")?;
    vm.ok(&script("after-update")?)?;
    let before = active_volumes(&mut vm, "HostVG")?;
    // Activated, mounted, changed, unmounted; that it stays active is no failure; off the list.
    vm.ok("mkdir -p /run/imgbased/mounts/Base-0")?;
    for step in [1, 2, 3, 4, 6] {
        let got = vm.run(&interrupted(&format!("IMGBASED_FAIL_AT={step}"), TAKE))?;
        assert_eq!(got.status, 1, "{step}: {got:?}");
        assert_eq!(
            vm.ok("cat /etc/issue /etc/own.conf")?,
            "ours\nours",
            "{step}"
        );
        assert_eq!(vm.ok(KEPT)?, "merge.json", "{step}");
        assert_eq!(open_conflicts(&mut vm)?, 5, "{step}");
        assert_eq!(active_volumes(&mut vm, "HostVG")?, before, "{step}");
    }
    vm.ok(TAKE)?;
    is_as_in_base(&mut vm, "/etc/issue")?;
    assert_eq!(open_conflicts(&mut vm)?, 3);

    // After it was changed.
    let killed = interrupted(
        "IMGBASED_KILL_AFTER=3",
        "imgbased-helper persist take /etc/host.conf",
    );
    let got = vm.run(&killed)?;
    assert_eq!(got.status, KILLED, "{got:?}");
    is_as_in_base(&mut vm, "/etc/host.conf")?;
    assert_eq!(open_conflicts(&mut vm)?, 3);
    vm.ok("imgbased-helper persist take /etc/host.conf")?;
    assert_eq!(open_conflicts(&mut vm)?, 2);
    assert_eq!(vm.ok(KEPT)?, "merge.json");
    vm.ok("lvm lvchange -qq -an HostVG/Base-0")?;
    is_clean(&mut vm)
}

fn what_is_carried_is_listed_in_the_volume_of_all_layers() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "lists")?;
    assert_eq!(vm.ok("imgbased-helper persist list")?, "");
    vm.ok("mkdir -p /srv/www /root/.ssh && touch /srv/www/a.conf /srv/www/b")?;
    let told = vm.ok("imgbased-helper -n persist add /root/.ssh")?;
    ensure!(told.contains("Config/files <<"), "{told}");
    assert_eq!(vm.ok("imgbased-helper persist list")?, "");
    vm.ok("imgbased-helper persist add /root/.ssh '/srv/www/*.conf'")?;
    let told = vm.ok("imgbased-helper persist add /root/.ssh/")?;
    assert_eq!(told, "/root/.ssh is listed already");
    for (rule, reason) in [
        ("/usr/bin/x", "is of the image"),
        ("/proc/1", "is of the image"),
        ("root/x", "does not begin with a slash"),
        ("/root/../x", "has `..` in it"),
        ("'/*'", "names no directory"),
    ] {
        is_refused(&mut vm, &format!("persist add /root/good {rule}"), reason)?;
    }
    assert_eq!(
        vm.ok("imgbased-helper persist list --matches")?,
        "/root/.ssh\n  /root/.ssh\n/srv/www/*.conf\n  /srv/www/a.conf"
    );
    // Nothing of it stays mounted.
    assert_eq!(vm.run("findmnt -S /dev/mapper/HostVG-Config")?.text, "");

    // A person has it mounted, and has written another list.
    vm.ok("mkdir /config && mount /dev/HostVG/Config /config && mkdir /config/files.d")?;
    vm.ok("printf '# ours\\n/opt/app\\n/usr/bin/x\\n' >/config/files.d/app")?;
    let data = json(&mut vm, "persist list 2>/dev/null")?;
    assert_eq!(
        (&data["rules"][2]["rule"], &data["rules"][2]["list"]),
        (&"/opt/app".into(), &"files.d/app".into())
    );
    let told = vm.ok("imgbased-helper persist list 2>&1 >/dev/null")?;
    ensure!(
        told.contains("files.d/app of Config: /usr/bin/x is of the image"),
        "{told}"
    );
    is_refused(
        &mut vm,
        "persist remove /opt/app /opt/x",
        "/opt/x is not listed",
    )?;
    vm.ok("imgbased-helper persist remove /opt/app /root/.ssh 2>/dev/null")?;
    assert_eq!(vm.ok("cat /config/files.d/app")?, "# ours\n/usr/bin/x");
    vm.ok("umount /config")?;
    assert_eq!(
        vm.ok("imgbased-helper persist list 2>/dev/null")?,
        "/srv/www/*.conf"
    );

    // A group of an earlier time has no such volume.
    vm.ok("lvm lvrename -qq HostVG Config Other")?;
    vm.ok("imgbased-helper persist list")?;
    is_refused(
        &mut vm,
        "persist add /root/x",
        "HostVG has no volume Config",
    )?;
    vm.ok("lvm lvrename -qq HostVG Other Config")?;
    is_clean(&mut vm)
}
