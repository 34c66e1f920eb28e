//! Removing layers and bases: out of the menu first, then the volumes.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, say, view};
use crate::model::layout::{Base, Group, Role};
use crate::model::name::LvName;

/// Removes layers.
pub fn layers(context: &Context, names: &[LvName]) -> Result<()> {
    remove(context, |group| {
        for name in names {
            check_role(group, name, Role::Layer, "layer")?;
        }
        Ok(names.to_vec())
    })
}

/// Removes a base and all its layers, having asked first if it has any and `yes` is not set.
pub fn base(context: &Context, name: &LvName, yes: bool) -> Result<()> {
    remove(context, |group| {
        check_role(group, name, Role::Base, "base")?;
        let bases = group.bases();
        let layers = bases.iter().find(|b| b.name == *name).map(|b| &b.layers);
        let mut names: Vec<LvName> = layers.into_iter().flatten().map(|l| l.0.clone()).collect();
        if !names.is_empty() && !yes && !context.dry_run {
            confirm(&format!("Remove {name} and its layers {}?", list(&names)))?;
        }
        names.push(name.clone());
        Ok(names)
    })
}

/// Removes the oldest bases and their layers, having asked first if `yes` is not set. The latest
/// `keep` bases stay, and any with what is booted or the default.
pub fn garbage(context: &Context, keep: usize, yes: bool) -> Result<()> {
    remove_with(context, |group, in_use| {
        let bases = group.bases();
        let old = bases.len().saturating_sub(keep);
        let is_used = |base: &Base| {
            let mut names = base.layers.iter().map(|l| &l.0).chain([&base.name]);
            names.any(|name| in_use.iter().any(|(used, _)| used == name.as_str()))
        };
        let names: Vec<LvName> = bases[..old]
            .iter()
            .filter(|base| !is_used(base))
            .flat_map(|base| base.layers.iter().map(|l| &l.0).chain([&base.name]))
            .cloned()
            .collect();
        if !names.is_empty() && !yes && !context.dry_run {
            confirm(&format!("Remove {}?", list(&names)))?;
        }
        Ok(names)
    })
}

/// Removes what `select` names in a group. Refuses what is booted, the default, on trial or boots next,
/// and what is in use, before anything is changed.
fn remove(context: &Context, select: impl FnOnce(&Group) -> Result<Vec<LvName>>) -> Result<()> {
    remove_with(context, |group, in_use| {
        let names = select(group)?;
        for (used, why) in in_use {
            ensure!(
                !names.iter().any(|name| name.as_str() == used),
                "{used} is {why} and cannot be removed"
            );
        }
        Ok(names)
    })
}

/// Removes what `select` names, which is told what has to stay, and why.
fn remove_with(
    context: &Context,
    select: impl FnOnce(&Group, &[(String, &str)]) -> Result<Vec<LvName>>,
) -> Result<()> {
    let (_lock, mut changes) = context.change().context("remove")?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    let booted = view::booted(&group)?.map(|name| (name, "booted"));
    let trial = boot.trial()?.filter(|trial| !trial.is_over());
    let bootable = group.bootable();
    // Also where its entry is lost for now.
    let chosen = |id: Option<String>, what| Some((boot.owner_of(&id?, &bootable)?, what));
    let default = chosen(boot.default_id()?, "the default");
    let once = chosen(boot.once_id()?, "what boots next");
    let trial = chosen(trial.map(|trial| trial.id), "on trial");
    let in_use: Vec<_> = [booted, default, once, trial]
        .into_iter()
        .flatten()
        .collect();
    let names = select(&group, &in_use)?;
    // Fails for what is mounted, while its entry is still there.
    for name in &names {
        if group.volume(name.as_str()).is_some_and(|v| v.active) {
            changes.run(&context.lvm.deactivate(name))?;
        }
    }
    boot.remove(&mut changes, &names)?;
    for name in &names {
        changes.run(&context.lvm.remove(name))?;
    }
    changes.keep();
    Ok(())
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
fn confirm(question: &str) -> Result<()> {
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
