//! A newer image becomes the next layer, with what the admin has changed, and is tried.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{has_come_up, has_root, is_clean, is_refused, json, restart};
use crate::vm::guest::{script, script_with};
use crate::vm::{Host, HostDisk, Loader, Vm};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

scenarios![
    an_update_takes_the_configuration_along_and_is_tried;
    long:
    what_was_changed_since_an_update_comes_along_and_nothing_else_is_read,
    a_restart_after_an_update_without_a_change_tells_of_no_loss,
    what_is_changed_where_the_old_layer_runs_once_more_comes_along,
    what_is_changed_comes_along_where_boot_is_mounted_on_demand,
    an_update_of_a_host_with_systemd_boot,
    a_host_that_was_adopted_keeps_what_it_had,
    an_update_that_does_not_come_up_is_not_taken_again,
    an_update_in_the_place_of_another_falls_back_to_what_runs,
    an_update_makes_the_initramfs_anew_for_what_the_host_has_changed,
    what_an_update_puts_into_a_layer_gets_the_labels_of_its_policy,
    packages_of_rpm_that_do_not_come_along_are_told,
    where_no_default_is_set_an_update_is_tried,
];

/// As after a lost grubenv. What runs becomes the default meanwhile, which is no choice of another command.
fn where_no_default_is_set_an_update_is_tried() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "update-no-default")?;
    vm.ok(&script("make-extra")?)?;
    vm.ok("grub-editenv - unset saved_entry")?;
    vm.ok_for("imgbased-helper update --name Extra /root/Extra", SLOW)?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Extra+1");
    vm.ok("systemctl is-active imgbased-update.service")?;
    is_clean(&mut vm)
}

/// What is so in the new layer: a command, and what it prints.
const AFTERWARDS: &[(&str, &str)] = &[
    // What the merge after that has left of the libraries.
    ("test -s /etc/ld.so.cache && echo found", "found"),
    // What the admin has changed.
    (
        "id admin",
        "uid=1000(admin) gid=1000(admin) groups=1000(admin)",
    ),
    ("stat -c %a /etc/shells", "600"),
    ("cat /etc/issue", "changed"),
    (
        "ls /etc/networks 2>&1 | wc -l && test ! -e /etc/networks",
        "1",
    ),
    (
        "readlink /etc/systemd/system/apt-daily.service",
        "/dev/null",
    ),
    ("cat /proc/sys/kernel/sysrq", "1"),
    ("cat /etc/later", "later"),
    (
        "grep -o imgbased.test=later /proc/cmdline",
        "imgbased.test=later",
    ),
    ("ls -A / | grep -c again", "0"),
    ("cat /root/key", "key"),
    ("test ! -e /root/gone && echo gone", "gone"),
    ("cat /opt/own/data", "later"),
    (
        "stat -c %U /home/admin/later && cat /home/admin/later",
        "root\nlater",
    ),
    ("getent passwd bob | cut -d : -f 1", "bob"),
    // The shell that root has had is not there.
    ("getent passwd root | grep -c own-shell", "0"),
    (
        "grep -c '\"pending\": false' /usr/lib/sysimage/imgbased/merge.json",
        "1",
    ),
    // What the image has.
    ("grep -c IMAGE_VERSION=2 /etc/os-release", "1"),
    ("cat /etc/issue.net/below", "below"),
    ("test ! -e /etc/debian_version && echo gone", "gone"),
    ("systemctl is-active second.service", "active"),
    // Its account has made room for the person's, and its files with it.
    ("stat -c %U /var/lib/second", "second"),
    ("id -u second | grep -cx 1000", "0"),
    ("systemctl is-system-running --wait", "running"),
];

fn an_update_takes_the_configuration_along_and_is_tried() -> Result<()> {
    update_and_restart(Loader::Grub, "update")
}

fn an_update_of_a_host_with_systemd_boot() -> Result<()> {
    update_and_restart(Loader::SystemdBoot, "update-systemd-boot")
}

fn update_and_restart(loader: Loader, name: &str) -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(loader, name)?;
    vm.ok(&script("change-host")?)?;
    vm.ok(&script("make-next")?)?;
    vm.ok("echo own >/srv/both && echo image >/mnt/next/srv/both && mkfifo /srv/pipe")?;
    let before = state(&mut vm)?;

    let told = vm.run("imgbased-helper update --check /mnt/next")?;
    ensure!(told.status == 3, "{told:?}");
    ensure!(
        told.text.contains("version 2; is new to this host"),
        "{told:?}"
    );
    for part in [
        "2 in conflict",
        "Else   1 path not carried, 1 in conflict\n",
        "/srv/both   conflict: here added, in the base added; the result is ours (content)\n",
        "/srv/pipe   not carried",
    ] {
        ensure!(told.text.contains(part), "{part}: {told:?}");
    }
    let told = vm.run("imgbased-helper --json update --check /mnt/next")?;
    let told: serde_json::Value = serde_json::from_str(&told.text).context("JSON")?;
    assert_eq!(
        (&told["state"], &told["available"]),
        (&"newer".into(), &true.into())
    );
    assert_eq!(state(&mut vm)?, before);

    let said = vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    for line in [
        "Base-1.1 is a layer of Base-1, which holds /mnt/next",
        "Base-1.1 becomes the default when it has come up; it is tried 3 times, then Base-0.1 boots again",
    ] {
        ensure!(said.contains(line), "{said}");
    }
    let status = json(&mut vm, "status")?;
    assert_eq!(
        (&status["default"], &status["trial"]["name"]),
        (&"Base-0.1".into(), &"Base-1.1".into())
    );
    is_refused(&mut vm, "update /", "waits for a restart")?;
    is_clean(&mut vm)?;
    // It finds its libraries, and brings up to date what it keeps of /usr when it starts.
    let look = "test -s etc/ld.so.cache; ls etc/.updated var/.updated 2>/dev/null || echo none";
    assert_eq!(
        vm.ok(&script_with("look-into", &["Base-1.1", look])?)?,
        "none"
    );
    // What is edited from now on comes along as well.
    vm.ok("echo later >/etc/later && sed -i 's/$/ imgbased.test=later/' /etc/kernel/cmdline")?;
    assert_eq!(json(&mut vm, "status")?["update"]["edited"], 3);
    vm.ok("useradd bob && echo later | tee /opt/own/data >/home/admin/later && rm /root/gone")?;
    // Nothing of this does, and that is told.
    vm.ok("mkdir /data && echo own >/data/x")?;
    vm.ok(
        "printf '#!/bin/sh\\nexec /bin/sh \"$@\"\\n' >/usr/bin/own-shell && chmod 755 /usr/bin/own-shell && \
         sed -i '/^root:/s|[^:]*$|/usr/bin/own-shell|' /etc/passwd",
    )?;

    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(json(&mut vm, "status")?["default"], "Base-1.1");
    for (command, wanted) in AFTERWARDS {
        let found = vm.run(command)?;
        assert_eq!(found.text.trim(), *wanted, "{command}");
    }
    let told = vm.ok("cat /run/motd.d/imgbased-update")?;
    ensure!(
        told.contains("nothing of it comes along: /data ("),
        "{told}"
    );
    vm.ok("imgbased-helper persist pull /data")?;
    assert_eq!(vm.ok("cat /data/x")?, "own");
    // The conflict is settled, and settled the other way.
    let conflicts = vm.ok("imgbased-helper persist conflicts")?;
    for part in [
        "/etc/issue ",
        "/srv/both ",
        "shell of root, /usr/bin/own-shell, is not in the new base",
    ] {
        ensure!(conflicts.contains(part), "{part}: {conflicts}");
    }
    let told = vm.ok("imgbased-helper persist diff /etc/issue")?;
    ensure!(
        told.contains("+++ Base-0.1:/etc/issue\n") && told.contains("-the second image"),
        "{told}"
    );
    for (verb, wanted) in [("take", "the second image"), ("pull", "changed")] {
        vm.ok(&format!("imgbased-helper persist {verb} /etc/issue"))?;
        assert_eq!(vm.ok("cat /etc/issue")?, wanted);
        let conflicts = vm.ok("imgbased-helper persist conflicts")?;
        ensure!(!conflicts.contains("/etc/issue "), "{conflicts}");
    }
    assert_eq!(vm.ok("cat /srv/both")?, "own");
    let told = vm.ok("imgbased-helper persist diff /srv/both")?;
    ensure!(told.contains("\n-image\n+own"), "{told}");
    vm.ok("test ! -e /srv/pipe && imgbased-helper persist keep /srv/both")?;
    let conflicts = vm.ok("imgbased-helper persist conflicts")?;
    ensure!(!conflicts.contains("/srv/both "), "{conflicts}");
    is_clean(&mut vm)
}

/// What imgbased-update.service runs at shutdown, and how many bytes that and what it starts read.
const AT_SHUTDOWN: &str = "sh -c 'imgbased-helper update --at-shutdown && \
     sed -n \"s/^rchar: //p\" /proc/$$/io'";
/// The file that was not changed, in bytes.
const LARGE: u64 = 32 << 20;

/// Updates a host with files of its own, where no program writes to what is carried.
fn update_a_quiet_host(name: &str) -> Result<(HostDisk, Vm)> {
    let (disk, mut vm) = Host::running_unattended(Loader::Grub, name)?;
    vm.ok(&script_with("make-own", &[&LARGE.to_string()])?)?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper update --leave /var /mnt/next", SLOW)?;
    Ok((disk, vm))
}

fn what_was_changed_since_an_update_comes_along_and_nothing_else_is_read() -> Result<()> {
    const CARRIED: &str = "cat /usr/lib/sysimage/imgbased/carried";
    let (_disk, mut vm) = update_a_quiet_host("since")?;
    let read = |vm: &mut Vm| -> Result<u64> {
        let read = vm.ok(AT_SHUTDOWN)?;
        read.trim().parse().with_context(|| read.clone())
    };
    let bytes = read(&mut vm)?;
    ensure!(bytes < LARGE / 4, "{bytes} bytes");
    // That the new layer was not touched, which an LVM command alone takes longer for.
    assert_eq!(vm.ok(CARRIED)?, "Base-1.1");

    vm.ok(&script("change-since")?)?;
    assert_eq!(json(&mut vm, "status")?["update"]["edited"], 2);
    let look = script_with(
        "look-into",
        &[
            "Base-1.1",
            "cat root/added root/edited srv/new/x etc/later home/small etc/issue.net/below; \
             stat -c %a home/small; stat -c %s home/large; \
             for path in root/gone srv/site opt/own etc/gone.conf .imgbased-again; do \
             test ! -e $path || echo $path; done",
        ],
    )?;
    let wanted = format!("later\nlater\nlater\nlater\nsmall\nbelow\n600\n{LARGE}");
    // The second time all of it is there already.
    for _ in 0..2 {
        let bytes = read(&mut vm)?;
        ensure!(bytes < LARGE, "{bytes} bytes");
        assert_eq!(vm.ok(&look)?.trim(), wanted);
    }
    is_clean(&mut vm)
}

fn a_restart_after_an_update_without_a_change_tells_of_no_loss() -> Result<()> {
    let (_disk, mut vm) = update_a_quiet_host("quiet")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    let look = script_with(
        "look-into",
        &["Base-0.1", "cat usr/lib/sysimage/imgbased/carried"],
    )?;
    assert_eq!(vm.ok(&look)?, "Base-1.1");
    for (command, wanted) in [
        ("ls /run/motd.d/imgbased-update 2>/dev/null | wc -l", "0"),
        (
            "grep -c '\"pending\": false' /usr/lib/sysimage/imgbased/merge.json",
            "1",
        ),
        ("cat /root/edited", "before"),
    ] {
        assert_eq!(vm.ok(command)?.trim(), wanted, "{command}");
    }
    is_clean(&mut vm)
}

/// Somebody picks it in the menu, before the new one has been tried.
fn what_is_changed_where_the_old_layer_runs_once_more_comes_along() -> Result<()> {
    let (_disk, mut vm) = update_a_quiet_host("once-more")?;
    vm.type_line("systemctl reboot")?;
    vm.wait_for("reboot: Restarting system")?;
    vm.menu()?.choose("Base-0.1")?;
    vm.log_in()?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(json(&mut vm, "status")?["update"]["layer"], "Base-1.1");
    vm.ok("echo later >/root/edited")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(vm.ok("cat /root/edited")?, "later");
    vm.ok("test ! -e /run/motd.d/imgbased-update")?;
    // It has come up, so the other one has nothing more to take along.
    vm.ok("imgbased-helper boot default Base-0.1")?;
    restart(&mut vm)?;
    has_come_up(&mut vm)?;
    vm.ok(
        "test ! -e /run/imgbased/update.json && test ! -e /usr/lib/sysimage/imgbased/update.json",
    )?;
    is_clean(&mut vm)
}

/// Systemd mounts it no more once the system goes down, and does not unmount it by itself meanwhile.
fn what_is_changed_comes_along_where_boot_is_mounted_on_demand() -> Result<()> {
    let (_disk, mut vm) = update_a_quiet_host("on-demand")?;
    vm.ok(
        "sed -i '/ .boot /s/nofail/&,x-systemd.automount,x-systemd.idle-timeout=2s/' /etc/fstab && \
         systemctl daemon-reload && systemctl stop boot.mount && systemctl start boot.automount",
    )?;
    vm.ok("echo later >/root/edited && sed -i 's/$/ imgbased.test=later/' /etc/kernel/cmdline")?;
    vm.ok("test -e /boot/loader && sleep 10 && systemctl is-active boot.mount")?;
    vm.ok("systemctl stop boot.mount && systemctl is-active boot.automount")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(vm.ok("cat /root/edited")?, "later");
    vm.ok("grep imgbased.test=later /proc/cmdline && systemctl is-active boot.automount")?;
    vm.ok("test ! -e /run/motd.d/imgbased-update")?;
    is_clean(&mut vm)
}

/// The base was made of the installed system, so it is not known what of that came with an image.
fn a_host_that_was_adopted_keeps_what_it_had() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "update-adopted")?;
    vm.ok_for(&script("make-installed")?, SLOW)?;
    vm.ok(&script("change-installed")?)?;
    vm.ok_for(
        "imgbased-helper layout init --from /mnt/root --name node-4.5-1",
        SLOW,
    )?;
    let adopted = "lvm lvs --noheadings -o lv_name @imgbased:adopted";
    assert_eq!(vm.ok(adopted)?.trim(), "node-4.5-1");
    vm.ok("umount /mnt/root && \
         imgbased-helper --vg Installed boot default --tries 0 node-4.5-1+1")?;
    vm.power_off()?;

    let mut vm = disk.boot_with("adopted", vec![disk.existing("spare")])?;
    vm.log_in()?;
    has_root(&mut vm, "Installed", "node-4.5-1+1")?;
    vm.ok(&script("make-next")?)?;
    vm.ok("echo later >/root/later")?;
    let said = vm.ok_for(
        "imgbased-helper --vg Installed update --name Next --tries 0 /mnt/next",
        SLOW,
    )?;
    ensure!(said.contains(" in conflict"), "{said}");
    ensure!(said.contains("Next+1 is a layer of Next"), "{said}");
    ensure!(said.contains("/data is left behind: 1 files"), "{said}");
    let look = "cat home/admin/note root/key opt/own/data srv/site/page root/later; \
                grep -c /srv/scratch etc/fstab; cut -d : -f 1,3 etc/passwd | grep -e admin -e second; \
                stat -c %u home/admin/note; cat etc/motd etc/issue; \
                ls etc/systemd/system/multi-user.target.wants/second.service etc/debian_version 2>/dev/null";
    assert_eq!(
        vm.ok(&script_with(
            "look-into",
            &["Next+1", &format!("{look} || true"), "Installed"]
        )?)?,
        "home/admin/note\nroot/key\nopt/own/data\nsrv/site/page\nlater\n\
         1\nadmin:1000\nsecond:1001\n\
         0\nof the host\nthe second image\n\
         etc/systemd/system/multi-user.target.wants/second.service"
    );
    assert_eq!(vm.ok(adopted)?.trim(), "node-4.5-1");
    Ok(())
}

/// What a verb that only looks leaves as it was.
fn state(vm: &mut Vm) -> Result<String> {
    vm.ok("lvm lvs --noheadings -o lv_name,lv_active,lv_tags HostVG; ls /boot/loader/entries; cat /proc/self/mounts")
}

fn an_update_that_does_not_come_up_is_not_taken_again() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "update-bad")?;
    vm.ok(&script("make-next")?)?;
    // Its health check fails.
    vm.ok("printf '[Unit]\\nBefore=boot-complete.target\\n[Service]\\nType=oneshot\\nExecStart=/bin/false\\n' \
           >/mnt/next/usr/lib/systemd/system/second.service && \
           mkdir -p /mnt/next/etc/systemd/system/boot-complete.target.requires && \
           ln -s /usr/lib/systemd/system/second.service /mnt/next/etc/systemd/system/boot-complete.target.requires/ && \
           rm /mnt/next/etc/systemd/system/multi-user.target.wants/second.service")?;
    vm.ok_for("tar -C /mnt/next -cf /var/tmp/next.tar .", SLOW)?;
    vm.ok_for("imgbased-helper update --tries 1 /var/tmp/next.tar", SLOW)?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["failed"][0]["name"], "Base-1.1");
    is_refused(
        &mut vm,
        "update /var/tmp/next.tar",
        "--retry takes it again",
    )?;
    is_clean(&mut vm)
}

/// The layer that is dropped was the default already, although it never came up.
fn an_update_in_the_place_of_another_falls_back_to_what_runs() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "update-replaced")?;
    vm.ok(&script("make-extra")?)?;
    vm.ok_for(
        "imgbased-helper update --name Extra --tries 0 /root/Extra",
        SLOW,
    )?;
    assert_eq!(json(&mut vm, "status")?["default"], "Extra+1");
    is_refused(&mut vm, "update /root/Extra", "waits for a restart")?;
    let replace = "imgbased-helper update --replace --name Other /root/Extra 2>&1";
    let said = vm.ok_for(replace, SLOW)?;
    ensure!(said.contains("then Base-0.1 boots again"), "{said}");
    assert_eq!(json(&mut vm, "status")?["default"], "Base-0.1");
    let layers = "lvm lvs --noheadings -o lv_name @imgbased:layer | xargs";
    assert_eq!(vm.ok(layers)?, "Base-0.1 Base-0.2 Other+1");
    is_clean(&mut vm)
}

fn an_update_makes_the_initramfs_anew_for_what_the_host_has_changed() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "update-initramfs")?;
    vm.ok(
        "echo text >/etc/own-file && mkdir -p /etc/dracut.conf.d && \
         echo 'install_items+=\" /etc/own-file \"' >/etc/dracut.conf.d/own.conf",
    )?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    let held = "for initrd in $(sed -n 's/^initrd *//p' /boot/loader/entries/imgbased-Base-1.1*.conf | sort -u); do \
                lsinitrd --file etc/own-file /boot$initrd; done";
    assert_eq!(vm.ok_for(held, SLOW)?, "text");
    is_clean(&mut vm)?;
    // Also for what is changed until the restart, with what was changed before.
    vm.ok("echo later >/etc/later-file && \
         echo 'install_items+=\" /etc/later-file \"' >/etc/dracut.conf.d/later.conf")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    let initrd = vm.ok("sed -n 's/^initrd *//p' /boot/loader/entries/imgbased-Base-1.1.conf")?;
    for (file, text) in [("own-file", "text"), ("later-file", "later")] {
        let held = format!("lsinitrd --file etc/{file} /boot{initrd}");
        assert_eq!(vm.ok_for(&held, SLOW)?, text);
    }
    // It is the layer's own, so that it stays when its entry is written once more.
    vm.ok_for("imgbased-helper boot refresh", SLOW)?;
    let again = vm.ok("sed -n 's/^initrd *//p' /boot/loader/entries/imgbased-Base-1.1.conf")?;
    assert_eq!(again, initrd);
    is_clean(&mut vm)
}

fn what_an_update_puts_into_a_layer_gets_the_labels_of_its_policy() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "update-labels")?;
    vm.ok(&script("make-next")?)?;
    vm.ok(&script("make-policies")?)?;
    let said = vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    ensure!(!said.contains("SELinux"), "{said}");
    vm.ok(
        "lvm lvchange --activate y --ignoreactivationskip HostVG/Base-1.1 && mkdir -p /mnt/new && \
         mount -o ro /dev/HostVG/Base-1.1 /mnt/new",
    )?;
    for (path, wanted) in [
        ("etc/old", "new_t"),
        ("etc/none", "new_t"),
        ("root/none", "new_t"),
        ("etc/passwd", "new_t"),
        ("etc/ld.so.cache", "new_t"),
        ("usr/lib/sysimage/imgbased/merge.json", "new_t"),
        // A person has given it that.
        ("etc/own", "own_t"),
    ] {
        let label = format!(
            "getfattr --absolute-names --only-values -n security.selinux /mnt/new/{path} | tr -d '\\0'"
        );
        let label = vm.ok(&label)?;
        assert_eq!(label, format!("system_u:object_r:{wanted}:s0"), "{path}");
    }
    // What is the image's own has none in it.
    vm.ok("! getfattr -n security.selinux /mnt/new/usr/lib/os-release 2>&1 | grep _t:")?;
    Ok(())
}

fn packages_of_rpm_that_do_not_come_along_are_told() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "update-rpm")?;
    vm.ok(&script("make-next")?)?;
    vm.ok(&script("make-rpm")?)?;
    let told = vm
        .run_for("imgbased-helper update --check /mnt/next", SLOW)?
        .text;
    let line = told.lines().find(|line| line.starts_with("Without"));
    let line = line.with_context(|| told.clone())?;
    ensure!(line.ends_with("packages htop.x86_64"), "{line}");
    Ok(())
}
