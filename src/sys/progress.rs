//! How far a long piece of work is: a bar on a terminal, else a plain line now and then; and lines for a program that
//! has asked for them. Where nothing can be counted, a terminal shows what is waited for.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::JSON_VERSION;

/// How often a terminal's line is drawn, and how often a plain line is written.
const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(10);
const BAR: u64 = 24;
/// Before that the time left is a guess.
const GUESS: u128 = 1000;
/// From here on nobody waits for the end: 100 hours, in seconds.
const LEFT_MAX: u128 = 100 * 3600;
/// How long people wait before they ask what for, and how often the line is drawn then.
const PATIENCE: Duration = Duration::from_secs(2);
const SECOND: Duration = Duration::from_secs(1);
/// How often a program is told.
const REPORT: Duration = Duration::from_millis(500);

/// Where the lines for a program go.
static REPORTS: OnceLock<Mutex<File>> = OnceLock::new();
/// Whether the terminal has a line that is to be gone when something else is written.
static IS_DRAWN: AtomicBool = AtomicBool::new(false);
/// Whether that is one of [`Progress`], which tells more than one of [`Waiting`].
static IS_COUNTED: AtomicBool = AtomicBool::new(false);
/// Whether something is waited for already.
static IS_WAITED: AtomicBool = AtomicBool::new(false);

/// Whether this is a terminal that can do more than print one line after the other.
pub fn is_smart_terminal(stream: &impl IsTerminal) -> bool {
    let term = env::var_os("TERM").unwrap_or_default();
    stream.is_terminal() && !term.is_empty() && term != "dumb"
}

fn draw(text: &str) {
    IS_DRAWN.store(true, Relaxed);
    // There is nobody to tell that progress cannot be shown.
    let _ = write!(io::stderr(), "\r{text}\x1b[K");
}

/// Takes the line away that is drawn over and over, before something else is written.
pub fn wipe() {
    if IS_DRAWN.swap(false, Relaxed) {
        let _ = write!(io::stderr(), "\r\x1b[K");
    }
}

/// Has a line of JSON written to a file descriptor of the caller's for all work from here on.
pub fn report_to(descriptor: u32) -> Result<()> {
    let path = format!("/proc/self/fd/{descriptor}");
    let file = OpenOptions::new().append(true).open(path);
    let file = file.with_context(|| {
        format!("progress cannot be written to the file descriptor {descriptor}")
    })?;
    // The first one counts.
    let _ = REPORTS.set(Mutex::new(file));
    Ok(())
}

/// Shown on standard error. What takes less than a moment shows nothing.
pub struct Progress {
    label: String,
    /// In bytes; 0 if nobody knows.
    total: u64,
    is_terminal: bool,
    started: Instant,
    shown: Instant,
    has_line: bool,
    /// What was done before it has started, and is done now.
    first: u64,
    done: u64,
    reported: Instant,
}

impl Progress {
    /// Starts work of `total` bytes; 0 if nobody knows how much it is.
    pub fn new(label: &str, total: u64) -> Self {
        let now = Instant::now();
        Self {
            label: label.to_owned(),
            total,
            is_terminal: is_smart_terminal(&io::stderr()),
            started: now,
            shown: now,
            has_line: false,
            first: 0,
            done: 0,
            reported: now,
        }
    }

    /// The same, where so many bytes were done by an earlier command.
    pub fn after(mut self, done: u64) -> Self {
        self.first = done;
        self
    }

    /// Shows that `done` bytes are done, if it is time to.
    pub fn show(&mut self, done: u64) {
        let interval = if self.is_terminal { REDRAW } else { LINE };
        self.done = done;
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            let text = line(
                &self.label,
                done,
                self.first,
                self.total,
                self.started.elapsed(),
            );
            self.put(&text);
        }
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.report();
        }
    }

    fn report(&self) {
        if let Some(Ok(mut file)) = REPORTS.get().map(Mutex::lock) {
            // Whoever has asked for it may have ended.
            let _ = file.write_all(report(&self.label, self.done, self.total).as_bytes());
        }
    }

    /// Shows what is being done at the end, where there is no more to count.
    pub fn hint(&mut self, what: &str) {
        if self.has_line && self.is_terminal {
            let text = format!("{}  {what}", self.label);
            self.put(&text);
        }
    }

    fn put(&mut self, text: &str) {
        if self.is_terminal {
            IS_COUNTED.store(true, Relaxed);
            draw(text);
        } else {
            let _ = writeln!(io::stderr(), "{text}");
        }
        self.has_line = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.report();
        if self.has_line && self.is_terminal {
            IS_COUNTED.store(false, Relaxed);
            wipe();
        }
    }
}

/// Says on a terminal what is waited for, once that takes long, until this is dropped. Of several the first counts.
pub struct Waiting(Option<(Arc<AtomicBool>, JoinHandle<()>)>);

impl Waiting {
    pub fn new(what: impl FnOnce() -> String) -> Self {
        let is_shown = is_smart_terminal(&io::stderr()) && !IS_WAITED.swap(true, Relaxed);
        Self(is_shown.then(|| Self::start(what())))
    }

    /// Apart from what each caller says, so that it is in the program once.
    fn start(what: String) -> (Arc<AtomicBool>, JoinHandle<()>) {
        let started = Instant::now();
        let is_over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let mut next = PATIENCE;
            while !seen.load(Relaxed) {
                if let Some(rest) = next.checked_sub(started.elapsed()) {
                    thread::park_timeout(rest);
                    continue;
                }
                next += SECOND;
                if !IS_COUNTED.load(Relaxed) {
                    draw(&waiting(&what, started.elapsed()));
                }
            }
        });
        (is_over, thread)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((is_over, thread)) = self.0.take() else {
            return;
        };
        is_over.store(true, Relaxed);
        thread.thread().unpark();
        // It does nothing that can fail.
        let _ = thread.join();
        IS_WAITED.store(false, Relaxed);
        if !IS_COUNTED.load(Relaxed) {
            wipe();
        }
    }
}

/// What people are told of work that nothing can be counted of, on one line that is shorter than any terminal is wide.
fn waiting(what: &str, elapsed: Duration) -> String {
    const LONGEST: usize = 60;
    let is_long = what.chars().nth(LONGEST).is_some();
    let what: String = what.chars().take(LONGEST).collect();
    let what = what.replace(char::is_control, " ");
    let dots = if is_long { " ..." } else { "" };
    format!("{what}{dots}  {} s", elapsed.as_secs())
}

/// What a program is told, on one line.
fn report(label: &str, done: u64, total: u64) -> String {
    let total = (total > 0).then_some(total);
    let report = serde_json::json!({
        "version": JSON_VERSION, "stage": label, "done": done, "total": total, "unit": "bytes"
    });
    format!("{report}\n")
}

/// What people are told. Of what is done, the `first` bytes were so before.
fn line(label: &str, done: u64, first: u64, total: u64, elapsed: Duration) -> String {
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let rate = u128::from(done.saturating_sub(first)) * 1000 / u128::from(millis);
    if total == 0 {
        return format!("{label}  {} MiB  {} MiB/s", done >> 20, rate >> 20);
    }
    let done = done.min(total);
    let share = |of: u64| {
        u64::try_from(u128::from(done) * u128::from(of) / u128::from(total)).unwrap_or(of)
    };
    let filled = usize::try_from(share(BAR)).unwrap_or(0);
    let bar = "=".repeat(filled) + &" ".repeat(usize::try_from(BAR).unwrap_or(0) - filled);
    let left = u128::from(total - done).checked_div(rate);
    let left = left.filter(|left| elapsed.as_millis() >= GUESS && *left < LEFT_MAX);
    let left = left.map_or_else(String::new, |left| {
        format!("  {}:{:02} left", left / 60, left % 60)
    });
    format!(
        "{label} [{bar}] {:3} %  {} of {} MiB  {} MiB/s{left}",
        share(100),
        done >> 20,
        total >> 20,
        rate >> 20,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_bytes_rate_and_time_left() {
        let seconds = Duration::from_secs;
        assert_eq!(
            line("Base-1", 1 << 30, 0, 4 << 30, seconds(10)),
            "Base-1 [======                  ]  25 %  1024 of 4096 MiB  102 MiB/s  0:30 left"
        );
        // What was there before takes no time.
        assert_eq!(
            line("Base-1", 3 << 30, 2 << 30, 4 << 30, seconds(10)),
            "Base-1 [==================      ]  75 %  3072 of 4096 MiB  102 MiB/s  0:10 left"
        );
        assert_eq!(line("x", 5 << 20, 0, 0, seconds(1)), "x  5 MiB  5 MiB/s");
        assert!(line("x", 9, 0, 3, Duration::ZERO).contains("100 %"));
        assert!(line("x", 0, 0, 1, Duration::ZERO).contains("  0 %"));
    }

    #[test]
    fn the_time_left_is_told_once_it_is_no_guess() {
        const TOTAL: u64 = 4 << 30;
        for (done, millis, left) in [
            (0, 0, None),
            (860, 1, None),
            (1 << 30, 999, None),
            (1 << 30, 1000, Some("0:03 left")),
            (0, 10_000, None),
            (1, 60_000, None),
            // A second less than 100 hours, and those.
            (
                TOTAL - 359_999,
                (TOTAL - 359_999) * 1000,
                Some("5999:59 left"),
            ),
            (TOTAL - 360_000, (TOTAL - 360_000) * 1000, None),
        ] {
            let line = line("x", done, 0, TOTAL, Duration::from_millis(millis));
            match left {
                Some(left) => assert!(line.ends_with(left), "{line}"),
                None => assert!(line.ends_with("MiB/s"), "{line}"),
            }
        }
    }

    #[test]
    fn what_is_waited_for_fits_on_one_line() {
        let minute = Duration::from_secs(61);
        assert_eq!(waiting("lvm lvcreate", minute), "lvm lvcreate  61 s");
        let long = waiting(&"ä\n".repeat(100), minute);
        assert_eq!(long, format!("{} ...  61 s", "ä ".repeat(30)));
    }

    #[test]
    fn what_is_no_terminal_is_no_smart_one() {
        assert!(!is_smart_terminal(&File::open("/dev/null").unwrap()));
    }

    #[test]
    fn a_program_is_told_in_lines_of_json() {
        for (total, wanted) in [(9, "9"), (0, "null")] {
            let text = report("a\n\"b", 5, total);
            assert_eq!(text.lines().count(), 1);
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            crate::schemas::assert_holds("progress", &read);
            assert_eq!(read["stage"], "a\n\"b");
            assert_eq!(
                (read["done"].as_u64(), read["total"].to_string().as_str()),
                (Some(5), wanted)
            );
        }
    }
}
