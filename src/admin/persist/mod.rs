//! `persist`: what of a layer lives on in layers of newer bases.

mod compare;
mod conflicts;
mod lists;
mod packages;
mod restore;

pub use conflicts::report;
pub use lists::{config, in_config, listed, matching, mounted_config};
pub use packages::{DIR as PACKAGES, control};

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, Subcommand};

use super::Context;
use super::merge_report::MergeReport;
use super::roots::{self, Sides, Tree};
use crate::merge::Plan;
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::sys::progress::Waiting;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;
use restore::{Source, restore};

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
    /// Show a path in the old base, the layer before, the base and the booted layer, and how the texts differ
    Diff {
        /// Path, such as /etc/issue
        path: PathBuf,
    },
    /// Take conflicts as the base has them
    ///
    /// Content, mode, owner and attributes become those of the base of the booted layer, and the path is off the list.
    /// It follows the image again.
    Take(Paths),
    /// Take conflicts off the list: what is there stays
    Keep {
        /// Path in conflict, as `persist conflicts` lists it
        #[arg(required = true)]
        path: Vec<PathBuf>,
    },
    /// Make paths of /etc what they are in the base of the booted layer
    ///
    /// What the base does not have is removed.
    Reset(Paths),
    /// Make paths what they are in the layer before, if that is still there
    Pull(Paths),
    /// Have paths or packages be carried to layers of newer bases
    ///
    /// /etc is merged, and needs no such line. The Config volume keeps the list and the files of packages, so they are
    /// the same for all layers.
    Add {
        /// Path, or pattern as in a shell, with `**` for any directories; what is below a directory comes with it
        #[arg(required = true)]
        path: Vec<String>,
        /// Each is a package: its file, or its name, which is taken from apt's cache or downloaded by apt-get(8)
        ///
        /// An update installs it in the new layer, without network, unless the image has it in the same or a newer
        /// version.
        #[arg(long)]
        package: bool,
    },
    /// List what is carried to layers of newer bases
    List {
        /// Show also what that is now
        #[arg(long)]
        matches: bool,
    },
    /// Carry paths or packages no longer
    Remove {
        /// Path or pattern, as `persist list` shows it
        #[arg(required = true)]
        path: Vec<String>,
        /// Each is the name of a package; it stays installed where it is
        #[arg(long)]
        package: bool,
    },
}

#[derive(Args)]
pub struct Paths {
    /// Path; below /etc, unless it comes from the layer before
    #[arg(required = true)]
    path: Vec<PathBuf>,
    /// Replace or remove a directory with all that is in it
    #[arg(short, long)]
    yes: bool,
}

pub fn run(context: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Preview { to } => preview(context, to),
        Verb::Conflicts => conflicts::list(context),
        Verb::Diff { path } => compare::diff(context, &path),
        Verb::Take(Paths { path, yes }) => restore(context, Source::Take, &path, yes),
        Verb::Keep { path } => conflicts::keep(context, &path),
        Verb::Reset(Paths { path, yes }) => restore(context, Source::Reset, &path, yes),
        Verb::Pull(Paths { path, yes }) => restore(context, Source::Pull, &path, yes),
        Verb::Add { path, package } if package => packages::add(context, &path),
        Verb::Add { path, .. } => lists::add(context, &path),
        Verb::List { matches } => lists::list(context, matches),
        Verb::Remove { path, package } if package => packages::remove(context, &path),
        Verb::Remove { path, .. } => lists::remove(context, &path),
    }
}

/// Looks at where a volume is mounted.
type Look<'a> = &'a mut dyn FnMut(&mut Transaction, &Path) -> Result<()>;

/// Hands over where a volume that does not run is mounted, for a moment and for this process only. A dry run looks
/// into it as well.
fn inside(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    name: &LvName,
    options: &str,
    look: Look,
) -> Result<()> {
    let volume = group
        .volume(name.as_str())
        .with_context(|| format!("{} has no volume {name}", group.name))?;
    let seen = context.look(group, name)?;
    let found = context.activated(tx, name, volume.active, |tx| {
        let filesystem = context.filesystem(name, name)?;
        let options = if volume.role == Role::Base {
            filesystem.untouched()
        } else {
            options
        };
        context.mounted(tx, name, &filesystem, options, seen.as_ref(), look)
    })?;
    found.context("a dry run looks at the volume")
}

/// Shows what the merge of /etc would make of the layer that runs and the base `to`, or the latest one. Changes
/// nothing. The lock is free while they are read.
fn preview(context: &Context, to: Option<LvName>) -> Result<()> {
    let preview = context.change("persist preview", |tx| {
        let group = context.load()?;
        let sides = Sides::of(&group)?;
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
        let plan = sides.opened_with(context, tx, &group, &new, |tx, roots| {
            tx.unlocked(|_| plan(roots, &sides))
        })?;
        Ok(plan.map(|plan| MergeReport::of(sides.names(&new), &plan)))
    })?;
    match preview {
        Some(preview) => context.show(&preview, || preview.table()),
        None => Ok(()),
    }
}

fn plan(roots: [&Path; 3], sides: &Sides) -> Result<Plan> {
    let _waiting = Waiting::new(|| "comparing /etc".to_owned());
    let [old, layer, new] = roots.map(Dir::root);
    sides.plan([&old?, &layer?, &new?])
}
