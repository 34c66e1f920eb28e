//! Scripts and people that know imgbase find it: its command forms, and the groups that it has made.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::claims::{has_root, json, restart};
use crate::vm::guest::script;
use crate::vm::{Host, Loader, Start, Vm};

scenarios![
    ;
    long:
    each_form_of_imgbase_is_taken_as_it_was_typed,
    a_group_that_imgbased_made_is_taken_over_and_updated,
];

/// For copying a whole system, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

const FIRST: &str = "node-4.5.4-0.el8";
/// The layer that runs when the group is taken over.
const LAYER: &str = "node-4.5.4-0.el8+1";

/// What one types, and what it prints, on the host with Base-0, of which Base-0.1 runs and Base-0.2 is another layer.
const FORMS: &[(&str, &str)] = &[
    ("imgbase layout", "Base-0\n +- Base-0.1\n +- Base-0.2"),
    (
        "imgbase --debug layout 2>/dev/null",
        "Base-0\n +- Base-0.1\n +- Base-0.2",
    ),
    ("LC_ALL=C.UTF-8 imgbase layout --bases", "Base-0"),
    ("imgbase layout --layers", "Base-0.1\nBase-0.2"),
    ("imgbase base --latest", "Base-0"),
    ("imgbase base --of-layer Base-0.2", "Base-0"),
    ("imgbase layer --latest", "Base-0.2"),
    ("imgbase layer --current", "Base-0.1"),
    (
        "test -b $(imgbase layer --volume-path Base-0.1) && echo there",
        "there",
    ),
    (
        "imgbase layer --volume-path Base-0.1",
        "/dev/HostVG/Base-0.1",
    ),
    ("imgbase w", "You are on Base-0.1"),
    ("imgbase check | head -n 1", "Status: OK"),
    ("imgbase check >/dev/null && echo fine", "fine"),
    ("imgbase check", ALL_WELL),
    (
        "imgbase --layerformat Image-%d.%d --stream Image --vg HostVG --thinpool ImagePool layout --bases",
        "Base-0",
    ),
    ("imgbase --experimental layout --bases", "Base-0"),
    (
        "imgbase --version | grep -cxE '[0-9]+\\.[0-9]+\\.[0-9]+'",
        "1",
    ),
    ("imgbase --help | grep -c '^  imgbase layout --init'", "3"),
    ("imgbase motd", "imgbase status: OK"),
    ("imgbase boot --get-default", "Base-0.1"),
    ("imgbase boot --list | grep -c imgbased-Base", "3"),
    ("imgbase --experimental volume --list", ""),
    ("imgbase --experimental recover --list", ""),
    ("imgbase recover", ""),
    ("imgbase recover --force", ""),
    (
        "imgbase service --start && imgbase service --stop && echo done",
        "done",
    ),
    // What scripts do with it.
    ("imgbase layout | grep -vc +", "1"),
    ("imgbase layout | grep -c '^[A-Za-z]'", "1"),
    ("imgbase w | awk '{ print $NF }'", "Base-0.1"),
    ("imgbase w | cut -d + -f 1", "You are on Base-0.1"),
    ("imgbase check | grep -c 'Status: .*OK'", "1"),
    ("imgbase check | grep -c \"$(printf '\\033')\"", "0"),
    (
        "imgbase layout --free-space | grep -cxE '[0-9]+\\.[0-9]+'",
        "1",
    ),
    (
        "for unit in b k m g t; do imgbase layout --free-space --units $unit; done | grep -cxE '[0-9]+\\.[0-9]+'",
        "5",
    ),
    // In MiB, where nothing else is said, and no more than the pool has.
    (
        "free=$(imgbase layout --free-space) && \
         size=$(lvm lvs --noheadings --nosuffix --units m -o lv_size HostVG/ImagePool) && \
         awk \"BEGIN { print ($free > 100 && $free <= $size) }\"",
        "1",
    ),
    // What is not there says so, and changes nothing.
    (
        "imgbase layer --remove Base-0.9 2>/dev/null || echo $?",
        "1",
    ),
    (
        "imgbase base --of-layer Base-0.9 2>/dev/null || echo $?",
        "1",
    ),
    ("imgbase base --remove Base-0.9 2>/dev/null || echo $?", "1"),
    (
        "imgbase layer --volume-path Base-0.9 2>/dev/null || echo $?",
        "1",
    ),
    ("imgbase rollback --to Base-0.9 2>/dev/null || echo $?", "1"),
    (
        "imgbase update --format liveimg /nonexistent 2>/dev/null || echo $?",
        "1",
    ),
    // What means nothing here names what does its work, on one line.
    (
        "for form in 'remote add here http://there' 'remote remove here' 'remote list' 'remote pull here' \
         'openscap --list' '--experimental nspawn Base-0.1' '--experimental factory-diff --config' \
         'image-build --postprocess' 'image-introspect --metadata x' 'layout --init --without-vg /dev/sdx' \
         'volume --attach /home' 'boot --remove-other-boot-entries' 'motd --update' 'diff -m content Base-0 Base-0.1'; \
         do imgbase $form 2>&1; echo $?; done | grep -cx 2",
        "14",
    ),
    (
        "for form in 'remote list' openscap nspawn factory-diff image-build image-introspect; \
         do imgbase $form 2>&1; done | grep -c '^error: there is no `imgbase [a-z-]*` here: '",
        "6",
    ),
    ("imgbase remote list 2>&1 | wc -l", "1"),
    (
        "imgbase --layerformat x-%d.%d layout 2>/dev/null || echo $?",
        "2",
    ),
    // Bases and layers.
    (
        "imgbase --dry layer --add 2>/dev/null | grep -c lvcreate",
        "1",
    ),
    (
        "imgbase --debug --dry layer --add 2>/dev/null | grep -c lvcreate",
        "1",
    ),
    (
        "imgbase --debug --dry base --add --size 1G /root/Extra.img 2>/dev/null | grep lvcreate >/dev/null && echo shown",
        "shown",
    ),
    ("imgbase layout", "Base-0\n +- Base-0.1\n +- Base-0.2"),
    ("imgbase layer --add", "Base-0.3"),
    ("imgbase --debug layer --add 2>/dev/null", "Base-0.4"),
    (
        "imgbase --debug layer --latest 2>&1 >/dev/null | grep 'lvm ' >/dev/null && echo shown",
        "shown",
    ),
    ("imgbase layer --add Base-0", "Base-0.5"),
    (
        "imgbase layer --remove Base-0.5 && imgbase layer --latest",
        "Base-0.4",
    ),
    (
        "imgbase base --add --size 1G /root/Extra.img 2>/dev/null",
        "Base-1",
    ),
    ("imgbase base --latest", "Base-1"),
    (
        "imgbase base --add node-1-1 --size 1G /root/Extra.img 2>/dev/null",
        "node-1-1",
    ),
    (
        "imgbase base --add --size 1024 </root/Extra.img 2>/dev/null",
        "Base-2",
    ),
    (
        "cat /root/Extra.img | imgbase base --add --size 1G 2>&1 | grep -c 'is no file'",
        "1",
    ),
    ("imgbase layer --add node-1-1", "node-1-1+1"),
    ("imgbase layout | grep -cx ' +- node-1-1+1'", "1"),
    (
        "imgbase diff node-1-1 node-1-1+1 | cut -d ' ' -f 3",
        "/etc/fstab",
    ),
    ("imgbase pkg --diff Base-0 Base-0.1", ""),
    (
        "imgbase --experimental pkg --diff Base-0.1 node-1-1 | grep -v -e '^-[a-z0-9]' -e '^+[a-z0-9]'",
        "--- Base-0.1\n+++ node-1-1",
    ),
    (
        "imgbase --experimental pkg --diff Base-0.1 node-1-1 | grep -c '^-lvm2 '",
        "1",
    ),
    ("imgbase diff >/dev/null && echo fine", "fine"),
    (
        "imgbase base --remove node-1-1 >/dev/null && imgbase layout | grep -c node",
        "0",
    ),
    // What boots.
    (
        "imgbase boot --set-default Base-0.2 >/dev/null && imgbase boot --get-default",
        "Base-0.1",
    ),
    ("imgbase rollback | tail -n 1", "next start: Base-0.1"),
    (
        "imgbase rollback --to Base-0.1 | tail -n 1",
        "next start: Base-0.1",
    ),
    ("imgbase boot --setup >/dev/null && echo done", "done"),
    ("imgbase boot --setup / >/dev/null && echo done", "done"),
    // Volumes.
    (
        "imgbase --experimental volume --create /home 100M 2>/dev/null",
        "/home is on HostVG/home now",
    ),
    ("imgbase volume --list", "/home"),
    (
        "imgbase volume --remove /home >/dev/null && imgbase volume --list",
        "",
    ),
    (
        "imgbase volume --create /home 100 >/dev/null 2>&1 && imgbase volume --detach /home >/dev/null && \
         imgbase volume --list",
        "",
    ),
    // A group on another disk, and one that is there.
    (
        "imgbase layout --init 2>&1 || echo $?",
        "error: HostVG/Base-0.1 is managed already; `imgbased-helper layout` shows it\n1",
    ),
    (
        "imgbase --vg Seed --thinpool Pool layout --init --size 2G /dev/disk/by-id/virtio-spare 2>/dev/null",
        "volume group Seed is ready for a base",
    ),
    (
        "lvm lvs --noheadings --units m -o lv_size Seed/Pool",
        "2048.00m",
    ),
    (
        "imgbase --vg Seed layout 2>&1 || echo $?",
        "error: Seed has no base\n1",
    ),
    (
        "imgbase layout --init --from Installed/root --init-nvr node-1-1 2>/dev/null",
        "node-1-1\nnode-1-1+1",
    ),
    ("imgbase --vg Installed layout", "node-1-1\n +- node-1-1+1"),
];

fn each_form_of_imgbase_is_taken_as_it_was_typed() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "imgbase")?;
    vm.ok(&script("make-extra")?)?;
    vm.ok(&script("make-small-installed")?)?;
    print(&mut vm, FORMS)
}

/// Types commands, and claims what they print. An exit status other than 0 is part of what is typed, or that of grep.
fn print(vm: &mut Vm, forms: &[(&str, &str)]) -> Result<()> {
    for (typed, expected) in forms {
        let got = vm.run_for(typed, SLOW)?.text;
        ensure!(got == *expected, "{typed}: {got:?}, and not {expected:?}");
    }
    Ok(())
}

fn a_group_that_imgbased_made_is_taken_over_and_updated() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "imgbased-group")?;
    vm.ok_for(&script("make-imgbased")?, SLOW)?;
    let tree = format!("{FIRST}\n +- {LAYER}\nnode-4.5.5-0.el8\n +- node-4.5.5-0.el8+1");
    print(
        &mut vm,
        &[
            ("imgbase --vg onn layout", tree.as_str()),
            ("imgbase --vg onn base --latest", "node-4.5.5-0.el8"),
            ("imgbase --vg onn layer --latest", "node-4.5.5-0.el8+1"),
            ("imgbase --vg onn check | head -n 1", "Status: FAILED"),
            ("imgbase --vg onn check >/dev/null || echo $?", "1"),
            // As scripts tell bases from layers.
            ("imgbase --vg onn layout | grep -vc +", "2"),
            ("imgbase --vg onn layout | grep -c '^[A-Za-z]'", "2"),
            ("imgbase --vg onn layout | grep -c '^ .*+'", "2"),
        ],
    )?;
    // What is said does not count, but that nothing is left.
    vm.run_for("imgbased-helper --vg onn check --repair", SLOW)?;
    print(&mut vm, &[("imgbased-helper --vg onn check", "")])?;
    let state = "lvm lvs --noheadings --separator ' ' -o lv_name,lv_tags,lv_attr onn | sed 's/^ *//; s/ *$//'";
    let volumes = vm.ok(state)?;
    for row in [
        format!("{FIRST} imgbased:layer Vri---tz-k"),
        format!("{LAYER} imgbased:layer Vwi---tz-k"),
        "root imgbased:init Vwi---tz--".to_owned(),
        "var_log imgbased:volume Vwi---tz--".to_owned(),
    ] {
        ensure!(volumes.lines().any(|line| line == row), "{row}: {volumes}");
    }
    // Without a try that is counted: GRUB boots no entry on trial by default.
    vm.ok(&format!(
        "imgbased-helper --vg onn boot default --tries 0 {LAYER}"
    ))?;
    vm.power_off()?;

    let start = Start {
        restarts: true,
        ..Start::default()
    };
    let mut vm = disk.start("taken-over", vec![disk.existing("spare")], start)?;
    vm.log_in()?;
    has_root(&mut vm, "onn", LAYER)?;
    let here = format!("You are on {LAYER}");
    print(
        &mut vm,
        &[
            ("imgbase w", here.as_str()),
            ("imgbase w | awk '{ print $NF }'", LAYER),
            ("imgbase w | cut -d + -f 1", "You are on node-4.5.4-0.el8"),
            ("imgbase w | grep -oE '[0-9]+\\.[0-9.]+-'", "4.5.4-"),
            ("imgbase layer --current", LAYER),
            ("imgbase layout", tree.as_str()),
            ("imgbase boot --get-default", LAYER),
            ("imgbase volume --list", "/var/log"),
            (
                "findmnt -no SOURCE /var/log; cat /var/log/mark",
                "/dev/mapper/onn-var_log\non-the-volume",
            ),
            (
                "imgbased-helper volume grow /var/log 300M && cat /var/log/mark",
                "/var/log has 300.00 MiB now\non-the-volume",
            ),
            (
                "imgbase volume --detach /var/log 2>&1 | grep -c 'var-log.mount of this layer mounts onn/var_log at /var/log'",
                "1",
            ),
            ("imgbase check", ALL_WELL),
        ],
    )?;
    gets_a_volume_for_what_is_carried(&mut vm)?;

    vm.ok(&script("make-next")?)?;
    let said = vm.ok_for(
        "imgbase --debug update --format liveimg /mnt/next 2>/dev/null",
        SLOW,
    )?;
    let last = said.lines().last().unwrap_or_default();
    ensure!(last.starts_with("Base-0.1 becomes the default"), "{said}");
    let layout = vm.ok("imgbase layout")?;
    ensure!(layout.contains(&tree), "{layout}");
    restart(&mut vm)?;
    has_root(&mut vm, "onn", "Base-0.1")?;
    print(
        &mut vm,
        &[
            ("imgbase w", "You are on Base-0.1"),
            ("cat /etc/mark", "of the host"),
            ("cat /etc/installer && id -u keeper", "installed\n1000"),
            (
                "findmnt -no SOURCE /var/log; cat /var/log/mark",
                "/dev/mapper/onn-var_log\non-the-volume",
            ),
            ("imgbase base --of-layer Base-0.1", "Base-0"),
            ("imgbase check | head -n 1", "Status: OK"),
        ],
    )?;
    assert_eq!(json(&mut vm, "status")?["default"], "Base-0.1");
    let said = vm.ok("imgbase rollback")?;
    ensure!(said.ends_with(&format!("next start: {LAYER}")), "{said}");
    restart(&mut vm)?;
    has_root(&mut vm, "onn", LAYER)?;
    print(&mut vm, &[("imgbase w", here.as_str())])?;
    vm.power_off().map(drop)
}

/// imgbased has made none.
fn gets_a_volume_for_what_is_carried(vm: &mut Vm) -> Result<()> {
    print(
        vm,
        &[
            (
                "imgbased-helper persist list; imgbased-helper --dry-run persist add /srv/own | grep -c 'lvcreate.*Config'",
                "1",
            ),
            (
                "mkdir -p /srv/own && imgbased-helper persist add /srv/own && imgbased-helper persist list",
                "/srv/own",
            ),
            (
                "lvm lvs --noheadings -o pool_lv,lv_tags onn/Config | xargs",
                "pool00 imgbased:volume",
            ),
            ("imgbase check", ALL_WELL),
        ],
    )
}

const ALL_WELL: &str =
    "Status: OK\nBootloader ... OK\nMount points ... OK\nBasic storage ... OK\nThin storage ... OK";
