//! What a dry run sees of a volume: it is active, and mounted read-only, for as long as it is looked at. Without that
//! nobody could tell which files would be copied, and what the entries would boot.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::filesystem::Filesystem;
use super::{Context, view};
use crate::image::superblock::FsKind;
use crate::model::layout::{Group, Role};
use crate::model::name::LvName;
use crate::sys::cmd::Cmd;

/// A volume that is active. What was done for that is undone when this is dropped.
pub struct Look {
    device: PathBuf,
    /// Whether the running system is on it, with which its filesystem is mounted already.
    is_running: bool,
    /// Commands, in the order in which what they undo was done.
    undo: Vec<Cmd>,
}

impl Look {
    pub fn at(context: &Context, group: &Group, name: &LvName) -> Result<Self> {
        let lvm = &context.lvm;
        // What is seen of a base that runs is its overlay.
        let is_layer = group
            .volume(name.as_str())
            .is_some_and(|v| v.role == Role::Layer);
        let mut look = Self {
            device: lvm.device(name)?,
            is_running: is_layer && view::booted(group)?.as_deref() == Some(name.as_str()),
            undo: Vec::new(),
        };
        if group.volume(name.as_str()).is_some_and(|v| !v.active) {
            look.run(&lvm.activate(name), lvm.deactivate(name))?;
        }
        Ok(look)
    }

    /// Mounts it at `dir` until the result is dropped. Only this process sees the mount.
    pub fn mounted(&self, dir: &Path) -> Result<Self> {
        let mut look = Self {
            device: self.device.clone(),
            is_running: self.is_running,
            undo: Vec::new(),
        };
        if !dir.is_dir() {
            let rmdir = Cmd::new("rmdir").arg(dir);
            look.run(&Cmd::new("mkdir").arg("-p").arg(dir), rmdir)?;
        }
        let mount = if self.is_running {
            Cmd::new("mount").args(["--bind", "/"])
        } else {
            let filesystem = Filesystem::on(&self.device)?;
            let nouuid = match filesystem.kind {
                FsKind::Ext4 => "",
                FsKind::Xfs => ",nouuid",
            };
            let options = format!("{},nosuid,nodev,noexec{nouuid}", filesystem.untouched());
            let mount = Cmd::new("mount").args(["-t", filesystem.kind.name()]);
            mount.arg("-o").arg(options).arg(&self.device)
        };
        look.run(&mount.arg(dir), Cmd::new("umount").arg(dir))?;
        Ok(look)
    }

    fn run(&mut self, cmd: &Cmd, undo: Cmd) -> Result<()> {
        cmd.run()?;
        self.undo.push(undo);
        Ok(())
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
