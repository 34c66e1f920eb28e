//! The sandbox for programs of images, with the root of this machine in the place of that of an image. Only root
//! can make one; where that is not allowed, there is nothing to see here. The scenarios have it in machines.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// More than any of the scripts takes.
const LONG: u32 = 60;

/// All that is in its environment.
const VARIABLES: &str = "LC_ALL=C
LVM_SUPPRESS_FD_WARNINGS=1
PATH=/usr/sbin:/usr/bin:/sbin:/bin
container=imgbased";

/// Runs a script for a shell shut in, with `scratch` as what it can write to.
fn shut_in(scratch: &Path, seconds: u32, script: &str) -> Output {
    shut_into(Path::new("/"), "ro", scratch, seconds, script)
}

/// The same in another root, with another access to that.
fn shut_into(root: &Path, access: &str, scratch: &Path, seconds: u32, script: &str) -> Output {
    // The caller has a file open, and a variable of its own.
    Command::new("sh")
        .args(["-c", "exec 7</dev/null; exec \"$@\"", "sh"])
        .arg(env!("CARGO_BIN_EXE_imgbased-helper"))
        .args(["sandbox", &seconds.to_string(), access])
        .args([root, scratch])
        .args(["sh", "-c", script])
        .env("HOSTILE", "1")
        .output()
        .expect("the binary runs")
}

/// What it said, which is the script's standard output as well, and its exit status.
fn end(output: &Output) -> (String, Option<i32>) {
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stderr);
    (text.trim().to_owned(), output.status.code())
}

/// A directory for a sandbox, if one can be made.
fn scratch() -> Option<tempfile::TempDir> {
    let dir = tempfile::tempdir().expect("a directory");
    let output = shut_in(dir.path(), LONG, "true");
    let text = String::from_utf8_lossy(&output.stderr);
    let is_allowed = !["EPERM", "not permitted"]
        .iter()
        .any(|reason| text.contains(reason));
    assert!(output.status.success() || !is_allowed, "{text}");
    is_allowed.then_some(dir)
}

#[test]
fn a_program_ends_as_it_does_outside() {
    let Some(dir) = scratch() else { return };
    for (script, said, status) in [
        ("true", "", Some(0)),
        ("exit 7", "", Some(7)),
        ("echo one; echo two >&2; false", "one\ntwo", Some(1)),
        ("printf 'a\\033[2Jb\\n'", "a [2Jb", Some(0)),
        (
            "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end",
            "end",
            Some(0),
        ),
        ("cat", "", Some(0)),
        ("no-such-program", "not found", Some(127)),
    ] {
        let (text, code) = end(&shut_in(dir.path(), LONG, script));
        assert!(text.ends_with(said), "{script}: {text}");
        assert!(!said.is_empty() || text.is_empty(), "{script}: {text}");
        assert_eq!(code, status, "{script}");
        assert!(text.len() <= 2048, "{script}");
    }
}

#[test]
fn it_sees_what_it_needs_and_nothing_of_the_host() {
    let Some(dir) = scratch() else { return };
    for (script, said) in [
        ("echo $$", "1"),
        ("cd /proc; echo [0-9]*", "1"),
        (
            "cd /dev; echo *",
            "fd full null random stderr stdin stdout urandom zero",
        ),
        ("cd /run; echo *", "*"),
        ("cd /tmp; echo *", "*"),
        ("stat -c %a /run /tmp /dev/null", "755\n1777\n666"),
        ("cat; echo /proc/self/fd/[4-9]", "/proc/self/fd/[4-9]"),
        ("tr '\\0' '\\n' </proc/$$/environ | sort", VARIABLES),
        ("pwd; umask", "/\n0022"),
        (
            "sed -n 's/^NoNewPrivs:\\t//p; s/^Seccomp:\\t//p' /proc/self/status",
            "1\n2",
        ),
        (
            "sed -n 's/^Cap...:\\t//p' /proc/self/status | sort -u",
            "0000000000000000\n00000000800400db",
        ),
        ("cat /proc/self/oom_score_adj", "1000"),
        (
            "grep core /proc/self/limits | tr -s ' '",
            "Max core file size 1 1 bytes",
        ),
        ("wc -c </proc/kmsg", "0"),
    ] {
        let (text, code) = end(&shut_in(dir.path(), LONG, script));
        assert_eq!((text.as_str(), code), (said, Some(0)), "{script}");
    }
}

#[test]
fn it_reaches_nothing() {
    let Some(dir) = scratch() else { return };
    let null = fs::metadata("/dev/null").expect("a device").permissions();
    for script in [
        "touch /hostile",
        "touch /dev/hostile",
        "chmod 600 /dev/null",
        "chmod 600 /proc/self/fd/0",
        "mknod /run/node c 1 3",
        "echo hostile >/proc/sys/kernel/domainname",
        "echo h >/proc/sysrq-trigger",
        "echo 0 >/proc/self/oom_score_adj",
        "mount -t tmpfs tmpfs /tmp",
        "mount -o remount,rw /",
        "unshare --user true",
        "dmesg",
    ] {
        let (text, code) = end(&shut_in(dir.path(), LONG, script));
        assert!(code.is_some_and(|code| code > 0), "{script}: {text}");
    }
    let now = fs::metadata("/dev/null").expect("a device").permissions();
    assert_eq!(now.mode(), null.mode());
    assert!(!Path::new("/hostile").exists());
}

#[test]
fn what_it_writes_is_there_when_it_has_ended() {
    let Some(dir) = scratch() else { return };
    for script in [
        "echo one >/run/one",
        "cat /run/one >/tmp/two && chown 12:34 /tmp/two",
    ] {
        assert_eq!(end(&shut_in(dir.path(), LONG, script)).1, Some(0));
    }
    for file in ["run/one", "tmp/two"] {
        let text = fs::read_to_string(dir.path().join(file));
        assert_eq!(text.expect("a file"), "one\n");
    }
}

#[test]
fn a_root_that_it_may_change_is_all_that_it_changes() {
    let Some(dir) = scratch() else { return };
    let root = tempfile::tempdir().expect("a directory");
    let take_shell = "cd \"$0\"; mkdir bin dev etc proc run sys tmp; cp /bin/sh bin; \
        ldd /bin/sh | grep -o '/[^ ]*' | while read -r library; do \
        mkdir -p \"./${library%/*}\"; cp -L \"$library\" \"./$library\"; done";
    let made = Command::new("sh")
        .args(["-e", "-c", take_shell])
        .arg(root.path())
        .status();
    assert!(made.expect("a shell").success());
    for (access, script, is_done) in [
        ("ro", "echo x >/etc/made", false),
        ("rw", "echo x >/etc/made; umask 0; echo x >/etc/again", true),
        ("rw", "echo x >/dev/made", false),
        ("rw", "echo 1 >/proc/sys/kernel/core_uses_pid", false),
        ("rw", "echo x >/sys/kernel/profiling", false),
        ("rw", "echo x >/run/made && echo x >/tmp/made", true),
    ] {
        let got = shut_into(root.path(), access, dir.path(), LONG, script);
        assert_eq!(got.status.success(), is_done, "{access} {script}: {got:?}");
    }
    let text = fs::read_to_string(root.path().join("etc/made"));
    assert_eq!(text.expect("a file"), "x\n");
    for place in ["dev", "proc", "run", "sys", "tmp"] {
        let mut names = fs::read_dir(root.path().join(place)).expect("a directory");
        assert!(names.next().is_none(), "{place}");
    }
}

/// The processes of this machine that a script has left, which sleeps for so many seconds.
fn sleepers(seconds: u32) -> usize {
    let line = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines.filter(|found| found == line.as_bytes()).count()
}

#[test]
fn nothing_of_it_is_left_when_it_ends_or_is_ended() {
    let Some(dir) = scratch() else { return };
    let output = shut_in(
        dir.path(),
        LONG,
        "setsid sleep 424241 & (trap '' TERM; sleep 424241) &",
    );
    assert_eq!(end(&output), (String::new(), Some(0)));
    assert_eq!(sleepers(424_241), 0);

    let stubborn = "trap '' TERM INT HUP; setsid sleep 424242 & while :; do sleep 424242; done";
    let (text, code) = end(&shut_in(dir.path(), 1, stubborn));
    assert_eq!(
        (text.as_str(), code),
        ("error: it was ended after 1 s", Some(1))
    );
    assert_eq!(sleepers(424_242), 0);
}

#[test]
fn it_ends_when_nobody_waits_for_it() {
    let Some(dir) = scratch() else { return };
    let start = |seconds: u32| {
        let child = Command::new(env!("CARGO_BIN_EXE_imgbased-helper"))
            .args(["sandbox", &LONG.to_string(), "ro", "/"])
            .arg(dir.path())
            .args([
                "sh",
                "-c",
                &format!("setsid sleep {seconds} & sleep {seconds}"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary runs");
        wait_until(|| sleepers(seconds) == 2);
        child
    };
    // Its reader has ended.
    let mut child = start(424_243);
    drop(child.stdout.take());
    assert!(!child.wait().expect("an end").success());
    assert_eq!(sleepers(424_243), 0);
    // It is killed itself.
    let mut child = start(424_244);
    child.kill().expect("a process");
    child.wait().expect("an end");
    wait_until(|| sleepers(424_244) == 0);
}

/// The control group of a process that sleeps for so many seconds, if it has one of its own.
fn group_of_sleeper(seconds: u32) -> Option<PathBuf> {
    let line = format!("sleep\0{seconds}\0");
    let mut processes = fs::read_dir("/proc").expect("/proc").flatten();
    let is_it = |process: &fs::DirEntry| {
        fs::read(process.path().join("cmdline")).is_ok_and(|found| found == line.as_bytes())
    };
    let process = processes.find(is_it).expect("it sleeps").path();
    let groups = fs::read_to_string(process.join("cgroup")).expect("its groups");
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    group
        .contains("imgbased-sandbox-")
        .then(|| Path::new("/sys/fs/cgroup").join(group))
}

#[test]
fn all_of_it_has_limits_where_the_host_can_have_another_control_group() {
    let Some(dir) = scratch() else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_imgbased-helper"))
        .args(["sandbox", &LONG.to_string(), "ro", "/"])
        .arg(dir.path())
        .args(["sleep", "424245"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    wait_until(|| sleepers(424_245) == 1);
    let Some(group) = group_of_sleeper(424_245) else {
        child.kill().expect("a process");
        child.wait().expect("an end");
        return;
    };
    for (name, limit) in [("pids.max", "1000"), ("memory.oom.group", "1")] {
        let found = fs::read_to_string(group.join(name)).expect("a limit");
        assert_eq!(found.trim(), limit, "{name}");
    }
    let memory = fs::read_to_string(group.join("memory.max")).expect("a limit");
    assert!(memory.trim().parse::<u64>().is_ok(), "{memory}");
    // Its first process is killed by somebody else.
    let processes = fs::read_to_string(group.join("cgroup.procs")).expect("processes");
    for process in processes.lines() {
        Command::new("kill")
            .args(["-KILL", process])
            .status()
            .expect("kill runs");
    }
    assert!(!child.wait().expect("an end").success());
    assert!(!group.exists());
    // More than there may be.
    let many = "for n in $(seq 1100); do sleep 60 & done; echo through";
    let (text, _) = end(&shut_in(dir.path(), LONG, many));
    assert!(!text.contains("through"), "{text}");
}

fn wait_until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(10));
    }
}
