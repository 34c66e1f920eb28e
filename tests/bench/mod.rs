//! Measuring in a virtual machine: in turns, so that what slows the machine down for a while slows
//! all that is compared.

pub mod image;
pub mod table;

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::vm::qemu::Vm;
use table::Samples;

/// No command takes longer, not even one that copies gigabytes or makes hundreds of volumes under
/// emulation.
const LIMIT: Duration = Duration::from_secs(1800);

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
