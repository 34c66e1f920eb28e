//! `check`: what an interrupted command, or somebody else, has left in a state that is not right,
//! and how it is put right.

mod boot;
mod finding;
mod repair;
mod volumes;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use super::base::listings;
use super::layout_init::CONFIG;
use super::space::Spaces;
use super::text::Tone;
use super::view::JSON_VERSION;
use super::{Context, found_status, volume};
use crate::lvm::living_maker;
use crate::model::layout::{Group, Volume};
use crate::model::pool::Mismatch;
use crate::sys::probe;
use crate::sys::transaction::{Transaction, Writer};
use crate::tree::escaped;
pub use finding::{Finding, Part, Repair};
use finding::{Findings, Phase};
use repair::Host;

#[derive(Serialize)]
struct Report {
    version: u32,
    findings: Vec<Shown>,
}

#[derive(Serialize)]
struct Shown {
    subject: String,
    problem: String,
    repair: String,
    /// Whether `--repair` does it.
    automatic: bool,
}

impl From<Finding> for Shown {
    fn from(finding: Finding) -> Self {
        Self {
            repair: finding.repair.to_string(),
            automatic: finding.repair.is_automatic(),
            subject: finding.subject,
            problem: finding.problem,
        }
    }
}

/// Lists what is found, and with `repair` puts it right. The exit status tells whether something is
/// left.
pub fn run(context: &Context, repair: bool) -> Result<ExitCode> {
    if repair {
        let writer = context.locked_writer("check")?;
        let host = Here {
            context,
            verb: &["check", "--repair"],
            damaged: Vec::new(),
        };
        let is_clean = repair::each(&host, &writer, &Phase::ALL)?;
        return Ok(found_status(!is_clean));
    }
    let findings = look(context)?;
    let report = Report {
        version: JSON_VERSION,
        findings: findings.into_iter().map(Shown::from).collect(),
    };
    context.show(&report, || {
        let line = |f: &Shown| {
            let subject = context.paint.tone(Tone::Bad, &f.subject);
            format!("{subject}: {}; repair: {}\n", f.problem, f.repair)
        };
        report.findings.iter().map(line).collect()
    })?;
    Ok(found_status(!report.findings.is_empty()))
}

/// What is found, and put right by nobody.
pub fn look(context: &Context) -> Result<Vec<Finding>> {
    // What another command is in the middle of is nothing to be found.
    context.change("check", |_| find(context, &[]))
}

/// Puts right what boots: entries, menu, kernels and default. `damaged` are files of kernels that are not what
/// they should be.
pub fn repair_boot(context: &Context, writer: &Writer, damaged: Vec<PathBuf>) -> Result<ExitCode> {
    let host = Here {
        context,
        verb: &["boot", "repair"],
        damaged,
    };
    // All but the volumes.
    let is_clean = repair::each(&host, writer, &Phase::ALL[1..])?;
    Ok(found_status(!is_clean))
}

/// The host of this system.
struct Here<'a> {
    context: &'a Context,
    /// The verb that repairs.
    verb: &'a [&'a str],
    /// Files of kernels that are not what they should be.
    damaged: Vec<PathBuf>,
}

impl Host for Here<'_> {
    fn find(&self, writer: &Writer) -> Result<Vec<Finding>> {
        // A repair that failed may have left the lock.
        writer.lock()?;
        find(self.context, &self.damaged)
    }

    fn rename(&self, writer: &Writer) -> Result<()> {
        super::renamed::repair(self.context, writer)
    }

    fn apply(&self, tx: &mut Transaction, repair: &Repair) -> Result<()> {
        repair::apply(self.context, tx, repair)
    }

    fn say_rest(&self) -> Result<()> {
        self.context.say_verb(self.verb)
    }
}

/// What `status` tells as well: of volumes and of room, from what it has read. `mismatch` is that of the pool.
pub fn find_at_once(group: &Group, mismatch: Option<&Mismatch>, spaces: &Spaces) -> Vec<String> {
    let mut findings = Findings::default();
    volumes::find_at_once(group, mismatch, &mut findings);
    find_full(spaces, &mut findings);
    let line = |f: Finding| format!("{}: {}", f.subject, f.problem);
    findings.0.into_iter().map(line).collect()
}

fn find(context: &Context, damaged: &[PathBuf]) -> Result<Vec<Finding>> {
    let mut findings = Findings::default();
    let Some(group) = find_group(context, &mut findings)? else {
        return Ok(findings.0);
    };
    volumes::find(&group, &is_being_made, &mut findings);
    volumes::find_shared(&filesystem_uuids(&group), &mut findings);
    findings.1 = Part::Pool;
    let mismatch = context.pool_mismatch(&group)?;
    volumes::find_at_once(&group, mismatch.as_ref(), &mut findings);
    let profile = group.pool().map_or("", |pool| pool.profile.as_str());
    let extension = context.lvm.auto_extension(profile)?;
    volumes::find_in_pool(&group, extension, &mut findings);
    findings.1 = Part::Mounts;
    find_full(&Spaces::read(context, &group)?, &mut findings);
    for (mount, advice) in volume::unmounted(context, &group)? {
        let problem = format!("is not mounted at {}", mount.path);
        findings.advise(&mount.name, &problem, &advice);
    }
    findings.1 = Part::Volumes;
    match listings::find_left(context, &group) {
        Ok(left) if left.is_empty() => {}
        Ok(left) => {
            let left: Vec<String> = left.iter().map(escaped).collect();
            let problem = format!("has listings of bases that are gone: {}", left.join(" "));
            findings.add(&CONFIG, &problem, Repair::RemoveListings);
        }
        Err(error) => log::debug!("{CONFIG} is not looked into: {error:#}"),
    }
    findings.1 = Part::Boot;
    // What is wrong there must not keep the volumes from being repaired.
    if let Err(error) = boot::find(context, &group, damaged, &mut findings) {
        let advice = "put that right, and run `imgbased-helper check` again: nothing else of it was looked at";
        findings.advise(&"boot partition", &format!("{error:#}"), advice);
    }
    Ok(findings.0)
}

fn is_being_made(volume: &Volume) -> bool {
    living_maker(&volume.tags).is_some()
}

/// The group, if there is more to be looked at.
fn find_group(context: &Context, findings: &mut Findings) -> Result<Option<Group>> {
    let lvm = &context.lvm;
    let group = lvm.load()?;
    if let Some(group) = group.as_ref().filter(|group| group.is_incomplete()) {
        if living_maker(&group.tags).is_none() {
            volumes::find_unfinished(group, findings);
        }
        return Ok(None);
    }
    if group.as_ref().is_none_or(|group| group.missing_pvs > 0) {
        let hidden = lvm.load_without_devices_file()?;
        volumes::find_lost_disks(lvm.vg(), group.as_ref(), hidden.as_ref(), findings);
    }
    if group.is_none() && findings.0.is_empty() {
        context.load()?;
    }
    Ok(group)
}

/// The filesystem UUIDs of active volumes, each with the volumes that have it. Only what is active can be read.
fn filesystem_uuids(group: &Group) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for name in group.bootable() {
        let is_active = group.volume(name.as_str()).is_some_and(|v| v.active);
        let uuid = match group.name.dm_name(&name) {
            Ok(dm_name) if is_active => probe::signature(&Path::new("/dev/mapper").join(dm_name)),
            _ => continue,
        };
        let uuid = uuid.ok().flatten().and_then(|signature| signature.uuid);
        if let Some(uuid) = uuid {
            found.entry(uuid).or_default().push(name.to_string());
        }
    }
    found
}

/// Filesystems that are full, or nearly so.
fn find_full(spaces: &Spaces, findings: &mut Findings) {
    if let Some(problem) = spaces.root_problem() {
        let advice =
            "remove what is not needed; where a larger base is to be had, make a layer of that";
        findings.advise(&"root filesystem", &problem, advice);
    }
    if let Some(problem) = spaces.boot_problem() {
        let advice = "remove layers, or files that are not needed there";
        findings.advise(&"boot partition", &problem, advice);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_findings_are_a_document_as_its_schema_says() {
        let mut findings = Findings::default();
        findings.add(&"Base-0.1", "has no boot entry", Repair::RebuildEnv);
        findings.advise(&"boot partition", "is full", "remove a layer");
        let report = Report {
            version: JSON_VERSION,
            findings: findings.0.into_iter().map(Shown::from).collect(),
        };
        crate::schemas::assert_holds("check", &report);
    }
}
