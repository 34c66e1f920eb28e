//! `persist add`, `list` and `remove`: the lists of what is carried, as files of the Config volume.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::{Look, inside, packages};
pub use crate::admin::layout_init::CONFIG;
use crate::admin::layout_init::make_config;
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, comment, json_path, pool_with_room, say, update};
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::model::package::Kept;
use crate::model::persist::{Rule, Rules, with_line, without};
use crate::sys::mounts;
use crate::sys::transaction::Transaction;
use crate::tree::{Below, Dir, Kind, escaped, walk};

/// The lists: this one, which is ours, and each in that directory.
const LIST: &str = "files";
const LISTS: &str = "files.d";
/// The largest list, in bytes.
const LIST_MAX: u64 = 1 << 20;
/// Where fstab may have the volume mounted.
const MOUNTED: &str = "/config";

/// What is carried to layers of newer bases.
#[derive(Default)]
pub struct Carried {
    pub rules: Rules,
    /// With their sizes in bytes.
    pub packages: Vec<(Kept, u64)>,
}

#[derive(Serialize)]
struct Listed {
    version: u32,
    rules: Vec<Row>,
    packages: Vec<packages::Row>,
}

#[derive(Serialize)]
struct Row {
    rule: String,
    list: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    matches: Option<Vec<Match>>,
}

#[derive(Serialize)]
struct Match {
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
}

/// Shows what is carried; with `matches` also what that is now in the system that runs.
pub fn list(context: &Context, matches: bool) -> Result<()> {
    let carried = context.change("persist list", |tx| {
        let group = context.load()?;
        listed(context, tx, &group)
    })?;
    let mut listed = Listed {
        version: JSON_VERSION,
        rules: Vec::new(),
        packages: carried.packages.iter().map(packages::Row::new).collect(),
    };
    let mut text = String::new();
    for rule in carried.rules.0 {
        text += &format!("{}\n", rule.text);
        let mut row = Row {
            list: rule.list.to_string_lossy().into_owned(),
            matches: None,
            rule: rule.text.clone(),
        };
        if matches {
            let found = matching(&Dir::root(Path::new("/"))?, &rule)?;
            for path in &found {
                text += &format!("  {}\n", escaped(path));
            }
            let found = found.iter().map(|path| {
                let (path, path_bytes) = json_path::of(path);
                Match { path, path_bytes }
            });
            row.matches = Some(found.collect());
        }
        listed.rules.push(row);
    }
    text.extend(listed.packages.iter().map(packages::Row::line));
    context.show(&listed, || text)
}

/// Puts paths and patterns on the list.
pub fn add(context: &Context, texts: &[String]) -> Result<()> {
    let rules = parsed(texts)?;
    let mut said = String::new();
    context.change("persist add", |tx| {
        let group = context.load()?;
        in_own_config(context, tx, &group, &mut |tx, dir| {
            let lists = lists(dir)?;
            let there = all(&lists);
            let mut ours = content_of(dir, &lists)?;
            let before = ours.len();
            for rule in &rules {
                if there.0.iter().any(|listed| listed.text == rule.text) {
                    said += &format!("{} is listed already\n", rule.text);
                } else {
                    ours = with_line(&ours, &rule.text);
                }
            }
            if ours.len() > before {
                ensure!(
                    ours.len() as u64 <= LIST_MAX,
                    "the list would be larger than {LIST_MAX} bytes"
                );
                tx.write(&dir.join(LIST), &ours, 0o644)?;
            }
            Ok(())
        })?;
        update::lists_changed(tx)
    })?;
    if context.dry_run {
        return Ok(());
    }
    say(&said)
}

/// Takes paths and patterns off all lists.
pub fn remove(context: &Context, texts: &[String]) -> Result<()> {
    let rules = parsed(texts)?;
    context.change("persist remove", |tx| {
        let group = context.load()?;
        in_config(context, tx, &group, "rw", &mut |tx, dir| {
            let lists = lists(dir)?;
            let there = all(&lists);
            for rule in &rules {
                ensure!(
                    there.0.iter().any(|listed| listed.text == rule.text),
                    "{} is not listed; `imgbased-helper persist list` shows what is",
                    rule.text
                );
            }
            for (name, content) in lists {
                let left = rules
                    .iter()
                    .fold(content.clone(), |content, rule| without(&content, rule));
                if left != content {
                    tx.write(&dir.join(name), &left, 0o644)?;
                }
            }
            Ok(())
        })
    })
}

/// What is carried. A group without a volume for that has nothing.
pub fn listed(context: &Context, tx: &mut Transaction, group: &Group) -> Result<Carried> {
    let mut carried = Carried::default();
    if config(group).is_some() {
        in_config(context, tx, group, "ro", &mut |_, dir| {
            carried.rules = all(&lists(dir)?);
            carried.packages = packages::kept(dir)?;
            Ok(())
        })?;
    }
    Ok(carried)
}

fn parsed(texts: &[String]) -> Result<Vec<Rule>> {
    let mut rules: Vec<Rule> = Vec::new();
    for text in texts {
        let rule = Rule::new(text, Path::new(LIST))?;
        if rules.iter().all(|other| other.text != rule.text) {
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The Config volume, if the group has one.
pub fn config(group: &Group) -> Option<LvName> {
    let volume = group
        .volume(CONFIG)
        .filter(|volume| volume.role == Role::Volume);
    volume.and_then(|volume| volume.name.parse().ok())
}

/// Where all see the Config volume mounted, if they do. No start of a host needs that.
pub fn mounted_config(group: &Group, config: &LvName) -> Result<Option<&'static Path>> {
    let mounted = mounts::dm_name_at(Path::new(MOUNTED)).unwrap_or_default();
    Ok((mounted == Some(group.name.dm_name(config)?)).then_some(Path::new(MOUNTED)))
}

/// Hands over where the Config volume is mounted. No start of a host needs that.
pub fn in_config(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    options: &str,
    look: Look,
) -> Result<()> {
    let name = config(group).with_context(|| {
        format!(
            "{} has no volume {CONFIG} with the tag imgbased:volume, which keeps the lists",
            group.name
        )
    })?;
    if let Some(mounted) = mounted_config(group, &name)? {
        return look(tx, mounted);
    }
    inside(context, tx, group, &name, options, look)
}

/// The same, to write there. A group that has no such volume, as imgbased made them, gets one.
pub fn in_own_config(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    look: Look,
) -> Result<()> {
    let Some(pool) = pool_for_config(group) else {
        return in_config(context, tx, group, "rw", look);
    };
    context.check_pool(group)?;
    pool_with_room(group)?;
    make_config(tx, &context.lvm, &pool.parse()?)?;
    if context.dry_run {
        return comment(&format!(
            "{CONFIG} is mounted, and what is to be kept is written there"
        ));
    }
    in_config(context, tx, &context.load()?, "rw", look)
}

/// The pool of a group that lacks the Config volume.
fn pool_for_config(group: &Group) -> Option<&str> {
    let pool = group.pool().filter(|_| group.volume(CONFIG).is_none())?;
    Some(&pool.name)
}

/// All lists with their content: their names in `dir`, in their order.
fn lists(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let root = Dir::root(dir)?;
    let mut lists = Vec::new();
    let mut take = |dir: &Dir, path: PathBuf| -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let failed = || format!("cannot read {} of {CONFIG}", escaped(&path));
        match dir.stat_of(name).with_context(failed)? {
            Some(stat) if stat.kind == Kind::File => {
                let content = dir.node(name).and_then(|node| node.read(LIST_MAX));
                lists.push((path.clone(), content.with_context(failed)?));
            }
            Some(stat) => {
                let kind = stat.kind.name();
                log::warn!("{} of {CONFIG} is a {kind}, and no list", escaped(&path));
            }
            None => {}
        }
        Ok(())
    };
    take(&root, LIST.into())?;
    if let Some(dir) = root.descend(Path::new(LISTS))? {
        for name in dir.names()? {
            // Others leave such names: editors, and what replaces a file.
            if !name.as_bytes().starts_with(b".") && !name.as_bytes().ends_with(b"~") {
                take(&dir, Path::new(LISTS).join(name))?;
            }
        }
    }
    Ok(lists)
}

/// The rules of all lists. What is wrong is told, and keeps no other rule from counting.
fn all(lists: &[(PathBuf, Vec<u8>)]) -> Rules {
    let mut rules = Rules::default();
    for (name, content) in lists {
        for wrong in rules.parse(name, content) {
            log::warn!("{} of {CONFIG}: {}", escaped(name), escaped(wrong));
        }
    }
    rules
}

/// The content of our list, which need not be there.
fn content_of(dir: &Path, lists: &[(PathBuf, Vec<u8>)]) -> Result<Vec<u8>> {
    let ours = lists.iter().find(|(name, _)| name == Path::new(LIST));
    if let Some((_, content)) = ours {
        return Ok(content.clone());
    }
    if Dir::root(dir)?.stat_of(OsStr::new(LIST))?.is_some() {
        bail!("{LIST} of {CONFIG} is no file, so nothing can be listed there");
    }
    Ok(Vec::new())
}

/// The paths in a root that a rule is of, without what is below them. What is mounted in it is not looked into.
pub fn matching(root: &Dir, rule: &Rule) -> Result<Vec<PathBuf>> {
    let (above, only) = rule.place();
    let dir = root.descend(&above);
    let Some(dir) = dir.with_context(|| format!("cannot open /{}", above.display()))? else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    walk(&[Some(dir)], only.map(OsStr::new), &mut |visit| {
        let path = above.join(visit.path);
        if rule.is_of(&path) {
            found.push(Path::new("/").join(path));
            return Ok(Below::Skip);
        }
        Ok(if rule.is_of_more_below(&path) {
            Below::Visit
        } else {
            Below::Skip
        })
    })?;
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::{Volume, tag};
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn the_list_is_a_document_as_its_schema_says() {
        let paths = [None, Some("L3Jvb3QvbGF0aW7k".to_owned())];
        let matches = paths.map(|path_bytes| Match {
            path: "/root/latin".to_owned(),
            path_bytes,
        });
        let rules = [None, Some(matches.into())];
        let rules = rules.map(|matches| Row {
            rule: "/root".to_owned(),
            list: "files".to_owned(),
            matches,
        });
        let kept = Kept {
            name: "htop".to_owned(),
            version: "3.4".to_owned(),
            architecture: "amd64".to_owned(),
            digest: "ab01".repeat(16),
            format: crate::model::package::Format::Deb,
        };
        let listed = Listed {
            version: JSON_VERSION,
            rules: rules.into(),
            packages: vec![packages::Row::new(&(kept, 4096))],
        };
        crate::schemas::assert_holds("persist-list", &listed);
    }

    #[test]
    fn a_group_that_lacks_the_volume_gets_it_in_its_own_pool() {
        let pool = Volume::tagged("pool00", &[tag::POOL]);
        let config = Volume::tagged(CONFIG, &[tag::VOLUME]);
        // What is called so, and is none of ours, stays.
        let other = Volume::tagged(CONFIG, &[]);
        for (volumes, wanted) in [
            (&[pool.clone()][..], Some("pool00")),
            (&[pool.clone(), config], None),
            (&[pool, other], None),
            (&[], None),
        ] {
            let group = Group::with(volumes.to_vec());
            assert_eq!(pool_for_config(&group), wanted, "{volumes:?}");
        }
    }

    #[test]
    fn lists_are_files_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert!(lists(dir).unwrap().is_empty());
        fs::write(dir.join("files"), "/root/a\n").unwrap();
        fs::create_dir_all(dir.join("files.d/below")).unwrap();
        for (name, content) in [
            ("20-b", "/root/b\nwrong\n"),
            ("10-c", "/srv/c\n"),
            ("10-c~", "/srv/d\n"),
            (".x.swp", "/srv/e\n"),
        ] {
            fs::write(dir.join("files.d").join(name), content).unwrap();
        }
        symlink("/etc/passwd", dir.join("files.d/link")).unwrap();
        let found = lists(dir).unwrap();
        let rules = all(&found);
        let texts: Vec<&str> = rules.0.iter().map(|rule| rule.text.as_str()).collect();
        assert_eq!(texts, ["/root/a", "/srv/c", "/root/b"]);
        assert_eq!(rules.0[2].list, Path::new("files.d/20-b"));
        assert_eq!(content_of(dir, &found).unwrap(), b"/root/a\n");
        fs::remove_file(dir.join("files")).unwrap();
        assert!(content_of(dir, &[]).unwrap().is_empty());
        symlink("/etc/passwd", dir.join("files")).unwrap();
        assert!(content_of(dir, &lists(dir).unwrap()).is_err());
    }

    #[test]
    fn what_a_rule_is_of_is_found_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["srv/a/x.conf", "srv/b.conf", "srv/c", "root/.ssh/key"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        // No link is followed.
        symlink("srv", dir.path().join("link")).unwrap();
        let root = Dir::root(dir.path()).unwrap();
        for (text, wanted) in [
            ("/srv/*.conf", &["/srv/b.conf"][..]),
            ("/srv/**/*.conf", &["/srv/a/x.conf", "/srv/b.conf"]),
            ("/srv/*/x.conf", &["/srv/a/x.conf"]),
            ("/root/.ssh", &["/root/.ssh"]),
            ("/root", &["/root"]),
            ("/link/*", &[]),
            ("/opt/x", &[]),
        ] {
            let rule = Rule::new(text, Path::new(LIST)).unwrap();
            let found = matching(&root, &rule).unwrap();
            let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
            assert_eq!(found, wanted, "{text}");
        }
    }
}
