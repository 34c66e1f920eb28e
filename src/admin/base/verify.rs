//! `base verify`: whether bases still hold what they held when they were made.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use serde::Serialize;

use super::filled::record;
use super::listings;
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, found_status};
use crate::image::digest;
use crate::model::layout::Role;
use crate::model::name::LvName;
use crate::sys::transaction::Transaction;

/// What `base verify` says of a base.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Unchanged,
    Altered,
    /// No digest was recorded, as for the bases that imgbased made.
    Unknown,
    /// There was none, and what it holds now is recorded.
    Recorded,
}

#[derive(Serialize)]
struct Verified {
    name: String,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Report {
    version: u32,
    bases: Vec<Verified>,
}

/// Reads bases, all if none are named, and says which are not what they were when they were made. Of what has no
/// digest, one is recorded if `is_recorded` says so. What is right gets the listing that it lacks. The exit status tells whether one was altered.
pub fn verify(context: &Context, names: &[LvName], is_recorded: bool) -> Result<ExitCode> {
    let read = |tx: &mut Transaction| read_bases(context, tx, names, is_recorded);
    let report = context.change("base verify", read)?;
    if context.dry_run {
        return Ok(ExitCode::SUCCESS);
    }
    context.show(&report, || {
        let line = |base: &Verified| {
            let verdict = match base.verdict {
                Verdict::Unchanged => "unchanged",
                Verdict::Altered => "altered since it was made; do not use it for new layers",
                Verdict::Unknown => "unknown, it has no digest",
                Verdict::Recorded => "had no digest, and has one now",
            };
            format!("{}: {verdict}\n", base.name)
        };
        report.bases.iter().map(line).collect()
    })?;
    let is_altered = |base: &Verified| base.verdict == Verdict::Altered;
    Ok(found_status(report.bases.iter().any(is_altered)))
}

fn read_bases(
    context: &Context,
    tx: &mut Transaction,
    names: &[LvName],
    is_recorded: bool,
) -> Result<Report> {
    let group = context.load()?;
    let bases = group.bases();
    for name in names {
        ensure!(
            bases.iter().any(|base| base.name == *name),
            "{} has no base {name}",
            group.name
        );
    }
    let bases = bases.into_iter().map(|base| base.name);
    let wanted = bases.filter(|base| names.is_empty() || names.contains(base));
    let mut report = Report {
        version: JSON_VERSION,
        bases: Vec::new(),
    };
    for name in wanted {
        // The lock was free while the one before was read.
        let group = context.load()?;
        let volume = group.volume(name.as_str());
        let Some(base) = volume.filter(|volume| volume.role == Role::Base) else {
            continue;
        };
        let verdict = match base.digest() {
            None if is_recorded => {
                record_digest(context, tx, &name, base.active)?;
                listings::keep_read(context, tx, &name);
                Verdict::Recorded
            }
            None => Verdict::Unknown,
            Some(wanted) => {
                let found = read_digest(context, tx, &name, base.active)?;
                if found.is_none_or(|found| found == wanted) {
                    listings::keep_read(context, tx, &name);
                    Verdict::Unchanged
                } else {
                    // A base that began with it would take damaged files for those that are listed.
                    let gone = std::slice::from_ref(&name);
                    if let Err(error) = tx.scope(|tx| listings::tidy(context, tx, gone)) {
                        log::warn!("the listing of {name} is still there: {error:#}");
                    }
                    Verdict::Altered
                }
            }
        };
        report.bases.push(Verified {
            name: name.to_string(),
            verdict,
        });
    }
    Ok(report)
}

/// Records what a base holds now.
fn record_digest(
    context: &Context,
    tx: &mut Transaction,
    name: &LvName,
    is_active: bool,
) -> Result<()> {
    if context.dry_run {
        return context.say_verb(&["base", "verify", "--record", name.as_str()]);
    }
    let tags = context.activated(tx, name, is_active, |tx| {
        let filesystem = context.filesystem(name, name)?;
        let options = filesystem.untouched();
        context.mounted(tx, name, &filesystem, options, None, |tx, root| {
            let (tags, _) = record(context, tx, name, root, None)?;
            Ok(tags)
        })
    })?;
    // The digest is the last: without it the others do not count.
    for tag in tags.into_iter().flatten() {
        tx.run(&context.lvm.retag(name, &[], Some(&tag)))?;
    }
    Ok(())
}

/// The digest of what a base holds now; nothing in a dry run.
fn read_digest(
    context: &Context,
    tx: &mut Transaction,
    name: &LvName,
    is_active: bool,
) -> Result<Option<String>> {
    context.activated(tx, name, is_active, |tx| {
        if context.dry_run {
            context.say_verb(&["base", "verify", name.as_str()])?;
            return Ok(None);
        }
        let device = context.lvm.device(name)?;
        let digest = tx.unlocked(|tx| digest::of(&device, name.as_str(), tx.interrupt()))?;
        Ok(Some(digest))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_bases_is_a_document_as_its_schema_says() {
        let verdicts = [
            Verdict::Unchanged,
            Verdict::Altered,
            Verdict::Unknown,
            Verdict::Recorded,
        ];
        let verified = verdicts.map(|verdict| Verified {
            name: "Base-0".to_owned(),
            verdict,
        });
        let report = Report {
            version: JSON_VERSION,
            bases: verified.into(),
        };
        crate::schemas::assert_holds("base-verify", &report);
    }
}
