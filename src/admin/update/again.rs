//! What was changed between an update and the restart comes along at shutdown. Where nothing was, nothing is read and
//! the new layer is not touched. The layer has never booted, so nobody else has written to it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::merge::{Logins, Told, for_initramfs, needed, outside, warn_of};
use super::packages::{self, without_kept};
use super::waiting::{SCRATCH, Waiting, forget_carried, record, record_carried};
use crate::admin::merge_report::{Amount, MergeReport};
use crate::admin::roots::{Sides, Tree};
use crate::admin::space::room_in;
use crate::admin::{
    Context, LOCK_WAIT, after_merge, hooks, initramfs, keeping_disks, labels, layer, new_entries,
    packages as installed, running_options, text,
};
use crate::boot::Known;
use crate::boot::arrange::Arrangement;
use crate::boot::entry::{BootSpec, Entry};
use crate::image::superblock::FsKind;
use crate::merge::{self, Changed, Ids, LAYER, NEW, Plan, Record, Staged, Zones};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, Time};

/// Takes along what was changed since, if an update waits. Where that fails, the first merge stays as it is.
pub fn at_shutdown(context: &Context) -> Result<()> {
    let Some(waiting) = Waiting::read() else {
        ensure!(
            !Path::new(run::UPDATE).exists(),
            "{} cannot be read, so what was changed since the update is not in the new layer; \
             `imgbased-helper persist pull` in it fetches that",
            run::UPDATE
        );
        return Ok(());
    };
    let writer = context.writer("update", LOCK_WAIT)?;
    let is_changed = waiting.is_changed().unwrap_or_else(|error| {
        log::warn!("whether anything was changed since the update is not known: {error:#}");
        true
    });
    let done = writer.transaction(|tx| {
        if is_changed {
            tx.lock()?;
            forget_carried(tx)?;
            if !merge_again(context, tx, &waiting)? {
                return Ok(());
            }
        }
        record_carried(tx, &waiting.layer)
    });
    done.with_context(|| {
        format!(
            "what was changed since the update is not in {}; `imgbased-helper persist pull` in it fetches that",
            waiting.layer
        )
    })
}

/// Merges /etc once more if it was edited, and takes along what was changed of carried paths. Does nothing, and returns
/// so, where the new layer is not to boot any more.
fn merge_again(context: &Context, tx: &mut Transaction, waiting: &Waiting) -> Result<bool> {
    let group = context.load()?;
    let boot = context.boot_partition()?;
    let (layer, base): (LvName, LvName) = (waiting.layer.parse()?, waiting.base.parse()?);
    if !waiting.is_chosen(&boot.selection()?) {
        // Somebody has gone back from it, or has removed it.
        return Ok(false);
    }
    let volume = group.volume(layer.as_str());
    let volume = volume.with_context(|| format!("{layer} is gone"))?;
    ensure!(!volume.is_good(), "{layer} has booted already");
    let sides = Sides::of(&group)?;
    let told = Told::of(context, tx, &group, waiting.leave())?.again(&waiting.zones);
    let new = Tree::Volume(base.clone());
    let before = boot.entries_of(&layer)?;
    let booted: Vec<BootSpec> = before.iter().map(Entry::spec).collect();
    let options = running_options(&group, &boot)?;
    let kernels = context.activated(tx, &layer, volume.active, |tx| {
        let filesystem = context.filesystem(&layer, &layer)?;
        context.mounted(tx, &layer, &filesystem, "rw", None, |tx, root| {
            let again = Again {
                context,
                group: &group,
                waiting,
                told: &told,
                sides: &sides,
                volumes: [&base, &layer],
                device: &context.lvm.device(&layer)?,
                kind: filesystem.kind,
                root,
                since: labels::now(),
            };
            let done =
                sides.opened_with(context, tx, &group, &new, |tx, roots| again.run(tx, roots));
            let for_initramfs = done?.context("this is no dry run")?;
            let known = Known {
                entries: &before,
                options: &options,
                added: None,
                removed: None,
                is_running: false,
                is_made: true,
            };
            let made = tx.scope(|tx| {
                if !initramfs::make_for_host(tx, &boot, root, &known, &for_initramfs)? {
                    return Ok(None);
                }
                initramfs::kernels_of(tx, &boot, root, &known)?.store(tx, &boot)
            });
            tx.interrupt().check()?;
            let kernels = made.unwrap_or_else(|error| {
                // All else has come along.
                log::warn!(
                    "{layer} keeps its initramfs, without what was changed since: {error:#}"
                );
                None
            });
            match kernels {
                Some(kernels) => Ok(keeping_disks(kernels, &before)),
                None => layer::with_options(booted.clone(), root),
            }
        })
    })?;
    if let Some(kernels) = kernels.filter(|kernels| *kernels != booted) {
        let kernels = Arrangement::plain(kernels);
        let is_trial = before.iter().any(Entry::is_trial);
        let entries = new_entries(&group, &layer, false, &kernels, is_trial)?;
        boot.write_entries(tx, &layer, &entries)?;
    }
    Ok(true)
}

/// A layer that takes along what was changed since it was made.
struct Again<'a> {
    context: &'a Context,
    group: &'a Group,
    waiting: &'a Waiting,
    told: &'a Told,
    sides: &'a Sides,
    /// Its base, and itself.
    volumes: [&'a LvName; 2],
    /// Where it is, and its filesystem.
    device: &'a Path,
    kind: FsKind,
    /// Where it is mounted.
    root: &'a Path,
    /// When this began.
    since: Time,
}

impl Again<'_> {
    /// Gets where the old base, the layer that runs and the new base are mounted. Returns what of /etc the initramfs of
    /// the new layer lacks now, perhaps.
    fn run(&self, tx: &mut Transaction, mounted: [&Path; 3]) -> Result<Vec<PathBuf>> {
        let [old, layer, new] = mounted.map(Dir::root);
        let roots = [&old?, &layer?, &new?];
        let interrupt = tx.interrupt().clone();
        let go_on = || interrupt.check();
        let zones = self.told.zones(roots, self.sides)?;
        let record = record().unwrap_or_else(|error| {
            log::warn!("what was deleted since stays in the new layer: {error:#}");
            Record::default()
        });
        let changed = zones.changed(&record, roots[LAYER], &go_on)?;
        let plan = self.sides.plan(roots)?;
        let since = self
            .since(tx, mounted, roots, &plan)
            .unwrap_or_else(|error| {
                log::warn!(
                    "what was written since where nothing is carried is not known: {error:#}"
                );
                Since::default()
            });
        go_on()?;
        let root = Dir::root(self.root)?;
        let name = SCRATCH.as_ref();
        root.remove_all(name)?;
        root.make_dir(name)?;
        let place = Place {
            scratch: root.child(name)?,
            moved: moved(&self.waiting.ids(), &plan.users.ids),
            root,
        };
        let again = merge::Again {
            roots,
            is_snapshot: self.sides.is_snapshot,
            plan: &plan,
            copy: &place.root,
            scratch: &place.scratch,
        };
        let etc = (changed.edited() > 0).then(|| self.stage_etc(tx, mounted[NEW], &again));
        let files = self.stage_files(tx, &again, &zones, &changed);
        let done = Logins::of(&plan, roots, &zones)
            .and_then(|logins| self.put(tx, (&plan, &logins), &place, etc, files, since));
        let removed = place.root.remove_all(name);
        done?;
        removed.with_context(|| format!("cannot remove /{SCRATCH} of the new layer"))?;
        // What belongs into an initramfs is all of the host's that does, once some of that was changed.
        let mut edited: Vec<PathBuf> = changed.in_etc().map(Path::to_owned).collect();
        edited.retain(|path| initramfs::can_hold(path));
        if !edited.is_empty() {
            edited.extend(for_initramfs(&plan));
        }
        Ok(edited)
    }

    /// What was written, and which packages were installed, since the update, without coming along.
    fn since(
        &self,
        tx: &mut Transaction,
        mounted: [&Path; 3],
        roots: [&Dir; 3],
        plan: &Plan,
    ) -> Result<Since> {
        let packages = installed::of_each(tx, mounted)?;
        let mut found = None;
        tx.work(&"the search for what does not come along", |interrupt| {
            let go_on = || interrupt.check();
            found = Some(outside(
                roots, &packages, self.sides, self.told, plan, &go_on,
            )?);
            Ok(())
        })?;
        let (outside, packages) = found.context("the work is done")?;
        let left = Amount::left_since(&outside.left, &self.waiting.left);
        Ok(Since { left, packages })
    }

    /// Makes a second /etc ready, of a copy of the new base's.
    fn stage_etc(&self, tx: &mut Transaction, base: &Path, again: &merge::Again) -> Result<()> {
        let scratch = self.root.join(SCRATCH);
        let copy = Cmd::new("cp")
            .args(["--recursive", "--no-dereference", "--no-target-directory"])
            .arg("--preserve=mode,ownership,timestamps,links,xattr")
            .args([base.join("etc"), scratch.join("etc")]);
        tx.run(&copy)?;
        merge::reown(again.scratch, &again.plan.users.ids)?;
        let left_out = merge::apply(again.plan, again.roots[LAYER], again.scratch)?;
        warn_of("/etc/", &left_out);
        layer::own_root_line(tx, &scratch, self.device, self.kind)
    }

    /// Makes what was changed elsewhere ready.
    fn stage_files<'a>(
        &self,
        tx: &mut Transaction,
        again: &merge::Again<'a>,
        zones: &Zones,
        changed: &Changed,
    ) -> Result<Staged<'a>> {
        let (needed, room) = (
            needed(changed.bytes, changed.files),
            room_in(self.context, self.root)?,
        );
        ensure!(
            needed <= room,
            "what was changed since the update takes {}, and the new layer has room for {}",
            text::size(needed),
            text::size(room)
        );
        let mut staged = None;
        tx.work(&"what was changed since is copied", |interrupt| {
            staged = Some(again.stage(zones, changed, &|| interrupt.check())?);
            Ok(())
        })?;
        staged.context("the work is done")
    }

    /// Puts what is ready in its place: first the accounts, then what can be theirs. What is wrong with one is no reason
    /// to leave out the other. `etc` is `None` where nothing was edited.
    fn put(
        &self,
        tx: &mut Transaction,
        (plan, logins): (&Plan, &Logins),
        place: &Place,
        etc: Option<Result<()>>,
        files: Result<Staged>,
        since: Since,
    ) -> Result<()> {
        // Names change places in the journal, perhaps before the content of a file is on the disk.
        tx.flush(self.root)?;
        let is_edited = etc.is_some();
        let etc = etc.map_or(Ok(()), |staged| {
            staged?;
            tx.work(&"the two /etc change places", |_| place.exchange())
        });
        let put = |tx: &mut Transaction, files: Result<Staged>| {
            let staged = files?;
            tx.work(&"what was changed since takes its place", |_| {
                warn_of("/", &staged.put()?);
                Ok(())
            })
        };
        // Without the second /etc, which may be taken back, files of accounts with new numbers would belong to others.
        let are_renumbered = place.moved != Ids::default();
        let (mut files, mut done) = (Some(files), Ok(()));
        if let Some(files) = files.take_if(|_| !are_renumbered) {
            done = put(tx, files);
        }
        etc?;
        let (context, group, [base, _]) = (self.context, self.group, self.volumes);
        let before = MergeReport::read(self.root)?;
        if let Some(before) = before.as_ref().filter(|_| is_edited) {
            // The layer boots without what packages have put into /etc, too.
            if let Err(error) = packages::again(context, tx, group, before, self.root) {
                log::warn!("what kept packages have put into /etc is not there: {error:#}");
            }
        }
        let mut asked = after_merge::refresh_caches(tx, self.root);
        if is_edited {
            let events = ["post-merge"];
            asked = asked
                .and_then(|()| hooks::merged(context, tx, group, &events, self.volumes, self.root));
            if asked.is_err() {
                place.take_back()?;
            }
        }
        asked?;
        if let Some(files) = files {
            done = put(tx, files);
            // What programs make of the files was made without these.
            if let Err(error) = after_merge::refresh_caches(tx, self.root) {
                log::warn!("caches of the new layer lack what was changed since: {error:#}");
            }
        }
        if is_edited {
            self.waiting.renumber(tx, &plan.users.ids)?;
        }
        let report = if is_edited {
            let mut report = MergeReport::of(self.sides.names(base), plan);
            report.pending = true;
            if let Some(mut before) = before {
                report.keep_outside(&mut before);
                report.kept_packages = before.kept_packages;
                report.missing_packages = before.missing_packages;
            }
            logins.settle(tx, self.root, &mut report)?;
            Some(report)
        } else {
            before
        };
        if let Some(mut report) = report {
            since.put(&mut report);
            report.write(tx, self.root)?;
        }
        // What has come along is there, whatever its labels.
        if let Err(error) = labels::set(tx, self.root, self.since) {
            log::warn!("files of the new layer keep the SELinux labels that they have: {error:#}");
        }
        done
    }
}

/// What has not come along since the update.
#[derive(Default)]
struct Since {
    left: Vec<Amount>,
    packages: Vec<String>,
}

impl Since {
    fn put(self, report: &mut MergeReport) {
        report.left_since = self.left;
        let mut packages = without_kept(self.packages, &report.kept_packages);
        packages.retain(|name| !report.missing_packages.contains(name));
        report.missing_packages.append(&mut packages);
    }
}

/// The root of the layer, and what is ready to be put there.
struct Place {
    root: Dir,
    scratch: Dir,
    /// The numbers in the root that are others with the second /etc.
    moved: Ids,
}

impl Place {
    /// Puts the second /etc in its place, and gives the files of accounts the numbers that they have there.
    fn exchange(&self) -> Result<()> {
        let done = self
            .reown(&self.moved)
            .and_then(|()| Ok(self.change_places()?))
            .context("cannot exchange /etc");
        if done.is_err() {
            self.reown(&inverse(&self.moved))?;
        }
        done
    }

    fn take_back(&self) -> Result<()> {
        self.change_places().context("cannot exchange /etc")?;
        self.reown(&inverse(&self.moved))
    }

    fn change_places(&self) -> io::Result<()> {
        let etc = OsStr::new("etc");
        self.root.exchange(etc, &self.scratch, etc)
    }

    fn reown(&self, ids: &Ids) -> Result<()> {
        merge::reown_but(&self.root, ids, SCRATCH.as_ref()).map(drop)
    }
}

/// The numbers in the layer that an account which was added since has made others.
fn moved(before: &Ids, now: &Ids) -> Ids {
    let moved = |before: &BTreeMap<u32, u32>, now: &BTreeMap<u32, u32>| {
        let ids = before.keys().chain(now.keys());
        let of = |ids: &BTreeMap<u32, u32>, id: u32| ids.get(&id).copied().unwrap_or(id);
        let moved = ids.map(|id| (of(before, *id), of(now, *id)));
        moved.filter(|(before, now)| before != now).collect()
    };
    Ids {
        users: moved(&before.users, &now.users),
        groups: moved(&before.groups, &now.groups),
    }
}

fn inverse(ids: &Ids) -> Ids {
    let inverse = |ids: &BTreeMap<u32, u32>| ids.iter().map(|(from, to)| (*to, *from)).collect();
    Ids {
        users: inverse(&ids.users),
        groups: inverse(&ids.groups),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, chown};

    fn ids(users: &[(u32, u32)], groups: &[(u32, u32)]) -> Ids {
        Ids {
            users: users.iter().copied().collect(),
            groups: groups.iter().copied().collect(),
        }
    }

    #[test]
    fn numbers_move_once_more_where_an_account_has_come_between() {
        let before = ids(&[(1000, 1001), (5, 6)], &[(1000, 1001)]);
        let now = ids(&[(1000, 1002), (5, 6), (7, 8)], &[]);
        let moved = moved(&before, &now);
        assert_eq!(moved, ids(&[(1001, 1002), (7, 8)], &[(1001, 1000)]));
        assert_eq!(
            inverse(&moved),
            ids(&[(1002, 1001), (8, 7)], &[(1000, 1001)])
        );
        assert_eq!(super::moved(&before, &before), Ids::default());
    }

    #[test]
    fn the_second_etc_comes_with_the_numbers_of_its_accounts_and_goes_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (new, old, file) = (format!("{SCRATCH}/etc/new"), "etc/old", "var/file");
        for path in [new.as_str(), old, file] {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        // Only root can give files away.
        let is_root = chown(dir.join(file), Some(1001), None).is_ok();
        let moved = ids(&[(1001, 1002)], &[]);
        let root = Dir::root(dir).unwrap();
        let place = Place {
            scratch: root.child(SCRATCH.as_ref()).unwrap(),
            root,
            moved: if is_root { moved } else { Ids::default() },
        };
        if is_root {
            chown(dir.join(&new), Some(1001), None).unwrap();
        }
        let has = |path: &str| dir.join(path).exists();
        let owner = |path: &str| fs::metadata(dir.join(path)).unwrap().uid();
        place.exchange().unwrap();
        assert!(has("etc/new") && !has(old));
        // What has its number already keeps it.
        assert!(!is_root || owner(file) == 1002 && owner("etc/new") == 1001);
        place.take_back().unwrap();
        assert!(has(old) && !has("etc/new"));
        assert!(!is_root || owner(file) == 1001 && owner(&new) == 1001);
    }
}
