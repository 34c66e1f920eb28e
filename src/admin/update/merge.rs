//! The merge of what the running layer has changed into the root of the next one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::admin::merge_report::MergeReport;
use crate::admin::packages::{self, Versions};
use crate::admin::roots::Sides;
use crate::admin::space::room_in;
use crate::admin::volume::record_new_in_var;
use crate::admin::{Context, initramfs, persist, text};
use crate::merge::{
    self, Ids, LAYER, Lost, Modules, NEW, OLD, Outside, Plan, Record, Shells, Zones, replace_shells,
};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::package::Kept;
use crate::model::persist::Rules;
use crate::model::volume;
use crate::sys::files::read_if_there;
use crate::sys::flush::flush;
use crate::sys::progress::Waiting;
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, escaped};

/// What is left behind without a word, in bytes.
const LEFT_MAX: u64 = 1 << 20;
/// What a file takes beside its content, in bytes.
const FILE: u64 = 4096;
/// The longest tick of a kernel's clock, twice.
const TICK: Duration = Duration::from_millis(20);

/// What is to be done with the paths outside of /etc, beside what is usual.
pub struct Told {
    pub listed: Rules,
    /// The packages that the host keeps.
    pub packages: Vec<Kept>,
    volumes: Vec<PathBuf>,
    leave: Vec<PathBuf>,
    /// What was carried before.
    carried: Vec<PathBuf>,
}

impl Told {
    pub fn of(
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        leave: Vec<PathBuf>,
    ) -> Result<Self> {
        let carried = persist::listed(context, tx, group)?;
        let packages = carried.packages.into_iter().map(|(kept, _)| kept);
        Ok(Self {
            listed: carried.rules,
            packages: packages.collect(),
            volumes: shared_paths(group),
            leave,
            carried: Vec::new(),
        })
    }

    /// Has be carried as well what was carried by these zones, also what is gone since.
    pub fn again(self, zones: &Zones) -> Self {
        Self {
            carried: zones.carried(),
            ..self
        }
    }

    /// What becomes of each path of these roots.
    pub fn zones(&self, roots: [&Dir; 3], sides: &Sides) -> Result<Zones> {
        let carried = self.carried([roots[OLD], roots[LAYER]])?;
        let none = BTreeMap::new();
        Zones::of_roots(roots, &self.rules(sides, &carried, [&none; 3]))
    }

    fn rules<'a>(
        &'a self,
        sides: &Sides,
        carried: &'a [PathBuf],
        packages: [&'a BTreeMap<String, String>; 3],
    ) -> merge::Rules<'a> {
        merge::Rules {
            carried,
            volumes: &self.volumes,
            leave: &self.leave,
            packages,
            is_adopted: sides.is_adopted,
        }
    }

    /// The paths that are carried. Those of the old base as well, so that what the layer has deleted is seen.
    fn carried(&self, [old, layer]: [&Dir; 2]) -> Result<Vec<PathBuf>> {
        // What people have at home is theirs, and never the image's.
        let mut paths = vec![PathBuf::from("/home")];
        paths.extend_from_slice(&self.carried);
        for rule in &self.listed.0 {
            for root in [old, layer] {
                paths.extend(persist::matching(root, rule)?);
            }
        }
        Ok(paths)
    }
}

/// What a merge would do.
pub struct Planned {
    pub plan: Plan,
    pub outside: Outside,
    /// The packages that do not come along.
    pub packages: Vec<String>,
}

/// Plans the merge of the roots of the old base, the layer and the new base, with the packages of each. `go_on` ends the
/// work by its error.
pub fn plan(
    roots: [&Dir; 3],
    packages: &[Versions; 3],
    sides: &Sides,
    told: &Told,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Planned> {
    let _waiting = Waiting::new(|| "comparing what was changed".to_owned());
    let plan = sides.plan(roots)?;
    go_on()?;
    let (outside, packages) = outside(roots, packages, sides, told, &plan, go_on)?;
    Ok(Planned {
        plan,
        outside,
        packages,
    })
}

/// Looks at what is outside of /etc, with that plan, and for packages that do not come along. See [`plan`].
pub fn outside(
    roots: [&Dir; 3],
    packages: &[Versions; 3],
    sides: &Sides,
    told: &Told,
    plan: &Plan,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<(Outside, Vec<String>)> {
    let carried = told.carried([roots[OLD], roots[LAYER]])?;
    let rules = told.rules(sides, &carried, packages.each_ref());
    let outside = Outside::of(roots, sides.is_snapshot, &rules, plan, go_on)?;
    Ok((outside, own_packages(sides, roots[LAYER], packages)?))
}

/// The packages of the layer that come with no image, out of those of the roots.
fn own_packages(
    sides: &Sides,
    root: &Dir,
    [old, layer, new]: &[Versions; 3],
) -> Result<Vec<String>> {
    // rpm(8) lists keys as well.
    let is_own = |name: &&String| !new.contains_key(*name) && !name.starts_with("gpg-pubkey.");
    let mut names: Vec<String> = layer.keys().filter(is_own).cloned().collect();
    if sides.is_adopted {
        // The old base has what was installed by hand as well. Of rpm it is not known why something is there.
        let automatic = packages::automatic(root)?;
        names.retain(|name| !automatic.contains(name));
    } else {
        names.retain(|name| !old.contains_key(name));
    }
    Ok(names)
}

impl Planned {
    /// Refuses to leave more behind than nobody would miss.
    pub fn check_left(&self) -> Result<()> {
        let bytes = self.outside.unknown_bytes();
        if bytes <= LEFT_MAX {
            return Ok(());
        }
        let unknown = self.outside.left.iter().filter(|left| !left.is_known);
        let paths: Vec<String> = unknown
            .map(|left| format!("/{} ({})", escaped(&left.path), text::size(left.bytes)))
            .collect();
        bail!(
            "{} would be left behind: {}; `imgbased-helper persist add` has a path come along, --leave leaves it",
            text::size(bytes),
            paths.join(", ")
        )
    }

    /// Refuses to carry more than there is room for, in bytes.
    pub fn check_room(&self, room: u64) -> Result<()> {
        let outside = &self.outside;
        let needed = needed(outside.carried_bytes, outside.carried_files);
        let largest = outside.carried.iter().max_by_key(|of| of.bytes);
        let Some(largest) = largest.filter(|_| needed > room) else {
            return Ok(());
        };
        bail!(
            "what comes along takes {}, and the new layer has room for {}; most is in /{path}: put it on a volume by \
             `imgbased-helper volume add /{path}`, or use --size or --leave",
            text::size(needed),
            text::size(room),
            path = escaped(&largest.path)
        )
    }
}

/// The bytes that so many files with so many bytes take.
pub fn needed(bytes: u64, files: u64) -> u64 {
    bytes.saturating_add(files.saturating_mul(FILE))
}

/// What a merge has done.
pub struct Merged {
    pub report: MergeReport,
    pub outside: Outside,
    pub packages: Vec<String>,
    /// What was merged and carried, to tell what is changed later.
    pub zones: Zones,
    pub record: Record,
    pub circumstances: String,
    pub ids: Ids,
    pub logins: Logins,
    /// What of /etc is not as in the image, and belongs into an initramfs.
    pub for_initramfs: Vec<PathBuf>,
}

/// Puts what the running layer has changed into the root of the new one, which is as its base still.
pub fn into(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    (sides, told): (&Sides, &Told),
    base: &LvName,
    root: &Path,
) -> Result<Merged> {
    let names = sides.names(base);
    let merged = sides.opened(context, tx, group, |tx, [old, layer]| {
        let paths = [old, layer, root];
        let [old, layer, copy] = paths.map(Dir::root);
        let roots = [&old?, &layer?, &copy?];
        let mut new_in_var = Vec::new();
        let mut found = None;
        tx.unlocked(|tx| {
            let packages = packages::of_each(tx, paths)?;
            tx.work(&"the merge of what was changed", |interrupt| {
                let go_on = || interrupt.check();
                new_in_var = merge::new_in_var(roots[OLD], roots[NEW], &go_on)?;
                let zones = told.zones(roots, sides)?;
                let circumstances = circumstances(&told.listed, roots[LAYER])?;
                let record = recorded(&zones, roots[LAYER], &go_on)?;
                let planned = plan(roots, &packages, sides, told, &go_on)?;
                planned.check_left()?;
                planned.check_room(room_in(context, root)?)?;
                let logins = Logins::of(&planned.plan, roots, &zones)?;
                merge::reown(roots[NEW], &planned.plan.users.ids)?;
                go_on()?;
                let left = merge::apply(&planned.plan, roots[LAYER], roots[NEW])?;
                warn_of("/etc/", &left);
                warn_of("/", &planned.outside.apply(roots, &go_on)?);
                let mut report = MergeReport::of(names, &planned.plan);
                report.add_outside(&planned.outside);
                found = Some(Merged {
                    report,
                    outside: planned.outside,
                    packages: planned.packages,
                    for_initramfs: for_initramfs(&planned.plan),
                    zones,
                    record,
                    circumstances,
                    ids: planned.plan.users.ids,
                    logins,
                });
                Ok(())
            })
        })?;
        let mut merged = found.context("the work is done")?;
        merged.report.pending = true;
        merged.report.write(tx, root)?;
        record_new_in_var(tx, root, &new_in_var)?;
        Ok(merged)
    })?;
    merged.context("this is no dry run")
}

/// What people need to log in to a layer.
pub struct Logins {
    shells: Shells,
    modules: Modules,
}

impl Logins {
    /// By the plan for the roots, which are as they were.
    pub fn of(plan: &Plan, roots: [&Dir; 3], zones: &Zones) -> Result<Self> {
        Ok(Self {
            shells: Shells::of(plan, roots, zones)?,
            modules: Modules::of(plan, roots[LAYER])?,
        })
    }

    /// Lists what is not in this root, and does not come there. Returns the users whose shell that is, and whether there
    /// is anything.
    pub fn list(
        &self,
        root: &Dir,
        comes: &dyn Fn(&Path) -> Result<bool>,
        report: &mut MergeReport,
    ) -> Result<(Vec<Lost<'_>>, bool)> {
        let shells = self.shells.lost(root, comes)?;
        report.add_lost(Path::new("/etc/passwd"), &shells);
        let modules = self.modules.lost(root, comes)?;
        for module in &modules {
            report.add_lost(&Path::new("/etc").join(&module.service), &[module]);
        }
        let is_any = !shells.is_empty() || !modules.is_empty();
        Ok((shells, is_any))
    }

    /// Lists what the root of a new layer, which is complete, lacks. Root gets a shell that is there. Returns whether
    /// anything is lacking.
    pub fn settle(
        &self,
        tx: &mut Transaction,
        root: &Path,
        report: &mut MergeReport,
    ) -> Result<bool> {
        let dir = Dir::root(root)?;
        let (lost, is_any) = self.list(&dir, &|_| Ok(false), report)?;
        if !lost.is_empty() {
            tx.work(&"root gets a shell that is there", |_| {
                replace_shells(&dir, &lost)
            })?;
        }
        Ok(is_any)
    }
}

/// Records what is merged and carried of the layer, so that each later change of it is seen.
fn recorded(zones: &Zones, layer: &Dir, go_on: &dyn Fn() -> Result<()>) -> Result<Record> {
    // What a program has mapped and writes to gets a new time only when it has been on the disk in between.
    flush(Path::new("/"))?;
    let record = zones.record(layer, go_on)?;
    // What is changed within one tick of the kernel's clock has one time. What is read from here on is of a later one.
    thread::sleep(TICK);
    Ok(record)
}

/// What decides which paths of a layer are carried, beside what was so when it was updated: those that are listed, and
/// the volumes.
pub fn circumstances(listed: &Rules, layer: &Dir) -> Result<String> {
    let mut circumstances = String::new();
    for rule in &listed.0 {
        for path in persist::matching(layer, rule)? {
            circumstances += &escaped(path);
            circumstances.push('\n');
        }
    }
    let volumes = read_if_there(Path::new(run::VOLUMES))?.unwrap_or_default();
    circumstances += &String::from_utf8_lossy(&volumes);
    Ok(circumstances)
}

/// The paths of /etc that an initramfs can hold, and that are not as in the new base.
pub fn for_initramfs(plan: &Plan) -> Vec<PathBuf> {
    let changed = plan.items.iter();
    let changed = changed.filter(|item| !matches!(item.action, merge::Action::Nothing));
    let paths = changed.map(|item| item.path.clone());
    paths.filter(|path| initramfs::can_hold(path)).collect()
}

pub fn warn_of(above: &str, paths: &[PathBuf]) {
    for path in paths {
        log::warn!("{above}{} found no place in the new layer", escaped(path));
    }
}

/// Where volumes are mounted that all layers share.
fn shared_paths(group: &Group) -> Vec<PathBuf> {
    let mounts = volume::mounts_of(group, &mut |text| log::warn!("{text}"));
    let mounted = mounts.into_iter().filter(|mount| !mount.moving);
    mounted.map(|mount| mount.path.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::roots::Tree;
    use crate::model::layout::{Volume, tag};
    use std::fs;

    /// What is planned for a layer with one file of so many bytes at this path.
    fn planned(path: &str, bytes: u64, leave: &[&str]) -> Planned {
        let dir = tempfile::tempdir().unwrap();
        let roots = ["old", "layer", "new"].map(|name| dir.path().join(name));
        for root in &roots {
            fs::create_dir_all(root.join("etc")).unwrap();
            fs::create_dir_all(root.join("data")).unwrap();
        }
        let file = roots[LAYER].join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, vec![1; usize::try_from(bytes).unwrap()]).unwrap();
        let told = Told {
            listed: Rules::default(),
            packages: Vec::new(),
            volumes: Vec::new(),
            leave: leave.iter().map(PathBuf::from).collect(),
            carried: Vec::new(),
        };
        let [old, layer, new] = roots.each_ref().map(|root| Dir::root(root).unwrap());
        let sides = Sides {
            old: Tree::Directory(roots[OLD].clone()),
            layer: Tree::Directory(roots[LAYER].clone()),
            is_snapshot: false,
            is_adopted: false,
        };
        let packages = Default::default();
        plan([&old, &layer, &new], &packages, &sides, &told, &|| Ok(())).unwrap()
    }

    #[test]
    fn more_than_nobody_would_miss_is_left_only_if_a_person_says_so() {
        for (bytes, leave, is_refused) in [
            (LEFT_MAX / 2, &[][..], false),
            (LEFT_MAX + 4096, &[], true),
            (LEFT_MAX + 4096, &["/data"], false),
            (LEFT_MAX + 4096, &["/other"], true),
        ] {
            let planned = planned("data/x", bytes, leave);
            let refused = planned.check_left();
            assert_eq!(refused.is_err(), is_refused, "{bytes} {leave:?}");
            if let Err(error) = refused {
                assert!(error.to_string().contains("/data ("), "{error}");
            }
        }
    }

    #[test]
    fn packages_that_were_installed_by_hand_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let apt = dir.path().join("var/lib/apt");
        fs::create_dir_all(&apt).unwrap();
        let states = "Package: libx\nArchitecture: amd64\nAuto-Installed: 1\n";
        fs::write(apt.join("extended_states"), states).unwrap();
        let versions = |names: &[&str]| -> Versions {
            let names = names.iter();
            names
                .map(|name| (name.to_string(), "1".to_owned()))
                .collect()
        };
        let of_dpkg = [
            versions(&["app", "bash", "libx:amd64"]),
            versions(&["app", "bash", "htop", "libx:amd64"]),
            versions(&["bash"]),
        ];
        let of_rpm = [
            versions(&["app.noarch", "bash.x86_64"]),
            versions(&[
                "app.noarch",
                "bash.x86_64",
                "gpg-pubkey.(none)",
                "htop.x86_64",
            ]),
            versions(&["bash.x86_64"]),
        ];
        for (all, is_adopted, wanted) in [
            (&of_dpkg, false, &["htop"][..]),
            (&of_dpkg, true, &["app", "htop"]),
            (&of_rpm, false, &["htop.x86_64"]),
            (&of_rpm, true, &["app.noarch", "htop.x86_64"]),
        ] {
            let sides = Sides {
                old: Tree::Running,
                layer: Tree::Running,
                is_snapshot: true,
                is_adopted,
            };
            let root = Dir::root(dir.path()).unwrap();
            let found = own_packages(&sides, &root, all);
            assert_eq!(found.unwrap(), wanted);
        }
    }

    #[test]
    fn what_comes_along_has_to_fit() {
        let planned = planned("home/a/x", 10_000, &[]);
        assert!(planned.check_left().is_ok());
        assert!(planned.check_room(1 << 20).is_ok());
        let error = planned.check_room(9_000).unwrap_err().to_string();
        assert!(
            error.contains("`imgbased-helper volume add /home`"),
            "{error}"
        );
    }

    #[test]
    fn volumes_are_told_by_their_tags() {
        let group = Group::with(vec![
            Volume::tagged("Config", &[tag::VOLUME]),
            Volume::tagged("var", &[tag::VOLUME, "imgbased:mount=/var"]),
        ]);
        assert_eq!(shared_paths(&group), [PathBuf::from("/var")]);
    }
}
