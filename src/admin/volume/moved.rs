//! `volume move`: what programs use until the system goes down is copied then.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::add::{check_room, make};
use super::copied::{Copied, copied_ahead};
use super::{mounts_of, transaction, with_at, write_volumes};
use crate::admin::filesystem::Filesystem;
use crate::admin::{Context, pool_left, view};
use crate::image::superblock::FsKind;
use crate::model::layout::tag;
use crate::model::name::LvName;
use crate::model::volume::{Mount, Volumes};
use crate::sys::cmd::Cmd;
use crate::sys::run;
use crate::sys::transaction::Transaction;

/// Where the journal keeps its files open.
const JOURNAL: &str = "/var/log/journal";

/// Copies what waits for it to its volume. Does nothing while the system runs: what is written afterwards would stay
/// behind.
pub fn move_all(context: &Context) -> Result<()> {
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    if handed.is_none_or(|handed| handed.volumes.iter().all(|mount| !mount.moving)) {
        return Ok(());
    }
    let state = Cmd::new("systemctl")
        .arg("is-system-running")
        .accept(&[0, 1]);
    if state.run()?.trim() != "stopping" {
        log::warn!("nothing moves before the system goes down");
        return Ok(());
    }
    let writer = context.locked_writer("volume move")?;
    let mut moved = Ok(());
    for mount in mounts_of(&context.load()?)
        .into_iter()
        .filter(|mount| mount.moving)
    {
        let done = transaction(&writer, &mut |tx| move_one(context, tx, &mount));
        moved = moved.and(done.with_context(|| format!("{} stays where it is", mount.path)));
        writer.interrupt().check()?;
    }
    moved
}

fn move_one(context: &Context, tx: &mut Transaction, mount: &Mount) -> Result<()> {
    let group = context.load()?;
    context.check_pool(&group)?;
    let room = pool_left(&group)?;
    let volume = group.volume(&mount.name);
    let volume = volume.with_context(|| format!("{} has no volume {}", group.name, mount.name))?;
    let booted = view::booted(&group)?;
    if let Some(of) = volume.of().filter(|of| Some(*of) != booted.as_deref()) {
        bail!(
            "{} waits for what {of} has there, and another layer runs",
            mount.name
        );
    }
    let (lvm, name) = (&context.lvm, mount.name.parse::<LvName>()?);
    let device = lvm.device(&name)?;
    if !volume.active {
        tx.run_undoable(&lvm.activate(&name), lvm.deactivate(&name))?;
    }
    if Path::new(JOURNAL).starts_with(&mount.path) {
        // Its last lines stay in memory, else it would write on.
        let journal = |verb| Cmd::new("journalctl").arg(verb);
        tx.run_undoable(&journal("--relinquish-var"), journal("--flush"))?;
    }
    let source = Copied::open(context, tx, &mount.path)?;
    // An attempt that was interrupted has left its part, or half a filesystem.
    let found = Filesystem::on(&device).ok();
    let begun = match &found {
        Some(found) => copied_ahead(tx, &mount.name, found)?,
        None => None,
    };
    let copy = match (found, begun) {
        (Some(filesystem), Some(begun)) => context.filling_pool(tx, &group, |tx| {
            source.copy_rest(tx, mount, &filesystem, room, begun)
        })?,
        (found, _) => {
            check_room(&mount.path, Some(&source), room)?;
            let kind = found.map_or(FsKind::Ext4, |found| found.kind);
            tx.run(&Cmd::new("blkdiscard").arg("--force").arg(&device))?;
            let zeroes = group.pool().is_some_and(|pool| pool.zeroes);
            let filesystem = make(tx, kind, &device, zeroes, mount)?;
            context.filling_pool(tx, &group, |tx| source.copy(tx, mount, &filesystem, room))?
        }
    };
    let moved = Mount {
        moving: false,
        ..mount.clone()
    };
    let all = with_at(
        mounts_of(&context.load()?),
        &mount.path,
        Some(moved.clone()),
    );
    // What starts next without an initramfs, after a soft reboot, mounts it.
    write_volumes(context, tx, Volumes::new(context.lvm.vg(), all))?;
    let of = volume.of().map(|of| format!("{}{of}", tag::OF));
    let path = mount.path_tag();
    let old: Vec<&str> = [path.as_str()].into_iter().chain(of.as_deref()).collect();
    tx.run(&lvm.retag(&name, &old, Some(&moved.path_tag())))?;
    // The mark is there until then: where the power is cut before, the layer goes on with its own directory, and what
    // is changed there is copied at the next way down.
    source.complete(tx, mount)?;
    copy.unmount(tx)?;
    source.mounted.unmount(tx)
}
