//! `image check`: what would keep a host that is made of an image from booting or from being updated.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;
use serde::Serialize;

use super::opened::{Inside, look_into};
use crate::admin::roots::{self, Tree};
use crate::admin::view::JSON_VERSION;
use crate::admin::{Context, LOCK_WAIT, found_status, initramfs, text};
use crate::boot::root::{Root, names_of};
use crate::merge::{UserFiles, faults, moved, users_of};
use crate::model::image::{Facts, Finding, Kernel, findings};
use crate::model::package_records::RECORDS;
use crate::sys::rooted::real_path;
use crate::sys::transaction::{Transaction, Writer};
use crate::tree::{Dir, Kind, escaped};

const MODULES: &str = "usr/lib/modules";
/// What dracut needs to make an initramfs that boots a layer.
const MAKERS: [&str; 2] = ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"];
/// Units that mount the boot partition (systemd.unit(5)).
const BOOT_UNITS: [&str; 4] = [
    "etc/systemd/system/boot.mount",
    "etc/systemd/system/boot.automount",
    "usr/lib/systemd/system/boot.mount",
    "usr/lib/systemd/system/boot.automount",
];
/// The largest text that is read, in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// What `image check` is told.
#[derive(Args)]
pub struct Check {
    /// File, block device or directory that holds the image
    image: PathBuf,
    /// Compare the numbers of users and groups with those of an older image: a base, or a directory with a slash in it
    #[arg(long, value_name = "DIR|BASE")]
    against: Option<Tree>,
}

#[derive(Serialize)]
struct Report {
    version: u32,
    image: String,
    /// Of the operating system.
    name: String,
    image_version: Option<String>,
    kernels: Vec<String>,
    /// What its files take, in bytes.
    size: Option<u64>,
    findings: Vec<Finding>,
}

impl Report {
    fn lines(&self) -> String {
        let version = self.image_version.as_deref();
        let version = version.map_or("no version".to_owned(), |v| format!("version {v}"));
        let kernels = match self.kernels.join(", ") {
            kernels if kernels.is_empty() => "no kernel".to_owned(),
            kernels => format!("Linux {kernels}"),
        };
        let size = self
            .size
            .map_or(String::new(), |size| format!(", {}", text::size(size)));
        let Self { image, name, .. } = self;
        let first = format!("{image}: {name}, {version}, {kernels}{size}");
        let found = self.findings.iter().map(ToString::to_string);
        let lines = [first].into_iter().chain(found);
        lines.map(|line| escaped(line) + "\n").collect()
    }
}

/// Looks at an image, and tells what it finds. The exit status says whether there is anything.
pub fn run(context: &Context, check: &Check) -> Result<ExitCode> {
    // Nothing is changed, so there is nothing that a dry run would leave out.
    let writer = Writer::new("image check", LOCK_WAIT, false)?;
    let older = check.against.as_ref();
    let older = older.map(|older| older_users(context, older)).transpose()?;
    let mut report = None;
    writer.transaction(|tx| {
        look_into(tx, &check.image, &mut |tx, inside| {
            report = Some(look_at(tx, &check.image, inside, older.as_ref())?);
            Ok(())
        })
    })?;
    let report = report.context("there is a root in each image")?;
    context.show(&report, || report.lines())?;
    Ok(found_status(!report.findings.is_empty()))
}

/// The users and groups of an older image. A volume is activated for that, with the lock.
fn older_users(context: &Context, older: &Tree) -> Result<UserFiles> {
    if let Tree::Directory(dir) = older {
        return users_of(&Dir::root(dir)?);
    }
    let found = context.change("image check", |tx| {
        let group = context.load()?;
        let older = roots::named(&group, older.clone())?;
        roots::opened(context, tx, &group, &older, |_, root| {
            users_of(&Dir::root(root)?)
        })
    })?;
    Ok(found.unwrap_or_default())
}

fn look_at(
    tx: &Transaction,
    image: &Path,
    inside: &Inside,
    older: Option<&UserFiles>,
) -> Result<Report> {
    let root = Root::at(&inside.root);
    let facts = facts(tx, inside, older)?;
    let release = facts.os_release.clone().unwrap_or_default();
    Ok(Report {
        version: JSON_VERSION,
        image: image.display().to_string(),
        name: root.name(),
        image_version: release.version().map(str::to_owned),
        kernels: facts
            .kernels
            .iter()
            .map(|kernel| kernel.version.clone())
            .collect(),
        size: inside.size,
        findings: findings(&facts),
    })
}

/// What is to be known of a root.
fn facts(tx: &Transaction, inside: &Inside, older: Option<&UserFiles>) -> Result<Facts> {
    let root = Root::at(&inside.root);
    let dir = Dir::root(&inside.root)?;
    let here = Here { dir: &dir };
    let users = users_of(&dir)?;
    let options = here.text("etc/kernel/cmdline")?;
    let options = match options {
        Some(options) => options,
        None => root.options()?.unwrap_or_default(),
    };
    let has_release = here.is_file("etc/os-release")? || here.is_file("usr/lib/os-release")?;
    let shown = |name: &String| escaped(name);
    Ok(Facts {
        os_release: has_release.then(|| root.os_release()),
        has_helper: here.is_file("usr/bin/imgbased-helper")?,
        makes_initramfs: here.is_there(MAKERS[0])? && here.is_there(MAKERS[1])?,
        kernels: here.kernels(tx, &inside.root)?,
        host_keys: here.host_keys()?,
        machine_id: here.text("etc/machine-id")?.unwrap_or_default(),
        options,
        fstab: root.fstab()?.map(|fstab| fstab.text).unwrap_or_default(),
        has_boot_unit: here.is_any(&BOOT_UNITS)?,
        records: here.records()?,
        account_faults: faults(&users).iter().map(shown).collect(),
        moved: older
            .map(|older| moved_names(older, &users))
            .unwrap_or_default(),
        space: inside.space,
    })
}

fn moved_names(older: &UserFiles, users: &UserFiles) -> Vec<String> {
    let moved = moved(older, users).into_iter().map(|moved| {
        let kind = if moved.is_group { "group" } else { "user" };
        let name = escaped(&moved.name);
        format!("{kind} {name} is {}, was {}", moved.new, moved.old)
    });
    moved.collect()
}

/// A root that is looked into.
struct Here<'a> {
    dir: &'a Dir,
}

impl Here<'_> {
    fn kind(&self, path: &str) -> Result<Option<Kind>> {
        let node = self.dir.resolve(Path::new(path));
        let node = node.with_context(|| format!("cannot look at /{path}"))?;
        Ok(node.map(|node| node.stat.kind))
    }

    fn is_there(&self, path: &str) -> Result<bool> {
        Ok(self.kind(path)?.is_some())
    }

    fn is_file(&self, path: &str) -> Result<bool> {
        Ok(self.kind(path)? == Some(Kind::File))
    }

    fn is_any(&self, paths: &[&str]) -> Result<bool> {
        for path in paths {
            if self.is_there(path)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn text(&self, path: &str) -> Result<Option<String>> {
        let read = || -> io::Result<Option<String>> {
            let node = self.dir.resolve(Path::new(path))?;
            let Some(node) = node.filter(|node| node.stat.kind == Kind::File) else {
                return Ok(None);
            };
            let content = node.read(TEXT_MAX)?;
            Ok(Some(String::from_utf8_lossy(&content).into_owned()))
        };
        read().with_context(|| format!("cannot read /{path}"))
    }

    /// The names in a directory that are UTF-8; none where there is no such directory.
    fn names(&self, path: &str) -> Result<Vec<String>> {
        let read = || -> io::Result<Vec<String>> {
            let Some(dir) = self.dir.resolve_dir(Path::new(path))? else {
                return Ok(Vec::new());
            };
            let names = dir.names()?.into_iter();
            Ok(names.filter_map(|name| name.into_string().ok()).collect())
        };
        read().with_context(|| format!("cannot read /{path}"))
    }

    /// The kernels, of which each part was looked for by itself.
    fn kernels(&self, tx: &Transaction, root: &Path) -> Result<Vec<Kernel>> {
        let has_modules = |version: &str| {
            let dir = format!("{MODULES}/{version}");
            Ok::<_, anyhow::Error>(
                self.is_there(&format!("{dir}/kernel"))?
                    || self.is_file(&format!("{dir}/vmlinuz"))?,
            )
        };
        let mut versions = BTreeSet::new();
        for version in self.names(MODULES)? {
            if has_modules(&version)? {
                versions.insert(version);
            }
        }
        for name in self.names("boot")? {
            versions.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
        }
        versions.retain(|version| version.starts_with(|c: char| c.is_ascii_digit()));
        let mut kernels = Vec::new();
        for version in versions {
            let [images, initramfs_names] = names_of(&version);
            let in_modules = format!("{MODULES}/{version}/vmlinuz");
            let mut kernel = Kernel {
                has_image: self.in_boot(&images)?.is_some() || self.is_file(&in_modules)?,
                has_modules: has_modules(&version)?,
                initramfs: None,
                version,
            };
            if let Some(path) = self.in_boot(&initramfs_names)? {
                kernel.initramfs = Some(initramfs::look(tx, &real_path(root, &path)?)?);
            }
            kernels.push(kernel);
        }
        Ok(kernels)
    }

    /// The first of these files that is in /boot.
    fn in_boot(&self, names: &[String]) -> Result<Option<String>> {
        for name in names {
            let path = format!("boot/{name}");
            if self.is_file(&path)? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    fn host_keys(&self) -> Result<Vec<String>> {
        let mut names = self.names("etc/ssh")?;
        names.retain(|name| name.starts_with("ssh_host_") && name.ends_with("_key"));
        Ok(names
            .into_iter()
            .map(|name| format!("/etc/ssh/{name}"))
            .collect())
    }

    /// The records of packages that are in /var themselves, and not links out of it.
    fn records(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for record in RECORDS {
            let path = format!("var/lib/{record}");
            let (above, name) = path.rsplit_once('/').unwrap_or_default();
            let look = || -> io::Result<bool> {
                let dir = self.dir.resolve_dir(Path::new(above))?;
                let stat = dir
                    .map(|dir| dir.stat_of(name.as_ref()))
                    .transpose()?
                    .flatten();
                Ok(stat.is_some_and(|stat| stat.kind == Kind::Dir))
            };
            if look().with_context(|| format!("cannot look at /{path}"))? {
                found.push(format!("/{path}"));
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_findings_are_a_document_as_its_schema_says() {
        let finding = Finding {
            id: "host-key",
            subject: "/etc/ssh/ssh_host_rsa_key".to_owned(),
            problem: "all hosts would have this key".to_owned(),
            advice: "remove it",
        };
        for (text, size) in [(None, None), (Some("1.0-1".to_owned()), Some(1 << 30))] {
            let report = Report {
                version: JSON_VERSION,
                image: "/srv/tree".to_owned(),
                name: "Debian".to_owned(),
                kernels: text.iter().cloned().collect(),
                image_version: text,
                size,
                findings: vec![finding.clone()],
            };
            crate::schemas::assert_holds("image-check", &report);
        }
    }
}
