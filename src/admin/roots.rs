//! The roots that a verb looks into: those of bases and layers, what runs, and directories.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use super::filesystem::{self, mount_point};
use super::look::Look;
use super::{Context, comment, view};
use crate::merge::Plan;
use crate::model::layout::{Group, Role, Volume};
use crate::model::name::LvName;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// A root by the name that a person gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tree {
    /// What runs: a layer, or a base with its volatile overlay.
    Running,
    Volume(LvName),
    Directory(PathBuf),
}

impl FromStr for Tree {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "." {
            return Ok(Self::Running);
        }
        // No volume has a slash in its name.
        if text.contains('/') {
            return Ok(Self::Directory(text.into()));
        }
        Ok(Self::Volume(text.parse()?))
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running => f.write_str("what runs"),
            Self::Volume(name) => name.fmt(f),
            Self::Directory(path) => path.display().fmt(f),
        }
    }
}

/// The same root by its own name, if it has one. Refuses a volume that is neither base nor layer.
pub fn named(group: &Group, tree: Tree) -> Result<Tree> {
    match tree {
        // A base that runs is below its overlay.
        Tree::Running => Ok(view::booted_layer(group)?.map_or(Tree::Running, Tree::Volume)),
        Tree::Volume(name) if !group.bootable().contains(&name) => {
            bail!("{} has no base or layer {name}", group.name)
        }
        tree => Ok(tree),
    }
}

/// The base that what runs was made from. Refuses when nothing of the group runs.
pub fn base_of_running(group: &Group) -> Result<LvName> {
    let name = view::booted(group)?.context("no layer is booted; name a base or layer")?;
    let volume = group.volume(&name).context("what runs is in the group")?;
    if volume.role == Role::Base {
        return name.parse();
    }
    group
        .base_of(volume)
        .with_context(|| format!("the base of {name} is gone"))
}

/// The base that was added last. Refuses when there is none.
pub fn latest_base(group: &Group) -> Result<LvName> {
    let base = group.bases().pop();
    base.map(|base| base.name)
        .with_context(|| format!("{} has no base", group.name))
}

/// The root that was named, or that of the base of what runs.
pub fn or_base_of_running(group: &Group, tree: Option<Tree>) -> Result<Tree> {
    match tree {
        Some(tree) => named(group, tree),
        None => base_of_running(group).map(Tree::Volume),
    }
}

/// Whether both are snapshots of one base, or one is that base: then what has the same inode and time of
/// change is the same file.
pub fn have_one_origin(group: &Group, a: &Tree, b: &Tree) -> bool {
    let origin = |tree: &Tree| match tree {
        Tree::Volume(name) => {
            let volume = group.volume(name.as_str())?;
            group.base_of(volume).or_else(|| Some(name.clone()))
        }
        _ => None,
    };
    let is_base = |tree: &Tree| match tree {
        Tree::Volume(name) => {
            let volume = group.volume(name.as_str());
            volume.is_some_and(|volume| volume.role == Role::Base)
        }
        _ => false,
    };
    origin(a).is_some() && origin(a) == origin(b) && !(is_base(a) && is_base(b))
}

/// Hands over where a root is mounted, to be read. A dry run reads nothing, and nothing is returned.
pub fn opened<T>(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    tree: &Tree,
    look: impl FnOnce(&mut Transaction, &Path) -> Result<T>,
) -> Result<Option<T>> {
    if context.dry_run {
        comment(&format!("{tree} is read"))?;
        return Ok(None);
    }
    let (place, dir) = match tree {
        Tree::Directory(path) => return look(tx, path).map(Some),
        Tree::Running => (Look::at_running(), mount_point("running")),
        Tree::Volume(name) => (Look::at(context, group, name)?, mount_point(name.as_str())),
    };
    let is_layer = match tree {
        Tree::Volume(name) => group
            .volume(name.as_str())
            .is_some_and(|volume| volume.role == Role::Layer),
        _ => false,
    };
    let mounted = if is_layer {
        // One that was not shut down has its journal replayed.
        place.mounted_and_replayed(&dir)?
    } else {
        place.mounted(&dir)?
    };
    let found = look(tx, &dir)?;
    drop(mounted);
    Ok(Some(found))
}

/// The roots of a merge, but for the new one.
pub struct Sides {
    pub old: Tree,
    pub layer: Tree,
    /// Whether the layer is a snapshot of the old base.
    pub is_snapshot: bool,
    /// Whether the old base is the host as it was installed, and no image.
    pub is_adopted: bool,
}

impl Sides {
    /// Those of what runs.
    pub fn of(group: &Group) -> Result<Self> {
        let base = base_of_running(group)?;
        let is_adopted = group.volume(base.as_str()).is_some_and(Volume::is_adopted);
        let old = Tree::Volume(base);
        let layer = named(group, Tree::Running)?;
        let is_snapshot = have_one_origin(group, &old, &layer);
        Ok(Self {
            old,
            layer,
            is_snapshot,
            is_adopted,
        })
    }

    /// Plans the merge of their /etc with that of a new base.
    pub fn plan(&self, roots: [&Dir; 3]) -> Result<Plan> {
        if self.is_adopted {
            Plan::of_adopted(roots, self.is_snapshot)
        } else {
            Plan::of(roots, self.is_snapshot)
        }
    }

    /// Their names, and that of the new base.
    pub fn names(&self, new: &dyn fmt::Display) -> [String; 3] {
        [
            self.old.to_string(),
            self.layer.to_string(),
            new.to_string(),
        ]
    }

    /// Hands over where the old base and the layer are mounted, to be read. In a dry run nothing is returned.
    pub fn opened<T>(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        look: impl FnOnce(&mut Transaction, [&Path; 2]) -> Result<T>,
    ) -> Result<Option<T>> {
        let found = opened(context, tx, group, &self.layer, |tx, layer| {
            opened(context, tx, group, &self.old, |tx, old| {
                look(tx, [old, layer])
            })
        })?;
        Ok(found.flatten())
    }

    /// The same with a new base.
    pub fn opened_with<T>(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        new: &Tree,
        look: impl FnOnce(&mut Transaction, [&Path; 3]) -> Result<T>,
    ) -> Result<Option<T>> {
        let found = self.opened(context, tx, group, |tx, [old, layer]| {
            if *new == self.old {
                return look(tx, [old, layer, old]).map(Some);
            }
            opened(context, tx, group, new, |tx, new| {
                look(tx, [old, layer, new])
            })
        })?;
        Ok(found.flatten())
    }
}

/// Hands over where a root is mounted for a program that is given it, and that a dry run shows with its mounts.
pub fn mounted<T>(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    tree: &Tree,
    work: impl FnOnce(&mut Transaction, &Path) -> Result<T>,
) -> Result<T> {
    let name = match tree {
        Tree::Running => None,
        Tree::Volume(name) => {
            let volume = group.volume(name.as_str()).context("it is in the group")?;
            let is_running = view::booted_layer(group)?.as_ref() == Some(name);
            (!is_running).then_some((name, volume))
        }
        Tree::Directory(path) => return work(tx, path),
    };
    let Some((name, volume)) = name else {
        // Without what is mounted below it.
        let dir = mount_point("running");
        let mounted = filesystem::mount_again(tx, Path::new("/"), &dir)?;
        let done = work(tx, &dir)?;
        mounted.unmount(tx)?;
        return Ok(done);
    };
    context.activated(tx, name, volume.active, |tx| {
        let filesystem = context.filesystem(name, name)?;
        let dir = mount_point(name.as_str());
        // A layer that was not shut down has its journal replayed.
        let options = if volume.role == Role::Base {
            filesystem.untouched()
        } else {
            "ro"
        };
        let mounted = filesystem.mount(tx, &dir, options)?;
        let done = work(tx, &dir)?;
        mounted.unmount(tx)?;
        Ok(done)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::tag;

    fn group() -> Group {
        let volume = Volume::tagged;
        Group::with(vec![
            volume("Base-0", &[tag::BASE]),
            volume("Base-0.1", &[tag::LAYER]),
            volume("Base-0.2", &[tag::LAYER]),
            volume("Base-1", &[tag::BASE]),
            volume("Base-1.1", &[tag::LAYER]),
            volume("Config", &[tag::VOLUME]),
        ])
    }

    #[test]
    fn a_slash_makes_a_directory_of_a_name() {
        for (text, tree) in [
            (".", Tree::Running),
            ("./x", Tree::Directory("./x".into())),
            ("/", Tree::Directory("/".into())),
            ("Base-0.1", Tree::Volume("Base-0.1".parse().unwrap())),
        ] {
            assert_eq!(text.parse::<Tree>().unwrap(), tree, "{text}");
        }
        assert!("a b".parse::<Tree>().is_err());
    }

    #[test]
    fn only_bases_and_layers_have_a_root() {
        let found = |name: &str| named(&group(), name.parse().unwrap());
        assert!(found("Base-0").is_ok() && found("Base-1.1").is_ok() && found("/").is_ok());
        for name in ["Config", "Base-2"] {
            let error = found(name).unwrap_err().to_string();
            assert_eq!(error, format!("HostVG has no base or layer {name}"));
        }
        assert_eq!(latest_base(&group()).unwrap().as_str(), "Base-1");
    }

    #[test]
    fn snapshots_of_one_base_have_one_origin() {
        for (a, b, wanted) in [
            ("Base-0", "Base-0.1", true),
            ("Base-0.2", "Base-0", true),
            ("Base-0.1", "Base-0.2", true),
            ("Base-0.1", "Base-1.1", false),
            // The image of one can have been written over the blocks of the other.
            ("Base-0", "Base-1", false),
            ("Base-0", "/", false),
            ("/", "/", false),
            (".", "Base-0", false),
        ] {
            let [of_a, of_b] = [a, b].map(|name| name.parse().unwrap());
            assert_eq!(have_one_origin(&group(), &of_a, &of_b), wanted, "{a} {b}");
        }
    }
}
