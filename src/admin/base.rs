//! `base`: read-only images that layers start from.

mod fill;
mod filled;
pub mod listings;
pub mod parts;
mod verify;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;

use fill::{FilesOrigin, Filling};
use listings::Drafted;
use parts::Parts;

pub use filled::{Filled, Judge};
pub use verify::verify;

use super::filesystem::{Filesystem, mount_point};
use super::look::Look;
use super::source::{Delivery, Source, Taken};
use super::text::Tone;
use super::view::{self, BaseView, JSON_VERSION};
use super::{Context, LOCK_WAIT, news, pool_with_room, removal, running_options, say};
use crate::boot::BootPartition;
use crate::boot::root::Root;
use crate::image::blocks;
use crate::image::host::Host;
use crate::image::judge::{self, Fit, Kernel, Place, What};
use crate::image::superblock::FsKind;
use crate::image::tree::{Content, Shape, Tree};
use crate::image::{Image, Opened};
use crate::model::kernel_options;
use crate::model::layout::{Group, tag};
use crate::model::name::{LvName, next_base};
use crate::model::removal::Request;
use crate::sys::transaction::Transaction;

/// Where a squashfs or a directory is mounted while it is read.
const IMAGE_MOUNT: &str = "image";
/// Where a filesystem in an image is mounted before it is copied.
const LOOK_MOUNT: &str = "look";
/// What the name of the volume ends in that an image is unpacked to, where its files are compared.
const UNPACKED: &str = ".unpacked";
/// The part of an image that a pool has to have room for beside the whole of it, where it is unpacked and then compared.
const UNPACKED_SPARE: u64 = 4;

/// What `base add` is told. Sizes are bytes.
#[derive(Clone)]
pub struct Add {
    pub image: PathBuf,
    pub name: Option<LvName>,
    pub size: Option<u64>,
    /// For a tree of files; a filesystem image brings its own.
    pub fstype: Option<FsKind>,
    /// Whether to store once what an earlier base has as well.
    pub share: bool,
    /// Whether the files of a filesystem image are compared, and not its blocks.
    pub by_content: bool,
    /// Kernel options of the host. An image has others, but those that unlock disks count in any case.
    pub options: String,
}

impl Add {
    fn shared(&self, image: &Image) -> Shared {
        match image {
            _ if !self.share => Shared::Nothing,
            Image::Filesystem { .. } if !self.by_content => Shared::Blocks,
            _ => Shared::Files,
        }
    }
}

/// What is stored once that an earlier base has as well.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shared {
    Nothing,
    /// Blocks at the same place.
    Blocks,
    /// Files with the same path.
    Files,
}

/// Makes a base from an image. The lock is free while the image is read and the volume is filled.
pub fn add(context: &Context, add: Add, delivery: &Delivery) -> Result<()> {
    let writer = context.writer("base add", LOCK_WAIT)?;
    let made = writer.transaction(|tx| {
        let source = Source::find(context, tx, Some(&add.image), delivery, Taken::default())?;
        if let (true, Some((line, file))) = (context.dry_run, source.fetched_by()) {
            // What it becomes shows when it is here.
            if let Some(line) = line {
                say(&format!("{line}\n"))?;
            }
            context.say_verb(&["base", "add", &file])?;
            return Ok(None);
        }
        let digest = source.digest_if_required(tx)?;
        let add = Add {
            image: source.name(),
            ..add
        };
        let (opened, parts) = source.open(context, tx, add.share)?;
        let tags = digest.map(|digest| format!("{}{digest}", tag::IMAGE));
        let tags: Vec<String> = tags.into_iter().collect();
        let of = (&opened, parts.as_ref());
        make(context, tx, &add, of, &mut |_| Ok(tags.clone())).map(Some)
    })?;
    let Some(made) = made else {
        return Ok(());
    };
    news::base_added(context, &made.name);
    if !context.dry_run {
        say(&format!("{}\n", made.name))?;
    }
    drop(writer);
    made.list(context);
    Ok(())
}

/// A base that was made.
pub struct Made {
    pub name: LvName,
    /// What it holds, if that was seen already.
    drafted: Option<Drafted>,
    /// Whether it was made file by file.
    is_of_files: bool,
}

impl Made {
    /// Lists what it holds, for a verb that has released the lock. To read the files of what was copied block by block
    /// would take as long again.
    pub fn list(&self, context: &Context) {
        if self.is_of_files {
            listings::keep(context, &self.name, self.drafted.as_ref());
        }
    }
}

/// Opens an image, to be read for a base. People call it by its path, if it has no other `name`.
pub fn open(tx: &mut Transaction, image: &Path, name: Option<&str>) -> Result<Opened> {
    let path = image.display().to_string();
    Opened::open(tx, image, name.unwrap_or(&path), &mount_point(IMAGE_MOUNT))
}

/// Does what [`add`] does, as a part of a verb, but for the listing. The image is closed. Of one that is known by its
/// table of contents there are `parts`. `judge` is asked before the first byte is copied, where the image is a
/// directory or squashfs, and when its root is in the volume.
pub fn make(
    context: &Context,
    tx: &mut Transaction,
    add: &Add,
    (opened, parts): (&Opened, Option<&Parts>),
    judge: &mut Judge,
) -> Result<Made> {
    let image = &opened.image;
    if let Image::Tree(Tree::Directory(dir) | Tree::Squashfs(dir)) = image {
        judge(dir)?;
    }
    let boot = context.boot_partition()?;
    boot.check_ready()?;
    // Refused again with the lock, but an archive is not read in vain.
    let group = context.load()?;
    pool_with_room(&group)?;
    context.check_pool(&group)?;
    new_name(&group, add.name.clone())?;
    let needs = tx.unlocked(|tx| Needs::of(context, tx, &boot, add, image))?;
    tx.lock()?;
    let group = context.load()?;
    let room = pool_with_room(&group)?;
    let plan = Plan::new(add, image, &needs, &group, room)?;
    boot.entry_of(&plan.name)?;
    let options = running_options(&group, &boot)?;
    let options = kernel_options::with_disks(&options, &add.options);
    let filling = Filling {
        context,
        add,
        image,
        parts: None,
        needs: &needs,
        plan: &plan,
        room,
    };
    let origin = filling.create(tx, &group)?;
    let files = origin.files();
    let parts = parts
        .map(|parts| parts.plan(context, tx, &group, files.map(|files| &files.name)))
        .transpose()?;
    let filling = Filling {
        parts: parts.as_ref(),
        room: context.room_when_active(&group)?,
        ..filling
    };
    let filesystem =
        context.filling_pool(tx, &group, |tx| tx.unlocked(|tx| filling.run(tx, &origin)))?;
    opened.check_unchanged()?;
    opened.close(tx)?;
    let filled = Filled {
        name: &plan.name,
        filesystem: &filesystem,
        options: &options,
        tags: Vec::new(),
        listing: files.map(FilesOrigin::listing).transpose()?.flatten(),
    };
    let drafted = filled
        .finish(context, tx, &boot, judge)
        .with_context(|| format!("{} did not become a base", add.image.display()))?;
    Ok(Made {
        is_of_files: files.is_some() || matches!(image, Image::Tree(_)),
        drafted,
        name: plan.name,
    })
}

/// Refuses what [`make`] would refuse before the first byte.
pub fn examine(context: &Context, tx: &Transaction, add: &Add, opened: &Opened) -> Result<()> {
    let group = context.load()?;
    let room = pool_with_room(&group)?;
    context.check_pool(&group)?;
    let boot = context.boot_partition()?;
    let needs = Needs::of(context, tx, &boot, add, &opened.image)?;
    Plan::new(add, &opened.image, &needs, &group, room).map(drop)
}

/// The same where there is no group yet, but the pool of one will have room for so many bytes. `boot` has no kernels.
pub fn examine_for_new_group(
    context: &Context,
    tx: &Transaction,
    boot: &BootPartition,
    add: &Add,
    opened: &Opened,
    room: u64,
) -> Result<()> {
    let needs = Needs::of(context, tx, boot, add, &opened.image)?;
    let name = add.image.display().to_string();
    needs
        .judge(&name, add, &opened.image, room, false)
        .map(drop)
}

/// The name of a new base: the one given, else the next free one. Refuses one that is taken.
pub fn new_name(group: &Group, given: Option<LvName>) -> Result<LvName> {
    let name = match given {
        Some(name) => name,
        None => next_base(group.taken())?,
    };
    ensure!(
        group.volume(name.as_str()).is_none(),
        "{}/{name} exists already",
        group.name
    );
    check_entry_is_its_own(group, &name)?;
    // The name of a layer is longer; a base that can have none is of no use.
    group.name.dm_name(&name.layer(u64::from(u32::MAX))?)?;
    Ok(name)
}

/// Refuses the name of a new base that GRUB would not tell from another one.
fn check_entry_is_its_own(group: &Group, name: &LvName) -> Result<()> {
    let mut others = group.bootable().into_iter();
    if let Some(same) = others.find(|other| other.shares_entry_with(name)) {
        bail!("GRUB would take the entries of {name} and {same} for one; choose another name");
    }
    Ok(())
}

/// What an image needs, and what the host has for it. An archive has to be read for that, which can take minutes.
struct Needs {
    host: Host,
    /// Of a tree.
    content: Content,
}

impl Needs {
    /// Refuses what can be told from the image and the host already.
    fn of(
        context: &Context,
        tx: &Transaction,
        boot: &BootPartition,
        add: &Add,
        image: &Image,
    ) -> Result<Self> {
        let name = add.image.display().to_string();
        let kind = judge::filesystem_of(&what(add, image, Content::default()));
        let mut host = Host::with(&context.lvm.disks()?, kind);
        if let Err(error) = Filesystem::check_tools(kind) {
            host.lacks = Some(error.to_string());
        }
        let mut needs = Self {
            host,
            content: Content::default(),
        };
        needs.judge(&name, add, image, u64::MAX, false)?;
        let mut shape = Shape::default();
        if let Image::Tree(tree) = image {
            let mut measured = tree.measure(tx.interrupt());
            if tree.dir().is_some() {
                measured = measured.with_context(|| format!("{name} cannot be read"));
            }
            (needs.content, shape) = measured?;
            judge::of_shape(&name, &shape)?;
        }
        if let Some(mut kernels) = kernels_in(&name, image, &shape) {
            for kernel in &mut kernels {
                let [has_image, has_initramfs] = boot.has_files_of(&kernel.version)?;
                kernel.has_image |= has_image;
                kernel.has_initramfs |= has_initramfs;
            }
            judge::of_kernels(&name, &kernels)?;
        }
        Ok(needs)
    }

    fn judge(&self, name: &str, add: &Add, image: &Image, room: u64, shares: bool) -> Result<Fit> {
        if let Image::Filesystem { superblock, .. } = image {
            judge::of_fstype(name, superblock.kind, add.fstype)?;
        }
        let what = what(add, image, self.content);
        judge::of_place(name, &what, add.size, &self.place(room, shares))
    }

    fn place(&self, room: u64, shares: bool) -> Place<'_> {
        Place {
            host: &self.host,
            room,
            shares,
        }
    }
}

/// The kernels in an image, where they can be seen before it is copied. The names in an archive are those of `shape`.
fn kernels_in(name: &str, image: &Image, shape: &Shape) -> Option<Vec<Kernel>> {
    match image {
        Image::Tree(Tree::Directory(root) | Tree::Squashfs(root)) => kernels_below(name, root),
        Image::Tree(Tree::Tar(..) | Tree::Layers(_) | Tree::Listed(..)) => Some(shape.kernels()),
        Image::Filesystem {
            path,
            compression: None,
            superblock,
            feed: None,
            ..
        } => {
            let dir = mount_point(LOOK_MOUNT);
            // What keeps it from being mounted can be gone when the copy has been checked.
            let look = Look::at_image(path, superblock.kind).mounted(&dir);
            let _mounted = look
                .inspect_err(|error| log::debug!("{name} is not looked into: {error:#}"))
                .ok()?;
            kernels_below(name, &dir)
        }
        Image::Filesystem { .. } => None,
    }
}

fn kernels_below(name: &str, root: &Path) -> Option<Vec<Kernel>> {
    let root = Root::at(root);
    root.check_readable()
        .inspect_err(|error| log::debug!("the kernels of {name} cannot be seen: {error}"))
        .ok()?;
    let kernels = root.kernels().into_iter().map(|kernel| Kernel {
        version: kernel.version,
        has_image: kernel.image.is_some(),
        has_initramfs: kernel.initrd.is_some(),
    });
    Some(kernels.collect())
}

/// An image as it is judged.
fn what<'a>(add: &Add, image: &'a Image, content: Content) -> What<'a> {
    match image {
        Image::Filesystem {
            superblock,
            compression,
            length,
            ..
        } => What::Filesystem {
            superblock,
            length: compression.is_none().then_some(*length),
        },
        Image::Tree(_) => What::Tree {
            content,
            kind: add.fstype,
        },
    }
}

/// What is made, decided before anything is.
struct Plan {
    name: LvName,
    pool: LvName,
    /// What it gets if it shares no files.
    fit: Fit,
    shared: Shared,
    /// The bases that it may begin as a snapshot of, the nearest first, and their sizes.
    near: Vec<(LvName, u64)>,
    /// The volume that an image is unpacked to, for its files to be compared.
    unpacked: Option<LvName>,
    /// See [`blocks::unit`].
    unit: usize,
    /// Whether the pool zeroes new chunks.
    zeroes: bool,
}

impl Plan {
    /// Refuses what cannot be made: for want of room, tools or a name.
    fn new(add: &Add, image: &Image, needs: &Needs, group: &Group, room: u64) -> Result<Self> {
        let name = new_name(group, add.name.clone())?;
        let shown = add.image.display().to_string();
        // How large it becomes does not depend on where it is.
        let fit = needs.judge(&shown, add, image, u64::MAX, false)?;
        let mut shared = add.shared(image);
        let is_unpacked = match image {
            // Of one that is listed, each file is written where it goes.
            Image::Tree(tree) => tree.dir().is_none() && !matches!(tree, Tree::Listed(..)),
            Image::Filesystem { .. } => true,
        };
        let has_room = room >= fit.content.saturating_add(fit.content / UNPACKED_SPARE);
        if shared == Shared::Files && is_unpacked && !has_room && !group.bases().is_empty() {
            log::warn!(
                "the thin pool has room for {} MiB, which is too little to unpack {shown} and compare its files with \
                 those of another base; none are shared",
                room >> 20
            );
            shared = match image {
                Image::Tree(_) => Shared::Nothing,
                Image::Filesystem { .. } => Shared::Blocks,
            };
        }
        let most = match shared {
            // Unless a size is asked for, it can be larger than by itself.
            Shared::Files if add.size.is_none() => u64::MAX,
            _ => fit.size,
        };
        let mut near = group.nearest(&name, most);
        if shared == Shared::Nothing {
            near.clear();
        } else if let (true, Some(base)) = (near.is_empty(), group.nearest(&name, u64::MAX).first())
        {
            let (base, have) = (base.name.as_str(), base.volume.size);
            log::warn!("{}", judge::of_larger(&shown, base, have, fit.size));
        }
        let unpacked = if shared == Shared::Files && is_unpacked && !near.is_empty() {
            let beside = format!("{name}{UNPACKED}").parse()?;
            Some(new_name_beside(group, beside)?)
        } else {
            None
        };
        let is_smaller = unpacked.is_none() && !near.is_empty();
        needs.judge(&shown, add, image, room, is_smaller)?;
        let pool = group.pool().context("there is a pool")?;
        let near = near.into_iter();
        Ok(Self {
            name,
            pool: pool.name.parse()?,
            fit,
            shared,
            near: near.map(|base| (base.name, base.volume.size)).collect(),
            unpacked,
            unit: match image {
                Image::Filesystem { .. } => blocks::unit(pool.chunk_size, pool.zeroes)?,
                // A filesystem that is made here knows what it has written.
                Image::Tree(_) => blocks::BLOCK,
            },
            zeroes: pool.zeroes,
        })
    }
}

/// The name of a volume that is there for a while. Refuses one that is taken.
fn new_name_beside(group: &Group, name: LvName) -> Result<LvName> {
    ensure!(
        group.volume(name.as_str()).is_none(),
        "{}/{name} exists already; if an earlier command has left it, `imgbased-helper check --repair` removes it",
        group.name
    );
    group.name.dm_name(&name)?;
    Ok(name)
}

/// Removes a base and all its layers, having asked first if it has any and `yes` is not set.
pub fn remove(context: &Context, name: &LvName, yes: bool) -> Result<()> {
    let question = |names: &[LvName]| {
        let layers = removal::list(&names[..names.len() - 1]);
        (names.len() > 1).then(|| format!("Remove {name} and its layers {layers}?"))
    };
    let question = (!yes).then_some(&question as &removal::Question);
    removal::remove(context, &Request::Base(name), question)
}

#[derive(Serialize)]
struct List<'a> {
    version: u32,
    bases: &'a [BaseView],
}

/// Lists the bases, oldest first.
pub fn list(context: &Context) -> Result<()> {
    let view = view::load(context)?;
    let list = List {
        version: JSON_VERSION,
        bases: &view.bases,
    };
    context.show(&list, || {
        let held = context.paint.tone(Tone::Notice, "held");
        let line = |base: &BaseView| {
            let held = if base.held {
                format!("  {held}")
            } else {
                String::new()
            };
            format!("{}{held}\n", base.name)
        };
        view.bases.iter().map(line).collect()
    })
}

/// Prints the name of the latest base. Refuses when there is none.
pub fn latest(context: &Context) -> Result<()> {
    let group = context.load()?;
    match group.bases().pop() {
        Some(base) => say(&format!("{}\n", base.name)),
        None => bail!("{} has no base", group.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_of_bases_is_a_document_as_its_schema_says() {
        let list = List {
            version: JSON_VERSION,
            bases: &[view::tests::base()],
        };
        crate::schemas::assert_holds("base-list", &list);
    }
}
