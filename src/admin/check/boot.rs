//! What is wrong with the boot partition: its room, its entries, the menu, and what boots.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::finding::{Findings, Repair};
use crate::admin::Context;
use crate::admin::boot::is_being_tried;
use crate::admin::renamed::{self, Others};
use crate::admin::view;
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::boot::next::{Next, Why};
use crate::model::layout::{Group, Volume};
use crate::model::name::LvName;
use crate::model::trial::Trial;

/// Looks at the boot partition. `damaged` are files of kernels that are not what they should be.
pub fn find(
    context: &Context,
    group: &Group,
    damaged: &[PathBuf],
    findings: &mut Findings,
) -> Result<()> {
    let boot = context.boot_partition()?;
    find_in_partition(context, &boot, findings);
    let entries = boot.entries()?;
    // Entries are not the same for what is the default.
    let damage = boot.damage_of_env()?;
    if let Some(damage) = &damage {
        findings.add(&"grubenv", damage, Repair::RebuildEnv);
    }
    let others = Others::read(context, group, &boot, &entries)?;
    let renamed = renamed::entries(group, &boot, &entries, &others)?;
    if !renamed.is_empty() {
        let problem = renamed::problem(&renamed);
        findings.add(&group.name, &problem, Repair::Rename);
    }
    let is_entry_lost = find_in_entries(group, &boot, &entries, &renamed, damaged, findings)?;
    find_in_options(group, &entries, findings);
    let bootable = group.bootable();
    find_changed_kernels(group, &boot, findings)?;
    for name in boot.named_by(&entries) {
        if !bootable.contains(&name) {
            let problem = "has a boot entry, but is not there";
            findings.add(&name, problem, Repair::RemoveEntry(name.clone()));
        }
    }
    if !boot.has_menu_of(&entries)? {
        findings.add(
            &"menu",
            "is not what the boot entries say",
            Repair::WriteMenu,
        );
    }
    let next = boot.next_start()?;
    let is_lost = matches!(
        &next,
        Next::Wait
            | Next::Entry {
                why: Why::Instead,
                ..
            }
    );
    let is_whole_env = damage.is_none() && boot.has_menu_of(&entries)?;
    if !boot.has_default(&entries)? || is_lost && is_whole_env {
        if let Some(name) = best_default(group, &boot)? {
            let problem = "is not set, or names an entry that is not there";
            findings.add(&"default", problem, Repair::SetDefault(name));
        }
    } else if let (Some(problem), true) = (next.problem(), is_whole_env) {
        findings.advise(&"next start", &problem, "see there");
    } else if renamed.is_empty() {
        find_lost_group(group, &next, &entries, &others, findings);
    }
    if damage.is_none() {
        // The last of its tries can be what runs.
        let is_being_tried = is_being_tried()?;
        let trial = boot.trial()?;
        let trial = trial.filter(|trial| !(is_being_tried && trial.is_over()));
        let default = boot.default_id()?;
        find_in_selection(default.as_deref(), trial.as_ref(), &entries, findings);
    }
    for path in boot.leftovers(is_entry_lost)? {
        let problem = "is used by no boot entry";
        findings.add(&path.display(), problem, Repair::RemoveFile(path.clone()));
    }
    Ok(())
}

/// What is wrong with the partition itself.
fn find_in_partition(context: &Context, boot: &BootPartition, findings: &mut Findings) {
    if context.root != Path::new("/") {
        return;
    }
    let cmdline = view::kernel_command_line().unwrap_or_default();
    if let Some(path) = boot.missing_boot_image(&cmdline) {
        let problem = format!(
            "does not have {path}, which runs: the boot loader has read another partition, unless that kernel was \
             removed since"
        );
        let advice = "mount the one that it reads at /boot";
        findings.advise(&"boot partition", &problem, advice);
    }
}

/// Kernels of the layer that runs which its entries do not boot yet.
fn find_changed_kernels(
    group: &Group,
    boot: &BootPartition,
    findings: &mut Findings,
) -> Result<()> {
    let Some(name) = view::booted_layer(group)? else {
        return Ok(());
    };
    // What is in the way of an entry, or has none, is found elsewhere.
    let entries = boot.entries_of(&name).unwrap_or_default();
    if entries.is_empty() {
        return Ok(());
    }
    for version in boot.changed_kernels(&entries)? {
        let problem = format!(
            "Linux {version} was installed, or its initramfs made anew, and no boot entry has that yet"
        );
        findings.add(&name, &problem, Repair::WriteEntry(name.clone()));
    }
    Ok(())
}

/// Layers and bases without an entry that boots them. Returns whether there is any without one.
fn find_in_entries(
    group: &Group,
    boot: &BootPartition,
    entries: &[Entry],
    renamed: &[Entry],
    damaged: &[PathBuf],
    findings: &mut Findings,
) -> Result<bool> {
    let is_whole = |entry: &Entry| {
        let kernel = entry.spec();
        let mut files = [&kernel.linux, &kernel.initrd].into_iter();
        boot.has_kernel(&kernel) && files.all(|path| !damaged.contains(&boot.path_of(path)))
    };
    let mut is_entry_lost = false;
    for name in &group.bootable() {
        let write = || Repair::WriteEntry(name.clone());
        let ours = || entries.iter().filter(|e| e.is_of(&group.name, name));
        let mut renamed = renamed.iter().map(Entry::layer);
        let entry = boot.entry_of(name);
        is_entry_lost |= !matches!(entry, Ok(Some(_)));
        if let Some(entry) = ours().find(|entry| !entry.names_group(&group.uuid)) {
            let problem = match entry.vgid() {
                Some(vgid) => format!("its boot entry names a group with another UUID, {vgid}"),
                None => "its boot entry does not name its group by the UUID".to_owned(),
            };
            findings.add(name, &problem, Repair::Identify(name.clone()));
        }
        match entry {
            Ok(Some(_)) if ours().all(is_whole) => {}
            Ok(Some(_)) => {
                let problem = "its kernel or initramfs is not whole on the boot partition";
                findings.add(name, problem, write());
            }
            Ok(None) if renamed.any(|layer| layer == Some(name.as_str())) => {}
            Ok(None) if boot.is_rewritten(name)? => {
                let problem = "its boot entry was changed by another program and does not boot it";
                findings.add(name, problem, write());
            }
            Ok(None) => findings.add(name, "has no boot entry", write()),
            Err(error) => {
                findings.advise(name, &format!("{error:#}"), "move that file away");
            }
        }
    }
    Ok(is_entry_lost)
}

/// Entries whose options are too long, or name the group as it was called before, though others wrote them.
fn find_in_options(group: &Group, entries: &[Entry], findings: &mut Findings) {
    for entry in entries {
        if let Some(excess) = entry.excess() {
            let problem = format!(
                "its kernel options are {excess} bytes too long; what is cut off never reaches the kernel"
            );
            let advice =
                "make /etc/kernel/cmdline shorter, then run `imgbased-helper boot refresh`";
            findings.advise(&entry.id, &problem, advice);
        }
        let (name, old) = (&group.name, entry.vg());
        let is_ours = entry.vgid() == Some(group.uuid.as_str());
        if is_ours && old != name.as_str() && entry.place().is_none() {
            let problem = format!("names the group {old}, which is {name} now");
            let advice = "change its options by hand: others have written it";
            findings.advise(&entry.id, &problem, advice);
        }
    }
}

/// A next start into a group that is not there.
fn find_lost_group(
    group: &Group,
    next: &Next,
    entries: &[Entry],
    others: &Others,
    findings: &mut Findings,
) {
    let mut chosen = entries
        .iter()
        .filter(|entry| Some(entry.id.as_str()) == next.id());
    let is_lost = |entry: &&Entry| entry.vg() != group.name.as_str() && others.lacks(entry);
    if let Some(entry) = chosen.find(is_lost) {
        let problem = format!(
            "boots {}, whose group {} is not there",
            entry.id,
            entry.vg()
        );
        let advice =
            "connect its disks, or choose another entry with `imgbased-helper boot default`";
        findings.advise(&"next start", &problem, advice);
    }
}

/// What boots, and for how long.
fn find_in_selection(
    default: Option<&str>,
    trial: Option<&Trial>,
    entries: &[Entry],
    findings: &mut Findings,
) {
    let entry = |id: &str| entries.iter().find(|entry| entry.id == id);
    // By then nothing is left to go on to.
    let restarting = default.and_then(entry).filter(|default| default.is_trial());
    let name = restarting.and_then(|entry| entry.layer()?.parse::<LvName>().ok());
    if let (Some(name), Some(entry)) = (name, restarting) {
        let problem = "is the default, but its entry restarts the host when it fails";
        let repair = Repair::Confirm(name.clone(), entry.id.clone());
        findings.add(&name, problem, repair);
    }
    let Some(trial) = trial else { return };
    if entry(&trial.id).is_none() {
        let problem = "is of an entry that is not there";
        findings.add(&"trial", problem, Repair::EndTrial);
    } else if trial.is_over() {
        let problem = format!(
            "of {} is over: {} tries were in vain, and the default boots",
            trial.id, trial.tries
        );
        findings.add(&"trial", &problem, Repair::RecordFailure);
    }
}

/// What to boot where no default is set, if it has an entry.
fn best_default(group: &Group, boot: &BootPartition) -> Result<Option<LvName>> {
    let booted = view::booted(group)?.and_then(|name| name.parse().ok());
    for name in candidates(group, booted) {
        if boot.entry_of(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// What may boot by default, the best first: the layer that runs, then the newest one that has come up, then those
/// whose trial has not failed. A base that runs is the last: each start forgets what was changed in it.
fn candidates(group: &Group, booted: Option<LvName>) -> impl Iterator<Item = LvName> {
    let bases = group.bases().into_iter().rev();
    let mut layers: Vec<(LvName, &Volume)> = bases
        .flat_map(|base| base.layers.into_iter().rev())
        .collect();
    layers.sort_by_key(|(_, volume)| (!volume.is_good(), volume.failure().is_some()));
    let layers: Vec<LvName> = layers.into_iter().map(|(name, _)| name).collect();
    let is_base = |name: &LvName| group.bases().iter().any(|base| base.name == *name);
    let (last, first): (Vec<LvName>, Vec<LvName>) = booted.into_iter().partition(is_base);
    first.into_iter().chain(layers).chain(last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::check::volumes::tests::{group, volume};

    fn entry(id: &str, layer: &str) -> Entry {
        let text = format!(
            "title x\nversion 1\nsort-key x\nlinux /l\ninitrd /i\noptions imgbased.layer={layer}\n"
        );
        Entry::parse(id, &text).unwrap().unwrap()
    }

    #[test]
    fn what_boots_for_how_long_is_found_and_put_right() {
        let (a, b) = ("imgbased-a.1", "imgbased-a.2");
        let entries = [entry(a, "a.1"), entry(b, "a.2").on_trial()];
        let trial = |id: &str, tried| Trial {
            id: id.to_owned(),
            tries: 3,
            tried,
        };
        let confirm = Repair::Confirm("a.2".parse().unwrap(), b.to_owned());
        for (default, trial, expected) in [
            (None, None, None),
            (Some(a), None, None),
            (Some(b), None, Some(("a.2", confirm))),
            (Some("gone"), None, None),
            (Some(a), Some(trial(b, 2)), None),
            (
                Some(a),
                Some(trial(b, 3)),
                Some(("trial", Repair::RecordFailure)),
            ),
            (
                Some(a),
                Some(trial("gone", 3)),
                Some(("trial", Repair::EndTrial)),
            ),
        ] {
            let mut findings = Findings::default();
            find_in_selection(default, trial.as_ref(), &entries, &mut findings);
            let found = findings.0.pop().map(|found| (found.subject, found.repair));
            let expected = expected.map(|(subject, repair)| (subject.to_owned(), repair));
            assert_eq!(found, expected, "{default:?} {trial:?}");
            assert!(findings.0.is_empty(), "{default:?} {trial:?}");
        }
    }

    #[test]
    fn the_best_default_runs_or_has_come_up_or_has_not_failed() {
        let group = group(vec![
            volume("Base-0", &["imgbased:base"]),
            volume("Base-0.1", &["imgbased:layer", "imgbased:good"]),
            volume("Base-0.2", &["imgbased:layer", "imgbased:failed=3:then"]),
            volume("Base-0.3", &["imgbased:layer"]),
            volume("Base-1", &["imgbased:base"]),
            volume("Base-1.1", &["imgbased:layer", "imgbased:good"]),
        ]);
        let best = ["Base-1.1", "Base-0.1", "Base-0.3", "Base-0.2"];
        for booted in [None, Some("Base-0.2")] {
            let parsed = booted.map(|name| name.parse().unwrap());
            let found: Vec<LvName> = candidates(&group, parsed).collect();
            let found: Vec<&str> = found.iter().map(LvName::as_str).collect();
            let expected: Vec<&str> = booted.into_iter().chain(best).collect();
            assert_eq!(found, expected);
        }
        let found: Vec<LvName> = candidates(&group, "Base-0".parse().ok()).collect();
        assert_eq!(found.last().map(LvName::as_str), Some("Base-0"));
        assert_eq!(found[0].as_str(), best[0]);
    }
}
