//! Removing layers and bases: out of the menu first, then the volumes.

use std::io::{self, BufRead, IsTerminal};

use anyhow::{Context as _, Result, bail, ensure};

use super::{Context, say, view};
use crate::model::layout::{Group, Role};
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
            confirm(name, &names)?;
        }
        names.push(name.clone());
        Ok(names)
    })
}

/// Removes what `select` names in a group. Refuses what is booted or the default, and what is in
/// use, before anything is changed.
fn remove(context: &Context, select: impl FnOnce(&Group) -> Result<Vec<LvName>>) -> Result<()> {
    let (_lock, mut changes) = context.change().context("remove")?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    let names = select(&group)?;
    let (booted, default) = (view::booted(&group)?, boot.default_layer(&boot.entries()?)?);
    for name in &names {
        let is = |which: &Option<String>| which.as_deref() == Some(name.as_str());
        ensure!(!is(&booted), "{name} is booted and cannot be removed");
        ensure!(
            !is(&default),
            "{name} is the default and cannot be removed; choose another first"
        );
    }
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

fn confirm(base: &LvName, layers: &[LvName]) -> Result<()> {
    let names: Vec<&str> = layers.iter().map(LvName::as_str).collect();
    let names = names.join(" ");
    ensure!(
        io::stdin().is_terminal(),
        "{base} has layers: {names}; --yes removes them as well"
    );
    say(&format!("Remove {base} and its layers {names}? [y/N] "))?;
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
