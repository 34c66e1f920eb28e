//! `persist take`, `reset` and `pull`: paths of the layer that runs become what they are in another root.
//!
//! A copy is made whole in a directory of its own. Then it and what is there change places, and what was there is
//! removed when all is done. So each path is the old or the new one, whenever somebody reads it.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context as _, Result, bail, ensure};

use super::conflicts::{self, RUNNING};
use super::inside;
use crate::admin::filesystem::Filesystem;
use crate::admin::merge_report::{self, MergeReport};
use crate::admin::roots::{self, Tree};
use crate::admin::{Context, say};
use crate::merge::{self, Class, Ids};
use crate::model::fstab;
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::persist::{below_etc, of_layer};
use crate::sys::cmd::Cmd;
use crate::sys::files::is_temporary;
use crate::sys::flush::flush;
use crate::sys::interrupt::Interrupt;
use crate::sys::mounts::{self, Mount};
use crate::tree::{Dir, Kind, Meta, READ_MAX, escaped};

const FSTAB: &str = "etc/fstab";

/// Which paths are meant, and from where they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Conflicts, from the base.
    Take,
    /// Any path of /etc, from the base.
    Reset,
    /// Any path, from the layer before.
    Pull,
}

/// Makes paths what they are in the source, and takes them off the list of conflicts. `yes`: also where that removes
/// a directory with all that is in it.
pub fn restore(context: &Context, source: Source, paths: &[PathBuf], yes: bool) -> Result<()> {
    let verb = match source {
        Source::Take => "persist take",
        Source::Reset => "persist reset",
        Source::Pull => "persist pull",
    };
    let paths = checked(source, paths)?;
    let done = context.change(verb, |tx| {
        let group = context.load()?;
        let Tree::Volume(running) = roots::named(&group, Tree::Running)? else {
            bail!("what runs is no layer: all that is changed in it is gone at the next start");
        };
        let mut report = conflicts::report(&group)?;
        let from = match source {
            Source::Pull => layer_before(&group, report.as_ref())?,
            _ => roots::base_of_running(&group)?,
        };
        let mut is_settled = false;
        for path in &paths {
            let path = Path::new("/").join(path);
            let below = source != Source::Take;
            let is_listed = report.as_mut().is_some_and(|r| r.settle(&path, below));
            ensure!(is_listed || below, conflicts::not_listed(&path));
            is_settled |= is_listed;
        }
        let mut done = String::new();
        inside(context, tx, &group, &from, "ro", &mut |tx, root| {
            let here = Dir::root(Path::new(RUNNING))?;
            let there = Dir::root(root)?;
            let mut changes = Vec::new();
            for path in &paths {
                changes.push(Change::new((source, yes), path, &from, [&here, &there])?);
            }
            let mounts = mounts::all()?;
            changes.iter().try_for_each(|of| of.check_mounts(&mounts))?;
            done = changes.iter().map(|change| change.done(&from)).collect();
            changes.retain(|change| change.act != Act::Nothing);
            if changes.is_empty() {
                return Ok(());
            }
            let shown: Vec<String> = changes.iter().map(|change| change.shown(root)).collect();
            let copier = Copier {
                fstab: own_fstab(context, &running, &there, &paths)?,
                ids: merge::ids_between(&there, &here)?,
                here,
                there,
                changes,
            };
            let stage: Rc<RefCell<Option<Stage>>> = Rc::default();
            let (filled, undone) = (Rc::clone(&stage), Rc::clone(&stage));
            tx.work_undoable(
                &shown.join("\n"),
                |interrupt| {
                    *filled.borrow_mut() = Some(copier.run(interrupt)?);
                    Ok(())
                },
                move || match &mut *undone.borrow_mut() {
                    Some(stage) => stage.take_back(),
                    None => Ok(()),
                },
            )?;
            tx.discard(move || {
                if let Some(stage) = &*stage.borrow() {
                    stage.remove()?;
                }
                Ok(Vec::new())
            });
            Ok(())
        })?;
        if let Some(report) = report.filter(|_| is_settled) {
            conflicts::write(tx, &report)?;
        }
        Ok(done)
    })?;
    if context.dry_run {
        return Ok(());
    }
    say(&done)
}

/// The paths from the root, in their order. Refuses what cannot be restored by itself.
fn checked(source: Source, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut checked = Vec::new();
    for path in paths {
        let below = match source {
            Source::Take | Source::Reset => below_etc(path)?,
            Source::Pull => of_layer(path)?,
        };
        let in_etc = below.strip_prefix("etc").ok();
        ensure!(
            in_etc != Some(Path::new("")),
            "/etc has the accounts of this layer and its fstab, and is not replaced as a whole; name what is in it"
        );
        ensure!(
            in_etc.is_none_or(|path| merge::class(path, false) != Class::Users),
            "{} is merged by name, since files carry the numbers of users; usermod(8) and the like change it",
            escaped(path)
        );
        checked.push(below);
    }
    checked.sort_unstable();
    checked.dedup();
    for pair in checked.windows(2) {
        if let [above, below] = pair {
            ensure!(
                !below.starts_with(above),
                "/{} is a part of /{}",
                escaped(below),
                escaped(above)
            );
        }
    }
    Ok(checked)
}

/// The layer that was there before the update.
fn layer_before(group: &Group, report: Option<&MergeReport>) -> Result<LvName> {
    let report =
        report.context("what runs was made by no update, so there is no layer before it")?;
    let name = report.layer.parse().ok();
    let name = name.filter(|name| group.bootable().contains(name));
    name.with_context(|| format!("the layer before, {}, is gone", escaped(&report.layer)))
}

/// The fstab of the other root with the device of the layer that runs on the line for /, if that is wanted.
fn own_fstab(
    context: &Context,
    running: &LvName,
    there: &Dir,
    paths: &[PathBuf],
) -> Result<Option<Vec<u8>>> {
    let path = Path::new(FSTAB);
    let is_wanted = paths.iter().any(|wanted| wanted == path);
    let Some((dir, name)) = place(there, path)?.filter(|_| is_wanted) else {
        return Ok(None);
    };
    if dir.stat_of(&name)?.map(|stat| stat.kind) != Some(Kind::File) {
        return Ok(None);
    }
    let text = dir.node(&name)?.read(READ_MAX)?;
    let device = context.lvm.device(running)?;
    let kind = Filesystem::on(&device)?.kind;
    let device = device.as_os_str().as_encoded_bytes();
    let own = fstab::with_root(&text, device, kind.name());
    Ok(Some(own.map_or(text, |own| own.text)))
}

/// The directory that a path is in, and its name there; `None` where no directory of this root is.
fn place(root: &Dir, path: &Path) -> Result<Option<(Dir, OsString)>> {
    let above = path.parent().unwrap_or(Path::new(""));
    let dir = root
        .descend(above)
        .with_context(|| format!("cannot open /{}", escaped(above)))?;
    let name = path.file_name().unwrap_or_default();
    Ok(dir.map(|dir| (dir, name.to_owned())))
}

fn kind_at(root: &Dir, path: &Path) -> Result<Option<Kind>> {
    let Some((dir, name)) = place(root, path)? else {
        return Ok(None);
    };
    let stat = dir.stat_of(&name);
    let stat = stat.with_context(|| format!("cannot look at /{}", escaped(path)))?;
    Ok(stat.map(|stat| stat.kind))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// It is what it should be.
    Nothing,
    /// A copy takes its place.
    Put,
    Remove,
    /// A directory gets mode, owner and attributes.
    Meta,
}

/// What is done at a path, which is `here` in the layer that runs, and `there` in the source `from`. Refuses what
/// would remove more than was asked for.
fn act(
    (source, yes): (Source, bool),
    path: &Path,
    from: &LvName,
    here: Option<Kind>,
    there: Option<Kind>,
) -> Result<Act> {
    use Kind::{Dir, File, Link};
    let shown = format!("/{}", escaped(path));
    match (here, there) {
        (None, None) if source == Source::Take => Ok(Act::Nothing),
        (None, None) => bail!("there is no {shown}, neither here nor in {from}"),
        (_, None) if source == Source::Pull => bail!("{from} has no {shown}"),
        (Some(Dir), Some(Dir)) if source == Source::Take => Ok(Act::Meta),
        (Some(Dir), _) if !yes => bail!(
            "{shown} is a directory: with --yes it becomes what it is in {from}, and all that is in it now is lost"
        ),
        (_, Some(kind)) if !matches!(kind, Dir | File | Link) => {
            bail!(
                "{shown} is a {} in {from}, which is not copied",
                kind.name()
            )
        }
        (Some(kind), None) if !matches!(kind, Dir | File | Link) => {
            bail!("{shown} is a {}, which is not removed", kind.name())
        }
        (Some(_), None) => Ok(Act::Remove),
        (_, Some(_)) => Ok(Act::Put),
    }
}

/// What is done at one path.
struct Change {
    /// From the root.
    path: PathBuf,
    act: Act,
    is_dir: bool,
}

impl Change {
    fn new(
        wanted: (Source, bool),
        path: &Path,
        from: &LvName,
        [here, there]: [&Dir; 2],
    ) -> Result<Self> {
        let (kind, kind_there) = (kind_at(here, path)?, kind_at(there, path)?);
        let act = act(wanted, path, from, kind, kind_there)?;
        if act != Act::Nothing {
            let above = path.parent().unwrap_or(Path::new(""));
            ensure!(
                here.descend(above)?.is_some(),
                "/{} is no directory of the layer that runs; name that one, if it is to come as well",
                escaped(above)
            );
        }
        Ok(Self {
            path: path.to_owned(),
            act,
            is_dir: kind == Some(Kind::Dir),
        })
    }

    /// Refuses to carry off what is mounted below a directory.
    fn check_mounts(&self, mounts: &[Mount]) -> Result<()> {
        let at = Path::new("/").join(&self.path);
        let mut points = mounts.iter().map(|mount| &mount.point);
        match points.find(|point| point.starts_with(&at)) {
            Some(point) if matches!(self.act, Act::Put | Act::Remove) => bail!(
                "{} is mounted, so {} cannot be replaced; unmount it, or name what is beside it",
                escaped(point),
                escaped(&at)
            ),
            _ => Ok(()),
        }
    }

    /// Commands that do much the same.
    fn shown(&self, root: &Path) -> String {
        let (from, to) = (root.join(&self.path), Path::new("/").join(&self.path));
        let remove = Cmd::new("rm").arg("-r").arg(&to);
        match self.act {
            Act::Nothing => String::new(),
            Act::Remove => remove.to_string(),
            Act::Put => {
                let copy = Cmd::new("cp").args(["-aT", "--remove-destination"]);
                let copy = copy.arg(from).arg(to);
                if self.is_dir {
                    format!("{remove}\n{copy}")
                } else if self.path == Path::new(FSTAB) {
                    format!("{copy}\n# the line for / in it gets the device of this layer")
                } else {
                    copy.to_string()
                }
            }
            Act::Meta => {
                let commands = ["chown", "chmod"].map(|program| {
                    let cmd = Cmd::new(program).arg("--reference").arg(&from).arg(&to);
                    cmd.to_string()
                });
                commands.join("\n")
            }
        }
    }

    /// What was done, for people.
    fn done(&self, from: &LvName) -> String {
        let path = format!("/{}", escaped(&self.path));
        match self.act {
            Act::Nothing => format!("{path} is off the list\n"),
            Act::Put => format!("{path} is as in {from}\n"),
            Act::Remove => format!("{path} is removed, as {from} does not have it\n"),
            Act::Meta => format!("mode, owner and attributes of {path} are as in {from}\n"),
        }
    }
}

struct Copier {
    here: Dir,
    there: Dir,
    changes: Vec<Change>,
    ids: Ids,
    fstab: Option<Vec<u8>>,
}

impl Copier {
    /// Does all of it or nothing.
    fn run(self, interrupt: &Interrupt) -> Result<Stage> {
        let mut stage = Stage::new(&self.here).context("cannot make a directory for the copies")?;
        let filled = self.fill(&mut stage, interrupt);
        if filled.is_err()
            && let Err(error) = stage.take_back()
        {
            log::error!("not undone: {error:#}");
        }
        filled.map(|()| stage)
    }

    fn fill(&self, stage: &mut Stage, interrupt: &Interrupt) -> Result<()> {
        let copies = stage.above.child(&stage.name)?;
        let mut places = Vec::new();
        for Change { path, act, .. } in &self.changes {
            let found = place(&self.here, path)?;
            let (dir, name) = found.with_context(|| format!("/{} is gone", escaped(path)))?;
            let above = path.parent().unwrap_or(Path::new(""));
            let staged = copies.make_dirs(above)?;
            let staged = staged.context("cannot make a directory for the copy")?;
            if *act == Act::Put {
                let fstab = self.fstab.clone().filter(|_| path == Path::new(FSTAB));
                let check = || interrupt.check();
                merge::copy(path, &self.there, &copies, &self.ids, fstab, &check)?;
            }
            places.push((dir, name, staged));
        }
        // The names change places in the journal, perhaps before the content of a file is on the disk.
        flush(Path::new(RUNNING))?;
        for (Change { path, act, .. }, (dir, name, staged)) in self.changes.iter().zip(places) {
            let failed = || format!("cannot change /{}", escaped(path));
            let done = if *act == Act::Meta {
                self.set_meta(path, dir, name).with_context(failed)?
            } else {
                let exchange = Done::Exchange(dir, staged, name);
                exchange.again().with_context(failed)?;
                exchange
            };
            stage.done.push(done);
        }
        Ok(())
    }

    fn set_meta(&self, path: &Path, dir: Dir, name: OsString) -> Result<Done> {
        let (there, of) = place(&self.there, path)?.context("the base does not have it")?;
        let wanted = merge::owned(&there.node(&of)?, &self.ids)?;
        let old = merge::owned(&dir.node(&name)?, &Ids::default())?;
        set_meta(&dir, &name, &wanted)?;
        Ok(Done::Meta(dir, name, old))
    }
}

/// Where copies are until they take their place, and after that what was there.
struct Stage {
    above: Dir,
    name: OsString,
    /// In their order.
    done: Vec<Done>,
}

enum Done {
    /// These two have changed places, under one name.
    Exchange(Dir, Dir, OsString),
    /// The directory had these.
    Meta(Dir, OsString, Meta),
}

impl Done {
    /// Changes places, or changes them back.
    fn again(&self) -> io::Result<()> {
        match self {
            Self::Exchange(here, staged, name) => here.exchange(name, staged, name),
            Self::Meta(dir, name, old) => set_meta(dir, name, old),
        }
    }
}

/// What chattr(1) has made immutable stays that.
fn set_meta(dir: &Dir, name: &OsStr, meta: &Meta) -> io::Result<()> {
    let node = dir.node(name)?;
    node.lifted(|| dir.set_meta(name, meta, None))
}

impl Stage {
    /// An empty one. What an interrupted command has left is removed.
    fn new(root: &Dir) -> io::Result<Self> {
        let above = merge_report::directory(root)?;
        for name in above.names()? {
            if is_temporary(Path::new(&name)) {
                above.remove_all(&name)?;
            }
        }
        let name = above.free_name()?;
        above.make_dir(&name)?;
        Ok(Self {
            above,
            name,
            done: Vec::new(),
        })
    }

    /// Undoes all that was done, the last first.
    fn take_back(&mut self) -> Result<()> {
        while let Some(done) = self.done.last() {
            done.again().context("cannot change a path back")?;
            self.done.pop();
        }
        self.remove()
    }

    fn remove(&self) -> Result<()> {
        let removed = self.above.remove_all(&self.name);
        removed.with_context(|| format!("cannot remove {}", escaped(&self.name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_is_lost_that_was_not_named() {
        use Kind::{Char, Dir, Fifo, File, Link, Socket};
        use Source::{Pull, Reset, Take};
        let base: LvName = "Base-1".parse().unwrap();
        for (source, yes, here, there, wanted) in [
            (Take, false, Some(File), Some(File), Ok(Act::Put)),
            (Take, false, Some(File), Some(Link), Ok(Act::Put)),
            (Take, false, None, Some(File), Ok(Act::Put)),
            (Take, false, Some(Link), None, Ok(Act::Remove)),
            (Take, false, None, None, Ok(Act::Nothing)),
            (Take, false, Some(Dir), Some(Dir), Ok(Act::Meta)),
            (Take, false, Some(Dir), Some(File), Err("with --yes")),
            (Take, true, Some(Dir), Some(File), Ok(Act::Put)),
            (Reset, false, Some(File), Some(Dir), Ok(Act::Put)),
            (Reset, false, Some(File), None, Ok(Act::Remove)),
            (Reset, false, Some(Dir), None, Err("with --yes")),
            (Reset, false, Some(Dir), Some(Dir), Err("with --yes")),
            (Reset, true, Some(Dir), Some(Dir), Ok(Act::Put)),
            (Reset, true, Some(Dir), None, Ok(Act::Remove)),
            (Reset, true, None, None, Err("neither here nor in Base-1")),
            (Reset, true, Some(Socket), None, Err("is not removed")),
            (Reset, true, Some(Fifo), Some(File), Ok(Act::Put)),
            (Reset, true, Some(File), Some(Char), Err("is not copied")),
            (Pull, true, Some(File), None, Err("Base-1 has no /etc/x")),
            (Pull, false, None, Some(Dir), Ok(Act::Put)),
        ] {
            let found = act((source, yes), Path::new("etc/x"), &base, here, there);
            let case = format!("{source:?} {yes} {here:?} {there:?}");
            match (found, wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, wanted, "{case}"),
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{case}: {error}");
                }
                (found, _) => panic!("{case}: {found:?}"),
            }
        }
    }

    #[test]
    fn some_paths_are_refused_before_anything_is_done() {
        let checked = |source, paths: &[&str]| {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            checked(source, &paths).map_err(|error| error.to_string())
        };
        for (source, paths, wanted) in [
            (Source::Take, &["/root/x"][..], "not below /etc"),
            (Source::Reset, &["/etc/passwd"], "usermod(8)"),
            (Source::Pull, &["/etc/shadow"], "usermod(8)"),
            (Source::Pull, &["/etc"], "as a whole"),
            (
                Source::Pull,
                &["/usr/bin/ls"],
                "/usr/bin/ls is of the image",
            ),
            (
                Source::Reset,
                &["/etc/a/b", "/etc/a"],
                "/etc/a/b is a part of /etc/a",
            ),
        ] {
            let error = checked(source, paths).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        let found = checked(Source::Pull, &["/root/x", "/etc/a", "/etc//a", "/etc/a.b"]);
        let wanted = ["etc/a", "etc/a.b", "root/x"];
        assert_eq!(found.unwrap(), wanted.map(PathBuf::from));
    }

    fn change(path: &str, act: Act) -> Change {
        Change {
            path: path.into(),
            act,
            is_dir: false,
        }
    }

    #[test]
    fn what_is_mounted_below_a_directory_stays_there() {
        let mounts = mounts::parse(
            b"1 0 0:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /srv/data rw - ext4 /dev/b rw\n",
        );
        for (path, act, is_refused) in [
            ("srv", Act::Put, true),
            ("srv", Act::Remove, true),
            ("srv/data", Act::Put, true),
            ("srv", Act::Meta, false),
            ("srv", Act::Nothing, false),
            ("srv/dat", Act::Put, false),
            ("srv/data/x", Act::Put, false),
            ("srvx", Act::Put, false),
        ] {
            let checked = change(path, act).check_mounts(&mounts);
            assert_eq!(checked.is_err(), is_refused, "{path} {act:?}");
        }
    }

    /// A layer and a base, and what is at the paths that are changed.
    fn copier(dir: &Path, changes: Vec<Change>) -> Copier {
        let [here, there] = ["here", "there"].map(|name| dir.join(name));
        for root in [&here, &there] {
            fs::create_dir_all(root.join("etc/d")).unwrap();
        }
        for (path, content) in [
            ("etc/x", "ours"),
            ("etc/fstab", "ours"),
            ("etc/d/new", "ours"),
        ] {
            fs::write(here.join(path), content).unwrap();
        }
        for (path, content) in [
            ("etc/x", "theirs"),
            ("etc/fstab", "theirs"),
            ("etc/d/old", ""),
        ] {
            fs::write(there.join(path), content).unwrap();
        }
        if !there.join("etc/link").is_symlink() {
            symlink("x", there.join("etc/link")).unwrap();
        }
        Copier {
            here: Dir::root(&here).unwrap(),
            there: Dir::root(&there).unwrap(),
            changes,
            ids: Ids::default(),
            fstab: Some(b"own".to_vec()),
        }
    }

    fn read(dir: &Path, path: &str) -> String {
        fs::read_to_string(dir.join("here/etc").join(path)).unwrap_or_default()
    }

    #[test]
    fn paths_change_places_and_can_change_back() {
        let dir = tempfile::tempdir().unwrap();
        let changes = vec![
            change("etc/d", Act::Put),
            change("etc/fstab", Act::Put),
            change("etc/link", Act::Put),
            change("etc/x", Act::Remove),
        ];
        let copier = copier(dir.path(), changes);
        let mut stage = copier.run(&Interrupt::default()).unwrap();
        let etc = dir.path().join("here/etc");
        assert!(!etc.join("x").exists() && !etc.join("d/new").exists());
        assert!(etc.join("d/old").exists() && etc.join("link").is_symlink());
        assert_eq!(read(dir.path(), "fstab"), "own");
        let kept = dir.path().join("here/usr/lib/sysimage/imgbased");
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);
        stage.take_back().unwrap();
        for path in ["x", "fstab", "d/new"] {
            assert_eq!(read(dir.path(), path), "ours", "{path}");
        }
        assert!(!etc.join("d/old").exists() && !etc.join("link").is_symlink());
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    }

    #[test]
    fn a_failure_leaves_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let changes = vec![change("etc/x", Act::Put), change("gone/x", Act::Remove)];
        assert!(
            copier(dir.path(), changes)
                .run(&Interrupt::default())
                .is_err()
        );
        assert_eq!(read(dir.path(), "x"), "ours");
        let interrupt = Interrupt::default();
        interrupt.set();
        let changes = vec![change("etc/x", Act::Put)];
        assert!(copier(dir.path(), changes).run(&interrupt).is_err());
        assert_eq!(read(dir.path(), "x"), "ours");
        // What a killed one has left goes with the next.
        let kept = dir.path().join("here/usr/lib/sysimage/imgbased");
        fs::create_dir(kept.join(".imgbased-7.tmp")).unwrap();
        let changes = vec![change("etc/x", Act::Put)];
        let stage = copier(dir.path(), changes)
            .run(&Interrupt::default())
            .unwrap();
        assert_eq!(read(dir.path(), "x"), "theirs");
        stage.remove().unwrap();
        assert_eq!(fs::read_dir(&kept).unwrap().count(), 0);
    }
}
