//! What becomes of all that is outside of /etc: some of it is carried, the rest is the image's, and of that is
//! said what the layer has changed.
//!
//! A tree can be larger than memory has room for. So nothing is kept of what is simply carried: it is decided on
//! once to count it, and once more when it is done.

mod again;
mod left;
mod packages;
mod record;
mod zone;

pub use again::{Again, Staged};
pub use left::Left;
pub use packages::Package;
pub use record::{Changed, Record};
pub use zone::Zones;
pub(super) use zone::as_written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use self::left::{Search, Seen, Sum, Sums};
use self::packages::Packages;
use self::zone::Zone;
use super::apply::Applier;
use super::class::Class;
use super::conffiles::Conffiles;
use super::decide::Clash;
use super::owners::Owners;
use super::plan::{Action, Content, Item, Plan, Planner, Scope, Verdict};
use super::{LAYER, NEW};
use crate::tree::{Below, Dir, Kind, Stat, Visit, escaped, walk};

/// So many items with a conflict are kept for people, and so many others; the rest is counted.
const ITEMS_MAX: usize = 1000;

/// Takes where it was begun to carry, a path, and what is done there and above it.
type Each<'a> = dyn FnMut(&Path, &Visit, Vec<Item>) -> Result<()> + 'a;

/// What a host and its admin say about paths, which are absolute.
pub struct Rules<'a> {
    /// What is carried beside the defaults.
    pub carried: &'a [PathBuf],
    /// Where volumes are mounted.
    pub volumes: &'a [PathBuf],
    /// What is knowingly left behind, also where it would be carried.
    pub leave: &'a [PathBuf],
    /// The packages of each root with their versions, as dpkg names their lists: `NAME` or `NAME:ARCHITECTURE`.
    pub packages: [&'a BTreeMap<String, String>; 3],
    /// Whether the old base was adopted, as for the plan of /etc.
    pub is_adopted: bool,
}

impl Default for Rules<'_> {
    /// Nobody has said anything.
    fn default() -> Self {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        Self {
            carried: &[],
            volumes: &[],
            leave: &[],
            packages: [&NONE; 3],
            is_adopted: false,
        }
    }
}

/// What is outside of /etc, and what becomes of it.
pub struct Outside {
    /// What there is to say of carried paths, from the root: conflicts, what cannot be carried, and links that lead
    /// to nothing.
    pub items: Vec<Item>,
    /// How many of them are conflicts and how many cannot be carried, with those that are not in `items`.
    pub conflicts: usize,
    pub not_carried: usize,
    /// How many are not in `items`, without a conflict and with one.
    pub more_items: [usize; 2],
    /// What is carried, by the directories that are: the space that the copies take, and how many they are.
    pub carried: Vec<Amount>,
    pub carried_bytes: u64,
    pub carried_files: u64,
    /// In the order of their paths.
    pub left: Vec<Left>,
    /// Packages that only the layer has. Their files are not in `left`.
    pub packages: Vec<Package>,
    zones: Zones,
    owners: Owners,
    is_snapshot: bool,
    is_adopted: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Amount {
    /// From the root.
    pub path: PathBuf,
    pub bytes: u64,
    pub files: u64,
}

impl Outside {
    /// Looks at the roots of the old base, the layer and the new base, whose files still have the numbers of their
    /// image. `plan` is that of their /etc, and `is_snapshot` is as for that. `interrupt` is asked at each path, and
    /// its error ends the work. Refuses rules with paths that are not absolute. Nothing is changed.
    pub fn of(
        roots: [&Dir; 3],
        is_snapshot: bool,
        rules: &Rules,
        plan: &Plan,
        interrupt: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let zones = Zones::of_roots(roots, rules)?;
        let packages =
            Packages::of(roots[LAYER], rules).context("cannot read the lists of dpkg")?;
        let search = Search {
            zones: &zones,
            owners: &plan.owners,
            packages: &packages,
            is_snapshot,
            is_adopted: rules.is_adopted,
            interrupt,
        };
        let (left, packages) = search.run(roots)?;
        let mut outside = Self {
            items: Vec::new(),
            conflicts: 0,
            not_carried: 0,
            more_items: [0; 2],
            carried: Vec::new(),
            carried_bytes: 0,
            carried_files: 0,
            left: Vec::new(),
            packages,
            zones,
            owners: plan.owners.clone(),
            is_snapshot,
            is_adopted: plan.is_adopted,
        };
        outside.count(roots, left, interrupt)?;
        Ok(outside)
    }

    /// What becomes of each path.
    pub fn zones(&self) -> &Zones {
        &self.zones
    }

    /// Carries what is to be into the copy of the new base, which takes its place in `roots`: it holds what that
    /// holds, with the numbers that owners have on the host ([`super::reown`]).
    /// Returns the paths, from the root, that had no place, which are left out.
    pub fn apply(
        &self,
        roots: [&Dir; 3],
        interrupt: &dyn Fn() -> Result<()>,
    ) -> Result<Vec<PathBuf>> {
        let (layer, copy) = (roots[LAYER].again()?, roots[NEW].again()?);
        let mut applier = Applier::new("", Some(layer), copy);
        let owners = self.owners.on_host();
        self.carry(roots, &owners, interrupt, &mut |_, _, items| {
            let mut items = items.iter();
            items.try_for_each(|item| applier.item(&item.path, &item.action))
        })?;
        applier.finish()
    }

    /// The bytes that are left behind without anybody having said so, but for those of packages.
    pub fn unknown_bytes(&self) -> u64 {
        let unknown = self.left.iter().filter(|left| !left.is_known);
        unknown.map(|left| left.bytes).sum()
    }

    /// Counts what is carried, and adds what cannot be to what is `left`.
    fn count(
        &mut self,
        roots: [&Dir; 3],
        left: Sums,
        interrupt: &dyn Fn() -> Result<()>,
    ) -> Result<()> {
        let mut tally = Tally {
            left,
            ..Tally::default()
        };
        self.carry(roots, &self.owners, interrupt, &mut |top, visit, items| {
            let layer = visit.places.get(LAYER).and_then(Option::as_ref);
            for item in items {
                let is_of_path = item.path == visit.path;
                let stat = layer.map(|place| &place.stat).filter(|_| is_of_path);
                tally.add(top, stat, item);
            }
            Ok(())
        })?;
        (self.items, self.more_items) = (tally.items, tally.more_items);
        (self.conflicts, self.not_carried) = (tally.conflicts, tally.not_carried);
        for (path, Sum { bytes, files }) in tally.carried {
            self.carried_bytes += bytes;
            self.carried_files += files;
            self.carried.push(Amount { path, bytes, files });
        }
        self.left = tally.left.list(&self.zones);
        Ok(())
    }

    fn carry(
        &self,
        roots: [&Dir; 3],
        owners: &Owners,
        interrupt: &dyn Fn() -> Result<()>,
        each: &mut Each,
    ) -> Result<()> {
        let carrier = Carrier {
            zones: &self.zones,
            owners,
            is_snapshot: self.is_snapshot,
            is_adopted: self.is_adopted,
            interrupt,
        };
        carrier.run(roots, None, &|_| true, each)
    }
}

/// Decides on what is carried.
struct Carrier<'a> {
    zones: &'a Zones,
    owners: &'a Owners,
    is_snapshot: bool,
    is_adopted: bool,
    interrupt: &'a dyn Fn() -> Result<()>,
}

impl Carrier<'_> {
    /// Decides on the paths that are wanted: with one also those above it are. In `beside`, which is visited as a
    /// fourth tree, can be what the three have no more.
    fn run(
        &self,
        roots: [&Dir; 3],
        beside: Option<&Dir>,
        is_wanted: &dyn Fn(&Path) -> bool,
        each: &mut Each,
    ) -> Result<()> {
        let comes = |target: &Path| -> Result<bool> {
            // Many a program keeps its state in links that lead nowhere.
            Ok(self.zones.brings(target) || roots[LAYER].resolve(target)?.is_none())
        };
        // The defaults of packages are in /etc.
        let conffiles = Conffiles::default();
        let scope = Scope {
            top: "",
            class: |_, _| Class::Plain,
            comes: &comes,
            adopted: self.is_adopted.then_some(&conffiles),
        };
        let mut planner = Planner::new(roots, self.owners, self.is_snapshot, scope);
        let trees: Vec<&Dir> = roots.into_iter().chain(beside).collect();
        let tops = self.zones.tops(|zone| zone == Zone::Carried).into_iter();
        for top in tops.filter(|top| is_wanted(top)) {
            let cannot = |path: &Path| format!("cannot carry /{}", escaped(path));
            planner.begin(top).with_context(|| cannot(top))?;
            walk_below(&trees, top, &mut |visit| {
                (self.interrupt)()?;
                let zone = self.zones.at(visit.path).unwrap_or(Zone::Carried);
                if !matches!(zone, Zone::Carried | Zone::Volume) || !is_wanted(visit.path) {
                    return Ok(Below::Skip);
                }
                let below = planner.visit(&visit.of_first(roots.len()));
                let below = below.with_context(|| cannot(visit.path))?;
                each(top, visit, planner.taken())?;
                // A volume is mounted on the directory as it is in the layer.
                Ok(if zone == Zone::Volume {
                    Below::Skip
                } else {
                    below
                })
            })?;
        }
        Ok(())
    }
}

/// What is kept of the items.
#[derive(Default)]
struct Tally {
    items: Vec<Item>,
    conflicts: usize,
    not_carried: usize,
    others: usize,
    more_items: [usize; 2],
    carried: BTreeMap<PathBuf, Sum>,
    /// Also what has no place in the new base, since that needs another type there: by directory.
    left: Sums,
    seen: Seen,
}

impl Tally {
    /// Takes where it was begun to carry, and what the layer has at the path.
    fn add(&mut self, top: &Path, stat: Option<&Stat>, item: Item) {
        let path = &item.path;
        let is_lost = item.verdict == Verdict::Conflict(Clash::Type)
            && matches!(item.action, Action::Nothing)
            && stat.is_some_and(|stat| stat.kind != Kind::Dir);
        let is_put = matches!(&item.action, Action::Put(put) if put.content == Content::Layer);
        let sum = if is_lost {
            let above = path.parent().unwrap_or(Path::new(""));
            Some(self.left.of(above))
        } else if is_put && path.starts_with(top) {
            Some(self.carried.entry(top.to_owned()).or_default())
        } else {
            None
        };
        if let Some(sum) = sum {
            sum.add(stat.map_or(0, |stat| self.seen.bytes(stat)));
        }
        let is_conflict = matches!(item.verdict, Verdict::Conflict(_));
        let is_left = item.verdict == Verdict::Left;
        let seen = if is_conflict {
            &mut self.conflicts
        } else if is_left || item.note.is_some() {
            self.not_carried += usize::from(is_left);
            &mut self.others
        } else {
            return;
        };
        *seen += 1;
        if *seen > ITEMS_MAX {
            self.more_items[usize::from(is_conflict)] += 1;
        } else {
            self.items.push(item);
        }
    }
}

/// Visits a path of some roots and all that is below it, with whole paths.
fn walk_below(
    roots: &[&Dir],
    top: &Path,
    visit: &mut dyn FnMut(&Visit) -> Result<Below>,
) -> Result<()> {
    let above = top.parent().unwrap_or(Path::new(""));
    let open = |root: &&Dir| root.descend(above);
    let dirs = roots.iter().map(open).collect::<Result<Vec<_>, _>>();
    let dirs = dirs.with_context(|| format!("cannot open /{}", escaped(above)))?;
    walk(&dirs, top.file_name(), &mut |within| {
        visit(&within.called(&above.join(within.path)))
    })
}
