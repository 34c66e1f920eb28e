//! Puts a plan into the copy of the new base. Each file takes its place when it is complete.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::plan::{Action, Content, Plan, Put, user_files};
use super::reown::reowned;
use super::users::Ids;
use crate::tree::{Below, Dir, Id, Kind, Meta, Node, Time, escaped, walk};

const ETC: &str = "etc";

/// Applies a plan to the root of the copy, which holds what the new base holds, with the numbers that owners have
/// on the host ([`super::reown`]). `layer` is the root of the layer.
/// Returns the paths below /etc that had no place, which are left out.
pub fn apply(plan: &Plan, layer: &Dir, copy: &Dir) -> Result<Vec<PathBuf>> {
    let layer = layer
        .descend(Path::new(ETC))
        .context("cannot open /etc of the layer")?;
    if copy.stat_of(OsStr::new(ETC))?.is_none() {
        copy.make_dir(OsStr::new(ETC))?;
    }
    let copy = copy.descend(Path::new(ETC)).context("cannot open /etc")?;
    let copy = copy.context("/etc is no directory")?;
    let mut applier = Applier::new(layer, copy, "/etc/");
    for item in &plan.items {
        applier
            .item(&item.path, &item.action)
            .with_context(|| format!("cannot write /etc/{}", escaped(&item.path)))?;
    }
    applier.finish()?;
    Ok(applier.left_out)
}

/// Copies what is at a path of one root, with all that is below it, to the same path of another, where nothing is and
/// the directories above are there. It belongs to those who have the same names as its owners, by `ids`. A file gets
/// `content` in the place of its own. Sockets are left out.
pub fn copy(
    path: &Path,
    from: &Dir,
    to: &Dir,
    ids: &Ids,
    content: Option<Vec<u8>>,
    interrupt: &dyn Fn() -> Result<()>,
) -> Result<()> {
    let above = path.parent().unwrap_or(Path::new(""));
    let mut applier = Applier::new(Some(from.again()?), to.again()?, "/");
    let mut content = content.map(Content::Bytes);
    walk(&[from.descend(above)?], path.file_name(), &mut |visit| {
        interrupt()?;
        let path = above.join(visit.path);
        let failed = || format!("cannot copy /{}", escaped(&path));
        let [Some(place)] = visit.places else {
            return Ok(Below::Skip);
        };
        let Some(node) = place.node().with_context(failed)? else {
            return Ok(Below::Skip);
        };
        let kind = node.stat.kind;
        if kind == Kind::Socket {
            return Ok(Below::Skip);
        }
        let put = Put {
            kind,
            content: content.take().unwrap_or(Content::Layer),
            meta: owned(&node, ids).with_context(failed)?,
            mtime: Some(node.stat.mtime),
        };
        let put = applier.item(&path, &Action::Put(put));
        put.with_context(failed)?;
        Ok(Below::Visit)
    })?;
    applier.finish()?;
    match applier.left_out.first() {
        Some(path) => bail!("/{} cannot be copied", escaped(path)),
        None => Ok(()),
    }
}

/// What a file has beside its content when it belongs to the same names elsewhere. One whose owner has no name there
/// becomes root's, without the rights that others had by it.
pub fn owned(node: &Node, ids: &Ids) -> io::Result<Meta> {
    let stat = &node.stat;
    let mut meta = reowned(stat, &node.xattrs()?, ids);
    if meta.uid == 0 && stat.uid != 0 || meta.gid == 0 && stat.gid != 0 {
        meta.mode &= !0o6000;
    }
    Ok(meta)
}

/// Which numbers the names of one root have in another.
pub fn ids_between(from: &Dir, to: &Dir) -> Result<Ids> {
    let files = |root: &Dir| user_files(root.descend(Path::new(ETC))?.as_ref());
    let [from, to] = [from, to].map(files);
    let failed = "cannot read the users of a root";
    Ok(Ids::between(&from.context(failed)?, &to.context(failed)?))
}

/// A directory, and the one below it that was needed last: most paths follow each other.
struct Opened {
    root: Dir,
    last: Option<(PathBuf, Dir)>,
}

impl Opened {
    fn new(root: Dir) -> Self {
        Self { root, last: None }
    }

    /// The directory that a path is in, and its name there.
    fn place(&mut self, path: &Path) -> io::Result<Option<(Dir, OsString)>> {
        let above = path.parent().unwrap_or(Path::new(""));
        let last = self.last.as_ref();
        let near = last.and_then(|(path, dir)| Some((dir, above.strip_prefix(path).ok()?)));
        let (from, rest) = near.unwrap_or((&self.root, above));
        let (Some(dir), Some(name)) = (from.descend(rest)?, path.file_name()) else {
            return Ok(None);
        };
        self.last = Some((above.to_owned(), dir.again()?));
        Ok(Some((dir, name.to_owned())))
    }
}

struct Applier {
    /// What of a path all have in common, for errors.
    above: &'static str,
    layer: Option<Opened>,
    copy: Opened,
    /// Files of several names that were copied: where, and with what.
    copied: BTreeMap<Id, (PathBuf, Meta)>,
    /// Directories that go if nothing is left in them.
    emptied: Vec<PathBuf>,
    /// Directories that were made, and their times, which what is put into them changes.
    dirs: Vec<(PathBuf, Time)>,
    left_out: Vec<PathBuf>,
}

impl Applier {
    fn new(layer: Option<Dir>, copy: Dir, above: &'static str) -> Self {
        Self {
            above,
            layer: layer.map(Opened::new),
            copy: Opened::new(copy),
            copied: BTreeMap::new(),
            emptied: Vec::new(),
            dirs: Vec::new(),
            left_out: Vec::new(),
        }
    }

    fn item(&mut self, path: &Path, action: &Action) -> io::Result<()> {
        match action {
            Action::Nothing => Ok(()),
            Action::Remove => match self.copy.place(path)? {
                Some((dir, name)) => dir.remove_all(&name),
                None => Ok(()),
            },
            Action::RemoveDir => {
                self.emptied.push(path.to_owned());
                Ok(())
            }
            Action::Put(put) => {
                let Some((dir, name)) = self.copy.place(path)? else {
                    self.left_out.push(path.to_owned());
                    return Ok(());
                };
                self.put(path, &dir, &name, put)
            }
        }
    }

    fn put(&mut self, path: &Path, dir: &Dir, name: &OsStr, put: &Put) -> io::Result<()> {
        let found = dir.stat_of(name)?;
        let there = found.map(|stat| stat.kind);
        match (&put.content, put.kind) {
            (Content::New, _) => match found {
                // Its other names may be of files that stay as they are.
                Some(stat)
                    if stat.kind == Kind::File && put.kind == Kind::File && stat.links > 1 =>
                {
                    self.copy_file(path, (dir, name), (dir, name), put)
                }
                Some(stat) if stat.kind == put.kind => dir.set_meta(name, &put.meta, None),
                _ => {
                    self.left_out.push(path.to_owned());
                    Ok(())
                }
            },
            (_, Kind::Dir) => {
                if there != Some(Kind::Dir) {
                    dir.remove_all(name)?;
                    dir.make_dir(name)?;
                }
                self.dirs
                    .extend(put.mtime.map(|mtime| (path.to_owned(), mtime)));
                dir.set_meta(name, &put.meta, None)
            }
            (Content::Bytes(content), _) => {
                let temporary = dir.free_name()?;
                let written = dir
                    .create(&temporary)
                    .and_then(|mut file| file.write_all(content));
                written.and_then(|()| replace(dir, &temporary, name, there, put))
            }
            (Content::Layer, _) => {
                let from = match &mut self.layer {
                    Some(layer) => layer.place(path)?,
                    None => None,
                };
                let Some((from, of)) = from else {
                    self.left_out.push(path.to_owned());
                    return Ok(());
                };
                if put.kind == Kind::File {
                    return self.copy_file(path, (&from, &of), (dir, name), put);
                }
                let node = from.node(&of)?;
                if put.kind != Kind::Link || node.stat.kind != Kind::Link {
                    self.left_out.push(path.to_owned());
                    return Ok(());
                }
                let temporary = dir.free_name()?;
                dir.make_link(&temporary, &node.target()?)?;
                replace(dir, &temporary, name, there, put)
            }
        }
    }

    /// Copies a file. The second name of one that was copied with the same owner and the like is a second name of
    /// the copy.
    fn copy_file(
        &mut self,
        path: &Path,
        (from, of): (&Dir, &OsStr),
        (dir, name): (&Dir, &OsStr),
        put: &Put,
    ) -> io::Result<()> {
        let there = dir.stat_of(name)?.map(|stat| stat.kind);
        let node = from.node(of)?;
        if node.stat.kind != Kind::File {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        let temporary = dir.free_name()?;
        let has_more_names = node.stat.links > 1;
        if let Some((first, meta)) = self.copied.get(&node.stat.id).filter(|_| has_more_names) {
            if let (true, Some((first_dir, first))) = (*meta == put.meta, self.copy.place(first)?) {
                dir.link(&temporary, &first_dir, &first)?;
                return replace_with(dir, &temporary, name, there);
            }
        }
        let copied = dir.create(&temporary).and_then(|file| node.copy_to(&file));
        copied?;
        dir.set_meta(&temporary, &put.meta, Some(node.stat.mtime))?;
        replace_with(dir, &temporary, name, there)?;
        let locks = node.locks()?;
        if !locks.is_empty() {
            dir.node(name)?.set_locks(locks)?;
        }
        if has_more_names {
            let copied = (path.to_owned(), put.meta.clone());
            self.copied.entry(node.stat.id).or_insert(copied);
        }
        Ok(())
    }

    /// Removes what is empty now, and gives new directories their times.
    fn finish(&mut self) -> Result<()> {
        for path in self.emptied.iter().rev() {
            if let Some((dir, name)) = self.copy.place(path)? {
                dir.remove(&name)
                    .with_context(|| format!("cannot remove {}{}", self.above, escaped(path)))?;
            }
        }
        for (path, mtime) in &self.dirs {
            if let Some((dir, name)) = self.copy.place(path)? {
                dir.set_mtime(&name, *mtime)
                    .with_context(|| format!("cannot write {}{}", self.above, escaped(path)))?;
            }
        }
        Ok(())
    }
}

/// Completes a new file and puts it into its place.
fn replace(
    dir: &Dir,
    temporary: &OsStr,
    name: &OsStr,
    there: Option<Kind>,
    put: &Put,
) -> io::Result<()> {
    dir.set_meta(temporary, &put.meta, put.mtime)?;
    replace_with(dir, temporary, name, there)
}

fn replace_with(dir: &Dir, temporary: &OsStr, name: &OsStr, there: Option<Kind>) -> io::Result<()> {
    if there == Some(Kind::Dir) {
        dir.remove_all(name)?;
    }
    dir.rename(temporary, name)?;
    // Where both are one file, rename(2) does nothing.
    dir.remove(temporary).map(drop)
}
