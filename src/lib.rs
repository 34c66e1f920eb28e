//! Read-only bases and writable layers for Linux hosts, on LVM thin volumes. The rooms of this tree, and
//! which may use which: src/README.md.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod admin;
pub mod boot;
pub mod delivery;
pub mod down;
pub mod early;
pub mod image;
pub mod lvm;
pub mod merge;
pub mod model;
#[cfg(test)]
#[path = "../tests/schemas/mod.rs"]
mod schemas;
pub mod sys;
pub mod tree;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    /// Each room, and the rooms that it may use. None that it does not use is named.
    const ARROWS: [(&str, &[&str]); 12] = [
        ("main.rs", &["admin", "down", "early", "sys"]),
        (
            "admin",
            &[
                "boot", "delivery", "image", "lvm", "merge", "model", "sys", "tree",
            ],
        ),
        ("boot", &["model", "sys"]),
        ("delivery", &["sys"]),
        ("down", &["sys"]),
        ("early", &["lvm", "model", "sys"]),
        ("image", &["sys", "tree"]),
        ("lvm", &["model", "sys"]),
        ("merge", &["model", "tree"]),
        ("model", &[]),
        ("sys", &[]),
        ("tree", &["sys"]),
    ];

    /// The rooms that a text names, with the numbers of the lines. `{` stands for a list of rooms.
    fn rooms_in(text: &str) -> Vec<(usize, &str)> {
        let mut found = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for root in ["crate::", "imgbased_helper::", "super::super::"] {
                for (at, _) in code.match_indices(root) {
                    let path = &code[at + root.len()..];
                    let end = path.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
                    let end = end.unwrap_or(path.len()).max(1);
                    found.push((number + 1, path.get(..end).unwrap_or(path)));
                }
            }
        }
        found
    }

    fn rust_files(path: &Path, found: &mut Vec<PathBuf>) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                rust_files(&entry.unwrap().path(), found);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path.to_owned());
        }
    }

    #[test]
    fn rooms_are_found_in_paths_and_not_in_comments() {
        for (line, rooms) in [
            ("use crate::sys::cmd::{Cmd, quote};", &["sys"][..]),
            (
                "fn f(a: crate::lvm::Lvm, b: crate::model::Group)",
                &["lvm", "model"],
            ),
            ("use crate::{boot, sys};", &["{"]),
            ("use super::super::boot;", &["boot"]),
            ("use imgbased_helper::early;", &["early"]),
            ("// see crate::sys", &[]),
            ("use super::entry;", &[]),
        ] {
            let found: Vec<&str> = rooms_in(line).into_iter().map(|(_, room)| room).collect();
            assert_eq!(found, rooms, "{line}");
        }
        assert_eq!(rooms_in("\ncrate::sys"), [(2, "sys")]);
    }

    #[test]
    fn rooms_use_each_other_as_they_may() {
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut wrong = Vec::new();
        let mut used = Vec::new();
        let mut files = Vec::new();
        rust_files(&src, &mut files);
        for file in files {
            let inside = file.strip_prefix(&src).unwrap();
            let room = inside.iter().next().unwrap().to_str().unwrap();
            if ["lib.rs", "build.rs"].contains(&room) {
                continue;
            }
            let allowed = ARROWS.iter().find(|(from, _)| *from == room);
            let (_, allowed) = allowed.unwrap_or_else(|| panic!("{room} is no room of the table"));
            for (line, to) in rooms_in(&fs::read_to_string(&file).unwrap()) {
                // Of the tests.
                if to == "schemas" {
                    continue;
                }
                if to != room && !allowed.contains(&to) {
                    wrong.push(format!("src/{}:{line}: {room} -> {to}", inside.display()));
                }
                used.push(format!("{room} -> {to}"));
            }
        }
        assert!(wrong.is_empty(), "not allowed:\n{}", wrong.join("\n"));
        for (room, allowed) in ARROWS {
            for to in allowed {
                let arrow = format!("{room} -> {to}");
                assert!(used.contains(&arrow), "{arrow} is allowed, but not needed");
            }
        }
    }
}
