//! Which processes have files of a directory in hand, or work in it.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The processes that use something at or below `dir`, as `123 (name)`. This one does not count.
pub fn of(dir: &Path) -> Vec<String> {
    let this = std::process::id();
    let found = below(Path::new("/proc"), dir).into_iter();
    let others = found.filter(|(id, _)| *id != this);
    others.map(|(id, name)| format!("{id} ({name})")).collect()
}

fn below(proc: &Path, dir: &Path) -> Vec<(u32, String)> {
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let holder = |entry: fs::DirEntry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        let process = entry.path();
        if !holds(&process, dir) {
            return None;
        }
        let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some((id, name.trim_end().to_owned()))
    };
    entries.filter_map(holder).collect()
}

/// Whether a process has a file open, mapped or as its own, or a directory as its own (`proc(5)`).
fn holds(process: &Path, dir: &Path) -> bool {
    let leads_there = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with(dir));
    let own = ["cwd", "root", "exe"];
    if own.iter().any(|name| leads_there(&process.join(name))) {
        return true;
    }
    let open = fs::read_dir(process.join("fd")).into_iter().flatten();
    if open.flatten().any(|entry| leads_there(&entry.path())) {
        return true;
    }
    let maps = fs::read(process.join("maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n').any(|line| {
        // The path is the last field, and the only one with a slash.
        let path = line.iter().position(|byte| *byte == b'/');
        path.is_some_and(|at| Path::new(OsStr::from_bytes(&line[at..])).starts_with(dir))
    })
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
        let mut found = below(proc.path(), Path::new("/home"));
        found.sort();
        let ids: Vec<u32> = found.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, [2, 3, 5, 6]);
        assert_eq!(found[0].1, "name2");
        assert_eq!(of(Path::new("/nonexistent")), Vec::<String>::new());
    }
}
