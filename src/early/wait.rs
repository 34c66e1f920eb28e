//! Waits until udev has seen the disks of the volume group.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::cmdline::Request;
use super::group::{self, Group};
use super::udev::{self, UdevEvents};
use crate::lvm::disk;
use crate::model::name::VgName;

/// After this time someone who looks at the console is told what is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// dracut starts an array with disks missing after 120 s (2/3 of `rd.retry=`); then it goes quickly.
const ARRAY_PATIENCE: Duration = Duration::from_secs(90);
/// What a disk takes at most from a password that was typed, or an array that was started, until udev has seen what is on
/// it: to compute the key takes seconds, and more for each key slot.
const QUIET: Duration = Duration::from_secs(30);
/// How often is looked whether somebody is asked for a password, or an array is not started.
const PAUSE: Duration = Duration::from_secs(1);

/// The group, if it is clear already which one it is.
pub fn complete_group(request: &Request) -> Option<Group> {
    let mut disks = Disks::default();
    disks.look_at(disks.all(), &request.vg);
    group::first_choice(group::candidates(&disks.read, request), request)
}

/// The group as its disks describe it now, complete or not. Refuses when there is no such group, or several with that
/// layer.
pub fn group_now(request: &Request) -> Result<Group> {
    let mut disks = Disks::default();
    disks.look_at(disks.all(), &request.vg);
    disks.look_into_arrays(request);
    let candidates = group::candidates(&disks.read, request);
    let found = group::last_choice(candidates, request)?;
    found.with_context(|| group::describe(&disks.read, request))
}

/// Waits until all disks of the group are there, for the time that the command line gives.
///
/// A group that is still incomplete then is returned as well, since the layer may be whole. Refuses
/// when there is no such group, or several with that layer.
pub fn for_group(request: &Request) -> Result<Group> {
    let Request { vg, timeout, .. } = request;
    let started = Instant::now();
    let mut limit = Limit::new(started, *timeout);
    let events = UdevEvents::listen().context("cannot listen to udev")?;
    let mut disks = Disks::default();
    disks.look_at(disks.all(), vg);
    let mut is_announced = false;
    loop {
        let candidates = group::candidates(&disks.read, request);
        if let Some(group) = group::first_choice(candidates, request) {
            return Ok(group);
        }
        let now = Instant::now();
        if limit.is_reached(now, is_password_asked(), has_unstarted_array()) {
            break;
        }
        if now >= started + PATIENCE && !is_announced {
            is_announced = true;
            log::warn!(
                "waiting up to {} s for the disks of {vg}; {}",
                timeout.as_secs(),
                group::describe(&disks.read, request)
            );
        }
        let changed = events.wait_until(limit.end.min(now + PAUSE))?;
        disks.look_at(changed.unwrap_or_else(|| disks.all()), vg);
    }
    let waited = started.elapsed().as_secs();
    disks.look_into_arrays(request);
    let candidates = group::candidates(&disks.read, request);
    let Some(group) = group::last_choice(candidates, request)? else {
        let uuid = request.vgid.as_ref();
        bail!(
            "volume group {vg}{} not found within {waited} s; {}",
            uuid.map_or_else(String::new, |uuid| format!(" with the UUID {uuid}")),
            group::describe(&disks.read, request)
        );
    };
    if group.missing > 0 {
        let missing = group.missing;
        log::warn!("{missing} disks of {vg} are missing after {waited} s, trying without");
    }
    Ok(group)
}

/// How long is waited for disks.
struct Limit {
    end: Instant,
    /// Until when arrays count.
    end_of_arrays: Instant,
}

impl Limit {
    fn new(started: Instant, timeout: Duration) -> Self {
        let end = started + timeout;
        Self {
            end,
            end_of_arrays: end + ARRAY_PATIENCE,
        }
    }

    /// Whether nothing is waited for any more. As long as somebody is asked for a password, or an array is not started,
    /// and for a while after that, disks may still come.
    fn is_reached(&mut self, now: Instant, is_asked: bool, has_unstarted_array: bool) -> bool {
        if is_asked || has_unstarted_array && now < self.end_of_arrays {
            self.end = self.end.max(now + QUIET);
        }
        now >= self.end
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
    let mut devices = fs::read_dir("/sys/block").into_iter().flatten().flatten();
    devices.any(|device| is_unstarted(&device.path()))
}

fn is_unstarted(device: &Path) -> bool {
    let read = |name: &str| fs::read_to_string(device.join("md").join(name)).unwrap_or_default();
    // What holds the arrays of a firmware is never started.
    let metadata = read("metadata_version");
    let is_container = metadata.starts_with("external:") && !metadata.starts_with("external:/");
    read("array_state").trim() == "inactive" && !is_container
}

/// What is known of the disks that udev has seen.
#[derive(Default)]
struct Disks {
    /// The devices of those that are physical volumes, by their numbers.
    devices: BTreeMap<String, PathBuf>,
    read: group::Disks,
    /// Whether those count as well that may be part of an array.
    of_arrays: bool,
}

impl Disks {
    /// The numbers of all block devices that udev knows, and of those that are gone.
    fn all(&self) -> BTreeSet<String> {
        let mut numbers = udev::block_devices(Path::new(udev::DATABASE));
        numbers.extend(self.devices.keys().cloned());
        numbers
    }

    /// Takes partitions of disks with the mark of an array as well, where nothing of the group was found without: the mark
    /// can be left of what a disk was before.
    fn look_into_arrays(&mut self, request: &Request) {
        if !group::candidates(&self.read, request).is_empty() {
            return;
        }
        let known: BTreeSet<PathBuf> = self.devices.values().cloned().collect();
        self.of_arrays = true;
        self.look_at(self.all(), &request.vg);
        for device in self
            .devices
            .values()
            .filter(|device| !known.contains(*device))
        {
            log::warn!(
                "{} is on a disk with the mark of an array that was not assembled, and is taken all the same",
                device.display()
            );
        }
    }

    /// Reads those of the devices that were not there before, and forgets those that are gone.
    fn look_at(&mut self, numbers: BTreeSet<String>, vg: &VgName) {
        for number in numbers {
            let found = udev::physical_volume(Path::new(udev::DATABASE), &number, self.of_arrays);
            let Some(device) = found else {
                if let Some(gone) = self.devices.remove(&number) {
                    self.read.remove(&gone);
                }
                continue;
            };
            let known = self.read.get(&device);
            if known.is_some_and(|disk| disk.damage.is_none()) {
                continue;
            }
            let is_new = self.devices.insert(number, device.clone()).is_none();
            match disk::read(&device, vg.as_str()) {
                Ok(disk) => {
                    if let Some(damage) = disk.damage.as_ref().filter(|_| is_new) {
                        log::warn!(
                            "{}: its LVM metadata are damaged: {damage}",
                            device.display()
                        );
                    }
                    self.read.insert(device, disk);
                }
                Err(error) if is_new => log::warn!("{}: {error:#}", device.display()),
                Err(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_and_an_array_are_waited_for_and_what_comes_of_them() {
        /// Seconds from when to when something is so.
        type Span = (u64, u64);
        const NEVER: Span = (0, 0);
        for (asked, unstarted, expected) in [
            (NEVER, NEVER, 90),
            // What was typed early takes no time of others.
            ((5, 10), NEVER, 90),
            // At the last moment, and later.
            ((5, 89), NEVER, 118),
            ((5, 300), NEVER, 329),
            // The array is started, and has to be unlocked.
            ((122, 200), (2, 120), 229),
            // Nobody starts it.
            (NEVER, (2, 1000), 209),
            ((5, 300), (2, 1000), 329),
        ] {
            let started = Instant::now();
            let mut limit = Limit::new(started, Duration::from_secs(90));
            let is_so = |second: u64, span: Span| (span.0..span.1).contains(&second);
            let ends = |second: &u64| {
                let now = started + Duration::from_secs(*second);
                limit.is_reached(now, is_so(*second, asked), is_so(*second, unstarted))
            };
            let end = (0..2000).find(ends);
            assert_eq!(end, Some(expected), "{asked:?} {unstarted:?}");
        }
    }

    #[test]
    fn an_array_that_was_not_started_is_waited_for_and_a_container_is_not() {
        for (state, metadata, is_waited_for) in [
            ("inactive\n", "1.2\n", true),
            ("inactive\n", "external:/md127/0\n", true),
            ("inactive\n", "external:imsm\n", false),
            ("clean\n", "1.2\n", false),
        ] {
            let device = tempfile::tempdir().unwrap();
            let md = device.path().join("md");
            fs::create_dir(&md).unwrap();
            fs::write(md.join("array_state"), state).unwrap();
            fs::write(md.join("metadata_version"), metadata).unwrap();
            assert_eq!(is_unstarted(device.path()), is_waited_for, "{metadata}");
        }
        assert!(!is_unstarted(Path::new("/nonexistent")));
    }
}
