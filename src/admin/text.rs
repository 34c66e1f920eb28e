//! How sizes, trees and states are written for people.

use std::env;
use std::fmt::Write as _;
use std::io;

use anyhow::{Context, Result, bail};

use crate::model::percent::Percent;
use crate::sys::progress::is_smart_terminal;

const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A number of bytes in binary units, cut off after two decimals.
pub fn size(bytes: u64) -> String {
    let mut unit = 0;
    while bytes >> (10 * unit) >= 1024 && unit + 1 < UNITS.len() {
        unit += 1;
    }
    if unit == 0 {
        return format!("{bytes} B");
    }
    let hundredths = (u128::from(bytes) * 100) >> (10 * unit);
    format!(
        "{}.{:02} {}",
        hundredths / 100,
        hundredths % 100,
        UNITS[unit]
    )
}

/// Reads a size as LVM writes it: a number with K, M, G or T for binary units, or plain bytes.
pub fn parse_size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        unit => bail!("unknown unit {unit:?}, expected K, M, G or T"),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a whole number"))?;
    let bytes = number
        .checked_mul(1 << shift)
        .context("the size is too large")?;
    if bytes == 0 {
        bail!("the size has to be greater than zero");
    }
    Ok(bytes)
}

/// The characters that trees are drawn with: those of the terminal's character set.
pub struct TreeStyle {
    branch: &'static str,
    last: &'static str,
    pub bar: &'static str,
    pub gap: &'static str,
}

impl TreeStyle {
    /// By the locale, as lsblk(8) does.
    pub fn of_locale() -> Self {
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .filter_map(|name| std::env::var(name).ok())
            .find(|value| !value.is_empty())
            .unwrap_or_default()
            .to_ascii_lowercase();
        if locale.contains("utf-8") || locale.contains("utf8") {
            Self {
                branch: "├─ ",
                last: "└─ ",
                bar: "│  ",
                gap: "   ",
            }
        } else {
            Self {
                branch: "|- ",
                last: "`- ",
                bar: "|  ",
                gap: "   ",
            }
        }
    }

    pub fn joint(&self, is_last: bool) -> &'static str {
        if is_last { self.last } else { self.branch }
    }
}

/// What `--color` is told.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// On a terminal that can, where `NO_COLOR` is not set (<https://no-color.org>).
    Auto,
    Always,
    Never,
}

pub fn parse_when(text: &str) -> Result<When> {
    Ok(match text {
        "auto" => When::Auto,
        "always" => When::Always,
        "never" => When::Never,
        _ => bail!("expected auto, always or never"),
    })
}

/// What a word means for the host. It says so itself; on a terminal its colour is seen first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Plain,
    /// What counts now.
    Strong,
    /// All is well.
    Good,
    /// Something is in between, or needs a look some day.
    Notice,
    /// Something is wrong.
    Bad,
}

/// Whether words are in colour.
#[derive(Clone, Copy, Default)]
pub struct Paint {
    is_on: bool,
}

impl Paint {
    /// For standard output.
    pub fn new(when: When) -> Self {
        let is_on = match when {
            When::Always => true,
            When::Never => false,
            When::Auto => {
                let is_unwanted = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
                !is_unwanted && is_smart_terminal(&io::stdout())
            }
        };
        Self { is_on }
    }

    /// By the colours that each terminal has, so that people see those that they have chosen.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        let code = match tone {
            Tone::Plain => return text.to_owned(),
            Tone::Strong => "1",
            Tone::Good => "32",
            Tone::Notice => "33",
            Tone::Bad => "31",
        };
        if self.is_on && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// How full something is, as a picture.
    pub fn bar(self, used: Percent) -> String {
        const WIDTH: usize = 20;
        let filled = usize::try_from(used.of(WIDTH as u64)).unwrap_or(WIDTH);
        let filled = "=".repeat(filled.min(WIDTH));
        let tone = match used {
            used if used >= Percent::new(95) => Tone::Bad,
            used if used >= Percent::new(80) => Tone::Notice,
            _ => Tone::Good,
        };
        let rest = " ".repeat(WIDTH - filled.len());
        format!("[{}{rest}]", self.tone(tone, &filled))
    }

    /// Those of the words that hold, in one list.
    pub fn marks(self, marks: &[(bool, Tone, &str)]) -> String {
        let held = marks.iter().filter(|(holds, ..)| *holds);
        let held = held.map(|(_, tone, mark)| self.tone(*tone, mark));
        held.collect::<Vec<_>>().join(", ")
    }
}

/// What there is to say of something that need not be there.
pub fn shown(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Lines of a left column, filled up to the width of the widest, and a right column.
pub fn columns(rows: &[(String, String)]) -> String {
    let width = rows
        .iter()
        .map(|(left, _)| left.chars().count())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for (left, right) in rows {
        // The rows can be hundreds; a string takes all that is written to it.
        let _ = write!(text, "{left:width$}  {right}");
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_told_by_its_word_and_by_its_colour_where_there_are_colours() {
        let marks = [
            (true, Tone::Good, "booted"),
            (false, Tone::Bad, "failed"),
            (true, Tone::Plain, "default"),
            (true, Tone::Bad, ""),
        ];
        for (when, text) in [
            (When::Never, "booted, default, "),
            (When::Always, "\x1b[32mbooted\x1b[0m, default, "),
        ] {
            assert_eq!(Paint::new(when).marks(&marks), text);
        }
        for (text, when) in [
            ("auto", Some(When::Auto)),
            ("always", Some(When::Always)),
            ("never", Some(When::Never)),
            ("yes", None),
        ] {
            assert!(parse_when(text).ok() == when, "{text}");
        }
    }

    #[test]
    fn a_bar_is_full_only_where_nothing_is_left() {
        let plain = Paint::default();
        for (percent, bar) in [
            ("0.00", "[                    ]"),
            ("4.99", "[                    ]"),
            ("5.00", "[=                   ]"),
            ("50.00", "[==========          ]"),
            ("99.99", "[=================== ]"),
            ("100.00", "[====================]"),
            ("120.00", "[====================]"),
        ] {
            assert_eq!(plain.bar(percent.parse().unwrap()), bar, "{percent}");
        }
        let full = Paint::new(When::Always).bar(Percent::new(95));
        assert_eq!(full, format!("[\x1b[31m{}\x1b[0m ]", "=".repeat(19)));
    }

    #[test]
    fn sizes_are_shown_in_binary_units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (3 << 29, "1.50 GiB"),
            (u64::MAX, "16777215.99 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn sizes_are_read_as_lvm_writes_them() {
        for (text, bytes) in [
            ("1", 1),
            ("1b", 1),
            ("4K", 4096),
            ("2g", 2 << 30),
            ("1GiB", 1 << 30),
            ("3T", 3 << 40),
        ] {
            assert_eq!(parse_size(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "G",
            "0",
            "0G",
            "-1G",
            "1.5G",
            "1 G",
            "1X",
            "99999999999T",
            "1GG",
            "ä",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
