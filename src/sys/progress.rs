//! How far a long piece of work is: a bar on a terminal, else a plain line now and then.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a terminal's line is drawn, and how often a plain line is written.
const REDRAW: Duration = Duration::from_millis(200);
const LINE: Duration = Duration::from_secs(10);
const BAR: u64 = 24;

/// Shown on standard error. What takes less than a moment shows nothing.
pub struct Progress {
    label: String,
    /// In bytes.
    total: u64,
    is_terminal: bool,
    started: Instant,
    shown: Instant,
    has_line: bool,
}

impl Progress {
    /// Starts work of `total` bytes.
    pub fn new(label: &str, total: u64) -> Self {
        let now = Instant::now();
        Self {
            label: label.to_owned(),
            total: total.max(1),
            is_terminal: io::stderr().is_terminal(),
            started: now,
            shown: now,
            has_line: false,
        }
    }

    /// Shows that `done` bytes are done, if it is time to.
    pub fn show(&mut self, done: u64) {
        let interval = if self.is_terminal { REDRAW } else { LINE };
        if self.shown.elapsed() >= interval {
            self.shown = Instant::now();
            let text = line(&self.label, done, self.total, self.started.elapsed());
            self.put(&text);
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
        if self.has_line && self.is_terminal {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

fn line(label: &str, done: u64, total: u64, elapsed: Duration) -> String {
    let done = done.min(total);
    let millis = u64::try_from(elapsed.as_millis())
        .unwrap_or(u64::MAX)
        .max(1);
    let share = |of: u64| {
        u64::try_from(u128::from(done) * u128::from(of) / u128::from(total)).unwrap_or(of)
    };
    let filled = usize::try_from(share(BAR)).unwrap_or(0);
    let bar = "=".repeat(filled) + &" ".repeat(usize::try_from(BAR).unwrap_or(0) - filled);
    let rate = u128::from(done) * 1000 / u128::from(millis);
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
        assert_eq!(
            line("Base-1", 1 << 30, 4 << 30, Duration::from_secs(10)),
            "Base-1 [======                  ]  25 %  1024 of 4096 MiB  102 MiB/s  0:30 left"
        );
        assert!(line("x", 9, 3, Duration::ZERO).contains("100 %"));
        assert!(line("x", 0, 1, Duration::ZERO).contains("  0 %"));
    }
}
