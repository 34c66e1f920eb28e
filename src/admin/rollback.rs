//! `rollback`: back to the layer that came up last before the one that boots by default.

use std::path::Path;

use anyhow::{Result, bail, ensure};
use serde::Serialize;

use super::boot::{bootable, running_entry, trial_begins};
use super::view::{self, JSON_VERSION};
use super::{Context, comment, layer, news, removal, restart_host, volume};
use crate::boot::BootPartition;
use crate::model::layout::{Group, Role, Volume, tag};
use crate::model::name::LvName;
use crate::model::rollback::{Change, Known, Plan, plan};
use crate::model::saved::{self, Swap};
use crate::model::trial::State;
use crate::sys::transaction::Transaction;

#[derive(Serialize)]
struct Report {
    version: u32,
    /// The layer or base that is left.
    from: Option<String>,
    /// The layer or base that boots from now on; nothing if that is another system.
    to: Option<String>,
    /// What the next start boots.
    next: String,
    /// The bases whose images `update` takes again only with --retry.
    held: Vec<String>,
    /// The base of that layer.
    #[serde(skip)]
    base: Option<String>,
    /// The same for people, a line each.
    #[serde(skip)]
    lines: Vec<String>,
    /// Whether what runs is something else.
    #[serde(skip)]
    needs_restart: bool,
}

/// Goes back to the layer `to`, or to the one that came up last before the default, and `with_volumes` to those as they
/// were then. Restarts the host if `apply` is set and something else runs.
pub fn run(context: &Context, to: Option<&LvName>, with_volumes: bool, apply: bool) -> Result<()> {
    ensure!(
        !apply || context.root == Path::new("/"),
        "--apply restarts the system that runs, and --root names another one; leave one of them out"
    );
    let writer = context.locked_writer("rollback")?;
    let report = writer.transaction(|tx| go_back(context, tx, to, with_volumes))?;
    if context.dry_run {
        report.lines.iter().try_for_each(|line| comment(line))?;
    } else {
        news::went_back(context, &report.lines, [&report.to, &report.base]);
        context.show(&report, || report.lines.join("\n") + "\n")?;
    }
    if apply && report.needs_restart {
        restart_host(&writer, "rollback")?;
    }
    Ok(())
}

/// Marks come first: a kill after them leaves a base held too early, which ends when the layer that was not left comes up
/// again. The volumes come last: a kill before them leaves the older layer with the data of now, as every rollback does,
/// and never the newer one with old data. The same command exchanges them then.
fn go_back(
    context: &Context,
    tx: &mut Transaction,
    to: Option<&LvName>,
    with_volumes: bool,
) -> Result<Report> {
    let boot = context.boot_partition()?;
    boot.check_writable()?;
    let group = context.load()?;
    let known = known(&group, &boot)?;
    let plan = plan(&group, &known, to)?;
    let swaps = if with_volumes {
        let is_new = to.is_none() && plan.leaves_what_was_not_tried(&group, &known);
        if let (true, Some(from), Some(to)) = (is_new, &plan.from, &plan.to) {
            bail!(
                "{from} was not tried yet, so the volumes are as {to} keeps them; leave --with-volumes away, or give --to \
                 {to} as well to drop what was written since the update"
            );
        }
        context.check_pool(&group)?;
        saved::swaps(&group, plan.to.as_ref(), plan.from.as_deref())?
    } else {
        Vec::new()
    };
    let chosen = plan.to.as_ref().filter(|_| plan.change.chooses());
    let entry = chosen.map(|name| bootable(&group, &boot, name, None));
    let entry = entry.transpose()?;
    let (state, tries) = match plan.change {
        Change::Try => {
            boot.check_ready()?;
            layer::default_or_good(context, tx, &group, &boot)?;
            (State::New, layer::tries(context)?)
        }
        _ => (State::Good, 0),
    };

    let lvm = &context.lvm;
    let add = |base: &LvName| lvm.add_tag(Some(base), tag::HOLD);
    let remove = |base: &LvName| lvm.remove_tag(Some(base), tag::HOLD);
    if let Some(base) = &plan.hold {
        tx.run_undoable(&add(base), remove(base))?;
    }
    if let Some(base) = &plan.release {
        tx.run_undoable(&remove(base), add(base))?;
    }
    if plan.drops_once {
        boot.set_once(tx, None)?;
    }
    let mut fallback = None;
    if let (Some(name), Some(entry)) = (chosen, &entry) {
        fallback = boot.make_default(tx, name, entry, state, tries)?;
    } else if plan.change == Change::EndTrial {
        boot.end_trial(tx)?;
    }

    let next = boot.next_start()?;
    if let (Some(problem), false) = (next.problem(), tx.is_dry_run()) {
        bail!("what is gone back to does not boot: {problem}");
    }
    volume::exchange(context, tx, &group, &swaps)?;
    let boots = match next.id().and_then(|id| boot.layer_of(id)) {
        _ if tx.is_dry_run() => plan.to.as_ref().map(LvName::to_string),
        Some(name) => Some(name),
        None => Some(next.to_string()),
    };
    let trial = fallback.zip(plan.to.as_ref());
    let trial = trial.map(|(fallback, name)| trial_begins(name, None, tries, &fallback));
    let mut lines = lines(&group, &known, &plan, trial.as_deref(), &swaps);
    let boots = boots.as_deref().unwrap_or("another system");
    lines.push(format!("next start: {boots}"));
    let bases = group.with_role(Role::Base);
    let is_held = |name: &str| {
        let is = |base: &Option<LvName>| base.as_ref().is_some_and(|base| base.as_str() == name);
        let was_held = group.volume(name).is_some_and(Volume::is_held);
        is(&plan.hold) || was_held && !is(&plan.release)
    };
    let held = bases.map(|base| base.name.clone());
    Ok(Report {
        version: JSON_VERSION,
        next: next.to_string(),
        held: held.filter(|name| is_held(name)).collect(),
        lines,
        base: plan
            .to
            .as_ref()
            .and_then(|name| group.base_of(group.volume(name.as_str())?))
            .map(|base| base.to_string()),
        needs_restart: runs_another(&known, &plan) || !swaps.is_empty(),
        to: plan.to.map(|name| name.to_string()),
        from: plan.from,
    })
}

fn known(group: &Group, boot: &BootPartition) -> Result<Known> {
    let all = group.bootable();
    // Also where its entry is lost for now.
    let owner = |id: &str| boot.owner_of(id, &all);
    let booted = view::booted_layer(group)?;
    let running = booted.as_ref().map(|name| running_entry(boot, name));
    let running = running.transpose()?.flatten().map(|entry| entry.id);
    let is_running = |id: &String| running.as_ref() == Some(id);
    // One whose tries are used up boots no more.
    let trial = boot.trial()?;
    let trial = trial.filter(|trial| !trial.is_over() || is_running(&trial.id));
    let name = |id: &str| owner(id).unwrap_or_else(|| id.to_owned());
    let default = boot.default_id()?.and_then(|id| owner(&id));
    Ok(Known {
        default: default.map(|name| name.parse()).transpose()?,
        once: boot.once_id()?.map(|id| name(&id)),
        is_trial_running: trial.as_ref().is_some_and(|trial| is_running(&trial.id)),
        trial: trial.map(|trial| {
            let layer = name(&trial.id);
            let kernel = boot.kernel_of(&layer, &trial.id);
            trial.of_layer(layer, kernel)
        }),
        good: removal::good_layers(group, boot)?,
        booted,
    })
}

/// Whether what runs is not what is gone back to.
fn runs_another(known: &Known, plan: &Plan) -> bool {
    let is_same = known.booted.is_some() && known.booted == plan.to;
    !is_same || known.is_trial_running
}

/// What becomes of a volume, for people.
fn swapped(group: &Group, Swap { saved, old }: &Swap) -> String {
    let (vg, path, new) = (&group.name, &saved.mount.path, &saved.mount.name);
    let old = old.as_ref().map_or_else(String::new, |old| {
        format!(
            "; {vg}/{} is mounted until then, and is kept; lvremove(8) removes it",
            old.name
        )
    });
    let before = &saved.before;
    format!("{path} is on {vg}/{new} from the next start on, as it was before {before}{old}")
}

/// What people are told, before what boots next. `trial` tells of the trial that begins.
fn lines(
    group: &Group,
    known: &Known,
    plan: &Plan,
    trial: Option<&str>,
    swaps: &[Swap],
) -> Vec<String> {
    let to = plan.to.as_ref().map_or("another system", LvName::as_str);
    let mut lines = Vec::new();
    match (&known.trial, plan.change) {
        (Some(ended), Change::EndTrial) if !known.is_trial_running => {
            let subject = ended.subject();
            lines.push(format!(
                "{subject} has waited for a start, and is tried no more"
            ));
        }
        (Some(ended), _) if ended.kernel.is_some() || ended.name != to => {
            lines.push(format!("{} is tried no more", ended.subject()));
        }
        _ => {}
    }
    match (trial, plan.change) {
        (Some(trial), _) => lines.push(trial.trim_end().to_owned()),
        (None, Change::SetDefault | Change::Try) => {
            lines.push(format!("{to} is the default from now on"));
        }
        (None, Change::Nothing) => lines.push(format!("{to} is the default already")),
        (None, Change::EndTrial) => {}
    }
    if plan.drops_once {
        let once = known.once.as_deref().unwrap_or_default();
        lines.push(format!("{once} does not boot once"));
    }
    let is_back = plan.change != Change::Try && plan.from.as_deref() != Some(to);
    if is_back && runs_another(known, plan) {
        let from = plan.from.as_deref().unwrap_or("another system");
        lines.push(format!(
            "/etc of {to} is as it was left there; what was changed in {from} stays in that"
        ));
        let shared = group.with_role(Role::Volume).map(|v| v.name.as_str());
        let is_swapped = |name: &&str| {
            let mut old = swaps.iter().filter_map(|swap| swap.old.as_ref());
            old.any(|old| old.name == *name)
        };
        let shared: Vec<&str> = shared.filter(|name| !is_swapped(name)).collect();
        if !shared.is_empty() {
            let shared = shared.join(" ");
            lines.push(format!("layers share {shared}, which stays as it is"));
        }
    }
    lines.extend(swaps.iter().map(|swap| swapped(group, swap)));
    if let (Change::Nothing, Some(booted), true) = (
        plan.change,
        &known.booted,
        known.booted.as_ref() != plan.to.as_ref(),
    ) {
        lines.push(format!(
            "{booted} runs; `imgbased-helper rollback --to {booted}` makes it the default"
        ));
    }
    if let Some(base) = &plan.hold {
        lines.push(format!(
            "{base} is held: `update` takes that image again only with --retry"
        ));
    }
    if let Some(base) = &plan.release {
        lines.push(format!("{base} is held no more"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::trial::OnTrial;

    fn name(text: &str) -> LvName {
        text.parse().unwrap()
    }

    fn known(booted: &str, default: &str) -> Known {
        Known {
            booted: Some(name(booted)),
            default: Some(name(default)),
            good: vec![name("Base-0.1"), name("Base-1.1")],
            ..Known::default()
        }
    }

    #[test]
    fn the_report_is_a_document_as_its_schema_says() {
        for name in [None, Some("Base-0.1".to_owned())] {
            let report = Report {
                version: JSON_VERSION,
                from: name.clone(),
                to: name.clone(),
                next: "imgbased-Base-0.1".to_owned(),
                held: name.clone().into_iter().collect(),
                base: name,
                lines: Vec::new(),
                needs_restart: false,
            };
            crate::schemas::assert_holds("rollback", &report);
        }
    }

    #[test]
    fn people_are_told_what_changes_and_what_does_not() {
        let group = Group::with(vec![
            Volume::tagged("Config", &[tag::VOLUME]),
            Volume::tagged("var", &[tag::VOLUME]),
            Volume::tagged("Base-0", &[tag::BASE]),
            Volume::tagged("Base-0.1", &[tag::LAYER, tag::GOOD]),
            Volume::tagged("Base-1", &[tag::BASE]),
            Volume::tagged("Base-1.1", &[tag::LAYER, tag::GOOD]),
        ]);
        let etc =
            "/etc of Base-0.1 is as it was left there; what was changed in Base-1.1 stays in that";
        let shared = "layers share Config var, which stays as it is";
        let held = "Base-1 is held: `update` takes that image again only with --retry";
        let on_trial = |booted, kernel: Option<&str>, is_trial_running| Known {
            trial: Some(OnTrial {
                name: "Base-1.1".to_owned(),
                kernel: kernel.map(str::to_owned),
                tries: 3,
                tried: 1,
            }),
            is_trial_running,
            ..known(booted, if kernel.is_some() { booted } else { "Base-0.1" })
        };
        for (known, expected, needs_restart) in [
            (
                known("Base-1.1", "Base-1.1"),
                &["Base-0.1 is the default from now on", etc, shared, held][..],
                true,
            ),
            (
                known("Base-1.1", "Base-0.1"),
                &[
                    "Base-0.1 is the default already",
                    etc,
                    shared,
                    "Base-1.1 runs; `imgbased-helper rollback --to Base-1.1` makes it the default",
                ],
                true,
            ),
            (
                on_trial("Base-1.1", None, true),
                &["Base-1.1 is tried no more", etc, shared, held],
                true,
            ),
            (
                on_trial("Base-0.1", None, false),
                &["Base-1.1 has waited for a start, and is tried no more"],
                false,
            ),
            (
                on_trial("Base-1.1", Some("6.2"), true),
                &["Linux 6.2 of Base-1.1 is tried no more"],
                true,
            ),
            (
                Known {
                    once: Some("Base-1".to_owned()),
                    ..on_trial("Base-0.1", None, false)
                },
                &[
                    "Base-1.1 has waited for a start, and is tried no more",
                    "Base-1 does not boot once",
                ],
                false,
            ),
        ] {
            let plan = plan(&group, &known, None).unwrap();
            assert_eq!(lines(&group, &known, &plan, None, &[]), expected);
            assert_eq!(runs_another(&known, &plan), needs_restart, "{expected:?}");
        }
    }

    #[test]
    fn people_are_told_which_volumes_are_as_they_were_before() {
        let group = Group::with(vec![
            Volume::tagged("Config", &[tag::VOLUME]),
            Volume::tagged("var", &[tag::VOLUME, "imgbased:mount=/var"]),
            Volume::tagged(
                "saved",
                &["imgbased:snapshot=/var", "imgbased:before=Base-1.1"],
            ),
            Volume::tagged("Base-0", &[tag::BASE]),
            Volume::tagged("Base-0.1", &[tag::LAYER, tag::GOOD]),
            Volume::tagged("Base-1", &[tag::BASE]),
            Volume::tagged("Base-1.1", &[tag::LAYER, tag::GOOD]),
        ]);
        let known = known("Base-1.1", "Base-1.1");
        let plan = plan(&group, &known, None).unwrap();
        let swaps = saved::swaps(&group, plan.to.as_ref(), plan.from.as_deref()).unwrap();
        let told = lines(&group, &known, &plan, None, &swaps);
        for line in [
            "layers share Config, which stays as it is",
            "/var is on HostVG/saved from the next start on, as it was before Base-1.1; HostVG/var is mounted until \
             then, and is kept; lvremove(8) removes it",
        ] {
            assert!(told.iter().any(|told| told == line), "{told:?}");
        }
    }
}
