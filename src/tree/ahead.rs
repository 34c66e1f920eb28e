//! Compares the files of two trees ahead of who makes them equal: both wait for disks most of the time, so each does its
//! work while the other one waits.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use anyhow::Result;

use super::dir::Dir;
use super::node::{Kind, Stat};
use super::walk::{Below, Visit, walk};
use crate::sys::interrupt::Interrupt;

/// A larger file is left to who needs it and shows how far that is, in bytes.
const SIZE_MAX: u64 = 16 << 20;
/// So many files are compared ahead.
const FILES: usize = 4096;

/// The files of both trees, in the order of a walk.
pub struct Ahead {
    found: Receiver<Compared>,
    next: Option<Compared>,
}

struct Compared {
    path: PathBuf,
    /// As they were when they were compared.
    files: [Stat; 2],
    is_same: bool,
}

impl Ahead {
    /// Begins to compare, in a thread that ends with this. Files that are `known` are passed over.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        roots: [&Dir; 2],
        known: &'scope BTreeSet<PathBuf>,
        interrupt: &'scope Interrupt,
    ) -> Result<Self> {
        let [from, to] = roots.map(Dir::again);
        let roots = [Some(from?), Some(to?)];
        let (sender, found) = sync_channel(FILES);
        scope.spawn(move || {
            let compared = walk(&roots, None, &mut |visit| {
                interrupt.check()?;
                compare(visit, known, &sender)
            });
            if let Err(error) = compared {
                log::debug!("what follows is not compared ahead: {error:#}");
            }
        });
        Ok(Self { found, next: None })
    }

    /// Whether both files at a path hold the same. Waits for those before to be compared; the paths that are asked for
    /// come in the order of a walk. Says no where that is not known, or either was changed since.
    pub fn has_same_content(&mut self, path: &Path, files: [&Stat; 2]) -> bool {
        if !is_compared(files) {
            return false;
        }
        loop {
            if self.next.is_none() {
                self.next = self.found.recv().ok();
            }
            let Some(next) = &self.next else {
                return false;
            };
            match next.path.as_path().cmp(path) {
                Ordering::Less => self.next = None,
                Ordering::Equal => return next.is_same && next.files.each_ref() == files,
                Ordering::Greater => return false,
            }
        }
    }
}

/// Leaves out files of several names: who makes the trees equal can write to one by its other name.
fn is_compared([a, b]: [&Stat; 2]) -> bool {
    let is_one = |stat: &Stat| stat.kind == Kind::File && stat.links == 1;
    is_one(a) && is_one(b) && a.size == b.size && a.size <= SIZE_MAX
}

fn compare(
    visit: &Visit,
    known: &BTreeSet<PathBuf>,
    sender: &SyncSender<Compared>,
) -> Result<Below> {
    let [Some(a), Some(b)] = visit.places else {
        return Ok(Below::Skip);
    };
    if a.stat.kind != b.stat.kind {
        return Ok(Below::Skip);
    }
    let files = [&a.stat, &b.stat];
    if !is_compared(files) || known.contains(visit.path) {
        return Ok(Below::Visit);
    }
    let (Some(node_a), Some(node_b)) = (a.node()?, b.node()?) else {
        return Ok(Below::Visit);
    };
    // What changes while it is read has another time afterwards, which who asks sees.
    let files = [node_a.stat, node_b.stat];
    let is_same = node_a.has_same_content(&node_b)?;
    let path = visit.path.to_owned();
    sender.send(Compared {
        path,
        files,
        is_same,
    })?;
    Ok(Below::Visit)
}
