//! Snapshots of volumes: `update --snapshot-volumes` takes them, and `rollback --with-volumes` goes back to them.

use anyhow::{Context as _, Result};

use super::mounts_of;
use crate::admin::Context;
use crate::model::layout::{Group, tag};
use crate::model::name::LvName;
use crate::model::saved::{self, Swap};
use crate::sys::transaction::{Transaction, Writer};

/// Takes a snapshot of each volume that is mounted, before the layer `before` runs, unless there is one. Returns the names
/// of those that are new.
pub fn save(context: &Context, tx: &mut Transaction, before: &LvName) -> Result<Vec<LvName>> {
    let group = context.load()?;
    let lvm = &context.lvm;
    let mut names = Vec::new();
    for (mount, saved) in saved::new(&group, mounts_of(&group), before)? {
        let (name, origin): (LvName, LvName) = (saved.mount.name.parse()?, mount.name.parse()?);
        group.name.dm_name(&name)?;
        let mut tags = saved.tags()?;
        tags.extend(own_tags(&group, &mount.name, &[tag::MOUNT_OPTIONS]));
        let create = lvm.create_snapshot(&name, &origin, None);
        tx.run_undoable(&create, lvm.remove(&name))?;
        tx.run(&lvm.commit(&name, &tags))?;
        names.push(name);
    }
    Ok(names)
}

/// Has snapshots be the volumes of their paths from the next start on. The old volumes stay what is mounted until then,
/// and are none of ours afterwards. The first tag decides for all of them, see [`crate::model::volume::mounts`]; what a
/// kill leaves then `check --repair` finishes.
pub fn exchange(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    swaps: &[Swap],
) -> Result<()> {
    let lvm = &context.lvm;
    let mut change = |name: &str, remove: &[String], add: &[String]| -> Result<()> {
        let name = name.parse()?;
        let undo = lvm.exchange_tags(&name, add, remove);
        tx.run_undoable(&lvm.exchange_tags(&name, remove, add), undo)
            .map(drop)
    };
    for Swap { saved, .. } in swaps {
        let tags = [tag::VOLUME.to_owned(), saved.mount.path_tag()];
        change(&saved.mount.name, &[], &tags)?;
    }
    let old = || swaps.iter().filter_map(|swap| swap.old.as_ref());
    for old in old() {
        let of_volume = [tag::VOLUME, tag::MOUNT, tag::MOUNT_OPTIONS];
        change(&old.name, &own_tags(group, &old.name, &of_volume), &[])?;
    }
    for Swap { saved, .. } in swaps {
        change(&saved.mount.name, &saved.tags()?, &[])?;
    }
    for old in old() {
        // It has the UUID of the filesystem that the snapshot has, so it is not activated with the group.
        tx.run(&lvm.skip_activation(&old.name.parse()?))?;
    }
    Ok(())
}

/// The tags of a volume that are one of these, or begin so.
fn own_tags(group: &Group, name: &str, begins: &[&str]) -> Vec<String> {
    let volume = group.volume(name);
    let tags = volume.map(|volume| volume.tags.as_slice());
    let tags = tags.unwrap_or_default().iter();
    let is_one = |tag: &&String| begins.iter().any(|begin| tag.starts_with(begin));
    tags.filter(is_one).cloned().collect()
}

/// Removes the snapshots that were taken before a layer ran, which is about to be removed.
pub fn drop_saved(context: &Context, writer: &Writer, group: &Group, layer: &LvName) -> Result<()> {
    for name in saved::left_by(group, layer) {
        let dropped = writer.transaction(|tx| tx.run(&context.lvm.remove(&name)));
        dropped.with_context(|| format!("the snapshot {name} is still there"))?;
    }
    Ok(())
}
