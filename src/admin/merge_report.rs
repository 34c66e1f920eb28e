//! What a merge comes to. `persist preview` shows it before, and the layer that is made by it keeps it.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::view::JSON_VERSION;
use super::{json_path, text};
use crate::merge::{Action, Clash, Item, Left, Outside, Part, Plan, Verdict};
use crate::model::package::Outcome;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, Meta, READ_MAX, escaped};

/// Where a layer keeps it, from its root.
pub const DIR: &str = "usr/lib/sysimage/imgbased";
const NAME: &str = "merge.json";

/// So many paths with a conflict or a note are listed, and so many without; the others are counted. A host can have any
/// number of them.
const LISTED_MAX: usize = 10_000;

/// So many users whose shell is not there are named.
const LOST_MAX: usize = 100;

/// What became of /etc, and of what is carried elsewhere, when the base `new` came into the place of `old`, and `layer`
/// was there.
#[derive(Deserialize, Serialize)]
pub struct MergeReport {
    version: u32,
    pub old: String,
    pub layer: String,
    pub new: String,
    /// Of /etc.
    #[serde(default)]
    pub counts: Counts,
    #[serde(default, skip_serializing_if = "Elsewhere::is_none")]
    pub elsewhere: Elsewhere,
    pub merge: Vec<Row>,
    /// How many more paths there are, without a conflict and with one.
    #[serde(default, skip_serializing_if = "is_zero")]
    more: usize,
    #[serde(default, skip_serializing_if = "is_zero")]
    more_conflicts: usize,
    /// Until the layer has come up: whether it has all that was changed until the restart is looked at then.
    #[serde(default)]
    pub pending: bool,
    /// What was written after it, until the restart, where nothing is carried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_since: Vec<Amount>,
    /// What has become of the packages that the host keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept_packages: Vec<Outcome>,
    /// The packages of `layer`, and of those that the host keeps, that have not come along.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing_packages: Vec<String>,
    /// The conflicts that a person has settled, as [`escaped`] writes their paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    done: Vec<String>,
}

/// A path outside of /etc with what it takes.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// As [`escaped`] writes it.
    pub path: String,
    pub bytes: u64,
    pub files: u64,
}

impl Amount {
    pub fn carried(outside: &Outside) -> Vec<Self> {
        let carried = outside.carried.iter();
        let carried = carried.map(|of| Self::new(&of.path, of.bytes, of.files));
        carried.collect()
    }

    pub fn left(outside: &Outside) -> Vec<Self> {
        outside.left.iter().map(Self::of_left).collect()
    }

    fn of_left(left: &Left) -> Self {
        Self::new(&left.path, left.bytes, left.files)
    }

    /// What is left behind beside what was `before`, but for what a person has said is.
    pub fn left_since(left: &[Left], before: &[Self]) -> Vec<Self> {
        let unknown = left.iter().filter(|left| !left.is_known);
        let is_more = |now: &Self| {
            let mut before = before.iter().filter(|before| before.path == now.path);
            before.all(|before| (now.bytes, now.files) > (before.bytes, before.files))
        };
        unknown.map(Self::of_left).filter(is_more).collect()
    }

    pub fn new(path: &Path, bytes: u64, files: u64) -> Self {
        Self {
            path: format!("/{}", escaped(path)),
            bytes,
            files,
        }
    }
}

#[derive(Default, Deserialize, Serialize)]
pub struct Counts {
    kept: usize,
    deleted: usize,
    merged: usize,
    host: usize,
    left: usize,
    pub conflicts: usize,
}

impl Counts {
    /// For people, on one line.
    pub fn line(&self) -> String {
        let counted = [
            (self.kept, "kept"),
            (self.deleted, "stay deleted"),
            (self.merged, "merged"),
            (self.host, "of this host"),
            (self.left, "not carried"),
            (self.conflicts, "in conflict"),
        ];
        let mut counted = counted.into_iter().filter(|(count, _)| *count > 0);
        let Some((count, what)) = counted.next() else {
            return "as in the image".to_owned();
        };
        let paths = if count == 1 { "path" } else { "paths" };
        let first = format!("{count} {paths} {what}");
        counted.fold(first, |line, (count, what)| {
            format!("{line}, {count} {what}")
        })
    }
}

/// What cannot simply be carried of paths outside of /etc.
#[derive(Clone, Copy, Default, Deserialize, PartialEq, Serialize)]
pub struct Elsewhere {
    pub conflicts: usize,
    /// How many paths cannot be carried, such as devices.
    left: usize,
    /// How many paths there are to say something of, which are not listed, without a conflict and with one.
    more: usize,
    pub more_conflicts: usize,
}

impl Elsewhere {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
    fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// For people, on one line; `None` if there is nothing to tell.
    pub fn line(self) -> Option<String> {
        let counts = Counts {
            conflicts: self.conflicts,
            left: self.left,
            ..Counts::default()
        };
        (self.conflicts + self.left > 0).then(|| counts.line())
    }
}

/// What becomes of a path that is not simply as in the new base.
#[derive(Clone, Deserialize, Serialize)]
pub struct Row {
    path: String,
    /// In base64, where it is no UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    verdict: String,
    /// Of a conflict: of which kind.
    conflict: Option<Clash>,
    /// In which parts it is not as in the new base, or a conflict.
    parts: Vec<Part>,
    /// What the layer did to it, and what the new base did.
    ours: String,
    theirs: String,
    result: String,
    note: Option<String>,
}

impl MergeReport {
    /// Of what is planned for the old base, the layer and the new base with these names.
    pub fn of([old, layer, new]: [String; 3], plan: &Plan) -> Self {
        let mut counts = Counts::default();
        for item in &plan.items {
            let count = match item.verdict {
                Verdict::Kept if is_removal(item) => &mut counts.deleted,
                Verdict::Kept => &mut counts.kept,
                Verdict::Merged => &mut counts.merged,
                Verdict::Host => &mut counts.host,
                Verdict::Left => &mut counts.left,
                Verdict::Conflict(_) => &mut counts.conflicts,
            };
            *count += 1;
        }
        let (merge, [more, more_conflicts]) = listed(&plan.items, LISTED_MAX);
        Self {
            version: JSON_VERSION,
            old,
            layer,
            new,
            counts,
            elsewhere: Elsewhere::default(),
            merge,
            more,
            more_conflicts,
            pending: false,
            left_since: Vec::new(),
            kept_packages: Vec::new(),
            missing_packages: Vec::new(),
            done: Vec::new(),
        }
    }

    /// Adds what there is to say of what is carried elsewhere.
    pub fn add_outside(&mut self, outside: &Outside) {
        let [more, more_conflicts] = outside.more_items;
        self.elsewhere = Elsewhere {
            conflicts: outside.conflicts,
            left: outside.not_carried,
            more,
            more_conflicts,
        };
        let items = outside.items.iter();
        self.merge
            .extend(items.map(|item| Row::new(Path::new("/"), item)));
    }

    /// The same as in the report of an earlier merge.
    pub fn keep_outside(&mut self, before: &mut Self) {
        self.elsewhere = before.elsewhere;
        let rows = std::mem::take(&mut before.merge).into_iter();
        self.merge.extend(rows.filter(Row::is_elsewhere));
    }

    /// Lists a file of /etc as a conflict, as what it names is not there.
    pub fn add_lost(&mut self, path: &Path, lost: &[impl Display]) {
        if lost.is_empty() {
            return;
        }
        let is_one = |row: &Row| row.path() == path;
        let at = self.merge.iter().position(is_one).unwrap_or_else(|| {
            // It was counted only, as the last of too many.
            self.more = self.more.saturating_sub(1);
            self.merge.push(Row::of_both(path));
            self.merge.len() - 1
        });
        let row = &mut self.merge[at];
        let count = match row.verdict.as_str() {
            "kept" => &mut self.counts.kept,
            "merged" => &mut self.counts.merged,
            _ => &mut self.counts.conflicts,
        };
        *count = count.saturating_sub(1);
        self.counts.conflicts += 1;
        row.conflict = row.conflict.or(Some(Clash::Both));
        "conflict".clone_into(&mut row.verdict);
        if !row.parts.contains(&Part::Content) {
            row.parts.push(Part::Content);
        }
        let said = lost.iter().take(LOST_MAX).map(ToString::to_string);
        let mut said: Vec<String> = row.note.take().into_iter().chain(said).collect();
        if let Some(more) = lost.len().checked_sub(LOST_MAX).filter(|more| *more > 0) {
            said.push(format!("and {more} more"));
        }
        row.note = Some(said.join("; "));
    }

    /// What the layer at `root` keeps; `None` if there is nothing. Refuses what cannot be read.
    pub fn read(root: &Path) -> Result<Option<Self>> {
        let Some(content) = content(&Dir::root(root)?, NAME)? else {
            return Ok(None);
        };
        let report = serde_json::from_slice(&content);
        let report: Self = report.with_context(|| format!("cannot read /{DIR}/{NAME}"))?;
        ensure!(
            report.version == JSON_VERSION,
            "/{DIR}/{NAME} is of version {}, which this imgbased-helper does not know",
            report.version
        );
        Ok(Some(report))
    }

    /// Has the layer at `root` keep it, in the place of another one. It is undone together with the layer.
    pub fn write(&self, tx: &mut Transaction, root: &Path) -> Result<()> {
        let shown = format!("# {} is written", root.join(DIR).join(NAME).display());
        tx.work(&shown, |_| self.put(root))
    }

    fn put(&self, root: &Path) -> Result<()> {
        let content = serde_json::to_string_pretty(self)? + "\n";
        put(&Dir::root(root)?, NAME, content.as_bytes(), 0o644)
            .with_context(|| format!("cannot write /{DIR}/{NAME}"))
    }

    /// The conflicts, as a table.
    pub fn conflicts(&self) -> String {
        self.rows(|row| row.conflict.is_some())
    }

    /// The same with what cannot be carried of what is outside of /etc.
    pub fn conflicts_and_left(&self) -> String {
        self.rows(|row| row.conflict.is_some() || row.verdict == "left" && row.is_elsewhere())
    }

    fn rows(&self, is_meant: impl Fn(&Row) -> bool) -> String {
        let rows = self.merge.iter().filter(|row| is_meant(row));
        text::columns(&rows.map(Row::columns).collect::<Vec<_>>()) + &self.others_in_conflict()
    }

    /// How many conflicts are not listed.
    pub fn unlisted_conflicts(&self) -> usize {
        self.more_conflicts + self.elsewhere.more_conflicts
    }

    /// What there is to say of them.
    fn others_in_conflict(&self) -> String {
        match self.unlisted_conflicts() {
            0 => String::new(),
            more => format!("and {more} more in conflict\n"),
        }
    }

    pub fn table(&self) -> String {
        let rows: Vec<(String, String)> = self.merge.iter().map(Row::columns).collect();
        let mut table = text::columns(&rows);
        if self.more > 0 {
            table += &format!("and {} more, without a conflict\n", self.more);
        }
        table + &self.others_in_conflict()
    }

    /// Keeps only the conflicts that nobody has settled.
    pub fn retain_open(&mut self) {
        let done = std::mem::take(&mut self.done);
        let is_open = |row: &Row| row.conflict.is_some() && !done.contains(&escaped(row.path()));
        self.merge.retain(is_open);
    }

    /// Takes the conflict at `path`, and those `below` it, off the list. Returns whether there was one.
    pub fn settle(&mut self, path: &Path, below: bool) -> bool {
        let is_meant = |row: &&Row| {
            let of = row.path();
            of == path || below && of.starts_with(path)
        };
        let found = self.merge.iter().filter(|row| row.conflict.is_some());
        let found = found.filter(is_meant).map(|row| escaped(row.path()));
        let mut found: Vec<String> = found.collect();
        found.retain(|path| !self.done.contains(path));
        self.done.append(&mut found.clone());
        !found.is_empty()
    }
}

/// The directory that the report is in, and all else that is of this layer only. It is made where it is not there.
pub fn directory(root: &Dir) -> io::Result<Dir> {
    let mut dir = root.again()?;
    let mut path = PathBuf::new();
    for name in Path::new(DIR) {
        path.push(name);
        // The image may have a link there.
        let found = root.resolve_dir(&path)?;
        dir = if let Some(found) = found {
            found
        } else {
            dir.make_dir(name)?;
            set_mode(&dir, name, 0o755)?;
            dir.child(name)?
        };
    }
    Ok(dir)
}

/// The content of a file of this name there; `None` if there is none.
pub fn content(root: &Dir, name: &str) -> Result<Option<Vec<u8>>> {
    let failed = || format!("cannot read /{DIR}/{name}");
    let found = root.resolve(&Path::new(DIR).join(name));
    let node = found.with_context(failed)?;
    let content = node.map(|node| node.read(READ_MAX)).transpose();
    content.with_context(failed)
}

/// Puts a file of this name there. It takes its place when it is complete and on the disk.
pub fn put(root: &Dir, name: &str, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = directory(root)?;
    dir.replace(name.as_ref(), &mut |temporary| {
        let mut file = dir.create(temporary)?;
        file.write_all(content)?;
        set_mode(&dir, temporary, mode)?;
        file.sync_all()
    })
}

fn set_mode(dir: &Dir, name: &OsStr, mode: u32) -> io::Result<()> {
    let node = dir.node(name)?;
    let meta = Meta {
        uid: node.stat.uid,
        gid: node.stat.gid,
        mode,
        xattrs: node.xattrs()?,
    };
    dir.set_meta(name, &meta, None)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde hands it over so")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// The rows of these, with at most `max` that have a conflict or a note, and as many others. Returns as well how many
/// are left out without a conflict, and with one.
fn listed(items: &[Item], max: usize) -> (Vec<Row>, [usize; 2]) {
    let (mut rows, mut quiet, mut loud, mut more) = (Vec::new(), 0, 0, [0, 0]);
    for item in items {
        let is_conflict = matches!(item.verdict, Verdict::Conflict(_));
        let is_quiet = item.note.is_none() && !is_conflict;
        let seen = if is_quiet { &mut quiet } else { &mut loud };
        *seen += 1;
        if *seen > max {
            more[usize::from(is_conflict)] += 1;
        } else {
            rows.push(Row::new(Path::new("/etc"), item));
        }
    }
    (rows, more)
}

fn is_removal(item: &Item) -> bool {
    matches!(item.action, Action::Remove | Action::RemoveDir)
}

impl Row {
    /// Of a path below `top`.
    fn new(top: &Path, item: &Item) -> Self {
        let (path, path_bytes) = json_path::of(&top.join(&item.path));
        let result = match &item.action {
            Action::Remove | Action::RemoveDir => "deleted",
            Action::Nothing => "theirs",
            Action::Put(_) if item.verdict == Verdict::Merged => "both",
            Action::Put(_) => "ours",
        };
        let (verdict, conflict) = match item.verdict {
            Verdict::Kept if is_removal(item) => ("deleted", None),
            Verdict::Kept => ("kept", None),
            Verdict::Merged => ("merged", None),
            Verdict::Host => ("host", None),
            Verdict::Left => ("left", None),
            Verdict::Conflict(clash) => ("conflict", Some(clash)),
        };
        Self {
            path,
            path_bytes,
            verdict: verdict.to_owned(),
            conflict,
            parts: item.parts.clone(),
            ours: item.ours.to_owned(),
            theirs: item.theirs.to_owned(),
            result: result.to_owned(),
            note: item.note.clone(),
        }
    }

    /// A file as both sides have made it.
    fn of_both(path: &Path) -> Self {
        let (path, path_bytes) = json_path::of(path);
        Self {
            path,
            path_bytes,
            verdict: "merged".to_owned(),
            conflict: None,
            parts: Vec::new(),
            ours: "modified".to_owned(),
            theirs: "modified".to_owned(),
            result: "both".to_owned(),
            note: None,
        }
    }

    /// The whole path.
    pub fn path(&self) -> PathBuf {
        json_path::read(&self.path, self.path_bytes.as_deref())
    }

    /// Whether it is outside of /etc.
    fn is_elsewhere(&self) -> bool {
        !self.path().starts_with("/etc")
    }

    fn columns(&self) -> (String, String) {
        let mut words = match self.verdict.as_str() {
            "deleted" => "stays deleted",
            "host" => "of this host",
            "left" => "not carried",
            verdict => verdict,
        }
        .to_owned();
        if self.conflict.is_some() {
            let (ours, theirs, result) = (&self.ours, &self.theirs, &self.result);
            words += &format!(": here {ours}, in the base {theirs}; the result is {result}");
        }
        let parts: Vec<&str> = self.parts.iter().copied().map(Part::name).collect();
        if !parts.is_empty() {
            words += &format!(" ({})", parts.join(", "));
        }
        if let Some(note) = &self.note {
            words += &format!("; {note}");
        }
        (escaped(self.path()), escaped(words))
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::model::package::Fate;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const PASSWD: &str = "/etc/passwd";

    fn row(path: &str, conflict: Option<Clash>) -> Row {
        Row {
            path: path.to_owned(),
            path_bytes: None,
            verdict: if conflict.is_some() {
                "conflict"
            } else {
                "kept"
            }
            .to_owned(),
            conflict,
            parts: vec![Part::Content],
            ours: "modified".to_owned(),
            theirs: "modified".to_owned(),
            result: "ours".to_owned(),
            note: None,
        }
    }

    /// A report that has all that one can have.
    pub fn full() -> MergeReport {
        let image = Some("3.3".to_owned());
        let fates = [Fate::Installed, Fate::InImage, Fate::Refused, Fate::Failed];
        let packages = fates.map(|result| Outcome {
            name: "htop".to_owned(),
            version: "3.4".to_owned(),
            result,
            image: image.clone(),
            why: image.clone(),
        });
        let mut report = MergeReport {
            kept_packages: packages.into(),
            missing_packages: vec!["vim".to_owned()],
            left_since: vec![Amount::new(Path::new("data"), 60, 2)],
            elsewhere: Elsewhere {
                conflicts: 1,
                left: 1,
                more: 2,
                more_conflicts: 3,
            },
            ..report()
        };
        assert!(report.settle(Path::new("/etc/issue"), false));
        report
    }

    #[test]
    fn the_report_is_a_document_as_its_schema_says() {
        for report in [report(), full()] {
            crate::schemas::assert_holds("persist-preview", &report);
        }
    }

    fn report() -> MergeReport {
        let latin = Row {
            path_bytes: Some("L2V0Yy9sYXRpbuQ=".to_owned()),
            ..row("/etc/latin\u{fffd}", Some(Clash::Both))
        };
        MergeReport {
            version: JSON_VERSION,
            old: "Base-0".to_owned(),
            layer: "Base-0.1".to_owned(),
            new: "Base-1".to_owned(),
            counts: Counts::default(),
            merge: vec![
                row("/etc/issue", Some(Clash::Both)),
                row("/etc/shells", None),
                latin,
            ],
            more: 0,
            more_conflicts: 0,
            elsewhere: Elsewhere::default(),
            pending: false,
            left_since: Vec::new(),
            kept_packages: Vec::new(),
            missing_packages: Vec::new(),
            done: Vec::new(),
        }
    }

    #[test]
    fn what_is_left_behind_is_told_once_and_when_it_has_grown() {
        let left = |path: &str, bytes, is_known| Left {
            path: path.into(),
            bytes,
            files: 1,
            is_known,
        };
        let before = [("same", 5), ("grown", 5), ("shrunk", 5)];
        let before = before.map(|(path, bytes)| Amount::new(Path::new(path), bytes, 1));
        let now = [
            left("same", 5, false),
            left("grown", 6, false),
            left("shrunk", 4, false),
            left("new", 0, false),
            left("asked for", 9, true),
        ];
        let since = Amount::left_since(&now, &before);
        let paths: Vec<&str> = since.iter().map(|of| of.path.as_str()).collect();
        assert_eq!(paths, ["/grown", "/new"]);
    }

    #[test]
    fn what_cannot_simply_be_carried_elsewhere_is_told_also_after_a_second_merge() {
        let left = Row {
            verdict: "left".to_owned(),
            ..row("/srv/pipe", None)
        };
        let mut first = MergeReport {
            merge: vec![
                row("/etc/issue", Some(Clash::Both)),
                row("/root/x", Some(Clash::Added)),
                left,
            ],
            elsewhere: Elsewhere {
                conflicts: 2,
                left: 1,
                more: 7,
                more_conflicts: 1,
            },
            ..report()
        };
        let conflict =
            "conflict: here modified, in the base modified; the result is ours (content)";
        assert_eq!(
            first.conflicts_and_left(),
            format!(
                "/etc/issue  {conflict}\n/root/x     {conflict}\n/srv/pipe   not carried (content)\n\
                 and 1 more in conflict\n"
            )
        );
        assert!(!first.conflicts().contains("/srv/pipe"));
        let line = first.elsewhere.line();
        assert_eq!(line.as_deref(), Some("1 path not carried, 2 in conflict"));
        let mut second = MergeReport {
            merge: vec![row("/etc/motd", Some(Clash::Both))],
            ..report()
        };
        second.keep_outside(&mut first);
        let paths: Vec<PathBuf> = second.merge.iter().map(Row::path).collect();
        assert_eq!(
            paths,
            ["/etc/motd", "/root/x", "/srv/pipe"].map(PathBuf::from)
        );
        assert!(second.elsewhere == first.elsewhere);
        assert!(second.settle(Path::new("/root/x"), false));
    }

    #[test]
    fn what_is_beyond_the_bound_is_counted() {
        let item = |path: &str, verdict, note: &str| Item {
            path: path.into(),
            action: Action::Nothing,
            verdict,
            parts: Vec::new(),
            ours: "modified",
            theirs: "modified",
            note: Some(note.to_owned()).filter(|note| !note.is_empty()),
        };
        let conflict = Verdict::Conflict(Clash::Both);
        let items = [
            item("a", Verdict::Kept, ""),
            item("b", conflict, ""),
            item("c", Verdict::Kept, ""),
            item("d", Verdict::Left, "a note"),
            item("e", conflict, ""),
            item("f", Verdict::Kept, "a note"),
        ];
        for (max, wanted, left_out) in [
            (9, "abcdef", [0, 0]),
            (2, "abcd", [1, 1]),
            (1, "ab", [3, 1]),
            (0, "", [4, 2]),
        ] {
            let (merge, more) = listed(&items, max);
            let names: String = merge.iter().map(|row| &row.path[5..]).collect();
            assert_eq!((names.as_str(), more), (wanted, left_out), "{max}");
            let [more, more_conflicts] = more;
            let report = MergeReport {
                merge,
                more,
                more_conflicts,
                ..report()
            };
            let line = format!("and {more_conflicts} more in conflict\n");
            for table in [report.table(), report.conflicts()] {
                assert_eq!(table.ends_with(&line), more_conflicts > 0, "{table}");
            }
            crate::schemas::assert_holds("persist-preview", &report);
        }
    }

    #[test]
    fn users_without_a_shell_are_a_conflict_of_their_file() {
        let many = vec!["y".to_owned(); LOST_MAX + 2];
        for (row_of, kept, lost, note) in [
            (
                Some(row(PASSWD, None)),
                0,
                &["x".to_owned()][..],
                "before; x",
            ),
            (
                Some(row(PASSWD, Some(Clash::Type))),
                1,
                &["x".to_owned()],
                "before; x",
            ),
            // It was counted only.
            (None, 1, &["x".to_owned()], "x"),
            (
                None,
                1,
                &many,
                &(vec!["y"; LOST_MAX].join("; ") + "; and 2 more"),
            ),
        ] {
            let is_listed = row_of.is_some();
            let is_conflict = row_of.as_ref().is_some_and(|row| row.conflict.is_some());
            let mut report = MergeReport {
                merge: row_of.into_iter().collect(),
                more: usize::from(!is_listed),
                ..report()
            };
            report.counts.kept = 1;
            report.counts.conflicts = usize::from(is_conflict);
            for row in &mut report.merge {
                row.note = Some("before".to_owned());
            }
            report.add_lost(Path::new(PASSWD), &[""; 0]);
            report.add_lost(Path::new(PASSWD), lost);
            let counts = &report.counts;
            assert_eq!((counts.kept, counts.conflicts, report.more), (kept, 1, 0));
            let found = &report.merge[0];
            assert_eq!(
                (found.path.as_str(), found.note.as_deref()),
                (PASSWD, Some(note))
            );
            crate::schemas::assert_holds("persist-preview", &report);
            report.retain_open();
            assert_eq!(report.merge.len(), 1);
        }
    }

    #[test]
    fn a_layer_keeps_its_report_whatever_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(MergeReport::read(root).unwrap().is_none());
        // In an image a part of the path can be a link.
        fs::create_dir_all(root.join("usr/lib")).unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("/real", root.join("usr/lib/sysimage")).unwrap();
        for settled in [0, 1] {
            let mut written = report();
            if settled == 1 {
                assert!(written.settle(Path::new("/etc/issue"), false));
            }
            written.put(root).unwrap();
            let mut read = MergeReport::read(root).unwrap().unwrap();
            assert_eq!(read.new, "Base-1");
            read.retain_open();
            assert_eq!(read.merge.len(), 2 - settled);
        }
        let file = root.join("real/imgbased/merge.json");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o644);
        assert_eq!(mode(&root.join("real/imgbased")), 0o755);
        assert_eq!(fs::read_dir(root.join("real/imgbased")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_report_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(DIR);
        fs::create_dir_all(&path).unwrap();
        let file = path.join(NAME);
        for content in [
            "",
            "{}",
            "[",
            r#"{"version":2,"old":"","layer":"","new":"","merge":[]}"#,
            r#"{"version":1,"old":"","layer":"","new":"","merge":[{"path":"/etc/x"}]}"#,
        ] {
            fs::write(&file, content).unwrap();
            assert!(MergeReport::read(dir.path()).is_err(), "{content}");
        }
        let least = r#"{"version":1,"old":"","layer":"","new":"","merge":[]}"#;
        fs::write(&file, least).unwrap();
        assert!(MergeReport::read(dir.path()).unwrap().is_some());
        // Neither a directory nor a device is read.
        fs::remove_file(&file).unwrap();
        symlink("/dev/zero", &file).unwrap();
        assert!(MergeReport::read(dir.path()).unwrap().is_none());
        fs::remove_file(&file).unwrap();
        fs::create_dir(&file).unwrap();
        assert!(MergeReport::read(dir.path()).is_err());
    }

    #[test]
    fn a_settled_conflict_is_off_the_list() {
        use std::os::unix::ffi::OsStrExt;
        let latin = Path::new(OsStr::from_bytes(b"/etc/latin\xe4"));
        let mut report = report();
        for (path, below, is_open) in [
            (Path::new("/etc/iss"), true, false),
            (Path::new("/etc/issue"), false, true),
            (Path::new("/etc/issue"), false, false),
            (latin, false, true),
            (latin, true, false),
            // It was never a conflict, or is not listed.
            (Path::new("/etc/shells"), false, false),
            (Path::new("/etc/other"), false, false),
            (Path::new("/etc"), true, false),
        ] {
            assert_eq!(report.settle(path, below), is_open, "{}", path.display());
        }
        assert_eq!(report.done, ["/etc/issue", "/etc/latin\\344"]);
        report.retain_open();
        assert!(report.merge.is_empty() && report.table().is_empty());
        let mut report = self::report();
        assert!(report.settle(Path::new("/etc"), true));
        assert_eq!(report.done.len(), 2);
    }

    #[test]
    fn a_conflict_says_who_did_what_on_one_line() {
        let mut row = row("/etc/two\nlines", Some(Clash::Both));
        row.note = Some("a\u{1b}[2J".to_owned());
        let (path, words) = row.columns();
        assert_eq!(path, "/etc/two\\nlines");
        assert_eq!(
            words,
            "conflict: here modified, in the base modified; the result is ours (content); a\\033[2J"
        );
    }
}
