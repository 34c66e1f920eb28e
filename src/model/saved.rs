//! Snapshots of the volumes that layers share, as they were before an update. A rollback can have them take the place of
//! the volumes. Where a volume is mounted is said by its tags, so a few tags are all that changes.

use anyhow::{Context, Result, ensure};

use super::layout::{Group, Volume, tag};
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
    fn new(mount: &Mount, before: &LvName, is_taken: &dyn Fn(&str) -> bool) -> Result<Self> {
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

    pub fn of(name: &str, tags: &[String]) -> Option<Self> {
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

/// Whether these are the tags of a snapshot that has begun to take the place of a volume.
fn is_begun(tags: &[String]) -> bool {
    tags.iter().any(|tag| tag == tag::VOLUME) && tags.iter().any(|t| t.starts_with(tag::BEFORE))
}

/// What is left to be swapped where that was interrupted.
pub fn begun(group: &Group) -> Vec<Swap> {
    swaps_of(group, exchanged(&volume::shared(group)))
}

/// The snapshots that count as volumes already: where one has begun to take the place of one, all from before the same
/// layer have.
pub fn exchanged(volumes: &[(&str, &[String])]) -> Vec<Saved> {
    let mut begun = Vec::new();
    let mut all = Vec::new();
    for (name, tags) in volumes {
        if let Some(saved) = Saved::of(name, tags) {
            begun.extend(is_begun(tags).then(|| saved.before.clone()));
            all.push(saved);
        }
    }
    all.retain(|saved| begun.contains(&saved.before));
    all
}

/// The snapshots with the volumes that are mounted at their paths, or were.
fn swaps_of(group: &Group, all: Vec<Saved>) -> Vec<Swap> {
    let mut volumes = volume::shared(group);
    volumes.retain(|(_, tags)| !is_begun(tags));
    let mounts = volume::mounts(&volumes, &mut |_| ());
    let swap = |saved: Saved| {
        let old = mounts.iter().find(|mount| mount.path == saved.mount.path);
        let old = old.cloned();
        Swap { saved, old }
    };
    all.into_iter().map(swap).collect()
}

/// The snapshots of a group. One with tags that nobody may have written is none.
pub fn all(group: &Group) -> Vec<Saved> {
    let volumes = group.volumes.iter();
    volumes
        .filter(|volume| !volume.has_tag(tag::INCOMPLETE))
        .filter_map(|volume| Saved::of(&volume.name, &volume.tags))
        .collect()
}

/// The volumes that are mounted and have no snapshot from before the layer `before` runs, each with what that is to be.
pub fn new(group: &Group, mut mounts: Vec<Mount>, before: &LvName) -> Result<Vec<(Mount, Saved)>> {
    let mut there = all(group);
    there.retain(|saved| saved.before == before.as_str());
    let is_saved = |mount: &Mount| there.iter().any(|saved| saved.mount.path == mount.path);
    mounts.retain(|mount| !mount.moving && !is_saved(mount));
    let mut new: Vec<(Mount, Saved)> = Vec::new();
    for mount in mounts {
        // The paths of two volumes can make the same name.
        let is_new = |name: &str| new.iter().any(|(_, saved)| saved.mount.name == name);
        let is_taken = |name: &str| group.volume(name).is_some() || is_new(name);
        let saved = Saved::new(&mount, before, &is_taken)?;
        new.push((mount, saved));
    }
    Ok(new)
}

/// What is swapped where the layer `to` is gone back to, and `from` is left: of the snapshots whose layer was made after
/// `to`, and has run since that came up last, those of the earliest such layer. They have the volumes as `to` has left
/// them. Where it runs itself, as after a trial that failed, nothing is left, and the latest snapshots since it was made
/// are those.
///
/// Refuses where there is none, and a volume that waits for its content.
pub fn swaps(group: &Group, to: Option<&LvName>, from: Option<&str>) -> Result<Vec<Swap>> {
    let to = to.context(
        "another system mounts no volumes of layers; leave --with-volumes away, or name a layer with --to",
    )?;
    let place = |name: &str| group.volumes.iter().position(|volume| volume.name == name);
    let (mut all, target) = (all(group), place(to.as_str()));
    let places = all.iter().filter_map(|saved| place(&saved.before));
    let places = places.filter(|at| Some(*at) > target);
    let chosen = match from {
        None => places.max(),
        Some(from) => {
            let to = group.volume(to.as_str());
            let has_run = |at: &usize| {
                let layer = &group.volumes[*at];
                layer.name == from || has_run_since(layer, to)
            };
            places.filter(has_run).min()
        }
    };
    all.retain(|saved| chosen.is_some() && place(&saved.before) == chosen);
    ensure!(
        !all.is_empty(),
        "no snapshots of volumes were taken before a layer that has run since {to}; leave --with-volumes away, and the \
         volumes stay as they are; `update --snapshot-volumes` takes snapshots"
    );
    let swaps = swaps_of(group, all);
    for Swap { saved, old } in &swaps {
        ensure!(
            !old.as_ref().is_some_and(|old| old.moving),
            "{} waits to move to its volume; restart, or `imgbased-helper volume remove {}`",
            saved.mount.path,
            saved.mount.path
        );
    }
    Ok(swaps)
}

/// Whether a layer has come up later than another one did last. Where nobody knows, it has.
fn has_run_since(layer: &Volume, other: Option<&Volume>) -> bool {
    let times = layer.good_at().zip(other.and_then(Volume::good_at));
    layer.is_good() && times.is_none_or(|(at, before)| at > before)
}

/// The snapshots that were taken before a layer ran.
pub fn left_by(group: &Group, layer: &LvName) -> Vec<LvName> {
    names(group, &|before| layer.as_str() == before)
}

/// Whether there is a snapshot from before a layer of this name ran, also if that is gone.
pub fn remembers(group: &Group, layer: &LvName) -> bool {
    all(group)
        .iter()
        .any(|saved| saved.before == layer.as_str())
}

/// The snapshots whose layer is gone: nobody goes back from it.
pub fn orphans(group: &Group) -> Vec<LvName> {
    names(group, &|before| group.volume(before).is_none())
}

/// Without those that are volumes already, and those that others have taken snapshots of.
fn names(group: &Group, is_wanted: &dyn Fn(&str) -> bool) -> Vec<LvName> {
    let stays = |saved: &Saved| {
        let volume = group.volume(&saved.mount.name);
        volume.is_some_and(|volume| volume.has_tag(tag::VOLUME) || volume.is_needed_as().is_some())
    };
    let mut found = all(group);
    found.retain(|saved| is_wanted(&saved.before) && !stays(saved));
    let names = found.into_iter();
    names
        .filter_map(|saved| saved.mount.name.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Role;

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

    /// The numbers of the snapshots that are swapped, with the volumes whose places they take. Of the layers each has the day
    /// when it came up last, or none.
    fn swapped(
        layers: &[(&str, Option<u32>)],
        others: &[(&str, &[&str])],
        to: Option<&str>,
        from: Option<&str>,
    ) -> Result<Vec<(String, Option<String>)>, String> {
        let good = |day: &u32| format!("{}2026-11-{day:02}T10:00:00Z", tag::GOOD_AT);
        let layers = layers.iter().map(|(name, day)| {
            let good = day.as_ref().map(good);
            let tags: Vec<&str> = [tag::LAYER].into_iter().chain(good.as_deref()).collect();
            Volume::tagged(name, &tags)
        });
        let others = others.iter();
        let others = others.map(|(name, tags)| Volume::tagged(name, tags));
        // Where snapshots are in the group says nothing.
        let group = Group::with(others.chain(layers).collect());
        let to = to.map(|to| to.parse().unwrap());
        let swaps = swaps(&group, to.as_ref(), from).map_err(|error| error.to_string())?;
        let names = swaps.into_iter().map(|swap| {
            let old = swap.old.map(|old| old.name);
            (swap.saved.mount.name, old)
        });
        Ok(names.collect())
    }

    #[test]
    fn the_snapshots_are_those_from_before_what_has_run_since_the_layer_that_is_gone_back_to() {
        let snapshots: Vec<(String, String)> = (1..4)
            .map(|n| (n.to_string(), format!("{}Base-{n}.1", tag::BEFORE)))
            .collect();
        // Layers of Base-0 and so on with the day when each came up last, which of them have snapshots, to what and from
        // what it is gone back, and which snapshots are taken.
        for (days, saved, to, from, wanted) in [
            (&[Some(1), Some(2)][..], &[1][..], 0, Some(1), Some(1)),
            // A trial that runs.
            (&[Some(1), None], &[1], 0, Some(1), Some(1)),
            // Over two updates: those of the first.
            (&[Some(1), Some(2), Some(3)], &[1, 2], 0, Some(2), Some(1)),
            (&[Some(1), Some(2), Some(3)], &[1], 0, Some(2), Some(1)),
            (&[Some(1), Some(2), Some(3)], &[2], 0, Some(2), Some(2)),
            (&[Some(1), Some(2), Some(3)], &[1, 2], 1, Some(2), Some(2)),
            // Only older ones: they are from before the layer itself.
            (&[Some(1), Some(2), Some(3)], &[1], 1, Some(2), None),
            // It was gone back to before, and has gone on since.
            (&[Some(3), Some(2), Some(4)], &[1, 2], 0, Some(2), Some(2)),
            (&[Some(3), None, Some(4)], &[1, 2], 0, Some(2), Some(2)),
            (&[Some(3), Some(2), Some(4)], &[1], 0, Some(2), None),
            (
                &[Some(5), Some(2), Some(3), Some(6)],
                &[2, 3],
                0,
                Some(3),
                Some(3),
            ),
            // After a trial that failed it runs itself.
            (&[Some(2), None], &[1], 0, None, Some(1)),
            (&[Some(4), Some(2), None], &[1, 2], 0, None, Some(2)),
            (&[Some(1), Some(2)], &[1], 1, None, None),
            (&[Some(1), Some(2)], &[], 0, Some(1), None),
        ] {
            let names: Vec<String> = (0..days.len()).map(|n| format!("Base-{n}.1")).collect();
            let layers: Vec<(&str, Option<u32>)> = names
                .iter()
                .map(String::as_str)
                .zip(days.iter().copied())
                .collect();
            let tags: Vec<[&str; 2]> = snapshots
                .iter()
                .map(|(_, before)| ["imgbased:snapshot=/var", before.as_str()])
                .collect();
            let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
            let others = saved.iter().rev().map(|n: &usize| {
                let tags: &[&str] = &tags[n - 1];
                (snapshots[n - 1].0.as_str(), tags)
            });
            let others: Vec<(&str, &[&str])> = [var].into_iter().chain(others).collect();
            let from = from.map(|from: usize| names[from].as_str());
            let found = swapped(&layers, &others, Some(&names[to]), from);
            if let Err(error) = &found {
                assert!(
                    error.contains(&format!("run since {}", names[to])),
                    "{error}"
                );
            }
            let wanted = wanted.map(|n: usize| vec![(n.to_string(), Some("var".to_owned()))]);
            assert_eq!(found.ok(), wanted, "{days:?} {saved:?} {to} {from:?}");
        }
    }

    #[test]
    fn a_snapshot_takes_the_place_of_a_volume_where_there_is_one() {
        let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
        let moving: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:moving=/var"]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let begun: (&str, &[&str]) = (
            "one",
            &[SNAPSHOT[0], SNAPSHOT[1], tag::VOLUME, "imgbased:mount=/var"],
        );
        let both = [("Base-0.1", None), ("Base-1.1", None)];
        for (layers, volumes, to, expected) in [
            (
                &both[..],
                &[var, one][..],
                Some("Base-0.1"),
                Ok(Some("var")),
            ),
            (
                &both,
                &[moving, one],
                Some("Base-0.1"),
                Err("waits to move"),
            ),
            // The volume was removed since.
            (&both, &[one], Some("Base-0.1"), Ok(None)),
            // It was cut off before.
            (&both, &[begun, var], Some("Base-0.1"), Ok(Some("var"))),
            (&both, &[begun], Some("Base-0.1"), Ok(None)),
            // The layer is gone, so nobody knows when they were taken.
            (
                &both[..1],
                &[var, one],
                Some("Base-0.1"),
                Err("no snapshots"),
            ),
            (&both, &[var, one], None, Err("another system")),
        ] {
            let found = swapped(layers, volumes, to, Some("Base-1.1"));
            match expected {
                Ok(old) => {
                    let wanted = [("one".to_owned(), old.map(str::to_owned))];
                    assert_eq!(found.unwrap(), wanted, "{volumes:?}");
                }
                Err(expected) => {
                    let error = found.unwrap_err();
                    assert!(error.contains(expected), "{error}");
                }
            }
        }
    }

    #[test]
    fn what_is_left_of_an_exchange_is_known() {
        let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
        let home: (&str, &[&str]) = ("home", &[tag::VOLUME, "imgbased:mount=/home"]);
        let of_home: (&str, &[&str]) = ("two", &["imgbased:snapshot=/home", SNAPSHOT[1]]);
        let later: (&str, &[&str]) = ("later", &[SNAPSHOT[0], "imgbased:before=Base-2.1"]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let begun: (&str, &[&str]) = (
            "one",
            &[SNAPSHOT[0], SNAPSHOT[1], tag::VOLUME, "imgbased:mount=/var"],
        );
        for (volumes, wanted) in [
            (&[var, home, one, of_home, later][..], &[][..]),
            (
                &[var, home, begun, of_home, later],
                &[("one", Some("var")), ("two", Some("home"))],
            ),
            (&[begun, later], &[("one", None)]),
        ] {
            let found = super::begun(&group(volumes));
            let found: Vec<(&str, Option<&str>)> = found
                .iter()
                .map(|Swap { saved, old }| {
                    let old = old.as_ref().map(|old| old.name.as_str());
                    (saved.mount.name.as_str(), old)
                })
                .collect();
            assert_eq!(found, wanted, "{volumes:?}");
        }
    }

    #[test]
    fn a_volume_without_a_snapshot_from_before_a_layer_is_missing() {
        let var: (&str, &[&str]) = ("var", &[tag::VOLUME, "imgbased:mount=/var"]);
        let home: (&str, &[&str]) = ("home", &[tag::VOLUME, "imgbased:moving=/home"]);
        let srv: (&str, &[&str]) = ("srv", &[tag::VOLUME, "imgbased:mount=/srv"]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let alike: [(&str, &[&str]); 2] = [
            ("a", &[tag::VOLUME, "imgbased:mount=/srv/a-b"]),
            ("b", &[tag::VOLUME, "imgbased:mount=/srv/a/b"]),
        ];
        for (volumes, before, wanted) in [
            (&[][..], "Base-1.1", &[][..]),
            (&[home], "Base-1.1", &[]),
            (
                &[var, srv, home],
                "Base-1.1",
                &["srv srv-before-Base-1.1", "var var-before-Base-1.1"],
            ),
            (&[var, srv, one], "Base-1.1", &["srv srv-before-Base-1.1"]),
            (&[var, one], "Base-1.1", &[]),
            // That of another update.
            (&[var, one], "Base-2.1", &["var var-before-Base-2.1"]),
            (
                &alike,
                "Base-1.1",
                &["a srv-a-b-before-Base-1.1", "b srv-a-b-before-Base-1.1-2"],
            ),
        ] {
            let group = group(volumes);
            let mounts = volume::mounts_of(&group, &mut |_| ());
            let found = new(&group, mounts, &before.parse().unwrap()).unwrap();
            let names = found.iter();
            let names: Vec<String> = names
                .map(|(mount, saved)| format!("{} {}", mount.name, saved.mount.name))
                .collect();
            assert_eq!(names, wanted, "{volumes:?} {before}");
        }
    }

    #[test]
    fn a_snapshot_goes_with_the_layer_that_came_after_it() {
        let layer: (&str, &[&str]) = ("Base-1.1", &[tag::LAYER]);
        let one: (&str, &[&str]) = ("one", &SNAPSHOT);
        let [removed, other] = ["Base-1.1", "Base-0.1"].map(|name| name.parse().unwrap());
        let used = [SNAPSHOT[0], SNAPSHOT[1], tag::VOLUME, "imgbased:mount=/var"];
        for (volumes, is_left, is_orphan) in [
            (&[layer, one][..], true, false),
            (&[one], true, true),
            // It is a volume already.
            (&[layer, ("one", &used)], false, false),
            (&[("one", &used)], false, false),
        ] {
            let group = group(volumes);
            assert_eq!(
                !left_by(&group, &removed).is_empty(),
                is_left,
                "{volumes:?}"
            );
            assert!(left_by(&group, &other).is_empty());
            assert!(remembers(&group, &removed) && !remembers(&group, &other));
            assert_eq!(!orphans(&group).is_empty(), is_orphan, "{volumes:?}");
        }
        // Somebody's snapshot of it would go as well.
        let mut group = group(&[one]);
        group.volumes[0].is_origin = true;
        assert!(left_by(&group, &removed).is_empty() && orphans(&group).is_empty());
    }
}
