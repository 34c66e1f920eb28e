//! Looking at what nothing is changed of: a volume or an image is mounted read-only for that long. So a dry run sees
//! which files would be copied, and what the entries would boot; and an image is judged before it is copied.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::filesystem::{Filesystem, HARMLESS};
use super::{Context, view};
use crate::image::superblock::FsKind;
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;

/// What is looked at.
#[derive(Clone)]
enum Place {
    /// The root filesystem of the running system, with what is on it and hidden below other mounts.
    Running,
    Volume(PathBuf),
    Image(PathBuf, FsKind),
}

/// What can be looked at. What was done for that is undone when this is dropped.
pub struct Look {
    place: Place,
    /// Commands, in the order in which what they undo was done.
    undo: Vec<Cmd>,
}

impl Look {
    fn new(place: Place) -> Self {
        Self {
            place,
            undo: Vec::new(),
        }
    }

    /// A volume, which is active then.
    pub fn at(context: &Context, group: &Group, name: &LvName) -> Result<Self> {
        let lvm = &context.lvm;
        // What is seen of a base that runs is its overlay.
        let is_layer = group
            .volume(name.as_str())
            .is_some_and(|v| v.role == Role::Layer);
        // With that its filesystem is mounted already.
        let is_running = is_layer && view::booted(group)?.as_deref() == Some(name.as_str());
        let mut look = Self::new(if is_running {
            Place::Running
        } else {
            Place::Volume(lvm.device(name)?)
        });
        if group.volume(name.as_str()).is_some_and(|v| !v.active) {
            look.run(lvm.activate(name), lvm.deactivate(name))?;
        }
        Ok(look)
    }

    /// A whole filesystem in a file or on a device.
    pub fn at_image(path: &Path, kind: FsKind) -> Self {
        Self::new(Place::Image(path.to_owned(), kind))
    }

    /// Mounts it at `dir` until the result is dropped. Only this process sees the mount.
    pub fn mounted(&self, dir: &Path) -> Result<Self> {
        let mut look = Self::new(self.place.clone());
        if !dir.is_dir() {
            let rmdir = Cmd::new("rmdir").arg(dir);
            look.run(Cmd::new("mkdir").arg("-p").arg(dir), rmdir)?;
        }
        let mount = look.place.mount()?.arg(dir);
        look.run(mount, Cmd::new("umount").arg(dir))?;
        Ok(look)
    }

    /// No Ctrl-C ends either of them halfway.
    fn run(&mut self, cmd: Cmd, undo: Cmd) -> Result<()> {
        cmd.uninterrupted().run()?;
        self.undo.push(undo.uninterrupted());
        Ok(())
    }
}

impl Place {
    /// The command that mounts it, but for where.
    fn mount(&self) -> Result<Cmd> {
        let (kind, options, source) = match self {
            Self::Running => return Ok(Cmd::new("mount").args(["--bind", "/"])),
            Self::Volume(device) => {
                let filesystem = Filesystem::on(device)?;
                (filesystem.kind, filesystem.untouched(), device)
            }
            // A loop device that cannot be written to: what has to be mended first, or has a journal that is not
            // empty, is not mounted then. The image does not say what becomes of the machine when it is damaged.
            Self::Image(path, kind) => match kind {
                FsKind::Ext4 => (*kind, "ro,loop,errors=continue", path),
                FsKind::Xfs => (*kind, "ro,loop", path),
            },
        };
        let nouuid = match kind {
            FsKind::Ext4 => "",
            FsKind::Xfs => ",nouuid",
        };
        let options = format!("{options},{HARMLESS}{nouuid}");
        let mount = Cmd::new("mount").args(["-t", kind.name(), "-o", &options]);
        Ok(mount.arg(source))
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        for undo in self.undo.drain(..).rev() {
            if let Err(error) = undo.run() {
                log::warn!("after a look: {error:#}");
            }
        }
    }
}
