//! Removing layers and bases, for all verbs that do: out of the menu first, then the volumes.

use std::io::{self, BufRead, IsTerminal};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::base::listings;
use super::update::Waiting;
use super::{Context, hooks, news, say, view, volume};
use crate::boot::BootPartition;
use crate::model::kernel_options;
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::model::pool;
use crate::model::removal::{Known, Request, plan};
use crate::sys::transaction::Writer;

/// What to ask before these volumes are removed, if anything.
pub type Question<'a> = dyn Fn(&[LvName]) -> Option<String> + 'a;

/// Removes what is requested, if `question`, where it asks one, is answered with yes. It is asked before
/// the lock is taken and before signals are handled: somebody may think about it for long.
///
/// Refuses what cannot be removed before anything is changed. Then each volume is a unit of work: what is
/// removed stays removed when the next one fails, and that one keeps its entry.
pub fn remove(context: &Context, request: &Request, question: Option<&Question>) -> Result<()> {
    let confirmed = match question {
        Some(question) if !context.dry_run => Some(confirm(context, request, question)?),
        _ => None,
    };
    let writer = context.locked_writer("remove")?;
    let (boot, group, names) = look(context, request)?;
    ensure!(
        confirmed.is_none_or(|confirmed| confirmed == names),
        "another command has changed what would be removed; nothing was removed"
    );
    boot.check_removable(&names)?;
    hooks::before_removal(context, &writer, &group, &names)?;
    deactivate(context, &writer, &group, &names)?;
    for (at, name) in names.iter().enumerate() {
        // First: a later layer of this name would take them for its own.
        volume::drop_saved(context, &writer, &group, name)?;
        writer.transaction(|tx| {
            boot.remove_last(tx, &names[..=at])?;
            if context.root == Path::new("/") {
                Waiting::forget(tx, name)?;
            }
            // Nothing takes that back.
            tx.run(&context.lvm.remove(name))
        })?;
        news::removed(context, &group, name);
        hooks::after_removal(context, &writer, &group, name);
    }
    if names.iter().any(|name| is_base(&group, name)) {
        let tidied = writer.transaction(|tx| listings::tidy(context, tx, &names));
        if let Err(error) = tidied {
            log::warn!("the listing of a base that is gone may still be there: {error:#}");
        }
    }
    Ok(())
}

fn is_base(group: &Group, name: &LvName) -> bool {
    let volume = group.volume(name.as_str());
    volume.is_some_and(|volume| volume.role == Role::Base)
}

/// The names of volumes, for people.
pub fn list(names: &[LvName]) -> String {
    let names: Vec<&str> = names.iter().map(LvName::as_str).collect();
    names.join(" ")
}

/// Asks the question, if there is something to ask, and returns what may be removed.
fn confirm(context: &Context, request: &Request, question: &Question) -> Result<Vec<LvName>> {
    let (_, _, names) = look(context, request)?;
    if let Some(question) = question(&names) {
        ask(&question, "nothing was removed")?;
    }
    Ok(names)
}

/// What is there, and what of it to remove.
fn look(context: &Context, request: &Request) -> Result<(BootPartition, Group, Vec<LvName>)> {
    let boot = context.boot_partition()?;
    // What is removed makes room, so none is asked for.
    boot.check_writable()?;
    let group = context.load()?;
    pool::check_changeable(&group)?;
    // Else what is the default or on trial is not known.
    ensure!(
        !boot.named_by(&boot.entries()?).is_empty()
            || group.with_role(Role::Layer).next().is_none(),
        "the boot partition has no entry of {}, so what of it boots is not known; mount the one that belongs to \
         the group, at /boot below --root",
        group.name
    );
    let names = plan(&group, request, &known(context, &group, &boot)?)?;
    Ok((boot, group, names))
}

fn known(context: &Context, group: &Group, boot: &BootPartition) -> Result<Known> {
    let bootable = group.bootable();
    // Also where its entry is lost for now.
    let owner = |id: Option<String>| boot.owner_of(&id?, &bootable);
    let trial = boot.trial()?.filter(|trial| !trial.is_over());
    let booted = view::booted(group)?;
    let default = owner(boot.default_id()?);
    let once = owner(boot.once_id()?);
    let trial = owner(trial.map(|trial| trial.id));
    let mut fallbacks = Vec::new();
    for name in [&booted, &default, &once, &trial].into_iter().flatten() {
        // What others have put in the place of one names none.
        let entries = boot.entries_of(&name.parse()?).unwrap_or_default();
        let options = entries.iter().map(|entry| entry.options.as_str());
        fallbacks.extend(options.filter_map(|options| {
            kernel_options::value(options, kernel_options::FALLBACK).map(str::to_owned)
        }));
    }
    Ok(Known {
        booted,
        default,
        once,
        trial,
        fallbacks,
        good: good_layers(group, boot)?,
        mismatch: context.pool_mismatch(group)?,
    })
}

/// The layers that have come up and can be booted, the latest last.
pub fn good_layers(group: &Group, boot: &BootPartition) -> Result<Vec<LvName>> {
    let mut good = Vec::new();
    for (name, volume) in group.bases().into_iter().flat_map(|base| base.layers) {
        if volume.is_good() && boot.whole_entry_of(&name)?.is_some() {
            good.push(name);
        }
    }
    Ok(good)
}

/// Deactivates what is active: all of it or nothing. Fails for what is mounted, while its entry is still
/// there.
///
/// A pool that is not active is activated for a moment: what lvm2 is told to remove from one that it cannot activate is
/// gone from its metadata, and still in the pool.
fn deactivate(context: &Context, writer: &Writer, group: &Group, names: &[LvName]) -> Result<()> {
    let lvm = &context.lvm;
    let is_active = |name: &&LvName| group.volume(name.as_str()).is_some_and(|v| v.active);
    writer.transaction(|tx| {
        if let Some(pool) = group.pool().filter(|p| !p.active && !names.is_empty()) {
            let pool = pool.name.parse()?;
            let activated = context.activated(tx, &pool, false, |_| Ok(()));
            activated.map_err(|error| {
                let why = lvm.explain_activation(&pool, &format!("{error:#}"));
                why.map_or(error, |why| anyhow!("nothing can be removed: {why}"))
            })?;
        }
        for name in names.iter().filter(is_active) {
            tx.run_undoable(&lvm.deactivate(name), lvm.activate(name))?;
        }
        Ok(())
    })
}

/// Asks a person. Refuses where there is none, or the answer is not yes, with what that comes to.
pub fn ask(question: &str, refused: &'static str) -> Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "{question} Nobody can be asked, as standard input is no terminal; --yes goes on without the question"
    );
    say(&format!("{question} [y/N] "))?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("cannot read the answer")?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        bail!(refused);
    }
    Ok(())
}
