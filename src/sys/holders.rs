//! Who has files of a directory in hand: processes that use them or work in it, and the kernel, also for other hosts.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::mounts::unescape;

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

/// What the kernel uses at or below `dir`: files that are disks or swap, sockets that somebody listens at, and what it
/// serves to other hosts.
pub fn of_kernel(dir: &Path) -> Vec<String> {
    let mut found: Vec<String> = swap_files(dir)
        .iter()
        .map(|file| format!("the swap file {}", file.display()))
        .collect();
    for (device, file) in loops(Path::new("/sys/block")) {
        if file.starts_with(dir) {
            found.push(format!("the loop device {device} of {}", file.display()));
        }
    }
    // Of the namespace of the host.
    let list = fs::read("/proc/1/net/unix").unwrap_or_default();
    let here = sockets(&list)
        .into_iter()
        .filter(|socket| socket.starts_with(dir));
    found.extend(here.map(|socket| format!("the socket {}", socket.display())));
    for file in targets(Path::new("/sys/kernel/config/target/core")) {
        if file.starts_with(dir) {
            found.push(format!("the SCSI target of {}", file.display()));
        }
    }
    // It answers for a directory until its cache forgets that, whatever is mounted there.
    let list = fs::read("/proc/fs/nfsd/exports").unwrap_or_default();
    for export in exports(&list) {
        if export.starts_with(dir) || dir.starts_with(&export) {
            found.push(format!("the NFS export of {}", export.display()));
        }
    }
    found
}

/// The files at or below `dir` that are swap now.
pub fn swap_files(dir: &Path) -> Vec<PathBuf> {
    let list = fs::read("/proc/swaps").unwrap_or_default();
    let mut files = swaps(&list);
    files.retain(|file| file.starts_with(dir));
    files
}

/// The files and devices of `/proc/swaps`, whose first line is a heading (`proc_swaps(5)`).
fn swaps(list: &[u8]) -> Vec<PathBuf> {
    let lines = list.split(|byte| *byte == b'\n').skip(1);
    let names = lines.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    let names = names.filter(|name| !name.is_empty());
    names
        .map(|name| OsString::from_vec(unescape(name)).into())
        .collect()
}

/// The loop devices and their files (loop(4)).
fn loops(block: &Path) -> Vec<(String, PathBuf)> {
    let mut found = Vec::new();
    for device in entries(block) {
        let Ok(file) = fs::read(device.join("loop/backing_file")) else {
            continue;
        };
        let file = OsStr::from_bytes(file.strip_suffix(b"\n").unwrap_or(&file));
        let name = device.file_name().unwrap_or_default().to_string_lossy();
        found.push((name.into_owned(), file.into()));
    }
    found.sort();
    found
}

/// The sockets that have a path, each once. The path is the last of eight fields (unix(7)).
fn sockets(list: &[u8]) -> Vec<PathBuf> {
    let path = |line: &[u8]| {
        let at = line.windows(2).position(|bytes| bytes == b" /")?;
        Some(PathBuf::from(OsStr::from_bytes(&line[at + 1..])))
    };
    let lines = list.split(|byte| *byte == b'\n');
    let mut found: Vec<PathBuf> = lines.filter_map(path).collect();
    found.sort();
    found.dedup();
    found
}

/// The files that are disks of SCSI targets.
fn targets(core: &Path) -> Vec<PathBuf> {
    let kinds = entries(core).into_iter();
    let files = kinds.filter(|kind| {
        let name = kind.file_name().unwrap_or_default();
        name.as_bytes().starts_with(b"fileio_")
    });
    let files = files.flat_map(|kind| entries(&kind));
    let paths = files.filter_map(|file| fs::read(file.join("udev_path")).ok());
    let paths = paths.map(|path| PathBuf::from(OsStr::from_bytes(path.trim_ascii_end())));
    let mut found: Vec<PathBuf> = paths.collect();
    found.sort();
    found
}

/// The directories that the kernel serves by NFS now, each once: `PATH<tab>CLIENT(FLAGS)` in each line, after comments.
/// Those above them are only there to be passed.
fn exports(list: &[u8]) -> Vec<PathBuf> {
    let lines = list.split(|byte| *byte == b'\n');
    let lines = lines
        .filter(|line| line.starts_with(b"/") && !line.windows(6).any(|word| word == b"v4root"));
    let paths = lines.filter_map(|line| line.split(|byte| *byte == b'\t').next());
    let mut found: Vec<PathBuf> = paths
        .map(|path| OsString::from_vec(unescape(path)).into())
        .collect();
    found.sort();
    found.dedup();
    found
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

    #[test]
    fn what_the_kernel_uses_is_told_by_its_lists() {
        let swaps_list = b"Filename\t\t\t\tType\t\tSize\tUsed\tPriority\n\
            /dev/dm-1                               partition\t8\t0\t-2\n\
            /srv/a\\040b/swap                         file\t8\t0\t-3\n";
        assert_eq!(
            swaps(swaps_list),
            ["/dev/dm-1", "/srv/a b/swap"].map(PathBuf::from)
        );
        assert!(swaps(b"").is_empty());
        let unix = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            00000000: 00000002 00000000 00010000 0001 01 18331 /srv/a b.sock\n\
            00000000: 00000003 00000000 00000000 0001 03 18332 /srv/a b.sock\n\
            00000000: 00000002 00000000 00010000 0001 01 18333 @/srv/x\n\
            00000000: 00000003 00000000 00000000 0001 03 18334\n";
        assert_eq!(sockets(unix), [PathBuf::from("/srv/a b.sock")]);
        let block = tempfile::tempdir().unwrap();
        for (name, file) in [
            ("loop1", Some("/srv/disk\n")),
            ("loop0", None),
            ("sda", None),
        ] {
            let dir = block.path().join(name).join("loop");
            fs::create_dir_all(&dir).unwrap();
            if let Some(file) = file {
                fs::write(dir.join("backing_file"), file).unwrap();
            }
        }
        assert_eq!(
            loops(block.path()),
            [("loop1".to_owned(), PathBuf::from("/srv/disk"))]
        );
        let core = tempfile::tempdir().unwrap();
        for (name, path) in [("fileio_0/disk", "/srv/a\n"), ("iblock_0/b", "/srv/b\n")] {
            let dir = core.path().join(name);
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("udev_path"), path).unwrap();
        }
        fs::create_dir(core.path().join("alua")).unwrap();
        assert_eq!(targets(core.path()), [PathBuf::from("/srv/a")]);
        let exported = b"# Version 1.1\n# Path Client(Flags) # IPs\n\
            /srv/a\\040b\t*(rw,sync)\n/srv/a\\040b\t10.0.0.0/8(ro)\n/\t*(ro,v4root,fsid=0)\n";
        assert_eq!(exports(exported), [PathBuf::from("/srv/a b")]);
    }
}
