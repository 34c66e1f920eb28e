//! `persist conflicts` and `keep`: what both the layer before and the base of the layer that runs have changed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use crate::admin::Context;
use crate::admin::merge_report::{MergeReport, Row};
use crate::admin::roots::{self, Tree};
use crate::admin::view::JSON_VERSION;
use crate::model::layout::Group;
use crate::model::persist::from_root;
use crate::sys::transaction::Transaction;
use crate::tree::escaped;

/// The root of the layer that runs.
pub const RUNNING: &str = "/";

/// Where there is no report, there are no names.
#[derive(Default, Serialize)]
struct Unsettled {
    version: u32,
    old: Option<String>,
    layer: Option<String>,
    new: Option<String>,
    conflicts: Vec<Row>,
    /// How many more there were, which are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    more_conflicts: Option<usize>,
}

/// Lists the conflicts of the merge that made the layer that runs, without those that a person has settled.
pub fn list(context: &Context) -> Result<()> {
    let group = context.load()?;
    let mut list = Unsettled {
        version: JSON_VERSION,
        ..Unsettled::default()
    };
    let mut table = String::new();
    if let Some(mut report) = report(&group)? {
        report.retain_open();
        table = report.conflicts();
        list.more_conflicts = Some(report.unlisted_conflicts()).filter(|more| *more > 0);
        list.old = Some(report.old);
        list.layer = Some(report.layer);
        list.new = Some(report.new);
        list.conflicts = report.merge;
    }
    context.show(&list, || table)
}

/// Takes conflicts off the list: what is there stays.
pub fn keep(context: &Context, paths: &[PathBuf]) -> Result<()> {
    context.change("persist keep", |tx| {
        let group = context.load()?;
        let mut report = need_report(&group)?;
        for path in paths {
            let path = Path::new("/").join(from_root(path)?);
            ensure!(report.settle(&path, false), not_listed(&path));
        }
        write(tx, &report)
    })
}

/// The report of the merge that made the layer that runs; `None` if it was not made by one. A copy that came with
/// the image, of a merge on another host, is none.
pub fn report(group: &Group) -> Result<Option<MergeReport>> {
    if !matches!(roots::named(group, Tree::Running)?, Tree::Volume(_)) {
        return Ok(None);
    }
    let base = roots::base_of_running(group)?;
    let report = MergeReport::read(Path::new(RUNNING))?;
    Ok(report.filter(|report| report.new == base.as_str()))
}

/// The same where it has to be there.
pub fn need_report(group: &Group) -> Result<MergeReport> {
    report(group)?.context("what runs was made by no update, so there are no conflicts")
}

pub fn write(tx: &mut Transaction, report: &MergeReport) -> Result<()> {
    report.write(tx, Path::new(RUNNING))
}

pub fn not_listed(path: &Path) -> String {
    format!(
        "{} is no conflict; `imgbased-helper persist conflicts` lists them",
        escaped(path)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_conflicts_are_a_document_as_its_schema_says() {
        let report = crate::admin::merge_report::tests::full();
        let mut unsettled = Unsettled {
            version: JSON_VERSION,
            ..Unsettled::default()
        };
        crate::schemas::assert_holds("persist-conflicts", &unsettled);
        unsettled.old = Some(report.old);
        unsettled.layer = Some(report.layer);
        unsettled.new = Some(report.new);
        unsettled.conflicts = report.merge;
        unsettled.more_conflicts = Some(2);
        crate::schemas::assert_holds("persist-conflicts", &unsettled);
    }
}
