//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Arg, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;
use simplelog::CombinedLogger;

use super::source::Delivery;
use super::text::{Paint, When, parse_when};
use super::{
    Context, base, boot, check, diff, gc, image, install, layer, layout, layout_init, need_root,
    persist, rollback, status, update, view, volume,
};
use crate::image::superblock::FsKind;
use crate::lvm::Lvm;
use crate::model::name::{DEFAULT_VG, LvName, VgName};
use crate::sys::logger::LineLogger;

/// The options that all verbs accept.
const GLOBAL: &str = "Global options";

/// The verbs for which such an option means something, if not for all: only there the help shows it.
const WHERE_SHOWN: [(&str, &[&str]); 5] = [
    ("pool", &["layout init", "install"]),
    (
        "root",
        &[
            "layout",
            "layout init",
            "base add",
            "base list",
            "base remove",
            "layer add",
            "layer list",
            "layer remove",
            "boot list",
            "boot default",
            "boot refresh",
            "boot once",
            "boot repair",
            "boot bless",
            "update",
            "rollback",
            "status",
            "check",
            "gc",
        ],
    ),
    (
        "dry_run",
        &[
            "layout init",
            "base add",
            "base verify",
            "base remove",
            "image prepare",
            "image pack",
            "install",
            "layer add",
            "layer remove",
            "boot default",
            "boot refresh",
            "boot once",
            "boot repair",
            "boot bless",
            "persist take",
            "persist keep",
            "rollback",
            "persist reset",
            "persist pull",
            "persist add",
            "persist remove",
            "volume add",
            "volume grow",
            "volume remove",
            "volume move",
            "volume complete",
            "check",
            "gc",
        ],
    ),
    (
        "json",
        &[
            "layout",
            "base list",
            "base find",
            "base verify",
            "image check",
            "layer list",
            "boot list",
            "rollback",
            "status",
            "update",
            "diff",
            "persist preview",
            "persist conflicts",
            "persist list",
            "volume list",
            "check",
        ],
    ),
    (
        "color",
        &[
            "layout",
            "base list",
            "layer list",
            "boot list",
            "volume list",
            "status",
            "check",
        ],
    ),
];

const EXIT_STATUS: &str = "Without a command it shows the status of the host, and the commands that people need next.\n\n\
     Exit status: 0 done, 1 failed, 2 wrong usage, 3 found something, of commands that look for something.";
const DIFF_STATUS: &str =
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 with --exit-code, if something differs.";
const UPDATE_STATUS: &str = "Exit status: 0 done, or nothing is to be done, also with --check where the image would be \
     refused; 1 failed, 2 wrong usage, 3 with --check, if the image would be taken.";
pub(super) const CHECK_STATUS: &str =
    "Exit status: 0 nothing is left, 1 failed, 2 wrong usage, 3 found something.";

/// Boot layers for Linux hosts: read-only bases and writable thin snapshots, one boot entry each.
#[derive(Parser)]
#[command(name = "imgbased-helper", version, after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Option<Noun>,
}

#[derive(Args)]
struct Global {
    /// Volume group of the host [default: that of the running layer, else `HostVG`]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "NAME")]
    vg: Option<VgName>,
    /// Thin pool that `layout init` makes
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "NAME", default_value = "ImagePool")]
    pool: LvName,
    /// Directory below which the host's /boot is mounted
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print what would be done, as commands for a shell, and do nothing
    #[arg(short = 'n', long, global = true, help_heading = GLOBAL)]
    dry_run: bool,
    /// Print what is read as JSON
    #[arg(long, global = true, help_heading = GLOBAL)]
    json: bool,
    /// When words are in colour: auto, on a terminal where `NO_COLOR` is not set; always; or never
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "WHEN", default_value = "auto",
        value_parser = parse_when)]
    color: When,
    /// Show each command that is run
    #[arg(short, long, global = true, help_heading = GLOBAL, alias = "debug")]
    verbose: bool,
}

#[derive(Subcommand)]
enum Noun {
    /// The volume group: show it, or make it on a disk
    Layout {
        #[command(subcommand)]
        verb: Option<LayoutVerb>,
    },
    /// Read-only images that layers start from
    #[command(subcommand)]
    Base(BaseVerb),
    /// What bases are made of: make an image of a root tree, and find what one lacks
    #[command(subcommand)]
    Image(image::Verb),
    /// Writable snapshots that the host boots
    #[command(subcommand)]
    Layer(LayerVerb),
    /// Boot entries: list them, and choose the one that boots
    #[command(subcommand)]
    Boot(BootVerb),
    /// Make a host of an image on a blank disk: partitions, boot loader, group, base, layer and volumes
    ///
    /// All of the disk is used. A disk that is in use, or that holds anything, is refused. When something fails, the disk
    /// is blank again. Programs of this system put the boot loader in place; with Secure Boot it is that of the image.
    Install(install::Install),
    /// Take a newer image: a base, and a layer of it with what the booted layer has changed, which is tried
    ///
    /// What was changed in /etc lives on; see `persist preview`. What boots now stays the default until the new layer
    /// has come up. A base that is there already of the same image is used again. Without an image, the newest one is
    /// taken that imgbased.conf names.
    #[command(after_help = UPDATE_STATUS)]
    Update(update::Update),
    /// Boot the layer again that came up last before the default
    ///
    /// What is on trial, or waits for its first try, is tried no more, and the default boots. Else the layer that came
    /// up last before the default becomes the default again. Its /etc is as it was left; volumes that layers share
    /// are rolled back with `--with-volumes` only. The base that is left is held: `update` takes its image again only with
    /// `--retry`.
    Rollback {
        /// Layer to go back to; one that never came up is tried, as by `boot default`
        #[arg(long, value_name = "LAYER")]
        to: Option<LvName>,
        /// Have the volumes that layers share be as they were before the update, from the next start on: what was
        /// written to them since is kept in volumes of its own. Needs `update --snapshot-volumes`
        #[arg(long)]
        with_volumes: bool,
        /// Restart the host, if something else runs
        #[arg(long, visible_alias = "reboot")]
        apply: bool,
    },
    /// What is booted, what boots next, and how full the pool is
    Status {
        /// text; json, as `--json`; or prometheus: metrics for the textfile collector of its node exporter, for which
        /// `imgbased-metrics.timer` writes them
        #[arg(long, value_name = "FORMAT", value_parser = status::parse_format)]
        format: Option<status::Format>,
    },
    /// Find what an interrupted command has left, or a group that got another name, and what else would
    /// keep a layer from booting
    #[command(after_help = CHECK_STATUS)]
    Check {
        /// Put it right
        #[arg(long)]
        repair: bool,
    },
    /// Show which files differ between a base and a layer, or any two of them
    ///
    /// A line for each path: A for added, D for deleted, M for modified, and the parts that differ: t type,
    /// c content, l link target, m mode, o owner, x extended attributes, ACLs and capabilities among them. What a
    /// layer has not touched since it was made of its base is not read.
    #[command(after_help = DIFF_STATUS)]
    Diff(diff::Diff),
    /// What of a layer lives on in layers of newer bases
    #[command(subcommand)]
    Persist(persist::Verb),
    /// Directories that all layers share, each on a volume of its own
    #[command(subcommand)]
    Volume(volume::Verb),
    /// Remove old bases with their layers, except what is booted or the default, and what was fetched of images
    Gc {
        /// How many of the latest bases to keep [default: what imgbased.conf says, else 2]
        #[arg(long, value_name = "N")]
        keep: Option<usize>,
        /// Do not ask before they are removed
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
enum LayoutVerb {
    /// Make the volume group, its thin pool and the Config volume, or take over an installed system
    Init {
        /// Whole disk or partition to use; it must be empty. May be given several times
        #[arg(long, value_name = "DEVICE", required_unless_present = "from")]
        device: Vec<PathBuf>,
        /// Overwrite filesystems and other signatures on the devices, if nothing uses them
        #[arg(long, conflicts_with = "from")]
        wipe: bool,
        /// Size of the thin pool, such as 100G [default: nine tenths of the group]
        #[arg(long, value_parser = super::text::parse_size, conflicts_with = "from")]
        size: Option<u64>,
        /// Make a base and a first layer of the system on a thin volume, which stays as it is: the
        /// directory where it is mounted, such as /, GROUP/VOLUME, or its device
        #[arg(long, value_name = "VOLUME", conflicts_with = "device")]
        from: Option<String>,
        /// Name of that base [default: the next free Base-<N>]
        #[arg(long, requires = "from")]
        name: Option<LvName>,
    },
}

#[derive(Subcommand)]
enum BaseVerb {
    /// Make a base from an image
    ///
    /// The image is a file or block device with ext4 or XFS, also compressed by gzip, xz or zstd; a
    /// squashfs, of a live system or with the root filesystem itself; a tar archive, also
    /// compressed; or a directory. Its content decides, not its name.
    ///
    /// On a server it can also be a directory in the OCI image layout, as `image pack` makes one. Of that only those
    /// parts are fetched that no base has.
    ///
    /// Where its initramfs cannot boot a layer, its dracut makes another. It runs shut in: it sees its own files,
    /// changes none of them, and reaches nothing of the host.
    Add {
        /// File, block device or directory that holds the image; or its address on a server, beside a signed SHA256SUMS;
        /// or an image for containers, as `docker://HOST/NAME:TAG` or `oci:DIR`
        image: PathBuf,
        #[command(flatten)]
        delivery: Delivery,
        /// Name of the base [default: the next free Base-<N>]
        #[arg(long)]
        name: Option<LvName>,
        /// Size of the base, such as 4G; at least what the image needs. By default that of its
        /// filesystem, or twice what its files need
        #[arg(long, value_parser = super::text::parse_size)]
        size: Option<u64>,
        /// Filesystem to make for an archive or a directory [default: ext4]
        #[arg(long, value_name = "TYPE", value_parser = parse_fstype)]
        fstype: Option<FsKind>,
        /// Share nothing with an earlier base: neither files, nor blocks of a filesystem image, nor what is fetched
        #[arg(long)]
        no_share: bool,
        /// Share the files of a filesystem image that the nearest base has as well, and not the blocks that are
        /// at the same place. The pool has to have room for all of the image meanwhile
        #[arg(long, conflicts_with = "no_share")]
        by_content: bool,
    },
    /// List the bases
    List,
    /// Print the name of the latest base: the one that was added last
    Latest,
    /// Compare bases with the digests that were recorded when they were made
    #[command(after_help = CHECK_STATUS)]
    Verify {
        /// Bases to read [default: all]
        name: Vec<LvName>,
        /// Record what those hold now of which nothing was recorded, such as the bases of imgbased
        #[arg(long)]
        record: bool,
    },
    /// Find files in bases by their content, such as a library with a known fault
    ///
    /// What a base holds is listed by an update, when it is made file by file, or when it is verified, so that no
    /// base is read.
    Find {
        /// SHA-256 of the content, as sha256sum(1) prints it
        #[arg(required = true, value_parser = base::listings::parse_digest)]
        sha256: Vec<String>,
    },
    /// Remove a base and its layers, except what is booted or the default
    Remove {
        /// Base to remove
        name: LvName,
        /// Do not ask before layers are removed
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Subcommand)]
enum LayerVerb {
    /// Make a layer and its boot entry
    Add {
        /// Base or layer to start from [default: the latest base]
        origin: Option<LvName>,
    },
    /// List the layers
    List,
    /// Print the name of the latest layer
    Latest,
    /// Print the name of the layer that is booted
    Current,
    /// Print the path of a layer's device, which exists while the layer is active
    Path {
        /// Layer or base
        name: LvName,
    },
    /// Remove layers, except what is booted or the default
    Remove {
        /// Layers to remove
        #[arg(required = true)]
        name: Vec<LvName>,
    },
}

#[derive(Subcommand)]
enum BootVerb {
    /// List the entries in the order of the menu, below the boot loader that starts the host
    List,
    /// Boot a layer or base from now on
    ///
    /// A layer that never came up is tried first: it becomes the default when it has reached
    /// boot-complete.target. Until then each failure restarts the host, and after so many tries the
    /// default boots again. So is a kernel that is new in its layer.
    Default {
        /// Layer or base to boot
        name: LvName,
        /// With this one of its kernels [default: the one that came up last]
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
        /// How often to try it, up to 9; 0 makes it the default at once [default: that of
        /// /etc/kernel/tries, else 3]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=9))]
        tries: Option<u32>,
    },
    /// Write the entries of a layer from the kernels that it has now
    ///
    /// A kernel counts if the layer has its modules. Its image and initramfs are copied; where they are
    /// gone, the copies that are there stay in use. Packages of kernels do this for the booted layer. If
    /// that is the default, a new kernel or initramfs is tried as a new layer is, and becomes the one that the
    /// layer boots when it has come up.
    Refresh {
        /// Layer or base [default: what is booted]
        name: Option<LvName>,
        /// Look at this kernel only, which was installed
        #[arg(long, value_name = "VERSION")]
        added: Option<String>,
        /// Look at this kernel only, which was removed or is about to be
        #[arg(long, value_name = "VERSION", conflicts_with = "added")]
        removed: Option<String>,
        /// Do it only if a kernel of the booted layer was installed, or an initramfs made anew, since
        #[arg(long, conflicts_with_all = ["name", "added", "removed"])]
        if_changed: bool,
    },
    /// Boot a layer or base at the next start only
    #[command(visible_alias = "try")]
    Once {
        /// Layer or base to boot
        #[arg(required_unless_present = "cancel")]
        name: Option<LvName>,
        /// With this one of its kernels [default: the one that came up last]
        #[arg(long, value_name = "VERSION", requires = "name")]
        kernel: Option<String>,
        /// Cancel a pending `boot once`
        #[arg(long, conflicts_with = "name")]
        cancel: bool,
    },
    /// Rebuild entries, menu, kernels and default from the layers and what is on the boot partition
    ///
    /// Does what `check --repair` does for the boot partition, and reads all kernels there. Entries that
    /// grub-mkconfig or grubby has rewritten boot their layers again.
    #[command(after_help = CHECK_STATUS)]
    Repair,
    /// Record that a layer has come up, as imgbased-bless.service does at the end of each boot
    Bless {
        /// Layer that has come up [default: the booted one]
        name: Option<LvName>,
    },
}

/// The command line, whose help shows an option only where it means something. All verbs accept all of them.
pub fn command() -> Command {
    let command = Cli::command();
    let global = command.get_arguments().filter(|arg| arg.is_global_set());
    let global: Vec<Arg> = global.cloned().collect();
    narrowed(command, &global, "")
}

/// Hides options that mean nothing for a verb below `path`, or for none of a noun's.
fn narrowed(mut command: Command, global: &[Arg], path: &str) -> Command {
    let names = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned());
    for name in names.collect::<Vec<String>>() {
        let path = format!("{path} {name}");
        let path = path.trim_start();
        command = command.mut_subcommand(&name, |sub| {
            let is_meaningless = |arg: &&Arg| !is_shown(arg.get_id().as_str(), path);
            let hidden = global.iter().filter(is_meaningless);
            let sub = hidden.fold(sub, |sub, arg| sub.arg(arg.clone().hide(true)));
            narrowed(sub, global, path)
        });
    }
    command
}

/// Whether an option means something for a verb, or for one of a noun's.
fn is_shown(option: &str, path: &str) -> bool {
    let verbs = WHERE_SHOWN.iter().find(|(name, _)| *name == option);
    let is_below = |verb: &&str| {
        let rest = verb.strip_prefix(path);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    };
    verbs.is_none_or(|(_, verbs)| verbs.iter().any(is_below))
}

impl Cli {
    /// Reads the command line of this process. Ends it where that is wrong, or asks for help only.
    pub fn from_command_line() -> Self {
        Self::from_words(std::env::args_os())
    }

    /// The same for these words, of which the first is the name of the program.
    pub fn from_words(words: impl IntoIterator<Item = OsString>) -> Self {
        let matches = command().get_matches_from(words);
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }

    /// Does what the command line says.
    pub fn run(self) -> Result<ExitCode> {
        start_logging(self.global.verbose)?;
        let context = self.global.context()?;
        let Some(noun) = self.noun else {
            status::overview(&context)?;
            return Ok(ExitCode::SUCCESS);
        };
        // A dry run comes as far as it can.
        if !context.dry_run {
            need_root()?;
        }
        match noun {
            Noun::Layout { verb: None } => layout::show(&context)?,
            Noun::Layout {
                verb:
                    Some(LayoutVerb::Init {
                        device,
                        wipe,
                        size,
                        from,
                        name,
                    }),
            } => match from {
                Some(from) => layout_init::from_volume(context, &from, name)?,
                None => layout_init::on_devices(&context, &device, wipe, size)?,
            },
            Noun::Base(BaseVerb::Add {
                image,
                delivery,
                name,
                size,
                fstype,
                no_share,
                by_content,
            }) => {
                let add = base::Add {
                    image,
                    name,
                    size,
                    fstype,
                    share: !no_share,
                    by_content,
                    options: String::new(),
                };
                base::add(&context, add, &delivery)?;
            }
            Noun::Base(BaseVerb::Verify { name, record }) => {
                return base::verify(&context, &name, record);
            }
            Noun::Base(BaseVerb::List) => base::list(&context)?,
            Noun::Base(BaseVerb::Latest) => base::latest(&context)?,
            Noun::Image(verb) => return image::run(&context, &verb),
            Noun::Base(BaseVerb::Find { sha256 }) => base::listings::find(&context, &sha256)?,
            Noun::Layer(LayerVerb::Add { origin }) => layer::add(&context, origin)?,
            Noun::Base(BaseVerb::Remove { name, yes }) => base::remove(&context, &name, yes)?,
            Noun::Layer(LayerVerb::List) => layer::list(&context)?,
            Noun::Layer(LayerVerb::Latest) => layer::latest(&context)?,
            Noun::Layer(LayerVerb::Current) => layer::current(&context)?,
            Noun::Layer(LayerVerb::Path { name }) => layer::path(&context, &name)?,
            Noun::Layer(LayerVerb::Remove { name }) => layer::remove(&context, &name)?,
            Noun::Boot(BootVerb::List) => boot::list(&context)?,
            Noun::Boot(BootVerb::Default {
                name,
                kernel,
                tries,
            }) => boot::set_default(&context, &name, kernel.as_deref(), tries)?,
            Noun::Boot(BootVerb::Once { name, kernel, .. }) => {
                boot::set_once(&context, name.as_ref(), kernel.as_deref())?;
            }
            Noun::Boot(BootVerb::Repair) => return boot::repair(&context),
            Noun::Boot(BootVerb::Bless { name }) => boot::bless(&context, name)?,
            Noun::Boot(BootVerb::Refresh {
                name,
                added,
                removed,
                if_changed,
            }) => {
                let change = layer::KernelChange {
                    added,
                    removed,
                    if_changed,
                };
                boot::refresh(&context, name, &change)?;
            }
            Noun::Rollback {
                to,
                with_volumes,
                apply,
            } => rollback::run(&context, to.as_ref(), with_volumes, apply)?,
            Noun::Status { format } => status::show(&context, format)?,
            Noun::Install(install) => install::run(&context, install)?,
            Noun::Update(update) => return update::run(&context, &update),
            Noun::Diff(diff) => return diff::run(&context, &diff),
            Noun::Persist(verb) => persist::run(&context, verb)?,
            Noun::Volume(verb) => volume::run(&context, verb)?,
            Noun::Check { repair } => return check::run(&context, repair),
            Noun::Gc { keep, yes } => gc::run(&context, keep, yes)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Global {
    fn context(self) -> Result<Context> {
        Ok(Context {
            lvm: lvm(self.vg)?,
            pool: self.pool,
            root: self.root,
            dry_run: self.dry_run,
            json: self.json,
            paint: Paint::new(self.color),
        })
    }
}

/// The group `vg`, or the one that the running system was booted from. No other one of its name is meant by that.
pub(super) fn lvm(vg: Option<VgName>) -> Result<Lvm> {
    let record = view::boot_record();
    let running = record.as_ref().map_or(DEFAULT_VG, |record| &record.vg);
    let vg = vg.map_or_else(|| running.parse(), Ok)?;
    let record = record.filter(|record| record.vg == vg.as_str());
    let uuid = record.and_then(|record| record.vgid?.parse().ok());
    Ok(Lvm::new(vg).of_group(uuid))
}

pub(super) fn parse_fstype(text: &str) -> Result<FsKind> {
    match text {
        "ext4" => Ok(FsKind::Ext4),
        "xfs" => Ok(FsKind::Xfs),
        _ => bail!("expected ext4 or xfs"),
    }
}

/// Warnings go to standard error, with `--verbose` the commands as well.
pub(super) fn start_logging(verbose: bool) -> Result<()> {
    let level = if verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Warn
    };
    let stderr = LineLogger::plain(level, std::io::stderr());
    CombinedLogger::init(vec![Box::new(stderr)])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All verbs with the options that their help shows beside `--vg` and `--verbose`.
    const VERBS: [(&str, &[&str]); 45] = [
        ("layout", &["color", "dry_run", "json", "pool", "root"]),
        ("layout init", &["dry_run", "pool", "root"]),
        ("base add", &["dry_run", "root"]),
        ("base list", &["color", "json", "root"]),
        ("base latest", &[]),
        ("base find", &["json"]),
        ("base verify", &["dry_run", "json"]),
        ("base remove", &["dry_run", "root"]),
        ("image prepare", &["dry_run"]),
        ("image check", &["json"]),
        ("image pack", &["dry_run"]),
        ("install", &["dry_run", "pool"]),
        ("layer add", &["dry_run", "root"]),
        ("layer list", &["color", "json", "root"]),
        ("layer latest", &[]),
        ("layer current", &[]),
        ("layer path", &[]),
        ("layer remove", &["dry_run", "root"]),
        ("boot list", &["color", "json", "root"]),
        ("boot default", &["dry_run", "root"]),
        ("boot refresh", &["dry_run", "root"]),
        ("boot once", &["dry_run", "root"]),
        ("boot repair", &["dry_run", "root"]),
        ("boot bless", &["dry_run", "root"]),
        ("update", &["json", "root"]),
        ("rollback", &["dry_run", "json", "root"]),
        ("diff", &["json"]),
        ("persist preview", &["json"]),
        ("persist conflicts", &["json"]),
        ("persist diff", &[]),
        ("persist take", &["dry_run"]),
        ("persist keep", &["dry_run"]),
        ("persist reset", &["dry_run"]),
        ("persist pull", &["dry_run"]),
        ("persist add", &["dry_run"]),
        ("persist list", &["json"]),
        ("persist remove", &["dry_run"]),
        ("volume add", &["dry_run"]),
        ("volume list", &["color", "json"]),
        ("volume grow", &["dry_run"]),
        ("volume remove", &["dry_run"]),
        ("volume move", &["dry_run"]),
        ("volume complete", &["dry_run"]),
        ("status", &["color", "json", "root"]),
        ("check", &["color", "dry_run", "json", "root"]),
    ];

    /// Each verb with its command; also the noun that is a verb as well.
    fn verbs(command: &Command, path: &str, found: &mut Vec<(String, Command)>) {
        for sub in command.get_subcommands() {
            let name = sub.get_name();
            if name == "help" {
                continue;
            }
            let path = format!("{path} {name}").trim_start().to_owned();
            verbs(sub, &path, found);
            if !sub.is_subcommand_required_set() {
                found.push((path, sub.clone()));
            }
        }
    }

    fn all_verbs() -> Vec<(String, Command)> {
        let mut command = command();
        command.build();
        let mut found = Vec::new();
        verbs(&command, "", &mut found);
        found
    }

    #[test]
    fn an_option_shows_only_where_it_means_something() {
        let found = all_verbs();
        let gc = ("gc", &["dry_run", "root"][..]);
        assert_eq!(found.len(), VERBS.len() + 1);
        for (verb, expected) in VERBS.iter().copied().chain([gc]) {
            let (_, command) = found.iter().find(|(path, _)| path == verb).unwrap();
            let shown = command
                .get_arguments()
                .filter(|arg| arg.get_help_heading() == Some(GLOBAL) && !arg.is_hide_set());
            let mut shown: Vec<&str> = shown.map(|arg| arg.get_id().as_str()).collect();
            shown.retain(|name| !["vg", "verbose"].contains(name));
            shown.sort_unstable();
            assert_eq!(shown, expected, "{verb}");
        }
    }

    #[test]
    fn each_verb_that_writes_json_has_a_schema() {
        // What is written by an option of a verb, or beside what it writes.
        let mut wanted = vec!["update-check".to_owned(), "progress".to_owned()];
        for (verb, command) in all_verbs() {
            let json = command.get_arguments().find(|arg| arg.get_id() == "json");
            if json.is_some_and(|arg| !arg.is_hide_set()) {
                wanted.push(verb.replace(' ', "-"));
            }
        }
        wanted.sort_unstable();
        assert_eq!(crate::schemas::names(), wanted);
    }

    #[test]
    fn each_option_says_what_it_is_and_global_ones_stand_by_themselves() {
        for (verb, command) in all_verbs() {
            for arg in command.get_arguments().filter(|arg| !arg.is_hide_set()) {
                assert!(arg.get_help().is_some(), "{verb}: {}", arg.get_id());
                let is_global = arg.get_help_heading() == Some(GLOBAL);
                assert_eq!(arg.is_global_set(), is_global, "{verb}: {}", arg.get_id());
            }
        }
    }

    #[test]
    fn each_verb_accepts_each_global_option_before_and_after_it() {
        for (line, dry_run, json) in [
            ("layer add --json -n", true, true),
            ("--json -n layer add", true, true),
            ("layer --json add -n", true, true),
            ("layer list --dry-run", true, false),
            ("--pool x layer latest --root /mnt", false, false),
            ("gc", false, false),
        ] {
            let words = ["imgbased-helper"].into_iter().chain(line.split(' '));
            let matches = command().try_get_matches_from(words).unwrap();
            let global = Cli::from_arg_matches(&matches).unwrap().global;
            assert_eq!((global.dry_run, global.json), (dry_run, json), "{line}");
            let pool = if line.contains("--pool") {
                "x"
            } else {
                "ImagePool"
            };
            assert_eq!(global.pool.as_str(), pool, "{line}");
        }
    }
}
