//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use log::LevelFilter;
use simplelog::CombinedLogger;

use super::roots::Tree;
use super::{
    Context, base, boot, check, diff, layer, layout, layout_init, persist, removal, status, view,
};
use crate::image::superblock::FsKind;
use crate::lvm::Lvm;
use crate::model::name::{DEFAULT_VG, LvName, VgName};
use crate::sys::logger::LineLogger;

const EXIT_STATUS: &str = "Exit status: 0 done, 1 failed, 2 wrong usage.";
const DIFF_STATUS: &str =
    "Exit status: 0 done, 1 failed, 2 wrong usage, 3 with --exit-code, if something differs.";
const CHECK_STATUS: &str =
    "Exit status: 0 nothing is left, 1 failed, 2 wrong usage, 3 found something.";

/// Boot layers for Linux hosts: read-only bases and writable thin snapshots, one boot entry each.
#[derive(Parser)]
#[command(name = "imgbased-helper", version, arg_required_else_help = true, after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    noun: Noun,
}

#[derive(Args)]
struct Global {
    /// Volume group of the host [default: that of the running layer, else `HostVG`]
    #[arg(long, global = true, value_name = "NAME")]
    vg: Option<VgName>,
    /// Thin pool that `layout init` makes
    #[arg(long, global = true, value_name = "NAME", default_value = "ImagePool")]
    pool: LvName,
    /// Directory below which the host's /boot is mounted
    #[arg(long, global = true, value_name = "DIR", default_value = "/")]
    root: PathBuf,
    /// Print what would be done, as commands for a shell, and do nothing
    #[arg(short = 'n', long, global = true)]
    dry_run: bool,
    /// Print what is read as JSON
    #[arg(long, global = true)]
    json: bool,
    /// Show each command that is run
    #[arg(short, long, global = true, alias = "debug")]
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
    /// Writable snapshots that the host boots
    #[command(subcommand)]
    Layer(LayerVerb),
    /// Boot entries: list them, and choose the one that boots
    #[command(subcommand)]
    Boot(BootVerb),
    /// What is booted, what boots next, and how full the pool is
    Status,
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
    Diff {
        /// Base, layer, `.` for what runs, or a directory, with a slash in it [default: the base of
        /// what runs]
        a: Option<Tree>,
        /// What to compare it with [default: what runs]
        b: Option<Tree>,
        /// Only this file, or what is below this directory
        #[arg(long, value_name = "PATH", default_value = "/")]
        path: PathBuf,
        /// Leave out what matches, with all below: a name, or with a slash a whole path. May be given
        /// several times
        #[arg(long, value_name = "GLOB")]
        exclude: Vec<String>,
        /// Compare the installed packages of dpkg as well
        #[arg(long)]
        packages: bool,
        /// Count only
        #[arg(long)]
        stat: bool,
        /// Read also what has not been touched
        #[arg(long)]
        verify: bool,
        /// Exit with 3 if something differs
        #[arg(long)]
        exit_code: bool,
    },
    /// What of a layer lives on in layers of newer bases
    #[command(subcommand)]
    Persist(PersistVerb),
    /// Remove old bases with their layers, except what is booted or the default
    Gc {
        /// How many of the latest bases to keep
        #[arg(long, value_name = "N", default_value_t = 2)]
        keep: usize,
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
        /// Make a base and a first layer of the system on a thin volume, which stays as it is: the
        /// directory where it is mounted, such as /, or GROUP/VOLUME
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
    Add {
        /// File, block device or directory that holds the image
        image: PathBuf,
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
        /// Store all of a filesystem image, also what an earlier base has at the same place
        #[arg(long)]
        no_share: bool,
    },
    /// List the bases
    List,
    /// Print the name of the latest base: the one that was added last
    Latest,
    /// Say which bases are not what they were when they were made
    #[command(after_help = CHECK_STATUS)]
    Verify {
        /// Bases to read [default: all]
        name: Vec<LvName>,
    },
    /// Remove a base and its layers, except what is booted or the default
    Remove {
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
    Path { name: LvName },
    /// Remove layers, except what is booted or the default
    Remove {
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
        #[arg(required_unless_present = "cancel")]
        name: Option<LvName>,
        /// With this one of its kernels [default: the one that came up last]
        #[arg(long, value_name = "VERSION", requires = "name")]
        kernel: Option<String>,
        /// Boot the default at the next start after all
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

#[derive(Subcommand)]
enum PersistVerb {
    /// Show what a newer base and the configuration of the booted layer become together
    ///
    /// A line for each path of /etc that would not be as in that base: kept as the layer has changed it, merged by
    /// entry, of this host, or a conflict where both have changed it. Changes nothing.
    Preview {
        /// Base to merge with [default: the latest base]
        #[arg(long, value_name = "BASE")]
        to: Option<LvName>,
    },
}

impl Cli {
    /// Does what the command line says.
    pub fn run(self) -> Result<ExitCode> {
        start_logging(self.global.verbose)?;
        let context = Context {
            lvm: lvm(self.global.vg)?,
            pool: self.global.pool,
            root: self.global.root,
            dry_run: self.global.dry_run,
            json: self.global.json,
        };
        match self.noun {
            Noun::Layout { verb: None } => layout::show(&context)?,
            Noun::Layout {
                verb:
                    Some(LayoutVerb::Init {
                        device,
                        wipe,
                        from,
                        name,
                    }),
            } => match from {
                Some(from) => layout_init::from_volume(context, &from, name)?,
                None => layout_init::on_devices(&context, &device, wipe)?,
            },
            Noun::Base(BaseVerb::Add {
                image,
                name,
                size,
                fstype,
                no_share,
            }) => {
                let add = base::Add {
                    image,
                    name,
                    size,
                    fstype,
                    share: !no_share,
                };
                base::add(&context, &add)?;
            }
            Noun::Base(BaseVerb::Verify { name }) => return base::verify(&context, &name),
            Noun::Base(BaseVerb::List) => base::list(&context)?,
            Noun::Base(BaseVerb::Latest) => base::latest(&context)?,
            Noun::Layer(LayerVerb::Add { origin }) => layer::add(&context, origin)?,
            Noun::Base(BaseVerb::Remove { name, yes }) => removal::base(&context, &name, yes)?,
            Noun::Layer(LayerVerb::List) => layer::list(&context)?,
            Noun::Layer(LayerVerb::Latest) => layer::latest(&context)?,
            Noun::Layer(LayerVerb::Current) => layer::current(&context)?,
            Noun::Layer(LayerVerb::Path { name }) => layer::path(&context, &name)?,
            Noun::Layer(LayerVerb::Remove { name }) => removal::layers(&context, &name)?,
            Noun::Boot(BootVerb::List) => boot::list(&context)?,
            Noun::Boot(BootVerb::Default {
                name,
                kernel,
                tries,
            }) => boot::set_default(&context, &name, kernel.as_deref(), tries)?,
            Noun::Boot(BootVerb::Once { name, kernel, .. }) => {
                boot::set_once(&context, name.as_ref(), kernel.as_deref())?;
            }
            Noun::Boot(BootVerb::Repair) => return check::repair_boot(&context),
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
            Noun::Status => status::show(&context)?,
            Noun::Diff {
                a,
                b,
                path,
                exclude,
                packages,
                stat,
                verify,
                exit_code,
            } => {
                let diff = diff::Diff {
                    a,
                    b,
                    path,
                    exclude,
                    verify,
                    packages,
                    stat,
                    exit_code,
                };
                return diff::run(&context, &diff);
            }
            Noun::Persist(PersistVerb::Preview { to }) => persist::preview(&context, to)?,
            Noun::Check { repair } => return check::run(&context, repair),
            Noun::Gc { keep, yes } => removal::garbage(&context, keep, yes)?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The group `vg`, or the one that the running system was booted from. No other one of its name is meant by that.
fn lvm(vg: Option<VgName>) -> Result<Lvm> {
    let record = view::boot_record();
    let running = record.as_ref().map_or(DEFAULT_VG, |record| &record.vg);
    let vg = vg.map_or_else(|| running.parse(), Ok)?;
    let record = record.filter(|record| record.vg == vg.as_str());
    let uuid = record.and_then(|record| record.vgid?.parse().ok());
    Ok(Lvm::new(vg).of_group(uuid))
}

fn parse_fstype(text: &str) -> Result<FsKind> {
    match text {
        "ext4" => Ok(FsKind::Ext4),
        "xfs" => Ok(FsKind::Xfs),
        _ => bail!("ext4 and xfs are possible"),
    }
}

/// Warnings go to standard error, with `--verbose` the commands as well.
fn start_logging(verbose: bool) -> Result<()> {
    let level = if verbose {
        LevelFilter::Debug
    } else {
        LevelFilter::Warn
    };
    let stderr = LineLogger::plain(level, std::io::stderr());
    CombinedLogger::init(vec![Box::new(stderr)])?;
    Ok(())
}
