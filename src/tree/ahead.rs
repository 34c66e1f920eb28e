//! Compares the files of two trees, the second of which is a snapshot of a listed one: of that only the times of its files
//! are read. This is done ahead of who makes the trees equal, so that each works while the other one waits for a disk.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Scope;

use anyhow::Result;

use super::content;
use super::dir::Dir;
use super::listing::Listing;
use super::node::{Kind, Stat};
use super::sync::Source;
use super::walk::{Below, Visit, in_order, walk};
use crate::sys::interrupt::Interrupt;

/// A larger file is left to who needs it and shows how far that is, in bytes.
const SIZE_MAX: u64 = 16 << 20;
/// So many files are compared ahead.
const FILES: usize = 4096;

/// Files that were compared, in the order of a walk.
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
    /// Begins to compare, in a thread that ends with this. `listing` is that of the tree that `to` began as a snapshot of.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        source: &'scope Source<'scope>,
        to: &Dir,
        listing: Listing,
        interrupt: &'scope Interrupt,
    ) -> Result<Self> {
        let roots = [Some(source.root.again()?), Some(to.again()?)];
        let (sender, found) = sync_channel(FILES);
        scope.spawn(move || {
            let mut comparison = Comparison {
                source,
                listing,
                interrupt,
                block: Vec::new(),
                sender,
            };
            let compared = walk(&roots, None, &mut |visit| comparison.visit(visit));
            if let Err(error) = compared {
                log::debug!("what follows is not compared ahead: {error:#}");
            }
        });
        Ok(Self { found, next: None })
    }

    /// Whether both files at a path hold the same. Waits for those before to be compared; the paths that are asked for
    /// come in the order of a walk. Says no where that is not known, or either was changed since.
    pub fn is_same(&mut self, path: &Path, files: [&Stat; 2]) -> bool {
        if !is_compared(files) {
            return false;
        }
        let take = || Ok(self.found.recv().ok());
        let found = in_order(&mut self.next, path, |next| &next.path, take);
        found.is_ok_and(|found| {
            found.is_some_and(|found| found.is_same && found.files.each_ref() == files)
        })
    }
}

/// Leaves out files of several names, of which who makes the trees equal has to know each.
fn is_compared([a, b]: [&Stat; 2]) -> bool {
    let is_one = |stat: &Stat| stat.kind == Kind::File && stat.links == 1;
    is_one(a) && is_one(b) && a.size == b.size && a.size <= SIZE_MAX
}

/// What the thread needs.
struct Comparison<'a> {
    source: &'a Source<'a>,
    listing: Listing,
    interrupt: &'a Interrupt,
    block: Vec<u8>,
    sender: SyncSender<Compared>,
}

impl Comparison<'_> {
    fn visit(&mut self, visit: &Visit) -> Result<Below> {
        self.interrupt.check()?;
        let [Some(from), Some(there)] = visit.places else {
            return Ok(Below::Skip);
        };
        if from.stat.kind != there.stat.kind {
            return Ok(Below::Skip);
        }
        let is_compared = is_compared([&from.stat, &there.stat]);
        if !is_compared || self.source.known.contains(visit.path) {
            return Ok(Below::Visit);
        }
        let listed = self.listing.untouched(visit.path, &there.stat)?;
        let listed = listed.and_then(|entry| entry.content.as_ref());
        // The file can be gone meanwhile.
        let (Some(listed), Some(node)) = (listed, from.node()?) else {
            return Ok(Below::Visit);
        };
        let mut tell = |_| self.interrupt.check();
        let sum = content::sum(&node.open()?, &mut self.block, &mut tell)?;
        // What changed while it was read has another time now, which who asks sees.
        self.sender.send(Compared {
            path: visit.path.to_owned(),
            files: [node.stat, there.stat],
            is_same: sum == *listed,
        })?;
        Ok(Below::Visit)
    }
}
