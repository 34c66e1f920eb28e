//! The filesystem on a volume: making, checking, growing it, and giving it an identity of its own.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::image::superblock::{self, FsKind, PREFIX, Superblock};
use crate::sys::cmd::Cmd;
use crate::sys::run::MOUNTS;
use crate::sys::transaction::Transaction;

/// What a mount of what can come from anywhere has: neither its device nodes nor its programs can be used.
pub const HARMLESS: &str = "nosuid,nodev,noexec";

/// A filesystem that is not mounted anywhere.
pub struct Filesystem {
    pub kind: FsKind,
    device: PathBuf,
    /// Whether the UUID is part of all checksums of an ext4.
    uuid_in_checksums: bool,
}

impl Filesystem {
    /// The filesystem on an active volume. Refuses what a base cannot have.
    pub fn on(device: &Path) -> Result<Self> {
        let superblock = superblock_on(device)?;
        Ok(Self {
            kind: superblock.kind,
            device: device.to_owned(),
            uuid_in_checksums: superblock.uuid_in_checksums,
        })
    }

    /// The options of a mount that writes nothing at all to a volume whose filesystem is clean. Without
    /// them XFS writes to its log when it is unmounted, also if it was mounted `ro`.
    pub fn untouched(&self) -> &'static str {
        match self.kind {
            FsKind::Ext4 => "ro,noload",
            FsKind::Xfs => "ro,norecovery",
        }
    }

    /// The options of a mount for changing some files: nothing else is written, such as times of access, or what was
    /// left out when it was made.
    pub fn changed(&self) -> &'static str {
        match self.kind {
            FsKind::Ext4 => "rw,noatime,noinit_itable",
            FsKind::Xfs => "rw,noatime",
        }
    }

    /// What will be on a volume that does not exist yet.
    pub fn expected(kind: FsKind, device: &Path, uuid_in_checksums: bool) -> Self {
        Self {
            kind,
            device: device.to_owned(),
            uuid_in_checksums,
        }
    }

    /// The same on another volume, which holds what this one does.
    pub fn copied_to(self, device: &Path) -> Self {
        Self {
            device: device.to_owned(),
            ..self
        }
    }

    /// Refuses when its tools are not installed.
    pub fn check_tools(kind: FsKind) -> Result<()> {
        let tools = match kind {
            FsKind::Ext4 => ["mke2fs", "e2fsck", "tune2fs", "resize2fs"],
            FsKind::Xfs => ["mkfs.xfs", "xfs_repair", "xfs_admin", "xfs_growfs"],
        };
        tools
            .iter()
            .try_for_each(|tool| Cmd::new(tool).check_installed())
    }

    /// Makes an empty filesystem on a new volume. `is_zero`: whether what is not written is read as zeros, also
    /// beside what is written. Of a label both types take twelve characters.
    pub fn make(
        tx: &mut Transaction,
        kind: FsKind,
        device: &Path,
        is_zero: bool,
        label: Option<&str>,
    ) -> Result<Self> {
        let cmd = match kind {
            FsKind::Ext4 => {
                // What is zero already is not written again, neither now nor when it is first mounted.
                let zeros = if is_zero {
                    "assume_storage_prezeroed=1,"
                } else {
                    ""
                };
                Cmd::new("mke2fs")
                    .args(["-q", "-t", "ext4", "-m", "1"])
                    .args(["-O", "metadata_csum,metadata_csum_seed", "-E"])
                    .arg(format!(
                        "lazy_itable_init=0,lazy_journal_init=0,{zeros}nodiscard"
                    ))
            }
            FsKind::Xfs => Cmd::new("mkfs.xfs").args(["-q", "-K"]),
        };
        let label = label.map(|label| ["-L", label]);
        tx.run(&cmd.args(label.iter().flatten()).arg(device))?;
        Ok(Self::expected(kind, device, false))
    }

    /// Checks it from end to end. Small errors of an ext4 are repaired; what is not used is given
    /// back to the pool with `discard`.
    ///
    /// Refuses one that stays damaged.
    pub fn check(&self, tx: &mut Transaction, discard: bool) -> Result<()> {
        match self.kind {
            FsKind::Ext4 => {
                let discard: &[&str] = if discard { &["-E", "discard"] } else { &[] };
                // From status 4 on e2fsck(8) has left errors.
                let cmd = Cmd::new("e2fsck")
                    .arg("-fp")
                    .args(discard)
                    .accept(&[0, 1, 2, 3]);
                tx.run(&cmd.arg(&self.device))
            }
            FsKind::Xfs => {
                // Only mounting it replays its journal, and its tools want that done.
                let mounted = self.mount(tx, &mount_point("journal"), "rw")?;
                mounted.unmount(tx)?;
                tx.run(&Cmd::new("xfs_repair").args(["-n"]).arg(&self.device))
            }
        }
    }

    /// Gives it a UUID that no other filesystem has.
    pub fn renew_uuid(&self, tx: &mut Transaction) -> Result<()> {
        let cmd = match self.kind {
            // With a seed, all the checksums can stay what they are.
            FsKind::Ext4 if self.uuid_in_checksums => {
                Cmd::new("tune2fs").args(["-O", "metadata_csum_seed", "-U", "random"])
            }
            FsKind::Ext4 => Cmd::new("tune2fs").args(["-U", "random"]),
            FsKind::Xfs => Cmd::new("xfs_admin").args(["-U", "generate"]),
        };
        tx.run(&cmd.arg(&self.device))
    }

    /// Lets it fill its volume.
    pub fn grow(&self, tx: &mut Transaction) -> Result<()> {
        match self.kind {
            FsKind::Ext4 => tx.run(&Cmd::new("resize2fs").arg(&self.device)),
            FsKind::Xfs => {
                let dir = mount_point("grow");
                let mounted = self.mount(tx, &dir, "rw")?;
                tx.run(&Cmd::new("xfs_growfs").arg("-d").arg(&dir))?;
                mounted.unmount(tx)
            }
        }
    }

    /// Mounts it at `dir` with these options, and so that what it holds does no harm.
    pub fn mount(&self, tx: &mut Transaction, dir: &Path, options: &str) -> Result<Mounted> {
        tx.create_dir(dir)?;
        let nouuid = if self.kind == FsKind::Xfs {
            ",nouuid"
        } else {
            ""
        };
        let mount = Cmd::new("mount")
            .args(["-t", self.kind.name(), "-o"])
            .arg(format!("{options},{HARMLESS}{nouuid}"))
            .arg(&self.device)
            .arg(dir);
        let step = tx.run_undoable(&mount, Cmd::new("umount").arg(dir))?;
        Ok(Mounted(step))
    }
}

/// Gives back to the pool what the filesystem that is mounted at `dir` does not use. Pools can be told not to take it.
pub fn trim(tx: &mut Transaction, dir: &Path) -> Result<()> {
    tx.run(&Cmd::new("fstrim").arg(dir).accept(&[0, 1]))
}

/// What the superblock of an active volume says. Refuses another filesystem than ext4 and XFS.
pub fn superblock_on(device: &Path) -> Result<Superblock> {
    let mut prefix = [0; PREFIX];
    File::open(device)
        .and_then(|file| file.read_exact_at(&mut prefix, 0))
        .with_context(|| format!("cannot read {}", device.display()))?;
    superblock::read(&prefix)
        .and_then(|found| found.context("it holds neither ext4 nor XFS"))
        .with_context(|| device.display().to_string())
}

/// Mounts the filesystem of a directory once more, without what is mounted below it, to be read.
pub fn mount_again(tx: &mut Transaction, from: &Path, dir: &Path) -> Result<Mounted> {
    tx.create_dir(dir)?;
    let options = format!("ro,{HARMLESS}");
    let bind = Cmd::new("mount").args(["--bind", "-o", &options]);
    let undo = Cmd::new("umount").arg(dir);
    let step = tx.run_undoable(&bind.arg(from).arg(dir), undo)?;
    Ok(Mounted(step))
}

/// Where a volume is mounted for a while, in this process' own namespace.
pub fn mount_point(name: &str) -> PathBuf {
    Path::new(MOUNTS).join(name)
}

/// Something that is mounted. Unmounted when the verb fails.
#[must_use]
pub struct Mounted(crate::sys::transaction::UndoStep);

impl Mounted {
    pub fn unmount(&self, tx: &mut Transaction) -> Result<()> {
        tx.undo_now(&self.0)
    }
}
