//! `layer`: writable snapshots that the host boots.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

use super::view::{self, JSON_VERSION, LayerView};
use super::{Context, comment, filesystem, initramfs, pool_with_room, running_options, say, text};
use crate::boot::entry::{self, Entry, Payload};
use crate::boot::system::System;
use crate::boot::{BootPartition, Known};
use crate::model::fstab;
use crate::model::layout::{Group, Role, Volume, tag};
use crate::model::name::{LvName, next_layer};
use crate::sys::changes::Changes;

/// Makes a layer of `origin`, a base or a layer, or of the latest base, and its boot entry.
pub fn add(context: &Context, origin: Option<LvName>) -> Result<()> {
    let (_lock, mut changes) = context.change().context("layer add")?;
    make(context, &mut changes, origin)
}

/// Does what [`add`] does, as a part of a verb.
pub fn make(context: &Context, changes: &mut Changes, origin: Option<LvName>) -> Result<()> {
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    pool_with_room(&group)?;
    let (origin, base) = find_origin(&group, origin)?;
    let layer = next_layer(&base, group.taken())?;
    group.name.dm_name(&layer)?;
    // A base never changes, so what its entries boot is right for its layers. A layer may have got
    // another kernel since.
    let entries = boot.entries_of(&origin)?;
    let kernels: Vec<Payload> = entries.iter().map(Entry::payload).collect();
    let is_complete = !kernels.is_empty() && kernels.iter().all(|k| boot.has_kernel(k));
    let kernels = Some(kernels).filter(|_| origin == base && is_complete);
    // What has a digest was checked when it was made.
    let made_by_us = group
        .volume(origin.as_str())
        .filter(|volume| origin == base && volume.digest().is_some());
    let has_root_line = made_by_us.is_none_or(|base| base.has_tag(tag::ROOT_LINE));
    boot.entry_of(&layer)?;
    let fallback_options = running_options(&group, &boot)?;
    let default = boot.default_id()?;
    let lvm = &context.lvm;

    let create = lvm.create_snapshot(&layer, &origin, Some(&base));
    changes.run_undoable(&create, lvm.remove(&layer))?;
    let filesystem = context.filesystem(&layer, &origin)?;
    if made_by_us.is_none() {
        filesystem.check(changes, false)?;
    }
    filesystem.renew_uuid(changes)?;
    let known = Known {
        entries: &entries,
        options: &fallback_options,
        added: None,
        removed: None,
        is_running: false,
    };
    let kernels = match kernels {
        Some(kernels) if !has_root_line => Some(kernels),
        kernels => context.mounted(changes, &layer, &filesystem, "rw", |changes, root| {
            own_root_line(changes, root, &lvm.device(&layer)?)?;
            kernels.map_or_else(|| initramfs::publish(changes, &boot, root, &known), Ok)
        })?,
    };
    // Where something else can be booted, a layer that has never come up must not keep the host.
    let is_trial = default.is_some();
    let entries = kernels
        .map(|kernels| context.entries(&layer, false, &kernels, is_trial))
        .transpose()?;
    changes.run(&lvm.complete(&layer, &[tag::LAYER.to_owned()]))?;
    changes.keep();
    let Some(entries) = entries else {
        return comment(&format!("the boot entry of {layer} is written"));
    };
    boot.write_entries(changes, &layer, &entries)
        .with_context(|| format!("{layer} was made, but has no boot entry"))?;
    changes.keep();
    if let (None, Some(entry)) = (default, entries.first()) {
        boot.set_default(changes, &entry.id)
            .with_context(|| format!("{layer} was made, but there is no default entry"))?;
        changes.keep();
    }
    if !context.dry_run {
        say(&format!("{layer}\n"))?;
    }
    Ok(())
}

/// Puts a layer's own device on the line for / in its fstab, if there is one.
fn own_root_line(changes: &mut Changes, root: &Path, device: &Path) -> Result<()> {
    let Some(fstab) = System::at(root).fstab()? else {
        return Ok(());
    };
    match fstab::with_root(&fstab.text, &device.to_string_lossy()) {
        Some(text) if text != fstab.text => changes.rewrite(&fstab.path, text.as_bytes()),
        _ => Ok(()),
    }
}

/// The one kernel of a layer that was changed.
#[derive(Default)]
pub struct KernelChange {
    pub added: Option<String>,
    pub removed: Option<String>,
}

/// Writes the boot entries of a layer or base from the kernels that are in it.
pub fn write_entries(
    context: &Context,
    changes: &mut Changes,
    group: &Group,
    boot: &BootPartition,
    name: &LvName,
    kernel: &KernelChange,
) -> Result<()> {
    let fallback_options = running_options(group, boot)?;
    let entries = boot.entries_of(name)?;
    let volume = group.volume(name.as_str());
    let is_base = volume.is_some_and(|v| v.role == Role::Base);
    // What is seen of a base that runs is its overlay.
    let is_running = !is_base && view::booted(group)?.as_deref() == Some(name.as_str());
    let known = Known {
        entries: &entries,
        options: &fallback_options,
        added: kernel.added.as_deref(),
        removed: kernel.removed.as_deref(),
        is_running,
    };
    let kernels = if is_running && context.dry_run {
        Some(initramfs::publish(changes, boot, Path::new("/"), &known)?)
    } else if is_running {
        // With what the boot partition hides of its /boot.
        let dir = filesystem::mount_point("running");
        let mounted = filesystem::mount_again(changes, Path::new("/"), &dir)?;
        let kernels = initramfs::publish(changes, boot, &dir, &known)?;
        mounted.unmount(changes)?;
        Some(kernels)
    } else {
        let is_active = volume.is_some_and(|volume| volume.active);
        context.activated(changes, name, is_active, |changes| {
            let filesystem = context.filesystem(name, name)?;
            context.mounted(changes, name, &filesystem, "ro", |changes, root| {
                initramfs::publish(changes, boot, root, &known)
            })
        })?
    };
    let Some(kernels) = kernels else {
        return comment(&format!("the boot entries of {name} are written"));
    };
    let default = boot.default_id()?.filter(|id| {
        *id != entry::id(&group.name, name) && entries.iter().all(|entry| entry.id != *id)
    });
    let is_trial = !volume.is_some_and(Volume::is_good) && default.is_some();
    let mut new = context.entries(name, is_base, &kernels, is_trial)?;
    for entry in &mut new {
        // What was put beside it by hand stays.
        let is_same =
            |old: &&Entry| old.payload() == entry.payload() && old.is_trial() == entry.is_trial();
        if let Some(old) = entries.iter().find(is_same) {
            *entry = Entry {
                id: entry.id.clone(),
                ..old.clone()
            };
        }
    }
    boot.write_entries(changes, name, &new)
}

/// What to snapshot, and the base that the new layer belongs to.
fn find_origin(group: &Group, origin: Option<LvName>) -> Result<(LvName, LvName)> {
    let Some(origin) = origin else {
        return match group.bases().pop() {
            Some(base) => Ok((base.name.clone(), base.name)),
            None => bail!(
                "{} has no base; `imgbased-helper base add IMAGE` makes one",
                group.name
            ),
        };
    };
    match group.volume(origin.as_str()) {
        Some(volume) if volume.role == Role::Base => Ok((origin.clone(), origin)),
        Some(volume) if volume.role == Role::Layer => match group.base_of(volume) {
            Some(base) => Ok((origin, base)),
            None => bail!("the base of {origin} is gone"),
        },
        _ => bail!("{} has no base or layer {origin}", group.name),
    }
}

#[derive(Serialize)]
struct List<'a> {
    version: u32,
    layers: Vec<&'a LayerView>,
}

/// Lists the layers, oldest first.
pub fn list(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    let list = List {
        version: JSON_VERSION,
        layers: view.layers().collect(),
    };
    context.show(&list, || {
        let rows: Vec<(String, String)> = view
            .layers()
            .map(|layer| {
                let marks = layer.marks();
                let size = text::size(layer.size);
                (layer.name.clone(), format!("{size:>10}  {marks}"))
            })
            .collect();
        text::columns(&rows)
    })
}

/// Prints the name of the latest layer: that of the latest base that has one. Refuses when there is
/// none.
pub fn latest(context: &Context) -> Result<()> {
    let group = context.load()?;
    let bases = group.bases();
    match bases.iter().rev().find_map(|base| base.layers.last()) {
        Some((name, _)) => say(&format!("{name}\n")),
        None => bail!("{} has no layer", group.name),
    }
}

/// Prints the name of the layer, or base, that is booted. Refuses when none is.
pub fn current(context: &Context) -> Result<()> {
    match view::booted(&context.load()?)? {
        Some(name) => say(&format!("{name}\n")),
        None => bail!("no layer is booted"),
    }
}

/// Prints the path of a layer's device.
pub fn path(context: &Context, name: &LvName) -> Result<()> {
    let group = context.load()?;
    if !group.bootable().contains(name) {
        bail!("{} has no layer {name}", group.name);
    }
    say(&format!("{}\n", context.lvm.device(name)?.display()))
}
