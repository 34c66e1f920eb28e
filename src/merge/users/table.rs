//! One of the files of users and groups, line by line.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use crate::merge::lines::split;
use crate::tree::escaped;

/// The files, in the order of [`super::UserFiles`].
pub const FILES: [&str; 6] = ["passwd", "group", "shadow", "gshadow", "subuid", "subgid"];
pub const PASSWD: usize = 0;
pub const GROUP: usize = 1;
pub const SHADOW: usize = 2;
pub const GSHADOW: usize = 3;
/// The fewest fields of a line, and how many it has (passwd(5), group(5), shadow(5), gshadow(5), subuid(5)).
pub const FIELDS: [(usize, usize); 6] = [(7, 7), (3, 4), (2, 9), (2, 4), (3, 3), (3, 3)];
/// Who has what nobody else is to have.
pub const NOBODY: u32 = 65534;

pub type Name = Vec<u8>;
pub type Fields = Vec<Vec<u8>>;

/// The lines of a file.
pub struct Table<'a> {
    pub lines: Vec<Line<'a>>,
    /// The lines with each name. The first one counts, but for ranges.
    pub by_name: BTreeMap<Name, Vec<Fields>>,
}

pub enum Line<'a> {
    Entry(&'a [u8], Fields),
    /// A comment, a line of NIS, or one that is not understood. It stays what it is.
    Other(&'a [u8]),
}

impl<'a> Table<'a> {
    pub fn parse(file: usize, content: &'a [u8]) -> Self {
        let mut lines = Vec::new();
        let mut by_name: BTreeMap<Name, Vec<Fields>> = BTreeMap::new();
        for line in split(content) {
            match fields(file, line) {
                Some(fields) => {
                    let same = by_name.entry(fields[0].clone()).or_default();
                    if let Some(first) = same.first_mut() {
                        add_members(file, first, &fields);
                    }
                    same.push(fields.clone());
                    lines.push(Line::Entry(line, fields));
                }
                None => lines.push(Line::Other(line)),
            }
        }
        Self { lines, by_name }
    }

    pub fn get(&self, name: &[u8]) -> Option<&Fields> {
        self.all(name).first()
    }

    pub fn all(&self, name: &[u8]) -> &[Fields] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    /// The line that counts of each name.
    pub fn entries(&self) -> impl Iterator<Item = &Fields> {
        self.by_name.values().filter_map(|lines| lines.first())
    }

    /// The names in their order.
    pub fn names(&self) -> Vec<Name> {
        let mut seen = BTreeSet::new();
        let name = |line: &Line| match line {
            Line::Entry(_, fields) => Some(fields[0].clone()),
            Line::Other(_) => None,
        };
        let mut names: Vec<Name> = self.lines.iter().filter_map(name).collect();
        names.retain(|name| seen.insert(name.clone()));
        names
    }

    /// This file with these entries: each line in its place, and what is new behind the last of them, before
    /// lines that stand for all users there are elsewhere.
    pub fn with(&self, entries: Vec<Fields>) -> Vec<u8> {
        let mut order = Vec::new();
        let mut wanted: BTreeMap<Name, Vec<Fields>> = BTreeMap::new();
        for fields in entries {
            order.push(fields[0].clone());
            wanted.entry(fields[0].clone()).or_default().push(fields);
        }
        let mut lines: Vec<Vec<u8>> = Vec::new();
        let mut end = 0;
        for line in &self.lines {
            match line {
                Line::Other(line) => lines.push(line.to_vec()),
                Line::Entry(raw, fields) => {
                    for new in wanted.remove(&fields[0]).unwrap_or_default() {
                        lines.push(if new == *fields {
                            raw.to_vec()
                        } else {
                            new.join(&b':')
                        });
                    }
                    end = lines.len();
                }
            }
        }
        let mut added = Vec::new();
        for name in order {
            let fields = wanted.remove(&name).unwrap_or_default().into_iter();
            added.extend(fields.map(|fields| fields.join(&b':')));
        }
        lines.splice(end..end, added);
        let mut content = Vec::new();
        for line in lines {
            content.extend(line);
            content.push(b'\n');
        }
        content
    }
}

/// The fields of a line that is an entry, all that there can be.
fn fields(file: usize, line: &[u8]) -> Option<Fields> {
    let (least, most) = FIELDS[file];
    let mut fields: Fields = line
        .split(|byte| *byte == b':')
        .map(<[u8]>::to_vec)
        .collect();
    let is_name = !matches!(
        fields[0].first(),
        None | Some(b'+' | b'-' | b'#' | b' ' | b'\t')
    );
    let numbers: &[usize] = match file {
        PASSWD => &[2, 3],
        GROUP => &[2],
        SHADOW | GSHADOW => &[],
        _ => &[1, 2],
    };
    let is_entry = is_name
        && (least..=most).contains(&fields.len())
        && numbers.iter().all(|at| number(&fields[*at]).is_some());
    fields.resize(most, Vec::new());
    is_entry.then_some(fields)
}

/// Gives the first line of a group the members of another one of it: a group with many can have several lines
/// (login.defs(5), `MAX_MEMBERS_PER_GROUP`).
fn add_members(file: usize, first: &mut Fields, more: &Fields) {
    if file == GROUP && first[2] != more[2] {
        return;
    }
    for at in lists_of(file) {
        let mut members = list(&first[*at]);
        for name in list(&more[*at]) {
            if !members.contains(&name) {
                members.push(name);
            }
        }
        first[*at] = members.join(&b',');
    }
}

/// Which fields of a file list names.
pub fn lists_of(file: usize) -> &'static [usize] {
    match file {
        GROUP => &[3],
        GSHADOW => &[2, 3],
        _ => &[],
    }
}

/// The names in a field that lists several.
pub fn list(field: &[u8]) -> Vec<Name> {
    let names = field.split(|byte| *byte == b',').map(<[u8]>::to_vec);
    names.filter(|name| !name.is_empty()).collect()
}

pub fn number(field: &[u8]) -> Option<u32> {
    let is_plain = field.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(field)
        .ok()
        .filter(|_| is_plain)?
        .parse()
        .ok()
}

pub fn id_of(fields: &Fields) -> u32 {
    number(&fields[2]).unwrap_or(NOBODY)
}

/// No two names are shown alike.
pub fn shown(name: &[u8]) -> String {
    escaped(OsStr::from_bytes(name))
}

/// From where to where the numbers of a range are.
pub fn range(fields: &Fields) -> (u64, u64) {
    let start = number(&fields[1]).map_or(0, u64::from);
    (start, start + number(&fields[2]).map_or(0, u64::from))
}
