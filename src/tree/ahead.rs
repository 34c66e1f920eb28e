//! Compares the files of two trees, the second of which is a snapshot of a listed one: of that only what stat(2) tells is
//! read. This is done ahead of who makes the trees equal, by several threads: one goes through the trees, the others
//! compare what that finds.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use anyhow::Result;

use super::content;
use super::dir::Dir;
use super::listing::{Listing, sum_of};
use super::node::{Kind, Node, Stat};
use super::sync::Source;
use super::walk::{Below, Visit, in_order, walk};
use crate::sys::interrupt::Interrupt;

/// A larger file is left to who needs it and shows how far that is, in bytes.
const SIZE_MAX: u64 = 16 << 20;
/// So many threads compare, where there are as many processors.
const THREADS_MAX: usize = 4;
/// So many files are opened for each of them.
const WAITING: usize = 16;
/// So many that it has compared wait to be asked for.
const COMPARED: usize = 1024;

/// How much of two files is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Same {
    /// Nothing is known.
    No,
    Content,
    /// Also the owner, mode, attributes, times, and the flags of chattr(1).
    All,
}

/// Files that were compared, in the order of a walk.
pub struct Ahead {
    /// One of each thread. They take turns.
    found: Vec<Receiver<Compared>>,
    turn: usize,
    next: Option<Compared>,
}

struct Compared {
    path: PathBuf,
    /// As they were when they were compared.
    files: [Stat; 2],
    same: Same,
}

impl Ahead {
    /// Begins to compare, in threads that end with this. `listing` is that of the tree that `to` began as a snapshot of.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        source: &'scope Source<'scope>,
        to: &Dir,
        mut listing: Listing,
        interrupt: &'scope Interrupt,
    ) -> Result<Self> {
        let roots = [Some(source.root.again()?), Some(to.again()?)];
        let threads = thread::available_parallelism().map_or(1, |n| n.get().min(THREADS_MAX));
        let (mut senders, mut found) = (Vec::new(), Vec::new());
        for _ in 0..threads {
            let (sender, pairs) = sync_channel::<Pair>(WAITING);
            let (to, compared) = sync_channel(COMPARED);
            scope.spawn(move || compare(&pairs, &to, interrupt));
            senders.push(sender);
            found.push(compared);
        }
        scope.spawn(move || {
            let mut turns = senders.iter().cycle();
            let walked = walk(&roots, None, &mut |visit| {
                interrupt.check()?;
                if let Some(pair) = Pair::of(visit, &mut listing)?
                    && let Some(sender) = turns.next()
                {
                    sender.send(pair)?;
                }
                Ok(Below::Visit)
            });
            if let Err(error) = walked {
                log::debug!("what follows is not compared ahead: {error:#}");
            }
        });
        Ok(Self {
            found,
            turn: 0,
            next: None,
        })
    }

    /// What both files at a path have in common. Waits for those before to be compared; the paths that are asked for
    /// come in the order of a walk. Nothing is known where either was changed since.
    pub fn compared(&mut self, path: &Path, files: [&Stat; 2]) -> Same {
        if !can_be_compared(files) {
            return Same::No;
        }
        let (found, turn) = (&self.found, &mut self.turn);
        let take = || {
            let next = found[*turn].recv().ok();
            *turn = (*turn + 1) % found.len();
            Ok(next)
        };
        let found = in_order(&mut self.next, path, |next| &next.path, take);
        match found {
            Ok(Some(found)) if found.files.each_ref() == files => found.same,
            _ => Same::No,
        }
    }
}

/// Leaves out files of several names, of which who makes the trees equal has to know each.
fn can_be_compared([a, b]: [&Stat; 2]) -> bool {
    let is_one = |stat: &Stat| stat.kind == Kind::File && stat.links == 1;
    is_one(a) && is_one(b) && a.size == b.size && a.size <= SIZE_MAX
}

/// Two files that are compared.
struct Pair {
    path: PathBuf,
    from: Node,
    there: Stat,
    /// What the listing says of the second one.
    content: String,
    xattrs: Option<String>,
}

impl Pair {
    /// Nothing where nothing is known of the file, or it is gone meanwhile.
    fn of(visit: &Visit, listing: &mut Listing) -> Result<Option<Self>> {
        let [Some(from), Some(there)] = visit.places else {
            return Ok(None);
        };
        if !can_be_compared([&from.stat, &there.stat]) {
            return Ok(None);
        }
        let Some(listed) = listing.untouched(visit.path, &there.stat)? else {
            return Ok(None);
        };
        let Some(content) = listed.content.clone() else {
            return Ok(None);
        };
        let xattrs = listed.xattrs.clone();
        Ok(from.node()?.map(|from| Self {
            path: visit.path.to_owned(),
            from,
            there: there.stat,
            content,
            xattrs,
        }))
    }

    fn same(&self, block: &mut Vec<u8>, interrupt: &Interrupt) -> Result<Same> {
        let mut tell = |_| interrupt.check();
        if content::sum(&self.from.open()?, block, &mut tell)? != self.content {
            return Ok(Same::No);
        }
        let is_all =
            self.from.stat.is_like(&self.there) && sum_of(&self.from.xattrs()?) == self.xattrs;
        Ok(if is_all { Same::All } else { Same::Content })
    }
}

/// Compares what comes, until nothing does any more or nobody asks for it. Of what cannot be read nothing is known.
fn compare(pairs: &Receiver<Pair>, to: &SyncSender<Compared>, interrupt: &Interrupt) {
    let mut block = Vec::new();
    for pair in pairs {
        let same = pair.same(&mut block, interrupt);
        let same = same.unwrap_or_else(|error| {
            log::debug!("a file is not compared ahead: {error:#}");
            Same::No
        });
        // What changed while it was read has another time now, which who asks sees.
        let compared = Compared {
            path: pair.path,
            files: [pair.from.stat, pair.there],
            same,
        };
        if to.send(compared).is_err() {
            return;
        }
    }
}
