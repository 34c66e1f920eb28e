//! A control group for what is run shut in (cgroups(7), the second version): all of it together has limits.
//!
//! A group with processes hands no limit of memory on to one below it, and this process is in one. So it is made
//! below the nearest group above that hands them on, and can take no more than that may.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

/// Where the hierarchy is mounted on a host that has no other.
const TOP: &str = "/sys/fs/cgroup";
const HANDED_ON: &str = "cgroup.subtree_control";
/// The names of ours end in the number of the process that has made them.
const PREFIX: &str = "imgbased-sandbox-";

/// How many processes there can be.
const PROCESSES_MAX: u32 = 1000;
/// How often and how long it is waited for the kernel to forget processes that have ended.
const TRIES: u32 = 100;
const INTERVAL: Duration = Duration::from_millis(10);

/// A group without another one below it. It is removed when this is dropped, and all in it have ended then.
pub struct Leaf {
    dir: PathBuf,
    memory: u64,
}

impl Leaf {
    /// A group whose processes have so many bytes of memory together, and no swap; nothing where there can be none.
    pub fn with_memory(memory: u64) -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let above = above(Path::new(TOP), &own)?;
        remove_old(&above);
        Self::below(&above, std::process::id(), memory)
            .inspect_err(|error| log::debug!("no limits for all together: {error:#}"))
            .ok()
    }

    fn below(above: &Path, number: u32, memory: u64) -> Result<Self> {
        let dir = above.join(format!("{PREFIX}{number}"));
        fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let leaf = Self { dir, memory };
        leaf.set("memory.max", &memory.to_string())?;
        leaf.set("pids.max", &PROCESSES_MAX.to_string())?;
        // One that is killed for want of memory takes the others along.
        leaf.set("memory.oom.group", "1")?;
        // A kernel without swap does not have it.
        if let Err(error) = leaf.set("memory.swap.max", "0") {
            log::debug!("{error:#}");
        }
        Ok(leaf)
    }

    fn set(&self, name: &str, value: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
    }

    /// For [`enter`].
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The memory that its processes may have, if they were ended because they wanted more.
    pub fn exceeded(&self) -> Option<u64> {
        let events = fs::read_to_string(self.dir.join("memory.events")).ok()?;
        is_killed(&events).then_some(self.memory)
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        for _ in 0..TRIES {
            match fs::remove_dir(&self.dir) {
                Err(error) if error.kind() == ErrorKind::ResourceBusy => sleep(INTERVAL),
                _ => return,
            }
        }
        log::debug!("{} is still there", self.dir.display());
    }
}

/// Has this process, and all that it starts from here on, be in a group.
pub fn enter(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), "0")
}

/// The nearest group from that in a `/proc/PID/cgroup` upwards that hands on limits of memory and processes.
fn above(top: &Path, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // One outside of what is mounted.
    if own.split('/').any(|part| part == "..") {
        return None;
    }
    let hands_on = |group: &&Path| {
        let controllers = fs::read_to_string(group.join(HANDED_ON)).unwrap_or_default();
        let has = |name| controllers.split_whitespace().any(|other| other == name);
        has("memory") && has("pids")
    };
    let own = top.join(own);
    let mut groups = own.ancestors().take_while(|group| group.starts_with(top));
    groups.find(hands_on).map(Path::to_owned)
}

/// Removes those whose process was killed. One that has processes stays.
fn remove_old(above: &Path) {
    let Ok(groups) = fs::read_dir(above) else {
        return;
    };
    for name in groups.flatten().map(|group| group.file_name()) {
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if number.is_some_and(|number| !Path::new("/proc").join(number).exists()) {
            drop(fs::remove_dir(above.join(name)));
        }
    }
}

/// Whether a `memory.events` tells that a process was killed.
fn is_killed(events: &str) -> bool {
    let count = |line: &str| line.strip_prefix("oom_kill ")?.parse::<u64>().ok();
    events
        .lines()
        .find_map(count)
        .is_some_and(|count| count > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_group_that_hands_limits_on_is_found() {
        let dir = tempfile::tempdir().unwrap();
        for (group, controllers) in [
            ("", "cpu io memory pids\n"),
            ("user.slice", "memory pids"),
            ("user.slice/user-0.slice", "memory"),
            ("user.slice/user-0.slice/session-1.scope", ""),
            ("system.slice", "pids memory"),
        ] {
            let group = dir.path().join(group);
            fs::create_dir_all(&group).unwrap();
            fs::write(group.join(HANDED_ON), controllers).unwrap();
        }
        for (own, expected) in [
            (
                "0::/user.slice/user-0.slice/session-1.scope\n",
                Some("user.slice"),
            ),
            (
                "9:name=systemd:/\n0::/system.slice/x.service\n",
                Some("system.slice"),
            ),
            ("0::/\n", Some("")),
            ("0::/other/one\n", Some("")),
            ("0::/../x\n", None),
            ("4:memory:/x\n", None),
            ("", None),
        ] {
            let expected = expected.map(|group| dir.path().join(group));
            assert_eq!(above(dir.path(), own), expected, "{own}");
        }
        fs::write(dir.path().join(HANDED_ON), "").unwrap();
        assert_eq!(above(dir.path(), "0::/\n"), None);
    }

    #[test]
    fn a_group_has_its_limits_from_the_start_and_old_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let this = std::process::id();
        for name in ["4294967295", &this.to_string(), "x"] {
            fs::create_dir(dir.path().join(format!("{PREFIX}{name}"))).unwrap();
        }
        fs::create_dir(dir.path().join("foreign")).unwrap();
        remove_old(dir.path());
        let mut names: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|group| group.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["foreign", &format!("{PREFIX}{this}")]);

        assert!(Leaf::below(dir.path(), this, 1 << 30).is_err());
        let leaf = Leaf::below(dir.path(), 7, 1 << 30).unwrap();
        for (name, value) in [
            ("memory.max", "1073741824"),
            ("memory.swap.max", "0"),
            ("memory.oom.group", "1"),
            ("pids.max", "1000"),
        ] {
            assert_eq!(fs::read_to_string(leaf.path().join(name)).unwrap(), value);
        }
        assert_eq!(leaf.exceeded(), None);
        fs::write(leaf.path().join("memory.events"), "oom 3\noom_kill 1\n").unwrap();
        assert_eq!(leaf.exceeded(), Some(1 << 30));
        enter(leaf.path()).unwrap();
        assert_eq!(fs::read(leaf.path().join("cgroup.procs")).unwrap(), b"0");
    }
}
