//! The merge: what the old base, the layer that was made from it and a new base become together.
//!
//! The parts of a path are merged one by one: type with content, mode, owner by name, and each attribute. What the
//! layer has changed wins, what it has not changed is as in the new base, and what both have changed is
//! listed. No path keeps the others from being merged; only errors of a disk do. So /etc is merged, and outside of
//! it what is carried; what is neither is looked for, so that nothing is left behind unasked. What is changed until the
//! new layer boots is found by a record of what was merged, and merged once more.
//!
//! An old base that was adopted is no image, but the host as it was installed. What the layer still has of it counts as
//! added by the layer.

mod additions;
mod apply;
mod class;
mod conffiles;
mod decide;
pub mod dpkg;
mod lines;
mod outside;
mod owners;
mod pam;
mod plan;
mod reown;
mod shells;
mod users;
mod words;

pub use additions::{Additions, new_in_var};
pub use apply::{apply, copy, ids_between, owned, users_of};
pub use class::{Class, class};
pub use decide::{Clash, Decision, Listed, Outcome, Owner, Part, State, Whose, decide};
pub use lines::{Format, by_entry};
pub use outside::{Again, Amount, Changed, Left, Outside, Package, Record, Rules, Staged, Zones};
pub use pam::{Module, Modules};
pub use plan::{Action, Content, Item, Plan, Put, Verdict};
pub use reown::{reown, reown_but};
pub use shells::{Lost, Shells, replace_shells};
pub use users::{
    Ids, Merged, Moved, Name, SystemIds, UserFiles, entries, faults, merge_users, moved,
};

/// The sides of a merge, in this order everywhere.
pub const OLD: usize = 0;
pub const LAYER: usize = 1;
pub const NEW: usize = 2;
