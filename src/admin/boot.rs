//! `boot`: the entries of layers and bases, and which of them boots.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::utsname::uname;
use serde::Serialize;

use super::text::Tone;
use super::update::{self, Waiting};
use super::view::{self, JSON_VERSION};
use super::{Context, LOCK_WAIT, check, hooks, layer, news, say, text, volume};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::model::kernel_options;
use crate::model::layout::{Failure, Group, KernelFailure, Role, Volume, tag};
use crate::model::name::LvName;
use crate::model::trial::{OnTrial, State, TRIES_MAX, Trial, subject};
use crate::sys::cmd::Cmd;
use crate::sys::files::directory;
use crate::sys::run;
use crate::sys::transaction::{Transaction, Writer};

/// How long the end of a boot, and packages of kernels, wait for another command: nobody is there to try it
/// again. On trial imgbased-give-up.timer ends it.
const UNATTENDED_WAIT: Duration = Duration::from_secs(600);
pub const MOTD: &str = "/run/motd.d";

#[derive(Serialize)]
struct List {
    version: u32,
    /// `grub`, `grub-blscfg` or `systemd-boot`.
    loader: &'static str,
    /// How that is known.
    loader_reason: String,
    /// What the next start boots.
    next: String,
    entries: Vec<EntryView>,
}

#[derive(Serialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they have nothing to do with each other"
)]
struct EntryView {
    id: String,
    /// The layer or base.
    name: String,
    /// The kernel's version.
    kernel: String,
    booted: bool,
    default: bool,
    /// Boots at the next start only.
    once: bool,
    /// How often it was tried already, and may be, before the default boots again.
    trial: Option<OnTrial>,
    /// Its last trial, or that of its layer, if that failed.
    failure: Option<Failure>,
    /// Whether the group has that layer, and the boot partition its kernel.
    bootable: bool,
}

/// Lists the entries in the order of the menu.
pub fn list(context: &Context) -> Result<()> {
    let boot = context.boot_partition()?;
    let group = context.load()?;
    let entries = boot.entries()?;
    let booted = view::booted(&group)?;
    let running = booted
        .as_ref()
        .map(|name| running_entry(&boot, &name.parse()?));
    let running = running.transpose()?.flatten().map(|entry| entry.id);
    let default = boot.default_id()?;
    let once = boot.once_id()?;
    let trial = boot.trial()?;
    let next = boot.next_start()?;
    let bootable = group.bootable();
    let is = |which: &Option<String>, text: &str| which.as_deref() == Some(text);
    let view = |entry: &Entry| {
        let name = entry
            .layer()
            .filter(|_| entry.vg() == group.name.as_str())?;
        let is_there = bootable.iter().any(|known| known.as_str() == name);
        Some(EntryView {
            id: entry.id.clone(),
            name: name.to_owned(),
            kernel: entry.version.clone(),
            booted: is(&running, &entry.id),
            default: is(&default, &entry.id),
            once: is(&once, &entry.id),
            trial: trial
                .as_ref()
                .filter(|trial| trial.id == entry.id)
                .map(|trial| trial.of_layer(name.to_owned(), boot.kernel_of(name, &trial.id))),
            failure: group
                .volume(name)
                .and_then(|volume| failure_of(volume, entry)),
            bootable: is_there && boot.has_kernel(&entry.spec()),
        })
    };
    let list = List {
        version: JSON_VERSION,
        loader: boot.loader.id(),
        loader_reason: boot.loader_reason.clone(),
        next: next.to_string(),
        entries: entries.iter().filter_map(view).collect(),
    };
    context.show(&list, || {
        let ids = list.entries.iter().map(|entry| entry.id.len());
        let width = ids.max().unwrap_or(0);
        let rows = list.entries.iter().map(|entry| {
            let trial = text::shown(entry.trial.as_ref());
            let failure = text::shown(entry.failure.as_ref());
            let is_trial = entry.trial.is_some();
            let marks = context.paint.marks(&[
                (entry.booted, Tone::Good, "booted"),
                (entry.default, Tone::Strong, "default"),
                (entry.once, Tone::Notice, "next start only"),
                (is_trial, Tone::Notice, "on trial"),
                (is_trial, Tone::Notice, &trial),
                (entry.failure.is_some(), Tone::Bad, &failure),
                (
                    !entry.bootable,
                    Tone::Bad,
                    "cannot boot; see `imgbased-helper check`",
                ),
            ]);
            let (id, kernel) = (&entry.id, &entry.kernel);
            (
                entry.name.clone(),
                format!("{id:width$}  Linux {kernel}  {marks}"),
            )
        });
        let loader = format!("{}: {}\n", boot.loader.name(), boot.loader_reason);
        let problem = next
            .problem()
            .map(|problem| format!("next start: {}\n", context.paint.tone(Tone::Bad, &problem)));
        loader + &problem.unwrap_or_default() + &text::columns(&rows.collect::<Vec<_>>())
    })
}

/// The trial that failed of what an entry boots: of its kernel, else of its layer.
fn failure_of(volume: &Volume, entry: &Entry) -> Option<Failure> {
    let failures = volume.kernel_failures().into_iter();
    let mut of_kernel = failures.filter(|f| entry.is_trial() && f.is_of(&entry.version));
    of_kernel
        .next()
        .map(|f| f.failure)
        .or_else(|| volume.failure())
}

/// The entry by which the layer that runs was booted.
pub fn running_entry(boot: &BootPartition, layer: &LvName) -> Result<Option<Entry>> {
    let kernel = uname().context("cannot ask for the kernel's version")?;
    boot.running_entry(layer, &kernel.release().to_string_lossy(), is_trial_boot()?)
}

/// Whether what runs was booted on trial.
fn is_trial_boot() -> Result<bool> {
    Ok(kernel_options::is_trial(&view::kernel_command_line()?))
}

/// Makes a layer or base the default, with this one of its kernels. What never came up is tried first, `tries`
/// times or as often as the host is configured to.
pub fn set_default(
    context: &Context,
    name: &LvName,
    kernel: Option<&str>,
    tries: Option<u32>,
) -> Result<()> {
    let (group, fallback) = context.change("boot default", |tx| {
        let boot = context.boot_partition()?;
        boot.check_ready()?;
        let group = context.load()?;
        let entry = bootable(&group, &boot, name, kernel)?;
        let tries = match tries {
            Some(tries) => tries,
            None => layer::tries(context)?,
        };
        let is_good = group.volume(name.as_str()).is_some_and(Volume::is_good);
        // Where its layer has come up, a kernel can be new, also the one that the layer boots.
        let state = if is_good && !entry.is_trial() {
            State::Good
        } else {
            layer::default_or_good(context, tx, &group, &boot)?;
            State::New
        };
        let fallback = boot.make_default(tx, name, &entry, state, tries)?;
        let fallback = fallback.map(|fallback| (fallback, tries.min(TRIES_MAX)));
        Ok((group, fallback))
    })?;
    let said = fallback.map(|(fallback, tries)| trial_begins(name, kernel, tries, &fallback));
    news::default_chosen(context, &group, name, kernel, said.as_deref());
    match said {
        Some(said) if !context.dry_run => say(&said),
        _ => Ok(()),
    }
}

/// What people are told of a layer or kernel that is tried from now on.
pub fn trial_begins(name: &LvName, kernel: Option<&str>, tries: u32, fallback: &str) -> String {
    format!(
        "{} becomes the default when it has come up; it is tried {tries} times, then {fallback} boots again\n",
        subject(name.as_str(), kernel)
    )
}

/// Records that a layer has come up, the booted one unless another is named. On trial, it becomes the
/// default. What was tried in vain before is recorded as well.
///
/// These are units of work, one after the other: what fails later must not take the blessing back.
pub fn bless(context: &Context, name: Option<LvName>) -> Result<()> {
    // What another command does is no fault of the layer.
    let writer = context.writer("boot bless", UNATTENDED_WAIT)?;
    writer.lock()?;
    let boot = context.boot_partition()?;
    let group = context.load()?;
    let booted = view::booted(&group)?;
    let name = or_booted(name, booted.as_deref())?.context("no layer is booted")?;
    let is_running = booted.as_deref() == Some(name.as_str());
    let tried = writer.transaction(|tx| bless_layer(context, tx, &boot, &group, &name, is_running));
    if let Some(entry) = tried? {
        news::came_up(context, &group, &name, &entry.version);
    }
    if is_running {
        // From here on the units of a trial leave this boot alone.
        writer.transaction(|tx| {
            let blessed = Path::new(run::BLESSED);
            tx.create_dir(directory(blessed))?;
            tx.write(blessed, b"", 0o644)
        })?;
        writer.transaction(|tx| record_failure(context, tx, &boot, &group))?;
        writer.transaction(|tx| release_base(context, tx, &boot, &group, &name))?;
        writer.transaction(|tx| announce_failures(tx, &context.load()?))?;
        Waiting::clear()?;
        if let Err(error) = take_up_update(context, &writer, &boot, &name) {
            // The layer has come up all the same.
            log::warn!(
                "what is changed from now on does not come along to a layer that waits: {error:#}"
            );
        }
        writer.transaction(|tx| update::tell_of_lost_changes(context, tx, &group))?;
        writer.transaction(|tx| volume::end_moves(context, tx))?;
    }
    hooks::after_bless(context, &writer, &group, &name);
    Ok(())
}

/// Has the shutdown take along what is changed in this boot, too, where an update of the layer that runs still waits.
fn take_up_update(
    context: &Context,
    writer: &Writer,
    boot: &BootPartition,
    name: &LvName,
) -> Result<()> {
    // A damaged grubenv is no fault of the layer.
    let Ok(selection) = boot.selection() else {
        return Ok(());
    };
    let group = context.load()?;
    let waits = writer.transaction(|tx| Waiting::take_up(tx, &group, &selection, name))?;
    if waits {
        // Other commands wait for this one.
        update::watch_for_changes(&["--no-block"]);
    }
    Ok(())
}

/// Returns the entry if its layer or kernel was on trial, or has never come up before.
fn bless_layer(
    context: &Context,
    tx: &mut Transaction,
    boot: &BootPartition,
    group: &Group,
    name: &LvName,
    is_running: bool,
) -> Result<Option<Entry>> {
    let running = is_running.then(|| running_entry(boot, name));
    let entry = running.transpose()?.flatten();
    let entry = entry.filter(|entry| boot.has_kernel(&entry.spec()));
    let entry = entry.map_or_else(|| bootable(group, boot, name, None), Ok)?;
    let volume = group.volume(name.as_str()).context("it was found above")?;
    let trial = trial_if_known(boot);
    // A full partition is no fault of the layer.
    if trial.is_some() || entry.is_trial() {
        boot.check_writable()?;
    }
    let mut old = volume.failure_tags();
    // The old initramfs of a kernel tells nothing of the new one.
    if is_running && entry.is_trial() {
        old.extend(volume.kernel_failure_tags(&entry.version));
    }
    // Only of what runs it is known when it has come up. What has come up last of all need not be told so again.
    let good = if is_running && volume.role == Role::Layer && !group.is_last_good(volume) {
        Some(format!("{}{}", tag::GOOD_AT, now()?))
    } else {
        (!volume.is_good()).then(|| tag::GOOD.to_owned())
    };
    if let Some(good) = &good {
        let is_old = |tag: &&str| tag != good;
        old.extend(volume.good_tags().into_iter().filter(is_old));
    }
    if good.is_some() || !old.is_empty() {
        // Not undone: it stays true.
        tx.run(&context.lvm.retag(name, &old, good.as_deref()))?;
    }
    boot.bless(tx, name, &entry, trial.as_ref())?;
    let was_tried = entry.is_trial() || trial.is_some_and(|trial| trial.id == entry.id);
    Ok(was_tried.then_some(entry))
}

/// Takes the mark of a rollback off the base of a layer that has come up as the default: it was chosen again.
fn release_base(
    context: &Context,
    tx: &mut Transaction,
    boot: &BootPartition,
    group: &Group,
    name: &LvName,
) -> Result<()> {
    let Some(base) = group.held_base_of(name) else {
        return Ok(());
    };
    // A damaged grubenv is no fault of the layer.
    let default = boot.default_id().unwrap_or_default();
    let layer = default.and_then(|id| boot.layer_of(&id));
    if layer.as_deref() != Some(name.as_str()) {
        return Ok(());
    }
    tx.run(&context.lvm.remove_tag(Some(&base), tag::HOLD))
}

/// The time in UTC, as RFC 3339 writes it.
fn now() -> Result<String> {
    let now = Cmd::new("date").args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]);
    Ok(now.run()?.trim().to_owned())
}

/// What is on trial. A damaged grubenv, which has GRUB count no tries, is not the fault of a layer that
/// has come up, and `check` tells of it.
fn trial_if_known(boot: &BootPartition) -> Option<Trial> {
    boot.trial().unwrap_or_else(|error| {
        log::warn!("what is on trial is not known: {error:#}");
        None
    })
}

/// Whether what runs is on trial, and has not come up yet: that is not over before the machine goes down.
pub fn is_being_tried() -> Result<bool> {
    Ok(is_trial_boot()? && !Path::new(run::BLESSED).exists())
}

/// Ends a trial whose tries are used up, and records it with the layer.
pub fn record_failure(
    context: &Context,
    tx: &mut Transaction,
    boot: &BootPartition,
    group: &Group,
) -> Result<()> {
    let Some(trial) = trial_if_known(boot).filter(Trial::is_over) else {
        return Ok(());
    };
    let is_good = |name: &LvName| group.volume(name.as_str()).is_some_and(Volume::is_good);
    boot.end_exhausted(tx, &trial, is_good, |tx, name, kernel| {
        let at = now()?;
        let tries = trial.tries;
        news::trial_failed(context, group, name, kernel, tries);
        let Some(volume) = group.volume(name.as_str()) else {
            return Ok(());
        };
        let (earlier, failed) = match kernel {
            Some(kernel) => (
                volume.kernel_failure_tags(kernel),
                KernelFailure::tag_of(kernel, tries, &at),
            ),
            None => (
                volume.failure_tags(),
                format!("{}{tries}:{at}", tag::FAILED),
            ),
        };
        // Not undone: it stays true.
        tx.run(&context.lvm.retag(name, &earlier, Some(&failed)))
    })
}

/// Tells those who log in of layers and kernels whose trial failed (`pam_motd(8)`).
fn announce_failures(tx: &mut Transaction, group: &Group) -> Result<()> {
    let line = |subject: &str, Failure { tries, at }: &Failure| {
        format!(
            "imgbased: {subject} did not come up in {tries} tries ({at}); see `imgbased-helper status`\n"
        )
    };
    let mut message = String::new();
    for volume in group.with_role(Role::Layer) {
        let name = &volume.name;
        for failed in volume.kernel_failures() {
            message += &line(&subject(name, Some(failed.kernel)), &failed.failure);
        }
        message += &volume
            .failure()
            .map_or_else(String::new, |failure| line(name, &failure));
    }
    if !message.is_empty() {
        tx.create_dir(Path::new(MOTD))?;
        tx.write(&Path::new(MOTD).join("imgbased"), message.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Has a layer or base boot at the next start, and the default again after that; none takes it back.
pub fn set_once(context: &Context, name: Option<&LvName>, kernel: Option<&str>) -> Result<()> {
    context.change("boot once", |tx| {
        let boot = context.boot_partition()?;
        boot.check_writable()?;
        let entry = match name {
            Some(name) => Some(bootable(&context.load()?, &boot, name, kernel)?),
            None => None,
        };
        boot.set_once(tx, entry.as_ref().map(|entry| entry.id.as_str()))
    })
}

/// Writes the entries of a layer or base, or of the layer that is booted, from its kernels.
pub fn refresh(
    context: &Context,
    name: Option<LvName>,
    kernel: &layer::KernelChange,
) -> Result<()> {
    if kernel.if_changed && !is_changed(context)? {
        return Ok(());
    }
    let is_unattended = kernel.added.is_some() || kernel.removed.is_some() || kernel.if_changed;
    let is_running = name
        .as_ref()
        .is_none_or(|name| view::boot_record().is_some_and(|record| record.layer == name.as_str()));
    if is_unattended && is_running && kernel.removed.is_none() && is_being_tried()? {
        // What is blessed has to be what was booted. The shutdown looks again.
        log::info!("what has changed of the kernels is looked at when this layer has come up");
        return Ok(());
    }
    let wait = if is_unattended {
        UNATTENDED_WAIT
    } else {
        LOCK_WAIT
    };
    let writer = context.writer("boot refresh", wait)?;
    writer.lock()?;
    let written = writer.transaction(|tx| {
        let boot = context.boot_partition()?;
        boot.check_ready()?;
        let group = context.load()?;
        let booted = view::booted(&group)?;
        let name = or_booted(name, booted.as_deref())?.context("no layer is booted; name one")?;
        check_known(&group, &name)?;
        layer::write_entries(context, tx, &group, &boot, &name, kernel)
    })?;
    written.news.map_or(Ok(()), |news| say(&news))
}

/// Puts right what boots, as `check --repair` does. Unlike that it reads all kernels.
pub fn repair(context: &Context) -> Result<ExitCode> {
    let writer = context.locked_writer("boot repair")?;
    let damaged = context.boot_partition()?.damaged_kernels()?;
    check::repair_boot(context, &writer, damaged)
}

/// Whether the layer that runs has a kernel or initramfs that no entry boots yet. Asks neither lvm2 nor the lock:
/// each shutdown waits for the answer.
fn is_changed(context: &Context) -> Result<bool> {
    // What is seen of a base that runs is its overlay.
    let Some(record) = view::boot_record().filter(|record| record.role == "layer") else {
        return Ok(false);
    };
    let boot = context.boot_partition()?;
    let entries = boot.entries_of(&record.layer.parse()?)?;
    Ok(!entries.is_empty() && !boot.changed_kernels(&entries)?.is_empty())
}

/// The layer or base that is named, else the one that is booted.
fn or_booted(name: Option<LvName>, booted: Option<&str>) -> Result<Option<LvName>> {
    name.map_or_else(|| booted.map(str::parse).transpose(), |name| Ok(Some(name)))
}

fn check_known(group: &Group, name: &LvName) -> Result<()> {
    ensure!(
        group.bootable().contains(name),
        "{} has no layer or base {name}",
        group.name
    );
    Ok(())
}

/// The entry of a layer or base, with this one of its kernels. Refuses what would not boot.
pub fn bootable(
    group: &Group,
    boot: &BootPartition,
    name: &LvName,
    kernel: Option<&str>,
) -> Result<Entry> {
    check_known(group, name)?;
    if let Some(kernel) = kernel {
        let mut entries = boot.entries_of(name)?;
        entries.retain(|entry| boot.has_kernel(&entry.spec()));
        // Of an initramfs that was made anew there are two; the first is the one that has come up.
        let found = entries.iter().rfind(|entry| entry.version == kernel);
        let known: Vec<&str> = entries.iter().map(|entry| entry.version.as_str()).collect();
        return found.cloned().with_context(|| {
            format!(
                "{name} has no boot entry with Linux {kernel}; it has: {}",
                known.join(", ")
            )
        });
    }
    boot.whole_entry_of(name)?.with_context(|| {
        format!(
            "{name} has no boot entry with a kernel; `imgbased-helper check --repair` writes one"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_a_document_as_its_schema_says() {
        let plain = EntryView {
            id: "imgbased-Base-0".to_owned(),
            name: "Base-0".to_owned(),
            kernel: "6.12".to_owned(),
            booted: false,
            default: false,
            once: false,
            trial: None,
            failure: None,
            bootable: true,
        };
        let tried = EntryView {
            trial: Some(OnTrial {
                name: "Base-0.1".to_owned(),
                kernel: Some("6.13".to_owned()),
                tries: 3,
                tried: 0,
            }),
            failure: Some(Failure {
                tries: 3,
                at: "2026-11-23T19:20:03Z".to_owned(),
            }),
            id: "imgbased-Base-0.1@6.13".to_owned(),
            name: "Base-0.1".to_owned(),
            kernel: "6.13".to_owned(),
            ..plain
        };
        let list = List {
            version: JSON_VERSION,
            loader: "grub",
            loader_reason: "/boot/grub/grub.cfg is there".to_owned(),
            next: "imgbased-Base-0.1".to_owned(),
            entries: vec![tried, plain],
        };
        crate::schemas::assert_holds("boot-list", &list);
    }
}
