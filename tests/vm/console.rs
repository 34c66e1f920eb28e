//! The serial line of a machine: what it said so far, and waiting for what it will say.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::emulator::{self, KERNEL_STARTS, PANIC};

/// What dracut says before its own shell.
pub const DEBUG: &str = "Dropping to debug shell.";
/// The end of what sulogin prints when an emergency shell is ready for a person.
pub const EMERGENCY: &str = "(or press Control-D to continue):";

/// What a machine says when it will not get any further by itself. Waiting for anything else ends
/// at once when one of these appears.
const DEAD_ENDS: &[&str] = &[
    EMERGENCY,
    "the root account is locked",
    PANIC,
    "grub rescue>",
    "Minimal BASH-like line editing",
    "No bootable device",
];

/// What GRUB's menu says when it begins to count down.
const COUNTDOWN: &str = "The highlighted entry will be executed automatically in 5s";

/// No text that is waited for is longer, in bytes.
const LONGEST: usize = 100;

/// Whether the serial line is also shown on the standard output while the machine runs.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub enum Echo {
    #[default]
    Silent,
    Live,
}

#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    closed: bool,
}

#[derive(Default)]
struct Line {
    received: Mutex<Received>,
    changed: Condvar,
}

impl Line {
    fn lock(&self) -> MutexGuard<'_, Received> {
        self.received
            .lock()
            .expect("the reader never panics while it holds the lock")
    }
}

pub struct Console {
    line: Arc<Line>,
    input: ChildStdin,
    log: PathBuf,
    /// Up to where earlier waits have consumed what was received.
    position: usize,
    /// Up to where GRUB's menus were answered, if they are.
    answered: Option<usize>,
}

impl Console {
    /// Takes the two ends of a machine's serial line; keeps all that it says in the file `log`. With `hurries`, somebody
    /// presses Enter in a menu that counts down while something else is waited for.
    pub fn new(
        input: ChildStdin,
        output: ChildStdout,
        log: &Path,
        echo: Echo,
        hurries: bool,
    ) -> Result<Self> {
        let file = File::options()
            .append(true)
            .create(true)
            .open(log)
            .with_context(|| format!("opening {}", log.display()))?;
        let line = Arc::new(Line::default());
        let reader_line = Arc::clone(&line);
        thread::spawn(move || receive(output, file, echo, &reader_line));
        Ok(Self {
            line,
            input,
            log: log.to_owned(),
            position: 0,
            answered: hurries.then_some(0),
        })
    }

    /// Types `text`, byte for byte.
    pub fn send(&mut self, text: &str) -> Result<()> {
        self.send_bytes(text.as_bytes())
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        // Each key ends the countdown.
        let seen = self.line.lock().bytes.len();
        self.answered = self.answered.map(|_| seen);
        self.input
            .write_all(bytes)
            .and_then(|()| self.input.flush())
            .or_else(|error| {
                let text = String::from_utf8_lossy(bytes);
                self.fail(&format!("typing {text:?}: {error}"))
            })
    }

    /// Whether the machine can still say something.
    pub fn is_open(&self) -> bool {
        !self.line.lock().closed
    }

    /// Waits until the machine has said `wanted`; returns what came before it, without the carriage
    /// returns of the terminal. `what` is the event's name in the error.
    pub fn wait_for(&mut self, what: &str, wanted: &str, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let start = self.position;
        let mut searched = start;
        loop {
            let received = self.line.lock();
            let seen = received.bytes.len();
            if let Some(at) = find(&received.bytes, searched, wanted) {
                self.position = at + wanted.len();
                return Ok(String::from_utf8_lossy(&received.bytes[start..at]).replace('\r', ""));
            }
            if let Some(answered) = self.answered
                && find(&received.bytes, answered.max(searched), COUNTDOWN).is_some()
            {
                drop(received);
                self.send("\r")?;
                continue;
            }
            let dead_end = DEAD_ENDS
                .iter()
                .find(|end| find(&received.bytes, searched, end).is_some());
            let closed = received.closed;
            drop(received);
            if let Some(end) = dead_end {
                return self.fail(&format!("waiting for {what}, the machine said {end:?}"));
            }
            if closed {
                return self.fail(&format!("waiting for {what}, the machine stopped"));
            }
            // If it stopped just now, the next turn says so.
            if !self.wait_for_more(seen, deadline) && self.is_open() {
                return self.fail(&format!("no {what} within {} s", limit.as_secs()));
            }
            // The end of what was searched may be the beginning of what is searched for.
            searched = seen.saturating_sub(LONGEST).max(start);
        }
    }

    /// How many kernels the machine has started, as far as they say so.
    pub fn starts(&self) -> usize {
        let received = self.line.lock();
        let (bytes, wanted) = (&received.bytes, KERNEL_STARTS.as_bytes());
        bytes
            .windows(wanted.len())
            .filter(|at| *at == wanted)
            .count()
    }

    /// Everything that the machine has said since it was started.
    pub fn all(&self) -> Vec<u8> {
        self.line.lock().bytes.clone()
    }

    /// Waits until more than `seen` bytes were received in all; false if `deadline` passed first
    /// or nothing more can come.
    pub fn wait_for_more(&self, seen: usize, deadline: Instant) -> bool {
        let mut received = self.line.lock();
        while received.bytes.len() == seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || received.closed {
                return received.closed && received.bytes.len() > seen;
            }
            received = self
                .line
                .changed
                .wait_timeout(received, left)
                .expect("the reader never panics while it holds the lock")
                .0;
        }
        true
    }

    /// Fails with `message`, the end of the log and the log's path.
    pub fn fail<T>(&self, message: &str) -> Result<T> {
        let text = String::from_utf8_lossy(&self.line.lock().bytes).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!(
            "{}{message}\n--- end of {} ---\n{tail}\n---",
            emulator::fault(&text),
            self.log.display()
        );
    }
}

/// Copies what the machine says into memory, into the log and, if wanted, to the standard output,
/// until the machine stops.
fn receive(mut output: ChildStdout, mut log: File, echo: Echo, line: &Line) {
    let mut buffer = [0; 4096];
    let mut held = Vec::new();
    loop {
        let count = output.read(&mut buffer).unwrap_or(0);
        let new = &buffer[..count];
        // A full disk must not lose the test its console: the copy in memory is what counts.
        let _ = log.write_all(new);
        if echo == Echo::Live {
            held.extend_from_slice(new);
            let mut stdout = std::io::stdout().lock();
            let _ = stdout
                .write_all(&showable(&mut held, count == 0))
                .and_then(|()| stdout.flush());
        }
        let mut received = line.lock();
        received.bytes.extend_from_slice(new);
        received.closed = count == 0;
        drop(received);
        line.changed.notify_all();
        if count == 0 {
            return;
        }
    }
}

/// Takes from `held` what can be shown to a person: all but the questions for the cursor's position,
/// which the person's terminal would answer as if the person had typed it. What may be the start of
/// one stays in `held`, unless it is the `end`.
fn showable(held: &mut Vec<u8>, end: bool) -> Vec<u8> {
    const QUESTION: &str = "\x1b[6n";
    let mut shown = Vec::new();
    while let Some(at) = find(held, 0, QUESTION) {
        shown.extend(held.drain(..at));
        held.drain(..QUESTION.len());
    }
    let started = (1..QUESTION.len()).rev().find(|&length| {
        let begin = &QUESTION.as_bytes()[..length];
        !end && held.ends_with(begin)
    });
    let keep = held.len() - started.unwrap_or(0);
    shown.extend(held.drain(..keep));
    shown
}

/// Returns where `wanted` begins in `bytes`, looking from `start` on.
fn find(bytes: &[u8], start: usize, wanted: &str) -> Option<usize> {
    let mut windows = bytes[start..].windows(wanted.len());
    Some(start + windows.position(|window| window == wanted.as_bytes())?)
}
