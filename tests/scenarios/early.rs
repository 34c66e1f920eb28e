//! From the kernel command line to the mounted root: kinds of initramfs, kinds of disks, and what
//! happens when something is wrong. QEMU starts the kernel itself.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::has_root;
use crate::vm::cpio;
use crate::vm::guest::{quote, script};
use crate::vm::qemu::Kernel;
use crate::vm::{
    Disk, Host, HostDisk, Loader, OPTIONS, Rescue, RootImage, Start, Vm, boot_image, convert_to_raw,
};

/// From the start of a machine to its end, on slow machines under software emulation.
const LIMIT: Duration = Duration::from_secs(400);

scenarios![
    bookworm_boots_a_layer_with_and_without_systemd,
    each_failure_is_named_before_the_shell_or_the_restart;
    turns:
    disks_that_come_late_or_never,
    a_disk_that_comes_late_is_unlocked_by_dracuts_loop,
    forky_boots_a_layer_with_and_without_systemd,
    trixie_boots_a_layer_with_and_without_systemd,
    without_systemd_a_failure_ends_in_a_shell_or_a_restart,
    a_second_group_of_the_name_is_told_apart_by_its_uuid;
    long:
    a_break_comes_before_the_root_is_mounted,
    a_trial_that_waits_for_a_person_restarts,
    a_trial_restarts_also_where_a_filesystem_hangs,
    an_image_for_this_host_only_boots_its_other_layers,
    a_layer_on_a_stack_of_devices_among_other_disks,
];

fn bookworm_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("bookworm", "systemd.volatile=yes")
}

fn trixie_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("trixie", "root=/dev/nonexistent")
}

fn forky_boots_a_layer_with_and_without_systemd() -> Result<()> {
    boots_with_both_kinds("forky", "systemd.volatile=overlay")
}

/// Boots a layer of the installed host with the kernel and each initramfs of a release of Debian. Of an `option` of
/// systemd for another root nothing is mounted or waited for.
fn boots_with_both_kinds(suite: &'static str, option: &str) -> Result<()> {
    let image = RootImage::of(suite)?;
    for (kind, initrd, option) in [
        ("systemd", image.initrd(), option),
        ("hooks", image.initrd_without_systemd(), ""),
    ] {
        let disk = Host::prepared()?.disk(&format!("{suite}-{kind}"))?;
        let cmdline = format!("imgbased.layer=Base-0.2 {option}");
        let mut vm = boot_initrd(&disk, "once", image, &initrd, &cmdline, Vec::new())?;
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
        let log = vm.ok("journalctl --boot --no-pager --identifier imgbased")?;
        ensure!(
            option.is_empty() || log.contains(&format!("{option} is ignored")),
            "{log}"
        );
        vm.say(&format!("{} ms", record["milliseconds"]));
        let console = vm.power_off()?;
        ensure!(!after_the_system(&console).contains("busy"), "{console}");
    }
    Ok(())
}

fn an_image_for_this_host_only_boots_its_other_layers() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "hostonly")?;
    let size = vm.ok_for(&script("hostonly")?, LIMIT)?;
    let size = size.lines().last().and_then(|size| size.parse().ok());
    vm.power_off()?;
    let initrd = disk.path().with_file_name("initrd.img");
    convert_to_raw(&disk.path().with_file_name("spare.qcow2"), &initrd)?;
    let file = File::options().write(true).open(&initrd)?;
    file.set_len(size.context("no size")?)?;
    let (image, layer) = (RootImage::prepared()?, "imgbased.layer=Base-0.2");
    let mut vm = boot_initrd(&disk, "other", image, &initrd, layer, Vec::new())?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.2")
}

fn disks_that_come_late_or_never() -> Result<()> {
    let disk = Host::prepared()?.disk("disks")?;
    let second = || disk.existing("spare");
    disk.spare("spare", Rescue::SPARE_SIZE)?;
    let prepare = |command: &str| {
        let host = Disk::writable(disk.path(), "host");
        let mut vm = Rescue::prepared()?.with_both("disks-prepare", host, second())?;
        vm.ok(command)?;
        leave(vm)
    };
    prepare(
        "pvcreate -qq /dev/disk/by-id/virtio-spare && \
         vgextend -qq HostVG /dev/disk/by-id/virtio-spare",
    )?;
    let layer = "imgbased.layer=Base-0.1 imgbased.timeout=15";
    let mut vm = boot(&disk, "unused-missing", layer, Vec::new())?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    let log = vm.ok("journalctl --boot --no-pager --identifier imgbased")?;
    ensure!(
        log.contains("1 disks of HostVG are missing after 15 s, trying without"),
        "{log}"
    );
    vm.power_off()?;

    prepare("lvextend -qq -l +100%FREE HostVG/ImagePool /dev/disk/by-id/virtio-spare")?;
    let cmdline = format!("{layer} imgbased.onfail=reboot");
    let vm = boot(&disk, "missing", &cmdline, Vec::new())?;
    restarts(vm, "HostVG/Base-0.1 needs a disk that is missing")?;
    let mut vm = boot(&disk, "both", "imgbased.layer=Base-0.1", vec![second()])?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    vm.power_off()?;

    let mut vm = boot(&disk, "late", "imgbased.layer=Base-0.1", Vec::new())?;
    vm.wait_for(
        "imgbased: waiting up to 90 s for the disks of HostVG; 1 of its 2 disks are there",
    )?;
    vm.plug(&second())?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")
}

/// With systemd as well: nothing on the command line names the disk, so it is unlocked by what udev gives to the loop.
/// The loop gives up after five seconds by itself. The password is typed when the time for the disks is over, and its key
/// takes seconds.
fn a_disk_that_comes_late_is_unlocked_by_dracuts_loop() -> Result<()> {
    let disk = Host::prepared()?.disk("unlocked-late")?;
    let locked = || disk.existing("spare");
    let mut vm = rescue_with_spare(&disk, "unlocked-late-prepare")?;
    vm.ok(&format!(
        "{} && \
         printf secret | cryptsetup open /dev/disk/by-id/virtio-spare opened - && \
         pvcreate -qq /dev/mapper/opened && vgextend -qq HostVG /dev/mapper/opened && \
         lvextend -qq -l +100%FREE HostVG/ImagePool /dev/mapper/opened",
        encrypt("spare", 300_000)
    ))?;
    leave(vm)?;

    let cmdline = "imgbased.layer=Base-0.1 rd.auto rd.retry=5 imgbased.timeout=30";
    let mut vm = boot(&disk, "once", cmdline, Vec::new())?;
    vm.wait_for("1 of its 2 disks are there")?;
    vm.plug(&locked())?;
    vm.wait_for("Please enter passphrase")?;
    thread::sleep(Duration::from_secs(30));
    vm.type_line("secret")?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    vm.power_off()?;

    // dracut asks itself then, and the helper does not know of that.
    let image = RootImage::prepared()?;
    let cmdline = format!("imgbased.layer=Base-0.1 rd.luks.uuid={LOCKED_UUID} imgbased.timeout=10");
    let initrd = image.initrd_without_systemd();
    let mut vm = boot_initrd(&disk, "hooks", image, &initrd, &cmdline, vec![locked()])?;
    vm.wait_for("Enter passphrase for")?;
    vm.wait_for("needs a disk that is missing")?;
    vm.type_line("secret")?;
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")
}

/// The UUID that an encrypted disk gets.
const LOCKED_UUID: &str = "11111111-2222-4333-8444-555555555555";

/// The command that encrypts the disk with this serial number. To unlock it takes as long as so many iterations.
fn encrypt(serial: &str, iterations: u32) -> String {
    format!(
        "printf secret | cryptsetup luksFormat --batch-mode --uuid {LOCKED_UUID} \
         --pbkdf pbkdf2 --pbkdf-force-iterations {iterations} /dev/disk/by-id/virtio-{serial} -"
    )
}

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
    let mut disks = vec![Disk::writable(disk.path(), "host")];
    disks.extend(spares);
    let mut vm = boot_image(RootImage::prepared()?, "stack-prepare", disks)?;
    vm.ok_for(&format!("bash -c {}", quote(&script("stack")?)), LIMIT)?;
    leave(vm)?;
    let existing = || -> Vec<Disk> {
        let serials = ["half1", "half2", "foreign"].into_iter().chain(others);
        serials.map(|serial| disk.existing(serial)).collect()
    };
    let cmdline = "imgbased.vg=my-vg_1 imgbased.layer=node-ng-4.4+1 \
                   rd.md.uuid=11111111:22222222:33333333:44444444 \
                   rd.luks.uuid=11111111-2222-4333-8444-555555555555";
    let mut vm = boot(&disk, "once", cmdline, existing())?;
    vm.wait_for("Please enter passphrase")?;
    vm.type_line("secret")?;
    vm.log_in()?;
    runs_layer(&mut vm, "my-vg_1", "node-ng-4.4+1")?;
    assert_eq!(vm.ok("findmnt -no FSTYPE /")?, "xfs");
    // lvm2-monitor.service looks at all volumes of all groups before it stops.
    vm.ok("wipefs -qaf /dev/disk/by-id/virtio-foreign")?;
    let raid = vm.ok("ls /sys/block | grep ^md")?;
    vm.ok("touch /root/mark && dmesg -n debug")?;
    let console = vm.power_off()?;
    let console = after_the_system(&console);
    // systemd has said of each device below the root that it is busy.
    ensure!(!console.contains("imgbased: cannot"), "{console}");
    let mut rest = console;
    for name in [
        "my--vg_1-node--ng--4.4+1",
        "my--vg_1-ImagePool-tpool",
        "luks-11111111-2222-4333-8444-555555555555",
        &raid,
    ] {
        let line = format!("imgbased: removed the device {name}");
        let found = rest.split_once(&line);
        (_, rest) = found.with_context(|| format!("not {line:?}, or too early: {console}"))?;
    }

    let mut disks = vec![Disk::writable(disk.path(), "host")];
    disks.extend(existing());
    let mut vm = boot_image(RootImage::prepared()?, "stack-look", disks)?;
    vm.ok_for(&script("look-at-stack")?, LIMIT).map(drop)
}

/// See the script.
const HANG: &str = include_str!("../guest/hang-a-filesystem.sh");

/// The first failure: what is on the command line, and what the console says.
const UNKNOWN_LAYER: (&str, &str) = (
    "imgbased.layer=Base-9.9 imgbased.timeout=5",
    "no layer Base-9.9 in HostVG; there are: Base-0 Base-0.1 Base-0.2 Base-0.3 Base-0.4 Base-0.5",
);

/// The others.
const FAILURES: [(&str, &str); 8] = [
    (
        "imgbased.layer=../x",
        "imgbased.layer= on the kernel command line: volume name \"../x\" contains '/'",
    ),
    (
        "imgbased.layer=Base-0.1 imgbased.vg=a/b",
        "imgbased.vg= on the kernel command line: volume group name \"a/b\" contains '/'",
    ),
    (
        "imgbased.layer=Base-0.1 imgbased.vg=Other imgbased.timeout=5",
        "volume group Other not found within 5 s; physical volumes of other groups were seen on /dev/vda3",
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

/// What is done to the pool of a host, and what the console says then.
const DAMAGED_POOLS: [(&str, &str); 2] = [
    ("damage-pool", "the check of the thin pool failed"),
    (
        "damage-transaction",
        "the thin pool and the LVM metadata of HostVG are not of the same transaction",
    ),
];

/// One failure restarts a machine, and one ends in a shell. That machine is saved, and provokes the others.
fn each_failure_is_named_before_the_shell_or_the_restart() -> Result<()> {
    let disk = Host::prepared()?.disk("failures")?;
    let host = Disk::writable(disk.path(), "host");
    let mut vm = Rescue::prepared()?.with("failures-prepare", host)?;
    vm.ok_for(&script("damage-layers")?, LIMIT)?;
    leave(vm)?;

    let (cmdline, message) = FAILURES[5];
    let unattended = format!("{cmdline} imgbased.onfail=reboot");
    restarts(boot(&disk, "restart", &unattended, Vec::new())?, message)?;

    let (cmdline, message) = UNKNOWN_LAYER;
    let mut vm = boot(&disk, "shell", cmdline, Vec::new())?;
    let console = vm.enter_emergency_shell()?;
    let said = console.matches(&format!("imgbased: {message}")).count();
    ensure!(said == 1, "{said} times {message:?}: {console}");
    ensure!(
        vm.run("findmnt -n /sysroot")?.status != 0,
        "something is mounted"
    );
    cannot_be_retried(&mut vm, message)?;
    let shell = Shell::save(vm, &disk)?;

    let mut wrong = Vec::new();
    let mut check = |what: &str, result: Result<()>| {
        wrong.extend(result.err().map(|error| format!("{what}: {error:#}")));
    };
    for (cmdline, message) in FAILURES {
        check(
            cmdline,
            shell.fails(&shell.disk, cmdline, message).map(drop),
        );
    }
    for (damage, message) in DAMAGED_POOLS {
        check(
            damage,
            damaged_pool_is_not_repaired(&shell, damage, message),
        );
    }
    check("marked", marked_pool_is_checked(&shell));
    check("mended", shell.goes_on_when_it_is_mended());
    check("fallback", shell.falls_back());
    check("unlocked", shell.is_kept_where_a_volume_was_unlocked());
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The disk of a host, after a script of this name has run on it in another system.
fn changed_in_rescue(name: &str) -> Result<HostDisk> {
    let disk = Host::prepared()?.disk(name)?;
    let host = Disk::writable(disk.path(), "host");
    let mut vm = Rescue::prepared()?.with("failures-prepare", host)?;
    vm.ok(&script(name)?)?;
    leave(vm)?;
    Ok(disk)
}

fn damaged_pool_is_not_repaired(shell: &Shell, damage: &str, message: &str) -> Result<()> {
    let disk = changed_in_rescue(damage)?;
    let mut vm = shell.fails(disk.path(), "imgbased.layer=Base-0.1", message)?;
    assert_eq!(vm.ok("lvm lvs HostVG >/dev/null && echo whole")?, "whole");
    Ok(())
}

/// Claims that a pool for which the kernel has asked for a whole check gets one, and can be written to.
fn marked_pool_is_checked(shell: &Shell) -> Result<()> {
    let disk = changed_in_rescue("mark-pool")?;
    let mut vm = shell.with(disk.path(), "imgbased.layer=Base-0.1")?;
    vm.ok_for("imgbased-helper initrd mount", LIMIT)?;
    let log = vm.ok("dmesg")?;
    ensure!(
        log.contains("imgbased: checking the whole thin pool of HostVG"),
        "{log}"
    );
    let pool = vm.ok("findmnt -n /sysroot >&2; dmsetup status HostVG-ImagePool-tpool")?;
    ensure!(
        pool.contains(" rw ") && !pool.contains("needs_check"),
        "{pool}"
    );
    Ok(())
}

/// A machine that was saved in the emergency shell of its initramfs, before anything was activated.
struct Shell {
    state: PathBuf,
    /// The host's disk, which stays as it is.
    disk: PathBuf,
}

impl Shell {
    fn save(mut vm: Vm, disk: &HostDisk) -> Result<Self> {
        let state = disk.path().with_file_name("state");
        // Another disk may be there when it goes on.
        vm.ok("udevadm settle; sync; echo 3 >/proc/sys/vm/drop_caches")?;
        vm.save(&state)?;
        let disk = disk.path().to_owned();
        Ok(Self { state, disk })
    }

    /// The machine with the host's disk `disk`, and with `cmdline` on its kernel command line.
    fn with(&self, disk: &Path, cmdline: &str) -> Result<Vm> {
        let start = Start {
            saved: Some(&self.state),
            restarts: true,
            ..Start::default()
        };
        let disk = Disk::forgetful(disk, "qcow2", "host");
        let mut vm = Vm::start("failures-again", &[disk], &start)?;
        vm.ok(&format!(
            "dmesg -c >/dev/null; echo {} >/run/cmdline && mount --bind /run/cmdline /proc/cmdline",
            quote(cmdline)
        ))?;
        // The kernel would have set them aside.
        if let Some((_, pages)) = cmdline.split_once("hugepages=") {
            vm.ok(&format!("echo {pages} >/proc/sys/vm/nr_hugepages"))?;
        }
        Ok(vm)
    }

    /// Claims that the layer of `cmdline` cannot be mounted, and that the console says why, once.
    fn fails(&self, disk: &Path, cmdline: &str, message: &str) -> Result<Vm> {
        let mut vm = self.with(disk, cmdline)?;
        let got = vm.run("imgbased-helper initrd mount 2>/dev/null")?;
        ensure!(got.status == 1, "{got:?}");
        let log = vm.ok("dmesg")?;
        let said = log.matches(&format!("imgbased: {message}")).count();
        ensure!(said == 1, "{said} times {message:?}: {log}");
        ensure!(
            vm.run("findmnt -n /sysroot")?.status != 0,
            "something is mounted"
        );
        cannot_be_retried(&mut vm, message)?;
        Ok(vm)
    }

    fn goes_on_when_it_is_mended(&self) -> Result<()> {
        let mut vm = self.fails(&self.disk, FAILURES[4].0, FAILURES[4].1)?;
        vm.run("e2fsck -fy /dev/mapper/HostVG-Base--0.4")?;
        vm.type_line("imgbased-helper initrd retry")?;
        vm.log_in()?;
        runs_layer(&mut vm, "HostVG", "Base-0.4")
    }

    fn is_kept_where_a_volume_was_unlocked(&self) -> Result<()> {
        let mut vm = self.with(&self.disk, "imgbased.layer=Base-0.1")?;
        vm.ok("imgbased-helper initrd may-open-shell")?;
        vm.ok("dmsetup create opened --uuid CRYPT-LUKS2-opened --table '0 8 error'")?;
        let got = vm.run("imgbased-helper initrd may-open-shell")?;
        ensure!(got.status == 1, "{got:?}");
        let log = vm.ok("dmesg")?;
        ensure!(
            log.contains("since a volume was unlocked without a person"),
            "{log}"
        );
        Ok(())
    }

    fn falls_back(&self) -> Result<()> {
        let cmdline = "imgbased.layer=Base-0.5 imgbased.fallback=Base-0.2";
        let mut vm = self.with(&self.disk, cmdline)?;
        vm.type_line("imgbased-helper initrd retry")?;
        vm.log_in()?;
        let status = vm.ok("imgbased-helper status")?;
        ensure!(
            status
                .contains("Base-0.2, a layer of Base-0, as the fallback of Base-0.5, which failed"),
            "{status}"
        );
        Ok(())
    }
}

fn a_second_group_of_the_name_is_told_apart_by_its_uuid() -> Result<()> {
    let disk = Host::prepared()?.disk("twin")?;
    let twin = || disk.existing("spare");
    let mut vm = rescue_with_spare(&disk, "twin-prepare")?;
    let uuid = vm.ok("vgs --noheadings -o vg_uuid HostVG")?;
    vm.ok_for(&script("make-twin")?, LIMIT)?;
    vm.switch_off()?;

    // The other one is complete before the right one appears.
    let cmdline = format!("{OPTIONS} imgbased.layer=Base-0.1 imgbased.vgid={uuid}");
    let image = RootImage::prepared()?;
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd: &image.initrd(),
        cmdline: &cmdline,
    };
    let start = Start {
        kernel: Some(&kernel),
        ..Start::default()
    };
    let mut vm = Vm::start("twin-late", &[twin()], &start)?;
    vm.wait_for(
        "imgbased: waiting up to 90 s for the disks of HostVG; another group of that name",
    )?;
    vm.plug(&Disk::writable(disk.path(), "host"))?;
    vm.log_in()?;
    runs_layer_of(&mut vm, &uuid)?;
    vm.power_off()?;

    // Without the UUID neither is booted; a person who gives it goes on.
    let cmdline = "imgbased.layer=Base-0.1 imgbased.timeout=5";
    let mut vm = boot(&disk, "both", cmdline, vec![twin()])?;
    let console = vm.enter_emergency_shell()?;
    ensure!(
        console.contains("imgbased: there are several volume groups HostVG with Base-0.1"),
        "{console}"
    );
    vm.ok(&format!(
        "echo imgbased.layer=Base-0.1 imgbased.vgid={uuid} >/run/cmdline && \
         mount --bind /run/cmdline /proc/cmdline"
    ))?;
    // Somebody knew its name only.
    let twin = "--devices $(readlink -f /dev/disk/by-id/virtio-spare) HostVG/Base-0.1";
    vm.ok(&format!("lvm lvchange --yes -K -ay {twin}"))?;
    let got = vm.run("imgbased-helper initrd mount")?;
    ensure!(
        got.status == 1 && got.text.contains("is active, but of another group"),
        "{got:?}"
    );
    vm.ok(&format!("lvm lvchange -an {twin}"))?;
    vm.type_line("imgbased-helper initrd retry")?;
    vm.log_in()?;
    runs_layer_of(&mut vm, &uuid)
}

/// Claims that the root is Base-0.1 of the group with this UUID, and that the boot was recorded as good, though
/// there is another group of that name.
fn runs_layer_of(vm: &mut Vm, uuid: &str) -> Result<()> {
    let device = vm.ok("cat /sys/dev/block/$(mountpoint -d /)/dm/uuid")?;
    let expected = format!("LVM-{}", uuid.replace('-', ""));
    ensure!(device.starts_with(&expected), "{device} is not of {uuid}");
    assert_eq!(
        vm.ok("findmnt -no SOURCE /")?,
        "/dev/mapper/HostVG-Base--0.1"
    );
    assert_eq!(
        vm.run("systemctl is-active imgbased-bless.service")?.text,
        "active"
    );
    let status = vm.ok("imgbased-helper status")?;
    ensure!(status.contains("Base-0.1"), "{status}");
    Ok(())
}

fn a_break_comes_before_the_root_is_mounted() -> Result<()> {
    let disk = Host::prepared()?.disk("break")?;
    let cmdline = "imgbased.layer=Base-0.1 rd.break=pre-mount rd.break=mount";
    let is_before_the_mount = |vm: &mut Vm| -> Result<()> {
        ensure!(vm.run("findmnt -n /sysroot")?.status != 0, "it is mounted");
        vm.type_line("exit")
    };
    let mut vm = boot(&disk, "systemd", cmdline, Vec::new())?;
    for _ in ["pre-mount", "mount"] {
        vm.enter_emergency_shell()?;
        is_before_the_mount(&mut vm)?;
    }
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")?;
    vm.power_off()?;

    let image = RootImage::prepared()?;
    let initrd = image.initrd_without_systemd();
    let mut vm = boot_initrd(&disk, "hooks", image, &initrd, cmdline, Vec::new())?;
    for _ in ["pre-mount", "mount"] {
        vm.enter_debug_shell()?;
        is_before_the_mount(&mut vm)?;
    }
    vm.log_in()?;
    runs_layer(&mut vm, "HostVG", "Base-0.1")
}

/// A question for a password with systemd, and a shell without.
fn a_trial_that_waits_for_a_person_restarts() -> Result<()> {
    let disk = Host::prepared()?.disk("trial-waits")?;
    let locked = || disk.existing("spare");
    let mut vm = rescue_with_spare(&disk, "trial-waits-prepare")?;
    vm.ok(&format!("{} && sync", encrypt("spare", 1000)))?;
    vm.switch_off()?;

    // The group is on a disk that nobody unlocks.
    let trial = "imgbased.layer=Base-0.1 imgbased.onfail=reboot imgbased.timeout=5";
    let cmdline = format!("{trial} imgbased.vg=Locked rd.luks.uuid={LOCKED_UUID}");
    let mut vm = boot(&disk, "password", &cmdline, vec![locked()])?;
    vm.wait_for("Please enter passphrase")?;
    takes_too_long(vm)?;

    // The system that was suspended to it is gone, as is the disk.
    let cmdline = format!("{trial} resume=UUID={LOCKED_UUID}");
    let vm = boot(&disk, "resume", &cmdline, Vec::new())?;
    takes_too_long(vm)?;

    let image = RootImage::prepared()?;
    let initrd = image.initrd_without_systemd();
    let cmdline = format!("{trial} rd.break=pre-mount");
    let mut vm = boot_initrd(&disk, "shell", image, &initrd, &cmdline, Vec::new())?;
    vm.wait_for("Break before pre-mount")?;
    takes_too_long(vm)
}

fn a_trial_restarts_also_where_a_filesystem_hangs() -> Result<()> {
    let disk = Host::prepared()?.disk("trial-hangs")?;
    let spare = || disk.existing("spare");
    let mut vm = rescue_with_spare(&disk, "trial-hangs-prepare")?;
    vm.ok("mkfs.ext4 -q /dev/disk/by-id/virtio-spare && sync")?;
    vm.switch_off()?;

    let image = RootImage::prepared()?;
    let cmdline =
        "imgbased.layer=Base-0.1 imgbased.onfail=reboot imgbased.timeout=40 imgbased.vg=Other";
    for (kind, initrd) in [
        ("systemd", image.initrd()),
        ("hooks", image.initrd_without_systemd()),
    ] {
        // One archive behind another, at a multiple of four bytes.
        let mut content = std::fs::read(&initrd)?;
        content.resize(content.len().next_multiple_of(4), 0);
        content.extend(cpio::archive(&[
            ("usr/lib/dracut/hooks/cmdline/00-hang.sh", HANG),
            ("var/lib/dracut/hooks/cmdline/00-hang.sh", HANG),
        ]));
        let initrd = disk.path().with_file_name("initrd.img");
        std::fs::write(&initrd, content)?;
        let vm = boot_initrd(&disk, kind, image, &initrd, cmdline, vec![spare()])?;
        let console = vm.wait_for_power_off(LIMIT)?;
        let (_, hanging) = console
            .split_once("the device is suspended")
            .context("nothing hangs")?;
        ensure!(hanging.contains("imgbased: restarting in 5 s"), "{console}");
        ensure!(!hanging.contains("the disks have all of it"), "{console}");
    }
    Ok(())
}

/// Claims that the machine restarts after the 5 seconds for disks and the 300 seconds for all else.
fn takes_too_long(vm: Vm) -> Result<()> {
    let console = vm.wait_for_power_off(LIMIT)?;
    let message = "imgbased: restarting in 5 s, the initramfs took longer than 305 s";
    ensure!(console.contains(message), "{console}");
    Ok(())
}

fn cannot_be_retried(vm: &mut Vm, message: &str) -> Result<()> {
    let got = vm.run("imgbased-helper initrd retry")?;
    ensure!(got.status == 1 && got.text.contains(message), "{got:?}");
    Ok(())
}

fn without_systemd_a_failure_ends_in_a_shell_or_a_restart() -> Result<()> {
    let disk = Host::prepared()?.disk("hooks-failure")?;
    let image = RootImage::prepared()?;
    let start = |name: &str, cmdline: &str| {
        let initrd = image.initrd_without_systemd();
        boot_initrd(&disk, name, image, &initrd, cmdline, Vec::new())
    };
    let missing = "imgbased.layer=Base-0.1 imgbased.vg=Other imgbased.timeout=10";
    let message = "volume group Other not found within 10 s";
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
    has_root(&mut vm, "Other", "Base-0.1")
}

/// A rescue system that has the host's disk and a further one, which is made, with the serial number `spare`.
fn rescue_with_spare(disk: &HostDisk, name: &str) -> Result<Vm> {
    disk.spare("spare", Rescue::SPARE_SIZE)?;
    let host = Disk::writable(disk.path(), "host");
    Rescue::prepared()?.with_both(name, host, disk.existing("spare"))
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
        cmdline: &format!("{OPTIONS} {cmdline}"),
    };
    let start = Start {
        kernel: Some(&kernel),
        ..Start::default()
    };
    disk.start(name, others, start)
}

/// What the console says after systemd has stopped all units.
fn after_the_system(console: &str) -> &str {
    let (_, after) = console.rsplit_once("Reached target").unwrap_or_default();
    after
}

/// Leaves the disks of a host as a machine does that was switched off.
fn leave(mut vm: Vm) -> Result<()> {
    vm.ok("vgchange -q -an HostVG && udevadm settle && sync")?;
    vm.switch_off()
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
    has_root(vm, vg, layer)?;
    vm.run("systemctl is-system-running --wait")?;
    // The root has no modules for the kernels of other releases.
    let failed = vm.run("systemctl --failed --plain --no-legend | grep -v binfmt")?;
    ensure!(failed.text.is_empty(), "failed units: {}", failed.text);
    Ok(())
}
