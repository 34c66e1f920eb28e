//! Going through several trees at once.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::dir::{Dir, has_name, is_no_dir, sort_names};
use super::name::escaped;
use super::node::{Id, Kind, Node, Stat};

/// So many levels have open directories. Those further up are opened again on the way back.
const OPEN_LEVELS: usize = 32;

/// A path that at least one of the trees has.
pub struct Visit<'a> {
    /// From the directories where the walk began.
    pub path: &'a Path,
    /// For each tree, where it has the path.
    pub places: &'a [Option<Place<'a>>],
    level: &'a Level,
}

impl<'a> Visit<'a> {
    /// The same with another path.
    pub fn called<'b>(&'b self, path: &'b Path) -> Visit<'b> {
        Visit { path, ..*self }
    }

    /// The same of the first of the trees only.
    pub fn of_first(&self, count: usize) -> Visit<'_> {
        let places = self.places.get(..count).unwrap_or(self.places);
        Visit { places, ..*self }
    }

    /// The directory that the path is in, if this one of the trees has it.
    pub fn dir(&self, tree: usize) -> Option<&'a Dir> {
        self.level.open_dir(tree)
    }
}

/// A name in an open directory.
pub struct Place<'a> {
    pub dir: &'a Dir,
    pub name: &'a OsStr,
    pub stat: Stat,
}

impl Place<'_> {
    /// Holds what is there, if it still is what it was when the walk came to it; `None` if not.
    pub fn node(&self) -> io::Result<Option<Node>> {
        match self.dir.node(self.name) {
            Ok(node) => Ok(Some(node).filter(|node| node.stat.kind == self.stat.kind)),
            Err(error) if is_no_dir(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether what is below a directory is visited too.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Below {
    Visit,
    Skip,
}

/// What goes through trees.
pub trait Visitor {
    fn visit(&mut self, visit: &Visit) -> Result<Below>;

    /// Called when all that is below a directory of the trees was visited, with that directory where a tree has it.
    fn leave(&mut self, _path: &Path, _dirs: &[Option<&Dir>]) -> Result<()> {
        Ok(())
    }
}

/// Leaves each directory as it is.
struct Visits<'a>(&'a mut dyn FnMut(&Visit) -> Result<Below>);

impl Visitor for Visits<'_> {
    fn visit(&mut self, visit: &Visit) -> Result<Below> {
        (self.0)(visit)
    }
}

/// What is at a path, of what `take` gives in the order of a walk. The paths that are asked for come in that order too, so
/// `next`, which was taken last, is kept for them.
pub(super) fn in_order<'a, T>(
    next: &'a mut Option<T>,
    path: &Path,
    path_of: impl Fn(&T) -> &Path,
    mut take: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<Option<&'a T>> {
    loop {
        if next.is_none() {
            *next = take()?;
        }
        match next.as_ref().map(|next| path_of(next).cmp(path)) {
            Some(Ordering::Less) => *next = None,
            Some(Ordering::Equal) => return Ok(next.as_ref()),
            Some(Ordering::Greater) | None => return Ok(None),
        }
    }
}

/// One directory of the trees.
struct Level {
    /// For each tree that has it: its identity, and the directory while it is open.
    dirs: Vec<Option<(Id, Option<Dir>)>>,
    /// All names in them, the last one first.
    names: Vec<OsString>,
}

impl Level {
    /// The directories have the same path. `only` leaves all other names out.
    fn new(dirs: Vec<Option<Dir>>, only: Option<&OsStr>) -> io::Result<Self> {
        let mut names = Vec::new();
        if let Some(only) = only {
            names.push(only.to_owned());
        } else {
            for dir in dirs.iter().flatten() {
                // Most of them are there already, and a directory can have very many.
                let mut added = Vec::new();
                dir.each_name(&mut |name| {
                    if !has_name(&names, name) {
                        added.push(name.to_owned());
                    }
                })?;
                names.append(&mut added);
                sort_names(&mut names);
            }
            names.dedup();
            names.reverse();
        }
        let with_id = |dir: Dir| Ok((dir.stat()?.id, Some(dir)));
        let dirs = dirs.into_iter().map(|dir| dir.map(with_id).transpose());
        Ok(Self {
            dirs: dirs.collect::<io::Result<_>>()?,
            names,
        })
    }

    fn open_dir(&self, tree: usize) -> Option<&Dir> {
        self.dirs.get(tree)?.as_ref()?.1.as_ref()
    }

    /// The directories of this name in them.
    fn children(&self, name: &OsStr) -> io::Result<Vec<Option<Dir>>> {
        let child = |tree| match self.open_dir(tree).map(|dir| dir.child(name)) {
            Some(Ok(dir)) => Ok(Some(dir)),
            Some(Err(error)) if !is_no_dir(&error) => Err(error),
            _ => Ok(None),
        };
        (0..self.dirs.len()).map(child).collect()
    }

    fn places<'a>(&'a self, name: &'a OsStr) -> io::Result<Vec<Option<Place<'a>>>> {
        let place = |dir: &'a Option<(Id, Option<Dir>)>| {
            let Some((_, Some(dir))) = dir else {
                return Ok(None);
            };
            let stat = dir.stat_of(name)?;
            Ok(stat.map(|stat| Place { dir, name, stat }))
        };
        self.dirs.iter().map(place).collect()
    }

    /// Closes the directories that can be opened again from those of the level below.
    fn close(&mut self, below: &Self) {
        for (dir, below) in self.dirs.iter_mut().zip(&below.dirs) {
            if let (Some((_, open)), Some(_)) = (dir, below) {
                *open = None;
            }
        }
    }

    /// Opens them again.
    fn open(&mut self, below: &Self) -> io::Result<()> {
        for (dir, below) in self.dirs.iter_mut().zip(&below.dirs) {
            if let (Some((id, open @ None)), Some((_, Some(below)))) = (dir, below) {
                *open = Some(below.above(*id)?);
            }
        }
        Ok(())
    }
}

/// Visits each path of the trees below these directories once: a directory before what is in it, and names in
/// the order of their bytes. `only` is the one name to begin with. What is mounted in a tree is not visited, and no
/// link is followed. Takes memory for the names of the directories above a path, and no more descriptors the
/// deeper that is.
pub fn walk(
    roots: &[Option<Dir>],
    only: Option<&OsStr>,
    visit: &mut dyn FnMut(&Visit) -> Result<Below>,
) -> Result<()> {
    walk_by(roots, only, &mut Visits(visit))
}

/// The same. A directory that the visitor makes in one of the trees, where another one has it, is gone through as well.
pub fn walk_by(
    roots: &[Option<Dir>],
    only: Option<&OsStr>,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let again = |dir: &Option<Dir>| dir.as_ref().map(Dir::again).transpose();
    let again = roots.iter().map(again).collect::<io::Result<_>>()?;
    let mut levels = vec![Level::new(again, only).context("cannot read the root of a tree")?];
    let mut path = PathBuf::new();
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.names.pop() else {
            let dirs: Vec<Option<&Dir>> = (0..roots.len()).map(|n| level.open_dir(n)).collect();
            visitor.leave(&path, &dirs)?;
            path.pop();
            let left = levels.pop();
            if let (Some(level), Some(left)) = (levels.last_mut(), left) {
                level.open(&left).with_context(|| escaped(&path))?;
            }
            continue;
        };
        path.push(&name);
        let failed = || format!("cannot read {}", escaped(&path));
        let places = level.places(&name).with_context(failed)?;
        let mut below = Below::Skip;
        // It can have gone since its directory was read.
        if places.iter().any(Option::is_some) {
            below = visitor.visit(&Visit {
                path: &path,
                places: &places,
                level: &*level,
            })?;
        }
        let is_dir = |place: &Place| place.stat.kind == Kind::Dir;
        let dirs = if below == Below::Visit && places.iter().flatten().any(is_dir) {
            level.children(&name).with_context(failed)?
        } else {
            Vec::new()
        };
        if dirs.iter().all(Option::is_none) {
            path.pop();
            continue;
        }
        drop(places);
        levels.push(Level::new(dirs, None).with_context(failed)?);
        if let Some(at) = levels.len().checked_sub(OPEN_LEVELS + 1) {
            let (above, below) = levels.split_at_mut(at + 1);
            above[at].close(&below[0]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn tree(paths: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for path in paths {
            let at = dir.path().join(path);
            if path.ends_with('/') {
                fs::create_dir_all(at).unwrap();
            } else {
                fs::create_dir_all(at.parent().unwrap()).unwrap();
                fs::write(at, path).unwrap();
            }
        }
        dir
    }

    fn open(dirs: &[&tempfile::TempDir]) -> Vec<Option<Dir>> {
        let open = |dir: &&tempfile::TempDir| Some(Dir::root(dir.path()).unwrap());
        dirs.iter().map(open).collect()
    }

    /// Each path, and which of the trees have it.
    fn visited(roots: &[Option<Dir>], only: Option<&OsStr>) -> Vec<String> {
        let mut found = Vec::new();
        walk(roots, only, &mut |visit| {
            let has: String = visit
                .places
                .iter()
                .map(|place| if place.is_some() { '+' } else { '-' })
                .collect();
            found.push(format!("{has} {}", visit.path.display()));
            let is_left_out = visit.path.ends_with("left-out");
            Ok(if is_left_out {
                Below::Skip
            } else {
                Below::Visit
            })
        })
        .unwrap();
        found
    }

    #[test]
    fn several_trees_are_one_list_in_the_order_of_names() {
        let a = tree(&["b/1", "a", "left-out/x", "c"]);
        let b = tree(&["b/2", "b/1", "b.d/", "c/below", "left-out/y"]);
        let roots = open(&[&a, &b]);
        assert_eq!(
            visited(&roots, None),
            [
                "+- a",
                "++ b",
                "++ b/1",
                "-+ b/2",
                "-+ b.d",
                "++ c",
                "-+ c/below",
                "++ left-out"
            ]
        );
        assert_eq!(
            visited(&roots, Some(OsStr::new("b"))),
            ["++ b", "++ b/1", "-+ b/2"]
        );
        assert_eq!(visited(&[None, None], None), [""; 0]);
        let [a, _] = &roots[..] else { panic!() };
        let one = [a.as_ref().map(|a| a.again().unwrap()), None];
        assert_eq!(visited(&one, Some(OsStr::new("c"))), ["+- c"]);
    }

    #[test]
    fn links_are_not_followed_wherever_they_lead() {
        let dir = tree(&["a/x"]);
        for (link, target) in [
            ("up", ".."),
            ("root", "/"),
            ("loop", "loop"),
            ("a/round", "../a"),
            ("nowhere", "x/y"),
        ] {
            symlink(target, dir.path().join(link)).unwrap();
        }
        let seen = visited(&open(&[&dir]), None);
        assert_eq!(
            seen,
            [
                "+ a",
                "+ a/round",
                "+ a/x",
                "+ loop",
                "+ nowhere",
                "+ root",
                "+ up"
            ]
        );
    }

    #[test]
    fn a_deep_tree_needs_few_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let root = Dir::root(dir.path()).unwrap();
        let mut at = root.again().unwrap();
        for level in 0..1000 {
            for name in ["d", "z"] {
                at.make_dir(OsStr::new(name)).unwrap();
            }
            if level == 20 {
                drop(at.create(OsStr::new("one-side")));
            }
            at = at.child(OsStr::new("d")).unwrap();
        }
        let mut most = 0;
        let mut count = 0;
        let flat = tree(&["d/d/d/z"]);
        let roots = [
            Some(root.again().unwrap()),
            Some(Dir::root(flat.path()).unwrap()),
        ];
        walk(&roots, None, &mut |visit| {
            count += 1;
            if count % 100 == 0 {
                let open = fs::read_dir("/proc/self/fd").unwrap().count();
                most = most.max(open);
            }
            assert!(visit.places[0].is_some() || visit.path.starts_with("d/d/d/z"));
            Ok(Below::Visit)
        })
        .unwrap();
        assert_eq!(count, 2001);
        assert!(most < 300, "{most} descriptors");
        root.remove_all(OsStr::new("d")).unwrap();
        assert_eq!(root.names().unwrap(), ["z"]);
    }
}
