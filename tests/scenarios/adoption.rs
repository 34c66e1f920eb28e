//! A system that an installer has made is taken over while it runs.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::Value;

use crate::claims::{has_root, is_refused, json, restart};
use crate::vm::guest::{quote, script, script_with};
use crate::vm::{Host, Loader, Start, Vm};

scenarios![
    ;
    turns:
    an_installed_system_on_a_thin_volume_is_adopted;
    long:
    debian_with_its_own_grub_configuration_is_adopted,
    what_an_installer_left_on_a_plain_volume_becomes_a_host_at_its_first_start,
    what_an_installer_left_on_a_thin_volume_becomes_a_host_at_its_first_start,
];

/// For a copy of a whole system, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

fn an_installed_system_on_a_thin_volume_is_adopted() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "adopt")?;
    vm.ok_for(&script("make-installed")?, SLOW)?;
    let before = vm.ok("lvm lvs --noheadings -o lv_name,lv_tags,lv_size,lv_uuid Installed/root; sha256sum /mnt/root/etc/mark")?;
    // While it is mounted, as / is on a host that is taken over.
    let adopted = vm.ok_for(
        "imgbased-helper layout init --from /mnt/root --name node-4.5-1",
        SLOW,
    )?;
    ensure!(adopted.ends_with("node-4.5-1\nnode-4.5-1+1"), "{adopted}");
    assert_eq!(
        vm.ok("lvm lvs --noheadings -o lv_name,lv_tags,lv_size,lv_uuid Installed/root; sha256sum /mnt/root/etc/mark")?,
        before
    );
    vm.ok("umount /mnt/root")?;
    assert_eq!(
        vm.ok("lvm vgs --noheadings -o vg_tags Installed; lvm lvs --noheadings -o lv_tags Installed/pool")?
            .replace(' ', ""),
        "imgbased:vg\nimgbased:pool"
    );
    let again = vm.run("imgbased-helper layout init --from Installed/node-4.5-1")?;
    ensure!(
        again.status == 1 && again.text.contains("is managed already"),
        "{again:?}"
    );
    let found = vm.run("imgbased-helper --vg Installed check")?;
    ensure!(
        found.text.lines().all(|line| line.starts_with("pool: ")),
        "{found:?}"
    );
    // Without a try that is counted: GRUB boots no entry on trial by default.
    vm.ok("imgbased-helper --vg Installed boot default --tries 0 node-4.5-1+1")?;
    vm.power_off()?;

    let mut vm = disk.boot_with("adopted", vec![disk.existing("spare")])?;
    vm.log_in()?;
    assert_eq!(
        vm.ok("cat /etc/mark && imgbased-helper --vg Installed layer current")?,
        "installed\nnode-4.5-1+1"
    );
    // A group of imgbased has tags, but no base of a layer, no digest and no entry.
    vm.ok(
        "for lv in Base-7 Base-7.1; do lvm lvcreate -y -s -n $lv Installed/root; done && \
           lvm lvchange -pr --addtag imgbased:base Installed/Base-7 && \
           lvm lvchange --addtag imgbased:layer Installed/Base-7.1",
    )?;
    assert_eq!(
        vm.ok_for("imgbased-helper --vg Installed layer add Base-7", SLOW)?,
        "Base-7.2"
    );
    assert_eq!(
        vm.ok_for("imgbased-helper --vg Installed layer add node-4.5-1", SLOW)?,
        "node-4.5-1+2"
    );
    let layout = vm.ok("imgbased-helper --vg Installed layout --json")?;
    ensure!(layout.contains("\"Base-7.1\""), "{layout}");
    Ok(())
}

/// Its own entry stays the default, and what a trial falls back to, until the first layer has come up.
fn debian_with_its_own_grub_configuration_is_adopted() -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, "stock")?;
    vm.ok_for(&script("make-stock")?, SLOW)?;
    vm.power_off()?;

    let start = Start {
        restarts: true,
        ..Start::default()
    };
    let mut vm = Vm::start("stock-installed", &[disk.existing("spare")], &start)?;
    vm.log_in()?;
    let own = vm.ok(
        "sed -n \"s/.*menuentry_id_option '\\(gnulinux-simple-[^']*\\)'.*/\\1/p\" /boot/grub/grub.cfg",
    )?;
    let other = Value::from(format!("another system, {own}"));
    let next =
        |vm: &mut Vm| Ok::<_, anyhow::Error>(json(vm, "--vg Debian status")?["next"].clone());

    // Its grub.cfg was made before our package came, and what boots was in no variable.
    // As the first lines of a kickstart's %post had it, under the name that the image has of itself.
    vm.ok("mkdir -p /usr/share/imgbase/build/meta && echo node-1-1 >/usr/share/imgbase/build/meta/nvr")?;
    let made = vm.ok_for("imgbase layout --init", SLOW)?;
    ensure!(made.ends_with("node-1-1\nnode-1-1+1"), "{made}");
    let volume = "imgbase --experimental volume --create /var 4G";
    let early = vm.run_for(volume, SLOW)?;
    ensure!(
        early.status == 1 && early.text.contains("no layer of Debian runs"),
        "{early:?}"
    );
    assert_eq!(vm.ok("grub-editenv list")?, format!("saved_entry={own}"));
    let choose = "--vg Debian boot default --tries 1 node-1-1+1";
    is_refused(&mut vm, choose, "run update-grub")?;
    for verb in ["boot list", "check"] {
        let shown = vm.run(&format!("imgbased-helper --vg Debian {verb}"))?.text;
        ensure!(shown.contains("run update-grub"), "{shown}");
    }
    vm.ok("update-grub")?;
    assert_eq!(next(&mut vm)?, other);
    restart(&mut vm)?;
    assert_eq!(
        vm.ok("findmnt --noheadings --output SOURCE /")?,
        "/dev/mapper/Debian-root"
    );

    let said = vm.ok(&format!("imgbased-helper {choose}"))?;
    ensure!(said.contains(&format!("then {own} boots again")), "{said}");
    vm.ok("update-grub")?;
    assert_eq!(next(&mut vm)?, "imgbased-Debian-node-1-1+1_, on trial");
    // The layer comes up, and is the default from then on.
    restart(&mut vm)?;
    has_root(&mut vm, "Debian", "node-1-1+1")?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "node-1-1+1");
    assert_eq!(status["trial"], Value::Null);
    vm.ok("update-grub")?;
    assert_eq!(next(&mut vm)?, "imgbased-Debian-node-1-1+1_");
    let said = vm.ok_for(volume, SLOW)?;
    ensure!(said.contains("it moves to Debian/var"), "{said}");
    Ok(())
}

fn what_an_installer_left_on_a_plain_volume_becomes_a_host_at_its_first_start() -> Result<()> {
    becomes_a_host("plain")
}

fn what_an_installer_left_on_a_thin_volume_becomes_a_host_at_its_first_start() -> Result<()> {
    becomes_a_host("thin")
}

/// As after `ci/installers/preseed.cfg` and `ci/installers/kickstart.ks`, whose last step is the same.
fn becomes_a_host(volume: &str) -> Result<()> {
    const TAKE_OVER: &str = include_str!("../../ci/installers/take-over");
    let (disk, mut vm) = Host::running(Loader::Grub, &format!("take-over-{volume}"))?;
    vm.ok_for(&script_with("make-stock", &[volume])?, SLOW)?;
    let program = "/mnt/usr/local/sbin/take-over";
    vm.ok(&format!(
        "vgchange -q -ay Debian && mount /dev/Debian/root /mnt && printf %s {} >{program} && chmod 755 {program} && \
         chroot /mnt /usr/local/sbin/take-over --at-first-start && umount /mnt",
        quote(TAKE_OVER)
    ))?;
    vm.power_off()?;

    let start = Start {
        restarts: true,
        ..Start::default()
    };
    let name = format!("take-over-{volume}-first");
    let mut vm = Vm::start(&name, &[disk.existing("spare")], &start)?;
    vm.wait_for("debian-13-1+1 is tried now")?;
    vm.log_in()?;
    has_root(&mut vm, "Debian", "debian-13-1+1")?;
    let status = json(&mut vm, "status")?;
    assert_eq!(status["default"], "debian-13-1+1");
    assert_eq!(status["trial"], Value::Null);
    // Of what has made it nothing is left in it.
    vm.ok("test ! -e /usr/local/sbin/take-over && ! systemctl cat take-over.service")?;
    let found = vm.run("imgbased-helper check")?;
    ensure!(
        found.text.lines().all(|line| line.starts_with("pool: ")),
        "{found:?}"
    );
    Ok(())
}
