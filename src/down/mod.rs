//! The way down. A root on a thin volume can only be unmounted from another one. When all units have ended,
//! systemd goes to the root in /run/initramfs, which has this program and nothing else, and has it take down
//! all that is left: filesystems, swap, and the devices below them to the disks. Systemd has tried so before,
//! and has killed all processes but those that a root can depend on.

mod devices;
mod end;
mod filesystems;
mod order;
mod processes;
mod stage;

use std::path::PathBuf;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use anyhow::{Error, Result, ensure};

use crate::sys::logger;
pub use stage::stage;

/// Where systemd leaves the root of the system that has ended.
const OLD_ROOT: &str = "/oldroot";
/// How long one step may take, such as unmounting one filesystem. Systemd has had all of them write before.
const STEP: Duration = Duration::from_secs(60);
/// How long it may take in all. Less than the ten minutes after which a watchdog that systemd has armed
/// restarts the machine (`RebootWatchdogSec=`).
const LIMIT: Duration = Duration::from_secs(240);
/// How often what is busy is tried again, and how long after the last time.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// How long a message for a console has that somebody may have stopped.
const MESSAGE: Duration = Duration::from_secs(1);

/// Takes the machine down as the verb of systemd-shutdown(8) says. Returns only if this is not what systemd
/// has started, or if the kernel refuses.
pub fn go_down(verb: Option<&str>) -> Result<()> {
    ensure!(
        std::process::id() == 1,
        "`shutdown` is run by systemd as the last process; use `systemctl poweroff` or `systemctl reboot`"
    );
    // Who cannot be told what is wrong still wants the machine to go down.
    let _ = logger::start_for_console(false);
    let (sender, begun) = mpsc::channel();
    let steps = Steps(sender);
    match thread::Builder::new().spawn(move || free_disks(&steps)) {
        Ok(_) => {
            if let Some(step) = wait(&begun, STEP, LIMIT) {
                say(format!("{step} takes too long, going down without it"));
            }
        }
        Err(error) => say(format!("the disks are not released: {error}")),
    }
    end::end(verb)
}

/// What is being done, for the one who waits.
struct Steps(mpsc::Sender<String>);

impl Steps {
    fn begin(&self, step: String) {
        // Nobody waits any more once the time is over.
        let _ = self.0.send(step);
    }
}

/// What could not be done, and why.
struct Failure {
    what: String,
    error: Error,
    /// Where it is mounted, if it is a filesystem with data.
    point: Option<PathBuf>,
}

impl Failure {
    fn new(what: String, error: impl Into<Error>) -> Self {
        Self {
            what,
            error: error.into(),
            point: None,
        }
    }
}

/// Waits until all steps are done. Returns the one that takes longer than `step`, or is the last one begun
/// when the `limit` for all is over.
fn wait(begun: &Receiver<String>, step: Duration, limit: Duration) -> Option<String> {
    let deadline = Instant::now() + limit;
    let mut current = "the first step".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match begun.recv_timeout(step.min(left)) {
            Ok(_) if left.is_zero() => return Some(current),
            Ok(next) => current = next,
            Err(RecvTimeoutError::Timeout) => return Some(current),
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
}

/// Releases all that can be released, and says what cannot.
fn free_disks(steps: &Steps) {
    let failures = retry(TRIES, PAUSE, || {
        let mut failures = filesystems::unmount_all(steps);
        failures.extend(devices::disable_swap(steps));
        failures.extend(devices::remove_all(steps));
        if !failures.is_empty() {
            processes::end_splash();
        }
        failures
    });
    if !failures.is_empty() {
        steps.begin("writing what is in memory".to_owned());
        nix::unistd::sync();
        report(steps, &failures);
    }
    steps.begin("writing what is in memory".to_owned());
    nix::unistd::sync();
}

/// Runs passes until one leaves nothing, or until `tries` in a row have not left less than the best one.
fn retry(tries: usize, pause: Duration, mut pass: impl FnMut() -> Vec<Failure>) -> Vec<Failure> {
    let (mut fewest, mut in_vain) = (usize::MAX, 0);
    loop {
        let failures = pass();
        if failures.len() < fewest {
            (fewest, in_vain) = (failures.len(), 0);
        } else {
            in_vain += 1;
        }
        if failures.is_empty() || in_vain == tries {
            return failures;
        }
        if in_vain > 0 {
            sleep(pause);
        }
    }
}

/// Says what is left and who may hold it. What stays mounted is made read-only.
fn report(steps: &Steps, failures: &[Failure]) {
    for failure in failures {
        log::error!("{}: {:#}", failure.what, failure.error);
    }
    let processes = processes::all();
    if !processes.is_empty() {
        log::error!("still running: {}", processes.join(", "));
    }
    for point in failures.iter().filter_map(|failure| failure.point.as_ref()) {
        steps.begin(format!("making {} read-only", point.display()));
        match filesystems::make_read_only(point) {
            Ok(()) => log::info!("{} is read-only", point.display()),
            Err(error) => log::error!("cannot make {} read-only: {error}", point.display()),
        }
    }
}

/// Says a last thing. A console that is stopped blocks the thread that writes to it, and may not keep the
/// machine from going down.
fn say(text: String) {
    let (sender, receiver) = mpsc::channel();
    let spawned = thread::Builder::new().spawn(move || {
        log::error!("{text}");
        sender.send(())
    });
    if spawned.is_ok() {
        // Whether it is said or the time is over makes no difference.
        let _ = receiver.recv_timeout(MESSAGE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(60);

    fn failures(number: usize) -> Vec<Failure> {
        let failure = |at| Failure::new(format!("{at}"), nix::errno::Errno::EBUSY);
        (0..number).map(failure).collect()
    }

    #[test]
    fn it_is_tried_again_as_long_as_less_is_left() {
        for (left, passes) in [
            (&[0][..], 1),
            (&[3, 2, 1, 0], 4),
            // What comes and goes does not count.
            (&[2, 3, 1, 0], 4),
            (&[2, 3, 2, 0], 3),
            // Two tries in vain.
            (&[2, 2, 2, 0], 3),
            (&[2, 1, 1, 1, 0], 4),
        ] {
            let mut numbers = left.iter();
            let mut done = 0;
            retry(2, Duration::ZERO, || {
                done += 1;
                failures(*numbers.next().unwrap())
            });
            assert_eq!(done, passes, "{left:?}");
        }
    }

    #[test]
    fn the_step_that_takes_too_long_is_named_and_nobody_waits_for_it() {
        let (sender, begun) = mpsc::channel();
        let steps = Steps(sender);
        steps.begin("one".to_owned());
        steps.begin("two".to_owned());
        assert_eq!(wait(&begun, SHORT, LONG).unwrap(), "two");
        // In all, though each step is fast.
        let busy = thread::spawn(move || {
            let ends = Instant::now() + SHORT * 10;
            while Instant::now() < ends {
                steps.begin("three".to_owned());
                sleep(Duration::from_millis(1));
            }
        });
        assert_eq!(wait(&begun, LONG, SHORT).unwrap(), "three");
        // What is left is done in time.
        assert_eq!(wait(&begun, LONG, LONG), None);
        busy.join().unwrap();
    }

    #[test]
    fn nobody_else_than_systemd_takes_the_machine_down() {
        let error = go_down(Some("poweroff")).unwrap_err();
        assert!(format!("{error:#}").contains("run by systemd"), "{error:#}");
    }
}
