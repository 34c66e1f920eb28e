//! Measuring in a virtual machine: in turns, so that what slows the machine down for a while slows
//! all that is compared.

pub mod image;
pub mod table;

use std::env;
use std::fs;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::vm::qemu::{Disk, Vm};
use crate::vm::{say, store};
use table::{Limit, Row, Samples, Unit, render};

/// No command takes longer, not even one that copies gigabytes or makes hundreds of volumes under
/// emulation.
const LIMIT: Duration = Duration::from_secs(1800);

/// Puts the programs of [`tools`] beside those of the host, which stay as they are.
pub const UNPACK_TOOLS: &str = "tar --extract --skip-old-files --keep-directory-symlink --directory / \
                                --file /dev/disk/by-id/virtio-tools; ldconfig";
/// Removes the volume that others than the helper work on.
pub const REMOVE_FLOOR: &str = "lvm lvremove --yes HostVG/Floor";
/// Removes that of [`mount_floor`].
pub const UNMOUNT_FLOOR: &str = "umount /run/floor; lvm lvremove --yes HostVG/Floor";
/// Has what is read next come from the disks.
pub const FORGET: &str = "sync; echo 3 > /proc/sys/vm/drop_caches";

/// Measures something and returns its rows of the table.
pub type Part = fn(&mut Vm) -> Result<Vec<Row>>;

/// A machine, and what is measured in it, by name.
pub struct Machine {
    pub start: fn() -> Result<Vm>,
    pub parts: &'static [(&'static str, Part)],
}

/// Runs the parts of the benchmark `name` that the program's arguments name, or all of them. What is measured is shown
/// after each part, since later ones may fail.
pub fn measure(name: &str, machines: &[Machine]) -> Result<()> {
    let wanted: Vec<String> = env::args().skip(1).collect();
    let known = machines.iter().flat_map(|machine| machine.parts);
    let known: Vec<&str> = known.map(|(part, _)| *part).collect();
    for word in &wanted {
        let is_known = known.contains(&word.as_str());
        ensure!(is_known, "no part {word}; there are: {}", known.join(" "));
    }
    let is_wanted = |part: &str| wanted.is_empty() || wanted.iter().any(|word| word == part);
    let mut rows = Vec::new();
    for machine in machines {
        let parts = machine.parts.iter().filter(|(part, _)| is_wanted(part));
        let parts: Vec<&Part> = parts.map(|(_, part)| part).collect();
        if parts.is_empty() {
            continue;
        }
        let mut vm = (machine.start)()?;
        for part in parts {
            rows.extend(part(&mut vm)?);
            report(&mut vm, name, &rows)?;
        }
    }
    Ok(())
}

/// A disk with programs that a host does not have.
pub fn tools() -> Result<Disk> {
    let recipe = include_bytes!("../../ci/bench-tools");
    let tools = store::cached("tools", &[recipe], |new| {
        store::run_script("bench-tools", &[new]).map(drop)
    })?;
    Ok(Disk::raw_read_only(&tools.join("tools.tar"), "tools"))
}

/// Makes the volume that others than the helper work on, as thin as a base and of `size` as lvm2 takes it.
pub fn create_floor(size: &str) -> String {
    format!(
        "lvm lvcreate --yes --type thin --virtualsize {size} --thinpool ImagePool --setactivationskip y -K -ay \
         --name Floor HostVG"
    )
}

/// The same as large as a base, with an empty filesystem that is mounted at `/run/floor`.
pub fn mount_floor(base: &str) -> String {
    format!(
        "size=$(lvm lvs --noheadings --nosuffix --units b -o lv_size HostVG/{base}); {}; \
         mkfs.ext4 -q /dev/HostVG/Floor; mkdir -p /run/floor; mount /dev/HostVG/Floor /run/floor",
        create_floor("$((size))b")
    )
}

/// What is measured, as commands for bash.
pub struct Subject {
    /// Before `run`.
    pub prepare: String,
    pub run: String,
    /// After it: takes back what it did.
    pub clean: String,
}

impl Subject {
    /// One that changes nothing.
    pub fn reader(run: &str) -> Self {
        Self {
            prepare: ":".into(),
            run: run.into(),
            clean: ":".into(),
        }
    }
}

/// Runs the subjects in turns: all once without counting it, then all `runs` times. Returns the
/// seconds that each took.
pub fn times<const N: usize>(
    vm: &mut Vm,
    runs: usize,
    subjects: &[Subject; N],
) -> Result<[Samples; N]> {
    let mut samples = [const { Samples::new() }; N];
    for run in 0..=runs {
        for (subject, samples) in subjects.iter().zip(&mut samples) {
            shell(vm, &subject.prepare)?;
            let seconds = seconds(vm, &subject.run)?;
            shell(vm, &subject.clean)?;
            if run > 0 {
                samples.push(seconds);
            }
        }
        vm.say(&format!("{run} of {runs} runs"));
    }
    Ok(samples)
}

/// How long `command` takes, in seconds. What others left to write does not count.
fn seconds(vm: &mut Vm, command: &str) -> Result<f64> {
    shell(vm, "udevadm settle; sync")?;
    let timed = format!("TIMEFORMAT=%3R; time {{ {command}; }} > /run/output 2>&1");
    number(vm, &timed).or_else(|error| Err(error.context(shell(vm, "cat /run/output")?)))
}

/// The one number that `command` prints.
pub fn number<T: FromStr>(vm: &mut Vm, command: &str) -> Result<T> {
    let text = shell(vm, command)?;
    let number = text.parse().ok();
    number.with_context(|| format!("`{command}` printed {text:?}, not a number"))
}

/// Runs `command` in bash, which stops at the first error; returns what it printed.
pub fn shell(vm: &mut Vm, command: &str) -> Result<String> {
    let quoted = command.replace('\'', r"'\''");
    vm.ok_for(&format!("bash -euo pipefail -c '{quoted}'"), LIMIT)
}

/// The space that the pool has given to its volumes, in bytes. dmsetup(8) counts blocks, where lvs(8)
/// rounds to a percentage.
pub fn pool_data(vm: &mut Vm) -> Result<f64> {
    let pool = "HostVG-ImagePool-tpool";
    let used: f64 = number(
        vm,
        &format!("dmsetup status {pool} | cut -d ' ' -f 6 | cut -d / -f 1"),
    )?;
    let sectors: f64 = number(vm, &format!("dmsetup table {pool} | cut -d ' ' -f 6"))?;
    Ok(used * sectors * 512.0)
}

/// The largest resident set of `command`'s own process, looked at until it ends, and that of the
/// largest of it and its children, as the kernel accounts it; in bytes.
pub fn peak_memory(vm: &mut Vm, command: &str) -> Result<[f64; 2]> {
    let watch = "own=0; while kill -0 $! 2> /dev/null; do \
                 for pid in $(cat /proc/$!/task/$!/children 2> /dev/null || true); do \
                 now=$(sed -n 's/^VmHWM:[^0-9]*\\([0-9]*\\).*/\\1/p' /proc/$pid/status 2> /dev/null || true); \
                 [ -z $now ] || own=$now; done; sleep 0.02; done; wait $!; echo $own > /run/own";
    shell(
        vm,
        &format!("env time --format %M --output /run/all {command} > /run/output 2>&1 & {watch}"),
    )?;
    let kibibytes: [f64; 2] = [number(vm, "cat /run/own")?, number(vm, "cat /run/all")?];
    Ok(kibibytes.map(|value| value * 1024.0))
}

/// What a process may take of memory, in bytes.
pub fn memory_row(what: &'static str, measured: f64) -> Row {
    Row {
        what,
        unit: Unit::Bytes,
        measured: Samples::one(measured),
        other: None,
        limit: Limit::AtMost(f64::from(64 << 20)),
    }
}

/// Shows the table, and keeps it and the values under this name.
fn report(vm: &mut Vm, name: &str, rows: &[Row]) -> Result<()> {
    let machine = shell(
        vm,
        "echo $(imgbased-helper --version), Linux $(uname -r), lvm2 $(dpkg-query -Wf '${Version}' lvm2), \
         $(systemd-detect-virt)",
    )?;
    let table = format!("{machine}\n\n{}", render(rows));
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    fs::create_dir_all(&directory)?;
    let text = directory.join(name).with_extension("txt");
    fs::write(&text, &table).with_context(|| text.display().to_string())?;
    fs::write(
        text.with_extension("json"),
        serde_json::to_vec_pretty(rows)?,
    )?;
    say(&format!("{table}\nalso in {}", text.display()));
    Ok(())
}
