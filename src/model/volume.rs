//! Volumes that all layers share, each mounted at its path, such as /home and /var. LVM tags are the only record
//! of that: a layer that is older, or that is gone back to, mounts the same ones.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::layout::{Group, Role, Volume, tag};
use super::name::{LvName, VgName};
use super::package_records;
use super::saved;

/// What each layer brings itself, and what is of the machine: no volume is mounted there or below.
const NEVER: [&str; 16] = [
    "bin",
    "boot",
    "config",
    "dev",
    "efi",
    "etc",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "lost+found",
    "proc",
    "run",
    "sbin",
    "sys",
    "usr",
];
/// The longest tag that lvm2 takes, in bytes (`MAX_TAG_LEN`).
const TAG_MAX: usize = 1024;

/// Where a volume is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub path: String,
    /// That of the volume.
    pub name: String,
    /// For mount(8); often empty.
    pub options: String,
    /// Whether it waits for the content of its path, which is copied when the system goes down.
    pub moving: bool,
}

/// What the initramfs and the running system tell each other of the volumes of a group.
#[derive(Clone, Serialize, Deserialize)]
pub struct Volumes {
    pub version: u32,
    pub vg: String,
    /// A path comes before those below it.
    pub volumes: Vec<Mount>,
    /// The paths of those that wait for the next start, so that the running system knows nothing else of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<String>,
}

impl Volumes {
    pub fn new(vg: &VgName, volumes: Vec<Mount>) -> Self {
        Self {
            version: 1,
            vg: vg.to_string(),
            volumes,
            later: Vec::new(),
        }
    }

    /// Whether another volume than now, or the first, is mounted at a path from the next start on.
    pub fn changes_later(&self, path: &str) -> bool {
        let is_at = |mount: &Mount| mount.path == path;
        self.later.iter().any(|later| later == path) || self.volumes.iter().any(is_at)
    }
}

impl Mount {
    /// What the tags of a shared volume say. Those of Config, and of the volumes that imgbased made, name no path.
    ///
    /// Refuses what nobody may mount: anyone can put a tag on anything.
    pub fn of(name: &str, tags: &[String]) -> Result<Option<Self>> {
        let value = |prefix| tags.iter().find_map(|tag| tag.strip_prefix(prefix));
        let (found, moving) = match value(tag::MOUNT) {
            None => (value(tag::MOVING), true),
            found => (found, false),
        };
        let Some(found) = found else { return Ok(None) };
        let decode = || {
            let at = decoded(found)?;
            ensure!(path(&at)? == at, "{at:?} is not the plain path");
            let options = decoded(value(tag::MOUNT_OPTIONS).unwrap_or_default())?;
            check_options(&options)?;
            let name: LvName = name.parse()?;
            Ok(Some(Self {
                path: at,
                name: name.to_string(),
                options,
                moving,
            }))
        };
        decode().with_context(|| format!("{name} cannot be mounted as its tag {found} says"))
    }

    /// The tags that say so. Refuses what is too long for one.
    pub fn tags(&self) -> Result<Vec<String>> {
        let mut tags = vec![tag::VOLUME.to_owned(), self.path_tag()];
        if !self.options.is_empty() {
            tags.push(format!("{}{}", tag::MOUNT_OPTIONS, encoded(&self.options)));
        }
        if let Some(long) = tags.iter().find(|tag| tag.len() > TAG_MAX) {
            bail!("{long} is too long: lvm2 takes tags of {TAG_MAX} bytes");
        }
        Ok(tags)
    }

    /// The one of them that names the path.
    pub fn path_tag(&self) -> String {
        let prefix = if self.moving { tag::MOVING } else { tag::MOUNT };
        format!("{prefix}{}", encoded(&self.path))
    }

    /// Whether a system cannot do without it.
    pub fn is_required(&self) -> bool {
        self.path == "/var" || self.path.starts_with("/var/")
    }
}

/// Where volumes are mounted, by their names and tags; a path comes before those below it. Of several with one path the
/// first one counts. `complain` is told of what cannot be used.
///
/// Where snapshots have begun to take the places of volumes, all that belong together have: a host boots with the old
/// volumes or with the new ones, and never with some of both.
pub fn mounts(volumes: &[(&str, &[String])], complain: &mut dyn FnMut(&str)) -> Vec<Mount> {
    let exchanged = saved::exchanged(volumes);
    let mut mounts: Vec<(bool, Mount)> = Vec::new();
    for (name, tags) in volumes {
        let new = exchanged.iter().find(|saved| saved.mount.name == **name);
        let (is_old, mount) = match new {
            Some(saved) => (false, Ok(Some(saved.mount.clone()))),
            None => (true, Mount::of(name, tags)),
        };
        let mount = match mount {
            Ok(Some(mount)) => mount,
            Ok(None) => continue,
            Err(error) => {
                complain(&format!("{error:#}"));
                continue;
            }
        };
        let key = (&mount.path, is_old, &mount.name);
        let at = mounts.partition_point(|(is_old, m)| (&m.path, *is_old, &m.name) < key);
        mounts.insert(at, (is_old, mount));
    }
    mounts.dedup_by(|(b_is_old, b), (a_is_old, a)| {
        let is_second = a.path == b.path;
        if is_second && a_is_old == b_is_old {
            complain(&format!(
                "{} is not mounted at {}: {} is",
                b.name, b.path, a.name
            ));
        }
        is_second
    });
    mounts.into_iter().map(|(_, mount)| mount).collect()
}

/// The same for the volumes of a group.
pub fn mounts_of(group: &Group, complain: &mut dyn FnMut(&str)) -> Vec<Mount> {
    mounts(&shared(group), complain)
}

/// The volumes of a group that layers share, and snapshots of them, with their tags.
pub fn shared(group: &Group) -> Vec<(&str, &[String])> {
    let is_one = |volume: &&Volume| matches!(volume.role, Role::Volume | Role::Snapshot);
    let volumes = group.volumes.iter().filter(is_one);
    volumes
        .map(|volume| (volume.name.as_str(), volume.tags.as_slice()))
        .collect()
}

/// A path where a volume can be mounted, without the slashes and dots that mean nothing. Refuses any other.
pub fn path(text: &str) -> Result<String> {
    ensure!(
        text.starts_with('/'),
        "{text:?} is not an absolute path; give one such as /home"
    );
    let parts = text.split('/');
    let parts: Vec<&str> = parts
        .filter(|part| !part.is_empty() && *part != ".")
        .collect();
    ensure!(!parts.contains(&".."), "{text:?} has `..` in it");
    // A unit of systemd could not have them.
    let is_odd = |c: char| c.is_control() || c == '\\';
    ensure!(
        !text.contains(is_odd) && !text.ends_with(char::is_whitespace),
        "{text:?} has a character that the path of a volume cannot have"
    );
    let Some(top) = parts.first() else {
        bail!("the root of a layer is its own, and no volume");
    };
    ensure!(
        !NEVER.contains(top),
        "/{top} is of each layer or of the machine, and never on a volume"
    );
    Ok(format!("/{}", parts.join("/")))
}

/// Refuses a new volume at this path, if it would only hold a record of packages, or a part of one.
pub fn check_no_record(path: &str) -> Result<()> {
    ensure!(
        !package_records::paths().any(|record| Path::new(path).starts_with(record)),
        "{path} is a record of packages, which each layer has of its own, also where /var is a volume"
    );
    Ok(())
}

/// Refuses options that would not stay one list.
pub fn check_options(options: &str) -> Result<()> {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !b"\\\"'".contains(&byte);
    ensure!(
        options.bytes().all(is_plain),
        "{options:?} are no options of mount(8): a list with commas, and without blanks, is needed"
    );
    Ok(())
}

/// The name of a new volume for a path.
pub fn name_for(path: &str, is_taken: &dyn Fn(&str) -> bool) -> Result<LvName> {
    let is_valid = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
    let plain = path.trim_start_matches('/').chars();
    let plain: String = plain
        .map(|c| match c {
            '/' => '-',
            c if is_valid(c) => c,
            _ => '.',
        })
        .collect();
    // lvm2 keeps some names for itself.
    let name = match plain.parse::<LvName>() {
        Ok(name) => name,
        Err(_) => format!("at-{}", plain.replace('_', "-")).parse()?,
    };
    let mut number = 1;
    let mut free = name.clone();
    while is_taken(free.as_str()) {
        number += 1;
        free = format!("{name}-{number}").parse()?;
    }
    Ok(free)
}

/// A text as a tag can hold it: what lvm2 does not take there (lvm(8), "VALID NAMES") is `#` and two digits.
pub fn encoded(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-/=!:&".contains(&byte);
    let byte = |byte: u8| {
        if is_plain(byte) {
            char::from(byte).to_string()
        } else {
            format!("#{byte:02X}")
        }
    };
    text.bytes().map(byte).collect()
}

/// What [`encoded`] was given.
pub fn decoded(text: &str) -> Result<String> {
    let mut parts = text.split('#');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let is_hex = |digits: &&str| digits.bytes().all(|b| b.is_ascii_hexdigit());
        let digits = part.get(..2).filter(is_hex);
        let digits = digits.with_context(|| format!("two digits are missing in {text:?}"))?;
        bytes.push(u8::from_str_radix(digits, 16)?);
        bytes.extend(&part.as_bytes()[2..]);
    }
    String::from_utf8(bytes).with_context(|| format!("{text:?} is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tags(tags: &[&str]) -> Vec<String> {
        tags.iter().map(ToString::to_string).collect()
    }

    fn mount(path: &str, name: &str) -> Mount {
        Mount {
            path: path.to_owned(),
            name: name.to_owned(),
            options: String::new(),
            moving: false,
        }
    }

    #[test]
    fn what_a_tag_cannot_hold_is_written_in_digits() {
        for (text, tag) in [
            ("/var/log", "/var/log"),
            ("/srv/a b", "/srv/a#20b"),
            ("noatime,nodev", "noatime#2Cnodev"),
            ("/a#b%c", "/a#23b#25c"),
            ("/caf\u{e9}", "/caf#C3#A9"),
            ("a=b!c:d&e+f_g.h-i", "a=b!c:d&e+f_g.h-i"),
            ("", ""),
        ] {
            assert_eq!(encoded(text), tag);
            assert_eq!(decoded(tag).unwrap(), text);
        }
        for tag in ["#", "a#2", "#+1", "#zz", "#2\u{e9}", "#FF", "#C3"] {
            assert!(decoded(tag).is_err(), "{tag}");
        }
    }

    #[test]
    fn no_new_volume_holds_only_a_record_of_packages() {
        for (path, is_taken) in [
            ("/var", true),
            ("/var/lib", true),
            ("/var/lib/systemd", true),
            ("/var/lib/dpkg2", true),
            ("/var/lib/dpkg", false),
            ("/var/lib/dpkg/info", false),
            ("/var/lib/apt", false),
        ] {
            assert_eq!(check_no_record(path).is_ok(), is_taken, "{path}");
        }
    }

    #[test]
    fn tags_say_where_a_volume_is_mounted() {
        for mount in [
            mount("/home", "home"),
            Mount {
                options: "noatime,nodev".to_owned(),
                ..mount("/srv/a b", "srv-a.b")
            },
            Mount {
                moving: true,
                ..mount("/var", "var")
            },
        ] {
            let tags = mount.tags().unwrap();
            assert!(tags.contains(&tag::VOLUME.to_owned()), "{tags:?}");
            assert!(tags.contains(&mount.path_tag()), "{tags:?}");
            assert_eq!(Mount::of(&mount.name, &tags).unwrap(), Some(mount));
        }
        assert_eq!(Mount::of("Config", &tags(&[tag::VOLUME])).unwrap(), None);
        let long = mount(&"/x".repeat(600), "x").tags();
        assert!(long.unwrap_err().to_string().contains("too long"));
    }

    #[test]
    fn a_tag_that_nobody_may_have_written_is_refused() {
        for (name, tag) in [
            ("x", "imgbased:mount=/etc"),
            ("x", "imgbased:mount=/"),
            ("x", "imgbased:mount=home"),
            ("x", "imgbased:mount=/home/"),
            ("x", "imgbased:mount=/home/../etc"),
            ("x", "imgbased:mount=/home#0AWhat=/x"),
            ("x", "imgbased:mount="),
            ("a b", "imgbased:mount=/home"),
            ("x", "imgbased:moving=/usr/local"),
        ] {
            let error = Mount::of(name, &tags(&[tag])).unwrap_err().to_string();
            assert!(error.contains("cannot be mounted"), "{error}");
        }
        let options = tags(&["imgbased:mount=/home", "imgbased:mountopts=rw#0AType=x"]);
        assert!(Mount::of("x", &options).is_err());
    }

    #[test]
    fn a_path_comes_before_those_below_it_and_once() {
        let log = mount("/var/log", "a").tags().unwrap();
        let var = mount("/var", "b").tags().unwrap();
        let again = mount("/var", "c").tags().unwrap();
        let wrong = tags(&["imgbased:mount=/etc"]);
        let none = tags(&[tag::VOLUME]);
        let mut said = Vec::new();
        let found = mounts(
            &[
                ("a", &log),
                ("c", &again),
                ("b", &var),
                ("x", &wrong),
                ("Config", &none),
            ],
            &mut |text| said.push(text.to_owned()),
        );
        assert_eq!(found, [mount("/var", "b"), mount("/var/log", "a")]);
        assert!(found.iter().all(Mount::is_required));
        assert!(!mount("/variant", "x").is_required());
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[1], "c is not mounted at /var: b is");
    }

    #[test]
    fn volumes_are_exchanged_together() {
        let old = |path: &str| tags(&[tag::VOLUME, &format!("imgbased:mount={path}")]);
        let before = "imgbased:before=Base-1.1";
        let waits = |path: &str| tags(&[&format!("imgbased:snapshot={path}"), before]);
        let begun = |path: &str| [waits(path), old(path)].concat();
        let later = tags(&["imgbased:snapshot=/home", "imgbased:before=Base-2.1"]);
        let none = Vec::new();
        // The tags of two volumes and of their snapshots, step by step, and which are mounted.
        for (of_old, of_new, is_new) in [
            (
                [old("/home"), old("/var")],
                [waits("/home"), waits("/var")],
                false,
            ),
            (
                [old("/home"), old("/var")],
                [begun("/home"), waits("/var")],
                true,
            ),
            (
                [old("/home"), old("/var")],
                [begun("/home"), begun("/var")],
                true,
            ),
            (
                [none.clone(), old("/var")],
                [begun("/home"), begun("/var")],
                true,
            ),
            (
                [none.clone(), none.clone()],
                [begun("/home"), begun("/var")],
                true,
            ),
            (
                [none.clone(), none.clone()],
                [old("/home"), begun("/var")],
                true,
            ),
            (
                [none.clone(), none.clone()],
                [old("/home"), old("/var")],
                true,
            ),
        ] {
            let volumes: [(&str, &[String]); 5] = [
                ("home", &of_old[0]),
                ("var", &of_old[1]),
                ("new-home", &of_new[0]),
                ("new-var", &of_new[1]),
                ("later", &later),
            ];
            let found = mounts(&volumes, &mut |said| panic!("{said}"));
            let wanted = ["home", "var"].map(|name| {
                mount(
                    &format!("/{name}"),
                    &if is_new {
                        format!("new-{name}")
                    } else {
                        name.to_owned()
                    },
                )
            });
            assert_eq!(found, wanted, "{of_old:?} {of_new:?}");
        }
    }

    #[test]
    fn only_what_is_not_of_a_layer_or_of_the_machine_can_be_a_volume() {
        for (given, plain) in [
            ("/home", "/home"),
            ("//var/./log/", "/var/log"),
            ("/root", "/root"),
            ("/srv/a b", "/srv/a b"),
            ("/etcetera", "/etcetera"),
            ("/srv/etc", "/srv/etc"),
        ] {
            assert_eq!(path(given).unwrap(), plain);
        }
        for given in [
            "",
            "home",
            "/",
            "//",
            "/.",
            "/etc",
            "/etc/x",
            "/usr/local",
            "/boot",
            "/dev/shm",
            "/proc",
            "/sys",
            "/run/x",
            "/bin",
            "/lib",
            "/lib64",
            "/a/../b",
            "/..",
            "/a\nb",
            "/a\\",
            "/a ",
        ] {
            assert!(path(given).is_err(), "{given:?}");
        }
        for (options, is_good) in [
            ("", true),
            ("noatime,x-a=b", true),
            ("a b", false),
            ("a\nb", false),
            ("a\\", false),
            ("\"a\"", false),
        ] {
            assert_eq!(check_options(options).is_ok(), is_good, "{options:?}");
        }
    }

    #[test]
    fn a_new_volume_is_named_after_its_path() {
        for (path, taken, name) in [
            ("/home", &[][..], "home"),
            ("/var/log", &["var"], "var-log"),
            ("/home", &["home", "home-2"], "home-3"),
            ("/srv/a b", &[], "srv-a.b"),
            ("/snapshots", &[], "at-snapshots"),
            ("/x_tdata", &[], "at-x-tdata"),
            ("/-x", &[], "at--x"),
        ] {
            let found = name_for(path, &|name| taken.contains(&name)).unwrap();
            assert_eq!(found.as_str(), name, "{path}");
        }
        assert!(name_for(&"/x".repeat(100), &|_| false).is_err());
    }
}
