//! `persist diff`: what a path is on each side of the merge that made the layer that runs.

use std::path::Path;

use anyhow::{Context as _, Result};

use super::conflicts::{self, RUNNING};
use super::inside;
use crate::admin::{Context, roots, say, text, text_diff};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::persist::from_root;
use crate::tree::{Dir, Kind, Stat, escaped};

/// The largest file that is compared, in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// A path on one side.
struct Side {
    name: String,
    stat: Option<Stat>,
    /// What is compared of it, or why it is not.
    text: Result<Vec<u8>, &'static str>,
}

/// Shows the path in the old base, the layer before, the base and the layer that runs, and what diff(1) says of the
/// files.
pub fn diff(context: &Context, path: &Path) -> Result<()> {
    text_diff::check_installed()?;
    let path = from_root(path)?;
    let sides = context.change("persist diff", |tx| {
        let group = context.load()?;
        let report = conflicts::report(&group)?;
        let base = roots::base_of_running(&group)?;
        let before = report.map(|report| [report.old, report.layer]);
        let mut sides = [const { None }; 4];
        let names = before.iter().flatten().map(|name| {
            let found = bootable(&group, name);
            if found.is_none() {
                log::warn!("{} is gone, so what it had is not shown", escaped(name));
            }
            found
        });
        let mut names: Vec<Option<LvName>> = names.collect();
        names.resize(2, None);
        names.push(Some(base));
        for (side, name) in sides.iter_mut().zip(names) {
            if let Some(name) = name {
                inside(context, tx, &group, &name, "ro", &mut |_, root| {
                    *side = Some(Side::read(name.as_str(), root, &path)?);
                    Ok(())
                })?;
            }
        }
        sides[3] = Some(Side::read("here", Path::new(RUNNING), &path)?);
        Ok(sides)
    })?;
    let rows: Vec<(String, String)> = sides.iter().flatten().map(Side::columns).collect();
    let mut shown = text::columns(&rows);
    let [old, layer, base, here] = &sides;
    for (from, to) in [(old, layer), (old, base), (base, here)] {
        if let (Some(from), Some(to)) = (from, to) {
            shown += &from.compared(to, &path)?;
        }
    }
    say(&shown)
}

fn bootable(group: &Group, name: &str) -> Option<LvName> {
    let name = name.parse().ok();
    name.filter(|name| group.bootable().contains(name))
}

impl Side {
    fn read(name: &str, root: &Path, path: &Path) -> Result<Self> {
        let failed = || format!("cannot read /{} in {name}", escaped(path));
        let above = path.parent().unwrap_or(Path::new(""));
        let file = path.file_name().unwrap_or_default();
        let mut side = Self {
            name: name.to_owned(),
            stat: None,
            text: Ok(Vec::new()),
        };
        let Some(dir) = Dir::root(root)?.descend(above).with_context(failed)? else {
            return Ok(side);
        };
        if dir.stat_of(file).with_context(failed)?.is_none() {
            return Ok(side);
        }
        let node = dir.node(file).with_context(failed)?;
        side.stat = Some(node.stat);
        side.text = match node.stat.kind {
            Kind::File if node.stat.size > TEXT_MAX => Err("too large"),
            Kind::File => {
                let content = node.read(TEXT_MAX).with_context(failed)?;
                if text_diff::is_text(&content) {
                    Ok(content)
                } else {
                    Err("no text")
                }
            }
            Kind::Link => {
                let target = node.target().with_context(failed)?;
                Ok(format!("link to {}\n", escaped(target)).into_bytes())
            }
            _ => Err("no file"),
        };
        Ok(side)
    }

    fn columns(&self) -> (String, String) {
        let words = self.stat.map_or_else(
            || "nothing".to_owned(),
            |stat| {
                let (kind, size) = (stat.kind.name(), text::size(stat.size));
                let (mode, uid, gid) = (stat.mode, stat.uid, stat.gid);
                format!("{kind}, mode {mode:04o}, owner {uid}:{gid}, {size}")
            },
        );
        (self.name.clone(), words)
    }

    /// What diff(1) says.
    fn compared(&self, to: &Self, path: &Path) -> Result<String> {
        let (from, to_text) = match (&self.text, &to.text) {
            (Ok(from), Ok(to)) => (from, to),
            (Err(why), _) => return Ok(format!("{} is not compared: {why}\n", self.name)),
            (_, Err(why)) => return Ok(format!("{} is not compared: {why}\n", to.name)),
        };
        let name = |side: &Self| format!("{}:/{}", side.name, escaped(path));
        text_diff::unified(from, to_text, [&name(self), &name(to)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn side(dir: &Path, name: &str) -> Side {
        Side::read(name, &dir.join(name), Path::new("etc/x")).unwrap()
    }

    #[test]
    fn each_side_is_shown_and_text_is_compared() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        for name in ["a", "b", "none", "link", "binary", "large", "dir"] {
            fs::create_dir_all(dir.join(name).join("etc")).unwrap();
        }
        fs::write(dir.join("a/etc/x"), "one\ntwo\n").unwrap();
        fs::write(dir.join("b/etc/x"), "one\n\u{1b}[2J\n").unwrap();
        symlink("\u{1b}", dir.join("link/etc/x")).unwrap();
        fs::write(dir.join("binary/etc/x"), b"a\0b").unwrap();
        let large = fs::File::create(dir.join("large/etc/x")).unwrap();
        large.set_len(TEXT_MAX + 1).unwrap();
        fs::create_dir(dir.join("dir/etc/x")).unwrap();
        fs::create_dir(dir.join("empty")).unwrap();
        let path = Path::new("etc/x");
        for (name, wanted) in [
            (
                "b",
                "--- a:/etc/x\n+++ b:/etc/x\n@@ -1,2 +1,2 @@\n one\n-two\n+\u{fffd}[2J\n",
            ),
            ("a", ""),
            (
                "none",
                "--- a:/etc/x\n+++ none:/etc/x\n@@ -1,2 +0,0 @@\n-one\n-two\n",
            ),
            (
                "link",
                "--- a:/etc/x\n+++ link:/etc/x\n@@ -1,2 +1 @@\n-one\n-two\n+link to \\033\n",
            ),
            ("binary", "binary is not compared: no text\n"),
            ("large", "large is not compared: too large\n"),
            ("dir", "dir is not compared: no file\n"),
            (
                "empty",
                "--- a:/etc/x\n+++ empty:/etc/x\n@@ -1,2 +0,0 @@\n-one\n-two\n",
            ),
        ] {
            let found = side(dir, "a").compared(&side(dir, name), path).unwrap();
            assert_eq!(found, wanted, "{name}");
        }
        assert_eq!(side(dir, "none").columns().1, "nothing");
        assert!(side(dir, "a").columns().1.ends_with(", 8 B"));
    }
}
