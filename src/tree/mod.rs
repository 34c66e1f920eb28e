//! Trees of files that can come from anywhere: the one place that opens what is inside of them.
//!
//! A root is held open, and from there on each directory is opened by one name in the directory above, without
//! following a link or leaving the mount (openat2(2)). A path with links is resolved by [`Dir::resolve`] only,
//! which takes the root for `/`. What is neither a file nor a directory is looked at and never opened, and no
//! read is without a limit. Names are bytes.

mod ahead;
mod content;
mod dir;
mod layer;
mod listing;
mod name;
mod node;
mod pattern;
mod sync;
mod tar;
pub mod toc;
mod walk;
mod write;

pub use dir::Dir;
pub use layer::{REMOVALS_MOST, Removal, Survey, Unpacking, survey};
pub use listing::{Draft, Listing};
pub use name::escaped;
pub use node::{Id, Kind, Node, Stat, Time, Xattrs};
pub use pattern::Globs;
pub use sync::{Again, Source, Synced, sync, sync_again};
pub use tar::{Archive, Entry, What};
pub use walk::{Below, Place, Visit, walk};
pub use write::Meta;

/// The largest file that is read as a whole, in bytes.
pub const READ_MAX: u64 = 64 << 20;
