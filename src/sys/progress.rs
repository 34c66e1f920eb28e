//! How far a long piece of work is: a bar on a terminal, else a plain line now and then; and lines for a program that
//! has asked for them.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// How often a terminal's line is drawn, and how often a plain line is written.
const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(10);
const BAR: u64 = 24;
/// How often a program is told.
const REPORT: Duration = Duration::from_millis(500);

/// Where the lines for a program go.
static REPORTS: OnceLock<Mutex<File>> = OnceLock::new();

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
            is_terminal: io::stderr().is_terminal(),
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
        // There is nobody to tell that progress cannot be shown.
        let _ = if self.is_terminal {
            write!(io::stderr(), "\r{text}\x1b[K")
        } else {
            writeln!(io::stderr(), "{text}")
        };
        self.has_line = true;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.report();
        if self.has_line && self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// What a program is told, on one line.
fn report(label: &str, done: u64, total: u64) -> String {
    let total = (total > 0).then_some(total);
    let report = serde_json::json!({"stage": label, "done": done, "total": total, "unit": "bytes"});
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
    let left = u128::from(total - done).checked_div(rate).unwrap_or(0);
    format!(
        "{label} [{bar}] {:3} %  {} of {} MiB  {} MiB/s  {}:{:02} left",
        share(100),
        done >> 20,
        total >> 20,
        rate >> 20,
        left / 60,
        left % 60
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
    fn a_program_is_told_in_lines_of_json() {
        for (total, wanted) in [(9, "9"), (0, "null")] {
            let text = report("a\n\"b", 5, total);
            assert_eq!(text.lines().count(), 1);
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(read["stage"], "a\n\"b");
            assert_eq!(
                (read["done"].as_u64(), read["total"].to_string().as_str()),
                (Some(5), wanted)
            );
        }
    }
}
