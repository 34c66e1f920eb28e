//! From the kernel command line to the mounted root: kinds of initramfs, kinds of disks, and what
//! happens when something is wrong. QEMU starts the kernel itself. The machines are in `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use vm::qemu::Kernel;
use vm::{Disk, Echo, Host, HostDisk, RootImage, Vm, boot_image, convert_to_raw};

/// Where the console is; without `quiet`, so that a log has all.
const CONSOLE: &str = "console=ttyS0,115200";
/// From the start of a machine to its end, on slow machines under software emulation.
const LIMIT: Duration = Duration::from_secs(400);

#[test]
fn bookworm_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("bookworm")
}

#[test]
fn trixie_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("trixie")
}

#[test]
fn forky_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("forky")
}

/// Boots a layer of the installed host with the kernel and each initramfs of a release of Debian.
fn boots_with_both_kinds(suite: &str) -> Result<()> {
    let image = RootImage::of(suite)?;
    for (kind, initrd) in [
        ("systemd", image.initrd()),
        ("hooks", image.initrd_without_systemd()),
    ] {
        let disk = Host::prepared()?.disk(&format!("{suite}-{kind}"))?;
        let layer = "imgbased.layer=Base-0.2";
        let mut vm = boot_initrd(&disk, "once", &image, &initrd, layer, Vec::new())?;
        vm.log_in()?;
        runs_layer(&mut vm, "HostVG", "Base-0.2")?;
        let record = vm.ok("cat /run/imgbased/boot.json")?;
        let record: serde_json::Value = serde_json::from_str(&record)?;
        assert_eq!(record["layer"], "Base-0.2");
        let phases = record["phases"].as_array().into_iter().flatten();
        let names: Vec<_> = phases.map(|phase| phase["name"].as_str()).collect();
        // Where the disk was there in time, it was activated before.
        assert_eq!(names.first(), Some(&Some("drivers")), "{names:?}");
        let last = ["wait", "activate", "check", "mount"].map(Some);
        ensure!(names.ends_with(&last), "{names:?}");
        vm.say(&format!("{} ms", record["milliseconds"]));
        let console = vm.power_off()?;
        ensure!(!after_the_system(&console).contains("busy"), "{console}");
    }
    Ok(())
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn an_image_for_this_host_only_boots_its_other_layers() -> Result<()> {
    let disk = Host::prepared()?.disk("hostonly")?;
    let out = vec![disk.spare("out", "128M")?];
    let mut vm = boot(&disk, "build", "imgbased.layer=Base-0.1", out)?;
    vm.log_in()?;
    // With a root= of this layer in it, as dracut does it by itself.
    let size = vm.ok_for(
        "dracut --quiet --force --hostonly --hostonly-cmdline /root/initrd.img && \
         dd if=/root/initrd.img of=/dev/disk/by-id/virtio-out conv=fsync status=none && \
         stat -c %s /root/initrd.img",
        LIMIT,
    )?;
    let size = size.lines().last().and_then(|size| size.parse().ok());
    vm.power_off()?;
    let initrd = disk.path().with_file_name("initrd.img");
    convert_to_raw(&disk.path().with_file_name("out.qcow2"), &initrd)?;
    File::options()
        .write(true)
        .open(&initrd)?
        .set_len(size.context("no size")?)?;
    let (image, layer) = (RootImage::prepared()?, "imgbased.layer=Base-0.2");
    let mut vm = boot_initrd(&disk, "other", image, &initrd, layer, Vec::new())?;
    vm.log_in()?;
    assert_eq!(
        vm.ok("findmnt -no SOURCE /")?,
        "/dev/mapper/HostVG-Base--0.2"
    );
    Ok(())
}

#[test]
fn disks_that_come_late_or_never() -> Result<()> {
    let disk = Host::prepared()?.disk("disks")?;
    let spare = disk.spare("second", "1G")?;
    prepare(
        &disk,
        vec![spare],
        "pvcreate -qq /dev/disk/by-id/virtio-second && vgextend -qq HostVG /dev/disk/by-id/virtio-second",
    )?;
    let layer = "imgbased.layer=Base-0.1 imgbased.timeout=30";
    let mut vm = boot(&disk, "unused-missing", layer, Vec::new())?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    let log = vm.ok("journalctl --boot --no-pager --identifier imgbased")?;
    ensure!(
        log.contains("1 disks of HostVG are missing after 30 s, trying without"),
        "{log}"
    );
    vm.power_off()?;

    let spare = disk.existing("second");
    prepare(
        &disk,
        vec![spare],
        "lvextend -qq -l +100%FREE HostVG/ImagePool /dev/disk/by-id/virtio-second",
    )?;
    let vm = boot(
        &disk,
        "missing",
        &format!("{layer} imgbased.onfail=reboot"),
        Vec::new(),
    )?;
    restarts(vm, "HostVG/Base-0.1 needs a disk that is missing")?;
    let both = vec![disk.existing("second")];
    let mut vm = boot(&disk, "both", "imgbased.layer=Base-0.1", both)?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    vm.power_off()?;

    let mut vm = boot(&disk, "late", "imgbased.layer=Base-0.1", Vec::new())?;
    vm.wait_for(
        "imgbased: waiting up to 90 s for the disks of HostVG; 1 of its 2 disks are there",
    )?;
    vm.plug(&disk.existing("second"))?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")
}

/// A group of another name on a LUKS device on a RAID of two disks, with a layer of XFS; beside it a
/// group with as many volumes as its metadata can hold, and disks that hold something else.
const STACK: &str = "\
    cd /dev/disk/by-id && \
    mdadm --create /dev/md/stack --run --assume-clean --metadata=1.2 --level=1 --uuid=11111111:22222222:33333333:44444444 \
    --raid-devices=2 virtio-half1 virtio-half2 && \
    printf secret | cryptsetup luksFormat --batch-mode --uuid 11111111-2222-4333-8444-555555555555 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/md/stack - && \
    printf secret | cryptsetup open /dev/md/stack opened - && udevadm settle && \
    mount virtio-host-part2 /boot && lvm lvchange -qq -K -ay HostVG/Base-0 && mount -o ro,noload /dev/HostVG/Base-0 /mnt && \
    imgbased-helper --vg my-vg_1 layout init --device /dev/mapper/opened && \
    imgbased-helper --vg my-vg_1 base add --name node-ng-4.4 --fstype xfs --size 1200M /mnt && \
    imgbased-helper --vg my-vg_1 layer add node-ng-4.4 && umount /mnt /boot && \
    vgcreate -qq --metadatasize 16M Foreign /dev/disk/by-id/virtio-foreign && vgcfgbackup -qq -f /tmp/foreign Foreign && \
    awk '{ print } /^\tphysical_volumes/ { inside = 1 } \
         inside && /^\t}/ { inside = 0; print \"\tlogical_volumes {\"; for (n = 0; n < 4000; n++) printf \
         \"lv%d {\\nid = \\\"aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-%06d\\\"\\nstatus = [\\\"READ\\\", \\\"WRITE\\\", \\\"VISIBLE\\\"]\\nflags = []\\nsegment_count = 1\\nsegment1 {\\nstart_extent = 0\\nextent_count = 1\\ntype = \\\"striped\\\"\\nstripe_count = 1\\nstripes = [\\n\\\"pv0\\\", %d\\n]\\n}\\n}\\n\", n, n, n; print \"\t}\" }' \
        /tmp/foreign >/tmp/crowded && vgcfgrestore -qq -f /tmp/crowded Foreign && \
    [ $(lvs --noheadings Foreign | wc -l) = 4000 ] && vgchange -q -an my-vg_1 && cryptsetup close opened && \
    mke2fs -q virtio-other1 && mkswap virtio-other2";

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn a_layer_on_a_stack_of_devices_among_other_disks() -> Result<()> {
    let disk = Host::prepared()?.disk("stack")?;
    let mut spares = Vec::new();
    for (serial, size) in [("half1", "3G"), ("half2", "3G"), ("foreign", "32G")] {
        spares.push(disk.spare(serial, size)?);
    }
    let others = [
        "other1", "other2", "other3", "other4", "other5", "other6", "other7", "other8",
    ];
    for serial in others {
        spares.push(disk.spare(serial, "64M")?);
    }
    prepare_for(&disk, spares, STACK, LIMIT)?;
    let serials = ["half1", "half2", "foreign"].into_iter().chain(others);
    let disks = serials.map(|serial| disk.existing(serial)).collect();
    let cmdline = "imgbased.vg=my-vg_1 imgbased.layer=node-ng-4.4+1 \
                   rd.md.uuid=11111111:22222222:33333333:44444444 \
                   rd.luks.uuid=11111111-2222-4333-8444-555555555555";
    let mut vm = boot(&disk, "once", cmdline, disks)?;
    vm.wait_for("Please enter passphrase")?;
    vm.type_line("secret")?;
    vm.log_in()?;
    runs_layer(&mut vm, "my-vg_1", "node-ng-4.4+1")?;
    assert_eq!(vm.ok("findmnt -no FSTYPE /")?, "xfs");
    // lvm2-monitor.service looks at all volumes of all groups before it stops.
    vm.ok("wipefs -qaf /dev/disk/by-id/virtio-foreign")?;
    let console = vm.power_off()?;
    ensure!(!after_the_system(&console).contains("busy"), "{console}");
    Ok(())
}

/// Layers that cannot be booted, each in its own way.
const DAMAGE: &str = "\
    mount /dev/disk/by-id/virtio-host-part2 /boot && \
    for i in 3 4 5; do imgbased-helper layer add Base-0 || exit 1; done && \
    lvchange -K -ay HostVG/Base-0.3 HostVG/Base-0.4 HostVG/Base-0.5 && \
    mount /dev/HostVG/Base-0.4 /mnt && mkdir -p /mnt/srv/a/b/c && umount /mnt && \
    debugfs -w -R 'clri /srv/a' /dev/HostVG/Base-0.4 && debugfs -w -R 'ssv state 2' /dev/HostVG/Base-0.4 && \
    dd if=/dev/zero of=/dev/HostVG/Base-0.5 bs=1M count=1 conv=fsync && \
    lvchange -an HostVG/Base-0.3 HostVG/Base-0.4 HostVG/Base-0.5 && lvchange -ay HostVG/Config && \
    dmsetup message HostVG-ImagePool-tpool 0 \"delete $(lvs --noheadings -o thin_id HostVG/Base-0.3 | tr -d ' ')\" && \
    umount /boot";

/// What is on the command line, and what the console says.
const FAILURES: [(&str, &str); 9] = [
    (
        "imgbased.layer=Base-9.9",
        "no layer Base-9.9 in HostVG; there are: Base-0 Base-0.1 Base-0.2 Base-0.3 Base-0.4 Base-0.5",
    ),
    (
        "imgbased.layer=../x",
        "imgbased.layer= on the kernel command line: volume name \"../x\" contains '/'",
    ),
    (
        "imgbased.layer=Base-0.1 imgbased.vg=a/b",
        "imgbased.vg= on the kernel command line: volume group name \"a/b\" contains '/'",
    ),
    (
        "imgbased.layer=Base-0.1 imgbased.vg=Other imgbased.timeout=20",
        "volume group Other not found within 20 s; physical volumes of other groups were seen on /dev/vda3",
    ),
    (
        "imgbased.layer=Base-0.3",
        "HostVG/Base-0.3 is in the LVM metadata, but was never made in the pool",
    ),
    (
        "imgbased.layer=Base-0.4",
        "the filesystem on /dev/mapper/HostVG-Base--0.4 is damaged; repair it with: e2fsck -f /dev/mapper/HostVG-Base--0.4",
    ),
    (
        "imgbased.layer=Base-0.5",
        "/dev/mapper/HostVG-Base--0.5 holds no filesystem that is known",
    ),
    (
        "imgbased.layer=Base-0.1 rootfstype=otherfs",
        "cannot mount /dev/mapper/HostVG-Base--0.1 as otherfs",
    ),
    (
        "imgbased.layer=Base-0 hugepages=370",
        "not enough memory for the changes to a base",
    ),
];

#[test]
fn each_failure_is_named_before_an_unattended_host_restarts() -> Result<()> {
    let disk = Host::prepared()?.disk("restarts")?;
    prepare(&disk, Vec::new(), DAMAGE)?;
    each_failure(|number, cmdline, message| {
        let cmdline = format!("{cmdline} imgbased.onfail=reboot");
        restarts(boot(&disk, number, &cmdline, Vec::new())?, message)
    })
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn each_failure_is_named_before_the_shell_of_an_attended_host() -> Result<()> {
    let disk = Host::prepared()?.disk("shells")?;
    prepare(&disk, Vec::new(), DAMAGE)?;
    each_failure(|number, cmdline, message| {
        let mut vm = boot(&disk, number, cmdline, Vec::new())?;
        let console = vm.enter_emergency_shell()?;
        let said = console.matches(&format!("imgbased: {message}")).count();
        ensure!(said == 1, "{said} times {message:?}: {console}");
        ensure!(
            vm.run("findmnt -n /sysroot")?.status != 0,
            "something is mounted"
        );
        let retried = vm.run("imgbased-helper initrd retry")?;
        ensure!(
            retried.status == 1 && retried.text.contains(message),
            "{retried:?}"
        );
        Ok(())
    })?;
    // The one that can be mended there.
    let mut vm = boot(&disk, "mended", "imgbased.layer=Base-0.4", Vec::new())?;
    vm.enter_emergency_shell()?;
    vm.run("e2fsck -fy /dev/mapper/HostVG-Base--0.4")?;
    vm.type_line("imgbased-helper initrd retry")?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.4")?;
    drop(vm);

    let mut vm = boot(
        &disk,
        "fallback",
        "imgbased.layer=Base-0.5 imgbased.fallback=Base-0.2",
        Vec::new(),
    )?;
    vm.log_in()?;
    let status = vm.ok("imgbased-helper status")?;
    ensure!(
        status.contains("Base-0.2, a layer of Base-0, as the fallback of Base-0.5, which failed"),
        "{status}"
    );
    Ok(())
}

#[test]
fn without_systemd_a_failure_ends_in_a_shell_or_a_restart() -> Result<()> {
    let disk = Host::prepared()?.disk("hooks-failure")?;
    let image = RootImage::prepared()?;
    let start = |name: &str, cmdline: &str| {
        let initrd = image.initrd_without_systemd();
        boot_initrd(&disk, name, image, &initrd, cmdline, Vec::new())
    };
    let missing = "imgbased.layer=Base-0.1 imgbased.vg=Other imgbased.timeout=20";
    let message = "volume group Other not found within 20 s";
    let vm = start("restart", &format!("{missing} imgbased.onfail=reboot"))?;
    restarts(vm, message)?;
    let mut vm = start("shell", missing)?;
    let console = vm.enter_debug_shell()?;
    ensure!(
        console.contains(&format!("imgbased: {message}")),
        "{console}"
    );
    // Mended by a person who gives the group its name.
    vm.ok("lvm vgrename -qq HostVG Other && imgbased-helper initrd retry")?;
    vm.type_line("exit")?;
    vm.log_in()?;
    assert_eq!(
        vm.ok("findmnt -no SOURCE /")?,
        "/dev/mapper/Other-Base--0.1"
    );
    Ok(())
}

#[test]
fn a_pool_that_is_damaged_is_not_repaired() -> Result<()> {
    let begin = "pe=$(lvs -a --noheadings -o seg_pe_ranges HostVG/ImagePool_tmeta | sed 's/.*:\\([0-9]*\\)-.*/\\1/') && \
         start=$(pvs --noheadings --nosuffix --units k -o pe_start /dev/disk/by-id/virtio-host-part3 | sed 's/\\..*//')";
    for (name, damage, message) in [
        (
            "pool-check",
            format!("{begin} && head -c 4096 /dev/urandom | dd of=/dev/disk/by-id/virtio-host-part3 bs=1K seek=$((start + pe * 4096)) conv=fsync"),
            "the check of the thin pool failed",
        ),
        (
            "pool-transaction",
            "lvchange -ay HostVG/Config && id=$(dmsetup status HostVG-ImagePool-tpool | cut -d ' ' -f 4) && \
             dmsetup message HostVG-ImagePool-tpool 0 \"set_transaction_id $id $((id + 5))\"".to_owned(),
            "the thin pool and the LVM metadata of HostVG are not of the same transaction",
        ),
    ] {
        let disk = Host::prepared()?.disk(name)?;
        prepare(&disk, Vec::new(), &damage)?;
        let layer = "imgbased.layer=Base-0.1";
        let vm = boot(&disk, "restart", &format!("{layer} imgbased.onfail=reboot"), Vec::new())?;
        restarts(vm, message)?;
        let mut vm = boot(&disk, "shell", layer, Vec::new())?;
        let console = vm.enter_emergency_shell()?;
        ensure!(console.contains(message), "{console}");
        assert_eq!(vm.ok("lvm lvs HostVG >/dev/null && echo whole")?, "whole");
    }
    Ok(())
}

/// Provokes each failure; `boot` gets a name for the machine, the command line and the message.
fn each_failure(mut boot: impl FnMut(&str, &str, &str) -> Result<()>) -> Result<()> {
    let mut wrong = Vec::new();
    for (number, (cmdline, message)) in FAILURES.into_iter().enumerate() {
        let result = boot(&number.to_string(), cmdline, message);
        wrong.extend(result.err().map(|error| format!("{cmdline}: {error:#}")));
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Starts the host's kernel with this command line.
fn boot(disk: &HostDisk, name: &str, cmdline: &str, others: Vec<Disk>) -> Result<Vm> {
    let image = RootImage::prepared()?;
    boot_initrd(disk, name, image, &image.initrd(), cmdline, others)
}

/// Starts the kernel of an image with this initramfs and command line.
fn boot_initrd(
    disk: &HostDisk,
    name: &str,
    image: &RootImage,
    initrd: &Path,
    cmdline: &str,
    others: Vec<Disk>,
) -> Result<Vm> {
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd,
        cmdline: &format!("{CONSOLE} {cmdline}"),
    };
    disk.boot_kernel(name, &kernel, others, Echo::Silent)
}

/// What the console says after systemd has stopped all units.
fn after_the_system(console: &str) -> &str {
    let (_, after) = console.rsplit_once("Reached target").unwrap_or_default();
    after
}

/// Changes the disk of a host, and others, from another system.
fn prepare(disk: &HostDisk, others: Vec<Disk>, commands: &str) -> Result<()> {
    prepare_for(disk, others, commands, Duration::from_secs(180))
}

/// Like [`prepare`], with commands that may take up to `limit`.
fn prepare_for(disk: &HostDisk, others: Vec<Disk>, commands: &str, limit: Duration) -> Result<()> {
    let mut disks = vec![Disk::writable(disk.path(), "host")];
    disks.extend(others);
    let mut vm = boot_image(
        RootImage::prepared()?,
        &format!("{}-prepare", disk.name()),
        disks,
    )?;
    vm.ok_for(commands, limit)?;
    vm.ok("vgchange -q -an HostVG && udevadm settle")?;
    vm.power_off().map(drop)
}

/// Waits until the machine starts again, after it has said why.
fn restarts(vm: Vm, message: &str) -> Result<()> {
    let console = vm.wait_for_power_off(LIMIT)?;
    ensure!(
        console.contains(&format!("imgbased: {message}")),
        "not {message:?}: {console}"
    );
    ensure!(console.contains("imgbased: restarting in 5 s"), "{console}");
    Ok(())
}

/// Refuses a system whose root is not this layer, or where other layers are active as well.
fn runs_layer(vm: &mut Vm, vg: &str, layer: &str) -> Result<()> {
    let device = |name: &str| name.replace('-', "--");
    let source = vm.ok("findmnt -no SOURCE /")?;
    ensure!(
        source == format!("/dev/mapper/{}-{}", device(vg), device(layer)),
        "the root is {source}"
    );
    vm.run("systemctl is-system-running --wait")?;
    // The root has no modules for the kernels of other releases.
    let failed = vm.run("systemctl --failed --plain --no-legend | grep -v binfmt")?;
    ensure!(failed.text.is_empty(), "failed units: {}", failed.text);
    let active = vm.ok(&format!(
        "lvm lvs --noheadings -o lv_name --select 'lv_tags=imgbased:layer && lv_active=active' {vg} 2>/dev/null"
    ))?;
    assert_eq!(active.trim(), layer);
    Ok(())
}
