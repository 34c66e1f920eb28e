//! What becomes of all of /etc, and how it is decided path by path, there and elsewhere. Nothing is changed here.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{io, mem};

use anyhow::{Context, Result};

use super::class::{Class, class};
use super::conffiles::Conffiles;
use super::decide::{Clash, Decision, Listed, Outcome, Owner, Part, State, Whose, decide};
use super::lines::{ByEntry, Format, by_entry};
use super::outside::{Zones, as_written};
use super::owners::Owners;
use super::users::{
    FILES, GROUP, GSHADOW, Merged, PASSWD, SHADOW, SystemIds, UserFiles, merge_users,
};
use super::{LAYER, NEW, OLD};
use crate::model::grub_defaults;
use crate::tree::{Below, Dir, Kind, Meta, Node, Place, Stat, Time, Visit, escaped, walk};

/// The directory that is merged.
pub(super) const ETC: &str = "etc";
/// The largest list that is merged by entry, in bytes. A larger one is merged as any file.
const LIST_MAX: u64 = 1 << 20;
/// The largest file of users, in bytes: of some hundred thousand.
const USERS_MAX: u64 = 16 << 20;
/// The mode of a file of secrets that no side has.
const SECRET: u32 = 0o600;

/// What is done to the copy of the new base, and what a person is told.
pub struct Plan {
    /// In the order in which they are done: a directory comes before what is in it.
    pub items: Vec<Item>,
    pub users: Merged,
    pub(super) owners: Owners,
    pub(super) is_adopted: bool,
}

/// A path that is not simply as in the new base.
#[derive(Debug)]
pub struct Item {
    /// Below /etc, or from the root where it is outside of that.
    pub path: PathBuf,
    pub action: Action,
    pub verdict: Verdict,
    pub parts: Vec<Part>,
    /// What the layer did to it, and what the new base did.
    pub ours: &'static str,
    pub theirs: &'static str,
    pub note: Option<String>,
}

/// Why a path is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As the layer has changed it.
    Kept,
    /// Of entries of both.
    Merged,
    /// As on this host, since it tells it from others.
    Host,
    /// Both have changed it.
    Conflict(Clash),
    /// What is there in the layer is not carried.
    Left,
}

/// What is done at a path of the copy.
#[derive(Debug)]
pub enum Action {
    Nothing,
    /// Removes it with all that is in it.
    Remove,
    /// Removes the directory if nothing is in it in the end.
    RemoveDir,
    Put(Put),
}

/// What is put there.
#[derive(Debug)]
pub struct Put {
    pub kind: Kind,
    pub content: Content,
    pub meta: Meta,
    /// That of the content, where it comes along.
    pub mtime: Option<Time>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    Layer,
    /// What is there already.
    New,
    Bytes(Vec<u8>),
}

impl Plan {
    /// Plans the merge of the roots of the old base, the layer and the new base. `is_snapshot` says that the layer
    /// is a snapshot of the old base, so that what was not touched is not read.
    pub fn of(roots: [&Dir; 3], is_snapshot: bool) -> Result<Self> {
        Self::with(roots, is_snapshot, false)
    }

    /// The same where the old base was adopted.
    pub fn of_adopted(roots: [&Dir; 3], is_snapshot: bool) -> Result<Self> {
        Self::with(roots, is_snapshot, true)
    }

    fn with(roots: [&Dir; 3], is_snapshot: bool, is_adopted: bool) -> Result<Self> {
        let of = |side: usize| roots[side].descend(Path::new(ETC));
        let of_image = etc_of_image(roots[OLD])?;
        let conffiles = if is_adopted && of_image.is_none() {
            Some(Conffiles::of(roots[OLD]).context("cannot read what dpkg knows of /etc")?)
        } else {
            None
        };
        let old = of_image.map_or_else(|| of(OLD), |etc| Ok(Some(etc)))?;
        let etc = [old, of(LAYER)?, of(NEW)?];
        let mut files: [UserFiles; 3] = Default::default();
        for (files, dir) in files.iter_mut().zip(&etc) {
            *files = user_files(dir.as_ref()).context("cannot read the users of a root")?;
        }
        let login_defs = match &etc[NEW] {
            Some(dir) => read(dir, "login.defs").context("cannot read login.defs")?,
            None => None,
        };
        let system = SystemIds::of(&login_defs.unwrap_or_default());
        let of_host = conffiles
            .is_some()
            .then(|| files[OLD].lacked_by(&files[LAYER]));
        let old = of_host.as_ref().unwrap_or(&files[OLD]);
        let users = merge_users([old, &files[LAYER], &files[NEW]], system);
        let owners = Owners::of(&files, &users);
        let zones = Zones::usual(roots, is_adopted)?;
        let scope = Scope {
            top: ETC,
            class,
            comes: &|target| Ok(zones.brings(target) && roots[LAYER].resolve(target)?.is_some()),
            adopted: conffiles.as_ref(),
        };
        let mut planner = Planner::new(roots, &owners, is_snapshot, scope);
        planner.grub_options = [
            // An installer has written what an adopted base has.
            if is_adopted {
                Some(Vec::new())
            } else {
                options_of_grub(etc[OLD].as_ref())?
            },
            options_of_grub(etc[LAYER].as_ref())?,
        ];
        walk(&etc, None, &mut |visit| {
            planner
                .visit(visit)
                .with_context(|| format!("cannot merge /etc/{}", escaped(visit.path)))
        })?;
        planner.user_files(&etc, &files, &users)?;
        let items = planner.taken();
        Ok(Self {
            items,
            users,
            owners,
            is_adopted,
        })
    }
}

/// The /etc of the old base as its image has it, if that is elsewhere. An image of oVirt Node has a copy of it: the first
/// base of such a host is what its installer has made of the image, and what that has written there is the host's.
fn etc_of_image(base: &Dir) -> io::Result<Option<Dir>> {
    const NAME: &str = "usr/share/imgbase/build/meta/nvr";
    const COPY: &str = "usr/share/factory/etc";
    if base.resolve(Path::new(NAME))?.is_none() {
        return Ok(None);
    }
    base.descend(Path::new(COPY))
}

/// One side of a path, looked at.
struct Side {
    node: Node,
    state: State,
}

/// What holds for all that is below a path.
struct Under {
    path: PathBuf,
    /// Whether the new base has no directory there any more; else the layer has none.
    is_of_new: bool,
    /// The item of the path, if it has one.
    item: Option<usize>,
}

/// Which paths are planned, and how.
#[derive(Clone, Copy)]
pub(super) struct Scope<'a> {
    /// Where the paths begin, from the root.
    pub top: &'static str,
    /// As [`class`].
    pub class: fn(&Path, bool) -> Class,
    /// Whether there is no need to say that a link leads to this path, from the root, where the new base has
    /// nothing.
    pub comes: &'a dyn Fn(&Path) -> Result<bool>,
    /// Where the old base was adopted: the files of it that are as a package has brought them.
    pub adopted: Option<&'a Conffiles>,
}

/// Decides on each path that it visits.
pub(super) struct Planner<'a> {
    roots: [&'a Dir; 3],
    owners: &'a Owners,
    is_snapshot: bool,
    scope: Scope<'a>,
    items: Vec<Item>,
    /// Directories of the layer that the new base does not have, and that come only with something in them.
    pending: Vec<Item>,
    under: Option<Under>,
    /// The kernel options in /etc/default/grub of the old base and of the layer; `None` where only a shell could read
    /// them. They count where there is no /etc/kernel/cmdline.
    grub_options: [Option<Vec<u8>>; 2],
}

impl<'a> Planner<'a> {
    pub fn new(
        roots: [&'a Dir; 3],
        owners: &'a Owners,
        is_snapshot: bool,
        scope: Scope<'a>,
    ) -> Self {
        Self {
            roots,
            owners,
            is_snapshot,
            scope,
            items: Vec::new(),
            pending: Vec::new(),
            under: None,
            grub_options: Default::default(),
        }
    }

    /// Hands over the items that there are. What is below them does not change them any more.
    pub fn taken(&mut self) -> Vec<Item> {
        if let Some(under) = &mut self.under {
            under.item = None;
        }
        mem::take(&mut self.items)
    }

    /// Begins with a path from the root whose directories the new base may lack.
    pub fn begin(&mut self, path: &Path) -> Result<()> {
        (self.under, self.pending) = (None, Vec::new());
        let mut above: Vec<&Path> = path.ancestors().skip(1).collect();
        above.reverse();
        for path in above {
            let (Some(within), Some(name)) = (path.parent(), path.file_name()) else {
                continue;
            };
            if self.roots[NEW].descend(path)?.is_some() {
                continue;
            }
            let node = match self.roots[LAYER].descend(within)? {
                Some(dir) => node_of(&dir, name)?,
                None => None,
            };
            let Some(node) = node.filter(|node| node.stat.kind == Kind::Dir) else {
                break;
            };
            let side = self.of_node(LAYER, node)?;
            self.pending.push(needed_dir(path, &side));
        }
        Ok(())
    }

    pub fn visit(&mut self, visit: &Visit) -> Result<Below> {
        let [old, layer, new] = visit.places else {
            return Ok(Below::Skip);
        };
        let path = visit.path;
        let none = None;
        let old = if self.is_hosts(path, old.as_ref(), layer.as_ref())? {
            &none
        } else {
            old
        };
        // Each is in the one before.
        let is_left = |item: &Item| !path.starts_with(&item.path);
        while self.pending.last().is_some_and(is_left) {
            self.pending.pop();
        }
        if let Some(under) = self.under.take_if(|under| path.starts_with(&under.path)) {
            let (is_of_new, item) = (under.is_of_new, under.item);
            self.under = Some(under);
            return self.visit_under(path, [old, layer, new], is_of_new, item);
        }
        self.under = None;
        let mut places = visit.places.iter().flatten();
        let is_link = places.all(|place| place.stat.kind == Kind::Link);
        let format = match (self.scope.class)(path, is_link) {
            Class::Derived | Class::Users => return Ok(Below::Skip),
            Class::Identity => {
                self.identity(path, layer.as_ref(), new.as_ref())?;
                return Ok(Below::Skip);
            }
            Class::ByEntry(format) => Some(format),
            Class::Plain => None,
        };
        let is_untouched = self.is_snapshot
            && matches!((old, layer), (Some(old), Some(layer)) if old.stat.is_untouched(&layer.stat));
        let sides = if is_untouched {
            [None, None, None]
        } else {
            let places = [old, layer, new].map(Option::as_ref);
            self.look(places)?
        };
        let [of_old, of_layer, of_new] =
            sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
        if is_untouched || of_old.is_some() && of_old == of_layer {
            self.unchanged(path, layer.as_ref(), new.as_ref())?;
            return Ok(Below::Visit);
        }
        if sides[LAYER]
            .as_ref()
            .is_some_and(|side| !is_carried(&side.node.stat))
        {
            if of_layer.is_some_and(|state| state.kind != Kind::Socket) {
                let mut item = listed(path, Verdict::Left, of_old, of_layer, of_new);
                item.note = Some("devices and pipes are not carried".to_owned());
                self.items.push(item);
            }
            return Ok(Below::Visit);
        }
        if let Some(format) = format
            && (self.entries(path, format, &sides)? || self.first_options(path, format, &sides)?)
        {
            return Ok(Below::Visit);
        }
        let decision = decide(of_old, of_layer, of_new);
        self.decided(path, decision, &sides, None)?;
        Ok(Below::Visit)
    }

    /// Whether what an adopted base has is the host's own, and no default that may change with the image. What the layer
    /// does not have any more was deleted on the host.
    fn is_hosts(&self, path: &Path, old: Option<&Place>, layer: Option<&Place>) -> Result<bool> {
        let (Some(conffiles), Some(old), Some(_)) = (self.scope.adopted, old, layer) else {
            return Ok(false);
        };
        Ok(!conffiles.is_pristine(path, old)?)
    }

    /// Reads what is needed to decide. What has gone since is not there.
    fn look(&self, places: [Option<&Place>; 3]) -> Result<[Option<Side>; 3]> {
        let mut sides = [None, None, None];
        for (side, place) in places.into_iter().enumerate() {
            if let Some(place) = place {
                sides[side] = self.side(side, place)?;
            }
        }
        number_contents(&mut sides)?;
        Ok(sides)
    }

    fn side(&self, side: usize, place: &Place) -> Result<Option<Side>> {
        let node = place.node()?;
        node.map(|node| self.of_node(side, node)).transpose()
    }

    fn of_node(&self, side: usize, node: Node) -> Result<Side> {
        let state = State {
            kind: node.stat.kind,
            content: 0,
            mode: node.stat.mode,
            owner: self.owners.owner(side, &node.stat),
            xattrs: self.owners.xattrs(side, node.xattrs()?),
        };
        Ok(Side { node, state })
    }

    /// What the layer has left alone is as in the new base.
    fn unchanged(&mut self, path: &Path, layer: Option<&Place>, new: Option<&Place>) -> Result<()> {
        let is_dir = |place: Option<&Place>| place.is_some_and(|p| p.stat.kind == Kind::Dir);
        if is_dir(layer) && new.is_none() {
            // What the layer has added in it needs it.
            let layer = layer.map(|place| self.side(LAYER, place)).transpose()?;
            if let Some(side) = layer.flatten() {
                self.pending.push(needed_dir(path, &side));
            }
        } else if is_dir(layer) && !is_dir(new) {
            self.under = Some(Under {
                path: path.to_owned(),
                is_of_new: true,
                item: None,
            });
        } else if let Some(new) = new
            && !self.owners.has(&self.owners.owner(NEW, &new.stat))
            && let Some(side) = self.side(NEW, new)?
        {
            self.check_owner(path, &side);
        }
        Ok(())
    }

    /// A file of the new base whose owner the layer has deleted becomes root's.
    fn check_owner(&mut self, path: &Path, side: &Side) {
        let state = &side.state;
        if self.owners.has(&state.owner) {
            return;
        }
        let (user, group) = (&state.owner.user, &state.owner.group);
        let verdict = Verdict::Conflict(Clash::Deleted);
        let mut item = listed(path, verdict, None, None, Some(state));
        item.note = Some(format!("{user}:{group} is not here"));
        item.parts = vec![Part::Owner];
        item.action = Action::Put(Put {
            kind: state.kind,
            content: Content::New,
            meta: Meta {
                xattrs: state.xattrs.clone(),
                ..self.owners.meta(&state.owner, state.mode)
            },
            mtime: None,
        });
        self.items.push(item);
    }

    /// Below a directory that is none on one of the sides: nothing can be put there.
    fn visit_under(
        &mut self,
        path: &Path,
        places: [&Option<Place>; 3],
        is_of_new: bool,
        item: Option<usize>,
    ) -> Result<Below> {
        let other = if is_of_new { LAYER } else { NEW };
        let mut wanted = places.map(Option::as_ref);
        wanted[if is_of_new { NEW } else { LAYER }] = None;
        let is_untouched = self.is_snapshot
            && is_of_new
            && matches!(wanted, [Some(old), Some(layer), _] if old.stat.is_untouched(&layer.stat));
        if wanted[other].is_none() || is_untouched {
            return Ok(Below::Visit);
        }
        let sides = self.look(wanted)?;
        let [old, layer, new] = sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
        let changed = if is_of_new { layer } else { new };
        if changed.is_none() || old == changed {
            return Ok(Below::Visit);
        }
        let mut lost = listed(path, Verdict::Conflict(Clash::Type), old, layer, new);
        lost.parts = vec![Part::Type];
        if let Some(above) = item.and_then(|at| self.items.get_mut(at)) {
            above.verdict = Verdict::Conflict(Clash::Type);
        }
        self.items.push(lost);
        Ok(Below::Visit)
    }

    /// As in the layer, whatever the new base has.
    fn identity(&mut self, path: &Path, layer: Option<&Place>, new: Option<&Place>) -> Result<()> {
        let sides = self.look([None, layer, new])?;
        let [_, of_layer, of_new] = sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
        if of_layer == of_new {
            return Ok(());
        }
        let mut item = listed(path, Verdict::Host, None, of_layer, of_new);
        item.action = match &sides[LAYER] {
            Some(side) if matches!(side.state.kind, Kind::File | Kind::Link) => {
                Action::Put(put_of_layer(side))
            }
            Some(_) => return Ok(()),
            None => Action::Remove,
        };
        self.push(item);
        Ok(())
    }

    /// Merges a list of entries that both sides have changed. Returns whether that could be done.
    fn entries(&mut self, path: &Path, format: Format, sides: &[Option<Side>; 3]) -> Result<bool> {
        let [old, Some(layer), Some(new)] = sides else {
            return Ok(false);
        };
        let is_file = |side: &Side| side.state.kind == Kind::File;
        let old = old.as_ref().filter(|old| is_file(old));
        let before = old.map(|old| old.state.content);
        let is_decided = before == Some(layer.state.content)
            || before == Some(new.state.content)
            || layer.state.content == new.state.content;
        if is_decided || !is_file(layer) || !is_file(new) {
            return Ok(false);
        }
        let nodes = [old, Some(layer), Some(new)];
        if nodes
            .into_iter()
            .flatten()
            .any(|side| side.node.stat.size > LIST_MAX)
        {
            return Ok(false);
        }
        let before = match old {
            Some(old) => old.node.read(LIST_MAX)?,
            None => Vec::new(),
        };
        let (ours, theirs) = (layer.node.read(LIST_MAX)?, new.node.read(LIST_MAX)?);
        let Some(ByEntry { content, conflicts }) = by_entry(format, &before, &ours, &theirs) else {
            return Ok(false);
        };
        let content = if content == theirs {
            Content::New
        } else if content == ours {
            Content::Layer
        } else {
            Content::Bytes(content)
        };
        // All but the content is merged as of any file.
        let same = |side: &Side| State {
            content: 0,
            ..side.state.clone()
        };
        let (old_state, layer, new) = (old.map(same), same(layer), same(new));
        let mut decision = decide(old_state.as_ref(), Some(&layer), Some(&new));
        let clash = if old.is_some() {
            Clash::Both
        } else {
            Clash::Added
        };
        if !conflicts.is_empty() {
            decision.listed = Listed::Conflict(clash, vec![Part::Content]);
        }
        let entries = Entries { content, conflicts };
        self.decided(path, decision, sides, Some(entries))?;
        Ok(true)
    }

    /// The first file of kernel options, which is the new base's: what the layer has changed of those for GRUB, which do not
    /// count any more, is merged into it. Returns whether anything was.
    fn first_options(
        &mut self,
        path: &Path,
        format: Format,
        sides: &[Option<Side>; 3],
    ) -> Result<bool> {
        let (Format::KernelOptions, [None, None, Some(new)]) = (format, sides) else {
            return Ok(false);
        };
        let [before, ours] = &self.grub_options;
        if new.state.kind != Kind::File || new.node.stat.size > LIST_MAX || before == ours {
            return Ok(false);
        }
        let theirs = new.node.read(LIST_MAX)?;
        let merged = match (before, ours) {
            (Some(before), Some(ours)) => by_entry(format, before, ours, &theirs),
            _ => None,
        };
        let ByEntry { content, conflicts } = merged.unwrap_or_else(|| ByEntry {
            content: theirs.clone(),
            conflicts: vec!["options in default/grub, which do not count any more".to_owned()],
        });
        let content = if content == theirs {
            Content::New
        } else {
            Content::Bytes(content)
        };
        let mut decision = decide(None, None, Some(&new.state));
        if !conflicts.is_empty() {
            decision.listed = Listed::Conflict(Clash::Added, vec![Part::Content]);
        }
        self.decided(path, decision, sides, Some(Entries { content, conflicts }))?;
        Ok(true)
    }

    fn decided(
        &mut self,
        path: &Path,
        decision: Decision,
        sides: &[Option<Side>; 3],
        entries: Option<Entries>,
    ) -> Result<()> {
        let [old, layer, new] = sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
        let is_dir = |state: Option<&State>| state.is_some_and(|state| state.kind == Kind::Dir);
        let (verdict, parts) = match decision.listed {
            Listed::No => (None, Vec::new()),
            Listed::Kept(parts) => (Some(Verdict::Kept), parts),
            Listed::Conflict(clash, parts) => (Some(Verdict::Conflict(clash)), parts),
        };
        let mut item = listed(path, verdict.unwrap_or(Verdict::Merged), old, layer, new);
        item.parts = parts;
        item.action = match decision.outcome {
            Outcome::Absent if is_dir(new) => Action::RemoveDir,
            Outcome::Absent => Action::Remove,
            Outcome::New => match entries {
                None => Action::Nothing,
                Some(ref entries) if entries.content == Content::New => Action::Nothing,
                Some(_) => match new {
                    Some(state) => Action::Put(self.put(&state.owner, state.mode, state, sides)),
                    None => Action::Nothing,
                },
            },
            Outcome::Made {
                content,
                mode,
                owner,
                xattrs,
            } => {
                let from = if content == Whose::Layer { layer } else { new };
                let Some(from) = from else { return Ok(()) };
                let from = State {
                    xattrs,
                    ..from.clone()
                };
                let mut put = self.put(&owner, mode, &from, sides);
                if content == Whose::Layer {
                    put.content = Content::Layer;
                    put.mtime = sides[LAYER].as_ref().map(|side| side.node.stat.mtime);
                }
                Action::Put(put)
            }
        };
        if let Some(entries) = entries {
            if !entries.conflicts.is_empty() {
                item.note = Some(entries.conflicts.join(", "));
            }
            if let Action::Put(put) = &mut item.action {
                put.mtime = None;
                put.content = entries.content;
            }
        }
        if layer.is_some_and(|state| state.kind == Kind::Link) {
            self.check_link(&mut item, sides)?;
        }
        if verdict.is_some() || !matches!(item.action, Action::Nothing) {
            self.push(item);
        } else if let Some(new) = &sides[NEW] {
            self.check_owner(path, new);
        } else if let (Some(side), true) = (&sides[LAYER], is_dir(layer)) {
            // What the layer has added in it needs it.
            self.pending.push(needed_dir(path, side));
        }
        let last = self.items.len().checked_sub(1);
        let is_put = last.is_some_and(|at| {
            self.items[at].path == path && matches!(self.items[at].action, Action::Put(_))
        });
        if is_put && is_dir(new) && layer.is_some() && !is_dir(layer) {
            self.under = Some(Under {
                path: path.to_owned(),
                is_of_new: false,
                item: last,
            });
        } else if !is_put && is_dir(layer) && new.is_some() && !is_dir(new) {
            self.under = Some(Under {
                path: path.to_owned(),
                is_of_new: true,
                item: None,
            });
        }
        Ok(())
    }

    /// With the content that is there already.
    fn put(&self, owner: &Owner, mode: u32, state: &State, sides: &[Option<Side>; 3]) -> Put {
        let mut meta = self.owners.meta(owner, mode);
        // The numbers of the layer are those of the host, also where it has no name for them.
        if let Some(layer) = sides[LAYER]
            .as_ref()
            .filter(|side| side.state.owner == *owner)
        {
            (meta.uid, meta.gid, meta.mode) = (layer.node.stat.uid, layer.node.stat.gid, mode);
        }
        meta.xattrs.clone_from(&state.xattrs);
        Put {
            kind: state.kind,
            content: Content::New,
            meta,
            mtime: None,
        }
    }

    /// A link of the layer that leads to nothing in the new base is carried and noted; one of alternatives is not
    /// carried.
    fn check_link(&self, item: &mut Item, sides: &[Option<Side>; 3]) -> Result<()> {
        let Some(side) = &sides[LAYER] else {
            return Ok(());
        };
        let is_carried = matches!(&item.action, Action::Put(put) if put.content == Content::Layer);
        if !is_carried {
            return Ok(());
        }
        let path = Path::new(self.scope.top).join(&item.path);
        let above = path.parent().unwrap_or(Path::new(""));
        let target = above.join(side.node.target()?);
        if self.roots[NEW].resolve(&target)?.is_some() {
            return Ok(());
        }
        let is_alternative = path.starts_with("etc/alternatives");
        // It is not decided yet what of /etc is there in the end.
        let is_open = is_alternative && as_written(&target).starts_with(ETC);
        if !is_open && (self.scope.comes)(&target)? {
            return Ok(());
        }
        if is_alternative {
            item.action = Action::Nothing;
            item.verdict = Verdict::Left;
            item.note = Some("the new base does not have what it leads to".to_owned());
        } else {
            item.note = Some("leads to nothing in the new base".to_owned());
        }
        Ok(())
    }

    /// Adds an item, and before it the directories that it needs.
    fn push(&mut self, item: Item) {
        let is_made = matches!(&item.action, Action::Put(put) if put.content != Content::New);
        if is_made {
            self.items.append(&mut self.pending);
        }
        self.items.push(item);
    }

    /// The files of users and groups, with the content that was merged before. What is no file on a side is not read, and
    /// counts as unchanged; a link of the layer stays what it is.
    fn user_files(
        &mut self,
        etc: &[Option<Dir>; 3],
        files: &[UserFiles; 3],
        users: &Merged,
    ) -> Result<()> {
        self.pending.clear();
        let mut is_elsewhere = [false; FILES.len()];
        for (file, name) in FILES.iter().enumerate() {
            let mut sides = [None, None, None];
            for (side, dir) in etc.iter().enumerate() {
                let node = dir.as_ref().map(|dir| node_of(dir, name.as_ref()));
                let node = node.transpose()?.flatten();
                sides[side] = node.map(|node| self.of_node(side, node)).transpose()?;
            }
            let kinds = sides
                .each_ref()
                .map(|side| side.as_ref().map(|s| s.state.kind));
            if kinds[LAYER] == Some(Kind::Link) {
                is_elsewhere[file] = true;
                self.users_elsewhere(Path::new(name), sides)?;
                continue;
            }
            let names = match file {
                SHADOW => PASSWD,
                GSHADOW => GROUP,
                _ => file,
            };
            if is_elsewhere[names] {
                // Whose the secrets are is not known here.
                number_contents(&mut sides)?;
                let [old, layer, new] =
                    sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
                let decision = decide(old, layer, new);
                self.decided(Path::new(name), decision, &sides, None)?;
                continue;
            }
            let Some(content) = users.files.0[file].clone() else {
                continue;
            };
            let is_other = |side: usize| kinds[side].is_some_and(|kind| kind != Kind::File);
            let others = [(LAYER, "the layer"), (NEW, "the new base")].into_iter();
            let others = others.filter(|(side, _)| is_other(*side));
            let mut conflicts: Vec<String> = others
                .map(|(_, side)| format!("no file in {side}"))
                .collect();
            let (clash, part) = if conflicts.is_empty() {
                (Clash::Both, Part::Content)
            } else {
                (Clash::Type, Part::Type)
            };
            let said = users.conflicts.iter().filter(|(of, _)| *of == file);
            conflicts.extend(said.map(|(_, said)| said.clone()));
            let sides = sides.map(|side| side.filter(|side| side.state.kind == Kind::File));
            let [old, layer, new] = sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
            let is_as_new = files[NEW].0[file].as_ref() == Some(&content);
            // What both have counts as there in the new base: its entries are merged already.
            let mut decision = match (layer, new) {
                (Some(_), Some(_)) => decide(old.or(layer), layer, new),
                (Some(layer), None) => decide(None, Some(layer), None),
                _ => decide(None, None, new),
            };
            if !conflicts.is_empty() {
                decision.listed = Listed::Conflict(clash, vec![part]);
            }
            let content = if is_as_new {
                Content::New
            } else if files[LAYER].0[file].as_ref() == Some(&content) {
                if decision.listed == Listed::No {
                    decision.listed = Listed::Kept(vec![Part::Content]);
                }
                Content::Layer
            } else {
                Content::Bytes(content)
            };
            if layer.is_none() && new.is_none() {
                if kinds[NEW].is_none() {
                    self.items.push(new_secret(name, content));
                }
                continue;
            }
            let entries = Entries { content, conflicts };
            self.decided(Path::new(name), decision, &sides, Some(entries))?;
        }
        Ok(())
    }

    /// A file of users that is a link in the layer, to what is not read. Where the new base has another thing there, the
    /// link comes: without it, nobody has a password.
    fn users_elsewhere(&mut self, path: &Path, mut sides: [Option<Side>; 3]) -> Result<()> {
        number_contents(&mut sides)?;
        let Some(side) = &sides[LAYER] else {
            return Ok(());
        };
        let [old, layer, new] = sides.each_ref().map(|side| side.as_ref().map(|s| &s.state));
        let is_same =
            |new: &State| (new.kind, new.content) == (side.state.kind, side.state.content);
        if new.is_some_and(is_same) {
            return Ok(());
        }
        let mut item = listed(path, Verdict::Conflict(Clash::Type), old, layer, new);
        item.parts = vec![Part::Type];
        item.note = Some("a link in the layer, so its entries are not merged".to_owned());
        item.action = Action::Put(put_of_layer(side));
        self.check_link(&mut item, &sides)?;
        self.push(item);
        Ok(())
    }
}

/// A file of secrets that no side has, for users that need one.
fn new_secret(name: &str, content: Content) -> Item {
    let mut item = listed(Path::new(name), Verdict::Merged, None, None, None);
    item.action = Action::Put(Put {
        kind: Kind::File,
        content,
        meta: Meta {
            uid: 0,
            gid: 0,
            mode: SECRET,
            xattrs: BTreeMap::new(),
        },
        mtime: None,
    });
    item
}

/// What a merge by entry has made.
struct Entries {
    content: Content,
    conflicts: Vec<String>,
}

fn is_carried(stat: &Stat) -> bool {
    matches!(stat.kind, Kind::File | Kind::Dir | Kind::Link) || stat.is_whiteout()
}

/// A directory of the layer that is there for what is put into it.
fn needed_dir(path: &Path, side: &Side) -> Item {
    let state = Some(&side.state);
    let mut item = listed(path, Verdict::Kept, state, state, None);
    item.action = Action::Put(put_of_layer(side));
    item
}

/// Everything as in the layer.
fn put_of_layer(side: &Side) -> Put {
    let stat = &side.node.stat;
    Put {
        kind: stat.kind,
        content: Content::Layer,
        meta: Meta {
            uid: stat.uid,
            gid: stat.gid,
            mode: stat.mode,
            xattrs: side.state.xattrs.clone(),
        },
        mtime: Some(stat.mtime),
    }
}

/// Gives equal contents equal numbers.
fn number_contents(sides: &mut [Option<Side>; 3]) -> io::Result<()> {
    let same = |a: usize, b: usize| match (&sides[a], &sides[b]) {
        (Some(a), Some(b)) if a.node.stat.kind == b.node.stat.kind => has_same(&a.node, &b.node),
        _ => Ok(false),
    };
    let layer = u8::from(!same(OLD, LAYER)?);
    let new = if same(OLD, NEW)? {
        0
    } else if same(LAYER, NEW)? {
        layer
    } else {
        2
    };
    for (side, content) in [(LAYER, layer), (NEW, new)] {
        if let Some(side) = &mut sides[side] {
            side.state.content = content;
        }
    }
    // Directories have no content.
    for side in sides.iter_mut().flatten() {
        if side.state.kind == Kind::Dir {
            side.state.content = 0;
        }
    }
    Ok(())
}

fn has_same(a: &Node, b: &Node) -> io::Result<bool> {
    match a.stat.kind {
        Kind::File => a.has_same_content(b),
        Kind::Link => Ok(a.target()? == b.target()?),
        _ => Ok(a.stat.device == b.stat.device),
    }
}

/// An item that does nothing yet.
fn listed(
    path: &Path,
    verdict: Verdict,
    old: Option<&State>,
    layer: Option<&State>,
    new: Option<&State>,
) -> Item {
    Item {
        path: path.to_owned(),
        action: Action::Nothing,
        verdict,
        parts: Vec::new(),
        ours: what_was_done(old, layer),
        theirs: what_was_done(old, new),
        note: None,
    }
}

fn what_was_done(before: Option<&State>, after: Option<&State>) -> &'static str {
    match (before, after) {
        (None, None) => "absent",
        (None, Some(_)) => "added",
        (Some(_), None) => "deleted",
        (Some(before), Some(after)) if before == after => "unchanged",
        (Some(before), Some(after)) if before.kind != after.kind => match after.kind {
            Kind::Dir => "now a directory",
            Kind::Link => "now a link",
            _ => "of another type",
        },
        _ => "modified",
    }
}

/// What has this name in a directory; `None` if nothing has.
pub(super) fn node_of(dir: &Dir, name: &OsStr) -> io::Result<Option<Node>> {
    match dir.node(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        node => node.map(Some),
    }
}

/// The kernel options in the file of GRUB in an /etc; `None` where only a shell could read them.
fn options_of_grub(etc: Option<&Dir>) -> Result<Option<Vec<u8>>> {
    let failed = "cannot read default/grub";
    let dir = etc.map(|etc| etc.descend(Path::new("default"))).transpose();
    let text = match dir.context(failed)?.flatten() {
        Some(dir) => read(&dir, "grub").context(failed)?,
        None => None,
    };
    let text = text.unwrap_or_default();
    let options = grub_defaults::options(&String::from_utf8_lossy(&text));
    Ok(options.ok().map(String::into_bytes))
}

/// The content of a file of users in /etc; `None` where there is none. One that is too large is an error: to take it for
/// an unchanged one would lose all its users.
fn read(dir: &Dir, name: &str) -> io::Result<Option<Vec<u8>>> {
    match node_of(dir, name.as_ref())? {
        Some(node) if node.stat.kind == Kind::File => {
            let content = node.read(USERS_MAX);
            let named = |error| io::Error::other(format!("cannot read /etc/{name}: {error}"));
            content.map(Some).map_err(named)
        }
        _ => Ok(None),
    }
}

pub(super) fn user_files(dir: Option<&Dir>) -> io::Result<UserFiles> {
    let mut files = UserFiles::default();
    if let Some(dir) = dir {
        for (content, name) in files.0.iter_mut().zip(FILES) {
            *content = read(dir, name)?;
        }
    }
    Ok(files)
}
