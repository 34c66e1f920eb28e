//! `gc`: old bases with their layers go.

use anyhow::Result;

use super::Context;
use super::removal::{self, list};
use super::source;
use crate::model::name::LvName;
use crate::model::removal::Request;

/// Removes the oldest bases and their layers, having asked first if `yes` is not set. The latest
/// `keep` bases stay, and any with what has to stay. What was fetched of images goes as well.
pub fn collect(context: &Context, keep: usize, yes: bool) -> Result<()> {
    let question =
        |names: &[LvName]| (!names.is_empty()).then(|| format!("Remove {}?", list(names)));
    let question = (!yes).then_some(&question as &removal::Question);
    removal::remove(context, &Request::Garbage { keep }, question)?;
    source::clean(context)
}
