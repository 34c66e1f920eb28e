//! `gc`: old bases with their layers go.

use std::path::Path;

use anyhow::Result;

use super::Context;
use super::removal::{self, list};
use super::source;
use crate::delivery::conf::Conf;
use crate::model::name::LvName;
use crate::model::removal::Request;

/// So many bases stay where nobody says how many.
const KEPT: usize = 2;

/// How many of the latest bases stay: as a person says, or else imgbased.conf. Nothing is returned where neither does.
pub fn kept(said: Option<usize>) -> Result<Option<usize>> {
    match said {
        None => Ok(Conf::load(Path::new("/"))?.bases),
        said => Ok(said),
    }
}

/// Does what [`collect`] does, and removes what was fetched of images.
pub fn run(context: &Context, keep: Option<usize>, yes: bool) -> Result<()> {
    collect(context, keep, yes)?;
    source::clean(context)
}

/// Removes the oldest bases and their layers, having asked first if `yes` is not set. The latest
/// `keep` bases stay, and any with what has to stay.
pub fn collect(context: &Context, keep: Option<usize>, yes: bool) -> Result<()> {
    let keep = kept(keep)?.unwrap_or(KEPT);
    let question =
        |names: &[LvName]| (!names.is_empty()).then(|| format!("Remove {}?", list(names)));
    let question = (!yes).then_some(&question as &removal::Question);
    removal::remove(context, &Request::Garbage { keep }, question)
}
