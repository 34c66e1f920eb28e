//! `diff`: what two roots have different.

use std::collections::BTreeMap;
use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde::Serialize;

use super::roots::{self, Tree};
use super::view::JSON_VERSION;
use super::{Context, LOCK_WAIT, found_status, json_path, packages, text, text_diff};
use crate::sys::logger::STDOUT;
use crate::sys::progress::Waiting;
use crate::sys::transaction::{Transaction, Writer};
use crate::tree::{Below, Dir, Globs, Kind, Place, Visit, escaped, walk};

/// What `diff` is told.
#[derive(Args)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct Diff {
    /// Base, layer, `.` for what runs, or a directory, with a slash in it [default: the base of
    /// what runs]
    a: Option<Tree>,
    /// What to compare it with [default: what runs]
    b: Option<Tree>,
    /// Only this file, or what is below this directory
    #[arg(long, value_name = "PATH", default_value = "/")]
    path: PathBuf,
    /// Leave out what matches, with all below: a name, or with a slash a whole path. May be given
    /// several times
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Show also how text files differ, as diff(1) does; other files are named
    #[arg(long, conflicts_with = "stat")]
    content: bool,
    /// The largest file that is shown so, up to 16M
    #[arg(long, value_name = "SIZE", value_parser = parse_max, default_value = "1M", requires = "content")]
    max_size: u64,
    /// Compare the installed packages of dpkg or rpm as well
    ///
    /// What rpm has installed is told by the rpm(8) of each root, which runs shut in.
    #[arg(long)]
    packages: bool,
    /// Count only
    #[arg(long)]
    stat: bool,
    /// Read also what has not been touched
    #[arg(long)]
    verify: bool,
    /// Exit with 3 if something differs
    #[arg(long)]
    exit_code: bool,
}

/// Two of that size are in memory at once, with what diff(1) says of them, in bytes.
const SHOWN_MAX: u64 = 16 << 20;

fn parse_max(size: &str) -> Result<u64> {
    let size = text::parse_size(size)?;
    ensure!(size <= SHOWN_MAX, "the most is {}", text::size(SHOWN_MAX));
    Ok(size)
}

/// Shows what `b` has different from `a`. The lock is free while they are read.
pub fn run(context: &Context, diff: &Diff) -> Result<ExitCode> {
    let globs = Globs::new(&diff.exclude)?;
    if diff.content {
        text_diff::check_installed()?;
    }
    if let (Some(Tree::Directory(a)), Some(Tree::Directory(b))) = (&diff.a, &diff.b) {
        let names = [a, b].map(|dir| dir.display().to_string());
        let of = Comparison::new(diff, &globs, names, false);
        // Only programs of a root need mounts of their own.
        let writer = if diff.packages {
            context.writer("diff", LOCK_WAIT)?
        } else {
            Writer::new("diff", LOCK_WAIT, context.dry_run)?
        };
        let counts = writer.transaction(|tx| of.print(context.json, [a, b], tx))?;
        return Ok(found_status(diff.exit_code && counts.is_any()));
    }
    let counts = context.change("diff", |tx| {
        let group = context.load()?;
        let a = roots::or_base_of_running(&group, diff.a.clone())?;
        let b = roots::named(&group, diff.b.clone().unwrap_or(Tree::Running))?;
        ensure!(a != b, "{a} is compared with itself");
        let is_snapshot = roots::have_one_origin(&group, &a, &b);
        roots::opened(context, tx, &group, &a, |tx, root_a| {
            roots::opened(context, tx, &group, &b, |tx, root_b| {
                let names = [a.to_string(), b.to_string()];
                let of = Comparison::new(diff, &globs, names, is_snapshot);
                tx.unlocked(|tx| of.print(context.json, [root_a, root_b], tx))
            })
        })
    })?;
    let counts = counts.flatten().unwrap_or_default();
    Ok(found_status(diff.exit_code && counts.is_any()))
}

/// A part of a file in which two can differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Part {
    Type,
    /// Or which device it is.
    Content,
    /// Of a link.
    Target,
    Mode,
    Owner,
    /// Also ACLs and capabilities.
    Xattr,
}

impl Part {
    const ALL: [(Self, char); 6] = [
        (Self::Type, 't'),
        (Self::Content, 'c'),
        (Self::Target, 'l'),
        (Self::Mode, 'm'),
        (Self::Owner, 'o'),
        (Self::Xattr, 'x'),
    ];

    /// Each part in its own column.
    fn letters(parts: &[Self]) -> String {
        let letter = |(part, letter): &(Self, char)| {
            if parts.contains(part) { *letter } else { '.' }
        };
        Self::ALL.iter().map(letter).collect()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Change {
    Added,
    Removed,
    Modified,
}

impl Change {
    fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Removed => 'D',
            Self::Modified => 'M',
        }
    }
}

#[derive(Serialize)]
struct Entry {
    path: String,
    /// In base64, where it is no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    change: Change,
    parts: Vec<Part>,
    a: Option<Side>,
    b: Option<Side>,
    /// With `--content`.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<Content>,
}

/// A path in one of the roots.
#[derive(Serialize)]
struct Side {
    r#type: &'static str,
    size: u64,
    /// In octal digits.
    mode: String,
    owner: u32,
    group: u32,
    target: Option<String>,
}

#[derive(Serialize)]
struct Package {
    name: String,
    a: Option<String>,
    b: Option<String>,
}

/// How many paths there are of each kind, and the bytes of files.
#[derive(Default, Serialize)]
struct Counts {
    added: u64,
    removed: u64,
    modified: u64,
    bytes_added: u64,
    bytes_removed: u64,
    packages: u64,
}

impl Counts {
    fn is_any(&self) -> bool {
        self.added + self.removed + self.modified + self.packages > 0
    }
}

/// What is compared, and how.
struct Comparison<'a> {
    diff: &'a Diff,
    globs: &'a Globs,
    names: [String; 2],
    /// Whether a file with the same inode and time of change is the same file.
    is_stat_enough: bool,
}

impl<'a> Comparison<'a> {
    fn new(diff: &'a Diff, globs: &'a Globs, names: [String; 2], is_snapshot: bool) -> Self {
        Self {
            diff,
            globs,
            names,
            is_stat_enough: is_snapshot && !diff.verify,
        }
    }

    fn print(&self, json: bool, paths: [&Path; 2], tx: &mut Transaction) -> Result<Counts> {
        let [a, b] = paths.map(Dir::root);
        let roots = [a?, b?];
        let path = self.diff.path.strip_prefix("/").unwrap_or(&self.diff.path);
        let is_above = path.components().any(|part| part == Component::ParentDir);
        ensure!(!is_above, "--path {} has `..` in it", path.display());
        let above = path.parent().unwrap_or(Path::new(""));
        let from = |root: &Dir| {
            root.resolve_dir(above)
                .with_context(|| format!("cannot read {}", escaped(above)))
        };
        let [from_a, from_b] = roots.each_ref().map(from);
        let from = [from_a?, from_b?];
        let has = |name| {
            let mut dirs = from.iter().flatten();
            dirs.any(|dir| dir.stat_of(name).is_ok_and(|found| found.is_some()))
        };
        let [a, b] = &self.names;
        ensure!(
            path.file_name().is_none_or(has),
            "neither {a} nor {b} has /{}",
            escaped(path)
        );
        let mut output = Output {
            out: BufWriter::new(io::stdout().lock()),
            json,
            is_quiet: self.diff.stat,
            is_first: true,
            counts: Counts::default(),
        };
        output.begin(&self.names)?;
        let is_stat_enough = self.is_stat_enough;
        // What is found on a terminal shows that it goes on.
        let is_seen = io::stdout().is_terminal() && !self.diff.stat;
        let waiting = (!is_seen).then(|| Waiting::new(|| "comparing".to_owned()));
        walk(&from, path.file_name(), &mut |visit| {
            tx.interrupt().check()?;
            let path = above.join(visit.path);
            if self.globs.matches(&path) {
                return Ok(Below::Skip);
            }
            let entry = entry(&path, visit, is_stat_enough)
                .with_context(|| format!("cannot read /{}", escaped(&path)))?;
            if let Some((mut entry, sizes)) = entry {
                if self.diff.content {
                    entry.content = self
                        .content(&path, &entry, visit)
                        .with_context(|| format!("cannot compare /{}", escaped(&path)))?;
                }
                output.entry(&path, &entry, sizes)?;
            }
            Ok(Below::Visit)
        })?;
        drop(waiting);
        output.packages(self.packages(tx, paths)?)?;
        output.end()
    }

    /// The packages that differ, if that is wanted and both roots tell theirs.
    fn packages(&self, tx: &mut Transaction, [a, b]: [&Path; 2]) -> Result<Vec<Package>> {
        if !self.diff.packages {
            return Ok(Vec::new());
        }
        let (Some(a), Some(b)) = (packages::read(tx, a)?, packages::read(tx, b)?) else {
            return Ok(Vec::new());
        };
        Ok(different(a, b))
    }

    /// How the content of a path differs, where that is one of files.
    fn content(&self, path: &Path, entry: &Entry, visit: &Visit) -> Result<Option<Content>> {
        let [a, b] = visit.places else {
            return Ok(None);
        };
        if entry.change == Change::Modified && !entry.parts.contains(&Part::Content) {
            return Ok(None);
        }
        let mut texts = [Vec::new(), Vec::new()];
        let places = [a, b].into_iter().zip(&mut texts);
        for (place, text) in places.filter_map(|(place, text)| Some((place.as_ref()?, text))) {
            if place.stat.kind != Kind::File {
                return Ok(None);
            }
            // What goes away meanwhile is as if it were empty.
            let Some(node) = place.node()? else {
                continue;
            };
            if node.stat.size > self.diff.max_size {
                return Ok(Some(Content::NotShown("larger than --max-size")));
            }
            *text = node.read(self.diff.max_size)?;
            if !text_diff::is_text(text) {
                return Ok(Some(Content::NotShown("no text")));
            }
        }
        let [from, to] = &texts;
        let name = |root: &String| format!("{root}:/{}", escaped(path));
        let [name_a, name_b] = self.names.each_ref().map(name);
        let text = text_diff::unified(from, to, [&name_a, &name_b])?;
        Ok(Some(Content::Diff(text)))
    }
}

/// How the content of files differs.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Content {
    /// In the unified format.
    Diff(String),
    /// Why it is not.
    NotShown(&'static str),
}

/// What is different at one path, and the sizes of the files there.
fn entry(path: &Path, visit: &Visit, is_stat_enough: bool) -> Result<Option<(Entry, [u64; 2])>> {
    let [a, b] = visit.places else {
        return Ok(None);
    };
    let (change, parts) = match (a, b) {
        (None, _) => (Change::Added, Vec::new()),
        (_, None) => (Change::Removed, Vec::new()),
        (Some(a), Some(b)) => {
            if is_stat_enough && a.stat.is_untouched(&b.stat) {
                return Ok(None);
            }
            let parts = differences(a, b)?;
            if parts.is_empty() {
                return Ok(None);
            }
            (Change::Modified, parts)
        }
    };
    let (shown, path_bytes) = json_path::of(&Path::new("/").join(path));
    let size = |place: &Option<Place>| match place {
        Some(place) if place.stat.kind == Kind::File => place.stat.size,
        _ => 0,
    };
    let entry = Entry {
        path: shown,
        path_bytes,
        change,
        parts,
        a: a.as_ref().map(side).transpose()?,
        b: b.as_ref().map(side).transpose()?,
        content: None,
    };
    Ok(Some((entry, [size(a), size(b)])))
}

fn side(place: &Place) -> Result<Side> {
    let stat = place.stat;
    let target = match place.node()? {
        Some(node) if stat.kind == Kind::Link => {
            Some(node.target()?.to_string_lossy().into_owned())
        }
        _ => None,
    };
    Ok(Side {
        r#type: stat.kind.name(),
        size: stat.size,
        mode: format!("{:04o}", stat.mode),
        owner: stat.uid,
        group: stat.gid,
        target,
    })
}

/// The parts in which two files differ. What goes away meanwhile is no difference.
fn differences(a: &Place, b: &Place) -> Result<Vec<Part>> {
    if a.stat.kind != b.stat.kind {
        return Ok(vec![Part::Type]);
    }
    let (Some(node_a), Some(node_b)) = (a.node()?, b.node()?) else {
        return Ok(Vec::new());
    };
    let (a, b) = (&node_a.stat, &node_b.stat);
    let mut parts = Vec::new();
    match a.kind {
        Kind::File if !node_a.has_same_content(&node_b)? => parts.push(Part::Content),
        Kind::Link if node_a.target()? != node_b.target()? => parts.push(Part::Target),
        _ if a.device != b.device => parts.push(Part::Content),
        _ => {}
    }
    if a.mode != b.mode {
        parts.push(Part::Mode);
    }
    if (a.uid, a.gid) != (b.uid, b.gid) {
        parts.push(Part::Owner);
    }
    if node_a.xattrs()? != node_b.xattrs()? {
        parts.push(Part::Xattr);
    }
    Ok(parts)
}

fn different(mut a: BTreeMap<String, String>, mut b: BTreeMap<String, String>) -> Vec<Package> {
    let mut names: Vec<String> = a.keys().chain(b.keys()).cloned().collect();
    names.sort_unstable();
    names.dedup();
    let package = |name: String| Package {
        a: a.remove(&name),
        b: b.remove(&name),
        name,
    };
    let mut packages: Vec<Package> = names.into_iter().map(package).collect();
    packages.retain(|package| package.a != package.b);
    packages
}

/// What is printed, as it is found: there can be more of it than fits into memory.
struct Output<'a> {
    out: BufWriter<StdoutLock<'a>>,
    json: bool,
    /// Whether entries are only counted.
    is_quiet: bool,
    is_first: bool,
    counts: Counts,
}

impl Output<'_> {
    fn write(&mut self, text: &str) -> Result<()> {
        let written = self.out.write_all(text.as_bytes());
        written.context(STDOUT)
    }

    fn begin(&mut self, [a, b]: &[String; 2]) -> Result<()> {
        if !self.json {
            return Ok(());
        }
        let (a, b) = (serde_json::to_string(a)?, serde_json::to_string(b)?);
        self.write(&format!(
            "{{\"version\":{JSON_VERSION},\"a\":{a},\"b\":{b},\"entries\":["
        ))
    }

    fn entry(&mut self, path: &Path, entry: &Entry, [a, b]: [u64; 2]) -> Result<()> {
        let counts = &mut self.counts;
        match entry.change {
            Change::Added => counts.added += 1,
            Change::Removed => counts.removed += 1,
            Change::Modified => counts.modified += 1,
        }
        counts.bytes_added = counts.bytes_added.saturating_add(b.saturating_sub(a));
        counts.bytes_removed = counts.bytes_removed.saturating_add(a.saturating_sub(b));
        if self.is_quiet {
            return Ok(());
        }
        if self.json {
            let comma = if self.is_first { "" } else { "," };
            self.is_first = false;
            return self.write(&format!("{comma}\n{}", serde_json::to_string(entry)?));
        }
        let (letter, parts) = (entry.change.letter(), Part::letters(&entry.parts));
        self.write(&format!("{letter} {parts} /{}\n", escaped(path)))?;
        match &entry.content {
            None => Ok(()),
            Some(Content::Diff(text)) => self.write(text),
            Some(Content::NotShown(why)) => self.write(&format!("not shown: {why}\n")),
        }
    }

    fn packages(&mut self, packages: Vec<Package>) -> Result<()> {
        self.counts.packages = packages.len() as u64;
        if self.json {
            let packages = serde_json::to_string(&packages)?;
            return self.write(&format!("],\n\"packages\":{packages},"));
        }
        if self.is_quiet {
            return Ok(());
        }
        for Package { name, a, b } in packages {
            let line = match (a, b) {
                (None, Some(version)) => format!("A package {name} {version}"),
                (Some(version), None) => format!("D package {name} {version}"),
                (a, b) => {
                    let (a, b) = (text::shown(a.as_ref()), text::shown(b.as_ref()));
                    format!("M package {name} {a} -> {b}")
                }
            };
            // A record can say anything.
            self.write(&format!("{}\n", escaped(line)))?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<Counts> {
        if self.json {
            let counts = serde_json::to_string(&self.counts)?;
            self.write(&format!("\n\"counts\":{counts}}}\n"))?;
        } else if self.is_quiet {
            let text = self.counts.table();
            self.write(&text)?;
        }
        self.out.flush().context(STDOUT)?;
        Ok(self.counts)
    }
}

impl Counts {
    fn table(&self) -> String {
        let rows = [
            ("Added", self.added, Some(self.bytes_added)),
            ("Removed", self.removed, Some(self.bytes_removed)),
            ("Modified", self.modified, None),
            ("Packages", self.packages, None),
        ];
        let row = |(name, count, bytes): (&str, u64, Option<u64>)| {
            let bytes = bytes.map(text::size).unwrap_or_default();
            (name.to_owned(), format!("{count:>8}  {bytes}"))
        };
        text::columns(&rows.map(row))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::package::installed;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    /// All differences between two directories, as lines.
    fn lines(a: &Path, b: &Path, is_stat_enough: bool) -> Vec<String> {
        let mut found = Vec::new();
        let roots = [a, b].map(|dir| Some(Dir::root(dir).unwrap()));
        walk(&roots, None, &mut |visit| {
            if let Some((entry, _)) = entry(visit.path, visit, is_stat_enough)? {
                let letter = entry.change.letter();
                found.push(format!(
                    "{letter} {} {}",
                    Part::letters(&entry.parts),
                    entry.path
                ));
            }
            Ok(Below::Visit)
        })
        .unwrap();
        found
    }

    #[test]
    fn each_part_has_its_letter() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (root, changed) in [(&a, false), (&b, true)] {
            let pick = |one, other| if changed { other } else { one };
            fs::create_dir_all(root.join("d")).unwrap();
            fs::write(root.join("content"), pick("1", "2")).unwrap();
            fs::write(root.join("d/same"), "same").unwrap();
            fs::write(root.join("mode"), "x").unwrap();
            let mode = if changed { 0o640 } else { 0o600 };
            fs::set_permissions(root.join("mode"), fs::Permissions::from_mode(mode)).unwrap();
            symlink(pick("x", "y"), root.join("link")).unwrap();
            fs::write(root.join(pick("old", "new")), "").unwrap();
        }
        fs::write(a.join("type"), "").unwrap();
        fs::create_dir(b.join("type")).unwrap();
        fs::write(b.join("type/below"), "").unwrap();
        assert_eq!(
            lines(&a, &b, false),
            [
                "M .c.... /content",
                "M ..l... /link",
                "M ...m.. /mode",
                "A ...... /new",
                "D ...... /old",
                "M t..... /type",
                "A ...... /type/below",
            ]
        );
        assert_eq!(lines(&a, &a, false), [""; 0]);
    }

    #[test]
    fn text_files_are_shown_and_others_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for (root, changed) in [(&a, false), (&b, true)] {
            let pick = |one, other| if changed { other } else { one };
            fs::create_dir_all(root).unwrap();
            fs::write(root.join("text"), pick("one\n", "two\n")).unwrap();
            fs::write(root.join("binary"), pick("a\0", "b\0")).unwrap();
            fs::write(root.join("large"), pick("a", "b").repeat(2000)).unwrap();
            fs::write(root.join(pick("gone", "new")), "x\n").unwrap();
            symlink(pick("x", "y"), root.join("link")).unwrap();
        }
        fs::write(b.join("text.mode"), "").unwrap();
        fs::create_dir(b.join("dir")).unwrap();
        let diff = Diff {
            a: None,
            b: None,
            path: "/".into(),
            exclude: Vec::new(),
            content: true,
            max_size: 1000,
            packages: false,
            stat: false,
            verify: false,
            exit_code: false,
        };
        let globs = Globs::new(&[]).unwrap();
        let names = ["A", "B"].map(str::to_owned);
        let of = Comparison::new(&diff, &globs, names, false);
        let mut found = Vec::new();
        let roots = [&a, &b].map(|dir| Some(Dir::root(dir).unwrap()));
        walk(&roots, None, &mut |visit| {
            if let Some((entry, _)) = entry(visit.path, visit, false)? {
                let content = of.content(visit.path, &entry, visit)?;
                found.push((entry.path, content));
            }
            Ok(Below::Visit)
        })
        .unwrap();
        let shown = |text: &str| Some(Content::Diff(text.to_owned()));
        for (path, wanted) in [
            (
                "/text",
                shown("--- A:/text\n+++ B:/text\n@@ -1 +1 @@\n-one\n+two\n"),
            ),
            ("/binary", Some(Content::NotShown("no text"))),
            ("/large", Some(Content::NotShown("larger than --max-size"))),
            (
                "/gone",
                shown("--- A:/gone\n+++ B:/gone\n@@ -1 +0,0 @@\n-x\n"),
            ),
            ("/new", shown("--- A:/new\n+++ B:/new\n@@ -0,0 +1 @@\n+x\n")),
            ("/text.mode", shown("")),
            ("/link", None),
            ("/dir", None),
        ] {
            let content = found.iter().find(|(of, _)| of == path);
            assert_eq!(content.map(|(_, content)| content), Some(&wanted), "{path}");
        }
    }

    #[test]
    fn the_size_of_what_is_shown_has_a_limit() {
        for (text, wanted) in [
            ("1M", Some(1 << 20)),
            ("16M", Some(16 << 20)),
            ("17M", None),
        ] {
            assert_eq!(parse_max(text).ok(), wanted, "{text}");
        }
    }

    #[test]
    fn what_was_not_touched_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("x"), "1").unwrap();
        assert_eq!(lines(dir.path(), dir.path(), true), [""; 0]);
    }

    #[test]
    fn packages_are_compared_by_version() {
        let a = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\n\n\
            Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
            Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nMulti-Arch: same\nVersion: 2.41\n\n\
            Package: less\nStatus: install ok installed\nVersion: 643\nDescription: x\n y\n";
        let b = a.replace("5.2-1", "5.2-2").replace("less", "most");
        let of = |status: &str| packages::versions(installed(status));
        let packages = different(of(a), of(&b));
        let shown: Vec<_> = packages
            .iter()
            .map(|p| (p.name.as_str(), p.a.as_deref(), p.b.as_deref()))
            .collect();
        assert_eq!(
            shown,
            [
                ("bash", Some("5.2-1"), Some("5.2-2")),
                ("less", Some("643"), None),
                ("most", None, Some("643"))
            ]
        );
        assert!(of(a).contains_key("libc6:amd64"));
    }
}
