//! Snapshots of the volumes that layers share, as they were before an update. A rollback can have them take the place of
//! the volumes. Where a volume is mounted is said by its tags, so a few tags are all that changes.

use anyhow::{Context, Result, ensure};

use super::layout::{Group, tag};
use super::name::LvName;
use super::volume::{self, Mount};

/// A snapshot of a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Saved {
    /// The volume as it would be mounted; its name is that of the snapshot.
    pub mount: Mount,
    /// The layer that was made when it was taken.
    pub before: String,
}

/// A snapshot that takes the place of a volume.
#[derive(Debug, PartialEq, Eq)]
pub struct Swap {
    pub saved: Saved,
    /// The volume that is mounted there now, if one is.
    pub old: Option<Mount>,
}

impl Saved {
    /// What a snapshot of a mounted volume is to be, which is taken before the layer `before` runs.
    pub fn new(mount: &Mount, before: &LvName, is_taken: &dyn Fn(&str) -> bool) -> Result<Self> {
        let name = volume::name_for(&mount.path, &|_| false)?;
        let name = format!("{name}-before-{before}");
        let mut free: LvName = name.parse()?;
        let mut number = 1;
        while is_taken(free.as_str()) {
            number += 1;
            free = format!("{name}-{number}").parse()?;
        }
        Ok(Self {
            mount: Mount {
                name: free.to_string(),
                ..mount.clone()
            },
            before: before.to_string(),
        })
    }

    fn of(name: &str, tags: &[String]) -> Option<Self> {
        let value = |prefix| tags.iter().find_map(|tag| tag.strip_prefix(prefix));
        let before = value(tag::BEFORE)?.to_owned();
        let mount = format!("{}{}", tag::MOUNT, value(tag::SNAPSHOT)?);
        let options = tags
            .iter()
            .filter(|tag| tag.starts_with(tag::MOUNT_OPTIONS));
        let tags: Vec<String> = options.cloned().chain([mount]).collect();
        let mount = Mount::of(name, &tags).ok().flatten()?;
        Some(Self { mount, before })
    }

    /// The tags that make it a snapshot, and no volume that is mounted.
    pub fn tags(&self) -> Result<Vec<String>> {
        let mount = self.mount.path_tag();
        let path = mount.strip_prefix(tag::MOUNT).unwrap_or_default();
        Ok(vec![
            format!("{}{path}", tag::SNAPSHOT),
            format!("{}{}", tag::BEFORE, self.before),
        ])
    }
}

/// The snapshots of a group. One with tags that nobody may have written is none.
pub fn all(group: &Group) -> Vec<Saved> {
    let volumes = group.volumes.iter();
    volumes
        .filter(|volume| !volume.has_tag(tag::INCOMPLETE))
        .filter_map(|volume| Saved::of(&volume.name, &volume.tags))
        .collect()
}

/// The volumes that are mounted and have no snapshot from before the layer `before` runs.
pub fn missing(group: &Group, mounts: Vec<Mount>, before: &LvName) -> Vec<Mount> {
    let mut saved = all(group);
    saved.retain(|saved| saved.before == before.as_str());
    let is_saved = |mount: &Mount| saved.iter().any(|saved| saved.mount.path == mount.path);
    let mut mounts = mounts;
    mounts.retain(|mount| !mount.moving && !is_saved(mount));
    mounts
}

/// What is swapped where the layer `to` is gone back to: of the snapshots whose layer was made after it, those of the
/// earliest such layer. They have the volumes as they were when an update first went on from that layer.
///
/// Refuses where there is none, and a volume that waits for its content.
pub fn swaps(group: &Group, to: Option<&LvName>) -> Result<Vec<Swap>> {
    let to = to.context(
        "another system mounts no volumes of layers; leave --with-volumes away, or name a layer with --to",
    )?;
    let place = |name: &str| group.volumes.iter().position(|volume| volume.name == name);
    let (mut all, target) = (all(group), place(to.as_str()));
    let places = all.iter().filter_map(|saved| place(&saved.before));
    let earliest = places.filter(|at| Some(*at) > target).min();
    all.retain(|saved| earliest.is_some() && place(&saved.before) == earliest);
    ensure!(
        !all.is_empty(),
        "no snapshots of volumes were taken before a layer that is newer than {to}; leave --with-volumes away, and the \
         volumes stay as they are; `update --snapshot-volumes` takes snapshots"
    );
    let mounts = volume::mounts_of(group, &mut |_| ());
    let mut swaps = Vec::new();
    for saved in all {
        let old = mounts.iter().find(|mount| mount.path == saved.mount.path);
        ensure!(
            !old.is_some_and(|old| old.moving),
            "{} waits to move to its volume; restart, or `imgbased-helper volume remove {}`",
            saved.mount.path,
            saved.mount.path
        );
        let old = old.filter(|old| old.name != saved.mount.name).cloned();
        swaps.push(Swap { saved, old });
    }
    Ok(swaps)
}

/// The snapshots that were taken before these layers ran.
pub fn left_by(group: &Group, layers: &[LvName]) -> Vec<LvName> {
    let is_of = |before: &str| layers.iter().any(|name| name.as_str() == before);
    names(group, &is_of)
}

/// The snapshots whose layer is gone: nobody goes back from it.
pub fn orphans(group: &Group) -> Vec<LvName> {
    names(group, &|before| group.volume(before).is_none())
}

/// Without those that are volumes already.
fn names(group: &Group, is_wanted: &dyn Fn(&str) -> bool) -> Vec<LvName> {
    let is_volume = |saved: &Saved| {
        let volume = group.volume(&saved.mount.name);
        volume.is_some_and(|volume| volume.has_tag(tag::VOLUME))
    };
    let mut found = all(group);
    found.retain(|saved| is_wanted(&saved.before) && !is_volume(saved));
    let names = found.into_iter();
    names
        .filter_map(|saved| saved.mount.name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::{Role, Volume};

    const SNAPSHOT: [&str; 2] = ["imgbased:snapshot=/var", "imgbased:before=Base-1.1"];

    fn group(volumes: &[(&str, &[&str])]) -> Group {
        let volumes = volumes.iter();
        Group::with(
            volumes
                .map(|(name, tags)| Volume::tagged(name, tags))
                .collect(),
        )
    }

    #[test]
    fn a_snapshot_says_of_what_and_before_which_layer_it_is() {
        let mount = Mount {
            path: "/srv/a b".to_owned(),
            name: "data".to_owned(),
            options: "noatime,nodev".to_owned(),
            moving: false,
        };
        let before = "Base-1.1".parse().unwrap();
        for (taken, name) in [
            (&[][..], "srv-a.b-before-Base-1.1"),
            (&["srv-a.b-before-Base-1.1"], "srv-a.b-before-Base-1.1-2"),
        ] {
            let saved = Saved::new(&mount, &before, &|name| taken.contains(&name)).unwrap();
            assert_eq!(saved.mount.name, name);
            let mut tags = saved.tags().unwrap();
            assert_eq!(Role::of(name, &tags), Role::Snapshot);
            let options = mount.tags().unwrap();
            tags.extend(options.into_iter().filter(|tag| tag.contains("mountopts")));
            assert_eq!(Saved::of(name, &tags), Some(saved));
        }
        for tags in [
            &["imgbased:snapshot=/etc", "imgbased:before=x"][..],
            &["imgbased:snapshot=/var"],
            &["imgbased:before=x"],
        ] {
            let tags: Vec<String> = tags.iter().map(ToString::to_string).collect();
            assert_eq!(Saved::of("x", &tags), None, "{tags:?}");
        }
    }

    #[test]
    fn a_volume_changes_places_with_the_first_snapshot_since_the_layer_that_is_gone_back_to() {
        let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
        let moving: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:moving=/var"]);
        let [zero, first, second]: [(&str, &[&str]); 3] =
            ["Base-0.1", "Base-1.1", "Base-2.1"].map(|name| (name, &[tag::LAYER][..]));
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let other: (&str, &[&str]) = (
            "other",
            &["imgbased:snapshot=/var", "imgbased:before=Base-2.1"],
        );
        let begun: (&str, &[&str]) = (
            "one",
            &[SNAPSHOT[0], SNAPSHOT[1], tag::VOLUME, "imgbased:mount=/var"],
        );
        for (volumes, to, expected) in [
            (
                &[zero, var, first, one][..],
                Some("Base-0.1"),
                Ok(&[("one", Some("var"))][..]),
            ),
            // The earliest of several, wherever it is listed.
            (
                &[zero, var, first, second, other, one],
                Some("Base-0.1"),
                Ok(&[("one", Some("var"))]),
            ),
            (
                &[zero, var, first, one, second, other],
                Some("Base-1.1"),
                Ok(&[("other", Some("var"))]),
            ),
            // Only the update before had any: they are older than what is gone back to.
            (
                &[zero, var, first, one, second],
                Some("Base-1.1"),
                Err("newer than Base-1.1"),
            ),
            (
                &[zero, var, first, one, second, other],
                Some("Base-2.1"),
                Err("newer than Base-2.1"),
            ),
            // Only the update after had any.
            (
                &[zero, var, first, second, other],
                Some("Base-0.1"),
                Ok(&[("other", Some("var"))]),
            ),
            // Their layer is gone, so nobody knows when they were taken.
            (&[zero, var, one], Some("Base-0.1"), Err("no snapshots")),
            (&[zero, var, first], Some("Base-0.1"), Err("no snapshots")),
            (&[zero, var, first, one], None, Err("another system")),
            (
                &[zero, moving, first, one],
                Some("Base-0.1"),
                Err("waits to move"),
            ),
            // The volume was removed since.
            (&[zero, first, one], Some("Base-0.1"), Ok(&[("one", None)])),
            // It was cut off before.
            (
                &[zero, first, begun, var],
                Some("Base-0.1"),
                Ok(&[("one", None)]),
            ),
        ] {
            let to = to.map(|to| to.parse().unwrap());
            let found = swaps(&group(volumes), to.as_ref());
            match (found, expected) {
                (Ok(found), Ok(expected)) => {
                    let names: Vec<_> = found
                        .iter()
                        .map(|swap| {
                            let old = swap.old.as_ref().map(|old| old.name.as_str());
                            (swap.saved.mount.name.as_str(), old)
                        })
                        .collect();
                    assert_eq!(names, expected, "{volumes:?}");
                }
                (Err(error), Err(expected)) => {
                    assert!(error.to_string().contains(expected), "{error}");
                }
                (found, _) => panic!("{volumes:?} {to:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_volume_without_a_snapshot_from_before_a_layer_is_missing() {
        let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
        let home: (&str, &[&str]) = ("home", &[tag::VOLUME, "imgbased:moving=/home"]);
        let srv: (&str, &[&str]) = ("srv", &[tag::VOLUME, "imgbased:mount=/srv"]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        for (volumes, before, wanted) in [
            (&[][..], "Base-1.1", &[][..]),
            (&[home], "Base-1.1", &[]),
            (&[var, srv, home], "Base-1.1", &["srv", "var"]),
            (&[var, srv, one], "Base-1.1", &["srv"]),
            (&[var, one], "Base-1.1", &[]),
            // That of another update.
            (&[var, one], "Base-2.1", &["var"]),
        ] {
            let group = group(volumes);
            let mounts = volume::mounts_of(&group, &mut |_| ());
            let found = missing(&group, mounts, &before.parse().unwrap());
            let names: Vec<&str> = found.iter().map(|mount| mount.name.as_str()).collect();
            assert_eq!(names, wanted, "{volumes:?} {before}");
        }
    }

    #[test]
    fn a_snapshot_goes_with_the_layer_that_came_after_it() {
        let layer: (&str, &[&str]) = ("Base-1.1", &[tag::LAYER]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let removed: LvName = "Base-1.1".parse().unwrap();
        let other: LvName = "Base-0.1".parse().unwrap();
        let layers = [other, removed];
        let used = [SNAPSHOT[0], SNAPSHOT[1], tag::VOLUME, "imgbased:mount=/var"];
        for (volumes, is_left, is_orphan) in [
            (&[layer, one][..], true, false),
            (&[one], true, true),
            // It is a volume already.
            (&[layer, ("one", &used)], false, false),
            (&[("one", &used)], false, false),
        ] {
            let group = group(volumes);
            assert_eq!(!left_by(&group, &layers).is_empty(), is_left, "{volumes:?}");
            assert!(left_by(&group, &layers[..1]).is_empty());
            assert_eq!(!orphans(&group).is_empty(), is_orphan, "{volumes:?}");
        }
    }
}
