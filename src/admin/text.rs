//! How sizes and trees are written for people.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};

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
        unit => bail!("unknown unit {unit:?}; K, M, G and T are possible"),
    };
    let number: u64 = digits
        .parse()
        .with_context(|| format!("{digits:?} is not a whole number"))?;
    let bytes = number
        .checked_mul(1 << shift)
        .context("the size is too large")?;
    if bytes == 0 {
        bail!("a size of zero is not possible");
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

/// What there is to say of something that need not be there.
pub fn shown(value: Option<&impl ToString>) -> String {
    value.map(ToString::to_string).unwrap_or_default()
}

/// Those of the words that hold, in one list.
pub fn marks(marks: &[(bool, &str)]) -> String {
    let held = marks.iter().filter(|(holds, _)| *holds);
    held.map(|(_, mark)| *mark).collect::<Vec<_>>().join(", ")
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
