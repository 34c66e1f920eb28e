//! Trees that are made to harm: nothing outside of the roots is read or written, and nothing hangs.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use imgbased_helper::merge::{Action, Plan, apply};
use imgbased_helper::tree::{Dir, READ_MAX};

use crate::tree::{GROUPS, Merge, USERS, describe, make};

/// A directory beside the roots that must stay as it is.
fn outside(merge: &Merge) -> std::path::PathBuf {
    let outside = merge.root("outside");
    make(&outside.join("passwd"), "outside");
    make(&outside.join("file"), "outside");
    outside
}

fn is_as_it_was(outside: &Path) {
    let mut names: Vec<_> = fs::read_dir(outside)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort_unstable();
    assert_eq!(names, ["file", "passwd"]);
    for name in names {
        assert_eq!(describe(&outside.join(name)), "outside");
    }
}

#[test]
fn a_link_in_the_place_of_a_directory_leads_nowhere() {
    for target in ["../../outside", "/", "/tmp", ".", "..", "x", "loop"] {
        for side in ["old", "layer", "new"] {
            let merge = Merge::new();
            let outside = outside(&merge);
            for other in ["old", "layer", "new"]
                .into_iter()
                .filter(|other| *other != side)
            {
                make(&merge.etc(other).join("x/file"), other);
                make(&merge.etc(other).join("x/deep/er/file"), other);
            }
            symlink(target, merge.etc(side).join("x")).expect("a link");
            let merged = merge.run();
            is_as_it_was(&outside);
            assert!(merged.left_out.is_empty(), "{side} {target}: {merged:?}");
        }
    }
}

#[test]
fn a_root_whose_etc_is_a_link_is_refused_or_empty() {
    for side in ["old", "layer", "new"] {
        let merge = Merge::new();
        let outside = outside(&merge);
        fs::rename(merge.etc(side), merge.root(side).join("away")).expect("a directory");
        symlink("../outside", merge.etc(side)).expect("a link");
        let open = |side: &str| Dir::root(&merge.root(side)).expect("a directory");
        let [old, layer, new] = ["old", "layer", "new"].map(open);
        let plan = Plan::of([&old, &layer, &new], false).expect("a plan");
        if side == "new" {
            assert!(apply(&plan, &layer, &new).is_err());
        } else {
            apply(&plan, &layer, &new).expect("a merge");
        }
        is_as_it_was(&outside);
        let read = plan.items.iter().any(|item| {
            matches!(&item.action, Action::Put(put) if format!("{put:?}").contains("outside"))
        });
        assert!(!read, "{side}");
    }
}

#[test]
fn the_files_of_users_are_read_from_files_only() {
    for what in [
        "p",
        "s",
        "c",
        "d",
        "l:../../outside/passwd",
        "l:/dev/zero",
        "l:passwd",
    ] {
        for side in ["old", "layer", "new"] {
            let merge = Merge::new();
            let outside = outside(&merge);
            for file in ["passwd", "shadow"] {
                fs::remove_file(merge.etc(side).join(file)).expect("a file");
                make(&merge.etc(side).join(file), what);
            }
            merge.run();
            is_as_it_was(&outside);
            let passwd = merge.etc("copy").join("passwd");
            if side == "layer" && what.starts_with("l:") {
                assert_eq!(describe(&passwd), what);
                continue;
            }
            let metadata = fs::symlink_metadata(&passwd).expect("a file");
            assert!(metadata.is_file(), "{what} {side}");
            let text = fs::read_to_string(&passwd).expect("a file");
            assert!(text.contains("root:x:0:0"), "{what} {side}: {text}");
        }
    }
}

#[test]
fn devices_and_pipes_are_never_opened() {
    let merge = Merge::new();
    for (path, what) in [
        ("pipe", "p"),
        ("device", "c"),
        ("socket", "s"),
        ("fstab", "p"),
        ("machine-id", "p"),
    ] {
        make(&merge.etc("old").join(path), "f1");
        make(&merge.etc("layer").join(path), what);
        make(&merge.etc("new").join(path), "f2");
    }
    // To open a pipe would wait for ever.
    let merged = merge.run();
    assert_eq!(describe(&merge.etc("copy").join("pipe")), "f2");
    assert_eq!(describe(&merge.etc("copy").join("machine-id")), "f2");
    assert!(
        merged.listed.contains(&"pipe left".to_owned()),
        "{merged:?}"
    );
}

#[test]
fn a_second_name_of_a_file_outside_is_not_written_through() {
    let merge = Merge::new();
    let outside = outside(&merge);
    for (path, layer) in [("kept", "f2 mode=600"), ("fstab", "ours")] {
        make(&merge.etc("old").join(path), "f1");
        make(&merge.etc("layer").join(path), layer);
    }
    // The copy has files that have a name outside as well.
    let copy = merge.root("copy");
    fs::create_dir_all(copy.join("etc")).expect("a directory");
    for path in ["kept", "fstab", "passwd"] {
        fs::hard_link(outside.join("file"), copy.join("etc").join(path)).expect("a name");
    }
    let open = |side: &str| Dir::root(&merge.root(side)).expect("a directory");
    let [old, layer, copy] = ["old", "layer", "copy"].map(open);
    let plan = Plan::of([&old, &layer, &copy], false).expect("a plan");
    apply(&plan, &layer, &copy).expect("a merge");
    is_as_it_was(&outside);
    assert_eq!(describe(&merge.etc("copy").join("kept")), "f2 mode=600");
}

#[test]
fn a_tree_of_a_thousand_levels_is_merged() {
    let merge = Merge::new();
    let open = |side: &str| Dir::root(&merge.root(side)).expect("a directory");
    let name = OsStr::new("deep");
    for side in ["old", "layer"] {
        let mut at = open(side).child(OsStr::new("etc")).expect("a directory");
        for _ in 0..1000 {
            at.make_dir(name).expect("a directory");
            at = at.child(name).expect("a directory");
        }
        let mut file = at.create(OsStr::new("end")).expect("a file");
        file.write_all(side.as_bytes()).expect("a write");
    }
    let [old, layer, new] = ["old", "layer", "new"].map(open);
    let plan = Plan::of([&old, &layer, &new], false).expect("a plan");
    assert_eq!(plan.items.len(), 1001);
    apply(&plan, &layer, &new).expect("a merge");
    let again = Plan::of([&old, &layer, &new], false).expect("a plan");
    // In the new base it is now what it is in the layer.
    assert_eq!(again.items.len(), 0);
    for side in ["old", "layer", "new"] {
        let etc = open(side).child(OsStr::new("etc")).expect("a directory");
        etc.remove_all(name).expect("a tree");
    }
}

#[test]
fn a_file_that_grows_while_it_is_read_ends() {
    let merge = Merge::new();
    for side in ["old", "layer", "new"] {
        make(&merge.etc(side).join("grows"), side);
        make(&merge.etc(side).join("hosts"), side);
    }
    let ends = AtomicBool::new(false);
    let path = merge.etc("layer").join("grows");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options().append(true).open(&path).expect("a file");
            let block = vec![b'x'; 1 << 16];
            let mut left = 1 << 10;
            while !ends.load(Ordering::Relaxed) && left > 0 {
                file.write_all(&block).expect("a write");
                left -= 1;
            }
        });
        merge.run();
        ends.store(true, Ordering::Relaxed);
    });
    assert!(merge.etc("copy").join("grows").exists());
}

#[test]
fn a_list_that_is_too_large_is_merged_as_a_file() {
    let merge = Merge::new();
    for (side, byte) in [("old", "1"), ("layer", "2"), ("new", "3")] {
        let path = merge.etc(side).join("hosts");
        make(&path, byte);
        let file = File::options().write(true).open(&path).expect("a file");
        file.set_len(READ_MAX + 1).expect("a size");
    }
    let merged = merge.run();
    assert_eq!(merged.listed, ["hosts conflict both"]);
    let begin = fs::read(merge.etc("copy").join("hosts")).expect("a file");
    assert_eq!(begin[0], b'2');
}

#[test]
fn long_lists_are_merged_in_little_time() {
    type Line = fn(u32) -> String;
    let merge = Merge::new();
    let lines = |from: u32, to: u32, line: Line| -> String { (from..to).map(line).collect() };
    let user: Line = |id| format!("u{id}:x:{id}:{id}:::\n");
    let group: Line = |id| format!("g{id}:x:{id}:{}\n", "u1100,".repeat(9));
    let host: Line = |id| format!("{id} x\n");
    for (file, begin, line) in [
        ("passwd", USERS, user),
        ("group", GROUPS, group),
        ("hosts", "", host),
    ] {
        for (side, from, to) in [
            ("old", 100, 3_000),
            ("layer", 1_000, 5_000),
            ("new", 100, 8_000),
        ] {
            let text = begin.to_owned() + &lines(from, to, line);
            fs::write(merge.etc(side).join(file), text).expect("a file");
        }
    }
    let merged = merge.run();
    assert_eq!(
        merged.listed,
        [
            "hosts merged",
            "passwd merged",
            "group merged",
            "shadow merged"
        ]
    );
    for (file, begin, line) in [("passwd", USERS, user), ("hosts", "", host)] {
        let text = fs::read_to_string(merge.etc("copy").join(file)).expect("a file");
        assert_eq!(
            text,
            begin.to_owned() + &lines(1_000, 8_000, line),
            "{file}"
        );
    }
}

#[test]
fn a_directory_of_many_files_is_merged() {
    let merge = Merge::new();
    for side in ["old", "layer", "new"] {
        fs::create_dir(merge.etc(side).join("many")).expect("a directory");
    }
    for number in 0..2_000 {
        let name = OsString::from(format!("many/{number}"));
        File::create(merge.etc("layer").join(&name)).expect("a file");
    }
    let merged = merge.run();
    assert_eq!(merged.listed.len(), 2_000);
    assert_eq!(merged.etc.len(), 2_001);
}
