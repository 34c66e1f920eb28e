//! A tree that is made of its table of contents, beside the whole one: on directories, with frames of the real zstd(1).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::Result;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::*;
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::tree::listing::settled;
use crate::tree::{Dir, Listing};

/// A layer with its table, as it is being written.
#[derive(Default)]
struct Layer {
    bytes: Vec<u8>,
    lines: Vec<String>,
}

impl Layer {
    fn frame(content: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frame");
        fs::write(&path, content).unwrap();
        Cmd::new("zstd")
            .args(["-q", "--rm"])
            .arg(&path)
            .run()
            .unwrap();
        fs::read(dir.path().join("frame.zst")).unwrap()
    }

    fn put(&mut self, kind: &str, name: &str, path: &Path, more: &str) {
        let stat = fs::symlink_metadata(path).unwrap();
        let time = Cmd::new("date")
            .args(["--utc", "+%Y-%m-%dT%H:%M:%S.%NZ", "-d"])
            .arg(format!("@{}.{:09}", stat.mtime(), stat.mtime_nsec()));
        let time = time.run().unwrap();
        self.lines.push(format!(
            r#"{{"type":"{kind}","name":"./{name}","mode":{},"uid":{},"gid":{},"modtime":"{}"{more}}}"#,
            stat.mode() & 0o7777,
            stat.uid(),
            stat.gid(),
            time.trim()
        ));
    }

    /// A file whose content is in parts of at most so many bytes, each a chunk.
    fn file(&mut self, name: &str, path: &Path, most: usize) {
        let content = fs::read(path).unwrap();
        let sum = |bytes: &[u8]| format!("sha256:{:x}", Sha256::digest(bytes));
        // The header of the file in the archive.
        self.bytes.extend(Self::frame(name.as_bytes()));
        let mut lines = Vec::new();
        let mut at = 0;
        for part in content.chunks(most) {
            let is_zeros = part.iter().all(|byte| *byte == 0);
            let kind = if is_zeros {
                r#","chunkType":"zeros""#
            } else {
                ""
            };
            lines.push(format!(
                r#","offset":{},"chunkSize":{},"chunkOffset":{at},"chunkDigest":"{}"{kind}"#,
                self.bytes.len(),
                part.len(),
                sum(part)
            ));
            self.bytes.extend(Self::frame(part));
            at += part.len();
        }
        let (end, size) = (self.bytes.len(), content.len());
        let mut lines = lines.into_iter();
        let first = lines.next().unwrap_or_default();
        let whole = format!(
            r#"{first},"size":{size},"digest":"{}","endOffset":{end}"#,
            sum(&content)
        );
        self.put("reg", name, path, if size == 0 { "" } else { &whole });
        for line in lines {
            let line = format!(r#"{{"type":"chunk","name":"./{name}"{line}}}"#);
            self.lines.push(line);
        }
    }

    /// A layer of all that is below a directory.
    fn of(dir: &Path) -> Self {
        let mut layer = Self::default();
        let mut names: BTreeMap<u64, String> = BTreeMap::new();
        let mut left = vec![PathBuf::new()];
        while let Some(name) = left.pop() {
            let path = dir.join(&name);
            let stat = fs::symlink_metadata(&path).unwrap();
            let name = name.to_str().unwrap();
            if stat.is_dir() {
                layer.put("dir", name, &path, "");
                let below = fs::read_dir(&path).unwrap();
                left.extend(below.map(|entry| Path::new(name).join(entry.unwrap().file_name())));
            } else if stat.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                let target = format!(r#","linkName":"{}""#, target.display());
                layer.put("symlink", name, &path, &target);
            } else if let Some(first) = names.get(&stat.ino()).filter(|_| stat.nlink() > 1) {
                let target = format!(r#","linkName":"./{first}""#);
                layer.put("hardlink", name, &path, &target);
            } else {
                names.insert(stat.ino(), name.to_owned());
                layer.file(name, &path, 1000);
            }
        }
        layer
    }

    fn entries(&self) -> Vec<Entry> {
        let text = format!(r#"{{"version":1,"entries":[{}]}}"#, self.lines.join(","));
        let limits = Limits {
            layer: 0,
            end: self.bytes.len() as u64,
        };
        merged(vec![parse(text.as_bytes(), limits).unwrap()]).unwrap()
    }

    /// The chunks of these files as a server sends them, decompressed.
    fn chunks(&self, entries: &[Entry], files: &[usize]) -> Vec<u8> {
        let mut frames = Vec::new();
        for place in places(entries, files) {
            let range = usize::try_from(place.from).unwrap()..usize::try_from(place.end).unwrap();
            frames.extend_from_slice(&self.bytes[range]);
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("frames.zst");
        fs::write(&path, &frames).unwrap();
        Cmd::new("zstd").args(["-dq"]).arg(&path).run().unwrap();
        fs::read(dir.path().join("frames")).unwrap()
    }
}

struct Trees {
    dir: TempDir,
}

impl Trees {
    /// Two trees: one that is known, and one that is like it but for some files.
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = r#"
            mkdir -p old/etc old/usr old/var
            for n in 1 2 3 4 5; do seq "$n" 2000 >old/usr/$n; done
            echo issue >old/etc/issue
            echo one >old/etc/one; ln old/etc/one old/etc/two
            echo p >old/etc/p; ln old/etc/p old/etc/q
            ln -s issue old/etc/link
            : >old/etc/empty
            head -c 5000 /dev/zero >old/usr/zeros
            chmod 4755 old/usr/1
            touch -d 2001-01-01 old/usr old/usr/* old/etc/*
            cp -a old new
            cp -a old copy; cp -a old base
            # Changed in part, moved, of another mode, new, gone, and exchanged.
            sed -i s/1234/changed/ new/usr/2; touch -d 2002-02-02 new/usr/2
            mv new/usr/3 new/var/moved
            chmod 600 new/usr/4
            echo new >new/etc/new; cp new/etc/new new/etc/again
            head -c 2500 /dev/zero >new/var/zeros; echo end >>new/var/zeros
            rm new/etc/issue; mkdir new/etc/issue; echo below >new/etc/issue/below
            ln -sfn below new/etc/link
            rm new/etc/two; echo one >new/etc/two; echo other >new/etc/one
            rm new/etc/q; ln new/usr/5 new/etc/0; ln new/usr/5 new/usr/6
            chmod 750 new; touch -d 2003-03-03 new new/etc
            mkdir whole"#;
        let cmd = Cmd::new("sh").args(["-ec", &format!("cd {}; {script}", dir.path().display())]);
        cmd.run().unwrap();
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn root(&self, name: &str) -> Dir {
        Dir::root(&self.at(name)).unwrap()
    }

    /// The listing of the old tree, which stays readable when its directory is gone.
    fn listing(&self) -> Listing {
        settled(&self.root("copy"), self.dir.path())
    }

    /// Makes the tree of these entries, with what the old tree has of their files, where `listing` is of what is there.
    fn build(
        &self,
        (entries, plan): (&[Entry], &Plan),
        to: &str,
        listing: Option<Listing>,
        chunks: &[u8],
    ) -> Result<Vec<usize>> {
        let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
        let to = self.root(to);
        let mut build = Build::new(entries, plan, &to, 1 << 20, &interrupt, &mut progress);
        build.compare(listing)?;
        let lost = build.names(&mut |_, path| Ok(File::open(self.at("base").join(path)).ok()))?;
        build.contents(&plan.in_layers(entries), &mut &chunks[..])?;
        build.end()?;
        Ok(lost)
    }
}

/// Each path with all that has to be equal. The times of directories as well.
pub fn described(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut firsts = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(name) = left.pop() {
        let path = dir.join(&name);
        let stat = fs::symlink_metadata(&path).unwrap();
        let mut text = format!(
            "{:o} {}:{} {}.{}",
            stat.mode(),
            stat.uid(),
            stat.gid(),
            stat.mtime(),
            stat.mtime_nsec()
        );
        let mut value = [0; 9];
        if let Ok(length) = rustix::fs::lgetxattr(&path, "user.x", &mut value) {
            text += &format!(" {:?}", &value[..length]);
        }
        if stat.is_dir() {
            let below = fs::read_dir(&path).unwrap();
            left.extend(below.map(|entry| name.join(entry.unwrap().file_name())));
            // Of several names the same one is the first in each tree.
            left.sort_unstable_by(|a, b| b.cmp(a));
        } else {
            let first = firsts.entry(stat.ino()).or_insert_with(|| name.clone());
            text += &format!(" {} of {}", stat.nlink(), first.display());
            if stat.is_symlink() {
                text += &format!(" to {}", fs::read_link(&path).unwrap().display());
            } else if stat.is_file() {
                text += &format!(" {:x}", Sha256::digest(fs::read(&path).unwrap()));
            }
        }
        found.insert(name, text);
    }
    found
}

/// The plan for a snapshot of the old tree, and the listing of that.
fn of_snapshot(trees: &Trees, entries: &[Entry]) -> (Plan, Listing) {
    let mut known = [Known {
        listing: trees.listing(),
        is_origin: true,
    }];
    (Plan::new(entries, &mut known).unwrap(), trees.listing())
}

/// The inode number and ctime of a path: what is not touched keeps both.
fn id(path: &Path) -> (u64, i64, i64) {
    let stat = fs::symlink_metadata(path).unwrap();
    (stat.ino(), stat.ctime(), stat.ctime_nsec())
}

#[test]
fn a_snapshot_becomes_the_tree_of_a_layer_and_keeps_what_is_the_same() {
    let trees = Trees::new();
    let layer = Layer::of(&trees.at("new"));
    let entries = layer.entries();
    let (plan, listing) = of_snapshot(&trees, &entries);
    let mut there: Vec<&str> = plan
        .files
        .iter()
        .filter(|(_, from)| matches!(from, From::Origin(_)))
        .map(|(number, _)| entries[*number].path.to_str().unwrap())
        .collect();
    there.sort_unstable();
    assert_eq!(there, ["etc/p", "etc/two", "usr/1", "usr/4", "usr/zeros"]);
    let files = plan.in_layers(&entries);
    let mut fetched: Vec<&str> = files
        .iter()
        .map(|number| entries[*number].path.to_str().unwrap())
        .collect();
    fetched.sort_unstable();
    let expected = ["etc/issue/below", "etc/one", "usr/2", "var/zeros"];
    assert!(
        expected.iter().all(|path| fetched.contains(path)),
        "{fetched:?}"
    );
    assert_eq!(fetched.len(), 5, "{fetched:?}");

    // Nothing of these may be read or written.
    for path in ["usr/1", "usr/zeros"] {
        fs::write(trees.at("base").join(path), "x").unwrap();
    }
    let untouched = ["usr/1", "usr/zeros", "etc/empty"].map(|path| trees.at("copy").join(path));
    let in_place = ["usr/2", "usr/4", "etc/p", "etc/two"].map(|path| trees.at("copy").join(path));
    let before = untouched.each_ref().map(|path| id(path));
    let inodes = in_place.each_ref().map(|path| id(path).0);
    let chunks = layer.chunks(&entries, &files);
    let made = (&entries[..], &plan);
    let lost = trees.build(made, "copy", Some(listing), &chunks).unwrap();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(untouched.each_ref().map(|path| id(path)), before);
    assert_eq!(in_place.each_ref().map(|path| id(path).0), inodes);
    assert_eq!(described(&trees.at("new")), described(&trees.at("copy")));
}

#[test]
fn a_snapshot_of_which_nothing_is_known_becomes_the_same() {
    let trees = Trees::new();
    let layer = Layer::of(&trees.at("new"));
    let entries = layer.entries();
    let odd = "cd $0; ln -sfn 2 usr/1; rm usr/zeros; mkdir -p usr/zeros/below; ln usr/2 usr/more; mkfifo var/pipe; \
        mkdir -p lost+found/old; chmod 0 usr";
    let script = Cmd::new("sh").args(["-ec", odd]).arg(trees.at("copy"));
    script.run().unwrap();
    let plan = Plan::new(&entries, &mut []).unwrap();
    let chunks = layer.chunks(&entries, &plan.in_layers(&entries));
    trees
        .build((&entries, &plan), "copy", None, &chunks)
        .unwrap();
    let mut made = described(&trees.at("copy"));
    assert!(made.remove(Path::new("lost+found")).is_some());
    assert_eq!(described(&trees.at("new")), made);
}

#[test]
fn a_snapshot_that_is_not_what_its_listing_says_is_refused() {
    for change in [
        "echo x >>usr/1",
        "rm usr/1",
        "cp usr/1 x; mv x usr/1",
        "printf X | dd of=usr/1 conv=notrunc status=none",
        "rm -r usr",
    ] {
        let trees = Trees::new();
        let layer = Layer::of(&trees.at("new"));
        let entries = layer.entries();
        let (plan, listing) = of_snapshot(&trees, &entries);
        let change = format!("cd $0; {change}");
        let script = Cmd::new("sh").args(["-ec", &change]).arg(trees.at("copy"));
        script.run().unwrap();
        let chunks = layer.chunks(&entries, &plan.in_layers(&entries));
        let built = trees.build((&entries, &plan), "copy", Some(listing), &chunks);
        let error = format!("{:#}", built.unwrap_err());
        assert!(
            error.contains("is not what the listing"),
            "{change}: {error}"
        );
    }
}

#[test]
fn a_tree_is_made_as_a_whole_where_nothing_is_known() {
    let trees = Trees::new();
    let layer = Layer::of(&trees.at("new"));
    let entries = layer.entries();
    let plan = Plan::new(&entries, &mut []).unwrap();
    let chunks = layer.chunks(&entries, &plan.in_layers(&entries));
    trees
        .build((&entries, &plan), "whole", None, &chunks)
        .unwrap();
    assert_eq!(described(&trees.at("new")), described(&trees.at("whole")));
}

#[test]
fn what_is_not_what_the_table_or_a_listing_says_is_refused() {
    let trees = Trees::new();
    let layer = Layer::of(&trees.at("new"));
    let entries = layer.entries();
    let plan = Plan::new(&entries, &mut []).unwrap();
    let files = plan.in_layers(&entries);
    let chunks = layer.chunks(&entries, &files);
    let read = |chunks: &[u8]| {
        let interrupt = Interrupt::default();
        let mut put = |_: usize, _: u64, _: &[u8]| Ok(());
        read_contents(&entries, &files, &mut &chunks[..], &interrupt, &mut put)
    };
    read(&chunks).unwrap();
    for at in [0, chunks.len() / 2, chunks.len() - 1] {
        let mut other = chunks.clone();
        other[at] ^= 1;
        let error = format!("{:#}", read(&other).unwrap_err());
        assert!(error.contains("digest"), "{error}");
    }
    let error = format!("{:#}", read(&chunks[..chunks.len() - 1]).unwrap_err());
    assert!(error.contains("too short"), "{error}");
    let error = format!("{:#}", read(&[&chunks[..], b"x"].concat()).unwrap_err());
    assert!(error.contains("more was fetched"), "{error}");

    // A base that is not what it was.
    let mut known = [Known {
        listing: trees.listing(),
        is_origin: false,
    }];
    let plan = Plan::new(&entries, &mut known).unwrap();
    fs::write(trees.at("base/usr/3"), "other").unwrap();
    let chunks = layer.chunks(&entries, &plan.in_layers(&entries));
    let lost = trees.build((&entries, &plan), "whole", None, &chunks);
    let lost = lost.unwrap();
    let lost: Vec<&Path> = lost
        .iter()
        .map(|number| entries[*number].path.as_path())
        .collect();
    assert_eq!(lost, [Path::new("var/moved")]);
    // Room for less than there is.
    let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
    fs::create_dir(trees.at("small")).unwrap();
    let to = trees.root("small");
    let mut build = Build::new(&entries, &plan, &to, 1000, &interrupt, &mut progress);
    let error = build.names(&mut |_, path| Ok(File::open(trees.at("base").join(path)).ok()));
    assert!(format!("{:#}", error.unwrap_err()).contains("no room"));
}

#[test]
fn a_link_of_the_tree_leads_nowhere_else() {
    let trees = Trees::new();
    fs::create_dir(trees.at("outside")).unwrap();
    symlink("../outside", trees.at("whole/etc")).unwrap();
    fs::set_permissions(trees.at("whole"), fs::Permissions::from_mode(0o755)).unwrap();
    let layer = Layer::of(&trees.at("new"));
    let entries = layer.entries();
    let plan = Plan::new(&entries, &mut []).unwrap();
    let chunks = layer.chunks(&entries, &plan.in_layers(&entries));
    let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
    let to = trees.root("whole");
    let mut build = Build::new(&entries, &plan, &to, 1 << 20, &interrupt, &mut progress);
    assert!(build.names(&mut |_, _| Ok(None)).is_err());
    assert_eq!(fs::read_dir(trees.at("outside")).unwrap().count(), 0);
    // It is none of the tree.
    trees
        .build((&entries, &plan), "whole", None, &chunks)
        .unwrap();
    assert_eq!(fs::read_dir(trees.at("outside")).unwrap().count(), 0);
    assert_eq!(described(&trees.at("new")), described(&trees.at("whole")));
}
