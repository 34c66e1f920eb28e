//! What `layer remove`, `base remove` and `gc` remove, and what has to stay.

use anyhow::{Result, bail, ensure};

use super::layout::{Base, Group, Role};
use super::name::LvName;
use super::pool::Mismatch;

/// What is to be removed.
pub enum Request<'a> {
    Layers(&'a [LvName]),
    /// A base and all its layers.
    Base(&'a LvName),
    /// The oldest bases and their layers: all but the latest `keep`, and any of which something has to stay.
    Garbage {
        keep: usize,
    },
}

/// What is known of a host when something is to be removed. The names are of layers and bases.
#[derive(Default)]
pub struct Known {
    pub booted: Option<String>,
    pub default: Option<String>,
    /// What boots at the next start only.
    pub once: Option<String>,
    pub trial: Option<String>,
    /// What the entries of these name to be mounted where they cannot be.
    pub fallbacks: Vec<String>,
    /// The layers that have come up and can be booted, the latest last.
    pub good: Vec<LvName>,
    /// Set if lvm2 cannot change the pool.
    pub mismatch: Option<Mismatch>,
}

/// A volume that has to stay, and why.
type Kept = (String, &'static str);

/// The volumes to remove, in this order. What is booted, the default, boots next or is on trial stays, and so do the
/// fallbacks that these name, what would take snapshots of others with it, and the last layer that is known to come up.
///
/// Refuses a request for one of those by name, and any where lvm2 cannot change the pool.
pub fn plan(group: &Group, request: &Request, known: &Known) -> Result<Vec<LvName>> {
    let mut kept = kept(group, known);
    let mut names = select(group, request, &kept)?;
    if let Some(last) = last_good(&known.good, &names) {
        kept.push((last.to_string(), "the last layer that is known to come up"));
        names = select(group, request, &kept)?;
    }
    if let (Some(pool), Some(mismatch), false) = (group.pool(), &known.mismatch, names.is_empty()) {
        bail!(
            "nothing can be removed from {}/{}, which {mismatch}; `imgbased-helper check` says what to do",
            group.name,
            pool.name
        );
    }
    Ok(names)
}

/// What is booted, the default, on trial or boots next, or what others depend on.
fn kept(group: &Group, known: &Known) -> Vec<Kept> {
    let chosen = [
        (&known.booted, "booted"),
        (&known.default, "the default"),
        (&known.once, "what boots next"),
        (&known.trial, "on trial"),
    ];
    let chosen = chosen.into_iter();
    let mut kept: Vec<Kept> = chosen
        .filter_map(|(name, why)| Some((name.clone()?, why)))
        .collect();
    let fallbacks = known.fallbacks.iter();
    kept.extend(fallbacks.map(|name| (name.clone(), "the fallback of what boots")));
    for volume in &group.volumes {
        if let Some(why) = volume.is_needed_as() {
            kept.push((volume.name.clone(), why));
        }
    }
    kept
}

fn select(group: &Group, request: &Request, kept: &[Kept]) -> Result<Vec<LvName>> {
    let names = match request {
        Request::Layers(layers) => {
            for name in *layers {
                check_role(group, name, Role::Layer, "layer")?;
            }
            let mut names: Vec<LvName> = Vec::new();
            for name in *layers {
                if !names.contains(name) {
                    names.push(name.clone());
                }
            }
            names
        }
        Request::Base(name) => {
            check_role(group, name, Role::Base, "base")?;
            let bases = group.bases();
            let base = bases.iter().find(|base| base.name == **name);
            base.map_or_else(Vec::new, with_layers)
        }
        Request::Garbage { keep } => {
            let bases = group.bases();
            let old = bases.iter().take(bases.len().saturating_sub(*keep));
            let can_go =
                |names: &Vec<LvName>| names.iter().all(|name| reason(kept, name).is_none());
            return Ok(old.map(with_layers).filter(can_go).flatten().collect());
        }
    };
    // The first reason counts.
    for (kept, why) in kept {
        ensure!(
            names.iter().all(|name| name.as_str() != kept),
            "{kept} is {why} and cannot be removed"
        );
    }
    Ok(names)
}

fn reason(kept: &[Kept], name: &LvName) -> Option<&'static str> {
    let found = kept.iter().find(|(kept, _)| kept == name.as_str());
    found.map(|(_, why)| *why)
}

/// The layers of a base, and the base after them.
fn with_layers(base: &Base) -> Vec<LvName> {
    let layers = base.layers.iter().map(|(name, _)| name);
    layers.chain([&base.name]).cloned().collect()
}

/// The latest good layer, if there is one and none would be left.
fn last_good<'a>(good: &'a [LvName], removed: &[LvName]) -> Option<&'a LvName> {
    let is_removed = |name: &LvName| removed.contains(name);
    good.last().filter(|_| good.iter().all(is_removed))
}

fn check_role(group: &Group, name: &LvName, role: Role, what: &str) -> Result<()> {
    let found = group.volume(name.as_str()).map(|volume| volume.role);
    ensure!(found == Some(role), "{} has no {what} {name}", group.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::Volume;

    fn volume(name: &str, role: Role) -> Volume {
        Volume {
            name: name.to_owned(),
            role,
            ..Volume::default()
        }
    }

    /// Base-0 with two layers, Base-1 with one, and what is no layer.
    fn group() -> Group {
        Group::with(vec![
            volume("ImagePool", Role::Pool),
            volume("Config", Role::Volume),
            volume("Base-0", Role::Base),
            volume("Base-0.1", Role::Layer),
            volume("Base-0.2", Role::Layer),
            volume("Base-1", Role::Base),
            volume("Base-1.1", Role::Layer),
            volume("half", Role::Incomplete),
            volume("data", Role::Foreign),
        ])
    }

    fn names(text: &str) -> Vec<LvName> {
        let words = text.split_whitespace();
        words.map(|name| name.parse().unwrap()).collect()
    }

    /// What `command` removes, or why it is refused.
    fn outcome(group: &Group, command: &str, known: &Known) -> String {
        let (verb, rest) = command.split_once(' ').unwrap();
        let wanted = names(if verb == "gc" { "" } else { rest });
        let request = match verb {
            "layers" => Request::Layers(&wanted),
            "base" => Request::Base(&wanted[0]),
            _ => Request::Garbage {
                keep: rest.parse().unwrap(),
            },
        };
        match plan(group, &request, known) {
            Ok(names) => {
                let names: Vec<&str> = names.iter().map(LvName::as_str).collect();
                names.join(" ")
            }
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn what_is_named_is_removed_the_layers_before_their_base() {
        let known = Known {
            booted: Some("Base-1.1".to_owned()),
            ..Known::default()
        };
        for (command, expected) in [
            ("layers Base-0.2", "Base-0.2"),
            ("layers Base-0.2 Base-0.1", "Base-0.2 Base-0.1"),
            ("layers Base-0.2 Base-0.2", "Base-0.2"),
            ("base Base-0", "Base-0.1 Base-0.2 Base-0"),
            ("layers Base-0", "HostVG has no layer Base-0"),
            ("layers Base-0.2 Base-0.9", "HostVG has no layer Base-0.9"),
            ("layers data", "HostVG has no layer data"),
            ("layers half", "HostVG has no layer half"),
            ("layers Config", "HostVG has no layer Config"),
            ("base Base-0.1", "HostVG has no base Base-0.1"),
            ("base Base-1", "Base-1.1 is booted and cannot be removed"),
            ("gc 2", ""),
            ("gc 1", "Base-0.1 Base-0.2 Base-0"),
            ("gc 0", "Base-0.1 Base-0.2 Base-0"),
            ("gc 9", ""),
        ] {
            assert_eq!(outcome(&group(), command, &known), expected, "{command}");
        }
    }

    #[test]
    fn what_has_to_stay_is_refused_by_name_and_left_by_gc() {
        let known = |change: fn(&mut Known, Option<String>)| {
            let mut known = Known::default();
            change(&mut known, Some("Base-0.2".to_owned()));
            known
        };
        let with = |change: fn(&mut Volume)| {
            let mut group = group();
            change(&mut group.volumes[4]);
            group
        };
        let good = |text: &str| Known {
            good: names(text),
            ..Known::default()
        };
        let (same, nothing) = (group(), Known::default);
        for (group, known, why) in [
            (
                same.clone(),
                known(|known, name| known.booted = name),
                "booted",
            ),
            (
                same.clone(),
                known(|known, name| known.default = name),
                "the default",
            ),
            (
                same.clone(),
                known(|known, name| known.once = name),
                "what boots next",
            ),
            (
                same.clone(),
                known(|known, name| known.trial = name),
                "on trial",
            ),
            (
                same.clone(),
                known(|known, name| known.fallbacks.extend(name)),
                "the fallback of what boots",
            ),
            (
                same.clone(),
                good("Base-0.2"),
                "the last layer that is known to come up",
            ),
            (
                with(|layer| layer.is_origin = true),
                nothing(),
                "the origin of a snapshot that would be lost with it (lvs(8) shows which)",
            ),
            (
                with(|layer| layer.is_merging = true),
                nothing(),
                "what a snapshot is being merged into (lvs(8) shows it with -a)",
            ),
        ] {
            let refused = format!("Base-0.2 is {why} and cannot be removed");
            for (command, expected) in [
                ("layers Base-0.2", refused.as_str()),
                ("layers Base-0.1 Base-0.2", &refused),
                ("base Base-0", &refused),
                ("layers Base-0.1", "Base-0.1"),
                ("base Base-1", "Base-1.1 Base-1"),
                ("gc 0", "Base-1.1 Base-1"),
                ("gc 1", ""),
            ] {
                assert_eq!(
                    outcome(&group, command, &known),
                    expected,
                    "{why}: {command}"
                );
            }
        }
    }

    #[test]
    fn one_good_layer_stays_and_no_more_than_one() {
        let good = |text: &str| Known {
            good: names(text),
            ..Known::default()
        };
        let last = "Base-1.1 is the last layer that is known to come up and cannot be removed";
        for (command, known, expected) in [
            ("layers Base-0.1", good(""), "Base-0.1"),
            ("layers Base-0.1", good("Base-0.1 Base-1.1"), "Base-0.1"),
            ("layers Base-1.1", good("Base-0.1 Base-1.1"), "Base-1.1"),
            ("layers Base-0.1 Base-1.1", good("Base-0.1 Base-1.1"), last),
            (
                "gc 0",
                good("Base-0.1 Base-1.1"),
                "Base-0.1 Base-0.2 Base-0",
            ),
            ("gc 0", good("Base-0.1"), "Base-1.1 Base-1"),
            ("gc 0", good(""), "Base-0.1 Base-0.2 Base-0 Base-1.1 Base-1"),
        ] {
            assert_eq!(outcome(&group(), command, &known), expected, "{command}");
        }
    }

    #[test]
    fn nothing_is_removed_from_a_pool_that_lvm2_cannot_change() {
        let known = Known {
            booted: Some("Base-1.1".to_owned()),
            mismatch: Some(Mismatch {
                recorded: 9,
                found: Some(3),
            }),
            ..Known::default()
        };
        let refused = "nothing can be removed from HostVG/ImagePool, which can neither be activated nor changed: it is \
                       at transaction 3, and LVM takes it to be at 9; `imgbased-helper check` says what to do";
        for (command, expected) in [
            ("layers Base-0.1", refused),
            ("base Base-0", refused),
            ("gc 1", refused),
            ("gc 2", ""),
            (
                "layers Base-1.1",
                "Base-1.1 is booted and cannot be removed",
            ),
        ] {
            assert_eq!(outcome(&group(), command, &known), expected, "{command}");
        }
    }
}
