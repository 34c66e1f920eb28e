//! What udev knows of block devices: its database, and its events, which tell what has changed in it.

use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use socket2::{SockFilter, SockRef};

/// udevd's own multicast group: its events come after its rules have run and its database is
/// written (`UDEV_MONITOR_UDEV` in systemd's sd-device monitor). Group 1 is the kernel's.
const UDEV_EVENTS: u32 = 2;
pub const DATABASE: &str = "/run/udev/data";

/// The numbers of the block devices that udev's database knows, as `8:0`.
pub fn block_devices(database: &Path) -> BTreeSet<String> {
    let records = fs::read_dir(database).into_iter().flatten().flatten();
    let number =
        |record: fs::DirEntry| Some(record.file_name().to_str()?.strip_prefix('b')?.to_owned());
    records.filter_map(number).collect()
}

/// The device with that number, if udev found it to be an LVM physical volume. One that may be part of an array counts
/// only with `of_arrays`.
pub fn physical_volume(database: &Path, number: &str, of_arrays: bool) -> Option<PathBuf> {
    let text = fs::read_to_string(database.join(format!("b{number}"))).ok()?;
    let has = |property: &str| text.lines().any(|line| line == property);
    // A path of a multipath device looks like the device itself.
    let is_part = has("E:DM_MULTIPATH_DEVICE_PATH=1") || has("E:SYSTEMD_READY=0");
    if !has("E:ID_FS_TYPE=LVM2_member") || is_part {
        return None;
    }
    if !of_arrays && is_in_array(database, number) {
        return None;
    }
    let device = fs::read_link(Path::new("/sys/dev/block").join(number)).ok()?;
    // sysfs writes a slash in a device's name as an exclamation mark.
    let name = device.file_name()?.to_str()?.replace('!', "/");
    Some(Path::new("/dev").join(name))
}

/// Whether a device is a partition of a disk that a software RAID is made of, such as one of the firmware. What it holds
/// is that of the array, and to write to one disk alone would make the array's disks differ.
fn is_in_array(database: &Path, number: &str) -> bool {
    let device = Path::new("/sys/dev/block").join(number);
    if !device.join("partition").exists() {
        return false;
    }
    let disk = fs::read_to_string(device.join("../dev")).unwrap_or_default();
    is_array_member(database, disk.trim())
}

fn is_array_member(database: &Path, number: &str) -> bool {
    let text = fs::read_to_string(database.join(format!("b{number}"))).unwrap_or_default();
    let mut kinds = text
        .lines()
        .filter_map(|line| line.strip_prefix("E:ID_FS_TYPE="));
    kinds.any(|kind| kind.ends_with("_raid_member"))
}

/// The stream of udev's events, which tell what has changed in its database.
pub struct UdevEvents(OwnedFd);

impl UdevEvents {
    pub fn listen() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        Self::leave_out_others(&socket)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, UDEV_EVENTS))?;
        Ok(Self(socket))
    }

    /// Has the kernel drop the events of other devices than disks. There are hundreds while a machine
    /// starts, and to be woken for each costs more than all the rest that this process does.
    fn leave_out_others(socket: &OwnedFd) -> Result<()> {
        const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        const COMPARE: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
        #[allow(clippy::cast_possible_truncation, reason = "these codes have 16 bits")]
        let step =
            |code: u32, k, if_equal, if_not| SockFilter::new(code as u16, if_equal, if_not, k);
        let program = [
            step(LOAD, header::MAGIC_AT, 0, 0),
            step(COMPARE, header::MAGIC, 0, 2),
            step(LOAD, header::SUBSYSTEM_AT, 0, 0),
            step(COMPARE, header::BLOCK, 0, 1),
            step(RETURN, u32::MAX, 0, 0),
            step(RETURN, 0, 0, 0),
        ];
        let socket = SockRef::from(socket);
        socket
            .attach_filter(&program)
            .context("cannot filter udev's events")
    }

    /// Waits for events of block devices, until the deadline at most. Returns the numbers of the
    /// devices; nothing if events were lost or none came.
    pub fn wait_until(&self, deadline: Instant) -> Result<Option<BTreeSet<String>>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            // Rounded up, or the last millisecond would be waited for many times.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno).context("cannot wait for udev"),
            }
            let numbers = self.drain()?;
            if numbers.as_ref().is_none_or(|numbers| !numbers.is_empty()) {
                return Ok(numbers);
            }
        }
    }

    /// Reads all events that have come; returns what [`Self::wait_until`] does.
    fn drain(&self) -> Result<Option<BTreeSet<String>>> {
        let mut numbers = BTreeSet::new();
        let mut is_lost = false;
        let mut event = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut event, MsgFlags::empty()) {
                Ok(length) => numbers.extend(block_device(&event[..length])),
                Err(Errno::ENOBUFS) => is_lost = true,
                Err(Errno::EAGAIN) if is_lost => return Ok(None),
                Err(Errno::EAGAIN) => return Ok(Some(numbers)),
                Err(errno) => return Err(errno).context("cannot read udev's events"),
            }
        }
    }
}

/// What is in front of the properties in an event of udev (`monitor_netlink_header` in systemd's
/// sd-device). These numbers are big-endian, but for the last.
mod header {
    pub const MAGIC_AT: u32 = 8;
    pub const MAGIC: u32 = 0xfeed_cafe;
    pub const SUBSYSTEM_AT: u32 = 24;
    /// The `MurmurHash2` of "block".
    pub const BLOCK: u32 = 0xf003_1db7;
    /// Where the properties begin.
    pub const OFFSET: std::ops::Range<usize> = 16..20;
}

/// The number of the block device that an event of udev is about, if it is about one. Each property has
/// a zero byte at its end.
fn block_device(event: &[u8]) -> Option<String> {
    let offset = event.get(header::OFFSET)?.try_into().ok()?;
    let properties = event.get(usize::try_from(u32::from_ne_bytes(offset)).ok()?..)?;
    let value = |key: &[u8]| {
        let mut properties = properties.split(|&byte| byte == 0);
        properties.find_map(|property| property.strip_prefix(key))
    };
    if value(b"SUBSYSTEM=")? != b"block" {
        return None;
    }
    let number = |key| std::str::from_utf8(value(key)?).ok()?.parse::<u32>().ok();
    Some(format!("{}:{}", number(b"MAJOR=")?, number(b"MINOR=")?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn only_physical_volumes_are_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let device = fs::read_dir("/sys/dev/block").unwrap().next();
        let number = device.unwrap().unwrap().file_name().into_string().unwrap();
        let found = |text: &str| {
            fs::write(dir.path().join(format!("b{number}")), text).unwrap();
            physical_volume(dir.path(), &number, false)
        };
        let device = found("S:x\nE:ID_FS_TYPE=LVM2_member\nE:Y=z\n").unwrap();
        assert_eq!(device.parent(), Some(Path::new("/dev")));
        for other in [
            "",
            "E:ID_FS_TYPE=ext4\nE:NOT_ID_FS_TYPE=LVM2_member\n",
            "E:ID_FS_TYPE=LVM2_member\nE:DM_MULTIPATH_DEVICE_PATH=1\n",
            "E:ID_FS_TYPE=LVM2_member\nE:SYSTEMD_READY=0\n",
        ] {
            assert_eq!(found(other), None, "{other}");
        }
        for gone in ["b999999:9", "n1"] {
            fs::write(dir.path().join(gone), "E:ID_FS_TYPE=LVM2_member\n").unwrap();
        }
        assert_eq!(physical_volume(dir.path(), "999999:9", false), None);
        assert_eq!(physical_volume(dir.path(), "999999:8", true), None);
        let known = BTreeSet::from([number, "999999:9".to_owned()]);
        assert_eq!(block_devices(dir.path()), known);
        assert!(block_devices(&dir.path().join("missing")).is_empty());
    }

    #[test]
    fn disks_of_an_array_are_told_from_others() {
        let dir = tempfile::tempdir().unwrap();
        for (kind, is_member) in [
            ("isw_raid_member", true),
            ("linux_raid_member", true),
            ("LVM2_member", false),
        ] {
            let record = format!("S:x\nE:ID_FS_TYPE={kind}\n");
            fs::write(dir.path().join("b8:0"), record).unwrap();
            assert_eq!(is_array_member(dir.path(), "8:0"), is_member, "{kind}");
        }
        assert!(!is_array_member(dir.path(), "8:16"));
        assert!(!is_in_array(dir.path(), "999999:8"));
    }

    /// An event as udevd sends it.
    fn event(subsystem: u32, properties: &[u8]) -> Vec<u8> {
        let mut event = b"libudev\0".to_vec();
        event.extend(header::MAGIC.to_be_bytes());
        for number in [40, 40, u32::try_from(properties.len()).unwrap()] {
            event.extend(number.to_ne_bytes());
        }
        event.extend(subsystem.to_be_bytes());
        event.extend([1; 12]);
        [&event, properties].concat()
    }

    #[test]
    fn an_event_names_its_block_device() {
        let of = |properties: &[u8]| block_device(&event(header::BLOCK, properties));
        let device = of(b"ACTION=add\0SUBSYSTEM=block\0MAJOR=8\0MINOR=16\0ID_FS_TYPE=ext4\0");
        assert_eq!(device.as_deref(), Some("8:16"));
        for other in [
            &b"SUBSYSTEM=tty\0MAJOR=8\0MINOR=16\0"[..],
            b"SUBSYSTEM=block\0MAJOR=8\0",
            b"SUBSYSTEM=block\0MAJOR=../x\0MINOR=1\0",
            b"",
        ] {
            assert_eq!(of(other), None);
        }
        let whole = event(header::BLOCK, b"SUBSYSTEM=block\0MAJOR=8\0MINOR=16\0");
        for length in 0..whole.len() - 4 {
            assert_eq!(block_device(&whole[..length]), None);
        }
        let mut far = whole;
        far[header::OFFSET].fill(0xff);
        assert_eq!(block_device(&far), None);
    }

    #[test]
    fn the_kernel_drops_events_of_other_devices() {
        let (sender, receiver) = UnixDatagram::pair().unwrap();
        receiver.set_nonblocking(true).unwrap();
        let receiver = OwnedFd::from(receiver);
        UdevEvents::leave_out_others(&receiver).unwrap();
        let events = UdevEvents(receiver);
        let disk = |minor| format!("SUBSYSTEM=block\0MAJOR=8\0MINOR={minor}\0");
        sender
            .send(&event(0x1234_5678, disk(1).as_bytes()))
            .unwrap();
        sender
            .send(&event(header::BLOCK, disk(2).as_bytes()))
            .unwrap();
        // A header that is not known is looked into here.
        let mut unknown = event(0x1234_5678, disk(3).as_bytes());
        unknown[8] = 0;
        sender.send(&unknown).unwrap();
        let numbers = events.drain().unwrap().unwrap();
        assert_eq!(numbers.into_iter().collect::<Vec<_>>(), ["8:2", "8:3"]);
    }
}
