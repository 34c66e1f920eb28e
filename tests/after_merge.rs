//! What is done to a new layer after a merge, with a directory in its place. Programs of it are run by this program
//! itself, which is what the helper is elsewhere. Only root can do that; where it is not allowed, there is nothing to
//! see here.

use std::env;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use imgbased_helper::admin::after_merge::refresh_caches;
use imgbased_helper::sys::mounts::make_private;
use imgbased_helper::sys::sandbox;
use imgbased_helper::sys::transaction::Writer;

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

/// A root with a shell and these as its ldconfig, and with what systemd leaves.
fn root(ldconfig: Option<&str>) -> Result<tempfile::TempDir> {
    let root = tempfile::tempdir()?;
    let script = "cd \"$0\"; mkdir bin dev etc proc run sbin tmp var; touch etc/.updated var/.updated var/other; \
        cp /bin/sh bin; ldd /bin/sh | grep -o '/[^ ]*' | while read -r library; do \
        mkdir -p \"./${library%/*}\"; cp -L \"$library\" \"./$library\"; done";
    sh(script, root.path())?;
    if let Some(text) = ldconfig {
        let path = root.path().join("sbin/ldconfig");
        fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
        sh("chmod 755 \"$0\"", &path)?;
    }
    Ok(root)
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
    trusted_authorities_are_those_of_the_host()
}

/// The program that lists them runs where the host has something of its own to say.
fn trusted_authorities_are_those_of_the_host() -> Result<()> {
    let debian = "usr/sbin/update-ca-certificates";
    let fedora = "usr/bin/update-ca-trust";
    for (own, program, is_run) in [
        ("usr/local/share/ca-certificates/own/ca.crt", debian, true),
        ("usr/local/share/ca-certificates/README", debian, false),
        ("etc/ca-certificates.conf", debian, true),
        ("etc/ssl/certs/own.pem", debian, false),
        ("etc/pki/ca-trust/source/anchors/ca.pem", fedora, true),
        (
            "etc/pki/ca-trust/source/ca-bundle.legacy.crt",
            fedora,
            false,
        ),
        ("usr/local/share/ca-certificates/ca.crt", fedora, false),
    ] {
        let root = root(None)?;
        for (path, text) in [
            (own, "!mozilla/x.crt\n"),
            (program, "#!/bin/sh\necho made >/etc/list\n"),
        ] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().context("it has a name")?)?;
            fs::write(&path, text)?;
            sh("chmod 755 \"$0\"", &path)?;
        }
        let writer = Writer::new("test", Duration::ZERO, false)?;
        writer.transaction(|tx| refresh_caches(tx, root.path()))?;
        let found = root.path().join("etc/list").exists();
        ensure!(found == is_run, "{own} {program}: {found}");
    }
    Ok(())
}
