use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;

use super::*;
use crate::sys::transaction::cut_before;

/// A root tree with these files, by their paths and contents.
fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for path in ["usr", "etc"] {
        fs::create_dir_all(dir.path().join(path)).unwrap();
    }
    dir
}

fn prepare(dir: &Path, name: Option<&str>, keep: &[&str]) -> Result<Vec<String>> {
    let prepare = Prepare {
        dir: dir.to_owned(),
        name: name.map(|name| name.parse().unwrap()),
        keep: keep.iter().map(|keep| (*keep).to_owned()).collect(),
        container: false,
    };
    let root = Dir::root(dir)?;
    check_tree(&prepare, &root)?;
    let top = dir.canonicalize()?;
    let changes = Planner::new(&root, &top, &prepare.keep)?.plan(prepare.name.as_ref())?;
    let writer = Writer::new("test", LOCK_WAIT, false)?;
    let tree = Tree { root, top };
    writer.transaction(|tx| changes.iter().try_for_each(|change| tree.apply(tx, change)))?;
    Ok(changes.iter().map(ToString::to_string).collect())
}

/// The paths of all files and links below a directory, with their contents.
fn listing(dir: &Path) -> String {
    let list = "find . ! -type d -printf '%P %l ' -type f -exec cat {} ';' -printf '\\n' -o ! -type d -printf '\\n' | sort";
    let output = Command::new("sh")
        .args(["-c", list])
        .current_dir(dir)
        .output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn each_trace_of_a_host_goes_and_what_is_of_the_image_stays() {
    for (path, goes) in [
        ("etc/ssh/ssh_host_rsa_key", true),
        ("etc/ssh/ssh_host_rsa_key.pub", true),
        ("etc/ssh/ssh_host_ed25519_key-cert.pub", true),
        ("etc/ssh/sshd_config", false),
        ("etc/ssh/ssh_host_list", false),
        ("etc/hostname", true),
        ("etc/hostname.example", false),
        ("etc/resolv.conf", true),
        (
            "etc/NetworkManager/system-connections/lan.nmconnection",
            true,
        ),
        (
            "usr/lib/NetworkManager/system-connections/lan.nmconnection",
            false,
        ),
        ("etc/lvm/backup/HostVG", true),
        ("etc/lvm/lvm.conf", false),
        ("root/.bash_history", true),
        ("home/anna/.python_history", true),
        ("home/anna/.bashrc", false),
        ("var/lib/dhcp/dhclient.eth0.leases", true),
        ("var/lib/dhcpcd/eth0.lease", true),
        ("var/lib/NetworkManager/internal-1-eth0.lease", true),
        ("var/lib/NetworkManager/NetworkManager-intern.conf", false),
        ("var/lib/systemd/random-seed", true),
        ("var/lib/systemd/credential.secret", true),
        ("var/lib/systemd/catalog/database", false),
        ("var/lib/dbus/machine-id", true),
        ("var/log/journal/0123/system.journal", true),
        ("var/log/syslog.1", true),
        ("var/log/apt/history.log.3.gz", true),
        ("var/log/app/notes.old", true),
    ] {
        let dir = tree(&[(path, "x"), ("etc/fstab", "LABEL=boot /boot auto\n")]);
        let done = prepare(dir.path(), None, &[]).unwrap();
        assert_eq!(!dir.path().join(path).exists(), goes, "{path}: {done:?}");
        assert_eq!(
            done.iter().any(|line| line.ends_with(": removed")),
            goes,
            "{done:?}"
        );
    }
}

#[test]
fn a_tree_becomes_an_image_and_stays_one() {
    let dir = tree(&[
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        (
            "usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so",
            "",
        ),
        (
            "etc/kernel/cmdline",
            "root=UUID=1 console=ttyS0 resume=UUID=2 quiet\n",
        ),
        (
            "etc/fstab",
            "UUID=1 / ext4 defaults 0 1\nUUID=2 none swap\ntmpfs /tmp tmpfs\n",
        ),
        ("usr/lib/os-release", "ID=debian\nVERSION_ID=13\n"),
        ("var/lib/dpkg/status", "Package: x\n"),
        ("var/lib/apt/extended_states", ""),
        ("var/lib/systemd/deb-systemd-helper-enabled/x.dsh-also", ""),
        ("var/log/dpkg.log", "installed\n"),
        ("var/log/empty", ""),
    ]);
    let top = dir.path();
    symlink("../usr/lib/os-release", top.join("etc/os-release")).unwrap();
    fs::set_permissions(
        top.join("var/log/dpkg.log"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    let done = prepare(top, Some("myhost-1.0-1"), &[]).unwrap();
    let read = |path: &str| fs::read_to_string(top.join(path)).unwrap();
    for (path, wanted) in [
        ("etc/machine-id", "uninitialized\n"),
        ("etc/kernel/cmdline", "console=ttyS0 quiet\n"),
        (
            "etc/fstab",
            "tmpfs /tmp tmpfs\nLABEL=boot /boot auto defaults,nofail 0 2\n",
        ),
        (
            "etc/os-release",
            "ID=debian\nVERSION_ID=13\nIMAGE_ID=myhost\nIMAGE_VERSION=1.0-1\n",
        ),
        ("usr/share/imgbase/build/meta/nvr", "myhost-1.0-1\n"),
        ("usr/lib/sysimage/dpkg/status", "Package: x\n"),
        ("var/lib/dpkg/status", "Package: x\n"),
        ("var/log/dpkg.log", ""),
    ] {
        assert_eq!(read(path), wanted, "{path}: {done:?}");
    }
    assert!(top.join("etc/os-release").is_symlink());
    for (path, target) in [
        ("var/lib/dpkg", "../../usr/lib/sysimage/dpkg"),
        ("var/lib/apt", "../../usr/lib/sysimage/apt"),
        (
            "var/lib/systemd/deb-systemd-helper-enabled",
            "../../../usr/lib/sysimage/systemd/deb-systemd-helper-enabled",
        ),
    ] {
        let link = fs::read_link(top.join(path)).unwrap();
        assert_eq!(link, Path::new(target), "{path}");
        assert!(top.join(path).is_dir(), "{path}");
    }
    let log = fs::metadata(top.join("var/log/dpkg.log")).unwrap();
    assert_eq!(log.mode() & 0o7777, 0o640);
    for (path, mode) in MOUNT_POINTS.iter().filter(|(path, _)| *path != "var") {
        let there = fs::metadata(top.join(path)).unwrap();
        assert_eq!(there.mode() & 0o7777, *mode, "{path}");
    }
    let before = listing(top);
    assert_eq!(prepare(top, Some("myhost-1.0-1"), &[]).unwrap(), [""; 0]);
    assert_eq!(listing(top), before);
}

#[test]
fn links_lead_to_what_is_in_the_tree_and_never_out_of_it() {
    let outside = tree(&[
        ("host/ssh_host_rsa_key", "key"),
        ("host/fstab", "UUID=1 / ext4\n"),
        ("host/dpkg/status", "status"),
        ("host/messages", "log"),
    ]);
    let before = listing(outside.path());
    let host = outside.path().join("host");
    let dir = tree(&[("usr/share/fstab", "UUID=1 / ext4\n"), ("var/lib/x", "")]);
    let top = dir.path();
    for (link, target) in [
        ("etc/ssh", host.as_path()),
        ("etc/kernel", &host),
        ("etc/fstab", Path::new("/usr/share/fstab")),
        ("etc/machine-id", &host.join("messages")),
        ("var/lib/dpkg", &host.join("dpkg")),
        ("var/log", &host),
        ("usr/lib", &host),
    ] {
        symlink(target, top.join(link)).unwrap();
    }
    // Where that leads to is not there in the tree.
    let error = prepare(top, Some("x-1"), &[]).unwrap_err().to_string();
    assert!(error.contains("no /etc/os-release"), "{error}");
    prepare(top, None, &[]).unwrap();
    assert_eq!(listing(outside.path()), before);
    let fstab = fs::read_to_string(top.join("usr/share/fstab")).unwrap();
    assert_eq!(fstab, "LABEL=boot /boot auto defaults,nofail 0 2\n");
    assert!(top.join("etc/fstab").is_symlink());
}

#[test]
fn a_file_with_other_names_keeps_its_content_there() {
    let dir = tree(&[
        ("usr/data", "data"),
        ("etc/kernel/cmdline", "root=/dev/x\n"),
        ("var/log/x", ""),
    ]);
    let top = dir.path();
    fs::hard_link(top.join("usr/data"), top.join("var/log/data")).unwrap();
    fs::hard_link(top.join("etc/kernel/cmdline"), top.join("usr/cmdline")).unwrap();
    prepare(top, None, &[]).unwrap();
    assert_eq!(fs::read_to_string(top.join("usr/data")).unwrap(), "data");
    assert!(!top.join("var/log/data").exists());
    assert_eq!(
        fs::read_to_string(top.join("usr/cmdline")).unwrap(),
        "root=/dev/x\n"
    );
    assert_eq!(
        fs::read_to_string(top.join("etc/kernel/cmdline")).unwrap(),
        "\n"
    );
}

#[test]
fn what_a_person_keeps_stays() {
    let dir = tree(&[
        ("etc/hostname", "appliance\n"),
        ("etc/machine-id", "0123\n"),
        ("var/log/a/b", "log"),
        ("var/lib/dpkg/status", ""),
        ("root/.bash_history", "ls\n"),
    ]);
    let keep = [
        "/etc/hostname",
        "etc/machine-id",
        "/var/log",
        "/var/lib/dpkg",
        ".bash_*",
    ];
    let done = prepare(dir.path(), None, &keep).unwrap();
    assert!(
        done.iter().all(|line| !line.contains("removed")),
        "{done:?}"
    );
    for path in ["etc/hostname", "root/.bash_history", "var/log/a/b"] {
        let there = fs::metadata(dir.path().join(path)).unwrap();
        assert!(there.len() > 0, "{path}");
    }
    assert_eq!(
        fs::read_to_string(dir.path().join("etc/machine-id")).unwrap(),
        "0123\n"
    );
    assert!(!dir.path().join("var/lib/dpkg").is_symlink());
}

#[test]
fn a_record_that_was_moved_when_it_was_interrupted_gets_its_link() {
    let dir = tree(&[("usr/lib/sysimage/rpm/rpmdb", "x"), ("var/lib/y", "")]);
    let done = prepare(dir.path(), None, &[]).unwrap();
    assert!(
        done.iter()
            .any(|line| line.starts_with("/var/lib/rpm: leads to")),
        "{done:?}"
    );
    assert!(dir.path().join("var/lib/rpm/rpmdb").is_file());
    // Which of two counts, nobody can know.
    let dir = tree(&[
        ("usr/lib/sysimage/rpm/rpmdb", "x"),
        ("var/lib/rpm/rpmdb", "y"),
    ]);
    let before = listing(dir.path());
    let error = prepare(dir.path(), None, &[]).unwrap_err().to_string();
    assert!(error.contains("both there"), "{error}");
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn a_record_that_cannot_be_moved_is_copied() {
    let dir = tree(&[
        ("var/lib/dpkg/info/x.list", "/usr\n"),
        ("usr/lib/sysimage/x", ""),
    ]);
    let dpkg = dir.path().join("var/lib/dpkg");
    fs::set_permissions(&dpkg, fs::Permissions::from_mode(0o750)).unwrap();
    let root = |path: &str| Dir::root(&dir.path().join(path)).unwrap();
    let (from, to) = (root("var/lib"), root("usr/lib/sysimage"));
    let name = OsStr::new("dpkg");
    copied(&from, name, &to, name, &Interrupt::default()).unwrap();
    assert!(!dpkg.exists());
    let made = dir.path().join("usr/lib/sysimage/dpkg");
    assert_eq!(fs::metadata(&made).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(
        fs::read_to_string(made.join("info/x.list")).unwrap(),
        "/usr\n"
    );
}

#[test]
fn what_is_no_tree_and_what_runs_is_refused() {
    let of = |dir: &Path, container| Prepare {
        dir: dir.to_owned(),
        name: None,
        keep: Vec::new(),
        container,
    };
    let refused = |dir: &Path, container| {
        let root = Dir::root(dir).unwrap();
        check_tree(&of(dir, container), &root)
            .unwrap_err()
            .to_string()
    };
    let empty = tempfile::tempdir().unwrap();
    let good = tree(&[]);
    let running = tree(&[("run/systemd/system/x", "")]);
    for (dir, container, text) in [
        (empty.path(), false, "has no /usr or no /etc"),
        (good.path(), true, "leave it away"),
        (running.path(), false, "a system that runs"),
    ] {
        let error = refused(dir, container);
        assert!(error.contains(text), "{error}");
    }
    let own = Path::new("/");
    let error = refused(own, false);
    assert!(error.contains("which would lose"), "{error}");
    // By another name it is the same.
    let link = empty.path().join("link");
    symlink("/", &link).unwrap();
    assert!(refused(&link, false).contains("which would lose"));
}

#[test]
fn no_id_is_written_as_the_systemd_of_the_tree_knows_it() {
    for (text, systemd, wanted) in [
        ("0123\n", Some(257), "uninitialized\n"),
        ("0123\n", Some(247), "uninitialized\n"),
        ("0123\n", Some(246), ""),
        ("0123\n", None, ""),
        ("", Some(257), ""),
        ("\n", Some(257), "\n"),
        ("uninitialized", Some(257), "uninitialized"),
    ] {
        let made = machine_id(text.as_bytes(), systemd);
        assert_eq!(
            String::from_utf8_lossy(&made),
            wanted,
            "{text:?} {systemd:?}"
        );
    }
    for (path, version) in [
        (
            "usr/lib/systemd/libsystemd-shared-252.14-1.fc38.so",
            Some(252),
        ),
        (
            "usr/lib/aarch64-linux-gnu/systemd/libsystemd-shared-257.so",
            Some(257),
        ),
        ("usr/lib/systemd/libsystemd-core-257.so", None),
    ] {
        let dir = tree(&[(path, "")]);
        let found = systemd_version(&Dir::root(dir.path()).unwrap()).unwrap();
        assert_eq!(found, version, "{path}");
    }
}

#[test]
fn an_iscsi_name_is_made_anew_as_the_system_does_it() {
    let name = (
        "etc/iscsi/initiatorname.iscsi",
        "## no\nInitiatorName=iqn.x\n",
    );
    let maker = ("usr/lib/open-iscsi/startup-checks.sh", "");
    let of = |files: &[(&str, &str)]| {
        let dir = tree(files);
        prepare(dir.path(), None, &[]).unwrap();
        fs::read_to_string(dir.path().join(name.0)).ok()
    };
    assert_eq!(of(&[name]), None);
    assert_eq!(of(&[name, maker]).as_deref(), Some("GenerateName=yes\n"));
    let made = (name.0, "# x\nGenerateName=yes\n");
    assert_eq!(of(&[made, maker]).as_deref(), Some(made.1));
}

#[test]
fn what_was_interrupted_is_finished_by_the_next_run() {
    let files = [
        ("etc/machine-id", "0123\n"),
        ("etc/kernel/cmdline", "root=/dev/x quiet\n"),
        ("etc/ssh/ssh_host_rsa_key", ""),
        ("var/lib/dpkg/status", "s"),
        ("var/lib/systemd/deb-systemd-helper-masked/x", ""),
        ("var/log/x", "log"),
    ];
    let whole = tree(&files);
    prepare(whole.path(), None, &[]).unwrap();
    let wanted = listing(whole.path());
    for step in 1.. {
        let dir = tree(&files);
        let root = Dir::root(dir.path()).unwrap();
        let top = dir.path().canonicalize().unwrap();
        let changes = Planner::new(&root, &top, &[]).unwrap().plan(None).unwrap();
        let tree = Tree { root, top };
        let is_cut = cut_before(step, |tx| {
            changes.iter().try_for_each(|change| tree.apply(tx, change))
        });
        let is_cut = is_cut.unwrap();
        prepare(dir.path(), None, &[]).unwrap();
        assert_eq!(listing(dir.path()), wanted, "{step}");
        if !is_cut {
            assert!(step > 8, "{step}");
            break;
        }
    }
}

#[test]
fn a_dry_run_prints_what_a_shell_can_do_instead() {
    let files = [
        ("etc/hostname", "x\n"),
        ("etc/fstab", "UUID=1 / ext4\n"),
        ("var/lib/dpkg/status", "s"),
        ("var/log/x", "log"),
        ("var/log/journal/01/system.journal", ""),
    ];
    let [by_shell, by_us] = [tree(&files), tree(&files)];
    let root = Dir::root(by_shell.path()).unwrap();
    let top = by_shell.path().canonicalize().unwrap();
    let changes = Planner::new(&root, &top, &[]).unwrap().plan(None).unwrap();
    let shell = Tree { root, top };
    let lines: Vec<String> = changes.iter().map(|change| shell.line(change)).collect();
    let script = lines.join("\n");
    let done = Command::new("sh").args(["-ec", &script]).status().unwrap();
    assert!(done.success(), "{script}");
    prepare(by_us.path(), None, &[]).unwrap();
    assert_eq!(listing(by_shell.path()), listing(by_us.path()), "{script}");
}
