//! The real binary without a volume group: what it refuses, with which exit status and message.

#[allow(dead_code, reason = "the unit tests use the rest")]
mod schemas;

use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread::sleep;
use std::time::Duration;

fn helper(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_imgbased-helper"))
        .args(args)
        .output()
        .expect("the binary runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Command lines that nobody can mean, and what is said of them.
const WRONG: &[(&[&str], &str)] = &[
    (&["frobnicate"], "unrecognized subcommand 'frobnicate'"),
    (&["layer"], "Usage: imgbased-helper layer"),
    (&["layer", "add", "a", "b"], "unexpected argument 'b'"),
    (&["layer", "add", "../x"], "contains '/'"),
    (&["layer", "add", "-x"], "unexpected argument '-x'"),
    (&["--vg", "a b", "layout"], "contains ' '"),
    (&["--vg", "", "layout"], "the volume group name is empty"),
    (&["--pool", "x_tmeta", "layout"], "lvm2 keeps names with"),
    (&["layout", "init"], "--device <DEVICE>"),
    (
        &["layout", "init", "--from", "/", "--size", "1G"],
        "cannot be used with",
    ),
    (&["image"], "Usage: imgbased-helper image"),
    (&["image", "prepare"], "<DIR>"),
    (&["image", "prepare", "x", "--name", "a b"], "contains ' '"),
    (&["image", "check", "x", "--against", "a b"], "contains ' '"),
    (&["image", "pack"], "<DIR>"),
    (&["image", "pack", "x"], "<OUT>"),
    (&["base", "add", "x", "--size", "1X"], "unknown unit"),
    (&["base", "add", "x", "--size", "0"], "greater than zero"),
    (
        &["base", "add", "x", "--name", "snapshot"],
        "lvm2 keeps names that start with",
    ),
    (&["base", "find"], "<SHA256>"),
    (&["base", "find", "e3b0c4"], "64 hexadecimal digits"),
    (
        &["base", "add", "x", "--by-content", "--no-share"],
        "'--by-content' cannot be used with '--no-share'",
    ),
    (
        &["update", "x", "--no-share", "--by-content"],
        "cannot be used with",
    ),
    (
        &["update", "--require-digest", "sha256:12"],
        "64 hexadecimal digits",
    ),
    (
        &["update", "--download-only", "--check"],
        "cannot be used with",
    ),
    (
        &["update", "--download-only", "--from-downloaded"],
        "cannot be used with",
    ),
    (
        &["base", "add", "x", "--from-downloaded"],
        "unexpected argument '--from-downloaded'",
    ),
    (&["base", "add", "--allow-unsigned"], "<IMAGE>"),
    (&["base", "add", "x", "--progress-fd", "-1"], "unexpected"),
    (&["diff", "a b"], "contains ' '"),
    (&["persist"], "Usage: imgbased-helper persist"),
    (&["persist", "preview", "x"], "unexpected argument 'x'"),
    (&["persist", "keep"], "<PATH>"),
    (
        &["persist", "diff", "/etc/a", "/etc/b"],
        "unexpected argument",
    ),
    (&["persist", "list", "x"], "unexpected argument 'x'"),
    (&["persist", "add", "--package"], "<PATH>"),
    (&["diff", "--content", "--stat"], "cannot be used with"),
    (&["diff", "--max-size", "1M"], "--content"),
    (
        &["diff", "--content", "--max-size", "17M"],
        "the most is 16.00 MiB",
    ),
    (&["diff", "--exclude"], "a value is required"),
    (&["volume"], "Usage: imgbased-helper volume"),
    (&["volume", "add", "/home"], "--size <SIZE>"),
    (
        &[
            "volume", "add", "/home", "--size", "1G", "--fstype", "btrfs",
        ],
        "expected ext4 or xfs",
    ),
    (&["volume", "grow", "/home", "1X"], "unknown unit"),
    (&["rollback", "Base-0.1"], "unexpected argument 'Base-0.1'"),
    (&["rollback", "--to", "../x"], "contains '/'"),
    (
        &["update", "x", "--check", "--snapshot-volumes"],
        "cannot be used with",
    ),
    (
        &["volume", "complete", "/var"],
        "unexpected argument '/var'",
    ),
    (&["status", "--format", "xml"], "expected text, json"),
    (&["layout", "--color", "blue"], "expected auto, always"),
];

#[test]
fn wrong_usage_exits_with_2_and_says_what_is_wrong() {
    for (args, message) in WRONG {
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
            &["diff", "/nonexistent", "/"],
            "cannot open /nonexistent: No such file",
        ),
        (&["diff", root, root, "--exclude", "a["], "is no pattern"),
        (&["-n", "image", "prepare", root], "has no /usr or no /etc"),
        (
            &["-n", "image", "prepare", "/nonexistent"],
            "cannot open /nonexistent",
        ),
        (
            &["-n", "image", "prepare", "/"],
            "which would lose what makes it this host",
        ),
        (
            &["-n", "image", "check", "/nonexistent"],
            "cannot read /nonexistent",
        ),
        (
            &["-n", "volume", "add", "/etc", "--size", "1G"],
            "/etc is of each layer or of the machine, and never on a volume",
        ),
        (
            &["-n", "volume", "add", "home", "--size", "1G"],
            "is not an absolute path",
        ),
        (&["-n", "volume", "remove", "/a/../b"], "has `..` in it"),
        (&["diff", root, root, "--path", "/a/../b"], "has `..` in it"),
        (&["diff", root, root, "--path", "/nothing"], "has /nothing"),
        (
            &["-n", "persist", "take", "etc/x"],
            "etc/x does not begin with a slash",
        ),
        (&["-n", "persist", "reset", "/root/x"], "is not below /etc"),
        (
            &["-n", "persist", "pull", "/etc/shadow"],
            "usermod(8) and the like change it",
        ),
        (
            &["-n", "persist", "add", "/root/x", "/usr/bin/x"],
            "/usr/bin/x is of the image or of the machine",
        ),
        (
            &["-n", "persist", "add", "--package", "a=1"],
            "is neither a file of a package nor the name of one",
        ),
        (
            &["-n", "persist", "remove", "--package", "../x"],
            "is neither a file of a package nor the name of one",
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
            &["-n", "--root", root, "rollback"],
            "no boot partition is mounted at",
        ),
        (
            &["-n", "--root", root, "rollback", "--reboot"],
            "--apply restarts the system that runs, and --root names another one",
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
fn what_is_not_there_is_not_packed() {
    let output = helper(&["-n", "image", "pack", "/nonexistent", "/nonexistent2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot read /nonexistent"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn an_installation_is_refused_before_the_disk_is_looked_at() {
    let text = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(&text, "text").expect("a file");
    let text = text.path().to_str().expect("a plain path");
    for (args, status, message) in [
        (&[][..], 2, "--disk <DEVICE>"),
        (&["x"], 2, "--disk <DEVICE>"),
        (
            &["x", "--disk", "y", "--loader", "lilo"],
            2,
            "expected grub or systemd-boot",
        ),
        (
            &["x", "--disk", "y", "--firmware", "x"],
            2,
            "expected bios, uefi or both",
        ),
        (
            &["x", "--disk", "y", "--volumes", "/etc"],
            2,
            "never on a volume",
        ),
        (
            &["x", "--disk", "y", "--boot-size", "0"],
            2,
            "greater than zero",
        ),
        (
            &["x", "--disk", "/dev/null"],
            1,
            "/dev/null is not a block device",
        ),
        (
            &["x", "--disk", "/nonexistent"],
            1,
            "cannot use /nonexistent: No such file",
        ),
        (
            &["--answers", "/nonexistent"],
            1,
            "cannot read /nonexistent: No such file",
        ),
        (&["--answers", text], 1, "line 1: KEY=VALUE is needed"),
    ] {
        let output = helper(&[&["-n", "install"][..], args].concat());
        assert_eq!(output.status.code(), Some(status), "{args:?}");
        let stderr = stderr(&output);
        assert!(
            stderr.starts_with("error: ") && stderr.contains(message),
            "{args:?}: {stderr}"
        );
        assert!(output.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn an_image_in_layers_that_is_not_there_or_has_no_name_is_refused() {
    for (image, message) in [
        ("oci:/nonexistent", "cannot open /nonexistent"),
        ("dir:/nonexistent:x", "cannot open /nonexistent:x"),
        ("oci:", "it names no place"),
        (
            "docker://h/a b",
            "it has a character that no name in a registry has",
        ),
        ("docker://h/a@sha256:0", "is no digest of the kind"),
    ] {
        let output = helper(&["-n", "base", "add", image]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{image}: {stderr}");
        assert!(stderr.contains(message), "{image}: {stderr}");
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
fn as_imgbase_it_takes_the_old_command_forms() {
    let dir = tempfile::tempdir().expect("a directory");
    let link = dir.path().join("imgbase");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_imgbased-helper"), &link).expect("a link");
    let imgbase = |args: &[&str]| {
        Command::new(&link)
            .args(args)
            .output()
            .expect("the binary runs")
    };
    for (args, status, message) in [
        (&[][..], 2, "a verb is needed"),
        (&["frobnicate"], 2, "there is no `imgbase frobnicate`"),
        (
            &["remote", "pull", "x"],
            2,
            "`imgbased-helper update IMAGE`",
        ),
        (&["layout", "--init", "--size", "1G"], 2, "no disk is named"),
        (
            &["--vg", "x", "base", "--add", "--size", "1X", "image"],
            2,
            "unknown unit",
        ),
        (&["--vg", "x", "layer", "--add", "../x"], 2, "contains '/'"),
        (
            &["--dry", "--vg", "x", "base", "--add", "/nonexistent"],
            1,
            "cannot read /nonexistent",
        ),
        (
            &["--dry", "--vg", "x", "base", "--add"],
            1,
            "standard input is no file",
        ),
        (
            &["--dry", "layout", "--init", "--size", "1G", "/dev/null"],
            1,
            "/dev/null is not a block device",
        ),
        (
            &["--dry", "--vg", "x", "volume", "--create", "/etc", "1G"],
            1,
            "/etc is of each layer",
        ),
    ] {
        let output = imgbase(args);
        let stderr = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.contains(message), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
    }
    for (args, text) in [
        (&["--help"][..], "Usage: imgbase"),
        (&["--version"], env!("CARGO_PKG_VERSION")),
        (&["service", "--start"], ""),
    ] {
        let output = imgbase(args);
        assert_eq!(output.status.code(), Some(0), "{args:?}");
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(stdout.contains(text), "{args:?}: {stdout}");
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
fn as_a_generator_of_mounts_it_writes_nothing_where_no_layer_was_booted() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().to_str().expect("a plain path");
    let output = helper(&["initrd", "generate-mounts", path]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert_eq!(
        std::fs::read_dir(dir.path()).expect("a directory").count(),
        0
    );
    assert_eq!(
        helper(&["initrd", "generate-mounts"]).status.code(),
        Some(1)
    );
}

#[test]
fn hooks_of_dracut_are_told_that_this_is_no_layer_boot() {
    let output = helper(&["initrd", "is-layer"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty() && output.stderr.is_empty());
}

#[test]
fn two_directories_are_compared_without_a_group() {
    let dir = tempfile::tempdir().expect("a directory");
    for (path, content) in [
        ("a/same", "1"),
        ("b/same", "1"),
        ("a/x/y", "1"),
        ("b/x/y", "2"),
        ("b/new", ""),
    ] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(path, content).expect("a file");
    }
    let [a, b] = ["a", "b"].map(|root| dir.path().join(root));
    let [a, b] = [&a, &b].map(|root| root.to_str().expect("a plain path"));
    for (args, status, text) in [
        (&["diff", a, b][..], 0, "A ...... /new\nM .c.... /x/y\n"),
        (
            &["diff", a, b, "--exit-code", "--path", "/x"],
            3,
            "M .c.... /x/y\n",
        ),
        (&["diff", a, b, "--exit-code", "--path", "same"], 0, ""),
        (&["diff", a, b, "--exclude", "x", "--exclude", "/n*"], 0, ""),
        (
            &["diff", a, b, "--stat"],
            0,
            "Added            1  0 B\nRemoved          0  0 B\nModified         1\nPackages         0\n",
        ),
    ] {
        let output = helper(args);
        assert_eq!(
            output.status.code(),
            Some(status),
            "{args:?} {}",
            stderr(&output)
        );
        assert_eq!(String::from_utf8_lossy(&output.stdout), text, "{args:?}");
    }
    let output = helper(&["--json", "diff", a, b]);
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(schemas::check("diff", &data), Ok(()));
    assert_eq!(data["version"], 1);
    assert_eq!(data["entries"][1]["path"], "/x/y");
    assert_eq!(data["entries"][1]["parts"][0], "content");
    assert_eq!(data["counts"]["added"], 1);
}

#[test]
fn what_differs_is_a_document_as_its_schema_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let script = r#"
        cd "$0"
        mkdir a b
        printf 'text\n' >a/text
        printf '\0' >b/binary
        head -c 5000 /dev/zero | tr '\0' x >b/large
        touch "b/$(printf 'latin\344')"
        ln -s x a/link
        ln -s y b/link
        mkdir a/kind
        touch b/kind
    "#;
    let mut shell = Command::new("sh");
    let status = shell.args(["-ec", script]).arg(dir.path()).status();
    assert!(status.expect("a shell").success());
    let [a, b] = ["a", "b"].map(|root| dir.path().join(root));
    let [a, b] = [&a, &b].map(|root| root.to_str().expect("a plain path"));
    for more in [
        &["--content", "--max-size", "4096", "--packages"][..],
        &["--stat"],
        &["--exclude", "*"],
    ] {
        let output = helper(&[&["diff", "--json", a, b], more].concat());
        let data = serde_json::from_slice(&output.stdout).expect("JSON");
        assert_eq!(schemas::check("diff", &data), Ok(()), "{more:?}");
    }
}

#[test]
fn without_a_command_and_without_root_it_says_how_to_go_on() {
    let dir = tempfile::tempdir().expect("a directory");
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).expect("a directory of our own");
    let program = dir.path().join("imgbased-helper");
    std::fs::copy(env!("CARGO_BIN_EXE_imgbased-helper"), &program).expect("a copy");
    let mut command = Command::new(&program);
    // Only root can become another user.
    if std::fs::metadata("/proc/self").expect("this process").uid() == 0 {
        command.uid(65534);
    }
    // Another test can have forked while the copy was written, and then has it open for a moment.
    let output = loop {
        match command.output() {
            Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => {
                sleep(Duration::from_millis(10));
            }
            output => break output.expect("the binary runs"),
        }
    };
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    for text in [
        "is for root to see",
        "\n\nCommands to go on with:\n  sudo imgbased-helper ",
        "  imgbased-helper --help ",
    ] {
        assert!(stdout.contains(text), "{stdout}");
    }
    assert!(!stdout.contains('\u{1b}'), "{stdout}");
}

#[test]
fn trees_that_are_made_to_harm_are_compared_and_not_left() {
    let dir = tempfile::tempdir().expect("a directory");
    // What is outside would be listed, or wait for ever, if it were opened.
    let script = r#"
        cd "$0"
        mkdir outside a b a/x b/y
        echo outside >outside/file
        mkfifo outside/pipe outside/new
        for root in a b; do
            cd $root
            mkfifo pipe
            ln -s ../outside out
            ln -s / root
            ln -s .. up
            ln -s loop loop
            echo inside >first
            ln first second
            cd ..
        done
        ln ./outside/file a/shared
        echo other >b/shared
        ln -s ../outside b/x
        ln -s "$PWD/outside" a/y
        touch a/x/file b/y/file a/kind "b/$(printf 'two\nlines')" "b/$(printf 'latin\344')"
        mkfifo b/kind
        ln -sfn ../outside/pipe b/loop
        truncate -s 1T a/sparse b/sparse
        echo end >>b/sparse
    "#;
    let mut shell = Command::new("sh");
    let status = shell.args(["-ec", script]).arg(dir.path()).status();
    assert!(status.expect("a shell").success());
    let output = Command::new("timeout")
        .args(["60", env!("CARGO_BIN_EXE_imgbased-helper"), "diff"])
        .args([dir.path().join("a"), dir.path().join("b")])
        .output()
        .expect("timeout(1)");
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "M t..... /kind\nA ...... /latin\\344\nM ..l... /loop\nM .c.... /shared\nM .c.... /sparse\n\
         A ...... /two\\nlines\nM t..... /x\nD ...... /x/file\nM t..... /y\nA ...... /y/file\n"
    );
    let outside = std::fs::read_to_string(dir.path().join("outside/file"));
    assert_eq!(outside.expect("a file"), "outside\n");
}
