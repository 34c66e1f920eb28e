//! What an update has left open is settled, and what lives on with newer bases is listed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{active_volumes, has_come_up, has_root, is_clean, is_refused, json, restart};
use crate::vm::guest::script;
use crate::vm::verbs::{KILLED, interrupted};
use crate::vm::{Host, Loader, Vm};

scenarios![
    ;
    turns:
    conflicts_of_an_update_are_settled_one_by_one,
    a_path_is_the_old_or_the_new_one_whatever_ends_the_verb,
    what_is_carried_is_listed_in_the_volume_of_all_layers;
    long:
    a_package_of_the_admin_comes_along,
];

/// For copying an image and installing packages, under software emulation.
const SLOW: Duration = Duration::from_secs(1200);

/// The report, and all else that a layer keeps for itself.
const KEPT: &str = "ls -A /usr/lib/sysimage/imgbased";

/// Claims that a path is as in the base of what runs.
fn is_as_in_base(vm: &mut Vm, path: &str) -> Result<()> {
    let told = vm.run(&format!("imgbased-helper diff --verify --path {path}"))?;
    let is_nowhere = told.text.starts_with("error: neither ");
    ensure!(is_nowhere || told.text.is_empty(), "{path}: {told:?}");
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

    // A group of an earlier time has no such volume, and gets one when it is needed.
    vm.ok("lvm lvrename -qq HostVG Config Other")?;
    assert_eq!(vm.ok("imgbased-helper persist list")?, "");
    is_refused(
        &mut vm,
        "persist remove /root/x",
        "HostVG has no volume Config",
    )?;
    vm.ok("imgbased-helper persist add /root/x")?;
    assert_eq!(vm.ok("imgbased-helper persist list")?, "/root/x");
    vm.ok("lvm lvremove -qq --yes HostVG/Config && lvm lvrename -qq HostVG Other Config")?;
    is_clean(&mut vm)
}

/// What is so in the new layer, whose /etc was merged twice: a command, and what it prints.
const WITH_PACKAGES: &[(&str, &str)] = &[
    ("own-tool", "of own-tool"),
    ("own-user", "of own-user"),
    ("cat /etc/later", "later"),
    // What the admin has changed and removed, and what only came with the package.
    ("cat /etc/own-tool.conf", "of the admin"),
    ("test ! -e /etc/own-tool.d/extra && echo gone", "gone"),
    ("cat /etc/own-user.conf", "of own-user"),
    (
        "dpkg-query -W -f '${Status}\\n' own-tool own-user | sort -u",
        "install ok installed",
    ),
    // Nothing was to be started.
    ("cat /usr/share/own-tool.policy", "101"),
    ("ls /usr/sbin/policy-rc.d 2>/dev/null || echo gone", "gone"),
    // Nothing is left of those that failed.
    (
        "ls /usr/bin/own-broken /etc/own-broken.conf /usr/bin/own-file 2>/dev/null || echo gone",
        "gone",
    ),
    (
        "dpkg-query -W own-broken own-clash own-file >/dev/null 2>&1 || echo none",
        "none",
    ),
    ("dpkg --audit | wc -l", "0"),
    (
        "dpkg -S /usr/bin/ls /bin/ls 2>/dev/null | cut -d : -f 1 | sort -u",
        "coreutils",
    ),
];

fn a_package_of_the_admin_comes_along() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "packages")?;
    vm.ok(&script("make-next")?)?;
    vm.ok(&script("make-packages")?)?;
    let told = vm.ok("imgbased-helper -n persist add --package /root/packages/own-tool.deb")?;
    ensure!(
        told.contains("install -m 0644 /root/packages/own-tool.deb /run/"),
        "{told}"
    );
    assert_eq!(vm.ok("imgbased-helper persist list")?, "");
    for (package, reason) in [
        (
            "/root/packages/own-tool/DEBIAN/control",
            "neither of dpkg nor of rpm",
        ),
        ("/dev/zero", "is no file"),
        ("/root/packages/none.deb", "No such file"),
        ("'a b'", "nor the name of one"),
        ("no-such-package", "give its file"),
    ] {
        is_refused(
            &mut vm,
            &format!("persist add --package own-tool {package}"),
            reason,
        )?;
    }
    assert_eq!(vm.ok("imgbased-helper persist list")?, "");
    // By its name, from the cache of apt.
    vm.ok("imgbased-helper persist add --package own-tool")?;
    vm.ok("(cd /root/packages && imgbased-helper persist add --package own-user.deb own-broken.deb own-clash.deb \
           own-file.deb debianutils.deb)")?;
    let told = vm.ok("imgbased-helper persist add --package /root/packages/own-tool.deb")?;
    assert_eq!(told, "package own-tool 1.0 is kept already");
    let told = vm.ok("imgbased-helper persist list")?;
    assert_eq!(told.lines().count(), 6, "{told}");
    ensure!(told.contains("package own-user 1.0 all, "), "{told}");
    let data = json(&mut vm, "persist list")?;
    let sum = vm.ok("sha256sum /root/packages/debianutils.deb | cut -d ' ' -f 1")?;
    assert_eq!(
        (&data["packages"][0]["name"], &data["packages"][0]["sha256"]),
        (&"debianutils".into(), &sum.into())
    );

    let told = vm.run("imgbased-helper update --check /mnt/next")?.text + "\n";
    for line in [
        "package own-tool 1.0 comes along\n",
        "package own-user 1.0 comes along\n",
        "package own-clash 1.0 does not come along: it is in conflict with e2fsprogs ",
        "package debianutils 0 is in the image, as ",
    ] {
        ensure!(told.contains(line), "{line}: {told}");
    }
    // One that is not what it was is not installed.
    vm.ok("mkdir -p /config && mount /dev/HostVG/Config /config && \
           echo x | tee -a /config/packages/debianutils@0@* && umount /config && rmdir /config")?;
    let told = vm.run("imgbased-helper --json update --check /mnt/next")?;
    let told: serde_json::Value = serde_json::from_str(&told.text).context("JSON")?;
    let kept = told["kept_packages"].as_array().context("packages")?;
    let changed = kept.iter().find(|of| of["name"] == "debianutils");
    let changed = changed.context("a package")?;
    ensure!(changed["result"] == "refused", "{told}");
    vm.ok("imgbased-helper persist remove --package debianutils")?;
    is_refused(
        &mut vm,
        "persist remove --package own-user debianutils",
        "debianutils is not kept",
    )?;

    let said = vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    for (package, reason) in [
        ("own-broken", "post-installation script"),
        ("own-clash", "in conflict with e2fsprogs"),
        ("own-file", "trying to overwrite "),
    ] {
        let begin = format!("package {package} 1.0 does not come along: ");
        let line = said.lines().find(|line| line.starts_with(&begin));
        ensure!(line.is_some_and(|line| line.contains(reason)), "{said}");
    }
    for line in [
        "package own-tool 1.0 comes along",
        "package own-user 1.0 comes along",
    ] {
        ensure!(said.contains(line), "{said}");
    }
    let missing = serde_json::json!(["own-broken", "own-clash", "own-file"]);
    let status = json(&mut vm, "status")?;
    assert_eq!(status["update"]["missing_packages"], missing);
    is_clean(&mut vm)?;
    // Now /etc is merged once more.
    vm.ok("echo later >/etc/later")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    for (command, wanted) in WITH_PACKAGES {
        let found = vm.run(command)?;
        assert_eq!(found.text.trim(), *wanted, "{command}");
    }
    let status = json(&mut vm, "status")?;
    assert_eq!(
        (
            &status["missing_packages"]["layer"],
            &status["missing_packages"]["packages"]
        ),
        (&"Base-0.1".into(), &missing)
    );
    is_clean(&mut vm)
}
