//! Ids of entries: what the names of their files say.
//!
//! An id must not end in a boot counter, `+LEFT` or `+LEFT-DONE` (Boot Loader Specification, "Boot
//! counting").

use std::path::Path;

use crate::model::name::{DEFAULT_VG, LvName, VgName};

/// What all our ids begin with.
pub const PREFIX: &str = "imgbased-";

/// The id of the entry of a layer or base with the kernel that it boots.
pub fn of_layer(vg: &VgName, name: &LvName) -> String {
    uncounted(full_name(vg, name))
}

/// The id of the entry of a layer or base with another kernel.
pub fn of_other(vg: &VgName, name: &LvName, version: &str) -> String {
    uncounted(format!("{}@{version}", full_name(vg, name)))
}

/// Whether that is an id of a layer or base, with whatever kernel.
pub fn is_of(vg: &VgName, name: &LvName, text: &str) -> bool {
    let other = text.strip_prefix(full_name(vg, name).as_str());
    text == of_layer(vg, name) || other.is_some_and(|rest| rest.starts_with('@'))
}

/// Whether that is an id as ours are, of whatever group.
pub fn is_ours(text: &str) -> bool {
    text.starts_with(PREFIX)
}

fn full_name(vg: &VgName, name: &LvName) -> String {
    let group = if vg.as_str() == DEFAULT_VG {
        String::new()
    } else {
        format!("{vg}-")
    };
    format!("{PREFIX}{group}{name}")
}

/// systemd-boot would take the end of such an id for a boot counter, and rename the file.
fn uncounted(text: String) -> String {
    match split_counter(&text) {
        (_, Some(_)) => text + "_",
        _ => text,
    }
}

/// How often systemd-boot may still boot an entry, and how often it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter {
    pub left: u32,
    pub done: u32,
}

/// Splits the name of an entry's file, without `.conf`, into its id and its counter: `ID+LEFT` or
/// `ID+LEFT-DONE`.
pub fn split_counter(name: &str) -> (&str, Option<Counter>) {
    let number = |text: &str| -> Option<u32> {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let split = || {
        let (id, counter) = name.rsplit_once('+')?;
        let (left, done) = counter.split_once('-').unwrap_or((counter, "0"));
        let (left, done) = (number(left)?, number(done)?);
        (!id.is_empty()).then_some((id, Some(Counter { left, done })))
    };
    split().unwrap_or((name, None))
}

/// The id of the entry in a file; `None` if the name of the file is not one that boot loaders read.
pub fn of_file(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?.strip_suffix(".conf")?;
    (!name.starts_with('.')).then_some(split_counter(name).0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_do_not_look_like_boot_counters() {
        let id = |name: &str| of_layer(&"HostVG".parse().unwrap(), &name.parse().unwrap());
        assert_eq!(id("Base-0.1"), "imgbased-Base-0.1");
        assert_eq!(id("node-4.5-1+3"), "imgbased-node-4.5-1+3_");
        assert_eq!(id("rhvh-4.4+5-1"), "imgbased-rhvh-4.4+5-1_");
        assert_eq!(id("a+3-x"), "imgbased-a+3-x");
        assert_eq!(id("0"), "imgbased-0");
        assert_eq!(id("a+"), "imgbased-a+");
    }

    #[test]
    fn counters_are_no_part_of_an_id() {
        for (name, id, counter) in [
            ("imgbased-Base-0.1", "imgbased-Base-0.1", None),
            ("imgbased-Base-0.1+3-0", "imgbased-Base-0.1", Some((3, 0))),
            ("imgbased-Base-0.1+0-3", "imgbased-Base-0.1", Some((0, 3))),
            ("imgbased-a+1+2", "imgbased-a+1", Some((2, 0))),
            ("imgbased-a+1_", "imgbased-a+1_", None),
            ("imgbased-a+1-x", "imgbased-a+1-x", None),
            ("a+", "a+", None),
            ("+3", "+3", None),
            ("a+99999999999", "a", Some((u32::MAX, 0))),
        ] {
            let counter = counter.map(|(left, done)| Counter { left, done });
            assert_eq!(split_counter(name), (id, counter), "{name}");
        }
    }
}
