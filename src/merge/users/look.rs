//! What the files of users and groups say, for those who merge nothing.

use std::collections::BTreeMap;

use super::UserFiles;
use super::table::{
    FILES, GROUP, GSHADOW, Line, NOBODY, Name, PASSWD, SHADOW, Table, id_of, shown,
};

/// The users or groups of a file with their numbers, as they are shown, in its order.
pub fn numbered(file: usize, content: &[u8]) -> Vec<(String, u32)> {
    let table = Table::parse(file, content);
    let names = table.names().into_iter();
    let id = |name: &Name| table.get(name).map_or(NOBODY, id_of);
    names.map(|name| (shown(&name), id(&name))).collect()
}

/// The lines of each name in one of the [`FILES`], by their fields.
pub fn entries(file: usize, content: &[u8]) -> BTreeMap<Name, Vec<Vec<Vec<u8>>>> {
    Table::parse(file, content).by_name
}

/// What is wrong with files as a set, such as makes systemd-sysusers(8) stop. Nothing is in merged ones.
pub fn faults(files: &UserFiles) -> Vec<String> {
    let table = |file: usize| Table::parse(file, files.0[file].as_deref().unwrap_or_default());
    let mut faults = Vec::new();
    for file in [PASSWD, GROUP, SHADOW, GSHADOW] {
        let table = table(file);
        let entries = table
            .lines
            .iter()
            .filter(|line| matches!(line, Line::Entry(..)));
        if entries.count() != table.names().len() {
            faults.push(format!("{} has a name twice", FILES[file]));
        }
    }
    for (names, secrets) in [(PASSWD, SHADOW), (GROUP, GSHADOW)] {
        if files.0[secrets].is_none() && secrets == GSHADOW {
            continue;
        }
        let (of_names, of_secrets) = (table(names), table(secrets));
        for fields in of_names.entries() {
            let name = &fields[0];
            // A file without any line is not in use.
            let is_used = secrets == SHADOW || !of_secrets.lines.is_empty();
            if fields[1] == b"x" && of_secrets.get(name).is_none() && is_used {
                faults.push(format!("{} is not in {}", shown(name), FILES[secrets]));
            }
        }
        for name in of_secrets.by_name.keys() {
            if of_names.get(name).is_none() {
                faults.push(format!("{} is only in {}", shown(name), FILES[secrets]));
            }
        }
    }
    faults
}

/// A name that has another number in another root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    pub is_group: bool,
    pub name: String,
    pub old: u32,
    pub new: u32,
}

/// The users and groups of both roots whose numbers differ.
pub fn moved(old: &UserFiles, new: &UserFiles) -> Vec<Moved> {
    let mut moved = Vec::new();
    for file in [PASSWD, GROUP] {
        let [old, new] = [old, new].map(|files| {
            let content = files.0[file].as_deref().unwrap_or_default();
            Table::parse(file, content)
        });
        for fields in new.entries() {
            let Some(before) = old.get(&fields[0]).map(id_of) else {
                continue;
            };
            if before != id_of(fields) {
                moved.push(Moved {
                    is_group: file == GROUP,
                    name: shown(&fields[0]),
                    old: before,
                    new: id_of(fields),
                });
            }
        }
    }
    moved
}
