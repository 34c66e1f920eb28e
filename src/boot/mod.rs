//! The boot partition: entries, menus, kernels and the default.

pub mod entry;
mod grub;
mod grubenv;
pub mod system;

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::statvfs::{FsFlags, statvfs};
use sha2::{Digest, Sha256};

use crate::sys::changes::{Changes, read_if_there};
use crate::sys::mounts;
use entry::{Entry, Payload};
use grubenv::GrubEnv;
use system::{Kernel, System};

/// Directories on the boot partition.
const ENTRIES: &str = "loader/entries";
const KERNELS: &str = "imgbased";
/// What is left free after kernels were copied, for entries and menus.
const RESERVE: u64 = 1 << 20;

/// The boot partition of a host, `$BOOT` of the Boot Loader Specification.
pub struct BootPartition {
    dir: PathBuf,
}

impl BootPartition {
    /// The boot partition mounted at `root`/boot.
    ///
    /// Refuses one that is not mounted: what was written then would be seen by one layer only.
    pub fn at(root: &Path) -> Result<Self> {
        let dir = root.join("boot");
        ensure!(
            mounts::is_mount_point(&dir)?,
            "no boot partition is mounted at {}: layers share one, mount it there",
            dir.display()
        );
        Ok(Self { dir })
    }

    /// Refuses a boot partition that cannot be written to.
    pub fn check_writable(&self) -> Result<()> {
        let stat =
            statvfs(&self.dir).with_context(|| format!("cannot look at {}", self.dir.display()))?;
        ensure!(
            !stat.flags().contains(FsFlags::ST_RDONLY),
            "{} is mounted read-only",
            self.dir.display()
        );
        Ok(())
    }

    /// All entries that boot a layer or a base, in the order of the menu. Those of others are
    /// passed over.
    pub fn entries(&self) -> Result<Vec<Entry>> {
        let dir = self.dir.join(ENTRIES);
        let files = match fs::read_dir(&dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", dir.display()));
            }
        };
        let mut entries = Vec::new();
        for file in files {
            let path = file
                .with_context(|| format!("cannot read {}", dir.display()))?
                .path();
            let Some(id) = entry_id(&path) else { continue };
            let text =
                fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            entries.extend(Entry::parse(id, &String::from_utf8_lossy(&text)));
        }
        entries.sort_by(Entry::menu_order);
        Ok(entries)
    }

    /// The entry of a layer or base.
    pub fn entry_of(&self, layer: &str) -> Result<Option<Entry>> {
        let entries = self.entries()?;
        Ok(entries.into_iter().find(|e| e.layer() == Some(layer)))
    }

    /// Copies the kernel of a mounted root to the boot partition, unless its content is there, and
    /// returns what an entry has to boot. `fallback_options` are used where the root has none.
    ///
    /// Refuses when the partition has no room, before anything is written.
    pub fn publish(
        &self,
        changes: &mut Changes,
        root: &Path,
        fallback_options: &str,
    ) -> Result<Payload> {
        let system = System::at(root);
        let Kernel {
            version,
            image,
            initrd,
        } = system.kernel()?;
        let files = [("vmlinuz", image), ("initrd", initrd)];
        let mut missing = Vec::new();
        let mut paths = Vec::new();
        for (kind, source) in files {
            let digest = digest(&source)?;
            let name = format!("{kind}-{version}-{}", &digest[..16]);
            let target = self.dir.join(KERNELS).join(&name);
            paths.push(format!("/{KERNELS}/{name}"));
            // A file of that name with other content was cut off or damaged.
            if !target.exists() || self::digest(&target)? != digest {
                missing.push((source, target));
            }
        }
        self.check_room(&missing)?;
        changes.create_dir(&self.dir.join(KERNELS))?;
        for (source, target) in &missing {
            changes.copy_new(source, target, 0o600)?;
        }
        changes.flush(&self.dir)?;
        let [linux, initrd] = paths
            .try_into()
            .map_err(|_| anyhow::anyhow!("a kernel is two files"))?;
        Ok(Payload {
            version,
            linux,
            initrd,
            options: system
                .options()?
                .unwrap_or_else(|| fallback_options.to_owned()),
            system: system.name(),
        })
    }

    fn check_room(&self, copies: &[(PathBuf, PathBuf)]) -> Result<()> {
        let mut needed = RESERVE;
        for (source, _) in copies {
            needed += fs::metadata(source)
                .with_context(|| format!("cannot look at {}", source.display()))?
                .len();
        }
        let stat = statvfs(&self.dir)?;
        let free = stat.blocks_available() * stat.fragment_size();
        if free < needed {
            bail!(
                "{} has {} KiB free, {} KiB are needed",
                self.dir.display(),
                free >> 10,
                needed >> 10
            );
        }
        Ok(())
    }

    /// Writes an entry and the menus. The kernel that it names is on disk already.
    ///
    /// Refuses to replace the entry of another layer.
    pub fn add(&self, changes: &mut Changes, entry: &Entry) -> Result<()> {
        let mut entries = self.entries()?;
        ensure!(
            !entries
                .iter()
                .any(|e| e.id == entry.id && e.layer() != entry.layer()),
            "the boot entry {} is that of another layer",
            entry.id
        );
        entries.retain(|e| e.id != entry.id);
        entries.push(entry.clone());
        entries.sort_by(Entry::menu_order);
        let dir = self.dir.join(ENTRIES);
        changes.create_dir(&dir)?;
        let path = dir.join(format!("{}.conf", entry.id));
        changes.write_new(&path, entry.render().as_bytes(), 0o644)?;
        self.write_menu(changes, &entries)?;
        changes.flush(&self.dir)
    }

    fn write_menu(&self, changes: &mut Changes, entries: &[Entry]) -> Result<()> {
        let dir = self.grub_dir();
        changes.create_dir(&dir)?;
        let menu = grub::render_menu(entries);
        changes.write(&dir.join(grub::MENU), menu.as_bytes(), 0o644)
    }

    /// The id of the default entry; nothing if none was ever set.
    pub fn default_id(&self) -> Result<Option<String>> {
        let env = self.grub_env()?;
        Ok(env
            .get("saved_entry")
            .filter(|id| !id.is_empty())
            .map(str::to_owned))
    }

    /// Makes an entry the default.
    pub fn set_default(&self, changes: &mut Changes, id: &str) -> Result<()> {
        let mut env = self.grub_env()?;
        env.set("saved_entry", id);
        let path = self.grub_env_path();
        let block = env.render()?;
        if changes.is_dry_run() {
            let edit = crate::sys::cmd::Cmd::new("grub-editenv")
                .arg(&path)
                .arg("set");
            return changes.run(&edit.arg(format!("saved_entry={id}")));
        }
        changes.write(&path, &block, 0o644)?;
        changes.flush(&self.dir)?;
        ensure!(
            self.default_id()?.as_deref() == Some(id),
            "{} does not hold what was written to it",
            path.display()
        );
        Ok(())
    }

    fn grub_env(&self) -> Result<GrubEnv> {
        let path = self.grub_env_path();
        match read_if_there(&path)? {
            Some(block) => GrubEnv::parse(&block).with_context(|| {
                let path = path.display();
                format!("{path} is damaged; `grub-editenv {path} create` makes an empty one")
            }),
            None => Ok(GrubEnv::default()),
        }
    }

    /// The file that GRUB reads, where the usual name is a link to another place.
    fn grub_env_path(&self) -> PathBuf {
        let path = self.grub_dir().join("grubenv");
        path.canonicalize().unwrap_or(path)
    }

    /// /boot/grub, or /boot/grub2 as on Fedora.
    fn grub_dir(&self) -> PathBuf {
        let grub2 = self.dir.join("grub2");
        if grub2.is_dir() {
            grub2
        } else {
            self.dir.join("grub")
        }
    }
}

fn entry_id(path: &Path) -> Option<&str> {
    let id = path.file_name()?.to_str()?.strip_suffix(".conf")?;
    (!id.starts_with('.')).then_some(id)
}

/// SHA-256 of a file's content, as hexadecimal digits.
fn digest(path: &Path) -> Result<String> {
    let mut hash = Sha256::new();
    File::open(path)
        .and_then(|mut file| io::copy(&mut file, &mut hash))
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}
