//! Who sees a directory by another mount than the one that it is in. Bind mounts, and services and containers with
//! mounts of their own, go on using what is there when something is mounted on it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::mounts::unescape;

/// The lists of mounts that there are: first that of the host, then those of other namespaces.
pub struct Namespaces(Vec<Namespace>);

struct Namespace {
    /// A process in it, as `123 (name)`; none in that of the host.
    process: Option<String>,
    mounts: Vec<Mount>,
}

/// A mount, with which part of a filesystem it shows.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    id: u32,
    parent: u32,
    /// The numbers of the filesystem's device.
    device: String,
    /// The directory of the filesystem that is mounted.
    root: PathBuf,
    point: PathBuf,
    /// The group of mounts that pass on to each other what is mounted below them, and the one that it is told by.
    shared: Option<u32>,
    master: Option<u32>,
    /// The directories that an overlay is made of.
    layers: Vec<PathBuf>,
}

/// A directory of a filesystem.
type Place<'a> = (&'a str, PathBuf);

impl Namespaces {
    /// Those of all processes but this one.
    pub fn read() -> Result<Self> {
        Self::read_in(Path::new("/proc"))
    }

    fn read_in(proc: &Path) -> Result<Self> {
        let init = proc.join("1/mountinfo");
        let host = fs::read(&init).with_context(|| format!("cannot read {}", init.display()))?;
        let mut found = vec![Namespace {
            process: None,
            mounts: parse(&host),
        }];
        // A process can see less of a namespace than another one.
        let id = |process: &str| {
            let link = |name| fs::read_link(proc.join(process).join(name)).ok();
            Some((link("ns/mnt")?, link("root")?))
        };
        let mut seen: BTreeSet<_> = ["1", "self"].into_iter().filter_map(id).collect();
        for entry in fs::read_dir(proc).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_new = name.parse::<u32>().is_ok() && id(&name).is_some_and(|id| seen.insert(id));
            // It can have ended meanwhile.
            let list = is_new.then(|| fs::read(entry.path().join("mountinfo")).ok());
            if let Some(list) = list.flatten() {
                let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
                found.push(Namespace {
                    process: Some(format!("{name} ({})", command.trim_end())),
                    mounts: parse(&list),
                });
            }
        }
        Ok(Self(found))
    }

    /// Who else sees the directory, or has something mounted below it, so that nothing can be mounted there, or be
    /// unmounted, without a difference to them.
    pub fn users(&self, dir: &Path) -> Vec<String> {
        let Some(host) = self.0.first() else {
            return Vec::new();
        };
        let Some(of) = host.holding(dir) else {
            return Vec::new();
        };
        let inner = of.inner(dir);
        // Where it is a mount itself, that one goes, and with it those that have come by it.
        let itself = (of.point == dir).then(|| host.place(of)).flatten();
        let above = host.parent(of).and_then(|above| above.shared);
        let mut told = BTreeSet::new();
        let mut users = Vec::new();
        for namespace in &self.0 {
            let is_host = namespace.process.is_none();
            for mount in &namespace.mounts {
                let is_of = is_host && mount.id == of.id;
                let place = namespace.place(mount);
                let is_copy = itself.is_some()
                    && place == itself
                    && namespace
                        .parent(mount)
                        .is_some_and(|parent| self.is_told(parent, above));
                if is_of || is_copy {
                    continue;
                }
                let is_same = mount.device == of.device;
                let is_part = is_same && mount.root.starts_with(&inner);
                let is_below = place.is_some_and(|(device, path)| {
                    device == of.device && path != inner && path.starts_with(&inner)
                });
                let is_made_of_it = mount.layers.iter().any(|layer| layer.starts_with(dir));
                let is_blind = is_same
                    && !is_part
                    && inner.starts_with(&mount.root)
                    && !self.is_told(mount, of.shared);
                let at = mount.point.display();
                let user = match &namespace.process {
                    None => format!("the mount at {at}"),
                    Some(process) if is_blind => format!("{process}, which has mounts of its own"),
                    Some(process) => format!("the mount at {at} of {process}"),
                };
                let is_user = is_part || is_below || is_made_of_it || is_blind;
                // Most of what the host has mounted, others have as well.
                if is_user && told.insert((&mount.device, &mount.root, &mount.point)) {
                    users.push(user);
                }
            }
        }
        users
    }

    /// Whether what is mounted below a mount of this group gets below this one as well.
    fn is_told(&self, mount: &Mount, group: Option<u32>) -> bool {
        if group.is_none() {
            return false;
        }
        let all = self.0.iter().flat_map(|namespace| &namespace.mounts);
        let masters: BTreeMap<u32, u32> = all
            .filter_map(|mount| Some((mount.shared?, mount.master?)))
            .collect();
        let mut from = mount.shared.filter(|shared| Some(*shared) == group);
        from = from.or(mount.master);
        // Each is told by another one, and no chain has a loop.
        for _ in 0..=masters.len() {
            if from == group {
                return true;
            }
            from = from.and_then(|from| masters.get(&from).copied());
        }
        false
    }
}

impl Namespace {
    fn parent(&self, mount: &Mount) -> Option<&Mount> {
        let mut all = self.mounts.iter();
        all.find(|other| other.id == mount.parent && other.id != mount.id)
    }

    /// What a mount hides.
    fn place(&self, mount: &Mount) -> Option<Place<'_>> {
        let parent = self.parent(mount)?;
        Some((&parent.device, parent.inner(&mount.point)))
    }

    /// The mount that a directory is in, also where another one is hidden below that.
    fn holding(&self, dir: &Path) -> Option<&Mount> {
        let mut found = self.mounts.iter().find(|m| self.parent(m).is_none())?;
        // No mount has itself above it.
        for _ in 0..self.mounts.len() {
            let on_it = self.mounts.iter();
            let on_it = on_it.filter(|m| m.parent == found.id && m.id != found.id);
            let on_it = on_it.filter(|m| dir.starts_with(&m.point));
            match on_it.min_by_key(|m| m.point.as_os_str().len()) {
                Some(next) => found = next,
                None => break,
            }
        }
        Some(found)
    }
}

impl Mount {
    /// Where the filesystem has a path that is in the mount.
    fn inner(&self, path: &Path) -> PathBuf {
        match path.strip_prefix(&self.point) {
            Ok(below) if below.as_os_str().is_empty() => self.root.clone(),
            Ok(below) => self.root.join(below),
            Err(_) => path.to_owned(),
        }
    }
}

/// Reads `/proc/PID/mountinfo` (`proc_pid_mountinfo(5)`). A line that is not understood is left out.
fn parse(list: &[u8]) -> Vec<Mount> {
    let lines = list.split(|byte| *byte == b'\n');
    lines.filter_map(parse_line).collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [id, parent, device, root, point, _options, rest @ ..] = &fields[..] else {
        return None;
    };
    let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok();
    let path = |field: &[u8]| PathBuf::from(OsString::from_vec(unescape(field)));
    let end = rest.iter().position(|field| *field == b"-")?;
    let (optional, filesystem) = rest.split_at(end);
    let group = |key: &[u8]| {
        let mut values = optional.iter().filter_map(|field| field.strip_prefix(key));
        number(values.next()?)
    };
    let [_, kind, _source, options, ..] = filesystem else {
        return None;
    };
    let layers = if *kind == b"overlay" {
        layers(options)
    } else {
        Vec::new()
    };
    Some(Mount {
        id: number(id)?,
        parent: number(parent)?,
        device: String::from_utf8_lossy(device).into_owned(),
        root: path(root),
        point: path(point),
        shared: group(b"shared:"),
        master: group(b"master:"),
        layers,
    })
}

/// The directories in the options of an overlay, as whoever mounted it named them.
fn layers(options: &[u8]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for option in options.split(|byte| *byte == b',') {
        let mut parts = option.splitn(2, |byte| *byte == b'=');
        let (Some(key), Some(value)) = (parts.next(), parts.next()) else {
            continue;
        };
        let keys: [&[u8]; 4] = [b"lowerdir", b"lowerdir+", b"upperdir", b"workdir"];
        if keys.contains(&key) {
            let dirs = value.split(|byte| *byte == b':');
            found.extend(dirs.map(|dir| PathBuf::from(OsString::from_vec(unescape(dir)))));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel lists of a host whose root is on 253:1, with a volume at /srv.
    const HOST: &str = "28 1 253:1 / / rw shared:1 - ext4 /dev/mapper/a rw\n\
        30 28 0:22 / /proc rw shared:2 - proc proc rw\n\
        31 28 253:5 / /srv rw shared:9 - ext4 /dev/mapper/b rw\n\
        32 28 0:30 / /run rw shared:3 - tmpfs tmpfs rw\n";

    fn namespaces(host: &str, others: &[&str]) -> Namespaces {
        let mut all = vec![Namespace {
            process: None,
            mounts: parse(host.as_bytes()),
        }];
        all.extend(others.iter().enumerate().map(|(number, list)| Namespace {
            process: Some(format!("{} (x)", number + 5)),
            mounts: parse(list.as_bytes()),
        }));
        Namespaces(all)
    }

    #[test]
    fn what_the_kernel_lists_is_read() {
        let list = b"40 28 253:1 /a\\040b /mnt/x rw shared:7 master:1 - overlay o rw,lowerdir=/l1:/l\\0402,upperdir=/u\n\
            41 28 0:3\n42 1 0:4 / / rw\n";
        assert_eq!(
            parse(list),
            [Mount {
                id: 40,
                parent: 28,
                device: "253:1".to_owned(),
                root: "/a b".into(),
                point: "/mnt/x".into(),
                shared: Some(7),
                master: Some(1),
                layers: ["/l1", "/l 2", "/u"].map(PathBuf::from).to_vec(),
            }]
        );
    }

    /// What the host has mounted beside, what others have, the directory, and who uses it.
    type Row<'a> = (&'a str, &'a [&'a str], &'a str, &'a [&'a str]);

    fn claim(rows: &[Row]) {
        for (host, others, dir, users) in rows {
            let all = namespaces(&format!("{HOST}{host}"), others);
            assert_eq!(all.users(Path::new(dir)), *users, "{dir} {host} {others:?}");
        }
    }

    #[test]
    fn who_has_a_directory_mounted_elsewhere_uses_it() {
        let mnt = &["the mount at /mnt"][..];
        claim(&[
            ("", &[], "/home", &[]),
            // The directory, a part of it, and one with a similar name.
            ("50 28 253:1 /home /mnt rw - ext4 a rw\n", &[], "/home", mnt),
            (
                "50 28 253:1 /home/x /mnt rw - ext4 a rw\n",
                &[],
                "/home",
                mnt,
            ),
            (
                "50 28 253:1 /homes /mnt rw - ext4 a rw\n",
                &[],
                "/home",
                &[],
            ),
            (
                "50 28 253:9 /home/x /mnt rw - ext4 a rw\n",
                &[],
                "/home",
                &[],
            ),
            // What has all of it is told of what is mounted there, or is not.
            (
                "50 28 253:1 / /mnt rw shared:1 - ext4 a rw\n",
                &[],
                "/home",
                &[],
            ),
            ("50 28 253:1 / /mnt rw - ext4 a rw\n", &[], "/home", mnt),
            (
                "50 28 0:40 / /home/x/mnt rw - tmpfs t rw\n",
                &[],
                "/home",
                &["the mount at /home/x/mnt"],
            ),
            (
                "50 32 0:50 / /run/o rw - overlay o rw,lowerdir=/home/l,upperdir=/x\n",
                &[],
                "/home",
                &["the mount at /run/o"],
            ),
            // The mount of a volume itself goes.
            ("", &[], "/srv", &[]),
            (
                "50 28 253:5 /x /mnt rw - ext4 b rw\n51 31 0:9 / /srv/x rw - tmpfs t rw\n",
                &[],
                "/srv",
                &["the mount at /mnt", "the mount at /srv/x"],
            ),
        ]);
    }

    #[test]
    fn who_has_mounts_of_his_own_uses_a_directory_unless_he_is_told() {
        let service = "128 1 253:1 / / rw master:1 - ext4 a rw\n";
        let own = "128 1 253:1 / / rw - ext4 a rw\n";
        let machine = "128 1 253:1 /var/lib/machines/m / rw - ext4 a rw\n";
        let with = |mount: &str| format!("{service}{mount}");
        claim(&[
            ("", &[service], "/home", &[]),
            ("", &[own], "/home", &["5 (x), which has mounts of its own"]),
            (
                "",
                &[&with(
                    "129 128 253:1 /home/x /data rw master:1 - ext4 a rw\n",
                )],
                "/home",
                &["the mount at /data of 5 (x)"],
            ),
            // By way of a namespace that is told by that of the host.
            (
                "",
                &[
                    "128 1 253:1 / / rw shared:70 master:1 - ext4 a rw\n",
                    "228 1 253:1 / / rw master:70 - ext4 a rw\n",
                    "328 1 253:1 / / rw master:99 - ext4 a rw\n",
                ],
                "/home",
                &["7 (x), which has mounts of its own"],
            ),
            // A container sees nothing but its own directory.
            ("", &[machine], "/home", &[]),
            ("", &[machine], "/var", &["the mount at / of 5 (x)"]),
            // What the host has mounted is told of once.
            (
                "50 28 253:1 /home/x /mnt rw shared:8 - ext4 a rw\n",
                &[&with(
                    "129 128 253:1 /home/x /mnt rw master:8 - ext4 a rw\n",
                )],
                "/home",
                &["the mount at /mnt"],
            ),
            // What has come by the mount of a volume goes with it.
            (
                "",
                &[&with("129 128 253:5 / /srv rw master:9 - ext4 b rw\n")],
                "/srv",
                &[],
            ),
            (
                "",
                &[&format!("{own}129 128 253:5 / /srv rw - ext4 b rw\n")],
                "/srv",
                &["the mount at /srv of 5 (x)"],
            ),
        ]);
    }

    #[test]
    fn a_mount_that_another_one_hides_holds_nothing() {
        let host = format!(
            "{HOST}50 28 0:40 / /a/b rw - tmpfs t rw\n51 28 0:41 / /a rw - tmpfs t rw\n52 51 0:42 / /a rw - tmpfs t rw\n"
        );
        let all = namespaces(&host, &[]);
        for (dir, id) in [("/a/b/c", 52), ("/a", 52), ("/ab", 28), ("/srv/x", 31)] {
            let found = all.0[0].holding(Path::new(dir)).unwrap();
            assert_eq!(found.id, id, "{dir}");
        }
    }

    #[test]
    fn the_lists_of_all_processes_are_read() {
        // Not everybody may read those of others.
        if let Ok(all) = Namespaces::read() {
            assert!(all.0[0].holding(Path::new("/nonexistent")).is_some());
        }
        let proc = tempfile::tempdir().unwrap();
        for (id, namespace, text) in [
            ("1", "mnt:[1]", HOST),
            ("2", "mnt:[1]", HOST),
            ("3", "mnt:[2]", ""),
            ("4", "mnt:[2]", ""),
            ("x", "mnt:[3]", ""),
        ] {
            let dir = proc.path().join(id);
            fs::create_dir_all(dir.join("ns")).unwrap();
            std::os::unix::fs::symlink(namespace, dir.join("ns/mnt")).unwrap();
            std::os::unix::fs::symlink("/", dir.join("root")).unwrap();
            fs::write(dir.join("mountinfo"), text).unwrap();
            fs::write(dir.join("comm"), "x\n").unwrap();
        }
        let all = Namespaces::read_in(proc.path()).unwrap();
        let processes: Vec<_> = all.0.iter().map(|one| one.process.is_some()).collect();
        assert_eq!(processes, [false, true]);
        assert_eq!(all.0[0].mounts.len(), 4);
    }
}
