//! `persist`: what of a layer lives on in layers of newer bases.

use std::os::unix::ffi::OsStrExt;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::roots::{self, Tree};
use super::view::JSON_VERSION;
use super::{Context, text};
use crate::merge::{Action, Clash, Item, Part, Plan, Verdict};
use crate::model::name::LvName;
use crate::tree::{Dir, escaped};

/// What becomes of a path in the new layer.
#[derive(Serialize)]
struct Row {
    path: String,
    verdict: &'static str,
    /// Of a conflict: of which kind.
    conflict: Option<Clash>,
    /// In which parts it is not as in the new base, or a conflict.
    parts: Vec<Part>,
    /// What the layer did to it, and what the new base did.
    ours: &'static str,
    theirs: &'static str,
    result: &'static str,
    note: Option<String>,
}

#[derive(Default, Serialize)]
struct Counts {
    kept: usize,
    deleted: usize,
    merged: usize,
    host: usize,
    left: usize,
    conflicts: usize,
}

#[derive(Serialize)]
struct Preview {
    version: u32,
    old: String,
    layer: String,
    new: String,
    counts: Counts,
    merge: Vec<Row>,
}

/// Shows what the merge of /etc would make of the layer that runs and the base `to`, or the latest one. Changes
/// nothing. The lock is free while they are read.
pub fn preview(context: &Context, to: Option<LvName>) -> Result<()> {
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
        Ok(plan.map(|plan| Preview::new(names, &plan)))
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

impl Preview {
    fn new([old, layer, new]: [String; 3], plan: &Plan) -> Self {
        let mut counts = Counts::default();
        for item in &plan.items {
            let count = match item.verdict {
                Verdict::Kept if is_removal(item) => &mut counts.deleted,
                Verdict::Kept => &mut counts.kept,
                Verdict::Merged => &mut counts.merged,
                Verdict::Host => &mut counts.host,
                Verdict::Left => &mut counts.left,
                Verdict::Conflict(_) => &mut counts.conflicts,
            };
            *count += 1;
        }
        Self {
            version: JSON_VERSION,
            old,
            layer,
            new,
            counts,
            merge: plan.items.iter().map(Row::new).collect(),
        }
    }

    fn table(&self) -> String {
        let rows: Vec<(String, String)> = self.merge.iter().map(Row::columns).collect();
        text::columns(&rows)
    }
}

fn is_removal(item: &Item) -> bool {
    matches!(item.action, Action::Remove | Action::RemoveDir)
}

impl Row {
    fn new(item: &Item) -> Self {
        let path = item.path.as_os_str().as_bytes();
        let result = match &item.action {
            Action::Remove | Action::RemoveDir => "deleted",
            Action::Nothing => "theirs",
            Action::Put(_) if item.verdict == Verdict::Merged => "both",
            Action::Put(_) => "ours",
        };
        let (verdict, conflict) = match item.verdict {
            Verdict::Kept if is_removal(item) => ("deleted", None),
            Verdict::Kept => ("kept", None),
            Verdict::Merged => ("merged", None),
            Verdict::Host => ("host", None),
            Verdict::Left => ("left", None),
            Verdict::Conflict(clash) => ("conflict", Some(clash)),
        };
        Self {
            path: format!("/etc/{}", String::from_utf8_lossy(path)),
            verdict,
            conflict,
            parts: item.parts.clone(),
            ours: item.ours,
            theirs: item.theirs,
            result,
            note: item.note.clone(),
        }
    }

    fn columns(&self) -> (String, String) {
        let mut words = match self.verdict {
            "deleted" => "stays deleted",
            "host" => "of this host",
            "left" => "not carried",
            verdict => verdict,
        }
        .to_owned();
        if self.conflict.is_some() {
            let (ours, theirs, result) = (self.ours, self.theirs, self.result);
            words += &format!(": here {ours}, in the base {theirs}; the result is {result}");
        }
        let parts: Vec<&str> = self.parts.iter().copied().map(Part::name).collect();
        if !parts.is_empty() {
            words += &format!(" ({})", parts.join(", "));
        }
        if let Some(note) = &self.note {
            words += &format!("; {note}");
        }
        (escaped(&self.path), words)
    }
}
