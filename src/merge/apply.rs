//! Puts a plan into the copy of the new base. Each file takes its place when it is complete.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::plan::{Action, Content, ETC, Plan, Put, node_of, user_files};
use super::reown::reowned;
use super::users::{Ids, UserFiles};
use crate::tree::{Below, Dir, Id, Kind, Meta, Node, Time, escaped, walk};

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
    let mut applier = Applier::new(ETC, layer, copy);
    for item in &plan.items {
        applier.item(&item.path, &item.action)?;
    }
    applier.finish()
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
    let mut applier = Applier::new("", Some(from.again()?), to.again()?);
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
        applier.item(&path, &Action::Put(put))?;
        Ok(Below::Visit)
    })?;
    match applier.finish()?.first() {
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
    Ok(Ids::between(&users_of(from)?, &users_of(to)?))
}

/// The files of users and groups of a root.
pub fn users_of(root: &Dir) -> Result<UserFiles> {
    let etc = root.descend(Path::new(ETC));
    let files = etc.and_then(|etc| user_files(etc.as_ref()));
    files.context("cannot read the users of a root")
}

/// A directory, and the one below it that was needed last: most paths follow each other.
pub(super) struct Opened {
    root: Dir,
    last: Option<(PathBuf, Dir)>,
}

impl Opened {
    pub fn new(root: Dir) -> Self {
        Self { root, last: None }
    }

    /// The directory that a path is in, and its name there.
    pub fn place(&mut self, path: &Path) -> io::Result<Option<(Dir, OsString)>> {
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

/// What is done with a directory when all that is put into it is there.
enum End {
    /// It goes if nothing is in it.
    Remove,
    /// It gets its time, which what was put into it has changed.
    SetTime(Time),
}

/// Does what was planned, path by path: a directory comes before what is in it.
pub(super) struct Applier {
    /// Where the paths begin, from the root.
    top: &'static str,
    layer: Option<Opened>,
    copy: Opened,
    /// Files of several names that were copied: where, and with what.
    copied: BTreeMap<Id, (PathBuf, Meta)>,
    /// The directories above the path, each in the one before.
    open: Vec<(PathBuf, End)>,
    left_out: Vec<PathBuf>,
    /// Whether what a file holds is on the disk before it has its name.
    is_lasting: bool,
}

impl Applier {
    pub fn new(top: &'static str, layer: Option<Dir>, copy: Dir) -> Self {
        Self {
            top,
            layer: layer.map(Opened::new),
            copy: Opened::new(copy),
            copied: BTreeMap::new(),
            open: Vec::new(),
            left_out: Vec::new(),
            is_lasting: false,
        }
    }

    /// The same for a tree that is in use: nothing else tells after a power cut which of its files are whole.
    pub fn lasting(self) -> Self {
        Self {
            is_lasting: true,
            ..self
        }
    }

    pub fn item(&mut self, path: &Path, action: &Action) -> Result<()> {
        self.end(Some(path))?;
        self.act(path, action)
            .with_context(|| format!("cannot write {}", shown(self.top, path)))
    }

    /// Returns the paths that had no place, which are left out.
    pub fn finish(mut self) -> Result<Vec<PathBuf>> {
        self.end(None)?;
        Ok(self.left_out)
    }

    /// Ends the directories that the next path is not in.
    fn end(&mut self, next: Option<&Path>) -> Result<()> {
        let has_next = |path: &Path| next.is_some_and(|next| next.starts_with(path));
        let mut ended = Vec::new();
        while let Some((path, end)) = self.open.pop() {
            if has_next(&path) {
                self.open.push((path, end));
                break;
            }
            ended.push((path, end));
        }
        let is_removed = |(_, end): &&(PathBuf, End)| matches!(end, End::Remove);
        for (path, end) in ended.iter().filter(is_removed) {
            self.end_one(path, end)?;
        }
        // From the top down, so that each is opened from the one before.
        for (path, end) in ended.iter().rev().filter(|ended| !is_removed(ended)) {
            self.end_one(path, end)?;
        }
        Ok(())
    }

    fn end_one(&mut self, path: &Path, end: &End) -> Result<()> {
        let ended = self.copy.place(path).and_then(|place| match (place, end) {
            (Some((dir, name)), End::Remove) => dir.remove(&name).map(drop),
            (Some((dir, name)), End::SetTime(time)) => dir.set_mtime(&name, *time),
            (None, _) => Ok(()),
        });
        ended.with_context(|| format!("cannot write {}", shown(self.top, path)))
    }

    fn act(&mut self, path: &Path, action: &Action) -> io::Result<()> {
        match action {
            Action::Nothing => Ok(()),
            Action::Remove => match self.copy.place(path)? {
                Some((dir, name)) => dir.remove_all(&name),
                None => Ok(()),
            },
            Action::RemoveDir => {
                self.open.push((path.to_owned(), End::Remove));
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
                if found.map(|stat| stat.kind) != Some(Kind::Dir) {
                    dir.remove_all(name)?;
                    dir.make_dir(name)?;
                }
                let end = put.mtime.map(End::SetTime);
                self.open.extend(end.map(|end| (path.to_owned(), end)));
                dir.set_meta(name, &put.meta, None)
            }
            (Content::Bytes(content), _) => {
                dir.replace(name, &mut |temporary| {
                    dir.create(temporary)?.write_all(content)?;
                    dir.set_meta(temporary, &put.meta, put.mtime)
                })?;
                let layer = self.layer.as_mut().map(|layer| layer.place(path));
                match layer.transpose()?.flatten() {
                    Some((from, of)) => keep_locks(node_of(&from, &of)?.as_ref(), dir, name),
                    None => Ok(()),
                }
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
                let Some(node) = node_of(&from, &of)? else {
                    return Ok(());
                };
                let is_link = node.stat.kind == Kind::Link;
                if put.kind != node.stat.kind || !is_link && !node.stat.is_whiteout() {
                    self.left_out.push(path.to_owned());
                    return Ok(());
                }
                dir.replace(name, &mut |temporary| {
                    if is_link {
                        dir.make_link(temporary, &node.target()?)?;
                    } else {
                        dir.make_whiteout(temporary)?;
                    }
                    dir.set_meta(temporary, &put.meta, put.mtime)
                })
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
        // The layer can run meanwhile, so it can be gone, as if it had been deleted before.
        let Some(node) = node_of(from, of)? else {
            return Ok(());
        };
        if node.stat.kind != Kind::File {
            self.left_out.push(path.to_owned());
            return Ok(());
        }
        let has_more_names = node.stat.links > 1;
        if let Some((first, meta)) = self.copied.get(&node.stat.id).filter(|_| has_more_names)
            && let (true, Some((first_dir, first))) = (*meta == put.meta, self.copy.place(first)?)
        {
            // One that is immutable takes no further name.
            let node = first_dir.node(&first)?;
            return node.lifted(|| {
                dir.replace(name, &mut |temporary| {
                    dir.link(temporary, &first_dir, &first)
                })
            });
        }
        let is_lasting = self.is_lasting;
        dir.replace(name, &mut |temporary| {
            let file = dir.create(temporary)?;
            node.copy_to(&file)?;
            if is_lasting {
                file.sync_all()?;
            }
            dir.set_meta(temporary, &put.meta, Some(node.stat.mtime))
        })?;
        keep_locks(Some(&node), dir, name)?;
        if has_more_names {
            let copied = (path.to_owned(), put.meta.clone());
            self.copied.entry(node.stat.id).or_insert(copied);
        }
        Ok(())
    }
}

/// Gives a name the flags of chattr(1) of what it is a copy of.
fn keep_locks(of: Option<&Node>, dir: &Dir, name: &OsStr) -> io::Result<()> {
    match of.map(Node::locks).transpose()? {
        Some(locks) if !locks.is_empty() => dir.node(name)?.set_locks(locks),
        _ => Ok(()),
    }
}

/// A path from the root, for people.
fn shown(top: &str, path: &Path) -> String {
    escaped(Path::new("/").join(top).join(path))
}
