//! What survives on the volume group and the boot partition when a verb is interrupted. Its machine stays
//! up; that of `power_cut.rs` does not.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use crate::claims::{is_clean, is_refused};
use crate::seed;
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{
    ADD_BASE, ADD_BASE_BY_CONTENT, ADD_BASE_OF_FILES, ADD_BUSY_VOLUME, ADD_LAYER,
    ADD_LAYER_OF_EXTRA, ADD_LAYER_OF_LAYER, ADD_VOLUME, ADOPT, BLESS, COLLECT, KILLED, LIST_PATH,
    MAKE_GROUP, PREPARE_IMAGE, REMOVE_BASE, REMOVE_LAYER, ROLL_BACK, START_TRIAL, STEPS_MAX,
    STRIKE_PATH, SWITCH_DEFAULT, TRY, UPDATE, Verb, interrupted,
};
use crate::vm::{Host, HostDisk, Loader, Output, Saved, Vm, say};

scenarios![
    layers_killed_after_some_step,
    what_boots_killed_after_some_step,
    bases_killed_after_some_step,
    groups_killed_after_some_step,
    what_is_shared_and_carried_killed_after_some_step;
    turns:
    twenty_layers_at_once_wait_for_each_other_but_not_for_a_copy,
    nobody_waits_for_the_answer_to_a_question,
    a_snapshot_of_others_is_not_removed_with_its_origin;
    long:
    layers_killed_after_any_step,
    what_boots_killed_after_any_step,
    bases_killed_after_any_step,
    bases_by_content_killed_or_undone_at_any_step,
    groups_killed_after_any_step,
    what_is_shared_and_carried_killed_after_any_step,
    what_is_shared_and_carried_is_undone_when_any_step_fails,
    what_is_added_is_undone_when_any_step_fails,
    what_is_removed_or_boots_is_undone_when_any_step_fails,
];

/// For many commands, or large images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// The exit status of a verb that could not do what it was told to.
const FAILED: i32 = 1;

const LAYERS: [Verb; 4] = [
    ADD_LAYER,
    ADD_LAYER_OF_LAYER,
    REMOVE_LAYER,
    ADD_LAYER_OF_EXTRA,
];
const WHAT_BOOTS: [Verb; 5] = [TRY, START_TRIAL, BLESS, SWITCH_DEFAULT, ROLL_BACK];
const BASES: [Verb; 5] = [ADD_BASE, ADD_BASE_OF_FILES, UPDATE, REMOVE_BASE, COLLECT];
const GROUPS: [Verb; 2] = [MAKE_GROUP, ADOPT];
/// Volumes, and lists of what an update carries; and an image, which is no part of the host.
const SHARED_AND_CARRIED: [Verb; 5] = [
    ADD_VOLUME,
    ADD_BUSY_VOLUME,
    LIST_PATH,
    STRIKE_PATH,
    PREPARE_IMAGE,
];

fn layers_killed_after_some_step() -> Result<()> {
    interrupt_each("kill-some-layer", &LAYERS, Extent::Sample)
}

fn what_boots_killed_after_some_step() -> Result<()> {
    interrupt_each("kill-some-boot", &WHAT_BOOTS, Extent::Sample)
}

fn layers_killed_after_any_step() -> Result<()> {
    interrupt_each("kill-layer", &LAYERS, Extent::All)
}

fn what_boots_killed_after_any_step() -> Result<()> {
    interrupt_each("kill-boot", &WHAT_BOOTS, Extent::All)
}

fn bases_killed_after_any_step() -> Result<()> {
    interrupt_each("kill-base", &BASES, Extent::All)
}

fn bases_by_content_killed_or_undone_at_any_step() -> Result<()> {
    let verbs = [ADD_BASE_BY_CONTENT];
    interrupt_each("kill-content", &verbs, Extent::All)?;
    interrupt_each("fail-content", &verbs, Extent::Failures)
}

fn bases_killed_after_some_step() -> Result<()> {
    interrupt_each("kill-some-base", &BASES, Extent::Sample)
}

fn groups_killed_after_any_step() -> Result<()> {
    interrupt_each("kill-group", &GROUPS, Extent::All)
}

fn groups_killed_after_some_step() -> Result<()> {
    interrupt_each("kill-some-group", &GROUPS, Extent::Sample)
}

fn what_is_shared_and_carried_killed_after_some_step() -> Result<()> {
    interrupt_each("kill-some-shared", &SHARED_AND_CARRIED, Extent::Sample)
}

fn what_is_shared_and_carried_killed_after_any_step() -> Result<()> {
    interrupt_each("kill-shared", &SHARED_AND_CARRIED, Extent::All)
}

fn what_is_shared_and_carried_is_undone_when_any_step_fails() -> Result<()> {
    interrupt_each("fail-shared", &SHARED_AND_CARRIED, Extent::Failures)
}

fn what_is_added_is_undone_when_any_step_fails() -> Result<()> {
    let verbs = [
        ADD_LAYER,
        ADD_LAYER_OF_LAYER,
        ADD_LAYER_OF_EXTRA,
        ADD_BASE,
        ADD_BASE_OF_FILES,
        UPDATE,
        ADOPT,
    ];
    interrupt_each("fail-add", &verbs, Extent::Failures)
}

fn what_is_removed_or_boots_is_undone_when_any_step_fails() -> Result<()> {
    let verbs = [
        REMOVE_LAYER,
        REMOVE_BASE,
        COLLECT,
        TRY,
        START_TRIAL,
        BLESS,
        SWITCH_DEFAULT,
        ROLL_BACK,
    ];
    interrupt_each("fail-others", &verbs, Extent::Failures)
}

/// Which steps of a verb are interrupted, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// The verb is killed after each of them.
    All,
    /// It is killed after one of them, chosen by the seed of this run.
    Sample,
    /// Each of them fails, so that the verb undoes those before.
    Failures,
}

/// Interrupts each verb on a running host with a small image that can be made a base, and with files of
/// others: kills it after a step, and in the middle of the undo of a step that failed.
fn interrupt_each(name: &str, verbs: &[Verb], extent: Extent) -> Result<()> {
    let (disk, mut vm) = Host::running(Loader::Grub, name)?;
    vm.ok(&script("make-extra")?)?;
    vm.ok(&script("make-foreign")?)?;
    let host = Saved::of(disk, vm)?;
    for verb in verbs {
        let ready = Ready::new(&host, name, verb)?;
        let mut random = seed::rng(verb.name);
        match extent {
            Extent::All => ready.kill_after_each_step(&mut random)?,
            Extent::Sample => ready.kill_after_some_step(&mut random)?,
            Extent::Failures => ready.fail_at_each_step()?,
        }
    }
    Ok(())
}

/// A host that is ready for a verb, and saved.
struct Ready<'a> {
    verb: &'a Verb,
    saved: Saved,
    disk: HostDisk,
    /// What the verb must not change.
    before: String,
    /// What `check` says before the verb: of a group that becomes one of ours only then, also findings.
    found_before: Output,
}

impl<'a> Ready<'a> {
    fn new(host: &Saved, name: &str, verb: &'a Verb) -> Result<Self> {
        let disk = host.disk(&format!("{name}-{}", verb.name))?;
        let mut vm = host.again(&disk)?;
        vm.ok(&verb.prepare()?)
            .with_context(|| format!("before `{}`", verb.run))?;
        let before = old_state(&mut vm, verb)?;
        let found_before = vm.run(&format!("imgbased-helper --vg {} check", verb.vg))?;
        vm.ok("udevadm settle; sync")?;
        Ok(Self {
            verb,
            saved: Saved::of(disk, vm)?,
            disk: host.disk(&format!("{name}-again"))?,
            before,
            found_before,
        })
    }

    /// Kills the verb after its first step, its second and so on, until it comes to its end, and in the undo
    /// of some steps.
    fn kill_after_each_step(&self, random: &mut Rng) -> Result<()> {
        let steps = self.steps(KILLED, "IMGBASED_KILL_AFTER")?;
        let mut undone = 0;
        for _ in 0..UNDO_SAMPLES {
            undone += self.kill_in_some_undo(random, steps)?;
        }
        let run = self.verb.run;
        say(&format!(
            "`{run}`: {steps} kill points, {undone} in an undo"
        ));
        Ok(())
    }

    /// Kills the verb after one of its steps, and once more in an undo.
    fn kill_after_some_step(&self, random: &mut Rng) -> Result<()> {
        let mut limit = self.verb.steps;
        loop {
            let step = random.u32(1..=limit);
            match self.interrupt(&format!("IMGBASED_KILL_AFTER={step}"))? {
                KILLED => break,
                _ if step == 1 => bail!("`{}` was never killed", self.verb.run),
                _ => limit = step - 1,
            }
        }
        self.kill_in_some_undo(random, limit).map(drop)
    }

    /// Has one of the first `steps` steps fail, and kills the verb in one step of the undo, if there is any.
    /// Returns how often it was killed.
    fn kill_in_some_undo(&self, random: &mut Rng, steps: u32) -> Result<u32> {
        let failed = random.u32(1..=steps);
        let killed = failed + random.u32(1..=3);
        let settings = format!("IMGBASED_FAIL_AT={failed} IMGBASED_KILL_AFTER={killed}");
        Ok(u32::from(self.interrupt(&settings)? == KILLED))
    }

    /// Has each step of the verb fail in turn.
    fn fail_at_each_step(&self) -> Result<()> {
        let steps = self.steps(FAILED, "IMGBASED_FAIL_AT")?;
        say(&format!("`{}`: {steps} steps that failed", self.verb.run));
        Ok(())
    }

    /// Interrupts the verb at each of its steps by `variable`, so that its exit status is `wanted`, until it
    /// comes to its end. Returns how many there are.
    fn steps(&self, wanted: i32, variable: &str) -> Result<u32> {
        let Verb { run, steps, .. } = self.verb;
        for step in 1..=STEPS_MAX {
            match self.interrupt(&format!("{variable}={step}"))? {
                0 if step > 1 => {
                    let found = step - 1;
                    let file = "tests/vm/verbs.rs";
                    ensure!(
                        found <= *steps,
                        "`{run}` has {found} steps, and {file} says {steps}"
                    );
                    return Ok(found);
                }
                status => ensure!(status == wanted, "{variable}={step} {run}: {status}"),
            }
        }
        bail!("`{run}` has more than {STEPS_MAX} steps")
    }

    /// Runs the verb with `settings` in its environment that interrupt it; returns its exit status. `check`
    /// has to find and repair all that is left, and nothing that was there before may have changed.
    fn interrupt(&self, settings: &str) -> Result<i32> {
        let Verb { vg, run, .. } = self.verb;
        let what = format!("{settings} {run}");
        let mut vm = self.saved.again(&self.disk)?;
        let got = vm.run(&interrupted(settings, run))?;
        self.is_kept(&mut vm, &what)?;
        ensure!([0, FAILED, KILLED].contains(&got.status), "{what}: {got:?}");
        if got.status == 0 {
            return Ok(0);
        }
        let helper = format!("imgbased-helper --vg {vg}");
        let found = vm.run(&format!("{helper} check"))?;
        if self.is_no_group_yet(&found) {
            return Ok(got.status);
        }
        ensure!(
            found.status == 3 || found.status == 0 && found.text.is_empty(),
            "{what}: check: {found:?}"
        );
        ensure!(!found.text.contains("default"), "{what}: {found:?}");
        // All is undone, or done but for files that nothing needs any more.
        ensure!(
            got.status == KILLED
                || found.text.lines().all(|line| {
                    // The pool of an installer is what it was.
                    line.contains("is used by no boot entry") || line.starts_with("pool: ")
                }),
            "{what}: {found:?}"
        );
        let repair = format!("{helper} check --repair");
        if self.verb.mend.is_empty() {
            vm.ok(&repair).with_context(|| what.clone())?;
        } else {
            // It can tell of more than it repairs.
            vm.run(&repair)?;
            vm.ok(self.verb.mend).with_context(|| what.clone())?;
        }
        let left = vm.run(&format!("{helper} check"))?;
        ensure!(
            left.status == 0 && left.text.is_empty() || self.is_no_group_yet(&left),
            "{what}: {left:?}"
        );
        self.is_kept(&mut vm, &what)?;
        assert_eq!(
            vm.ok("ls -A /run/imgbased/mounts/*/ 2>/dev/null | grep -v :$ || true")?,
            "",
            "{what}"
        );
        Ok(got.status)
    }

    /// Whether all is undone of a verb that makes a group, or makes a group one of ours.
    fn is_no_group_yet(&self, found: &Output) -> bool {
        found.status != 0 && *found == self.found_before
    }

    fn is_kept(&self, vm: &mut Vm, what: &str) -> Result<()> {
        assert_eq!(old_state(vm, self.verb)?, self.before, "{what}");
        Ok(())
    }
}

/// How many undos of each verb are interrupted.
const UNDO_SAMPLES: u32 = 3;

fn old_state(vm: &mut Vm, verb: &Verb) -> Result<String> {
    vm.ok(&script_with("old-state", &[verb.subject])?)
}

fn twenty_layers_at_once_wait_for_each_other_but_not_for_a_copy() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "twenty")?;
    vm.ok_for(&script("make-small-images")?, SLOW)?;
    let added = vm.ok_for(&script("beside-a-copy")?, SLOW)?;
    let (added, last) = added.rsplit_once('\n').context("only one name")?;
    assert_eq!(last, "Large");
    let mut names: Vec<&str> = added.lines().collect();
    names.sort_by_key(|name| name.rsplit('.').next().and_then(|n| n.parse::<u32>().ok()));
    let wanted: Vec<String> = (3..=22).map(|n| format!("Base-0.{n}")).collect();
    assert_eq!(names, wanted);
    assert_eq!(vm.ok("imgbased-helper layer list | wc -l")?, "22");
    let verified = vm.ok_for("imgbased-helper base verify Large 2>/dev/null", SLOW)?;
    assert_eq!(verified, "Large: unchanged");
    is_clean(&mut vm)
}

fn nobody_waits_for_the_answer_to_a_question() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "question")?;
    vm.ok(&script("make-extra")?)?;
    let said = vm.ok(&script("question")?)?;
    let ends: Vec<&str> = said
        .lines()
        .filter(|line| line.starts_with("ended"))
        .collect();
    assert_eq!(ends, ["ended with 130", "ended with 1"], "{said}");
    ensure!(said.ends_with("Base-0\nExtra"), "{said}");
    is_clean(&mut vm)
}

fn a_snapshot_of_others_is_not_removed_with_its_origin() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "snapshot")?;
    vm.ok("lvm lvchange -q -K -ay HostVG/Base-0.2 && lvm lvcreate -q -y -s -L 64M -n backup HostVG/Base-0.2")?;
    let why = "Base-0.2 is the origin of a snapshot that would be lost with it";
    is_refused(&mut vm, "layer remove Base-0.2", why)?;
    is_refused(&mut vm, "base remove --yes Base-0", "cannot be removed")?;
    vm.ok("imgbased-helper gc --yes --keep 0 && lvm lvs HostVG/backup HostVG/Base-0.2")?;
    is_clean(&mut vm)?;
    vm.ok("lvm lvremove -q -y HostVG/backup && imgbased-helper layer remove Base-0.2")?;
    is_clean(&mut vm)?;

    vm.ok("mkdir /srv/data && imgbased-helper volume add /srv/data --size 100M")?;
    vm.ok("echo kept >/srv/data/file; lvm lvcreate -q -y -s -L 64M -n backup HostVG/srv-data")?;
    let why = "srv-data is the origin of a snapshot that would be lost with it";
    is_refused(&mut vm, "volume remove --delete /srv/data", why)?;
    vm.ok("lvm lvs HostVG/backup && grep kept /srv/data/file")?;
    vm.ok("lvm lvremove -q -y HostVG/backup && imgbased-helper volume remove --delete /srv/data")?;
    vm.ok("! lvm lvs HostVG/srv-data")?;
    is_clean(&mut vm)
}
