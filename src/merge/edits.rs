//! Which paths were edited since a merge: a list of what lstat(2) says, and nothing is read.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};

use super::class::{Class, class};
use crate::tree::{Below, Dir, Stat, escaped, walk};

/// A line for each path that a merge of a root reads: the path, a tab, and what tells of a change.
pub fn listing(root: &Dir) -> Result<String> {
    let etc = root.descend(Path::new("etc"));
    let etc = etc.context("cannot open /etc")?;
    let mut list = String::new();
    walk(&[etc], None, &mut |visit| {
        if class(visit.path) == Class::Derived {
            return Ok(Below::Skip);
        }
        if let [Some(place)] = visit.places {
            let Stat {
                mode,
                uid,
                gid,
                size,
                mtime,
                ctime,
                id,
                ..
            } = place.stat;
            writeln!(
                list,
                "/etc/{}\t{mode:o} {uid} {gid} {size} {}.{} {}.{} {}",
                escaped(visit.path),
                mtime.0,
                mtime.1,
                ctime.0,
                ctime.1,
                id.ino
            )?;
        }
        Ok(Below::Visit)
    })?;
    Ok(list)
}

/// The paths that are not the same in two lists, in order.
pub fn edited<'a>(before: &'a str, after: &'a str) -> Vec<&'a str> {
    let read = |list: &'a str| {
        let lines = list.lines();
        lines
            .filter_map(|line| line.split_once('\t'))
            .collect::<BTreeMap<&str, &str>>()
    };
    let (before, after) = (read(before), read(after));
    let paths = before.keys().chain(after.keys());
    let mut paths: Vec<&str> = paths.copied().collect();
    paths.sort_unstable();
    paths.dedup();
    paths.retain(|path| before.get(path) != after.get(path));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn each_edit_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let etc = dir.path().join("etc");
        fs::create_dir_all(etc.join("dir")).unwrap();
        for name in [
            "same",
            "content",
            "mode",
            "gone",
            "dir/below",
            "ld.so.cache",
        ] {
            fs::write(etc.join(name), name).unwrap();
        }
        let list = || listing(&Dir::root(dir.path()).unwrap()).unwrap();
        let before = list();
        assert_eq!(edited(&before, &list()), [""; 0]);
        // The clock of a filesystem can stand for a few milliseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(etc.join("content"), "changed").unwrap();
        fs::set_permissions(etc.join("mode"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(etc.join("gone")).unwrap();
        fs::write(etc.join("dir/new\nline"), "").unwrap();
        fs::write(etc.join("ld.so.cache"), "made again").unwrap();
        assert_eq!(
            edited(&before, &list()),
            [
                "/etc/content",
                "/etc/dir",
                "/etc/dir/new\\nline",
                "/etc/gone",
                "/etc/mode"
            ]
        );
    }

    #[test]
    fn a_damaged_list_is_no_list() {
        assert_eq!(edited("", "/etc/x\t1\n"), ["/etc/x"]);
        assert_eq!(edited("x", "x"), [""; 0]);
    }
}
