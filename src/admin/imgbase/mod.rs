//! `imgbase`: the binary under the name of the tool that it takes the place of. It takes the command forms of that,
//! and prints what scripts read in its format. All work is done by the verbs that are there.

mod forms;

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};

use super::check::{self, Finding, Part};
use super::cli::{Cli, lvm, start_logging};
use super::packages::{self, Versions};
use super::roots;
use super::text::Paint;
use super::{Context, need_root, say, text_diff, view, volume};
use crate::lvm::Lvm;
use crate::model::layout::{Group, tag};
use crate::model::name::DEFAULT_VG;
use crate::sys::logger::say_error;
use crate::tree::escaped;
use forms::{Call, Facts, Meaning, STDIN, What};

/// What `imgbase --help` prints: all forms.
pub const HELP: &str = include_str!("help.txt");
/// The exit status of what imgbase did not take, or what means nothing here.
const USAGE: u8 = 2;
/// Where an image of oVirt Node has its name.
const NVR: &str = "/usr/share/imgbase/build/meta/nvr";
/// The pool of groups that `layout init` makes.
const POOL: &str = "ImagePool";

/// Does what a command line of imgbase means; `args` are what follows its name.
pub fn run(args: impl Iterator<Item = OsString>) -> Result<ExitCode> {
    let call = match read(args) {
        Ok(call) => call,
        Err(error) => {
            say_error(&error);
            return Ok(ExitCode::from(USAGE));
        }
    };
    match &call.meaning {
        Meaning::Help => say(HELP)?,
        Meaning::Version => say(&format!("{}\n", env!("CARGO_PKG_VERSION")))?,
        Meaning::Nothing => {}
        Meaning::Show(what) => return show(&call, what),
        Meaning::AddLayer => {
            let (group, ()) = context(&call)?.load_to_show(|| ())?;
            let origin = newest(&group);
            return verb(&call, ["layer", "add"].into_iter().chain(origin));
        }
        Meaning::Verb(words) => return verb(&call, words.iter().map(String::as_str)),
    }
    Ok(ExitCode::SUCCESS)
}

fn read(args: impl Iterator<Item = OsString>) -> Result<Call> {
    let text = |arg: OsString| {
        let arg = arg.into_string();
        arg.map_err(|arg| anyhow!("{} is not UTF-8", escaped(arg)))
    };
    let args = args.map(text).collect::<Result<Vec<String>>>()?;
    let nvr = fs::read_to_string(NVR).ok();
    let facts = Facts {
        nvr: nvr.as_deref().map(str::trim),
        is_there: &|path| Path::new(path).exists(),
    };
    forms::parse(&args, &facts)
}

/// Runs a verb of imgbased-helper.
fn verb<'a>(call: &Call, words: impl Iterator<Item = &'a str>) -> Result<ExitCode> {
    let mut line = vec!["imgbased-helper".to_owned()];
    if let Some(vg) = group_of(call)? {
        line.extend(["--vg".to_owned(), vg]);
    }
    if let Some(pool) = &call.pool {
        line.extend(["--pool".to_owned(), pool.clone()]);
    }
    for (is_set, option) in [(call.dry_run, "--dry-run"), (call.verbose, "--verbose")] {
        if is_set {
            line.push(option.to_owned());
        }
    }
    for word in words {
        line.push(match word {
            STDIN => standard_input()?,
            word => word.to_owned(),
        });
    }
    Cli::from_words(line.into_iter().map(OsString::from)).run()
}

/// The file that standard input is. An image is read more than once, and by other programs as well.
fn standard_input() -> Result<String> {
    let is_image = |path: &PathBuf| {
        let metadata = fs::metadata(path);
        metadata.is_ok_and(|m| m.is_file() || m.file_type().is_block_device())
    };
    let path = fs::canonicalize(STDIN).ok().filter(is_image);
    let path = path.and_then(|path| path.into_os_string().into_string().ok());
    path.context(
        "no image is named, and standard input is no file; write the image to one, and name it after the options",
    )
}

/// The group that is meant, where that is another one than imgbased-helper takes by itself: imgbase knew it by its
/// tag.
fn group_of(call: &Call) -> Result<Option<String>> {
    let is_new = match &call.meaning {
        Meaning::Verb(words) => words.starts_with(&["layout".to_owned(), "init".to_owned()]),
        _ => false,
    };
    if call.vg.is_some() || is_new || view::boot_record().is_some() {
        return Ok(call.vg.clone());
    }
    need_root()?;
    let mut groups = Lvm::groups_with(tag::VG)?;
    if groups.iter().any(|group| group.as_str() == DEFAULT_VG) {
        return Ok(None);
    }
    let group = groups.pop();
    if let (Some(a), Some(b)) = (&group, groups.pop()) {
        bail!(
            "several volume groups are tagged as those of imgbased, such as {b} and {a}; name one with --vg"
        );
    }
    Ok(group.map(|group| group.to_string()))
}

fn context(call: &Call) -> Result<Context> {
    let vg = group_of(call)?.map(|vg| vg.parse()).transpose()?;
    Ok(Context {
        lvm: lvm(vg)?,
        pool: call.pool.as_deref().unwrap_or(POOL).parse()?,
        root: "/".into(),
        dry_run: call.dry_run,
        json: false,
        paint: Paint::default(),
    })
}

/// The latest layer of the latest base, or that base where it has none.
fn newest(group: &Group) -> Option<&str> {
    let base = group.bases().pop()?;
    let layer = base.layers.last();
    Some(layer.map_or(&base.volume.name, |(_, layer)| &layer.name))
}

/// Prints something as imgbase did.
fn show(call: &Call, what: &What) -> Result<ExitCode> {
    start_logging(call.verbose)?;
    need_root()?;
    let context = context(call)?;
    let text = match what {
        What::Check => {
            let findings = check::look(&context);
            if findings.is_err() {
                say("Status: FAILED\n")?;
            }
            let findings = findings?;
            say(&checked(&findings))?;
            return Ok(ExitCode::from(u8::from(!findings.is_empty())));
        }
        What::Motd => {
            let is_well = check::look(&context).is_ok_and(|findings| findings.is_empty());
            motd(is_well).to_owned()
        }
        What::Default => {
            let selection = context.boot_partition()?.selection()?;
            selection.default.context("no layer is the default")? + "\n"
        }
        What::Volumes => lines(volume::paths(&context)?.iter().map(String::as_str)),
        What::Packages(names) => different_packages(&context, names)?,
        what => of_group(&context.load_to_show(|| ())?.0, what)?,
    };
    say(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// How the packages of two bases or layers differ.
fn different_packages(context: &Context, names: &[String; 2]) -> Result<String> {
    text_diff::check_installed()?;
    let found = context.change("imgbase pkg", |tx| {
        let group = context.load()?;
        let [a, b] = names
            .each_ref()
            .map(|name| roots::named(&group, name.parse()?));
        let (a, b) = (a?, b?);
        roots::opened(context, tx, &group, &a, |tx, root_a| {
            roots::opened(context, tx, &group, &b, |tx, root_b| {
                tx.unlocked(|tx| Ok([packages::read(tx, root_a)?, packages::read(tx, root_b)?]))
            })
        })
    })?;
    let Some([a, b]) = found.flatten() else {
        // A dry run.
        return Ok(String::new());
    };
    let what = "what is installed in one of them is not known";
    signed([&a.context(what)?, &b.context(what)?], names)
}

/// What only one of two has, a package with its version on each line, as diff(1) marks it.
fn signed(packages: [&Versions; 2], names: &[String; 2]) -> Result<String> {
    let listed = |packages: &Versions| {
        let packages = packages.iter();
        packages.fold(String::new(), |text, (name, version)| {
            text + name + " " + version + "\n"
        })
    };
    let [a, b] = packages.map(listed);
    let text = text_diff::unified(a.as_bytes(), b.as_bytes(), [&names[0], &names[1]])?;
    Ok(lines(
        text.lines().filter(|line| !line.starts_with([' ', '@'])),
    ))
}

fn lines<'a>(names: impl Iterator<Item = &'a str>) -> String {
    names.map(|name| format!("{name}\n")).collect()
}

/// What can be told from the volumes of the group.
fn of_group(group: &Group, what: &What) -> Result<String> {
    let bases = group.bases();
    Ok(match what {
        What::Tree => {
            if bases.is_empty() {
                bail!("{} has no base", group.name);
            }
            let mut text = String::new();
            for base in &bases {
                text += &format!("{}\n", base.name);
                for (layer, _) in &base.layers {
                    text += &format!(" +- {layer}\n");
                }
            }
            text
        }
        What::Bases => lines(bases.iter().map(|base| base.name.as_str())),
        What::Layers => {
            let layers = bases.iter().flat_map(|base| &base.layers);
            lines(layers.map(|(name, _)| name.as_str()))
        }
        What::FreeSpace(unit) => free_space(group, *unit)?,
        What::BaseOf(name) => {
            let base = group.volume(name).and_then(|layer| group.base_of(layer));
            let base = base.with_context(|| {
                format!(
                    "{} has no layer {name}; `imgbase layout --layers` lists them",
                    group.name
                )
            })?;
            format!("{base}\n")
        }
        What::Device(name) => {
            if !group.bootable().iter().any(|known| known.as_str() == name) {
                bail!(
                    "{} has no base or layer {name}; `imgbase layout` lists them",
                    group.name
                );
            }
            format!("/dev/{}/{name}\n", group.name)
        }
        _ => {
            let name = view::booted(group)?.context("no layer is booted")?;
            format!("You are on {name}\n")
        }
    })
}

/// What is not used of the pool, in units of so many bytes: a plain number.
fn free_space(group: &Group, unit: u64) -> Result<String> {
    let pool = group.pool();
    let pool = pool
        .with_context(|| format!("{} has no thin pool with the tag imgbased:pool", group.name))?;
    let used = pool.data_percent.with_context(|| {
        format!(
            "{}/{} is not active, so it does not tell how full it is; `vgchange -ay {}` activates it",
            group.name, pool.name, group.name
        )
    })?;
    let free = pool.size.saturating_sub(used.of(pool.size));
    let hundredths = u128::from(free) * 100 / u128::from(unit);
    Ok(format!("{}.{:02}\n", hundredths / 100, hundredths % 100))
}

/// The findings below the parts that imgbase looked at.
fn checked(findings: &[Finding]) -> String {
    const PARTS: [(Part, &str); 4] = [
        (Part::Boot, "Bootloader"),
        (Part::Mounts, "Mount points"),
        (Part::Volumes, "Basic storage"),
        (Part::Pool, "Thin storage"),
    ];
    let state = |is_well| if is_well { "OK" } else { "FAILED" };
    let mut text = format!("Status: {}\n", state(findings.is_empty()));
    for (part, name) in PARTS {
        let found = || findings.iter().filter(|finding| finding.part == part);
        text += &format!("{name} ... {}\n", state(found().next().is_none()));
        for Finding {
            subject,
            problem,
            repair,
            ..
        } in found()
        {
            text += &format!("  {subject} ... FAILED - {problem}; repair: {repair}\n");
        }
    }
    text
}

fn motd(is_well: bool) -> &'static str {
    if is_well {
        "\n  imgbase status: OK\n\n"
    } else {
        "\n  imgbase status: DEGRADED\n  Please check the status manually using `imgbase check`\n\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::check::Repair;
    use crate::model::layout::Volume;

    fn group() -> Group {
        let pool = Volume {
            size: 10 << 30,
            data_percent: "25.00".parse().ok(),
            ..Volume::tagged("pool00", &[tag::POOL])
        };
        Group::with(vec![
            pool,
            Volume::tagged("root", &["imgbased:init"]),
            Volume::tagged("node-4.5.1-0.el9", &[tag::LAYER]),
            Volume::tagged("node-4.5.1-0.el9+1", &[tag::LAYER]),
            Volume::tagged("node-4.5.1-0.el9+10", &[tag::LAYER]),
            Volume::tagged("node-4.5.1-0.el9+9", &[tag::LAYER]),
            Volume::tagged("var_log", &[tag::VOLUME]),
            Volume::tagged("node-4.5.2-0.el9", &[tag::BASE]),
            Volume::tagged(
                "node-4.5.2-0.el9+1",
                &[tag::LAYER, "imgbased:of=node-4.5.2-0.el9"],
            ),
        ])
    }

    #[test]
    fn what_scripts_read_has_the_form_that_imgbase_gave_it() {
        let base_of = |name: &str| What::BaseOf(name.to_owned());
        for (what, expected) in [
            (
                What::Tree,
                "node-4.5.1-0.el9\n +- node-4.5.1-0.el9+1\n +- node-4.5.1-0.el9+9\n +- node-4.5.1-0.el9+10\n\
                 node-4.5.2-0.el9\n +- node-4.5.2-0.el9+1\n",
            ),
            (What::Bases, "node-4.5.1-0.el9\nnode-4.5.2-0.el9\n"),
            (
                What::Layers,
                "node-4.5.1-0.el9+1\nnode-4.5.1-0.el9+9\nnode-4.5.1-0.el9+10\nnode-4.5.2-0.el9+1\n",
            ),
            (What::FreeSpace(1 << 20), "7680.00\n"),
            (What::FreeSpace(1 << 30), "7.50\n"),
            (What::FreeSpace(1), "8053063680.00\n"),
            (What::FreeSpace(1_000_000_000), "8.05\n"),
            (base_of("node-4.5.2-0.el9+1"), "node-4.5.2-0.el9\n"),
            (base_of("node-4.5.1-0.el9+9"), "node-4.5.1-0.el9\n"),
            (
                What::Device("node-4.5.1-0.el9+9".to_owned()),
                "/dev/HostVG/node-4.5.1-0.el9+9\n",
            ),
        ] {
            assert_eq!(of_group(&group(), &what).unwrap(), expected, "{what:?}");
        }
        for (name, error) in [
            ("gone+1", "has no layer gone+1"),
            ("node-4.5.1-0.el9", "has no layer"),
        ] {
            let found = of_group(&group(), &base_of(name)).unwrap_err().to_string();
            assert!(found.contains(error), "{found}");
        }
    }

    /// What scripts do with the output of `imgbase layout`.
    #[test]
    fn scripts_tell_bases_and_layers_apart() {
        let group = group();
        let text = of_group(&group, &What::Tree).unwrap();
        let bases = || of_group(&group, &What::Bases).unwrap();
        let without_plus = text.lines().filter(|line| !line.contains("+- "));
        assert!(without_plus.eq(bases().lines()));
        let from_letter = text
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_alphanumeric()));
        assert!(from_letter.eq(bases().lines()));
        // After an update, what was there is a part of what is there.
        let mut before = group.clone();
        before.volumes.truncate(7);
        assert!(text.contains(&of_group(&before, &What::Tree).unwrap()));
        let free: f64 = of_group(&group, &What::FreeSpace(1 << 20))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!((free - 7680.0).abs() < 0.1);
    }

    #[test]
    fn a_group_without_a_base_or_a_pool_that_tells_nothing_is_an_error() {
        let mut group = group();
        group.volumes[0].data_percent = None;
        let error = of_group(&group, &What::FreeSpace(1))
            .unwrap_err()
            .to_string();
        assert!(error.contains("vgchange -ay HostVG"), "{error}");
        group.volumes.clear();
        for (what, expected) in [
            (What::Tree, "has no base"),
            (What::FreeSpace(1), "has no thin pool"),
        ] {
            let error = of_group(&group, &what).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(of_group(&group, &What::Bases).unwrap(), "");
    }

    #[test]
    fn packages_that_differ_have_a_sign_before_them() {
        let packages = |list: &[(&str, &str)]| -> Versions {
            let list = list.iter();
            list.map(|(name, version)| (name.to_string(), version.to_string()))
                .collect()
        };
        let a = packages(&[("bash", "5.2-1"), ("less", "643"), ("tar", "1.35")]);
        let b = packages(&[("bash", "5.2-2"), ("htop", "3.4"), ("tar", "1.35")]);
        let names = ["node-4-1", "node-4-2"].map(str::to_owned);
        let text = signed([&a, &b], &names).unwrap();
        let wanted = "--- node-4-1\n+++ node-4-2\n-bash 5.2-1\n-less 643\n+bash 5.2-2\n+htop 3.4\n";
        assert_eq!(text, wanted);
        assert_eq!(signed([&a, &a], &names).unwrap(), "");
    }

    #[test]
    fn a_layer_is_made_of_the_latest_layer_or_of_the_latest_base() {
        let mut group = group();
        assert_eq!(newest(&group), Some("node-4.5.2-0.el9+1"));
        group.volumes.pop();
        assert_eq!(newest(&group), Some("node-4.5.2-0.el9"));
        group.volumes.pop();
        assert_eq!(newest(&group), Some("node-4.5.1-0.el9+10"));
        group.volumes.clear();
        assert_eq!(newest(&group), None);
    }

    #[test]
    fn findings_are_below_the_parts_that_imgbase_had() {
        let well = "Status: OK\nBootloader ... OK\nMount points ... OK\nBasic storage ... OK\nThin storage ... OK\n";
        assert_eq!(checked(&[]), well);
        let finding = Finding {
            part: Part::Boot,
            subject: "menu".to_owned(),
            problem: "is old".to_owned(),
            repair: Repair::WriteMenu,
        };
        assert_eq!(
            checked(&[finding]),
            "Status: FAILED\nBootloader ... FAILED\n  menu ... FAILED - is old; repair: render the menu from the boot \
             entries\nMount points ... OK\nBasic storage ... OK\nThin storage ... OK\n"
        );
        assert!(motd(true).contains("imgbase status: OK\n"));
        assert!(motd(false).contains("imgbase status: DEGRADED\n"));
    }
}
