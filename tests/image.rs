//! `image prepare`, `image check` and `image pack` by the real binary, on plain directories and on images of them. As
//! root; an image is looked into where one may be mounted.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use imgbased_helper::delivery::oci::layout::{Layout, Platform};
use imgbased_helper::sys::interrupt::Interrupt;
use imgbased_helper::sys::progress::Progress;
use imgbased_helper::tree::Dir;
use imgbased_helper::tree::toc::{self, Build, Entry, Limits, Position};

/// A root as a build leaves it, with what an image must not have.
const TREE: [(&str, &str); 14] = [
    ("boot/vmlinuz-6.1", "kernel"),
    ("boot/vmlinuz-6.2", "kernel"),
    ("etc/fstab", "UUID=1 / ext4\nUUID=2 /srv ext4\n"),
    ("etc/group", "root:x:0:\nweb:x:33:\n"),
    ("etc/kernel/cmdline", "root=/dev/sda1 quiet\n"),
    ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
    (
        "etc/os-release",
        "ID=debian\nPRETTY_NAME=\"Debian 13\"\nVERSION_ID=13\n",
    ),
    (
        "etc/passwd",
        "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/false\n",
    ),
    ("etc/shadow", "root:*:::::::\n"),
    ("etc/ssh/ssh_host_rsa_key", "secret"),
    ("usr/bin/imgbased-helper", ""),
    ("usr/lib/modules/6.1/kernel/x.ko", ""),
    ("var/lib/dpkg/status", ""),
    ("var/log/dpkg.log", "installed\n"),
];
/// What is found there.
const FOUND: [&str; 11] = [
    "version",
    "initramfs",
    "kernel-pair",
    "initramfs",
    "host-keys",
    "machine-id",
    "kernel-options",
    "fstab",
    "boot",
    "packages",
    "accounts",
];
/// What is still found when it is prepared, which needs other programs.
const LEFT: [&str; 4] = ["initramfs", "kernel-pair", "initramfs", "accounts"];

fn make(root: &Path) {
    for (path, content) in TREE {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }
}

fn helper(args: &[&str]) -> Output {
    let mut helper = Command::new(env!("CARGO_BIN_EXE_imgbased-helper"));
    helper.args(args).output().expect("the binary runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn shell(script: &str, dir: &Path) -> bool {
    let mut shell = Command::new("sh");
    let done = shell.args(["-ec", script]).current_dir(dir).status();
    done.expect("a shell").success()
}

/// What `image check` finds: the kinds, and all of its JSON.
fn found(args: &[&str]) -> (Vec<String>, serde_json::Value) {
    let output = helper(&[&["--json", "image", "check"], args].concat());
    let status = output.status.code();
    assert!(
        matches!(status, Some(0 | 3)),
        "{args:?}: {status:?} {}",
        text(&output.stderr)
    );
    let data: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let findings = data["findings"].as_array().expect("a list");
    let ids = findings
        .iter()
        .map(|f| f["id"].as_str().expect("a name").to_owned());
    let ids: Vec<String> = ids.collect();
    assert_eq!(status == Some(3), !ids.is_empty(), "{data}");
    (ids, data)
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().expect("id(1)");
    text(&id.stdout).trim() == "0"
}

#[test]
fn a_tree_is_checked_prepared_and_checked_again() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    make(dir.path());
    let root = dir.path().to_str().expect("a plain path");
    let (ids, data) = found(&[root]);
    assert_eq!(ids, FOUND, "{data}");
    assert_eq!(data["version"], 1);
    assert_eq!(data["name"], "Debian 13");
    assert_eq!(data["image_version"], "13");
    assert_eq!(data["kernels"][1], "6.2");

    let output = helper(&["image", "check", root]);
    let lines = text(&output.stdout);
    assert_eq!(lines.lines().count(), 1 + FOUND.len(), "{lines}");
    let first = format!("{root}: Debian 13, version 13, Linux 6.1, 6.2");
    assert!(lines.starts_with(&first), "{lines}");

    let output = helper(&["-n", "image", "prepare", root, "--name", "myhost-2-1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let line = format!("rm {root}/etc/ssh/ssh_host_rsa_key\n");
    assert!(
        text(&output.stdout).contains(&line),
        "{}",
        text(&output.stdout)
    );
    assert_eq!(found(&[root]).0, FOUND);

    let output = helper(&["image", "prepare", root, "--name", "myhost-2-1"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    for line in [
        "/etc/ssh/ssh_host_rsa_key: removed\n",
        "/etc/fstab: written\n",
        "/var/log/dpkg.log: emptied\n",
        "/var/lib/dpkg: moved to /usr/lib/sysimage/dpkg\n",
    ] {
        assert!(lines.contains(line), "{line}: {lines}");
    }
    let (ids, data) = found(&[root]);
    assert_eq!(ids, LEFT, "{data}");
    assert_eq!(data["image_version"], "2-1");
    let output = helper(&["image", "prepare", root]);
    assert_eq!(
        (output.status.code(), text(&output.stdout)),
        (Some(0), String::new())
    );
}

#[test]
fn numbers_are_compared_with_those_of_an_older_image() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let [old, new] = ["old", "new"].map(|name| dir.path().join(name));
    make(&old);
    make(&new);
    let group = TREE[3].1.replace("33", "34");
    fs::write(new.join("etc/group"), group).expect("a file");
    let [old, new] = [&old, &new].map(|root| root.to_str().expect("a plain path"));
    let (ids, data) = found(&[new, "--against", old]);
    assert_eq!(ids.last().map(String::as_str), Some("ids"), "{data}");
    assert!(
        data.to_string().contains("group web is 34, was 33"),
        "{data}"
    );
    assert_eq!(found(&[new, "--against", new]).0, FOUND);
}

#[test]
fn an_image_of_each_kind_is_looked_into_and_stays_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let tree = dir.path().join("tree");
    make(&tree);
    let images = "mke2fs -q -t ext4 -d tree plain.img 16M; gzip -k plain.img; tar -C tree -czf tree.tar.gz .";
    assert!(shell(images, dir.path()));
    shell(
        "! command -v mksquashfs || mksquashfs tree root.squashfs -quiet",
        dir.path(),
    );
    let may_mount = "unshare --mount sh -ec 'mkdir at; mount -o loop,ro plain.img at' 2>/dev/null";
    if !is_root() || !shell(may_mount, dir.path()) {
        return;
    }
    for name in ["plain.img", "plain.img.gz", "tree.tar.gz", "root.squashfs"] {
        let path = dir.path().join(name);
        let Ok(before) = fs::read(&path) else {
            continue;
        };
        let (ids, data) = found(&[path.to_str().expect("a plain path")]);
        assert_eq!(ids, FOUND, "{name}: {data}");
        assert!(data["size"].as_u64() > Some(0), "{data}");
        assert!(fs::read(&path).expect("a file") == before, "{name}");
    }
    // One that has no room left.
    let full = "dd if=/dev/urandom of=tree/usr/data bs=1k count=7850 status=none; \
        mke2fs -q -t ext4 -O ^has_journal -m 0 -b 1024 -N 64 -d tree full.img 8M";
    assert!(shell(full, dir.path()));
    let full = dir.path().join("full.img");
    let (ids, data) = found(&[full.to_str().expect("a plain path")]);
    let is_full = ids.last().map(String::as_str) == Some("size");
    assert!(is_full, "{data}");
}

/// All chunks of these files, decompressed, from a layer in a file.
fn chunks(layer: &Path, entries: &[Entry], files: &[usize]) -> Vec<u8> {
    let layer = fs::read(layer).expect("a layer");
    let mut frames = Vec::new();
    for place in toc::places(entries, files) {
        let at = |place: u64| usize::try_from(place).expect("a small layer");
        frames.extend_from_slice(&layer[at(place.from)..at(place.end)]);
    }
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("frames.zst"), frames).expect("a file");
    assert!(shell("zstd -dq frames.zst", dir.path()));
    fs::read(dir.path().join("frames")).expect("a file")
}

#[test]
fn a_packed_tree_can_be_made_again_from_its_parts() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("tree")).expect("a directory");
    make(&at("tree"));
    let more = r"
        seq 300000 >usr/numbers
        head -c 300000 /dev/zero >usr/zeros; echo end >>usr/zeros
        head -c 200000 /dev/urandom >usr/random
        ln usr/random usr/same
        ln -s ../usr/random etc/link
        mkfifo usr/pipe
        mknod usr/null c 1 3
        : >usr/empty
        chmod 4755 usr/numbers; chown 3:4 usr/random
        touch -d '2001-01-01 12:00:00.123456789' usr/numbers usr";
    assert!(shell(more, &at("tree")));
    let path = |name: &str| at(name).to_str().expect("a plain path").to_owned();
    let output = helper(&["image", "pack", &path("tree"), &path("packed")]);
    let said = text(&output.stdout) + &text(&output.stderr);
    if said.contains("1.15 or newer is needed") {
        // That of Debian 12.
        assert!(!at("packed").exists());
        return;
    }
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.contains("is packed; sign SHA256SUMS"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(shell("sha256sum --check --quiet SHA256SUMS", &at("packed")));
    assert!(shell(
        "test \"$(ls)\" = \"$(printf '%s\n' SHA256SUMS blobs index.json oci-layout)\"",
        &at("packed")
    ));

    let layout = Layout::open(&at("packed")).expect("a layout");
    let image = layout.image(None, &Platform::host()).expect("an image");
    let layer = &image.manifest.layers[0];
    let annotation = |key: &str| layer.annotation(key).map(str::to_owned);
    let position = Position::find(&annotation, layer.size).expect("a place");
    let position = position.expect("a table");
    let blob = layout.blob(&layer.digest);
    let whole = fs::read(&blob).expect("a layer");
    let packed = usize::try_from(position.from).expect("a small layer")
        ..usize::try_from(position.end).expect("a small layer");
    let table = position.text(&whole[packed]).expect("a text");
    let limits = Limits {
        layer: 0,
        end: position.from,
    };
    let entries = toc::parse(&table, limits).expect("a table");
    let entries = toc::merged(vec![entries]).expect("a tree");
    let plan = toc::Plan::new(&entries, &mut []).expect("a plan");
    let files = plan.in_layers(&entries);
    let parts = chunks(&blob, &entries, &files);
    fs::create_dir(at("made")).expect("a directory");
    let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
    let to = Dir::root(&at("made")).expect("a directory");
    let mut build = Build::new(&entries, &plan, &to, 1 << 30, &interrupt, &mut progress);
    assert!(build.names(&mut |_, _| Ok(None)).expect("names").is_empty());
    build.contents(&files, &mut &parts[..]).expect("contents");
    build.end().expect("an end");
    let list = "find . -printf '%P %y %m %U:%G %T@ %l %n\\n' | sort";
    let same = format!(
        "test \"$(cd tree && {list})\" = \"$(cd made && {list})\" && cd tree && \
         ! find . -type f ! -exec cmp -s {{}} ../made/{{}} \\; -print | grep ."
    );
    assert!(shell(&same, dir.path()));

    for (out, why) in [
        ("packed", "is there already"),
        ("tree/packed", "would be packed too"),
        ("none/packed", "nothing can be made"),
        ("pa:cked", "skopeo takes no directory"),
    ] {
        let output = helper(&["image", "pack", &path("tree"), &path(out)]);
        assert_eq!(output.status.code(), Some(1), "{out}");
        let said = text(&output.stderr);
        assert!(said.contains(why), "{out}: {said}");
    }
    let output = helper(&["-n", "image", "pack", &path("tree"), &path("dry")]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(!at("dry").exists());
    assert!(
        shell(&text(&output.stdout), dir.path()),
        "{}",
        text(&output.stdout)
    );
    assert!(shell("sha256sum --check --quiet SHA256SUMS", &at("dry")));
}
