//! What survives on the volume group and the boot partition when things go wrong. The machines are in
//! `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Context, Result, ensure};

use vm::verbs::{
    ADD_BASE, ADD_BASE_OF_FILES, ADD_LAYER, ADD_LAYER_OF_EXTRA, ADD_LAYER_OF_LAYER, ADOPT, BLESS,
    COLLECT, KILLED, MAKE_EXTRA, MAKE_GROUP, REMOVE_BASE, REMOVE_LAYER, START_TRIAL, STEPS_MAX,
    SWITCH_DEFAULT, TRY, Verb,
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
fn what_boots_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-boot")?;
    for verb in [&TRY, &START_TRIAL, &BLESS, &SWITCH_DEFAULT] {
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

/// What is on the boot partition of a host with other systems.
const MAKE_FOREIGN: &str = "\
    cd /boot && echo kernel >vmlinuz-foreign && mkdir imgbased-foreign && \
    printf 'title Other\\nlinux /vmlinuz-foreign\\noptions root=/dev/sda1\\n' >loader/entries/other.conf && \
    printf 'title Broken\\noptions imgbased.layer=x;y\\n\\0\\n' >loader/entries/imgbased-broken.conf && \
    grub-editenv grub/grubenv set foreign=kept 'odd=a b\\c' && cd /";

/// A running host with a small image that can be made a base, and with files of others.
fn host(name: &str) -> Result<Vm> {
    let disk = Host::prepared()?.disk(name)?;
    let spare = disk.spare("spare", "1G")?;
    let mut vm = disk.boot_with("once", vec![spare], Echo::Silent)?;
    vm.log_in()?;
    vm.ok(MAKE_EXTRA)?;
    vm.ok(MAKE_FOREIGN)?;
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
    let before = old_state(vm, verb)?;
    for step in 1..=STEPS_MAX {
        vm.ok(&format!("{SPARE} {prepare}"))?;
        let killed = vm.run(&format!("{SPARE} IMGBASED_KILL_AFTER={step} {run}"))?;
        let state = old_state(vm, verb)?;
        assert_eq!(state, before, "`{run}` killed after step {step}");
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

/// The volumes and boot entries that the host was installed with, what boots by default unless that is
/// what the verb is for, and what belongs to others.
fn old_state(vm: &mut Vm, verb: &Verb) -> Result<String> {
    // What boots: those variables, the options of the entry, and whether the layer has come up.
    let (entries, environment) = if verb.subject == "Base-0.2" {
        (
            "sed 's/ imgbased.trial.*//' loader/entries/imgbased-Base-0.2.conf",
            "grep -v -e ^# -e imgbased_ -e saved_entry -e next_entry grub/grubenv",
        )
    } else {
        (
            "cat loader/entries/imgbased-Base-0.2.conf",
            "cat grub/grubenv",
        )
    };
    vm.ok(&format!(
        "lvm lvs --noheadings -o lv_name,lv_attr,lv_tags,origin \
           --select 'vg_name=HostVG && (lv_name=Base-0 || lv_name=Base-0.1 || lv_name=Base-0.2 || lv_name=Config)' | \
           sed 's/,imgbased:good//; s/imgbased:good,//' | tr -s ' ' && \
         cd /boot && {environment} | sha256sum && {entries} && sha256sum loader/entries/imgbased-Base-0.conf \
           loader/entries/imgbased-Base-0.1.conf loader/entries/other.conf \
           loader/entries/imgbased-broken.conf vmlinuz-foreign \
           $(cat loader/entries/imgbased-Base-0*.conf | awk '/^(linux|initrd) /{{print \".\" $2}}' | sort -u) && \
         ls -d imgbased-foreign"
    ))
}
