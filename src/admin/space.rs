//! How full the filesystems are that a host writes to: `status` and `check` warn before they are full.

use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;

use super::{Context, pool_left, text, view};
use crate::model::layout::Group;
use crate::model::percent::Percent;

/// From here on a filesystem counts as full: a layer that cannot write does not come up for certain, and the boot
/// partition has no room for another kernel.
const FULL: Percent = Percent::new(95);

/// How full a filesystem is.
pub struct Space {
    /// Of the bytes that any user can write, as df(1) counts.
    pub used: Percent,
    /// Of the inodes, where their number is fixed.
    pub inodes: Option<Percent>,
    /// In bytes.
    pub free: u64,
}

/// Those that matter.
#[derive(Default)]
pub struct Spaces {
    /// That of the layer that runs.
    pub root: Option<Space>,
    pub boot: Option<Space>,
    /// How the boot partition is too full for another entry, if it is.
    pub want_of_boot: Option<String>,
}

impl Spaces {
    /// Looks at them, where they are mounted.
    pub fn read(context: &Context, group: &Group) -> Result<Self> {
        let booted = view::booted_layer(group)?;
        let root = booted.map(|_| Space::at(Path::new("/"))).transpose()?;
        let Ok(partition) = context.boot_partition() else {
            return Ok(Self {
                root,
                ..Self::default()
            });
        };
        Ok(Self {
            root,
            boot: Some(Space::at(&context.root.join("boot"))?),
            want_of_boot: partition.want_of_room(),
        })
    }

    /// What is full of the boot partition, if anything is.
    pub fn boot_problem(&self) -> Option<String> {
        let full = || self.boot.as_ref().and_then(Space::problem);
        self.want_of_boot.clone().or_else(full)
    }

    /// The same of the root filesystem.
    pub fn root_problem(&self) -> Option<String> {
        self.root.as_ref().and_then(Space::problem)
    }
}

/// The bytes that can be written to the filesystem of a thin volume that is mounted at `path`: there, and in its pool.
pub fn room_in(context: &Context, path: &Path) -> Result<u64> {
    room_in_group(&context.load()?, path)
}

/// The same where the group was read already.
pub fn room_in_group(group: &Group, path: &Path) -> Result<u64> {
    let Space { free, .. } = Space::at(path)?;
    Ok(free.min(pool_left(group)?))
}

impl Space {
    pub fn at(path: &Path) -> Result<Self> {
        let stat = statvfs(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let used = stat.blocks().saturating_sub(stat.blocks_free());
        let available = stat.blocks_available();
        let (inodes, free_inodes) = (stat.files(), stat.files_free());
        Ok(Self {
            used: Percent::share(used, used.saturating_add(available)),
            inodes: (inodes > 0)
                .then(|| Percent::share(inodes.saturating_sub(free_inodes), inodes)),
            free: available.saturating_mul(stat.fragment_size()),
        })
    }

    /// What is full, if anything is.
    fn problem(&self) -> Option<String> {
        if self.used >= FULL {
            let (used, free) = (self.used, text::size(self.free));
            return Some(format!("is {used} full, {free} are left"));
        }
        let inodes = self.inodes.filter(|inodes| *inodes >= FULL)?;
        Some(format!("has used {inodes} of its inodes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filesystem_is_full_before_nothing_can_be_written() {
        for (used, inodes, expected) in [
            ("0.00", None, None),
            ("94.99", Some("94.99"), None),
            (
                "95.00",
                Some("10.00"),
                Some("is 95.0 % full, 1.00 MiB are left"),
            ),
            (
                "10.00",
                Some("95.00"),
                Some("has used 95.0 % of its inodes"),
            ),
            (
                "100.00",
                Some("100.00"),
                Some("is 100.0 % full, 1.00 MiB are left"),
            ),
        ] {
            let parse = |text: &str| text.parse().unwrap();
            let space = Space {
                used: parse(used),
                inodes: inodes.map(parse),
                free: 1 << 20,
            };
            assert_eq!(space.problem().as_deref(), expected, "{used} {inodes:?}");
        }
    }

    #[test]
    fn a_directory_tells_how_full_its_filesystem_is() {
        let dir = tempfile::tempdir().unwrap();
        let space = Space::at(dir.path()).unwrap();
        assert!(space.used <= Percent::new(100));
        assert!(Space::at(Path::new("/nonexistent")).is_err());
    }
}
