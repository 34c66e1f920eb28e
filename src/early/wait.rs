//! Waits until udev has seen the disks of the volume group.

use std::collections::{BTreeMap, BTreeSet};
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
use socket2::{SockFilter, SockRef};

use crate::lvm::disk::{self, Metadata, PhysicalVolume};
use crate::model::name::{LvName, VgName};

/// udevd's own multicast group: its events come after its rules have run and its database is
/// written (`UDEV_MONITOR_UDEV` in systemd's sd-device monitor). Group 1 is the kernel's.
const UDEV_EVENTS: u32 = 2;
const UDEV_DATABASE: &str = "/run/udev/data";
/// After this time someone who looks at the console is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// dracut starts an array with disks missing after 120 s (2/3 of `rd.retry=`); then it goes quickly.
const ARRAY_PATIENCE: Duration = Duration::from_secs(90);
/// How often is looked whether that is still so, after the time is over.
const PAUSE: Duration = Duration::from_secs(1);

/// A volume group as its disks describe it.
#[derive(Debug, PartialEq, Eq)]
pub struct Group {
    pub metadata: Metadata,
    /// The devices of the group that are there.
    pub devices: Vec<PathBuf>,
    /// How many of its disks are not there.
    pub missing: usize,
}

impl Group {
    fn has(&self, layer: &LvName) -> bool {
        let volumes = &self.metadata.volumes;
        volumes.iter().any(|(name, _)| name == layer.as_str())
    }
}

/// The group, if all its disks are there already.
pub fn complete_group(vg: &VgName, layer: &LvName) -> Result<Option<Group>> {
    let mut disks = Disks::default();
    disks.look_at(disks.all(), vg);
    choose(groups(&disks.read), vg, layer)
}

/// Waits up to `timeout` until all disks of the group are there.
///
/// A group that is still incomplete then is returned as well, since the layer may be whole. Refuses
/// when there is no such group, or several with that layer.
pub fn for_group(vg: &VgName, layer: &LvName, timeout: Duration) -> Result<Group> {
    let started = Instant::now();
    let deadline = started + timeout;
    let events = UdevEvents::listen().context("cannot listen to udev")?;
    let mut disks = Disks::default();
    disks.look_at(disks.all(), vg);
    let patience = started + PATIENCE;
    let mut is_announced = false;
    loop {
        if let Some(group) = choose(groups(&disks.read), vg, layer)? {
            return Ok(group);
        }
        let now = Instant::now();
        let until = if now < patience.min(deadline) {
            patience.min(deadline)
        } else if now < deadline {
            if !is_announced {
                is_announced = true;
                log::warn!(
                    "waiting up to {} s for the disks of {vg}; {}",
                    timeout.as_secs(),
                    describe(&disks.read)
                );
            }
            deadline
        } else if is_password_asked() || now < deadline + ARRAY_PATIENCE && has_unstarted_array() {
            now + PAUSE
        } else {
            break;
        };
        let changed = events.wait_until(until)?;
        disks.look_at(changed.unwrap_or_else(|| disks.all()), vg);
    }
    let waited = timeout.as_secs();
    let mut groups = groups(&disks.read);
    groups.retain(|group| group.has(layer));
    match <[Group; 1]>::try_from(groups) {
        Ok([group]) => {
            let missing = group.missing;
            log::warn!("{missing} disks of {vg} are missing after {waited} s, trying without");
            Ok(group)
        }
        Err(_) => bail!(
            "volume group {vg} not found within {waited} s; {}",
            describe(&disks.read)
        ),
    }
}

/// Whether someone is asked for a password: disks may be there as soon as it is typed
/// (<https://systemd.io/PASSWORD_AGENTS/>).
fn is_password_asked() -> bool {
    let questions = fs::read_dir("/run/systemd/ask-password");
    let questions = questions.into_iter().flatten().flatten();
    questions
        .map(|file| file.file_name())
        .any(|name| name.to_string_lossy().starts_with("ask."))
}

/// Whether there is a software RAID that has not all its disks and was not started without them
/// (linux/Documentation/admin-guide/md.rst).
fn has_unstarted_array() -> bool {
    let devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices
        .filter_map(|device| fs::read_to_string(device.path().join("md/array_state")).ok())
        .any(|state| state.trim() == "inactive")
}

/// What is known of the disks that udev has seen.
#[derive(Default)]
struct Disks {
    /// The devices of those that are physical volumes, by their numbers.
    devices: BTreeMap<String, PathBuf>,
    read: BTreeMap<PathBuf, PhysicalVolume>,
}

impl Disks {
    /// The numbers of all block devices that udev knows, and of those that are gone.
    fn all(&self) -> BTreeSet<String> {
        let mut numbers = block_devices(Path::new(UDEV_DATABASE));
        numbers.extend(self.devices.keys().cloned());
        numbers
    }

    /// Reads those of the devices that were not there before, and forgets those that are gone.
    fn look_at(&mut self, numbers: BTreeSet<String>, vg: &VgName) {
        for number in numbers {
            let Some(device) = physical_volume(Path::new(UDEV_DATABASE), &number) else {
                if let Some(gone) = self.devices.remove(&number) {
                    self.read.remove(&gone);
                }
                continue;
            };
            if self.read.contains_key(&device) {
                continue;
            }
            let is_new = self.devices.insert(number, device.clone()).is_none();
            match disk::read(&device, vg.as_str()) {
                Ok(disk) => {
                    self.read.insert(device, disk);
                }
                Err(error) if is_new => log::warn!("{}: {error:#}", device.display()),
                Err(_) => {}
            }
        }
    }
}

/// The groups that the disks describe; there can be two of one name.
fn groups(disks: &BTreeMap<PathBuf, PhysicalVolume>) -> Vec<Group> {
    let mut newest: BTreeMap<&str, &Metadata> = BTreeMap::new();
    for metadata in disks.values().filter_map(|disk| disk.metadata.as_ref()) {
        let known = newest.entry(&metadata.uuid).or_insert(metadata);
        // A disk that was away for a while does not know what was done since.
        if metadata.seqno > known.seqno {
            *known = metadata;
        }
    }
    let group = |metadata: &Metadata| {
        let of_group = disks
            .iter()
            .filter(|(_, d)| metadata.disks.contains(&d.uuid));
        let is_there = |uuid: &&String| disks.values().any(|disk| disk.uuid == **uuid);
        Group {
            metadata: metadata.clone(),
            devices: of_group.map(|(device, _)| device.clone()).collect(),
            missing: metadata.disks.len() - metadata.disks.iter().filter(is_there).count(),
        }
    };
    newest.into_values().map(group).collect()
}

/// The group to go on with, if it is clear already: the one with the layer; where none has it, one
/// that is complete, for the error. Refuses if two have it.
fn choose(groups: Vec<Group>, vg: &VgName, layer: &LvName) -> Result<Option<Group>> {
    if groups.iter().filter(|group| group.has(layer)).count() > 1 {
        let uuids: Vec<&str> = groups.iter().map(|g| g.metadata.uuid.as_str()).collect();
        bail!(
            "there are several volume groups {vg} with {layer}: {}; take out the disks of one, or rename it with vgrename(8)",
            uuids.join(", ")
        );
    }
    let is_whole = groups.iter().all(|group| group.missing == 0);
    let mut complete: Vec<Group> = groups.into_iter().filter(|g| g.missing == 0).collect();
    if let Some(at) = complete.iter().position(|group| group.has(layer)) {
        return Ok(Some(complete.swap_remove(at)));
    }
    Ok(complete.pop().filter(|_| is_whole))
}

fn describe(disks: &BTreeMap<PathBuf, PhysicalVolume>) -> String {
    let names = |disks: &mut dyn Iterator<Item = &PathBuf>| {
        let names: Vec<String> = disks.map(|d| d.display().to_string()).collect();
        names.join(" ")
    };
    if disks.is_empty() {
        return "no disk with an LVM physical volume was seen".to_owned();
    }
    let groups = groups(disks);
    if groups.is_empty() {
        let seen = names(&mut disks.keys());
        return format!("physical volumes of other groups were seen on {seen}");
    }
    let group = |group: &Group| {
        let (all, devices) = (group.metadata.disks.len(), &group.devices);
        let there = names(&mut devices.iter());
        format!(
            "{} of its {all} disks are there: {there}",
            all - group.missing
        )
    };
    groups.iter().map(group).collect::<Vec<_>>().join("; ")
}

/// The numbers of the block devices that udev's database knows, as `8:0`.
fn block_devices(database: &Path) -> BTreeSet<String> {
    let records = fs::read_dir(database).into_iter().flatten().flatten();
    let number =
        |record: fs::DirEntry| Some(record.file_name().to_str()?.strip_prefix('b')?.to_owned());
    records.filter_map(number).collect()
}

/// The device with that number, if udev found it to be an LVM physical volume.
fn physical_volume(database: &Path, number: &str) -> Option<PathBuf> {
    let text = fs::read_to_string(database.join(format!("b{number}"))).ok()?;
    let has = |property: &str| text.lines().any(|line| line == property);
    // A path of a multipath device looks like the device itself.
    let is_part = has("E:DM_MULTIPATH_DEVICE_PATH=1") || has("E:SYSTEMD_READY=0");
    if !has("E:ID_FS_TYPE=LVM2_member") || is_part {
        return None;
    }
    let device = fs::read_link(Path::new("/sys/dev/block").join(number)).ok()?;
    // sysfs writes a slash in a device's name as an exclamation mark.
    let name = device.file_name()?.to_str()?.replace('!', "/");
    Some(Path::new("/dev").join(name))
}

/// The stream of udev's events, which tell what has changed in its database.
struct UdevEvents(OwnedFd);

impl UdevEvents {
    fn listen() -> Result<Self> {
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
    fn wait_until(&self, deadline: Instant) -> Result<Option<BTreeSet<String>>> {
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
    use crate::model::layout::Role;

    /// A disk of the group `group`, which has these disks and volumes.
    fn disk(uuid: &str, group: &str, seqno: u64, all: &[&str], volumes: &[&str]) -> PhysicalVolume {
        let volume = |name: &&str| ((*name).to_owned(), Role::Layer);
        PhysicalVolume {
            uuid: uuid.to_owned(),
            metadata: Some(Metadata {
                uuid: group.to_owned(),
                seqno,
                disks: all.iter().map(|&uuid| uuid.to_owned()).collect(),
                volumes: volumes.iter().map(volume).collect(),
            }),
        }
    }

    fn bare(uuid: &str) -> PhysicalVolume {
        PhysicalVolume {
            uuid: uuid.to_owned(),
            metadata: None,
        }
    }

    /// What is chosen when these disks are there: the devices of the group, or the error.
    fn chosen(disks: Vec<PhysicalVolume>) -> Result<Option<Vec<String>>, String> {
        let named = disks.into_iter().enumerate();
        let disks = named.map(|(n, disk)| (PathBuf::from(n.to_string()), disk));
        let groups = groups(&disks.collect());
        let (vg, layer) = ("HostVG".parse().unwrap(), "L".parse().unwrap());
        let name = |device: &PathBuf| device.display().to_string();
        match choose(groups, &vg, &layer) {
            Ok(group) => Ok(group.map(|group| group.devices.iter().map(name).collect())),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_group_is_chosen_when_all_its_disks_are_there() {
        let devices = |names: &[&str]| Ok(Some(names.iter().map(|&n| n.to_owned()).collect()));
        let both = ["a", "b"];
        assert_eq!(chosen(vec![]), Ok(None));
        assert_eq!(chosen(vec![bare("x")]), Ok(None));
        assert_eq!(
            chosen(vec![disk("a", "G", 1, &["a"], &["L"])]),
            devices(&["0"])
        );
        assert_eq!(chosen(vec![disk("a", "G", 1, &both, &["L"])]), Ok(None));
        // The second disk has no copy of the metadata, the third is of another group.
        let disks = vec![disk("a", "G", 1, &both, &["L"]), bare("b"), bare("c")];
        assert_eq!(chosen(disks), devices(&["0", "1"]));
        // For the error.
        assert_eq!(
            chosen(vec![disk("a", "G", 1, &["a"], &["M"])]),
            devices(&["0"])
        );
    }

    #[test]
    fn the_newest_metadata_count() {
        let disks = |old, new| {
            vec![
                disk("a", "G", old, &["a"], &["L"]),
                disk("b", "G", new, &["a", "b", "c"], &["L"]),
            ]
        };
        assert_eq!(chosen(disks(1, 2)), Ok(None));
        assert_eq!(chosen(disks(2, 1)), Ok(Some(vec!["0".to_owned()])));
    }

    #[test]
    fn of_two_groups_with_one_name_the_one_with_the_layer_counts() {
        let of = |disk_uuid, group, layer| disk(disk_uuid, group, 1, &[disk_uuid], &[layer]);
        let one = chosen(vec![of("a", "G", "M"), of("b", "H", "L")]);
        assert_eq!(one, Ok(Some(vec!["1".to_owned()])));
        let both = chosen(vec![of("a", "G", "L"), of("b", "H", "L")]);
        assert!(
            both.unwrap_err()
                .contains("several volume groups HostVG with L: G, H")
        );
        // The one that is not complete yet may have it.
        let waits = vec![of("a", "G", "M"), disk("b", "H", 1, &["b", "c"], &["L"])];
        assert_eq!(chosen(waits), Ok(None));
    }

    #[test]
    fn only_physical_volumes_are_candidates() {
        let dir = tempfile::tempdir().unwrap();
        let device = fs::read_dir("/sys/dev/block").unwrap().next();
        let number = device.unwrap().unwrap().file_name().into_string().unwrap();
        let found = |text: &str| {
            fs::write(dir.path().join(format!("b{number}")), text).unwrap();
            physical_volume(dir.path(), &number)
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
        assert_eq!(physical_volume(dir.path(), "999999:9"), None);
        assert_eq!(physical_volume(dir.path(), "999999:8"), None);
        let known = BTreeSet::from([number, "999999:9".to_owned()]);
        assert_eq!(block_devices(dir.path()), known);
        assert!(block_devices(&dir.path().join("missing")).is_empty());
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
