//! What was changed since an update comes along once more: what was added, changed and deleted, and nothing else. What
//! was not changed is not read.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use imgbased_helper::merge::{Again, Changed, Record, Zones};
use imgbased_helper::tree::Dir;

use crate::outside::{GO_ON, SIDES, Told, all, make_all, open, split, update};
use crate::tree::{Merge, describe, lacks, make, run, runs};
use crate::whole::make_some;

/// An update that waits for a restart.
pub struct Waiting {
    pub merge: Merge,
    told: Told,
    zones: Zones,
    record: Record,
}

/// What an update has opened.
struct Opened {
    roots: [Dir; 3],
    copy: Dir,
    zones: Zones,
    changed: Changed,
}

impl Waiting {
    pub fn new(merge: Merge, told: Told) -> Self {
        let roots = SIDES.map(|side| open(&merge, side));
        let zones = Zones::of_roots(roots.each_ref(), &told.rules()).expect("zones");
        let record = zones.record(&roots[1], &GO_ON).expect("a record");
        // The clock of a filesystem can stand for a few milliseconds.
        sleep(Duration::from_millis(20));
        update(&merge, &told);
        Self {
            merge,
            told,
            zones,
            record,
        }
    }

    fn opened(&self) -> Opened {
        let roots = SIDES.map(|side| open(&self.merge, side));
        let told = Told {
            carried: [self.told.carried.clone(), self.zones.carried()].concat(),
            is_adopted: self.told.is_adopted,
            ..Told::default()
        };
        let zones = Zones::of_roots(roots.each_ref(), &told.rules()).expect("zones");
        let changed = zones.changed(&self.record, &roots[1], &GO_ON);
        Opened {
            roots,
            copy: open(&self.merge, "copy"),
            zones,
            changed: changed.expect("what was changed"),
        }
    }

    /// Takes along what was changed. Returns what had no place.
    pub fn again(&self) -> Vec<PathBuf> {
        let opened = self.opened();
        let scratch = self.merge.root("scratch");
        fs::create_dir(&scratch).expect("a directory");
        let roots = opened.roots.each_ref();
        let plan = self.told.plan(roots);
        let again = Again {
            roots,
            is_snapshot: self.told.is_snapshot,
            plan: &plan,
            copy: &opened.copy,
            scratch: &Dir::root(&scratch).expect("a directory"),
        };
        let before = all(&self.merge.root("copy"));
        let staged = again.stage(&opened.zones, &opened.changed, &GO_ON);
        let staged = staged.expect("what was changed");
        // What is whole stays so until all is ready.
        assert_eq!(all(&self.merge.root("copy")), before);
        let left_out = staged.put().expect("a place");
        let removed = open(&self.merge, ".").remove_all(OsStr::new("scratch"));
        removed.expect("what was there before");
        left_out
    }

    fn copy(&self) -> Vec<String> {
        all(&self.merge.root("copy"))
    }

    fn layer(&self, path: &str) -> PathBuf {
        self.merge.root("layer").join(path)
    }
}

/// Makes a path what the text says, as a person does who edits a tree.
fn change(path: &Path, what: &str) {
    let is_dir = path.is_dir() && !path.is_symlink();
    let stays = if is_dir {
        what.starts_with('d')
    } else {
        what.starts_with('f') && !path.is_symlink()
    };
    if path.symlink_metadata().is_ok() && !stays {
        if is_dir {
            fs::remove_dir_all(path).expect("a directory");
        } else {
            fs::remove_file(path).expect("a file");
        }
    }
    make(path, what);
}

/// Each row is the paths of each side, what is done to the layer after the update, and the copy in the end.
fn check(rows: &[&str]) {
    for row in rows {
        let columns: Vec<&str> = row.split('|').map(str::trim).collect();
        let [old, layer, new, since, wanted] = columns[..] else {
            panic!("{row}");
        };
        let merge = Merge::new();
        for (side, paths) in SIDES.iter().zip([old, layer, new]) {
            make_all(&merge, side, &split(paths));
        }
        let waiting = Waiting::new(merge, Told::default());
        for line in split(since) {
            let (path, what) = line.split_once(' ').expect("a path and what it is");
            change(&waiting.layer(path), what);
        }
        assert_eq!(waiting.again(), [""; 0].map(PathBuf::from), "{row}");
        assert_eq!(waiting.copy(), split(wanted), "{row}");
        // Once more is the same.
        waiting.again();
        assert_eq!(waiting.copy(), split(wanted), "twice: {row}");
    }
}

#[test]
fn what_was_added_and_changed_comes_along() {
    check(&[
        "| srv/x f1 | | srv/y f2 | srv d, srv/x f1, srv/y f2",
        "| srv/x f1 | | srv/x f2 | srv d, srv/x f2",
        "srv d | srv d | srv d | srv/a/b f1 | srv d, srv/a d, srv/a/b f1",
        "| | | root/a/b f1 | root d, root/a d, root/a/b f1",
        "| srv/x f1 | | srv/x l:y | srv d, srv/x l:y",
        "| srv/x l:y | | srv/x l:z | srv d, srv/x l:z",
        "| srv/x f1 | | srv/x d, srv/x/y f2 | srv d, srv/x d, srv/x/y f2",
        "| srv/x/y f1 | | srv/x f2 | srv d, srv/x f2",
        // Of the image, as its new version has it in all else.
        "srv/x f1 | srv/x f1 | srv/x f1 mode=600 | srv/x f2 | srv d, srv/x f2 mode=600",
        "srv/x f1 | srv/x f1 | srv/x f3 | srv/x f2 | srv d, srv/x f2",
        // What the image needs as a directory.
        "srv/x f1 | srv/x f1 | srv/x/y f1 | srv/x f2 | srv d, srv/x d, srv/x/y f1",
        // A directory that the image has no more comes with what is put into it.
        "srv/d/x f1 | srv/d/x f1 | srv d | srv/d/y f2 | srv d, srv/d d, srv/d/y f2",
        "| opt/a/x f1 | | opt/b/x f1, opt/a/y f2 | opt d, opt/a d, opt/a/x f1, opt/a/y f2, opt/b d, opt/b/x f1",
    ]);
}

#[test]
fn modes_and_owners_come_along() {
    check(&[
        "| srv/x f1 | | srv/x f1 mode=600 | srv d, srv/x f1 mode=600",
        "| srv/x f1 | | srv/x f1 owner=33:33 | srv d, srv/x f1 owner=33:33",
        "| srv d | | srv d mode=700 | srv d mode=700",
        "| srv/d/x f1 | | srv/d d mode=750 owner=0:33 | srv d, srv/d d mode=750 owner=0:33, srv/d/x f1",
        "srv d | srv d | srv d | srv d mode=700 | srv d mode=700",
    ]);
}

#[test]
fn what_was_deleted_goes_and_what_is_of_the_image_stays() {
    check(&[
        "| srv/x f1, srv/y f1 | | srv/x - | srv d, srv/y f1",
        "| srv/d/e/x f1, srv/y f1 | | srv/d - | srv d, srv/y f1",
        "| root/x f1 | | root - |",
        "| opt/own/x f1 | opt d | opt/own - | opt d",
        // What both images have, as before an update.
        "srv/x f1 | srv/x f1 | srv/x f1 | srv/x - | srv d",
        "srv/x f1 | srv/x f1 | srv/x f2 | srv/x - | srv d",
        "srv/d/x f1 | srv/d/x f1 | srv/d/x f1, srv/d/y f2 | srv/d - | srv d, srv/d d, srv/d/y f2",
        // What only the new one brings.
        "| srv/y f1 | srv/x f2 | srv/y - | srv d, srv/x f2",
        "| srv/d/y f1 | srv/d/x f2 | srv/d - | srv d, srv/d d, srv/d/x f2",
        "| srv/x f1 | srv/x f2 mode=600 | srv/x - | srv d, srv/x f2 mode=600",
        // What was changed once, and is not any more.
        "srv/x f1 | srv/x f2 | srv/x f3 | srv/x f1 | srv d, srv/x f3",
        "srv/x f1 | srv/x l:y | srv/x f3 | srv/x f1 | srv d, srv/x f3",
        "srv d mode=700 | srv d | srv d mode=700 | srv d mode=700 | srv d mode=700",
        "srv/d/x f1 | srv/d/x f1, srv/d/y f2 | srv d | srv/d/y - | srv d",
        "srv/d/e/x f1 | srv/d/e/x f1, srv/d/e/y f2 | srv d | srv/d/e/y - | srv d",
        "srv/x/v f1 | srv/x l:y | srv/x/v f1 | srv/x - | srv d",
        // With all that is in it.
        "srv/x/v f1 | srv/x l:y | srv/x/v f1, srv/x/w f2 | srv/x - | srv d, srv/x d, srv/x/w f2",
        "| srv/x f1 | srv/x/y/z f2, srv/x/v f3 | srv/x - | srv d, srv/x d, srv/x/v f3, srv/x/y d, srv/x/y/z f2",
        "| srv/x f1 | srv/x/y/z f2 | srv/x d, srv/x/v f3 | srv d, srv/x d, srv/x/v f3, srv/x/y d, srv/x/y/z f2",
        // What is not carried.
        "usr/x f1 | usr/x f1, home/x f1 | usr/x f1 | usr/x -, home/x - | usr d, usr/x f1",
    ]);
}

#[test]
fn what_a_hook_has_put_into_the_new_layer_stays() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/d/x f1", "srv/y f1"]);
    let waiting = Waiting::new(merge, Told::default());
    for path in ["srv/d/hook", "srv/other/hook"] {
        make(&waiting.merge.root("copy").join(path), "hook");
    }
    change(&waiting.layer("srv/d"), "-");
    assert!(waiting.again().is_empty());
    assert_eq!(
        waiting.copy(),
        [
            "srv d",
            "srv/d d",
            "srv/d/hook hook",
            "srv/other d",
            "srv/other/hook hook",
            "srv/y f1"
        ]
    );
}

#[test]
fn names_of_one_file_are_that_in_the_copy() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/a f1", "srv/c f1", "root/x f1"]);
    fs::hard_link(merge.root("layer/srv/c"), merge.root("layer/srv/d")).expect("a name");
    let waiting = Waiting::new(merge, Told::default());
    let (a, c, d) = ("srv/a", "srv/c", "srv/d");
    // One gets a second name, and two are no names of one file any more.
    fs::hard_link(waiting.layer(a), waiting.layer("root/b")).expect("a name");
    let other = waiting.layer("srv/other");
    fs::copy(waiting.layer(d), &other).expect("a file");
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).expect("a mode");
    fs::rename(other, waiting.layer(d)).expect("a file");
    assert!(waiting.again().is_empty());
    let stat = |path: &str| fs::metadata(waiting.merge.root("copy").join(path)).expect("a file");
    assert_eq!(stat(a).ino(), stat("root/b").ino());
    assert_ne!(stat(c).ino(), stat(d).ino());
    assert_eq!(
        (stat(a).nlink(), stat(c).nlink(), stat(d).nlink()),
        (2, 1, 1)
    );
    assert_eq!(stat(c).mode() & 0o777, 0o644);
    assert_eq!(stat(d).mode() & 0o777, 0o600);
}

#[test]
fn times_come_along() {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let at = |path: &Path| {
        let file = File::open(path).expect("a file");
        file.set_modified(then).expect("a time");
    };
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/d/x f1", "srv/d/y f1", "srv/e/x f1"]);
    for path in ["srv/d/y", "srv/d", "srv/e", "srv"] {
        at(&merge.root("layer").join(path));
    }
    let waiting = Waiting::new(merge, Told::default());
    // In its place, so the time of its directory stays; and beside another one.
    fs::write(waiting.layer("srv/d/x"), "f2").expect("a file");
    make(&waiting.layer("srv/e/new"), "f1");
    at(&waiting.layer("srv/e"));
    assert!(waiting.again().is_empty());
    for path in ["srv", "srv/d", "srv/d/x", "srv/d/y", "srv/e", "srv/e/new"] {
        let time = |root: &str| {
            let metadata = fs::metadata(waiting.merge.root(root).join(path));
            metadata.expect("a file").modified().expect("a time")
        };
        assert_eq!(time("copy"), time("layer"), "{path}");
    }
}

#[test]
fn immutable_files_come_and_go() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/gone f1", "srv/edited f1"]);
    let lock = |flag: &str, path: &Path| runs("chattr", &[flag.as_ref(), path.as_os_str()]);
    if !lock("+i", &merge.root("layer").join("srv/gone")) {
        return lacks("chattr(1)");
    }
    lock("+i", &merge.root("layer").join("srv/edited"));
    let waiting = Waiting::new(merge, Told::default());
    let edited = waiting.layer("srv/edited");
    for path in [&edited, &waiting.layer("srv/gone")] {
        lock("-i", path);
    }
    fs::write(&edited, "f2").expect("a file");
    lock("+i", &edited);
    change(&waiting.layer("srv/gone"), "-");
    assert!(waiting.again().is_empty());
    assert_eq!(waiting.copy(), ["srv d", "srv/edited f2"]);
    let copy = waiting.merge.root("copy/srv/edited");
    assert!(fs::write(&copy, "").is_err());
    lock("-i", &edited);
    lock("-i", &copy);
}

/// Of two names of a file one is the first to come.
#[test]
fn immutable_files_stay_that() {
    let merge = Merge::new();
    make_all(
        &merge,
        "layer",
        &["srv/one f1", "root/later f1", "root/mode f1", "etc/own 1"],
    );
    let layer = merge.root("layer");
    fs::hard_link(layer.join("srv/one"), layer.join("root/two")).expect("a name");
    let lock = |flag: &str, path: &Path| runs("chattr", &[flag.as_ref(), path.as_os_str()]);
    if !lock("+i", &layer.join("srv/one")) {
        return lacks("chattr(1)");
    }
    lock("+i", &layer.join("root/mode"));
    lock("+a", &layer.join("etc/own"));
    let waiting = Waiting::new(merge, Told::default());
    let mode = waiting.layer("root/mode");
    lock("+i", &waiting.layer("root/later"));
    lock("-i", &mode);
    fs::set_permissions(&mode, fs::Permissions::from_mode(0o600)).expect("a mode");
    lock("+i", &mode);
    assert!(waiting.again().is_empty());
    let copy = |path: &str| waiting.merge.root("copy").join(path);
    let inode = |path: &str| fs::metadata(copy(path)).expect("a file");
    assert_eq!(inode("srv/one").ino(), inode("root/two").ino());
    assert_eq!(inode("root/mode").mode() & 0o777, 0o600);
    for path in ["srv/one", "root/later", "root/mode", "etc/own"] {
        assert!(fs::write(copy(path), "").is_err(), "{path}");
    }
    for root in ["layer", "copy"] {
        for path in ["srv/one", "root/later", "root/mode", "etc/own"] {
            let path = waiting.merge.root(root).join(path);
            lock("-i", &path);
            lock("-a", &path);
        }
    }
}

/// The bytes that this thread has read from files.
fn bytes_read() -> Option<u64> {
    let io = fs::read_to_string("/proc/thread-self/io").ok()?;
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line?.parse().ok()
}

#[test]
fn what_was_not_changed_is_not_read() {
    // Nothing of that size is described.
    const SIZE: usize = 2 << 20;
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/mode f1", "srv/x f1"]);
    for name in ["a", "b", "c"] {
        fs::write(merge.root("layer/srv").join(name), vec![1; SIZE]).expect("a file");
    }
    let waiting = Waiting::new(merge, Told::default());
    let Some(before) = bytes_read() else {
        return lacks("record of what a thread has read");
    };
    let layer = open(&waiting.merge, "layer");
    let is_changed = waiting.zones.is_changed(&waiting.record, &layer);
    assert!(!is_changed.expect("a walk"));
    let read = bytes_read().expect("it was there") - before;
    assert!(read < 4096, "{read} bytes");
    // Of others than that only what has to be compared: the one that has another time, and that is written to.
    change(&waiting.layer("srv/mode"), "f1 mode=600");
    change(&waiting.layer("srv/x"), "f2");
    let before = bytes_read().expect("it was there");
    waiting.again();
    let read = bytes_read().expect("it was there") - before;
    assert!(read < SIZE as u64, "{read} bytes");
}

#[test]
fn what_is_untouched_of_the_new_base_is_left_alone() {
    let merge = Merge::new();
    for side in SIDES {
        make_all(&merge, side, &["srv/x f1"]);
    }
    let waiting = Waiting::new(merge, Told::default());
    // The copy is a snapshot of the new base.
    let [new, copy] = ["new", "copy"].map(|side| waiting.merge.root(side).join("srv/x"));
    fs::remove_file(&copy).expect("a file");
    fs::hard_link(&new, &copy).expect("a name");
    let inode = fs::metadata(&copy).expect("a file").ino();
    fs::write(waiting.layer("srv/x"), "f1").expect("a file");
    assert!(waiting.again().is_empty());
    assert_eq!(fs::metadata(&copy).expect("a file").ino(), inode);
}

#[test]
fn without_a_record_all_is_compared_and_nothing_goes() {
    let merge = Merge::new();
    make_all(&merge, "layer", &["srv/x f1", "srv/gone f1"]);
    let mut waiting = Waiting::new(merge, Told::default());
    waiting.record = Record::default();
    change(&waiting.layer("srv/gone"), "-");
    change(&waiting.layer("srv/y"), "f2");
    assert!(waiting.again().is_empty());
    assert_eq!(
        waiting.copy(),
        ["srv d", "srv/gone f1", "srv/x f1", "srv/y f2"]
    );
}

#[test]
fn it_is_as_if_the_update_had_been_done_last() {
    let mut random = fastrand::Rng::with_seed(17);
    for round in 0..40 {
        let merge = Merge::new();
        let dirs = ["srv", "var/lib"];
        for side in SIDES {
            for dir in dirs {
                let path = merge.root(side).join(dir);
                fs::create_dir_all(&path).expect("a directory");
                make_some(&path, &mut random);
            }
        }
        let sides = SIDES.map(|side| all(&merge.root(side)));
        let waiting = Waiting::new(merge, Told::default());
        for dir in dirs {
            for path in ["a", "b", "a/c", "a/d", "a/c/e"] {
                let path = waiting.layer(dir).join(path);
                if random.bool() && path.symlink_metadata().is_ok() {
                    change(&path, "-");
                }
            }
            make_some(&waiting.layer(dir), &mut random);
        }
        let seen = format!("{round}: {sides:#?}\n{:#?}", all(&waiting.layer("")));
        assert!(waiting.again().is_empty(), "{seen}");
        let again = waiting.copy();
        assert_eq!(again, update(&waiting.merge, &waiting.told).copy, "{seen}");
    }
}

#[test]
fn a_snapshot_is_compared_by_its_times_once_more() {
    let merge = Merge::new();
    make_all(&merge, "old", &["srv/same f1", "srv/x f1", "srv/y f1"]);
    fs::remove_dir_all(merge.root("layer")).expect("a directory");
    let [old, layer] = ["old", "layer"].map(|side| merge.root(side));
    run("cp", &["-al".as_ref(), old.as_os_str(), layer.as_os_str()]);
    make_all(&merge, "new", &["srv/same f3", "srv/x f1", "srv/y f1"]);
    let told = Told {
        is_snapshot: true,
        ..Told::default()
    };
    let waiting = Waiting::new(merge, told);
    for path in ["srv/x", "srv/y"] {
        change(&waiting.layer(path), "-");
    }
    make(&waiting.layer("srv/x"), "f2");
    assert!(waiting.again().is_empty());
    assert_eq!(waiting.copy(), ["srv d", "srv/same f3", "srv/x f2"]);
    assert_eq!(describe(&waiting.merge.root("old/srv/x")), "f1");
}
