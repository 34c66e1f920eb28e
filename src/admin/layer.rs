//! `layer`: writable snapshots that the host boots.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::utsname::uname;
use serde::Serialize;

use super::boot::trial_begins;
use super::removal::good_layers;
use super::view::{self, JSON_VERSION, LayerView};
use super::{
    Context, Look, comment, filesystem, hooks, initramfs, keeping_disks, new_entries, news,
    pool_with_room, reaching_disks, removal, running_options, say, text,
};
use crate::boot::arrange::{Arrangement, Placed, Told, made_anew};
use crate::boot::entry::{BootSpec, Entry, Extra};
use crate::boot::id;
use crate::boot::root::Root;
use crate::boot::{BootPartition, Known};
use crate::image::superblock::FsKind;
use crate::lvm::Lvm;
use crate::model::fstab;
use crate::model::kernel_options;
use crate::model::layout::{Group, Role, Volume, tag};
use crate::model::name::{LvName, next_layer};
use crate::model::removal::Request;
use crate::model::saved;
use crate::model::trial::TRIES_MAX;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// How often what never came up is tried, unless the host is configured otherwise.
const TRIES: u32 = 3;

/// Makes a layer of `origin`, a base or a layer, or of the latest base, and its boot entry.
pub fn add(context: &Context, origin: Option<LvName>) -> Result<()> {
    let (layer, base) = context.change("layer add", |tx| make(context, tx, origin, None))?;
    news::layer_added(context, &layer, &base);
    if !context.dry_run {
        say(&format!("{layer}\n"))?;
    }
    Ok(())
}

/// Changes the root of a new layer before anybody boots it. Returns what of /etc its initramfs lacks by that, perhaps.
pub type Change<'a> = dyn FnMut(&mut Transaction, &LvName, &Path) -> Result<Vec<PathBuf>> + 'a;

/// Does what [`add`] does, as a part of a verb, and returns the names of the layer and its base.
pub fn make(
    context: &Context,
    tx: &mut Transaction,
    origin: Option<LvName>,
    change: Option<&mut Change>,
) -> Result<(LvName, LvName)> {
    tx.scope(|tx| {
        let boot = context.boot_partition()?;
        boot.check_ready()?;
        let (plan, mut group) = Plan::new(context, &boot, origin)?;
        let (lvm, layer) = (&context.lvm, plan.layer.clone());
        let create = lvm.create_snapshot(&layer, &plan.origin, Some(&plan.base));
        tx.run_undoable(&create, lvm.remove(&layer))?;
        let was_active = group.pool().is_some_and(|pool| pool.active);
        context.room_when_active(&group)?;
        let look = context.look(&group, &plan.origin)?;
        let (base, mut origin_entries) = (plan.base.clone(), plan.entries.clone());
        let (origin, is_changed) = (plan.origin.clone(), change.is_some());
        let host = plan.options.clone();
        let kernels = context.filling_pool(tx, &group, |tx| {
            plan.fill(context, tx, &boot, &group, look.as_ref(), change)
        })?;
        if tx.was_unlocked() {
            group = context.load()?;
            let role = group.volume(base.as_str()).map(|v| v.role);
            ensure!(
                role == Some(Role::Base),
                "another command has removed the base of {layer}"
            );
        }
        let default = default_or_good(context, tx, &group, &boot)?;
        let Some(kernels) = kernels else {
            commit(lvm, tx, &layer, was_active)?;
            if origin_entries
                .iter()
                .any(|entry| entry.extra != Extra::default())
            {
                comment(&format!(
                    "{layer} does not get what others have put into the boot entries of {origin} so"
                ))?;
            }
            context.say_verb(&["boot", "refresh", layer.as_str()])?;
            if default.is_none() {
                boot.set_default(tx, &id::of_layer(&group.name, &layer))?;
            }
            return Ok((layer, base));
        };
        // Where something else can be booted, a layer that has never come up must not keep the host.
        let is_trial = default.is_some();
        if is_changed {
            origin_entries = made_anew(origin_entries, &kernels);
        }
        // What its origin does not boot, because it was tried in vain, it does not boot either.
        let mut kernels = boot.arrange(kernels, &origin_entries, &Told::new_layer(true));
        if !is_changed {
            // The group may be on more disks than when the base was made.
            for Placed { spec, .. } in &mut kernels.kernels {
                spec.options = kernel_options::with_disks(&spec.options, &host);
            }
        }
        let entries = new_entries(&group, &layer, false, &kernels, is_trial)?;
        commit(lvm, tx, &layer, was_active)?;
        boot.write_entries(tx, &layer, &entries)
            .with_context(|| format!("cannot write the boot entry of {layer}"))?;
        if let (None, Some(entry)) = (default, entries.first()) {
            boot.set_default(tx, &entry.id)
                .with_context(|| format!("cannot make {layer} the default"))?;
        }
        Ok((layer, base))
    })
}

/// The id of the default entry. Where that is lost, what runs becomes the default, or else the last layer that has come
/// up: one that never did must not boot without a trial.
pub fn default_or_good(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    boot: &BootPartition,
) -> Result<Option<String>> {
    let default = boot.keep_default(tx)?;
    if default.is_some() || boot.trial()?.is_some() {
        return Ok(default);
    }
    let entry_of = |name: Option<&LvName>| match name {
        Some(name) => boot.whole_entry_of(name),
        None => Ok(None),
    };
    let is_here = context.root == Path::new("/");
    // A base that runs has come up without what its layers have.
    let running = is_here.then(|| view::booted_layer(group)).transpose()?;
    let running = running.flatten();
    let mut entry = entry_of(running.as_ref())?;
    if let (Some(running), Some(_)) = (&running, &entry) {
        log::warn!("no default was set, so {running}, which runs, becomes it");
    } else if let Some(good) = good_layers(group, boot)?.pop() {
        log::warn!("no default was set, so {good}, which has come up last, becomes it");
        entry = entry_of(Some(&good))?;
    }
    if let Some(entry) = &entry {
        boot.set_default(tx, &entry.id)?;
    }
    Ok(entry.map(|entry| entry.id))
}

/// Whether another layer has come up and can be booted.
fn has_other_good(group: &Group, boot: &BootPartition, name: &LvName) -> Result<bool> {
    Ok(good_layers(group, boot)?.iter().any(|other| other != name))
}

/// Makes a finished snapshot a layer. To deactivate it as well, lvm2 looks at all devices once more; it does so where it
/// has to deactivate the pool with it.
fn commit(lvm: &Lvm, tx: &mut Transaction, layer: &LvName, is_pool_used: bool) -> Result<()> {
    let tags = [tag::LAYER.to_owned()];
    if !is_pool_used {
        return tx.run(&lvm.commit(layer, &tags));
    }
    tx.run_both(&lvm.remove_device(layer)?, &lvm.commit_active(layer, &tags))
}

/// What is made, decided before anything is.
struct Plan {
    layer: LvName,
    origin: LvName,
    base: LvName,
    /// The entries of the origin.
    entries: Vec<Entry>,
    /// What the layer boots, if its origin's entries say that for certain.
    kernels: Option<Vec<BootSpec>>,
    /// The kernel options, where nothing else has any.
    options: String,
    /// Whether the filesystem was never checked as a whole.
    needs_check: bool,
    /// Whether its fstab has a line for the root, as far as is known.
    has_root_line: bool,
}

impl Plan {
    /// Refuses what cannot be made: for want of room, or a name. Returns the group with it, as it is before.
    fn new(
        context: &Context,
        boot: &BootPartition,
        origin: Option<LvName>,
    ) -> Result<(Self, Group)> {
        let group = context.load_sound()?;
        pool_with_room(&group)?;
        let (origin, base) = find_origin(&group, origin)?;
        let mut taken: Vec<String> = group.taken().map(str::to_owned).collect();
        let layer = loop {
            let layer = next_layer(&base, taken.iter().map(String::as_str))?;
            if !boot.remembers(&layer)? && !saved::remembers(&group, &layer) {
                break layer;
            }
            taken.push(layer.to_string());
        };
        group.name.dm_name(&layer)?;
        // A base never changes, so what its entries boot is right for its layers. A layer may have got
        // another kernel since.
        let entries = boot.entries_of(&origin)?;
        let kernels: Vec<BootSpec> = entries.iter().map(Entry::spec).collect();
        let is_complete = !kernels.is_empty() && kernels.iter().all(|k| boot.has_kernel(k));
        // What has a digest was checked when it was made.
        let made_by_us = group
            .volume(origin.as_str())
            .filter(|volume| origin == base && volume.digest().is_some());
        boot.entry_of(&layer)?;
        let plan = Self {
            kernels: Some(kernels).filter(|_| origin == base && is_complete),
            options: running_options(&group, boot)?,
            needs_check: made_by_us.is_none(),
            has_root_line: made_by_us.is_none_or(|base| base.has_tag(tag::ROOT_LINE)),
            layer,
            origin,
            base,
            entries,
        };
        Ok((plan, group))
    }

    /// Makes the snapshot a layer of its own: its filesystem, its fstab, and what it boots, which is on the
    /// boot partition then. A dry run has a `look` at the origin, and cannot tell what is booted where an initramfs has
    /// to be made. The lock is free for long work.
    fn fill(
        self,
        context: &Context,
        tx: &mut Transaction,
        boot: &BootPartition,
        group: &Group,
        look: Option<&Look>,
        change: Option<&mut Change>,
    ) -> Result<Option<Vec<BootSpec>>> {
        let layer = &self.layer;
        let filesystem = context.filesystem(layer, &self.origin)?;
        if self.needs_check {
            tx.unlocked(|tx| filesystem.check(tx, false))?;
        }
        filesystem.renew_uuid(tx)?;
        let names = [&self.base, &self.origin, layer];
        hooks::new_layer(context, tx, group, names, &filesystem)?;
        let kernels = match self.kernels {
            Some(kernels) if !self.has_root_line && change.is_none() => return Ok(Some(kernels)),
            kernels => kernels,
        };
        let known = Known {
            entries: &self.entries,
            options: &self.options,
            added: None,
            removed: None,
            is_running: false,
            is_made: false,
        };
        let kernels = context.mounted(tx, layer, &filesystem, "rw", look, |tx, root| {
            let is_changed = change.is_some();
            let mut for_initramfs = Vec::new();
            if let Some(change) = change {
                for_initramfs = change(tx, layer, root)?;
            }
            own_root_line(tx, root, &context.lvm.device(layer)?, filesystem.kind)?;
            let is_made = initramfs::make_for_host(tx, boot, root, &known, &for_initramfs)?;
            let known = Known { is_made, ..known };
            match kernels {
                Some(kernels) if !is_made && kernels.iter().all(|k| boot.has_kernel(k)) => {
                    if is_changed {
                        return with_options(kernels, root).map(Some);
                    }
                    Ok(Some(kernels))
                }
                _ => {
                    let found = initramfs::kernels_of(tx, boot, root, &known)?;
                    let kernels = found.store(tx, boot)?;
                    Ok(kernels.map(|kernels| keeping_disks(kernels, &self.entries)))
                }
            }
        })?;
        kernels.context("a dry run looks at the origin")
    }
}

/// The same kernels with the options that a root asks for, if it asks for any, and with what unlocks its disks until now.
pub fn with_options(mut kernels: Vec<BootSpec>, root: &Path) -> Result<Vec<BootSpec>> {
    if let Some(options) = Root::at(root).options()? {
        for kernel in &mut kernels {
            kernel.options = kernel_options::keeping_disks(&options, &kernel.options);
        }
    }
    Ok(kernels)
}

/// Puts a layer's own device and filesystem on the line for / in its fstab, if there is one.
pub fn own_root_line(tx: &mut Transaction, root: &Path, device: &Path, kind: FsKind) -> Result<()> {
    let Some(fstab) = Root::at(root).fstab()? else {
        return Ok(());
    };
    let device = device.as_os_str().as_bytes();
    let Some(line) = fstab::with_root(&fstab.text, device, kind.name()) else {
        return Ok(());
    };
    if !line.dropped.is_empty() {
        log::warn!(
            "in the fstab of the layer, the line for / loses what {} does not know: {}",
            kind.name(),
            line.dropped.join(", ")
        );
    }
    if line.text == fstab.text {
        return Ok(());
    }
    let node = if tx.is_dry_run() {
        None
    } else {
        Dir::root(root)?.resolve(Path::new("etc/fstab"))?
    };
    let mut rewrite = || tx.rewrite(&fstab.path, &line.text);
    match node {
        Some(node) => node.lifted(rewrite),
        None => rewrite(),
    }
}

/// Which kernels of a layer are looked at: all, unless one was changed.
#[derive(Default)]
pub struct KernelChange {
    pub added: Option<String>,
    pub removed: Option<String>,
    /// All, if any was changed since it was looked at last.
    pub if_changed: bool,
}

impl KernelChange {
    /// The words of the verb that looks at them in a layer.
    fn verb<'a>(&'a self, name: &'a LvName) -> Vec<&'a str> {
        let mut words = vec!["boot", "refresh"];
        for (option, version) in [("--added", &self.added), ("--removed", &self.removed)] {
            if let Some(version) = version {
                words.extend([option, version]);
            }
        }
        words.push(name.as_str());
        words
    }
}

/// What became of the boot entries of a layer.
#[derive(Default)]
pub struct Written {
    /// What is new, for people.
    pub news: Option<String>,
}

/// Writes the boot entries of a layer or base from the kernels that are in it. A new kernel of the layer that
/// runs, and that is the default, is on trial from then on.
pub fn write_entries(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    boot: &BootPartition,
    name: &LvName,
    kernel: &KernelChange,
) -> Result<Written> {
    // Another command can write them while the lock is free.
    let written = match try_write_entries(context, tx, group, boot, name, kernel)? {
        Some(written) => Some(written),
        None => try_write_entries(context, tx, &context.load()?, boot, name, kernel)?,
    };
    written
        .with_context(|| format!("other commands change the boot entries of {name}; try it again"))
}

/// Does nothing and returns nothing where the entries were written by another command while the kernels were
/// looked at.
fn try_write_entries(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    boot: &BootPartition,
    name: &LvName,
    kernel: &KernelChange,
) -> Result<Option<Written>> {
    let fallback_options = running_options(group, boot)?;
    let entries = boot.entries_of(name)?;
    let volume = group.volume(name.as_str());
    let is_base = volume.is_some_and(|v| v.role == Role::Base);
    // What is seen of a base that runs is its overlay.
    let is_running = view::booted_layer(group)?.as_ref() == Some(name);
    let known = Known {
        entries: &entries,
        options: &fallback_options,
        added: kernel.added.as_deref(),
        removed: kernel.removed.as_deref(),
        is_running,
        is_made: false,
    };
    let publish = |tx: &mut Transaction, root: &Path| -> Result<Option<Vec<BootSpec>>> {
        let found = initramfs::kernels_of(tx, boot, root, &known)?;
        if boot.entries_of(name)? != entries {
            found.leave(tx)?;
            return Ok(None);
        }
        found.store(tx, boot)
    };
    let look = context.look(group, name)?;
    let kernels = if is_running {
        // With what the boot partition hides of its /boot.
        let dir = filesystem::mount_point("running");
        let mounted = filesystem::mount_again(tx, Path::new("/"), &dir)?;
        let seen = look.map(|look| look.mounted(&dir)).transpose()?;
        let kernels = publish(tx, &dir)?;
        drop(seen);
        mounted.unmount(tx)?;
        Some(kernels)
    } else {
        let is_active = volume.is_some_and(|volume| volume.active);
        context.activated(tx, name, is_active, |tx| {
            let filesystem = context.filesystem(name, name)?;
            context.mounted(tx, name, &filesystem, "ro", look.as_ref(), publish)
        })?
    };
    let Some(kernels) = kernels.context("a dry run looks at the volume")? else {
        if !context.dry_run {
            return Ok(None);
        }
        // It cannot tell what is booted.
        context.say_verb(&kernel.verb(name))?;
        return Ok(Some(Written::default()));
    };
    let default = boot.default_id()?.filter(|id| {
        *id != id::of_layer(&group.name, name) && entries.iter().all(|entry| entry.id != *id)
    });
    let kernels = keeping_disks(kernels, &entries);
    let kernels = if is_base {
        reaching_disks(kernels, &fallback_options)
    } else {
        kernels
    };
    let is_good = volume.is_some_and(Volume::is_good);
    let tries = tries(context)?;
    let kernels = if is_good && !is_base {
        let failures = volume.map_or_else(Vec::new, Volume::kernel_failures);
        let trial = boot.trial().unwrap_or_default();
        let system = uname().context("cannot ask for the kernel's version")?;
        let has_failed = |kernel: &BootSpec| failures.iter().any(|of| of.is_of(&kernel.version));
        let is_on_trial = |kernel: &BootSpec| {
            let id = id::of_other(&group.name, name, &kernel.version);
            trial.as_ref().is_some_and(|trial| trial.id == id)
        };
        let told = Told {
            // What does not run waits until somebody has it tried.
            can_try: !is_running || tries > 0 && boot.can_try(),
            runs: &|kernel| is_running && *kernel.version == *system.release(),
            has_failed: &has_failed,
            was_tried: &|kernel| has_failed(kernel) || is_on_trial(kernel),
        };
        boot.arrange(kernels, &entries, &told)
    } else {
        Arrangement::plain(kernels)
    };
    let is_trial = !is_good && (default.is_some() || has_other_good(group, boot, name)?);
    let mut new = new_entries(group, name, is_base, &kernels, is_trial)?;
    for entry in &mut new {
        // What was put beside it by hand stays.
        let is_same = |old: &&Entry| {
            old.spec() == entry.spec()
                && old.is_trial() == entry.is_trial()
                && old.names_group(&group.uuid)
        };
        if let Some(old) = entries.iter().find(is_same) {
            *entry = Entry {
                id: entry.id.clone(),
                ..old.clone()
            };
        }
    }
    boot.write_entries(tx, name, &new)?;
    forget_failures(context, tx, volume, &new)?;
    let entry = kernels.new.and_then(|at| new.get(at));
    let news = entry.map(|entry| {
        if is_running {
            start_trial(tx, boot, name, entry, tries)
        } else {
            not_tried(name, &entry.version, "that layer does not run")
        }
    });
    Ok(Some(Written { news }))
}

/// Has a kernel of a good layer be tried, if that layer is the default and nothing else is on trial. Returns
/// what becomes of the kernel. It has its entry, whatever that is.
fn start_trial(
    tx: &mut Transaction,
    boot: &BootPartition,
    name: &LvName,
    entry: &Entry,
    tries: u32,
) -> String {
    let version = &entry.version;
    match boot.try_kernel(tx, name, entry, tries) {
        Ok(Some(fallback)) => trial_begins(name, Some(version), tries, &fallback),
        Ok(None) => format!("{name} boots Linux {version} from now on\n"),
        Err(error) => not_tried(name, version, &format!("{error:#}")),
    }
}

fn not_tried(name: &LvName, version: &str, why: &str) -> String {
    format!(
        "Linux {version} of {name} is not tried by itself: {why}; \
         `imgbased-helper boot default --kernel {version} {name}` tries it\n"
    )
}

/// Forgets trials that failed of kernels which are gone.
fn forget_failures(
    context: &Context,
    tx: &mut Transaction,
    volume: Option<&Volume>,
    entries: &[Entry],
) -> Result<()> {
    let Some(volume) = volume else { return Ok(()) };
    let mut failures = volume.kernel_failures();
    failures.retain(|failure| entries.iter().all(|entry| !failure.is_of(&entry.version)));
    if failures.is_empty() {
        return Ok(());
    }
    let tags: Vec<&str> = failures.iter().map(|failure| failure.tag).collect();
    tx.run(&context.lvm.retag(&volume.name.parse()?, &tags, None))
}

/// How often a kernel or layer that never came up is tried.
pub fn tries(context: &Context) -> Result<u32> {
    let configured = Root::at(&context.root).tries()?;
    Ok(configured.unwrap_or(TRIES).min(TRIES_MAX))
}

/// What to snapshot, and the base that the new layer belongs to.
fn find_origin(group: &Group, origin: Option<LvName>) -> Result<(LvName, LvName)> {
    let Some(origin) = origin else {
        return match group.bases().pop() {
            Some(base) => Ok((base.name.clone(), base.name)),
            None => bail!(
                "{} has no base; `imgbased-helper base add IMAGE` makes one",
                group.name
            ),
        };
    };
    match group.volume(origin.as_str()) {
        Some(volume) if volume.role == Role::Base => Ok((origin.clone(), origin)),
        Some(volume) if volume.role == Role::Layer => match group.base_of(volume) {
            Some(base) => Ok((origin, base)),
            None => bail!("the base of {origin} is gone"),
        },
        _ => bail!("{} has no base or layer {origin}", group.name),
    }
}

/// Removes layers.
pub fn remove(context: &Context, names: &[LvName]) -> Result<()> {
    removal::remove(context, &Request::Layers(names), None)
}

#[derive(Serialize)]
struct List<'a> {
    version: u32,
    layers: Vec<&'a LayerView>,
}

/// Lists the layers, oldest first.
pub fn list(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    let list = List {
        version: JSON_VERSION,
        layers: view.layers().collect(),
    };
    context.show(&list, || {
        let rows: Vec<(String, String)> = view
            .layers()
            .map(|layer| {
                let marks = layer.marks(context.paint);
                let size = text::size(layer.size);
                (layer.name.clone(), format!("{size:>10}  {marks}"))
            })
            .collect();
        text::columns(&rows)
    })
}

/// Prints the name of the latest layer: that of the latest base that has one. Refuses when there is
/// none.
pub fn latest(context: &Context) -> Result<()> {
    let group = context.load()?;
    let bases = group.bases();
    match bases.iter().rev().find_map(|base| base.layers.last()) {
        Some((name, _)) => say(&format!("{name}\n")),
        None => bail!("{} has no layer", group.name),
    }
}

/// Prints the name of the layer, or base, that is booted. Refuses when none is.
pub fn current(context: &Context) -> Result<()> {
    match view::booted(&context.load()?)? {
        Some(name) => say(&format!("{name}\n")),
        None => bail!("no layer is booted"),
    }
}

/// Prints the path of a layer's device.
pub fn path(context: &Context, name: &LvName) -> Result<()> {
    let group = context.load()?;
    if !group.bootable().contains(name) {
        bail!("{} has no layer {name}", group.name);
    }
    say(&format!("{}\n", context.lvm.device(name)?.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_a_document_as_its_schema_says() {
        let layer = view::tests::layer();
        let list = List {
            version: JSON_VERSION,
            layers: vec![&layer],
        };
        crate::schemas::assert_holds("layer-list", &list);
    }
}
