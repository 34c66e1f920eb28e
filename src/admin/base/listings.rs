//! The listings of the bases, which tell what each holds by the digests of its files (see `tree/listing.rs`).
//!
//! They are in the directory `bases` of the Config volume: a tag has no room for one, the filesystem of a base is sealed
//! and stays what its image was, and what is in a layer is not there in the next one. Each names the digest of the volume
//! that it is of, so one that is of another base says nothing.
//!
//! A listing is made of a base that is made file by file, and of one that `base verify` finds unchanged. A base is complete
//! without.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use crate::admin::filesystem::mount_point;
use crate::admin::layout_init::CONFIG;
use crate::admin::look::Look;
use crate::admin::persist::{config, in_config, mounted_config};
use crate::admin::roots::{self, Tree};
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, json_path, pool_left};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;
use crate::sys::files::{is_temporary, nameless, replace};
use crate::sys::mounts::used;
use crate::sys::progress::Progress;
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, Draft, Kind, Listing, escaped};

/// Where they are in the Config volume, and what their names end in.
const DIR: &str = "bases";
const SUFFIX: &str = ".listing";
/// What the pool has to have room for, in bytes. A large system has 20 MiB of listing.
const ROOM: u64 = 32 << 20;

fn file_of(base: &LvName) -> PathBuf {
    Path::new(DIR).join(format!("{base}{SUFFIX}"))
}

/// What a base holds that has this digest.
pub struct Drafted {
    digest: String,
    draft: Draft,
}

impl Drafted {
    pub fn new(digest: &str, draft: Draft) -> Self {
        let digest = digest.to_owned();
        Self { digest, draft }
    }
}

/// Keeps the listing of a new base, for a verb that has made it and has released the lock, unless it is listed already.
/// Without what was drafted of it, it is read. What fails is told, and harms nothing.
pub fn keep(context: &Context, base: &LvName, drafted: Option<&Drafted>) {
    if !context.dry_run {
        tell(
            base,
            context.change("listing", |tx| write(context, tx, base, drafted)),
        );
    }
}

/// The same for a base that was read as a part of a verb.
pub fn keep_read(context: &Context, tx: &mut Transaction, base: &LvName) {
    if !context.dry_run {
        tell(base, tx.scope(|tx| write(context, tx, base, None)));
    }
}

fn tell(base: &LvName, done: Result<()>) {
    if let Err(error) = done {
        log::warn!(
            "what {base} holds is not listed; `imgbased-helper base verify {base}` tries again: {error:#}"
        );
    }
}

fn write(
    context: &Context,
    tx: &mut Transaction,
    base: &LvName,
    drafted: Option<&Drafted>,
) -> Result<()> {
    let group = context.load()?;
    let Some(digest) = digest_of(&group, base).filter(|_| config(&group).is_some()) else {
        return Ok(());
    };
    ensure!(
        pool_left(&group)? >= ROOM,
        "the thin pool has no room for it"
    );
    // The lock was free: another base can have the name by now.
    if let Some(drafted) = drafted.filter(|drafted| drafted.digest == digest) {
        return store(context, tx, &group, (base, digest), &drafted.draft);
    }
    let mut is_there = false;
    in_config(context, tx, &group, "ro", &mut |_, config| {
        is_there = open(config, base, digest)?.is_some();
        Ok(())
    })?;
    if is_there {
        return Ok(());
    }
    // Nobody else could mount the volume to read it while it is mounted to be written to, so this comes between.
    let mut draft = None;
    let tree = Tree::Volume(base.clone());
    tx.unlocked(|tx| {
        roots::opened(context, tx, &group, &tree, |tx, root| {
            let mut progress = Progress::new(&format!("{base} listing"), used(root)?);
            let made = draft_of(base, root, None, &mut |done| {
                progress.show(done);
                tx.interrupt().check()
            });
            draft = Some(made?);
            Ok(())
        })
    })?;
    let draft = draft.context("the base is read")?;
    store(context, tx, &context.load()?, (base, digest), &draft)
}

/// Lists what a base holds that is mounted at `root`. `before` is the listing of the one that it began as a snapshot of;
/// `tell` is as for [`Draft::of`].
pub fn draft_of(
    base: &LvName,
    root: &Path,
    before: Option<Listing>,
    tell: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Draft> {
    let (draft, done) = Draft::of(&Dir::root(root)?, before, nameless()?, tell)?;
    log::debug!("{base}: {done:?}");
    Ok(draft)
}

/// Keeps the listing of a base, unless another command has done so meanwhile.
fn store(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    (base, digest): (&LvName, &str),
    draft: &Draft,
) -> Result<()> {
    in_config(context, tx, group, "rw", &mut |tx, config| {
        if open(config, base, digest)?.is_some() {
            return Ok(());
        }
        let path = config.join(file_of(base));
        tx.create_dir(&config.join(DIR))?;
        // One that says nothing is gone before, which spares the care for a file that is replaced.
        if path.exists() {
            tx.run(&remove(&path))?;
        }
        let command = Cmd::new("imgbased-helper").args(["base", "verify", base.as_str()]);
        // Whatever becomes of the verb, it is right, so that it is not undone.
        tx.work(&command, |_| {
            replace(&path, 0o600, |to| draft.write(digest, to))
                .with_context(|| format!("cannot write {}", path.display()))
        })
    })
}

fn remove(path: &Path) -> Cmd {
    Cmd::new("rm").args(["-f", "--"]).arg(path)
}

fn digest_of<'a>(group: &'a Group, base: &LvName) -> Option<&'a str> {
    group.volume(base.as_str())?.digest()
}

/// The directory of the listings, where the Config volume is mounted at `config`.
fn dir(config: &Path) -> Result<Option<Dir>> {
    let root = Dir::root(config)?;
    match root.stat_of(OsStr::new(DIR))? {
        Some(stat) if stat.kind == Kind::Dir => Ok(Some(root.child(OsStr::new(DIR))?)),
        Some(stat) => bail!("{DIR} of {CONFIG} is a {}", stat.kind.name()),
        None => Ok(None),
    }
}

/// The listing of a base that has this digest.
fn open(config: &Path, base: &LvName, digest: &str) -> Result<Option<Listing>> {
    let Some(dir) = dir(config)? else {
        return Ok(None);
    };
    let file = file_of(base);
    let name = file.file_name().unwrap_or_default();
    let opened = Listing::open(&dir, name, digest);
    opened.with_context(|| format!("cannot read {} of {CONFIG}", file.display()))
}

/// Hands over the listings of these bases, as far as there are any.
pub fn read(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    bases: &[LvName],
    look: &mut dyn FnMut(Vec<(LvName, Listing)>) -> Result<()>,
) -> Result<()> {
    if config(group).is_none() {
        return look(Vec::new());
    }
    in_config(context, tx, group, "ro", &mut |_, config| {
        let mut listings = Vec::new();
        for base in bases {
            let Some(digest) = digest_of(group, base) else {
                continue;
            };
            let listing = open(config, base, digest)?;
            listings.extend(listing.map(|listing| (base.clone(), listing)));
        }
        look(listings)
    })
}

/// The listing of a base that a new one begins as a snapshot of, in a file of its own. It only spares work.
pub fn of_origin(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    origin: &LvName,
) -> Option<Listing> {
    if context.dry_run {
        return None;
    }
    let mut found = None;
    let bases = std::slice::from_ref(origin);
    let done = tx.scope(|tx| {
        read(context, tx, group, bases, &mut |listings| {
            if let Some((_, listing)) = listings.into_iter().next() {
                found = Some(listing.copied_to(nameless()?)?);
            }
            Ok(())
        })
    });
    if let Err(error) = done {
        log::debug!("{origin} is read, as its listing cannot be: {error:#}");
    }
    found
}

/// Removes what is left of listings, and those of the bases `gone`.
pub fn tidy(context: &Context, tx: &mut Transaction, gone: &[LvName]) -> Result<()> {
    let group = context.load()?;
    if config(&group).is_none() {
        return Ok(());
    }
    in_config(context, tx, &group, "rw", &mut |tx, config| {
        for name in left(config, &group, gone)? {
            tx.run(&remove(&config.join(DIR).join(name)))?;
        }
        Ok(())
    })
}

/// What is left of listings, in a Config volume that can be looked into: one that is active.
pub fn find_left(context: &Context, group: &Group) -> Result<Vec<OsString>> {
    let Some(name) = config(group) else {
        return Ok(Vec::new());
    };
    if let Some(mounted) = mounted_config(group, &name)? {
        return left(mounted, group, &[]);
    }
    if group
        .volume(name.as_str())
        .is_none_or(|config| !config.active)
    {
        return Ok(Vec::new());
    }
    let look = Look::at(context, group, &name)?;
    let at = mount_point(name.as_str());
    // Another command may have it mounted to write to it.
    let Ok(_mounted) = look.mounted(&at) else {
        return Ok(Vec::new());
    };
    left(&at, group, &[])
}

fn left(config: &Path, group: &Group, gone: &[LvName]) -> Result<Vec<OsString>> {
    let Some(dir) = dir(config)? else {
        return Ok(Vec::new());
    };
    let bases = group.bases().into_iter().map(|base| base.name);
    let bases = bases.filter(|base| !gone.contains(base)).collect();
    let mut names = dir.names()?;
    names.retain(|name| is_unneeded(name, &bases));
    Ok(names)
}

/// Whether a file is the listing of none of these bases, or was never finished: one is written with the lock. What others
/// have put there stays.
fn is_unneeded(name: &OsStr, bases: &BTreeSet<LvName>) -> bool {
    let base = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
    let base = base.and_then(|base| base.parse::<LvName>().ok());
    is_temporary(Path::new(name)) || base.is_some_and(|base| !bases.contains(&base))
}

#[derive(Serialize)]
struct Found {
    version: u32,
    files: Vec<FoundFile>,
    /// Bases that are not listed.
    unknown: Vec<LvName>,
}

/// A file with the content that is looked for, from its beginning to its end.
#[derive(Serialize)]
struct FoundFile {
    base: LvName,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    size: u64,
    sha256: String,
}

/// Prints which files of bases have a content with one of these digests.
pub fn find(context: &Context, digests: &[String]) -> Result<()> {
    let wanted: BTreeSet<&str> = digests.iter().map(String::as_str).collect();
    let mut found = Found {
        version: JSON_VERSION,
        files: Vec::new(),
        unknown: Vec::new(),
    };
    let mut text = String::new();
    context.change("base find", |tx| {
        let group = context.load()?;
        let bases = group.bases();
        in_config(context, tx, &group, "ro", &mut |tx, config| {
            for base in &bases {
                let name = &base.name;
                let listing = match base.volume.digest() {
                    Some(digest) => open(config, name, digest)?,
                    None => None,
                };
                let Some(mut listing) = listing else {
                    found.unknown.push(name.clone());
                    continue;
                };
                while let Some(entry) = listing.read().context("cannot read a listing")? {
                    tx.interrupt().check()?;
                    let Some(sha256) = entry.content.filter(|sum| wanted.contains(sum.as_str()))
                    else {
                        continue;
                    };
                    text += &format!("{name}: /{}\n", escaped(&entry.path));
                    let (path, path_bytes) = json_path::of(&entry.path);
                    found.files.push(FoundFile {
                        base: name.clone(),
                        path,
                        path_bytes,
                        size: entry.size,
                        sha256,
                    });
                }
            }
            Ok(())
        })
    })?;
    for base in &found.unknown {
        log::warn!("{base} is not listed; `imgbased-helper base verify --record {base}` lists it");
    }
    context.show(&found, || text)
}

/// The SHA-256 of a file as a person gives it.
pub fn parse_digest(text: &str) -> Result<String, String> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    if digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(digits.to_ascii_lowercase());
    }
    Err("expected a SHA-256 of 64 hexadecimal digits, as sha256sum(1) prints it".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listings_of_bases_that_are_gone_and_unfinished_ones_are_unneeded() {
        let bases: BTreeSet<LvName> = ["Base-0", "node-1.0-1"]
            .into_iter()
            .map(|name| name.parse().unwrap())
            .collect();
        for (name, expected) in [
            ("Base-0.listing", false),
            ("node-1.0-1.listing", false),
            ("Base-1.listing", true),
            ("Base-1.listing~", false),
            ("-x.listing", false),
            (".listing", false),
            ("notes", false),
            (".imgbased-Ab3d.tmp", true),
        ] {
            assert_eq!(is_unneeded(OsStr::new(name), &bases), expected, "{name}");
        }
    }

    #[test]
    fn what_is_found_is_a_document_as_its_schema_says() {
        let base: LvName = "Base-0".parse().unwrap();
        let files = [None, Some("L2V0Yy9sYXRpbuQ=".to_owned())];
        let files = files.map(|path_bytes| FoundFile {
            base: base.clone(),
            path: "/etc/latin".to_owned(),
            path_bytes,
            size: 1,
            sha256: "ab01".repeat(16),
        });
        let found = Found {
            version: JSON_VERSION,
            files: files.into(),
            unknown: vec![base],
        };
        crate::schemas::assert_holds("base-find", &found);
    }

    #[test]
    fn a_digest_is_given_in_any_common_form() {
        let digits = "ab01".repeat(16);
        for (text, is_right) in [
            (digits.clone(), true),
            (digits.to_ascii_uppercase(), true),
            (format!("sha256:{digits}"), true),
            (format!("sha512:{digits}"), false),
            (format!("{digits}0"), false),
            (digits.replace('a', "g"), false),
            (String::new(), false),
        ] {
            let found = parse_digest(&text).ok();
            assert_eq!(found, is_right.then(|| digits.clone()), "{text}");
        }
    }
}
