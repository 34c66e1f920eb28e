//! A logger that writes to the kernel's log, from where it reaches the console and the journal.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use simplelog::{Config, SharedLogger};

/// The longest text of one record in bytes. The kernel cuts records off at 1 KiB less their prefix
/// (`PRINTKRB_RECORD_MAX`, `devkmsg_write` in kernel/printk).
const TEXT_MAX: usize = 960;

/// Writes records to /dev/kmsg, one write each.
pub struct KernelLogger {
    level: LevelFilter,
    kmsg: Mutex<File>,
}

impl KernelLogger {
    pub fn new(level: LevelFilter) -> io::Result<Box<Self>> {
        let kmsg = Mutex::new(OpenOptions::new().write(true).open("/dev/kmsg")?);
        Ok(Box::new(Self { level, kmsg }))
    }
}

impl Log for KernelLogger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // There is nobody to tell that the log cannot be written.
        if let Ok(mut kmsg) = self.kmsg.lock() {
            let _ = kmsg
                .write_all(format_record(record.level(), &record.args().to_string()).as_bytes());
        }
    }

    fn flush(&self) {}
}

impl SharedLogger for KernelLogger {
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

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
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
