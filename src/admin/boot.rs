//! `boot`: the entries of layers and bases, and which of them boots.

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::view::{self, JSON_VERSION};
use super::{Context, text};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::model::name::LvName;

#[derive(Serialize)]
struct List {
    version: u32,
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
    /// Whether the group has that layer, and the boot partition its kernel.
    bootable: bool,
}

/// Lists the entries in the order of the menu.
pub fn list(context: &Context) -> Result<()> {
    let boot = context.boot_partition()?;
    let group = context.load()?;
    let entries = boot.entries()?;
    let booted = view::booted(&group)?;
    let selection = boot.selection()?;
    let bootable = group.bootable();
    let is = |which: &Option<String>, name: &str| which.as_deref() == Some(name);
    let view = |entry: &Entry| {
        let name = entry
            .layer()
            .filter(|_| entry.vg() == group.name.as_str())?;
        let is_there = bootable.iter().any(|known| known.as_str() == name);
        Some(EntryView {
            id: entry.id.clone(),
            name: name.to_owned(),
            kernel: entry.version.clone(),
            booted: is(&booted, name),
            default: is(&selection.default, name),
            once: is(&selection.once, name),
            bootable: is_there && boot.has_kernel(&entry.payload()),
        })
    };
    let list = List {
        version: JSON_VERSION,
        entries: entries.iter().filter_map(view).collect(),
    };
    context.show(&list, || {
        let rows = list.entries.iter().map(|entry| {
            let marks = text::marks(&[
                (entry.booted, "booted"),
                (entry.default, "default"),
                (entry.once, "next start only"),
                (!entry.bootable, "cannot boot; see `imgbased-helper check`"),
            ]);
            let kernel = &entry.kernel;
            (entry.name.clone(), format!("Linux {kernel}  {marks}"))
        });
        text::columns(&rows.collect::<Vec<_>>())
    })
}

/// Makes the entry of a layer or base the default.
pub fn set_default(context: &Context, name: &LvName) -> Result<()> {
    let (_lock, mut changes) = context.change().context("boot default")?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let entry = bootable(context, &boot, name)?;
    boot.set_default(&mut changes, &entry.id)?;
    changes.keep();
    Ok(())
}

/// Has a layer or base boot at the next start, and the default again after that; none takes it back.
pub fn set_once(context: &Context, name: Option<&LvName>) -> Result<()> {
    let (_lock, mut changes) = context.change().context("boot try")?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let entry = name
        .map(|name| bootable(context, &boot, name))
        .transpose()?;
    boot.set_once(&mut changes, entry.as_ref().map(|entry| entry.id.as_str()))?;
    changes.keep();
    Ok(())
}

/// The entry of a layer or base. Refuses what would not boot.
fn bootable(context: &Context, boot: &BootPartition, name: &LvName) -> Result<Entry> {
    let group = context.load()?;
    ensure!(
        group.bootable().contains(name),
        "{} has no layer or base {name}",
        group.name
    );
    let entry = boot
        .entry_of(name)?
        .filter(|entry| boot.has_kernel(&entry.payload()));
    entry.with_context(|| {
        format!(
            "{name} has no boot entry with a kernel; `imgbased-helper check --repair` writes one"
        )
    })
}
