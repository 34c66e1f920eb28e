//! The arithmetic of thin pools: how much still fits, when one is too full, and whether LVM and the pool agree on
//! what is in it.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};

use super::layout::{Group, Volume};
use super::name::VgName;
use super::percent::Percent;

/// The lvm profile of our pools, which the package installs: when they are extended.
pub const PROFILE: &str = "imgbased";
/// From here on nothing is added to a pool: a full one makes every layer read-only.
const FULL: Percent = Percent::new(95);
/// When our profile has a pool extended (src/lvm/imgbased.profile).
const EXTENDED: Percent = Percent::new(80);
/// What the pool's metadata needs for a chunk at most, in bytes: a leaf of its tree holds 126 chunks
/// in 4 KiB and is at least half full (linux/Documentation/admin-guide/device-mapper/persistent-data).
const METADATA_PER_CHUNK: u64 = 80;

/// How many bytes can still be added to the pool of a group for a new volume; `None` where that is not known, since the
/// pool is not active. Refuses one that is too full for lvm2 to make another volume in it.
pub fn room(group: &Group) -> Result<Option<u64>> {
    below(group, limits)
}

/// The same for volumes that are there: lvm2 does not ask how full a pool is that they grow in.
pub fn left(group: &Group) -> Result<Option<u64>> {
    below(group, |_| (FULL, FULL))
}

/// How many bytes can be added to the pool until its data or metadata are as full as that. Refuses one that is.
fn below(group: &Group, limits: impl Fn(&Volume) -> (Percent, Percent)) -> Result<Option<u64>> {
    let pool = group.pool().with_context(|| {
        format!(
            "volume group {} has no thin pool with the tag imgbased:pool",
            group.name
        )
    })?;
    let (data_full, metadata_full) = limits(pool);
    for (what, percent, full) in [
        ("data", pool.data_percent, data_full),
        ("metadata", pool.metadata_percent, metadata_full),
    ] {
        if let Some(percent) = percent {
            ensure!(
                percent < full,
                "the {what} space of {}/{} is {percent} full, less than {full} is \
                 needed; extend it with lvextend(8) or remove layers",
                group.name,
                pool.name
            );
        }
    }
    let (Some(data), Some(metadata)) = (pool.data_percent, pool.metadata_percent) else {
        return Ok(None);
    };
    let left =
        |size: u64, full: Percent, used: Percent| full.of(size).saturating_sub(used.of(size));
    let chunks = left(pool.metadata_size, metadata_full, metadata) / METADATA_PER_CHUNK;
    let data = left(pool.size, FULL, data);
    Ok(Some(data.min(chunks.saturating_mul(pool.chunk_size))))
}

/// How full data and metadata of a pool may be for lvm2 to make another volume in it
/// (`thin_pool_below_threshold` in its `lib/metadata/thin_manip.c`): less than when it is extended, and
/// a quarter or 4 MiB of the metadata have to be free. At most what we want ourselves.
fn limits(pool: &Volume) -> (Percent, Percent) {
    const METADATA_FREE: u64 = 4 << 20;
    let data = if pool.profile == PROFILE {
        EXTENDED
    } else {
        FULL
    };
    let free = (METADATA_FREE * 100).checked_div(pool.metadata_size);
    let free = free.map_or(25, |percent| percent.min(25));
    let metadata = Percent::new(100 - u32::try_from(free).unwrap_or(25));
    (data, metadata.min(FULL))
}

/// What keeps a pool from being written to, as the kernel tells
/// (linux/Documentation/admin-guide/device-mapper/thin-provisioning.rst, "Status").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its metadata cannot be read.
    Failed,
    /// There was no room for its metadata, which the kernel tells in the same way as the next.
    NoMetadata,
    /// Its metadata could not be written.
    ReadOnly,
    /// The same, in an earlier start: it has to be checked as a whole first.
    NeedsCheck,
    NoSpace,
}

impl Fault {
    /// Of a pool that is read-only.
    pub fn of_read_only(metadata: Option<Percent>) -> Self {
        if metadata.is_some_and(|metadata| metadata >= FULL) {
            Self::NoMetadata
        } else {
            Self::ReadOnly
        }
    }

    /// Whether nothing can be removed from such a pool, either: lvm2 forgets a volume before the pool does.
    fn keeps_what_is_there(self) -> bool {
        self != Self::NoSpace
    }

    /// What a person can do (lvmthin(7), "Metadata check and repair").
    pub fn advice(self, vg: &VgName, pool: &str) -> String {
        match self {
            Self::Failed | Self::ReadOnly | Self::NeedsCheck => format!(
                "restart the host: the start has the pool checked; where that does not help, `lvconvert --repair {vg}/{pool}` \
                 from a rescue system, see \"Metadata check and repair\" in lvmthin(7)"
            ),
            Self::NoMetadata => {
                format!(
                    "`lvextend --poolmetadatasize +128M {vg}/{pool}`, after which it can be written to"
                )
            }
            Self::NoSpace => "extend it with lvextend(8) or remove layers".to_owned(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failed => "has failed: its metadata cannot be read",
            Self::ReadOnly => "is read-only, as its metadata could not be written",
            Self::NeedsCheck => "is read-only until its metadata are checked",
            Self::NoMetadata => "is read-only, as the space for its metadata is full",
            Self::NoSpace => "is full: writing to it fails, at once or after a minute",
        })
    }
}

/// Refuses a pool from which nothing can be removed, and to which nothing can be added.
pub fn check_changeable(group: &Group) -> Result<()> {
    let fault = group.pool().and_then(|pool| pool.fault);
    if let Some(fault) = fault.filter(|fault| fault.keeps_what_is_there()) {
        bail!(
            "the thin pool of {} {fault}; `imgbased-helper check` says what to do",
            group.name
        );
    }
    Ok(())
}

/// What device-mapper says of an active pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// Not of a pool that has failed.
    pub transaction: Option<u64>,
    pub data: Percent,
    pub metadata: Percent,
    pub fault: Option<Fault>,
}

impl Status {
    /// Refuses to have more written to the pool.
    pub fn check_while_written(&self, vg: &VgName) -> Result<()> {
        if let Some(fault) = self.fault {
            bail!("the thin pool of {vg} {fault}");
        }
        for (what, percent) in [("data", self.data), ("metadata", self.metadata)] {
            ensure!(
                percent < FULL,
                "the thin pool of {vg} would be full: its {what} space is {percent} full meanwhile; extend it with \
                 lvextend(8) or remove layers"
            );
        }
        Ok(())
    }
}

/// What a pool says of its own transaction: dm-thin counts each change of its volumes, and lvm2 counts with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    Transaction(u64),
    /// There is no superblock where one has to be.
    Damaged,
    /// Nobody can tell.
    Unknown,
}

/// A pool that is not what LVM takes it for: lvm2 can neither activate nor change it, and what it is told to
/// remove is gone from its metadata all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The transaction by the metadata of LVM.
    pub recorded: u64,
    /// That of the pool; `None` where its metadata are damaged.
    pub found: Option<u64>,
}

impl Mismatch {
    /// Compares the two. lvm2 counts a change before it is made, the pool when it is done, so LVM may be ahead by
    /// one: it makes that change when it activates the pool.
    pub fn of(recorded: u64, found: Found) -> Option<Self> {
        let found = match found {
            Found::Unknown => return None,
            Found::Damaged => None,
            Found::Transaction(found) => Some(found),
        };
        let is_good = |found: u64| recorded == found || Some(recorded) == found.checked_add(1);
        (!found.is_some_and(is_good)).then_some(Self { recorded, found })
    }

    /// What a person can do (vgcfgrestore(8), lvmthin(7)).
    pub fn advice(&self, vg: &VgName, pool: &str) -> String {
        match self.found {
            Some(found) => format!(
                "restore metadata of LVM that have `transaction_id = {found}` for the pool: `grep -l 'transaction_id = \
                 {found}$' /etc/lvm/backup/* /etc/lvm/archive/* | xargs grep -L imgbased:incomplete` looks for them, \
                 `vgcfgrestore --force --file FILE {vg}` restores them"
            ),
            None => format!(
                "`lvconvert --repair {vg}/{pool}` repairs them; see \"Metadata check and repair\" in lvmthin(7)"
            ),
        }
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.found {
            Some(found) => write!(
                f,
                "can neither be activated nor changed: it is at transaction {found}, and LVM takes it to be at {}",
                self.recorded
            ),
            None => f.write_str("cannot be activated: its metadata are damaged"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Role;

    fn pool() -> Volume {
        Volume {
            name: "ImagePool".to_owned(),
            role: Role::Pool,
            size: 100 << 30,
            metadata_size: 1 << 30,
            chunk_size: 64 << 10,
            data_percent: Some(Percent::new(50)),
            metadata_percent: Some(Percent::new(10)),
            ..Volume::default()
        }
    }

    #[test]
    fn the_room_in_a_pool_is_that_of_its_data_or_its_metadata() {
        let with = |change: fn(&mut Volume)| {
            let mut pool = pool();
            change(&mut pool);
            room(&Group::with(vec![pool]))
        };
        assert_eq!(with(|_| ()).unwrap(), Some((100 << 30) * 45 / 100));
        // A chunk of data needs 80 bytes of metadata.
        let metadata = (1_u64 << 30) / 100 * 2 / 80 * (64 << 10);
        let nearly = with(|pool| pool.metadata_percent = Some(Percent::new(93)));
        let nearly = nearly.unwrap().unwrap();
        assert!(nearly.abs_diff(metadata) < 1 << 20, "{nearly} {metadata}");
        // Inactive, it does not tell, and is not taken to be empty.
        for change in [
            |pool: &mut Volume| pool.data_percent = None,
            |pool: &mut Volume| pool.metadata_percent = None,
        ] {
            assert_eq!(with(change).unwrap(), None);
        }
        for (change, message) in [
            (
                (|pool: &mut Volume| pool.data_percent = Some(Percent::new(95))) as fn(&mut Volume),
                "the data space of HostVG/ImagePool is 95.0 % full, less than 95.0 % is needed",
            ),
            (
                |pool| {
                    pool.data_percent = Some(Percent::new(80));
                    pool.profile = PROFILE.to_owned();
                },
                "the data space of HostVG/ImagePool is 80.0 % full, less than 80.0 %",
            ),
            (
                |pool| pool.metadata_percent = Some(Percent::new(95)),
                "the metadata space of HostVG/ImagePool is 95.0 % full",
            ),
            (
                |pool| pool.role = Role::Foreign,
                "volume group HostVG has no thin pool with the tag imgbased:pool",
            ),
        ] {
            let error = with(change).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn what_is_written_ends_before_the_pool_is_full() {
        let status = |data, metadata, fault| Status {
            transaction: Some(1),
            data: Percent::new(data),
            metadata: Percent::new(metadata),
            fault,
        };
        let vg = "HostVG".parse().unwrap();
        for (status, expected) in [
            (status(94, 94, None), ""),
            (status(95, 10, None), "its data space is 95.0 % full"),
            (status(10, 96, None), "its metadata space is 96.0 % full"),
            (status(10, 10, Some(Fault::ReadOnly)), "is read-only"),
            (status(10, 10, Some(Fault::NoSpace)), "is full"),
        ] {
            let checked = status.check_while_written(&vg);
            let said = checked
                .err()
                .map(|error| error.to_string())
                .unwrap_or_default();
            assert!(
                said.contains(expected) && said.is_empty() == expected.is_empty(),
                "{said}"
            );
        }
    }

    #[test]
    fn a_full_pool_can_be_made_emptier_and_one_that_is_read_only_stays_as_it_is() {
        for (fault, may_change) in [
            (None, true),
            (Some(Fault::NoSpace), true),
            (Some(Fault::NeedsCheck), false),
            (Some(Fault::ReadOnly), false),
            (Some(Fault::NoMetadata), false),
            (Some(Fault::Failed), false),
        ] {
            let group = Group::with(vec![Volume { fault, ..pool() }]);
            assert_eq!(check_changeable(&group).is_ok(), may_change, "{fault:?}");
        }
    }

    #[test]
    fn limits_of_a_pool() {
        for (profile, mib, data, metadata) in [
            ("imgbased", 2, 80, 75),
            ("", 16, 95, 75),
            ("", 40, 95, 90),
            ("other", 1024, 95, 95),
            ("", 0, 95, 75),
        ] {
            let pool = Volume {
                profile: profile.into(),
                metadata_size: mib << 20,
                ..Volume::default()
            };
            assert_eq!(
                limits(&pool),
                (Percent::new(data), Percent::new(metadata)),
                "{profile} {mib}"
            );
        }
    }

    #[test]
    fn the_limit_is_that_of_the_profile() {
        let profile = include_str!("../lvm/imgbased.profile");
        assert!(profile.contains("thin_pool_autoextend_threshold = 80\n"));
        assert_eq!(EXTENDED, Percent::new(80));
    }

    #[test]
    fn lvm_may_be_ahead_of_the_pool_by_one_change() {
        for (recorded, found, expected) in [
            (3, Found::Transaction(3), None),
            (4, Found::Transaction(3), None),
            (3, Found::Unknown, None),
            (5, Found::Transaction(3), Some(Some(3))),
            (3, Found::Transaction(4), Some(Some(4))),
            (0, Found::Transaction(u64::MAX), Some(Some(u64::MAX))),
            (3, Found::Damaged, Some(None)),
        ] {
            let mismatch = Mismatch::of(recorded, found);
            let found_in_pool = mismatch.map(|mismatch| mismatch.found);
            assert_eq!(found_in_pool, expected, "{recorded} {found:?}");
        }
    }

    #[test]
    fn what_is_there_grows_also_where_no_further_volume_is_made() {
        let mut pool = pool();
        pool.profile = PROFILE.to_owned();
        // Of the metadata, a quarter or 4 MiB have to be free for another volume.
        pool.metadata_size = 16 << 20;
        for (data, metadata, may_be_made, has_left) in [
            (50, 10, true, true),
            (80, 10, false, true),
            (50, 75, false, true),
            (94, 94, false, true),
            (95, 10, false, false),
            (50, 95, false, false),
        ] {
            pool.data_percent = Some(Percent::new(data));
            pool.metadata_percent = Some(Percent::new(metadata));
            let group = Group::with(vec![pool.clone()]);
            assert_eq!(room(&group).is_ok(), may_be_made, "{data} {metadata}");
            let left = left(&group);
            assert_eq!(left.is_ok(), has_left, "{data} {metadata}");
            assert!(left.is_err() || left.unwrap() > Some(0));
        }
    }

    #[test]
    fn what_to_do_depends_on_what_is_wrong() {
        let vg = "HostVG".parse().unwrap();
        for (found, problem, advice) in [
            (
                Some(3),
                "it is at transaction 3, and LVM takes it to be at 9",
                "vgcfgrestore --force --file FILE HostVG",
            ),
            (
                None,
                "its metadata are damaged",
                "lvconvert --repair HostVG/ImagePool",
            ),
        ] {
            let mismatch = Mismatch { recorded: 9, found };
            assert!(mismatch.to_string().ends_with(problem), "{mismatch}");
            let text = mismatch.advice(&vg, "ImagePool");
            assert!(text.contains(advice), "{text}");
        }
    }
}
