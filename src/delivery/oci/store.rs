//! The layers of images that were fetched, by their digests. Those of the image that was taken last stay, so that of the
//! next one only what is new comes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::Flock;

use super::layout::{DOCUMENT_MOST, Descriptor, Digest, Manifest};
use crate::delivery::held::locked;
use crate::delivery::spool::{SPARE, Spool, sum};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;

/// Where blobs are, below the directory of all that belongs to a store.
pub const BLOBS: &str = "blobs";
/// Where they are below that, by their digests.
pub const KIND: &str = "sha256";
/// Where skopeo writes what it has fetched, and does not need afterwards.
pub const IMAGE: &str = "image";

/// The store of a spool. Nobody else uses it meanwhile.
pub struct Store {
    dir: PathBuf,
    spool: Spool,
    _lock: Flock<File>,
}

impl Store {
    pub fn open(spool: &Spool) -> Result<Self> {
        spool.prepare()?;
        let (layers, lock) = (spool.layers(), spool.layers_lock());
        ensure!(
            spool.has_layers() || is_empty(&layers),
            "{} has not been made for layers of images, so none are kept there; Spool= in imgbased.conf names another \
             place",
            layers.display()
        );
        let Some(lock) = locked(&lock)? else {
            bail!("another command is fetching layers of an image");
        };
        let store = Self {
            dir: layers,
            spool: spool.clone(),
            _lock: lock,
        };
        // What an interrupted command has left.
        store.end()?;
        for dir in [store.blobs(), store.image()] {
            fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(store)
    }

    pub fn blobs(&self) -> PathBuf {
        self.dir.join(BLOBS)
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join(IMAGE)
    }

    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.path())
    }

    /// Removes what skopeo needed only meanwhile.
    pub(super) fn end(&self) -> Result<()> {
        match fs::remove_dir_all(self.image()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", self.image().display()))
            }
            _ => Ok(()),
        }
    }

    /// How many bytes of an image have to come. What is there is read, and removed if it is damaged: skopeo takes it as
    /// it is.
    pub(super) fn missing(&self, manifest: &Manifest, interrupt: &Interrupt) -> Result<u64> {
        let mut missing: u64 = 0;
        for part in manifest.layers.iter().chain([&manifest.config]) {
            if !self.has(part, interrupt)? {
                missing = missing.saturating_add(part.size);
            }
        }
        Ok(missing)
    }

    fn has(&self, part: &Descriptor, interrupt: &Interrupt) -> Result<bool> {
        let path = self.blob(&part.digest);
        let mut file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            file => file.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let found = sum(&mut file, &path.display().to_string(), interrupt)?;
        let is_right = Digest::from(found) == part.digest;
        if !is_right {
            log::warn!("{} is damaged, and is fetched again", path.display());
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(is_right)
    }

    /// Refuses what there is no room for. Returns what is to be looked at meanwhile.
    pub(super) fn watched(&self, name: &str, missing: u64) -> Result<Watched<'_>> {
        let have = self.spool.room()?;
        ensure!(
            missing.saturating_add(SPARE) <= have,
            "there is no room to fetch {name}: it needs {} MiB, and {} MiB are free; Spool= in imgbased.conf names \
             another place",
            missing.div_ceil(1 << 20),
            have >> 20
        );
        Ok(Watched {
            store: self,
            before: self.bytes(),
            progress: Progress::new(name, missing),
        })
    }

    /// What all files have, in bytes.
    fn bytes(&self) -> u64 {
        let of_dir = |dir: PathBuf| {
            let files = fs::read_dir(dir).into_iter().flatten().flatten();
            let sizes = files.filter_map(|file| Some(file.metadata().ok()?.len()));
            sizes.sum::<u64>()
        };
        of_dir(self.blobs().join(KIND)).saturating_add(of_dir(self.image()))
    }

    /// A small file that a manifest names.
    pub(super) fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self.blob(&descriptor.digest);
        let failed = || format!("cannot read {}", path.display());
        let size = path.metadata().with_context(failed)?.len();
        ensure!(size <= DOCUMENT_MOST, "{} has {size} bytes", path.display());
        let content = fs::read(&path).with_context(failed)?;
        ensure!(
            Digest::of(&content) == descriptor.digest,
            "{} is damaged",
            path.display()
        );
        Ok(content)
    }

    /// The files that none of these are.
    pub fn others(&self, kept: &[PathBuf]) -> Vec<PathBuf> {
        let files = fs::read_dir(self.blobs().join(KIND));
        let paths = files
            .into_iter()
            .flatten()
            .flatten()
            .map(|file| file.path());
        paths.filter(|path| !kept.contains(path)).collect()
    }
}

/// Tells how far skopeo is.
pub(super) struct Watched<'a> {
    store: &'a Store,
    before: u64,
    progress: Progress,
}

impl Watched<'_> {
    /// How many bytes have come. Fails where the disk becomes full: a registry can send more than it says.
    pub fn look(&mut self) -> Result<u64> {
        let come = self.store.bytes().saturating_sub(self.before);
        self.progress.show(come);
        ensure!(
            self.store.spool.room()? >= SPARE / 2,
            "more comes than the manifest says, or others fill the disk of {}",
            Path::display(&self.store.dir)
        );
        Ok(come)
    }
}

/// Whether a directory is not there, or nothing is in it: an admin may have it on another disk.
fn is_empty(dir: &Path) -> bool {
    match fs::read_dir(dir) {
        Ok(mut names) => names.next().is_none(),
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::oci::layout::Document;

    #[test]
    fn what_is_there_and_right_does_not_come_again() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(&dir.path().join("spool"));
        let store = Store::open(&spool).unwrap();
        assert!(
            Store::open(&spool).is_err_and(|error| error.to_string().contains("another command"))
        );
        fs::create_dir(store.blobs().join(KIND)).unwrap();
        let contents = ["{}", "one", "two"];
        let digests = contents.map(|content| Digest::of(content.as_bytes()));
        for (digest, content) in digests.iter().zip(contents) {
            fs::write(store.blob(digest), content).unwrap();
        }
        let part = |kind: &str, at: usize, size: usize| {
            let digest = &digests[at];
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"{digest}","size":{size}}}"#
            )
        };
        let [config, one, two] = [
            part("config.v1+json", 0, 2),
            part("layer.v1.tar", 1, 300),
            part("layer.v1.tar", 2, 4000),
        ];
        let text = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{one},{two}]}}"#);
        let Document::Manifest(manifest) = Document::parse(text.as_bytes()).unwrap() else {
            panic!("{text}");
        };
        let missing = || store.missing(&manifest, &Interrupt::default()).unwrap();
        assert_eq!(missing(), 0);
        fs::write(store.blob(&digests[2]), "damaged").unwrap();
        assert_eq!(missing(), 4000);
        assert!(!store.blob(&digests[2]).exists());
        assert_eq!(
            store.others(&[store.blob(&digests[0])]),
            [store.blob(&digests[1])]
        );
        assert_eq!(store.document(&manifest.config).unwrap(), b"{}");
        let error = store.watched("x", 1 << 60).err().unwrap().to_string();
        assert!(error.contains("no room to fetch x"), "{error}");
        assert!(spool.unused().is_empty());
        let blobs = store.blobs();
        drop(store);
        spool.remove_unused().unwrap();
        assert!(!blobs.exists() && !spool.has_layers());
        assert_eq!(fs::read_dir(spool.dir()).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_taken_for_the_layers() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("layers/image/photo");
        fs::create_dir_all(&theirs).unwrap();
        let error = Store::open(&Spool::at(dir.path())).err().unwrap();
        assert!(error.to_string().contains("not been made"), "{error}");
        assert!(theirs.exists());
    }
}
