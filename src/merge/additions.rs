//! What is new in the /var of an image, where layers share theirs: it is added to the volumes when its layer is booted for
//! the first time. Nothing that is there is touched, so the other layers go on with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::apply::{Applier, owned};
use super::outside::Zones;
use super::plan::{Action, Content, Put, node_of};
use super::users::Ids;
use crate::tree::{Below, Dir, Kind, Place, escaped, walk};

/// The directory that layers can share with what programs keep.
const VAR: &str = "var";
/// What a file takes beside its content, in bytes.
const FILE: u64 = 4096;

/// The paths below /var that the new base has and the old one has not, from the root. None is below another one. What
/// the old one has as well and a volume has not, somebody has deleted there.
pub fn new_in_var(old: &Dir, new: &Dir, go_on: &dyn Fn() -> Result<()>) -> Result<Vec<PathBuf>> {
    let zones = Zones::of_image()?;
    let var = Path::new(VAR);
    let open = |root: &Dir| root.descend(var).context("cannot open /var of a base");
    let mut found = Vec::new();
    walk(&[open(old)?, open(new)?], None, &mut |visit| {
        go_on()?;
        let path = var.join(visit.path);
        match visit.places {
            _ if !zones.is_carried(&path) => Ok(Below::Skip),
            [None, Some(_)] => {
                found.push(path);
                Ok(Below::Skip)
            }
            [Some(_), Some(_)] => Ok(Below::Visit),
            _ => Ok(Below::Skip),
        }
    })?;
    Ok(found)
}

/// A volume, and what is to be added to it.
pub struct Additions<'a> {
    /// Where it is mounted, from the root.
    at: &'a Path,
    /// Below that, a directory before what is in it.
    paths: Vec<PathBuf>,
    /// What they take.
    pub bytes: u64,
}

impl<'a> Additions<'a> {
    /// Looks for what the volume `to`, which is mounted at `at`, has not of these paths. The layer's own files are those
    /// below its root `layer`, with the numbers that owners have on the host. What is on one of the `others` is not for
    /// this one.
    pub fn of(
        new: &[PathBuf],
        (at, to): (&'a Path, &Dir),
        others: &[PathBuf],
        layer: &Dir,
        go_on: &dyn Fn() -> Result<()>,
    ) -> Result<Self> {
        let zones = Zones::of_image()?;
        let own = layer.descend(at);
        let own = own.with_context(|| format!("cannot open /{}", escaped(at)))?;
        let mut additions = Self {
            at,
            paths: Vec::new(),
            bytes: 0,
        };
        let (Some(own), false) = (own, new.is_empty()) else {
            return Ok(additions);
        };
        let is_other = |path: &Path| {
            let deeper = |other: &&PathBuf| other.as_path() != at && other.starts_with(at);
            others
                .iter()
                .filter(deeper)
                .any(|other| path.starts_with(other))
        };
        for top in new {
            let Ok(below) = top.strip_prefix(at) else {
                continue;
            };
            let above = below.parent().unwrap_or(Path::new(""));
            let dirs = [own.descend(above)?, to.descend(above)?];
            if dirs.iter().any(Option::is_none) {
                // The directory was deleted, or is something else there.
                continue;
            }
            walk(&dirs, below.file_name(), &mut |visit| {
                go_on()?;
                let path = above.join(visit.path);
                let whole = at.join(&path);
                if !zones.is_carried(&whole) || is_other(&whole) {
                    return Ok(Below::Skip);
                }
                Ok(additions.see(path, visit.places))
            })?;
        }
        Ok(additions)
    }

    fn see(&mut self, path: PathBuf, places: &[Option<Place>]) -> Below {
        let [Some(from), to] = places else {
            return Below::Skip;
        };
        let kind = from.stat.kind;
        let is_wanted = matches!(kind, Kind::File | Kind::Dir | Kind::Link);
        match to {
            Some(to) if kind == Kind::Dir && to.stat.kind == Kind::Dir => Below::Visit,
            None if is_wanted => {
                self.bytes = self
                    .bytes
                    .saturating_add(from.stat.used)
                    .saturating_add(FILE);
                self.paths.push(path);
                Below::Visit
            }
            _ => Below::Skip,
        }
    }

    /// How many paths there are.
    pub fn count(&self) -> usize {
        self.paths.len()
    }

    /// Adds them. Each file takes its place when it is complete, and none that has come meanwhile is replaced.
    pub fn apply(&self, layer: &Dir, to: &Dir, go_on: &dyn Fn() -> Result<()>) -> Result<()> {
        let own = layer.descend(self.at)?.context("it is there")?;
        let mut applier = Applier::new(VAR, Some(own.again()?), to.again()?).lasting();
        for path in &self.paths {
            go_on()?;
            let above = path.parent().unwrap_or(Path::new(""));
            let (Some(from), Some(there)) = (own.descend(above)?, to.descend(above)?) else {
                continue;
            };
            let Some(name) = path.file_name() else {
                continue;
            };
            let Some(node) = node_of(&from, name)? else {
                continue;
            };
            if there.stat_of(name)?.is_some() {
                continue;
            }
            let put = Put {
                kind: node.stat.kind,
                content: Content::Layer,
                meta: owned(&node, &Ids::default())?,
                mtime: Some(node.stat.mtime),
            };
            applier.item(path, &Action::Put(put))?;
        }
        applier.finish().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;

    use super::*;

    /// The additions to volumes at these paths, as `VOLUME: PATHS`, and the files that are there then.
    fn complete(script: &str, volumes: &[&str]) -> (Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path();
        let run = |script: &str| {
            let script = format!("set -e; cd {}; {script}", at.display());
            let ran = Command::new("sh").args(["-c", &script]).output().unwrap();
            assert!(ran.status.success(), "{script}: {ran:?}");
            String::from_utf8(ran.stdout).unwrap()
        };
        run("mkdir -p old/var/lib/both new/var/lib/both vol; touch old/var/lib/old");
        run(script);
        let root = |name: &str| Dir::root(&at.join(name)).unwrap();
        let go_on = || Ok(());
        let new = new_in_var(&root("old"), &root("new"), &go_on).unwrap();
        let others: Vec<PathBuf> = volumes.iter().map(PathBuf::from).collect();
        let mut told = Vec::new();
        for volume in volumes {
            let path = at.join("vol").join(volume);
            fs::create_dir_all(&path).unwrap();
            let (to, place) = (Dir::root(&path).unwrap(), Path::new(volume));
            let layer = root("new");
            for _ in 0..2 {
                let found = Additions::of(&new, (place, &to), &others, &layer, &go_on).unwrap();
                if found.count() > 0 {
                    told.push(format!("{volume}: {:?}", found.paths));
                }
                found.apply(&layer, &to, &go_on).unwrap();
            }
        }
        let list = run(
            "cd vol; find . -mindepth 2 | LC_ALL=C sort | tr '\\n' ' '; find . -type f | LC_ALL=C sort | xargs cat",
        );
        (told, list)
    }

    #[test]
    fn only_what_is_new_in_the_image_and_not_there_is_added() {
        for (script, volumes, told, there) in [
            // What both bases have, somebody has deleted on the volume.
            ("mkdir -p vol/var/lib", &["var"][..], &[][..], "./var/lib "),
            (
                "mkdir -p vol/var/lib new/var/lib/app/d; echo app >new/var/lib/app/f; ln -s x new/var/lib/app/l",
                &["var"],
                &[r#"var: ["lib/app", "lib/app/d", "lib/app/f", "lib/app/l"]"#],
                "./var/lib ./var/lib/app ./var/lib/app/d ./var/lib/app/f ./var/lib/app/l app\n",
            ),
            // What is there stays, and gets what it lacks.
            (
                "mkdir -p vol/var/lib/app new/var/lib/app; echo new >new/var/lib/app/a; echo new >new/var/lib/app/b; \
                 echo own >vol/var/lib/app/a",
                &["var"],
                &[r#"var: ["lib/app/b"]"#],
                "./var/lib ./var/lib/app ./var/lib/app/a ./var/lib/app/b own\nnew\n",
            ),
            (
                "mkdir -p vol/var/lib new/var/lib/app; touch vol/var/lib/app new/var/lib/app/a",
                &["var"],
                &[],
                "./var/lib ./var/lib/app ",
            ),
            // Where a directory is gone, what is new in it is not wanted.
            (
                "mkdir -p vol/var/lib; touch new/var/lib/both/x",
                &["var"],
                &[],
                "./var/lib ",
            ),
            // Records of packages, caches and what is neither file nor directory.
            (
                "mkdir -p vol/var/lib vol/var/cache new/var/lib/dpkg/info new/var/cache/x new/var/tmp/x; \
                 mkfifo new/var/lib/pipe",
                &["var"],
                &[],
                "./var/cache ./var/lib ",
            ),
            // Each volume gets its own.
            (
                "mkdir -p vol/var/lib vol/var/log new/var/log/app new/var/spool",
                &["var", "var/log"],
                &[r#"var: ["spool"]"#, r#"var/log: ["app"]"#],
                "./var/lib ./var/log ./var/log/app ./var/spool ",
            ),
        ] {
            let (found, list) = complete(script, volumes);
            assert_eq!(found, told, "{script}");
            assert_eq!(list, there, "{script}");
        }
    }
}
