//! Counts the steps of a process, those that undo others as well. Tests have it end at any of them.

use std::cell::Cell;
use std::path::Path;

use anyhow::{Result, bail};
use nix::sys::signal::{Signal, raise};

use super::run;

/// For tests: the number of the step after which the process is killed, counted from 1.
const KILL_AFTER: &str = "IMGBASED_KILL_AFTER";
/// For tests: the number of the step that fails, as if its command had. With a larger number to be killed
/// after, the process is killed while it undoes.
const FAIL_AT: &str = "IMGBASED_FAIL_AT";

/// The number in a variable that only tests set. On all other hosts it says nothing: anybody can set one for a
/// program that root runs, and only root can make the file. What is no number is passed over.
pub fn number_of_tests(variable: &str) -> Option<u32> {
    let is_test = cfg!(test) || Path::new(run::TESTING).exists();
    std::env::var(variable)
        .ok()?
        .parse()
        .ok()
        .filter(|_| is_test)
}

#[derive(Default)]
pub struct Steps {
    taken: Cell<u32>,
    kill_after: Option<u32>,
    fail_at: Option<u32>,
    /// The same when all that it does is done.
    #[cfg(test)]
    fail_after: Option<u32>,
}

impl Steps {
    /// As tests say.
    pub fn from_environment() -> Self {
        Self {
            kill_after: number_of_tests(KILL_AFTER),
            fail_at: number_of_tests(FAIL_AT),
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub fn failing_at(step: u32) -> Self {
        Self {
            fail_at: Some(step),
            ..Self::default()
        }
    }

    #[cfg(test)]
    pub fn failing_after(step: u32) -> Self {
        Self {
            fail_after: Some(step),
            ..Self::default()
        }
    }

    /// Takes the next step.
    pub fn take(&self, perform: impl FnOnce() -> Result<()>) -> Result<()> {
        let number = self.taken.get() + 1;
        self.taken.set(number);
        if self.fail_at == Some(number) {
            bail!("step {number} fails, as {FAIL_AT} says");
        }
        let done = perform();
        if self.kill_after == Some(number) {
            raise(Signal::SIGKILL)?;
        }
        #[cfg(test)]
        if self.fail_after == Some(number) {
            bail!("step {number} fails when it is done");
        }
        done
    }
}
