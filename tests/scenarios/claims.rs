//! What several scenarios claim of a machine.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use imgbased_helper::model::name::VgName;
use serde_json::Value;

use crate::vm::Vm;
use crate::vm::readme::commands;

/// A base that is read as a whole, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// What a machine says whose layer does not come up in time.
pub const GIVEN_UP: &str = "the layer on trial did not come up, restarting";

/// Restarts the system of a machine that starts again by itself, and logs in.
pub fn restart(vm: &mut Vm) -> Result<()> {
    vm.type_line("systemctl reboot")?;
    vm.log_in()
}

/// Claims that `layer` of the host's group is what runs, that no other was activated, and that nothing
/// has failed.
pub fn runs(vm: &mut Vm, layer: &str) -> Result<()> {
    has_root(vm, "HostVG", layer)?;
    let cmdline = vm.ok("cat /proc/cmdline")?;
    let mut words = cmdline.split(' ');
    let wanted = format!("imgbased.layer={layer}");
    ensure!(words.any(|word| word == wanted), "{cmdline}");
    ensure!(!cmdline.contains("root="), "{cmdline}");
    has_come_up(vm)
}

/// Claims that what the README has people do every day works, on a host where Base-0.1 runs and Base-0.2 is another layer.
pub fn works_every_day(vm: &mut Vm) -> Result<()> {
    for command in commands("### Every day")? {
        vm.ok_for(&command, SLOW)?;
    }
    let status = json(vm, "status")?;
    assert_eq!(status["booted"], "Base-0.1");
    assert_eq!(status["base"], "Base-0");
    assert_eq!(status["default"], "Base-0.1");
    assert_eq!(status["trial"]["name"], "Base-0.4");
    assert_eq!(status["layers"], 3);
    Ok(())
}

/// Claims that all units have come up; says which have not, and why.
pub fn has_come_up(vm: &mut Vm) -> Result<()> {
    let state = vm.run("systemctl is-system-running --wait")?.text;
    if state != "running" {
        let why = vm.run(
            "systemctl --failed --no-legend --plain; journalctl --boot --no-pager --priority warning | tail -n 30",
        )?;
        bail!("{state}: {}", why.text);
    }
    Ok(())
}

/// Claims that `layer` of a group is the root, and that no other layer of the group is active.
pub fn has_root(vm: &mut Vm, vg: &str, layer: &str) -> Result<()> {
    let device = device(vg, layer)?;
    assert_eq!(vm.ok("findmnt -no SOURCE /")?, device);
    let name = vm.ok("cat /sys/dev/block/$(mountpoint -d /)/dm/name")?;
    assert_eq!(format!("/dev/mapper/{name}"), device);
    assert_eq!(active_volumes(vm, vg)?, layer);
    Ok(())
}

/// The path of a volume's device.
pub fn device(vg: &str, name: &str) -> Result<String> {
    let dm_name = vg.parse::<VgName>()?.dm_name(&name.parse()?)?;
    Ok(format!("/dev/mapper/{dm_name}"))
}

/// The active layers and bases of a group, in one line.
pub fn active_volumes(vm: &mut Vm, vg: &str) -> Result<String> {
    let list = vm.ok(&format!(
        "LVM_SUPPRESS_FD_WARNINGS=1 lvm lvs --noheadings --options lv_name --select \
         'lv_active=active && (lv_tags=imgbased:layer || lv_tags=imgbased:base)' {vg} 2>/dev/null"
    ))?;
    Ok(list.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// What a verb that reads prints as JSON.
pub fn json(vm: &mut Vm, arguments: &str) -> Result<Value> {
    let text = vm.ok(&format!("imgbased-helper --json {arguments}"))?;
    Ok(serde_json::from_str(&text)?)
}

/// Claims that a command of the helper is refused, and why.
pub fn is_refused(vm: &mut Vm, arguments: &str, reason: &str) -> Result<()> {
    let got = vm.run(&format!("imgbased-helper {arguments}"))?;
    ensure!(
        got.status == 1 && got.text.contains(reason),
        "{arguments}: {got:?}"
    );
    Ok(())
}

/// Claims that `check` finds nothing.
pub fn is_clean(vm: &mut Vm) -> Result<()> {
    assert_eq!(vm.ok("imgbased-helper check")?, "");
    Ok(())
}
