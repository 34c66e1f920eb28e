use super::*;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{
    FileExt, FileTypeExt, MetadataExt, PermissionsExt, chown, lchown, symlink,
};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fastrand::Rng;
use rustix::fs::{CWD, FileType, IFlags, Mode, XattrFlags, mknodat};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

use crate::tree::listing::list;

const MIB: usize = 1 << 20;

/// A source and a tree, with something beside them that must stay as it is.
struct Trees {
    dir: TempDir,
}

impl Trees {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["from", "to", "outside"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("outside/file"), "outside").unwrap();
        Self { dir }
    }

    /// Copies once more what was begun to be copied then.
    fn sync_again(&self, begun: Option<i64>) -> Synced {
        let roots = ["from", "to"].map(|name| Dir::root(&self.dir.path().join(name)).unwrap());
        let source = Source {
            root: &roots[0],
            zeros_are_holes: false,
        };
        let again = Again {
            mark: OsStr::new(".mark"),
            begun,
        };
        let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
        let to = &roots[1];
        sync_again(&source, to, &again, u64::MAX, &interrupt, &mut progress).unwrap()
    }

    fn from(&self, path: &str) -> PathBuf {
        self.dir.path().join("from").join(path)
    }

    fn to(&self, path: &str) -> PathBuf {
        self.dir.path().join("to").join(path)
    }

    fn sync_with(&self, zeros_are_holes: bool, room: u64) -> Result<Synced> {
        self.run(zeros_are_holes, room, None)
    }

    fn run(&self, zeros_are_holes: bool, room: u64, listing: Option<Listing>) -> Result<Synced> {
        let (from, to) = (Dir::root(&self.from(""))?, Dir::root(&self.to(""))?);
        let source = Source {
            root: &from,
            zeros_are_holes,
        };
        let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
        sync(&source, &to, listing, room, &interrupt, &mut progress)
    }

    fn sync_listed(&self, listing: Option<Listing>) -> Synced {
        self.run(false, u64::MAX, listing).unwrap()
    }

    /// The listing of the tree that is made equal, with lines that were changed, as if it had been made long ago.
    fn listing(&self, change: impl Fn(String) -> String) -> Listing {
        let path = self.dir.path().join("listing");
        let to = Dir::root(&self.to("")).unwrap();
        let (_, file) = list(&to, "of", None, &path);
        let text = fs::read_to_string(&path).unwrap();
        let lines = change(text.rsplit_once("end ").unwrap().0.to_owned());
        fs::write(&path, format!("{lines}end {:x}\n", Sha256::digest(&lines))).unwrap();
        let later = SystemTime::now() + Duration::from_secs(10);
        file.set_modified(later).unwrap();
        let dir = Dir::root(self.dir.path()).unwrap();
        let listing = Listing::open(&dir, OsStr::new("listing"), "of").unwrap();
        listing.unwrap()
    }

    fn sync(&self) -> Synced {
        self.sync_with(false, u64::MAX).unwrap()
    }

    /// Synchronises, and claims that both are equal, that once more changes nothing, and that nothing else was touched.
    fn become_equal(&self) -> Synced {
        let done = self.sync();
        self.are_equal();
        let before = touched(&self.to(""));
        let again = self.sync();
        assert_eq!((again.written, again.removed, again.bytes), (0, 0, 0));
        assert_eq!(touched(&self.to("")), before);
        let outside = fs::read_dir(self.dir.path().join("outside")).unwrap();
        assert_eq!(outside.count(), 1);
        let file = self.dir.path().join("outside/file");
        assert_eq!(fs::read_to_string(file).unwrap(), "outside");
        done
    }

    fn are_equal(&self) {
        let (from, to) = (described(&self.from("")), described(&self.to("")));
        for (path, text) in &from {
            assert_eq!(Some(text), to.get(path), "{}", path.display());
        }
        assert_eq!(from.len(), to.len(), "{to:?}");
    }
}

/// All paths below a directory, with it.
fn paths(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    let mut at = 0;
    while let Some(path) = found.get(at) {
        if fs::symlink_metadata(path).unwrap().is_dir() {
            let names = fs::read_dir(path).unwrap();
            let mut below: Vec<PathBuf> = names.map(|name| name.unwrap().path()).collect();
            below.sort();
            found.extend(below);
        }
        at += 1;
    }
    found
}

/// Each path with all that has to be equal.
fn described(dir: &Path) -> BTreeMap<PathBuf, String> {
    let root = Dir::root(dir).unwrap();
    let mut firsts = BTreeMap::new();
    let mut found = BTreeMap::new();
    for path in paths(dir) {
        let stat = fs::symlink_metadata(&path).unwrap();
        let inside = path.strip_prefix(dir).unwrap().to_owned();
        let kind = stat.file_type();
        let mut text = format!(
            "{:o} {}:{} {}.{}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec()
        );
        if kind.is_char_device() || kind.is_block_device() {
            write!(text, " device {}", stat.rdev()).unwrap();
        }
        if kind.is_symlink() {
            write!(text, " to {}", fs::read_link(&path).unwrap().display()).unwrap();
        }
        if kind.is_file() {
            let content = fs::read(&path).unwrap();
            let sum = content.iter().fold(7_u64, |sum, byte| {
                (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            });
            write!(text, " {} {sum:x}", content.len()).unwrap();
        }
        if !kind.is_dir() {
            let first = firsts.entry(stat.ino()).or_insert(inside.clone());
            write!(text, " {} as {}", stat.nlink(), first.display()).unwrap();
        }
        let above = root
            .descend(inside.parent().unwrap_or(Path::new("")))
            .unwrap();
        let name = inside.file_name().unwrap_or(OsStr::new("."));
        let node = above.unwrap().node(name).unwrap();
        write!(
            text,
            " {:?} {:?}",
            node.xattrs().unwrap(),
            node.locks().unwrap()
        )
        .unwrap();
        found.insert(inside, text);
    }
    found
}

/// What shows that something was touched.
fn touched(dir: &Path) -> Vec<(PathBuf, u64, i64, i64, u64)> {
    let of = |path: PathBuf| {
        let stat = fs::symlink_metadata(&path).unwrap();
        (
            path,
            stat.ino(),
            stat.ctime(),
            stat.ctime_nsec(),
            stat.blocks(),
        )
    };
    paths(dir).into_iter().map(of).collect()
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) -> bool {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).is_ok()
}

/// Says what this machine lacks. What needs it is left out.
fn lacks(what: &str) {
    eprintln!("not tested, since the temporary directory has no {what}");
}

fn make_special(path: &Path, kind: FileType, device: u64) -> bool {
    mknodat(CWD, path, kind, Mode::RUSR, device).is_ok()
}

/// Something at random, some of it as the other tree has it.
fn fill(dir: &Path, random: &mut Rng, depth: u32, all: &mut Vec<PathBuf>) {
    for name in ["a", "b", "c", "d\n", "e"] {
        let path = dir.join(name);
        match random.u32(0..12) {
            0..=2 => {}
            3..=4 if depth > 0 => {
                fs::create_dir(&path).unwrap();
                fill(&path, random, depth - 1, all);
            }
            5 => {
                symlink(["x", "../../outside/file", "/"][random.usize(0..3)], &path).unwrap();
                all.push(path.clone());
            }
            6 => {
                let kinds = [FileType::Fifo, FileType::Socket];
                assert!(make_special(&path, kinds[random.usize(0..2)], 0));
                all.push(path.clone());
            }
            7 if !all.is_empty() => {
                fs::hard_link(&all[random.usize(0..all.len())], &path).unwrap();
            }
            kind => {
                let file = File::create(&path).unwrap();
                let size = [0, 1, 5000, 300_000][random.usize(0..4)];
                file.set_len(size).unwrap();
                for _ in 0..kind % 4 {
                    let at = random.u64(0..=size);
                    let bytes = [random.u8(0..3); 2000];
                    file.write_all_at(&bytes, at).unwrap();
                }
                all.push(path.clone());
            }
        }
        let Ok(stat) = fs::symlink_metadata(&path) else {
            continue;
        };
        if stat.nlink() > 1 && !stat.is_dir() {
            continue;
        }
        if random.bool() {
            lchown(&path, Some(random.u32(0..3)), Some(random.u32(0..2))).unwrap();
        }
        if stat.is_file() || stat.is_dir() {
            if random.bool() {
                set_xattr(&path, "trusted.note", &[random.u8(0..2)]);
            }
            if random.bool() {
                let mode = [0o644, 0o4755, 0o2750, 0][random.usize(0..4)];
                fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            }
        }
        if random.bool() && (stat.is_file() || stat.is_dir()) {
            let time = SystemTime::UNIX_EPOCH + Duration::from_millis(random.u64(0..3) * 999_999);
            File::open(&path).unwrap().set_modified(time).unwrap();
        }
    }
}

#[test]
fn any_tree_becomes_equal_to_any_other_one() {
    for seed in 0..150 {
        let mut random = Rng::with_seed(seed);
        let trees = Trees::new();
        let depth = random.u32(0..4);
        fill(&trees.from(""), &mut random, depth, &mut Vec::new());
        let is_alike = random.bool();
        if is_alike {
            random.seed(seed);
            random.u32(0..4);
        }
        fill(&trees.to(""), &mut random, depth, &mut Vec::new());
        let listing = random.bool().then(|| trees.listing(|lines| lines));
        // The clock of the kernel's files goes in steps.
        std::thread::sleep(Duration::from_millis(20));
        let changed = if is_alike {
            paths(&trees.to(""))
        } else {
            Vec::new()
        };
        for path in changed.iter().skip(1) {
            if random.u32(0..6) > 0 {
                continue;
            }
            let is_file = fs::symlink_metadata(path).is_ok_and(|stat| stat.is_file());
            if is_file && random.bool() {
                fs::write(path, "changed").unwrap();
            } else if path.is_dir() && !path.is_symlink() {
                fs::remove_dir_all(path).unwrap();
            } else {
                // It can be gone with its directory.
                let _ = fs::remove_file(path);
            }
        }
        eprintln!("seed {seed}");
        if listing.is_some() {
            trees.sync_listed(listing);
            trees.are_equal();
        }
        trees.become_equal();
    }
}

#[test]
fn what_is_equal_is_not_touched() {
    let trees = Trees::new();
    for dir in ["from", "to"] {
        let at = |path: &str| trees.dir.path().join(dir).join(path);
        fs::create_dir(at("dir")).unwrap();
        for file in ["dir/same", "dir/other", "dir/mode"] {
            fs::write(at(file), file).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
            File::open(at(file)).unwrap().set_modified(time).unwrap();
        }
        symlink("same", at("dir/link")).unwrap();
        symlink("/nowhere", at("dir/elsewhere")).unwrap();
    }
    trees.become_equal();
    // The size stays, and the time too.
    fs::write(trees.from("dir/other"), "DIR/other").unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
    let other = File::open(trees.from("dir/other")).unwrap();
    other.set_modified(time).unwrap();
    fs::set_permissions(trees.from("dir/mode"), Permissions::from_mode(0o600)).unwrap();
    let before = touched(&trees.to(""));
    let done = trees.become_equal();
    assert_eq!((done.kept, done.written, done.removed), (5, 2, 0));
    for (old, new) in before.iter().zip(touched(&trees.to(""))) {
        let name = old.0.file_name().unwrap().to_str().unwrap();
        assert_eq!(old.1, new.1, "{name}");
        assert_eq!(*old == new, !["other", "mode"].contains(&name), "{name}");
    }
}

#[test]
fn of_a_large_file_only_the_blocks_that_differ_are_written() {
    let trees = Trees::new();
    let mut content: Vec<u8> = (0..8 * MIB).map(|at| at.to_le_bytes()[1] | 1).collect();
    fs::write(trees.to("file"), &content).unwrap();
    let inode = fs::metadata(trees.to("file")).unwrap().ino();
    content[3 * MIB + 5] ^= 0xff;
    for (size, most) in [(8 * MIB, 1), (5 * MIB + 7, 0)] {
        fs::write(trees.from("file"), &content[..size]).unwrap();
        let done = trees.become_equal();
        assert!(done.bytes <= most * (128 << 10), "{done:?}");
    }
    // A longer one gets its end.
    content.extend(vec![7; MIB]);
    fs::write(trees.from("file"), &content).unwrap();
    let done = trees.become_equal();
    assert!(done.bytes < 5 << 20, "{done:?}");
    assert_eq!(fs::metadata(trees.to("file")).unwrap().ino(), inode);
}

#[test]
fn holes_stay_holes_and_come_where_zeros_are_not_wanted() {
    const LENGTH: usize = 64 * MIB;
    const SIZE: u64 = LENGTH as u64;
    let trees = Trees::new();
    for (name, zeros) in [("new", false), ("filled", true)] {
        let file = File::create(trees.from(name)).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"end", SIZE - 3).unwrap();
        if zeros {
            fs::write(trees.to(name), vec![b'x'; LENGTH]).unwrap();
        }
    }
    trees.become_equal();
    for name in ["new", "filled"] {
        let blocks = fs::metadata(trees.to(name)).unwrap().blocks();
        assert!(blocks * 512 < 2 << 20, "{name}: {blocks}");
    }
    // A file of real zeros, such as one to swap to, stays one, unless the source cannot tell.
    fs::write(trees.from("zeros"), vec![0; 4 * MIB]).unwrap();
    for zeros_are_holes in [false, true] {
        trees.sync_with(zeros_are_holes, u64::MAX).unwrap();
        trees.are_equal();
        let blocks = fs::metadata(trees.to("zeros")).unwrap().blocks();
        assert_eq!(blocks * 512 < 1 << 20, zeros_are_holes, "{blocks}");
        fs::remove_file(trees.to("zeros")).unwrap();
    }
}

#[test]
fn every_attribute_comes_along() {
    let trees = Trees::new();
    for name in ["capable", "suid", "acl", "dir"] {
        for path in [trees.from(name), trees.to(name)] {
            if name == "dir" {
                fs::create_dir(path).unwrap();
            } else {
                fs::write(path, name).unwrap();
            }
        }
    }
    fs::write(trees.from("capable"), "changed").unwrap();
    fs::write(trees.from("suid"), "changed").unwrap();
    chown(trees.from("suid"), Some(5), Some(6)).unwrap();
    fs::set_permissions(trees.from("suid"), Permissions::from_mode(0o6755)).unwrap();
    // cap_net_raw+ep (linux/capability.h), a user of an ACL (linux/posix_acl_xattr.h).
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, mode, id) in [
        (1, 6, u32::MAX),
        (2, 6, 1234),
        (4, 4, u32::MAX),
        (16, 6, u32::MAX),
        (32, 4, u32::MAX),
    ] {
        acl.extend([tag, 0, mode, 0]);
        acl.extend(id.to_le_bytes());
    }
    let is_set = [
        set_xattr(&trees.from("capable"), "security.capability", &capability),
        set_xattr(&trees.from("acl"), "system.posix_acl_access", &acl),
        set_xattr(&trees.from("dir"), "system.posix_acl_default", &acl),
        set_xattr(&trees.from("acl"), "user.long", &[7; 2000]),
        set_xattr(&trees.to("acl"), "user.gone", b"1"),
    ];
    if is_set.contains(&false) {
        lacks("attributes of each kind");
    }
    // Below a directory with an ACL for what is new in it.
    fs::write(trees.from("dir/file"), "new").unwrap();
    set_xattr(&trees.to("dir"), "system.posix_acl_default", &acl);
    fs::set_permissions(trees.from("dir/file"), Permissions::from_mode(0o640)).unwrap();
    trees.become_equal();
}

#[test]
fn devices_are_made_and_none_is_opened() {
    let trees = Trees::new();
    if !make_special(&trees.from("null"), FileType::CharacterDevice, 0x103) {
        lacks("devices");
        return;
    }
    for (path, kind, device) in [
        (trees.from("disk"), FileType::BlockDevice, 0x10_0302),
        (trees.to("disk"), FileType::BlockDevice, 0x10_0301),
        (trees.to("null"), FileType::Fifo, 0),
        (trees.from("pipe"), FileType::Fifo, 0),
        (trees.to("pipe"), FileType::CharacterDevice, 0x105),
        (trees.to("gone"), FileType::BlockDevice, 0x103),
        (trees.from("file"), FileType::Fifo, 0),
    ] {
        assert!(make_special(&path, kind, device));
    }
    fs::write(trees.to("file"), "a file").unwrap();
    drop(UnixListener::bind(trees.from("socket")).unwrap());
    // To open a pipe would wait for ever.
    trees.become_equal();
}

#[test]
fn no_link_leads_out_of_either_tree() {
    for target in ["../outside", "/", ".", "..", "loop"] {
        let trees = Trees::new();
        // A link on one side is a directory on the other one, and the other way round.
        for (link, dir) in [
            (trees.from("x"), trees.to("x")),
            (trees.to("y"), trees.from("y")),
        ] {
            symlink(target, link).unwrap();
            fs::create_dir_all(dir.join("deep")).unwrap();
            fs::write(dir.join("file"), "inside").unwrap();
            fs::write(dir.join("deep/file"), "inside").unwrap();
        }
        // A file on one side leads to one outside on the other one.
        symlink("../outside/file", trees.to("file")).unwrap();
        fs::write(trees.from("file"), "inside").unwrap();
        symlink("../outside/file", trees.from("link")).unwrap();
        fs::write(trees.to("link"), "inside").unwrap();
        trees.become_equal();
    }
}

#[test]
fn names_are_of_any_bytes() {
    let trees = Trees::new();
    for (dir, names) in [
        (
            "from",
            [&b"two\nlines"[..], b"latin\xe4", b"-rf", b"\x1b[2J"],
        ),
        ("to", [b"two\nlines", b"latin\xf6", b" ", b"\xff"]),
    ] {
        for name in names {
            let at = trees.dir.path().join(dir).join(OsStr::from_bytes(name));
            fs::create_dir(&at).unwrap();
            fs::write(at.join(OsStr::from_bytes(name)), dir).unwrap();
        }
    }
    let done = trees.become_equal();
    assert_eq!(done.removed, 3);
}

#[test]
fn names_of_one_file_become_names_of_one_file() {
    // Each name with the number of its file.
    for (from, to) in [
        (&["a1", "b1", "c2"][..], &["a1", "b2", "c2"][..]),
        (&["a1", "b2", "c3"], &["a1", "b1", "c1"]),
        (&["a1", "b1", "c1"], &["a1", "b2", "c3"]),
        (&["a1", "b1", "c1"], &[]),
        (&["a1", "b2", "c1"], &["a2", "b2", "c1"]),
        (&["b1", "c1"], &["a1", "b1"]),
        (&["a1"], &["a1", "b1", "c1"]),
    ] {
        let trees = Trees::new();
        for (dir, names) in [("from", from), ("to", to)] {
            for name in names {
                let at = |name: &str| trees.dir.path().join(dir).join(&name[..1]);
                let first = names.iter().find(|first| first[1..] == name[1..]).unwrap();
                if first == name {
                    fs::write(at(name), format!("{dir} {}", &name[1..])).unwrap();
                } else {
                    fs::hard_link(at(first), at(name)).unwrap();
                }
            }
        }
        trees.become_equal();
    }
}

#[test]
fn what_is_locked_is_changed_and_locked_again() {
    let trees = Trees::new();
    let lock = |path: &Path, flags: IFlags| {
        let file = File::open(path).unwrap();
        rustix::fs::ioctl_setflags(&file, flags).is_ok()
    };
    for (dir, text) in [("from", "new"), ("to", "old")] {
        let at = |path: &str| trees.dir.path().join(dir).join(path);
        fs::create_dir(at("dir")).unwrap();
        for name in ["dir/locked", "dir/unlocked", "dir/gone"] {
            fs::write(at(name), text).unwrap();
        }
    }
    fs::remove_file(trees.from("dir/gone")).unwrap();
    fs::write(trees.from("dir/added"), "").unwrap();
    let immutable = IFlags::IMMUTABLE;
    let paths = ["dir/locked", "dir/unlocked", "dir/gone", "dir"].map(|path| trees.to(path));
    if !paths.iter().all(|path| lock(path, immutable)) {
        return lacks("flags");
    }
    for path in ["dir/locked", "dir"] {
        lock(&trees.from(path), immutable);
    }
    trees.become_equal();
    for path in ["dir/locked", "dir"] {
        for path in [trees.from(path), trees.to(path)] {
            assert!(lock(&path, IFlags::empty()));
        }
    }
}

#[test]
fn the_directory_of_e2fsck_stays_and_is_empty() {
    let trees = Trees::new();
    fs::create_dir_all(trees.to("lost+found/dir")).unwrap();
    fs::write(trees.to("lost+found/dir/file"), "").unwrap();
    fs::create_dir_all(trees.to("usr/lost+found")).unwrap();
    fs::create_dir(trees.from("usr")).unwrap();
    let done = trees.sync();
    assert_eq!(done.removed, 2);
    assert_eq!(fs::read_dir(trees.to("lost+found")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(trees.to("usr")).unwrap().count(), 0);
    // That of the source is one as any other.
    fs::write(trees.from("lost+found"), "").unwrap();
    trees.become_equal();
}

#[test]
fn too_much_for_the_room_is_refused_and_what_is_there_takes_none() {
    let trees = Trees::new();
    for name in ["a", "b"] {
        fs::write(trees.from(name), vec![1; MIB]).unwrap();
    }
    fs::write(trees.to("a"), vec![1; MIB]).unwrap();
    let error = trees.sync_with(false, MIB as u64 - 1).unwrap_err();
    let error = format!("{error:#}");
    assert!(error.contains("the thin pool has no room"), "{error}");
    trees.sync_with(false, MIB as u64).unwrap();
    trees.are_equal();
}

#[test]
fn a_signal_ends_it() {
    let trees = Trees::new();
    fs::write(trees.from("file"), "").unwrap();
    let (root, to) = (
        Dir::root(&trees.from("")).unwrap(),
        Dir::root(&trees.to("")).unwrap(),
    );
    let source = Source {
        root: &root,
        zeros_are_holes: false,
    };
    let interrupt = Interrupt::default();
    interrupt.set();
    let done = sync(
        &source,
        &to,
        None,
        u64::MAX,
        &interrupt,
        &mut Progress::new("", 1),
    );
    assert!(done.is_err());
    assert!(!trees.to("file").exists());
}

#[test]
fn a_source_that_changes_meanwhile_is_read_to_an_end() {
    let trees = Trees::new();
    for number in 0..50 {
        fs::write(trees.from(&format!("gone{number}")), "x").unwrap();
    }
    fs::write(trees.from("grows"), "begin").unwrap();
    fs::write(trees.from("shrinks"), vec![b'x'; 4 * MIB]).unwrap();
    let ends = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut file = File::options()
                .append(true)
                .open(trees.from("grows"))
                .unwrap();
            let shrinks = File::options()
                .write(true)
                .open(trees.from("shrinks"))
                .unwrap();
            let block = vec![b'x'; 1 << 16];
            for number in 0..1000 {
                if ends.load(Ordering::Relaxed) {
                    break;
                }
                file.write_all(&block).unwrap();
                shrinks.set_len((number % 5) * 700_000).unwrap();
                let _ = fs::remove_file(trees.from(&format!("gone{number}")));
            }
        });
        for _ in 0..20 {
            trees.sync();
        }
        ends.store(true, Ordering::Relaxed);
    });
    trees.become_equal();
}

#[test]
fn a_tree_of_a_thousand_levels_is_made_and_removed() {
    let trees = Trees::new();
    let name = OsStr::new("deep");
    let mut at = Dir::root(&trees.from("")).unwrap();
    for _ in 0..1000 {
        at.make_dir(name).unwrap();
        at = at.child(name).unwrap();
    }
    at.create(OsStr::new("end"))
        .unwrap()
        .write_all(b"end")
        .unwrap();
    let done = trees.sync();
    assert_eq!(done.written, 1002);
    assert_eq!(trees.sync().kept, 1002);
    let from = Dir::root(&trees.from("")).unwrap();
    from.remove_all(name).unwrap();
    assert_eq!(trees.become_equal().removed, 1);
}

#[test]
fn many_files_are_compared() {
    let trees = Trees::new();
    for dir in 0..9 {
        fs::create_dir(trees.from(&dir.to_string())).unwrap();
        for file in 0..500 {
            fs::write(trees.from(&format!("{dir}/{file}")), "x").unwrap();
        }
    }
    assert_eq!(trees.sync().written, 9 * 501 + 1);
    fs::write(trees.from("7/7"), "y").unwrap();
    fs::remove_file(trees.from("8/8")).unwrap();
    // A file, and the directory that another one has gone from.
    let done = trees.sync();
    assert_eq!((done.written, done.removed, done.bytes), (2, 1, BLOCK));
    let mut text = String::new();
    let mut file = File::open(trees.to("7/7")).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "y");
    // Several threads compare where there is a listing.
    let all = 9 * 501;
    let listed = |done: Synced| (done.kept, done.written, done.bytes);
    let listing = trees.listing(|text| text);
    assert_eq!(listed(trees.sync_listed(Some(listing))), (all, 0, 0));
    let listing = trees.listing(|text| text);
    fs::write(trees.from("1/1"), "z").unwrap();
    fs::set_permissions(trees.from("2/2"), Permissions::from_mode(0o600)).unwrap();
    let touched = File::options().write(true).open(trees.from("3/3")).unwrap();
    touched.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(
        listed(trees.sync_listed(Some(listing))),
        (all - 3, 3, BLOCK)
    );
    trees.are_equal();
}

#[test]
fn of_a_snapshot_what_is_listed_is_not_read() {
    let trees = Trees::new();
    for (name, from, to) in [
        ("a/same", "text", "text"),
        ("a/changed", "new", "old"),
        ("a/longer", "longer", "long"),
        ("b/touched", "new", "old"),
        ("b.d/empty", "", ""),
        ("c", "text", "text"),
    ] {
        for (path, text) in [(trees.from(name), from), (trees.to(name), to)] {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }
    fs::write(trees.from("added"), "text").unwrap();
    fs::write(trees.to("removed"), "text").unwrap();
    for tree in [trees.from(""), trees.to("")] {
        fs::hard_link(tree.join("a/same"), tree.join("same")).unwrap();
    }
    let listing = trees.listing(|text| text);
    // The clock of the kernel's files goes in steps.
    std::thread::sleep(Duration::from_millis(50));
    fs::write(trees.to("b/touched"), "now").unwrap();
    let done = trees.sync_listed(Some(listing));
    assert_eq!((done.removed, done.bytes), (1, 4 * 4096));
    trees.are_equal();

    // To show that the listing is what counts, it tells a digest that the file does not have.
    fs::write(trees.to("c"), "TEXT").unwrap();
    let [text, other] = ["text", "TEXT"].map(|text| format!("{:x}", Sha256::digest(text)));
    let listing = trees.listing(|listed| listed.replace(&other, &text));
    trees.sync_listed(Some(listing));
    assert_eq!(fs::read(trees.to("c")).unwrap(), b"TEXT");
    trees.become_equal();
}

#[test]
fn what_was_not_changed_since_it_was_copied_ahead_is_not_read() {
    let trees = Trees::new();
    for name in ["kept", "changed", "grown", ".mark"] {
        fs::write(trees.from(name), "of the source").unwrap();
    }
    fs::write(trees.to(".mark"), "mark").unwrap();
    assert_eq!(trees.sync_again(None).written, 4);
    // As if a program had written to it, and had put its time back.
    let change = |path: PathBuf, text: &str| {
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, text).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(time)
            .unwrap();
    };
    for name in ["kept", "changed", "grown"] {
        change(trees.to(name), "of the volume");
    }
    change(trees.from("grown"), "of the source, which has grown");
    let ctime = fs::metadata(trees.from("changed")).unwrap().ctime();
    let read = |name: &str| fs::read_to_string(trees.to(name)).unwrap();
    // All were changed long before: only the size of one differs.
    trees.sync_again(Some(ctime + 1000));
    assert_eq!(read("kept"), "of the volume");
    assert_eq!(read("changed"), "of the volume");
    assert_eq!(read("grown"), "of the source, which has grown");
    // All were changed since.
    trees.sync_again(Some(ctime));
    assert_eq!(read("changed"), "of the source");
    assert_eq!(read("kept"), "of the source");
    assert_eq!(read(".mark"), "mark");
}

#[test]
fn what_has_come_to_its_path_with_a_directory_is_read() {
    let trees = Trees::new();
    for (dir, text) in [("cur", "old"), ("next", "new"), ("same", "abc")] {
        fs::create_dir_all(trees.from(dir).join("below")).unwrap();
        let path = trees.from(dir).join("below/file");
        fs::write(&path, text).unwrap();
        let file = File::options().write(true).open(path).unwrap();
        file.set_modified(UNIX_EPOCH).unwrap();
    }
    trees.sync_again(None);
    let ctime = fs::metadata(trees.from("same/below/file")).unwrap().ctime();
    thread::sleep(Duration::from_millis(1100));
    fs::rename(trees.from("cur"), trees.from("prev")).unwrap();
    fs::rename(trees.from("next"), trees.from("cur")).unwrap();
    fs::write(trees.from("cur").join("after"), "it was moved").unwrap();
    // To show that what is settled is not read.
    let same = trees.to("same/below/file");
    fs::write(&same, "xyz").unwrap();
    let file = File::options().write(true).open(&same).unwrap();
    file.set_modified(UNIX_EPOCH).unwrap();
    trees.sync_again(Some(ctime + 1));
    let read = |path: &str| fs::read_to_string(trees.to(path)).unwrap();
    assert_eq!(read("cur/below/file"), "new");
    assert_eq!(read("prev/below/file"), "old");
    assert_eq!(read("same/below/file"), "xyz");
}
