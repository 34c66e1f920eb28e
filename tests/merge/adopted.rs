//! A base that was made of an installed system: what was written before that is the host's.

use std::fs;

use imgbased_helper::merge::{Outside, Verdict};
use imgbased_helper::tree::escaped;

use crate::again::Waiting;
use crate::outside::{GO_ON, SIDES, Told, open, update};
use crate::tree::{GROUPS, Merge, USERS};

/// Nothing is there.
const NONE: &str = "-";
/// `v1` and `v2` are what dpkg has brought; it records the first.
const STATUS: &str = "Package: app\nConffiles:\n \
    /etc/default/app 6654c734ccab8f440ff0825eb443dc7f\n \
    /etc/default/gone 6654c734ccab8f440ff0825eb443dc7f\n \
    /etc/default/edited 6654c734ccab8f440ff0825eb443dc7f\n \
    /etc/default/since 6654c734ccab8f440ff0825eb443dc7f obsolete\n\n";

/// A path, what the adopted base, the layer and the new base have there, what there is in the end, and whether a
/// person is told of a conflict.
type Row = (&'static str, [&'static str; 3], &'static str, bool);

const ROWS: &[Row] = &[
    // As it was at the adoption.
    ("etc/network", ["host", "host", "image"], "host", true),
    ("etc/host", ["host", "host", NONE], "host", false),
    ("etc/image", [NONE, NONE, "image"], "image", false),
    ("etc/both", ["same", "same", "same"], "same", false),
    // The defaults of packages, and what was made of them.
    ("etc/default/app", ["v1", "v1", "v2"], "v2", false),
    ("etc/default/gone", ["v1", "v1", NONE], NONE, false),
    ("etc/default/edited", ["host", "host", "v2"], "host", true),
    ("etc/default/since", ["v1", "host", "v1"], "host", false),
    ("etc/default/deleted", [NONE, NONE, "v2"], "v2", false),
    // Changed since.
    ("etc/changed", ["host", "later", "image"], "later", true),
    ("etc/deleted", ["host", NONE, "host"], NONE, false),
    ("etc/added", [NONE, "later", NONE], "later", false),
    // Elsewhere.
    ("home/admin/x", ["host", "host", NONE], "host", false),
    ("root/.profile", ["host", "host", "image"], "host", true),
    ("srv/www/x", ["host", "host", NONE], "host", false),
    ("srv/deleted", ["host", NONE, "host"], NONE, false),
    ("srv/image", [NONE, NONE, "image"], "image", false),
    ("var/lib/app/x", ["host", "host", NONE], "host", false),
    ("opt/own/x", ["host", "host", NONE], "host", false),
    ("opt/image/x", ["host", "host", "image"], "image", false),
    ("usr/bin/x", ["v1", "v1", "v2"], "v2", false),
    ("usr/bin/gone", ["v1", "v1", NONE], NONE, false),
    // Nobody has said that these come along.
    ("data/x", ["host", "host", NONE], NONE, false),
    ("data/app/x", ["host", "later", NONE], NONE, false),
    ("data/keep/x", ["host", "host", NONE], "host", false),
    ("data/known/x", ["host", "host", NONE], NONE, false),
    ("mnt/x", ["host", "host", "image"], "image", false),
    ("mnt/same", ["same", "same", "same"], "same", false),
    ("swap.img", ["host", "host", NONE], NONE, false),
    ("usr/own", ["v1", "later", "v1"], "v1", false),
    (
        "etc/fstab",
        [
            "/dev/data /data ext4\nLABEL=x /boot ext4\n",
            "/dev/data /data ext4\nLABEL=x /boot ext4\n",
            "LABEL=boot /boot auto\nnew /new ext4\n",
        ],
        "/dev/data /data ext4\nLABEL=x /boot ext4\nnew /new ext4\n",
        true,
    ),
];

fn put(merge: &Merge, side: &str, path: &str, content: &str) {
    if content == NONE {
        return;
    }
    let path = merge.root(side).join(path);
    fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
    fs::write(path, content).expect("a file");
}

fn found(merge: &Merge, path: &str) -> String {
    fs::read_to_string(merge.root("copy").join(path)).unwrap_or_else(|_| NONE.to_owned())
}

fn host() -> (Merge, Told) {
    let merge = Merge::new();
    for (path, sides, ..) in ROWS {
        for (side, content) in SIDES.iter().zip(sides) {
            put(&merge, side, path, content);
        }
    }
    put(&merge, "old", "var/lib/dpkg/status", STATUS);
    let told = Told {
        is_adopted: true,
        ..Told::new(&["/home", "/data/keep"], &[], &["/data/known"])
    };
    (merge, told)
}

#[test]
fn what_was_written_before_the_adoption_comes_along() {
    let (merge, told) = host();
    update(&merge, &told);
    for (path, _, wanted, _) in ROWS {
        assert_eq!(found(&merge, path), *wanted, "{path}");
    }
    let roots = SIDES.map(|side| open(&merge, side));
    let roots = roots.each_ref();
    let plan = told.plan(roots);
    let outside = Outside::of(roots, false, &told.rules(), &plan, &GO_ON).expect("a plan");
    let of_etc = plan.items.iter().map(|item| ("etc/", item));
    let items = of_etc.chain(outside.items.iter().map(|item| ("", item)));
    let conflicts = items.filter(|(_, item)| matches!(item.verdict, Verdict::Conflict(_)));
    let mut told_of: Vec<_> = conflicts
        .map(|(above, item)| format!("{above}{}", escaped(&item.path)))
        .collect();
    told_of.sort_unstable();
    let mut wanted: Vec<_> = ROWS.iter().filter(|row| row.3).map(|row| row.0).collect();
    wanted.sort_unstable();
    assert_eq!(told_of, wanted);
    // What is of the host is lost, whenever it was written. What the base has beside that is of packages.
    let left = outside.left.iter();
    let left = left.map(|left| (escaped(&left.path), left.files, left.is_known));
    let left: Vec<_> = left.collect();
    assert_eq!(
        left,
        [
            ("data".to_owned(), 2, false),
            ("data/known".to_owned(), 1, true),
            ("mnt".to_owned(), 1, false),
            ("swap.img".to_owned(), 1, false),
            ("usr".to_owned(), 1, false),
        ]
    );
}

#[test]
fn a_base_of_an_image_is_merged_as_ever() {
    let (merge, _) = host();
    update(&merge, &Told::new(&["/home"], &[], &[]));
    for (path, wanted) in [
        ("etc/network", "image"),
        ("etc/host", NONE),
        ("etc/changed", "later"),
        ("home/admin/x", NONE),
        ("opt/own/x", NONE),
    ] {
        assert_eq!(found(&merge, path), wanted, "{path}");
    }
}

#[test]
fn an_adopted_base_with_a_copy_of_its_images_etc_is_compared_with_that() {
    let (merge, told) = host();
    put(
        &merge,
        "old",
        "usr/share/imgbase/build/meta/nvr",
        "node-4-1",
    );
    for (path, content) in [
        ("passwd", USERS),
        ("group", GROUPS),
        ("network", "image"),
        ("host", "host"),
        ("deleted", "host"),
    ] {
        let path = format!("usr/share/factory/etc/{path}");
        put(&merge, "old", &path, content);
    }
    update(&merge, &told);
    for (path, wanted) in [
        ("etc/network", "host"),
        ("etc/host", NONE),
        ("etc/deleted", NONE),
        ("home/admin/x", "host"),
    ] {
        assert_eq!(found(&merge, path), wanted, "{path}");
    }
}

#[test]
fn accounts_of_an_adopted_host_keep_their_numbers() {
    let (merge, told) = host();
    let lines = |base: &str, added: &[&str]| [base, &added.join("")].concat();
    let admin = "admin:x:1000:1000::/home/admin:/bin/sh\n";
    let gone = "gone:x:1001:1001::/home/gone:/bin/sh\n";
    let other = "other:x:1000:1000::/home/other:/bin/sh\n";
    for (side, users, groups, secrets) in [
        (
            "old",
            &[admin, gone][..],
            &["admin:x:1000:\n", "wheel:x:27:admin,web\n"][..],
            "wheel:!:admin:admin,web\n",
        ),
        (
            "layer",
            &[admin],
            &["admin:x:1000:\n", "wheel:x:27:web\n"],
            "wheel:!::web\n",
        ),
        (
            "new",
            &[admin, gone, other],
            &["other:x:1000:\n", "wheel:x:27:admin,other\n"],
            "wheel:!:admin:admin,other\n",
        ),
    ] {
        put(&merge, side, "etc/passwd", &lines(USERS, users));
        put(&merge, side, "etc/group", &lines(GROUPS, groups));
        put(&merge, side, "etc/gshadow", secrets);
    }
    update(&merge, &told);
    let passwd = found(&merge, "etc/passwd");
    assert!(passwd.contains(admin), "{passwd}");
    assert!(passwd.contains("other:x:1002:1001:"), "{passwd}");
    // Deleted since the adoption.
    assert!(!passwd.contains("gone:"), "{passwd}");
    let group = found(&merge, "etc/group");
    assert!(group.contains("wheel:x:27:web,other\n"), "{group}");
    let gshadow = found(&merge, "etc/gshadow");
    assert!(gshadow.contains("wheel:!::web,other\n"), "{gshadow}");
}

#[test]
fn what_was_changed_after_the_update_of_an_adopted_host_comes_along() {
    let (merge, told) = host();
    let waiting = Waiting::new(merge, told);
    let layer = waiting.merge.root("layer");
    fs::write(layer.join("srv/www/x"), "later").expect("a file");
    fs::remove_file(layer.join("home/admin/x")).expect("a file");
    waiting.again();
    for (path, wanted) in [
        ("srv/www/x", "later"),
        ("home/admin/x", NONE),
        ("root/.profile", "host"),
        ("opt/own/x", "host"),
    ] {
        assert_eq!(found(&waiting.merge, path), wanted, "{path}");
    }
}
