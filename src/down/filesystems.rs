//! The filesystems of the system that has ended.

use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::order::top_first;
use super::{Failure, OLD_ROOT, Steps};
use crate::sys::mounts::{self, Mount};

/// What the kernel shows of itself. The devices and the log are needed to the end, and nothing below holds
/// a disk.
const VIRTUAL: [&str; 3] = ["/dev", "/proc", "/sys"];
/// Where the rest of /run is, such as what a restart is told. Systems mount disks below it.
const RUN: &str = "/run";

/// Unmounts what is not needed to the end, each before that on which it is mounted.
pub fn unmount_all(steps: &Steps) -> Vec<Failure> {
    let mounts = match mounts::all() {
        Ok(mounts) => mounts,
        Err(error) => return vec![Failure::new("nothing is unmounted".to_owned(), error)],
    };
    let mut failures = Vec::new();
    for mount in order(&mounts) {
        let point = mount.point.display();
        steps.begin(format!("unmounting {point}"));
        // Has filesystems of a network or of a process not wait for that one; of others it changes nothing.
        let flags = MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW;
        match umount2(&mount.point, flags) {
            Ok(()) => log::debug!("unmounted {point}"),
            Err(error) => failures.push(Failure {
                point: has_data(&mount.point).then(|| mount.point.clone()),
                ..Failure::new(format!("cannot unmount {point}"), error)
            }),
        }
    }
    failures
}

/// Has the filesystem write all that it holds, so that its journal is empty, though it stays mounted.
pub fn make_read_only(point: &Path) -> nix::Result<()> {
    let nothing: Option<&str> = None;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    mount(nothing, point, nothing, flags, nothing)
}

fn order(mounts: &[Mount]) -> Vec<&Mount> {
    let at = |id: u32| mounts.iter().position(|mount| mount.id == id);
    let below: Vec<Vec<usize>> = mounts
        .iter()
        .map(|mount| at(mount.parent).into_iter().collect())
        .collect();
    let order = top_first(&below).into_iter();
    let order = order.filter_map(|at| mounts.get(at));
    order.filter(|mount| !is_needed(&mount.point)).collect()
}

fn is_needed(point: &Path) -> bool {
    point == Path::new("/") || point == Path::new(RUN) || is_virtual(point)
}

fn is_virtual(point: &Path) -> bool {
    VIRTUAL.iter().any(|path| point.starts_with(path))
}

/// Whether it is neither virtual nor the same filesystem at its place below the old root.
fn has_data(point: &Path) -> bool {
    let before = point.strip_prefix(OLD_ROOT).ok();
    !is_virtual(point) && !before.is_some_and(|path| is_virtual(&Path::new("/").join(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_on_another_is_unmounted_before_it() {
        // As after the change of roots: the new one was mounted in the old one's /run.
        let mounts = mounts::parse(
            b"30 1 0:30 / / rw - tmpfs imgbased rw\n\
              21 30 253:4 / /oldroot ro - ext4 /dev/mapper/a rw\n\
              22 21 0:22 / /oldroot/run rw - tmpfs tmpfs rw\n\
              23 22 253:5 / /oldroot/run/imgbased/base ro - ext4 /dev/mapper/b ro\n\
              24 21 254:1 / /oldroot/boot rw - ext4 /dev/vda1 rw\n\
              25 24 254:2 / /oldroot/boot rw - vfat /dev/vda2 rw\n\
              31 30 0:6 / /dev rw - devtmpfs devtmpfs rw\n\
              32 31 0:7 / /dev/pts rw - devpts devpts rw\n\
              33 30 0:4 / /proc rw - proc proc rw\n\
              34 30 0:5 / /sys rw - sysfs sysfs rw\n\
              35 30 0:22 / /run rw - tmpfs tmpfs rw\n\
              36 35 253:6 / /run/media/disk rw - ext4 /dev/mapper/c rw\n\
              37 30 0:8 / /devices rw - tmpfs tmpfs rw\n",
        );
        let order: Vec<u32> = order(&mounts).iter().map(|mount| mount.id).collect();
        assert_eq!(order, [25, 23, 36, 24, 22, 37, 21]);
    }

    #[test]
    fn what_the_kernel_shows_of_itself_is_not_made_read_only() {
        for (point, expected) in [
            ("/oldroot", true),
            ("/oldroot/boot", true),
            ("/oldroot/devices", true),
            ("/oldroot/dev", false),
            ("/oldroot/sys/fs/cgroup", false),
            ("/run/media/disk", true),
            ("/proc", false),
        ] {
            assert_eq!(has_data(Path::new(point)), expected, "{point}");
        }
    }
}
