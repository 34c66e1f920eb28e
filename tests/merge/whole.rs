//! Whole roots: users, files of entries, times, names, links of one file, flags.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use imgbased_helper::merge::{copy, ids_between};
use imgbased_helper::tree::Dir;

use crate::outside::{Told, update};
use crate::tree::{GROUPS, Merge, USERS, describe, describe_all, lacks, make, own, run, runs};

/// The attribute that holds the ACL of a file.
const ACL: &str = "system.posix_acl_access";

fn write(merge: &Merge, path: &str, [old, layer, new]: [&str; 3]) {
    for (side, content) in [("old", old), ("layer", layer), ("new", new)] {
        let path = merge.etc(side).join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }
}

fn read(merge: &Merge, path: &str) -> String {
    fs::read_to_string(merge.etc("copy").join(path)).expect("a file")
}

#[test]
fn a_moved_number_takes_its_files_along() {
    let merge = Merge::new();
    write(
        &merge,
        "passwd",
        [USERS, USERS, &USERS.replace("web:x:33:33", "web:x:60:60")],
    );
    write(
        &merge,
        "group",
        [GROUPS, GROUPS, &GROUPS.replace("web:x:33", "web:x:60")],
    );
    let tool = merge.root("new").join("usr/tool");
    make(&tool, "tool");
    own(&tool, 60, 60);
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o6755)).expect("a mode");
    fs::hard_link(&tool, merge.root("new").join("usr/second")).expect("a name");
    make(&merge.etc("new").join("web.conf"), "f1 owner=60:60");
    make(&merge.etc("old").join("edited"), "f1");
    make(&merge.etc("layer").join("edited"), "f2 owner=33:33");
    make(&merge.etc("new").join("edited"), "f1");
    let can_have_acls = set_acl(&merge.etc("new").join("web.conf"), 60);
    let merged = merge.run();
    assert_eq!(read(&merge, "passwd"), USERS);
    let tool = merge.root("copy").join("usr/tool");
    assert_eq!(describe(&tool), "tool mode=6755 owner=33:33");
    assert_eq!(fs::metadata(&tool).expect("a file").nlink(), 2);
    assert!(describe(&merge.etc("copy").join("web.conf")).ends_with("owner=33:33"));
    assert_eq!(
        describe(&merge.etc("copy").join("edited")),
        "f2 owner=33:33"
    );
    assert!(merged.left_out.is_empty());
    if !can_have_acls {
        return lacks("ACLs");
    }
    assert_eq!(acl_of(&merge.etc("copy").join("web.conf")), acl(33));
}

/// Of the owner, this user, the group, group 4, the mask and all others (`linux/posix_acl_xattr.h`).
fn acl(user: u8) -> Vec<u8> {
    let entry = |tag: u8, right: u8, id: [u8; 4]| [&[tag, 0, right, 0][..], &id].concat();
    let none = [0xff; 4];
    let entries = [
        entry(0x01, 6, none),
        entry(0x02, 6, [user, 0, 0, 0]),
        entry(0x04, 4, none),
        entry(0x08, 4, [4, 0, 0, 0]),
        entry(0x10, 6, none),
        entry(0x20, 4, none),
    ];
    [vec![2, 0, 0, 0], entries.concat()].concat()
}

/// Returns whether the filesystem takes ACLs.
fn set_acl(path: &Path, user: u8) -> bool {
    rustix::fs::setxattr(path, ACL, &acl(user), rustix::fs::XattrFlags::empty()).is_ok()
}

/// Empty if it has none.
fn acl_of(path: &Path) -> Vec<u8> {
    let mut found = [0; 128];
    let size = rustix::fs::getxattr(path, ACL, &mut found).unwrap_or(0);
    found[..size].to_vec()
}

/// The number that the image has for `web` is another user's on the host.
#[test]
fn acls_name_users_and_no_numbers() {
    let merge = Merge::new();
    let moved = USERS.replace("web:x:33:33", "web:x:60:33");
    let host = USERS.to_owned() + "games:x:60:60::/:/bin/false\n";
    for dir in ["etc", "srv"] {
        // Of each file what the sides have, with the number in its ACL, and what is to be there in the end.
        for (name, sides, wanted) in [
            // The layer has edited it, and the ACL is the same.
            ("edited", [("1", 60), ("2", 33), ("1", 60)], ("2", 33)),
            // Nobody has touched it, and the image takes the right away.
            ("untouched", [("1", 60), ("1", 33), ("1", 0)], ("1", 0)),
            ("news", [("1", 60), ("1", 33), ("2", 60)], ("2", 33)),
        ] {
            let path = |side: &str| merge.root(side).join(dir).join(name);
            for (side, (content, user)) in ["old", "layer", "new"].into_iter().zip(sides) {
                make(&path(side), content);
                if user > 0 && !set_acl(&path(side), user) {
                    return lacks("ACLs");
                }
            }
            make(&path("wanted"), wanted.0);
            if wanted.1 > 0 {
                set_acl(&path("wanted"), wanted.1);
            }
        }
    }
    write(&merge, "passwd", [&moved, &host, &moved]);
    update(&merge, &Told::default());
    for dir in ["etc", "srv"] {
        for name in ["edited", "untouched", "news"] {
            let [copy, wanted] =
                ["copy", "wanted"].map(|side| merge.root(side).join(dir).join(name));
            assert_eq!(acl_of(&copy), acl_of(&wanted), "{dir}/{name}");
            assert_eq!(
                fs::read(&copy).expect("a file"),
                fs::read(&wanted).expect("a file")
            );
        }
    }
}

#[test]
fn a_capability_survives_a_new_owner() {
    let merge = Merge::new();
    write(
        &merge,
        "passwd",
        [USERS, USERS, &USERS.replace("web:x:33:33", "web:x:60:33")],
    );
    let tool = merge.root("new").join("usr/tool");
    make(&tool, "tool owner=60:33");
    if !runs("setcap", &["cap_net_raw+ep".as_ref(), tool.as_os_str()]) {
        return lacks("capabilities, or setcap is not installed");
    }
    merge.run();
    let tool = merge.root("copy").join("usr/tool");
    assert_eq!(describe(&tool), "tool owner=33:33");
    let verified = ["-v".as_ref(), "cap_net_raw+ep".as_ref(), tool.as_os_str()];
    let quiet = std::process::Command::new("setcap")
        .args(verified)
        .output()
        .expect("setcap");
    assert!(quiet.status.success());
}

#[test]
fn what_belonged_to_a_deleted_user_is_roots() {
    let merge = Merge::new();
    let without = USERS.replace("web:x:33:33::/:/bin/false\n", "");
    write(&merge, "passwd", [USERS, &without, USERS]);
    write(&merge, "group", [GROUPS, GROUPS, GROUPS]);
    for side in ["old", "layer", "new"] {
        make(
            &merge.etc(side).join("web.conf"),
            "f1 mode=4755 owner=33:33",
        );
    }
    fs::remove_file(merge.etc("layer").join("web.conf")).expect("a file");
    make(
        &merge.etc("layer").join("web.conf"),
        "f1 mode=4755 owner=33:33",
    );
    make(
        &merge.etc("new").join("more.conf"),
        "f1 mode=4755 owner=33:33",
    );
    let merged = merge.run();
    assert_eq!(read(&merge, "passwd"), without);
    assert!(!read(&merge, "shadow").contains("web"));
    assert_eq!(
        describe(&merge.etc("copy").join("more.conf")),
        "f1 mode=755 owner=0:33"
    );
    assert!(
        merged
            .listed
            .contains(&"more.conf conflict deleted".to_owned()),
        "{merged:?}"
    );
}

#[test]
fn users_of_both_sides_can_log_in() {
    let merge = Merge::new();
    let anna = "anna:x:1000:1000:Anna:/home/anna:/bin/bash\n";
    write(
        &merge,
        "passwd",
        [
            USERS,
            &(USERS.to_owned() + anna),
            &(USERS.to_owned() + "new:x:34:34::/:/bin/false\n"),
        ],
    );
    write(
        &merge,
        "group",
        [
            GROUPS,
            &(GROUPS.to_owned() + "anna:x:1000:\n"),
            &(GROUPS.to_owned() + "new:x:34:\n"),
        ],
    );
    let shadow = fs::read_to_string(merge.etc("old").join("shadow")).expect("a file");
    let ours = shadow.replace("root:*", "root:secret") + "anna:hash:20000:0:99999:7:::\n";
    write(
        &merge,
        "shadow",
        [&shadow, &ours, &(shadow.clone() + "new:!:::::::\n")],
    );
    fs::set_permissions(
        merge.etc("new").join("shadow"),
        fs::Permissions::from_mode(0o640),
    )
    .expect("a mode");
    own(&merge.etc("new").join("shadow"), 0, 3);
    let merged = merge.run();
    assert_eq!(
        read(&merge, "passwd"),
        USERS.to_owned() + anna + "new:x:34:34::/:/bin/false\n"
    );
    assert_eq!(read(&merge, "shadow"), ours + "new:!:::::::\n");
    let shadow = fs::metadata(merge.etc("copy").join("shadow")).expect("a file");
    assert_eq!((shadow.mode() & 0o7777, shadow.gid()), (0o640, 3));
    assert!(
        merged.listed.contains(&"shadow merged".to_owned()),
        "{merged:?}"
    );
}

#[test]
fn a_link_in_the_place_of_a_file_of_users_is_left_alone() {
    let link = "l:secret/shadow";
    for (sides, wanted, listed) in [
        ([link, link, link], link, None),
        (
            [link, link, "root:*:::::::\n"],
            link,
            Some("shadow conflict type"),
        ),
        (
            ["root:*:::::::\n", link, "root:*:::::::\n"],
            link,
            Some("shadow conflict type"),
        ),
        (
            ["root:*:::::::\n", link, "-"],
            link,
            Some("shadow conflict type"),
        ),
        (
            ["root:*:::::::\n", link, "l:other"],
            link,
            Some("shadow conflict type"),
        ),
        // Of two names for one file none is new.
        (["root:*:::::::\n", link, link], link, None),
        (["-", "-", link], link, None),
    ] {
        let merge = Merge::new();
        for (side, what) in ["old", "layer", "new"].into_iter().zip(sides) {
            let shadow = merge.etc(side).join("shadow");
            fs::remove_file(&shadow).expect("a file");
            make(&shadow, what);
            make(
                &merge.etc(side).join("secret/shadow"),
                "root:secret:::::::\n",
            );
        }
        let merged = merge.run();
        assert_eq!(
            describe(&merge.etc("copy").join("shadow")),
            wanted,
            "{sides:?}"
        );
        let found = merged
            .listed
            .iter()
            .find(|line| line.starts_with("shadow "));
        assert_eq!(found.map(String::as_str), listed, "{sides:?}");
    }
}

#[test]
fn a_link_that_the_base_has_for_a_file_of_users_is_a_conflict() {
    let merge = Merge::new();
    let ours = "root:secret:::::::\nadm:*:::::::\nweb:*:::::::\n";
    fs::write(merge.etc("layer").join("shadow"), ours).expect("a file");
    fs::remove_file(merge.etc("new").join("shadow")).expect("a file");
    make(&merge.etc("new").join("shadow"), "l:other");
    let merged = merge.run();
    assert_eq!(describe(&merge.etc("copy").join("shadow")), ours);
    assert_eq!(merged.listed, ["shadow conflict type"]);
}

#[test]
fn secrets_of_users_that_are_elsewhere_stay() {
    let merge = Merge::new();
    for side in ["old", "layer", "new"] {
        let passwd = merge.etc(side).join("passwd");
        fs::remove_file(&passwd).expect("a file");
        make(&passwd, "l:secret/passwd");
    }
    let shadow = fs::read_to_string(merge.etc("old").join("shadow")).expect("a file");
    let ours = shadow.clone() + "anna:hash:20000:0:99999:7:::\n";
    fs::write(merge.etc("layer").join("shadow"), &ours).expect("a file");
    let merged = merge.run();
    assert_eq!(describe(&merge.etc("copy").join("shadow")), ours);
    assert_eq!(merged.listed, ["shadow kept"]);
}

/// Options for GRUB do not count any more where there is a file of kernel options.
#[test]
fn the_first_file_of_kernel_options_gets_what_the_layer_has_changed_for_grub() {
    let grub = |options: &str| format!("GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX={options}\n");
    for (old, layer, wanted, is_conflict) in [
        (
            "\"\"",
            "\"net.ifnames=0 quiet\"",
            "net.ifnames=0 quiet\n",
            false,
        ),
        ("\"x\"", "\"x\"", "quiet\n", false),
        ("\"\"", "\"quiet\"", "quiet\n", false),
        ("\"\"", "\"$(x)\"", "quiet\n", true),
    ] {
        let merge = Merge::new();
        let sides = [old, layer, old].map(grub);
        write(&merge, "default/grub", sides.each_ref().map(String::as_str));
        let new = merge.etc("new").join("kernel/cmdline");
        fs::create_dir_all(new.parent().expect("a directory")).expect("a directory");
        fs::write(new, "quiet\n").expect("a file");
        let merged = merge.run();
        assert_eq!(read(&merge, "kernel/cmdline"), wanted, "{layer}");
        let mut listed = merged.listed.iter();
        let is_listed = listed.any(|line| line.starts_with("kernel/cmdline conflict"));
        assert_eq!(is_listed, is_conflict, "{layer}: {merged:?}");
    }
}

#[test]
fn files_of_entries_are_merged_by_entry() {
    let merge = Merge::new();
    write(
        &merge,
        "fstab",
        [
            "LABEL=boot /boot auto defaults 0 2\n",
            "LABEL=boot /boot auto noatime 0 2\nUUID=1 /data xfs defaults 0 0\n",
            "LABEL=boot /boot auto defaults 0 2\ntmpfs /tmp tmpfs defaults 0 0\n",
        ],
    );
    write(
        &merge,
        "kernel/cmdline",
        ["quiet", "quiet console=ttyS0", "quiet splash"],
    );
    write(
        &merge,
        "default/grub",
        [
            "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"\"\n",
            "GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"mine\"\n",
            "GRUB_TIMEOUT=5\nGRUB_CMDLINE_LINUX=\"theirs\"\n",
        ],
    );
    write(
        &merge,
        "crypttab",
        [
            "a UUID=1 none\n",
            "a UUID=1 none luks\n",
            "b UUID=2 none\na UUID=1 none\n",
        ],
    );
    write(
        &merge,
        "shells",
        ["/bin/sh\n", "/bin/sh\n/bin/zsh\n", "/bin/sh\n/bin/dash\n"],
    );
    write(
        &merge,
        "hosts",
        [
            "127.0.0.1 localhost\n",
            "127.0.0.1 localhost\n10.0.0.1 mine\n",
            "127.0.0.1 localhost\n::1 localhost\n",
        ],
    );
    write(&merge, "modules", ["", "a\n", "b\n"]);
    let merged = merge.run();
    for (path, content) in [
        (
            "fstab",
            "LABEL=boot /boot auto noatime 0 2\ntmpfs /tmp tmpfs defaults 0 0\nUUID=1 /data xfs defaults 0 0\n",
        ),
        ("kernel/cmdline", "quiet console=ttyS0 splash\n"),
        (
            "default/grub",
            "GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX=\"mine theirs\"\n",
        ),
        ("crypttab", "a UUID=1 none luks\nb UUID=2 none\n"),
        ("shells", "/bin/sh\n/bin/dash\n/bin/zsh\n"),
        (
            "hosts",
            "127.0.0.1 localhost\n::1 localhost\n10.0.0.1 mine\n",
        ),
        ("modules", "a\nb\n"),
    ] {
        assert_eq!(read(&merge, path), content, "{path}");
        assert!(
            merged.listed.contains(&format!("{path} merged")),
            "{path}: {merged:?}"
        );
    }
}

#[test]
fn a_word_that_was_removed_stays_away() {
    let merge = Merge::new();
    write(
        &merge,
        "kernel/cmdline",
        ["quiet splash", "quiet", "quiet splash debug"],
    );
    merge.run();
    assert_eq!(read(&merge, "kernel/cmdline"), "quiet debug\n");
}

#[test]
fn an_unchanged_side_gives_the_other() {
    for changed in ["layer", "new"] {
        let merge = Merge::new();
        for side in ["old", "layer", "new"] {
            for (path, what) in [
                ("a/b", "f1"),
                ("c", "l:a"),
                ("gone/x", "f1"),
                ("type", "f1"),
            ] {
                make(&merge.etc(side).join(path), what);
            }
        }
        let etc = merge.etc(changed);
        fs::remove_dir_all(etc.join("gone")).expect("a directory");
        fs::remove_file(etc.join("type")).expect("a file");
        make(&etc.join("type/below"), "f2 mode=600");
        make(&etc.join("a/b"), "f3 owner=33:33");
        make(&etc.join("added"), "d mode=750");
        merge.run();
        let same = [
            "-r".as_ref(),
            "--no-dereference".as_ref(),
            etc.as_os_str(),
            merge.etc("copy").as_os_str().to_owned().as_os_str(),
        ]
        .map(OsStr::to_owned);
        let same: Vec<&OsStr> = same.iter().map(OsString::as_os_str).collect();
        run("diff", &same);
        for path in ["a/b", "type/below", "added"] {
            assert_eq!(
                describe(&merge.etc("copy").join(path)),
                describe(&etc.join(path)),
                "{path}"
            );
        }
    }
}

#[test]
fn what_is_carried_keeps_its_time_and_what_is_not_too() {
    let merge = Merge::new();
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let age = |side: &str, path: &str, seconds: u64| {
        let file = File::options()
            .write(true)
            .open(merge.etc(side).join(path))
            .expect("a file");
        file.set_modified(then + Duration::from_secs(seconds))
            .expect("a time");
    };
    write(&merge, "kept", ["f1", "f2", "f1"]);
    write(&merge, "touched", ["f1", "f1", "f2"]);
    write(&merge, "mode", ["f1", "f1", "f2"]);
    make(&merge.etc("layer").join("mode"), "f1 mode=600");
    make(&merge.etc("layer").join("dir/file"), "f1");
    for (at, side) in ["old", "layer", "new"].into_iter().enumerate() {
        for path in ["kept", "touched", "mode"] {
            age(side, path, at as u64);
        }
    }
    run(
        "touch",
        &[
            "-d".as_ref(),
            "@1000000009".as_ref(),
            merge.etc("layer").join("dir").as_os_str(),
        ],
    );
    let merged = merge.run();
    for (path, seconds) in [("kept", 1), ("touched", 2), ("mode", 2), ("dir", 9)] {
        let metadata = fs::metadata(merge.etc("copy").join(path)).expect("a file");
        assert_eq!(metadata.mtime(), 1_000_000_000 + seconds, "{path}");
    }
    assert_eq!(
        merged.listed,
        ["dir kept", "dir/file kept", "kept kept", "mode kept"]
    );
}

#[test]
fn names_of_one_file_stay_names_of_one_file() {
    let merge = Merge::new();
    for side in ["old", "layer", "new"] {
        make(
            &merge.etc(side).join("a"),
            if side == "layer" { "f2" } else { "f1" },
        );
        fs::hard_link(merge.etc(side).join("a"), merge.etc(side).join("b")).expect("a name");
    }
    // In the new base the pair is broken.
    fs::remove_file(merge.etc("new").join("b")).expect("a file");
    make(&merge.etc("new").join("b"), "f3");
    make(&merge.etc("layer").join("c"), "alone");
    let merged = merge.run();
    let inode = |path: &str| {
        fs::metadata(merge.etc("copy").join(path))
            .expect("a file")
            .ino()
    };
    assert_eq!(inode("a"), inode("b"));
    assert_eq!(read(&merge, "b"), "f2");
    assert_eq!(merged.listed, ["a kept", "b conflict both", "c kept"]);
    assert!(
        merged.etc.iter().all(|line| !line.contains(".tmp")),
        "{merged:?}"
    );
}

#[test]
fn a_name_of_its_own_is_not_changed_through_another() {
    let merge = Merge::new();
    for side in ["old", "new"] {
        make(&merge.etc(side).join("a"), "f1");
        fs::hard_link(merge.etc(side).join("a"), merge.etc(side).join("b")).expect("a name");
    }
    make(&merge.etc("layer").join("a"), "f1 mode=600");
    make(&merge.etc("layer").join("b"), "f1");
    let merged = merge.run();
    assert_eq!(merged.etc, ["a f1 mode=600", "b f1"]);
    assert_eq!(merged.listed, ["a kept"]);
}

/// Makes up to four paths, in three levels.
pub fn make_some(etc: &std::path::Path, random: &mut fastrand::Rng) {
    let mut pick = |from: &[&'static str]| from[random.usize(..from.len())];
    for _ in 0..4 {
        let path = pick(&["a", "b", "a/c", "a/d", "b/c", "a/c/e", "a/c/f"]);
        let what = pick(&[
            "f1",
            "f2",
            "f2 mode=600",
            "f1 owner=33",
            "l:a",
            "l:b",
            "d",
            "d mode=700",
        ]);
        let mut above = std::path::Path::new(path).ancestors().skip(1);
        let is_free = above.all(|above| !etc.join(above).exists() || etc.join(above).is_dir());
        let is_link = std::path::Path::new(path)
            .ancestors()
            .any(|above| etc.join(above).is_symlink());
        if is_free && !is_link && (!etc.join(path).exists() || what.starts_with("d mode")) {
            let is_dir = etc.join(path).is_dir();
            if is_dir || !etc.join(path).exists() {
                make(&etc.join(path), what);
            }
        }
    }
}

#[test]
fn properties_of_any_three_trees() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..15 {
        let merge = Merge::new();
        for side in ["old", "layer", "new"] {
            make_some(&merge.etc(side), &mut random);
        }
        let [old, layer, new] = ["old", "layer", "new"].map(|side| describe_all(&merge.etc(side)));
        let of = |sides: [&str; 3]| merge.run_with(sides).etc;
        let seen = format!("{old:?}\n{layer:?}\n{new:?}");
        assert_eq!(of(["old", "old", "new"]), new, "{seen}");
        assert_eq!(of(["old", "layer", "old"]), layer, "{seen}");
        assert_eq!(of(["old", "layer", "layer"]), layer, "{seen}");
        let once = merge.run();
        assert!(once.left_out.is_empty(), "{seen}\n{once:?}");
        fs::rename(merge.root("copy"), merge.root("once")).expect("a directory");
        assert_eq!(of(["old", "once", "new"]), once.etc, "{seen}");
        assert_eq!(of(["old", "layer", "once"]), once.etc, "{seen}");
    }
}

#[test]
fn a_line_that_counts_for_nothing_names_no_owner() {
    for line in ["#gone:x:44:44:::\n", "+gone:x:44:44:::\n", "gone:x:44\n"] {
        let merge = Merge::new();
        let users = USERS.to_owned() + line;
        write(&merge, "passwd", [USERS, &users, USERS]);
        make(&merge.etc("layer").join("mine"), "f1 owner=44:0");
        merge.run();
        let mine = describe(&merge.etc("copy").join("mine"));
        assert_eq!(mine, "f1 owner=44:0", "{line}");
    }
}

/// Makes all paths of a directory once more, in another one and in another order.
fn make_again(from: &Path, to: &Path, random: &mut fastrand::Rng) {
    let mut names: Vec<OsString> = fs::read_dir(from)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    random.shuffle(&mut names);
    for name in names {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() && !from.is_symlink() {
            fs::create_dir(&to).expect("a directory");
            make_again(&from, &to, random);
            let metadata = fs::metadata(&from).expect("a directory");
            fs::set_permissions(&to, metadata.permissions()).expect("a mode");
        } else {
            run("cp", &["-a".as_ref(), from.as_os_str(), to.as_os_str()]);
        }
    }
}

#[test]
fn the_order_of_directory_entries_does_not_matter() {
    let mut random = fastrand::Rng::with_seed(17);
    for _ in 0..15 {
        let (merge, again) = (Merge::new(), Merge::new());
        for side in ["old", "layer", "new"] {
            make_some(&merge.etc(side), &mut random);
            make_some(&merge.etc(side), &mut random);
            for file in ["passwd", "group", "shadow"] {
                fs::remove_file(again.etc(side).join(file)).expect("a file");
            }
            make_again(&merge.etc(side), &again.etc(side), &mut random);
        }
        let (once, other) = (merge.run(), again.run());
        assert_eq!(other.listed, once.listed);
        assert_eq!(other.etc, once.etc);
    }
}

#[test]
fn where_nothing_conflicts_it_does_not_matter_which_side_is_which() {
    let mut random = fastrand::Rng::with_seed(19);
    let mut count = 0;
    for _ in 0..40 {
        let merge = Merge::new();
        let old = merge.etc("old");
        make_some(&old, &mut random);
        for side in ["layer", "new"] {
            let etc = merge.etc(side);
            fs::remove_dir_all(&etc).expect("a directory");
            run("cp", &["-a".as_ref(), old.as_os_str(), etc.as_os_str()]);
            let gone = etc.join(["a/c", "a/d", "b", "none"][random.usize(..4)]);
            let _ = fs::remove_file(&gone).or_else(|_| fs::remove_dir_all(&gone));
            make_some(&etc, &mut random);
        }
        let once = merge.run();
        if once.listed.iter().all(|line| !line.contains("conflict")) {
            let other = merge.run_with(["old", "new", "layer"]);
            assert_eq!(other.etc, once.etc, "{once:?} {other:?}");
            count += 1;
        }
    }
    assert!(count > 5, "{count} of them have no conflict");
}

#[test]
fn names_of_any_bytes_are_carried() {
    let merge = Merge::new();
    let names = [&b"two\nlines"[..], b"latin\xe4", b"-rf", b" ", b"\x1b[2J"];
    for name in names {
        let name = OsString::from_vec(name.to_vec());
        make(&merge.etc("layer").join(&name), "f1");
    }
    let merged = merge.run();
    for name in names {
        let name = OsString::from_vec(name.to_vec());
        assert_eq!(describe(&merge.etc("copy").join(&name)), "f1", "{name:?}");
    }
    assert_eq!(merged.listed[0], "\\033[2J kept");
}

#[test]
fn holes_stay_holes_whatever_their_size() {
    let merge = Merge::new();
    let path = merge.etc("layer").join("sparse");
    let file = File::create(&path).expect("a file");
    // As much as the filesystem takes.
    let size = [1 << 60, 1 << 43, 1 << 40, 1 << 34]
        .into_iter()
        .find(|size| file.set_len(*size).is_ok());
    let size = size.expect("a large file");
    file.write_all_at(b"end", size - 3).expect("a write");
    file.write_all_at(b"middle", 1 << 20).expect("a write");
    merge.run();
    let copy = File::open(merge.etc("copy").join("sparse")).expect("a file");
    let metadata = copy.metadata().expect("a file");
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() < 4096, "{} blocks", metadata.blocks());
    let mut bytes = [0; 6];
    copy.read_exact_at(&mut bytes, 1 << 20).expect("a read");
    assert_eq!(&bytes, b"middle");
}

#[test]
fn an_immutable_file_does_not_stop_the_merge() {
    let merge = Merge::new();
    write(&merge, "locked", ["f1", "f2", "f1"]);
    write(&merge, "gone", ["f1", "f1", "f1"]);
    write(&merge, "mine", ["f1", "f2", "f1"]);
    fs::remove_file(merge.etc("layer").join("gone")).expect("a file");
    let lock = |side: &str, path: &str, flag: &str| {
        runs(
            "chattr",
            &[flag.as_ref(), merge.etc(side).join(path).as_os_str()],
        )
    };
    if !lock("layer", "mine", "+i") {
        return lacks("chattr(1)");
    }
    // cp(1) does not copy the flag, so the copy is made before the merge does it.
    let copy = merge.root("copy");
    run(
        "cp",
        &[
            "-a".as_ref(),
            merge.root("new").as_os_str(),
            copy.as_os_str(),
        ],
    );
    for path in ["locked", "gone"] {
        assert!(lock("copy", path, "+i"));
    }
    let open =
        |side: &str| imgbased_helper::tree::Dir::root(&merge.root(side)).expect("a directory");
    let [old, layer, new, copy] = ["old", "layer", "new", "copy"].map(open);
    let plan = imgbased_helper::merge::Plan::of([&old, &layer, &new], false).expect("a plan");
    let applied = imgbased_helper::merge::apply(&plan, &layer, &copy);
    // First of all, so that the directory can be removed.
    let is_still_locked = fs::write(merge.etc("copy").join("mine"), "x").is_err();
    for (side, path) in [
        ("layer", "mine"),
        ("copy", "mine"),
        ("copy", "locked"),
        ("copy", "gone"),
    ] {
        lock(side, path, "-i");
    }
    assert_eq!(
        applied.expect("a merge"),
        [""; 0].map(std::path::PathBuf::from)
    );
    assert_eq!(read(&merge, "locked"), "f2");
    assert_eq!(read(&merge, "mine"), "f2");
    assert!(is_still_locked);
    assert!(!merge.etc("copy").join("gone").exists());
}

#[test]
fn a_snapshot_is_read_by_its_times() {
    let merge = Merge::new();
    for path in ["same", "edited", "dir/same", "replaced/x"] {
        make(&merge.etc("old").join(path), "f1");
    }
    // The same inodes on both sides, as in a snapshot; but for what was written since.
    fs::remove_dir_all(merge.etc("layer")).expect("a directory");
    run(
        "cp",
        &[
            "-al".as_ref(),
            merge.etc("old").as_os_str(),
            merge.etc("layer").as_os_str(),
        ],
    );
    fs::remove_file(merge.etc("layer").join("edited")).expect("a file");
    make(&merge.etc("layer").join("edited"), "f2");
    for path in ["same", "edited", "dir/same"] {
        make(&merge.etc("new").join(path), "f3");
    }
    make(&merge.etc("new").join("replaced"), "f3");
    let open =
        |side: &str| imgbased_helper::tree::Dir::root(&merge.root(side)).expect("a directory");
    let [old, layer, new] = ["old", "layer", "new"].map(open);
    let plan = imgbased_helper::merge::Plan::of([&old, &layer, &new], true).expect("a plan");
    let paths: Vec<_> = plan
        .items
        .iter()
        .map(|item| item.path.display().to_string())
        .collect();
    assert_eq!(paths, ["edited"]);
}

#[test]
fn what_the_installer_has_written_on_a_host_of_ovirt_node_is_the_hosts() {
    let merge = Merge::new();
    let admin = format!("{USERS}admin:x:1000:1000::/home/admin:/bin/sh\n");
    write(&merge, "passwd", [&admin, &admin, USERS]);
    write(
        &merge,
        "fstab",
        [
            "/dev/onn/var /var ext4 defaults 0 2\n",
            "/dev/onn/var /var ext4 defaults 0 2\n",
            "",
        ],
    );
    write(
        &merge,
        "network",
        ["installed", "installed", "of the image"],
    );
    write(&merge, "login.conf", ["1", "1", "2"]);
    // Its copy of /etc, before the installer.
    let factory = merge.root("old").join("usr/share/factory/etc");
    make(&factory, "d");
    for name in ["group", "shadow"] {
        fs::copy(merge.etc("new").join(name), factory.join(name)).expect("a file");
    }
    for (name, content) in [
        ("passwd", USERS),
        ("fstab", ""),
        ("network", "of the image"),
        ("login.conf", "1"),
    ] {
        fs::write(factory.join(name), content).expect("a file");
    }
    // A system has a few such files in any case.
    merge.run();
    assert_eq!(read(&merge, "network"), "of the image");
    make(
        &merge.root("old").join("usr/share/imgbase/build/meta/nvr"),
        "node-4-1",
    );
    merge.run();
    assert_eq!(read(&merge, "network"), "installed");
    assert_eq!(read(&merge, "login.conf"), "2");
    assert!(read(&merge, "fstab").contains("/dev/onn/var /var"));
    assert!(read(&merge, "passwd").contains("admin:x:1000:"));
}

#[test]
fn what_is_copied_belongs_to_the_same_names() {
    let merge = Merge::new();
    let users = USERS.replace("web:x:33:33", "web:x:60:60");
    let groups = GROUPS.replace("web:x:33", "web:x:60");
    write(&merge, "passwd", [USERS, USERS, &users]);
    write(&merge, "group", [GROUPS, GROUPS, &groups]);
    let passwd = merge.etc("new").join("passwd");
    fs::write(passwd, format!("{users}gone:x:77:60:::\n")).expect("a file");
    let (from, to) = (merge.etc("new").join("d"), merge.etc("layer").join("d"));
    fs::create_dir(&from).expect("a directory");
    for (name, user, mode) in [
        ("web", 60, 0o4755),
        ("gone", 77, 0o4755),
        ("nobody", 78, 0o600),
    ] {
        make(&from.join(name), "f1");
        own(&from.join(name), user, 60);
        fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).expect("a mode");
    }
    let open = |side: &str| Dir::root(&merge.root(side)).expect("a directory");
    let (new, layer) = (open("new"), open("layer"));
    let ids = ids_between(&new, &layer).expect("users");
    let go_on = || Ok(());
    copy(Path::new("etc/d"), &new, &layer, &ids, None, &go_on).expect("a copy");
    for (name, wanted) in [
        ("web", "f1 mode=4755 owner=33:33"),
        ("gone", "f1 mode=755 owner=0:33"),
        ("nobody", "f1 mode=600 owner=78:33"),
    ] {
        assert_eq!(describe(&to.join(name)), wanted, "{name}");
    }
}
