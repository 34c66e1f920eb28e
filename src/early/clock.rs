//! How long each part of the boot takes.

use std::time::Instant;

use anyhow::Result;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::{Deserialize, Serialize};

use crate::model::boot_record::Phase;
use crate::sys::run;

/// Takes the time of the phases, over all runs of the helper in one boot.
pub struct Clock {
    /// When the current phase began.
    begun: Instant,
    /// What this process had worked by then. systemd's work between fork and exec counts as ours.
    worked: u64,
    past: Times,
}

#[derive(Default, Serialize, Deserialize)]
pub struct Times {
    pub own_microseconds: u64,
    pub phases: Vec<Phase>,
}

impl Clock {
    /// Goes on where the run before this one has stopped.
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            worked: own_microseconds(),
            past: run::read_json(run::TIMES).unwrap_or_default(),
        }
    }

    pub fn end(&mut self, phase: &str) {
        self.past.phases.push(Phase {
            name: phase.to_owned(),
            milliseconds: u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        });
        self.begun = Instant::now();
    }

    pub fn times(self) -> Times {
        let own_microseconds = own_microseconds().saturating_sub(self.worked);
        Times {
            own_microseconds: self.past.own_microseconds + own_microseconds,
            phases: self.past.phases,
        }
    }

    /// For the next run.
    pub fn save(self) -> Result<()> {
        run::write_json(run::TIMES, &self.times())
    }
}

/// The time that this process has had a processor, in user mode and in the kernel.
fn own_microseconds() -> u64 {
    // It fails for a bad pointer only.
    let time = getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| (usage.user_time() + usage.system_time()).num_microseconds());
    u64::try_from(time.unwrap_or_default()).unwrap_or_default()
}
