//! Kernel options, merged by word.

use std::collections::{BTreeMap, BTreeSet};

use super::lines::{ByEntry, split};
use crate::model::kernel_options::words;

/// Keys of which each word counts by itself, whatever the others say.
const SEVERAL: [&str; 12] = [
    "console",
    "earlycon",
    "ip",
    "memmap",
    "modprobe.blacklist",
    "nameserver",
    "rd.luks.name",
    "rd.luks.uuid",
    "rd.lvm.lv",
    "rd.md.uuid",
    "systemd.mask",
    "systemd.wants",
];
/// A number of pages is of the size that was named before.
const PAGES: [&str; 2] = ["hugepages", "hugepagesz"];

/// How the names of variables begin that are kernel options.
const OPTIONS: &str = "GRUB_CMDLINE_LINUX";

/// What a word is known by: its key, or all of it where each counts by itself.
fn key(word: &str) -> &str {
    match word.split_once('=') {
        Some((key, _)) if PAGES.contains(&key) => PAGES[0],
        Some((key, _)) if !SEVERAL.contains(&key) => key,
        _ => word,
    }
}

/// The words of each key in their order, and the keys in theirs. Many can be given several times (dracut.cmdline(7)), and
/// of others the last word counts: so those of one key stay together, as one side has them.
fn by_key(text: &str) -> (Vec<&str>, BTreeMap<&str, Vec<&str>>) {
    let (mut keys, mut all) = (Vec::new(), BTreeMap::<&str, Vec<&str>>::new());
    for word in words(text) {
        let key = key(word);
        let of_key = all.entry(key).or_default();
        if of_key.is_empty() {
            keys.push(key);
        } else if of_key.last() == Some(&word) {
            // It says no more than once.
            continue;
        }
        of_key.push(word);
    }
    (keys, all)
}

/// Merges three lists of words. Adds the keys that both sides have changed to `conflicts`; the layer has its way there.
fn merge(old: &str, layer: &str, new: &str, conflicts: &mut Vec<String>) -> String {
    if layer == old || layer == new {
        return new.to_owned();
    }
    if new == old {
        return layer.to_owned();
    }
    let [(_, of_old), (our_keys, ours), (their_keys, theirs)] = [old, layer, new].map(by_key);
    let mut merged: Vec<&str> = Vec::new();
    for key in our_keys {
        let our = ours.get(key);
        let (before, after) = (of_old.get(key), theirs.get(key));
        if before == our {
            merged.extend(after.into_iter().flatten());
            continue;
        }
        if after != our && before != after {
            conflicts.push(key.to_owned());
        }
        merged.extend(our.into_iter().flatten());
    }
    for key in their_keys {
        if ours.contains_key(key) {
            continue;
        }
        let their = theirs.get(key);
        match of_old.get(key) {
            None => merged.extend(their.into_iter().flatten()),
            before if before != their => conflicts.push(key.to_owned()),
            Some(_) => {}
        }
    }
    merged.join(" ")
}

/// /etc/kernel/cmdline: all words of all lines.
pub fn merge_file(old: &[u8], layer: &[u8], new: &[u8]) -> Option<ByEntry> {
    let [old, layer, new] = texts([old, layer, new])?;
    let mut conflicts = Vec::new();
    let mut text = merge(old.trim(), layer.trim(), new.trim(), &mut conflicts);
    text.push('\n');
    Some(ByEntry {
        content: text.into_bytes(),
        conflicts,
    })
}

fn texts(contents: [&[u8]; 3]) -> Option<[&str; 3]> {
    let [old, layer, new] = contents.map(|content| std::str::from_utf8(content).ok());
    Some([old?, layer?, new?])
}

/// /etc/default/grub: the options by word, all else as a file, which is the layer's where both have changed it. Options
/// that a side assigns in a way that is not understood are a part of that on all sides.
pub fn merge_grub(old: &[u8], layer: &[u8], new: &[u8]) -> ByEntry {
    let mut sides = [old, layer, new].map(Script::parse);
    let unclear = sides.iter().flat_map(|side| side.unclear.keys().copied());
    let unclear: BTreeSet<&str> = unclear.collect();
    for side in &mut sides {
        side.give_up(&unclear);
    }
    let [old, layer, new] = sides.each_ref();
    let is_ours = layer.rest() != old.rest();
    let is_lost = |[old, layer, new]: [Vec<&[u8]>; 3]| is_ours && new != old && layer != new;
    let mut conflicts = Vec::new();
    if is_lost(sides.each_ref().map(Script::other_lines)) {
        conflicts.push("other lines".to_owned());
    }
    for name in unclear {
        if is_lost(sides.each_ref().map(|side| side.unclear_lines(name))) {
            conflicts.push(name.to_owned());
        }
    }
    let frame = if is_ours { layer } else { new };
    let mut merged: Vec<(&str, String)> = Vec::new();
    for (name, _) in layer.options.iter().chain(&new.options) {
        if merged.iter().all(|(other, _)| other != name) {
            let [before, ours, theirs] = [old, layer, new].map(|script| script.value(name));
            merged.push((name, merge(before, ours, theirs, &mut conflicts)));
        }
    }
    ByEntry {
        content: frame.with(&merged),
        conflicts,
    }
}

/// A shell script with assignments of kernel options, each in quotes of one kind and on one line. Others are not
/// understood, and a part of the rest.
struct Script<'a> {
    lines: Vec<&'a [u8]>,
    /// Each name once.
    options: Vec<(&'a str, Assigned<'a>)>,
    /// The numbers of the lines that assign what is not merged by word.
    unclear: BTreeMap<&'a str, Vec<usize>>,
}

struct Assigned<'a> {
    line: usize,
    quote: &'a str,
    value: &'a str,
    /// Behind the quotes.
    rest: &'a str,
}

impl<'a> Script<'a> {
    fn parse(content: &'a [u8]) -> Self {
        let lines: Vec<&[u8]> = split(content).collect();
        let mut options: Vec<(&str, Assigned)> = Vec::new();
        let mut unclear: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (at, line) in lines.iter().enumerate() {
            if let Some((name, assigned)) = assigned(line, at) {
                // The last one counts.
                options.retain(|(other, _)| *other != name);
                options.push((name, assigned));
                continue;
            }
            for name in names(line) {
                let goes_on = lines[at..].iter().take_while(|line| line.ends_with(b"\\"));
                let end = at + goes_on.count();
                unclear.entry(name).or_default().extend(at..=end);
            }
        }
        Self {
            lines,
            options,
            unclear,
        }
    }

    /// Has these options not be merged by word.
    fn give_up(&mut self, names: &BTreeSet<&'a str>) {
        let given_up = self
            .options
            .extract_if(.., |(name, _)| names.contains(name));
        for (name, option) in given_up {
            self.unclear.entry(name).or_default().push(option.line);
        }
    }

    /// The lines that assign options of this name, which are not merged by word.
    fn unclear_lines(&self, name: &str) -> Vec<&'a [u8]> {
        let lines = self.unclear.get(name).into_iter().flatten();
        lines
            .filter_map(|at| self.lines.get(*at).copied())
            .collect()
    }

    /// The options of this name; empty if there are none.
    fn value(&self, name: &str) -> &'a str {
        self.option(name).map_or("", |option| option.value)
    }

    fn option(&self, name: &str) -> Option<&Assigned<'a>> {
        let mut options = self.options.iter();
        options.find_map(|(other, option)| (*other == name).then_some(option))
    }

    /// All lines that assign no options.
    fn rest(&self) -> Vec<&'a [u8]> {
        let is_rest = |at: &usize| self.options.iter().all(|(_, option)| option.line != *at);
        let rest = (0..self.lines.len()).filter(is_rest);
        rest.map(|at| self.lines[at]).collect()
    }

    /// All lines that assign none, also not in a way that is not understood.
    fn other_lines(&self) -> Vec<&'a [u8]> {
        let is_option = |at: &usize| self.options.iter().any(|(_, option)| option.line == *at);
        let is_unclear = |at: &usize| self.unclear.values().any(|lines| lines.contains(at));
        let others = (0..self.lines.len()).filter(|at| !is_option(at) && !is_unclear(at));
        others.map(|at| self.lines[at]).collect()
    }

    /// The script with these options. Those that it has none of are added at the end.
    fn with(&self, options: &[(&str, String)]) -> Vec<u8> {
        let mut lines: Vec<Vec<u8>> = self.lines.iter().map(|line| line.to_vec()).collect();
        for (name, value) in options {
            match self.option(name) {
                Some(old) => {
                    let (quote, rest) = (old.quote, old.rest);
                    lines[old.line] = format!("{name}={quote}{value}{quote}{rest}").into_bytes();
                }
                None if !value.is_empty() => {
                    lines.push(format!("{name}=\"{value}\"").into_bytes());
                }
                None => {}
            }
        }
        let mut content = Vec::new();
        for line in lines {
            content.extend(line);
            content.push(b'\n');
        }
        content
    }
}

/// The names of kernel options that a line assigns, in whatever way.
fn names(line: &[u8]) -> Vec<&str> {
    let mut names = Vec::new();
    let mut rest = line.trim_ascii_start();
    if rest.starts_with(b"#") {
        return names;
    }
    let begin = |rest: &[u8]| {
        let mut places = rest.windows(OPTIONS.len());
        places.position(|place| place == OPTIONS.as_bytes())
    };
    while let Some(at) = begin(rest) {
        let is_of_name = |byte: &&u8| byte.is_ascii_alphanumeric() || **byte == b'_';
        let length = rest[at..].iter().take_while(is_of_name).count();
        let (name, after) = rest[at..].split_at(length);
        if after.starts_with(b"=") || after.starts_with(b"+=") {
            names.extend(std::str::from_utf8(name));
        }
        rest = after;
    }
    names
}

/// The name and value of a line that assigns kernel options.
fn assigned(line: &[u8], at: usize) -> Option<(&str, Assigned<'_>)> {
    let line = std::str::from_utf8(line).ok()?;
    let (name, value) = line.split_once('=')?;
    if !name.starts_with(OPTIONS) || name.ends_with('+') {
        return None;
    }
    let quote = value.get(..1).filter(|quote| ["\"", "'"].contains(quote))?;
    let (value, rest) = value[1..].split_once(quote)?;
    let is_plain = |c: char| !"\\`$\"'".contains(c);
    let is_understood = value.chars().all(is_plain)
        && (rest.trim().is_empty() || rest.trim_start().starts_with('#'));
    let assigned = Assigned {
        line: at,
        quote,
        value,
        rest,
    };
    is_understood.then_some((name, assigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_merged_by_key() {
        for (old, layer, new, wanted, clash) in [
            ("quiet", "quiet a=1", "quiet b=2", "quiet a=1 b=2", ""),
            ("quiet splash", "splash", "quiet splash c", "splash c", ""),
            ("a=1", "a=2", "a=1 b", "a=2 b", ""),
            ("a=1", "a=1 x", "a=2", "a=2 x", ""),
            ("a=1", "a=2", "a=3", "a=2", "a"),
            ("a=1 q", "q", "a=2 q", "q", "a"),
            (
                "console=tty0",
                "console=tty0 console=ttyS0",
                "console=tty0 n",
                "console=tty0 console=ttyS0 n",
                "",
            ),
            (
                "console=tty0",
                "console=ttyS0",
                "console=tty1",
                "console=ttyS0 console=tty1",
                "",
            ),
            ("q", "q x=\"a b\"", "q y", "q x=\"a b\" y", ""),
            ("q", "q n", "q n m", "q n m", ""),
            ("q q", "q a", "q q b", "q a b", ""),
            // Of a key with and without a value the last counts.
            (
                "rd.shell=0",
                "rd.shell=0 rd.shell",
                "rd.shell=0 q",
                "rd.shell=0 rd.shell q",
                "",
            ),
            // What is given several times stays, also where the last one counts.
            (
                "q",
                "q ifname=a:1 ifname=b:2",
                "q n",
                "q ifname=a:1 ifname=b:2 n",
                "",
            ),
            (
                "rd.zfcp=1 rd.zfcp=2",
                "rd.zfcp=1 rd.zfcp=2 q",
                "rd.zfcp=1 rd.zfcp=3",
                "rd.zfcp=1 rd.zfcp=3 q",
                "",
            ),
            (
                "vlan=a:b",
                "vlan=a:b vlan=c:b",
                "vlan=d:b",
                "vlan=a:b vlan=c:b",
                "vlan",
            ),
            (
                "q",
                "q hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=4",
                "q n",
                "q hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=4 n",
                "",
            ),
        ] {
            let mut conflicts = Vec::new();
            assert_eq!(merge(old, layer, new, &mut conflicts), wanted);
            assert_eq!(conflicts.join(","), clash, "{old} {layer} {new}");
        }
    }

    #[test]
    fn options_of_grub_are_merged_in_their_quotes() {
        let old = b"GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"\"\nGRUB_CMDLINE_LINUX_DEFAULT='quiet'\n";
        let layer = b"GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX=\"mine=1\" # why\nGRUB_CMDLINE_LINUX_DEFAULT='quiet'\n";
        let new = b"GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"theirs=1\"\nGRUB_CMDLINE_LINUX_DEFAULT='quiet splash'\n";
        let merged = merge_grub(old, layer, new);
        assert_eq!(
            String::from_utf8(merged.content).unwrap(),
            "GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX=\"mine=1 theirs=1\" # why\n\
             GRUB_CMDLINE_LINUX_DEFAULT='quiet splash'\n"
        );
        assert_eq!(merged.conflicts, [""; 0]);
    }

    #[test]
    fn what_a_shell_would_evaluate_is_left_alone() {
        let old = b"A=1\nGRUB_CMDLINE_LINUX=\"$X\"\n";
        let layer = b"A=2\nGRUB_CMDLINE_LINUX=\"$X y\"\n";
        let new = b"A=3\nGRUB_CMDLINE_LINUX=\"$X\"\n";
        let merged = merge_grub(old, layer, new);
        assert_eq!(merged.content, layer);
        assert_eq!(merged.conflicts, ["other lines"]);
    }

    #[test]
    fn options_that_one_side_assigns_in_another_way_are_the_layers() {
        let (name, default) = ("GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT");
        let old = format!("A=1\n{name}=\"\"\n{default}=\"q\"\n");
        for ours in [
            format!("{name}=console=ttyS0,115200\n"),
            format!("  {name}=\"console=ttyS0\"\n"),
            format!("export {name}=\"console=ttyS0\"\n"),
            format!("{name}=\"a \\\n  b\"\n"),
            format!("{name}=\"\"\n{name}+=\" a\"\n"),
            format!("{name}=\"$X a\"\n"),
        ] {
            let layer = format!("A=1\n{ours}{default}=\"q a\"\n");
            let changed = format!("A=1\n{name}=\"audit=1\"\n{default}=\"q b\"\n");
            let merged = |new: &str| {
                let merged = merge_grub(old.as_bytes(), layer.as_bytes(), new.as_bytes());
                (String::from_utf8(merged.content).unwrap(), merged.conflicts)
            };
            let wanted = format!("A=1\n{ours}{default}=\"q a b\"\n");
            let clash = vec![name.to_owned()];
            assert_eq!(merged(&changed), (wanted.clone(), clash), "{ours}");
            let alone = changed.replace("audit=1", "");
            assert_eq!(merged(&alone), (wanted, vec![]), "{ours}");
        }
        // A comment assigns nothing.
        let layer = format!("#{name}=x\n") + &old.replace("\"\"", "\"a\"");
        let new = old.replace("\"\"", "\"b\"");
        let merged = merge_grub(old.as_bytes(), layer.as_bytes(), new.as_bytes());
        let wanted = layer.replace("\"a\"", "\"a b\"");
        assert_eq!(String::from_utf8(merged.content).unwrap(), wanted);
    }

    #[test]
    fn options_that_the_base_assigns_in_another_way_are_not_assigned_twice() {
        let old = "GRUB_CMDLINE_LINUX=\"q\"\n";
        let layer = "GRUB_CMDLINE_LINUX=\"q mine\"\n";
        let new = "GRUB_CMDLINE_LINUX=audit=1\n";
        let merged = merge_grub(old.as_bytes(), layer.as_bytes(), new.as_bytes());
        assert_eq!(merged.content, layer.as_bytes());
        assert_eq!(merged.conflicts, ["GRUB_CMDLINE_LINUX"]);
        let merged = merge_grub(old.as_bytes(), old.as_bytes(), new.as_bytes());
        assert_eq!((merged.content, merged.conflicts), (new.into(), vec![]));
    }
}
