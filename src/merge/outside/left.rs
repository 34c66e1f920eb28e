//! What a layer has changed where nothing is carried.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::packages::{Package, Packages, Source};
use super::walk_below;
use super::zone::{Zone, Zones, is_made, may_be_of_image};
use crate::merge::owners::Owners;
use crate::merge::{LAYER, NEW, OLD};
use crate::tree::{Below, Dir, Id, Kind, Node, Place, Stat, Visit, Xattrs, escaped};

/// So many entries at most; what is found after them is in the entry of `/`.
const ENTRIES_MAX: usize = 1000;

/// What is left behind in one place, from the root: a directory that the old base does not have with all that is
/// below it, a path that was named, what is changed directly in a directory that both have, or a file of the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    pub path: PathBuf,
    pub bytes: u64,
    pub files: u64,
    /// Whether a person has said that it is.
    pub is_known: bool,
}

/// The bytes of files, each once, and how many names they have.
#[derive(Clone, Copy, Default)]
pub struct Sum {
    pub bytes: u64,
    pub files: u64,
}

impl Sum {
    pub fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.files += 1;
    }
}

/// What is left behind, by the paths of [`Left`].
#[derive(Default)]
pub struct Sums(BTreeMap<PathBuf, Sum>);

impl Sums {
    /// The sum of an entry.
    pub fn of(&mut self, entry: &Path) -> &mut Sum {
        let is_listed = self.0.len() < ENTRIES_MAX || self.0.contains_key(entry);
        let entry = if is_listed { entry } else { Path::new("") };
        self.0.entry(entry.to_owned()).or_default()
    }

    /// In the order of paths.
    pub fn list(self, zones: &Zones) -> Vec<Left> {
        let left = self.0.into_iter().map(|(path, sum)| Left {
            bytes: sum.bytes,
            files: sum.files,
            is_known: zones.at(&path) == Some(Zone::Left),
            path,
        });
        left.collect()
    }
}

/// Which files of several names were counted.
#[derive(Default)]
pub struct Seen(BTreeSet<Id>);

impl Seen {
    /// What a file takes, if it was not counted under another name. Bytes that it does not have are none.
    pub fn bytes(&mut self, stat: &Stat) -> u64 {
        let is_counted = stat.kind != Kind::File || stat.links > 1 && !self.0.insert(stat.id);
        if is_counted {
            0
        } else {
            stat.size.min(stat.used)
        }
    }
}

/// The search for what is left behind.
pub struct Search<'a> {
    pub zones: &'a Zones,
    pub owners: &'a Owners,
    pub packages: &'a Packages,
    pub is_snapshot: bool,
    /// Whether the old base is the host as it was installed.
    pub is_adopted: bool,
    pub interrupt: &'a dyn Fn() -> Result<()>,
}

#[derive(Default)]
struct Found {
    left: Sums,
    /// By the names of packages.
    packages: Vec<Sum>,
    seen: Seen,
    /// The base that the layer is compared with.
    side: usize,
    /// The directory that this base does not have and that the path is in.
    new_dir: PathBuf,
}

impl Search<'_> {
    /// Compares the layer with the old base, and what is of an adopted host with the new one.
    pub fn run(&self, roots: [&Dir; 3]) -> Result<(Sums, Vec<Package>)> {
        let mut found = Found {
            packages: vec![Sum::default(); self.packages.names().len()],
            ..Found::default()
        };
        let tops = self.zones.tops(is_left).into_iter();
        let mut tops: Vec<PathBuf> = tops.map(Path::to_owned).collect();
        if self.is_adopted {
            let names = roots[LAYER].names().context("cannot read the root")?;
            let own = names.into_iter().map(PathBuf::from);
            tops.extend(own.filter(|name| self.is_of_host(name) && is_left(self.zones.of(name))));
        }
        for top in tops {
            found.new_dir = PathBuf::new();
            found.side = if self.is_of_host(&top) { NEW } else { OLD };
            walk_below(&[roots[found.side], roots[LAYER]], &top, &mut |visit| {
                (self.interrupt)()?;
                // It is compared by itself.
                if self.is_of_host(visit.path) && found.side == OLD {
                    return Ok(Below::Skip);
                }
                self.visit(&mut found, visit)
                    .with_context(|| format!("cannot compare /{}", escaped(visit.path)))
            })?;
        }
        let packages = self.packages.names().iter().zip(found.packages);
        let packages = packages.filter(|(_, sum)| sum.files > 0);
        let packages = packages.map(|(name, sum)| Package {
            name: name.clone(),
            bytes: sum.bytes,
            files: sum.files,
        });
        Ok((found.left, packages.collect()))
    }

    /// Whether a path of an adopted host is below a name of the root that is the host's own. The old base has that as
    /// well, as it was installed.
    fn is_of_host(&self, path: &Path) -> bool {
        self.is_adopted && path.iter().next().is_some_and(|top| !may_be_of_image(top))
    }

    fn visit(&self, found: &mut Found, visit: &Visit) -> Result<Below> {
        let path = visit.path;
        let [old, Some(layer)] = visit.places else {
            return Ok(Below::Skip);
        };
        if self.zones.at(path).is_some_and(|zone| !is_left(zone)) {
            return Ok(Below::Skip);
        }
        let is_in_new = !found.new_dir.as_os_str().is_empty() && path.starts_with(&found.new_dir);
        if layer.stat.kind == Kind::Dir {
            let is_new = old.as_ref().is_none_or(|old| old.stat.kind != Kind::Dir);
            if is_new && !is_in_new {
                path.clone_into(&mut found.new_dir);
            }
            return Ok(Below::Visit);
        }
        let Some(is_content) = self.is_changed(found.side, old.as_ref(), layer)? else {
            return Ok(Below::Skip);
        };
        let bytes = if is_content {
            found.seen.bytes(&layer.stat)
        } else {
            0
        };
        if let Some(sum) = self.sum(found, path, is_in_new) {
            sum.add(bytes);
        }
        Ok(Below::Skip)
    }

    /// Where a changed file is counted; `None` if it is no loss.
    fn sum<'a>(&self, found: &'a mut Found, path: &Path, is_in_new: bool) -> Option<&'a mut Sum> {
        let (begin, zone) = self.zones.find(path);
        let entry = match self.packages.source(path) {
            _ if zone == Zone::Left => begin,
            Some(Source::Image) => return None,
            Some(Source::Package(number)) => return found.packages.get_mut(number),
            None if is_made(path) => return None,
            None if is_in_new => found.new_dir.as_path(),
            None => match path.parent() {
                Some(above) if !above.as_os_str().is_empty() => above,
                _ => path,
            },
        };
        Some(found.left.of(entry))
    }

    /// Whether the content of what is no directory is another one than in the base of this side; `None` where all is as
    /// it is there.
    fn is_changed(&self, side: usize, old: Option<&Place>, layer: &Place) -> Result<Option<bool>> {
        if layer.stat.kind == Kind::Socket {
            return Ok(None);
        }
        let Some(old) = old.filter(|old| old.stat.kind == layer.stat.kind) else {
            return Ok(Some(true));
        };
        let (before, after) = (&old.stat, &layer.stat);
        let is_snapshot = self.is_snapshot && side == OLD;
        if is_snapshot && before.is_untouched(after) {
            return Ok(None);
        }
        let (Some(old), Some(layer)) = (old.node()?, layer.node()?) else {
            return Ok(None);
        };
        let is_same = match after.kind {
            Kind::File if before.size != after.size => false,
            // Of a snapshot is read only what was touched, and that can have got its former time back.
            Kind::File if !is_snapshot && before.mtime == after.mtime => true,
            Kind::File => old.has_same_content(&layer)?,
            Kind::Link => old.target()? == layer.target()?,
            _ => before.device == after.device,
        };
        if !is_same {
            return Ok(Some(true));
        }
        let is_same = before.mode == after.mode
            && self.owners.is_one(side, before, after)
            && attributes(&old)? == attributes(&layer)?;
        Ok((!is_same).then_some(false))
    }
}

/// But for the label, which is the policy's.
fn attributes(node: &Node) -> io::Result<Xattrs> {
    let mut attributes = node.xattrs()?;
    attributes.remove(OsStr::new("security.selinux"));
    Ok(attributes)
}

/// Whether what the layer has changed in a zone is left behind.
fn is_left(zone: Zone) -> bool {
    matches!(zone, Zone::Image | Zone::Left)
}
