//! The merge of what the running layer has changed into the root of the next one.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::admin::merge_report::MergeReport;
use crate::admin::roots::{self, Tree};
use crate::admin::{Context, packages};
use crate::merge::{self, Ids, LAYER, NEW, OLD, Plan};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, escaped};

/// The roots of a merge by their names.
pub struct Sides {
    pub old: Tree,
    pub layer: Tree,
    pub is_snapshot: bool,
}

impl Sides {
    pub fn of(group: &Group) -> Result<Self> {
        let old = Tree::Volume(roots::base_of_running(group)?);
        let layer = roots::named(group, Tree::Running)?;
        let is_snapshot = roots::have_one_origin(group, &old, &layer);
        Ok(Self {
            old,
            layer,
            is_snapshot,
        })
    }

    /// Hands over the roots of the old base and of the layer, to be read.
    pub fn opened<T>(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        look: impl FnOnce(&mut Transaction, [&Dir; 2]) -> Result<T>,
    ) -> Result<T> {
        let found = roots::opened(context, tx, group, &self.layer, |tx, layer| {
            roots::opened(context, tx, group, &self.old, |tx, old| {
                look(tx, [&Dir::root(old)?, &Dir::root(layer)?])
            })
        })?;
        found.flatten().context("this is no dry run")
    }
}

/// What a merge has done.
pub struct Merged {
    pub report: MergeReport,
    /// The packages that do not come along.
    pub packages: Vec<String>,
    /// What was merged, to tell what is edited later.
    pub list: String,
    pub ids: Ids,
}

/// Puts what the running layer has changed into the root of the new one, which is as its base still.
pub fn into(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    sides: &Sides,
    base: &LvName,
    root: &Path,
) -> Result<Merged> {
    let names = [
        sides.old.to_string(),
        sides.layer.to_string(),
        base.to_string(),
    ];
    sides.opened(context, tx, group, |tx, [old, layer]| {
        let copy = Dir::root(root)?;
        let mut found = None;
        tx.unlocked(|tx| {
            tx.work(&"the merge of /etc", |interrupt| {
                let roots = [old, layer, &copy];
                let packages = packages_left(roots)?;
                let list = merge::listing(layer)?;
                let plan = Plan::of(roots, sides.is_snapshot)?;
                interrupt.check()?;
                merge::reown(&copy, &plan.users.ids)?;
                interrupt.check()?;
                let left = merge::apply(&plan, layer, &copy)?;
                for path in left {
                    log::warn!("/etc/{} found no place in the new layer", escaped(&path));
                }
                found = Some(Merged {
                    report: MergeReport::of(names, &plan),
                    packages,
                    list,
                    ids: plan.users.ids,
                });
                Ok(())
            })
        })?;
        let merged = found.context("the work is done")?;
        merged.report.write(tx, root)?;
        Ok(merged)
    })
}

/// The packages that were added to the old base and that the new one does not have.
pub fn packages_left(roots: [&Dir; 3]) -> Result<Vec<String>> {
    let of = |side: usize| packages::of(roots[side]);
    let (old, layer, new) = (of(OLD)?, of(LAYER)?, of(NEW)?);
    let is_left = |name: &&String| !old.contains_key(*name) && !new.contains_key(*name);
    Ok(layer.keys().filter(is_left).cloned().collect())
}
