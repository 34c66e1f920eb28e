//! The view of a volume group: its pool, bases, their layers, and everything else in it.

use std::fmt;

use serde::Serialize;

use super::name::{LvName, VgName, is_base_of_imgbased};
use super::percent::Percent;
use super::pool::Fault;

/// LVM tags. Those without a value are the ones of imgbased, so that its groups are read as well.
pub mod tag {
    pub const VG: &str = "imgbased:vg";
    pub const POOL: &str = "imgbased:pool";
    pub const BASE: &str = "imgbased:base";
    pub const LAYER: &str = "imgbased:layer";
    pub const VOLUME: &str = "imgbased:volume";
    /// On such a volume, followed by the path where each layer mounts it ([`super::super::volume`]).
    pub const MOUNT: &str = "imgbased:mount=";
    /// Beside it, followed by the options of the mount.
    pub const MOUNT_OPTIONS: &str = "imgbased:mountopts=";
    /// Instead of the first, until the content of that path is copied when the system goes down.
    pub const MOVING: &str = "imgbased:moving=";
    /// On a snapshot of such a volume, followed by its path; the options are as on that.
    pub const SNAPSHOT: &str = "imgbased:snapshot=";
    /// Beside it, followed by the layer that an update made when it was taken.
    pub const BEFORE: &str = "imgbased:before=";
    /// On a layer, followed by the name of its base.
    pub const OF: &str = "imgbased:of=";
    /// On a base, followed by the digest of its content.
    pub const SHA256: &str = "imgbased:sha256=";
    /// On a base, followed by the SHA-256 of the image that it was made of.
    pub const IMAGE: &str = "imgbased:image=";
    /// On a base, followed by the version that its image says it is of.
    pub const VERSION: &str = "imgbased:version=";
    /// On the group, followed by what stands for a place with images, a colon, and the highest version that was taken
    /// from there.
    pub const NEWEST: &str = "imgbased:newest=";
    /// On a base whose fstab has a line for the root: each of its layers needs one of its own.
    pub const ROOT_LINE: &str = "imgbased:fstab-root";
    /// On a base that was made of an installed system: what is in it is the host's, and no image's.
    pub const ADOPTED: &str = "imgbased:adopted";
    /// On a base that a rollback has left: no update takes that image again unless it is told to.
    pub const HOLD: &str = "imgbased:hold";
    /// On a layer that has come up, nobody knows when.
    pub const GOOD: &str = "imgbased:good";
    /// On a layer that has come up, followed by the time in UTC when it did so last.
    pub const GOOD_AT: &str = "imgbased:good=";
    /// On a layer whose trial failed, followed by the number of tries, a colon and the time in UTC.
    pub const FAILED: &str = "imgbased:failed=";
    /// On a layer with a kernel whose trial failed, followed by the number of tries, the time in UTC, and
    /// the version, with slashes between.
    pub const KERNEL_FAILED: &str = "imgbased:kernel-failed=";
    /// On a volume or group that is still being made. Everything but `check` ignores such a volume.
    pub const INCOMPLETE: &str = "imgbased:incomplete";
    /// Beside it, followed by the process that makes it: as long as that lives, `check` ignores it too.
    pub const MAKER: &str = "imgbased:maker=";
}

/// Volumes are made of extents, of this size in bytes unless a group was made with others.
const EXTENT: u64 = 4 << 20;

/// What a logical volume is to us, by its tags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Pool,
    Base,
    Layer,
    /// A volume that layers share, such as Config.
    Volume,
    /// Such a volume as it was before an update.
    Snapshot,
    Incomplete,
    #[default]
    Foreign,
}

impl Role {
    pub fn is_bootable(self) -> bool {
        matches!(self, Self::Base | Self::Layer)
    }

    /// What the volume `name` with these tags is.
    pub fn of(name: &str, tags: &[impl AsRef<str>]) -> Self {
        let has = |tag| tags.iter().any(|t| t.as_ref() == tag);
        // The first base that imgbased makes on a host is tagged as a layer, and only its name tells.
        let is_first_base = || {
            let mut tags = tags.iter();
            is_base_of_imgbased(name) && !tags.any(|t| t.as_ref().starts_with(tag::OF))
        };
        if has(tag::INCOMPLETE) {
            Self::Incomplete
        } else if has(tag::POOL) {
            Self::Pool
        } else if has(tag::BASE) || has(tag::LAYER) && is_first_base() {
            Self::Base
        } else if has(tag::LAYER) {
            Self::Layer
        } else if has(tag::VOLUME) {
            Self::Volume
        } else if tags.iter().any(|t| t.as_ref().starts_with(tag::SNAPSHOT)) {
            Self::Snapshot
        } else {
            Self::Foreign
        }
    }
}

/// The process that makes the volume or group with these tags, if it is still being made.
pub fn maker(tags: &[String]) -> Option<&str> {
    tags.iter().find_map(|t| t.strip_prefix(tag::MAKER))
}

/// The names among `volumes` that can be booted, bases and layers, in order.
pub fn bootable<'a>(volumes: impl Iterator<Item = (&'a str, Role)>) -> Vec<LvName> {
    let mut names: Vec<LvName> = volumes
        .filter(|(_, role)| role.is_bootable())
        .filter_map(|(name, _)| name.parse().ok())
        .collect();
    names.sort_unstable();
    names
}

/// One logical volume. Sizes are bytes, percentages are of the volume's size.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is a column of the report"
)]
pub struct Volume {
    /// As LVM reports it; not every name in a group is one that we would give.
    pub name: String,
    pub role: Role,
    pub tags: Vec<String>,
    pub size: u64,
    pub active: bool,
    pub writable: bool,
    /// Whether it stays inactive when its group is activated.
    pub skips_activation: bool,
    /// Whether a snapshot that is not thin is of it: that would be removed with it.
    pub is_origin: bool,
    /// Whether a snapshot is being merged into it, or will be when it is activated next.
    pub is_merging: bool,
    /// Of a pool: whether new chunks are zeroed.
    pub zeroes: bool,
    /// Whether dmeventd(8) watches it: a pool is extended then before it is full.
    pub monitored: bool,
    /// The lvm profile that goes with it; often empty.
    pub profile: String,
    /// Of a pool: the size of its metadata and of its chunks.
    pub metadata_size: u64,
    pub chunk_size: u64,
    /// Of a pool: how many changes of its volumes LVM has recorded.
    pub transaction_id: Option<u64>,
    pub data_percent: Option<Percent>,
    pub metadata_percent: Option<Percent>,
    /// Of a pool that is active.
    pub fault: Option<Fault>,
}

impl Volume {
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.iter().any(|t| t == tag)
    }

    /// The base that this layer is tagged with. Layers that imgbased made have no such tag.
    pub fn of(&self) -> Option<&str> {
        self.tags.iter().find_map(|t| t.strip_prefix(tag::OF))
    }

    /// The digest that was recorded when this base was made.
    pub fn digest(&self) -> Option<&str> {
        self.tags.iter().find_map(|t| t.strip_prefix(tag::SHA256))
    }

    /// What it is, where lvm2 would remove a snapshot of others with it.
    pub fn is_needed_as(&self) -> Option<&'static str> {
        if self.is_origin {
            Some("the origin of a snapshot that would be lost with it (lvs(8) shows which)")
        } else if self.is_merging {
            Some("what a snapshot is being merged into (lvs(8) shows it with -a)")
        } else {
            None
        }
    }

    /// Whether nothing is known against booting it for ever: bases are never changed.
    pub fn is_good(&self) -> bool {
        self.role == Role::Base || !self.good_tags().is_empty()
    }

    /// The tags that tell that a layer has come up; there should be one at most.
    pub fn good_tags(&self) -> Vec<&str> {
        let tags = self.tags.iter().map(String::as_str);
        tags.filter(|t| *t == tag::GOOD || t.starts_with(tag::GOOD_AT))
            .collect()
    }

    /// When a layer came up last, in UTC, as RFC 3339 writes it: such texts are in the order of the times.
    pub fn good_at(&self) -> Option<&str> {
        let tags = self.tags.iter();
        let times = tags.filter_map(|t| t.strip_prefix(tag::GOOD_AT));
        times.filter(|at| is_time(at)).max()
    }

    /// Whether a rollback has left this base.
    pub fn is_held(&self) -> bool {
        self.has_tag(tag::HOLD)
    }

    /// Whether this base was made of a system that was installed on the host.
    pub fn is_adopted(&self) -> bool {
        self.has_tag(tag::ADOPTED)
    }

    /// The tags that tell of a trial that failed; there should be one at most.
    pub fn failure_tags(&self) -> Vec<&str> {
        let tags = self.tags.iter().map(String::as_str);
        tags.filter(|t| t.starts_with(tag::FAILED)).collect()
    }

    /// The trials of kernels in this layer that failed.
    pub fn kernel_failures(&self) -> Vec<KernelFailure<'_>> {
        let parse = |tag| KernelFailure::parse(tag);
        self.tags.iter().filter_map(|tag| parse(tag)).collect()
    }

    /// The tags that tell of trials of this kernel that failed; there should be one at most.
    pub fn kernel_failure_tags(&self, kernel: &str) -> Vec<&str> {
        let failures = self.kernel_failures().into_iter();
        let of_kernel = failures.filter(|failure| failure.is_of(kernel));
        of_kernel.map(|failure| failure.tag).collect()
    }

    /// How often a layer was tried in vain, and when that was found.
    pub fn failure(&self) -> Option<Failure> {
        let failed = self.failure_tags().pop()?.strip_prefix(tag::FAILED)?;
        let (tries, at) = failed.split_once(':')?;
        Some(Failure {
            tries: tries.parse().ok()?,
            at: at.to_owned(),
        })
    }
}

/// Whether a text is a time as [`Volume::good_at`] returns it.
fn is_time(text: &str) -> bool {
    const FORM: &str = "0000-00-00T00:00:00Z";
    let fits = |(c, form): (u8, u8)| match form {
        b'0' => c.is_ascii_digit(),
        _ => c == form,
    };
    text.len() == FORM.len() && text.bytes().zip(FORM.bytes()).all(fits)
}

/// A trial that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub tries: u32,
    /// In UTC, as RFC 3339 writes it.
    pub at: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed {} times, {}", self.tries, self.at)
    }
}

/// The trial of a kernel that failed, as a tag of its layer.
#[derive(Debug, PartialEq, Eq)]
pub struct KernelFailure<'a> {
    pub tag: &'a str,
    /// The version, as far as a tag can hold it.
    pub kernel: &'a str,
    pub failure: Failure,
}

impl<'a> KernelFailure<'a> {
    fn parse(tag: &'a str) -> Option<Self> {
        let mut parts = tag.strip_prefix(tag::KERNEL_FAILED)?.splitn(3, '/');
        let (tries, at) = (parts.next()?.parse().ok()?, parts.next()?.to_owned());
        Some(Self {
            tag,
            kernel: parts.next()?,
            failure: Failure { tries, at },
        })
    }

    /// The tag that tells of it.
    pub fn tag_of(kernel: &str, tries: u32, at: &str) -> String {
        format!("{}{tries}/{at}/{}", tag::KERNEL_FAILED, in_tag(kernel))
    }

    pub fn is_of(&self, kernel: &str) -> bool {
        self.kernel == in_tag(kernel)
    }
}

/// A text with underscores for what lvm2 does not take in a tag (lvm(8), "VALID NAMES").
pub fn in_tag(text: &str) -> String {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "_+.-/=!:&#".contains(c);
    text.chars()
        .map(|c| if is_valid(c) { c } else { '_' })
        .collect()
}

/// A volume group as one report of LVM shows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub name: VgName,
    /// As lvm2 prints it.
    pub uuid: String,
    pub tags: Vec<String>,
    pub size: u64,
    pub free: u64,
    pub missing_pvs: u64,
    /// In the order in which they were made: names of bases say nothing of that.
    pub volumes: Vec<Volume>,
}

/// A base with its layers, oldest first.
#[derive(Debug)]
pub struct Base<'a> {
    pub name: LvName,
    pub volume: &'a Volume,
    pub layers: Vec<(LvName, &'a Volume)>,
}

impl Group {
    pub fn volume(&self, name: &str) -> Option<&Volume> {
        self.volumes.iter().find(|v| v.name == name)
    }

    /// The thin pool that bases and layers live in.
    pub fn pool(&self) -> Option<&Volume> {
        self.with_role(Role::Pool).next()
    }

    /// Whether `layout init` was interrupted while it made this group.
    pub fn is_incomplete(&self) -> bool {
        self.tags.iter().any(|t| t == tag::INCOMPLETE)
    }

    /// The bases that a new base of at most `size` bytes can be a snapshot of, those first whose content is probably
    /// nearest to its own: those before it, from the last on, then those after it. None is larger, since lvm2 does not
    /// like to cut volumes off.
    pub fn nearest(&self, new: &LvName, size: u64) -> Vec<Base<'_>> {
        let size = size.checked_next_multiple_of(EXTENT).unwrap_or(size);
        let mut bases = self.bases();
        bases.retain(|base| base.volume.size <= size);
        bases.sort_unstable_by(|a, b| (b.name < *new, &b.name).cmp(&(a.name < *new, &a.name)));
        bases
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Volume> {
        self.volumes.iter().filter(move |v| v.role == role)
    }

    /// The names of the volumes that can be booted, in order.
    pub fn bootable(&self) -> Vec<LvName> {
        bootable(self.volumes.iter().map(|v| (v.name.as_str(), v.role)))
    }

    /// All bases, the one that was made last at the end, each with its layers in the order of their numbers.
    pub fn bases(&self) -> Vec<Base<'_>> {
        self.tree().0
    }

    /// The bases, and the layers of none of them.
    pub fn tree(&self) -> (Vec<Base<'_>>, Vec<&Volume>) {
        let mut bases: Vec<Base> = self
            .with_role(Role::Base)
            .filter_map(|volume| {
                Some(Base {
                    name: volume.name.parse().ok()?,
                    volume,
                    layers: Vec::new(),
                })
            })
            .collect();
        let mut others = Vec::new();
        for volume in self.with_role(Role::Layer) {
            let found = volume.name.parse().ok().and_then(|name: LvName| {
                let mut bases = bases.iter_mut();
                Some((bases.find(|b| is_layer_of(volume, &name, &b.name))?, name))
            });
            match found {
                Some((base, name)) => base.layers.push((name, volume)),
                None => others.push(volume),
            }
        }
        for base in &mut bases {
            base.layers.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        }
        (bases, others)
    }

    /// The base that a layer belongs to.
    pub fn base_of(&self, layer: &Volume) -> Option<LvName> {
        if layer.role != Role::Layer {
            return None;
        }
        let name: LvName = layer.name.parse().ok()?;
        self.with_role(Role::Base)
            .filter_map(|base| base.name.parse().ok())
            .find(|base| is_layer_of(layer, &name, base))
    }

    /// The base of a layer, if a rollback has left that base.
    pub fn held_base_of(&self, layer: &LvName) -> Option<LvName> {
        let base = self.base_of(self.volume(layer.as_str())?)?;
        self.volume(base.as_str())?.is_held().then_some(base)
    }

    /// Whether no layer has come up later than this one. Not where nobody knows when this one has.
    pub fn is_last_good(&self, layer: &Volume) -> bool {
        let at = layer.good_at();
        at.is_some() && self.with_role(Role::Layer).all(|l| l.good_at() <= at)
    }

    /// The names of all volumes: a new one has to differ from each.
    pub fn taken(&self) -> impl Iterator<Item = &str> {
        self.volumes.iter().map(|v| v.name.as_str())
    }
}

/// By its tag; layers that imgbased made have none, there the name decides.
fn is_layer_of(volume: &Volume, name: &LvName, base: &LvName) -> bool {
    match volume.of() {
        Some(of) => of == base.as_str(),
        None => name.layer_number(base).is_some(),
    }
}

/// What the tests of this and other rooms begin with.
#[cfg(test)]
impl Volume {
    pub fn tagged(name: &str, tags: &[&str]) -> Self {
        Self {
            name: name.to_owned(),
            role: Role::of(name, tags),
            tags: tags.iter().map(ToString::to_string).collect(),
            ..Self::default()
        }
    }
}

#[cfg(test)]
impl Group {
    pub fn with(volumes: Vec<Volume>) -> Self {
        Self {
            name: "HostVG".parse().unwrap(),
            uuid: String::new(),
            tags: Vec::new(),
            size: 0,
            free: 0,
            missing_pvs: 0,
            volumes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume(name: &str, tags: &[&str]) -> Volume {
        Volume::tagged(name, tags)
    }

    #[test]
    fn layers_are_found_by_tag_and_those_of_imgbased_by_name() {
        let group = Group::with(vec![
            volume("Base-1.10", &[tag::LAYER, "imgbased:of=Base-1"]),
            volume("Base-1.9", &[tag::LAYER]),
            volume("Base-10", &[tag::BASE]),
            volume("Base-1", &[tag::BASE]),
            volume("node-4.5-1", &[tag::BASE]),
            volume("node-4.5-1+1", &[tag::LAYER]),
            volume("Base-10.1", &[tag::LAYER]),
            volume("data", &[]),
        ]);
        let tree: Vec<(String, Vec<String>)> = group
            .bases()
            .iter()
            .map(|b| {
                let layers = b.layers.iter().map(|(n, _)| n.to_string()).collect();
                (b.name.to_string(), layers)
            })
            .collect();
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            tree,
            [
                // It was made before the others.
                ("Base-10".into(), names(&["Base-10.1"])),
                ("Base-1".into(), names(&["Base-1.9", "Base-1.10"])),
                ("node-4.5-1".into(), names(&["node-4.5-1+1"])),
            ]
        );
        let base_of = |name| group.base_of(group.volume(name).unwrap());
        assert_eq!(base_of("Base-1.9").unwrap().as_str(), "Base-1");
        assert_eq!(base_of("data"), None);
    }

    #[test]
    fn the_first_base_of_imgbased_is_known_by_its_name() {
        for (name, tags, role) in [
            ("node-4.5.1-0.el9", &[tag::LAYER][..], Role::Base),
            ("ovirt-node-ng-4.5.1-0.el9", &[tag::LAYER], Role::Base),
            ("node-4.5.1-0.el9+1", &[tag::LAYER], Role::Layer),
            ("node-4.5.1-0.el9", &[tag::BASE], Role::Base),
            ("node-4.5.1-0.el9", &["imgbased:init"], Role::Foreign),
            ("Base-0.1", &[tag::LAYER], Role::Layer),
            ("root", &[tag::LAYER], Role::Layer),
            // Layers of ours name their base.
            ("a-b-1", &[tag::LAYER, "imgbased:of=a-b"], Role::Layer),
            ("a-b-1", &[tag::LAYER, tag::INCOMPLETE], Role::Incomplete),
        ] {
            assert_eq!(Role::of(name, tags), role, "{name} {tags:?}");
        }
        let group = Group::with(vec![
            volume("node-4.5.1-0", &[tag::LAYER]),
            volume("node-4.5.1-0+1", &[tag::LAYER]),
        ]);
        assert_eq!(group.bases()[0].layers.len(), 1);
    }

    #[test]
    fn the_nearest_base_is_the_one_before_and_not_larger() {
        let sized = |name: &str, extents: u64| Volume {
            size: extents * EXTENT,
            ..volume(name, &[tag::BASE])
        };
        let group = Group::with(vec![
            sized("Base-1", 4),
            sized("Base-3", 4),
            sized("Base-4", 9),
        ]);
        let nearest = |name: &str, extents: u64| {
            // A filesystem need not fill its last extent.
            let size = extents * EXTENT - 100;
            let bases = group.nearest(&name.parse().unwrap(), size);
            let names: Vec<&str> = bases.iter().map(|base| base.name.as_str()).collect();
            names.join(" ")
        };
        assert_eq!(nearest("Base-2", 4), "Base-1 Base-3");
        assert_eq!(nearest("Base-5", 4), "Base-3 Base-1");
        assert_eq!(nearest("Base-5", 9), "Base-4 Base-3 Base-1");
        assert_eq!(nearest("Base-0", 9), "Base-4 Base-3 Base-1");
        assert_eq!(nearest("Base-5", 3), "");
        assert_eq!(group.nearest(&"x".parse().unwrap(), u64::MAX).len(), 3);
    }

    #[test]
    fn a_base_tells_whether_it_was_adopted() {
        let group = Group::with(vec![
            volume("node-1-1", &[tag::BASE, "imgbased:adopted"]),
            volume("node-1-1+1", &[tag::LAYER, "imgbased:of=node-1-1"]),
            volume("Base-0", &[tag::BASE, "imgbased:of=imgbased:adopted"]),
        ]);
        let adopted = group.volumes.iter().filter(|volume| volume.is_adopted());
        let adopted: Vec<&str> = adopted.map(|volume| volume.name.as_str()).collect();
        assert_eq!(adopted, ["node-1-1"]);
        assert_eq!(group.volumes[0].role, Role::Base);
    }

    #[test]
    fn what_is_half_made_is_neither_base_nor_layer() {
        let group = Group::with(vec![
            volume("Base-0", &[tag::BASE]),
            volume(
                "Base-0.1",
                &[tag::LAYER, tag::INCOMPLETE, "imgbased:of=Base-0"],
            ),
            volume("Base-1", &[tag::INCOMPLETE]),
        ]);
        assert_eq!(group.bootable(), ["Base-0".parse().unwrap()]);
        assert!(group.bases()[0].layers.is_empty());
        assert_eq!(group.with_role(Role::Incomplete).count(), 2);
    }

    #[test]
    fn a_layer_is_good_since_a_time_or_nobody_knows_since_when() {
        let at = |day: u32| format!("2026-11-{day:02}T10:00:00Z");
        let (first, second) = (at(1), at(2));
        for (tags, is_good, good_at) in [
            (&[][..], false, None),
            (&["imgbased:good".to_owned()], true, None),
            (&[format!("imgbased:good={first}")], true, Some(&first)),
            // One of them should have been removed.
            (
                &[
                    format!("imgbased:good={second}"),
                    "imgbased:good".to_owned(),
                    format!("imgbased:good={first}"),
                ],
                true,
                Some(&second),
            ),
            // Others can write tags as well.
            (&["imgbased:good=zzzz".to_owned()], true, None),
            (
                &["imgbased:good=2026-11-01T10:00:00+".to_owned()],
                true,
                None,
            ),
            (
                &["imgbased:good=2026-11-0xT10:00:00Z".to_owned()],
                true,
                None,
            ),
            (&["imgbased:goods".to_owned()], false, None),
        ] {
            let tags = tags.iter().map(String::as_str).chain([tag::LAYER]);
            let layer = volume("Base-0.1", &tags.collect::<Vec<_>>());
            assert_eq!(layer.is_good(), is_good, "{:?}", layer.tags);
            let expected = good_at.map(String::as_str);
            assert_eq!(layer.good_at(), expected, "{:?}", layer.tags);
            assert_eq!(!layer.good_tags().is_empty(), is_good, "{:?}", layer.tags);
        }
        assert!(volume("Base-0", &[tag::BASE]).is_good());
    }

    #[test]
    fn the_layer_that_came_up_last_is_told_by_the_time() {
        let good =
            |name: &str, at: &str| volume(name, &[tag::LAYER, &format!("imgbased:good{at}")]);
        let group = Group::with(vec![
            good("Base-0.1", "=2026-11-02T10:00:00Z"),
            good("Base-0.2", "=2026-11-01T10:00:00Z"),
            good("Base-0.3", ""),
            volume("Base-0.4", &[tag::LAYER]),
        ]);
        let last = group
            .volumes
            .iter()
            .filter(|layer| group.is_last_good(layer));
        let last: Vec<&str> = last.map(|layer| layer.name.as_str()).collect();
        assert_eq!(last, ["Base-0.1"]);
        // Where no times were recorded yet, none is known to be the last.
        let group = Group::with(group.volumes[2..].to_vec());
        assert!(!group.volumes.iter().any(|layer| group.is_last_good(layer)));
    }
}
