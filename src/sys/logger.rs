//! Where messages go: to people, and to the kernel's log, which the console and the journal show.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::sync::Mutex;

use anyhow::{Context, Error, Result};
use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{CombinedLogger, Config, SharedLogger};

use super::progress::wipe;

/// What an error of standard output is called.
pub const STDOUT: &str = "cannot write to standard output";
/// The longest text of one record in bytes. The kernel cuts records off at 1 KiB less their prefix
/// (`PRINTKRB_RECORD_MAX`, `devkmsg_write` in kernel/printk).
const TEXT_MAX: usize = 960;

/// Writes each record as one line, with one write. simplelog's own loggers can also write the time, the
/// code for which would be a hundredth of the binary.
pub struct LineLogger {
    level: LevelFilter,
    format: fn(Level, &str) -> String,
    output: Mutex<Box<dyn Write + Send>>,
}

impl LineLogger {
    /// Writes to /dev/kmsg.
    pub fn kernel(level: LevelFilter) -> io::Result<Self> {
        let kmsg = OpenOptions::new().write(true).open("/dev/kmsg")?;
        Ok(Self::new(level, format_record, kmsg))
    }

    /// Writes what people read.
    pub fn plain(level: LevelFilter, output: impl Write + Send + 'static) -> Self {
        Self::new(level, plain_line, output)
    }

    fn new(
        level: LevelFilter,
        format: fn(Level, &str) -> String,
        output: impl Write + Send + 'static,
    ) -> Self {
        Self {
            level,
            format,
            output: Mutex::new(Box::new(output)),
        }
    }
}

/// Tells people why the program ends. Nobody may be there any more to read that: whoever reads what is said has ended, as
/// head(1) does, and that is no error of this program.
pub fn say_error(error: &Error) {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    let is_pipe = cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe);
    let is_stdout = error.chain().any(|error| error.to_string() == STDOUT);
    if !(is_pipe && is_stdout) {
        let _ = writeln!(io::stderr(), "error: {error:#}");
    }
}

impl Log for LineLogger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = (self.format)(record.level(), &record.args().to_string());
        // There is nobody to tell that the log cannot be written.
        if let Ok(mut output) = self.output.lock() {
            let _ = output.write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for LineLogger {
    fn level(&self) -> LevelFilter {
        self.level
    }

    fn config(&self) -> Option<&Config> {
        None
    }

    fn as_log(self: Box<Self>) -> Box<dyn Log> {
        self
    }
}

/// The text, on a line of its own also where the terminal shows progress.
fn plain_line(_: Level, text: &str) -> String {
    wipe();
    format!("{text}\n")
}

/// The kernel's level (`linux/kern_levels.h`), our name, and the text on one line.
fn format_record(level: Level, text: &str) -> String {
    let mut line = format!("<{}>imgbased: ", severity(level));
    let limit = line.len() + TEXT_MAX;
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > limit {
            break;
        }
        line.push(c);
    }
    line.push('\n');
    line
}

/// The number of a level, as syslog(3) has it.
pub(super) fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// Where there is no system yet or any more, everything goes to the kernel's log, which the journal reads. Where
/// the kernel is told to show not even errors, they are written to the console as well. Someone in a shell reads
/// standard error.
pub fn start_for_console(in_shell: bool) -> Result<()> {
    let mut loggers: Vec<Box<dyn SharedLogger>> = Vec::new();
    if let Ok(kmsg) = LineLogger::kernel(LevelFilter::Info) {
        loggers.push(Box::new(kmsg));
    }
    if in_shell {
        let stderr = LineLogger::plain(LevelFilter::Info, io::stderr());
        loggers.push(Box::new(stderr));
    } else if (loggers.is_empty() || !is_shown_on_console(Level::Error))
        && let Ok(console) = OpenOptions::new().write(true).open("/dev/console")
    {
        let console = LineLogger::plain(LevelFilter::Error, console);
        loggers.push(Box::new(console));
    }
    CombinedLogger::init(loggers).context("cannot start logging")
}

/// Whether the kernel shows records of `level` on its consoles; `quiet` makes it show errors only.
pub fn is_shown_on_console(level: Level) -> bool {
    std::fs::read_to_string("/proc/sys/kernel/printk")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse::<u8>().ok())
        .is_some_and(|console| severity(level) < console)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_single_lines_with_the_kernels_level() {
        assert_eq!(
            format_record(Level::Error, "a\nb\tc"),
            "<3>imgbased: a b c\n"
        );
        assert_eq!(format_record(Level::Info, "x"), "<6>imgbased: x\n");
    }

    #[test]
    fn long_records_are_cut_between_characters() {
        let record = format_record(Level::Warn, &"ä".repeat(1000));
        assert!(record.len() <= 1000 && record.len() > 960 && record.ends_with("ä\n"));
    }
}
