//! Which files of a layer came with packages that were installed in it (dpkg(1)).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Rules;
use crate::merge::plan::node_of;
use crate::merge::{LAYER, NEW, OLD, dpkg};
use crate::tree::{Dir, Kind, Node};

/// The most that is read of the lists of files, in bytes. Files of further packages are reported as any others.
const LISTS_MAX: u64 = 32 << 20;
/// Directories that are links to those of /usr, while lists can have the files in the former ones.
const IN_USR: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// A package that comes along with neither the image nor the layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    /// The space of its files that are left behind, and how many those are.
    pub bytes: u64,
    pub files: u64,
}

/// Where a file of a package comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A package of the old base or the new one: what is there of it in the new base is as that wants it.
    Image,
    /// This one of the packages that are in neither.
    Package(usize),
}

/// The files of packages that the layer has in another version than the old base, or that the old base does not
/// have.
#[derive(Default)]
pub struct Packages {
    files: BTreeMap<PathBuf, Source>,
    names: Vec<String>,
}

impl Packages {
    pub fn of(layer: &Dir, rules: &Rules) -> io::Result<Self> {
        let mut packages = Self::default();
        let [old, there, new] = [OLD, LAYER, NEW].map(|side| rules.packages[side]);
        let is_changed = |(name, version): &(&String, &String)| old.get(*name) != Some(*version);
        let changed: Vec<_> = there.iter().filter(is_changed).collect();
        if changed.is_empty() {
            return Ok(packages);
        }
        let Some(lists) = dpkg::lists(layer)? else {
            return Ok(packages);
        };
        let links = links_to_usr(layer)?;
        let mut left = LISTS_MAX;
        for (name, _) in changed {
            if !is_name(name) {
                continue;
            }
            let list = node_of(&lists, format!("{name}.list").as_ref())?;
            let is_file = |list: &Node| list.stat.kind == Kind::File && list.stat.size <= left;
            let Some(list) = list.filter(is_file) else {
                continue;
            };
            left -= list.stat.size;
            let source = if old.contains_key(name) || new.contains_key(name) {
                Source::Image
            } else {
                packages.names.push(name.clone());
                Source::Package(packages.names.len() - 1)
            };
            for file in files(&list.read(LISTS_MAX)?, &links) {
                packages.files.insert(file, source);
            }
        }
        Ok(packages)
    }

    pub fn source(&self, path: &Path) -> Option<Source> {
        self.files.get(path).copied()
    }

    /// The packages that are in no image, by their numbers.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Whether a name is one that a package can have, with its architecture (deb-control(5)).
fn is_name(name: &str) -> bool {
    let is_valid = |c: u8| c.is_ascii_alphanumeric() || b"+-.:".contains(&c);
    name.bytes().all(is_valid) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

/// The names of [`IN_USR`] that are such links.
fn links_to_usr(root: &Dir) -> io::Result<Vec<&'static str>> {
    let mut links = Vec::new();
    for name in IN_USR {
        let node = node_of(root, name.as_ref())?.filter(|node| node.stat.kind == Kind::Link);
        if let Some(node) = node {
            let target = node.target()?;
            if Path::new(&target).ends_with(Path::new("usr").join(name)) {
                links.push(name);
            }
        }
    }
    Ok(links)
}

/// The paths in a list of dpkg, from the root. Those below `links` are really in /usr.
fn files(list: &[u8], links: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in list.split(|byte| *byte == b'\n') {
        let path = Path::new(OsStr::from_bytes(line));
        let Ok(path) = path.strip_prefix("/") else {
            continue;
        };
        let is_linked = path
            .iter()
            .next()
            .is_some_and(|first| links.iter().any(|link| first == *link));
        files.push(if is_linked {
            Path::new("usr").join(path)
        } else {
            path.to_owned()
        });
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_names_files_where_they_are() {
        let list =
            b"/.\n/bin\n/bin/htop\n/lib/x\n/library/y\n/usr/bin/a b\nrelative\n\n/latin\xe4\n/last";
        let text = |links: &[&str]| {
            let paths = files(list, links).into_iter();
            let shown = paths.map(crate::tree::escaped).collect::<Vec<_>>();
            shown.join(" ")
        };
        assert_eq!(
            text(&["bin", "lib"]),
            " usr/bin usr/bin/htop usr/lib/x library/y usr/bin/a b latin\\344 last"
        );
        assert_eq!(
            text(&[]),
            " bin bin/htop lib/x library/y usr/bin/a b latin\\344 last"
        );
        assert_eq!(files(b"", &["bin"]), [""; 0].map(PathBuf::from));
    }

    #[test]
    fn a_name_of_a_package_is_no_path() {
        for (name, wanted) in [
            ("libc6:amd64", true),
            ("g++-14", true),
            ("0ad", true),
            ("", false),
            ("..", false),
            ("../../etc/passwd", false),
            ("a/b", false),
            ("a\0b", false),
            ("-a", false),
        ] {
            assert_eq!(is_name(name), wanted, "{name:?}");
        }
    }
}
