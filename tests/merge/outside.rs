//! What is outside of /etc: what is carried, and what is found that is not.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use imgbased_helper::merge::{Outside, Plan, Rules, Verdict, apply, reown};
use imgbased_helper::tree::{Dir, escaped};

use crate::tree::{GROUPS, Merge, USERS, describe, describe_all, lacks, make, own, run, runs};
use crate::whole::make_some;

/// The sides, as the names of their directories.
pub const SIDES: [&str; 3] = ["old", "layer", "new"];

/// What the host and its admin say.
#[derive(Default)]
pub struct Told {
    pub carried: Vec<PathBuf>,
    pub volumes: Vec<PathBuf>,
    pub leave: Vec<PathBuf>,
    pub packages: [BTreeMap<String, String>; 3],
    pub is_snapshot: bool,
    pub is_adopted: bool,
}

impl Told {
    pub fn new(carried: &[&str], volumes: &[&str], leave: &[&str]) -> Self {
        let paths = |of: &[&str]| of.iter().map(PathBuf::from).collect();
        Self {
            carried: paths(carried),
            volumes: paths(volumes),
            leave: paths(leave),
            ..Self::default()
        }
    }

    pub fn rules(&self) -> Rules<'_> {
        Rules {
            carried: &self.carried,
            volumes: &self.volumes,
            leave: &self.leave,
            packages: self.packages.each_ref(),
            is_adopted: self.is_adopted,
        }
    }

    pub fn plan(&self, roots: [&Dir; 3]) -> Plan {
        let plan = if self.is_adopted {
            Plan::of_adopted(roots, self.is_snapshot)
        } else {
            Plan::of(roots, self.is_snapshot)
        };
        plan.expect("a plan")
    }
}

/// What came out.
#[derive(Debug)]
pub struct Done {
    /// The paths of the copy outside of /etc, with what they are.
    pub copy: Vec<String>,
    /// `PATH VERDICT`, and `NOTE` where there is one.
    said: Vec<String>,
    /// `PATH FILES`, and `known`.
    left: Vec<String>,
    left_bytes: u64,
    packages: Vec<String>,
    /// `PATH FILES`
    carried: Vec<String>,
    bytes: u64,
    files: u64,
    left_out: Vec<PathBuf>,
}

/// Nobody ends the work.
pub const GO_ON: fn() -> Result<()> = || Ok(());

pub fn open(merge: &Merge, side: &str) -> Dir {
    Dir::root(&merge.root(side)).expect("a directory")
}

/// Merges all, as an update does it: into a copy that is the new base as long as nothing was put into it.
pub fn update(merge: &Merge, told: &Told) -> Done {
    let copy = merge.root("copy");
    if copy.exists() {
        fs::remove_dir_all(&copy).expect("a directory");
    }
    let new = merge.root("new");
    run("cp", &[OsStr::new("-a"), new.as_os_str(), copy.as_os_str()]);
    update_in_place(merge, told, ["old", "layer", "copy"])
}

/// The same with the last of these as the copy.
fn update_in_place(merge: &Merge, told: &Told, sides: [&str; 3]) -> Done {
    let [_, _, copy] = sides;
    let [old, layer, new] = sides.map(|side| open(merge, side));
    let roots = [&old, &layer, &new];
    let plan = told.plan(roots);
    let outside = Outside::of(roots, told.is_snapshot, &told.rules(), &plan, &GO_ON);
    let outside = outside.expect("what is outside");
    reown(&new, &plan.users.ids).expect("owners");
    apply(&plan, &layer, &new).expect("a merge");
    let left_out = outside.apply(roots, &GO_ON).expect("what was planned");
    let said = outside.items.iter().map(|item| {
        let verdict = match item.verdict {
            Verdict::Conflict(clash) => format!("conflict {clash:?}").to_lowercase(),
            verdict => format!("{verdict:?}").to_lowercase(),
        };
        let note = item.note.as_ref();
        let note = note.map(|note| format!(" ({note})")).unwrap_or_default();
        format!("{} {verdict}{note}", escaped(&item.path))
    });
    let left = outside.left.iter().map(|left| {
        let known = if left.is_known { " known" } else { "" };
        format!("/{} {}{known}", escaped(&left.path), left.files)
    });
    let packages = outside.packages.iter();
    let packages = packages.map(|package| format!("{} {}", package.name, package.files));
    let carried = outside.carried.iter();
    let carried = carried.map(|sum| format!("{} {}", escaped(&sum.path), sum.files));
    Done {
        copy: all(&merge.root(copy)),
        said: said.collect(),
        left: left.collect(),
        left_bytes: outside.unknown_bytes(),
        packages: packages.collect(),
        carried: carried.collect(),
        bytes: outside.carried_bytes,
        files: outside.carried_files,
        left_out,
    }
}

/// All that is in a root outside of /etc.
pub fn all(root: &Path) -> Vec<String> {
    let mut found = describe_all(root);
    found.retain(|line| line != "etc d" && !line.starts_with("etc/"));
    found
}

/// Makes paths: `PATH WHAT` for each.
pub fn make_all(merge: &Merge, side: &str, paths: &[&str]) {
    for line in paths {
        let (path, what) = line.split_once(' ').expect("a path and what it is");
        make(&merge.root(side).join(path), what);
    }
}

/// The words of a list; none if it is empty.
pub fn split(list: &str) -> Vec<&str> {
    list.split(", ").filter(|word| !word.is_empty()).collect()
}

/// Each row is the paths of each side, those of the copy in the end, what is said of them, and what is left behind.
fn check(told: &Told, rows: &[&str]) {
    for row in rows {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [old, layer, new, wanted, said, left] = columns[..] else {
            panic!("{row}");
        };
        let [old, layer, new, wanted, said, left] =
            [old, layer, new, wanted, said, left].map(split);
        let merge = Merge::new();
        for (side, paths) in [("old", old), ("layer", layer), ("new", new)] {
            make_all(&merge, side, &paths);
        }
        let done = update(&merge, told);
        assert_eq!(done.copy, wanted, "{row}");
        assert_eq!(done.said, said, "{row}");
        assert_eq!(done.left, left, "{row}");
        assert!(done.left_out.is_empty(), "{row}: {done:?}");
    }
}

#[test]
fn what_is_carried_is_decided_as_in_etc() {
    check(
        &Told::default(),
        &[
            "srv/x f1 | srv/x f2 | srv/x f1 | srv d, srv/x f2 | |",
            "srv/x f1 | srv/x f1 | srv/x f2 | srv d, srv/x f2 | |",
            "srv/x f1 | srv/x f2 | srv/x f3 | srv d, srv/x f2 | srv/x conflict both |",
            "srv/x f1 | srv d | srv/x f1 | srv d | |",
            "srv/x f1 | srv d | srv/x f2 | srv d | srv/x conflict deleted |",
            "srv/x f1 | srv/x f1 | srv d | srv d | |",
            "srv/x f1 | srv/x f2 | srv d | srv d, srv/x f2 | srv/x conflict gone |",
            "| srv/x f1 | srv/y f2 | srv d, srv/x f1, srv/y f2 | |",
            "srv d | srv/a/b/c f1 | srv d | srv d, srv/a d, srv/a/b d, srv/a/b/c f1 | |",
            // A directory that the admin has removed, and what the image adds in it.
            "srv/d/x f1 | srv d | srv/d/x f1, srv/d/y f2 | srv d, srv/d d, srv/d/y f2 | |",
            // One that the image has removed, with something of the admin's in it.
            "srv/d/x f1 | srv/d/x f1, srv/d/y f2 | srv d | srv d, srv/d d, srv/d/y f2 | |",
        ],
    );
}

#[test]
fn modes_and_owners_are_carried() {
    check(
        &Told::default(),
        &[
            "root d | root d mode=700 | root d | root d mode=700 | |",
            "srv/x f1 | srv/x f1 owner=33:33 | srv/x f2 | srv d, srv/x f2 owner=33:33 | |",
            "srv/x f1 mode=755 | srv/x f2 mode=755 | srv/x f1 mode=4755 | srv d, srv/x f2 mode=755 | srv/x conflict both |",
            "| srv d mode=2775 owner=0:33 | | srv d mode=2775 owner=0:33 | |",
        ],
    );
}

#[test]
fn each_path_is_carried_or_left_or_neither() {
    check(
        &Told::default(),
        &[
            "| root/x f1 | | root d, root/x f1 | |",
            "| usr/local/bin/x f1 | usr d | usr d, usr/local d, usr/local/bin d, usr/local/bin/x f1 | |",
            "| var/lib/x/y f1 | | var d, var/lib d, var/lib/x d, var/lib/x/y f1 | |",
            "| var/log/x f1 | | var d, var/log d, var/log/x f1 | |",
            "| usr/bin/x f1 | | | | /usr 1",
            "usr/bin d | usr/bin/x f1 | | | | /usr/bin 1",
            "| home/anna/x f1 | | | | /home 1",
            "home d | home/anna/x f1, home/anna/y/z f1 | home d | home d | | /home/anna 2",
            "| x f1, y f1, data/z f1 | | | | /data 1, /x 1, /y 1",
            // What can go.
            "| tmp/x f1, var/tmp/x f1, var/cache/x f1, boot/x f1, run/x f1 | | var d | |",
            "| lost+found/x f1, dev/x f1, proc/x f1, sys/x f1, vmlinuz l:boot/x | | | |",
            "| var/lib/dpkg/status f1, var/lib/apt/x f1, var/lib/rpm/x f1, var/lib/dnf/x f1 | | var d, var/lib d | |",
            "| usr/lib/sysimage/dpkg/status f1, usr/share/mime/mime.cache f1 | | | |",
            "usr/lib/x d | usr/lib/x/__pycache__/y.pyc f1 | | | |",
            "usr/lib/modules/6 d | usr/lib/modules/6/modules.dep f1 | | | |",
            "| var/lib/imgbased/spool/x f1 | | var d, var/lib d, var/lib/imgbased d | |",
            // The image's own there stays.
            "| var/lib/dpkg/status f1 | var/lib/dpkg/status f2 | var d, var/lib d, var/lib/dpkg d, var/lib/dpkg/status f2 | |",
        ],
    );
}

#[test]
fn of_opt_is_carried_what_no_image_has() {
    check(
        &Told::default(),
        &[
            "opt d | opt/own/x f1 | opt d | opt d, opt/own d, opt/own/x f1 | |",
            "| opt/own/x f1 | | opt d, opt/own d, opt/own/x f1 | |",
            "| opt/own f1 | opt d | opt d, opt/own f1 | |",
            "opt/image/x f1 | opt/image/x edited, opt/image/y f1 | opt/image/x f1 | opt d, opt/image d, opt/image/x f1 | | /opt/image 2",
            // The next image brings what the admin has put there.
            "opt d | opt/new/x f1 | opt/new/y f2 | opt d, opt/new d, opt/new/y f2 | | /opt/new 1",
            "opt/image/x f1 | opt d | opt/image/x f1 | opt d, opt/image d, opt/image/x f1 | |",
        ],
    );
}

#[test]
fn what_the_admin_names_is_carried() {
    let told = Told::new(
        &["/data/app", "/var/cache/keep", "/etc/x", "/file", "/home"],
        &[],
        &[],
    );
    check(
        &told,
        &[
            "| data/app/x f1, data/y f2 | | data d, data/app d, data/app/x f1 | | /data 1",
            "data d | data/app/x f1 | data/z f3 | data d, data/app d, data/app/x f1, data/z f3 | |",
            "| var/cache/keep/x f1, var/cache/y f2 | | var d, var/cache d, var/cache/keep d, var/cache/keep/x f1 | |",
            "| file f1 | | file f1 | |",
            "file f1 | | file f1 | | |",
            "home d | home/anna/x f1 | home d | home d, home/anna d, home/anna/x f1 | |",
        ],
    );
}

#[test]
fn what_the_admin_leaves_is_known() {
    let told = Told::new(
        &[],
        &[],
        &[
            "/home",
            "/var/lib/docker",
            "/opt/own/big",
            "/usr/bin/x",
            "/tmp",
        ],
    );
    check(
        &told,
        &[
            "| home/anna/x f1, home/y f1 | home d | home d | | /home 2 known",
            "| var/lib/docker/a f1, var/lib/docker/b/c f1, var/lib/z f1 | | var d, var/lib d, var/lib/z f1 | | /var/lib/docker 2 known",
            "| opt/own/big/x f1, opt/own/y f2 | | opt d, opt/own d, opt/own/y f2 | | /opt/own/big 1 known",
            "usr/bin d | usr/bin/x f1, usr/bin/y f1 | | | | /usr/bin 1, /usr/bin/x 1 known",
            "| tmp/x f1 | | | |",
            // What is carried stays as it is in the new base.
            "var/lib/docker/a f1 | var/lib/docker/a edited | var/lib/docker/a f3 | var d, var/lib d, var/lib/docker d, var/lib/docker/a f3 | | /var/lib/docker 1 known",
        ],
    );
}

#[test]
fn what_is_on_volumes_is_neither_carried_nor_left() {
    let told = Told::new(
        &["/var/lib/x"],
        &["/var", "/home", "/srv/data"],
        &["/var/lib/y"],
    );
    check(
        &told,
        &[
            "| var/lib/x/a f1, var/lib/y/b f1, home/anna/z f1 | | | |",
            // The directory that it is mounted on comes, and what the layer has below it not.
            "| srv/data/x f1, srv/y f2 | | srv d, srv/data d, srv/y f2 | |",
            "srv/data/x f1 | srv d | srv/data/x f1 | srv d, srv/data d, srv/data/x f1 | |",
        ],
    );
}

#[test]
fn all_may_be_left() {
    let told = Told::new(&[], &[], &["/"]);
    check(
        &told,
        &["usr d | usr/x f1, home/y f1, srv/z f1 | | srv d, srv/z f1 | | / 2 known"],
    );
}

#[test]
fn a_changed_file_of_the_image_is_found() {
    check(
        &Told::default(),
        &[
            "usr/x f1 | usr/x f1 | usr/x f2 | usr d, usr/x f2 | |",
            "usr/x f1 | usr/x edited | usr/x f1 | usr d, usr/x f1 | | /usr 1",
            "usr/x f1 | usr d | usr/x f1 | usr d, usr/x f1 | |",
            "usr/x f1 | usr/x f1 mode=600 | | | | /usr 1",
            "usr/x f1 | usr/x f1 owner=33:33 | | | | /usr 1",
            "usr/x l:a | usr/x l:b | | | | /usr 1",
            "usr/x l:a | usr/x l:a | | | |",
            "usr/x f1 | usr/x l:y | | | | /usr 1",
            "usr/x f1 | usr/x/y f1, usr/x/z/a f2 | | | | /usr/x 2",
            "usr/x/y f1 | usr/x f1 | | | | /usr 1",
            "usr/x p | usr/x p | | | |",
            "| usr/x s | | | |",
            // Directories are no data.
            "usr d | usr/x/y d | | | |",
            "usr d | usr d mode=700 | | | |",
            // Several, by the directories where they are.
            "usr/a/x f1, usr/b/x f1 | usr/a/x edited, usr/a/y f1, usr/b/x f1, usr/b/new/1 f1, usr/b/new/2/3 f1, usr/b/z f1, usr/c f1 | | | | /usr 1, /usr/a 2, /usr/b 1, /usr/b/new 2",
        ],
    );
}

#[test]
fn types_that_the_new_base_needs_take_the_place_and_the_loss_is_said() {
    check(
        &Told::default(),
        &[
            "srv/x f1 | srv/x f2 | srv/x/y f3 | srv d, srv/x d, srv/x/y f3 | srv/x conflict type | /srv 1",
            "srv/d/x f1 | srv/d/x f2, srv/d/y f1 | srv/d f3 | srv d, srv/d f3 | srv/d/x conflict type, srv/d/y conflict type | /srv/d 2",
            // What the admin has made of another type stays.
            "srv/x f1 | srv/x/y f2 | srv/x f1 | srv d, srv/x d, srv/x/y f2 | |",
            "srv/d/x f1 | srv/d l:/data | srv/d/x f1 | srv d, srv/d l:/data | |",
            "srv/x f1 | srv l:/data/srv | srv/x f1 | srv l:/data/srv | |",
        ],
    );
}

#[test]
fn a_way_that_is_a_link_in_the_new_base_is_not_gone() {
    // Then it is not carried, and that is said.
    check(
        &Told::new(&["/data/app"], &[], &[]),
        &[
            "| opt/own/x f1 | opt l:var/opt | opt l:var/opt | | /opt 1",
            "| data/app/x f1 | data f1 | data f1 | | /data 1",
            "usr/local/x f1 | usr/local/x edited | usr l:y | usr l:y | | /usr/local 1",
        ],
    );
}

#[test]
fn links_that_lead_to_nothing_then_are_noted() {
    // No system can follow it.
    let link = format!("root/x l:/{}", "a".repeat(300));
    let too_long = format!("| {link} | | root d, {link} | |");
    check(
        &Told::default(),
        &[
            "usr/y f1 | root/x l:../usr/y, usr/y f1 | | root d, root/x l:../usr/y | root/x kept (leads to nothing in the new base) |",
            // It led to nothing before; it comes too; it is there.
            "| root/x l:/none | | root d, root/x l:/none | |",
            "| root/x l:/srv/y, srv/y f1 | | root d, root/x l:/srv/y, srv d, srv/y f1 | |",
            "usr/y f1 | root/x l:/usr/y, usr/y f1 | usr/y f1 | root d, root/x l:/usr/y, usr d, usr/y f1 | |",
            "| root/x l:x | | root d, root/x l:x | |",
            &too_long,
            "| root/x l:../../../../srv/y, srv/y f1 | | root d, root/x l:../../../../srv/y, srv d, srv/y f1 | |",
        ],
    );
}

#[test]
fn links_of_etc_can_lead_to_what_is_carried() {
    let merge = Merge::new();
    for (name, target) in [
        ("alternatives/local", "/usr/local/bin/x"),
        ("alternatives/opt", "/opt/own/x"),
        ("alternatives/image", "/usr/bin/x"),
        ("local", "../usr/local/bin/x"),
        ("image", "/usr/bin/x"),
    ] {
        make(&merge.etc("layer").join(name), &format!("l:{target}"));
        let path = merge
            .root("layer")
            .join(target.trim_start_matches(['.', '/']));
        if !path.exists() {
            make(&path, "f1");
        }
    }
    let [old, layer, new] = SIDES.map(|side| open(&merge, side));
    let plan = Plan::of([&old, &layer, &new], false).expect("a plan");
    let noted: Vec<_> = plan
        .items
        .iter()
        .filter(|item| item.note.is_some())
        .map(|item| escaped(&item.path))
        .collect();
    assert_eq!(noted, ["alternatives/image", "image"]);
}

#[test]
fn special_files_are_not_carried() {
    let note = |path: &str| format!("srv/{path} left (devices and pipes are not carried)");
    let merge = Merge::new();
    make_all(
        &merge,
        "layer",
        &["srv/p p", "srv/c c", "srv/s s", "srv/x f1", "usr/p p"],
    );
    if describe(&merge.root("layer").join("srv/c")) != "c" {
        return;
    }
    let done = update(&merge, &Told::default());
    assert_eq!(done.copy, ["srv d", "srv/x f1"]);
    assert_eq!(done.said, [note("c"), note("p")]);
    assert_eq!(done.left, ["/usr 1"]);
}

#[test]
fn what_overlayfs_has_for_deleted_names_is_carried() {
    let merge = Merge::new();
    let [of_layer, of_copy] = ["layer", "copy"].map(|side| merge.root(side).join("var/lib/x"));
    fs::create_dir_all(&of_layer).expect("a directory");
    let mknod = |name: &str| {
        let path = of_layer.join(name);
        let args = [path.as_os_str(), "c".as_ref(), "0".as_ref(), "0".as_ref()];
        runs("mknod", &args)
    };
    if !mknod("gone") {
        return lacks("devices");
    }
    make(&merge.root("old").join("var/lib/x/file"), "f1");
    make(&merge.root("new").join("var/lib/x/file"), "f1");
    assert!(mknod("file"));
    let done = update(&merge, &Told::default());
    assert!(done.said.is_empty() && done.left_out.is_empty(), "{done:?}");
    for name in ["gone", "file"] {
        let copy = fs::symlink_metadata(of_copy.join(name)).expect("a device");
        let layer = fs::symlink_metadata(of_layer.join(name)).expect("a device");
        let of = |metadata: &fs::Metadata| (metadata.mode(), metadata.rdev(), metadata.mtime());
        assert_eq!(of(&copy), of(&layer), "{name}");
    }
    assert_eq!(update(&merge, &Told::default()).copy, done.copy);
}

#[test]
fn packages_of_the_admin_are_named_and_not_their_files() {
    let merge = Merge::new();
    for side in SIDES {
        make_all(
            &merge,
            side,
            &[
                "usr/bin d",
                "usr/share/doc d",
                "bin l:usr/bin",
                "usr/bin/image f1",
            ],
        );
    }
    let info = ["var/lib/dpkg/info/", "usr/lib/sysimage/dpkg/info/"];
    for info in info {
        // The lists are in one place or in the other.
        let merge_dir = merge.root("layer");
        let _ = fs::remove_dir_all(merge_dir.join("var"));
        make_all(
            &merge,
            "layer",
            &[
                "usr/bin/htop f1",
                "usr/bin/tool f1",
                "usr/share/doc/htop/x f1",
                "usr/bin/own f1",
            ],
        );
        fs::write(merge_dir.join("usr/bin/image"), "newer").expect("a file");
        let write = |name: &str, list: &str| {
            fs::create_dir_all(merge_dir.join(info)).expect("a directory");
            fs::write(merge_dir.join(info).join(name), list).expect("a file");
        };
        write(
            "htop.list",
            "/.\n/bin\n/bin/htop\n/usr/share/doc/htop\n/usr/share/doc/htop/x\n",
        );
        write("libtool:amd64.list", "/usr/bin/tool\n");
        write("image.list", "/usr/bin/image\n");
        write("both.list", "/usr/bin/both\n");
        make_all(&merge, "layer", &["usr/bin/both f1"]);
        let of = |packages: &[(&str, &str)]| {
            let owned = packages.iter();
            owned
                .map(|(name, version)| ((*name).to_owned(), (*version).to_owned()))
                .collect()
        };
        let told = Told {
            packages: [
                of(&[("image", "1"), ("same", "1")]),
                of(&[
                    ("image", "2"),
                    ("same", "1"),
                    ("htop", "1"),
                    ("libtool:amd64", "1"),
                    ("both", "1"),
                    ("no-list", "1"),
                ]),
                of(&[("image", "3"), ("both", "2")]),
            ],
            ..Told::default()
        };
        let done = update(&merge, &told);
        assert_eq!(done.packages, ["htop 2", "libtool:amd64 1"]);
        assert_eq!(done.left, ["/usr/bin 1"], "{info}");
        // Who says that they are known says it of files of packages as well.
        let told = Told {
            leave: vec!["/usr".into()],
            ..told
        };
        let done = update(&merge, &told);
        assert_eq!(
            (done.packages.len(), &done.left[..]),
            (0, &["/usr 6 known".to_owned()][..])
        );
    }
}

#[test]
fn bytes_are_of_what_is_there_and_count_once() {
    let merge = Merge::new();
    let layer = merge.root("layer");
    for dir in ["srv", "usr"] {
        let path = layer.join(dir);
        fs::create_dir_all(&path).expect("a directory");
        fs::write(path.join("a"), vec![b'x'; 100_000]).expect("a file");
        fs::hard_link(path.join("a"), path.join("b")).expect("a name");
        let sparse = File::create(path.join("sparse")).expect("a file");
        sparse.set_len(1 << 34).expect("a size");
        sparse.write_all_at(b"x", 1 << 20).expect("a write");
        make(&path.join("link"), "l:a");
    }
    let done = update(&merge, &Told::default());
    // A block of the sparse file, or what the filesystem makes of that.
    let is_near = |bytes: u64| (100_000..400_000).contains(&bytes);
    assert!(is_near(done.bytes), "{}", done.bytes);
    assert!(is_near(done.left_bytes), "{}", done.left_bytes);
    assert_eq!(done.files, 5);
    assert_eq!(done.carried, ["srv 5"]);
    assert_eq!(done.left, ["/usr 4"]);
    let copy = fs::metadata(merge.root("copy").join("srv/sparse")).expect("a file");
    assert_eq!(copy.len(), 1 << 34);
    assert!(copy.blocks() < 4096);
}

#[test]
fn what_is_known_is_not_asked_for() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["home/x f1"]);
    fs::write(merge.root("layer").join("home/big"), vec![1; 3 << 20]).expect("a file");
    let asked = update(&merge, &Told::default());
    assert_eq!(asked.left_bytes, (3 << 20) + 2);
    let known = update(&merge, &Told::new(&[], &[], &["/home/big"]));
    assert_eq!(known.left, ["/home 1", "/home/big 1 known"]);
    assert_eq!(known.left_bytes, 2);
}

#[test]
fn names_of_one_file_stay_that_in_all_that_is_carried() {
    let merge = Merge::new();
    let layer = merge.root("layer");
    make_all(
        &merge,
        "layer",
        &["root/a f1", "srv d", "usr d", "usr/local d"],
    );
    for path in ["srv/b", "root/c", "usr/d", "usr/local/e"] {
        fs::hard_link(layer.join("root/a"), layer.join(path)).expect("a name");
    }
    let done = update(&merge, &Told::default());
    let inode = |path: &str| fs::metadata(merge.root("copy").join(path)).expect("a file");
    for path in ["srv/b", "root/c", "usr/local/e"] {
        assert_eq!(inode(path).ino(), inode("root/a").ino(), "{path}");
    }
    assert_eq!(inode("root/a").nlink(), 4);
    assert_eq!(done.left, ["/usr 1"]);
    assert!(
        done.copy.iter().all(|line| !line.contains(".tmp")),
        "{done:?}"
    );
}

#[test]
fn numbers_of_the_host_stay_and_those_of_the_image_follow() {
    let merge = Merge::new();
    let users = USERS.replace("web:x:33:33", "web:x:60:33") + "new:x:33:33::/:/bin/false\n";
    fs::write(merge.etc("new").join("passwd"), users).expect("a file");
    for (side, web) in [("old", 33), ("layer", 33), ("new", 60)] {
        make_all(&merge, side, &["srv/kept f1", "srv/mode f1"]);
        for path in ["srv", "srv/kept", "srv/mode"] {
            own(&merge.root(side).join(path), web, 33);
        }
    }
    make_all(
        &merge,
        "new",
        &["srv/theirs f1 owner=60:33", "srv/news f1 owner=33:33"],
    );
    let kept = merge.root("layer").join("srv/kept");
    fs::write(&kept, "f2").expect("a file");
    make_all(
        &merge,
        "layer",
        &["srv/ours f1 owner=33:33", "srv/nobodys f1 owner=4711:4712"],
    );
    let mode = merge.root("layer").join("srv/mode");
    fs::set_permissions(mode, fs::Permissions::from_mode(0o600)).expect("a mode");
    let done = update(&merge, &Told::default());
    let new = fs::metadata(merge.root("copy").join("srv/news"))
        .expect("a file")
        .uid();
    assert_ne!(new, 33);
    assert_eq!(
        done.copy,
        [
            "srv d owner=33:33",
            "srv/kept f2 owner=33:33",
            "srv/mode f1 mode=600 owner=33:33",
            &format!("srv/news f1 owner={new}:33"),
            "srv/nobodys f1 owner=4711:4712",
            "srv/ours f1 owner=33:33",
            "srv/theirs f1 owner=33:33",
        ]
    );
    assert!(done.said.is_empty(), "{done:?}");
}

#[test]
fn times_are_carried() {
    let merge = Merge::new();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    make_all(
        &merge,
        "layer",
        &["srv/d/e/x f1", "srv/d/y f1", "srv/d/z/x f1"],
    );
    for path in ["srv/d/e/x", "srv/d/e", "srv/d/z", "srv/d"] {
        let file = File::open(merge.root("layer").join(path)).expect("a file");
        file.set_modified(then).expect("a time");
    }
    update(&merge, &Told::default());
    for path in ["srv/d/e/x", "srv/d/e", "srv/d/z", "srv/d"] {
        let metadata = fs::metadata(merge.root("copy").join(path)).expect("a file");
        assert_eq!(metadata.mtime(), 1_000_000_000, "{path}");
    }
}

#[test]
fn a_snapshot_is_compared_by_its_times() {
    let merge = Merge::new();
    make_all(
        &merge,
        "old",
        &[
            "usr/same f1",
            "usr/edited f1",
            "srv/same f1",
            "srv/edited f1",
        ],
    );
    fs::remove_dir_all(merge.root("layer")).expect("a directory");
    let [old, layer] = ["old", "layer"].map(|side| merge.root(side));
    // The same inodes on both sides, as in a snapshot; but for what was written since.
    run("cp", &["-al".as_ref(), old.as_os_str(), layer.as_os_str()]);
    for path in ["usr/edited", "srv/edited"] {
        fs::remove_file(layer.join(path)).expect("a file");
        make(&layer.join(path), "f2");
    }
    make_all(
        &merge,
        "new",
        &["srv/same f3", "srv/edited f1", "usr/same f3"],
    );
    let told = Told {
        is_snapshot: true,
        ..Told::default()
    };
    let done = update(&merge, &told);
    assert_eq!(
        done.copy,
        [
            "srv d",
            "srv/edited f2",
            "srv/same f3",
            "usr d",
            "usr/same f3"
        ]
    );
    assert_eq!(done.left, ["/usr 1"]);
}

#[test]
fn a_newer_time_alone_is_no_change() {
    let merge = Merge::new();
    for (side, seconds) in [("old", 1), ("layer", 2)] {
        make_all(&merge, side, &["usr/x f1", "usr/y f1"]);
        let path = merge.root(side).join("usr/x");
        let file = File::options().write(true).open(path).expect("a file");
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        file.set_modified(time).expect("a time");
    }
    assert_eq!(update(&merge, &Told::default()).left, [""; 0]);
}

#[test]
fn a_second_merge_takes_what_was_edited_meanwhile() {
    let merge = Merge::new();
    for side in SIDES {
        make_all(&merge, side, &["srv/a f1", "srv/b f1", "srv/c f1"]);
    }
    make_all(&merge, "layer", &["srv/mine f1", "root/x f1"]);
    update(&merge, &Told::default());
    // What the first one has read takes the place of the old base.
    let [layer, early] = ["layer", "early"].map(|side| merge.root(side));
    run("cp", &["-a".as_ref(), layer.as_os_str(), early.as_os_str()]);
    fs::remove_file(layer.join("srv/mine")).expect("a file");
    fs::remove_file(layer.join("srv/b")).expect("a file");
    fs::write(layer.join("srv/a"), "later").expect("a file");
    make_all(&merge, "layer", &["root/new/y f1"]);
    let done = update_in_place(&merge, &Told::default(), ["early", "layer", "copy"]);
    assert_eq!(done.copy, all(&layer));
    assert!(done.said.is_empty() && done.left.is_empty(), "{done:?}");
}

#[test]
fn an_immutable_file_does_not_stop_it() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/mine f1"]);
    let mine = merge.root("layer").join("srv/mine");
    let lock = |flag: &str, path: &Path| runs("chattr", &[flag.as_ref(), path.as_os_str()]);
    if !lock("+i", &mine) {
        return lacks("chattr(1)");
    }
    let done = update(&merge, &Told::default());
    lock("-i", &mine);
    lock("-i", &merge.root("copy").join("srv/mine"));
    assert_eq!(done.copy, ["srv d", "srv/mine f1"]);
}

#[test]
fn attributes_are_carried_and_found() {
    let merge = Merge::new();
    if !crate::tree::has_xattrs(&merge.root("new")) {
        return lacks("attributes");
    }
    make_all(&merge, "old", &["usr/x f1"]);
    make_all(&merge, "layer", &["srv/x f1 user.a=1", "usr/x f1 user.a=1"]);
    let done = update(&merge, &Told::default());
    assert_eq!(done.copy, ["srv d", "srv/x f1 user.a=1"]);
    assert_eq!(done.left, ["/usr 1"]);
    assert_eq!(done.left_bytes, 0);
}

#[test]
fn properties_of_any_three_trees() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..15 {
        let merge = Merge::new();
        for side in SIDES {
            for dir in ["srv", "var/lib", "usr", "home"] {
                let path = merge.root(side).join(dir);
                fs::create_dir_all(&path).expect("a directory");
                make_some(&path, &mut random);
            }
        }
        let carried = |lines: &[String]| -> Vec<String> {
            let is_carried = |line: &&String| line.starts_with("srv") || line.starts_with("var");
            lines.iter().filter(is_carried).cloned().collect()
        };
        let of = |sides: [&str; 3]| {
            let rest = merge.root("rest");
            let _ = fs::remove_dir_all(&rest);
            let new = merge.root(sides[2]);
            run("cp", &["-a".as_ref(), new.as_os_str(), rest.as_os_str()]);
            update_in_place(&merge, &Told::default(), [sides[0], sides[1], "rest"])
        };
        let [old, layer, new] = SIDES.map(|side| all(&merge.root(side)));
        let seen = format!("{old:#?}\n{layer:#?}\n{new:#?}");
        let unchanged = of(["old", "old", "new"]);
        assert_eq!(unchanged.copy, new, "{seen}");
        assert!(
            unchanged.left.is_empty() && unchanged.files == 0,
            "{seen}\n{unchanged:?}"
        );
        assert_eq!(
            carried(&of(["old", "layer", "old"]).copy),
            carried(&layer),
            "{seen}"
        );
        assert_eq!(
            carried(&of(["old", "layer", "layer"]).copy),
            carried(&layer),
            "{seen}"
        );
        let once = of(["old", "layer", "new"]);
        assert!(once.left_out.is_empty(), "{seen}\n{once:?}");
        let image = |lines: &[String]| -> Vec<String> {
            let is_image = |line: &&String| line.starts_with("usr") || line.starts_with("home");
            lines.iter().filter(is_image).cloned().collect()
        };
        assert_eq!(image(&once.copy), image(&new), "{seen}");
        fs::rename(merge.root("rest"), merge.root("once")).expect("a directory");
        assert_eq!(of(["old", "layer", "once"]).copy, once.copy, "{seen}");
    }
}

#[test]
fn every_added_file_is_somewhere() {
    let mut random = fastrand::Rng::with_seed(11);
    let dirs = [
        "srv",
        "root",
        "usr/local",
        "usr/bin",
        "opt/own",
        "home/a",
        "var/lib",
        "var/cache",
        "tmp",
        "data",
        "mnt/v",
    ];
    for _ in 0..10 {
        let merge = Merge::new();
        let told = Told::new(&["/data"], &["/mnt/v"], &["/home/a/2", "/srv/1"]);
        let mut gone = 0;
        for number in 0..60 {
            let dir = dirs[random.usize(..dirs.len())];
            let below = random.usize(..3);
            let path = format!("{dir}/{below}/{number}");
            make(&merge.root("layer").join(&path), &number.to_string());
            gone += usize::from(["var/cache", "tmp", "mnt/v"].contains(&dir));
        }
        let done = update(&merge, &told);
        let files = |of: &str| -> usize {
            let mut find = std::process::Command::new("find");
            let found = find.arg(merge.root(of)).args(["-type", "f"]).output();
            let found = found.expect("find").stdout;
            found.split(|byte| *byte == b'\n').count()
        };
        let left: usize = done
            .left
            .iter()
            .filter_map(|line| line.split(' ').nth(1)?.parse::<usize>().ok())
            .sum();
        let etc = files("new");
        assert_eq!(files("copy") - etc + left + gone, 60, "{done:#?}");
    }
}

// Trees that are made to harm.

/// A directory beside the roots that must stay as it is.
fn beside(merge: &Merge) -> PathBuf {
    let beside = merge.root("beside");
    make(&beside.join("file"), "beside");
    make(&beside.join("x.list"), "/usr/bin/x");
    beside
}

fn is_as_it_was(beside: &Path) {
    assert_eq!(describe_all(beside), ["file beside", "x.list /usr/bin/x"]);
}

#[test]
fn a_link_in_the_place_of_a_directory_leads_nowhere() {
    for target in ["../beside", "/", "loop", "srv"] {
        for side in SIDES {
            for dir in ["srv", "srv/d", "usr", "usr/local", "opt", "var", "data"] {
                let merge = Merge::new();
                let beside = beside(&merge);
                for other in SIDES.into_iter().filter(|other| *other != side) {
                    for file in ["file", "deep/er/file", "own/file"] {
                        make(&merge.root(other).join(dir).join(file), other);
                    }
                }
                let path = merge.root(side).join(dir);
                fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
                symlink(target, path).expect("a link");
                let done = update(&merge, &Told::new(&["/data/deep"], &[], &["/var/deep"]));
                is_as_it_was(&beside);
                assert!(done.left_out.is_empty(), "{target} {side} {dir}: {done:?}");
                let is_read = done.copy.iter().any(|line| line.ends_with(" beside"));
                assert!(!is_read, "{target} {side} {dir}: {done:?}");
            }
        }
    }
}

#[test]
fn a_way_that_leads_out_is_not_gone_for_a_named_path() {
    let merge = Merge::new();
    let beside = beside(&merge);
    for side in SIDES {
        symlink("../beside", merge.root(side).join("data")).expect("a link");
    }
    let told = Told::new(&["/data/file", "/data/new"], &[], &[]);
    let done = update(&merge, &told);
    is_as_it_was(&beside);
    assert_eq!(done.copy, ["data l:../beside"]);
    assert_eq!((done.files, done.left.len()), (0, 0));
}

#[test]
fn lists_of_packages_are_read_from_files_only() {
    for what in [
        "p",
        "s",
        "c",
        "d",
        "l:../../../../../beside/x.list",
        "l:/dev/zero",
    ] {
        let merge = Merge::new();
        let beside = beside(&merge);
        make_all(&merge, "layer", &["usr/bin/x f1"]);
        make(&merge.root("layer").join("var/lib/dpkg/info/x.list"), what);
        let packages: BTreeMap<String, String> = [
            "x",
            "../../../../../beside/x",
            "/etc/passwd",
            "",
            "a\0b",
            "x:y",
        ]
        .map(|name| (name.to_owned(), "1".to_owned()))
        .into_iter()
        .collect();
        let told = Told {
            packages: [BTreeMap::new(), packages, BTreeMap::new()],
            ..Told::default()
        };
        let done = update(&merge, &told);
        is_as_it_was(&beside);
        assert_eq!(done.packages, [""; 0], "{what}");
        assert_eq!(done.left, ["/usr 1"], "{what}");
    }
}

#[test]
fn a_directory_of_lists_that_leads_out_is_not_read() {
    let merge = Merge::new();
    beside(&merge);
    make_all(&merge, "layer", &["usr/bin/x f1", "var/lib/dpkg d"]);
    let info = merge.root("layer").join("var/lib/dpkg/info");
    symlink("../../../../beside", info).expect("a link");
    let told = Told {
        packages: [
            BTreeMap::new(),
            [("x".to_owned(), "1".to_owned())].into_iter().collect(),
            BTreeMap::new(),
        ],
        ..Told::default()
    };
    assert_eq!(update(&merge, &told).left, ["/usr 1"]);
}

#[test]
fn a_list_that_is_too_large_is_not_read() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["usr/bin/x f1", "usr/bin/y f1"]);
    let info = merge.root("layer").join("var/lib/dpkg/info");
    fs::create_dir_all(&info).expect("a directory");
    let mut large = File::create(info.join("x.list")).expect("a file");
    large.write_all(b"/usr/bin/x\n").expect("a write");
    large.set_len(1 << 33).expect("a size");
    fs::write(
        info.join("y.list"),
        "/usr/bin/y\n/../../beside/file\n/usr/../x\n",
    )
    .expect("a file");
    let of = |name: &str| (name.to_owned(), "1".to_owned());
    let told = Told {
        packages: [
            BTreeMap::new(),
            [of("x"), of("y")].into_iter().collect(),
            BTreeMap::new(),
        ],
        ..Told::default()
    };
    let done = update(&merge, &told);
    assert_eq!(done.packages, ["y 1"]);
    assert_eq!(done.left, ["/usr 1"]);
}

#[test]
fn pipes_and_devices_are_never_opened() {
    // To open a pipe would wait for ever.
    for dir in ["srv", "usr", "opt", "var/lib/dpkg/info"] {
        for side in SIDES {
            let merge = Merge::new();
            for other in SIDES {
                let what = if other == side { "p" } else { "f1" };
                make(&merge.root(other).join(dir).join("x"), what);
                make(&merge.root(other).join(dir).join("y"), "p");
            }
            update(&merge, &Told::default());
        }
    }
    for path in ["srv", "opt", "usr", "root", "var"] {
        let merge = Merge::new();
        make(&merge.root("layer").join(path), "p");
        let done = update(&merge, &Told::default());
        assert_eq!(done.copy, [""; 0], "{path}");
    }
}

#[test]
fn a_tree_of_a_thousand_levels_is_carried_and_found() {
    let merge = Merge::new();
    let name = OsStr::new("deep");
    let layer = open(&merge, "layer");
    for top in ["srv", "usr"] {
        layer.make_dir(OsStr::new(top)).expect("a directory");
        let mut at = layer.child(OsStr::new(top)).expect("a directory");
        for _ in 0..1000 {
            at.make_dir(name).expect("a directory");
            at = at.child(name).expect("a directory");
        }
        drop(at.create(OsStr::new("end")).expect("a file"));
    }
    let [old, new] = ["old", "new"].map(|side| open(&merge, side));
    let roots = [&old, &layer, &new];
    let plan = Plan::of(roots, false).expect("a plan");
    let told = Told::default();
    let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    assert_eq!(outside.carried_files, 1002);
    assert_eq!(outside.left.len(), 1);
    assert_eq!(outside.left[0].path, Path::new("usr"));
    outside.apply(roots, &GO_ON).expect("a merge");
    // In the new base it is now what it is in the layer.
    let again = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    assert_eq!(again.carried_files, 0);
    for (side, top) in [("layer", "srv"), ("layer", "usr"), ("new", "srv")] {
        let root = open(&merge, side);
        root.remove_all(OsStr::new(top)).expect("a tree");
    }
}

#[test]
fn names_of_any_bytes_are_carried_and_found() {
    let merge = Merge::new();
    for name in [&b"two\nlines"[..], b"latin\xe4", b"-rf", b" ", b"\x1b[2J"] {
        let name = OsString::from_vec(name.to_vec());
        for dir in ["srv", "opt", "usr"] {
            make(&merge.root("layer").join(dir).join(&name).join("x"), "f1");
        }
        make(&merge.root("old").join("usr"), "d");
    }
    let done = update(&merge, &Told::default());
    assert_eq!(done.files, 11 + 10);
    assert_eq!(done.left.len(), 5);
    assert!(
        done.left.contains(&"/usr/two\\nlines 1".to_owned()),
        "{done:?}"
    );
    assert!(
        done.copy.contains(&"srv/latin\\344/x f1".to_owned()),
        "{done:?}"
    );
}

#[test]
fn a_directory_of_many_files_takes_no_items() {
    let merge = Merge::new();
    fs::create_dir_all(merge.root("layer").join("srv")).expect("a directory");
    fs::create_dir_all(merge.root("layer").join("usr")).expect("a directory");
    for number in 0..2_000 {
        for dir in ["srv", "usr"] {
            let path = merge.root("layer").join(dir).join(number.to_string());
            File::create(path).expect("a file");
        }
    }
    let done = update(&merge, &Told::default());
    assert_eq!(done.said.len(), 0);
    assert_eq!(done.files, 2_001);
    assert_eq!(done.left, ["/usr 2000"]);
    assert_eq!(done.copy.len(), 2_001);
}

#[test]
fn so_many_conflicts_are_kept_and_the_others_counted() {
    let merge = Merge::new();
    for side in SIDES {
        let dir = merge.root(side).join("srv");
        fs::create_dir_all(&dir).expect("a directory");
        for number in 0..1_010 {
            fs::write(dir.join(number.to_string()), side).expect("a file");
        }
    }
    let [old, layer, new] = SIDES.map(|side| open(&merge, side));
    let roots = [&old, &layer, &new];
    let plan = Plan::of(roots, false).expect("a plan");
    let told = Told::default();
    let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    assert_eq!((outside.items.len(), outside.more_items), (1_000, [0, 10]));
    assert_eq!((outside.conflicts, outside.not_carried), (1_010, 0));
    assert_eq!(outside.carried_files, 1_010);
}

#[test]
fn more_places_than_can_be_listed_are_summed() {
    let merge = Merge::new();
    let usr = merge.root("layer").join("usr");
    fs::create_dir_all(merge.root("old").join("usr")).expect("a directory");
    for number in 0..1_050 {
        let dir = usr.join(number.to_string());
        fs::create_dir_all(&dir).expect("a directory");
        File::create(dir.join("x")).expect("a file");
    }
    let done = update(&merge, &Told::default());
    assert_eq!(done.left.len(), 1_001);
    assert_eq!(done.left[0], "/ 50");
}

#[test]
fn paths_that_are_no_paths_are_refused() {
    let merge = Merge::new();
    let [old, layer, new] = SIDES.map(|side| open(&merge, side));
    let roots = [&old, &layer, &new];
    let plan = Plan::of(roots, false).expect("a plan");
    for path in ["", "srv", "../x", "/x/../../y", "/"] {
        let told = Told::new(&[path], &[], &[]);
        let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON);
        assert!(outside.is_err(), "{path}");
    }
}

#[test]
fn the_work_ends_when_it_is_told_to() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/x f1", "usr/x f1"]);
    let [old, layer, new] = SIDES.map(|side| open(&merge, side));
    let roots = [&old, &layer, &new];
    let plan = Plan::of(roots, false).expect("a plan");
    let told = Told::default();
    let ends = || -> Result<()> { bail!("interrupted") };
    let outside = Outside::of(roots, false, &told.rules(), &plan, &ends);
    assert_eq!(outside.err().expect("an error").to_string(), "interrupted");
    let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    let error = outside.apply(roots, &ends).expect_err("an error");
    assert_eq!(error.to_string(), "interrupted");
    assert_eq!(all(&merge.root("new")), [""; 0]);
}

#[test]
fn roots_without_anything_are_merged() {
    let merge = Merge::new();
    for side in SIDES {
        fs::remove_dir_all(merge.etc(side)).expect("a directory");
        fs::write(merge.etc(side), GROUPS).expect("a file");
    }
    let [old, layer, new] = SIDES.map(|side| open(&merge, side));
    let roots = [&old, &layer, &new];
    let plan = Plan::of(roots, false).expect("a plan");
    let told = Told::default();
    let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    assert!(outside.left.is_empty() && outside.carried.is_empty());
    assert!(outside.apply(roots, &GO_ON).expect("a merge").is_empty());
}

#[test]
fn a_layer_that_runs_is_carried() {
    let merge = Merge::new();
    for side in SIDES {
        make_all(&merge, side, &["srv/stays f1", "usr/stays f1"]);
    }
    make_all(
        &merge,
        "layer",
        &["srv/stays f2", "srv/live d", "usr/live d"],
    );
    let dirs = ["srv/live", "usr/live"].map(|path| merge.root("layer").join(path));
    std::thread::scope(|scope| {
        // Is dropped where a merge fails, too.
        let merges = Arc::new(());
        let are_made = Arc::downgrade(&merges);
        scope.spawn(move || {
            let mut random = fastrand::Rng::with_seed(5);
            while are_made.upgrade().is_some() {
                let path = dirs[random.usize(..2)].join(random.usize(..20).to_string());
                // Each fails where something else is there.
                let _ = match random.usize(..7) {
                    0 => fs::remove_file(path),
                    1 => fs::remove_dir_all(path),
                    2 => fs::create_dir(&path).and_then(|()| fs::write(path.join("x"), "x")),
                    3 => symlink("x", path),
                    4 => fs::write(path, vec![1; random.usize(..1 << 20)]),
                    5 => fs::hard_link(path.with_file_name("1"), path),
                    _ => File::options()
                        .write(true)
                        .open(path)
                        .and_then(|file| file.set_len(random.u64(..1 << 20))),
                };
            }
        });
        for _ in 0..10 {
            let done = update(&merge, &Told::default());
            assert!(done.copy.contains(&"srv/stays f2".to_owned()), "{done:?}");
            let is_temporary = |line: &String| line.contains(".tmp");
            assert!(!done.copy.iter().any(is_temporary), "{done:?}");
        }
    });
}
