//! `layout`: the volume group as a tree. `layout init`: making it.

use std::fs::OpenOptions;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail, ensure};

use super::text::{self, TreeStyle};
use super::view::{self, View};
use super::{Context, say};
use crate::model::layout::{Role, tag};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::probe;

/// The share of the group that the pool gets, in percent. The rest is for its growth and repair.
const POOL_PERCENT: u8 = 90;
/// The volume for what is carried from base to base. Thin: it takes what is written to it.
const CONFIG: &str = "Config";
const CONFIG_SIZE: u64 = 1 << 30;

/// Makes the volume group on `devices`, with its thin pool and the Config volume.
pub fn init(context: &Context, devices: &[PathBuf]) -> Result<()> {
    let vg = context.lvm.vg();
    let config: LvName = CONFIG.parse()?;
    vg.dm_name(&config)?;
    let (_lock, mut changes) = context.change().context("layout init")?;
    for device in devices {
        check_empty(device)?;
    }
    if context.lvm.load()?.is_some() {
        bail!("volume group {vg} exists already; `imgbased-helper layout` shows it");
    }

    changes.run(&context.lvm.create_group(devices))?;
    changes.on_failure(context.lvm.forget_devices(devices));
    changes.on_failure(context.lvm.remove_group());
    changes.run_undoable(
        &context.lvm.create_pool(&context.pool, POOL_PERCENT),
        context.lvm.remove(&context.pool),
    )?;
    changes.run_undoable(
        &context
            .lvm
            .create_thin(&config, &context.pool, CONFIG_SIZE, false),
        context.lvm.remove(&config),
    )?;
    changes.run(
        &Cmd::new("mke2fs")
            .args(["-q", "-t", "ext4", "-L", CONFIG])
            .arg(context.lvm.device(&config)?),
    )?;
    changes.run(&context.lvm.complete(&config, tag::VOLUME))?;
    changes.keep();
    if !context.dry_run {
        say(&format!("volume group {vg} is ready for a base\n"))?;
    }
    Ok(())
}

/// Refuses what is no block device, holds anything, or is in use.
fn check_empty(device: &PathBuf) -> Result<()> {
    let shown = device.display();
    let metadata = std::fs::metadata(device).with_context(|| format!("cannot use {shown}"))?;
    ensure!(
        metadata.file_type().is_block_device(),
        "{shown} is not a block device"
    );
    // The kernel refuses exclusive access to what is mounted or part of something else.
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_EXCL)
        .open(device)
        .with_context(|| format!("{shown} is in use"))?;
    if let Some(signature) = probe::signature(device)? {
        bail!(
            "{shown} is not empty: it holds {}; if nothing of it is needed, `wipefs -a {shown}` empties it",
            signature.kind
        );
    }
    Ok(())
}

/// Shows the group as a tree.
pub fn show(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    context.show(&view, || tree(&view, &TreeStyle::of_locale()))
}

fn tree(view: &View, style: &TreeStyle) -> String {
    let mut rows = vec![(
        view.vg.clone(),
        format!("{}, {} free", text::size(view.size), text::size(view.free)),
    )];
    let mut left = usize::from(view.pool.is_some()) + view.volumes.len() + view.bases.len();
    let mut joint = || {
        left -= 1;
        (
            style.joint(left == 0),
            if left == 0 { style.gap } else { style.bar },
        )
    };
    if let Some(pool) = &view.pool {
        let (joint, _) = joint();
        rows.push((
            format!("{joint}{}", pool.name),
            format!(
                "{} thin pool, data {}, metadata {}",
                text::size(pool.size),
                text::percent(pool.data_percent),
                text::percent(pool.metadata_percent)
            ),
        ));
    }
    for volume in &view.volumes {
        let (joint, _) = joint();
        let role = match volume.role {
            Role::Incomplete => "incomplete: interrupted while it was made",
            Role::Volume => "shared volume",
            Role::Layer => "layer of a base that is gone",
            _ => "not managed",
        };
        rows.push((
            format!("{joint}{}", volume.name),
            format!("{} {role}", text::size(volume.size)),
        ));
    }
    for base in &view.bases {
        let (joint, below) = joint();
        rows.push((
            format!("{joint}{}", base.name),
            format!(
                "{} {}",
                text::size(base.size),
                notes("base", base.booted, base.default, true)
            ),
        ));
        for (i, layer) in base.layers.iter().enumerate() {
            let joint = style.joint(i + 1 == base.layers.len());
            let notes = notes(
                "layer",
                layer.booted,
                layer.default,
                layer.bootable.unwrap_or(true),
            );
            rows.push((
                format!("{below}{joint}{}", layer.name),
                format!("{} {notes}", text::size(layer.size)),
            ));
        }
    }
    text::columns(&rows)
}

fn notes(kind: &str, booted: bool, default: bool, bootable: bool) -> String {
    let mut notes = vec![kind];
    if booted {
        notes.push("booted");
    }
    if default {
        notes.push("default");
    }
    if !bootable {
        notes.push("without a boot entry");
    }
    notes.join(", ")
}
