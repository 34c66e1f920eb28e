//! What survives on the volume group and the boot partition when things go wrong. The machines are in
//! `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Context, Result, ensure};

use vm::verbs::{
    ADD_BASE, ADD_BASE_OF_FILES, ADD_LAYER, ADD_LAYER_OF_EXTRA, ADD_LAYER_OF_LAYER, ADOPT, COLLECT,
    KILLED, MAKE_EXTRA, MAKE_GROUP, REMOVE_BASE, REMOVE_LAYER, STEPS_MAX, Verb,
};
use vm::{Echo, Host, Vm};

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn bases_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-base")?;
    for verb in [&ADD_BASE, &ADD_BASE_OF_FILES, &REMOVE_BASE, &COLLECT] {
        kill_after_each_step(&mut vm, verb)?;
    }
    Ok(())
}

#[test]
fn layers_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-layer")?;
    for verb in [
        &ADD_LAYER,
        &ADD_LAYER_OF_LAYER,
        &REMOVE_LAYER,
        &ADD_LAYER_OF_EXTRA,
    ] {
        kill_after_each_step(&mut vm, verb)?;
    }
    Ok(())
}

#[test]
#[ignore = "takes too long beside the rest; `ci/test long` runs it"]
fn groups_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-group")?;
    kill_after_each_step(&mut vm, &MAKE_GROUP)?;
    vm.ok(&format!("{SPARE} {}", MAKE_GROUP.prepare))?;
    kill_after_each_step(&mut vm, &ADOPT)
}

/// The name of a disk that nothing needs, for a shell.
const SPARE: &str = "spare=/dev/disk/by-id/virtio-spare;";

/// A running host with a small image that can be made a base.
fn host(name: &str) -> Result<Vm> {
    let disk = Host::prepared()?.disk(name)?;
    let spare = disk.spare("spare", "1G")?;
    let mut vm = disk.boot_with("once", vec![spare], Echo::Silent)?;
    vm.log_in()?;
    vm.ok(MAKE_EXTRA)?;
    Ok(vm)
}

/// Runs the verb again and again, killed after its first step, its second and so on, until it comes
/// to its end. Each time `check` has to find and repair all that is left, and nothing that was there
/// before may have changed.
fn kill_after_each_step(vm: &mut Vm, verb: &Verb) -> Result<()> {
    let Verb {
        vg, prepare, run, ..
    } = verb;
    let helper = format!("imgbased-helper --vg {vg}");
    let before = old_state(vm)?;
    for step in 1..=STEPS_MAX {
        vm.ok(&format!("{SPARE} {prepare}"))?;
        let killed = vm.run(&format!("{SPARE} IMGBASED_KILL_AFTER={step} {run}"))?;
        assert_eq!(old_state(vm)?, before, "`{run}` killed after step {step}");
        if killed.status == 0 {
            vm.say(&format!("`{run}`: {} kill points", step - 1));
            ensure!(step > 1, "`{run}` was never killed");
            return Ok(());
        }
        let context = || format!("`{run}` killed after step {step}");
        ensure!(killed.status == KILLED, "{}: {killed:?}", context());
        let found = vm.run(&format!("{helper} check"))?;
        ensure!(
            found.status == 3 || found.status == 0 && found.text.is_empty(),
            "{}: check: {found:?}",
            context()
        );
        ensure!(!found.text.contains("default"), "{}: {found:?}", context());
        vm.ok(&format!("{helper} check --repair"))
            .with_context(context)?;
        let left = vm.run(&format!("{helper} check"))?;
        // A group that was not finished is gone as a whole.
        ensure!(
            left.status == 0 && left.text.is_empty()
                || left.text.contains("there is no volume group New"),
            "{}: {left:?}",
            context()
        );
        assert_eq!(
            vm.ok("ls -A /run/imgbased/mounts/*/ 2>/dev/null | grep -v :$ || true")?,
            ""
        );
    }
    anyhow::bail!("`{run}` has more than {STEPS_MAX} steps")
}

/// The volumes and boot entries that the host was installed with, and what boots by default.
fn old_state(vm: &mut Vm) -> Result<String> {
    vm.ok("lvm lvs --noheadings -o lv_name,lv_attr,lv_tags,origin \
             --select 'vg_name=HostVG && (lv_name=Base-0 || lv_name=Base-0.1 || lv_name=Base-0.2 || lv_name=Config)' && \
           cd /boot && sha256sum loader/entries/imgbased-Base-0.conf \
             loader/entries/imgbased-Base-0.1.conf loader/entries/imgbased-Base-0.2.conf grub/grubenv \
             $(cat loader/entries/imgbased-Base-0*.conf | awk '/^(linux|initrd) /{print \".\" $2}' | sort -u)")
}
