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

/// Waits up to `timeout` until all disks of the group are there.
///
/// A group that is still incomplete then is returned as well, since the layer may be whole. Refuses
/// when there is no such group, or several with that layer.
pub fn for_group(vg: &VgName, layer: &LvName, timeout: Duration) -> Result<Group> {
    let started = Instant::now();
    let deadline = started + timeout;
    let events = UdevEvents::listen().context("cannot listen to udev")?;
    let mut disks = Disks::default();
    let patience = started + PATIENCE;
    let mut is_announced = false;
    loop {
        disks.update(physical_volumes(Path::new(UDEV_DATABASE)), vg);
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
        events.wait_until(until)?;
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
    read: BTreeMap<PathBuf, PhysicalVolume>,
    /// Those that could not be read; it is tried again.
    unreadable: BTreeSet<PathBuf>,
}

impl Disks {
    /// Reads the devices that were not there before, and forgets those that are gone.
    fn update(&mut self, devices: Vec<PathBuf>, vg: &VgName) {
        self.read.retain(|device, _| devices.contains(device));
        for device in devices {
            if self.read.contains_key(&device) {
                continue;
            }
            match disk::read(&device, vg.as_str()) {
                Ok(disk) => {
                    self.read.insert(device, disk);
                }
                Err(error) => {
                    if self.unreadable.insert(device.clone()) {
                        log::warn!("{}: {error:#}", device.display());
                    }
                }
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

    /// Waits for an event of a block device, until the deadline at most.
    fn wait_until(&self, deadline: Instant) -> Result<()> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // Rounded up, or the last millisecond would be waited for many times.
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1));
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout.unwrap_or(PollTimeout::MAX)) {
                Ok(0) | Err(Errno::EINTR) => continue,
                Ok(_) => {}
                Err(errno) => return Err(errno).context("cannot wait for udev"),
            }
            if self.drain()? {
                return Ok(());
            }
        }
    }

    /// Reads all events that have come; whether one was of a block device.
    fn drain(&self) -> Result<bool> {
        const BLOCK: &[u8] = b"\0SUBSYSTEM=block\0";
        let mut has_block = false;
        let mut event = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut event, MsgFlags::empty()) {
                Ok(length) => {
                    let mut parts = event[..length].windows(BLOCK.len());
                    has_block = has_block || parts.any(|part| part == BLOCK);
                }
                // Events were lost: the database is read anew.
                Err(Errno::ENOBUFS) => has_block = true,
                Err(Errno::EAGAIN) => return Ok(has_block),
                Err(errno) => return Err(errno).context("cannot read udev's events"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        if let [first, ..] = &block[..] {
            assert_eq!(physical_volumes(dir.path()).len(), 1);
            record(
                &format!("b{first}"),
                "E:ID_FS_TYPE=LVM2_member\nE:DM_MULTIPATH_DEVICE_PATH=1\n",
            );
            assert!(physical_volumes(dir.path()).is_empty());
        }
        record("n1", "E:ID_FS_TYPE=LVM2_member\n");
        assert!(physical_volumes(dir.path()).is_empty());
    }
}
