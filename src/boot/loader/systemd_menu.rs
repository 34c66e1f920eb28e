//! The menu of systemd-boot, told from the files: which entries it lists, and in which order (src/boot/boot.c of
//! systemd 257). The tests hold this against systemd-boot itself.

use std::cmp::Ordering;

use anyhow::Result;

use crate::boot::files::Files;
use crate::boot::id::{Counter, split_counter};
use crate::sys::files::read_if_there;

/// An entry of the menu, of whatever system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    pub linux: String,
    pub initrds: Vec<String>,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    counter: Option<Counter>,
}

/// The entries in the order of the menu. One whose kernel is not there is in none.
pub fn items(files: &Files) -> Result<Vec<Item>> {
    let mut found = Vec::new();
    for path in files.entries()? {
        let name = path.file_stem().and_then(|name| name.to_str());
        let (Some(name), Some(text)) = (name, read_if_there(&path)?) else {
            continue;
        };
        let item = Item::read(name, &String::from_utf8_lossy(&text));
        if files.path_of(&item.linux).is_file() {
            found.push(item);
        }
    }
    found.sort_by(compare);
    Ok(found)
}

impl Item {
    /// The entry in a file with this name, without `.conf`. A later line takes the place of an earlier one.
    fn read(name: &str, text: &str) -> Self {
        let (id, counter) = split_counter(name);
        let mut item = Self {
            id: id.to_owned(),
            counter,
            ..Self::default()
        };
        for line in text.lines().map(str::trim) {
            let Some((key, value)) = line.split_once([' ', '\t']) else {
                continue;
            };
            let value = value.trim_start().to_owned();
            match key {
                "linux" | "efi" | "uki" => item.linux = value,
                "initrd" => item.initrds.push(value),
                "sort-key" => item.sort_key = Some(value),
                "machine-id" => item.machine_id = value,
                "version" => item.version = value,
                _ => {}
            }
        }
        item
    }

    /// Whether this is the name of its file without a counter, or a pattern of it. Case does not matter.
    pub fn is_named(&self, pattern: &str) -> bool {
        let name = format!("{}.conf", self.id).to_lowercase();
        let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
        matches(&pattern, &name.chars().collect::<Vec<_>>())
    }

    /// Whether it boots for a try that is counted.
    pub fn has_tries(&self) -> bool {
        self.counter.is_some_and(|counter| counter.left > 0)
    }

    fn is_exhausted(&self) -> bool {
        self.counter.is_some_and(|counter| counter.left == 0)
    }
}

/// Whether a pattern of glob(7) stands for this text.
fn matches(pattern: &[char], text: &[char]) -> bool {
    match (pattern, text) {
        ([], _) => text.is_empty(),
        (['*', rest @ ..], _) => (0..=text.len()).any(|at| matches(rest, &text[at..])),
        (_, []) => false,
        (['?', rest @ ..], [_, text @ ..]) => matches(rest, text),
        (['[', set @ ..], [c, text @ ..]) => {
            let Some((set, rest)) = split_set(set) else {
                return false;
            };
            is_in_set(set, *c) && matches(rest, text)
        }
        (['\\', wanted, rest @ ..] | [wanted, rest @ ..], [c, text @ ..]) => {
            wanted == c && matches(rest, text)
        }
    }
}

/// What is between brackets, the first of which is gone, and what follows them.
fn split_set(pattern: &[char]) -> Option<(&[char], &[char])> {
    let end = 1 + pattern.iter().skip(1).position(|c| *c == ']')?;
    Some((&pattern[..end], &pattern[end + 1..]))
}

fn is_in_set(set: &[char], c: char) -> bool {
    match set {
        [first, '-', last, rest @ ..] => (*first..=*last).contains(&c) || is_in_set(rest, c),
        [one, rest @ ..] => *one == c || is_in_set(rest, c),
        [] => false,
    }
}

/// Those without tries left are the last, those without a sort key come after those with one.
fn compare(a: &Item, b: &Item) -> Ordering {
    let group = |item: &Item| (item.is_exhausted(), item.sort_key.is_none());
    let by_key = || match (&a.sort_key, &b.sort_key) {
        (Some(key), Some(other)) => (key, &a.machine_id)
            .cmp(&(other, &b.machine_id))
            .then_with(|| compare_versions(&b.version, &a.version)),
        _ => Ordering::Equal,
    };
    group(a)
        .cmp(&group(b))
        .then_with(by_key)
        .then_with(|| compare_versions(&b.id.to_lowercase(), &a.id.to_lowercase()))
}

/// Compares as the UAPI Version Format Specification says.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let is_known = |c: char| c.is_ascii_alphanumeric() || "~-^.".contains(c);
    let (mut a, mut b) = (a, b);
    loop {
        (a, b) = (
            a.trim_start_matches(|c| !is_known(c)),
            b.trim_start_matches(|c| !is_known(c)),
        );
        // What begins with one of these is older; an end comes after the first of them only.
        for separator in ['~', '-', '^', '.'] {
            if separator == '-' && (a.is_empty() || b.is_empty()) {
                return a.len().cmp(&b.len());
            }
            let (rest, other) = (a.strip_prefix(separator), b.strip_prefix(separator));
            match (rest, other) {
                (Some(rest), Some(other)) => (a, b) = (rest, other),
                (None, None) => {}
                _ => return rest.is_none().cmp(&other.is_none()),
            }
        }
        let is_number = a.starts_with(is_digit) || b.starts_with(is_digit);
        let is_part: fn(char) -> bool = if is_number { is_digit } else { is_letter };
        let (part, rest) = split(a, is_part);
        let (other, other_rest) = split(b, is_part);
        let order = if is_number {
            let digits = |part: &str| part.trim_start_matches('0').to_owned();
            let (number, other_number) = (digits(part), digits(other));
            (!part.is_empty(), number.len(), number).cmp(&(
                !other.is_empty(),
                other_number.len(),
                other_number,
            ))
        } else {
            part.cmp(other)
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest, other_rest);
    }
}

fn is_digit(c: char) -> bool {
    c.is_ascii_digit()
}

fn is_letter(c: char) -> bool {
    c.is_ascii_alphabetic()
}

fn split(text: &str, is_part: fn(char) -> bool) -> (&str, &str) {
    let end = text.find(|c| !is_part(c)).unwrap_or(text.len());
    text.split_at(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::files::ENTRIES;
    use std::fs;

    #[test]
    fn versions_are_compared_as_the_specification_says() {
        // In ascending order; the first ones are examples of the specification.
        for row in [
            "122.1 123~rc1-1 123 123-a 123-a.1 123-1 123-1.1 123^post1 123.a-1 123.1-1 123a-1 124-1",
            "6.1 6.1.0 6.9 6.12.118+deb13-cloud-amd64 7.2.12",
            "a abc abcde b 0 1 12 123",
            "imgbased-Base-0 imgbased-Base-0.1 imgbased-Base-0.2 imgbased-Base-0.10 imgbased-Base-1",
        ] {
            let row: Vec<&str> = row.split(' ').collect();
            for (at, version) in row.iter().enumerate() {
                for (other_at, other) in row.iter().enumerate() {
                    let order = compare_versions(version, other);
                    assert_eq!(order, at.cmp(&other_at), "{version} and {other}");
                }
            }
        }
        assert_eq!(compare_versions("6.01+x", "6.1_x"), Ordering::Equal);
    }

    #[test]
    fn a_pattern_stands_for_names_of_files() {
        let item = Item::read("Imgbased-a+3-0", "");
        for (pattern, expected) in [
            ("imgbased-a.conf", true),
            ("IMGBASED-A.CONF", true),
            ("imgbased-a", false),
            ("imgbased-a+3-0.conf", false),
            ("*", true),
            ("*a.conf*", true),
            ("img*d-?.conf", true),
            ("imgbased-[x-za].c[o-q]nf", true),
            ("imgbased-[b-z].conf", false),
            ("imgbased-[a", false),
            ("imgbased-\\a.conf", true),
            ("", false),
        ] {
            assert_eq!(item.is_named(pattern), expected, "{pattern}");
        }
    }

    #[test]
    fn the_menu_begins_with_what_has_tries_and_a_key_and_the_newest_version() {
        let dir = tempfile::tempdir().unwrap();
        let entries = dir.path().join(ENTRIES);
        fs::create_dir_all(&entries).unwrap();
        fs::write(dir.path().join("k"), "").unwrap();
        for (name, lines) in [
            ("a+0-3", "sort-key 0\nlinux /k"),
            ("b", "linux /k\nversion 9"),
            ("B2", "uki /k\n"),
            ("c", "sort-key m\nversion 6.9\nlinux /k"),
            ("d", "sort-key  m\n version 6.10\nlinux /k"),
            ("e+1-2", "sort-key m\nversion 6.10\nlinux /k"),
            ("f", "sort-key m\nmachine-id 1\nversion 7\nlinux /k"),
            ("g", "sort-key 0\nlinux /gone"),
            ("h", "sort-key 0\ntitle h"),
        ] {
            fs::write(entries.join(format!("{name}.conf")), lines).unwrap();
        }
        let found = items(&Files::new(dir.path())).unwrap();
        let ids: Vec<&str> = found.iter().map(|item| item.id.as_str()).collect();
        assert_eq!(ids, ["e", "d", "c", "f", "B2", "b", "a"]);
    }
}
