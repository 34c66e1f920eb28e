//! Carries once more, to a copy of the new base that was made with what the layer had then. Only what was changed since
//! is looked at. Of that is decided anew what it becomes with the new base; what it was in between does not count.
//!
//! First all is made that takes time, beside the copy. Then each path takes its place in one moment: a power cut finds
//! it as it was or as it is to be, and nothing else.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Carrier;
use super::record::Changed;
use super::zone::Zones;
use crate::merge::apply::{Applier, Opened, copy, owned};
use crate::merge::plan::{Action, Content, Item, Plan, Put};
use crate::merge::{LAYER, NEW};
use crate::tree::{Dir, Kind, Meta, Place, Time, Visit, escaped};

/// The copy, among the trees that are visited.
const COPY: usize = 3;
/// In the directory for what is not complete: files by their paths, and what takes another one's place next.
const FILES: &str = "files";
const NEXT: &str = "next";

/// Where something is carried once more.
pub struct Again<'a> {
    /// The roots of the old base, the layer and the new base.
    pub roots: [&'a Dir; 3],
    pub is_snapshot: bool,
    /// That of their /etc.
    pub plan: &'a Plan,
    pub copy: &'a Dir,
    /// An empty directory on the filesystem of the copy.
    pub scratch: &'a Dir,
}

/// What is ready to take its place.
pub struct Staged<'a> {
    copy: &'a Dir,
    scratch: &'a Dir,
    files: Dir,
    /// A directory comes before what is in it.
    steps: Vec<(PathBuf, Step)>,
}

/// What becomes of a path of the copy.
#[derive(Debug)]
enum Step {
    /// What is staged takes the place: of the layer, or of the new base.
    Layer,
    New,
    /// It has the right content.
    Meta(Meta, Option<Time>),
    Dir(Meta, Option<Time>),
    /// A directory for what is put into it.
    Needed(Meta, Option<Time>),
    Remove,
    /// Goes if nothing is in it in the end.
    RemoveDir,
}

impl<'a> Again<'a> {
    /// Makes what was changed ready. The copy stays as it is.
    pub fn stage(
        &self,
        zones: &Zones,
        changed: &Changed,
        interrupt: &dyn Fn() -> Result<()>,
    ) -> Result<Staged<'a>> {
        let made = self.scratch.make_dir(FILES.as_ref());
        let files = made.and_then(|()| self.scratch.child(FILES.as_ref()));
        let files = files.context("cannot make a directory for the copies")?;
        let layer = self.roots[LAYER].again()?;
        let mut stager = Stager {
            again: self,
            applier: Applier::new("", Some(layer), files.again()?),
            files,
            steps: Vec::new(),
            interrupt,
        };
        let carrier = Carrier {
            zones,
            owners: &self.plan.owners,
            is_snapshot: self.is_snapshot,
            is_adopted: self.plan.is_adopted,
            interrupt,
        };
        // A directory of the new base that the copy has from now on. With it comes all that is in it.
        let gained: RefCell<Option<PathBuf>> = RefCell::default();
        let is_gained = |path: &Path| {
            let gained = gained.borrow();
            gained.as_ref().is_some_and(|top| path.starts_with(top))
        };
        let is_wanted = |path: &Path| changed.reaches(path) || is_gained(path);
        let mut stage = |_: &Path, visit: &Visit, items: Vec<Item>| {
            let path = visit.path;
            let is_within = is_gained(path);
            let is_changed = is_within || changed.paths.contains(path);
            let gains = stager.visit(visit, items, is_changed);
            let gains = gains.with_context(|| format!("cannot carry /{}", escaped(path)))?;
            if gains && !is_within {
                gained.replace(Some(path.to_owned()));
            }
            Ok(())
        };
        carrier.run(self.roots, Some(self.copy), &is_wanted, &mut stage)?;
        // What could not be copied is found when it is to take its place.
        stager.applier.finish()?;
        Ok(Staged {
            copy: self.copy,
            scratch: self.scratch,
            files: stager.files,
            steps: stager.steps,
        })
    }
}

struct Stager<'a> {
    again: &'a Again<'a>,
    applier: Applier,
    files: Dir,
    steps: Vec<(PathBuf, Step)>,
    interrupt: &'a dyn Fn() -> Result<()>,
}

impl Stager<'_> {
    /// Takes what the merge does at a path, and above it. Returns whether the copy gets a directory of the new base that
    /// it did not have.
    fn visit(&mut self, visit: &Visit, items: Vec<Item>, is_changed: bool) -> Result<bool> {
        let [new, there] = [NEW, COPY].map(|tree| kind(visit, tree));
        let lacks_dir = new == Some(Kind::Dir) && there != Some(Kind::Dir);
        let begin = self.steps.len();
        let (mut has_item, mut is_decided) = (false, false);
        for Item { path, action, .. } in items {
            let is_own = path == visit.path;
            let is_meant = is_own && is_changed;
            let step = match action {
                Action::Put(put) if put.kind == Kind::Dir => Some(if is_meant {
                    Step::Dir(put.meta, put.mtime)
                } else {
                    Step::Needed(put.meta, put.mtime)
                }),
                _ if !is_meant => None,
                Action::Nothing => None,
                Action::Remove => Some(Step::Remove),
                Action::RemoveDir => {
                    // What is new in that of the new base stays.
                    let made = lacks_dir.then(|| self.as_new(visit)).transpose()?;
                    let made = made.flatten().map(|step| (path.clone(), step));
                    self.steps.extend(made);
                    Some(Step::RemoveDir)
                }
                Action::Put(put) => self.put(visit, put)?,
            };
            has_item |= is_own;
            is_decided |= is_meant && step.is_some();
            self.steps.extend(step.map(|step| (path, step)));
        }
        let step = if is_changed && !is_decided {
            self.as_new(visit)?
        } else if !has_item && new.is_none() && there == Some(Kind::Dir) {
            // The layer has it as the old base does, so it is there only for what is in it.
            Some(Step::RemoveDir)
        } else {
            None
        };
        self.steps
            .extend(step.map(|step| (visit.path.to_owned(), step)));
        let is_made =
            |(path, step): &(PathBuf, Step)| path == visit.path && matches!(step, Step::Dir(..));
        Ok(lacks_dir && self.steps[begin..].iter().any(is_made))
    }

    fn put(&mut self, visit: &Visit, put: Put) -> Result<Option<Step>> {
        let path = visit.path;
        if put.content == Content::New {
            if !matches!(put.kind, Kind::File | Kind::Link) {
                return Ok(None);
            }
            let staged = self.stage_new(path)?;
            if let (Some(dir), Some(name)) = (&staged, path.file_name()) {
                dir.set_meta(name, &put.meta, None)?;
            }
            return Ok(staged.map(|_| Step::New));
        }
        if is_same(visit)? {
            return Ok(Some(Step::Meta(put.meta, put.mtime)));
        }
        let staged = self.files.make_dirs(above(path))?;
        staged.context("it is in no directory")?;
        self.applier.item(path, &Action::Put(put))?;
        Ok(Some(Step::Layer))
    }

    /// What the layer does not change any more is as in the new base, if the copy has something else.
    fn as_new(&self, visit: &Visit) -> Result<Option<Step>> {
        let [new, there] = [NEW, COPY].map(|tree| place(visit, tree));
        let Some(new) = new else {
            let is_dir = there.map(|there| there.stat.kind == Kind::Dir);
            return Ok(is_dir.map(|is_dir| {
                if is_dir {
                    Step::RemoveDir
                } else {
                    Step::Remove
                }
            }));
        };
        // The copy is a snapshot.
        if there.is_some_and(|there| new.stat.is_untouched(&there.stat)) {
            return Ok(None);
        }
        let (Some(node), Some(_)) = (new.node()?, self.files.make_dirs(above(visit.path))?) else {
            // The layer has something else in the place of the directory that it is in.
            return Ok(None);
        };
        Ok(match node.stat.kind {
            Kind::Dir => Some(Step::Dir(owned(&node, &self.again.plan.users.ids)?, None)),
            Kind::File | Kind::Link => self.stage_new(visit.path)?.map(|_| Step::New),
            _ => None,
        })
    }

    /// Stages what the new base has. Returns the directory that it is in then; `None` if the layer has something else
    /// in the place of that.
    fn stage_new(&self, path: &Path) -> Result<Option<Dir>> {
        let dir = self.files.make_dirs(above(path))?;
        if dir.is_some() {
            let new = self.again.roots[NEW];
            let ids = &self.again.plan.users.ids;
            copy(path, new, &self.files, ids, None, self.interrupt)?;
        }
        Ok(dir)
    }
}

/// Whether the copy of a file holds what the layer has, and has its flags of chattr(1). One of several names is always copied, so that those stay
/// names of one file, and of no other one.
fn is_same(visit: &Visit) -> Result<bool> {
    let (Some(layer), Some(there)) = (place(visit, LAYER), place(visit, COPY)) else {
        return Ok(false);
    };
    let can_be = [layer, there]
        .iter()
        .all(|place| place.stat.kind == Kind::File && place.stat.links == 1);
    if !can_be || layer.stat.size != there.stat.size {
        return Ok(false);
    }
    match (layer.node()?, there.node()?) {
        (Some(layer), Some(there)) => {
            Ok(layer.locks()? == there.locks()? && layer.has_same_content(&there)?)
        }
        _ => Ok(false),
    }
}

/// What one of the trees has at the path.
fn place<'a>(visit: &'a Visit, tree: usize) -> Option<&'a Place<'a>> {
    visit.places.get(tree)?.as_ref()
}

fn kind(visit: &Visit, tree: usize) -> Option<Kind> {
    place(visit, tree).map(|place| place.stat.kind)
}

fn above(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new(""))
}

impl Staged<'_> {
    /// Puts all in its place. What is staged has to be on the disk. Returns the paths, from the root, that had no
    /// place, which are left out.
    pub fn put(self) -> Result<Vec<PathBuf>> {
        let mut places = Places {
            copy: Opened::new(self.copy.again()?),
            files: Opened::new(self.files),
            scratch: self.scratch,
        };
        let failed = |path: &Path| format!("cannot write /{}", escaped(path));
        let mut left_out = Vec::new();
        for (path, step) in &self.steps {
            if !places.put(path, step).with_context(|| failed(path))? {
                left_out.push(path.clone());
            }
        }
        let emptied = |(_, step): &&(PathBuf, Step)| matches!(step, Step::RemoveDir);
        for (path, _) in self.steps.iter().rev().filter(emptied) {
            places.remove_empty(path).with_context(|| failed(path))?;
        }
        Ok(left_out)
    }
}

struct Places<'a> {
    copy: Opened,
    files: Opened,
    scratch: &'a Dir,
}

impl Places<'_> {
    /// Returns whether there is a place for it, and it was staged. The directory that it is in keeps its time, which is
    /// that of the layer or of the new base.
    fn put(&mut self, path: &Path, step: &Step) -> io::Result<bool> {
        let Some((dir, name)) = self.copy.place(path)? else {
            // The layer has something else in the place of the directory.
            return Ok(matches!(step, Step::New | Step::Remove | Step::RemoveDir));
        };
        let there = dir.stat_of(&name)?.map(|stat| stat.kind);
        let mtime = dir.stat()?.mtime;
        match step {
            Step::Layer | Step::New => {
                if !self.exchange(path, &dir, &name)? {
                    return Ok(false);
                }
            }
            Step::Meta(meta, mtime) => {
                let node = dir.node(&name)?;
                node.lifted(|| dir.set_meta(&name, meta, *mtime))?;
            }
            Step::Needed(..) if there == Some(Kind::Dir) => return Ok(true),
            Step::Dir(meta, mtime) | Step::Needed(meta, mtime) => {
                if there == Some(Kind::Dir) {
                    dir.set_meta(&name, meta, *mtime)?;
                } else {
                    let next = NEXT.as_ref();
                    self.scratch.make_dir(next)?;
                    self.scratch.set_meta(next, meta, *mtime)?;
                    self.take_place(&dir, &name)?;
                }
            }
            Step::Remove if there == Some(Kind::Dir) => self.take_place(&dir, &name)?,
            Step::Remove => dir.remove(&name).map(drop)?,
            Step::RemoveDir => return Ok(true),
        }
        dir.set_mtime(OsStr::new("."), mtime)?;
        Ok(true)
    }

    /// Has what is staged and what is there change places. Returns whether there is something staged.
    fn exchange(&mut self, path: &Path, dir: &Dir, name: &OsStr) -> io::Result<bool> {
        let Some((from, of)) = self.files.place(path)? else {
            return Ok(false);
        };
        if from.stat_of(&of)?.is_none() {
            return Ok(false);
        }
        from.exchange(&of, dir, name)?;
        Ok(true)
    }

    /// Has what is next, if there is anything, take the place of what has this name.
    fn take_place(&self, dir: &Dir, name: &OsStr) -> io::Result<()> {
        let next = NEXT.as_ref();
        self.scratch.exchange(next, dir, name)?;
        self.scratch.remove_all(next)
    }

    fn remove_empty(&mut self, path: &Path) -> io::Result<()> {
        let Some((dir, name)) = self.copy.place(path)? else {
            return Ok(());
        };
        let mtime = dir.stat()?.mtime;
        if dir.stat_of(&name)?.map(|stat| stat.kind) == Some(Kind::Dir) && dir.remove(&name)? {
            dir.set_mtime(OsStr::new("."), mtime)?;
        }
        Ok(())
    }
}
