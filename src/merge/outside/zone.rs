//! What becomes of the paths of a layer outside of /etc.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::Bound;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::Rules;
use crate::merge::{LAYER, NEW, OLD};
use crate::tree::{Dir, Kind, escaped};

/// What becomes of a path and of what is below it, up to the next path that has a zone of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Zone {
    /// As in the new base. What the layer has changed there is left behind.
    Image,
    /// Merged by itself: /etc.
    Merged,
    /// As in the layer where that has changed it.
    Carried,
    /// On a volume, which all layers share.
    Volume,
    /// As in the new base, and nothing is lost by that.
    Fleeting,
    /// Left behind, and a person has said so.
    Left,
}

const DEFAULTS: [(&str, Zone); 43] = [
    ("etc", Zone::Merged),
    // Where the image has nothing, or little, and the admin has everything (file-hierarchy(7), hier(7)).
    ("root", Zone::Carried),
    ("srv", Zone::Carried),
    ("usr/local", Zone::Carried),
    ("var", Zone::Carried),
    // Gone with the next start.
    ("tmp", Zone::Fleeting),
    ("run", Zone::Fleeting),
    ("proc", Zone::Fleeting),
    ("sys", Zone::Fleeting),
    ("dev", Zone::Fleeting),
    ("var/run", Zone::Fleeting),
    ("var/lock", Zone::Fleeting),
    // Nothing counts on it being there.
    ("var/cache", Zone::Fleeting),
    ("var/tmp", Zone::Fleeting),
    // Where the boot partition is mounted, which has its own rules.
    ("boot", Zone::Fleeting),
    ("efi", Zone::Fleeting),
    // Each filesystem has its own.
    ("lost+found", Zone::Fleeting),
    // What is installed: with the programs of the old base goes the record of them, and what the scripts of
    // packages keep beside it.
    ("usr/lib/sysimage", Zone::Fleeting),
    ("var/lib/apt", Zone::Fleeting),
    ("var/lib/aptitude", Zone::Fleeting),
    ("var/lib/dnf", Zone::Fleeting),
    ("var/lib/dpkg", Zone::Fleeting),
    ("var/lib/pam", Zone::Fleeting),
    ("var/lib/rpm", Zone::Fleeting),
    ("var/lib/rpm-state", Zone::Fleeting),
    ("var/lib/shells.state", Zone::Fleeting),
    ("var/lib/systemd/deb-systemd-helper-enabled", Zone::Fleeting),
    ("var/lib/systemd/deb-systemd-helper-masked", Zone::Fleeting),
    (
        "var/lib/systemd/deb-systemd-user-helper-enabled",
        Zone::Fleeting,
    ),
    (
        "var/lib/systemd/deb-systemd-user-helper-masked",
        Zone::Fleeting,
    ),
    ("var/lib/ucf", Zone::Fleeting),
    ("var/lib/yum", Zone::Fleeting),
    // Made again from other files, at the first start of a layer or when their package is installed.
    ("usr/lib/udev/hwdb.bin", Zone::Fleeting),
    ("usr/share/info/dir", Zone::Fleeting),
    ("var/.updated", Zone::Fleeting),
    ("var/lib/systemd/catalog/database", Zone::Fleeting),
    // Its sources are in a directory of their own there.
    ("usr/share/mime", Zone::Fleeting),
    ("usr/share/mime/packages", Zone::Image),
    // Links to what is in /boot, which packages of kernels write.
    ("vmlinuz", Zone::Fleeting),
    ("vmlinuz.old", Zone::Fleeting),
    ("initrd.img", Zone::Fleeting),
    ("initrd.img.old", Zone::Fleeting),
    // Images that wait to become bases.
    ("var/lib/imgbased/spool", Zone::Fleeting),
];

/// What an image brings in the root beside them. Another name there, such as /data, is of a host.
const OF_IMAGES: [&str; 8] = [
    "bin", "lib", "lib32", "lib64", "libx32", "opt", "sbin", "usr",
];

/// Whether an image brings what has this name in the root.
pub fn may_be_of_image(name: &OsStr) -> bool {
    OF_IMAGES.iter().any(|of_image| name == *of_image)
}

/// Where what no image has is carried.
const OPT: &str = "opt";

/// Lists of what is in a directory or tree, which a program makes again whenever something there changes.
const INDEXES: [&str; 7] = [
    "gconv-modules.cache",
    "giomodule.cache",
    "gschemas.compiled",
    "icon-theme.cache",
    "immodules.cache",
    "loaders.cache",
    "mimeinfo.cache",
];

/// Whether a file of the image's directories is made from others there, so that a changed one is no loss.
pub fn is_made(path: &Path) -> bool {
    let Some(name) = path.file_name().filter(|_| path.starts_with("usr")) else {
        return false;
    };
    let above = path.parent().unwrap_or(Path::new(""));
    // What Python compiles beside the sources. Elsewhere such a file can be all that there is of a program.
    let is_compiled =
        above.ends_with("__pycache__") && path.extension().is_some_and(|ending| ending == "pyc");
    // By depmod(8).
    let is_of_modules = above.parent() == Some(Path::new("usr/lib/modules"))
        && name.as_encoded_bytes().starts_with(b"modules.");
    is_compiled || is_of_modules || INDEXES.iter().any(|index| name == *index)
}

/// The zones of a host, by the paths where they begin.
#[derive(Clone, Deserialize, Serialize)]
#[serde(from = "Vec<(OsString, Zone)>", into = "Vec<(OsString, Zone)>")]
pub struct Zones(BTreeMap<PathBuf, Zone>);

impl FromIterator<(PathBuf, Zone)> for Zones {
    fn from_iter<T: IntoIterator<Item = (PathBuf, Zone)>>(zones: T) -> Self {
        Self(zones.into_iter().collect())
    }
}

// What is no text is a list of bytes then.
impl From<Vec<(OsString, Zone)>> for Zones {
    fn from(zones: Vec<(OsString, Zone)>) -> Self {
        let zones = zones.into_iter();
        zones.map(|(path, zone)| (path.into(), zone)).collect()
    }
}

impl From<Zones> for Vec<(OsString, Zone)> {
    fn from(zones: Zones) -> Self {
        let zones = zones.0.into_iter();
        zones.map(|(path, zone)| (path.into(), zone)).collect()
    }
}

impl Zones {
    /// `own` are the names in /opt that no image has. Refuses paths that are not absolute.
    fn new(own: &[OsString], rules: &Rules) -> Result<Self> {
        let defaults = DEFAULTS
            .iter()
            .map(|(path, zone)| (PathBuf::from(path), *zone));
        let mut zones = Self(defaults.collect());
        zones.0.insert(PathBuf::new(), Zone::Image);
        let opt = Path::new(OPT);
        for name in own {
            zones.0.insert(opt.join(name), Zone::Carried);
        }
        for path in rules.carried {
            let path = from_root(path)?;
            ensure!(
                !path.as_os_str().is_empty(),
                "/ cannot be carried as a whole; name directories of it"
            );
            if zones.of(&path) != Zone::Merged {
                zones.0.insert(path, Zone::Carried);
            }
        }
        for path in rules.leave {
            let path = from_root(path)?;
            if matches!(zones.of(&path), Zone::Image | Zone::Carried) {
                zones.0.insert(path, Zone::Left);
            }
        }
        for path in rules.volumes {
            let path = from_root(path)?;
            // What is mounted there hides all else.
            if !path.as_os_str().is_empty() {
                zones.0.retain(|other, _| !other.starts_with(&path));
                zones.0.insert(path, Zone::Volume);
            }
        }
        Ok(zones)
    }

    /// Those where nobody has said anything.
    pub fn usual(roots: [&Dir; 3], is_adopted: bool) -> Result<Self> {
        let rules = Rules {
            is_adopted,
            ..Rules::default()
        };
        Self::of_roots(roots, &rules)
    }

    /// Whether a path is one that an image and its host may have something of their own at.
    pub fn is_carried(&self, path: &Path) -> bool {
        self.of(path) == Zone::Carried
    }

    /// Those of what an image has, where nobody has said anything.
    pub fn of_image() -> Result<Self> {
        Self::new(&[], &Rules::default())
    }

    /// Those of these roots. What is to be carried into a directory that is none in the new base has no place
    /// there, and is left behind.
    pub fn of_roots(roots: [&Dir; 3], rules: &Rules) -> Result<Self> {
        let mut zones = Self::new(&own_in_opt(roots, rules.is_adopted)?, rules)?;
        let tops = zones.tops(|zone| zone == Zone::Carried);
        let tops: Vec<PathBuf> = tops.into_iter().map(Path::to_owned).collect();
        for top in tops {
            let way = top.parent().unwrap_or(Path::new(""));
            let is_blocked = is_blocked(roots[NEW], way);
            if is_blocked.with_context(|| format!("cannot read /{}", escaped(way)))? {
                zones.0.insert(top, Zone::Image);
            }
        }
        Ok(zones)
    }

    /// The zone of a path, and where that begins.
    pub fn find<'a>(&self, path: &'a Path) -> (&'a Path, Zone) {
        let mut above = path.ancestors();
        let found = above.find_map(|above| Some((above, *self.0.get(above)?)));
        found.unwrap_or((path, Zone::Image))
    }

    pub fn of(&self, path: &Path) -> Zone {
        self.find(path).1
    }

    /// Whether what a link leads to, as it is written, comes along as it is in the layer.
    pub fn brings(&self, target: &Path) -> bool {
        let zone = self.of(&as_written(target));
        matches!(zone, Zone::Carried | Zone::Merged | Zone::Volume)
    }

    /// Whether a path is on a volume, which all layers have, as if no part of it were a link.
    pub fn is_on_volume(&self, path: &Path) -> bool {
        self.of(&as_written(path)) == Zone::Volume
    }

    /// The absolute paths where something that is carried begins.
    pub fn carried(&self) -> Vec<PathBuf> {
        let tops = self.tops(|zone| zone == Zone::Carried).into_iter();
        tops.map(|top| Path::new("/").join(top)).collect()
    }

    /// The zone that begins at a path.
    pub fn at(&self, path: &Path) -> Option<Zone> {
        self.0.get(path).copied()
    }

    /// Whether something below a path that is neither merged nor carried is that, or can be once it is there.
    pub fn leads_on(&self, path: &Path) -> bool {
        let below = (Bound::Excluded(path), Bound::Unbounded);
        let below = self.0.range::<Path, _>(below);
        let mut below = below.take_while(|(below, _)| below.starts_with(path));
        path == Path::new(OPT)
            || below.any(|(_, zone)| matches!(zone, Zone::Carried | Zone::Merged))
    }

    /// Where zones begin that are wanted, and that are in none that is.
    pub fn tops(&self, is_wanted: fn(Zone) -> bool) -> Vec<&Path> {
        let is_top = |(path, zone): &(&PathBuf, &Zone)| {
            is_wanted(**zone) && path.parent().is_none_or(|above| !is_wanted(self.of(above)))
        };
        let tops = self.0.iter().filter(is_top);
        tops.map(|(path, _)| path.as_path()).collect()
    }
}

/// The names in /opt that only the layer has, or that no image has where the old base was adopted.
fn own_in_opt(roots: [&Dir; 3], is_adopted: bool) -> Result<Vec<OsString>> {
    let names = |side: usize| -> io::Result<Vec<OsString>> {
        let opt = roots[side].descend(Path::new(OPT))?;
        opt.map_or(Ok(Vec::new()), |opt| opt.names())
    };
    let names = |side| names(side).context("cannot read /opt of a root");
    let mut own = names(LAYER)?;
    let images: &[usize] = if is_adopted { &[NEW] } else { &[OLD, NEW] };
    for &side in images {
        let theirs = names(side)?;
        own.retain(|name| theirs.binary_search(name).is_err());
    }
    Ok(own)
}

/// Whether a part of a path is there, and is no directory.
fn is_blocked(root: &Dir, path: &Path) -> io::Result<bool> {
    let mut dir = root.again()?;
    for name in path {
        match dir.stat_of(name)? {
            Some(stat) if stat.kind == Kind::Dir => dir = dir.child(name)?,
            Some(_) => return Ok(true),
            None => return Ok(false),
        }
    }
    Ok(false)
}

/// A path from the root without `.` and `..`, as if no part of it were a link.
pub fn as_written(path: &Path) -> PathBuf {
    let mut written = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => written.push(name),
            Component::ParentDir => {
                written.pop();
            }
            _ => {}
        }
    }
    written
}

/// An absolute path as one from the root.
fn from_root(path: &Path) -> Result<PathBuf> {
    let below = path.strip_prefix("/");
    let below = below.with_context(|| format!("{} is not absolute", path.display()))?;
    let mut from_root = PathBuf::new();
    for component in below.components() {
        match component {
            Component::Normal(name) => from_root.push(name),
            _ => bail!("{} has a part that is no name", path.display()),
        }
    }
    Ok(from_root)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The zones with these paths carried, left and on volumes.
    fn zones(carried: &[&str], leave: &[&str], volumes: &[&str]) -> Result<Zones> {
        let paths = |of: &[&str]| of.iter().map(PathBuf::from).collect::<Vec<_>>();
        let [carried, leave, volumes] = [carried, leave, volumes].map(paths);
        let rules = Rules {
            carried: &carried,
            volumes: &volumes,
            leave: &leave,
            ..Rules::default()
        };
        Zones::new(&["own".into()], &rules)
    }

    #[test]
    fn each_path_is_in_one_zone() {
        use Zone::{Carried, Fleeting, Image, Left, Merged, Volume};
        let plain = zones(&[], &[], &[]).unwrap();
        let told = zones(
            &["/data/app", "/var/cache/keep", "/etc/x", "/var/lib/mysql/x"],
            &["/srv", "/var/lib/docker", "/home//x/", "/tmp/x", "/etc/y"],
            &["/var/log", "/opt/own/data", "/var/lib/mysql"],
        )
        .unwrap();
        for (path, of_plain, of_told) in [
            ("", Image, Image),
            ("x", Image, Image),
            ("usr/bin/x", Image, Image),
            ("usr/local/bin/x", Carried, Carried),
            ("usr/locale", Image, Image),
            ("etc/x", Merged, Merged),
            ("etc/y/z", Merged, Merged),
            ("etcetera", Image, Image),
            ("root/.ssh", Carried, Carried),
            ("srv/www", Carried, Left),
            ("opt", Image, Image),
            ("opt/own/x", Carried, Carried),
            ("opt/own/data/x", Carried, Volume),
            ("opt/other/x", Image, Image),
            ("data/app/x", Image, Carried),
            ("data/x", Image, Image),
            ("home/x/y", Image, Left),
            ("home/y", Image, Image),
            ("tmp/x", Fleeting, Fleeting),
            ("boot/x", Fleeting, Fleeting),
            ("var/lib/x", Carried, Carried),
            ("var/lib/dpkg/status", Fleeting, Fleeting),
            ("var/lib/docker/x", Carried, Left),
            ("var/log/x", Carried, Volume),
            ("var/lib/mysql/x/y", Carried, Volume),
            ("var/cache/x", Fleeting, Fleeting),
            ("var/cache/keep/x", Fleeting, Carried),
            ("usr/share/mime/text/x.xml", Fleeting, Fleeting),
            ("usr/share/mime/packages/x.xml", Image, Image),
        ] {
            assert_eq!(plain.of(Path::new(path)), of_plain, "{path}");
            assert_eq!(told.of(Path::new(path)), of_told, "{path}");
        }
    }

    #[test]
    fn a_volume_hides_what_would_be_carried_there() {
        let zones = zones(&["/var/lib/x"], &["/var/lib/y"], &["/var", "/"]).unwrap();
        for path in ["var/lib/x", "var/lib/y/z", "var/cache", "var"] {
            assert_eq!(zones.of(Path::new(path)), Zone::Volume, "{path}");
        }
        let carried = zones.tops(|zone| zone == Zone::Carried);
        assert_eq!(
            carried,
            ["opt/own", "root", "srv", "usr/local"].map(Path::new)
        );
    }

    #[test]
    fn zones_of_any_names_are_written_and_read() {
        use std::os::unix::ffi::OsStringExt;
        let latin = OsString::from_vec(b"latin\xe4".to_vec());
        let zones = Zones::new(&[latin], &Rules::default()).unwrap();
        let text = serde_json::to_string(&zones).unwrap();
        let read: Zones = serde_json::from_str(&text).unwrap();
        assert_eq!(read.0, zones.0);
    }

    #[test]
    fn directories_lead_on_to_what_is_carried_in_them() {
        let zones = zones(&["/var/cache/keep"], &[], &["/srv"]).unwrap();
        for (path, wanted) in [
            ("usr", true),
            ("usr/bin", false),
            ("usr/local", false),
            ("var/cache", true),
            ("var/cach", false),
            ("opt", true),
            ("opt/other", false),
            ("srv", false),
            ("home", false),
        ] {
            assert_eq!(zones.leads_on(Path::new(path)), wanted, "{path}");
        }
    }

    #[test]
    fn links_lead_to_zones_as_they_are_written() {
        let zones = zones(&[], &[], &["/data"]).unwrap();
        for (target, wanted) in [
            ("/usr/local/x", true),
            ("etc/alternatives/../x", true),
            ("root/../../../srv/x", true),
            ("root/./../usr/x", false),
            ("/data/x", true),
            ("/var/cache/x", false),
            ("/", false),
            ("", false),
        ] {
            assert_eq!(zones.brings(Path::new(target)), wanted, "{target}");
        }
    }

    #[test]
    fn walks_begin_where_no_other_one_comes() {
        let zones = zones(&["/var/cache/keep", "/srv/www"], &["/var/spool"], &[]).unwrap();
        let carried = zones.tops(|zone| zone == Zone::Carried);
        let wanted = [
            "opt/own",
            "root",
            "srv",
            "usr/local",
            "var",
            "var/cache/keep",
        ];
        assert_eq!(carried, wanted.map(Path::new));
        let left = zones.tops(|zone| matches!(zone, Zone::Image | Zone::Left));
        let wanted = ["", "usr/share/mime/packages", "var/spool"];
        assert_eq!(left, wanted.map(Path::new));
    }

    #[test]
    fn paths_are_absolute_and_do_not_go_up() {
        for path in ["", "x", "./x", "../x", "/x/../y", "/.."] {
            assert!(zones(&[path], &[], &[]).is_err(), "{path}");
            assert!(zones(&[], &[path], &[]).is_err(), "{path}");
            assert!(zones(&[], &[], &[path]).is_err(), "{path}");
        }
        assert!(zones(&["/"], &[], &[]).is_err());
        assert!(zones(&["//x//y/./"], &["/"], &[]).is_ok());
    }

    #[test]
    fn what_is_made_from_other_files_is_no_loss() {
        for (path, wanted) in [
            ("usr/lib/python3/x/__pycache__/y.cpython-313.pyc", true),
            ("usr/lib/python3/x/__pycache__/y.py", false),
            ("usr/lib/python3/x/y.pyc", false),
            ("root/__pycache__/y.pyc", false),
            ("usr/lib/modules/6.12/modules.dep.bin", true),
            ("usr/lib/modules/6.12/extra/modules.ko", false),
            ("usr/lib/modules/modules.dep", false),
            ("usr/share/icons/hicolor/icon-theme.cache", true),
            ("opt/x/icon-theme.cache", false),
            ("usr/share/x.cache", false),
            ("usr", false),
            ("", false),
        ] {
            assert_eq!(is_made(Path::new(path)), wanted, "{path}");
        }
    }
}
