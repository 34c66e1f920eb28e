//! Percentages as LVM reports them, with two decimals.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, ensure};
use serde::{Serialize, Serializer};

/// A percentage in hundredths. Whole numbers: code for floating point would take more room in the
/// initramfs than all that is done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u32);

impl Percent {
    /// `whole` percent.
    pub const fn new(whole: u32) -> Self {
        Self(whole * 100)
    }

    /// How much of `whole` is `part`, rounded up: what is nearly nothing is not none. Of nothing, nothing.
    pub fn share(part: u64, whole: u64) -> Self {
        let hundredths = (u128::from(part) * 10_000).div_ceil(u128::from(whole).max(1));
        Self(u32::try_from(hundredths).unwrap_or(u32::MAX))
    }

    /// As a part of one, which is how metrics have it.
    pub fn ratio(self) -> String {
        format!("{}.{:04}", self.0 / 10_000, self.0 % 10_000)
    }

    /// This share of `whole`.
    pub fn of(self, whole: u64) -> u64 {
        let share = u128::from(whole) * u128::from(self.0) / 10_000;
        u64::try_from(share).unwrap_or(u64::MAX)
    }
}

impl FromStr for Percent {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (whole, decimals) = text.split_once('.').unwrap_or((text, "00"));
        ensure!(decimals.len() == 2, "{text:?} does not have two decimals");
        let number = |digits: &str| -> Result<u32> {
            ensure!(
                digits.bytes().all(|b| b.is_ascii_digit()),
                "{text:?} is no percentage"
            );
            digits
                .parse()
                .with_context(|| format!("{text:?} is no percentage"))
        };
        let hundredths = number(whole)?
            .checked_mul(100)
            .context("the percentage is too large")?;
        Ok(Self(hundredths.saturating_add(number(decimals)?)))
    }
}

/// With one decimal, as `3.2 %`; cut off, so that what is not full is never shown as 100.
impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{} %", self.0 / 100, self.0 / 10 % 10)
    }
}

impl Serialize for Percent {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(f64::from(self.0) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_large_numbers() {
        assert_eq!(Percent::new(95).of(1 << 40), 1_044_536_046_387);
        assert_eq!(Percent::new(100).of(u64::MAX), u64::MAX);
        assert_eq!("0.01".parse::<Percent>().unwrap().of(9999), 0);
    }

    #[test]
    fn a_ratio_has_all_digits() {
        for (percent, ratio) in [("0.00", "0.0000"), ("3.26", "0.0326"), ("100.00", "1.0000")] {
            assert_eq!(percent.parse::<Percent>().unwrap().ratio(), ratio);
        }
    }

    #[test]
    fn a_share_is_rounded_up() {
        for (part, whole, share) in [
            (0, 0, "0.00"),
            (0, 10, "0.00"),
            (1, 1 << 40, "0.01"),
            (2, 3, "66.67"),
            (10, 10, "100.00"),
            (u64::MAX, u64::MAX, "100.00"),
        ] {
            assert_eq!(Percent::share(part, whole), share.parse().unwrap());
        }
    }

    #[test]
    fn percentages_are_read_as_lvm_writes_them() {
        for (text, shown, json) in [
            ("0.00", "0.0 %", "0.0"),
            ("3.26", "3.2 %", "3.26"),
            ("99.99", "99.9 %", "99.99"),
            ("100.00", "100.0 %", "100.0"),
            ("95", "95.0 %", "95.0"),
        ] {
            let percent: Percent = text.parse().unwrap();
            assert_eq!(percent.to_string(), shown);
            assert_eq!(serde_json::to_string(&percent).unwrap(), json);
        }
        assert!("94.99".parse::<Percent>().unwrap() < Percent::new(95));
        for text in [
            "",
            "x",
            "-1.00",
            "1.5",
            "1,50",
            "1.+5",
            "99999999999.00",
            "1.2.3",
            "inf",
        ] {
            assert!(text.parse::<Percent>().is_err(), "{text:?}");
        }
    }
}
