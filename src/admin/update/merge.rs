//! The merge of what the running layer has changed into the root of the next one.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::admin::merge_report::MergeReport;
use crate::admin::roots::{self, Tree};
use crate::admin::space::Space;
use crate::admin::volume::record_new_in_var;
use crate::admin::{Context, initramfs, packages, persist, pool_with_room, text};
use crate::merge::{self, Ids, LAYER, NEW, OLD, Outside, Plan};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::persist::Rules;
use crate::model::volume;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, escaped};

/// What is left behind without a word, in bytes.
const LEFT_MAX: u64 = 1 << 20;
/// What a file takes beside its content, in bytes.
const FILE: u64 = 4096;

/// The roots of a merge by their names.
pub struct Sides {
    pub old: Tree,
    pub layer: Tree,
    pub is_snapshot: bool,
}

impl Sides {
    pub fn of(group: &Group) -> Result<Self> {
        let old = Tree::Volume(roots::base_of_running(group)?);
        let layer = roots::named(group, Tree::Running)?;
        let is_snapshot = roots::have_one_origin(group, &old, &layer);
        Ok(Self {
            old,
            layer,
            is_snapshot,
        })
    }

    /// Their names, and that of the new base.
    pub fn names(&self, new: &dyn Display) -> [String; 3] {
        [
            self.old.to_string(),
            self.layer.to_string(),
            new.to_string(),
        ]
    }

    /// Carries once more what the layer has changed outside of /etc since `root` was made. What was deleted since
    /// stays there.
    pub fn carry_again(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        told: &Told,
        root: &Path,
    ) -> Result<()> {
        self.opened(context, tx, group, |tx, [old, layer]| {
            let copy = Dir::root(root)?;
            tx.work(&"what was written since comes along", |interrupt| {
                let go_on = || interrupt.check();
                let roots = [old, layer, &copy];
                let planned = plan(roots, self.is_snapshot, told, &go_on)?;
                planned.check_room(room_in(context, root)?)?;
                warn_of("/", &planned.outside.apply(roots, &go_on)?);
                Ok(())
            })
        })
    }

    /// Hands over the roots of the old base and of the layer, to be read.
    pub fn opened<T>(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        look: impl FnOnce(&mut Transaction, [&Dir; 2]) -> Result<T>,
    ) -> Result<T> {
        let found = roots::opened(context, tx, group, &self.layer, |tx, layer| {
            roots::opened(context, tx, group, &self.old, |tx, old| {
                look(tx, [&Dir::root(old)?, &Dir::root(layer)?])
            })
        })?;
        found.flatten().context("this is no dry run")
    }
}

/// What is to be done with the paths outside of /etc, beside what is usual.
pub struct Told {
    listed: Rules,
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
        Ok(Self {
            listed: persist::listed(context, tx, group)?,
            volumes: shared_paths(group),
            leave,
            carried: Vec::new(),
        })
    }

    /// Has these paths be carried as well, which were carried to a layer that is made.
    pub fn again(self, carried: &[PathBuf]) -> Self {
        Self {
            carried: carried.to_owned(),
            ..self
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

/// Plans the merge of the roots of the old base, the layer and the new base. `go_on` ends the work by its error.
pub fn plan(
    roots: [&Dir; 3],
    is_snapshot: bool,
    told: &Told,
    go_on: &dyn Fn() -> Result<()>,
) -> Result<Planned> {
    let of = |side: usize| packages::of(roots[side]);
    let (old, layer, new) = (of(OLD)?, of(LAYER)?, of(NEW)?);
    let plan = Plan::of(roots, is_snapshot)?;
    go_on()?;
    let carried = told.carried([roots[OLD], roots[LAYER]])?;
    let rules = merge::Rules {
        carried: &carried,
        volumes: &told.volumes,
        leave: &told.leave,
        packages: [&old, &layer, &new],
    };
    let outside = Outside::of(roots, is_snapshot, &rules, &plan, go_on)?;
    let is_left = |name: &&String| !old.contains_key(*name) && !new.contains_key(*name);
    Ok(Planned {
        plan,
        outside,
        packages: layer.keys().filter(is_left).cloned().collect(),
    })
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
    fn check_room(&self, room: u64) -> Result<()> {
        let files = self.outside.carried_files.saturating_mul(FILE);
        let needed = self.outside.carried_bytes.saturating_add(files);
        let largest = self.outside.carried.iter().max_by_key(|of| of.bytes);
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

/// What a merge has done.
pub struct Merged {
    pub report: MergeReport,
    pub outside: Outside,
    pub packages: Vec<String>,
    /// What was merged in /etc, to tell what is edited later.
    pub list: String,
    pub ids: Ids,
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
    sides.opened(context, tx, group, |tx, [old, layer]| {
        let copy = Dir::root(root)?;
        let mut new_in_var = Vec::new();
        let mut found = None;
        tx.unlocked(|tx| {
            tx.work(&"the merge of what was changed", |interrupt| {
                let go_on = || interrupt.check();
                let roots = [old, layer, &copy];
                let list = merge::listing(layer)?;
                new_in_var = merge::new_in_var(old, &copy, &go_on)?;
                let planned = plan(roots, sides.is_snapshot, told, &go_on)?;
                planned.check_left()?;
                planned.check_room(room_in(context, root)?)?;
                merge::reown(&copy, &planned.plan.users.ids)?;
                go_on()?;
                let left = merge::apply(&planned.plan, layer, &copy)?;
                warn_of("/etc/", &left);
                warn_of("/", &planned.outside.apply(roots, &go_on)?);
                found = Some(Merged {
                    report: MergeReport::of(names, &planned.plan),
                    outside: planned.outside,
                    packages: planned.packages,
                    list,
                    for_initramfs: for_initramfs(&planned.plan),
                    ids: planned.plan.users.ids,
                });
                Ok(())
            })
        })?;
        let mut merged = found.context("the work is done")?;
        merged.report.pending = true;
        merged.report.write(tx, root)?;
        record_new_in_var(tx, root, &new_in_var)?;
        Ok(merged)
    })
}

/// The paths of /etc that an initramfs can hold, and that are not as in the new base.
fn for_initramfs(plan: &Plan) -> Vec<PathBuf> {
    let changed = plan.items.iter();
    let changed = changed.filter(|item| !matches!(item.action, merge::Action::Nothing));
    let paths = changed.map(|item| item.path.clone());
    paths.filter(|path| initramfs::can_hold(path)).collect()
}

/// The bytes that can be written to the filesystem of a layer that is mounted at `root`: there, and in its pool.
fn room_in(context: &Context, root: &Path) -> Result<u64> {
    let Space { free, .. } = Space::at(root)?;
    Ok(free.min(pool_with_room(&context.load()?)?))
}

fn warn_of(above: &str, paths: &[PathBuf]) {
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
            volumes: Vec::new(),
            leave: leave.iter().map(PathBuf::from).collect(),
            carried: Vec::new(),
        };
        let [old, layer, new] = roots.each_ref().map(|root| Dir::root(root).unwrap());
        plan([&old, &layer, &new], false, &told, &|| Ok(())).unwrap()
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
