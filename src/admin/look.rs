//! Looking at what nothing is changed of: a volume or an image is mounted read-only for that long. So a dry run sees
//! which files would be copied, and what the entries would boot; and an image is judged before it is copied.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::filesystem::{Filesystem, HARMLESS};
use super::{Context, view};
use crate::image::superblock::FsKind;
use crate::model::layout::Group;
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
        // With a layer that runs its filesystem is mounted already. What is seen of a base that runs is its overlay.
        let is_running = view::booted_layer(group)?.as_ref() == Some(name);
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

    /// What runs: a layer, or a base with its volatile overlay.
    pub fn at_running() -> Self {
        Self::new(Place::Running)
    }

    /// A whole filesystem in a file or on a device.
    pub fn at_image(path: &Path, kind: FsKind) -> Self {
        Self::new(Place::Image(path.to_owned(), kind))
    }

    /// Mounts it at `dir` until the result is dropped. Only this process sees the mount, and nothing of it can be run.
    pub fn mounted(&self, dir: &Path) -> Result<Self> {
        self.mount(dir, false)
    }

    /// The same, with what is in the journal of a volume, which is written for that.
    pub fn mounted_and_replayed(&self, dir: &Path) -> Result<Self> {
        self.mount(dir, true)
    }

    fn mount(&self, dir: &Path, replays: bool) -> Result<Self> {
        let mut look = Self::new(self.place.clone());
        if !dir.is_dir() {
            // It stays: what another process has mounted there by then would go with it.
            Cmd::new("mkdir").arg("-p").arg(dir).run()?;
        }
        let mount = look.place.mount(replays)?.arg(dir);
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
    fn mount(&self, replays: bool) -> Result<Cmd> {
        let (kind, options, source) = match self {
            Self::Running => {
                let options = format!("ro,{HARMLESS}");
                return Ok(Cmd::new("mount").args(["--bind", "-o", &options, "/"]));
            }
            Self::Volume(device) => {
                let filesystem = Filesystem::on(device)?;
                let untouched = filesystem.untouched();
                (
                    filesystem.kind,
                    if replays { "ro" } else { untouched },
                    device,
                )
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::mounts::make_private;

    /// Only root can mount; where that is not allowed, or there is no loop device, there is nothing to see.
    #[test]
    fn an_image_is_looked_into_as_it_is_or_not_at_all() {
        const FEATURES: u64 = 1024 + 0x60;
        let dir = tempfile::tempdir().unwrap();
        let (image, tree) = (dir.path().join("image"), dir.path().join("tree"));
        fs::create_dir_all(tree.join("boot")).unwrap();
        fs::write(tree.join("boot/vmlinuz-1"), "").unwrap();
        Cmd::new("truncate")
            .args(["-s", "16M"])
            .arg(&image)
            .run()
            .unwrap();
        let mkfs = Cmd::new("mke2fs").args(["-q", "-t", "ext4", "-O", "^metadata_csum", "-d"]);
        mkfs.args([&tree, &image]).run().unwrap();
        let before = fs::read(&image).unwrap();
        let at = dir.path().join("at");
        let look = || Look::at_image(&image, FsKind::Ext4).mounted(&at);
        if make_private().is_err() {
            return;
        }
        let Ok(mounted) = look() else { return };
        assert!(at.join("boot/vmlinuz-1").is_file());
        assert!(fs::write(at.join("file"), "").is_err());
        drop(mounted);
        assert!(!at.join("boot").exists());
        assert!(fs::read(&image).unwrap() == before);
        // A journal that is to be replayed.
        let file = File::options().read(true).write(true).open(&image).unwrap();
        let mut features = [0; 1];
        file.read_exact_at(&mut features, FEATURES).unwrap();
        file.write_all_at(&[features[0] | 0x4], FEATURES).unwrap();
        assert!(look().is_err());
        file.write_all_at(&features, FEATURES).unwrap();
        assert!(look().is_ok());
        assert!(fs::read(&image).unwrap() == before);
    }

    #[test]
    fn nothing_that_is_looked_at_can_be_run_or_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let device = dir.path().join("device");
        for kind in [FsKind::Ext4, FsKind::Xfs] {
            let made = Cmd::new("truncate").args(["-s", "300M"]).arg(&device).run();
            made.unwrap();
            let mkfs = match kind {
                FsKind::Ext4 => Cmd::new("mke2fs").args(["-q", "-F", "-t", "ext4"]),
                FsKind::Xfs => Cmd::new("mkfs.xfs").args(["-q", "-f"]),
            };
            if mkfs.check_installed().is_err() {
                continue;
            }
            mkfs.arg(&device).run().unwrap();
            for place in [
                Place::Running,
                Place::Volume(device.clone()),
                Place::Image(device.clone(), kind),
            ] {
                for replays in [false, true] {
                    let mount = place.mount(replays).unwrap().to_string();
                    let mut words = mount.split(' ').skip_while(|word| *word != "-o").skip(1);
                    let options: Vec<&str> = words.next().unwrap().split(',').collect();
                    for option in ["ro", "nosuid", "nodev", "noexec"] {
                        assert!(options.contains(&option), "{mount}");
                    }
                    let is_left = ["noload", "norecovery"].iter().any(|o| options.contains(o));
                    let is_volume = matches!(place, Place::Volume(_));
                    assert_eq!(is_left, is_volume && !replays, "{mount}");
                    let is_other = options.contains(&"nouuid");
                    let is_xfs = kind == FsKind::Xfs && !matches!(place, Place::Running);
                    assert_eq!(is_other, is_xfs, "{mount}");
                }
            }
        }
    }
}
