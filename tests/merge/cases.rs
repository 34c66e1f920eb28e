//! One path in the old base, the layer and the new base, and what it becomes.

use crate::tree::{Merge, describe, has_xattrs, lacks, make};

/// A row: the path `x` on each side, what it is in the end, and what is listed of it.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static str,
);

fn check(rows: &[Row]) {
    for (old, layer, new, wanted, listed) in rows {
        let row = format!("{old} / {layer} / {new}");
        let merge = Merge::new();
        for (side, text) in [("old", old), ("layer", layer), ("new", new)] {
            make(&merge.etc(side).join("x"), text);
        }
        let merged = merge.run();
        assert_eq!(describe(&merge.etc("copy").join("x")), *wanted, "{row}");
        let said: Vec<&str> = merged
            .listed
            .iter()
            .filter_map(|line| line.strip_prefix("x "))
            .collect();
        assert_eq!(said.join(", "), *listed, "{row}");
        assert!(merged.left_out.is_empty(), "{row}: {merged:?}");
    }
}

/// The words of a list; none if it is empty.
fn split(list: &str) -> Vec<&str> {
    list.split(", ").filter(|word| !word.is_empty()).collect()
}

/// The same for trees: each side is a list of `PATH WHAT`.
fn check_trees(rows: &[Row]) {
    for (old, layer, new, wanted, listed) in rows {
        let row = format!("{old} / {layer} / {new}");
        let merge = Merge::new();
        for (side, paths) in [("old", old), ("layer", layer), ("new", new)] {
            for line in split(paths) {
                let (path, what) = line.split_once(' ').expect("a path and what it is");
                make(&merge.etc(side).join(path), what);
            }
        }
        let merged = merge.run();
        assert_eq!(merged.etc, split(wanted), "{row}");
        assert_eq!(merged.listed, split(listed), "{row}");
        assert!(merged.left_out.is_empty(), "{row}: {merged:?}");
    }
}

#[test]
fn content() {
    check(&[
        ("f1", "f1", "f1", "f1", ""),
        ("f1", "f1", "f2", "f2", ""),
        ("f1", "f2", "f1", "f2", "kept"),
        ("f1", "f2", "f2", "f2", ""),
        ("f1", "f2", "f3", "f2", "conflict both"),
        ("f1", "f1", "-", "-", ""),
        ("f1", "f2", "-", "f2", "conflict gone"),
        ("f1", "-", "f1", "-", "kept"),
        ("f1", "-", "f2", "-", "conflict deleted"),
        ("f1", "-", "-", "-", ""),
        ("-", "f1", "-", "f1", "kept"),
        ("-", "-", "f1", "f1", ""),
        ("-", "f1", "f1", "f1", ""),
        ("-", "f1", "f2", "f1", "conflict added"),
        ("f1", "empty", "f1", "empty", "kept"),
    ]);
}

#[test]
fn modes() {
    check(&[
        ("f1", "f1 mode=600", "f1", "f1 mode=600", "kept"),
        ("f1", "f1", "f1 mode=600", "f1 mode=600", ""),
        ("f1", "f1 mode=600", "f1 mode=600", "f1 mode=600", ""),
        (
            "f1",
            "f1 mode=600",
            "f1 mode=640",
            "f1 mode=600",
            "conflict both",
        ),
        ("f1", "f2", "f1 mode=600", "f2 mode=600", "kept"),
        ("f1", "f1 mode=600", "f2", "f2 mode=600", "kept"),
        (
            "f1 mode=4755",
            "f1 mode=755",
            "f2 mode=4755",
            "f2 mode=755",
            "kept",
        ),
        (
            "f1 mode=755",
            "f2 mode=755",
            "f1 mode=4755",
            "f2 mode=755",
            "conflict both",
        ),
        (
            "f1 mode=4755",
            "f2 mode=4755",
            "f3 mode=4755",
            "f2 mode=4755",
            "conflict both",
        ),
        ("f1", "f1 mode=0", "f2", "f2 mode=0", "kept"),
        ("d", "d mode=700", "d", "d mode=700", "kept"),
        ("d", "d", "d mode=1777", "d mode=1777", ""),
    ]);
}

#[test]
fn owners() {
    check(&[
        ("f1", "f1 owner=33", "f1", "f1 owner=33:33", "kept"),
        ("f1", "f1", "f1 owner=33", "f1 owner=33:33", ""),
        ("f1", "f1 owner=33", "f1 owner=33", "f1 owner=33:33", ""),
        (
            "f1",
            "f1 owner=33",
            "f1 owner=3",
            "f1 owner=33:33",
            "conflict both",
        ),
        ("f1", "f2", "f1 owner=0:33", "f2 owner=0:33", "kept"),
        ("f1", "f1 owner=0:33", "f2", "f2 owner=0:33", "kept"),
        (
            "f1",
            "f2 owner=4321:4321",
            "f1",
            "f2 owner=4321:4321",
            "kept",
        ),
        ("l:a", "l:a owner=33", "l:a", "l:a owner=33:33", "kept"),
        (
            "f1 mode=4755",
            "f1 mode=4755 owner=33",
            "f1 mode=4755",
            "f1 mode=4755 owner=33:33",
            "kept",
        ),
    ]);
}

#[test]
fn attributes() {
    if !has_xattrs(Merge::new().root("old").as_path()) {
        return lacks("attributes");
    }
    check(&[
        ("f1", "f1 user.a=1", "f1", "f1 user.a=1", "kept"),
        ("f1", "f1 user.a=1", "f2", "f2 user.a=1", "kept"),
        ("f1 user.a=1", "f1", "f2 user.a=1", "f2", "kept"),
        (
            "f1 user.a=1",
            "f1 user.a=1",
            "f1 user.a=2",
            "f1 user.a=2",
            "",
        ),
        (
            "f1",
            "f1 user.a=1",
            "f1 user.a=2",
            "f1 user.a=1",
            "conflict both",
        ),
        (
            "f1",
            "f1 user.a=1",
            "f1 user.b=2",
            "f1 user.a=1 user.b=2",
            "kept",
        ),
        ("f1", "f2", "f1 user.b=2", "f2 user.b=2", "kept"),
        ("d", "d user.a=1", "d", "d user.a=1", "kept"),
    ]);
}

#[test]
fn links() {
    check(&[
        ("l:hosts", "l:hosts", "l:motd", "l:motd", ""),
        ("l:a", "l:b", "l:a", "l:b", "kept"),
        ("l:a", "l:b", "l:c", "l:b", "conflict both"),
        ("f1", "l:a", "f1", "l:a", "kept"),
        ("l:a", "f1", "l:a", "f1", "kept"),
        ("f1", "l:a", "f2", "l:a", "conflict type"),
        ("l:a", "f1", "d", "d", "conflict type"),
        ("l:a", "l:/etc/passwd", "l:a", "l:/etc/passwd", "kept"),
        (
            "-",
            "l:../../../../outside",
            "-",
            "l:../../../../outside",
            "kept",
        ),
        ("f1", "l:a", "l:a", "l:a", ""),
        ("l:a", "l:a", "f1", "f1", ""),
        ("l:a", "-", "l:a", "-", "kept"),
        ("l:a", "-", "l:b", "-", "conflict deleted"),
        ("l:a", "l:b", "-", "l:b", "conflict gone"),
        ("d", "l:a", "d", "l:a", "kept"),
        ("l:d", "l:d", "d", "d", ""),
        ("l:d", "l:e", "d", "d", "conflict type"),
        ("-", "l:x", "-", "l:x", "kept"),
    ]);
}

#[test]
fn directories() {
    check_trees(&[
        ("", "a d", "", "a d", "a kept"),
        ("a d", "", "a d", "", "a kept"),
        // Only a label of the directory is another one.
        (
            "a d",
            "a d security.selinux=s:o:x_t:s0, a/1 f1",
            "",
            "a d, a/1 f1",
            "a kept, a/1 kept",
        ),
        (
            "a/1 f1",
            "",
            "a/1 f1, a/2 f2",
            "a d, a/2 f2",
            "a kept, a/1 kept",
        ),
        (
            "a/1 f1",
            "a/1 f1, a/2 f2",
            "",
            "a d, a/2 f2",
            "a kept, a/2 kept",
        ),
        (
            "a/b/1 f1",
            "a/b/1 f2",
            "",
            "a d, a/b d, a/b/1 f2",
            "a kept, a/b kept, a/b/1 conflict gone",
        ),
        ("a/b/1 f1", "a/b/1 f1", "c f1", "c f1", ""),
        ("a d", "a f1", "a d", "a f1", "a kept"),
        (
            "a/1 f1",
            "a f1",
            "a/1 f2",
            "a f1",
            "a conflict type, a/1 conflict type",
        ),
        ("a f1", "a/1 f1", "a f1", "a d, a/1 f1", "a kept, a/1 kept"),
        (
            "a f1",
            "a/1 f1",
            "a f2",
            "a d, a/1 f1",
            "a conflict type, a/1 kept",
        ),
        (
            "a/1 f1",
            "a l:b",
            "a/1 f1, a/2 f1",
            "a l:b",
            "a conflict type, a/2 conflict type",
        ),
        ("a f1", "a f2", "a/1 f1", "a d, a/1 f1", "a conflict type"),
        ("a f1", "", "a/1 f1", "a d, a/1 f1", "a conflict type"),
        ("a d", "a/1 f1", "a f1", "a f1", "a/1 conflict type"),
        (
            "a/1 f1",
            "a/1 f2, a/2 f1",
            "a f1",
            "a f1",
            "a/1 conflict type, a/2 conflict type",
        ),
        (
            "a/b/c f1",
            "a/b/c f1, a/b/d f1",
            "a/b f1",
            "a d, a/b f1",
            "a/b/d conflict type",
        ),
        (
            "",
            "a/b/c f1",
            "a f1",
            "a d, a/b d, a/b/c f1",
            "a conflict type, a/b kept, a/b/c kept",
        ),
        (
            "a d mode=1777",
            "a d mode=1777, a/1 f1",
            "a d",
            "a d, a/1 f1",
            "a/1 kept",
        ),
        (
            "a d",
            "a d mode=700, a/1 f1",
            "",
            "a d mode=700, a/1 f1",
            "a conflict gone, a/1 kept",
        ),
    ]);
}

#[test]
fn units() {
    const WANTS: &str = "systemd/system/multi-user.target.wants";
    let on = |name: &str| format!("{WANTS}/{name} l:/usr/lib/systemd/system/{name}");
    let (a, b) = (on("a.service"), on("b.service"));
    let dirs = [
        "systemd d",
        "systemd/system d",
        "systemd/system/multi-user.target.wants d",
    ];
    let with = |lines: &[&str]| -> Vec<String> {
        dirs.iter().chain(lines).map(ToString::to_string).collect()
    };
    let rows = [
        // Enabled by the administrator; disabled; and disabled so that the directory is gone, with one new in the image.
        (vec![], vec![&a], vec![], with(&[&a])),
        (vec![&a, &b], vec![&b], vec![&a, &b], with(&[&b])),
        (vec![&a], vec![], vec![&a, &b], with(&[&b])),
    ];
    for (old, layer, new, wanted) in rows {
        let merge = Merge::new();
        for (side, lines) in [("old", &old), ("layer", &layer), ("new", &new)] {
            for line in lines {
                let (path, what) = line.split_once(' ').expect("a path and what it is");
                make(&merge.etc(side).join(path), what);
            }
        }
        assert_eq!(merge.run().etc, wanted, "{old:?} {layer:?} {new:?}");
    }
    check_trees(&[
        // Masked over a file, a directory for drop-ins, and a preset.
        (
            "u.service f1",
            "u.service l:/dev/null",
            "u.service f1",
            "u.service l:/dev/null",
            "u.service kept",
        ),
        (
            "",
            "u.service.d/x.conf f1",
            "u.service.d/y.conf f1",
            "u.service.d d, u.service.d/x.conf f1, u.service.d/y.conf f1",
            "u.service.d/x.conf kept",
        ),
        ("preset f1", "preset f1", "preset f2", "preset f2", ""),
    ]);
}

#[test]
fn what_is_no_file() {
    check(&[
        ("-", "s", "-", "-", ""),
        ("-", "p", "-", "-", "left"),
        ("f1", "p", "f2", "f2", "left"),
        ("p", "p", "f1", "f1", ""),
        ("-", "-", "p", "p", ""),
    ]);
    let merge = Merge::new();
    make(&merge.etc("layer").join("x"), "c");
    if describe(&merge.etc("layer").join("x")) == "c" {
        check(&[("-", "c", "-", "-", "left"), ("c", "c", "f1", "f1", "")]);
    }
}

#[test]
fn identity_is_that_of_the_host_and_caches_are_not_carried() {
    check_trees(&[
        (
            "machine-id 1",
            "machine-id 2",
            "machine-id 3",
            "machine-id 2",
            "machine-id host",
        ),
        ("", "hostname h", "", "hostname h", "hostname host"),
        (
            "",
            "",
            "ssh/ssh_host_rsa_key k, ssh/sshd_config c",
            "ssh d, ssh/sshd_config c",
            "ssh/ssh_host_rsa_key host",
        ),
        (
            "nvme/hostid 1",
            "nvme/hostid 1",
            "",
            "nvme d, nvme/hostid 1",
            "nvme kept, nvme/hostid host",
        ),
        (
            "resolv.conf f1",
            "resolv.conf l:../run/resolv.conf",
            "resolv.conf f1",
            "resolv.conf l:../run/resolv.conf",
            "resolv.conf host",
        ),
        (
            "ld.so.cache 1",
            "ld.so.cache 2",
            "ld.so.cache 3",
            "ld.so.cache 3",
            "",
        ),
        (
            "",
            "passwd- 2, lvm/backup/vg x, .updated x",
            "",
            "lvm d",
            "lvm kept",
        ),
        ("", "x.dpkg-old 1", "", "x.dpkg-old 1", "x.dpkg-old kept"),
        // Links by hash are made again. A file with such a name is none of them.
        (
            "ssl/certs d",
            "ssl/certs/01234567.0 l:mine.pem, ssl/certs/01234567.1 1",
            "ssl/certs d",
            "ssl d, ssl/certs d, ssl/certs/01234567.1 1",
            "ssl/certs/01234567.1 kept",
        ),
        (
            "ssl/certs/01234567.0 1",
            "ssl/certs/01234567.0 l:mine.pem",
            "ssl/certs/01234567.0 1",
            "ssl d, ssl/certs d, ssl/certs/01234567.0 l:mine.pem",
            "ssl/certs/01234567.0 kept",
        ),
    ]);
}

#[test]
fn alternatives_need_their_target() {
    check_trees(&[
        (
            "alternatives/ed l:/etc/vi",
            "alternatives/ed l:/etc/emacs, emacs f1",
            "alternatives/ed l:/etc/vi, vi f1",
            "alternatives d, alternatives/ed l:/etc/vi, emacs f1, vi f1",
            "alternatives/ed left, emacs kept",
        ),
        (
            "alternatives/ed l:/etc/vi",
            "alternatives/ed l:/etc/nano",
            "alternatives/ed l:/etc/vi, nano f1",
            "alternatives d, alternatives/ed l:/etc/nano, nano f1",
            "alternatives/ed kept",
        ),
    ]);
}
