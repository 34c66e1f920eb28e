//! The menu of systemd-boot, told from the files: which entries it lists, and in which order (src/boot/boot.c of
//! systemd 257). The tests hold this against systemd-boot itself.
//!
//! It lists the entries and the unified kernel images of two partitions, the EFI system partition and $BOOT. What it
//! finds by itself, such as Windows, comes after them, and never boots unless somebody has chosen it.

use std::cmp::Ordering;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::uki;
use crate::boot::files::Files;
use crate::boot::id::{Counter, split_counter};
use crate::model::os_release;
use crate::sys::files::read_if_there;

/// Where unified kernel images are.
const IMAGES: &str = "EFI/Linux";
/// What the ids begin with of what systemd-boot finds by itself.
const FOUND: &str = "auto-";
/// What the names of unified kernel images end in.
const EFI: &str = ".efi";

/// An entry of the menu, of whatever system.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// Of a unified kernel image, the name of its file without a counter.
    pub id: String,
    pub linux: String,
    pub initrds: Vec<String>,
    /// Whether it is none of the entries on the boot partition, among which ours are.
    pub is_elsewhere: bool,
    sort_key: Option<String>,
    machine_id: String,
    version: String,
    counter: Option<Counter>,
}

/// What names an entry in a variable or in loader.conf.
pub fn name_of(id: &str) -> String {
    if is_found(id) || is_image(id) {
        id.to_owned()
    } else {
        format!("{id}.conf")
    }
}

/// Whether it is the id of what systemd-boot finds by itself.
pub fn is_found(id: &str) -> bool {
    starts_with_no_case(id, FOUND)
}

fn is_image(name: &str) -> bool {
    let end = name.len().checked_sub(EFI.len());
    end.and_then(|end| name.get(end..))
        .is_some_and(|end| end.eq_ignore_ascii_case(EFI))
}

fn starts_with_no_case(text: &str, start: &str) -> bool {
    let found = text.get(..start.len());
    found.is_some_and(|found| found.eq_ignore_ascii_case(start))
}

/// The entries in the order of the menu: those of the boot partition, and of the EFI system partition, which may be
/// another. One whose kernel is not there is in none.
pub fn items(files: &Files, esp: Option<&Path>) -> Result<Vec<Item>> {
    let other = esp.filter(|esp| !is_same(esp, files.dir())).map(Files::new);
    let mut found = Vec::new();
    // Of equal ones that comes first which is found first.
    for (files, is_elsewhere) in [(other.as_ref(), true), (Some(files), false)] {
        let Some(files) = files else { continue };
        found.extend(images(files)?);
        found.extend(entries(files)?.map(|item| Item {
            is_elsewhere,
            ..item
        }));
    }
    found.sort_by(compare);
    Ok(found)
}

fn is_same(a: &Path, b: &Path) -> bool {
    let place = |path| fs::metadata(path).map(|found| (found.dev(), found.ino()));
    a == b || place(a).is_ok_and(|a| place(b).is_ok_and(|b| a == b))
}

fn entries(files: &Files) -> Result<impl Iterator<Item = Item>> {
    let mut found = Vec::new();
    for path in files.entries()? {
        let name = path.file_stem().and_then(|name| name.to_str());
        let (Some(name), Some(text)) = (name, read_if_there(&path)?) else {
            continue;
        };
        found.push(Item::read(name, &String::from_utf8_lossy(&text)));
    }
    let is_there = |item: &Item| files.path_of(&item.linux).is_file();
    found.retain(is_there);
    Ok(found.into_iter())
}

/// The unified kernel images of a partition.
fn images(files: &Files) -> Result<Vec<Item>> {
    let mut found = Vec::new();
    for path in files.list(IMAGES)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let is_read = |name: &&str| is_image(name) && !name.starts_with('.') && !is_found(name);
        let Some(name) = name.filter(is_read).filter(|_| path.is_file()) else {
            continue;
        };
        let text = uki::os_release(&path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        found.extend(text.and_then(|text| Item::of_image(name, &text)));
    }
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

    /// A unified kernel image in a file with this name. systemd-boot lists none without a name.
    fn of_image(name: &str, os_release: &str) -> Option<Self> {
        let (stem, ending) = name.split_at(name.len() - EFI.len());
        let (id, counter) = split_counter(stem);
        let first_of = |names: &[&str]| {
            let mut values = names.iter().map(|name| os_release::value(os_release, name));
            values.find_map(|value| value)
        };
        first_of(&["PRETTY_NAME", "IMAGE_ID", "NAME", "ID"])?;
        Some(Self {
            id: format!("{id}{ending}"),
            is_elsewhere: true,
            sort_key: first_of(&["IMAGE_ID", "ID"]),
            version: first_of(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"])
                .unwrap_or_default(),
            counter,
            ..Self::default()
        })
    }

    /// Whether this is the name of its file without a counter, or a pattern of it. Case does not matter.
    pub fn is_named(&self, pattern: &str) -> bool {
        let name = name_of(&self.id).to_lowercase();
        let pattern: Vec<char> = pattern.to_lowercase().chars().collect();
        matches(&pattern, &name.chars().collect::<Vec<_>>())
    }

    /// Whether its tries are counted, also when none are left.
    pub fn is_counted(&self) -> bool {
        self.counter.is_some()
    }

    /// Whether it boots for a try that is counted.
    pub fn has_tries(&self) -> bool {
        self.counter.is_some_and(|counter| counter.left > 0)
    }

    pub fn is_exhausted(&self) -> bool {
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
    group(a).cmp(&group(b)).then_with(by_key).then_with(|| {
        // Their endings count: what begins with a dash is older than what begins with a dot.
        let [a, b] = [a, b].map(|item| name_of(&item.id).to_lowercase());
        compare_versions(&b, &a)
    })
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
    use tempfile::TempDir;

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
        assert_eq!(ids(dir.path(), None), ["e", "d", "c", "f", "B2", "b", "a"]);
    }

    #[test]
    fn the_menu_has_unified_kernel_images_and_what_is_on_the_other_partition() {
        let (boot, esp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let image = |dir: &Path, name: &str, os_release: &str| {
            fs::create_dir_all(dir.join(IMAGES)).unwrap();
            let image = uki::tests::image(os_release);
            fs::write(dir.join(IMAGES).join(name), image).unwrap();
        };
        for dir in [&boot, &esp] {
            let entries = dir.path().join(ENTRIES);
            fs::create_dir_all(&entries).unwrap();
            fs::write(entries.join("gone.conf"), "linux /gone").unwrap();
        }
        let entry = |dir: &TempDir, name: &str, key: &str| {
            let path = dir.path().join(ENTRIES).join(name);
            fs::write(path, format!("linux /{name}\nsort-key {key}\n")).unwrap();
            fs::write(dir.path().join(name), "kernel").unwrap();
        };
        entry(&boot, "imgbased-Base-0.1.conf", "imgbased-layer");
        entry(&esp, "other.conf", "k");
        image(esp.path(), "arch+2-1.EFI", "ID=arch\nBUILD_ID=rolling\n");
        let zorin = "NAME=Zorin\nVERSION=\"1 (x)\"\nIMAGE_ID=zorin\nID=arch\n";
        image(boot.path(), "Zorin.efi", zorin);
        for name in [".hidden.efi", "auto-x.efi", "no.img"] {
            image(esp.path(), name, zorin);
        }
        image(esp.path(), "without-version.efi", "ID=arch\n");
        for name in ["x.conf", "x-lts.conf"] {
            entry(&boot, name, "x");
        }
        image(esp.path(), "without-name.efi", "VERSION=1\n");
        fs::write(esp.path().join(IMAGES).join("empty.efi"), "").unwrap();
        let all = [
            "arch.EFI",
            "without-version.efi",
            "imgbased-Base-0.1",
            "other",
            "x",
            "x-lts",
            "Zorin.efi",
        ];
        assert_eq!(ids(boot.path(), Some(esp.path())), all);
        let own = ["imgbased-Base-0.1", "x", "x-lts", "Zorin.efi"];
        assert_eq!(ids(boot.path(), None), own);
        // It is the same partition where $BOOT is none of its own.
        let same = esp.path().join("EFI/..");
        assert_eq!(
            ids(esp.path(), Some(&same)),
            ["arch.EFI", "without-version.efi", "other"]
        );

        let found = items(&Files::new(boot.path()), Some(esp.path())).unwrap();
        let named = |pattern: &str| -> Vec<&str> {
            let named = found.iter().filter(|item| item.is_named(pattern));
            named.map(|item| item.id.as_str()).collect()
        };
        assert_eq!(named("arch.efi"), ["arch.EFI"]);
        assert_eq!(named("zorin*"), ["Zorin.efi"]);
        assert_eq!(named("other.conf"), ["other"]);
        let elsewhere = found.iter().filter(|item| item.is_elsewhere);
        assert_eq!(elsewhere.count(), 4);
        assert!(found[0].has_tries());
    }

    fn ids(boot: &Path, esp: Option<&Path>) -> Vec<String> {
        let found = items(&Files::new(boot), esp).unwrap();
        found.into_iter().map(|item| item.id).collect()
    }
}
