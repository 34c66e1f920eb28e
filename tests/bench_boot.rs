//! What it takes to find and mount a layer in the initramfs, and to go down from it, beside dracut's own way
//! to a root on a thin volume: `ci/bench boot` runs it. The same kernel, disk and layer are booted in turns.

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod bench;
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod vm;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use bench::table::{Limit, Row, Samples, Unit, render};
use vm::qemu::{Disk, Kernel, Vm};
use vm::{Heard, Host, HostDisk, RootImage, Start, store};

/// How often each is booted.
const RUNS: usize = 5;
const LAYER: &str = "Base-0.2";
/// Disks that have nothing to do with the group.
const UNRELATED: [&str; 8] = ["d1", "d2", "d3", "d4", "d5", "d6", "d7", "d8"];

/// When udev knows all devices that were there from the start, in seconds since the kernel started.
const BEGIN: &str = "Finished systemd-udev-trigger.service";
/// When the root is mounted, by the helper and by systemd.
const OWN_END: &str = "Finished imgbased-sysroot.service";
const STOCK_END: &str = "Mounted sysroot.mount";
/// When somebody can log in, in microseconds since the kernel started.
const LOGIN: &str =
    "systemctl show --value --property ActiveEnterTimestampMonotonic serial-getty@ttyS0.service";

/// What systemd asks a terminal for its size when it goes to another root, and what one answers. Where nobody
/// does, it waits a third of a second.
const WHERE_IS_THE_CURSOR: &str = "\x1b[6n";
const AT_THE_END: &str = "\x1b[24;80R";
/// From the request on, on a busy machine.
const OFF: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let host = Host::prepared()?;
    let mut rows = Vec::new();
    for (what, stock, unrelated) in [
        ("mount a layer", "stock dracut", &UNRELATED[..0]),
        ("with 8 other disks", "stock dracut", &UNRELATED[..]),
    ] {
        let disk = host.disk("bench-boot")?;
        let mut own = Times::default();
        let mut other = Times::default();
        let (mut phases, mut activate, mut cpu) = (Samples::new(), Samples::new(), Samples::new());
        for run in 0..RUNS {
            let image = RootImage::prepared()?;
            let mut vm = boot(
                &disk,
                &format!("own-{run}"),
                &image.initrd(),
                &format!("imgbased.layer={LAYER}"),
                unrelated,
            )?;
            own.take(&mut vm, OWN_END)?;
            let record: Value = serde_json::from_str(&vm.ok("cat /run/imgbased/boot.json")?)?;
            let number = |value: &Value| value.as_f64().context("no number");
            phases.push(number(&record["milliseconds"])? / 1e3);
            let all = record["phases"].as_array().context("no phases")?.iter();
            let of_lvm = all.filter(|phase| {
                phase["name"]
                    .as_str()
                    .is_some_and(|n| n.starts_with("activate"))
            });
            let times = of_lvm.map(|phase| number(&phase["milliseconds"]));
            activate.push(times.sum::<Result<f64>>()? / 1e3);
            cpu.push(number(&record["own_microseconds"])? / 1e6);
            own.power_off(vm)?;
            let mut vm = boot(
                &disk,
                &format!("stock-{run}"),
                &image.initrd_without_module(),
                &format!("rd.lvm.lv=HostVG/{LAYER} root=/dev/HostVG/{LAYER} rw"),
                unrelated,
            )?;
            other.take(&mut vm, STOCK_END)?;
            other.power_off(vm)?;
        }
        for (what, measured, compared, limit) in [
            (
                what,
                own.since_coldplug,
                (stock, other.since_coldplug),
                Limit::AtMost(0.12),
            ),
            (
                "  since the kernel started",
                own.since_start,
                (stock, other.since_start),
                Limit::AtMost(0.80),
            ),
            (
                "  until the login",
                own.login,
                (stock, other.login),
                Limit::None,
            ),
            (
                "  from the request to off",
                own.down,
                (stock, other.down),
                Limit::AtMost(1.2),
            ),
            (
                "  of all phases lvm2",
                activate,
                ("all phases", phases.clone()),
                Limit::None,
            ),
            (
                "  of all phases the helper",
                cpu,
                ("all phases", phases),
                Limit::AtMost(0.05),
            ),
        ] {
            rows.push(Row {
                what,
                unit: Unit::Seconds,
                measured,
                other: Some(compared),
                limit,
            });
        }
        // What comes later may fail.
        report(&rows)?;
    }
    Ok(())
}

/// Boots the host's disk with an initramfs and what is on the command line for it.
fn boot(
    disk: &HostDisk,
    name: &str,
    initrd: &Path,
    cmdline: &str,
    unrelated: &[&'static str],
) -> Result<Vm> {
    let image = RootImage::prepared()?;
    let kernel = Kernel {
        vmlinuz: &image.vmlinuz(),
        initrd,
        cmdline: &format!("console=ttyS0,115200 quiet {cmdline}"),
    };
    let others = unrelated.iter().map(|serial| disk.spare(serial, "64M"));
    let others: Vec<Disk> = others.collect::<Result<_>>()?;
    let start = Start {
        kernel: Some(&kernel),
        ..Start::default()
    };
    let mut vm = disk.start(name, others, start)?;
    vm.log_in()?;
    Ok(vm)
}

/// How long it took, in seconds.
#[derive(Default)]
struct Times {
    /// From [`BEGIN`] until the root was mounted: nothing where it was before.
    since_coldplug: Samples,
    /// The same from the start of the kernel.
    since_start: Samples,
    /// From there until somebody could log in.
    login: Samples,
    /// From `systemctl poweroff` until the machine was off. Stock dracut leaves the pool active.
    down: Samples,
}

impl Times {
    /// Reads the journal of a machine where the root was mounted when it said `end`.
    fn take(&mut self, vm: &mut Vm, end: &str) -> Result<()> {
        let mut at = |what: &str| -> Result<f64> {
            let line = vm.ok(&format!(
                "journalctl --boot --no-pager --output short-monotonic | grep -m 1 -F '{what}'"
            ))?;
            let time = line.trim_start_matches(['[', ' ']).split(']').next();
            let time = time.and_then(|time| time.parse().ok());
            time.with_context(|| format!("no time in {line:?}"))
        };
        let (begin, end) = (at(BEGIN)?, at(end)?);
        self.since_coldplug.push((end - begin).max(0.0));
        self.since_start.push(end);
        let login: f64 = vm.ok(LOGIN)?.parse().context(LOGIN)?;
        self.login.push(login / 1e6);
        Ok(())
    }

    fn power_off(&mut self, mut vm: Vm) -> Result<()> {
        let mut answered = vm.said().matches(WHERE_IS_THE_CURSOR).count();
        let asked = Instant::now();
        vm.type_line("systemctl poweroff")?;
        vm.look_for::<()>("end", OFF, |said| {
            if said.matches(WHERE_IS_THE_CURSOR).count() == answered {
                return Heard::Nothing;
            }
            answered += 1;
            Heard::Answer(AT_THE_END)
        })?;
        vm.wait_for_power_off(OFF)?;
        self.down.push(asked.elapsed().as_secs_f64());
        Ok(())
    }
}

/// Shows the table and writes it and the numbers behind it to files.
fn report(rows: &[Row]) -> Result<()> {
    let directory = store::root().with_file_name("bench");
    fs::create_dir_all(&directory)?;
    let table = render(rows);
    store::say(&format!("\n{table}"));
    fs::write(directory.join("boot.txt"), table)?;
    fs::write(
        directory.join("boot.json"),
        serde_json::to_vec_pretty(rows)?,
    )?;
    Ok(())
}
