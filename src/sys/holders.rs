//! Which processes have files of a directory in hand, or work in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The processes that use something at or below `dir`, as `123 (name)`. This one does not count.
pub fn of(dir: &Path) -> Vec<String> {
    below(Path::new("/proc"), std::process::id(), dir)
}

fn below(proc: &Path, this: u32, dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for process in entries(proc) {
        let name = process.file_name().unwrap_or_default().to_string_lossy();
        let Ok(id) = name.parse::<u32>() else {
            continue;
        };
        if id != this && holds(&process, dir) {
            let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
            found.push(format!("{id} ({})", name.trim_end()));
        }
    }
    found
}

/// Whether a process has a file open, mapped or as its own, or a directory as its own (`proc(5)`).
fn holds(process: &Path, dir: &Path) -> bool {
    let own = ["cwd", "root", "exe"].map(|name| process.join(name));
    for link in own.into_iter().chain(entries(&process.join("fd"))) {
        if fs::read_link(link).is_ok_and(|to| to.starts_with(dir)) {
            return true;
        }
    }
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| {
        // The path is the last field, and the only one with a slash.
        let path = line.iter().position(|byte| *byte == b'/');
        path.is_some_and(|at| Path::new(OsStr::from_bytes(&line[at..])).starts_with(dir))
    })
}

/// What is in a directory. A process can end meanwhile.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(entries) = fs::read_dir(dir) {
        for entry in entries.flatten() {
            found.push(entry.path());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_open_mapped_or_worked_in_is_held() {
        let proc = tempfile::tempdir().unwrap();
        for (id, link, target) in [
            ("1", "exe", "/usr/lib/systemd/systemd"),
            ("2", "cwd", "/home/anna"),
            ("3", "fd/4", "/home/anna/file"),
            ("4", "fd/4", "/homes/file"),
            ("5", "root", "/home"),
            ("6", "exe", "/usr/bin/x"),
        ] {
            let dir = proc.path().join(id);
            fs::create_dir_all(dir.join("fd")).unwrap();
            symlink(target, dir.join(link)).unwrap();
            fs::write(dir.join("comm"), format!("name{id}\n")).unwrap();
        }
        fs::write(
            proc.path().join("6/maps"),
            "7f00-7f01 r--p 00000000 fd:01 12   [heap]\n7f02-7f03 r-xp 00000000 fd:01 13   /home/b/a lib.so\n",
        )
        .unwrap();
        fs::create_dir(proc.path().join("self")).unwrap();
        let mut found = below(proc.path(), 3, Path::new("/home"));
        found.sort();
        assert_eq!(found, ["2 (name2)", "5 (name5)", "6 (name6)"]);
        assert_eq!(of(Path::new("/nonexistent")), Vec::<String>::new());
    }
}
