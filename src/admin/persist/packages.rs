//! `persist add --package` and the like: packages that are installed in layers of newer bases as well. Each is a file
//! of the Config volume, whose name says what it holds.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use super::lists::{CONFIG, in_config, in_own_config};
use crate::admin::space::Space;
use crate::admin::{Context, comment, packages, pool_left, say, text};
use crate::image::digest;
use crate::model::package::{Format, Kept, Package, check_name, compare};
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;
use crate::sys::limited::{self, Limits};
use crate::sys::sandbox::{FILE_MAX, process_memory};
use crate::sys::transaction::Transaction;
use crate::tree::{Dir, Kind, escaped};

/// Where they are in the volume, and where they are downloaded to there.
pub const DIR: &str = "packages";
const DOWNLOAD: &str = ".download";
/// Where apt keeps the files of packages that it has installed.
const CACHE: &str = "/var/cache/apt/archives";
/// So many are kept at most.
const COUNT_MAX: usize = 256;
/// How long the control file of a package may be read, and how long one may be downloaded, in seconds.
const LOOK_SECONDS: u32 = 60;
const DOWNLOAD_SECONDS: u32 = 15 * 60;
/// What is left free of the volume, in bytes.
const LEFT_FREE: u64 = 1 << 20;

const FIELDS: [&str; 10] = [
    "Package",
    "Version",
    "Architecture",
    "Multi-Arch",
    "Installed-Size",
    "Pre-Depends",
    "Depends",
    "Conflicts",
    "Breaks",
    "Provides",
];
/// The same of a package of rpm, as far as it is needed: rpm(8) itself knows what a package needs.
const FIELDS_OF_RPM: &str = "Package: %{NAME}\\nVersion: %|EPOCH?{%{EPOCH}:}|%{VERSION}-%{RELEASE}\\n\
    Architecture: %{ARCH}\\n";

/// A kept package, as `persist list` shows it.
#[derive(Serialize)]
pub struct Row {
    name: String,
    version: String,
    architecture: String,
    /// In bytes.
    size: u64,
    sha256: String,
}

impl Row {
    pub fn new((kept, size): &(Kept, u64)) -> Self {
        Self {
            name: kept.name.clone(),
            version: kept.version.clone(),
            architecture: kept.architecture.clone(),
            size: *size,
            sha256: kept.digest.clone(),
        }
    }

    pub fn line(&self) -> String {
        let Self {
            name,
            version,
            architecture,
            size,
            ..
        } = self;
        let size = text::size(*size);
        format!("package {name} {version} {architecture}, {size}\n")
    }
}

/// What a person has named.
enum Source {
    File(PathBuf),
    /// Perhaps with an architecture.
    Name(String),
}

impl Source {
    fn of(text: &str) -> Result<Self> {
        let path = Path::new(text);
        let ending = path.extension().and_then(OsStr::to_str);
        if text.contains('/') || matches!(ending, Some("deb" | "rpm")) {
            let path = absolute(path).with_context(|| format!("cannot use {}", escaped(path)))?;
            return Ok(Self::File(path));
        }
        check_name(text)?;
        Ok(Self::Name(text.to_owned()))
    }
}

/// A package that is to be kept.
enum Found {
    Here(Looked),
    /// As apt-get(8) takes it.
    Elsewhere(String),
}

/// The file of a package, looked into.
struct Looked {
    path: PathBuf,
    kept: Kept,
    /// In bytes.
    size: u64,
}

/// Keeps packages, by their files or by their names.
pub fn add(context: &Context, texts: &[String]) -> Result<()> {
    let sources = texts.iter().map(|text| Source::of(text));
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let mut said = String::new();
    let mut replaced = Vec::new();
    let writer = context.locked_writer("persist add")?;
    writer.transaction(|tx| {
        let group = context.load()?;
        let room = pool_left(&group)?;
        let found = sources.iter().map(|source| find(tx.interrupt(), source));
        let mut found = found.collect::<Result<Vec<_>>>()?;
        in_own_config(context, tx, &group, &mut |tx, config| {
            let dir = config.join(DIR);
            let mut there: Vec<Kept> = files(config)?.into_iter().map(|(kept, _)| kept).collect();
            for found in found.drain(..) {
                let (looked, is_downloaded) = match found {
                    Found::Here(looked) => (looked, false),
                    Found::Elsewhere(name) => match download(tx, &dir, &name)? {
                        Some(looked) => (looked, true),
                        None => continue,
                    },
                };
                let kept = looked.kept.clone();
                let (name, version) = (&kept.name, &kept.version);
                if there.contains(&kept) {
                    said += &format!("package {name} {version} is kept already\n");
                    continue;
                }
                ensure!(
                    there.len() < COUNT_MAX,
                    "more than {COUNT_MAX} packages are not kept; `imgbased-helper persist remove --package` makes room"
                );
                put(tx, config, &looked, is_downloaded, room)?;
                said += &format!("package {name} {version} is kept\n");
                take_place(&mut there, &mut replaced, kept);
            }
            if dir.join(DOWNLOAD).exists() {
                tx.run(&remove_all(&dir.join(DOWNLOAD)))?;
            }
            Ok(())
        })
    })?;
    if !replaced.is_empty() {
        // That the new one is kept stays done when this fails.
        writer.transaction(|tx| {
            let group = context.load()?;
            in_config(context, tx, &group, "rw", &mut |tx, config| {
                tx.run(&remove_files(config, &replaced))
            })
        })?;
    }
    if context.dry_run {
        return Ok(());
    }
    say(&said)
}

/// Has a package take the place of its other versions `there`, which are `replaced` then. One that is kept again is none
/// of those.
fn take_place(there: &mut Vec<Kept>, replaced: &mut Vec<Kept>, kept: Kept) {
    let (old, mut others): (Vec<Kept>, Vec<Kept>) = std::mem::take(there)
        .into_iter()
        .partition(|other| other.is_of_same(&kept));
    replaced.extend(old);
    replaced.retain(|other| *other != kept);
    others.push(kept);
    *there = others;
}

/// Keeps packages no longer.
pub fn remove(context: &Context, texts: &[String]) -> Result<()> {
    texts.iter().try_for_each(|text| check_name(text))?;
    context.change("persist remove", |tx| {
        let group = context.load()?;
        in_config(context, tx, &group, "rw", &mut |tx, config| {
            let mut there: Vec<Kept> = files(config)?.into_iter().map(|(kept, _)| kept).collect();
            for text in texts {
                ensure!(
                    there.iter().any(|kept| kept.is_called(text)),
                    "package {text} is not kept; `imgbased-helper persist list` shows what is"
                );
            }
            there.retain(|kept| texts.iter().any(|text| kept.is_called(text)));
            tx.run(&remove_files(config, &there))
        })
    })
}

fn remove_files(config: &Path, kept: &[Kept]) -> Cmd {
    let dir = config.join(DIR);
    let files = kept.iter().map(|kept| dir.join(kept.file()));
    Cmd::new("rm").args(["-f", "--"]).args(files)
}

fn remove_all(dir: &Path) -> Cmd {
    Cmd::new("rm").args(["-rf", "--"]).arg(dir)
}

/// The packages that are kept in the volume that is mounted at `config`, with their sizes in bytes. Of one in several
/// versions the newest counts.
pub fn kept(config: &Path) -> Result<Vec<(Kept, u64)>> {
    let mut files = files(config)?;
    files.sort_by(|(a, _), (b, _)| compare(&b.version, &a.version));
    let mut kept: Vec<(Kept, u64)> = Vec::new();
    for file in files {
        if !kept.iter().any(|(newer, _)| newer.is_of_same(&file.0)) {
            kept.push(file);
        }
    }
    kept.sort_by(|(a, _), (b, _)| (&a.name, &a.architecture).cmp(&(&b.name, &b.architecture)));
    Ok(kept)
}

/// All such files.
fn files(config: &Path) -> Result<Vec<(Kept, u64)>> {
    let failed = || format!("cannot read {DIR} of {CONFIG}");
    let Some(dir) = Dir::root(config)?
        .descend(Path::new(DIR))
        .with_context(failed)?
    else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for name in dir.names().with_context(failed)? {
        // What is not finished.
        if name.as_bytes().starts_with(b".") {
            continue;
        }
        let stat = dir.stat_of(&name).with_context(failed)?;
        let file = stat.filter(|stat| stat.kind == Kind::File && stat.size <= FILE_MAX);
        match (name.to_str().and_then(Kept::parse), file) {
            (Some(kept), Some(stat)) => files.push((kept, stat.size)),
            _ => log::warn!(
                "{DIR}/{} of {CONFIG} is no package that `persist add --package` has put there",
                escaped(name)
            ),
        }
    }
    Ok(files)
}

/// Looks for the file of a package. Refuses one that cannot be used, and a name where nothing can be downloaded.
fn find(interrupt: &Interrupt, source: &Source) -> Result<Found> {
    let text = match source {
        Source::File(path) => return Ok(Found::Here(look(path, interrupt)?)),
        Source::Name(text) => text,
    };
    let (name, architecture) = match text.split_once(':') {
        Some((name, architecture)) => (name, Some(architecture)),
        None => (text.as_str(), None),
    };
    let installed = packages::of_dpkg(&Dir::root(Path::new("/"))?)?.unwrap_or_default();
    let installed = installed.into_iter().find(|package| {
        package.name == name && architecture.is_none_or(|of| of == package.architecture)
    });
    let version = installed.as_ref().map(|package| package.version.as_str());
    let names = fs::read_dir(CACHE).into_iter().flatten().flatten();
    let names: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    if let Some(file) = cached(&names, name, architecture, version) {
        return Ok(Found::Here(look(&Path::new(CACHE).join(file), interrupt)?));
    }
    if let Err(error) = Cmd::new("apt-get").check_installed() {
        bail!("package {text} is not in {CACHE}, and cannot be downloaded: {error}; give its file");
    }
    let version = version.map_or_else(String::new, |version| format!("={version}"));
    Ok(Found::Elsewhere(format!("{text}{version}")))
}

/// The file that apt has kept of a package, in this version, or else in the newest one: `NAME_VERSION_ARCHITECTURE.deb`.
fn cached<'a>(
    files: &'a [String],
    name: &str,
    architecture: Option<&str>,
    version: Option<&str>,
) -> Option<&'a str> {
    let of_file = |file: &'a String| {
        let mut parts = file.strip_suffix(".deb")?.split('_');
        let (of, in_version, is_for) = (parts.next()?, parts.next()?, parts.next()?);
        let in_version = in_version.replace("%3a", ":");
        let is_it = of == name
            && architecture.is_none_or(|wanted| is_for == wanted)
            && version.is_none_or(|wanted| in_version == wanted);
        is_it.then_some((in_version, file.as_str()))
    };
    let files = files.iter().filter_map(of_file);
    let newest = files.max_by(|(a, _), (b, _)| compare(a, b));
    newest.map(|(_, file)| file)
}

/// Looks into the file of a package. Refuses what is none, and one that is too large.
fn look(path: &Path, interrupt: &Interrupt) -> Result<Looked> {
    let shown = escaped(path);
    let failed = || format!("cannot use {shown}");
    let metadata = fs::metadata(path).with_context(failed)?;
    ensure!(metadata.is_file(), "{shown} is no file");
    let size = metadata.len();
    ensure!(
        size <= FILE_MAX,
        "{shown} is larger than {}, which is the most for a package",
        text::size(FILE_MAX)
    );
    let mut head = Vec::new();
    let file = File::open(path).with_context(failed)?;
    file.take(64).read_to_end(&mut head).with_context(failed)?;
    let format = Format::of(&head);
    let format =
        format.with_context(|| format!("{shown} is a package neither of dpkg nor of rpm"))?;
    let package = control(path, format, interrupt)?;
    let digest = digest::of_image(path, "package", interrupt)?;
    let kept = Kept::new(&package, format, digest).with_context(failed)?;
    Ok(Looked {
        path: path.to_owned(),
        kept,
        size,
    })
}

/// What a package says of itself. The tool of the host reads it, within limits.
pub fn control(path: &Path, format: Format, interrupt: &Interrupt) -> Result<Package> {
    let cmd = match format {
        Format::Deb => Cmd::new("dpkg-deb").arg("--field").arg(path).args(FIELDS),
        Format::Rpm => Cmd::new("rpm")
            .args(["--query", "--nosignature", "--queryformat", FIELDS_OF_RPM])
            .arg("--package")
            .arg(path),
    };
    cmd.check_installed()?;
    let limits = Limits {
        seconds: LOOK_SECONDS,
        memory: process_memory()?,
        file: FILE_MAX,
    };
    let said = limited::run_within(&cmd, &limits, interrupt);
    interrupt.check()?;
    let said = said.with_context(|| format!("cannot read what {} holds", escaped(path)))?;
    Package::of(&said).with_context(|| format!("{} names no package", escaped(path)))
}

/// Has apt-get(8) download a package, as the sources of the layer that runs have it. A dry run has nothing of it.
fn download(tx: &mut Transaction, dir: &Path, name: &str) -> Result<Option<Looked>> {
    let to = dir.join(DOWNLOAD);
    // What an earlier one has left, which was killed.
    if to.exists() {
        tx.run(&remove_all(&to))?;
    }
    tx.create_dir(dir)?;
    tx.run_undoable(&Cmd::new("mkdir").arg(&to), remove_all(&to))?;
    let cmd = Cmd::new("env")
        .arg("--chdir")
        .arg(&to)
        .args(["apt-get", "--quiet", "download", name]);
    tx.work(&cmd, |interrupt| {
        limited::run(&cmd, DOWNLOAD_SECONDS, interrupt)
            .map(drop)
            .with_context(|| format!("cannot download package {name}; give its file"))
    })?;
    if tx.is_dry_run() {
        comment(&format!("what comes is put into {}", dir.display()))?;
        return Ok(None);
    }
    let names = Dir::root(&to)?.names()?;
    let mut files = names.iter().map(Path::new);
    let file = files.find(|file| file.extension() == Some(OsStr::new("deb")));
    let file = file.with_context(|| format!("apt-get has not brought package {name}"))?;
    look(&to.join(file), tx.interrupt()).map(Some)
}

/// Puts the file of a package into the volume.
fn put(
    tx: &mut Transaction,
    config: &Path,
    looked: &Looked,
    is_downloaded: bool,
    room: u64,
) -> Result<()> {
    let Looked { path, kept, size } = looked;
    let dir = config.join(DIR);
    let to = dir.join(kept.file());
    if is_downloaded {
        let undo = Cmd::new("rm").args(["-f", "--"]).arg(&to);
        tx.run_undoable(&Cmd::new("mv").arg("--").args([path, &to]), undo)?;
        return tx.flush(&dir);
    }
    // A dry run has the volume mounted, too.
    let free = Space::at(config)?.free.min(room);
    ensure!(
        size.saturating_add(LEFT_FREE) <= free,
        "package {} takes {}, and {CONFIG} has room for {}; `imgbased-helper persist remove --package` makes room",
        kept.name,
        text::size(*size),
        text::size(free.saturating_sub(LEFT_FREE))
    );
    tx.create_dir(&dir)?;
    tx.copy(path, &to, 0o644)?;
    if tx.is_dry_run() {
        return Ok(());
    }
    let copied = digest::of_image(&to, "package", tx.interrupt())?;
    ensure!(
        copied == kept.digest,
        "{} was changed while it was copied; try it again",
        escaped(path)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    const DIGEST: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn of_all_versions_that_are_named_the_last_is_kept() {
        let kept = |name: &str, version: &str| Kept {
            format: Format::Deb,
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: "all".to_owned(),
            digest: DIGEST.to_owned(),
        };
        let mut there = vec![kept("agent", "2"), kept("other", "1")];
        let mut replaced = Vec::new();
        take_place(&mut there, &mut replaced, kept("agent", "1"));
        assert_eq!(there, [kept("other", "1"), kept("agent", "1")]);
        assert_eq!(replaced, [kept("agent", "2")]);
        take_place(&mut there, &mut replaced, kept("agent", "2"));
        assert_eq!(there, [kept("other", "1"), kept("agent", "2")]);
        assert_eq!(replaced, [kept("agent", "1")]);
    }

    #[test]
    fn what_is_named_is_a_file_or_a_package() {
        for (text, wanted) in [
            ("htop", Some(false)),
            ("libc6:i386", Some(false)),
            ("./htop", Some(true)),
            ("/srv/htop.deb", Some(true)),
            ("htop.deb", Some(true)),
            ("htop.rpm", Some(true)),
            ("-x.deb", Some(true)),
            ("htop=1", None),
            ("a b", None),
            ("", None),
        ] {
            let found = Source::of(text).ok();
            let is_file = found.as_ref().map(|of| matches!(of, Source::File(_)));
            assert_eq!(is_file, wanted, "{text}");
            if let Some(Source::File(path)) = found {
                assert!(path.is_absolute(), "{text}");
            }
        }
    }

    #[test]
    fn the_cache_of_apt_has_a_package_in_the_version_that_is_installed() {
        let files = [
            "htop_3.3-1_amd64.deb",
            "htop_3.10-1_amd64.deb",
            "htop_3.10-1_i386.deb",
            "htop-x_9_amd64.deb",
            "vim_2%3a9.1-1_amd64.deb",
            "partial",
            "lock_1_.deb.tmp",
        ]
        .map(str::to_owned);
        for (name, architecture, version, wanted) in [
            ("htop", None, Some("3.3-1"), Some("htop_3.3-1_amd64.deb")),
            ("htop", Some("amd64"), None, Some("htop_3.10-1_amd64.deb")),
            ("htop", Some("i386"), None, Some("htop_3.10-1_i386.deb")),
            ("htop", Some("arm64"), None, None),
            ("htop", None, Some("3.4"), None),
            (
                "vim",
                None,
                Some("2:9.1-1"),
                Some("vim_2%3a9.1-1_amd64.deb"),
            ),
            ("lock", None, None, None),
            ("partial", None, None, None),
        ] {
            let found = cached(&files, name, architecture, version);
            assert_eq!(found, wanted, "{name} {architecture:?} {version:?}");
        }
    }

    #[test]
    fn kept_packages_are_files_with_such_names_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path();
        assert!(kept(config).unwrap().is_empty());
        let packages = config.join(DIR);
        fs::create_dir(&packages).unwrap();
        let file = |version: &str| format!("htop@{version}@amd64@{DIGEST}.deb");
        for name in [
            &file("3.9"),
            &file("3.10"),
            "htop_3.4_amd64.deb",
            ".x.tmp",
            "note",
        ] {
            fs::write(packages.join(name), "x").unwrap();
        }
        let with = |name: &str| packages.join(format!("{name}@1@amd64@{DIGEST}.deb"));
        symlink("/etc/passwd", with("link")).unwrap();
        fs::create_dir(with("dir")).unwrap();
        mkfifo(&with("fifo"), Mode::S_IRWXU).unwrap();
        let large = File::create(with("large")).unwrap();
        large.set_len(FILE_MAX + 1).unwrap();
        let found = || -> Vec<(String, u64)> {
            let found = kept(config).unwrap().into_iter();
            found.map(|(kept, size)| (kept.version, size)).collect()
        };
        assert_eq!(found(), [("3.10".to_owned(), 1)]);
        // It went from one architecture to all, and back.
        let for_all = packages.join(format!("htop@3.11@all@{DIGEST}.deb"));
        fs::write(&for_all, "x").unwrap();
        assert_eq!(found(), [("3.11".to_owned(), 1)]);
        fs::remove_file(&for_all).unwrap();
        let rows: Vec<String> = kept(config)
            .unwrap()
            .iter()
            .map(|kept| Row::new(kept).line())
            .collect();
        assert_eq!(rows, ["package htop 3.10 amd64, 1 B\n"]);
        // A directory that is a link is none of ours.
        fs::rename(&packages, config.join("other")).unwrap();
        symlink("other", &packages).unwrap();
        assert!(kept(config).unwrap().is_empty());
    }

    #[test]
    fn only_the_file_of_a_package_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("text"), "text").unwrap();
        fs::write(path("broken.deb"), "!<arch>\ndebian-binary   x").unwrap();
        mkfifo(&path("fifo"), Mode::S_IRWXU).unwrap();
        let large = File::create(path("large")).unwrap();
        large.set_len(FILE_MAX + 1).unwrap();
        for (name, why) in [
            ("missing", "No such file"),
            ("fifo", "is no file"),
            ("large", "is larger than 1.00 GiB"),
            ("text", "neither of dpkg nor of rpm"),
            ("broken.deb", ""),
        ] {
            let error = look(&path(name), &Interrupt::default()).err().unwrap();
            assert!(format!("{error:#}").contains(why), "{name}: {error:#}");
        }
    }

    /// Where there is no dpkg-deb(1), there is nothing to see.
    #[test]
    fn a_package_says_what_it_is() {
        if Cmd::new("dpkg-deb").check_installed().is_err() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let build = |name: &str, control: &str| {
            let tree = dir.path().join(name);
            fs::create_dir_all(tree.join("DEBIAN")).unwrap();
            let control = format!("{control}Maintainer: x <x@y>\nDescription: x\n");
            fs::write(tree.join("DEBIAN/control"), control).unwrap();
            let file = dir.path().join(format!("{name}.deb"));
            let build = Cmd::new("dpkg-deb").args(["--root-owner-group", "--nocheck", "--build"]);
            build.arg(&tree).arg(&file).run().unwrap();
            look(&file, &Interrupt::default())
        };
        let control =
            "Package: tiny\nVersion: 1:2.0-1\nArchitecture: all\nDepends: dpkg,\n libc6\n";
        let looked = build("tiny", control).unwrap();
        let kept = &looked.kept;
        assert_eq!(
            (kept.name.as_str(), kept.version.as_str()),
            ("tiny", "1:2.0-1")
        );
        let digest = Cmd::new("sha256sum").arg(&looked.path).run().unwrap();
        assert!(digest.starts_with(&kept.digest));
        for (number, control) in [
            "Package: ../../etc/x\nVersion: 1\nArchitecture: all\n",
            "Package: tiny\nVersion: 1/../2\nArchitecture: all\n",
            "Package: tiny\nVersion: 1\nArchitecture: ../x\n",
            "Package: tiny\nVersion: 1\n",
        ]
        .into_iter()
        .enumerate()
        {
            assert!(build(&number.to_string(), control).is_err(), "{control}");
        }
    }
}
