//! `update`: a newer image becomes the next layer, with what the layer that runs has changed.

mod again;
mod check;
mod merge;
mod packages;
mod waiting;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;
use serde::Serialize;

use super::base::{self, Add, Made};
use super::boot::trial_begins;
use super::merge_report::{Amount, MergeReport};
use super::roots::Sides;
use super::source::{Delivery, Source, Taken};
use super::view::{self, JSON_VERSION};
use super::{
    Context, LOCK_WAIT, after_merge, gc, hooks, labels, layer, news, restart_host, say, text,
    volume,
};
use crate::boot::Selection;
use crate::boot::root::Root;
use crate::delivery::oci::reference::Reference;
use crate::model::layout::{Group, Role, in_tag, tag};
use crate::model::name::LvName;
use crate::model::os_release::OsRelease;
use crate::model::package::Outcome;
use crate::model::trial::State;
use crate::model::update::{Decision, Facts, Standing, Wishes};
use crate::sys::cmd::Cmd;
use crate::sys::transaction::{Transaction, Writer};
use merge::{Merged, Told};
use packages::Packages;
pub use waiting::{Waiting, lists_changed, tell_of_lost_changes};

/// What `update` is told. Sizes are bytes.
#[derive(Args, Clone)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct Update {
    /// File, block device or directory that holds the image; or its address on a server, beside a signed SHA256SUMS; or
    /// an image for containers, as `docker://HOST/NAME:TAG` or `oci:DIR` [default: what imgbased.conf names]
    image: Option<PathBuf>,
    #[command(flatten)]
    delivery: Delivery,
    /// Say what would happen, and change nothing
    #[arg(long, conflicts_with = "apply")]
    check: bool,
    /// Only fetch an image from a server or registry, for a later update
    #[arg(long, conflicts_with_all = ["check", "apply"])]
    download_only: bool,
    /// Take what was fetched before, and ask no server
    #[arg(long, conflicts_with = "download_only")]
    from_downloaded: bool,
    /// Restart into the new layer
    #[arg(long, visible_alias = "reboot")]
    apply: bool,
    /// Name of the base [default: the next free Base-<N>]
    #[arg(long)]
    name: Option<LvName>,
    /// Size of the base, as for `base add`
    #[arg(long, value_parser = text::parse_size)]
    size: Option<u64>,
    /// Share nothing with an earlier base, nor what is fetched, as for `base add`
    #[arg(long)]
    no_share: bool,
    /// Share files of a filesystem image with the nearest base, as for `base add`
    #[arg(long, conflicts_with = "no_share")]
    by_content: bool,
    /// How often to try the new layer, up to 9; 0 makes it the default at once [default: that of
    /// /etc/kernel/tries, else 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=9))]
    tries: Option<u32>,
    /// Take an image that was tried here before and did not come up, or that a rollback has left
    #[arg(long)]
    retry: bool,
    /// Drop another update that waits for a restart
    #[arg(long)]
    replace: bool,
    /// Leave this path behind, with what is below it; may be given several times
    #[arg(long, value_name = "PATH")]
    leave: Vec<PathBuf>,
    /// Take an image of an older version than what runs, or than the server had before
    #[arg(long)]
    allow_downgrade: bool,
    /// Take a snapshot of each volume that layers share, for `rollback --with-volumes`
    #[arg(long, conflicts_with = "check")]
    snapshot_volumes: bool,
    /// Take along what was changed since the update, as imgbased-update.service does at shutdown
    #[arg(long, hide = true, exclusive = true)]
    at_shutdown: bool,
    /// Remove old bases afterwards: keep so many of the latest [default: what imgbased.conf says, else all]
    #[arg(long, value_name = "N", conflicts_with = "check")]
    keep: Option<usize>,
}

impl Update {
    fn add(&self) -> Add {
        Add {
            image: self.image().to_owned(),
            name: self.name.clone(),
            size: self.size,
            fstype: None,
            share: !self.no_share,
            by_content: self.by_content,
            options: String::new(),
        }
    }

    fn wishes(&self) -> Wishes {
        Wishes {
            retry: self.retry,
            replace: self.replace,
        }
    }

    /// What is left behind knowingly: also the image itself.
    fn leave(&self) -> Vec<PathBuf> {
        let text = self
            .image()
            .to_str()
            .filter(|text| Reference::is_meant(text));
        let reference = text.and_then(|text| Reference::parse(text).ok());
        let path = reference
            .as_ref()
            .map_or(Some(self.image()), Reference::path);
        let image = path.and_then(|path| path.canonicalize().ok());
        let image = image.filter(|image| image != Path::new("/"));
        self.leave.iter().cloned().chain(image).collect()
    }

    /// How often to try the new layer.
    fn tries(&self, context: &Context) -> Result<u32> {
        self.tries.map_or_else(|| layer::tries(context), Ok)
    }

    fn image(&self) -> &Path {
        self.image.as_deref().unwrap_or(Path::new(""))
    }

    fn shown(&self) -> String {
        self.image().display().to_string()
    }

    /// Finds the image that is meant.
    fn source(&self, context: &Context, tx: &Transaction) -> Result<Source> {
        let image = self.image.as_deref();
        let taken = Taken {
            older: self.allow_downgrade,
            offline: self.from_downloaded,
        };
        Source::find(context, tx, image, &self.delivery, taken)
    }

    /// The same with the image that was found.
    fn of(&self, source: &Source) -> Self {
        Self {
            image: Some(source.name()),
            ..self.clone()
        }
    }
}

/// Takes an image as the next layer, or says what would become of it.
pub fn run(context: &Context, update: &Update) -> Result<ExitCode> {
    ensure!(
        !context.dry_run,
        "what an update does depends on what is in the image; `update --check` tells it"
    );
    if update.at_shutdown {
        again::at_shutdown(context)?;
        return Ok(ExitCode::SUCCESS);
    }
    if update.check {
        return check::run(context, update);
    }
    if update.download_only {
        return download(context, update);
    }
    let writer = context.writer("update", LOCK_WAIT)?;
    let interrupt = writer.interrupt().clone();
    let mut done = None;
    let committed = writer.transaction(|tx| {
        done = Some(take(context, tx, update)?);
        Ok(())
    });
    // The first thing, whatever becomes of the others: the host may be restarted at any moment.
    if done.as_ref().is_some_and(|done| done.waits) {
        watch_for_changes(&[]);
    }
    committed?;
    let done = done.context("it was taken")?;
    clean_up(context, writer, update, &done);
    context.show(&done, || done.lines())?;
    if update.apply && done.waits {
        let asked = "the update is done, but not the restart";
        interrupt.check().context(asked)?;
        restart_host(&context.writer("update", LOCK_WAIT)?, "update")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Does what follows from an update that is done, if there is one. Failures are told, and change nothing of that.
fn clean_up(context: &Context, writer: Writer, update: &Update, done: &Done) {
    let (Some(base), Some(layer)) = (&done.base, &done.layer) else {
        return;
    };
    news::update_waits(context, layer, base, &done.image);
    hooks::after_update(context, &writer, [base, layer]);
    // What follows takes the lock itself.
    drop(writer);
    if let Some(made) = &done.made {
        made.list(context);
    }
    if let Some(replaced) = &done.replaced {
        drop_replaced(context, replaced);
    }
    let collected = gc::kept(update.keep).and_then(|kept| match kept {
        None => Ok(()),
        kept => gc::collect(context, kept, true),
    });
    if let Err(error) = collected {
        log::warn!("the update is done, but old bases are still there: {error:#}");
    }
}

/// What an update has done.
#[derive(Default, Serialize)]
struct Done {
    version: u32,
    image: String,
    /// Why nothing was done, for people.
    #[serde(skip)]
    nothing: Option<String>,
    base: Option<LvName>,
    /// The base, if it was not there before.
    #[serde(skip)]
    made: Option<Made>,
    layer: Option<LvName>,
    /// Whether a restart boots the new layer.
    waits: bool,
    /// What boots again if the layer does not come up.
    fallback: Option<String>,
    /// The layer of the update that this one takes the place of.
    replaced: Option<LvName>,
    merge: Option<MergeReport>,
    /// What comes along from outside of /etc, and what does not.
    carried: Vec<Amount>,
    left_behind: Vec<Amount>,
    /// Packages of the layer that runs that the image does not have.
    packages: Vec<String>,
    /// The snapshots of volumes, as they are now.
    snapshots: Vec<LvName>,
    /// Whether none was to be taken, although that was asked for.
    #[serde(skip)]
    lacks_snapshots: bool,
    /// What has become of the packages that the host keeps.
    kept_packages: Vec<Outcome>,
    #[serde(skip)]
    tries: u32,
}

impl Done {
    /// Takes the snapshots that are asked for, before the layer runs that waits or is about to.
    fn save_volumes(
        &mut self,
        context: &Context,
        tx: &mut Transaction,
        update: &Update,
        layer: &LvName,
    ) -> Result<()> {
        if !update.snapshot_volumes {
            return Ok(());
        }
        tx.lock()?;
        self.snapshots = volume::save(context, tx, layer)?;
        self.lacks_snapshots = self.snapshots.is_empty();
        Ok(())
    }

    fn snapshot_lines(&self) -> String {
        if self.lacks_snapshots {
            return "no snapshot was taken: each volume that layers mount has one already, if there is any\n".to_owned();
        }
        let line = |name: &LvName| {
            format!("{name} is a volume as it is now; `rollback --with-volumes` goes back to it\n")
        };
        self.snapshots.iter().map(line).collect()
    }

    fn lines(&self) -> String {
        let Some(layer) = &self.layer else {
            return self.nothing.clone().unwrap_or_default() + &self.snapshot_lines();
        };
        let mut lines = String::new();
        if let Some(base) = &self.base {
            lines += &format!("{layer} is a layer of {base}, which holds {}\n", self.image);
        }
        if let Some(merge) = &self.merge {
            lines += &format!("/etc: {}\n", merge.counts.line());
            if let Some(line) = merge.elsewhere.line() {
                lines += &format!("elsewhere: {line}\n");
            }
            if merge.counts.conflicts + merge.elsewhere.conflicts > 0 {
                lines +=
                    "`imgbased-helper persist conflicts` in the new layer lists the conflicts\n";
            }
        }
        lines += &amounts("comes along", &self.carried);
        lines += &amounts("is left behind", &self.left_behind);
        lines += &kept_packages("comes along", &self.kept_packages);
        lines += &missing_packages(&self.packages);
        lines += &self.snapshot_lines();
        match &self.fallback {
            Some(fallback) => lines += &trial_begins(layer, None, self.tries, fallback),
            None => lines += &format!("{layer} boots from now on\n"),
        }
        lines
    }
}

/// Paths with what becomes of them, a line each.
fn amounts(what: &str, amounts: &[Amount]) -> String {
    let line = |Amount { path, bytes, files }: &Amount| {
        let bytes = text::size(*bytes);
        format!("{path} {what}: {files} files, {bytes}\n")
    };
    amounts.iter().map(line).collect()
}

/// Packages that the host keeps with what becomes of them, a line each. `comes` says that one is installed.
fn kept_packages(comes: &str, packages: &[Outcome]) -> String {
    packages.iter().map(|of| of.line(comes)).collect()
}

fn missing_packages(packages: &[String]) -> String {
    if packages.is_empty() {
        return String::new();
    }
    format!(
        "packages that the image does not have, and that do not come along: {}\n",
        packages.join(", ")
    )
}

/// The layer that runs. Refuses what cannot be updated.
fn running_layer(group: &Group) -> Result<LvName> {
    let name = view::booted(group)?.context("no layer is booted, so there is nothing to update")?;
    let role = group.volume(&name).map(|volume| volume.role);
    ensure!(
        role == Some(Role::Layer),
        "{name} is a base and runs with changes in memory only; boot a layer to update it"
    );
    name.parse()
}

/// What an update of this group, where the layer `booted` runs, begins with.
fn facts<'a>(
    group: &'a Group,
    booted: &'a LvName,
    selection: &'a Selection,
    image: Option<&'a str>,
) -> Facts<'a> {
    Facts {
        group,
        booted,
        trial: selection.trial.as_ref(),
        default: selection.default.as_deref(),
        image,
    }
}

/// Has an image here that an update would take, for a later one.
fn download(context: &Context, update: &Update) -> Result<ExitCode> {
    let writer = context.writer("update --download-only", LOCK_WAIT)?;
    let said = writer.transaction(|tx| {
        let source = update.source(context, tx)?;
        let update = &update.of(&source);
        let digest = source.digest_elsewhere();
        let digest =
            digest.with_context(|| format!("{} is on this host already", update.shown()))?;
        let group = context.load()?;
        let booted = running_layer(&group)?;
        let selection = context.boot_partition()?.selection()?;
        let facts = facts(&group, &booted, &selection, Some(digest));
        let standing = facts.standing();
        if standing != Standing::New {
            return Ok(format!("{} {standing}\n", update.shown()));
        }
        source.fetch(context, tx, !update.no_share)?;
        Ok(format!(
            "{} is here, and waits for an update\n",
            update.shown()
        ))
    })?;
    say(&said)?;
    Ok(ExitCode::SUCCESS)
}

/// Does an update, up to the trial of the new layer.
fn take(context: &Context, tx: &mut Transaction, update: &Update) -> Result<Done> {
    let group = context.load()?;
    let booted = running_layer(&group)?;
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    let source = update.source(context, tx)?;
    let update = &update.of(&source);
    // One that is not here is fetched only if it is wanted.
    let opened = match source {
        Source::Here(..) => Some(source.open(context, tx, true)?),
        Source::Server(_) | Source::Layers(_) => None,
    };
    let digest = source.digest(tx)?;
    let selection = boot.selection()?;
    let before = facts(&group, &booted, &selection, digest.as_deref());
    let mut done = Done {
        version: JSON_VERSION,
        image: update.shown(),
        ..Done::default()
    };
    let made = match before.decide(update.wishes())? {
        Decision::Nothing(standing) => {
            if let Some((opened, _)) = opened {
                opened.close(tx)?;
            }
            done.nothing = Some(format!("{} {standing}\n", update.shown()));
            if let Standing::Waits(layer) = &standing {
                done.waits = true;
                done.save_volumes(context, tx, update, layer)?;
            }
            return Ok(done);
        }
        Decision::Go(made) => made,
    };
    done.replaced = before.waiting();
    let tries = update.tries(context)?;
    boot.check_can_try(tries)?;
    let running = Root::at(Path::new("/"));
    let base = if let Some(base) = made {
        if let Some((opened, _)) = opened {
            opened.close(tx)?;
        }
        base
    } else {
        let open = || source.open(context, tx, !update.no_share);
        let (opened, parts) = opened.map_or_else(open, Ok)?;
        let of = (&opened, parts.as_ref());
        let mut judge = |root: &Path| {
            let release = judge(update, &running, &Root::at(root))?;
            Ok(tags(digest.as_deref(), &release))
        };
        let made = base::make(context, tx, &update.add(), of, &mut judge)?;
        done.made.insert(made).name.clone()
    };
    tx.lock()?;
    // Another command may have made something else wait meanwhile.
    let group = context.load()?;
    let selection = boot.selection()?;
    ensure!(
        facts(&group, &booted, &selection, None).waiting() == done.replaced,
        "another command has changed what boots next; nothing was updated"
    );
    // A layer that never came up, and is about to be dropped, is nothing to fall back to.
    let selection = match &done.replaced {
        Some(replaced) if selection.default.as_deref() == Some(replaced.as_str()) => {
            let entry = boot.entry_of(&booted)?;
            let entry = entry.with_context(|| format!("{booted} has no boot entry"))?;
            boot.confirm(tx, &booted, &entry)?;
            boot.selection()?
        }
        _ => selection,
    };
    let told = Told::of(context, tx, &group, update.leave())?;
    let (new, found) = merged_layer(context, tx, &group, &base, &told, &|root| {
        judge(update, &running, root).map(drop)
    })?;
    if tx.was_unlocked() {
        let mut now = boot.selection()?;
        // Where no default was set, what runs became that when the layer was made.
        if selection.default.is_none() && now.default.as_deref() == Some(booted.as_str()) {
            now.default = None;
        }
        ensure!(
            now == selection,
            "another command has changed what boots next; nothing was updated"
        );
    }
    // An update that waits has all its snapshots.
    done.save_volumes(context, tx, update, &new)?;
    let entry = boot.entry_of(&new)?.context("it was written")?;
    done.fallback = boot.make_default(tx, &new, &entry, State::New, tries)?;
    done.waits = true;
    done.tries = tries;
    if let Source::Server(server) = &source {
        server.remember(context, tx, &group)?;
    }
    if let Some(merged) = found {
        done.carried = Amount::carried(&merged.outside);
        done.left_behind = Amount::left(&merged.outside);
        Waiting::new([&booted, &new, &base], &merged, &told, update.leave())
            .write(tx, &merged.record)?;
        done.kept_packages.clone_from(&merged.report.kept_packages);
        (done.merge, done.packages) = (Some(merged.report), merged.packages);
    }
    (done.base, done.layer) = (Some(base), Some(new));
    Ok(done)
}

/// Makes a layer of a base with what the layer that runs has changed. `judge` is asked of its root first.
fn merged_layer(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    base: &LvName,
    told: &Told,
    judge: &dyn Fn(&Root) -> Result<()>,
) -> Result<(LvName, Option<Merged>)> {
    let sides = Sides::of(group)?;
    let kept = Packages::of(context, tx, group, told.packages.clone())?;
    let mut found = None;
    let mut change = |tx: &mut Transaction, new: &LvName, root: &Path| {
        judge(&Root::at(root))?;
        let since = labels::now();
        let mut merged = merge::into(context, tx, group, (&sides, told), base, root)?;
        packages::into(context, tx, group, &kept, &mut merged, root)?;
        after_merge::refresh_caches(tx, root)?;
        let events = ["post-merge", "os-upgraded"];
        hooks::merged(context, tx, group, &events, [base, new], root)?;
        // What brings a shell is there by now, and a package or a hook can be that.
        if merged.logins.settle(tx, root, &mut merged.report)? {
            merged.report.write(tx, root)?;
        }
        labels::set(tx, root, since)?;
        let for_initramfs = merged.for_initramfs.clone();
        found = Some(merged);
        Ok(for_initramfs)
    };
    let (new, _) = layer::make(context, tx, Some(base.clone()), Some(&mut change))?;
    Ok((new, found))
}

/// Refuses an image that is none for this host. Returns what it is.
fn judge(update: &Update, running: &Root, new: &Root) -> Result<OsRelease> {
    let (own, other) = (running.os_release(), new.os_release());
    if let Some((variable, own, other)) = own.other_product(&other) {
        bail!(
            "{} is of another product: {variable} is {other} in it, and {own} here",
            update.shown()
        );
    }
    if let (Some(own), Some(other)) = (running.machine(), new.machine()) {
        ensure!(
            own == other,
            "the programs in {} are for another processor: machine {other} of elf(5), and {own} here",
            update.shown()
        );
    }
    if let (Some((own, other)), false) = (own.downgrade(&other), update.allow_downgrade) {
        bail!(
            "{} is of version {other}, which is older than {own} that runs; --allow-downgrade takes it",
            update.shown()
        );
    }
    Ok(other)
}

/// What is kept of an image with the base that is made of it.
fn tags(digest: Option<&str>, release: &OsRelease) -> Vec<String> {
    let digest = digest.map(|digest| format!("{}{digest}", tag::IMAGE));
    let version = release.version();
    // A tag has at most 1024 characters (lvm(8)).
    let version = version.filter(|version| version.len() < 200);
    let version = version.map(|version| format!("{}{}", tag::VERSION, in_tag(version)));
    digest.into_iter().chain(version).collect()
}

/// Starts the unit that takes along at shutdown what is changed until then.
pub fn watch_for_changes(options: &[&str]) {
    const UNIT: &str = "imgbased-update.service";
    if let Err(error) = Cmd::new("systemctl")
        .args(options)
        .args(["start", UNIT])
        .run()
    {
        log::warn!("what is changed from now on does not come along: {error:#}");
    }
}

/// Removes the layer of an update that another one took the place of.
fn drop_replaced(context: &Context, layer: &LvName) {
    if let Err(error) = layer::remove(context, std::slice::from_ref(layer)) {
        log::warn!(
            "the update is done, but {layer}, whose place it took, is still there: {error:#}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::merge_report;

    /// What comes along.
    pub fn amount() -> Amount {
        Amount::new(Path::new("root"), 60, 2)
    }

    #[test]
    fn people_are_told_which_snapshots_were_taken_also_where_an_update_waits_already() {
        let taken = "var-1 is a volume as it is now; `rollback --with-volumes` goes back to it\n";
        for (snapshots, lacks_snapshots, wanted) in [
            (&["var-1"][..], false, taken),
            (
                &[],
                true,
                "no snapshot was taken: each volume that layers mount has one already, if there is any\n",
            ),
            (&[], false, ""),
        ] {
            let snapshots = snapshots.iter().map(|name| name.parse().unwrap());
            let done = Done {
                nothing: Some("IMAGE waits\n".to_owned()),
                snapshots: snapshots.collect(),
                lacks_snapshots,
                ..Done::default()
            };
            assert_eq!(done.lines(), format!("IMAGE waits\n{wanted}"));
            let layer = Done {
                layer: "Base-1.1".parse().ok(),
                nothing: None,
                ..done
            };
            assert_eq!(
                layer.lines(),
                format!("{wanted}Base-1.1 boots from now on\n")
            );
        }
    }

    #[test]
    fn what_is_done_is_a_document_as_its_schema_says() {
        let name = |name: &str| name.parse::<LvName>().ok();
        let merge = merge_report::tests::full();
        let nothing = Done {
            version: JSON_VERSION,
            image: "/srv/next.img".to_owned(),
            ..Done::default()
        };
        crate::schemas::assert_holds("update", &nothing);
        let done = Done {
            base: name("Base-1"),
            layer: name("Base-1.1"),
            waits: true,
            fallback: Some("Base-0.1".to_owned()),
            replaced: name("Base-0.2"),
            kept_packages: merge.kept_packages.clone(),
            merge: Some(merge),
            carried: vec![amount()],
            left_behind: vec![amount()],
            packages: vec!["vim".to_owned()],
            snapshots: name("home-1").into_iter().collect(),
            ..nothing
        };
        crate::schemas::assert_holds("update", &done);
    }
}
