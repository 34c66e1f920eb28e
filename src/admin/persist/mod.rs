//! `persist`: what of a layer lives on in layers of newer bases.

mod conflicts;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Subcommand;

use super::Context;
use super::merge_report::MergeReport;
use super::roots::{self, Tree};
use crate::merge::Plan;
use crate::model::name::LvName;
use crate::tree::Dir;

#[derive(Subcommand)]
pub enum Verb {
    /// Show what a newer base and the configuration of the booted layer become together
    ///
    /// A line for each path of /etc that would not be as in that base: kept as the layer has changed it, merged by
    /// entry, of this host, or a conflict where both have changed it. Changes nothing.
    Preview {
        /// Base to merge with [default: the latest base]
        #[arg(long, value_name = "BASE")]
        to: Option<LvName>,
    },
    /// List what both the layer before and the base have changed, in the update that made the booted layer
    Conflicts,
    /// Take conflicts off the list: what is there stays
    Keep {
        /// Path below /etc
        #[arg(required = true)]
        path: Vec<PathBuf>,
    },
}

pub fn run(context: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Preview { to } => preview(context, to),
        Verb::Conflicts => conflicts::list(context),
        Verb::Keep { path } => conflicts::keep(context, &path),
    }
}

/// Shows what the merge of /etc would make of the layer that runs and the base `to`, or the latest one. Changes
/// nothing. The lock is free while they are read.
fn preview(context: &Context, to: Option<LvName>) -> Result<()> {
    let preview = context.change("persist preview", |tx| {
        let group = context.load()?;
        let old = Tree::Volume(roots::base_of_running(&group)?);
        let layer = roots::named(&group, Tree::Running)?;
        let new = match to {
            Some(name) => name,
            None => roots::latest_base(&group)?,
        };
        let bases = group.bases();
        ensure!(
            bases.iter().any(|base| base.name == new),
            "{} has no base {new}",
            group.name
        );
        let new = Tree::Volume(new);
        let is_snapshot = roots::have_one_origin(&group, &old, &layer);
        let names = [&old, &layer, &new].map(ToString::to_string);
        let is_same = old == new;
        let plan = roots::opened(context, tx, &group, &layer, |tx, layer| {
            roots::opened(context, tx, &group, &old, |tx, old| {
                if is_same {
                    return tx
                        .unlocked(|_| plan([old, layer, old], is_snapshot))
                        .map(Some);
                }
                roots::opened(context, tx, &group, &new, |tx, new| {
                    tx.unlocked(|_| plan([old, layer, new], is_snapshot))
                })
            })
        })?;
        let plan = plan.flatten().flatten();
        Ok(plan.map(|plan| MergeReport::of(names, &plan)))
    })?;
    match preview {
        Some(preview) => context.show(&preview, || preview.table()),
        None => Ok(()),
    }
}

fn plan(roots: [&std::path::Path; 3], is_snapshot: bool) -> Result<Plan> {
    let [old, layer, new] = roots.map(Dir::root);
    Plan::of([&old?, &layer?, &new?], is_snapshot)
}
