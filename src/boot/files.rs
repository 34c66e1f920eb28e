//! The directory of a boot partition, and the files in it by the names that entries give them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::id;
use crate::sys::files::read_if_there;
use crate::sys::transaction::Transaction;

/// The directory of entries on the boot partition.
pub const ENTRIES: &str = "loader/entries";

/// The files of a boot partition.
#[derive(Clone)]
pub struct Files {
    dir: PathBuf,
}

impl Files {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file is that an entry names by its path on the partition.
    pub fn path_of(&self, path: &str) -> PathBuf {
        self.dir.join(path.trim_start_matches('/'))
    }

    /// Whether such a file is there, and holds something.
    pub fn has(&self, path: &str) -> bool {
        fs::metadata(self.path_of(path)).is_ok_and(|file| file.is_file() && file.len() > 0)
    }

    /// What is in a directory of the partition; empty if there is no such directory.
    pub fn list(&self, dir: &str) -> Result<Vec<PathBuf>> {
        let dir = self.dir.join(dir);
        let read = || format!("cannot read {}", dir.display());
        match fs::read_dir(&dir) {
            Ok(files) => files
                .map(|file| Ok(file.with_context(read)?.path()))
                .collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(read),
        }
    }

    /// The files of all entries: what boot loaders read of the directory. Whatever else somebody keeps there
    /// does not count.
    pub fn entries(&self) -> Result<Vec<PathBuf>> {
        let mut files = self.list(ENTRIES)?;
        files.retain(|path| id::of_file(path).is_some() && path.is_file());
        Ok(files)
    }

    /// The file of an entry, whether its tries are counted or not, else where it would be.
    pub fn entry_path(&self, id: &str) -> Result<PathBuf> {
        let uncounted = self.new_entry_path(id);
        if uncounted.is_file() {
            return Ok(uncounted);
        }
        let mut files = self.entries()?.into_iter();
        let found = files.find(|path| id::of_file(path) == Some(id));
        Ok(found.unwrap_or(uncounted))
    }

    /// Where an entry would be that has this name, without `.conf`.
    pub fn new_entry_path(&self, name: &str) -> PathBuf {
        self.dir.join(ENTRIES).join(format!("{name}.conf"))
    }

    /// The file of the entry with this id, and its text.
    pub fn entry_text(&self, id: &str) -> Result<Option<(PathBuf, String)>> {
        let path = self.entry_path(id)?;
        // An id can come from elsewhere, and lead out of the directory.
        if id::of_file(&path) != Some(id) {
            return Ok(None);
        }
        let text = read_if_there(&path)?;
        Ok(text.map(|text| (path, String::from_utf8_lossy(&text).into_owned())))
    }

    /// The id of an entry that is there, as systemd-boot compares ids.
    pub fn id_like(&self, wanted: &str) -> Result<Option<String>> {
        let files = self.entries()?;
        let mut ids = files.iter().filter_map(|path| id::of_file(path));
        let found = ids.find(|id| id.eq_ignore_ascii_case(wanted));
        Ok(found.map(str::to_owned))
    }

    /// Has everything that was written be where a boot loader finds it, which replays no journal.
    pub fn flush(&self, tx: &mut Transaction) -> Result<()> {
        tx.flush(&self.dir)
    }
}
