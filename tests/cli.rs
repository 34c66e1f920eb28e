//! The real binary without a volume group: what it refuses, with which exit status and message.

use std::path::Path;
use std::process::{Command, Output};

fn helper(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imgbased-helper"))
        .args(args)
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (args, message) in [
        (&["frobnicate"][..], "unrecognized subcommand 'frobnicate'"),
        (&["layer"], "Usage: imgbased-helper layer"),
        (&["layer", "add", "a", "b"], "unexpected argument 'b'"),
        (&["layer", "add", "../x"], "contains '/'"),
        (&["layer", "add", "-x"], "unexpected argument '-x'"),
        (&["--vg", "a b", "layout"], "contains ' '"),
        (&["--vg", "", "layout"], "the volume group name is empty"),
        (&["--pool", "x_tmeta", "layout"], "lvm2 keeps names with"),
        (&["layout", "init"], "--device <DEVICE>"),
        (&["base", "add", "x", "--size", "1X"], "unknown unit"),
        (&["base", "add", "x", "--size", "0"], "greater than zero"),
        (
            &["base", "add", "x", "--name", "snapshot"],
            "lvm2 keeps names that start with",
        ),
        (&[], "Usage: imgbased-helper"),
    ] {
        let output = helper(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(
            stderr(&output).contains(message),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn what_cannot_be_done_exits_with_1_and_one_line() {
    let empty = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(empty.path().join("boot")).expect("a directory");
    let root = empty.path().to_str().expect("a plain path");
    let text = empty.path().join("text");
    std::fs::write(&text, "text").expect("a file");
    let text = text.to_str().expect("a plain path");
    for (args, message) in [
        (
            &["-n", "layout", "init", "--device", "/dev/null"][..],
            "/dev/null is not a block device",
        ),
        (
            &["-n", "layout", "init", "--device", "/nonexistent"],
            "cannot use /nonexistent: No such file",
        ),
        (
            &["-n", "base", "add", "/nonexistent"],
            "cannot read /nonexistent: No such file",
        ),
        (
            &["-n", "base", "add", text],
            "holds nothing that is known; ext4, XFS, squashfs, a tar archive or a directory is needed",
        ),
        (
            &["-n", "--root", root, "layer", "add"],
            "no boot partition is mounted at",
        ),
        (
            &["-n", "--root", "/nonexistent", "layer", "add"],
            "cannot look at /nonexistent/boot",
        ),
    ] {
        let output = helper(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let stderr = stderr(&output);
        assert!(
            stderr.starts_with("error: ") && stderr.contains(message),
            "{args:?}: {stderr}"
        );
        assert_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
    }
}

#[test]
fn help_and_version_exit_with_0() {
    for args in [&["--help"][..], &["--version"], &["layer", "add", "--help"]] {
        let output = helper(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        assert!(
            !output.stdout.is_empty() && output.stderr.is_empty(),
            "{args:?}"
        );
    }
}

#[test]
fn as_a_generator_it_writes_nothing_without_the_key() {
    let dir = tempfile::tempdir().expect("a directory");
    let generator = dir.path().join("imgbased-generator");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imgbased-helper"), &generator).expect("a link");
    let early = dir.path().join("early");
    std::fs::create_dir(&early).expect("a directory");
    let status = Command::new(&generator)
        .args([Path::new("normal"), &early, Path::new("late")])
        .status()
        .expect("the binary runs");
    assert!(status.success());
    assert_eq!(std::fs::read_dir(&early).expect("a directory").count(), 0);
}

#[test]
fn hooks_of_dracut_are_told_that_this_is_no_layer_boot() {
    let output = helper(&["initrd", "is-layer"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}
