//! What was measured, as a table for people and as data.

use std::fmt::Write;

use serde::Serialize;

/// Values of the same thing, in the order in which they were measured.
#[derive(Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Samples(Vec<f64>);

impl Samples {
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    pub fn one(value: f64) -> Self {
        Self(vec![value])
    }

    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    /// The median; of an even number of values, the lower of the two in the middle.
    pub fn median(&self) -> f64 {
        self.sorted()[(self.0.len() - 1) / 2]
    }
}

#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(dead_code, reason = "each benchmark has some of them")]
pub enum Unit {
    Seconds,
    Bytes,
    Processes,
    Requests,
}

impl Unit {
    /// `value` for people, in mebibytes where it is bytes.
    fn show(self, value: f64) -> String {
        match self {
            Self::Seconds => format!("{value:.2} s"),
            Self::Bytes => format!("{:.1} MiB", value / f64::from(1 << 20)),
            Self::Processes | Self::Requests => format!("{value:.0}"),
        }
    }

    /// The median with minimum and maximum, or the one value.
    fn show_all(self, samples: &Samples) -> String {
        let median = self.show(samples.median());
        match samples.sorted()[..] {
            [min, .., max] => format!("{median} [{}..{}]", self.show(min), self.show(max)),
            _ => median,
        }
    }
}

/// What is allowed: of the ratio where there is something to compare with, else of the value.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    AtMost(f64),
    Below(f64),
    None,
}

#[derive(Serialize)]
pub struct Row {
    pub what: &'static str,
    pub unit: Unit,
    pub measured: Samples,
    /// What it is compared with.
    pub other: Option<(&'static str, Samples)>,
    pub limit: Limit,
}

impl Row {
    /// The ratio of the medians.
    fn ratio(&self) -> Option<f64> {
        let (_, other) = self.other.as_ref()?;
        Some(self.measured.median() / other.median())
    }

    fn cells(&self) -> [String; 7] {
        let ratio = self.ratio();
        let value = ratio.unwrap_or_else(|| self.measured.median());
        let show = |limit: f64| match ratio {
            Some(_) => format!("{limit:.2}"),
            None => self.unit.show(limit),
        };
        let (limit, is_ok) = match self.limit {
            Limit::AtMost(limit) => (format!("<= {}", show(limit)), Some(value <= limit)),
            Limit::Below(limit) => (format!("< {}", show(limit)), Some(value < limit)),
            Limit::None => (String::new(), None),
        };
        let verdict = match is_ok {
            Some(true) => "ok",
            Some(false) => "OVER",
            None => "",
        };
        let (name, other) = self.other.as_ref().map_or_else(Default::default, |other| {
            (other.0.to_owned(), self.unit.show_all(&other.1))
        });
        [
            self.what.into(),
            self.unit.show_all(&self.measured),
            name,
            other,
            ratio.map_or_else(String::new, |ratio| format!("{ratio:.4}")),
            limit,
            verdict.into(),
        ]
    }
}

const HEAD: [&str; 7] = [
    "what",
    "median [min..max]",
    "compared with",
    "median [min..max]",
    "ratio",
    "limit",
    "",
];

/// Renders rows as a table with columns.
pub fn render(rows: &[Row]) -> String {
    let mut lines = vec![HEAD.map(str::to_owned)];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|l| l[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut table = String::new();
    for line in &lines {
        let cells = line.iter().zip(widths);
        let padded: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        writeln!(table, "{}", padded.join("  ").trim_end()).expect("a string takes all");
    }
    table
}
