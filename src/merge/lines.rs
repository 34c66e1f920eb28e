//! Files that are lists of entries, merged by entry.
//!
//! The lines of the layer stay in their order, with comments and all that is not understood. What the new base has
//! changed in an entry comes, what is new there comes behind the entry that it follows there.

use std::collections::{BTreeMap, BTreeSet};

use super::words;

/// The largest file of kernel options, in bytes. The kernel takes much less.
const OPTIONS_MAX: usize = 64 << 10;

/// What the entries of a file are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Whole lines.
    Lines,
    /// fstab(5): by mount point, and swap by device.
    Fstab,
    /// crypttab(5): by name.
    Crypttab,
    /// Kernel options, by word.
    KernelOptions,
    /// A shell script in which `GRUB_CMDLINE_LINUX` and the like are kernel options.
    GrubDefaults,
}

/// A merged file, and the entries that both sides have changed: those are as in the layer.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ByEntry {
    pub content: Vec<u8>,
    pub conflicts: Vec<String>,
}

/// Merges three versions of a file. `None` where it cannot be read as such a list.
pub fn by_entry(format: Format, old: &[u8], layer: &[u8], new: &[u8]) -> Option<ByEntry> {
    let whole = |content: &[u8]| {
        Some(ByEntry {
            content: content.to_vec(),
            conflicts: Vec::new(),
        })
    };
    if old == layer || layer == new {
        return whole(new);
    }
    if old == new {
        return whole(layer);
    }
    let is_long = |content: &[u8]| content.len() > OPTIONS_MAX;
    let is_of_options = matches!(format, Format::KernelOptions | Format::GrubDefaults);
    if is_of_options && [old, layer, new].into_iter().any(is_long) {
        return None;
    }
    match format {
        Format::Lines => Some(merge(whole_line, old, layer, new)),
        Format::Fstab => Some(merge(mount_point, old, layer, new)),
        Format::Crypttab => Some(merge(first_field, old, layer, new)),
        Format::KernelOptions => words::merge_file(old, layer, new),
        Format::GrubDefaults => Some(words::merge_grub(old, layer, new)),
    }
}

/// The fields of a line; none of a comment.
fn fields(line: &[u8]) -> Vec<&[u8]> {
    let fields = line.split(u8::is_ascii_whitespace);
    let fields: Vec<&[u8]> = fields.filter(|field| !field.is_empty()).collect();
    match fields.first() {
        Some(first) if first.starts_with(b"#") => Vec::new(),
        _ => fields,
    }
}

fn whole_line(line: &[u8]) -> Option<Vec<u8>> {
    Some(fields(line).join(&b' ')).filter(|line| !line.is_empty())
}

fn first_field(line: &[u8]) -> Option<Vec<u8>> {
    fields(line).first().map(|field| field.to_vec())
}

fn mount_point(line: &[u8]) -> Option<Vec<u8>> {
    match fields(line)[..] {
        [device, b"none" | b"swap", ..] => Some([device, b" swap"].concat()),
        [_, point, ..] => {
            let end = point.iter().rposition(|byte| *byte != b'/');
            Some(end.map_or(b"/".to_vec(), |end| point[..=end].to_vec()))
        }
        _ => None,
    }
}

/// Lines without their ends. A line break at the end of the file ends the last line.
pub fn split(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    let is_empty = content.is_empty();
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    content
        .split(|byte| *byte == b'\n')
        .filter(move |_| !is_empty)
}

fn merge(key: fn(&[u8]) -> Option<Vec<u8>>, old: &[u8], layer: &[u8], new: &[u8]) -> ByEntry {
    // Lines of one key are one entry.
    let index = |content| {
        let mut entries: BTreeMap<Vec<u8>, Vec<&[u8]>> = BTreeMap::new();
        for line in split(content) {
            if let Some(key) = key(line) {
                entries.entry(key).or_default().push(line);
            }
        }
        entries
    };
    let (before, ours, theirs) = (index(old), index(layer), index(new));
    let mut conflicts = Vec::new();
    let mut lines: Vec<(Option<Vec<u8>>, &[u8])> = Vec::new();
    let mut done = BTreeSet::new();
    for line in split(layer) {
        let Some(key) = key(line) else {
            lines.push((None, line));
            continue;
        };
        let (old, layer, new) = (before.get(&key), ours.get(&key), theirs.get(&key));
        let is_first = done.insert(key.clone());
        if layer == old && layer != new {
            // As in the new base, also where it is gone there.
            let new = new.filter(|_| is_first).into_iter().flatten();
            lines.extend(new.map(|line| (Some(key.clone()), *line)));
            continue;
        }
        if is_first && old != new && layer != new {
            conflicts.push(shown(&key));
        }
        lines.push((Some(key), line));
    }
    // What is new, by the entry that it follows. No key is empty.
    let mut added: BTreeMap<Vec<u8>, Vec<&[u8]>> = BTreeMap::new();
    let mut after = Vec::new();
    for line in split(new) {
        let Some(key) = key(line) else { continue };
        if ours.contains_key(&key) {
            after = key;
        } else if let Some(old) = before.get(&key) {
            // The layer has deleted it.
            if Some(old) != theirs.get(&key) && done.insert(key.clone()) {
                conflicts.push(shown(&key));
            }
        } else {
            added.entry(after.clone()).or_default().push(line);
        }
    }
    // From the end, so that it comes behind the last line of that entry; first what follows nothing.
    let mut merged: Vec<&[u8]> = added.remove(&Vec::new()).unwrap_or_default();
    merged.reverse();
    for (key, line) in lines.into_iter().rev() {
        let follow = key.and_then(|key| added.remove(&key));
        merged.extend(follow.into_iter().flatten().rev());
        merged.push(line);
    }
    let mut content = Vec::new();
    for line in merged.iter().rev() {
        content.extend(*line);
        content.push(b'\n');
    }
    ByEntry { content, conflicts }
}

fn shown(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merged(format: Format, old: &str, layer: &str, new: &str) -> (String, Vec<String>) {
        let merged = by_entry(format, old.as_bytes(), layer.as_bytes(), new.as_bytes()).unwrap();
        let text = String::from_utf8(merged.content).unwrap();
        (text, merged.conflicts)
    }

    #[test]
    fn lines_are_a_set_with_an_order() {
        for (old, layer, new, wanted) in [
            (
                "a\nb\n",
                "a\nb\nours\n",
                "a\ntheirs\nb\n",
                "a\ntheirs\nb\nours\n",
            ),
            ("a\nb\n", "b\nours\n", "a\nb\nc\n", "b\nc\nours\n"),
            ("a\nb\n", "a\nb\nours\n", "b\n", "b\nours\n"),
            ("", "x\n", "y\n", "x\ny\n"),
            ("a\n", "# why\n\na\nx", "a\ny\n", "# why\n\na\ny\nx\n"),
            ("a\n", "a\nx\n", "a\nx\ny\n", "a\nx\ny\n"),
        ] {
            let (text, conflicts) = merged(Format::Lines, old, layer, new);
            assert_eq!(text, wanted, "{old:?} {layer:?} {new:?}");
            assert_eq!(conflicts, [""; 0]);
        }
    }

    #[test]
    fn fstab_is_merged_by_mount_point() {
        let old = "LABEL=boot /boot ext4 defaults 0 2\ntmpfs /tmp tmpfs defaults 0 0\n";
        let layer = "# mine\nLABEL=boot /boot ext4 noatime 0 2\ntmpfs /tmp tmpfs defaults 0 0\n\
            /dev/vg/data /data xfs defaults 0 0\n/dev/x none swap sw 0 0\n";
        let new = "LABEL=boot /boot ext4 defaults,nofail 0 2\ntmpfs /tmp/ tmpfs size=1G 0 0\n\
            /dev/y none swap sw 0 0\n";
        let (text, conflicts) = merged(Format::Fstab, old, layer, new);
        assert_eq!(
            text,
            "# mine\nLABEL=boot /boot ext4 noatime 0 2\ntmpfs /tmp/ tmpfs size=1G 0 0\n\
             /dev/y none swap sw 0 0\n/dev/vg/data /data xfs defaults 0 0\n/dev/x none swap sw 0 0\n"
        );
        assert_eq!(conflicts, ["/boot"]);
    }

    #[test]
    fn crypttab_is_merged_by_name() {
        let (text, conflicts) = merged(
            Format::Crypttab,
            "a UUID=1 none luks\nb UUID=2 none\n",
            "a UUID=1 none luks,discard\nc UUID=3 none\n",
            "a UUID=1 none luks\nb UUID=9 none\n",
        );
        assert_eq!(text, "a UUID=1 none luks,discard\nc UUID=3 none\n");
        assert_eq!(conflicts, ["b"]);
    }

    #[test]
    fn the_order_of_entries_does_not_matter() {
        let mut random = fastrand::Rng::with_seed(7);
        let pool = ["a", "b", "c", "d", "e", "f"];
        for _ in 0..2000 {
            let sides = [(); 3].map(|()| {
                let mut lines = pool.to_vec();
                random.shuffle(&mut lines);
                lines.truncate(random.usize(..pool.len()));
                lines
            });
            let merge = |sides: &[Vec<&str>; 3]| {
                let [old, layer, new] = sides.each_ref().map(|lines| lines.join("\n"));
                let (text, _) = merged(Format::Lines, &old, &layer, &new);
                let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
                lines.sort_unstable();
                lines
            };
            let mut shuffled = sides.clone();
            for lines in &mut shuffled {
                random.shuffle(lines);
            }
            assert_eq!(merge(&sides), merge(&shuffled), "{sides:?}");
        }
    }

    #[test]
    fn properties_of_every_merge() {
        let mut random = fastrand::Rng::with_seed(11);
        let pool = [
            "a 1",
            "a 2",
            "b 1",
            "b 2",
            "c /x",
            "d /x",
            "# note",
            "",
            "e none swap",
            "GRUB_TIMEOUT=1",
            "GRUB_CMDLINE_LINUX=\"a=1 b\"",
            "GRUB_CMDLINE_LINUX='a=2'",
            "GRUB_CMDLINE_LINUX=c",
            " GRUB_CMDLINE_LINUX=\"c\"",
        ];
        let mut file = || -> Vec<u8> {
            let count = random.usize(..7);
            let lines: Vec<&str> = (0..count)
                .map(|_| pool[random.usize(..pool.len())])
                .collect();
            let mut content = lines.join("\n").into_bytes();
            if count > 0 {
                content.push(b'\n');
            }
            content
        };
        for _ in 0..4000 {
            let (old, layer, new) = (file(), file(), file());
            for format in [
                Format::Lines,
                Format::Fstab,
                Format::Crypttab,
                Format::KernelOptions,
                Format::GrubDefaults,
            ] {
                let merge = |old: &[u8], layer: &[u8], new: &[u8]| {
                    by_entry(format, old, layer, new).unwrap().content
                };
                assert_eq!(merge(&old, &old, &new), new);
                assert_eq!(merge(&old, &layer, &old), layer);
                assert_eq!(merge(&old, &layer, &layer), layer);
                let once = merge(&old, &layer, &new);
                let twice = merge(&old, &once, &new);
                let text = String::from_utf8_lossy;
                assert_eq!(
                    text(&twice),
                    text(&once),
                    "{format:?} {:?} {:?} {:?}",
                    text(&old),
                    text(&layer),
                    text(&new)
                );
            }
        }
    }
}
