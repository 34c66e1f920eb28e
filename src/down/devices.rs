//! Devices that are made of others: those of device-mapper, such as thin volumes, their pool and LUKS, RAID
//! arrays of md, and loop devices.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::stat::makedev;

use super::order::top_first;
use super::{Failure, Steps};
use crate::sys::mounts::unescape;
use crate::sys::syscalls;

const BLOCK: &str = "/sys/block";

/// How long an array whose metadata mdmon(8) writes has to become clean.
const CLEAN: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    /// With its number.
    Mapped(u64),
    Raid,
    Loop,
}

#[derive(Debug, PartialEq, Eq)]
struct Device {
    /// In sysfs.
    name: String,
    /// For people: the name that device-mapper has for it.
    title: String,
    kind: Kind,
    /// The names of the devices that it stands on, as far as they are disks and not parts of them.
    below: Vec<String>,
}

/// Removes what nobody holds, from the top down. What stands below a device that stays is not tried.
pub fn remove_all(steps: &Steps) -> Vec<Failure> {
    let devices = read(Path::new(BLOCK));
    let mut failures = Vec::new();
    let mut stays: Vec<&Device> = Vec::new();
    for device in order(&devices) {
        if stays.iter().any(|other| other.below.contains(&device.name)) {
            stays.push(device);
            continue;
        }
        steps.begin(format!("removing the device {}", device.title));
        match remove(device) {
            Ok(()) => log::info!("removed the device {}", device.title),
            Err(error) => {
                failures.push(Failure::new(
                    format!("cannot remove the device {}", device.title),
                    error,
                ));
                stays.push(device);
            }
        }
    }
    failures
}

fn order(devices: &[Device]) -> Vec<&Device> {
    let at = |name: &String| devices.iter().position(|device| device.name == *name);
    let below: Vec<Vec<usize>> = devices
        .iter()
        .map(|device| device.below.iter().filter_map(at).collect())
        .collect();
    let order = top_first(&below).into_iter();
    order.filter_map(|at| devices.get(at)).collect()
}

fn remove(device: &Device) -> io::Result<()> {
    match device.kind {
        Kind::Mapped(number) => syscalls::remove_mapped_device(number),
        Kind::Raid => stop(&Path::new(BLOCK).join(&device.name).join("md")),
        // sysfs writes a slash in a device's name as an exclamation mark.
        Kind::Loop => {
            syscalls::clear_loop_device(&Path::new("/dev").join(device.name.replace('!', "/")))
        }
    }
}

/// Stops an array; the kernel writes first that it is clean (Documentation/admin-guide/md.rst).
fn stop(md: &Path) -> io::Result<()> {
    let state = md.join("array_state");
    let is_external = text(&md.join("metadata_version")).starts_with("external:");
    let deadline = Instant::now() + CLEAN;
    // mdmon is not killed by systemd; the kernel has it say so.
    while is_external
        && matches!(&*text(&state), "active" | "active-idle" | "write-pending")
        && Instant::now() < deadline
    {
        sleep(PAUSE);
    }
    fs::write(state, "clear")
}

/// The devices of `block`, which is `/sys/block`. What cannot be read is not there any more.
fn read(block: &Path) -> Vec<Device> {
    let names = names_in(block);
    let disk_of: BTreeMap<String, &String> = names
        .iter()
        .flat_map(|disk| {
            let parts = names_in(&block.join(disk)).into_iter();
            parts.map(move |part| (part, disk))
        })
        .filter(|(part, disk)| block.join(disk).join(part).join("partition").exists())
        .collect();
    let device = |name: &String| {
        let directory = block.join(name);
        let mut below: Vec<String> = names_in(&directory.join("slaves"))
            .into_iter()
            .map(|slave| disk_of.get(&slave).map_or(slave, |disk| (*disk).clone()))
            .collect();
        let (kind, title) = if directory.join("dm").is_dir() {
            let number = number(&text(&directory.join("dev")))?;
            (Kind::Mapped(number), text(&directory.join("dm/name")))
        } else if directory.join("loop/backing_file").exists() {
            (Kind::Loop, name.clone())
        } else if !matches!(&*text(&directory.join("md/array_state")), "" | "clear") {
            // An array in a container: `external:/md127/0`.
            let metadata = text(&directory.join("md/metadata_version"));
            let container = metadata.strip_prefix("external:/");
            let container = container.and_then(|path| path.split('/').next());
            below.extend(container.map(str::to_owned));
            (Kind::Raid, name.clone())
        } else {
            return None;
        };
        Some(Device {
            name: name.clone(),
            title,
            kind,
            below,
        })
    };
    names.iter().filter_map(device).collect()
}

/// The names in a directory of sysfs, sorted.
fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().into_string());
    let mut names: Vec<String> = names.filter_map(Result::ok).collect();
    names.sort_unstable();
    names
}

/// The number in a file `dev`, such as `253:0`.
fn number(text: &str) -> Option<u64> {
    let (major, minor) = text.split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The one line of a file of sysfs; empty where there is none.
fn text(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.trim_end().to_owned()
}

/// Turns the swap off that is still on.
pub fn disable_swap(steps: &Steps) -> Vec<Failure> {
    let list = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut failures = Vec::new();
    for path in swaps(&list) {
        let name = path.display();
        steps.begin(format!("turning the swap {name} off"));
        if let Err(error) = syscalls::disable_swap(&path) {
            failures.push(Failure::new(
                format!("cannot turn the swap {name} off"),
                error,
            ));
        }
    }
    failures
}

/// The paths in /proc/swaps, which has a line of heads (`proc(5)`).
fn swaps(list: &str) -> Vec<PathBuf> {
    let lines = list.lines().skip(1);
    let paths = lines.filter_map(|line| line.split_ascii_whitespace().next());
    let path = |field: &str| OsString::from_vec(unescape(field.as_bytes())).into();
    paths.map(path).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes files and directories, which end in a slash, as sysfs has them.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if path.to_str().unwrap().ends_with('/') {
                fs::create_dir_all(path).unwrap();
            } else {
                fs::write(path, text).unwrap();
            }
        }
        dir
    }

    fn names<'a>(devices: impl IntoIterator<Item = &'a Device>) -> Vec<&'a str> {
        devices.into_iter().map(|d| d.title.as_str()).collect()
    }

    #[test]
    fn a_stack_is_removed_from_the_thin_volume_to_the_disk() {
        let sys = tree(&[
            ("vda/dev", "254:0\n"),
            ("vda/vda1/partition", "1\n"),
            ("md127/dev", "9:127\n"),
            ("md127/md/array_state", "clean\n"),
            ("md127/md/metadata_version", "1.2\n"),
            ("md127/slaves/vda1/", ""),
            ("md127/md127p1/partition", "1\n"),
            ("dm-0/dev", "253:0\n"),
            ("dm-0/dm/name", "opened\n"),
            ("dm-0/slaves/md127p1/", ""),
            ("dm-1/dev", "253:1\n"),
            ("dm-1/dm/name", "vg-pool_tmeta\n"),
            ("dm-1/slaves/dm-0/", ""),
            ("dm-10/dev", "253:10\n"),
            ("dm-10/dm/name", "vg-layer\n"),
            ("dm-10/slaves/dm-3/", ""),
            ("dm-2/dev", "253:2\n"),
            ("dm-2/dm/name", "vg-pool_tdata\n"),
            ("dm-2/slaves/dm-0/", ""),
            ("dm-3/dev", "253:3\n"),
            ("dm-3/dm/name", "vg-pool-tpool\n"),
            ("dm-3/slaves/dm-1/", ""),
            ("dm-3/slaves/dm-2/", ""),
            ("loop0/loop/backing_file", "/image\n"),
            ("loop1/dev", "7:1\n"),
        ]);
        let devices = read(sys.path());
        assert_eq!(
            names(order(&devices)),
            [
                "vg-layer",
                "vg-pool-tpool",
                "vg-pool_tdata",
                "vg-pool_tmeta",
                "opened",
                "md127",
                "loop0"
            ]
        );
        let layer = devices.iter().find(|device| device.title == "vg-layer");
        assert_eq!(layer.unwrap().kind, Kind::Mapped(makedev(253, 10)));
    }

    #[test]
    fn an_array_is_stopped_before_its_container_and_a_stopped_one_is_none() {
        let sys = tree(&[
            ("md126/md/array_state", "active\n"),
            ("md126/md/metadata_version", "external:/md127/0\n"),
            ("md127/md/array_state", "inactive\n"),
            ("md127/md/metadata_version", "external:imsm\n"),
            ("md5/md/array_state", "clear\n"),
        ]);
        assert_eq!(names(order(&read(sys.path()))), ["md126", "md127"]);
    }

    #[test]
    fn an_array_is_stopped_as_the_kernel_wants_it() {
        let sys = tree(&[("array_state", "clean\n"), ("metadata_version", "1.2\n")]);
        stop(sys.path()).unwrap();
        assert_eq!(text(&sys.path().join("array_state")), "clear");
    }

    #[test]
    fn swaps_are_the_paths_below_the_heads() {
        let list = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n\
                    /dev/dm-3                               partition\t1\t0\t-2\n\
                    /old\\040root/swap\tfile\t1\t0\t-3\n";
        assert_eq!(
            swaps(list),
            ["/dev/dm-3", "/old root/swap"].map(PathBuf::from)
        );
        assert!(swaps("").is_empty());
    }
}
