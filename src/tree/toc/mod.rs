//! A tree by its table of contents, as a layer of a container image in the format zstd:chunked has one: what each
//! path is, and where in the layer the parts of each file are. By that only those parts have to be there that no
//! other tree has.
//!
//! The table comes from outside, so that nothing in it is believed that is not checked: see
//! containers-storage-zstd-chunked(5).

mod archive;
mod build;
mod merged;
mod plan;
mod position;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};

pub use archive::{Kept, Pieces, of_archive};
pub use build::{Build, Others, file_of, read_contents};
pub use merged::merged;
pub use plan::{From, Known, Plan, by_layer, places, sort_by_place};
pub use position::Position;
pub use table::{Limits, parse};

use super::node::{Kind, Time};
use super::write::Meta;

/// A path of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// From the root on, without a slash at its begin. That of the root is empty.
    pub path: PathBuf,
    pub what: What,
    pub meta: Meta,
    pub mtime: Time,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    Dir,
    File(Content),
    Link(OsString),
    /// Another name of the file at this path.
    HardLink(PathBuf),
    /// A pipe or a device, and which one.
    Special(Kind, u64),
}

/// What a file holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// In bytes.
    pub size: u64,
    /// As hexadecimal digits, like all digests here.
    pub sha256: String,
    /// One after the other, without gaps. None of a file that is empty.
    pub chunks: Vec<Chunk>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// In bytes, decompressed.
    pub size: u64,
    /// That of the file, where it is the only one.
    pub sha256: String,
    /// Where its frame is; nothing of one that is all zeros.
    pub place: Option<Place>,
}

/// A part of a layer, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Which one, counted from the lowest.
    pub layer: usize,
    pub from: u64,
    pub end: u64,
}

impl Content {
    fn has_holes(&self) -> bool {
        self.chunks.iter().any(|chunk| chunk.place.is_none())
    }
}

impl Entry {
    pub fn content(&self) -> Option<&Content> {
        match &self.what {
            What::File(content) => Some(content),
            _ => None,
        }
    }

    /// Refuses what no table has, wherever it comes from.
    fn check(&self) -> Result<()> {
        ensure!(
            self.what != What::Special(Kind::Char, 0),
            "it is the device 0:0, which overlayfs takes for a deleted file"
        );
        let is_root = self.path.as_os_str().is_empty();
        ensure!(
            !is_root || self.what == What::Dir,
            "the root is no directory"
        );
        Ok(())
    }
}

#[cfg(test)]
mod random;
#[cfg(test)]
mod tests;
