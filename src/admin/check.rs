//! `check`: what an interrupted command, or somebody else, has left in a state that is not right,
//! and how it is put right.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use serde::Serialize;

use super::renamed::{self, Others};
use super::view::{self, JSON_VERSION};
use super::{Context, found_status, layer, pool_with_room, say};
use crate::boot::BootPartition;
use crate::boot::entry::Entry;
use crate::boot::next::{Next, Why};
use crate::lvm::living_maker;
use crate::model::layout::{Group, Role, Volume};
use crate::model::name::{LvName, VgUuid};
use crate::sys::probe;
use crate::sys::transaction::{Transaction, Writer};

/// One thing that is not right.
struct Finding {
    /// What it is about, as people name it.
    subject: String,
    problem: String,
    repair: Repair,
}

enum Repair {
    RemoveGroup,
    RemoveVolume(LvName),
    MakeReadOnly(LvName),
    SkipActivation(LvName),
    AutoExtend(LvName),
    EnterDevices,
    Rename,
    Identify(LvName),
    WriteEntry(LvName),
    RemoveEntry(LvName),
    WriteMenu,
    RebuildEnv,
    SetDefault(LvName),
    /// The entry with this id, of a layer or base.
    Confirm(LvName, String),
    EndTrial,
    RemoveFile(PathBuf),
    /// For a person to do.
    Advice(String),
}

/// The order of repairs: volumes, then the entries that are compared with them, then which of them boots
/// and files that no entry needs.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Volumes,
    Entries,
    Selection,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Volumes, Self::Entries, Self::Selection];
}

impl Repair {
    fn phase(&self) -> Phase {
        match self {
            Self::RemoveGroup
            | Self::RemoveVolume(_)
            | Self::MakeReadOnly(_)
            | Self::SkipActivation(_)
            | Self::AutoExtend(_)
            | Self::EnterDevices => Phase::Volumes,
            Self::SetDefault(_) | Self::Confirm(..) | Self::EndTrial | Self::RemoveFile(_) => {
                Phase::Selection
            }
            _ => Phase::Entries,
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::RemoveGroup => "remove the group, so that its disks are empty again".to_owned(),
            Self::RemoveVolume(name) => format!("remove the volume {name}"),
            Self::MakeReadOnly(name) => format!("make the volume {name} read-only"),
            Self::SkipActivation(name) => format!("have {name} stay inactive until it is booted"),
            Self::AutoExtend(name) => format!("have {name} extended before it is full"),
            Self::EnterDevices => "enter them in the devices file".to_owned(),
            Self::Rename => {
                "give them, what boots, and the fstab of each layer the name that it has".to_owned()
            }
            Self::Identify(name) => format!("have the boot entry of {name} name the UUID"),
            Self::WriteEntry(name) => format!("write the boot entry of {name}"),
            Self::RemoveEntry(name) => format!("remove the boot entry of {name}"),
            Self::WriteMenu => "render the menu from the boot entries".to_owned(),
            Self::RebuildEnv => "write what GRUB reads of it into a new one".to_owned(),
            Self::SetDefault(name) => format!("make {name} the default"),
            Self::Confirm(name, _) => format!("have {name} stop where it fails, as a default does"),
            Self::EndTrial => "boot the default".to_owned(),
            Self::RemoveFile(path) => format!("remove {}", path.display()),
            Self::Advice(text) => text.clone(),
        }
    }
}

impl Finding {
    /// Tells it from all others.
    fn name(&self) -> (String, String) {
        (self.subject.clone(), self.problem.clone())
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
        return mend(context, &context.locked_writer("check")?, &[], &Phase::ALL);
    }
    // What another command is in the middle of is nothing to be found.
    let findings = context.change("check", |_| find(context, &[]))?;
    let report = Report {
        version: JSON_VERSION,
        findings: findings.iter().map(shown).collect(),
    };
    context.show(&report, || {
        let line = |f: &Shown| format!("{}: {}; repair: {}\n", f.subject, f.problem, f.repair);
        report.findings.iter().map(line).collect()
    })?;
    Ok(found_status(!report.findings.is_empty()))
}

/// Puts right what boots: entries, menu, kernels and default. Unlike `check` it reads all kernels.
pub fn repair_boot(context: &Context) -> Result<ExitCode> {
    let writer = context.locked_writer("boot repair")?;
    let damaged = context.boot_partition()?.damaged_kernels()?;
    mend(
        context,
        &writer,
        &damaged,
        &[Phase::Entries, Phase::Selection],
    )
}

/// Repairs what is found, phase by phase. Each repair is a unit of work: one that fails is undone at once.
/// `damaged` are files of kernels that are not what they should be.
fn mend(
    context: &Context,
    writer: &Writer,
    damaged: &[PathBuf],
    phases: &[Phase],
) -> Result<ExitCode> {
    let mut is_clean = true;
    let mut tried = Vec::new();
    for &phase in phases {
        // Everything is looked at anew after each repair: an entry that was written may name a kernel that
        // nothing used before, and the lock is free while an initramfs is made.
        loop {
            // A repair that failed may have left the lock.
            writer.lock()?;
            let mut findings = find(context, damaged)?.into_iter();
            let is_next = |f: &Finding| f.repair.phase() == phase && !tried.contains(&f.name());
            let Some(finding) = findings.find(is_next) else {
                break;
            };
            tried.push(finding.name());
            let (subject, problem) = (&finding.subject, &finding.problem);
            let done = match &finding.repair {
                Repair::Advice(advice) => Err(anyhow!("{advice}")),
                // Several units of work.
                Repair::Rename => renamed::repair(context, writer),
                repair => writer.transaction(|tx| apply(context, tx, repair)),
            };
            if let Err(error) = done {
                // The next one may be more important.
                is_clean = false;
                say(&format!("{subject}: {problem}; {error:#}\n"))?;
                writer.check_interrupt()?;
                continue;
            }
            if !context.dry_run {
                let repair = finding.repair.describe();
                say(&format!("{subject}: {problem}; done: {repair}\n"))?;
            }
            if matches!(finding.repair, Repair::RemoveGroup) {
                return Ok(found_status(false));
            }
        }
    }
    Ok(found_status(!is_clean))
}

fn shown(finding: &Finding) -> Shown {
    Shown {
        subject: finding.subject.clone(),
        problem: finding.problem.clone(),
        repair: finding.repair.describe(),
        automatic: !matches!(finding.repair, Repair::Advice(_)),
    }
}

/// What was found so far.
#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, subject: &dyn fmt::Display, problem: &str, repair: Repair) {
        self.0.push(Finding {
            subject: subject.to_string(),
            problem: problem.to_owned(),
            repair,
        });
    }
}

fn find(context: &Context, damaged: &[PathBuf]) -> Result<Vec<Finding>> {
    let mut findings = Findings::default();
    let Some(group) = find_group(context, &mut findings)? else {
        return Ok(findings.0);
    };
    find_in_volumes(&group, &mut findings);
    find_in_pool(context, &group, &mut findings)?;
    find_in_boot_partition(context, &group, damaged, &mut findings)?;
    Ok(findings.0)
}

/// The group, if there is more to be looked at.
fn find_group(context: &Context, findings: &mut Findings) -> Result<Option<Group>> {
    let lvm = &context.lvm;
    let group = lvm.load()?;
    if let Some(group) = &group {
        if group.is_incomplete() {
            if living_maker(&group.tags).is_some() {
                return Ok(None);
            }
            let is_empty = group
                .volumes
                .iter()
                .all(|v| matches!(v.role, Role::Pool | Role::Volume | Role::Incomplete));
            let repair = if is_empty {
                Repair::RemoveGroup
            } else {
                Repair::Advice("it has other volumes; look at it with lvs(8)".to_owned())
            };
            findings.add(&group.name, "was interrupted while it was made", repair);
            return Ok(None);
        }
    }
    if group.as_ref().is_none_or(|group| group.missing_pvs > 0) {
        let hidden = lvm.load_unhidden()?;
        let is_hidden = match (&group, &hidden) {
            (Some(seen), Some(all)) => all.missing_pvs < seen.missing_pvs,
            (None, all) => all.is_some(),
            (Some(_), None) => false,
        };
        if is_hidden {
            let problem = "has disks that the LVM devices file does not name";
            findings.add(lvm.vg(), problem, Repair::EnterDevices);
        } else if let Some(group) = &group {
            let problem = format!("{} of its disks are missing", group.missing_pvs);
            let advice = "connect them; vgreduce(8) if they are lost".to_owned();
            findings.add(&group.name, &problem, Repair::Advice(advice));
        }
    }
    if group.is_none() && findings.0.is_empty() {
        context.load()?;
    }
    Ok(group)
}

fn find_in_volumes(group: &Group, findings: &mut Findings) {
    let is_interrupted = |volume: &&Volume| living_maker(&volume.tags).is_none();
    for volume in group.with_role(Role::Incomplete).filter(is_interrupted) {
        if let Ok(name) = volume.name.parse() {
            let problem = "was interrupted while it was made";
            findings.add(&volume.name, problem, Repair::RemoveVolume(name));
        }
    }
    for name in group.bootable() {
        let Some(volume) = group.volume(name.as_str()) else {
            continue;
        };
        if !volume.skips_activation {
            let problem = "is activated together with its group";
            findings.add(&name, problem, Repair::SkipActivation(name.clone()));
        }
        if volume.role == Role::Base && volume.writable {
            let problem = "is a base, but writable";
            findings.add(&name, problem, Repair::MakeReadOnly(name.clone()));
        }
        if volume.role == Role::Layer {
            let advice = |text: &str| Repair::Advice(text.to_owned());
            match group.base_of(volume) {
                None => {
                    let repair = advice("nothing needs it; `layer remove` if you do not");
                    findings.add(&name, "is a layer of a base that is gone", repair);
                }
                Some(base) if name.layer_number(&base).is_none() => {
                    let problem = format!("is tagged as a layer of {base}, but not named like one");
                    findings.add(&name, &problem, advice("rename it with lvrename(8)"));
                }
                Some(_) => {}
            }
        }
    }
    for (uuid, names) in shared_uuids(group) {
        let problem = format!("have the same filesystem UUID {uuid}");
        let advice = "`tune2fs -U random` or `xfs_admin -U generate` on one that is not mounted";
        findings.add(
            &names.join(" "),
            &problem,
            Repair::Advice(advice.to_owned()),
        );
    }
}

/// The filesystem UUIDs that several active volumes have. Only what is active can be read.
fn shared_uuids(group: &Group) -> BTreeMap<String, Vec<String>> {
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
    found.retain(|_, names| names.len() > 1);
    found
}

fn find_in_pool(context: &Context, group: &Group, findings: &mut Findings) -> Result<()> {
    if let Err(error) = pool_with_room(group) {
        let advice = "extend it with lvextend(8) or remove layers".to_owned();
        findings.add(&group.name, &format!("{error:#}"), Repair::Advice(advice));
    }
    let Some(pool) = group.pool() else {
        return Ok(());
    };
    let name: LvName = pool.name.parse()?;
    if !pool.zeroes {
        let problem = "does not zero new chunks: what was removed can show up in new volumes";
        let advice = format!("`lvchange --zero y {}/{name}` has it zero them", group.name);
        findings.add(&name, problem, Repair::Advice(advice));
    }
    let threshold = context.lvm.auto_extension(&pool.profile)?;
    if threshold >= 100 {
        let problem =
            "is never extended by itself, and would make all layers read-only when it is full";
        findings.add(&name, problem, Repair::AutoExtend(name.clone()));
    } else if pool.active && !pool.monitored {
        let problem = "is not watched, so nothing extends it before it is full";
        findings.add(&name, problem, Repair::AutoExtend(name.clone()));
    } else if group.free == 0 {
        let advice = "add a disk with vgextend(8)".to_owned();
        let problem = "cannot be extended: its group has no free space";
        findings.add(&name, problem, Repair::Advice(advice));
    }
    Ok(())
}

fn find_in_boot_partition(
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
        findings.add(
            &"next start",
            &problem,
            Repair::Advice("see there".to_owned()),
        );
    } else if renamed.is_empty() {
        find_lost_group(group, &next, &entries, &others, findings);
    }
    if damage.is_none() {
        find_in_selection(&boot, &entries, findings)?;
    }
    for path in boot.leftovers(is_entry_lost)? {
        let problem = "is used by no boot entry";
        findings.add(&path.display(), problem, Repair::RemoveFile(path.clone()));
    }
    Ok(())
}

/// What is wrong with the partition itself.
fn find_in_partition(context: &Context, boot: &BootPartition, findings: &mut Findings) {
    if let Some(problem) = boot.want_of_room() {
        let advice = "remove layers, or files that are not needed there".to_owned();
        findings.add(&"boot partition", &problem, Repair::Advice(advice));
    }
    if context.root != Path::new("/") {
        return;
    }
    let cmdline = view::kernel_command_line().unwrap_or_default();
    if let Some(path) = boot.missing_boot_image(&cmdline) {
        let problem = format!(
            "does not have {path}, which runs: the boot loader has read another partition, unless that kernel was \
             removed since"
        );
        let advice = "mount the one that it reads at /boot".to_owned();
        findings.add(&"boot partition", &problem, Repair::Advice(advice));
    }
}

/// Kernels of the layer that runs which its entries do not boot yet.
fn find_changed_kernels(
    group: &Group,
    boot: &BootPartition,
    findings: &mut Findings,
) -> Result<()> {
    let Some(name) = view::booted(group)? else {
        return Ok(());
    };
    let is_layer = group.volume(&name).is_some_and(|v| v.role == Role::Layer);
    let name: LvName = name.parse()?;
    // What is in the way of an entry, or has none, is found elsewhere.
    let entries = boot.entries_of(&name).unwrap_or_default();
    if !is_layer || entries.is_empty() {
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
        let kernel = entry.payload();
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
                let advice = Repair::Advice("move that file away".to_owned());
                findings.add(name, &format!("{error:#}"), advice);
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
            findings.add(&entry.id, &problem, Repair::Advice(advice.to_owned()));
        }
        let (name, old) = (&group.name, entry.vg());
        let is_ours = entry.vgid() == Some(group.uuid.as_str());
        if is_ours && old != name.as_str() && entry.place().is_none() {
            let problem = format!("names the group {old}, which is {name} now");
            let advice = "change its options by hand: others have written it";
            findings.add(&entry.id, &problem, Repair::Advice(advice.to_owned()));
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
        findings.add(&"next start", &problem, Repair::Advice(advice.to_owned()));
    }
}

/// What boots, and for how long.
fn find_in_selection(
    boot: &BootPartition,
    entries: &[Entry],
    findings: &mut Findings,
) -> Result<()> {
    if let Some(id) = boot.default_id()? {
        let default = entries
            .iter()
            .find(|entry| entry.id == id && entry.is_trial());
        // By then nothing is left to go on to.
        let name = default.and_then(|entry| entry.layer()?.parse::<LvName>().ok());
        if let Some(name) = name {
            let problem = "is the default, but its entry restarts the host when it fails";
            findings.add(&name, problem, Repair::Confirm(name.clone(), id));
        }
    }
    if let Some(trial) = boot.trial()? {
        if !entries.iter().any(|entry| entry.id == trial.id) {
            let problem = "is of an entry that is not there";
            findings.add(&"trial", problem, Repair::EndTrial);
        } else if trial.is_over() {
            let problem = format!(
                "of {} is over: {} tries were in vain, and the default boots",
                trial.id, trial.tries
            );
            findings.add(&"trial", &problem, Repair::EndTrial);
        }
    }
    Ok(())
}

/// What to boot where no default is set, if it has an entry: what runs, else the newest layer that has come
/// up, else one whose trial has not failed.
fn best_default(group: &Group, boot: &BootPartition) -> Result<Option<LvName>> {
    let booted = view::booted(group)?.and_then(|name| name.parse().ok());
    let layers = group
        .bases()
        .into_iter()
        .rev()
        .flat_map(|base| base.layers.into_iter().rev());
    let mut layers: Vec<_> = layers.collect();
    layers.sort_by_key(|(_, volume)| (!volume.is_good(), volume.failure().is_some()));
    let candidates = booted.into_iter().chain(layers.into_iter().map(|l| l.0));
    for name in candidates {
        if boot.entry_of(&name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

fn apply(context: &Context, tx: &mut Transaction, repair: &Repair) -> Result<()> {
    let lvm = &context.lvm;
    let boot = || -> Result<BootPartition> {
        let boot = context.boot_partition()?;
        boot.check_ready()?;
        Ok(boot)
    };
    match repair {
        Repair::RemoveGroup => {
            let disks = lvm.disks()?;
            tx.run(&lvm.remove_group())?;
            tx.run(&lvm.forget_devices(&disks))
        }
        Repair::RemoveVolume(name) => remove_volume(context, tx, name),
        Repair::MakeReadOnly(name) => tx.run(&lvm.make_read_only(name)),
        Repair::SkipActivation(name) => tx.run(&lvm.skip_activation(name)),
        Repair::AutoExtend(name) => tx.run(&lvm.auto_extend(name)),
        Repair::EnterDevices => tx.run(&lvm.enter_devices()),
        Repair::WriteEntry(name) => {
            let all = layer::KernelChange::default();
            layer::write_entries(context, tx, &context.load()?, &boot()?, name, &all).map(drop)
        }
        Repair::Identify(name) => {
            let boot = context.boot_partition()?;
            boot.check_writable()?;
            let uuid: VgUuid = context.load()?.uuid.parse()?;
            boot.change_entries(tx, name, |entry| entry.of_group(&uuid))
        }
        Repair::RemoveEntry(name) => boot()?.remove_last(tx, std::slice::from_ref(name)),
        Repair::WriteMenu => boot()?.render_menu(tx),
        Repair::RebuildEnv => boot()?.rebuild_env(tx),
        Repair::SetDefault(name) => {
            let boot = boot()?;
            match boot.entry_of(name)? {
                Some(entry) => boot.confirm(tx, name, &entry),
                None => bail!("{name} has no boot entry"),
            }
        }
        Repair::Confirm(name, id) => {
            let boot = context.boot_partition()?;
            boot.check_writable()?;
            boot.change_entry(tx, name, id, Entry::confirmed)
        }
        Repair::EndTrial => {
            let boot = context.boot_partition()?;
            boot.check_writable()?;
            boot.end_trial(tx)
        }
        Repair::RemoveFile(path) => {
            let path = path.clone();
            tx.discard(move || Ok(vec![path]));
            Ok(())
        }
        // That is several units of work.
        Repair::Rename | Repair::Advice(_) => Ok(()),
    }
}

/// Removes a volume that was never finished.
fn remove_volume(context: &Context, tx: &mut Transaction, name: &LvName) -> Result<()> {
    let lvm = &context.lvm;
    let Err(error) = tx.run(&lvm.remove(name)) else {
        return Ok(());
    };
    let group = context.load()?;
    let Some(pool) = group.pool() else {
        return Err(error);
    };
    match lvm.unmake(name, &pool.name.parse()?)? {
        Some(unmake) => {
            tx.run(&unmake)?;
            tx.run(&lvm.remove(name))
        }
        None => Err(error),
    }
}
