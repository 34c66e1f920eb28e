//! What a tree that is made to take much may take: 100,000 files in one directory, with names as long as a name can be,
//! and sparse files as large as a filesystem takes. Memory is that of a whole process, so each piece of work is
//! done in one of its own.

use std::env;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgbased_helper::admin::merge_report::MergeReport;
use imgbased_helper::merge::{Outside, Plan, Rules, Zones, apply};
use imgbased_helper::sys::interrupt::Interrupt;
use imgbased_helper::sys::progress::Progress;
use imgbased_helper::tree::{Dir, Source, sync};
use nix::sys::resource::{UsageWho, getrusage};

const FILES: u32 = 100_000;
/// The most memory that work may take, in bytes.
const MOST: i64 = 64 << 20;
/// So long nothing takes that ends at all, in seconds.
const LIMIT: &str = "600";

/// What the process of its own is told by: the work, and the directory with the trees.
const WORK: &str = "IMGBASED_TEST_WORK";
const TREES: &str = "IMGBASED_TEST_TREES";

/// Does the work in a process of its own, which has to end and to take little memory.
fn do_within_limits(work: &str, trees: &Path) {
    let program = env::current_exe().expect("this program");
    let output = Command::new("timeout")
        .arg(LIMIT)
        .arg(program)
        .args(["--exact", "one_process", "--ignored", "--nocapture"])
        .env(WORK, work)
        .env(TREES, trees)
        .output()
        .expect("timeout(1)");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{work}: {}\n{said}", output.status);
    let peak = said.lines().find_map(|line| line.strip_prefix("peak "));
    let peak: i64 = peak.expect("a line").parse().expect("a number");
    eprintln!("{work}: {} MiB", peak >> 20);
    assert!(peak <= MOST, "{work} takes {} MiB", peak >> 20);
}

#[test]
#[ignore = "the other tests start it"]
fn one_process() {
    let trees = PathBuf::from(env::var_os(TREES).expect("a directory"));
    work(&env::var(WORK).expect("some work"), &trees);
    let most = |who| getrusage(who).expect("numbers").max_rss() << 10;
    let peak = most(UsageWho::RUSAGE_SELF).max(most(UsageWho::RUSAGE_CHILDREN));
    eprintln!("\npeak {peak}");
}

fn work(work: &str, trees: &Path) {
    let open = |name: &str| Dir::root(&trees.join(name)).expect("a directory");
    match work {
        "sync" => {
            let root = open("from");
            let source = Source {
                root: &root,
                zeros_are_holes: false,
            };
            let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
            sync(
                &source,
                &open("to"),
                None,
                u64::MAX,
                &interrupt,
                &mut progress,
            )
            .expect("a copy");
        }
        "diff" => {
            let status = Command::new(env!("CARGO_BIN_EXE_imgbased-helper"))
                .arg("diff")
                .args([trees.join("from"), trees.join("to")])
                .arg("--exit-code")
                .stdout(Stdio::null())
                .status();
            let code = status.expect("the binary runs").code();
            let is_equal = trees.join("to/usr").exists();
            assert_eq!(code, Some(if is_equal { 0 } else { 3 }));
        }
        "merge" => {
            let [old, layer, new] = ["old", "layer", "new"].map(open);
            let roots = [&old, &layer, &new];
            let plan = Plan::of(roots, false).expect("a plan");
            let rules = Rules::default();
            let go_on = || Ok(());
            let outside = Outside::of(roots, false, &rules, &plan, &go_on).expect("a plan");
            let left = apply(&plan, &layer, &new).expect("a merge");
            assert!(left.is_empty());
            let names = ["old", "layer", "new"].map(str::to_owned);
            let report = MergeReport::of(names, &plan);
            assert!(serde_json::to_vec_pretty(&report).is_ok());
            let left = outside.apply(roots, &go_on).expect("a merge");
            assert!(left.is_empty());
        }
        "look for edits" => {
            let (zones, layer) = (Zones::of_etc(), open("layer"));
            let record = zones.record(&layer, &|| Ok(())).expect("a record");
            let changed = zones.changed(&record, &layer, &|| Ok(()));
            assert_eq!(changed.expect("a walk").edited(), 0);
        }
        _ => panic!("{work} is unknown"),
    }
}

/// The roots of a copy and of a merge, with their directories.
fn make_roots(trees: &Path) {
    for path in [
        "from/usr",
        "to",
        "old/etc",
        "old/srv",
        "layer/etc",
        "layer/srv",
        "new/etc",
        "new/srv",
    ] {
        fs::create_dir_all(trees.join(path)).expect("a directory");
    }
}

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).map_or(0, Iterator::count)
}

#[test]
fn many_files_take_little_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let trees = dir.path();
    make_roots(trees);
    let many = trees.join("from/usr/many");
    fs::create_dir(&many).expect("a directory");
    for number in 0..FILES {
        File::create(many.join(format!("{number:x>255}"))).expect("a file");
    }
    do_within_limits("diff", trees);
    do_within_limits("sync", trees);
    assert_eq!(count(&trees.join("to/usr/many")), FILES as usize);
    do_within_limits("diff", trees);
    let carried = trees.join("layer/srv/many");
    fs::rename(&many, &carried).expect("a directory");
    do_within_limits("merge", trees);
    assert_eq!(count(&trees.join("new/srv/many")), FILES as usize);
    // In both, and gone.
    fs::rename(&carried, trees.join("old/srv/many")).expect("a directory");
    do_within_limits("merge", trees);
    assert_eq!(count(&trees.join("new/srv/many")), 0);
}

#[test]
fn many_files_of_etc_take_little_memory() {
    let dir = tempfile::tempdir().expect("a directory");
    let trees = dir.path();
    make_roots(trees);
    let many = trees.join("layer/etc/many");
    fs::create_dir(&many).expect("a directory");
    for number in 0..FILES {
        File::create(many.join(format!("{number}.conf"))).expect("a file");
    }
    do_within_limits("look for edits", trees);
    do_within_limits("merge", trees);
    assert_eq!(count(&trees.join("new/etc/many")), FILES as usize);
}

/// Where a sparse file has something: at its begin, between, and at its end.
fn places(size: u64) -> [u64; 4] {
    [0, 1 << 33, size / 2, size - 3]
}

fn make_sparse(path: &Path, size: u64) {
    let file = File::create(path).expect("a file");
    file.set_len(size).expect("a size");
    for at in places(size) {
        file.write_all_at(b"xyz", at).expect("a write");
    }
}

fn is_whole(path: &Path, size: u64) {
    let file = File::open(path).expect("a file");
    let metadata = file.metadata().expect("a file");
    assert_eq!(metadata.len(), size);
    assert!(metadata.blocks() < 4096, "{} blocks", metadata.blocks());
    for at in places(size) {
        let mut bytes = [0; 3];
        file.read_exact_at(&mut bytes, at).expect("a read");
        assert_eq!(&bytes, b"xyz", "{at}");
    }
}

#[test]
fn holes_of_any_size_take_neither_time_nor_memory() {
    // A filesystem in memory takes larger files than most of disks do.
    let in_memory = tempfile::tempdir_in("/dev/shm");
    let dir = in_memory.or_else(|_| tempfile::tempdir());
    let dir = dir.expect("a directory");
    let trees = dir.path();
    make_roots(trees);
    let probe = File::create(trees.join("probe")).expect("a file");
    // Of one that is larger still, lseek(2) does not find the end.
    let sizes = [1 << 62, 1 << 60, 1 << 43, 1 << 40];
    let size = sizes.into_iter().find(|size| probe.set_len(*size).is_ok());
    let size = size.expect("a large file");
    eprintln!("files of {} GiB", size >> 30);
    make_sparse(&trees.join("from/usr/sparse"), size);
    do_within_limits("sync", trees);
    is_whole(&trees.join("to/usr/sparse"), size);
    // What is there already is compared.
    do_within_limits("diff", trees);
    do_within_limits("sync", trees);
    for top in ["etc", "srv"] {
        make_sparse(&trees.join("layer").join(top).join("sparse"), size);
    }
    do_within_limits("merge", trees);
    for top in ["etc", "srv"] {
        is_whole(&trees.join("new").join(top).join("sparse"), size);
    }
}
