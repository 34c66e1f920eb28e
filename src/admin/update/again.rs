//! What was edited between an update and the restart: at shutdown the merge is done once more, beside the one that is
//! there, and the two change places. The layer has never booted, so nobody else has written to its /etc.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::merge::{Merged, Sides, Told};
use crate::admin::boot::MOTD;
use crate::admin::merge_report::MergeReport;
use crate::admin::roots::{self, Tree};
use crate::admin::{Context, LOCK_WAIT, after_merge, hooks, layer, new_entries};
use crate::boot::Selection;
use crate::boot::arrange::Arrangement;
use crate::boot::entry::{BootSpec, Entry};
use crate::boot::root::Root;
use crate::merge::{self, Ids, Plan};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// What there is of an update that waits for a restart, in /run: another boot knows nothing of it.
#[derive(Deserialize, Serialize)]
pub struct Waiting {
    pub layer: String,
    pub base: String,
    /// See [`merge::listing`].
    list: String,
    /// What is knowingly left behind.
    leave: Vec<PathBuf>,
    /// What was carried, by the directories that are.
    carried: Vec<PathBuf>,
    /// The numbers that were changed in the layer.
    users: BTreeMap<u32, u32>,
    groups: BTreeMap<u32, u32>,
}

/// Where the second /etc is made, in the root of the layer.
const SCRATCH: &str = ".imgbased-again";

impl Waiting {
    pub fn new(layer: &LvName, base: &LvName, merged: &Merged, leave: Vec<PathBuf>) -> Self {
        let carried = merged.outside.carried.iter();
        Self {
            layer: layer.to_string(),
            base: base.to_string(),
            list: merged.list.clone(),
            leave,
            carried: carried.map(|of| Path::new("/").join(&of.path)).collect(),
            users: merged.ids.users.clone(),
            groups: merged.ids.groups.clone(),
        }
    }

    pub fn read() -> Option<Self> {
        run::read_json(run::UPDATE)
    }

    /// Has the shutdown know of it.
    pub fn write(&self, tx: &mut Transaction) -> Result<()> {
        tx.create_dir(Path::new(run::DIR))?;
        tx.write(Path::new(run::UPDATE), &serde_json::to_vec(self)?, 0o600)
    }

    /// Removes what a power cut at shutdown has left in the layer that runs.
    pub fn clear() -> Result<()> {
        let root = Dir::root(Path::new("/"))?;
        root.remove_all(SCRATCH.as_ref())
            .with_context(|| format!("cannot remove /{SCRATCH}"))
    }

    /// How many paths of /etc were edited since.
    pub fn edited(&self) -> Result<usize> {
        let now = merge::listing(&Dir::root(Path::new("/"))?)?;
        Ok(merge::edited(&self.list, &now).len())
    }
}

/// Takes along what was changed since, if an update waits. Where that fails, the first merge stays as it is.
pub fn at_shutdown(context: &Context) -> Result<()> {
    let Some(waiting) = Waiting::read() else {
        return Ok(());
    };
    let is_edited = waiting.edited()? > 0;
    context
        .writer("update", LOCK_WAIT)?
        .transaction(|tx| {
            tx.lock()?;
            merge_again(context, tx, &waiting, is_edited)
        })
        .with_context(|| {
            format!(
                "what was edited since the update is not in {}; `imgbased-helper persist pull` in it fetches that",
                waiting.layer
            )
        })
}

/// Takes along what was written to carried paths, and the edits of /etc if there are any.
fn merge_again(
    context: &Context,
    tx: &mut Transaction,
    waiting: &Waiting,
    is_edited: bool,
) -> Result<()> {
    let group = context.load()?;
    let boot = context.boot_partition()?;
    let (layer, base): (LvName, LvName) = (waiting.layer.parse()?, waiting.base.parse()?);
    let Selection { default, trial, .. } = boot.selection()?;
    let chosen = [default, trial.map(|trial| trial.name)];
    if !chosen.contains(&Some(layer.to_string())) {
        // Somebody has gone back from it, or has removed it.
        return Ok(());
    }
    let volume = group.volume(layer.as_str());
    let volume = volume.with_context(|| format!("{layer} is gone"))?;
    ensure!(!volume.is_good(), "{layer} has booted already");
    let sides = Sides::of(&group)?;
    let told = Told::of(context, tx, &group, waiting.leave.clone())?.again(&waiting.carried);
    let new = Tree::Volume(base);
    let before = boot.entries_of(&layer)?;
    let options = context.activated(tx, &layer, volume.active, |tx| {
        let filesystem = context.filesystem(&layer, &layer)?;
        context.mounted(tx, &layer, &filesystem, "rw", None, |tx, root| {
            let device = context.lvm.device(&layer)?;
            let own_root = |tx: &mut Transaction, etc: &Path| {
                layer::own_root_line(tx, etc, &device, filesystem.kind)
            };
            // What is wrong with one is no reason to leave out the other.
            let carried = sides.carry_again(context, tx, &group, &told, root);
            if is_edited {
                let roots = (&new, root);
                replace_etc(context, tx, &group, &sides, roots, waiting, own_root)?;
            }
            carried?;
            if let Some(mut report) = MergeReport::read(root)? {
                report.pending = false;
                report.write(tx, root)?;
            }
            Root::at(root).options()
        })
    })?;
    if let Some(options) = options.flatten() {
        if before.iter().any(|entry| entry.spec().options != options) {
            let specs = before.iter().map(|entry| BootSpec {
                options: options.clone(),
                ..entry.spec()
            });
            let kernels = Arrangement::plain(specs.collect());
            let is_trial = before.iter().any(Entry::is_trial);
            let entries = new_entries(&group, &layer, false, &kernels, is_trial)?;
            boot.write_entries(tx, &layer, &entries)?;
        }
    }
    Ok(())
}

/// Merges into a copy of the base's /etc, which takes the place of the one in the layer's root. `finish` gets the
/// directory that the new one is in.
fn replace_etc(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    sides: &Sides,
    (base, root): (&Tree, &Path),
    waiting: &Waiting,
    finish: impl FnOnce(&mut Transaction, &Path) -> Result<()>,
) -> Result<()> {
    let names = sides.names(base);
    let scratch = root.join(SCRATCH);
    let volumes: [LvName; 2] = [waiting.base.parse()?, waiting.layer.parse()?];
    let report = sides.opened(context, tx, group, |tx, [old, layer]| {
        let report = roots::opened(context, tx, group, base, |tx, base| {
            let new = Dir::root(base)?;
            let plan = Plan::of([old, layer, &new], sides.is_snapshot)?;
            let ids = &plan.users.ids;
            let target = Dir::root(root)?;
            merge::reown(&target, &moved(waiting, ids))?;
            let name = SCRATCH.as_ref();
            target.remove_all(name)?;
            target.make_dir(name)?;
            let copy = Cmd::new("cp")
                .args(["--recursive", "--no-dereference", "--no-target-directory"])
                .arg("--preserve=mode,ownership,timestamps,links,xattr")
                .args([base.join("etc"), scratch.join("etc")]);
            tx.run(&copy)?;
            let copy = Dir::root(&scratch)?;
            merge::reown(&copy, ids)?;
            merge::apply(&plan, layer, &copy)?;
            finish(tx, &scratch)?;
            tx.flush(root)?;
            let exchange = || {
                let name = "etc".as_ref();
                target
                    .exchange(name, &copy, name)
                    .context("cannot exchange /etc")
            };
            tx.work(&"the two /etc change places", |_| exchange())?;
            let volumes = [&volumes[0], &volumes[1]];
            let asked = after_merge::refresh_caches(tx, root)
                .and_then(|()| hooks::merged(context, tx, group, &["post-merge"], volumes, root));
            if asked.is_err() {
                exchange()?;
            }
            asked?;
            target.remove_all(SCRATCH.as_ref())?;
            let mut report = MergeReport::of(names, &plan);
            report.pending = true;
            Ok(report)
        })?;
        report.context("this is no dry run")
    })?;
    report.write(tx, root)
}

/// The numbers in the layer that an account which was added since has made others.
fn moved(waiting: &Waiting, now: &Ids) -> Ids {
    let moved = |before: &BTreeMap<u32, u32>, now: &BTreeMap<u32, u32>| {
        let ids = before.keys().chain(now.keys());
        let of = |ids: &BTreeMap<u32, u32>, id: u32| ids.get(&id).copied().unwrap_or(id);
        let moved = ids.map(|id| (of(before, *id), of(now, *id)));
        moved.filter(|(before, now)| before != now).collect()
    };
    Ids {
        users: moved(&waiting.users, &now.users),
        groups: moved(&waiting.groups, &now.groups),
    }
}

/// Says so where the restart after an update was no orderly one: what was changed after the update is not here.
pub fn tell_of_lost_changes(tx: &mut Transaction) -> Result<()> {
    let root = Path::new("/");
    let Some(mut report) = MergeReport::read(root)?.filter(|report| report.pending) else {
        return Ok(());
    };
    let old = &report.layer;
    let message = format!(
        "what was changed in {old} between the update and a restart without a shutdown is not here; \
         `imgbased-helper diff {old} .` shows it, `imgbased-helper persist pull PATH` fetches it"
    );
    log::warn!("{message}");
    let motd = Path::new(MOTD);
    tx.create_dir(motd)?;
    let line = format!("imgbased: {message}\n");
    tx.write(&motd.join("imgbased-update"), line.as_bytes(), 0o644)?;
    report.pending = false;
    report.write(tx, root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_move_once_more_where_an_account_has_come_between() {
        let ids = |pairs: &[(u32, u32)]| pairs.iter().copied().collect::<BTreeMap<_, _>>();
        let waiting = Waiting {
            layer: String::new(),
            base: String::new(),
            list: String::new(),
            leave: Vec::new(),
            carried: Vec::new(),
            users: ids(&[(1000, 1001), (5, 6)]),
            groups: ids(&[(1000, 1001)]),
        };
        let now = Ids {
            users: ids(&[(1000, 1002), (5, 6), (7, 8)]),
            groups: ids(&[]),
        };
        let moved = moved(&waiting, &now);
        assert_eq!(moved.users, ids(&[(1001, 1002), (7, 8)]));
        assert_eq!(moved.groups, ids(&[(1001, 1000)]));
    }
}
