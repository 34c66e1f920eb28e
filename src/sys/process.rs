//! Which process of which boot: what is half-made names its maker.

use std::fmt;
use std::fs;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Error, Result};

/// When this system was started, by the clock as it is now; `None` where the kernel does not tell.
pub fn booted_at() -> Option<SystemTime> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds = uptime.split(' ').next()?.parse().ok()?;
    SystemTime::now().checked_sub(Duration::try_from_secs_f64(seconds).ok()?)
}

/// A process, now and for ever: its number is used again, in this boot and the next, but not together
/// with the time when it started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// As the kernel tells it (random(4)): hexadecimal digits and hyphens.
    boot: String,
    pid: u32,
    /// Since the start of the machine, in clock ticks.
    started: u64,
}

impl Process {
    /// This process.
    pub fn this() -> Result<Self> {
        Self::running(std::process::id())
    }

    fn running(pid: u32) -> Result<Self> {
        let read =
            |path: &str| fs::read_to_string(path).with_context(|| format!("cannot read {path}"));
        let path = format!("/proc/{pid}/stat");
        let started =
            started(&read(&path)?).with_context(|| format!("{path} has no start time"))?;
        Ok(Self {
            boot: read("/proc/sys/kernel/random/boot_id")?.trim().to_owned(),
            pid,
            started,
        })
    }

    /// Whether it has not ended yet.
    pub fn lives(&self) -> bool {
        Self::running(self.pid).is_ok_and(|now| now == *self)
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }
}

/// Whether this process was started by the process `pid`, or by one that was. What has lost its parent is below
/// another one.
pub fn is_below(pid: u32) -> bool {
    let mut above = std::process::id();
    while above > 1 {
        let stat = fs::read_to_string(format!("/proc/{above}/stat")).unwrap_or_default();
        above = parent(&stat).unwrap_or_default();
        if above == pid {
            return true;
        }
    }
    false
}

/// The number of the parent in a `/proc/PID/stat`: the fourth field. None has the number 0.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    let parent = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
    (parent != 0).then_some(parent)
}

/// The start time in a `/proc/PID/stat` (`proc_pid_stat(5)`): the 22nd field. The second one is the name of
/// the program in parentheses, which can hold anything. `None` for a process that has ended.
fn started(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut from_third = rest.split_ascii_whitespace();
    // One that has ended, but nobody has asked for its exit status.
    let has_ended = matches!(from_third.next()?, "Z" | "X");
    let started = from_third.nth(22 - 4)?.parse().ok()?;
    (!has_ended).then_some(started)
}

/// `BOOT:PID:STARTED`, which an LVM tag can hold (lvm(8), "Tags").
impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.boot, self.pid, self.started)
    }
}

impl FromStr for Process {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let parse = || {
            let mut parts = text.split(':');
            let (boot, pid, started) = (parts.next()?, parts.next()?, parts.next()?);
            let is_boot = |b: u8| b.is_ascii_hexdigit() || b == b'-';
            let is_whole = parts.next().is_none() && !boot.is_empty() && boot.bytes().all(is_boot);
            is_whole.then_some(Self {
                boot: boot.to_owned(),
                pid: pid.parse().ok()?,
                started: started.parse().ok()?,
            })
        };
        parse().with_context(|| format!("{text:?} names no process"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_processes_are_read_as_they_are_written() {
        for (text, parsed) in [
            ("0f3c-1:7:99", Some(("0f3c-1", 7, 99))),
            ("a:1:18446744073709551615", Some(("a", 1, u64::MAX))),
            ("", None),
            ("a:1", None),
            ("a:1:2:3", None),
            (":1:2", None),
            ("a b:1:2", None),
            ("a:-1:2", None),
            ("a:1:x", None),
        ] {
            let wanted = parsed.map(|(boot, pid, started)| Process {
                boot: boot.to_owned(),
                pid,
                started,
            });
            assert_eq!(text.parse().ok(), wanted, "{text}");
            if let Some(process) = wanted {
                assert_eq!(process.to_string(), text);
            }
        }
    }

    #[test]
    fn the_name_of_a_program_can_look_like_fields() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1234 20";
        for name in ["sh", "a b) S 1 2", "(((", ""] {
            assert_eq!(started(&format!("5 ({name}) {rest}")), Some(1234), "{name}");
        }
        assert_eq!(started(&format!("5 (sh) {}", rest.replace('S', "Z"))), None);
        assert_eq!(started("5 (sh) S 1"), None);
        for (stat, above) in [
            ("5 (a b) S 1 2) S 12 7", Some(12)),
            ("1 (init) S 0 1", None),
            ("5 (sh)", None),
            ("", None),
        ] {
            assert_eq!(parent(stat), above, "{stat}");
        }
        assert_eq!(started(""), None);
    }

    #[test]
    fn a_process_is_below_those_that_have_started_it_and_not_below_itself() {
        let above = std::os::unix::process::parent_id();
        assert!(above == 0 || is_below(above));
        assert!(!is_below(std::process::id()) && !is_below(u32::MAX));
    }

    #[test]
    fn a_process_lives_until_another_has_its_number() {
        let this = Process::this().unwrap();
        assert_eq!(this.pid(), std::process::id());
        assert!(this.lives());
        for other in [
            Process {
                boot: "0".to_owned(),
                ..this.clone()
            },
            Process {
                started: this.started + 1,
                ..this.clone()
            },
            Process {
                pid: u32::MAX,
                ..this.clone()
            },
        ] {
            assert!(!other.lives(), "{other}");
        }
        let tag = this.to_string();
        let is_allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+.-/=!:&#".contains(&b);
        assert!(tag.len() < 200 && tag.bytes().all(is_allowed), "{tag}");
    }
}
