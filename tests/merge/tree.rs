//! Roots for a merge, described by lines.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgbased_helper::merge::{Plan, Verdict, apply, reown};
use imgbased_helper::tree::{Dir, escaped};

pub const USERS: &str =
    "root:x:0:0::/root:/bin/sh\nadm:x:3:3::/:/bin/false\nweb:x:33:33::/:/bin/false\n";
pub const GROUPS: &str = "root:x:0:\nadm:x:3:\nweb:x:33:\n";

/// Three roots, and the copy of the new base that the merge is put into.
pub struct Merge {
    dir: tempfile::TempDir,
}

/// What came out of a merge.
#[derive(Debug)]
pub struct Merged {
    /// The paths below /etc with what they are, as [`describe`] writes it.
    pub etc: Vec<String>,
    /// `path verdict` for each that is listed.
    pub listed: Vec<String>,
    pub left_out: Vec<PathBuf>,
}

impl Merge {
    /// Empty roots with users.
    pub fn new() -> Self {
        let merge = Self {
            dir: tempfile::tempdir().expect("a directory"),
        };
        for side in ["old", "layer", "new"] {
            let etc = merge.root(side).join("etc");
            fs::create_dir_all(&etc).expect("a directory");
            fs::write(etc.join("passwd"), USERS).expect("a file");
            fs::write(etc.join("group"), GROUPS).expect("a file");
            let shadow: String = USERS
                .lines()
                .map(|line| format!("{}:*:::::::\n", line.split(':').next().unwrap_or_default()))
                .collect();
            fs::write(etc.join("shadow"), shadow).expect("a file");
        }
        merge
    }

    pub fn root(&self, side: &str) -> PathBuf {
        self.dir.path().join(side)
    }

    pub fn etc(&self, side: &str) -> PathBuf {
        self.root(side).join("etc")
    }

    /// Merges, and puts the result into a copy of the new base.
    pub fn run(&self) -> Merged {
        self.run_with(["old", "layer", "new"])
    }

    /// The same of three of the roots.
    pub fn run_with(&self, sides: [&str; 3]) -> Merged {
        let copy = self.root("copy");
        if copy.exists() {
            fs::remove_dir_all(&copy).expect("a directory");
        }
        let [_, _, new] = sides;
        let new = self.root(new);
        run("cp", &[OsStr::new("-a"), new.as_os_str(), copy.as_os_str()]);
        let open = |side: &str| Dir::root(&self.root(side)).expect("a directory");
        let [old, layer, new] = sides.map(open);
        let copy = open("copy");
        let plan = Plan::of([&old, &layer, &new], false).expect("a plan");
        reown(&copy, &plan.users.ids).expect("owners");
        let left_out = apply(&plan, &layer, &copy).expect("what was planned");
        let listed = plan.items.iter().map(|item| {
            let verdict = match item.verdict {
                Verdict::Conflict(clash) => format!("conflict {clash:?}").to_lowercase(),
                verdict => format!("{verdict:?}").to_lowercase(),
            };
            format!("{} {verdict}", escaped(&item.path))
        });
        Merged {
            listed: listed.collect(),
            etc: describe_all(&self.etc("copy")),
            left_out,
        }
    }
}

/// Runs a program to make something that std cannot.
pub fn run(program: &str, args: &[&OsStr]) {
    assert!(runs(program, args), "{program} {args:?}");
}

/// The same; returns whether it succeeds.
pub fn runs(program: &str, args: &[&OsStr]) -> bool {
    let status = Command::new(program)
        .args(args)
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// Says what this machine lacks. What needs it is left out.
pub fn lacks(what: &str) {
    eprintln!("not tested, since the filesystem of the temporary directory has no {what}");
}

/// Makes `path` what the text says: `-` nothing, `d` a directory, `l:TARGET` a link, `p` a pipe, `s` a socket, `c` a
/// device, else a file with that content. ` mode=`, ` owner=USER:GROUP` and ` user.NAME=VALUE` can follow.
pub fn make(path: &Path, text: &str) {
    let mut words = text.split(' ');
    let what = words.next().unwrap_or_default();
    if what == "-" {
        return;
    }
    fs::create_dir_all(path.parent().expect("a path in a directory")).expect("a directory");
    match what {
        "d" => fs::create_dir_all(path).expect("a directory"),
        "p" => run("mkfifo", &[path.as_os_str()]),
        "s" => drop(std::os::unix::net::UnixListener::bind(path).expect("a socket")),
        "c" => {
            let args = [path.as_os_str(), "c".as_ref(), "1".as_ref(), "3".as_ref()];
            if !runs("mknod", &args) {
                lacks("devices");
                fs::write(path, "").expect("a file");
            }
        }
        _ => match what.strip_prefix("l:") {
            Some(target) => symlink(target, path).expect("a link"),
            None => fs::write(path, if what == "empty" { "" } else { what }).expect("a file"),
        },
    }
    for word in words {
        let (key, value) = word.split_once('=').expect("key=value");
        match key {
            "mode" => {}
            "owner" => {
                let (user, group) = value.split_once(':').unwrap_or((value, value));
                let number = |text: &str| Some(text.parse().expect("a number"));
                std::os::unix::fs::lchown(path, number(user), number(group)).expect("an owner");
            }
            name => {
                let flags = rustix::fs::XattrFlags::empty();
                let set = rustix::fs::lsetxattr(path, name, value.as_bytes(), flags);
                set.expect("an attribute");
            }
        }
    }
    if let Some(mode) = text.split(' ').find_map(|word| word.strip_prefix("mode=")) {
        let mode = u32::from_str_radix(mode, 8).expect("a mode");
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    } else if what != "d" && !what.starts_with("l:") {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).expect("a mode");
    }
}

/// What is at a path, as [`make`] takes it.
pub fn describe(path: &Path) -> String {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return "-".to_owned();
    };
    let kind = metadata.file_type();
    let mut text = if kind.is_dir() {
        "d".to_owned()
    } else if kind.is_symlink() {
        format!("l:{}", fs::read_link(path).expect("a link").display())
    } else if kind.is_fifo() {
        "p".to_owned()
    } else if kind.is_socket() {
        "s".to_owned()
    } else if kind.is_char_device() {
        "c".to_owned()
    } else if metadata.len() > 1 << 20 {
        format!("({} bytes)", metadata.len())
    } else {
        let content = fs::read(path).expect("a file");
        let content = String::from_utf8_lossy(&content).into_owned();
        if content.is_empty() {
            "empty".to_owned()
        } else {
            content
        }
    };
    let usual = if kind.is_dir() { 0o755 } else { 0o644 };
    let mode = metadata.mode() & 0o7777;
    if mode != usual && !kind.is_symlink() {
        text += &format!(" mode={mode:o}");
    }
    if metadata.uid() + metadata.gid() > 0 {
        text += &format!(" owner={}:{}", metadata.uid(), metadata.gid());
    }
    for name in ["user.a", "user.b"] {
        let mut value = [0; 64];
        if let Ok(size) = rustix::fs::lgetxattr(path, name, &mut value) {
            text += &format!(" {name}={}", String::from_utf8_lossy(&value[..size]));
        }
    }
    text
}

pub fn describe_all(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut names: Vec<OsString> = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    names.sort_unstable_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
    for name in names {
        if ["passwd", "group", "shadow"]
            .iter()
            .any(|file| name == *file)
        {
            continue;
        }
        let path = dir.join(&name);
        found.push(format!("{} {}", escaped(&name), describe(&path)));
        if path.is_dir() && !path.is_symlink() {
            let below = describe_all(&path).into_iter();
            found.extend(below.map(|line| format!("{}/{line}", escaped(&name))));
        }
    }
    found
}

/// Whether files can have attributes there.
pub fn has_xattrs(dir: &Path) -> bool {
    let probe = dir.join("probe");
    fs::write(&probe, "").expect("a file");
    let flags = rustix::fs::XattrFlags::empty();
    let has = rustix::fs::setxattr(&probe, "user.a", b"1", flags).is_ok();
    fs::remove_file(probe).expect("a file");
    has
}

pub fn own(path: &Path, user: u32, group: u32) {
    chown(path, Some(user), Some(group)).expect("an owner");
}
