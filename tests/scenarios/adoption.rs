//! A system that an installer has made is taken over while it runs.

use std::time::Duration;

use anyhow::{Result, ensure};

use crate::vm::guest::script;
use crate::vm::{Host, Loader};

scenarios![an_installed_system_on_a_thin_volume_is_adopted];

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
