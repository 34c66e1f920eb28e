//! What survives on the volume group and the boot partition when things go wrong. The machines are in
//! `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use anyhow::{Context, Result, ensure};

use vm::{Echo, Host, Vm};

/// No verb has that many steps.
const STEPS_MAX: u32 = 60;
/// What a shell reports of a process that was killed: 128 and SIGKILL.
const KILLED: i32 = 137;

/// A verb, how to get ready for it, and how to take back what it did. Both must succeed whether or
/// not it came to that.
struct Verb {
    prepare: &'static str,
    run: &'static str,
    clean: &'static str,
}

const ADD_BASE: Verb = Verb {
    prepare: "true",
    run: "imgbased-helper base add --name Extra /root/small.img",
    clean: "! imgbased-helper base list | grep -qx Extra || imgbased-helper base remove -y Extra",
};
const REMOVE_BASE: Verb = Verb {
    prepare: "imgbased-helper base list | grep -qx Extra || imgbased-helper base add --name Extra /root/small.img; \
              imgbased-helper layer list | grep -q '^Extra+' || imgbased-helper layer add Extra",
    run: "imgbased-helper base remove --yes Extra",
    clean: ADD_BASE.clean,
};
const ADD_LAYER_OF_BASE: Verb = Verb {
    prepare: "true",
    run: "imgbased-helper layer add Base-0",
    clean: "for layer in $(imgbased-helper layer list | cut -d ' ' -f 1 | grep -vx 'Base-0.[12]'); do \
            imgbased-helper layer remove $layer; done",
};
const ADD_LAYER_OF_LAYER: Verb = Verb {
    run: "imgbased-helper layer add Base-0.2",
    ..ADD_LAYER_OF_BASE
};
const REMOVE_LAYER: Verb = Verb {
    prepare: "imgbased-helper layer list | grep -q Base-0.3 || imgbased-helper layer add Base-0",
    run: "imgbased-helper layer remove Base-0.3",
    clean: ADD_LAYER_OF_BASE.clean,
};

#[test]
fn bases_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-base")?;
    kill_after_each_step(&mut vm, &ADD_BASE)?;
    kill_after_each_step(&mut vm, &REMOVE_BASE)
}

#[test]
fn layers_killed_after_any_step() -> Result<()> {
    let mut vm = host("kill-layer")?;
    kill_after_each_step(&mut vm, &ADD_LAYER_OF_BASE)?;
    kill_after_each_step(&mut vm, &ADD_LAYER_OF_LAYER)?;
    kill_after_each_step(&mut vm, &REMOVE_LAYER)
}

/// A running host with a small image that can be made a base.
fn host(name: &str) -> Result<Vm> {
    let mut vm = Host::prepared()?.disk(name)?.boot("once", Echo::Silent)?;
    vm.log_in()?;
    vm.ok(
        "mkdir -p /root/small/boot && echo kernel > /root/small/boot/vmlinuz-9.9 && \
           echo initramfs > /root/small/boot/initrd.img-9.9 && \
           mke2fs -q -t ext4 -d /root/small /root/small.img 16M",
    )?;
    Ok(vm)
}

/// Runs the verb again and again, killed after its first step, its second and so on, until it comes
/// to its end. Each time `check` has to find and repair all that is left, and nothing that was there
/// before may have changed.
fn kill_after_each_step(vm: &mut Vm, verb: &Verb) -> Result<()> {
    let before = old_state(vm)?;
    for step in 1..=STEPS_MAX {
        vm.ok(verb.prepare)?;
        let killed = vm.run(&format!("IMGBASED_KILL_AFTER={step} {}", verb.run))?;
        if killed.status == 0 {
            vm.say(&format!("`{}`: {} kill points", verb.run, step - 1));
            ensure!(step > 1, "`{}` was never killed", verb.run);
            vm.ok(verb.clean)?;
            assert_eq!(old_state(vm)?, before);
            return Ok(());
        }
        let context = || format!("`{}` killed after step {step}", verb.run);
        ensure!(killed.status == KILLED, "{}: {killed:?}", context());
        assert_eq!(old_state(vm)?, before, "{}", context());
        let found = vm.run("imgbased-helper check")?;
        ensure!(
            found.status == 3 || found.status == 0 && found.text.is_empty(),
            "{}: check: {found:?}",
            context()
        );
        ensure!(!found.text.contains("default"), "{}: {found:?}", context());
        vm.ok("imgbased-helper check --repair")
            .with_context(context)?;
        assert_eq!(vm.ok("imgbased-helper check")?, "", "{}", context());
        assert_eq!(
            vm.ok("ls /run/imgbased/mounts/* 2>/dev/null || true")?
                .contains("boot"),
            false
        );
        vm.ok(verb.clean).with_context(context)?;
    }
    anyhow::bail!("`{}` has more than {STEPS_MAX} steps", verb.run)
}

/// The volumes and boot entries that the host was installed with, and what boots by default.
fn old_state(vm: &mut Vm) -> Result<String> {
    vm.ok("lvm lvs --noheadings -o lv_name,lv_attr,lv_tags,origin \
             --select 'lv_name=Base-0 || lv_name=Base-0.1 || lv_name=Base-0.2 || lv_name=Config' && \
           cd /boot && sha256sum loader/entries/imgbased-Base-0.conf \
             loader/entries/imgbased-Base-0.1.conf loader/entries/imgbased-Base-0.2.conf grub/grubenv \
             $(cat loader/entries/imgbased-Base-0*.conf | awk '/^(linux|initrd) /{print \".\" $2}' | sort -u)")
}
