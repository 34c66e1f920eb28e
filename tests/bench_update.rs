//! What an update to an image costs that the same recipe has made later: `ci/bench update` runs it. All of it is measured
//! in one machine.

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod bench;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use anyhow::Result;

use bench::table::{Limit, Row, Samples, Unit};
use bench::{
    FORGET, Machine, Subject, UNMOUNT_FLOOR, measure, memory_row, mount_floor, peak_memory,
    pool_data, shell, times, tools,
};
use vm::Host;
use vm::guest::script_with;
use vm::qemu::Vm;

/// How often an update is done, and what takes a second or less.
const UPDATES: usize = 3;
const LOOKS: usize = 7;

const TREES: &str = "trees";
const ADD_SECOND: &str = "imgbased-helper base add /mnt/trees/second";
const REMOVE_SECOND: &str = "imgbased-helper base remove --yes Base-2";
const UPDATE: &str = "imgbased-helper update /mnt/trees/second";
/// What an update has made is gone, and the running layer boots next.
const TAKE_BACK: &str = "imgbased-helper rollback; imgbased-helper layer remove Base-2.1; \
                         imgbased-helper base remove --yes Base-2";
const AT_SHUTDOWN: &str = "imgbased-helper update --at-shutdown";
/// Of the base of the layer that runs.
const MOUNT_BASE: &str = "lvm lvchange --activate y --ignoreactivationskip HostVG/Base-0; \
                          mount -o ro,noload /dev/HostVG/Base-0 /run/base";
const UNMOUNT_BASE: &str = "umount /run/base; lvm lvchange --activate n HostVG/Base-0";

fn main() -> Result<()> {
    let machine = Machine {
        start,
        parts: &[
            ("diff", diff),
            ("space", space),
            ("update", update),
            ("shutdown", shutdown),
        ],
    };
    measure("update", &[machine])
}

/// A running host with the other tools and both trees.
fn start() -> Result<Vm> {
    let disk = Host::prepared()?.disk("bench-update")?;
    let disks = vec![tools()?, disk.spare(TREES, "4G")?];
    let mut vm = disk.boot_with("once", disks)?;
    vm.log_in()?;
    vm.say("two trees: making them");
    let sizes = shell(&mut vm, &script_with("make-two-trees", &[TREES])?)?;
    vm.say(&format!(
        "megabytes of the trees: {}",
        sizes.replace('\n', ", ")
    ));
    // What the host lacks is no part of the layer.
    vm.ok("export PATH=/run/tools:$PATH")?;
    Ok(vm)
}

/// `diff` of the layer that runs beside a look at all of it and of its base.
fn diff(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("diff and find");
    let [ours, find] = times(
        vm,
        LOOKS,
        &[
            Subject {
                prepare: FORGET.into(),
                run: "imgbased-helper diff".into(),
                clean: ":".into(),
            },
            Subject {
                prepare: format!("{MOUNT_BASE}; {FORGET}"),
                run: "find /run/base / -xdev -ls".into(),
                clean: UNMOUNT_BASE.into(),
            },
        ],
    )?;
    Ok(vec![Row {
        what: "diff of a layer",
        unit: Unit::Seconds,
        measured: ours,
        other: Some(("find -ls of it and its base", find)),
        limit: Limit::AtMost(1.0),
    }])
}

/// What a base of the second tree takes beside one of the first, which stays.
fn space(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("bases of both trees");
    let before = pool_data(vm)?;
    shell(vm, "imgbased-helper base add --no-share /mnt/trees/first")?;
    let first = pool_data(vm)? - before;
    let before = pool_data(vm)?;
    shell(vm, ADD_SECOND)?;
    let second = pool_data(vm)? - before;
    shell(vm, REMOVE_SECOND)?;
    Ok(vec![Row {
        what: "base of the second tree: pool data",
        unit: Unit::Bytes,
        measured: Samples::one(second),
        other: Some(("of the first", Samples::one(first))),
        limit: Limit::AtMost(0.1),
    }])
}

/// `update` beside a copy of the tree into a filesystem of its own. The last update stays.
fn update(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("update and rsync");
    let [ours, rsync, add] = times(
        vm,
        UPDATES,
        &[
            Subject {
                prepare: FORGET.into(),
                run: UPDATE.into(),
                clean: TAKE_BACK.into(),
            },
            Subject {
                prepare: format!("{}; {FORGET}", mount_floor("Base-1")),
                run: "rsync -aHAX /mnt/trees/second/ /run/floor; sync --file-system /run/floor"
                    .into(),
                clean: UNMOUNT_FLOOR.into(),
            },
            Subject {
                prepare: FORGET.into(),
                run: ADD_SECOND.into(),
                clean: REMOVE_SECOND.into(),
            },
        ],
    )?;
    vm.say("memory of an update");
    shell(vm, FORGET)?;
    let [own, all] = peak_memory(vm, UPDATE)?;
    Ok(vec![
        Row {
            what: "update",
            unit: Unit::Seconds,
            measured: ours,
            other: Some(("rsync -aHAX", rsync.clone())),
            limit: Limit::AtMost(1.0),
        },
        Row {
            what: "  the base of it",
            unit: Unit::Seconds,
            measured: add,
            other: Some(("rsync -aHAX", rsync)),
            limit: Limit::None,
        },
        memory_row("update: memory of the helper", own),
        memory_row("update: memory of the largest of it and its programs", all),
    ])
}

/// What the unit does at shutdown while an update waits, and nothing was changed since.
fn shutdown(vm: &mut Vm) -> Result<Vec<Row>> {
    vm.say("shutdown after an update");
    // The journal is a part of this host's layer, and somebody always writes to it.
    shell(vm, "journalctl --relinquish-var")?;
    shell(vm, &format!("{TAKE_BACK}; {UPDATE}"))?;
    let subjects = [AT_SHUTDOWN, "imgbased-helper --version"].map(Subject::reader);
    let [ours, nothing] = times(vm, LOOKS, &subjects)?;
    let row = |what, measured, limit| Row {
        what,
        unit: Unit::Seconds,
        measured,
        other: None,
        limit,
    };
    Ok(vec![
        row(
            "at shutdown, nothing changed since the update",
            ours,
            Limit::AtMost(0.1),
        ),
        row("  the helper that only starts", nothing, Limit::None),
    ])
}
