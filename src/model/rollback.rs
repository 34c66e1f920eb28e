//! `rollback`: what the host goes back to, and what becomes of a trial. Pure.
//!
//! The newest choice is taken back, and no more than that. What is on trial goes first, whether it runs or waits for
//! the next start. Where another layer than the default runs, the default boots next anyway. Else the layer that came
//! up last before the default is the default again.

use anyhow::{Context, Result, bail, ensure};

use super::layout::{Group, Role, Volume};
use super::name::LvName;
use super::trial::OnTrial;

/// What is known of a host that goes back.
#[derive(Clone, Default)]
pub struct Known {
    /// The layer that runs, if one does.
    pub booted: Option<LvName>,
    /// The layer or base that boots by default; `None` if that is another system.
    pub default: Option<LvName>,
    /// What boots at the next start only: a layer, a base, or the id of another system's entry.
    pub once: Option<String>,
    /// What is on trial.
    pub trial: Option<OnTrial>,
    /// Whether that is what runs.
    pub is_trial_running: bool,
    /// The layers that have come up and can be booted.
    pub good: Vec<LvName>,
}

/// What becomes of the default and of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The default is what to go back to, and nothing is on trial.
    Nothing,
    /// The trial ends, so the default boots.
    EndTrial,
    /// Another layer is the default, which has come up before. That ends a trial as well.
    SetDefault,
    /// The layer has never come up, so it is tried.
    Try,
}

impl Change {
    /// Whether another layer is chosen to boot by default.
    pub fn chooses(self) -> bool {
        matches!(self, Self::SetDefault | Self::Try)
    }
}

/// What a rollback does.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    pub change: Change,
    /// The layer or base that is left.
    pub from: Option<String>,
    /// The layer or base that boots from now on; `None` if that is another system.
    pub to: Option<LvName>,
    /// The base that is left: no update takes its image again unless it is told to.
    pub hold: Option<LvName>,
    /// The base that was left before, and is gone back to.
    pub release: Option<LvName>,
    /// Whether something else was to boot once, and does not.
    pub drops_once: bool,
}

impl Plan {
    /// Whether what is left was not tried yet, so that nothing but what runs has changed the volumes.
    pub fn leaves_what_was_not_tried(&self, group: &Group, known: &Known) -> bool {
        let has_failed = |name: &str| {
            let volume = group.volume(name);
            volume.is_some_and(|volume| volume.failure().is_some())
        };
        let is_untried = |trial: &OnTrial| {
            self.from.as_ref() == Some(&trial.name)
                && trial.kernel.is_none()
                && trial.tried == 0
                && !has_failed(&trial.name)
        };
        known.trial.as_ref().is_some_and(is_untried)
            && !known.is_trial_running
            && known.booted.is_some()
            && known.booted == self.to
    }
}

/// What to do to go back to the layer `to`, or to what is found where none is named.
///
/// Refuses where there is nothing to go back to. What has never come up is gone back to only if it is named.
pub fn plan(group: &Group, known: &Known, to: Option<&LvName>) -> Result<Plan> {
    if let Some(to) = to {
        let role = group.volume(to.as_str()).map(|volume| volume.role);
        let vg = &group.name;
        ensure!(role == Some(Role::Layer), "{vg} has no layer {to}");
    }
    let to = match (to, &known.trial) {
        (Some(to), _) => Some(to.clone()),
        (None, Some(_)) => known.default.clone(),
        (None, None) => Some(target(group, known)?),
    };
    let change = match &to {
        Some(to) if known.default.as_ref() != Some(to) && is_good(group, to) => Change::SetDefault,
        Some(to) if known.default.as_ref() != Some(to) => Change::Try,
        _ if known.trial.is_some() => Change::EndTrial,
        _ => Change::Nothing,
    };
    let from = left(known, change, to.as_ref());
    let is_other = |once: &String| to.as_ref().is_none_or(|to| once != to.as_str());
    let release = to.as_ref().filter(|_| change == Change::SetDefault);
    Ok(Plan {
        change,
        hold: held(group, known, change, from.as_deref(), to.as_ref()),
        release: release.and_then(|to| group.held_base_of(to)),
        drops_once: known.once.as_ref().is_some_and(is_other),
        from,
        to,
    })
}

/// The layer to go back to where nothing is on trial.
fn target(group: &Group, known: &Known) -> Result<LvName> {
    let vg = &group.name;
    let default = known.default.as_ref().with_context(|| {
        format!(
            "no layer of {vg} is the default, so there is none to leave; --to names a layer to boot"
        )
    })?;
    if let Some(booted) = known.booted.as_ref().filter(|booted| *booted != default) {
        if is_good(group, default) {
            return Ok(default.clone());
        }
        if known.good.contains(booted) {
            return Ok(booted.clone());
        }
    }
    let good_at = |name: &&LvName| {
        let volume = group.volume(name.as_str());
        volume.and_then(Volume::good_at)
    };
    let latest = |may_be_held: bool| {
        let may_be = |name: &&LvName| may_be_held || group.held_base_of(name).is_none();
        let others = known.good.iter().filter(|name| *name != default);
        others.filter(may_be).max_by_key(good_at)
    };
    match (latest(false), latest(true)) {
        (Some(found), _) => Ok(found.clone()),
        (None, Some(left)) => bail!(
            "all other layers of {vg} that have come up are of bases that a rollback has left; --to {left} goes back \
             to the latest of them"
        ),
        (None, None) => bail!(
            "{vg} has no other layer that has come up, so there is nothing to go back to; `imgbased-helper layer \
             list` shows all, and --to tries one of them"
        ),
    }
}

fn is_good(group: &Group, name: &LvName) -> bool {
    group.volume(name.as_str()).is_some_and(Volume::is_good)
}

/// What is left: what was on trial, else what runs or boots by default.
fn left(known: &Known, change: Change, to: Option<&LvName>) -> Option<String> {
    match &known.trial {
        Some(trial) if change == Change::EndTrial || known.is_trial_running => {
            Some(trial.name.clone())
        }
        _ => {
            let others = [&known.booted, &known.default].into_iter().flatten();
            let mut others = others.filter(|name| Some(*name) != to);
            others.next().map(LvName::to_string)
        }
    }
}

/// The base that is left, if the host has booted a layer of it, and goes back to an earlier one. What never booted
/// was not found to be bad, and an update takes no earlier image by itself.
fn held(
    group: &Group,
    known: &Known,
    change: Change,
    from: Option<&str>,
    to: Option<&LvName>,
) -> Option<LvName> {
    let from: LvName = from?.parse().ok()?;
    let was_booted = match change {
        Change::Nothing | Change::Try => false,
        Change::EndTrial => known.is_trial_running,
        Change::SetDefault => known.booted.as_ref() == Some(&from) || is_good(group, &from),
    };
    if !was_booted {
        return None;
    }
    let bases = group.bases();
    let base_of = |name: &LvName| {
        let base = group.base_of(group.volume(name.as_str())?);
        let base = base.unwrap_or_else(|| name.clone());
        bases.iter().position(|known| known.name == base)
    };
    let left = base_of(&from)?;
    let is_held = bases[left].volume.is_held();
    (left > base_of(to?)? && !is_held).then(|| bases[left].name.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::tag;

    fn name(text: &str) -> LvName {
        text.parse().unwrap()
    }

    /// Base-0 with two layers that have come up, the second on a later day, and Base-1 with one that has come up
    /// later still, and a new one.
    fn group() -> Group {
        let layer = |name: &str, good: &str| Volume::tagged(name, &[tag::LAYER, good]);
        Group::with(vec![
            Volume::tagged("ImagePool", &[tag::POOL]),
            Volume::tagged("Base-0", &[tag::BASE]),
            layer("Base-0.1", "imgbased:good=2026-11-01T10:00:00Z"),
            layer("Base-0.2", "imgbased:good=2026-11-02T10:00:00Z"),
            Volume::tagged("Base-1", &[tag::BASE]),
            layer("Base-1.1", "imgbased:good=2026-11-03T10:00:00Z"),
            layer("Base-1.2", "x"),
        ])
    }

    /// The same where a rollback has left Base-1.
    fn held_group() -> Group {
        let mut group = group();
        group.volumes[4].tags.push(tag::HOLD.to_owned());
        group
    }

    /// `booted default`, with `-` for none.
    fn known(text: &str) -> Known {
        let mut words = text.split(' ').map(|word| word.parse().ok());
        Known {
            booted: words.next().flatten(),
            default: words.next().flatten(),
            good: ["Base-0.1", "Base-0.2", "Base-1.1"].map(name).into(),
            ..Known::default()
        }
    }

    /// The same while `layer` is on trial.
    fn on_trial(text: &str, layer: &str, is_trial_running: bool) -> Known {
        let trial = OnTrial {
            name: layer.to_owned(),
            kernel: None,
            tries: 3,
            tried: 0,
        };
        Known {
            trial: Some(trial),
            is_trial_running,
            ..known(text)
        }
    }

    /// What is done, in words, or why it is refused.
    fn outcome(group: &Group, known: &Known, to: &str) -> String {
        let to = (!to.is_empty()).then(|| name(to));
        match plan(group, known, to.as_ref()) {
            Err(error) => format!("{error:#}"),
            Ok(plan) => {
                let or_none = |name: Option<String>| name.unwrap_or("-".to_owned());
                let (from, to) = (or_none(plan.from), or_none(plan.to.map(|n| n.to_string())));
                let mut text = format!("{:?}: {from} -> {to}", plan.change);
                for (what, base) in [("hold", plan.hold), ("release", plan.release)] {
                    text += &base.map_or(String::new(), |base| format!(", {what} {base}"));
                }
                text + if plan.drops_once { ", not once" } else { "" }
            }
        }
    }

    #[test]
    fn the_newest_choice_is_taken_back() {
        for (known, expected) in [
            // What runs is the default.
            (
                known("Base-1.1 Base-1.1"),
                "SetDefault: Base-1.1 -> Base-0.2, hold Base-1",
            ),
            (
                known("Base-1.2 Base-1.2"),
                "SetDefault: Base-1.2 -> Base-1.1",
            ),
            // It came up last, whichever was made last.
            (
                known("Base-0.1 Base-0.1"),
                "SetDefault: Base-0.1 -> Base-1.1",
            ),
            // From a rescue system.
            (
                known("- Base-1.1"),
                "SetDefault: Base-1.1 -> Base-0.2, hold Base-1",
            ),
            // The next start leaves what runs anyway: once more changes nothing.
            (known("Base-1.1 Base-0.2"), "Nothing: Base-1.1 -> Base-0.2"),
            (known("Base-0.2 Base-1.1"), "Nothing: Base-0.2 -> Base-1.1"),
            (known("Base-1.2 Base-0.2"), "Nothing: Base-1.2 -> Base-0.2"),
            // A new layer is the default without a trial, and has not run yet.
            (
                known("Base-0.1 Base-1.2"),
                "SetDefault: Base-1.2 -> Base-0.1",
            ),
            // A trial that runs, and one that waits for the next start.
            (
                on_trial("Base-1.2 Base-0.2", "Base-1.2", true),
                "EndTrial: Base-1.2 -> Base-0.2, hold Base-1",
            ),
            (
                on_trial("Base-1.2 Base-1.1", "Base-1.2", true),
                "EndTrial: Base-1.2 -> Base-1.1",
            ),
            (
                on_trial("Base-0.2 Base-0.2", "Base-1.2", false),
                "EndTrial: Base-1.2 -> Base-0.2",
            ),
            // A new kernel in the layer that runs.
            (
                on_trial("Base-1.1 Base-1.1", "Base-1.1", true),
                "EndTrial: Base-1.1 -> Base-1.1",
            ),
            // Another system boots by default.
            (
                on_trial("- -", "Base-1.2", false),
                "EndTrial: Base-1.2 -> -",
            ),
            (
                known("Base-1.1 -"),
                "no layer of HostVG is the default, so there is none to leave; --to names a layer to boot",
            ),
        ] {
            let (booted, default) = (&known.booted, &known.default);
            let found = outcome(&group(), &known, "");
            assert_eq!(found, expected, "{booted:?} {default:?}");
        }
    }

    #[test]
    fn what_was_not_tried_has_not_changed_the_volumes() {
        let waiting = |tried: u32| {
            let mut known = on_trial("Base-0.2 Base-0.2", "Base-1.2", false);
            if let Some(trial) = &mut known.trial {
                trial.tried = tried;
            }
            known
        };
        let mut failed = group();
        let tags = &mut failed.volumes[6].tags;
        tags.push(format!("{}3:2026-11-04T10:00:00Z", tag::FAILED));
        for (group, known, is_new) in [
            (group(), waiting(0), true),
            (group(), waiting(1), false),
            // It was tried before, and is tried once more.
            (failed, waiting(0), false),
            // It may have been the default for long.
            (group(), known("Base-0.2 Base-1.2"), false),
            // It runs.
            (
                group(),
                on_trial("Base-1.2 Base-0.2", "Base-1.2", true),
                false,
            ),
            (group(), known("Base-1.1 Base-1.1"), false),
            (group(), known("- Base-1.1"), false),
            (group(), on_trial("- -", "Base-1.2", false), false),
        ] {
            let plan = plan(&group, &known, None).unwrap();
            let found = plan.leaves_what_was_not_tried(&group, &known);
            assert_eq!(found, is_new, "{plan:?}");
        }
    }

    #[test]
    fn a_layer_that_is_named_is_gone_to() {
        for (known, to, expected) in [
            (
                known("Base-1.1 Base-1.1"),
                "Base-0.1",
                "SetDefault: Base-1.1 -> Base-0.1, hold Base-1",
            ),
            (
                known("Base-1.1 Base-1.1"),
                "Base-1.1",
                "Nothing: - -> Base-1.1",
            ),
            // A rollback is taken back before the next start.
            (
                known("Base-0.1 Base-0.2"),
                "Base-0.1",
                "SetDefault: Base-0.2 -> Base-0.1",
            ),
            (
                known("Base-0.1 Base-1.1"),
                "Base-0.1",
                "SetDefault: Base-1.1 -> Base-0.1, hold Base-1",
            ),
            // Forth, and not back.
            (
                known("Base-0.1 Base-0.1"),
                "Base-1.1",
                "SetDefault: Base-0.1 -> Base-1.1",
            ),
            (
                known("Base-0.1 Base-0.1"),
                "Base-1.2",
                "Try: Base-0.1 -> Base-1.2",
            ),
            (
                on_trial("Base-1.2 Base-0.2", "Base-1.2", true),
                "Base-0.1",
                "SetDefault: Base-1.2 -> Base-0.1, hold Base-1",
            ),
            (
                on_trial("Base-0.2 Base-0.2", "Base-1.2", false),
                "Base-0.1",
                "SetDefault: Base-0.2 -> Base-0.1",
            ),
            (
                on_trial("Base-0.2 Base-0.2", "Base-1.2", false),
                "Base-0.2",
                "EndTrial: Base-1.2 -> Base-0.2",
            ),
            (known("Base-0.1 -"), "Base-0.1", "SetDefault: - -> Base-0.1"),
            (
                known("Base-0.1 Base-0.1"),
                "Base-0",
                "HostVG has no layer Base-0",
            ),
            (
                known("Base-0.1 Base-0.1"),
                "Base-9.1",
                "HostVG has no layer Base-9.1",
            ),
        ] {
            assert_eq!(outcome(&group(), &known, to), expected, "{to}");
        }
    }

    #[test]
    fn a_base_that_was_left_is_gone_back_to_only_by_name() {
        let only = |good: &str| Known {
            good: vec![name(good)],
            ..known("Base-0.2 Base-0.2")
        };
        for (known, to, expected) in [
            (
                known("Base-0.2 Base-0.2"),
                "",
                "SetDefault: Base-0.2 -> Base-0.1",
            ),
            (
                only("Base-1.1"),
                "",
                "all other layers of HostVG that have come up are of bases that a rollback has left; --to Base-1.1 \
                 goes back to the latest of them",
            ),
            (
                only("Base-0.2"),
                "",
                "HostVG has no other layer that has come up, so there is nothing to go back to; `imgbased-helper \
                 layer list` shows all, and --to tries one of them",
            ),
            (
                only("Base-0.2"),
                "Base-1.1",
                "SetDefault: Base-0.2 -> Base-1.1, release Base-1",
            ),
            (only("Base-0.2"), "Base-1.2", "Try: Base-0.2 -> Base-1.2"),
            // It is held already.
            (
                known("Base-1.1 Base-1.1"),
                "",
                "SetDefault: Base-1.1 -> Base-0.2",
            ),
        ] {
            assert_eq!(outcome(&held_group(), &known, to), expected, "{to}");
        }
    }

    #[test]
    fn what_was_to_boot_once_does_not() {
        let with_once = |once: &str| Known {
            once: Some(once.to_owned()),
            ..known("Base-0.2 Base-0.1")
        };
        for (once, expected) in [
            ("Base-0.1", "Nothing: Base-0.2 -> Base-0.1"),
            ("Base-1.1", "Nothing: Base-0.2 -> Base-0.1, not once"),
            ("other", "Nothing: Base-0.2 -> Base-0.1, not once"),
        ] {
            assert_eq!(outcome(&group(), &with_once(once), ""), expected, "{once}");
        }
    }
}
