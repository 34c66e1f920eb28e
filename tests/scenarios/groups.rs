//! A group that gets another name or another UUID, by the commands of imgbased-helper-layout(8): a host that is renamed
//! while it runs, and disks that were copied or restored.

use anyhow::{Context, Result, bail, ensure};

use crate::claims::{device, has_root, is_clean, json};
use crate::vm::guest::script;
use crate::vm::verbs::{KILLED, STEPS_MAX, interrupted};
use crate::vm::{self, Disk, Host, HostDisk, Loader, Rescue, Saved, Vm, say};

scenarios![
    ;
    turns:
    a_host_that_is_renamed_goes_on_with_its_trial,
    a_copied_disk_gets_entries_of_its_own,
    a_restored_group_is_named_by_its_uuid_again;
    long:
    a_copied_disk_boots,
    what_is_renamed_is_killed_after_any_step,
];

const PAGE: &str = "imgbased-helper-layout.8";

/// Does what the page says below `heading`, with the disk of the host, which is another one there. Claims
/// that `check` finds something before its repair, and nothing after it; returns what it finds.
fn walk(vm: &mut Vm, heading: &str) -> Result<String> {
    let mut found = None;
    for command in vm::readme::commands_of_page(PAGE, heading)? {
        let command = command.replace("/dev/vdc", "/dev/vdb");
        let Some(check) = command.strip_suffix(" --repair") else {
            vm.ok(&command)?;
            continue;
        };
        let got = vm.run(check)?;
        ensure!(got.status == 3, "{check}: {got:?}");
        vm.ok(&command)?;
        assert_eq!(vm.ok(check)?, "");
        found = Some(got.text);
    }
    found.context("nothing is checked")
}

fn a_host_that_is_renamed_goes_on_with_its_trial() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "rename")?;
    vm.ok(&script("own-root-lines")?)?;
    vm.ok("imgbased-helper boot default Base-0.2")?;
    let found = walk(&mut vm, "### Rename")?;
    ensure!(
        found.contains("Renamed: 3 boot entries name it HostVG"),
        "{found}"
    );
    is_renamed(&mut vm)?;
    vm.power_off()?;

    let mut vm = disk.boot("renamed")?;
    vm.log_in()?;
    has_root(&mut vm, "Renamed", "Base-0.2")?;
    assert_eq!(
        vm.run("systemctl is-system-running --wait")?.text,
        "running"
    );
    assert_eq!(
        vm.ok("awk '$2 == \"/\" { print $1 }' /etc/fstab")?,
        "/dev/Renamed/Base-0.2"
    );
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "Base-0.2");
    is_clean(&mut vm)?;
    vm.power_off().map(drop)
}

/// Claims that the running Base-0.1 and all that boots are of the group by its new name, and that the trial of
/// Base-0.2 is on.
fn is_renamed(vm: &mut Vm) -> Result<()> {
    is_clean(vm)?;
    let status = json(vm, "status")?;
    assert_eq!(status["booted"], "Base-0.1");
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Base-0.2");
    assert_eq!(
        vm.ok("awk '$2 == \"/\" { print $1 }' /etc/fstab")?,
        device("Renamed", "Base-0.1")?
    );
    assert_eq!(
        vm.ok("ls /boot/loader/entries | xargs")?,
        "imgbased-Renamed-Base-0.1.conf imgbased-Renamed-Base-0.2.conf imgbased-Renamed-Base-0.conf"
    );
    assert_eq!(
        vm.ok("grep -rl -e HostVG -e imgbased-Base /boot/loader /boot/grub || true")?,
        ""
    );
    Ok(())
}

fn a_copied_disk_gets_entries_of_its_own() -> Result<()> {
    clone("clone").map(drop)
}

fn a_copied_disk_boots() -> Result<()> {
    let disk = clone("clone-boots")?;
    let mut vm = disk.boot("clone")?;
    vm.log_in()?;
    has_root(&mut vm, "Clone", "Base-0.1")?;
    is_clean(&mut vm)?;
    vm.power_off().map(drop)
}

/// The disk of a host that was made a clone of it.
fn clone(name: &str) -> Result<HostDisk> {
    let disk = Host::prepared()?.disk(name)?;
    let mut vm = rescue(name, &disk)?;
    let before = vm.ok("vgs --noheadings -o vg_uuid HostVG")?;
    let found = walk(&mut vm, "### Clone")?;
    ensure!(
        found.contains("Clone: 3 boot entries name it HostVG"),
        "{found}"
    );
    let uuid = vm.ok("vgs --noheadings -o vg_uuid Clone")?;
    assert_ne!(uuid.trim(), before.trim());
    let options = format!(
        "options imgbased.layer=Base-0.1 imgbased.vg=Clone imgbased.vgid={} ",
        uuid.trim()
    );
    let boot = "mount -o ro /dev/vdb2 /mnt/boot";
    vm.ok(boot)?;
    let entry = vm.ok("cat /mnt/boot/loader/entries/imgbased-Clone-Base-0.1.conf")?;
    ensure!(entry.contains(&options), "{entry}");
    assert_eq!(
        vm.ok("grep ^saved_entry= /mnt/boot/grub/grubenv")?,
        "saved_entry=imgbased-Clone-Base-0.1"
    );
    vm.ok("umount /mnt/boot")?;
    leave(vm)?;
    Ok(disk)
}

fn a_restored_group_is_named_by_its_uuid_again() -> Result<()> {
    let disk = Host::prepared()?.disk("restore")?;
    let mut vm = rescue("restore", &disk)?;
    // The backup is older than the UUID that the entries name.
    vm.ok("vgcfgbackup -qq --file HostVG.vg HostVG && vgchange -qq --uuid HostVG")?;
    let uuid = vm.ok("vgs --noheadings -o vg_uuid HostVG")?;
    vm.ok("mkdir -p /mnt/boot && mount /dev/vdb2 /mnt/boot")?;
    vm.ok("imgbased-helper --root /mnt check --repair")?;
    vm.ok("umount /mnt/boot")?;
    let found = walk(&mut vm, "### Restore")?;
    let problem = format!("names a group with another UUID, {}", uuid.trim());
    assert_eq!(found.matches(&problem).count(), 3, "{found}");
    // A layer whose entry lacks the UUID gets it from a refresh as well.
    vm.ok("mount /dev/vdb2 /mnt/boot")?;
    vm.ok("sed -i 's/imgbased.vgid=[^ ]*//' /mnt/boot/loader/entries/imgbased-Base-0.2.conf")?;
    vm.ok("imgbased-helper --root /mnt boot refresh Base-0.2")?;
    assert_eq!(vm.ok("imgbased-helper --root /mnt check")?, "");
    vm.ok("umount /mnt/boot")?;
    leave(vm)
}

fn rescue(name: &str, disk: &HostDisk) -> Result<Vm> {
    Rescue::prepared()?.with(
        &format!("{name}-rescue"),
        Disk::writable(disk.path(), "host"),
    )
}

/// Ends a rescue system, with all that it has written on the disks.
fn leave(mut vm: Vm) -> Result<()> {
    vm.ok("sync")?;
    vm.power_off().map(drop)
}

fn what_is_renamed_is_killed_after_any_step() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "rename-killed")?;
    vm.ok(&script("own-root-lines")?)?;
    vm.ok("imgbased-helper boot default Base-0.2 && vgrename -qq HostVG Renamed && sync")?;
    let saved = Saved::of(disk, vm)?;
    let disk = saved.disk("rename-killed-again")?;
    for step in 1..=STEPS_MAX {
        let mut vm = saved.again(&disk)?;
        let variable = format!("IMGBASED_KILL_AFTER={step}");
        let command = interrupted(&variable, "imgbased-helper check --repair");
        let got = vm.run(&command)?;
        ensure!([0, KILLED].contains(&got.status), "{command}: {got:?}");
        vm.ok("imgbased-helper check --repair")
            .with_context(|| command.clone())?;
        is_renamed(&mut vm).context(command)?;
        if got.status == 0 {
            ensure!(step > 1, "it was never killed");
            say(&format!("a group is renamed in {} steps", step - 1));
            return Ok(());
        }
    }
    bail!("a group is renamed in more than {STEPS_MAX} steps")
}
