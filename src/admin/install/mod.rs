//! `install`: makes a host of an image on a blank disk, as one unit: all of it is there, or the disk is blank again.

mod answers;
mod apply;
mod loader;
mod passphrase;
mod plan;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::layout_init::{self, NewGroup};
use super::source::Delivery;
use super::volume::{self, NewVolume};
use super::{Context, base, filesystem, removal, say, text};
use crate::model::name::LvName;
use crate::model::volume::path;
use crate::sys::firmware;
use passphrase::Passphrase;
use plan::{Firmware, Ids, Loader, Machine, Plan, Use, Wanted};

/// What is on a volume of its own unless something else is said.
const VOLUMES: &str = "/var,/home";
/// The part of the pool that a volume gets whose size nobody has said. It takes what is written to it.
const VOLUME_SHARE: u64 = 4;
const MIB: u64 = 1 << 20;
/// Where the boot partition is mounted. No volume has such a name.
const HOST: &str = "@host";

/// What `install` is told. Sizes are bytes.
#[derive(Args, Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is an option of the command line"
)]
pub struct Install {
    /// What `base add` takes: a file, block device or directory that holds the image, or its address on a server
    #[arg(required_unless_present = "answers")]
    image: Option<PathBuf>,
    /// Whole disk to install to; it must be empty
    #[arg(long, value_name = "DEVICE", required_unless_present = "answers")]
    disk: Option<PathBuf>,
    /// What starts the host: grub or systemd-boot [default: grub]
    #[arg(long, value_parser = parse_loader)]
    loader: Option<Loader>,
    /// Firmware to start from: bios, uefi or both [default: what has started this system]
    #[arg(long, value_parser = parse_firmware)]
    firmware: Option<Firmware>,
    /// Size of the partition for kernels, such as 2G [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    boot_size: Option<u64>,
    /// Size of the thin pool [default: nine tenths of the group]
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    pool_size: Option<u64>,
    /// Size of the base and its layers; at least what the image needs
    #[arg(long, value_name = "SIZE", value_parser = text::parse_size)]
    base_size: Option<u64>,
    /// Name of the base [default: Base-0]
    #[arg(long)]
    name: Option<LvName>,
    /// Directories that all layers share, each on a volume of its own, such as /var=40G,/home; or none. A volume
    /// without a size gets a quarter of the pool, and takes what is written to it [default: /var,/home]
    #[arg(long, value_name = "PATHS", value_parser = parse_volumes)]
    volumes: Option<Volumes>,
    /// Have the volume group on LUKS, which asks for a passphrase at each start
    #[arg(long)]
    encrypt: bool,
    /// File with that passphrase, or - for standard input; else it is asked for
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// Use the shim and the boot loader of the image that its distribution has signed, as is done where the firmware of
    /// this machine wants that
    #[arg(long)]
    secure_boot: bool,
    /// Leave the variables of this machine's UEFI alone, such as for a disk that another machine will start from
    #[arg(long)]
    no_nvram: bool,
    /// Overwrite filesystems and other signatures on the disk, if nothing uses them
    #[arg(long)]
    wipe: bool,
    /// Do not ask before the disk is written to
    #[arg(short, long)]
    yes: bool,
    /// File with these options as lines of KEY=VALUE, such as disk=/dev/sda and encrypt=yes. Nothing is asked then
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    #[command(flatten)]
    delivery: Delivery,
}

fn parse_loader(text: &str) -> Result<Loader> {
    match text {
        "grub" => Ok(Loader::Grub),
        "systemd-boot" => Ok(Loader::SystemdBoot),
        _ => bail!("expected grub or systemd-boot"),
    }
}

fn parse_firmware(text: &str) -> Result<Firmware> {
    match text {
        "bios" => Ok(Firmware::Bios),
        "uefi" => Ok(Firmware::Uefi),
        "both" => Ok(Firmware::Both),
        _ => bail!("expected bios, uefi or both"),
    }
}

/// Paths with the sizes of their volumes; a path comes before those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Volumes(Vec<(String, Option<u64>)>);

fn parse_volumes(text: &str) -> Result<Volumes> {
    let mut found: Vec<(String, Option<u64>)> = Vec::new();
    let words = text.split(',').filter(|_| text != "none");
    for word in words {
        let (at, size) = match word.split_once('=') {
            Some((at, size)) => (at, Some(text::parse_size(size)?)),
            None => (word, None),
        };
        let at = path(at)?;
        ensure!(
            found.iter().all(|(other, _)| *other != at),
            "{at} is there twice"
        );
        found.push((at, size));
    }
    found.sort_unstable();
    Ok(Volumes(found))
}

impl Install {
    /// The same with what only `answers` say.
    fn or(self, answers: Self) -> Self {
        Self {
            image: self.image.or(answers.image),
            disk: self.disk.or(answers.disk),
            loader: self.loader.or(answers.loader),
            firmware: self.firmware.or(answers.firmware),
            boot_size: self.boot_size.or(answers.boot_size),
            pool_size: self.pool_size.or(answers.pool_size),
            base_size: self.base_size.or(answers.base_size),
            name: self.name.or(answers.name),
            volumes: self.volumes.or(answers.volumes),
            encrypt: self.encrypt || answers.encrypt,
            passphrase_file: self.passphrase_file.or(answers.passphrase_file),
            secure_boot: self.secure_boot || answers.secure_boot,
            no_nvram: self.no_nvram || answers.no_nvram,
            wipe: self.wipe || answers.wipe,
            yes: self.yes || answers.yes,
            answers: self.answers,
            delivery: self.delivery.for_new_group(answers.delivery),
        }
    }
}

/// What is to be done, with all that can be known before.
struct Task {
    /// As the kernel calls it.
    disk: PathBuf,
    /// In bytes, when it was looked at first.
    size: u64,
    image: PathBuf,
    delivery: Delivery,
    add: base::Add,
    plan: Plan,
    ids: Ids,
    group: NewGroup,
    volumes: Vec<NewVolume>,
    /// With LUKS.
    passphrase: Option<Passphrase>,
    /// Whether the firmware of this machine is told of the disk.
    registers: bool,
    wipe: bool,
}

pub fn run(context: &Context, install: Install) -> Result<()> {
    let (answers, told) = match &install.answers {
        Some(path) => answers::read(path)?,
        None => (Install::default(), None),
    };
    let install = install.or(answers);
    let is_silent = install.yes || install.answers.is_some() || context.dry_run;
    let task = Task::load(context, install, told)?;
    let rows = text::columns(&task.plan.shown(&task.disk));
    let started_by = task.plan.started_by();
    if !is_silent {
        say(&rows)?;
        let question = format!(
            "Install {} to {}, started by {started_by}? What is on that disk is lost.",
            task.image.display(),
            task.disk.display()
        );
        removal::ask(&question, "nothing was changed")?;
    }
    // Of the new host, where its boot partition is mounted meanwhile.
    let new = Context {
        lvm: context.lvm.clone(),
        pool: context.pool.clone(),
        root: filesystem::mount_point(HOST),
        dry_run: context.dry_run,
        json: false,
        paint: context.paint,
    };
    let layer = task.apply(&new)?;
    let Some(layer) = layer else { return Ok(()) };
    say(&format!(
        "{rows}{} starts {layer} by {started_by}\n",
        task.disk.display()
    ))
}

impl Task {
    /// Refuses what can be told before anything is opened.
    fn load(context: &Context, install: Install, told: Option<String>) -> Result<Self> {
        let (lvm, vg) = (&context.lvm, context.lvm.vg());
        let image = install
            .image
            .context("no image is named; add image= to the answers")?;
        let disk = install
            .disk
            .context("no disk is named; add disk= to the answers")?;
        let size = layout_init::check_unused(&disk, install.wipe)?;
        let disk = whole_disk(&disk)?;
        let sys = Path::new("/sys");
        let machine = Machine {
            is_uefi: firmware::is_uefi(sys),
            is_secure: firmware::is_secure_boot(sys),
        };
        let wanted = Wanted {
            loader: install.loader,
            firmware: install.firmware,
            boot_size: install.boot_size,
            encrypt: install.encrypt,
            secure_boot: install.secure_boot,
        };
        let plan = Plan::new(&wanted, machine, size)
            .with_context(|| format!("cannot install to {}", disk.display()))?;
        loader::check_tools(&plan)?;
        layout_init::refuse_existing(lvm)
            .context("--vg gives the group of the new host another name")?;
        let ids = Ids::of(&uuid()?, &uuid()?);
        let partition = plan
            .device(&disk, Use::Group)
            .context("the group has a partition")?;
        let device = if install.encrypt {
            Path::new("/dev/mapper").join(ids.mapped())
        } else {
            partition
        };
        let group = NewGroup::on(vec![device], plan.group, install.pool_size)?;
        let volumes = match install.volumes {
            Some(volumes) => volumes,
            None => parse_volumes(VOLUMES)?,
        };
        let mut names = vec![context.pool.to_string(), layout_init::CONFIG.to_owned()];
        if let Some(name) = &install.name {
            ensure!(
                !names.contains(&name.to_string()),
                "{name} is another volume of the group; choose another name for the base"
            );
            vg.dm_name(&name.layer(u64::from(u32::MAX))?)?;
            names.push(name.to_string());
        }
        let quarter = group.room() / VOLUME_SHARE / MIB * MIB;
        let volumes = volumes.0.into_iter();
        let volumes = volumes.map(|(path, size)| {
            let volume = NewVolume::of(path, size.unwrap_or(quarter), &names)?;
            names.push(volume.mount.name.clone());
            vg.dm_name(&volume.mount.name.parse()?)?;
            Ok(volume)
        });
        let volumes = volumes.collect::<Result<Vec<_>>>()?;
        let passphrase = match (install.encrypt, told, install.passphrase_file) {
            (true, ..) if context.dry_run => Some(Passphrase::unknown()),
            (true, _, Some(file)) => Some(Passphrase::read(&file)?),
            (true, Some(told), None) => Some(Passphrase::of(told.into_bytes())?),
            (true, None, None) => Some(Passphrase::ask()?),
            (false, None, None) => None,
            (false, ..) => bail!("a passphrase is given, but not --encrypt"),
        };
        Ok(Self {
            disk,
            size,
            delivery: install.delivery,
            add: base::Add {
                image: image.clone(),
                name: install.name,
                size: install.base_size,
                fstype: None,
                share: true,
                by_content: false,
                options: passphrase
                    .as_ref()
                    .map_or_else(String::new, |_| ids.option()),
            },
            image,
            plan,
            ids,
            group,
            volumes,
            passphrase,
            registers: machine.is_uefi && !install.no_nvram,
            wipe: install.wipe,
        })
    }
}

/// What the kernel calls a disk. Refuses a part of one, and what it finds no partitions on.
fn whole_disk(disk: &Path) -> Result<PathBuf> {
    let shown = disk.display();
    let real = disk
        .canonicalize()
        .with_context(|| format!("cannot use {shown}"))?;
    let name = real.file_name().context("a device has a name")?;
    let dir = Path::new("/sys/class/block").join(name);
    ensure!(
        !dir.join("partition").exists(),
        "{shown} is a partition, and `install` makes its own; give the whole disk, or see \"The disk\" in the README \
         for what is done by hand"
    );
    ensure!(
        !dir.join("dm").exists(),
        "{shown} is a device of device-mapper, of which no firmware starts; give the disk"
    );
    ensure!(
        !dir.join("md").exists(),
        "{shown} is a software RAID, which install does not set up; see \"The disk\" in the README for what is done \
         by hand"
    );
    Ok(real)
}

/// A UUID that nobody else has.
fn uuid() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/uuid";
    fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_paths_with_or_without_sizes() {
        let of = |path: &str, size| (path.to_owned(), size);
        for (text, volumes) in [
            ("none", vec![]),
            (VOLUMES, vec![of("/home", None), of("/var", None)]),
            (
                "/var/log=1G,/var=20G",
                vec![of("/var", Some(20 << 30)), of("/var/log", Some(1 << 30))],
            ),
            ("/srv/", vec![of("/srv", None)]),
        ] {
            assert_eq!(parse_volumes(text).unwrap(), Volumes(volumes), "{text}");
        }
        for (text, message) in [
            ("", "is not an absolute path"),
            ("/var,", "is not an absolute path"),
            ("var", "is not an absolute path"),
            ("/etc", "never on a volume"),
            ("/var=0", "greater than zero"),
            ("/var,/var/", "/var is there twice"),
        ] {
            let error = parse_volumes(text).unwrap_err().to_string();
            assert!(error.contains(message), "{text}: {error}");
        }
    }

    #[test]
    fn the_command_line_counts_more_than_the_answers() {
        let given = Install {
            disk: Some("/dev/vda".into()),
            loader: Some(Loader::Grub),
            ..Install::default()
        };
        let answers = Install {
            disk: Some("/dev/vdb".into()),
            image: Some("/srv/image".into()),
            encrypt: true,
            ..Install::default()
        };
        let both = given.or(answers);
        assert_eq!(both.disk.as_deref(), Some(Path::new("/dev/vda")));
        assert_eq!(both.image.as_deref(), Some(Path::new("/srv/image")));
        assert!(both.encrypt && !both.wipe);
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        for (path, message) in [
            ("/nonexistent", "cannot use /nonexistent"),
            ("/dev/null", ""),
        ] {
            let found = whole_disk(Path::new(path));
            match message {
                "" => assert_eq!(found.unwrap(), Path::new(path)),
                message => assert!(found.unwrap_err().to_string().contains(message)),
            }
        }
    }
}
