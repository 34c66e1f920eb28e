//! The packages that the host keeps, in the root of the new layer: the package tool that is there installs them, shut in
//! and without a network. What fails is told, and ends no update.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, Permissions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::merge::Merged;
use crate::admin::filesystem::mount_point;
use crate::admin::merge_report::MergeReport;
use crate::admin::packages::{DPKG, RPM, has_program, of_dpkg, read_rpm};
use crate::admin::space::room_in;
use crate::admin::{Context, persist, text};
use crate::image::digest;
use crate::model::layout::Group;
use crate::model::package::{
    Fate, Format, Kept, Outcome, Package, Verdict, by_rpm_version, order, plan, reason, unmet,
};
use crate::sys::interrupt::Interrupt;
use crate::sys::sandbox::Sandbox;
use crate::sys::transaction::Transaction;
use crate::tree::{Below, Dir, Kind, walk};

/// The root of the layer that runs.
const RUNNING: &str = "/";
/// Where that is mounted which programs of packages can write to.
const SCRATCH: &str = "packages";

/// What scripts of packages ask before they start a daemon (invoke-rc.d(8)). In the root it is a link to what only
/// those who are shut in have, so one that is left there says nothing.
const POLICY: &str = "policy-rc.d";
const POLICY_IN: &str = "usr/sbin";
const POLICY_TARGET: &str = "/run/imgbased-policy";
/// By its exit status nothing is to be started.
const POLICY_SCRIPT: &[u8] = b"#!/bin/sh\nexit 101\n";

/// For programs of dpkg: what they ask is answered as before, and what the admin has changed stays.
const DPKG_BY: [&str; 6] = [
    "/usr/bin/env",
    "DEBIAN_FRONTEND=noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN=true",
    "UCF_FORCE_CONFFOLD=1",
    DPKG,
    "--force-confold",
];

/// What has become of a package that is not installed, and why.
type Failure = (Fate, String);

/// Those that the host keeps, looked into.
#[derive(Default)]
pub struct Packages {
    kept: Vec<Kept>,
    /// What each says of itself.
    controls: Vec<Package>,
    /// Why one cannot be used.
    problems: Vec<Option<String>>,
}

impl Packages {
    /// Looks into them. What is wrong with one is told with its outcome.
    pub fn of(
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        kept: impl IntoIterator<Item = Kept>,
    ) -> Result<Self> {
        let mut packages = Self {
            kept: kept.into_iter().collect(),
            ..Self::default()
        };
        if packages.kept.is_empty() {
            return Ok(packages);
        }
        persist::in_config(context, tx, group, "ro", &mut |tx, config| {
            for kept in &packages.kept {
                let found = look(config, kept, tx.interrupt());
                tx.interrupt().check()?;
                packages
                    .problems
                    .push(found.as_ref().err().map(|error| format!("{error:#}")));
                packages.controls.push(found.unwrap_or_default());
            }
            Ok(())
        })?;
        Ok(packages)
    }

    /// What would become of them in a root that is mounted at `path`.
    pub fn expected(&self, tx: &mut Transaction, path: &Path) -> Result<Vec<Outcome>> {
        Ok(self.outcomes(&self.verdicts(tx, path)?))
    }

    fn outcomes(&self, verdicts: &[Verdict]) -> Vec<Outcome> {
        let pairs = self.kept.iter().zip(verdicts);
        pairs
            .map(|(kept, verdict)| Outcome::new(kept, verdict))
            .collect()
    }

    fn verdicts(&self, tx: &mut Transaction, path: &Path) -> Result<Vec<Verdict>> {
        if self.kept.is_empty() {
            return Ok(Vec::new());
        }
        let image = of_dpkg(&Dir::root(path)?)?.filter(|_| has_program(path, DPKG));
        let has_rpm = has_program(path, RPM);
        let refused = |why: &str| Verdict::Refused(why.to_owned());
        let first = self.kept.iter().zip(&self.problems);
        let first = first.map(|(kept, problem)| match (problem, kept.format) {
            (Some(problem), _) => refused(problem),
            (None, Format::Deb) if image.is_none() => refused("the image has no dpkg(1)"),
            (None, Format::Rpm) if !has_rpm => refused("the image has no rpm(8)"),
            _ => Verdict::Install,
        });
        let mut verdicts: Vec<Verdict> = first.collect();
        let open = |verdicts: &[Verdict], format: Format| -> Vec<usize> {
            let is_open =
                |at: &usize| verdicts[*at].is_installed() && self.kept[*at].format == format;
            (0..self.kept.len()).filter(is_open).collect()
        };
        let of_rpm = open(&verdicts, Format::Rpm);
        if !of_rpm.is_empty() {
            let installed = read_rpm(tx, path)?.unwrap_or_default();
            for at in of_rpm {
                verdicts[at] = by_rpm_version(&self.kept[at], &installed);
            }
        }
        let of_dpkg = open(&verdicts, Format::Deb);
        let packages: Vec<Package> = of_dpkg
            .iter()
            .map(|at| self.controls[*at].clone())
            .collect();
        let planned = plan(&packages, &image.unwrap_or_default());
        for (at, verdict) in of_dpkg.into_iter().zip(planned) {
            verdicts[at] = verdict;
        }
        Ok(verdicts)
    }

    /// Installs what can be in the root of a layer that is mounted at `root`, and says what has become of each.
    fn install(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        root: &Path,
    ) -> Result<Vec<Outcome>> {
        let verdicts = self.verdicts(tx, root)?;
        let mut outcomes = self.outcomes(&verdicts);
        if !verdicts.iter().any(Verdict::is_installed) {
            return Ok(outcomes);
        }
        let free = room_in(context, root)?;
        // Scripts of packages can take minutes.
        tx.unlocked(|tx| {
            Site::visit(context, tx, group, root, &mut |site| {
                self.install_each(site, &verdicts, free, &mut outcomes)
            })
        })?;
        Ok(outcomes)
    }

    fn install_each(
        &self,
        site: &mut Site,
        verdicts: &[Verdict],
        mut room: u64,
        outcomes: &mut [Outcome],
    ) -> Result<()> {
        for some in self.together(verdicts) {
            let mut attempt = |some: &[usize]| self.attempt(site, some, verdicts, &mut room);
            let failed = match attempt(&some)? {
                None => continue,
                // One package of rpm can keep the others out.
                Some(_) if some.len() > 1 && self.is_of_rpm(&some) => {
                    in_rounds(some, &mut |at| attempt(&[at]))?
                }
                Some(failure) => some.iter().map(|at| (*at, failure.clone())).collect(),
            };
            for (at, (fate, why)) in failed {
                outcomes[at].result = fate;
                outcomes[at].why = Some(why);
            }
        }
        Ok(())
    }

    /// Installs some together, if they have a chance. Returns what becomes of them where that failed.
    fn attempt(
        &self,
        site: &mut Site,
        some: &[usize],
        verdicts: &[Verdict],
        room: &mut u64,
    ) -> Result<Option<Failure>> {
        if let Some(why) = self.refusal(site, some, *room)? {
            return Ok(Some((Fate::Refused, why)));
        }
        if let Some(why) = self.install_some(site, some, verdicts)? {
            return Ok(Some((Fate::Failed, why)));
        }
        *room = room.saturating_sub(self.size(some));
        Ok(None)
    }

    /// Those that are installed together, in their order. Packages of rpm are so at first.
    fn together(&self, verdicts: &[Verdict]) -> Vec<Vec<usize>> {
        let mut groups = order(&self.controls, verdicts);
        let of_rpm = groups.iter().filter(|some| self.is_of_rpm(some));
        let of_rpm: Vec<usize> = of_rpm.flatten().copied().collect();
        groups.retain(|some| !self.is_of_rpm(some));
        groups.extend(Some(of_rpm).filter(|some| !some.is_empty()));
        groups
    }

    fn is_of_rpm(&self, some: &[usize]) -> bool {
        some.iter().all(|at| self.kept[*at].format == Format::Rpm)
    }

    fn size(&self, some: &[usize]) -> u64 {
        let sizes = some.iter().map(|at| self.controls[*at].size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Why some are not tried, if so: another one that they need has failed, or there is no room, in bytes.
    fn refusal(&self, site: &Site, some: &[usize], room: u64) -> Result<Option<String>> {
        let now = site.installed()?;
        let own = some.iter().map(|at| &self.controls[*at]);
        let there: Vec<&Package> = now.iter().chain(own.clone()).collect();
        if let Some(need) = own.clone().find_map(|package| unmet(package, &there)) {
            return Ok(Some(format!(
                "it needs {need}, which could not be installed"
            )));
        }
        let needed = self.size(some);
        Ok((needed > room).then(|| {
            format!(
                "it takes {}, and the new layer has room for {}",
                text::size(needed),
                text::size(room)
            )
        }))
    }

    /// Installs some together. Returns why that failed, if it did; it is undone then, as far as the tool can.
    fn install_some(
        &self,
        site: &mut Site,
        some: &[usize],
        verdicts: &[Verdict],
    ) -> Result<Option<String>> {
        let before = site.only_here()?;
        let kept: Vec<&Kept> = some.iter().map(|at| &self.kept[*at]).collect();
        let why = if self.is_of_rpm(some) {
            let said = site.shut_in(&kept, &[RPM, "--upgrade"], &[])?;
            said.err().map(|error| format!("{error:#}"))
        } else {
            let said = site.shut_in(&kept, &[&DPKG_BY[..], &["--install"]].concat(), &[])?;
            let now = site.installed()?;
            let is_done = some.iter().all(|at| self.controls[*at].is_in(&now));
            match said {
                Ok(()) if is_done => None,
                Err(error) if is_done => {
                    log::warn!("package {} is installed, but {error:#}", kept[0].name);
                    None
                }
                Ok(()) => Some(self.undone(site, some, verdicts, "dpkg(1) has left it out")?),
                Err(error) => Some(self.undone(site, some, verdicts, &format!("{error:#}"))?),
            }
        };
        // What the layer has had of a package, and has no more, its admin has removed.
        let is_as_here = |at: &usize| self.controls[*at].is_in(&site.here);
        let is_new = |at: &usize| verdicts[*at] == Verdict::Install;
        let is_undone = why.is_some() && some.iter().all(is_new);
        if is_undone || why.is_none() && some.iter().all(is_as_here) {
            site.remove_others(&before)?;
        }
        Ok(why)
    }

    /// Has dpkg(1) remove again what it could not install. Returns why it could not, out of all that it `said`, and what
    /// of it is left.
    fn undone(
        &self,
        site: &mut Site,
        some: &[usize],
        verdicts: &[Verdict],
        said: &str,
    ) -> Result<String> {
        let mut why = reason(said).to_owned();
        let is_new = |at: &&usize| verdicts[**at] == Verdict::Install;
        let new = some.iter().filter(is_new);
        let new: Vec<&Package> = new.map(|at| &self.controls[*at]).collect();
        // The layer's own configuration of it stays.
        let is_here = |new: &&Package| site.here.iter().any(|other| other.is_same_in_root(new));
        let how = if new.iter().any(is_here) {
            "--remove"
        } else {
            "--purge"
        };
        if !new.is_empty() {
            let force = ["--force-remove-reinstreq", "--force-depends", how];
            let names: Vec<String> = new.iter().map(|package| package.key()).collect();
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let program = [&DPKG_BY[..], &force].concat();
            if let Err(error) = site.shut_in(&[], &program, &names)? {
                let said = format!("{error:#}");
                why += &format!("; a part of it stays: {}", reason(&said));
            }
        }
        let now = site.installed()?;
        let is_lost = |at: &usize| {
            let Verdict::Upgrade(version) = &verdicts[*at] else {
                return false;
            };
            let mut before = self.controls[*at].clone();
            before.version.clone_from(version);
            !before.is_in(&now)
        };
        if some.iter().any(is_lost) {
            why += "; that of the image is not there any more";
        }
        Ok(why)
    }
}

/// Tries each by itself, and those that failed once more as long as that has brought something: one can need another.
/// Returns those that are left.
fn in_rounds(
    mut open: Vec<usize>,
    attempt: &mut dyn FnMut(usize) -> Result<Option<Failure>>,
) -> Result<Vec<(usize, Failure)>> {
    loop {
        let mut failed = Vec::new();
        for at in &open {
            if let Some(failure) = attempt(*at)? {
                failed.push((*at, failure));
            }
        }
        if failed.is_empty() || failed.len() == open.len() {
            return Ok(failed);
        }
        open = failed.iter().map(|(at, _)| *at).collect();
    }
}

/// Looks into the file of a kept package. Refuses one that is not what its name says.
fn look(config: &Path, kept: &Kept, interrupt: &Interrupt) -> Result<Package> {
    let path = config.join(persist::PACKAGES).join(kept.file());
    let digest = digest::of_image(&path, "package", interrupt)?;
    ensure!(
        digest == kept.digest,
        "its file was changed, so add it again"
    );
    let package = persist::control(&path, kept.format, interrupt)?;
    kept.check_is(&package)?;
    Ok(package)
}

/// The layer in which packages are installed.
struct Site<'a, 'b> {
    tx: &'a mut Transaction<'b>,
    context: &'a Context,
    root: &'a Path,
    config: &'a Path,
    /// What the layer that runs has installed.
    here: Vec<Package>,
}

impl Site<'_, '_> {
    /// Has `work` install them in the root that is mounted at `root`, where they start nothing.
    fn visit(
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        root: &Path,
        work: &mut dyn FnMut(&mut Site) -> Result<()>,
    ) -> Result<()> {
        tx.work(&"packages start nothing", |_| deny_starts(root))?;
        let done = persist::in_config(context, tx, group, "ro", &mut |tx, config| {
            work(&mut Site {
                tx,
                context,
                root,
                config,
                here: of_dpkg(&Dir::root(Path::new(RUNNING))?)?.unwrap_or_default(),
            })
        });
        tx.work(&"packages start what they want", |_| allow_starts(root))?;
        done
    }

    fn installed(&self) -> Result<Vec<Package>> {
        Ok(of_dpkg(&Dir::root(self.root)?)?.unwrap_or_default())
    }

    /// Runs a program shut in, with the files of packages or other words as its last arguments. The inner error is what
    /// it says.
    fn shut_in(&mut self, kept: &[&Kept], program: &[&str], words: &[&str]) -> Result<Result<()>> {
        let scratch = mount_point(SCRATCH);
        let room = room_in(self.context, self.root)?;
        let sandbox = Sandbox::writable(self.tx, self.root, &scratch)?.with_room(room);
        let mut files = Vec::new();
        let mut copied = Ok(());
        self.tx.work(
            &"packages are copied to where they can be read",
            |interrupt| {
                copied = provide(self.config, &scratch, kept, &mut files, interrupt);
                interrupt.check()
            },
        )?;
        let done = match copied {
            Ok(()) => {
                let files = files.iter().map(String::as_str);
                let program: Vec<&str> = program
                    .iter()
                    .copied()
                    .chain(words.iter().copied())
                    .chain(files)
                    .collect();
                sandbox.attempt(self.tx, &program)?
            }
            Err(error) => Err(error),
        };
        sandbox.close(self.tx)?;
        Ok(done)
    }

    /// The paths of /etc that the layer that runs does not have.
    fn only_here(&self) -> Result<BTreeSet<PathBuf>> {
        only_in(&Dir::root(self.root)?, &Dir::root(Path::new(RUNNING))?)
    }

    /// Removes such paths but for these.
    fn remove_others(&mut self, but: &BTreeSet<PathBuf>) -> Result<()> {
        let others: Vec<PathBuf> = self.only_here()?.difference(but).cloned().collect();
        if others.is_empty() {
            return Ok(());
        }
        let root = self.root;
        self.tx
            .work(&"what was removed from /etc is removed there, too", |_| {
                remove_from_etc(&Dir::root(root)?, &others)
            })
    }
}

fn only_in(root: &Dir, other: &Dir) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let [etc, of_other] = [root, other].map(|root| root.descend(Path::new("etc")));
    // What is mounted there tells nothing.
    let (Some(etc), Some(of_other)) = (etc?, of_other?) else {
        return Ok(found);
    };
    walk(&[Some(etc), Some(of_other)], None, &mut |visit| {
        if let [Some(_), None] = visit.places {
            found.insert(visit.path.to_owned());
        }
        Ok(Below::Visit)
    })
    .context("cannot read /etc")?;
    Ok(found)
}

/// Removes these paths, which are in the order of their names. A directory with something else in it stays.
fn remove_from_etc(root: &Dir, paths: &[PathBuf]) -> Result<()> {
    for path in paths.iter().rev() {
        let above = Path::new("etc").join(path.parent().unwrap_or(Path::new("")));
        if let (Some(dir), Some(name)) = (root.descend(&above)?, path.file_name()) {
            dir.remove(name)?;
        }
    }
    Ok(())
}

/// Puts the files of packages, and the script that denies starts, where programs find them: at /run. Names them as
/// those see them.
fn provide(
    config: &Path,
    scratch: &Path,
    kept: &[&Kept],
    files: &mut Vec<String>,
    interrupt: &Interrupt,
) -> Result<()> {
    let run = scratch.join("run");
    DirBuilder::new().mode(0o755).create(&run)?;
    let to = Dir::root(&run)?;
    let policy = Path::new(POLICY_TARGET).file_name();
    let mut script = to.create(policy.context("it has a name")?)?;
    script.write_all(POLICY_SCRIPT)?;
    script.set_permissions(Permissions::from_mode(0o755))?;
    let from = Dir::root(config)?.descend(Path::new(persist::PACKAGES))?;
    for kept in kept {
        let from = from.as_ref().context("its file is gone")?;
        let name = format!("{}.{}", files.len(), kept.format.ending());
        let copy = to.create(name.as_ref())?;
        from.node(kept.file().as_ref())?
            .copy_to(&copy)
            .context("it cannot be copied into memory")?;
        let digest = digest::of_image(&run.join(&name), "package", interrupt)?;
        ensure!(
            digest == kept.digest,
            "its file was changed, so add it again"
        );
        files.push(format!("/run/{name}"));
    }
    Ok(())
}

/// Has scripts of packages start no daemon in a root, unless that says something of it itself.
fn deny_starts(root: &Path) -> Result<()> {
    let Some(dir) = Dir::root(root)?.resolve_dir(Path::new(POLICY_IN))? else {
        return Ok(());
    };
    if dir.stat_of(POLICY.as_ref())?.is_none() {
        dir.make_link(POLICY.as_ref(), POLICY_TARGET.as_ref())?;
    }
    Ok(())
}

fn allow_starts(root: &Path) -> Result<()> {
    let Some(dir) = Dir::root(root)?.resolve_dir(Path::new(POLICY_IN))? else {
        return Ok(());
    };
    if dir
        .stat_of(POLICY.as_ref())?
        .is_none_or(|stat| stat.kind != Kind::Link)
    {
        return Ok(());
    }
    if dir.node(POLICY.as_ref())?.target()? == POLICY_TARGET {
        dir.remove(POLICY.as_ref())?;
    }
    Ok(())
}

/// Installs what the host keeps in the new layer, and puts what has become of it into the report of the merge.
pub fn into(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    packages: &Packages,
    merged: &mut Merged,
    root: &Path,
) -> Result<()> {
    let outcomes = packages.install(context, tx, group, root)?;
    merged.packages = without_kept(std::mem::take(&mut merged.packages), &outcomes);
    let mut missing = merged.packages.clone();
    let missed = outcomes.iter().filter(|outcome| outcome.is_missed());
    missing.extend(missed.map(|outcome| outcome.name.clone()));
    if missing.is_empty() && outcomes.is_empty() {
        return Ok(());
    }
    merged.report.kept_packages = outcomes;
    merged.report.missing_packages = missing;
    merged.report.write(tx, root)
}

/// The names without those of packages that the host keeps, which are told by themselves.
pub fn without_kept(mut names: Vec<String>, outcomes: &[Outcome]) -> Vec<String> {
    // After a colon dpkg(1) has the architecture, and rpm(8) after a point, where names can have one with digits.
    let is_architecture = |rest: &str| match rest.strip_prefix('.') {
        Some(rest) => rest.starts_with(|c: char| c.is_ascii_alphabetic()),
        None => rest.is_empty() || rest.starts_with(':'),
    };
    let is_it = |key: &str, of: &Outcome| key.strip_prefix(&of.name).is_some_and(is_architecture);
    names.retain(|key| !outcomes.iter().any(|of| is_it(key, of)));
    names
}

/// Installs once more what `report` says was installed in the layer that is mounted at `root`: it has got another /etc.
/// What fails is told, and stays as it is.
pub fn again(
    context: &Context,
    tx: &mut Transaction,
    group: &Group,
    report: &MergeReport,
    root: &Path,
) -> Result<()> {
    let is_installed = |kept: &Kept| {
        let mut outcomes = report.kept_packages.iter();
        let is_it = |of: &Outcome| (&of.name, &of.version) == (&kept.name, &kept.version);
        outcomes.any(|of| of.result == Fate::Installed && is_it(of))
    };
    if report.kept_packages.is_empty() {
        return Ok(());
    }
    let carried = persist::listed(context, tx, group)?;
    let kept = carried.packages.into_iter().map(|(kept, _)| kept);
    // rpm(8) leaves alone what is installed.
    let is_meant = |kept: &Kept| kept.format == Format::Deb && is_installed(kept);
    let packages = Packages::of(context, tx, group, kept.filter(is_meant))?;
    let verdict = |problem: &Option<String>| match problem {
        Some(why) => Verdict::Refused(why.clone()),
        None => Verdict::Install,
    };
    let verdicts: Vec<Verdict> = packages.problems.iter().map(verdict).collect();
    if !verdicts.iter().any(Verdict::is_installed) {
        return Ok(());
    }
    let program = [&DPKG_BY[..], &["--force-confmiss", "--install"]].concat();
    Site::visit(context, tx, group, root, &mut |site| {
        for some in packages.together(&verdicts) {
            let before = site.only_here()?;
            let kept: Vec<&Kept> = some.iter().map(|at| &packages.kept[*at]).collect();
            if let Err(error) = site.shut_in(&kept, &program, &[])? {
                let said = format!("{error:#}");
                log::warn!(
                    "package {} in the new layer: {}",
                    kept[0].name,
                    reason(&said)
                );
            }
            if some
                .iter()
                .all(|at| packages.controls[*at].is_in(&site.here))
            {
                site.remove_others(&before)?;
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::transaction::change;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn kept(name: &str, format: Format) -> Kept {
        Kept {
            format,
            name: name.to_owned(),
            version: "1".to_owned(),
            architecture: "all".to_owned(),
            digest: "0".repeat(64),
        }
    }

    /// A root with this record and these programs.
    fn root(status: Option<&str>, programs: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["var/lib/dpkg", "usr/bin", "usr/sbin", "etc"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        if let Some(status) = status {
            fs::write(root.path().join("var/lib/dpkg/status"), status).unwrap();
        }
        for program in programs {
            fs::write(root.path().join(&program[1..]), "").unwrap();
        }
        root
    }

    fn packages() -> Packages {
        let package = |name: &str| {
            let control = format!("Package: {name}\nVersion: 1\nArchitecture: all\n");
            Package::of(&control).unwrap()
        };
        Packages {
            kept: vec![
                kept("new", Format::Deb),
                kept("old", Format::Deb),
                kept("broken", Format::Deb),
                kept("red", Format::Rpm),
            ],
            controls: ["new", "old", "", "red"].map(package).to_vec(),
            problems: vec![None, None, Some("its file was changed".to_owned()), None],
        }
    }

    #[test]
    fn what_the_image_cannot_install_is_refused() {
        const STATUS: &str = "Package: old\nStatus: install ok installed\nVersion: 2\n";
        for (status, programs, wanted) in [
            (
                Some(STATUS),
                &[DPKG][..],
                ["come", "is in the image, as 2", "the image has no rpm(8)"],
            ),
            (
                Some(STATUS),
                &[],
                ["no dpkg(1)", "no dpkg(1)", "the image has no rpm(8)"],
            ),
            (None, &[DPKG, RPM], ["no dpkg(1)", "no dpkg(1)", "come"]),
        ] {
            let root = root(status, programs);
            let outcomes = change(|tx| packages().expected(tx, root.path())).unwrap();
            let [new, old, red] = wanted;
            for (outcome, wanted) in outcomes.iter().zip([new, old, "its file was changed", red]) {
                let line = outcome.line("come");
                assert!(line.trim_end().ends_with(wanted), "{line} {wanted}");
            }
        }
        let nothing = Packages::default();
        let expected = change(|tx| nothing.expected(tx, Path::new("/nonexistent")));
        assert!(expected.unwrap().is_empty());
    }

    #[test]
    fn what_needs_another_is_tried_again_as_long_as_that_helps() {
        // What each needs; the last one is of nobody.
        for (needs, left) in [
            (&[None, None][..], &[][..]),
            (&[Some(1), Some(2), None], &[]),
            (&[None, Some(0), Some(1)], &[]),
            (&[Some(1), Some(9), None], &[0, 1]),
            (&[Some(9)], &[0]),
        ] {
            let mut there = BTreeSet::new();
            let mut tries = 0;
            let found = in_rounds((0..needs.len()).collect(), &mut |at| {
                tries += 1;
                if needs[at].is_none_or(|need| there.contains(&need)) {
                    there.insert(at);
                    return Ok(None);
                }
                Ok(Some((Fate::Failed, "it needs another".to_owned())))
            });
            let found: Vec<usize> = found.unwrap().iter().map(|(at, _)| *at).collect();
            assert_eq!(found, left, "{needs:?}");
            assert!(tries <= needs.len() * needs.len(), "{needs:?}: {tries}");
        }
    }

    #[test]
    fn names_of_kept_packages_are_told_once() {
        let outcome = Outcome::new(&kept("libx", Format::Deb), &Verdict::Install);
        for (names, left) in [
            (["a", "libx:amd64", "libx-dev"], &["a", "libx-dev"][..]),
            (
                ["libx.x86_64", "libx3.noarch", "a.x86_64"],
                &["libx3.noarch", "a.x86_64"],
            ),
            (["libx", "libx.3", "libx1"], &["libx.3", "libx1"]),
        ] {
            let names = names.map(str::to_owned).to_vec();
            assert_eq!(without_kept(names, std::slice::from_ref(&outcome)), left);
        }
    }

    #[test]
    fn starts_are_denied_meanwhile_unless_the_root_says_something_itself() {
        let root = root(None, &[]);
        let policy = root.path().join("usr/sbin/policy-rc.d");
        deny_starts(root.path()).unwrap();
        assert_eq!(fs::read_link(&policy).unwrap(), Path::new(POLICY_TARGET));
        // One that was left there does no harm.
        deny_starts(root.path()).unwrap();
        allow_starts(root.path()).unwrap();
        allow_starts(root.path()).unwrap();
        assert!(fs::symlink_metadata(&policy).is_err());
        symlink("/other", &policy).unwrap();
        deny_starts(root.path()).unwrap();
        allow_starts(root.path()).unwrap();
        assert_eq!(fs::read_link(&policy).unwrap(), Path::new("/other"));
        fs::remove_file(&policy).unwrap();
        fs::write(&policy, "own").unwrap();
        deny_starts(root.path()).unwrap();
        allow_starts(root.path()).unwrap();
        assert_eq!(fs::read(&policy).unwrap(), b"own");
        // Where it would lead out of the root, there is none.
        fs::remove_file(&policy).unwrap();
        fs::remove_dir(root.path().join("usr/sbin")).unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("usr/sbin")).unwrap();
        deny_starts(root.path()).unwrap();
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_a_package_adds_to_etc_is_found_and_removed() {
        let (new, here) = (root(None, &[]), root(None, &[]));
        let put = |root: &Path, name: &str| {
            let path = root.join("etc").join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        };
        put(new.path(), "both");
        put(here.path(), "both");
        put(here.path(), "dir/here");
        put(new.path(), "image");
        let dirs = || [new.path(), here.path()].map(|dir| Dir::root(dir).unwrap());
        let [of_new, of_here] = dirs();
        let before = only_in(&of_new, &of_here).unwrap();
        assert_eq!(before, BTreeSet::from(["image".into()]));
        for name in ["dir/added", "dir/here", "added/below", "image.d/x"] {
            put(new.path(), name);
        }
        let others: Vec<PathBuf> = only_in(&of_new, &of_here)
            .unwrap()
            .difference(&before)
            .cloned()
            .collect();
        remove_from_etc(&of_new, &others).unwrap();
        assert_eq!(only_in(&of_new, &of_here).unwrap(), before);
        assert!(new.path().join("etc/dir/here").exists());
    }

    #[test]
    fn only_the_file_that_was_kept_is_handed_over() {
        let config = tempfile::tempdir().unwrap();
        let dir = config.path().join(persist::PACKAGES);
        fs::create_dir(&dir).unwrap();
        // That of an empty file.
        let digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let kept = Kept {
            digest: digest.to_owned(),
            ..kept("new", Format::Deb)
        };
        let provided = |content: &str| {
            fs::write(dir.join(kept.file()), content).unwrap();
            let scratch = tempfile::tempdir().unwrap();
            let mut files = Vec::new();
            let interrupt = Interrupt::default();
            let done = provide(
                config.path(),
                scratch.path(),
                &[&kept],
                &mut files,
                &interrupt,
            );
            let policy = fs::read(scratch.path().join("run/imgbased-policy")).unwrap();
            assert_eq!(policy, POLICY_SCRIPT);
            done.map(|()| files).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(provided("").unwrap(), ["/run/0.deb"]);
        assert!(provided("other").unwrap_err().contains("was changed"));
        let looked = look(config.path(), &kept, &Interrupt::default());
        assert!(looked.unwrap_err().to_string().contains("was changed"));
        fs::remove_file(dir.join(kept.file())).unwrap();
        symlink("/dev/null", dir.join(kept.file())).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let interrupt = Interrupt::default();
        let done = provide(
            config.path(),
            scratch.path(),
            &[&kept],
            &mut Vec::new(),
            &interrupt,
        );
        assert!(done.is_err());
    }
}
