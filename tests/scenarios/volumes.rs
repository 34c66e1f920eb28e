//! Directories that all layers share are on volumes: every layer mounts them, and none loses a file on the way there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::claims::{device, has_come_up, has_root, is_clean, is_refused, json, restart, runs};
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{ADD_BUSY_VOLUME, KILLED, STEPS_MAX, interrupted};
use crate::vm::{Host, Loader, Vm, say};

scenarios![
    a_directory_moves_to_a_volume_and_back_while_the_system_runs;
    long:
    every_layer_mounts_the_volumes_and_what_is_busy_moves_when_the_system_goes_down,
    a_volume_is_whole_or_not_there_whatever_step_is_the_last,
    a_volume_that_is_damaged_or_nobody_may_mount_keeps_no_layer_from_booting,
    a_move_that_is_cut_off_is_made_at_the_next_way_down,
    a_move_that_is_killed_after_any_step_is_made_at_the_next_way_down,
    most_of_what_is_busy_is_copied_ahead,
    who_uses_a_directory_in_another_way_keeps_it_where_it_is,
    a_layer_that_is_mounted_by_hand_gets_its_volumes,
    volumes_are_there_when_their_group_was_renamed,
    what_is_new_in_the_var_of_an_image_is_added_to_the_volume,
    volumes_go_back_with_their_layer_where_that_is_asked_for,
];

/// For copying /var under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// Less than it takes to copy what a scenario has made for that.
const PART_OF_THE_COPY: Duration = Duration::from_secs(1);

/// The volumes with their tags, sizes and states.
const VOLUMES: &str = "lvm lvs --noheadings -o lv_name,lv_tags,lv_attr,lv_size HostVG";

fn a_directory_moves_to_a_volume_and_back_while_the_system_runs() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "volume")?;
    vm.ok(&script("make-home")?)?;
    vm.ok(&script("make-hooks")?)?;
    vm.ok("ln -s /home /users; mkdir -p /srv/big; (cd /srv/big && seq 4000 | xargs touch)")?;
    let files = vm.ok(&script("look-at-home")?)?;
    let before = vm.ok(VOLUMES)?;
    for (arguments, reason) in [
        ("volume add home --size 1G", "is not an absolute path"),
        ("volume add /etc --size 1G", "never on a volume"),
        (
            "volume add /users --size 1G",
            "give the path that it leads to: /home",
        ),
        ("volume add /run/x --size 1G", "never on a volume"),
        ("volume add /tmp/../home --size 1G", "has `..` in it"),
        ("volume add /srv/big --size 100M", "is too small"),
        ("volume add /home --size 100M --fstype xfs", "is too small"),
        ("volume grow /home 1G", "/home is no volume"),
        ("volume remove /home", "/home is no volume"),
    ] {
        is_refused(&mut vm, arguments, reason)?;
    }
    vm.ok("imgbased-helper -n volume add /home --size 200M")?;
    assert_eq!(vm.ok(VOLUMES)?, before);

    let add = "imgbased-helper volume add /home --size 200M --options noatime,nodev 2>/dev/null";
    assert_eq!(vm.ok(add)?, "/home is on HostVG/home now");
    is_on(&mut vm, "/home", "home")?;
    let options = vm.ok("findmnt -no OPTIONS /home")?;
    ensure!(
        options.contains("noatime") && options.contains("nodev"),
        "{options}"
    );
    assert_eq!(vm.ok(&script("look-at-home")?)?, files);
    is_refused(&mut vm, "volume add /home --size 1G", "is a volume already")?;
    let row = row(&mut vm, "/home")?;
    for (key, value) in [
        ("name", Value::from("home")),
        ("fstype", "ext4".into()),
        ("mounted", true.into()),
        ("required", false.into()),
        ("moving", false.into()),
        ("options", "noatime,nodev".into()),
        ("size", (200_u64 << 20).into()),
    ] {
        assert_eq!(row[key], value, "{key}");
    }
    let tree = vm.ok("imgbased-helper layout")?;
    ensure!(tree.contains("shared volume, at /home"), "{tree}");

    vm.ok("imgbased-helper volume grow /home 300M")?;
    let size: u64 = vm.ok("findmnt -bno SIZE /home")?.parse()?;
    ensure!(size > 230 << 20, "{size}");
    is_refused(&mut vm, "volume grow /home 200M", "does not become smaller")?;
    vm.ok(
        "imgbased-helper volume add /srv/a-b --size 320M --fstype xfs && echo kept >/srv/a-b/file",
    )?;
    is_on(&mut vm, "/srv/a-b", "srv-a-b")?;
    vm.ok("imgbased-helper volume grow /srv/a-b 400M")?;
    let size: u64 = vm.ok("findmnt -bno SIZE /srv/a-b")?.parse()?;
    ensure!(size > 290 << 20, "{size}");
    is_clean(&mut vm)?;

    vm.ok(
        "systemd-run --quiet --unit=holder --property=Type=exec --property=WorkingDirectory=/home/anna sleep infinity",
    )?;
    is_refused(&mut vm, "volume remove /home --delete", "(sleep)")?;
    vm.ok("systemctl stop holder.service")?;
    vm.ok("echo on-the-volume >/home/anna/new && imgbased-helper volume remove /home")?;
    is_on(&mut vm, "/home", "Base-0.1")?;
    assert_eq!(vm.ok(&script("look-at-home")?)?, files);
    assert_eq!(vm.ok("lvm lvs --noheadings -o lv_tags HostVG/home")?, "");
    vm.ok("imgbased-helper volume remove /srv/a-b --delete")?;
    assert_eq!(
        vm.ok("lvm lvs HostVG/srv-a-b 2>/dev/null || echo gone")?,
        "gone"
    );
    // Its name is taken.
    vm.ok(add)?;
    is_on(&mut vm, "/home", "home-2")?;
    let told = vm.ok("grep 70-last /root/hooks | cut -d ' ' -f 2-")?;
    assert_eq!(
        told.lines().collect::<Vec<_>>(),
        [
            "volume-added HostVG/home /home",
            "volume-added HostVG/srv-a-b /srv/a-b",
            "volume-removed HostVG/home /home",
            "volume-removed HostVG/srv-a-b /srv/a-b",
            "volume-added HostVG/home-2 /home",
        ]
    );
    is_clean(&mut vm)?;
    what_is_written_below_a_new_volume_is_told(&mut vm)
}

/// Nothing keeps a program from writing there until the volume is mounted.
fn what_is_written_below_a_new_volume_is_told(vm: &mut Vm) -> Result<()> {
    vm.ok(&script("write-before-mount")?)?;
    let said = vm.ok("imgbased-helper volume add /srv/late --size 100M 2>&1")?;
    is_on(vm, "/srv/late", "srv-late")?;
    assert_eq!(vm.ok("cat /srv/late/file")?, "early");
    // As the message says it.
    ensure!(said.contains("`mount --bind / /mnt`"), "{said}");
    let below = vm.ok("mount --bind / /mnt && cat /mnt/srv/late/file && umount /mnt")?;
    assert_eq!(below, "early\nlate");
    is_clean(vm)
}

fn every_layer_mounts_the_volumes_and_what_is_busy_moves_when_the_system_goes_down() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volumes")?;
    vm.ok(&script("make-home")?)?;
    let files = vm.ok(&script("look-at-home")?)?;
    vm.ok("imgbased-helper volume add /home --size 200M")?;
    vm.ok("mkdir -p /srv/a-b && echo 1 >/srv/a-b/file && imgbased-helper volume add /srv/a-b --size 100M")?;
    let said = vm.ok_for(
        "imgbased-helper volume add /var --size 1G 2>/dev/null",
        SLOW,
    )?;
    ensure!(
        said.contains("it moves to HostVG/var when this system goes down"),
        "{said}"
    );
    vm.ok("imgbased-helper volume move")?;
    let waiting = row(&mut vm, "/var")?;
    assert_eq!(
        (&waiting["moving"], &waiting["mounted"]),
        (&true.into(), &false.into())
    );
    vm.ok("echo later >/var/lib/later && logger before-the-move")?;
    vm.type_line("systemctl poweroff")?;
    vm.wait_for_power_off(SLOW)?;

    let mut vm = disk.boot("first")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    are_mounted(&mut vm)?;
    assert_eq!(vm.ok(&script("look-at-home")?)?, files);
    let moved = row(&mut vm, "/var")?;
    assert_eq!(
        (&moved["moving"], &moved["required"]),
        (&false.into(), &true.into())
    );
    let required = vm.ok("systemctl show -p RequiredBy --value var.mount")?;
    ensure!(required.contains("local-fs.target"), "{required}");
    is_clean(&mut vm)?;
    vm.ok("echo first >/home/anna/first")?;
    vm.power_off()?;

    let mut vm = disk.boot("second")?;
    vm.menu()?.choose("Base-0.2")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.2")?;
    are_mounted(&mut vm)?;
    assert_eq!(vm.ok("cat /home/anna/first")?, "first");
    // Nothing of that is in the layer.
    assert_eq!(
        vm.ok(
            "grep -e home -e var /etc/fstab || find /etc/systemd/system -name '*.mount' -type f"
        )?,
        ""
    );
    let said = vm.ok("imgbased-helper volume remove /var")?;
    ensure!(said.contains("from the next start on"), "{said}");
    is_on(&mut vm, "/var", "var")?;
    vm.power_off()?;

    let mut vm = disk.boot("factory")?;
    vm.menu()?.choose("Base-0")?;
    vm.log_in()?;
    assert_eq!(vm.ok("findmnt -no SOURCE -T /home")?, "imgbased-overlay");
    vm.power_off()?;

    let mut vm = disk.boot("third")?;
    vm.menu()?.choose("Base-0.1")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    is_on(&mut vm, "/home", "home")?;
    is_on(&mut vm, "/var", "Base-0.1")?;
    assert_eq!(vm.ok("cat /var/lib/later")?, "later");
    is_clean(&mut vm)
}

fn a_volume_is_whole_or_not_there_whatever_step_is_the_last() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "volume-steps")?;
    vm.ok("mkdir -p /srv/data && echo text >/srv/data/file")?;
    let before = vm.ok(VOLUMES)?;
    let add = "imgbased-helper volume add /srv/data --size 100M";
    for variable in ["IMGBASED_FAIL_AT", "IMGBASED_KILL_AFTER"] {
        let mut step = 0;
        loop {
            step += 1;
            ensure!(step < STEPS_MAX, "the verb has no end");
            let ended = vm.run(&interrupted(&format!("{variable}={step}"), add))?;
            let is_done = ended.status == 0;
            let is_killed = variable == "IMGBASED_KILL_AFTER";
            let expected = if is_killed { KILLED } else { 1 };
            ensure!(
                is_done || ended.status == expected,
                "step {step}: {ended:?}"
            );
            assert_eq!(vm.ok("cat /srv/data/file")?, "text", "{variable} {step}");
            if is_killed {
                is_told_where_it_is_due(&mut vm).with_context(|| format!("step {step}"))?;
                vm.run("imgbased-helper check --repair")?;
            }
            if is_done || is_killed {
                vm.run("imgbased-helper volume remove /srv/data --delete")?;
            }
            is_clean(&mut vm).with_context(|| format!("{variable} {step}"))?;
            assert_eq!(vm.ok(VOLUMES)?, before, "{variable} {step}");
            is_on(&mut vm, "/srv/data", "Base-0.1")?;
            assert_eq!(vm.ok("cat /srv/data/file")?, "text", "{variable} {step}");
            if is_done {
                break;
            }
        }
    }
    for step in 1..STEPS_MAX {
        vm.ok(add)?;
        let ended = vm.run(&interrupted(
            &format!("IMGBASED_KILL_AFTER={step}"),
            "imgbased-helper volume remove /srv/data",
        ))?;
        is_told_where_it_is_due(&mut vm).with_context(|| format!("removal, step {step}"))?;
        vm.ok("imgbased-helper volume remove /srv/data; lvm lvremove -qq -y HostVG/srv-data")?;
        assert_eq!(vm.ok("cat /srv/data/file")?, "text", "{step}");
        if ended.status == 0 {
            return is_clean(&mut vm);
        }
        assert_eq!(ended.status, KILLED, "{step}: {ended:?}");
    }
    anyhow::bail!("the verb has no end")
}

/// Claims that no volume is mounted at the next start over what a layer has written until then, unless that is told.
fn is_told_where_it_is_due(vm: &mut Vm) -> Result<()> {
    let tags =
        vm.ok("lvm lvs --noheadings -o lv_tags HostVG | grep -c imgbased:mount=/srv/data; :")?;
    let mounted = vm.run("findmnt -n /srv/data")?;
    if tags != "0" && mounted.status != 0 {
        let told = vm.run("imgbased-helper check")?;
        ensure!(
            told.status == 3 && told.text.contains("is not mounted at /srv/data"),
            "{told:?}"
        );
    }
    Ok(())
}

fn a_volume_that_is_damaged_or_nobody_may_mount_keeps_no_layer_from_booting() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "bad-volumes")?;
    vm.ok("imgbased-helper volume add /srv/good --size 100M && echo good >/srv/good/file")?;
    vm.ok(
        "imgbased-helper volume add /srv/bad --size 100M && umount /srv/bad && \
           dd if=/dev/urandom of=/dev/HostVG/srv-bad bs=1M count=100 conv=fsync",
    )?;
    for (name, tag) in [
        ("evil", "imgbased:mount=/etc"),
        ("second", "imgbased:mount=/srv/good"),
        ("odd", "imgbased:mount=/srv/a#0AWhat=/dev/null"),
    ] {
        vm.ok(&format!(
            "lvm lvcreate -q -y -V 64M --thinpool ImagePool -n {name} HostVG && mke2fs -q /dev/HostVG/{name} && \
             lvm lvchange -q --addtag imgbased:volume --addtag '{tag}' HostVG/{name}"
        ))?;
    }
    vm.power_off()?;

    let mut vm = disk.boot("bad")?;
    vm.log_in()?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    is_on(&mut vm, "/etc", "Base-0.1")?;
    is_on(&mut vm, "/srv/good", "second")?;
    is_on(&mut vm, "/srv/bad", "Base-0.1")?;
    vm.run("systemctl is-system-running --wait")?;
    assert_eq!(
        vm.ok("systemctl is-active local-fs.target multi-user.target")?,
        "active\nactive"
    );
    let found = vm.run("imgbased-helper check")?;
    ensure!(found.status == 3, "{found:?}");
    for line in [
        "evil cannot be mounted as its tag /etc says",
        "odd cannot be mounted as its tag /srv/a#0AWhat=/dev/null says",
        "srv-good is not mounted at /srv/good: second is",
        "srv-bad: is not mounted at /srv/bad",
    ] {
        ensure!(found.text.contains(line), "{line}: {found:?}");
    }
    Ok(())
}

fn a_move_that_is_cut_off_is_made_at_the_next_way_down() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volume-cut")?;
    vm.ok_for(
        "imgbased-helper volume add /var --size 1G 2>/dev/null",
        SLOW,
    )?;
    // What there was before is copied already.
    vm.ok("head -c 40M /dev/urandom >/var/lib/large && sync")?;
    let large = vm.ok("sha256sum </var/lib/large")?;
    vm.type_line("systemctl poweroff")?;
    vm.wait_for("Move directories")?;
    std::thread::sleep(PART_OF_THE_COPY);
    drop(vm);

    let mut vm = disk.boot("cut")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    is_on(&mut vm, "/var", "Base-0.1")?;
    assert_eq!(row(&mut vm, "/var")?["moving"], true);
    assert_eq!(vm.ok("sha256sum </var/lib/large")?, large);
    is_clean(&mut vm)?;
    vm.ok("echo later >/var/lib/later")?;
    vm.type_line("systemctl poweroff")?;
    vm.wait_for_power_off(SLOW)?;

    let mut vm = disk.boot("moved")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    is_on(&mut vm, "/var", "var")?;
    assert_eq!(vm.ok("sha256sum </var/lib/large")?, large);
    assert_eq!(vm.ok("cat /var/lib/later")?, "later");
    is_clean(&mut vm)
}

/// The machine goes down right after that, so the next start is as one after a power cut.
fn a_move_that_is_killed_after_any_step_is_made_at_the_next_way_down() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volume-move-steps")?;
    vm.ok(&ADD_BUSY_VOLUME.prepare()?)?;
    vm.ok("imgbased-helper volume add /srv/data --size 100M 2>/dev/null")?;
    let mut step = 0;
    loop {
        step += 1;
        ensure!(step < STEPS_MAX, "the move has no end");
        let kill = script_with("kill-at-shutdown", &["imgbased-move", &step.to_string()])?;
        vm.ok(&format!("echo {step} >/srv/data/file"))?;
        vm.ok(&kill)?;
        vm.type_line("systemctl poweroff")?;
        vm.wait_for_power_off(SLOW)?;

        vm = disk.boot(&format!("after-{step}"))?;
        vm.log_in()?;
        runs(&mut vm, "Base-0.1")?;
        assert_eq!(vm.ok("cat /srv/data/file")?, step.to_string());
        is_clean(&mut vm)?;
        if row(&mut vm, "/srv/data")?["moving"] == false {
            break;
        }
        is_on(&mut vm, "/srv/data", "Base-0.1")?;
    }
    say(&format!("`volume move`: {step} kill points"));
    ensure!(step > 5, "{step}");
    is_on(&mut vm, "/srv/data", "srv-data")?;
    // It was recorded, and no more than that was done.
    assert_eq!(vm.ok("ls -A /srv/data | grep -vx lost+found")?, "file");
    Ok(())
}

fn most_of_what_is_busy_is_copied_ahead() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volume-ahead")?;
    vm.ok("mkdir /var/lib/app && cd /var/lib/app && head -c 20M /dev/urandom >large && echo one >small && echo x >gone")?;
    vm.ok_for(
        "imgbased-helper volume add /var --size 1G 2>/dev/null",
        SLOW,
    )?;
    let large = vm.ok("sha256sum </var/lib/app/large")?;
    vm.ok("mkdir -p /mnt/look && mount -o ro /dev/HostVG/var /mnt/look")?;
    assert_eq!(vm.ok("sha256sum </mnt/look/lib/app/large")?, large);
    vm.ok("umount /mnt/look")?;
    // With the size and the time that it had.
    vm.ok("cd /var/lib/app && touch -r small time && echo two >small && touch -r time small && rm gone")?;
    vm.type_line("systemctl poweroff")?;
    vm.wait_for_power_off(SLOW)?;

    let mut vm = disk.boot("moved")?;
    vm.log_in()?;
    runs(&mut vm, "Base-0.1")?;
    is_on(&mut vm, "/var", "var")?;
    assert_eq!(vm.ok("sha256sum </var/lib/app/large")?, large);
    assert_eq!(
        vm.ok("cd /var/lib/app && cat small && ls")?,
        "two\nlarge\nsmall\ntime"
    );
    assert_eq!(vm.ok("ls -A /var | grep imgbased || true")?, "");
    is_clean(&mut vm)
}

fn who_uses_a_directory_in_another_way_keeps_it_where_it_is() -> Result<()> {
    const HOLDER: &str = "systemd-run --quiet --unit=holder --property=Type=exec";
    let (_disk, mut vm) = Host::running(Loader::Grub, "volume-users")?;
    vm.ok(
        "mkdir -p /srv/data/sub /mnt/sub && echo text >/srv/data/sub/file && \
         dd if=/dev/zero of=/srv/data/disk bs=1M count=16 status=none && modprobe loop",
    )?;
    for (begin, end, user) in [
        (
            "mount --bind /srv/data/sub /mnt/sub".to_owned(),
            "umount /mnt/sub",
            "the mount at /mnt/sub",
        ),
        (
            format!("{HOLDER} --property=BindPaths=/srv/data/sub:/opt sleep infinity"),
            "systemctl stop holder.service",
            "the mount at /opt of ",
        ),
        (
            format!("{HOLDER} unshare --mount --propagation private sleep infinity && sleep 2"),
            "systemctl stop holder.service",
            "which has mounts of its own",
        ),
        (
            "losetup /dev/loop7 /srv/data/disk".to_owned(),
            "losetup --detach /dev/loop7",
            "the loop device loop7 of /srv/data/disk",
        ),
    ] {
        vm.ok(&begin)?;
        let said = vm.ok("imgbased-helper volume add /srv/data --size 100M 2>/dev/null")?;
        ensure!(
            said.contains(user) && said.contains("when this system goes down"),
            "{begin}: {said}"
        );
        vm.ok("imgbased-helper volume remove /srv/data --delete")?;
        vm.ok(end)?;
    }
    vm.ok("chmod 600 /srv/data/disk && mkswap /srv/data/disk && swapon /srv/data/disk")?;
    is_refused(
        &mut vm,
        "volume add /srv/data --size 100M",
        "/srv/data/disk is swap",
    )?;
    vm.ok("swapoff /srv/data/disk")?;
    let add = "imgbased-helper volume add /srv/data --size 100M 2>/dev/null";
    assert_eq!(vm.ok(add)?, "/srv/data is on HostVG/srv-data now");
    assert_eq!(vm.ok("cat /srv/data/sub/file")?, "text");
    vm.ok("mount --bind /srv/data/sub /mnt/sub")?;
    is_refused(
        &mut vm,
        "volume remove /srv/data --delete",
        "the mount at /mnt/sub",
    )?;
    vm.ok("umount /mnt/sub && imgbased-helper volume remove /srv/data --delete")?;
    is_clean(&mut vm)
}

fn a_layer_that_is_mounted_by_hand_gets_its_volumes() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volume-by-hand")?;
    vm.ok("imgbased-helper volume add /srv/good --size 100M && echo good >/srv/good/file")?;
    vm.power_off()?;

    let mut vm = disk.boot("by-hand")?;
    vm.menu()?.boot_with("rd.break=mount")?;
    vm.enter_emergency_shell()?;
    // The volume may be active already; it is activated again.
    vm.run("lvm lvchange -qq -an HostVG/srv-good")?;
    vm.ok(
        "lvm lvchange -qq -K -ay HostVG/Base-0.1 && mount /dev/mapper/HostVG-Base--0.1 /sysroot",
    )?;
    vm.type_line("exit")?;
    vm.log_in()?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    is_on(&mut vm, "/srv/good", "srv-good")?;
    assert_eq!(vm.ok("cat /srv/good/file")?, "good");
    assert_eq!(json(&mut vm, "status")?["booted"], "Base-0.1");
    has_come_up(&mut vm)?;
    is_clean(&mut vm)
}

fn volumes_are_there_when_their_group_was_renamed() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "volume-renamed")?;
    vm.ok("imgbased-helper volume add /srv/good --size 100M && echo good >/srv/good/file")?;
    vm.ok_for(
        "imgbased-helper volume add /var --size 1G 2>/dev/null",
        SLOW,
    )?;
    vm.type_line("systemctl poweroff")?;
    vm.wait_for_power_off(SLOW)?;

    let mut vm = disk.boot("moved")?;
    vm.log_in()?;
    is_on(&mut vm, "/var", "var")?;
    vm.ok("vgrename -qq HostVG Renamed && udevadm settle")?;
    vm.ok("imgbased-helper check --repair")?;
    let is_there = |vm: &mut Vm| -> Result<()> {
        for (path, name) in [("/var", "var"), ("/srv/good", "srv-good")] {
            let found = vm.ok(&format!(
                "cat /sys/dev/block/$(mountpoint -d {path})/dm/name"
            ))?;
            assert_eq!(
                format!("/dev/mapper/{found}"),
                device("Renamed", name)?,
                "{path}"
            );
            assert_eq!(row(vm, path)?["mounted"], true, "{path}");
        }
        assert_eq!(vm.ok("cat /srv/good/file")?, "good");
        is_clean(vm)
    };
    is_there(&mut vm)?;
    vm.ok("systemctl daemon-reload && systemctl restart srv-good.mount")?;
    is_there(&mut vm)?;
    vm.ok("imgbased-helper volume add /srv/more --size 100M")?;
    vm.power_off()?;

    let mut vm = disk.boot("renamed")?;
    vm.log_in()?;
    has_root(&mut vm, "Renamed", "Base-0.1")?;
    is_there(&mut vm)?;
    has_come_up(&mut vm)
}

fn what_is_new_in_the_var_of_an_image_is_added_to_the_volume() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "volume-new")?;
    vm.ok(&script("change-host")?)?;
    vm.ok_for(
        "imgbased-helper volume add /var --size 1G 2>/dev/null",
        SLOW,
    )?;
    restart(&mut vm)?;
    is_on(&mut vm, "/var", "var")?;
    vm.ok(&script("make-next")?)?;
    vm.ok(
        "cd /mnt/next/var && mkdir cache/second && echo image | tee lib/second/file >lib/own && \
         rm -r tmp && echo own >/var/lib/own",
    )?;
    vm.ok_for("imgbased-helper update /mnt/next", SLOW)?;
    vm.ok("test ! -e /var/lib/second")?;

    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    is_on(&mut vm, "/var", "var")?;
    has_come_up(&mut vm)?;
    for (command, wanted) in [
        // The account has another number here than in the image.
        ("stat -c %U /var/lib/second", "second"),
        ("cat /var/lib/second/file /var/lib/own", "image\nown"),
        ("ls -d /var/cache/second /var/tmp 2>/dev/null", "/var/tmp"),
        ("ls /usr/lib/sysimage/imgbased | grep var", "added-to-var"),
    ] {
        assert_eq!(vm.run(command)?.text.trim(), wanted, "{command}");
    }
    // What is removed stays so, and the layer before goes on with the rest.
    vm.ok("rm /var/lib/second/file && imgbased-helper rollback")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    has_come_up(&mut vm)?;
    assert_eq!(vm.ok("ls -A /var/lib/second; cat /var/lib/own")?, "own");
    is_clean(&mut vm)
}

fn volumes_go_back_with_their_layer_where_that_is_asked_for() -> Result<()> {
    let (_disk, mut vm) = Host::running_unattended(Loader::Grub, "volume-back")?;
    for (path, kind) in [("/srv/ext4", "ext4"), ("/srv/xfs", "xfs")] {
        vm.ok(&format!(
            "imgbased-helper volume add {path} --size 320M --fstype {kind} && echo before >{path}/file"
        ))?;
    }
    is_refused(
        &mut vm,
        "rollback --with-volumes --to Base-0.1",
        "no snapshots",
    )?;
    vm.ok(&script("make-next")?)?;
    vm.ok_for("imgbased-helper update --snapshot-volumes /mnt/next", SLOW)?;
    let tree = vm.ok("imgbased-helper layout")?;
    for name in ["srv-ext4-before-Base-1.1", "srv-xfs-before-Base-1.1"] {
        ensure!(tree.contains(name), "{tree}");
    }
    is_clean(&mut vm)?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-1.1")?;
    has_come_up(&mut vm)?;
    vm.ok("echo after | tee /srv/ext4/file >/srv/xfs/file")?;
    let said = vm.ok("imgbased-helper rollback --with-volumes")?;
    ensure!(
        said.contains("/srv/ext4 is on HostVG/srv-ext4-before-Base-1.1"),
        "{said}"
    );
    is_clean(&mut vm)?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-0.1")?;
    has_come_up(&mut vm)?;
    for path in ["ext4", "xfs"] {
        is_on(
            &mut vm,
            &format!("/srv/{path}"),
            &format!("srv-{path}-before-Base-1.1"),
        )?;
    }
    assert_eq!(vm.ok("cat /srv/ext4/file /srv/xfs/file")?, "before\nbefore");
    is_clean(&mut vm)?;
    // What was written since is still there.
    vm.ok("lvm lvchange -qq -K -ay HostVG/srv-ext4 && mkdir -p /mnt/look && mount -o ro /dev/HostVG/srv-ext4 /mnt/look")?;
    assert_eq!(vm.ok("cat /mnt/look/file")?, "after");
    vm.ok("umount /mnt/look && lvm lvremove -qq --yes HostVG/srv-ext4 HostVG/srv-xfs")?;
    is_clean(&mut vm)?;
    volumes_go_back_together(&mut vm)
}

/// Where the power is cut as soon as the first of them has begun.
fn volumes_go_back_together(vm: &mut Vm) -> Result<()> {
    for path in ["ext4", "xfs"] {
        vm.ok(&format!(
            "lvm lvcreate -qq --snapshot --name new-{path} --setactivationskip n \
             --addtag imgbased:snapshot=/srv/{path} --addtag imgbased:before=Base-1.1 \
             HostVG/srv-{path}-before-Base-1.1 && echo later >/srv/{path}/file"
        ))?;
    }
    is_clean(vm)?;
    vm.ok(
        "lvm lvchange -qq --addtag imgbased:volume --addtag imgbased:mount=/srv/ext4 HostVG/new-ext4",
    )?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found.status == 3 && found.text.contains("when a rollback was interrupted"),
        "{}",
        found.text
    );
    restart(vm)?;
    has_come_up(vm)?;
    assert_eq!(vm.ok("cat /srv/ext4/file /srv/xfs/file")?, "before\nbefore");
    vm.ok("imgbased-helper check --repair")?;
    is_clean(vm)?;
    let tags = "lvm lvs --noheadings -o lv_name,lv_tags HostVG/new-ext4 HostVG/new-xfs | xargs";
    assert_eq!(
        vm.ok(tags)?,
        "new-ext4 imgbased:mount=/srv/ext4,imgbased:volume new-xfs imgbased:mount=/srv/xfs,imgbased:volume"
    );
    let old = "lvm lvs --noheadings -o lv_tags HostVG/srv-ext4-before-Base-1.1 \
               HostVG/srv-xfs-before-Base-1.1 | xargs";
    assert_eq!(vm.ok(old)?, "");
    Ok(())
}

/// What `volume list` says of a path.
fn row(vm: &mut Vm, path: &str) -> Result<Value> {
    let list = json(vm, "volume list")?;
    let rows = list["volumes"].as_array().context("volumes")?;
    let row = rows.iter().find(|row| row["path"] == path);
    Ok(row.with_context(|| format!("{path}: {list}"))?.clone())
}

/// Claims that a path is on this volume.
fn is_on(vm: &mut Vm, path: &str, name: &str) -> Result<()> {
    // Of a part of a filesystem it is the part as well.
    let found = vm.ok(&format!("findmnt -no SOURCE -T {path} | cut -d '[' -f 1"))?;
    assert_eq!(found, device("HostVG", name)?, "{path}");
    Ok(())
}

/// Claims that all volumes are there, with what moved to them.
fn are_mounted(vm: &mut Vm) -> Result<()> {
    for (path, name) in [("/home", "home"), ("/srv/a-b", "srv-a-b"), ("/var", "var")] {
        is_on(vm, path, name)?;
    }
    assert_eq!(
        vm.ok("cat /srv/a-b/file /var/lib/later | xargs")?,
        "1 later"
    );
    // Which packages are installed is of the layer.
    let layer = vm.ok("imgbased-helper layer current")?;
    is_on(vm, "/var/lib/dpkg", &layer)
}
