//! `update --check`: what would happen.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Error, Result};
use serde::Serialize;

use super::merge::{Logins, Told, plan};
use super::packages::{Packages, without_kept};
use super::{Amount, Update, amounts, facts, judge, kept_packages, running_layer};
use crate::admin::filesystem::mount_point;
use crate::admin::look::Look;
use crate::admin::merge_report::MergeReport;
use crate::admin::packages::of_each;
use crate::admin::roots::Sides;
use crate::admin::source::Source;
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, FOUND, LOCK_WAIT, base, pool_left, pool_with_room, text};
use crate::boot::root::Root;
use crate::delivery::signature::Signer;
use crate::image::tree::Tree as ImageTree;
use crate::image::{Image, Opened};
use crate::merge::{LAYER, NEW, Plan, Zones, dpkg};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::package::{Fate, Outcome};
use crate::model::update::{Decision, Standing};
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// What an update would do.
#[derive(Serialize)]
struct Checked {
    version: u32,
    source: String,
    available: bool,
    state: &'static str,
    image: ImageView,
    installed: Installed,
    /// Of a newer image on a server.
    needs: Option<Needs>,
    /// Not known before the image is on the host, where it cannot be looked into.
    merge: Option<MergeReport>,
    carried: Vec<Amount>,
    left_behind: Vec<Amount>,
    packages: Vec<String>,
    /// What would become of the packages that the host keeps.
    kept_packages: Vec<Outcome>,
    refusals: Vec<String>,
    #[serde(skip)]
    standing: String,
}

#[derive(Serialize)]
struct ImageView {
    version: Option<String>,
    digest: Option<String>,
    /// In bytes.
    size: Option<u64>,
    /// Who has signed the list of the server that has it.
    signature: Option<Signer>,
}

/// What the image takes, and what is free for it, in bytes.
#[derive(Serialize)]
struct Needs {
    /// What is not here yet of it, if the server tells its length.
    download: Option<u64>,
    spool_free: u64,
    pool_free: Option<u64>,
    #[serde(skip)]
    size: Option<u64>,
    #[serde(skip)]
    line: String,
}

impl Needs {
    /// Asks the server, if the image is on one.
    fn of(group: &Group, source: &Source) -> Result<Option<Self>> {
        let Source::Server(server) = source else {
            return Ok(None);
        };
        let pool_free = Some(pool_with_room(group)?).filter(|free| *free < u64::MAX);
        let fetch = server.needs()?;
        Ok(Some(Self {
            download: fetch.download,
            spool_free: fetch.free,
            pool_free,
            size: fetch.size,
            line: fetch.line(pool_free),
        }))
    }
}

#[derive(Serialize)]
struct Installed {
    layer: LvName,
    base: String,
    version: Option<String>,
}

fn version_of(root: &Root) -> Option<String> {
    root.os_release().version().map(str::to_owned)
}

/// The state of an image, as programs read it.
fn state_of(standing: &Standing) -> &'static str {
    match standing {
        Standing::New | Standing::Made(_) => "newer",
        Standing::Runs(_) => "same",
        Standing::Waits(_) => "waiting-for-reboot",
        Standing::Held(_) => "held",
        Standing::Failed(..) => "failed-here",
    }
}

/// Says what the update would do, and changes nothing.
pub fn run(context: &Context, update: &Update) -> Result<ExitCode> {
    let writer = context.writer("update --check", LOCK_WAIT)?;
    let checked = writer.transaction(|tx| {
        let group = context.load()?;
        let booted = running_layer(&group)?;
        let boot = context.boot_partition()?;
        let sides = Sides::of(&group)?;
        let mut refusals = Vec::new();
        let mut refuse = |judged: Result<()>| {
            if let Err(error) = judged {
                refusals.push(format!("{error:#}"));
            }
        };
        refuse(boot.check_ready());
        let source = update.source(context, tx)?;
        let update = &update.of(&source);
        let (opened, server) = match &source {
            Source::Here(..) => (Some(source.open(context, tx, true)?.0), None),
            // It is looked into when it is here.
            Source::Server(server) => (None, Some(&server.found)),
            Source::Layers(_) => (None, None),
        };
        let digest = source.digest(tx)?;
        let selection = boot.selection()?;
        let facts = facts(&group, &booted, &selection, digest.as_deref());
        let standing = facts.standing();
        refuse(match facts.decide(update.wishes()) {
            Ok(Decision::Go(_)) => boot.check_can_try(update.tries(context)?),
            decided => decided.map(drop),
        });
        let is_new = standing == Standing::New;
        if let (true, Some(opened)) = (is_new, &opened) {
            refuse(base::examine(context, tx, &update.add(), opened).map(drop));
        }
        // What is looked at is activated.
        tx.lock()?;
        let running = Root::at(Path::new("/"));
        let told = Told::of(context, tx, &group, update.leave())?;
        let kept = Packages::of(context, tx, &group, told.packages.clone())?;
        let mut needs = None;
        if is_new {
            refuse(Needs::of(&group, &source).map(|found| needs = found));
        }
        let mut version = source.version();
        let mut comes = Comes::default();
        looked_into(tx, opened.as_ref(), |tx, root| {
            version = version_of(&Root::at(root));
            refuse(judge(update, &running, &Root::at(root)).map(drop));
            comes = Comes::of(context, tx, &group, (&sides, &told, &kept), update, root)?;
            comes.refused.drain(..).for_each(|why| refuse(Err(why)));
            Ok(())
        })?;
        if let Some(opened) = opened {
            opened.close(tx)?;
        }
        let state = state_of(&standing);
        Ok(Checked {
            version: JSON_VERSION,
            source: update.shown(),
            available: state == "newer" && refusals.is_empty(),
            state,
            image: ImageView {
                version,
                digest,
                size: needs.as_ref().map_or(source.size(), |needs| needs.size),
                signature: server.and_then(|server| server.signer.clone()),
            },
            installed: Installed {
                base: sides.old.to_string(),
                version: version_of(&running),
                layer: booted,
            },
            needs,
            merge: comes.merge,
            carried: comes.carried,
            left_behind: comes.left_behind,
            packages: comes.packages,
            kept_packages: comes.kept_packages,
            refusals,
            standing: standing.to_string(),
        })
    })?;
    context.show(&checked, || checked.lines())?;
    Ok(ExitCode::from(if checked.available { FOUND } else { 0 }))
}

/// What of the layer that runs comes along, and what does not.
#[derive(Default)]
struct Comes {
    merge: Option<MergeReport>,
    carried: Vec<Amount>,
    left_behind: Vec<Amount>,
    packages: Vec<String>,
    kept_packages: Vec<Outcome>,
    /// Why the update would be refused for that.
    refused: Vec<Error>,
}

impl Comes {
    /// Into a layer of the image whose root is at `root`.
    fn of(
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        (sides, told, kept): (&Sides, &Told, &Packages),
        update: &Update,
        root: &Path,
    ) -> Result<Self> {
        let new = Dir::root(root)?;
        let names = sides.names(&update.shown());
        let looked = sides.opened(context, tx, group, |tx, [old, layer]| {
            let installed = of_each(tx, [old, layer, root])?;
            let [old, layer] = [old, layer].map(Dir::root);
            let roots = [&old?, &layer?, &new];
            let go_on = || tx.interrupt().check();
            let planned = plan(roots, &installed, sides, told, &go_on)?;
            // How much of the pool the filesystem of the layer has, shows when that is there.
            let free = pool_left(group).unwrap_or(u64::MAX);
            let judged = [planned.check_left(), planned.check_room(free)];
            let kept_packages = kept.expected(tx, root)?;
            let come = (planned.outside.zones(), &kept_packages[..]);
            let mut report = report_of(names, &planned.plan, roots, come)?;
            report.add_outside(&planned.outside);
            Ok(Self {
                merge: Some(report),
                carried: Amount::carried(&planned.outside),
                left_behind: Amount::left(&planned.outside),
                packages: without_kept(planned.packages, &kept_packages),
                kept_packages,
                refused: judged.into_iter().filter_map(Result::err).collect(),
            })
        })?;
        looked.context("this is no dry run")
    }
}

impl Checked {
    fn lines(&self) -> String {
        let version = |version: &Option<String>| {
            version
                .as_ref()
                .map_or_else(String::new, |version| format!(", version {version}"))
        };
        let mut rows = vec![
            (
                "Runs".to_owned(),
                format!(
                    "{}, a layer of {}{}",
                    self.installed.layer,
                    self.installed.base,
                    version(&self.installed.version)
                ),
            ),
            (
                "Image".to_owned(),
                format!(
                    "{}{}; {}",
                    self.source,
                    version(&self.image.version),
                    self.standing
                ),
            ),
        ];
        if let Some(needs) = &self.needs {
            rows.push(("Fetch".to_owned(), needs.line.clone()));
        }
        let merge = match &self.merge {
            Some(merge) => merge.counts.line(),
            None => "known when the image is on the host".to_owned(),
        };
        rows.push(("/etc".to_owned(), merge));
        let elsewhere = self.merge.as_ref().and_then(|merge| merge.elsewhere.line());
        rows.extend(elsewhere.map(|line| ("Else".to_owned(), line)));
        if !self.packages.is_empty() {
            rows.push((
                "Without".to_owned(),
                format!("packages {}", self.packages.join(", ")),
            ));
        }
        for refusal in &self.refusals {
            rows.push(("Refused".to_owned(), refusal.clone()));
        }
        let conflicts = self.merge.as_ref().map(MergeReport::conflicts_and_left);
        text::columns(&rows)
            + &amounts("comes along", &self.carried)
            + &amounts("would be left behind", &self.left_behind)
            + &kept_packages("comes along", &self.kept_packages)
            + &conflicts.unwrap_or_default()
    }
}

/// What the plan comes to, with the users whose shell neither the image has nor what comes along: in its place, or as a
/// package.
fn report_of(
    names: [String; 3],
    plan: &Plan,
    roots: [&Dir; 3],
    (zones, packages): (&Zones, &[Outcome]),
) -> Result<MergeReport> {
    let comes = |shell: &Path| {
        if zones.brings(shell) {
            return Ok(true);
        }
        for package in packages.iter().filter(|of| of.result == Fate::Installed) {
            let brought = dpkg::has_brought(roots[LAYER], &package.name, shell);
            if brought.context("cannot read the lists of dpkg")? {
                return Ok(true);
            }
        }
        Ok(false)
    };
    let mut report = MergeReport::of(names, plan);
    let logins = Logins::of(plan, roots, zones)?;
    logins.list(roots[NEW], &comes, &mut report)?;
    Ok(report)
}

/// Hands over the root of an image where it can be mounted as it is, read-only.
fn looked_into(
    tx: &mut Transaction,
    opened: Option<&Opened>,
    look: impl FnOnce(&mut Transaction, &Path) -> Result<()>,
) -> Result<()> {
    let Some(opened) = opened else {
        return Ok(());
    };
    match &opened.image {
        Image::Tree(ImageTree::Directory(dir) | ImageTree::Squashfs(dir)) => look(tx, dir),
        Image::Tree(ImageTree::Tar(..) | ImageTree::Layers(_) | ImageTree::Listed(..))
        | Image::Filesystem {
            compression: Some(_),
            ..
        } => Ok(()),
        Image::Filesystem {
            path, superblock, ..
        } => {
            let dir = mount_point("look");
            match Look::at_image(path, superblock.kind).mounted(&dir) {
                Ok(_mounted) => look(tx, &dir),
                Err(error) => {
                    log::debug!("{} is not looked into: {error:#}", path.display());
                    Ok(())
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::merge_report;
    use crate::admin::update::tests::amount;
    use crate::delivery::signature::Kind;

    #[test]
    fn what_would_be_done_is_a_document_as_its_schema_says() {
        let known = || Checked {
            version: JSON_VERSION,
            source: "/srv/next.img".to_owned(),
            available: true,
            state: "newer",
            image: ImageView {
                version: Some("2".to_owned()),
                digest: Some("ab01".repeat(16)),
                size: Some(4096),
                signature: Some(Signer {
                    kind: Kind::Minisign,
                    key: "0123456789ABCDEF".to_owned(),
                    signed: Some(1_796_000_000),
                }),
            },
            installed: Installed {
                layer: "Base-0.1".parse().unwrap(),
                base: "Base-0".to_owned(),
                version: Some("1".to_owned()),
            },
            needs: Some(Needs {
                download: Some(4096),
                spool_free: 8192,
                pool_free: Some(8192),
                size: Some(4096),
                line: String::new(),
            }),
            merge: Some(merge_report::tests::full()),
            carried: vec![amount()],
            left_behind: vec![amount()],
            packages: vec!["vim".to_owned()],
            kept_packages: merge_report::tests::full().kept_packages,
            refusals: vec!["the boot partition is full".to_owned()],
            standing: String::new(),
        };
        let unknown = Checked {
            state: "failed-here",
            image: ImageView {
                version: None,
                digest: None,
                size: None,
                signature: None,
            },
            needs: None,
            merge: None,
            ..known()
        };
        for checked in [known(), unknown] {
            crate::schemas::assert_holds("update-check", &checked);
        }
    }
}
