//! How a volume that holds what a base is to hold becomes one.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;

use anyhow::{Context as _, Error, Result};

use super::check_entry_is_its_own;
use super::listings::{self, Drafted};
use crate::admin::filesystem::Filesystem;
use crate::admin::{Context, hooks, initramfs, new_entries, reaching_disks};
use crate::boot::arrange::Arrangement;
use crate::boot::root::Root;
use crate::boot::{BootPartition, Known};
use crate::image::digest;
use crate::model::fstab;
use crate::model::layout::tag;
use crate::model::name::LvName;
use crate::sys::progress::Waiting;
use crate::sys::transaction::Transaction;
use crate::tree::Listing;

/// Judges the root of a new base, and returns tags to give to it.
pub type Judge<'a> = dyn FnMut(&Path) -> Result<Vec<String>> + 'a;

/// An incomplete, active volume that holds what a base is to hold.
pub struct Filled<'a> {
    pub name: &'a LvName,
    pub filesystem: &'a Filesystem,
    /// The kernel options of what it boots, where no other are known.
    pub options: &'a str,
    /// What it is tagged with whatever it holds.
    pub tags: Vec<String>,
    /// The listing of the base that it began as a snapshot of, if there is one. What this one holds is drafted then.
    pub listing: Option<Listing>,
}

impl Filled<'_> {
    /// Makes a base of the volume: with an identity of its own, a digest, and an entry for what it boots. The lock is
    /// free while the volume is read.
    pub fn finish(
        self,
        context: &Context,
        tx: &mut Transaction,
        boot: &BootPartition,
        judge: &mut Judge,
    ) -> Result<Option<Drafted>> {
        let Self {
            name,
            filesystem,
            options,
            mut tags,
            listing,
        } = self;
        tags.push(tag::BASE.to_owned());
        tx.scope(|tx| {
            filesystem.renew_uuid(tx)?;
            hooks::new_base(context, tx, name, filesystem)?;
            // Mounted or not, the volume keeps the content that the digest is of.
            let untouched = filesystem.untouched();
            let found = context.mounted(tx, name, filesystem, untouched, None, |tx, root| {
                warn_of_odd_root(name, root)?;
                tags.extend(judge(root)?);
                let (recorded, drafted) = record(context, tx, name, root, listing)?;
                tags.extend(recorded);
                let known = Known {
                    entries: &[],
                    options,
                    added: None,
                    removed: None,
                    is_running: false,
                    is_made: false,
                };
                let kernels = initramfs::kernels_of(tx, boot, root, &known)?.store(tx, boot)?;
                Ok((kernels, drafted))
            })?;
            let (kernels, drafted) = found.unzip();
            // The lock was free for a while.
            let group = context.load()?;
            check_entry_is_its_own(&group, name)?;
            let entries = kernels
                .flatten()
                .map(|kernels| {
                    let kernels = Arrangement::plain(reaching_disks(kernels, options));
                    new_entries(&group, name, true, &kernels, false)
                })
                .transpose()?;
            tx.run(&context.lvm.commit(name, &tags))?;
            if let Some(entries) = entries {
                boot.write_entries(tx, name, &entries)
                    .with_context(|| format!("cannot write the boot entry of {name}"))?;
            } else {
                // What the volume will hold shows when it is there.
                context.say_verb(&["base", "verify", "--record", name.as_str()])?;
                context.say_verb(&["boot", "refresh", name.as_str()])?;
            }
            Ok(drafted.flatten())
        })
    }
}

/// What is recorded of a base that is mounted at `root`, as tags: the digest, and whether its fstab has a line for
/// the root. The lock is free while the volume is read. With the `listing` of the base that it began as a snapshot of,
/// what it holds is drafted meanwhile.
pub fn record(
    context: &Context,
    tx: &mut Transaction,
    name: &LvName,
    root: &Path,
    listing: Option<Listing>,
) -> Result<(Vec<String>, Option<Drafted>)> {
    let mut tags = Vec::new();
    let fstab = Root::at(root).fstab()?;
    if fstab.is_some_and(|fstab| fstab::has_root(&fstab.text)) {
        tags.push(tag::ROOT_LINE.to_owned());
    }
    let label = format!("{name} digest");
    let device = context.lvm.device(name)?;
    let (digest, draft) = tx.unlocked(|tx| {
        let interrupt = tx.interrupt();
        let is_in_vain = AtomicBool::new(false);
        thread::scope(|scope| {
            let draft = listing.map(|listing| {
                scope.spawn(|| {
                    let draft = listings::draft_of(name, root, Some(listing), &mut |_| {
                        let goes_on = !is_in_vain.load(Relaxed);
                        goes_on.then_some(()).context("there is no digest")?;
                        interrupt.check()
                    });
                    // Where that failed, it is listed later.
                    let told = |error: &Error| log::debug!("{name} is not listed yet: {error:#}");
                    draft.inspect_err(told).ok()
                })
            });
            let digest = digest::of(&device, &label, interrupt)
                .inspect_err(|_| is_in_vain.store(true, Relaxed))?;
            let _waiting = Waiting::new(|| format!("listing what {name} holds"));
            Ok::<_, Error>((digest, draft.and_then(|draft| draft.join().ok()?)))
        })
    })?;
    tags.push(format!("{}{digest}", tag::SHA256));
    Ok((tags, draft.map(|draft| Drafted::new(&digest, draft))))
}

/// Tells of a root directory that others than root cannot pass, or can write to: that keeps services from starting,
/// and is most often that of a temporary directory.
fn warn_of_odd_root(name: &LvName, root: &Path) -> Result<()> {
    let metadata =
        fs::metadata(root).with_context(|| format!("cannot look at {}", root.display()))?;
    let mode = metadata.mode() & 0o7777;
    if ![0o755, 0o555].contains(&mode) || (metadata.uid(), metadata.gid()) != (0, 0) {
        log::warn!(
            "the root directory of {name} has the mode {mode:04o} and belongs to {}:{}, as in its image; 0755 and 0:0 \
             are usual",
            metadata.uid(),
            metadata.gid()
        );
    }
    Ok(())
}
