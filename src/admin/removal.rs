//! Removing layers and bases: out of the menu first, then the volumes.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context as _, Result, bail, ensure};
use nix::unistd::Uid;

use super::{Context, ROOT_ONLY, say, view};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::model::layout::{Base, Group, Role};
use crate::model::name::LvName;
use crate::sys::transaction::Writer;

/// Removes layers.
pub fn layers(context: &Context, names: &[LvName]) -> Result<()> {
    let select = |group: &Group, in_use: &[InUse]| {
        for name in names {
            check_role(group, name, Role::Layer, "layer")?;
        }
        refuse_used(names, in_use)?;
        Ok(names.to_vec())
    };
    remove(context, &select, None)
}

/// Removes a base and all its layers, having asked first if it has any and `yes` is not set.
pub fn base(context: &Context, name: &LvName, yes: bool) -> Result<()> {
    let select = |group: &Group, in_use: &[InUse]| {
        check_role(group, name, Role::Base, "base")?;
        let bases = group.bases();
        let layers = bases.iter().find(|b| b.name == *name).map(|b| &b.layers);
        let mut names: Vec<LvName> = layers.into_iter().flatten().map(|l| l.0.clone()).collect();
        names.push(name.clone());
        refuse_used(&names, in_use)?;
        Ok(names)
    };
    let question = |names: &[LvName]| {
        let layers = list(&names[..names.len() - 1]);
        (names.len() > 1).then(|| format!("Remove {name} and its layers {layers}?"))
    };
    remove(context, &select, (!yes).then_some(&question))
}

/// Removes the oldest bases and their layers, having asked first if `yes` is not set. The latest
/// `keep` bases stay, and any with what is booted or the default.
pub fn garbage(context: &Context, keep: usize, yes: bool) -> Result<()> {
    let select = |group: &Group, in_use: &[InUse]| {
        let bases = group.bases();
        let old = bases.len().saturating_sub(keep);
        let is_used = |base: &Base| {
            let mut names = base.layers.iter().map(|l| &l.0).chain([&base.name]);
            names.any(|name| in_use.iter().any(|(used, _)| used == name.as_str()))
        };
        Ok(bases[..old]
            .iter()
            .filter(|base| !is_used(base))
            .flat_map(|base| base.layers.iter().map(|l| &l.0).chain([&base.name]))
            .cloned()
            .collect())
    };
    let question =
        |names: &[LvName]| (!names.is_empty()).then(|| format!("Remove {}?", list(names)));
    remove(context, &select, (!yes).then_some(&question))
}

/// What has to stay, and why.
type InUse = (String, &'static str);

/// Says which volumes of a group to remove, in this order.
type Select<'a> = dyn Fn(&Group, &[InUse]) -> Result<Vec<LvName>> + 'a;

/// What to ask before these volumes are removed, if anything.
type Question<'a> = dyn Fn(&[LvName]) -> Option<String> + 'a;

/// Removes what `select` says, if `question`, where it asks one, is answered with yes. It is asked before
/// the lock is taken and before signals are handled: somebody may think about it for long.
///
/// Refuses what cannot be removed before anything is changed. Then each volume is a unit of work: what is
/// removed stays removed when the next one fails, and that one keeps its entry.
fn remove(context: &Context, select: &Select, question: Option<&Question>) -> Result<()> {
    let confirmed = match question {
        Some(question) if !context.dry_run => Some(confirm(context, select, question)?),
        _ => None,
    };
    let writer = context.locked_writer("remove")?;
    let (boot, group, names) = plan(context, select)?;
    ensure!(
        confirmed.is_none_or(|confirmed| confirmed == names),
        "another command has changed what would be removed; nothing was removed"
    );
    boot.check_removable(&names)?;
    deactivate(context, &writer, &group, &names)?;
    for (at, name) in names.iter().enumerate() {
        writer.transaction(|tx| {
            boot.remove_last(tx, &names[..=at])?;
            // Nothing takes that back.
            tx.run(&context.lvm.remove(name))
        })?;
    }
    Ok(())
}

/// Asks the question, if there is something to ask, and returns what may be removed.
fn confirm(context: &Context, select: &Select, question: &Question) -> Result<Vec<LvName>> {
    ensure!(Uid::effective().is_root(), "remove: {ROOT_ONLY}");
    let (_, _, names) = plan(context, select)?;
    if let Some(question) = question(&names) {
        ask(&question)?;
    }
    Ok(names)
}

fn plan(context: &Context, select: &Select) -> Result<(BootPartition, Group, Vec<LvName>)> {
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    // Else what is the default or on trial is not known.
    ensure!(
        !boot.named_by(&boot.entries()?).is_empty()
            || group.with_role(Role::Layer).next().is_none(),
        "the boot partition has no entry of {}, so what of it boots is not known; mount the one that belongs to \
         the group, at /boot below --root",
        group.name
    );
    let mut in_use = in_use(&group, &boot)?;
    let mut names = select(&group, &in_use)?;
    if let Some(last) = last_good(&good_layers(&group, &boot)?, &names) {
        in_use.push((last.to_string(), "the last layer that is known to come up"));
        names = select(&group, &in_use)?;
    }
    Ok((boot, group, names))
}

/// The layers that have come up and can be booted, the latest last.
fn good_layers(group: &Group, boot: &BootPartition) -> Result<Vec<LvName>> {
    let mut good = Vec::new();
    for (name, volume) in group.bases().into_iter().flat_map(|base| base.layers) {
        let is_whole = |entry: Entry| boot.has_kernel(&entry.payload());
        if volume.is_good() && boot.entry_of(&name)?.is_some_and(is_whole) {
            good.push(name);
        }
    }
    Ok(good)
}

/// The latest good layer, if there is one and none would be left.
fn last_good<'a>(good: &'a [LvName], removed: &[LvName]) -> Option<&'a LvName> {
    let is_removed = |name: &LvName| removed.contains(name);
    good.last().filter(|_| good.iter().all(is_removed))
}

/// What is booted, the default, on trial or boots next, or what others depend on.
fn in_use(group: &Group, boot: &BootPartition) -> Result<Vec<InUse>> {
    let booted = view::booted(group)?.map(|name| (name, "booted"));
    let trial = boot.trial()?.filter(|trial| !trial.is_over());
    let bootable = group.bootable();
    // Also where its entry is lost for now.
    let chosen = |id: Option<String>, what| Some((boot.owner_of(&id?, &bootable)?, what));
    let default = chosen(boot.default_id()?, "the default");
    let once = chosen(boot.once_id()?, "what boots next");
    let trial = chosen(trial.map(|trial| trial.id), "on trial");
    let origins = group.volumes.iter().filter(|volume| volume.is_origin);
    let origins = origins.map(|volume| {
        let why = "the origin of a snapshot that would be lost with it (lvs(8) shows which)";
        (volume.name.clone(), why)
    });
    let chosen = [booted, default, once, trial].into_iter().flatten();
    Ok(chosen.chain(origins).collect())
}

fn refuse_used(names: &[LvName], in_use: &[InUse]) -> Result<()> {
    for (used, why) in in_use {
        ensure!(
            !names.iter().any(|name| name.as_str() == used),
            "{used} is {why} and cannot be removed"
        );
    }
    Ok(())
}

/// Deactivates what is active: all of it or nothing. Fails for what is mounted, while its entry is still
/// there.
fn deactivate(context: &Context, writer: &Writer, group: &Group, names: &[LvName]) -> Result<()> {
    let lvm = &context.lvm;
    let is_active = |name: &&LvName| group.volume(name.as_str()).is_some_and(|v| v.active);
    writer.transaction(|tx| {
        for name in names.iter().filter(is_active) {
            tx.run_undoable(&lvm.deactivate(name), lvm.activate(name))?;
        }
        Ok(())
    })
}

fn check_role(group: &Group, name: &LvName, role: Role, what: &str) -> Result<()> {
    let found = group.volume(name.as_str()).map(|volume| volume.role);
    ensure!(found == Some(role), "{} has no {what} {name}", group.name);
    Ok(())
}

fn list(names: &[LvName]) -> String {
    let names: Vec<&str> = names.iter().map(LvName::as_str).collect();
    names.join(" ")
}

/// Asks a person. Refuses where there is none, or the answer is not yes.
fn ask(question: &str) -> Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "{question} There is nobody to ask; --yes answers it"
    );
    say(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!("nothing was removed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_good_layer_stays() {
        for (good, removed, expected) in [
            (&[][..], &["a.1"][..], None),
            (&["a.1"], &["a.1"], Some("a.1")),
            (&["a.1"], &["a.2"], None),
            (&["a.1", "a.2"], &["a.1"], None),
            (&["a.1", "a.2"], &["a.2", "a.1", "a"], Some("a.2")),
        ] {
            let parse = |names: &[&str]| -> Vec<LvName> {
                names.iter().map(|name| name.parse().unwrap()).collect()
            };
            let (good, removed) = (parse(good), parse(removed));
            let last = last_good(&good, &removed).map(LvName::as_str);
            assert_eq!(last, expected, "{good:?} {removed:?}");
        }
    }
}
