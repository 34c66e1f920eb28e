//! The status as metrics, in the text format of Prometheus
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>). What is not known has no sample.

use super::Status;
use crate::model::percent::Percent;

/// A metric with its labels and its value.
type Sample<'a> = (&'a [(&'a str, &'a str)], String);

pub fn render(status: &Status) -> String {
    let mut text = Text::default();
    let shown = Option::unwrap_or_default;
    let what = [
        ("version", env!("CARGO_PKG_VERSION")),
        ("vg", status.vg),
        ("booted", shown(status.booted)),
        ("base", shown(status.base)),
        ("default", shown(status.default)),
        ("kernel", &status.kernel),
    ];
    let help = "What runs, and what boots by default. The value is 1.";
    text.add("info", help, &[(&what, "1".to_owned())]);
    let chosen = choices(status)
        .into_iter()
        .filter(|_| status.is_choice_known);
    for (name, help, count) in counts(status).into_iter().chain(chosen) {
        text.add(name, help, &[(&[], count.to_string())]);
    }
    if let Some(trial) = status.trial {
        let layer = [("layer", trial.name.as_str())];
        let help = "How often what is on trial may be tried.";
        text.add(
            "trial_tries_max",
            help,
            &[(&layer, trial.tries.to_string())],
        );
        let help = "How often what is on trial was tried.";
        text.add("trial_tries", help, &[(&layer, trial.tried.to_string())]);
    }
    if let Some(pool) = status.pool {
        let name = [("pool", pool.name.as_str())];
        let help = "Size of the thin pool.";
        text.add("pool_size_bytes", help, &[(&name, pool.size.to_string())]);
        for (metric, help, used) in [
            (
                "pool_data_used_ratio",
                "How full the data space of the pool is.",
                pool.data_percent,
            ),
            (
                "pool_metadata_used_ratio",
                "How full the metadata space of the pool is.",
                pool.metadata_percent,
            ),
        ] {
            if let Some(used) = used {
                text.add(metric, help, &[(&name, used.ratio())]);
            }
        }
    }
    let paths = [("/", status.root_percent), ("/boot", status.boot_percent)];
    let labels = paths.map(|(path, _)| [("mountpoint", path)]);
    let used = paths.map(|(_, used)| used.map(Percent::ratio));
    let samples = labels.iter().zip(used);
    let samples: Vec<Sample> = samples
        .filter_map(|(labels, used)| Some((&labels[..], used?)))
        .collect();
    let help = "How full the filesystem is, for users other than root.";
    text.add("filesystem_used_ratio", help, &samples);
    if let Some(boot) = &status.boot {
        let seconds = format!(
            "{}.{:03}",
            boot.milliseconds / 1000,
            boot.milliseconds % 1000
        );
        let help = "How long the initramfs took from loading drivers to the mounted layer.";
        text.add("boot_mount_seconds", help, &[(&[], seconds)]);
    }
    text.0
}

/// A metric, what it means, and its value.
type Count = (&'static str, &'static str, usize);

/// What is counted, and what is so or not.
fn counts(status: &Status) -> [Count; 7] {
    let missing = status.missing_packages.as_ref();
    [
        ("bases", "Bases in the group.", status.bases),
        ("layers", "Layers in the group.", status.layers),
        (
            "failed_layers",
            "Layers whose last trial failed, or that of a kernel in them.",
            status.failed.len(),
        ),
        (
            "held_bases",
            "Bases that a rollback has left.",
            status.held.len(),
        ),
        (
            "problems",
            "What is wrong with volumes or room, as `imgbased-helper check` tells.",
            status.problems.len(),
        ),
        (
            "missing_packages",
            "Packages that the last update has not taken along.",
            missing.map_or(0, |missing| missing.packages.len()),
        ),
        (
            "next_start_is_chosen",
            "1 if the next start boots what was chosen, 0 if something keeps it from that.",
            usize::from(status.next_problem.is_none()),
        ),
    ]
}

/// What follows from what was chosen to boot.
fn choices(status: &Status) -> [Count; 3] {
    [
        (
            "default_is_booted",
            "1 if what runs is the default.",
            usize::from(status.booted.is_some() && status.booted == status.default),
        ),
        (
            "update_waits",
            "1 if an update waits for a restart.",
            usize::from(status.update.is_some()),
        ),
        (
            "trial_runs",
            "1 if a layer or kernel is on trial.",
            usize::from(status.trial.is_some()),
        ),
    ]
}

#[derive(Default)]
struct Text(String);

impl Text {
    /// Adds a metric, all of which are gauges, if it has a sample.
    fn add(&mut self, name: &str, help: &str, samples: &[Sample]) {
        if samples.is_empty() {
            return;
        }
        let name = format!("imgbased_{name}");
        self.0 += &format!("# HELP {name} {help}\n# TYPE {name} gauge\n");
        for (labels, value) in samples {
            let label = |(label, value): &(&str, &str)| format!("{label}=\"{}\"", escaped(value));
            let labels: Vec<String> = labels.iter().map(label).collect();
            let labels = match labels.join(",") {
                labels if labels.is_empty() => labels,
                labels => format!("{{{labels}}}"),
            };
            self.0 += &format!("{name}{labels} {value}\n");
        }
    }
}

fn escaped(value: &str) -> String {
    let value = value.replace('\\', "\\\\").replace('"', "\\\"");
    value.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::status::tests::status_of;
    use crate::admin::view::PoolView;

    fn is_name(name: &str) -> bool {
        let is_letter = |c: char| c.is_ascii_alphabetic() || c == '_' || c == ':';
        name.starts_with(is_letter) && name.chars().all(|c| is_letter(c) || c.is_ascii_digit())
    }

    /// Reads labels up to the brace that ends them; returns what follows.
    fn labels<'a>(mut rest: &'a str, found: &mut Vec<(String, String)>) -> Result<&'a str, String> {
        loop {
            let (name, value) = rest.split_once("=\"").ok_or("a label without a value")?;
            if !is_name(name) || name.contains(':') {
                return Err(format!("{name:?} is no name of a label"));
            }
            let (mut text, mut chars) = (String::new(), value.char_indices());
            let end = loop {
                match chars.next().ok_or("a value without an end")? {
                    (at, '"') => break at,
                    (_, '\\') => match chars.next() {
                        Some((_, 'n')) => text.push('\n'),
                        Some((_, c @ ('"' | '\\'))) => text.push(c),
                        other => return Err(format!("{other:?} is no escape")),
                    },
                    (_, '\n') => return Err("a line that ends in a value".to_owned()),
                    (_, c) => text.push(c),
                }
            };
            found.push((name.to_owned(), text));
            rest = &value[end + 1..];
            match rest.split_at(1) {
                (",", more) => rest = more,
                ("}", more) => return Ok(more),
                _ => return Err(format!("{rest:?} after a label")),
            }
        }
    }

    /// A sample: the name of the metric, its labels and its value.
    type Read = (String, Vec<(String, String)>, f64);

    /// Reads metrics as strictly as the format is written down, and as promtool(1) looks at them.
    fn read(text: &str) -> Result<Vec<Read>, String> {
        let mut found: Vec<Read> = Vec::new();
        let (mut helped, mut typed) = (Vec::new(), Vec::new());
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').ok_or("a help without a text")?;
                if helped.contains(&name) || help.is_empty() || help.contains('\\') {
                    return Err(format!("the help of {name}"));
                }
                helped.push(name);
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').ok_or("a type without a name")?;
                if kind != "gauge" || helped.last() != Some(&name) || typed.contains(&name) {
                    return Err(format!("the type of {name}"));
                }
                typed.push(name);
            } else {
                let end = line.find(['{', ' ']).ok_or("a sample without a value")?;
                let (name, rest) = line.split_at(end);
                if !is_name(name) || typed.last() != Some(&name) {
                    return Err(format!("{name:?} is not the metric that was announced"));
                }
                let mut of = Vec::new();
                let value = match rest.strip_prefix('{') {
                    Some(rest) => labels(rest, &mut of)?,
                    None => rest,
                };
                let value = value.strip_prefix(' ').ok_or("no space before the value")?;
                let value: f64 = value.parse().map_err(|_| format!("{value:?}"))?;
                if found
                    .iter()
                    .any(|(other, labels, _)| other == name && *labels == of)
                {
                    return Err(format!("{name} is there twice"));
                }
                found.push((name.to_owned(), of, value));
            }
        }
        if text.ends_with('\n') && !text.contains("\n\n") && typed == helped {
            Ok(found)
        } else {
            Err("the end of a line".to_owned())
        }
    }

    #[test]
    fn the_status_as_metrics_is_what_prometheus_reads() {
        let pool = PoolView {
            name: "ImagePool".to_owned(),
            size: 1 << 30,
            active: true,
            zeroes: true,
            data_percent: "3.26".parse().ok(),
            metadata_percent: None,
        };
        let status = Status {
            default: Some("a\"b\\c\nd"),
            ..status_of(&pool)
        };
        let found = read(&render(&status)).unwrap();
        let value = |name: &str| {
            let sample = found.iter().find(|(of, ..)| of == name);
            sample.map(|(.., value)| *value)
        };
        let bits = |value: Option<f64>| value.map(f64::to_bits);
        for (name, wanted) in [
            ("imgbased_info", Some(1.0)),
            ("imgbased_layers", Some(2.0)),
            ("imgbased_problems", Some(1.0)),
            ("imgbased_update_waits", Some(1.0)),
            ("imgbased_next_start_is_chosen", Some(1.0)),
            ("imgbased_pool_size_bytes", Some(1_073_741_824.0)),
            ("imgbased_pool_data_used_ratio", Some(0.0326)),
            ("imgbased_pool_metadata_used_ratio", None),
            ("imgbased_filesystem_used_ratio", Some(0.97)),
            ("imgbased_boot_mount_seconds", None),
        ] {
            assert_eq!(bits(value(name)), bits(wanted), "{name}");
        }
        let unknown = Status {
            next_problem: Some("grubenv is damaged"),
            is_choice_known: false,
            ..status
        };
        let found_then = read(&render(&unknown)).unwrap();
        let has = |name: &str| found_then.iter().any(|(of, ..)| of == name);
        assert!(has("imgbased_next_start_is_chosen") && has("imgbased_problems"));
        for name in ["default_is_booted", "update_waits", "trial_runs"] {
            assert!(!has(&format!("imgbased_{name}")), "{name}");
        }
        let (_, labels, _) = &found[0];
        let default = labels.iter().find(|(label, _)| label == "default").unwrap();
        assert_eq!(default.1, "a\"b\\c\nd");
    }

    #[test]
    fn what_prometheus_would_refuse_is_seen() {
        let head = "# HELP a x\n# TYPE a gauge\n";
        for (text, is_right) in [
            ("a 1\n", true),
            ("a{b=\"c\",d=\"\"} 1.5\n", true),
            ("a 1", false),
            ("a\n", false),
            ("a one\n", false),
            ("b 1\n", false),
            ("a 1\na 2\n", false),
            ("a{b=\"\\t\"} 1\n", false),
            ("a{b=\"c} 1\n", false),
            ("a{1=\"c\"} 1\n", false),
            ("a{b=\"c\"}1\n", false),
            ("a 1\n\n", false),
            ("# TYPE a gauge\n", false),
        ] {
            assert_eq!(read(&format!("{head}{text}")).is_ok(), is_right, "{text}");
        }
    }
}
