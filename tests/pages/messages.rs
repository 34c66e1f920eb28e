//! The troubleshooting, entry by entry, against what the program says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::docs::markdown::cells;
use crate::source;

const PAGE: &str = "imgbased-troubleshooting.7";
const REFUSALS: &str = include_str!("../scenarios/refusals.txt");

/// The section of what lvm2, tar and the like say.
const FOREIGN: &str = "## Messages of other programs";

/// Texts of the early half that no person meets by themselves: what is a part of another message, and what tells
/// that all is well.
const NO_MESSAGES: [&str; 12] = [
    "it has no layers",
    "there are:",
    " and {left_out} older",
    " with the UUID {uuid}",
    "another device",
    "{}: {error:#}",
    "activate early",
    "{dm_name} is mounted already",
    "{dm_name} mounted in {}",
    "the boot goes on",
    "the boot goes on when you leave this shell",
    "these codes have 16 bits",
];

/// A message as the page has it, with `…` for what differs from host to host.
struct Entry {
    message: String,
    is_foreign: bool,
}

impl Entry {
    /// What is the same each time.
    fn fixed(&self) -> Vec<&str> {
        let parts = self.message.split('…').map(str::trim);
        parts.filter(|part| !part.is_empty()).collect()
    }

    /// Whether `text`, a message with `…` in its places, is this one: it has all that is the same each time, in its
    /// order, and that is no more general than the message itself.
    fn is_in(&self, text: &str) -> bool {
        if size(&self.message) < size(text).min(12) {
            return false;
        }
        let mut rest = text;
        self.fixed().iter().all(|part| match rest.split_once(part) {
            Some((_, after)) => {
                rest = after;
                true
            }
            None => false,
        })
    }

    /// Whether a part of a message, with its names and numbers in it, is one of this: eight letters in a row are the
    /// same.
    fn covers(&self, part: &str) -> bool {
        let part: Vec<char> = part.chars().filter(|c| *c != '`').collect();
        let in_a_row = part.windows(part.len().min(8));
        let mut in_a_row = in_a_row.map(String::from_iter);
        in_a_row.any(|letters| self.message.contains(&letters))
    }
}

/// How much of a message is the same each time, in bytes.
fn size(message: &str) -> usize {
    message.split('…').map(|part| part.trim().len()).sum()
}

fn entries() -> Vec<Entry> {
    let text = source(PAGE);
    let mut is_foreign = false;
    let mut entries = Vec::new();
    for line in text.lines() {
        if line.starts_with("## ") {
            is_foreign = line == FOREIGN;
        }
        if !line.starts_with("| `") {
            continue;
        }
        let row = cells(line);
        assert!(row.len() == 2 && !row[1].is_empty(), "{line}");
        let messages = row[0].split("<br>");
        entries.extend(messages.map(|message| Entry {
            message: message.trim_matches('`').replace("\\|", "|"),
            is_foreign,
        }));
    }
    assert!(entries.len() > 100, "{} entries", entries.len());
    entries
}

/// The string literals of a source file above its tests, as they are at run time but for their places `{}`.
fn literals(text: &str) -> Vec<String> {
    let text = text.split("#[cfg(test)]").next().unwrap();
    let mut found = Vec::new();
    for line_of_code in joined(text).lines() {
        let code = line_of_code.trim_start();
        if code.starts_with("//") {
            continue;
        }
        let mut rest = code.replace("b'\"'", "").replace("'\"'", "");
        while let Some((_, after)) = rest.split_once('"') {
            let hidden = after.replace("\\\"", "\u{1}\u{1}");
            let Some(end) = hidden.find('"') else { break };
            found.push(after[..end].replace("\\\"", "\""));
            rest = after[end + 1..].to_owned();
        }
    }
    found
}

/// The text with literals that go on in the next line on one.
fn joined(text: &str) -> String {
    let mut joined = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        match line.strip_suffix('\\') {
            Some(begin) => {
                joined += begin;
                let mut next = lines.next().unwrap_or_default().trim_start();
                while let Some(more) = next.strip_suffix('\\') {
                    joined += more;
                    next = lines.next().unwrap_or_default().trim_start();
                }
                joined += next;
            }
            None => joined += line,
        }
        joined.push('\n');
    }
    joined
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for file in fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path);
        }
    }
}

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// All files below a room of the source tree, with their paths.
fn room(name: &str) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    files(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join(name),
        &mut found,
    );
    found.sort();
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(&path).unwrap());
    found.into_iter().map(read).collect()
}

#[test]
fn each_message_of_the_early_half_has_an_entry() {
    let entries = entries();
    let mut missing = Vec::new();
    for (path, text) in room("src/early") {
        for literal in literals(&text) {
            let is_message = literal.split_whitespace().count() > 1
                && !literal.starts_with('[')
                && !NO_MESSAGES.contains(&literal.as_str());
            let message = without_places(&literal);
            if is_message && !entries.iter().any(|entry| entry.is_in(&message)) {
                missing.push(format!("{}: {literal}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The rooms that only say what is wrong inside of something that is read, as the last part of an error that says
/// what that is.
const ONLY_DETAILS: [&str; 2] = ["src/tree", "src/delivery/ranges.rs"];

/// What begins a refusal.
const REFUSALS_BY: [&str; 2] = ["bail!(", "ensure!("];

/// The messages with which a source file refuses something, formatted as rustfmt does.
fn refusals(text: &str) -> Vec<String> {
    let text = joined(text.split("#[cfg(test)]").next().unwrap());
    let lines: Vec<&str> = text.lines().collect();
    let indent = |line: &str| line.len() - line.trim_start().len();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let Some(begin) = REFUSALS_BY.iter().find_map(|by| line.find(by)) else {
            continue;
        };
        let end = |other: &&&str| indent(other) <= indent(line) && !other.is_empty();
        let length = lines[at + 1..]
            .iter()
            .take_while(|other| !end(other))
            .count();
        let call = [&line[begin..], &lines[at + 1..=at + length].join("\n")].join("\n");
        let mut messages = literals(&call).into_iter();
        found.extend(messages.find(|literal| literal.split_whitespace().count() > 1));
    }
    found
}

#[test]
fn each_refusal_of_the_program_has_an_entry() {
    let entries = entries();
    let mut missing = Vec::new();
    for (path, text) in room("src") {
        let is_code = path.extension().is_some_and(|end| end == "rs");
        let is_test = path.file_stem().is_some_and(|name| name == "tests");
        let is_detail = |room: &&str| path.starts_with(in_tree(room));
        if !is_code || is_test || ONLY_DETAILS.iter().any(is_detail) {
            continue;
        }
        for literal in refusals(&text) {
            let message = without_places(&literal);
            let has_words = message.contains(|c: char| c.is_alphabetic());
            if has_words && !entries.iter().any(|entry| entry.is_in(&message)) {
                missing.push(format!("{}: {literal}", path.display()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// The message of a literal with `…` for each of its places, and without the signs around what is to be typed.
fn without_places(literal: &str) -> String {
    let mut text = String::new();
    let literal = literal.replace('`', "");
    let mut rest = literal.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        text += before;
        text.push('…');
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    text + rest
}

#[test]
fn each_refusal_that_is_tried_has_an_entry() {
    let entries = entries();
    let is_row = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let mut missing = Vec::new();
    for row in REFUSALS.lines().filter(is_row) {
        let (_, message) = row.split_once("  =>  ").unwrap();
        if !entries.iter().any(|entry| entry.covers(message)) {
            missing.push(message);
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// A message that was changed or is gone has no entry as it was.
#[test]
fn each_entry_is_a_message_of_the_program() {
    let mut texts = String::new();
    for room in ["src", "dracut-module"] {
        for (path, text) in self::room(room) {
            if path.extension().is_none_or(|end| end != "md") {
                texts += &joined(&text).replace("\\\"", "\"").replace('`', "");
            }
        }
    }
    let mut unknown = Vec::new();
    for entry in entries().iter().filter(|entry| !entry.is_foreign) {
        unknown.extend(
            entry
                .fixed()
                .into_iter()
                .filter(|part| !texts.contains(part))
                .map(|part| format!("{part:?} of {:?}", entry.message)),
        );
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}
