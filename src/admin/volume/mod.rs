//! `volume`: directories that all layers share, each on a volume of its own.

mod add;
mod complete;
mod copied;
mod fresh;
mod list;
mod moved;
mod place;
mod saved;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;

use super::cli::parse_fstype;
use super::filesystem::Filesystem;
use super::{Context, hooks, news, pool_left, say, text, view};
use crate::image::superblock::FsKind;
use crate::model::layout::{Group, Role, Volume, tag};
use crate::model::mount_unit;
use crate::model::name::LvName;
use crate::model::volume::{self, Mount, Volumes};
use crate::sys::cmd::Cmd;
use crate::sys::transaction::{Transaction, Writer};
use crate::sys::{mounts, run};
use add::Add;
pub use complete::record as record_new_in_var;
pub use fresh::{NewVolume, make_for_new_host};
pub use list::paths;
use list::{Unit, unit_of};
use place::{shown, users_of};
pub use saved::{drop_saved, exchange, save};

/// Units of the administrator, which come before those of a generator.
const OWN_UNITS: &str = "/etc/systemd/system";

/// What to do where an initramfs is older than volumes.
const NEW_INITRAMFS: &str =
    "make it anew with dracut(8), run `imgbased-helper boot refresh`, and restart";

#[derive(Subcommand)]
pub enum Verb {
    /// Make a volume for a directory, such as /home or /var, with what the running layer has there
    ///
    /// From then on every layer mounts it, also an older one. A directory that programs use, such as /var, moves when
    /// the system goes down, and is on its volume at the next start. What the layer has there stays below it.
    Add {
        /// Directory; it need not be there
        path: String,
        /// Size of the volume, such as 4G. It takes what is written to it
        #[arg(long, value_parser = text::parse_size)]
        size: u64,
        /// Filesystem to make: ext4 or xfs
        #[arg(long, value_name = "TYPE", value_parser = parse_fstype, default_value = "ext4")]
        fstype: FsKind,
        /// Options of the mount, with commas
        #[arg(long, default_value = "", hide_default_value = true)]
        options: String,
        /// Copy nothing
        #[arg(long)]
        empty: bool,
    },
    /// List the volumes that layers share
    List,
    /// Make a volume and its filesystem larger, also while it is mounted
    Grow {
        /// Directory that is on the volume
        path: String,
        /// New size of the volume, such as 8G
        #[arg(value_parser = text::parse_size)]
        size: u64,
    },
    /// Have the layers use their own directory again; the volume stays, but for its tags
    Remove {
        /// Directory that is on the volume
        path: String,
        /// Remove the volume as well, with all that is on it
        #[arg(long)]
        delete: bool,
    },
    /// Copy what moves to a volume, as imgbased-move.service does when the system goes down
    Move,
    /// Add what is new in the image of the layer that runs, as imgbased-complete.service does at its first start
    Complete,
}

pub fn run(context: &Context, verb: Verb) -> Result<()> {
    match verb {
        Verb::Add {
            path,
            size,
            fstype,
            options,
            empty,
        } => {
            let add = Add {
                path: &path,
                size,
                fstype,
                options: &options,
                empty,
            };
            add::add(context, &add)
        }
        Verb::List => list::list(context),
        Verb::Grow { path, size } => grow(context, &path, size),
        Verb::Remove { path, delete } => remove(context, &path, delete),
        Verb::Move => moved::move_all(context),
        Verb::Complete => complete::complete(context),
    }
}

/// What the verbs do as one transaction. All of them hand over the same type, so the code of one is there once.
type Work<'a> = &'a mut dyn FnMut(&mut Transaction) -> Result<()>;

fn transaction(writer: &Writer, work: Work) -> Result<()> {
    writer.transaction(work)
}

fn unlocked(tx: &mut Transaction, work: Work) -> Result<()> {
    tx.unlocked(work)
}

/// The volumes that the layer that runs does not have mounted although they are due, each with what to do.
pub fn unmounted(context: &Context, group: &Group) -> Result<Vec<(Mount, String)>> {
    if view::booted_layer(group)?.is_none() {
        return Ok(Vec::new());
    }
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    let mut found = Vec::new();
    for mount in volume::mounts_of(group, &mut |_| ()) {
        if mount.moving || is_mounted(context, &mount.name, &mount.path)? {
            continue;
        }
        let advice = match &handed {
            None => NEW_INITRAMFS.to_owned(),
            Some(handed) if handed.volumes.contains(&mount) => format!(
                "`systemctl status '{}'` says why",
                mount_unit::name(&mount.path)
            ),
            Some(handed) if handed.changes_later(&mount.path) => continue,
            Some(_) => format!(
                "a command was interrupted when it was to be mounted or removed; the next start mounts it over what is \
                 written there until then: `imgbased-helper volume remove {}` prevents that",
                mount.path
            ),
        };
        found.push((mount, advice));
    }
    Ok(found)
}

/// Ends the moves of volumes that the layer that runs has mounted, where the power was cut at their very end.
pub fn end_moves(context: &Context, tx: &mut Transaction) -> Result<()> {
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    let volumes = handed.map(|handed| handed.volumes).unwrap_or_default();
    for mount in volumes.iter().filter(|mount| !mount.moving) {
        if is_mounted(context, &mount.name, &mount.path)? {
            copied::remove_mark(tx, &mount.path)?;
        }
    }
    Ok(())
}

/// Where the volumes of a group are mounted.
fn mounts_of(group: &Group) -> Vec<Mount> {
    volume::mounts_of(group, &mut |problem| log::warn!("{problem}"))
}

/// Has systemd know of what is mounted at a path from now on, and of what it knew before at others. What waits for the
/// next start it does not know, else it would mount that at once.
fn hand_over_at(
    context: &Context,
    tx: &mut Transaction,
    path: &str,
    new: Option<Mount>,
) -> Result<()> {
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    match handed {
        Some(mut handed) => {
            handed.volumes = with_at(handed.volumes, path, new);
            handed.later.retain(|later| later != path);
            hand_over(context, tx, handed)
        }
        // Of an earlier initramfs, with which nothing is mounted.
        None => Ok(()),
    }
}

/// These volumes with this one, or none, at a path. They stay in their order.
fn with_at(mut volumes: Vec<Mount>, path: &str, new: Option<Mount>) -> Vec<Mount> {
    volumes.retain(|other| other.path != path);
    if let Some(new) = new {
        let at = volumes.partition_point(|other| other.path < new.path);
        volumes.insert(at, new);
    }
    volumes
}

/// Has what waits for the next start at a path be known as that.
fn wait_for_next_start(context: &Context, tx: &mut Transaction, path: &str) -> Result<()> {
    let handed: Option<Volumes> = run::read_json(run::VOLUMES);
    let Some(mut handed) = handed else {
        return Ok(());
    };
    handed.later.push(path.to_owned());
    write_volumes(context, tx, handed)
}

/// Has systemd know of these volumes.
fn hand_over(context: &Context, tx: &mut Transaction, volumes: Volumes) -> Result<()> {
    let reload = Cmd::new("systemctl").arg("daemon-reload");
    // After the file is what it was.
    tx.on_failure(reload.clone());
    write_volumes(context, tx, volumes)?;
    tx.run(&reload)
}

/// Has systemd know of the volumes that are there already by the name that their group has got since the layer was
/// booted.
pub fn hand_over_renamed(context: &Context, writer: &Writer, group: &Group) -> Result<()> {
    let is_running = context.root == Path::new("/") && view::booted(group)?.is_some();
    let handed: Option<Volumes> = run::read_json(run::VOLUMES).filter(|_| is_running);
    let Some(handed) = handed else {
        return Ok(());
    };
    if handed.vg == group.name.as_str() || handed.volumes.is_empty() {
        return Ok(());
    }
    transaction(writer, &mut |tx| {
        hand_over(context, tx, handed.clone())?;
        for mount in handed.volumes.iter().filter(|mount| !mount.moving) {
            // Where nobody used it, systemd may have unmounted it as its device has another name.
            let unit = mount_unit::name(&mount.path);
            if let Err(error) = tx.run(&systemctl("start", &unit)) {
                log::warn!("{} is not mounted: {error:#}", mount.path);
            }
        }
        Ok(())
    })
}

/// Leaves word of them for the generator of mount units.
fn write_volumes(context: &Context, tx: &mut Transaction, volumes: Volumes) -> Result<()> {
    let volumes = Volumes {
        vg: context.lvm.vg().to_string(),
        ..volumes
    };
    tx.create_dir(Path::new(run::DIR))?;
    let text = serde_json::to_vec_pretty(&volumes)?;
    tx.write(Path::new(run::VOLUMES), &text, 0o644)
}

fn systemctl(verb: &str, unit: &str) -> Cmd {
    Cmd::new("systemctl").args([verb, "--", unit])
}

/// What mounts a volume.
enum By {
    /// Each layer, as its tags say.
    Tags(Mount),
    /// The layer that runs, as imgbased has it.
    Unit(Unit),
}

/// The volume of a path.
fn find<'a>(context: &Context, group: &'a Group, path: &str) -> Result<(&'a Volume, By)> {
    let mut mounts = mounts_of(group).into_iter();
    if let Some(mount) = mounts.find(|mount| mount.path == path) {
        let volume = group.volume(&mount.name).context("it is in the group")?;
        return Ok((volume, By::Tags(mount)));
    }
    for volume in group.with_role(Role::Volume) {
        let unit = unit_of(context, &volume.name)?;
        if let Some(unit) = unit.filter(|unit| unit.path == path) {
            return Ok((volume, By::Unit(unit)));
        }
    }
    bail!("{path} is no volume; `imgbased-helper volume list` shows those that there are")
}

/// Whether a volume is what is mounted at a path.
fn is_mounted(context: &Context, name: &str, path: &str) -> Result<bool> {
    let dm_name = context.lvm.vg().dm_name(&name.parse()?)?;
    let mounted = mounts::dm_name_at(Path::new(path)).ok().flatten();
    Ok(mounted == Some(dm_name) && mounts::is_mount_point(Path::new(path))?)
}

/// Makes a volume and its filesystem larger. What is larger stays so when the filesystem cannot follow, and it can be
/// tried again.
fn grow(context: &Context, path: &str, size: u64) -> Result<()> {
    let path = volume::path(path)?;
    let writer = context.locked_writer("volume grow")?;
    transaction(&writer, &mut |tx| {
        let group = context.load()?;
        context.check_pool(&group)?;
        pool_left(&group)?;
        let (volume, _) = find(context, &group, &path)?;
        ensure!(
            size >= volume.size,
            "{path} has {} already, and a volume does not become smaller",
            text::size(volume.size)
        );
        let name: LvName = volume.name.parse()?;
        let _look = context.look(&group, &name)?;
        context.activated(tx, &name, volume.active, |tx| {
            let filesystem = Filesystem::on(&context.lvm.device(&name)?)?;
            Filesystem::check_tools(filesystem.kind)?;
            if !is_mounted(context, &volume.name, &path)? {
                filesystem.check(tx, false)?;
            }
            if size > volume.size {
                tx.run(&context.lvm.extend(&name, size))?;
            }
            filesystem.grow(tx)
        })
    })?;
    if context.dry_run {
        return Ok(());
    }
    say(&format!("{path} has {} now\n", text::size(size)))
}

/// Has the layers use their own directory again. The volume stays, and is none of ours any more; with `delete` it is
/// removed.
fn remove(context: &Context, path: &str, delete: bool) -> Result<()> {
    let path = volume::path(path)?;
    let writer = context.locked_writer("volume remove")?;
    let (mut removed, mut said) = (None, String::new());
    transaction(&writer, &mut |tx| {
        let group = context.load()?;
        let (volume, by) = find(context, &group, &path)?;
        let mount = match by {
            By::Tags(mount) => mount,
            By::Unit(unit) => bail!(
                "{} of this layer mounts {}/{} at {path}, which no tag says; `systemctl disable --now {}` and rm(1) of \
                 that file have the layer use its own directory, and lvremove(8) removes the volume",
                unit.file.display(),
                group.name,
                volume.name,
                mount_unit::name(&path)
            ),
        };
        let (lvm, name) = (&context.lvm, mount.name.parse::<LvName>()?);
        let is_mounted = is_mounted(context, &mount.name, &path)?;
        let users = if is_mounted {
            users_of(&path)?
        } else {
            Vec::new()
        };
        let stays = !users.is_empty() || is_mounted && mount.is_required();
        if delete {
            context.check_pool(&group)?;
            if let Some(why) = volume.is_needed_as() {
                bail!("{name} is {why} and cannot be removed");
            }
            ensure!(
                !stays,
                "{path} is in use by {}; without --delete its layers have their own again from the next start on, and \
                 `lvremove {}/{name}` removes the volume then",
                if users.is_empty() {
                    "the system".to_owned()
                } else {
                    shown(&users)
                },
                group.name
            );
        }
        if is_mounted && !stays {
            let unit = mount_unit::name(&path);
            tx.run_undoable(&systemctl("stop", &unit), systemctl("start", &unit))?;
        }
        hand_over_at(context, tx, &path, None)?;
        if delete {
            // Nothing takes that back.
            tx.run(&lvm.remove(&name))?;
        } else {
            let is_of_it = |tag: &&str| {
                let values = [tag::MOUNT, tag::MOVING, tag::MOUNT_OPTIONS];
                *tag == tag::VOLUME || values.iter().any(|value| tag.starts_with(value))
            };
            let tags = volume.tags.iter().map(String::as_str);
            let tags: Vec<&str> = tags.filter(is_of_it).collect();
            tx.run(&lvm.retag(&name, &tags, None))?;
        }
        let full = format!("{}/{name}", group.name);
        let kept = match (delete, stays) {
            (true, _) => format!("{full} is gone"),
            (_, false) => format!("{full} is kept; lvremove(8) removes it"),
            (_, true) => {
                format!("{full} is mounted until then, and is kept; lvremove(8) removes it")
            }
        };
        let from = if stays {
            "from the next start on"
        } else {
            "again"
        };
        said = format!("each layer has its own {path} {from}; {kept}\n");
        removed = Some(name);
        Ok(())
    })?;
    if let Some(name) = &removed {
        news::volume_removed(context, name, &path);
        hooks::after_volume(context, &writer, "volume-removed", name, &path);
    }
    if context.dry_run {
        return Ok(());
    }
    say(&said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemd_knows_changes_at_one_path_only() {
        let mount = |path: &str, name: &str| Mount {
            path: path.to_owned(),
            name: name.to_owned(),
            options: String::new(),
            moving: false,
        };
        let before = || vec![mount("/home", "home"), mount("/var", "var")];
        for (path, new, wanted) in [
            ("/srv", Some("srv"), &["home", "srv", "var"][..]),
            ("/var/log", Some("log"), &["home", "var", "log"]),
            ("/home", None, &["var"]),
            // It waits for the next start, so it is not among them.
            ("/opt", None, &["home", "var"]),
            ("/home", Some("home-2"), &["home-2", "var"]),
        ] {
            let found = with_at(before(), path, new.map(|name| mount(path, name)));
            let names: Vec<&str> = found.iter().map(|mount| mount.name.as_str()).collect();
            assert_eq!(names, wanted, "{path}");
        }
    }
}
