//! Waits until udev has seen the disks of the volume group.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use crate::lvm::Lvm;
use crate::model::layout::Group;
use crate::model::name::VgName;

/// udevd's own multicast group: its events come after its rules have run and its database is
/// written (`UDEV_MONITOR_UDEV` in systemd's sd-device monitor). Group 1 is the kernel's.
const UDEV_EVENTS: u32 = 2;
const UDEV_DATABASE: &str = "/run/udev/data";

/// Waits up to `timeout` until all physical volumes of the group are there, and returns the group
/// and how to call lvm2 for it.
///
/// A group that is still incomplete then is returned as well, since the layer may be whole.
/// Refuses when there is no such group.
pub fn for_group(vg: &VgName, timeout: Duration) -> Result<(Lvm, Group)> {
    let deadline = Instant::now() + timeout;
    let events = UdevEvents::listen().context("cannot listen to udev")?;
    let mut seen = Vec::new();
    let mut incomplete = None;
    let mut failure = None;
    loop {
        let devices = physical_volumes(Path::new(UDEV_DATABASE));
        if devices != seen {
            log::debug!("physical volumes: {devices:?}");
            let lvm = Lvm::on_devices(vg.clone(), devices.clone());
            match lvm.load() {
                Ok(Some(group)) if group.missing_pvs == 0 => return Ok((lvm, group)),
                Ok(Some(group)) => incomplete = Some((lvm, group)),
                Ok(None) => failure = None,
                Err(error) => failure = Some(error),
            }
            seen = devices;
        }
        if !events.wait_until(deadline)? {
            break;
        }
    }
    let waited = timeout.as_secs();
    let Some((lvm, group)) = incomplete else {
        let reason = failure.map_or_else(|| describe(&seen), |error| format!("{error:#}"));
        bail!("volume group {vg} not found within {waited} s; {reason}");
    };
    log::warn!(
        "{} physical volumes of {vg} are missing after {waited} s, trying without",
        group.missing_pvs
    );
    Ok((lvm, group))
}

fn describe(devices: &[PathBuf]) -> String {
    if devices.is_empty() {
        return "no disk with an LVM physical volume was seen".to_owned();
    }
    let names: Vec<String> = devices.iter().map(|d| d.display().to_string()).collect();
    format!("physical volumes were seen on {}", names.join(" "))
}

/// The block devices that udev found to be LVM physical volumes, in order.
fn physical_volumes(database: &Path) -> Vec<PathBuf> {
    let Ok(records) = fs::read_dir(database) else {
        return Vec::new();
    };
    let mut devices: Vec<PathBuf> = records
        .flatten()
        .filter_map(|record| {
            let number = record.file_name().to_str()?.strip_prefix('b')?.to_owned();
            let text = fs::read_to_string(record.path()).ok()?;
            if !text.lines().any(|line| line == "E:ID_FS_TYPE=LVM2_member") {
                return None;
            }
            let device = fs::read_link(Path::new("/sys/dev/block").join(number)).ok()?;
            // sysfs writes a slash in a device's name as an exclamation mark.
            let name = device.file_name()?.to_str()?.replace('!', "/");
            Some(Path::new("/dev").join(name))
        })
        .collect();
    devices.sort();
    devices
}

/// The stream of udev's events, used as a signal that its database has changed.
struct UdevEvents(OwnedFd);

impl UdevEvents {
    fn listen() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, UDEV_EVENTS))?;
        Ok(Self(socket))
    }

    /// Waits for one or more events; false when the deadline comes first.
    fn wait_until(&self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(errno).context("cannot wait for udev"),
        }
        let mut event = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut event, MsgFlags::empty()) {
                // Events that were lost (ENOBUFS) are as good as events: the database is read anew.
                Ok(_) | Err(Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => return Ok(true),
                Err(errno) => return Err(errno).context("cannot read udev's events"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_physical_volumes_are_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let block: Vec<String> = fs::read_dir("/sys/dev/block")
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .take(2)
            .collect();
        let record = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        assert!(physical_volumes(&dir.path().join("missing")).is_empty());
        if let [first, second] = &block[..] {
            record(
                &format!("b{first}"),
                "S:x\nE:ID_FS_TYPE=LVM2_member\nE:Y=z\n",
            );
            record(
                &format!("b{second}"),
                "E:ID_FS_TYPE=ext4\nE:NOT_ID_FS_TYPE=LVM2_member\n",
            );
        }
        record("b999999:9", "E:ID_FS_TYPE=LVM2_member\n");
        record("n1", "E:ID_FS_TYPE=LVM2_member\n");
        assert_eq!(physical_volumes(dir.path()).len(), block.len() / 2);
    }
}
