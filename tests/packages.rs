//! What goes into the packages, and what the scripts of the .deb do in a tree where no system runs. No program of ours
//! is built for that: the .deb here has all files of the list in Cargo.toml but those that a build makes. As root.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

const MANIFEST: &str = include_str!("../Cargo.toml");
const CHANGELOG: &str = include_str!("../ci/packaging/changelog");
const PRESET: &str = include_str!("../dracut-module/imgbased.preset");
const SPEC: &str = include_str!("../ci/packaging/imgbased-helper.spec");

/// What is in these directories is for hosts.
const FOR_HOSTS: [&str; 2] = ["dracut-module", "grub"];

const CHECK_LINK: &str = "etc/systemd/system/timers.target.wants/imgbased-update-check.timer";
const APPLY_LINK: &str = "etc/systemd/system/timers.target.wants/imgbased-update-apply.timer";

/// A line of the list: which files go where, and with which mode.
struct Asset {
    source: &'static str,
    destination: &'static str,
    mode: &'static str,
}

fn assets() -> Vec<Asset> {
    let (_, list) = MANIFEST.split_once("\nassets = [\n").expect("a list");
    let lines = list.lines().take_while(|line| *line != "]");
    lines
        .filter_map(|line| {
            let words: Vec<&str> = line.trim().strip_prefix("[\"")?.split('"').collect();
            Some(Asset {
                source: words[0],
                destination: words[2],
                mode: words[4],
            })
        })
        .collect()
}

fn conf_files() -> Vec<&'static str> {
    let (_, list) = MANIFEST.split_once("\nconf-files = [\n").expect("a list");
    let lines = list.lines().take_while(|line| *line != "]");
    lines.filter_map(|line| line.split('"').nth(1)).collect()
}

fn project() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files in a directory of the project, as the list names them.
fn files_in(directory: &str) -> Vec<String> {
    let entries = fs::read_dir(project().join(directory)).expect("a directory");
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.expect("an entry");
        let path = format!("{directory}/{}", entry.file_name().display());
        if entry.path().is_dir() {
            files.extend(files_in(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// Where the files of a line of the list are, and where each of them goes, without the first slash.
fn placed(asset: &Asset) -> Vec<(PathBuf, String)> {
    let pattern = project().join(asset.source);
    let found = glob::glob(pattern.to_str().expect("a plain path")).expect("a pattern");
    found
        .map(|path| {
            let path = path.expect("a path");
            let name = path.file_name().expect("a name").display().to_string();
            let place = match asset.destination.strip_suffix('/') {
                Some(directory) => format!("{directory}/{name}"),
                None => asset.destination.into(),
            };
            (path, place)
        })
        .collect()
}

#[test]
fn each_file_for_hosts_is_in_the_list_and_each_line_of_the_list_has_one() {
    let assets: Vec<Asset> = assets();
    for file in FOR_HOSTS.into_iter().flat_map(files_in) {
        let path = project().join(&file);
        let is_listed = |asset: &Asset| placed(asset).iter().any(|(found, _)| *found == path);
        assert!(assets.iter().any(is_listed), "{file} is in no package");
    }
    for asset in assets {
        let is_built = asset.source.starts_with("target/");
        let source = asset.source;
        assert!(is_built || !placed(&asset).is_empty(), "no file: {source}");
    }
}

#[test]
fn what_is_below_etc_is_configuration_that_stays_as_it_was_edited() {
    let mut placed: Vec<String> = assets()
        .iter()
        .flat_map(placed)
        .map(|(_, place)| format!("/{place}"))
        .filter(|place| place.starts_with("/etc/"))
        .collect();
    placed.sort();
    assert_eq!(placed, conf_files());
}

#[test]
fn the_changelog_begins_with_this_version() {
    let version = env!("CARGO_PKG_VERSION");
    let head = format!("imgbased-helper ({version}-1) unstable; urgency=medium\n\n  * ");
    assert!(CHANGELOG.starts_with(&head), "{head}");
}

#[test]
fn each_unit_that_can_be_enabled_has_a_preset_and_is_known_to_the_scripts() {
    let script = |name: &str| {
        let path = project().join("ci/packaging").join(name);
        fs::read_to_string(path).expect("a script")
    };
    let mut known = vec![SPEC.to_owned()];
    known.extend(["postinst", "prerm", "postrm"].map(script));
    for file in files_in("dracut-module") {
        let text = fs::read_to_string(project().join(&file)).expect("a text");
        if !text.contains("\n[Install]\n") {
            continue;
        }
        let unit = file.trim_start_matches("dracut-module/");
        let is_preset = |line: &str| line.ends_with(&format!("able {unit}"));
        assert!(PRESET.lines().any(is_preset), "{unit}");
        for text in &known {
            assert!(text.contains(unit), "{unit}: {text}");
        }
    }
}

#[test]
fn an_upgrade_keeps_what_was_edited_and_a_purge_leaves_the_hosts_own() {
    if shell("id -u", &[]).trim() != "0" {
        return;
    }
    let root = Root::new();
    root.write("etc/imgbased/imgbased.conf", "[Source]\n");
    root.write("var/cache/imgbased/image", "fetched");
    root.write("boot/loader/entries/imgbased-Base-0.conf", "title x\n");
    root.write("boot/grub/imgbased.cfg", "menu");
    let own = root.files();

    root.install(&older());
    assert!(!root.has(CHECK_LINK));
    root.write("etc/grub.d/09_imgbased", "mine");
    let newer = newer();
    root.install(&newer);
    assert!(root.has(CHECK_LINK) && !root.has(APPLY_LINK));
    assert_eq!(root.read("etc/grub.d/09_imgbased"), "mine");
    let hook = "etc/kernel/postinst.d/zz-imgbased";
    let shipped = fs::read_to_string(project().join("dracut-module/zz-imgbased"));
    assert_eq!(root.read(hook), shipped.expect("a script"));

    // What was turned off stays off, and what was turned on stays on until it is purged.
    fs::remove_file(root.path(CHECK_LINK)).expect("a link");
    let unit = "/usr/lib/systemd/system/imgbased-update-apply.timer";
    symlink(unit, root.path(APPLY_LINK)).expect("a link");
    root.install(&newer);
    assert!(!root.has(CHECK_LINK) && root.has(APPLY_LINK));

    root.dpkg(&["--remove", "imgbased-helper"]);
    assert_eq!(root.read("etc/grub.d/09_imgbased"), "mine");
    assert!(!root.has("usr/lib/systemd"));
    root.dpkg(&["--purge", "imgbased-helper"]);
    let left: Vec<String> = own
        .into_iter()
        .filter(|path| !path.starts_with("var/cache/"))
        .collect();
    assert_eq!(root.files(), left);
}

/// A tree without a system that dpkg takes for the root.
struct Root(TempDir);

impl Root {
    fn new() -> Self {
        let root = Self(tempfile::tempdir().expect("a directory"));
        for directory in ["info", "updates"] {
            fs::create_dir_all(root.path("var/lib/dpkg").join(directory)).expect("a directory");
        }
        root.write("var/lib/dpkg/status", "");
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn has(&self, path: &str) -> bool {
        self.path(path).symlink_metadata().is_ok()
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).expect("a file")
    }

    fn write(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        fs::write(path, content).expect("a file");
    }

    /// What is there but for dpkg's own records.
    fn files(&self) -> Vec<String> {
        let list = "find \"$1\" ! -type d ! -path '*/var/lib/dpkg/*' -printf '%P\\n' | sort";
        let list = shell(list, &[self.0.path()]);
        list.lines().map(Into::into).collect()
    }

    fn install(&self, package: &Deb) {
        self.dpkg(&["--install", &package.path()]);
    }

    /// Changes packages here: the scripts of a package run outside of the tree and are told of it.
    fn dpkg(&self, arguments: &[&str]) {
        let output = Command::new("dpkg")
            .arg(format!("--root={}", self.0.path().display()))
            .args(["--log=/dev/null", "--no-triggers"])
            .args(["--force-script-chrootless", "--force-depends"])
            .args(["--force-confdef", "--force-confold"])
            .args(arguments)
            .output()
            .expect("dpkg");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}

/// A package in a directory that goes with it.
struct Deb(TempDir);

impl Deb {
    fn path(&self) -> String {
        self.0.path().join("package.deb").display().to_string()
    }

    /// Builds it of the files of the list that no build makes, and what `control` adds beside control and conffiles.
    fn build(version: &str, conf_files: &[&str], control: impl Fn(&Path)) -> Self {
        let package = Self(tempfile::tempdir().expect("a directory"));
        let tree = package.0.path().join("tree");
        for asset in assets() {
            for (file, place) in placed(&asset) {
                if !asset.source.starts_with("target/") {
                    let install = format!("install -D -m {} \"$1\" \"$2\"", asset.mode);
                    shell(&install, &[&file, &tree.join(place)]);
                }
            }
        }
        let directory = tree.join("DEBIAN");
        fs::create_dir(&directory).expect("a directory");
        let fields = format!(
            "Package: imgbased-helper\nVersion: {version}-1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
        );
        fs::write(directory.join("control"), fields).expect("a file");
        fs::write(directory.join("conffiles"), conf_files.join("\n") + "\n").expect("a file");
        control(&tree);
        let build = "dpkg-deb --root-owner-group -Znone --build \"$1/tree\" \"$1/package.deb\"";
        shell(build, &[package.0.path()]);
        package
    }
}

/// The package as it is.
fn newer() -> Deb {
    Deb::build(env!("CARGO_PKG_VERSION"), &conf_files(), |tree| {
        for script in ["postinst", "prerm", "postrm", "triggers"] {
            let source = project().join("ci/packaging").join(script);
            fs::copy(source, tree.join("DEBIAN").join(script)).expect("a file");
        }
    })
}

/// As the version before: it had no scripts, and what it had in /etc was other and partly no configuration.
fn older() -> Deb {
    Deb::build("0.1.0", &conf_files()[..3], |tree| {
        for file in conf_files() {
            let file = tree.join(file.trim_start_matches('/'));
            shell("echo '# older' >>\"$1\"", &[&file]);
        }
    })
}

/// Runs a line of shell, with paths as `$1` and so on; returns what it printed.
fn shell(line: &str, paths: &[&Path]) -> String {
    let mut shell = Command::new("sh");
    let output = shell.args(["-euc", line, "sh"]).args(paths).output();
    let output = output.expect("a shell");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).expect("text")
}
