//! What a merge has read, as lstat(2) told it: so it is known later what was changed since, and nothing is read for
//! that. What changes a file or its name sets a time that nobody can choose, its ctime or that of its directory; that
//! time is compared as it is, and not with a clock, which may be set in between.

use std::collections::BTreeSet;
use std::collections::hash_map::DefaultHasher;
use std::ffi::OsStr;
use std::hash::{Hash, Hasher};
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::zone::{Zone, Zones};
use crate::merge::class::{Class, class};
use crate::tree::{Below, Dir, Kind, Stat, walk};

/// All paths that are watched, in the order of a walk. Of each its depth, a number that is another one when it was
/// changed, and its name with a zero behind it.
#[derive(Default)]
pub struct Record(pub Vec<u8>);

impl Record {
    fn add(&mut self, path: &Path, seen: &Seen) {
        let depth = u32::try_from(path.iter().count()).unwrap_or(u32::MAX);
        self.0.extend(depth.to_le_bytes());
        self.0.extend(seen.fingerprint().to_le_bytes());
        self.0
            .extend(path.file_name().unwrap_or_default().as_bytes());
        self.0.push(0);
    }
}

/// What there is of a path.
struct Seen<'a> {
    stat: &'a Stat,
    /// Whether it is merged or carried, and not only in the way to what is.
    is_watched: bool,
}

impl Seen<'_> {
    /// Is another number after each change.
    fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.stat.version().hash(&mut hasher);
        if !self.is_watched {
            self.is_watched.hash(&mut hasher);
        }
        hasher.finish()
    }
}

/// Reads a record from its begin to its end, or to where it is damaged.
struct Reader<'a> {
    rest: &'a [u8],
    path: PathBuf,
    depth: u32,
    /// That of the path; `None` at the end.
    fingerprint: Option<u64>,
}

impl<'a> Reader<'a> {
    fn new(record: &'a Record) -> Self {
        let mut reader = Self {
            rest: &record.0,
            path: PathBuf::new(),
            depth: 0,
            fingerprint: None,
        };
        reader.fingerprint = reader.read();
        reader
    }

    fn advance(&mut self) {
        self.fingerprint = self.read();
    }

    fn read(&mut self) -> Option<u64> {
        let (depth, rest) = self.rest.split_first_chunk()?;
        let (fingerprint, rest) = rest.split_first_chunk()?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        let depth = u32::from_le_bytes(*depth);
        while self.depth > 0 && self.depth >= depth {
            self.path.pop();
            self.depth -= 1;
        }
        self.path.push(OsStr::from_bytes(&rest[..end]));
        self.depth += 1;
        self.rest = &rest[end + 1..];
        Some(u64::from_le_bytes(*fingerprint))
    }
}

/// What was changed since a record was made, by the paths from the root.
#[derive(Debug, Default)]
pub struct Changed {
    pub(super) paths: BTreeSet<PathBuf>,
    /// What the files of them take, in bytes, and how many they are.
    pub bytes: u64,
    pub files: u64,
}

impl Changed {
    /// How many paths below /etc.
    pub fn edited(&self) -> usize {
        self.in_etc().count()
    }

    /// The paths below /etc, from there.
    pub fn in_etc(&self) -> impl Iterator<Item = &Path> {
        self.paths
            .iter()
            .filter_map(|path| path.strip_prefix("etc").ok())
    }

    /// Whether this path was changed, or one below it.
    pub(super) fn reaches(&self, path: &Path) -> bool {
        let from = (Bound::Included(path), Bound::Unbounded);
        let first = self.paths.range::<Path, _>(from).next();
        first.is_some_and(|first| first.starts_with(path))
    }
}

impl Zones {
    /// Those of /etc alone.
    pub fn of_etc() -> Self {
        [(PathBuf::from("etc"), Zone::Merged)].into_iter().collect()
    }

    /// Records what is merged and what is carried of a root.
    pub fn record(&self, root: &Dir, interrupt: &dyn Fn() -> Result<()>) -> Result<Record> {
        let mut record = Record::default();
        self.watch(root, &mut |path, seen| {
            interrupt()?;
            record.add(path, seen);
            Ok(true)
        })?;
        Ok(record)
    }

    /// Whether anything was changed since, perhaps also what belongs to another zone by now.
    pub fn is_changed(&self, record: &Record, root: &Dir) -> Result<bool> {
        let mut is_changed = false;
        self.compare(record, root, &mut |_, _| {
            is_changed = true;
            Ok(false)
        })?;
        Ok(is_changed)
    }

    /// What was changed since of what is merged and carried now. It may have been in other zones when the record was
    /// made.
    pub fn changed(
        &self,
        record: &Record,
        root: &Dir,
        interrupt: &dyn Fn() -> Result<()>,
    ) -> Result<Changed> {
        let mut changed = Changed::default();
        self.compare(record, root, &mut |path, stat| {
            interrupt()?;
            let is_meant = match self.of(path) {
                Zone::Carried => true,
                Zone::Merged => path.iter().nth(1).is_some(),
                _ => false,
            };
            if is_meant {
                if let Some(stat) = stat.filter(|stat| stat.kind == Kind::File) {
                    changed.bytes += stat.size.min(stat.used);
                    changed.files += 1;
                }
                changed.paths.insert(path.to_owned());
            }
            Ok(true)
        })?;
        Ok(changed)
    }

    /// Hands over each path that is not as in the record, with what it is now. `each` returns whether to go on.
    fn compare(
        &self,
        record: &Record,
        root: &Dir,
        each: &mut dyn FnMut(&Path, Option<&Stat>) -> Result<bool>,
    ) -> Result<()> {
        let mut reader = Reader::new(record);
        let mut goes_on = true;
        self.watch(root, &mut |path, seen| {
            while goes_on && reader.fingerprint.is_some() && reader.path.as_path() < path {
                goes_on = each(&reader.path, None)?;
                reader.advance();
            }
            let before = reader.fingerprint.filter(|_| reader.path == path);
            if goes_on && before != Some(seen.fingerprint()) {
                goes_on = each(path, Some(seen.stat))?;
            }
            if before.is_some() {
                reader.advance();
            }
            Ok(goes_on)
        })?;
        while goes_on && reader.fingerprint.is_some() {
            goes_on = each(&reader.path, None)?;
            reader.advance();
        }
        Ok(())
    }

    /// Whether a path is a name in the root with what would be left behind: what comes up there is told.
    fn is_told(&self, path: &Path) -> bool {
        path.iter().nth(1).is_none() && self.of(path) == Zone::Image
    }

    /// Visits what is merged or carried, and the directories on the way there: in these such a path can come up. Of what
    /// is left behind only the names in the root are visited. `visit` returns whether to go on.
    fn watch(&self, root: &Dir, visit: &mut dyn FnMut(&Path, &Seen) -> Result<bool>) -> Result<()> {
        // Where zones begin that the path is in, each in the one before, and whether they are watched.
        let mut within: Vec<(PathBuf, bool)> = Vec::new();
        let mut goes_on = true;
        walk(&[Some(root.again()?)], None, &mut |visited| {
            let path = visited.path;
            let [Some(place)] = visited.places else {
                return Ok(Below::Skip);
            };
            if !goes_on {
                return Ok(Below::Skip);
            }
            while within.last().is_some_and(|(top, _)| !path.starts_with(top)) {
                within.pop();
            }
            if let Some(zone) = self.at(path) {
                let is_watched = matches!(zone, Zone::Carried | Zone::Merged);
                within.push((path.to_owned(), is_watched));
            }
            let is_watched = within.last().is_some_and(|(_, is_watched)| *is_watched);
            let goes_below = is_watched || self.leads_on(path);
            let is_link = place.stat.kind == Kind::Link;
            if is_watched && is_derived(path, is_link) || !goes_below && !self.is_told(path) {
                return Ok(Below::Skip);
            }
            let stat = &place.stat;
            goes_on = visit(path, &Seen { stat, is_watched })?;
            Ok(if goes_below {
                Below::Visit
            } else {
                Below::Skip
            })
        })
    }
}

fn is_derived(path: &Path, is_link: bool) -> bool {
    let in_etc = path.strip_prefix("etc");
    in_etc.is_ok_and(|path| class(path, is_link) == Class::Derived)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::ffi::OsStringExt;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::thread::sleep;
    use std::time::Duration;

    use anyhow::bail;

    const GO_ON: fn() -> Result<()> = || Ok(());

    fn zones(zones: &[(&str, Zone)]) -> Zones {
        let zones = zones
            .iter()
            .map(|(path, zone)| (PathBuf::from(path), *zone));
        zones.collect()
    }

    fn write(dir: &Path, paths: &[&str]) {
        for path in paths {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "f1").unwrap();
        }
    }

    /// The clock of a filesystem can stand for a few milliseconds.
    fn wait() {
        sleep(Duration::from_millis(20));
    }

    fn paths(changed: &Changed) -> Vec<&str> {
        let paths = changed.paths.iter();
        paths.map(|path| path.to_str().unwrap()).collect()
    }

    #[test]
    fn each_change_is_found_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let files = [
            "etc/ld.so.cache",
            "etc/edited",
            "home/a/same",
            "home/a/mode",
            "home/a/gone",
            "home/a.b",
            "home/old/x",
            "home/tree/x/y",
            "home/tree2/x/y",
            "var/cache/x",
            "var/cache/keep/x",
            "var/z",
            "usr/bin/x",
        ];
        write(dir, &files);
        fs::hard_link(dir.join("home/a/same"), dir.join("home/a/name")).unwrap();
        let zones = zones(&[
            ("etc", Zone::Merged),
            ("home", Zone::Carried),
            ("var", Zone::Carried),
            ("var/cache", Zone::Fleeting),
            ("var/cache/keep", Zone::Carried),
        ]);
        let root = Dir::root(dir).unwrap();
        let record = zones.record(&root, &GO_ON).unwrap();
        let changed = || zones.changed(&record, &root, &GO_ON).unwrap();
        assert_eq!(paths(&changed()), [""; 0]);
        assert!(!zones.is_changed(&record, &root).unwrap());
        wait();
        // What is not watched.
        write(
            dir,
            &["usr/bin/x", "usr/bin/y", "var/cache/x", "etc/ld.so.cache"],
        );
        assert_eq!(paths(&changed()), [""; 0]);
        write(
            dir,
            &["etc/edited", "etc/new", "var/cache/keep/x", "home/a/in/x"],
        );
        fs::set_permissions(dir.join("home/a/mode"), Permissions::from_mode(0o600)).unwrap();
        fs::remove_file(dir.join("home/a/gone")).unwrap();
        fs::remove_file(dir.join("home/a/name")).unwrap();
        fs::rename(dir.join("home/old"), dir.join("home/moved")).unwrap();
        // Two directories change places: what is in them is the same, and elsewhere.
        for (from, to) in [("tree", "tree3"), ("tree2", "tree"), ("tree3", "tree2")] {
            fs::rename(dir.join("home").join(from), dir.join("home").join(to)).unwrap();
        }
        let changed = changed();
        assert_eq!(
            paths(&changed),
            [
                "etc/edited",
                "etc/new",
                "home",
                "home/a",
                "home/a/gone",
                "home/a/in",
                "home/a/in/x",
                "home/a/mode",
                "home/a/name",
                "home/a/same",
                "home/moved",
                "home/moved/x",
                "home/old",
                "home/old/x",
                "home/tree",
                "home/tree/x",
                "home/tree/x/y",
                "home/tree2",
                "home/tree2/x",
                "home/tree2/x/y",
                "var/cache/keep/x",
            ]
        );
        assert_eq!(changed.edited(), 2);
        assert_eq!(changed.files, 9);
        for (path, wanted) in [
            ("home/a/in", true),
            ("home/a.b", false),
            ("home/tre", false),
            ("var", true),
            ("var/z", false),
            ("srv", false),
        ] {
            assert_eq!(changed.reaches(Path::new(path)), wanted, "{path}");
        }
    }

    #[test]
    fn a_file_of_the_same_size_and_time_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["srv/x", "srv/y"]);
        let root = Dir::root(dir.path()).unwrap();
        let zones = zones(&[("srv", Zone::Carried)]);
        let record = zones.record(&root, &GO_ON).unwrap();
        wait();
        let path = dir.path().join("srv/x");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "f2").unwrap();
        // As a program does that does not want to be seen. The time of change cannot be set.
        let file = fs::File::options().write(true).open(&path).unwrap();
        file.set_modified(before).unwrap();
        let changed = zones.changed(&record, &root, &GO_ON).unwrap();
        assert_eq!(paths(&changed), ["srv/x"]);
    }

    #[test]
    fn zones_may_be_others_by_now() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["srv/x", "home/y", "data/z", "opt/a/x"]);
        let root = Dir::root(dir.path()).unwrap();
        let before = zones(&[
            ("home", Zone::Carried),
            ("srv", Zone::Carried),
            ("opt/a", Zone::Carried),
        ]);
        let record = before.record(&root, &GO_ON).unwrap();
        wait();
        // On a volume by now, and its directory is empty; carried by now; still carried.
        fs::remove_file(dir.path().join("home/y")).unwrap();
        write(dir.path(), &["srv/later", "opt/b/x"]);
        let now = zones(&[
            ("home", Zone::Volume),
            ("data", Zone::Carried),
            ("srv", Zone::Carried),
            ("opt/a", Zone::Carried),
            ("opt/b", Zone::Carried),
        ]);
        let changed = now.changed(&record, &root, &GO_ON).unwrap();
        assert_eq!(
            paths(&changed),
            ["data", "data/z", "opt/b", "opt/b/x", "srv", "srv/later"]
        );
    }

    #[test]
    fn what_comes_to_opt_is_noticed_before_it_is_known_whose_it_is() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("opt")).unwrap();
        let root = Dir::root(dir.path()).unwrap();
        let zones = zones(&[("", Zone::Image), ("root", Zone::Carried)]);
        let record = zones.record(&root, &GO_ON).unwrap();
        assert!(!zones.is_changed(&record, &root).unwrap());
        wait();
        write(dir.path(), &["opt/own/x"]);
        assert!(zones.is_changed(&record, &root).unwrap());
        assert_eq!(
            paths(&zones.changed(&record, &root, &GO_ON).unwrap()),
            [""; 0]
        );
        // A directory that was not there comes up.
        fs::remove_dir_all(dir.path().join("opt/own")).unwrap();
        let record = zones.record(&root, &GO_ON).unwrap();
        write(dir.path(), &["root/x"]);
        assert!(zones.is_changed(&record, &root).unwrap());
    }

    #[test]
    fn what_comes_to_the_root_is_noticed_though_it_does_not_come_along() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &["usr/x", "tmp/x", "left/x"]);
        let root = Dir::root(dir.path()).unwrap();
        let zones = zones(&[
            ("", Zone::Image),
            ("tmp", Zone::Fleeting),
            ("left", Zone::Left),
        ]);
        let record = zones.record(&root, &GO_ON).unwrap();
        wait();
        write(dir.path(), &["tmp/y", "left/y"]);
        assert!(!zones.is_changed(&record, &root).unwrap());
        write(dir.path(), &["data/x"]);
        assert!(zones.is_changed(&record, &root).unwrap());
        // Nothing of it is carried.
        let changed = zones.changed(&record, &root, &GO_ON).unwrap();
        assert_eq!(paths(&changed), [""; 0]);
    }

    #[test]
    fn names_of_any_bytes_and_deep_trees_are_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let srv = dir.path().join("srv");
        fs::create_dir(&srv).unwrap();
        for name in [&b"a\nb"[..], b"latin\xe4", b"\x01", b" ", b"a/\xff"] {
            let path = srv.join(std::ffi::OsString::from_vec(name.to_vec()));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        symlink("nowhere", srv.join("link")).unwrap();
        let mut deep = srv.join("deep");
        for _ in 0..100 {
            fs::create_dir(&deep).unwrap();
            deep.push("d");
        }
        let root = Dir::root(dir.path()).unwrap();
        let zones = zones(&[("srv", Zone::Carried)]);
        let record = zones.record(&root, &GO_ON).unwrap();
        assert!(!zones.is_changed(&record, &root).unwrap());
        // All names without a record, and all of one that is cut off.
        let all = zones.changed(&Record::default(), &root, &GO_ON).unwrap();
        assert_eq!(all.paths.len(), 108);
        for length in (0..record.0.len()).step_by(13) {
            let part = Record(record.0[..length].to_vec());
            let found = zones.changed(&part, &root, &GO_ON).unwrap();
            assert!(!found.paths.is_empty() && found.paths.len() <= 108);
        }
        let ended = zones.record(&root, &|| bail!("interrupted"));
        assert!(ended.is_err());
    }
}
