//! The merge of /etc: what the old base, the layer that was made from it and a new base become together.
//!
//! The parts of a path are merged one by one: type with content, mode, owner by name, and each attribute. What the
//! layer has changed wins, what it has not changed is as in the new base, and what both have changed is
//! listed. No path keeps the others from being merged; only errors of a disk do.

mod apply;
mod class;
mod decide;
mod edits;
mod lines;
mod plan;
mod reown;
mod users;
mod words;

pub use apply::{apply, copy, ids_between, owned};
pub use class::{Class, class};
pub use decide::{Clash, Decision, Listed, Outcome, Owner, Part, State, Whose, decide};
pub use edits::{edited, listing};
pub use lines::{Format, by_entry};
pub use plan::{Action, Content, Item, Plan, Put, Verdict};
pub use reown::reown;
pub use users::{Ids, Merged, Name, SystemIds, UserFiles, faults, merge_users};

/// The sides of a merge, in this order everywhere.
pub const OLD: usize = 0;
pub const LAYER: usize = 1;
pub const NEW: usize = 2;
