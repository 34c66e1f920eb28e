//! How the content of an image gets into the volume of a new base: block by block, as new files, or as those files that
//! the nearest base does not have.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::listings;
use super::parts::Planned;
use super::{Add, Needs, Plan, Shared, what};
use crate::admin::Context;
use crate::admin::filesystem::{Filesystem, mount_point, superblock_on, trim};
use crate::image::blocks::{self, Target};
use crate::image::judge;
use crate::image::stream::Stream;
use crate::image::superblock::Superblock;
use crate::image::tree::Tree;
use crate::image::{Image, copy_line, digest};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::mounts::used;
use crate::sys::progress::Progress;
use crate::sys::transaction::{Transaction, UndoStep};
use crate::tree::{Dir, Listing, Source, sync};

/// So many bases are looked at whether the files of a new one can be compared with theirs.
const NEAR_MOST: usize = 5;

/// A base that a new one begins as a snapshot of.
pub enum Origin {
    /// None: the volume is empty.
    None,
    Blocks(LvName),
    Files(Box<FilesOrigin>),
}

impl Origin {
    /// The base whose files are compared.
    pub fn files(&self) -> Option<&FilesOrigin> {
        match self {
            Self::Files(origin) => Some(origin),
            Self::None | Self::Blocks(_) => None,
        }
    }
}

pub struct FilesOrigin {
    pub name: LvName,
    /// What it holds, if it is listed.
    listing: Option<Listing>,
    superblock: Superblock,
    /// Whether the filesystem has to grow.
    grows: bool,
    /// The volume that the image is unpacked to, and what removes it.
    unpacked: Option<(LvName, UndoStep)>,
}

impl FilesOrigin {
    /// What it holds, to be read before this is asked for once more.
    pub fn listing(&self) -> Result<Option<Listing>> {
        let listing = self.listing.as_ref().map(Listing::again);
        Ok(listing.transpose()?)
    }
}

/// What makes and fills the volume of a new base, and the room that the pool has for it in bytes.
#[derive(Clone, Copy)]
pub struct Filling<'a> {
    pub context: &'a Context,
    pub add: &'a Add,
    pub image: &'a Image,
    /// Of an image that is listed: where each of its files comes from.
    pub parts: Option<&'a Planned<'a>>,
    pub needs: &'a Needs,
    pub plan: &'a Plan,
    pub room: u64,
}

impl Filling<'_> {
    /// Makes the volume, as a snapshot if there is something to share.
    pub fn create(self, tx: &mut Transaction, group: &Group) -> Result<Origin> {
        let Self { context, plan, .. } = self;
        let (lvm, name, size) = (&context.lvm, &plan.name, plan.fit.size);
        let extend = |tx: &mut Transaction, have: u64, size: u64| {
            if have < size {
                tx.run(&lvm.extend(name, size))?;
            }
            Ok::<_, anyhow::Error>(have < size)
        };
        let shown = self.add.image.display().to_string();
        for (at, (origin, have)) in plan.near.iter().take(NEAR_MOST).enumerate() {
            if plan.shared == Shared::Files {
                let (superblock, size) = match self.snapshot_that_fits(tx, group, origin, *have)? {
                    Ok(found) => found,
                    Err(reason) => {
                        // Of the nearest it is of interest, also where another one will do.
                        if at == 0 {
                            log::warn!("{shown} shares nothing with {origin}: {reason:#}");
                        }
                        continue;
                    }
                };
                let unpacked = plan.unpacked.as_ref().map(|unpacked| {
                    let create = lvm.create_thin(unpacked, &plan.pool, plan.fit.size, true);
                    let step = tx.run_undoable(&create, lvm.remove(unpacked))?;
                    Ok::<_, anyhow::Error>((unpacked.clone(), step))
                });
                return Ok(Origin::Files(Box::new(FilesOrigin {
                    name: origin.clone(),
                    superblock,
                    unpacked: unpacked.transpose()?,
                    grows: extend(tx, *have, size)?,
                    listing: listings::of_origin(context, tx, group, origin),
                })));
            }
            tx.run_undoable(&lvm.create_snapshot(name, origin, None), lvm.remove(name))?;
            extend(tx, *have, size)?;
            return Ok(Origin::Blocks(origin.clone()));
        }
        // By itself it needs more room than with another one.
        self.needs
            .judge(&shown, self.add, self.image, self.room, false)?;
        let create = lvm.create_thin(name, &plan.pool, size, true);
        tx.run_undoable(&create, lvm.remove(name))?;
        Ok(Origin::None)
    }

    /// Makes the volume as a snapshot of `origin`, whose volume has `have` bytes. Returns its filesystem, and the size
    /// that it needs; why not, with the snapshot gone again, where that filesystem is of no use. A base stays inactive,
    /// so this shows in the snapshot only; a dry run looks at the base.
    fn snapshot_that_fits(
        self,
        tx: &mut Transaction,
        group: &Group,
        origin: &LvName,
        have: u64,
    ) -> Result<Result<(Superblock, u64)>> {
        let (lvm, name) = (&self.context.lvm, &self.plan.name);
        let what = what(self.add, self.image, self.needs.content);
        let look_at = |name: &LvName| -> Result<_> {
            let device = lvm.device(name)?;
            let judge = |superblock: Superblock| {
                let place = self.needs.place(self.room, true);
                let fit = &self.plan.fit;
                let size = judge::of_origin(origin.as_str(), &what, fit, &superblock, have, &place);
                Ok((superblock, size?))
            };
            Ok(superblock_on(&device).and_then(judge))
        };
        let create = lvm.create_snapshot(name, origin, None);
        if let Some(look) = self.context.look(group, origin)? {
            let found = look_at(origin)?;
            drop(look);
            if found.is_ok() {
                tx.run_undoable(&create, lvm.remove(name))?;
            }
            return Ok(found);
        }
        let step = tx.run_undoable(&create, lvm.remove(name))?;
        let found = look_at(name)?;
        if found.is_err() {
            tx.undo_now(&step)?;
        }
        Ok(found)
    }

    /// Fills the volume, which was made as `origin` says.
    pub fn run(self, tx: &mut Transaction, origin: &Origin) -> Result<Filesystem> {
        let device = self.context.lvm.device(&self.plan.name)?;
        match origin {
            Origin::None => self.fill(tx, &device, None),
            Origin::Blocks(origin) => self.fill(tx, &device, Some(origin)),
            Origin::Files(origin) => self.fill_by_files(tx, &device, origin),
        }
    }

    /// Puts an image into the volume at `device`, which begins as a snapshot of `origin`, if there is one. A whole
    /// filesystem is read back before anything in it is changed, and has to be what was read of the image.
    fn fill(
        self,
        tx: &mut Transaction,
        device: &Path,
        origin: Option<&LvName>,
    ) -> Result<Filesystem> {
        let Self {
            add, image, plan, ..
        } = self;
        let target = Target {
            device,
            is_shared: origin.is_some(),
            unit: plan.unit,
            room: self.room,
        };
        let (path, compression, superblock, length, feed) = match image {
            Image::Filesystem {
                path,
                compression,
                superblock,
                length,
                feed,
                ..
            } => (path, *compression, superblock, *length, feed.as_ref()),
            Image::Tree(tree) => return self.unpack(tx, tree, &target),
        };
        let line = copy_line(path, compression, superblock.size, &target);
        tx.work(&line, |interrupt| {
            let stream = match feed {
                Some(feed) => Stream::fed(feed.open()?, compression)?,
                None => Stream::open(path, compression)?,
            };
            let total = match (compression, feed) {
                (None, None) => superblock.size,
                _ => length,
            };
            let mut progress = Progress::new(plan.name.as_str(), total);
            let copied =
                blocks::copy(stream, superblock.size, &target, interrupt, &mut progress)?;
            drop(progress);
            let label = format!("{} check", plan.name);
            digest::check_copy(&copied.checksums, target.device, &label, interrupt)?;
            if let Some(origin) = origin.filter(|_| copied.is_another()) {
                log::warn!(
                    "{} has {} of {} MiB at the same place as {origin}, so nearly all of it is stored once more; \
                     --by-content stores files that are equal once",
                    add.image.display(),
                    copied.same >> 20,
                    copied.data >> 20
                );
            }
            Ok(())
        })?;
        fill_up(tx, superblock, &target, plan.fit.size).with_context(|| {
            format!(
                "the {} filesystem in {} cannot be used",
                superblock.kind.name(),
                add.image.display()
            )
        })
    }

    /// Makes a filesystem and copies a tree of files into it; of one that is listed, what is not in the origin already.
    fn unpack(self, tx: &mut Transaction, tree: &Tree, target: &Target) -> Result<Filesystem> {
        let Self { context, plan, .. } = self;
        let (name, device) = (plan.name.as_str(), target.device);
        let filesystem = Filesystem::make(tx, plan.fit.kind, device, plan.zeroes, None)?;
        let dir = mount_point(name);
        let mounted = filesystem.mount(tx, &dir, "rw")?;
        let opened = (!context.dry_run).then(|| File::open(&dir)).transpose();
        let opened = opened.with_context(|| format!("cannot read {}", dir.display()))?;
        match self.parts {
            Some(parts) => parts.build(context, tx, (&dir, None), target.room, name)?,
            None => tx.work(&tree.copy_line(&dir), |interrupt| {
                let mut progress = Progress::new(name, plan.fit.content);
                tree.copy(&dir, target.room, interrupt, &mut progress)
            })?,
        }
        // What is written after the program that copies has ended, and fails, nobody else is told of.
        tx.flush_since(&dir, opened.as_ref())?;
        drop(opened);
        mounted.unmount(tx)?;
        filesystem.check(tx, false)?;
        Ok(filesystem)
    }

    /// Makes the files in the volume at `device`, a snapshot of `origin`, those of the image.
    fn fill_by_files(
        self,
        tx: &mut Transaction,
        device: &Path,
        origin: &FilesOrigin,
    ) -> Result<Filesystem> {
        let superblock = &origin.superblock;
        let seedless = superblock.uuid_in_checksums;
        let filesystem = Filesystem::expected(superblock.kind, device, seedless);
        if origin.grows {
            filesystem.check(tx, false)?;
            filesystem.grow(tx)?;
        }
        let Some((unpacked, step)) = &origin.unpacked else {
            if let Image::Tree(tree) = self.image {
                self.update(tx, &filesystem, tree, origin)?;
            }
            return Ok(filesystem);
        };
        let found = self.fill(tx, &self.context.lvm.device(unpacked)?, None)?;
        let dir = mount_point(unpacked.as_str());
        let mounted = found.mount(tx, &dir, found.untouched())?;
        let taken = if self.context.dry_run {
            self.plan.fit.content
        } else {
            used(&dir)?
        };
        let rest = Self {
            room: self.room.saturating_sub(taken),
            ..self
        };
        rest.update(tx, &filesystem, &Tree::Directory(dir), origin)?;
        mounted.unmount(tx)?;
        tx.undo_now(step)?;
        Ok(filesystem)
    }

    /// Makes the filesystem hold what is in a directory, or what the parts are of.
    fn update(
        self,
        tx: &mut Transaction,
        filesystem: &Filesystem,
        tree: &Tree,
        origin: &FilesOrigin,
    ) -> Result<()> {
        let name = self.plan.name.as_str();
        let dir = mount_point(name);
        let mounted = filesystem.mount(tx, &dir, filesystem.changed())?;
        let listing = origin.listing()?;
        match self.parts {
            Some(parts) => parts.build(self.context, tx, (&dir, listing), self.room, name)?,
            None => self.sync(tx, tree, &dir, (&origin.name, listing))?,
        }
        trim(tx, &dir)?;
        mounted.unmount(tx)?;
        filesystem.check(tx, false)
    }

    /// Makes what is below `to`, which is a snapshot of `origin`, hold what is in a directory.
    fn sync(
        self,
        tx: &mut Transaction,
        tree: &Tree,
        to: &Path,
        (origin, listing): (&LvName, Option<Listing>),
    ) -> Result<()> {
        let (from, zeros_are_holes) = tree.dir().context("an archive is unpacked first")?;
        let name = &self.plan.name;
        tx.work(&tree.replace_line(to), |interrupt| {
            let mut progress = Progress::new(name.as_str(), self.plan.fit.content);
            let source = Source {
                root: &Dir::root(from)?,
                zeros_are_holes,
            };
            let to = Dir::root(to)?;
            let done = sync(&source, &to, listing, self.room, interrupt, &mut progress)?;
            log::debug!(
                "{name}: {} files are those of {}, {} are not, with {} bytes that were written; {} are gone",
                done.kept,
                origin,
                done.written,
                done.bytes,
                done.removed
            );
            Ok(())
        })
    }
}

/// Checks a filesystem that was copied, and lets it fill its volume of `size` bytes.
fn fill_up(
    tx: &mut Transaction,
    superblock: &Superblock,
    target: &Target,
    size: u64,
) -> Result<Filesystem> {
    let seedless = superblock.uuid_in_checksums;
    let filesystem = Filesystem::expected(superblock.kind, target.device, seedless);
    filesystem.check(tx, target.is_shared)?;
    if size > superblock.size {
        filesystem.grow(tx)?;
    }
    Ok(filesystem)
}
