//! `base`: read-only images that layers start from.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::view::{self, BaseView, JSON_VERSION};
use super::{Context, full_check, pool_with_room, running_options, say, text};
use crate::model::layout::tag;
use crate::model::name::{LvName, next_base};
use crate::sys::cmd::Cmd;
use crate::sys::probe;

/// Makes a base from a raw ext4 image; `size` is in bytes.
pub fn add(context: &Context, image: &Path, name: Option<LvName>, size: Option<u64>) -> Result<()> {
    let (_lock, mut changes) = context.change().context("base add")?;
    let image_size = check_image(image)?;
    let wanted = size.unwrap_or(image_size);
    ensure!(
        wanted >= image_size,
        "--size {} is less than the {} of {}",
        text::size(wanted),
        text::size(image_size),
        image.display()
    );
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let group = context.load()?;
    let pool = pool_with_room(&group)?;
    let name = match name {
        Some(name) => name,
        None => next_base(group.taken())?,
    };
    if group.volume(name.as_str()).is_some() {
        bail!("{}/{name} exists already", group.name);
    }
    // The name of a layer is longer; a base that can have none is of no use.
    group.name.dm_name(&name.layer(u64::from(u32::MAX))?)?;
    boot.entry_of(&name)?;
    let fallback_options = running_options(&group, &boot)?;
    let lvm = &context.lvm;
    let device = lvm.device(&name)?;

    let create = lvm.create_thin(&name, &pool.name.parse()?, wanted, true);
    changes.run_undoable(&create, lvm.remove(&name))?;
    changes.run(
        &Cmd::new("dd")
            .arg(format!("if={}", image.display()))
            .arg(format!("of={}", device.display()))
            .args(["bs=4M", "conv=sparse,fsync", "status=none"]),
    )?;
    changes.run(&full_check(&device))?;
    if wanted > image_size {
        changes.run(&Cmd::new("resize2fs").arg(&device))?;
    }
    let payload = context
        .publish(&mut changes, &boot, &name, &fallback_options)
        .with_context(|| format!("{} cannot be booted", image.display()))?;
    let entry = payload
        .map(|payload| context.entry(&name, true, &payload))
        .transpose()?;
    changes.run(&lvm.deactivate(&name))?;
    changes.run(&lvm.complete(&name, tag::BASE))?;
    changes.keep();
    if let Some(entry) = entry {
        boot.add(&mut changes, &name, &entry)
            .with_context(|| format!("{name} was made, but has no boot entry"))?;
        changes.keep();
        say(&format!("{name}\n"))?;
    }
    Ok(())
}

/// The size of an image in bytes. Refuses what is not a raw ext4 filesystem.
fn check_image(image: &Path) -> Result<u64> {
    let shown = image.display();
    match probe::signature(image)?.map(|s| s.kind).as_deref() {
        Some("ext4") => {}
        Some(kind) => bail!("{shown} holds {kind}; a raw ext4 image is needed"),
        None => bail!("{shown} holds nothing that is known; a raw ext4 image is needed"),
    }
    // A block device has no length of its own, but an end.
    File::open(image)
        .and_then(|mut file| file.seek(SeekFrom::End(0)))
        .with_context(|| format!("cannot read {shown}"))
}

#[derive(Serialize)]
struct List<'a> {
    version: u32,
    bases: &'a [BaseView],
}

/// Lists the bases, oldest first.
pub fn list(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    let list = List {
        version: JSON_VERSION,
        bases: &view.bases,
    };
    context.show(&list, || {
        view.bases.iter().map(|b| format!("{}\n", b.name)).collect()
    })
}

/// Prints the name of the latest base. Refuses when there is none.
pub fn latest(context: &Context) -> Result<()> {
    let group = context.load()?;
    match group.bases().pop() {
        Some(base) => say(&format!("{}\n", base.name)),
        None => bail!("{} has no base", group.name),
    }
}
