//! What the initramfs tells the running system of a boot.

use serde::{Deserialize, Serialize};

/// What was booted and how long it took.
#[derive(Debug, Serialize, Deserialize)]
pub struct BootRecord {
    pub version: u32,
    pub vg: String,
    /// The UUID of that group. The first initramfs images, which hosts keep, do not record it.
    #[serde(default)]
    pub vgid: Option<String>,
    pub layer: String,
    pub role: String,
    pub device: String,
    /// The layer of the kernel command line, if another one was booted because that failed.
    pub instead_of: Option<String>,
    /// All phases, in milliseconds.
    pub milliseconds: u64,
    /// What the helper itself worked of that time, without the programs that it ran.
    #[serde(default)]
    pub own_microseconds: u64,
    /// Not recorded by the first initramfs images, which hosts keep.
    #[serde(default)]
    pub phases: Vec<Phase>,
}

/// A part of the way to the mounted root.
#[derive(Debug, Serialize, Deserialize)]
pub struct Phase {
    pub name: String,
    pub milliseconds: u64,
}

impl BootRecord {
    /// The time that the boot took and its phases, for people.
    pub fn times(&self) -> String {
        let phase = |phase: &Phase| format!("{} {}", phase.name, phase.milliseconds);
        let phases: Vec<String> = self.phases.iter().map(phase).collect();
        format!("{} ms ({})", self.milliseconds, phases.join(", "))
    }
}
