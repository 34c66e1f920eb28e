//! What is done to a new layer after a merge, with a directory in its place. Programs of it are run by this program
//! itself, which is what the helper is elsewhere. Only root can do that; where it is not allowed, there is nothing to
//! see here.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use imgbased_helper::admin::after_merge::refresh_caches;
use imgbased_helper::admin::{labels, packages};
use imgbased_helper::sys::mounts::make_private;
use imgbased_helper::sys::sandbox;
use imgbased_helper::sys::transaction::Writer;
use imgbased_helper::tree::Dir;

/// The attribute with the label of a file, as `SELinux` keeps it.
const LABEL: &str = "security.selinux";

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let word = args.next();
    let result = match word.as_ref().and_then(|word| word.to_str()) {
        Some(sandbox::SANDBOX) => sandbox::watch(args),
        Some(sandbox::INIT) => sandbox::enter(args).map(|never| match never {}),
        _ => caches_are_refreshed().map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// A root with a shell, xargs and these as its ldconfig, and with what systemd leaves.
fn root(ldconfig: Option<&str>) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    let script = "cd \"$0\"; mkdir -p bin dev etc proc run sbin tmp usr/bin usr/sbin var; \
        touch etc/.updated var/.updated var/other; cp /bin/sh bin; cp /usr/bin/xargs usr/bin; \
        ldd /bin/sh /usr/bin/xargs | grep -o '/[^ ]*[^ :]' | while read -r library; do \
        mkdir -p \"./${library%/*}\"; cp -L \"$library\" \"./$library\"; done";
    sh(script, root.path())?;
    if let Some(text) = ldconfig {
        program(root.path(), "sbin/ldconfig", text)?;
    }
    Ok(root)
}

/// Puts a program there that is a line of shell.
fn program(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    sh("chmod 755 \"$0\"", &path)
}

fn sh(script: &str, argument: &Path) -> Result<()> {
    let mut shell = Command::new("sh");
    let status = shell.args(["-e", "-c", script]).arg(argument).status();
    let status = status.context("no shell")?;
    ensure!(status.success(), "{script}: {status}");
    Ok(())
}

fn caches_are_refreshed() -> Result<()> {
    // What is mounted is seen by this process alone, and so is what it puts into /run.
    if make_private().is_err() || sh("mount -t tmpfs tmpfs \"$0\"", Path::new("/run")).is_err() {
        return Ok(());
    }
    for (ldconfig, cache) in [
        (None, None),
        (Some("echo new >/etc/ld.so.cache"), Some("new\n")),
        // What is said of it is a warning.
        (Some("echo half >/etc/ld.so.cache; exit 3"), Some("half\n")),
        (Some("echo out >/dev/out"), None),
    ] {
        let root = root(ldconfig)?;
        let refresh = |dry_run| {
            let writer = Writer::new("test", Duration::ZERO, dry_run)?;
            writer.transaction(|tx| refresh_caches(tx, root.path()))
        };
        refresh(true)?;
        for path in ["etc/.updated", "var/.updated", "var/other"] {
            ensure!(root.path().join(path).exists(), "{path}");
        }
        ensure!(!root.path().join("etc/ld.so.cache").exists());
        refresh(false)?;
        let found = fs::read_to_string(root.path().join("etc/ld.so.cache")).ok();
        ensure!(found.as_deref() == cache, "{ldconfig:?}: {found:?}");
        for (path, is_left) in [
            ("etc/.updated", false),
            ("var/.updated", false),
            ("var/other", true),
        ] {
            ensure!(root.path().join(path).exists() == is_left, "{path}");
        }
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        ensure!(!mounts.contains("caches"), "{mounts}");
    }
    trusted_authorities_are_those_of_the_host()?;
    policies_are_made_with_what_the_host_has_changed()?;
    the_policy_of_cryptography_is_made_of_that_of_the_image()?;
    packages_of_rpm_are_told_by_each_root()?;
    what_is_put_there_is_labelled()
}

/// Where one root does not tell, nothing is said of any.
fn packages_of_rpm_are_told_by_each_root() -> Result<()> {
    let roots = [root(None)?, root(None)?, root(None)?];
    for (root, names) in roots.iter().zip(["bash", "bash htop", "bash"]) {
        fs::create_dir_all(root.path().join("var/lib/rpm"))?;
        let list = format!("for name in {names}; do printf '%s.x86_64\\t5-1\\n' $name; done");
        program(root.path(), "usr/bin/rpm", &list)?;
    }
    let paths = [&roots[0], &roots[1], &roots[2]].map(tempfile::TempDir::path);
    let found = || {
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| packages::of_each(tx, paths))
    };
    let names = found()?.map(|packages| packages.into_keys().collect::<Vec<_>>().join(" "));
    let wanted = ["bash.x86_64", "bash.x86_64 htop.x86_64", "bash.x86_64"];
    ensure!(names == wanted, "{names:?}");
    program(paths[2], "usr/bin/rpm", "echo broken >&2; exit 1")?;
    ensure!(found()?.iter().all(BTreeMap::is_empty));
    Ok(())
}

/// The label of a path, if it has one.
fn label(root: &Path, path: &str) -> Result<Option<String>> {
    let node = Dir::root(root)?.resolve(Path::new(path))?;
    let node = node.with_context(|| path.to_owned())?;
    let label = node.xattrs()?.remove(OsStr::new(LABEL));
    Ok(label.map(String::from_utf8).transpose()?)
}

fn give_label(root: &Path, path: &str, label: &str) -> Result<()> {
    let dir = Dir::root(root)?;
    let mut meta = dir.node(path.as_ref())?.meta()?;
    meta.xattrs
        .insert(LABEL.into(), label.as_bytes().to_owned());
    Ok(dir.set_meta(path.as_ref(), &meta, None)?)
}

/// What matchpathcon says of paths, in a policy of two types.
const POLICY: &str = "for path; do case $path in -*) ;; /etc/none*) echo '<<none>>' ;; \
    /etc/*) echo s:o:etc_t:s0 ;; *) echo s:o:other_t:s0 ;; esac; done";

fn what_is_put_there_is_labelled() -> Result<()> {
    for (config, tool, is_labelled) in [
        ("SELINUX=enforcing\nSELINUXTYPE=targeted\n", POLICY, true),
        ("SELINUX=disabled\nSELINUXTYPE=targeted\n", POLICY, false),
        ("SELINUXTYPE=other\n", POLICY, false),
        // What it says is a warning.
        ("SELINUXTYPE=targeted\n", "echo s:o:etc_t:s0; exit 1", false),
        ("SELINUXTYPE=targeted\n", "echo s:o:etc_t:s0", false),
    ] {
        let root = root(None)?;
        let root = root.path();
        let policy = root.join("etc/selinux/targeted/contexts/files");
        fs::create_dir_all(&policy)?;
        fs::write(policy.join("file_contexts"), "")?;
        fs::write(root.join("etc/selinux/config"), config)?;
        program(root, "usr/sbin/matchpathcon", tool)?;
        fs::create_dir(root.join("own"))?;
        give_label(root, "own", "s:o:own_t:s0\0")?;
        if label(root, "own")?.is_none() {
            // Nobody here may give a file a label.
            return Ok(());
        }
        thread::sleep(Duration::from_millis(100));
        let since = labels::now();
        give_label(root, "own", "s:o:mine_t:s0\0")?;
        for path in ["etc/new", "etc/none", "etc/two\nlines"] {
            fs::write(root.join(path), "")?;
        }
        symlink("new", root.join("etc/link"))?;
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| labels::set(tx, root, since))?;
        for (path, wanted) in [
            ("etc/new", Some("s:o:etc_t:s0\0")),
            ("etc/two\nlines", Some("s:o:etc_t:s0\0")),
            ("etc/none", None),
            // It was there before.
            ("etc/.updated", None),
        ] {
            let wanted = wanted.filter(|_| is_labelled);
            let found = label(root, path)?;
            ensure!(found.as_deref() == wanted, "{config} {path}: {found:?}");
        }
        // Here no policy says whose it was.
        let found = label(root, "own")?;
        ensure!(found.as_deref() == Some("s:o:mine_t:s0\0"), "{found:?}");
    }
    Ok(())
}

/// The program that lists them runs where the host has something of its own to say.
fn trusted_authorities_are_those_of_the_host() -> Result<()> {
    let debian = "usr/sbin/update-ca-certificates";
    let fedora = "usr/bin/update-ca-trust";
    for (own, program, is_run) in [
        ("usr/local/share/ca-certificates/own/ca.crt", debian, true),
        ("usr/local/share/ca-certificates/README", debian, false),
        ("etc/ca-certificates.conf", debian, true),
        ("etc/ssl/certs/own.pem", debian, true),
        ("usr/local/share/ca-certificates/link.crt->", debian, true),
        ("etc/ssl/certs/link.pem->", debian, false),
        ("etc/ssl/certs/ca-certificates.crt", debian, false),
        ("etc/ssl/certs/1a2b3c4d.0", debian, false),
        ("etc/pki/ca-trust/source/anchors/ca.pem", fedora, true),
        ("etc/pki/ca-trust/source/anchors/corp", fedora, true),
        ("etc/pki/ca-trust/source/README", fedora, false),
        (
            "etc/pki/ca-trust/source/ca-bundle.legacy.crt",
            fedora,
            false,
        ),
        ("usr/local/share/ca-certificates/ca.crt", fedora, false),
    ] {
        let root = root(None)?;
        for (path, text) in [
            (own.trim_end_matches("->"), "!mozilla/x.crt\n"),
            (program, "#!/bin/sh\necho $* >/etc/list\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().context("it has a name")?)?;
            fs::write(&path, text)?;
            sh("chmod 755 \"$0\"", &path)?;
        }
        if let Some(own) = own.strip_suffix("->") {
            let path = root.path().join(own);
            fs::remove_file(&path)?;
            symlink("/etc/other", path)?;
        }
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| refresh_caches(tx, root.path()))?;
        let found = fs::read_to_string(root.path().join("etc/list")).ok();
        let words = if program == debian {
            "--fresh\n"
        } else {
            "extract\n"
        };
        let wanted = is_run.then_some(words);
        ensure!(found.as_deref() == wanted, "{own} {program}: {found:?}");
    }
    Ok(())
}

/// Where the host has chosen more than one of the image's policies, what was made of them is in files.
fn the_policy_of_cryptography_is_made_of_that_of_the_image() -> Result<()> {
    let back_end = Path::new("etc/crypto-policies/back-ends/openssl.config");
    for (is_file, words) in [(true, Some("--no-reload\n")), (false, None)] {
        let root = root(None)?;
        let path = root.path().join(back_end);
        fs::create_dir_all(path.parent().context("it has a name")?)?;
        if is_file {
            fs::write(&path, "")?;
        } else {
            symlink("/usr/share/crypto-policies/DEFAULT/openssl.txt", &path)?;
        }
        program(
            root.path(),
            "usr/bin/update-crypto-policies",
            "echo $* >/etc/list",
        )?;
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| refresh_caches(tx, root.path()))?;
        let found = fs::read_to_string(root.path().join("etc/list")).ok();
        ensure!(found.as_deref() == words, "{is_file}: {found:?}");
    }
    Ok(())
}

/// What was changed by semanage(8) and the like is in the policy of the image then.
fn policies_are_made_with_what_the_host_has_changed() -> Result<()> {
    let store = "var/lib/selinux/targeted/active";
    for (own, words) in [
        (Some("ports.local"), Some("-s targeted -N -B\n")),
        (Some("modules/400/mine/cil"), Some("-s targeted -N -B\n")),
        (Some("modules/disabled/base"), Some("-s targeted -N -B\n")),
        (Some("disable_dontaudit"), Some("-s targeted -N -B\n")),
        (Some("modules/100/base/cil"), None),
        (Some("modules/200/container/cil"), None),
        (None, None),
    ] {
        let root = root(None)?;
        if let Some(own) = own {
            let path = root.path().join(store).join(own);
            fs::create_dir_all(path.parent().context("it has a name")?)?;
            fs::write(&path, "")?;
        }
        program(root.path(), "usr/sbin/semodule", "echo $* >/etc/list")?;
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| refresh_caches(tx, root.path()))?;
        let found = fs::read_to_string(root.path().join("etc/list")).ok();
        ensure!(found.as_deref() == words, "{own:?}: {found:?}");
    }
    Ok(())
}
