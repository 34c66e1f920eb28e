//! Who else has a source in hand, and may write to it while it is copied.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sys::stat::{major, minor};

use super::judge::Holder;
use crate::sys::cmd::Cmd;
use crate::sys::mounts::unescape;

/// Devices that nobody else can mount, or make a part of another one, as long as they are open here.
#[derive(Debug, Default)]
pub struct Claim {
    devices: Vec<File>,
}

/// Claims a file or block device, so that it stays what it is. Returns who else has it and can write to it.
pub fn claim(path: &Path, metadata: &Metadata) -> Result<(Claim, Option<Holder>)> {
    let mut claim = Claim::default();
    if is_of_machine(metadata) {
        return Ok((claim, Some(Holder::Machine)));
    }
    if metadata.file_type().is_block_device() {
        let holder = claim_device(path, metadata.rdev(), &mut claim)
            .with_context(|| format!("cannot read {}", path.display()))?;
        return Ok((claim, holder));
    }
    for (device, number) in writable_loops_of(metadata) {
        let found = claim_device(&device, number, &mut claim);
        // A loop device may be gone again.
        if let Ok(Some(holder)) = found {
            return Ok((claim, Some(holder)));
        }
    }
    Ok((claim, None))
}

/// Who has a disk in hand although the kernel gives exclusive access to it; for people.
pub fn user_of_disk(device: &Path) -> io::Result<Option<String>> {
    let metadata = fs::metadata(device)?;
    if is_of_machine(&metadata) {
        return Ok(Some("a virtual machine that runs".to_owned()));
    }
    let found = loop_on(Path::new("/sys/block"), metadata.rdev());
    Ok(found.map(|name| format!("the loop device {name}")))
}

/// The loop device that has the block device with this number, of those in this directory of sysfs.
fn loop_on(blocks: &Path, number: u64) -> Option<String> {
    let is_on = |name: &String| {
        let file = fs::read(blocks.join(name).join("loop/backing_file")).unwrap_or_default();
        let path = Path::new(OsStr::from_bytes(file.trim_ascii_end()));
        fs::metadata(path).is_ok_and(|metadata| metadata.rdev() == number)
    };
    names_in(&blocks.to_string_lossy()).into_iter().find(is_on)
}

fn claim_device(path: &Path, number: u64, claim: &mut Claim) -> io::Result<Option<Holder>> {
    // The kernel refuses exclusive access to what is mounted or part of something else.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(path);
    match opened {
        Ok(device) => {
            claim.devices.push(device);
            Ok(None)
        }
        Err(error) if error.kind() == ErrorKind::ResourceBusy => Ok(holder_of(number)),
        Err(error) => Err(error),
    }
}

/// Who has a device that is in use; nobody if it is mounted read-only.
fn holder_of(number: u64) -> Option<Holder> {
    let id = (major(number), minor(number));
    let own = fs::read("/proc/self/mountinfo").unwrap_or_default();
    let own = mounts_of(&own, id);
    if !own.is_empty() {
        return writer_of(own);
    }
    if is_swap(number) {
        return Some(Holder::Swap);
    }
    let directory = format!("/sys/dev/block/{}:{}/holders", id.0, id.1);
    if let Some(name) = names_in(&directory).into_iter().next() {
        return Some(Holder::Device(device_name(&name)));
    }
    // In another mount namespace.
    let mut lists = names_in("/proc")
        .into_iter()
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .filter_map(|process| fs::read(format!("/proc/{process}/mountinfo")).ok());
    let found = lists.find_map(|list| {
        let mounts = mounts_of(&list, id);
        (!mounts.is_empty()).then_some(mounts)
    });
    found.map_or(Some(Holder::Program), writer_of)
}

/// Where a device is mounted, in a list of mounts.
fn mounts_of(list: &[u8], id: (u64, u64)) -> Vec<Mount> {
    mounts(list).filter(|mount| mount.device == id).collect()
}

/// Nobody if each of these is read-only.
fn writer_of(mounts: Vec<Mount>) -> Option<Holder> {
    let mut mounts = mounts.into_iter();
    let writable = mounts.find(|mount| mount.is_writable)?;
    Some(Holder::Mount(writable.point))
}

#[derive(Debug, PartialEq, Eq)]
struct Mount {
    device: (u64, u64),
    point: PathBuf,
    /// Of the filesystem. A mount of it can be read-only all the same.
    is_writable: bool,
}

/// Reads `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`).
fn mounts(list: &[u8]) -> impl Iterator<Item = Mount> + '_ {
    let number = |text: &str| text.parse::<u64>().ok();
    let mount = move |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let device = std::str::from_utf8(fields.nth(2)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let point = unescape(fields.nth(1)?);
        // Type and source come after the hyphen, and then the options of the filesystem.
        let mut rest = fields.skip_while(|field| *field != b"-").skip(3);
        let mut options = rest.next()?.split(|byte| *byte == b',');
        Some(Mount {
            device: (number(major)?, number(minor)?),
            point: PathBuf::from(std::ffi::OsString::from_vec(point)),
            is_writable: !options.any(|option| option == b"ro"),
        })
    };
    list.split(|byte| *byte == b'\n').filter_map(mount)
}

/// Whether this is a disk of a virtual machine that runs.
fn is_of_machine(metadata: &Metadata) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    let id = (major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    is_disk_of_machine(&locks, id)
}

/// Whether QEMU has a file, by its device and inode, and may write to it: then it has locked one byte for reading
/// (`RAW_LOCK_PERM_BASE` and `BLK_PERM_WRITE` in its block/file-posix.c), as `/proc/locks` tells.
fn is_disk_of_machine(locks: &str, id: (u64, u64, u64)) -> bool {
    const MAY_WRITE: u64 = 101;
    let (major, minor, inode) = id;
    let file = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [_, "OFDLCK", _, "READ", _, of, first, last] = fields[..] else {
            return false;
        };
        let number = |text: &str| text.parse::<u64>().ok();
        // "EOF" ends what has no end.
        of == file
            && number(first).is_some_and(|first| first <= MAY_WRITE)
            && number(last).is_none_or(|last| last >= MAY_WRITE)
    })
}

fn is_swap(number: u64) -> bool {
    let list = fs::read("/proc/swaps").unwrap_or_default();
    let paths = list.split(|byte| *byte == b'\n').skip(1);
    let mut paths = paths.filter_map(|line| line.split(u8::is_ascii_whitespace).next());
    paths.any(|path| {
        let path = unescape(path);
        let metadata = fs::metadata(Path::new(OsStr::from_bytes(&path)));
        metadata.is_ok_and(|metadata| metadata.rdev() == number)
    })
}

/// The path of a block device with this name in sysfs.
fn device_name(name: &str) -> String {
    match fs::read_to_string(format!("/sys/block/{name}/dm/name")) {
        Ok(dm_name) => format!("/dev/mapper/{}", dm_name.trim_end()),
        Err(_) => format!("/dev/{}", name.replace('!', "/")),
    }
}

/// The loop devices through which this file can be written to, and their numbers. losetup(8) asks the kernel for the
/// inode: the name of the file need not lead to it from here.
fn writable_loops_of(file: &Metadata) -> Vec<(PathBuf, u64)> {
    let list = Cmd::new("losetup")
        .args(["--list", "--raw", "--noheadings"])
        .args(["--output", "NAME,BACK-MAJ:MIN,BACK-INO,RO"])
        .run()
        .unwrap_or_else(|error| {
            log::debug!("loop devices are not known: {error:#}");
            String::new()
        });
    let id = (major(file.dev()), minor(file.dev()), file.ino());
    let paths = writable_loops(&list, id).into_iter();
    paths
        .filter_map(|path| {
            let number = fs::metadata(&path).ok()?.rdev();
            Some((path, number))
        })
        .collect()
}

/// Those of a list that have the file with this device and inode, and not read-only.
fn writable_loops(list: &str, id: (u64, u64, u64)) -> Vec<PathBuf> {
    let (major, minor, inode) = id;
    let file = [format!("{major}:{minor}"), inode.to_string()];
    let path = |line: &str| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let [path, device, inode, "0"] = fields[..] else {
            return None;
        };
        ([device, inode] == file).then(|| path.into())
    };
    list.lines().filter_map(path).collect()
}

fn names_in(directory: &str) -> Vec<String> {
    let files = fs::read_dir(directory).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[u8] =
        b"28 1 253:1 / / rw,relatime shared:1 - ext4 /dev/mapper/a rw,errors=remount-ro\n\
        40 28 253:2 / /mnt/with\\040space ro,nosuid shared:2 master:1 - xfs /dev/b rw,attr2\n\
        41 28 253:2 / /also ro - xfs /dev/b rw,attr2\n\
        42 28 7:0 / /image ro,relatime - ext4 /dev/loop0 ro\n\
        43 28 7:1 / /one ro - ext4 /dev/loop1 ro\n\
        44 28 7:1 / /two rw - ext4 /dev/loop1 rw\n\
        not a mount\n\
        45 28 0:26 / /proc rw - proc proc rw\n";

    #[test]
    fn a_loop_device_has_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        for (name, file) in [
            ("loop0", "/dev/zero"),
            ("loop1", "/nonexistent"),
            ("vda", ""),
        ] {
            let dir = sys.path().join(name).join("loop");
            fs::create_dir_all(&dir).unwrap();
            if !file.is_empty() {
                fs::write(dir.join("backing_file"), format!("{file}\n")).unwrap();
            }
        }
        let loop_of = |path: &str| loop_on(sys.path(), fs::metadata(path).unwrap().rdev());
        assert_eq!(loop_of("/dev/zero").as_deref(), Some("loop0"));
        assert_eq!(loop_of("/dev/null"), None);
    }

    #[test]
    fn what_counts_is_whether_the_filesystem_is_writable() {
        for (id, count, expected) in [
            ((253, 1), 1, Some("/")),
            // A mount that is read-only does not keep others from writing.
            ((253, 2), 2, Some("/mnt/with space")),
            ((7, 0), 1, None),
            ((7, 1), 2, Some("/two")),
            ((7, 2), 0, None),
        ] {
            let mounts = mounts_of(LIST, id);
            assert_eq!(mounts.len(), count, "{id:?}");
            let expected = expected.map(|point| Holder::Mount(point.into()));
            assert_eq!(writer_of(mounts), expected, "{id:?}");
        }
        assert_eq!(mounts(LIST).count(), 7);
    }

    #[test]
    fn the_disk_of_a_machine_is_known_by_its_locks() {
        let locks = "1: OFDLCK ADVISORY  READ  -1 fe:00:77 100 101\n\
            2: OFDLCK ADVISORY  READ  -1 fe:00:77 201 201\n\
            3: OFDLCK ADVISORY  READ  -1 fe:00:78 100 100\n\
            4: OFDLCK ADVISORY  READ  -1 08:10:79 103 103\n\
            5: OFDLCK ADVISORY  READ  -1 08:10:80 101 EOF\n\
            6: POSIX  ADVISORY  READ  812 08:10:81 100 103\n\
            7: OFDLCK ADVISORY  WRITE -1 08:10:82 101 101\n\
            7: -> OFDLCK ADVISORY  READ  -1 08:10:83 101 101\n";
        for (id, expected) in [
            ((0xfe, 0, 77), true),
            // Of one that only reads.
            ((0xfe, 0, 78), false),
            ((8, 16, 79), false),
            ((8, 16, 80), true),
            ((8, 16, 81), false),
            ((8, 16, 82), false),
            ((8, 16, 83), false),
            ((8, 17, 80), false),
            ((8, 16, 8), false),
        ] {
            assert_eq!(is_disk_of_machine(locks, id), expected, "{id:?}");
        }
    }

    #[test]
    fn a_file_that_nobody_has_is_nobodys() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let metadata = file.as_file().metadata().unwrap();
        let (claim, holder) = claim(file.path(), &metadata).unwrap();
        assert_eq!(holder, None);
        assert!(claim.devices.is_empty());
        assert!(writable_loops_of(&metadata).is_empty());
    }

    #[test]
    fn loop_devices_are_told_by_the_inode_of_their_file() {
        let list = "/dev/loop0 254:0 77 0\n/dev/loop1 254:0 77 1\n/dev/loop2 8:1 77 0\n/dev/loop7 254:0 77 0\n\
            /dev/loop8   \n";
        for (id, expected) in [
            ((254, 0, 77), &["/dev/loop0", "/dev/loop7"][..]),
            ((8, 1, 77), &["/dev/loop2"]),
            ((254, 0, 7), &[]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(writable_loops(list, id), expected, "{id:?}");
        }
    }

    #[test]
    fn devices_are_called_as_people_do() {
        assert_eq!(device_name("md127"), "/dev/md127");
        assert_eq!(device_name("cciss!c0d0"), "/dev/cciss/c0d0");
    }
}
