//! `volume complete`: what is new in the image of a layer is added to the volumes below /var, when the layer is booted for
//! the first time. The update that made the layer has left the list of it there.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{is_mounted, transaction};
use crate::admin::filesystem::{mount_again, mount_point};
use crate::admin::space::room_in_group;
use crate::admin::{Context, LOCK_WAIT, comment, merge_report, say, text};
use crate::merge::Additions;
use crate::model::volume::{Mount, Volumes};
use crate::sys::interrupt::Interrupt;
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, READ_MAX};

/// The paths that wait for that, from the root, each with a zero behind it. The unit looks for this file.
const NEW: &str = "new-in-var";
/// What it is called when they are added.
const DONE: &str = "added-to-var";

/// Leaves the list in the layer at `root`, whether there is a volume below /var yet or not. It is undone together with the layer.
pub fn record(tx: &mut Transaction, root: &Path, paths: &[PathBuf]) -> Result<()> {
    let mut list = Vec::new();
    for path in paths {
        list.extend_from_slice(path.as_os_str().as_bytes());
        list.push(0);
    }
    tx.work(&format!("# the list {NEW} is written"), |_| {
        let root = Dir::root(root)?;
        // Those of the layer that an image was made of.
        let dir = merge_report::directory(&root)?;
        for name in [NEW, DONE] {
            dir.remove(name.as_ref())?;
        }
        if !list.is_empty() {
            merge_report::put(&root, NEW, &list, 0o644)?;
        }
        Ok(())
    })
    .with_context(|| format!("cannot write the list {NEW}"))
}

fn read(root: &Dir) -> Result<Option<Vec<PathBuf>>> {
    let Some(list) = root.resolve(&Path::new(merge_report::DIR).join(NEW))? else {
        return Ok(None);
    };
    Ok(Some(parse(&list.read(READ_MAX)?)))
}

fn parse(list: &[u8]) -> Vec<PathBuf> {
    let names = list
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    names
        .map(|name| OsString::from_vec(name.to_vec()).into())
        .collect()
}

/// Adds what waits for it. A volume that is not mounted, or has no room, gets its part at another start.
pub fn complete(context: &Context) -> Result<()> {
    let failed = || format!("cannot read the list {NEW} of this layer");
    let root = Dir::root(Path::new("/"))?;
    let Some(new) = read(&root).with_context(failed)? else {
        return Ok(());
    };
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    let mut volumes = handed.map(|handed| handed.volumes).unwrap_or_default();
    volumes.retain(Mount::is_required);
    if volumes.is_empty() {
        return Ok(());
    }
    let writer = context.writer("volume complete", LOCK_WAIT)?;
    transaction(&writer, &mut |tx| {
        if context.dry_run {
            return comment("what is new in the image is added to the volumes below /var");
        }
        let own = mount_point("running");
        let mounted = mount_again(tx, Path::new("/"), &own)?;
        let layer = Dir::root(&own)?;
        let paths = volumes.iter().map(|mount| from_root(&mount.path).into());
        let paths: Vec<PathBuf> = paths.collect();
        let mut is_done = true;
        for mount in &volumes {
            if mount.moving || !is_mounted(context, &mount.name, &mount.path)? {
                is_done = false;
                continue;
            }
            let done = add_to(context, tx, mount, &new, &paths, &layer);
            tx.interrupt().check()?;
            if let Err(error) = done {
                log::warn!("{} lacks what is new in the image: {error:#}", mount.path);
                is_done = false;
            }
        }
        drop(layer);
        mounted.unmount(tx)?;
        if !is_done {
            return Ok(());
        }
        tx.work(&format!("# the list {NEW} is {DONE}"), |_| {
            let dir = merge_report::directory(&root)?;
            Ok(dir.rename(NEW.as_ref(), OsStr::new(DONE))?)
        })
    })
}

fn add_to(
    context: &Context,
    tx: &mut Transaction,
    mount: &Mount,
    new: &[PathBuf],
    volumes: &[PathBuf],
    layer: &Dir,
) -> Result<()> {
    let at = Path::new(from_root(&mount.path));
    let to = Dir::root(Path::new(&mount.path))?;
    // Both: the pool can be full long before the volume is.
    let group = context.load()?;
    let room = room_in_group(&group, Path::new(&mount.path))?;
    let line = format!("# {} gets what is new", mount.path);
    let work = |interrupt: &Interrupt| {
        let go_on = || interrupt.check();
        let additions = Additions::of(new, (at, &to), volumes, layer, &go_on)?;
        ensure!(
            additions.bytes <= room,
            "it needs {}, and {} are free on the volume and in its pool",
            text::size(additions.bytes),
            text::size(room)
        );
        additions.apply(layer, &to, &go_on)?;
        match additions.count() {
            0 => Ok(()),
            count => say(&format!(
                "{}: {count} paths of the image are new\n",
                mount.path
            )),
        }
    };
    context.filling_pool(tx, &group, |tx| tx.work(&line, work))
}

fn from_root(path: &str) -> &str {
    path.trim_start_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::transaction::change;

    #[test]
    fn a_list_is_read_as_it_was_written_and_an_empty_one_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let odd = OsString::from_vec(b"var/lib/a\nb\xff".to_vec());
        let paths = [PathBuf::from("var/lib/app"), odd.into()];
        let root = || Dir::root(dir.path()).unwrap();
        assert_eq!(read(&root()).unwrap(), None);
        for _ in 0..2 {
            change(|tx| record(tx, dir.path(), &paths)).unwrap();
            assert_eq!(read(&root()).unwrap(), Some(paths.to_vec()));
        }
        change(|tx| record(tx, dir.path(), &[])).unwrap();
        assert_eq!(read(&root()).unwrap(), None);
    }
}
