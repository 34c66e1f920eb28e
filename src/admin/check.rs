//! `check`: what an interrupted command, or somebody else, has left in a state that is not right,
//! and how it is put right.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use serde::Serialize;

use super::view::{self, JSON_VERSION};
use super::{Context, layer, pool_with_room, say};
use crate::boot::BootPartition;
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::sys::changes::Changes;

/// The exit status where something was found and is not repaired.
const FOUND: u8 = 3;

/// One thing that is not right.
struct Finding {
    /// What it is about, as people name it.
    subject: String,
    problem: String,
    repair: Repair,
}

enum Repair {
    RemoveVolume(LvName),
    WriteEntry(LvName),
    RemoveEntry(LvName),
    WriteMenu,
    SetDefault(LvName),
    RemoveFile(PathBuf),
    /// For a person to do.
    Advice(String),
}

/// The order of repairs: volumes, then the entries that are compared with them, then files that no
/// entry needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Volumes,
    Entries,
    Files,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Volumes, Self::Entries, Self::Files];
}

impl Repair {
    fn phase(&self) -> Phase {
        match self {
            Self::RemoveVolume(_) => Phase::Volumes,
            Self::RemoveFile(_) => Phase::Files,
            _ => Phase::Entries,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::RemoveVolume(name) => format!("remove the volume {name}"),
            Self::WriteEntry(name) => format!("write the boot entry of {name}"),
            Self::RemoveEntry(name) => format!("remove the boot entry of {name}"),
            Self::WriteMenu => "render the menu from the boot entries".to_owned(),
            Self::SetDefault(name) => format!("make {name} the default"),
            Self::RemoveFile(path) => format!("remove {}", path.display()),
            Self::Advice(text) => text.clone(),
        }
    }
}

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

/// Lists what is found, and with `repair` puts it right. The exit status tells whether something is
/// left.
pub fn run(context: &Context, repair: bool) -> Result<ExitCode> {
    if repair {
        return mend(context);
    }
    let findings = find(&context.load()?, &context.boot_partition()?)?;
    let report = Report {
        version: JSON_VERSION,
        findings: findings.iter().map(shown).collect(),
    };
    context.show(&report, || {
        let line = |f: &Shown| format!("{}: {}; repair: {}\n", f.subject, f.problem, f.repair);
        report.findings.iter().map(line).collect()
    })?;
    Ok(status(report.findings.is_empty()))
}

fn mend(context: &Context) -> Result<ExitCode> {
    let (_lock, mut changes) = context.change()?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let mut is_clean = true;
    for phase in Phase::ALL {
        // What an earlier phase has done is looked at anew: an entry that was written may name a
        // kernel that nothing used before.
        let group = context.load()?;
        let findings = find(&group, &boot)?.into_iter();
        for finding in findings.filter(|f| f.repair.phase() == phase) {
            if let Repair::Advice(advice) = &finding.repair {
                say(&format!(
                    "{}: {}; {advice}\n",
                    finding.subject, finding.problem
                ))?;
                is_clean = false;
                continue;
            }
            apply(context, &mut changes, &group, &boot, &finding.repair)?;
            changes.keep();
            if !context.dry_run {
                say(&format!(
                    "{}: {}; done: {}\n",
                    finding.subject,
                    finding.problem,
                    finding.repair.describe()
                ))?;
            }
        }
    }
    Ok(status(is_clean))
}

fn status(is_clean: bool) -> ExitCode {
    ExitCode::from(if is_clean { 0 } else { FOUND })
}

fn shown(finding: &Finding) -> Shown {
    Shown {
        subject: finding.subject.clone(),
        problem: finding.problem.clone(),
        repair: finding.repair.describe(),
        automatic: !matches!(finding.repair, Repair::Advice(_)),
    }
}

fn find(group: &Group, boot: &BootPartition) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    let mut add = |subject: String, problem: &str, repair: Repair| {
        findings.push(Finding {
            subject,
            problem: problem.to_owned(),
            repair,
        });
    };
    for volume in group.with_role(Role::Incomplete) {
        if let Ok(name) = volume.name.parse() {
            add(
                volume.name.clone(),
                "was interrupted while it was made",
                Repair::RemoveVolume(name),
            );
        }
    }
    if let Err(error) = pool_with_room(group) {
        let advice = "extend it with lvextend(8) or remove layers".to_owned();
        add(
            group.name.to_string(),
            &format!("{error:#}"),
            Repair::Advice(advice),
        );
    }
    let entries = boot.entries()?;
    let bootable = group.bootable();
    for name in &bootable {
        match boot.entry_of(name) {
            Ok(Some(entry)) if boot.has_kernel(&entry.payload()) => {}
            Ok(Some(_)) => add(
                name.to_string(),
                "its kernel or initramfs is not on the boot partition",
                Repair::WriteEntry(name.clone()),
            ),
            Ok(None) => add(
                name.to_string(),
                "has no boot entry",
                Repair::WriteEntry(name.clone()),
            ),
            Err(error) => add(
                name.to_string(),
                &format!("{error:#}"),
                Repair::Advice("move that file away".to_owned()),
            ),
        }
    }
    for name in boot.named_by(&entries) {
        if !bootable.contains(&name) {
            add(
                name.to_string(),
                "has a boot entry, but is not there",
                Repair::RemoveEntry(name),
            );
        }
    }
    if !boot.has_menu_of(&entries)? {
        add(
            "menu".to_owned(),
            "is not what the boot entries say",
            Repair::WriteMenu,
        );
    }
    if boot.default_layer(&entries)?.is_none() {
        if let Some(name) = best_default(group, boot)? {
            add(
                "default".to_owned(),
                "is not set, or names an entry that is not there",
                Repair::SetDefault(name),
            );
        }
    }
    for path in boot.leftovers()? {
        add(
            path.display().to_string(),
            "is used by no boot entry",
            Repair::RemoveFile(path),
        );
    }
    Ok(findings)
}

/// What to boot where no default is set: what runs, else the newest layer that has an entry.
fn best_default(group: &Group, boot: &BootPartition) -> Result<Option<LvName>> {
    let booted = view::booted(group)?.and_then(|name| name.parse().ok());
    let layers = group
        .bases()
        .into_iter()
        .rev()
        .flat_map(|base| base.layers.into_iter().rev());
    let candidates = booted.into_iter().chain(layers.map(|(name, _)| name));
    for name in candidates {
        if boot.entry_of(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn apply(
    context: &Context,
    changes: &mut Changes,
    group: &Group,
    boot: &BootPartition,
    repair: &Repair,
) -> Result<()> {
    match repair {
        Repair::RemoveVolume(name) => changes.run(&context.lvm.remove(name)),
        Repair::WriteEntry(name) => layer::write_entry(context, changes, group, boot, name),
        Repair::RemoveEntry(name) => boot.remove(changes, std::slice::from_ref(name)),
        Repair::WriteMenu => boot.render_menu(changes),
        Repair::SetDefault(name) => match boot.entry_of(name)? {
            Some(entry) => boot.set_default(changes, &entry.id),
            None => bail!("{name} has no boot entry"),
        },
        Repair::RemoveFile(path) => changes.remove(path),
        Repair::Advice(_) => Ok(()),
    }
}
