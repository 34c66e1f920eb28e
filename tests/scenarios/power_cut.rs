//! What is on the disk when the power is cut while a verb works, or when the machine is reset right
//! after the verb was killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::claims;
use crate::seed;
use crate::vm::examine::{Before, CONTENT, Examiner, State};
use crate::vm::guest::script;
use crate::vm::verbs::{
    ADD_BASE, ADD_BASE_OF_FILES, ADD_BUSY_VOLUME, ADD_LAYER, ADD_LAYER_OF_LAYER, ADD_VOLUME, BLESS,
    COLLECT, KILLED, LIST_PATH, REMOVE_BASE, REMOVE_LAYER, ROLL_BACK, START_TRIAL, STEPS_MAX,
    STRIKE_PATH, SWITCH_DEFAULT, UPDATE, Verb, interrupted,
};
use crate::vm::write_log::{self, Change, Epoch};
use crate::vm::{
    Disk, Host, Loader, Rescue, Saved, Start, Vm, convert_to_raw, create_overlay, say, scratch,
};

/// For a verb that copies an image, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// In how many epochs of a verb the power is also cut when about half of the writes are on the disk.
const HALVED: usize = 6;
/// After how many epochs of a verb a sample has the power cut, and in how many when half is written.
const SAMPLED: usize = 1;
const HALVED_OF_SAMPLE: usize = 1;
const MOUNT_BOOT: &str = "mount /dev/disk/by-id/virtio-host-part2 /boot";

scenarios![
    power_cuts_at_some_flushes_while_layers_change,
    power_cuts_at_some_flushes_while_what_boots_changes,
    some_verb_killed_after_some_step_and_the_machine_reset,
    some_verb_of_a_running_host_killed_after_some_step_and_the_machine_reset;
    long:
    power_cuts_while_a_layer_is_added,
    power_cuts_while_a_layer_is_removed,
    power_cuts_while_a_base_is_added,
    power_cuts_while_a_trial_begins,
    power_cuts_while_a_trial_ends,
    power_cuts_while_the_default_changes,
    power_cuts_at_each_second_flush_of_an_update,
    power_cuts_at_the_other_flushes_of_an_update,
    what_boots_killed_after_any_step_and_the_machine_reset,
    a_base_killed_while_it_is_added_and_the_machine_reset,
    a_base_killed_while_it_is_removed_and_the_machine_reset,
    layers_killed_after_any_step_and_the_machine_reset,
    an_update_killed_after_many_steps_and_the_machine_reset,
    what_is_shared_and_carried_killed_after_many_steps_and_the_machine_reset,
];

/// Which moments of a verb are looked at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// One of two, from this one on.
    EachSecond(usize),
    /// One of [`MANY`], from one on that the seed of this run chooses.
    Many,
    /// Some that the seed of this run chooses.
    Sample,
}

/// Out of so many steps one is looked at of a verb that takes long.
const MANY: u32 = 3;

fn power_cuts_at_some_flushes_while_layers_change() -> Result<()> {
    for verb in [&ADD_LAYER, &REMOVE_LAYER, &ADD_BASE] {
        cut_at_flushes(verb, Extent::Sample)?;
    }
    Ok(())
}

fn power_cuts_at_some_flushes_while_what_boots_changes() -> Result<()> {
    for verb in [&START_TRIAL, &BLESS, &SWITCH_DEFAULT] {
        cut_at_flushes(verb, Extent::Sample)?;
    }
    Ok(())
}

fn some_verb_killed_after_some_step_and_the_machine_reset() -> Result<()> {
    let verbs = [
        START_TRIAL,
        BLESS,
        SWITCH_DEFAULT,
        ADD_BASE,
        ADD_BASE_OF_FILES,
        REMOVE_BASE,
        COLLECT,
        ADD_LAYER,
        ADD_LAYER_OF_LAYER,
        REMOVE_LAYER,
    ];
    let mut random = seed::rng("reset");
    let verb = &verbs[random.usize(..verbs.len())];
    reset_after_steps(verb, Extent::Sample)
}

fn some_verb_of_a_running_host_killed_after_some_step_and_the_machine_reset() -> Result<()> {
    let verbs = [
        UPDATE,
        ROLL_BACK,
        ADD_VOLUME,
        ADD_BUSY_VOLUME,
        LIST_PATH,
        STRIKE_PATH,
    ];
    let mut random = seed::rng("reset-running");
    let verb = &verbs[random.usize(..verbs.len())];
    reset_running_after_steps(verb, Extent::Sample)
}

fn power_cuts_while_a_layer_is_added() -> Result<()> {
    cut_at_flushes(&ADD_LAYER, Extent::All)
}

fn power_cuts_while_a_layer_is_removed() -> Result<()> {
    cut_at_flushes(&REMOVE_LAYER, Extent::All)
}

fn power_cuts_while_a_base_is_added() -> Result<()> {
    cut_at_flushes(&ADD_BASE, Extent::All)
}

fn power_cuts_while_a_trial_begins() -> Result<()> {
    cut_at_flushes(&START_TRIAL, Extent::All)
}

fn power_cuts_while_a_trial_ends() -> Result<()> {
    cut_at_flushes(&BLESS, Extent::All)
}

fn power_cuts_while_the_default_changes() -> Result<()> {
    cut_at_flushes(&SWITCH_DEFAULT, Extent::All)
}

fn power_cuts_at_each_second_flush_of_an_update() -> Result<()> {
    cut_an_update(0)
}

fn power_cuts_at_the_other_flushes_of_an_update() -> Result<()> {
    cut_an_update(1)
}

/// Cuts the power at each second flush of an update, of which there are some 200.
fn cut_an_update(first: usize) -> Result<()> {
    let name = &format!("cut-update-host-{first}");
    let (disk, mut vm) = Host::running(Loader::Grub, name)?;
    vm.ok(&script("make-extra")?)?;
    vm.ok(&UPDATE.prepare()?)?;
    vm.ok("udevadm settle; sync")?;
    let host = Saved::of(disk, vm)?;

    let disk = host.disk(&format!("cut-update-recorded-{first}"))?;
    let log = disk.path().with_file_name("log");
    let mut vm = host.go_on_logged(&disk, &log)?;
    let lvm = area_of_lvm(&mut vm, "/dev/disk/by-id/virtio-host-part3")?;
    vm.ok_for(UPDATE.run, SLOW)?;
    drop(vm);
    let recorded = Recorded {
        start: host.disk_path(),
        epochs: write_log::read(&log)?,
        lvm,
    };
    let before = Before::running(&recorded.start, disk.path(), &["Extra", "Extra+1"])?;
    recorded.cut(&UPDATE, &before, Extent::EachSecond(first))
}

fn what_boots_killed_after_any_step_and_the_machine_reset() -> Result<()> {
    for verb in [&START_TRIAL, &BLESS, &SWITCH_DEFAULT] {
        reset_after_steps(verb, Extent::All)?;
    }
    Ok(())
}

fn a_base_killed_while_it_is_added_and_the_machine_reset() -> Result<()> {
    for verb in [&ADD_BASE, &ADD_BASE_OF_FILES] {
        reset_after_steps(verb, Extent::All)?;
    }
    Ok(())
}

fn a_base_killed_while_it_is_removed_and_the_machine_reset() -> Result<()> {
    for verb in [&REMOVE_BASE, &COLLECT] {
        reset_after_steps(verb, Extent::All)?;
    }
    Ok(())
}

fn layers_killed_after_any_step_and_the_machine_reset() -> Result<()> {
    for verb in [&ADD_LAYER, &ADD_LAYER_OF_LAYER, &REMOVE_LAYER] {
        reset_after_steps(verb, Extent::All)?;
    }
    Ok(())
}

fn an_update_killed_after_many_steps_and_the_machine_reset() -> Result<()> {
    for verb in [&UPDATE, &ROLL_BACK] {
        reset_running_after_steps(verb, Extent::Many)?;
    }
    Ok(())
}

fn what_is_shared_and_carried_killed_after_many_steps_and_the_machine_reset() -> Result<()> {
    for verb in [&ADD_VOLUME, &ADD_BUSY_VOLUME, &LIST_PATH, &STRIKE_PATH] {
        reset_running_after_steps(verb, Extent::Many)?;
    }
    Ok(())
}

/// Records what a verb writes to the disk of a host that is off, and cuts the power.
fn cut_at_flushes(verb: &Verb, extent: Extent) -> Result<()> {
    let name = format!("record-{}", verb.name);
    let directory = scratch(&name)?;
    let start = start_disk(verb, &name, &directory)?;
    Recorded::of(verb, start, &directory)?.cut(verb, Before::installed()?, extent)
}

/// What a verb has written to a disk, and how the disk was before.
struct Recorded {
    start: PathBuf,
    epochs: Vec<Epoch>,
    /// Where on the disk LVM's metadata are, in bytes.
    lvm: Range<u64>,
}

impl Recorded {
    /// Runs the verb with a log of all that it writes. The machine is stopped as soon as it is done.
    fn of(verb: &Verb, start: PathBuf, directory: &Path) -> Result<Self> {
        let (disk, log) = (directory.join("recorded.qcow2"), directory.join("log"));
        create_overlay(&disk, &start, "qcow2")?;
        let disk = Disk::logged(&disk, &log, "host")?;
        let mut vm = Rescue::prepared()?.with(&format!("record-{}", verb.name), disk)?;
        vm.ok(MOUNT_BOOT)?;
        let lvm = area_of_lvm(&mut vm, "/dev/disk/by-id/virtio-host-part3")?;
        vm.ok(verb.run)?;
        drop(vm);
        let epochs = write_log::read(&log)?;
        Ok(Self { start, epochs, lvm })
    }

    /// Looks at the disk as it was before, at each flush and at the end, and at some disks on which, between two
    /// flushes, half of the writes had arrived.
    fn cut(&self, verb: &Verb, before: &Before, extent: Extent) -> Result<()> {
        let Self { start, epochs, lvm } = self;
        ensure!(!epochs.is_empty(), "`{}` wrote nothing", verb.run);
        let name = match extent {
            Extent::EachSecond(first) => format!("cut-{}-{first}", verb.name),
            _ => format!("cut-{}", verb.name),
        };
        let changes: usize = epochs.iter().map(Vec::len).sum();
        say(&format!(
            "{name}: {changes} writes and discards in {} epochs",
            epochs.len()
        ));
        let disk = scratch(&name)?.join("disk.raw");
        convert_to_raw(start, &disk)?;
        let image = File::options().write(true).open(&disk)?;

        let mut random = seed::rng(&name);
        let is_whole = matches!(extent, Extent::All | Extent::EachSecond(_));
        let several = (0..epochs.len()).filter(|&number| epochs[number].len() > 1);
        let halved =
            random.choose_multiple(several, if is_whole { HALVED } else { HALVED_OF_SAMPLE });
        let all = 0..epochs.len();
        let flushed: BTreeSet<usize> = match extent {
            // Also the last, after which it is done.
            Extent::EachSecond(first) => all
                .skip(first)
                .step_by(2)
                .chain([epochs.len() - 1])
                .collect(),
            _ if is_whole => all.collect(),
            _ => random.choose_multiple(all, SAMPLED).into_iter().collect(),
        };
        let booted = is_whole.then(|| random.usize(..epochs.len()));
        let mut cuts = Cuts {
            examiner: Examiner::new(&name, verb, before),
            disk: &disk,
            boots: 0,
            boots_new: is_whole,
        };
        let mut last = None;
        if is_whole {
            last = cuts.look("before the first write", false);
        }
        for (number, epoch) in epochs.iter().enumerate() {
            if halved.contains(&number) {
                // lvm2 does not flush between its metadata and the header that points there: a disk that
                // keeps back the first alone loses the group, whoever calls lvm2.
                let arrives = |change: &&Change| lvm.contains(&change.offset()) || random.bool();
                apply(epoch.iter().filter(arrives), &image)?;
                cuts.look(&format!("after half of epoch {number}"), false);
            }
            apply(epoch, &image)?;
            if flushed.contains(&number) {
                last = cuts.look(&format!("after epoch {number}"), booted == Some(number));
            }
        }
        if let Some(state) = last.filter(|_| is_whole) {
            let done = cuts.boot_when_done(verb, &state);
            cuts.examiner.judge("when it was done", done);
        }
        say(&format!("{name}: {} boots", cuts.boots));
        cuts.examiner.finish()
    }
}

/// Where LVM's metadata are on the disk of this partition, in bytes.
fn area_of_lvm(vm: &mut Vm, partition: &str) -> Result<Range<u64>> {
    let sector: u64 = vm
        .ok(&format!(
            "cat /sys/class/block/$(basename $(realpath {partition}))/start"
        ))?
        .parse()?;
    let data = vm.ok(&format!(
        "lvm pvs --noheadings --nosuffix --units b -o pe_start {partition}"
    ))?;
    Ok(sector * 512..sector * 512 + data.parse::<u64>()?)
}

fn apply<'a>(changes: impl IntoIterator<Item = &'a Change>, image: &File) -> Result<()> {
    changes
        .into_iter()
        .try_for_each(|change| change.apply(image))
}

/// The disk of a machine whose power was cut, earlier and later ones in turn.
struct Cuts<'a> {
    examiner: Examiner<'a>,
    /// A raw image.
    disk: &'a Path,
    boots: usize,
    /// Whether a disk that looks like none before is booted.
    boots_new: bool,
}

impl Cuts<'_> {
    /// Looks at the disk as it is now, and boots it if it looks like none before or is a sample. The
    /// first one, without anything of the verb on it, is the disk of other tests.
    fn look(&mut self, what: &str, is_sample: bool) -> Option<State> {
        let is_first = self.examiner.kinds() == 0;
        let seen = self.examiner.look(what, self.disk())?;
        if is_sample || self.boots_new && seen.is_new && !is_first {
            let booted = seen.state.default_layer().and_then(|l| self.boot(l));
            self.examiner.judge(&format!("{what}, booted"), booted)?;
        }
        Some(seen.state)
    }

    /// Refuses a disk without what the verb has done, and boots what it has made.
    fn boot_when_done(&mut self, verb: &Verb, state: &State) -> Result<()> {
        let is_listed = state.lists(verb.subject);
        ensure!(is_listed == verb.adds, "{}: {is_listed}", verb.subject);
        let is_made = verb.adds && verb.is_real;
        self.boot(if is_made {
            verb.subject
        } else {
            state.default_layer()?
        })
    }

    /// Boots from the disk's own boot sector, with `layer` picked in the menu.
    fn boot(&mut self, layer: &str) -> Result<()> {
        self.boots += 1;
        let name = format!("{}-boot", self.examiner.name());
        let mut vm = Vm::start(&name, &[self.disk()], &Start::default())?;
        vm.menu()?.choose(layer)?;
        vm.log_in()?;
        claims::runs(&mut vm, layer)?;
        Ok(())
    }

    fn disk(&self) -> Disk {
        Disk::forgetful(self.disk, "raw", "host")
    }
}

/// Kills the verb after its first step, its second and so on, and the machine with it, and looks at
/// what has reached the disk.
fn reset_after_steps(verb: &Verb, extent: Extent) -> Result<()> {
    let name = format!("reset-{}", verb.name);
    let directory = scratch(&name)?;
    let start = start_disk(verb, &name, &directory)?;
    let disk = directory.join("disk.qcow2");
    let mut examiner = Examiner::new(&name, verb, Before::installed()?);
    let mut reset = |step: u32| -> Result<bool> {
        create_overlay(&disk, &start, "qcow2")?;
        let mut vm = Rescue::prepared()?.with(&name, Disk::writable(&disk, "host"))?;
        vm.ok(MOUNT_BOOT)?;
        let variable = format!("IMGBASED_KILL_AFTER={step}");
        let killed = vm.run(&interrupted(&variable, verb.run))?;
        drop(vm);
        if killed.status == 0 {
            ensure!(step > 1, "`{}` was never killed", verb.run);
            return Ok(false);
        }
        ensure!(killed.status == KILLED, "step {step}: {killed:?}");
        let left = Disk::forgetful(&disk, "qcow2", "host");
        examiner.look(&format!("after step {step}"), left);
        Ok(true)
    };
    reset_each(verb, &name, extent, &mut reset)?;
    examiner.finish()
}

/// The same with a verb that needs a layer that runs.
fn reset_running_after_steps(verb: &Verb, extent: Extent) -> Result<()> {
    // Of the layer that an update makes, merged files have the time of the merge.
    const MADE: &[&str] = &["Extra+1"];
    let name = format!("reset-{}", verb.name);
    let (disk, mut vm) = Host::running(Loader::Grub, &format!("{name}-host"))?;
    vm.ok(&script("make-extra")?)?;
    vm.ok_for(&verb.prepare()?, SLOW)
        .with_context(|| format!("before `{}`", verb.run))?;
    let image = vm.ok(&format!("cd /root/Extra && {CONTENT}; cd /"))?;
    vm.ok("udevadm settle; sync")?;
    let host = Saved::of(disk, vm)?;

    let disk = host.disk(&format!("{name}-killed"))?;
    let before = Before::running_again(&host.disk_path(), image, MADE)?;
    let mut examiner = Examiner::new(&name, verb, &before);
    let mut reset = |step: u32| -> Result<bool> {
        let mut vm = host.again(&disk)?;
        let variable = format!("IMGBASED_KILL_AFTER={step}");
        let killed = vm.run_for(&interrupted(&variable, verb.run), SLOW)?;
        drop(vm);
        if killed.status == 0 {
            ensure!(step > 1, "`{}` was never killed", verb.run);
            return Ok(false);
        }
        ensure!(killed.status == KILLED, "step {step}: {killed:?}");
        let left = Disk::forgetful(disk.path(), "qcow2", "host");
        examiner.look(&format!("after step {step}"), left);
        Ok(true)
    };
    reset_each(verb, &name, extent, &mut reset)?;
    examiner.finish()
}

/// Calls `reset` with the steps of a verb that are looked at. It returns whether there is such a step.
fn reset_each(
    verb: &Verb,
    name: &str,
    extent: Extent,
    reset: &mut dyn FnMut(u32) -> Result<bool>,
) -> Result<()> {
    let mut random = seed::rng(name);
    let (first, stride) = match extent {
        Extent::All => (1, 1),
        Extent::EachSecond(first) => (u32::try_from(first)? + 1, 2),
        Extent::Many => (random.u32(1..=MANY), MANY),
        Extent::Sample => {
            let mut limit = verb.steps;
            loop {
                let step = random.u32(1..=limit);
                if reset(step)? {
                    return Ok(());
                }
                limit = step - 1;
            }
        }
    };
    for step in (first..=STEPS_MAX).step_by(stride as usize) {
        if !reset(step)? {
            return Ok(());
        }
    }
    bail!("`{}` has more than {STEPS_MAX} steps", verb.run)
}

/// The disk, in `directory`, of a host that is ready for the verb.
fn start_disk(verb: &Verb, name: &str, directory: &Path) -> Result<PathBuf> {
    let host = Host::prepared()?.disk(&format!("{name}-host"))?;
    let path = directory.join("start.qcow2");
    create_overlay(&path, host.path(), "qcow2")?;
    let disk = Disk::writable(&path, "host");
    let mut vm = Rescue::prepared()?.with(&format!("start-{name}"), disk)?;
    vm.ok(MOUNT_BOOT)?;
    vm.ok(&verb.prepare()?)
        .with_context(|| format!("before `{}`", verb.run))?;
    vm.ok("umount /boot && vgchange -q -an HostVG")?;
    vm.switch_off()?;
    Ok(path)
}
