//! Doing what was planned, in one transaction: partitions, the group, what starts the host, a base, a layer with what it
//! has to know of its disk, and the volumes.

use std::ffi::OsStr;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::loader;
use super::plan::Use;
use super::{Task, volume};
use crate::admin::filesystem::mount_point;
use crate::admin::layout_init::{check_unused, wipe_all};
use crate::admin::source::{Source, Taken};
use crate::admin::{Context, base, comment, layer, say};
use crate::boot::BootPartition;
use crate::boot::root::Root;
use crate::model::fstab;
use crate::model::kernel_options::with_disks;
use crate::model::layout::tag;
use crate::model::name::{LvName, next_base};
use crate::sys::cmd::Cmd;
use crate::sys::transaction::{Transaction, UndoStep, write_line};
use crate::tree::{Dir, Meta, Xattrs};

/// Run by a shell, with a disk as `$0` and the lines of a partition table as the arguments.
const PARTITION: &str =
    "printf '%s\\n' \"$@\" | sfdisk --quiet --wipe always --wipe-partitions always \"$0\"";

/// The largest file of a root that is changed, in bytes.
const TEXT_MAX: u64 = 1 << 20;

impl Task {
    /// Makes the host. Returns the name of its first layer; nothing in a dry run.
    pub fn apply(&self, context: &Context) -> Result<Option<LvName>> {
        let writer = context.locked_writer("install")?;
        let layer = writer.transaction(|tx| {
            let source = Source::find(
                context,
                tx,
                Some(&self.image),
                &self.delivery,
                Taken::default(),
            )?;
            let digest = source.digest_if_required(tx)?;
            // In a dry run, one on a server shows what it is when it is here.
            let opened = match source.fetched_by() {
                Some((line, _)) if context.dry_run => {
                    if let Some(line) = line {
                        say(&format!("{line}\n"))?;
                    }
                    None
                }
                // There is no base yet that it could share files with.
                _ => Some(source.open(context, tx, false)?.0),
            };
            let add = base::Add {
                image: source.name(),
                ..self.add.clone()
            };
            // What is on a server would be fetched once more for that.
            if let (Source::Here(..), Some(opened)) = (&source, &opened) {
                // Nothing is mounted there yet.
                let dir = context.root.join("boot");
                let boot = BootPartition::in_dir(&dir, &context.root, context.lvm.vg())?;
                let room = self.group.room();
                base::examine_for_new_group(context, tx, &boot, &add, opened, room)?;
            }
            self.partition(tx)?;
            let unlocked = self.unlock(tx)?;
            self.group.make(context, tx)?;
            let mounted = self.mount(context, tx)?;
            loader::install(tx, &self.plan, &self.disk, &context.root)?;
            let layer =
                match opened {
                    Some(opened) if !context.dry_run => {
                        let tags = digest.map(|digest| format!("{}{digest}", tag::IMAGE));
                        let tags: Vec<String> = tags.into_iter().collect();
                        let made = base::make(context, tx, &add, (&opened, None), &mut |_| {
                            Ok(tags.clone())
                        })?;
                        if let Source::Server(server) = &source {
                            server.remember(context, tx, &context.load()?)?;
                        }
                        let mut change = |tx: &mut Transaction, _: &LvName, root: &Path| {
                            self.adapt(context, tx, root).map(|()| Vec::new())
                        };
                        layer::make(context, tx, Some(made.name), Some(&mut change))?.0
                    }
                    opened => {
                        if let Some(opened) = opened {
                            opened.close(tx)?;
                        }
                        self.say_layer(context, &add)?
                    }
                };
            self.make_volumes(context, tx, &layer)?;
            for step in mounted.iter().rev() {
                tx.undo_now(step)?;
            }
            self.release(context, tx, unlocked.as_ref());
            self.register(tx);
            Ok(layer)
        })?;
        Ok((!context.dry_run).then_some(layer))
    }

    fn partition(&self, tx: &mut Transaction) -> Result<()> {
        // A person was asked, the lock waited for, and an image fetched since it was looked at.
        let size = check_unused(&self.disk, self.wipe)?;
        ensure!(
            size == self.size,
            "{} is another disk than it was a moment ago; nothing was written to it",
            self.disk.display()
        );
        let disk = [self.disk.clone()];
        if self.wipe {
            // Nothing takes that back: it is what was asked for.
            tx.run(&wipe_all(&disk))?;
            settle(tx)?;
        }
        // It can fail when the table is written already.
        tx.on_failure(wipe_all(&disk));
        let sfdisk = Cmd::new("sh").args(["-c", PARTITION]).args(&disk);
        tx.run(&sfdisk.args(self.plan.script()))?;
        settle(tx)
    }

    /// Encrypts the partition of the group, and has it be there unlocked, if that is asked for.
    fn unlock(&self, tx: &mut Transaction) -> Result<Option<UndoStep>> {
        let Some(passphrase) = &self.passphrase else {
            return Ok(None);
        };
        let device = self.plan.device(&self.disk, Use::Group);
        let device = device.context("the group has a partition")?;
        let device = device.to_string_lossy();
        let (luks, name) = (&self.ids.luks, self.ids.mapped());
        let format = [
            "luksFormat",
            "--batch-mode",
            "--type",
            "luks2",
            "--uuid",
            luks,
            &device,
        ];
        passphrase.cryptsetup(tx, &format)?;
        passphrase.cryptsetup(tx, &["open", &device, &name])?;
        let close = Cmd::new("cryptsetup").args(["close", &name]);
        Ok(Some(tx.on_failure(close)))
    }

    /// Makes and mounts the filesystems that the boot loader reads, below the root of `context`.
    fn mount(&self, context: &Context, tx: &mut Transaction) -> Result<Vec<UndoStep>> {
        let ids = &self.ids;
        let device = |of: Use| {
            let device = self.plan.device(&self.disk, of);
            device.context("the partition is planned")
        };
        let mut mounted = Vec::new();
        let boot = device(self.plan.boot())?;
        let make = match self.plan.boot() {
            Use::Boot => {
                Cmd::new("mke2fs").args(["-q", "-t", "ext4", "-L", "boot", "-U", ids.ext4()])
            }
            _ => Cmd::new("mkfs.vfat").args(["-n", "boot", "-i", ids.fat()]),
        };
        tx.run(&make.arg(&boot))?;
        mounted.push(mount(tx, &boot, &context.root.join("boot"))?);
        if self.plan.has_esp_beside() {
            let esp = device(Use::Esp)?;
            tx.run(&Cmd::new("mkfs.vfat").args(["-n", "ESP"]).arg(&esp))?;
            mounted.push(mount(tx, &esp, &context.root.join("efi"))?);
        }
        // bootctl(1) and grub-install(8) ask udev what is there.
        settle(tx)?;
        Ok(mounted)
    }

    /// Has a layer know of its disk: which one is its boot partition, and what unlocks the group. Where what starts the
    /// host is signed, it comes from there.
    fn adapt(&self, context: &Context, tx: &mut Transaction, root: &Path) -> Result<()> {
        let line = self.ids.boot_line(self.plan.boot());
        change(tx, root, "etc", "fstab", &|text| {
            fstab::with_line(text, "/boot", &line)
        })?;
        if self.passphrase.is_some() {
            change(tx, root, "etc", "crypttab", &|text| self.ids.crypttab(text))?;
            // The same that its entry would have without that.
            let options = Root::at(root).options()?.unwrap_or_default();
            let options = with_disks(&options, &self.ids.option()) + "\n";
            change(tx, root, "etc/kernel", "cmdline", &|_| {
                options.clone().into_bytes()
            })?;
        }
        if self.plan.secure_boot {
            let esp = if self.plan.has_esp_beside() {
                "efi"
            } else {
                "boot"
            };
            let esp = context.root.join(esp);
            loader::install_signed(tx, &self.plan, root, &esp, self.ids.ext4())?;
        }
        Ok(())
    }

    /// What a dry run prints of the base and the layer. Returns what that will be called.
    fn say_layer(&self, context: &Context, add: &base::Add) -> Result<LvName> {
        let image = add.image.display().to_string();
        let base = match &add.name {
            Some(name) => name.clone(),
            None => next_base(std::iter::empty())?,
        };
        let mut words = vec!["base", "add", "--name", base.as_str()];
        let size = add.size.map(|size| format!("{size}b"));
        if let Some(size) = &size {
            words.extend(["--size", size]);
        }
        words.push(&image);
        context.say_verb(&words)?;
        context.say_verb(&["layer", "add", base.as_str()])?;
        let layer = base.layer(1)?;
        comment(&format!(
            "the fstab of {layer} gets: {}",
            self.ids.boot_line(self.plan.boot())
        ))?;
        if self.passphrase.is_some() {
            let line = self.ids.crypttab(b"");
            comment(&format!(
                "its crypttab gets: {}",
                String::from_utf8_lossy(&line).trim_end()
            ))?;
            comment(&format!(
                "its /etc/kernel/cmdline, and the entries of both, get: {}",
                self.ids.option()
            ))?;
        }
        if self.plan.secure_boot {
            comment(
                "the EFI system partition gets the shim and the signed boot loader of the image",
            )?;
        }
        Ok(layer)
    }

    fn make_volumes(&self, context: &Context, tx: &mut Transaction, layer: &LvName) -> Result<()> {
        if self.volumes.is_empty() {
            return Ok(());
        }
        context.activated(tx, layer, false, |tx| {
            let filesystem = context.filesystem(layer, layer)?;
            let dir = mount_point(layer.as_str());
            let mounted = filesystem.mount(tx, &dir, "ro")?;
            for volume in &self.volumes {
                volume::make_for_new_host(context, tx, volume, &dir)?;
            }
            mounted.unmount(tx)
        })
    }

    /// Leaves the disk alone. The host is complete by then, so what fails here is told and harms nothing.
    fn release(&self, context: &Context, tx: &mut Transaction, unlocked: Option<&UndoStep>) {
        let released = tx.run(&context.lvm.deactivate_group());
        let closed = unlocked.map_or(Ok(()), |step| tx.undo_now(step));
        if let Err(error) = released.and(closed) {
            log::warn!(
                "{} stays in use until the next start: {error:#}",
                self.disk.display()
            );
        }
    }

    /// Tells the firmware. What fails here harms nothing, as above.
    fn register(&self, tx: &mut Transaction) {
        if !self.registers {
            return;
        }
        if let Err(error) = loader::register(tx, &self.plan, &self.disk) {
            log::warn!(
                "the firmware of this machine was not told of {0}: {error:#}; if it does not start {0} by itself, choose \
                 {0} in its menu",
                self.disk.display()
            );
        }
    }
}

/// Waits until udev knows of what was made.
fn settle(tx: &mut Transaction) -> Result<()> {
    tx.run(&Cmd::new("udevadm").arg("settle"))
}

fn mount(tx: &mut Transaction, device: &Path, dir: &Path) -> Result<UndoStep> {
    tx.create_dir(dir)?;
    let mount = Cmd::new("mount").args([device, dir]);
    tx.run_undoable(&mount, Cmd::new("umount").arg(dir))
}

/// Changes a file in `dir` of the root of a new layer, which goes as a whole when something fails. The file keeps its
/// owner, mode and attributes; it need not be there.
fn change(
    tx: &mut Transaction,
    root: &Path,
    dir: &str,
    name: &str,
    change: &dyn Fn(&[u8]) -> Vec<u8>,
) -> Result<()> {
    let failed = || format!("cannot write /{dir}/{name} of the layer");
    let place = || -> Result<(Dir, Vec<u8>, Meta)> {
        let dir = Dir::root(root)?.make_dirs(Path::new(dir))?;
        let dir = dir.context("something else than a directory is in the way")?;
        let mut meta = Meta {
            uid: 0,
            gid: 0,
            mode: 0o644,
            xattrs: Xattrs::new(),
        };
        let mut text = Vec::new();
        if dir.stat_of(OsStr::new(name))?.is_some() {
            let node = dir.node(OsStr::new(name))?;
            (meta, text) = (node.meta()?, node.read(TEXT_MAX)?);
        }
        Ok((dir, text, meta))
    };
    let (place, old, meta) = place().with_context(failed)?;
    let new = change(&old);
    let path = root.join(dir).join(name);
    tx.work(&write_line(&path, &new), |_| {
        let put = place.replace(OsStr::new(name), &mut |temporary| {
            let mut file = place.create(temporary)?;
            file.write_all(&new)?;
            place.set_meta(temporary, &meta, None)?;
            file.sync_all()
        });
        put.with_context(failed)
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn files_of_a_layer_are_changed_and_nothing_outside_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
        fs::create_dir_all(root.join("etc")).unwrap();
        fs::write(root.join("etc/fstab"), "a /boot b\n").unwrap();
        fs::set_permissions(root.join("etc/fstab"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::create_dir(&outside).unwrap();
        let put = |dir: &str, name: &str| {
            crate::sys::transaction::change(|tx| {
                change(tx, &root, dir, name, &|old| [old, b"new\n"].concat())
            })
        };
        // Only root can give a file to root.
        if !nix::unistd::Uid::effective().is_root() {
            return;
        }
        put("etc", "fstab").unwrap();
        put("etc/kernel", "cmdline").unwrap();
        let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(read("etc/fstab"), "a /boot b\nnew\n");
        assert_eq!(read("etc/kernel/cmdline"), "new\n");
        let mode = fs::metadata(root.join("etc/fstab")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        symlink(&outside, root.join("etc/link")).unwrap();
        assert!(put("etc/link", "file").is_err());
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    }
}
