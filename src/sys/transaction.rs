//! The one place that changes a host: runs commands, writes and removes files. A dry run prints each
//! change as a command for a shell instead.
//!
//! A verb runs as one transaction, or as several, one after the other, each of which is a unit of work that
//! stays done. [`Writer::transaction`] is the only place where one is committed: no part of a verb can
//! commit for its caller. The model:
//!
//! - **Undo.** A change that can be taken back leaves an undo step. Undo steps run last first, and no signal
//!   ends them. One that fails is tried once more after the others, then an error tells of it.
//! - **Scopes nest.** A scope that fails undoes what it did, and nothing else. A scope that succeeds
//!   hands its undo steps to the one around it. The outermost scope is the transaction.
//! - **Files** get their old content and mode back as carefully as they were written, and the filesystem is
//!   flushed after each, since GRUB replays no journal.
//! - **What cannot be taken back** is done last. Files that nothing needs any more are removed after the
//!   commit ([`Transaction::discard`]), by what is needed then. A command without an undo step, such as
//!   `lvremove`, is the last change of its unit.
//! - **The lock** is held from the first change that others see until the transaction has ended, undone or
//!   committed. Before that it may be released for long work ([`Transaction::unlocked`]). All that has to be
//!   undone by then are volumes that name this process as their maker, mounts that only this process has,
//!   and volumes that it has activated. All others leave such a volume alone while its maker lives, and
//!   lvm2 guards its metadata by itself. So that undo needs no lock.
//!
//! The order of a new layer is: volume (incomplete), kernels, flush, tags of the volume, entry, menu, flush,
//! default. An undo goes the same way back, and a removal too. So a kill at any step, also of an undo, leaves
//! an incomplete volume or a layer without an entry at most, and kernels that no entry names. `check
//! --repair` finishes or removes them.

use std::cell::RefCell;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::unistd::syncfs;

use super::action::Action;
use super::cmd::Cmd;
use super::files::{directory, read_if_there};
use super::interrupt::{Interrupt, Watch};
use super::lock::Lock;
use super::logger::STDOUT;
use super::progress::Waiting;
use super::steps::Steps;

/// A process that changes the host. What its transactions have in common: the lock, the steps, and the
/// signal that ends them.
pub struct Writer {
    /// For errors.
    verb: &'static str,
    /// How long to wait for each other holder of the lock.
    wait: Duration,
    dry_run: bool,
    interrupt: Interrupt,
    steps: Steps,
    lock: RefCell<Option<Lock>>,
}

impl Writer {
    /// From here on the signals that end a program make the next step fail, so that what was done is
    /// undone. A dry run has to undo what it has done to look.
    pub fn new(verb: &'static str, wait: Duration, dry_run: bool) -> Result<Self> {
        Ok(Self {
            verb,
            wait,
            dry_run,
            interrupt: Interrupt::by_signals()?,
            steps: Steps::from_environment(),
            lock: RefCell::default(),
        })
    }

    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Takes the lock of this host for as long as the writer lives, unless it has it. A dry run needs none.
    pub fn lock(&self) -> Result<()> {
        if self.dry_run || self.lock.borrow().is_some() {
            return self.retake();
        }
        *self.lock.borrow_mut() = Some(Lock::take(self.wait, &self.interrupt).context(self.verb)?);
        Ok(())
    }

    /// Does `work`, and commits what it did; undoes all of that if it fails.
    ///
    /// An error after the commit says so.
    pub fn transaction<T>(&self, work: impl FnOnce(&mut Transaction) -> Result<T>) -> Result<T> {
        // One that failed may have left it.
        self.retake()?;
        let mut tx = Transaction {
            writer: self,
            undo: Vec::new(),
            undo_steps: 0,
            discarded: Vec::new(),
            was_unlocked: false,
            unlocked: 0,
        };
        let done = tx.scope(work)?;
        tx.commit()
            .context("the change is made, but what nobody needs any more is still there")?;
        Ok(done)
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    fn release(&self) {
        if let Some(lock) = &mut *self.lock.borrow_mut() {
            lock.release();
        }
    }

    fn retake(&self) -> Result<()> {
        match &mut *self.lock.borrow_mut() {
            Some(lock) if !lock.is_held() => lock.retake(&self.interrupt).context(self.verb),
            _ => Ok(()),
        }
    }
}

/// The changes of one unit of work.
pub struct Transaction<'a> {
    writer: &'a Writer,
    /// In the order in which the changes were made, which is that of the numbers.
    undo: Vec<(u32, Undo)>,
    undo_steps: u32,
    discarded: Vec<Discarded>,
    was_unlocked: bool,
    /// How many calls of [`Transaction::unlocked`] go on, one in another.
    unlocked: u32,
}

/// Says which files to remove.
type Discarded = Box<dyn FnOnce() -> Result<Vec<PathBuf>>>;

enum Undo {
    Run(Cmd),
    /// Removes a file that was not there before.
    Remove(PathBuf),
    /// Gives a file its old content and permission bits.
    Restore(PathBuf, Vec<u8>, u32),
    Rename(PathBuf, PathBuf),
    Work(Box<dyn Fn() -> Result<()>>),
}

impl Undo {
    /// Whether it is so already, since the step failed before it had changed anything.
    fn is_needless(&self) -> bool {
        let is_there = |path: &Path| fs::symlink_metadata(path).is_ok();
        match self {
            Self::Run(_) | Self::Work(_) => false,
            Self::Remove(path) => !is_there(path),
            Self::Rename(_, to) => is_there(to),
            Self::Restore(path, content, mode) => {
                let is_same = |metadata: fs::Metadata| {
                    metadata.permissions().mode() & 0o7777 == *mode
                        && fs::read(path).is_ok_and(|found| found == *content)
                };
                fs::metadata(path).is_ok_and(is_same)
            }
        }
    }
}

/// Names an undo step, to run it early with [`Transaction::undo_now`].
pub struct UndoStep(u32);

impl Transaction<'_> {
    pub fn is_dry_run(&self) -> bool {
        self.writer.dry_run
    }

    pub fn interrupt(&self) -> &Interrupt {
        &self.writer.interrupt
    }

    /// Takes the lock, as [`Writer::lock`], where long work came before all changes.
    pub fn lock(&self) -> Result<()> {
        self.writer.lock()
    }

    /// Tells others that wait for the lock what takes long now, if something does. They go on waiting then.
    pub fn tell_waiting(&self, what: Option<&str>) {
        let told = match &*self.writer.lock.borrow() {
            Some(lock) => lock.tell(what),
            None => Ok(()),
        };
        if let Err(error) = told {
            log::debug!("others wait for the lock, and are not told: {error}");
        }
    }

    /// Lets others change the host while `work` goes on for minutes. What was read before has to be read
    /// again after it. `work` may change volumes that name this process as their maker, and nothing else.
    ///
    /// Once files were changed, which others read, the lock stays. After an error it is not taken
    /// again: what is left to undo needs none, and the next step takes it where the error does no harm.
    pub fn unlocked<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let is_private = |(_, undo): &(u32, Undo)| matches!(undo, Undo::Run(_));
        if self.undo.iter().all(is_private) {
            self.was_unlocked = true;
            self.writer.release();
        }
        self.unlocked += 1;
        let done = work(self);
        self.unlocked -= 1;
        if done.is_ok() {
            self.writer.retake()?;
        }
        done
    }

    /// Does a part of the work, and asks `check` now and then whether to go on: wherever an interrupt is looked for.
    pub fn watched<T>(
        &mut self,
        check: impl FnMut() -> Result<()> + Send + 'static,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<T> {
        let before = self.writer.interrupt.watch(Some(Watch::new(check)));
        let done = work(self);
        self.writer.interrupt.watch(before);
        done
    }

    /// Whether others may have changed what was read at the beginning.
    pub fn was_unlocked(&self) -> bool {
        self.was_unlocked
    }

    /// Does a part of the work, which undoes itself if it fails. If it succeeds, its undo steps are those
    /// of the scope around it.
    pub fn scope<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let (first, discarded) = (self.undo_steps, self.discarded.len());
        let done = work(self);
        if done.is_err() {
            self.discarded.truncate(discarded);
            self.undo_from(first);
        }
        done
    }

    /// Undoes the steps from the number `first` on.
    fn undo_from(&mut self, first: u32) {
        let at = self.undo.partition_point(|(number, _)| *number < first);
        let mut steps = self.undo.split_off(at);
        if self.writer.dry_run {
            return;
        }
        steps.reverse();
        steps.retain(|(_, undo)| {
            let undone = self.revert(undo);
            undone
                .inspect_err(|error| log::warn!("while undoing: {error:#}"))
                .is_err()
        });
        // What was in the way may be gone now.
        for (_, undo) in steps {
            if let Err(error) = self.revert(&undo) {
                log::error!("not undone: {error:#}");
            }
        }
    }

    /// From here on nothing is undone.
    fn commit(&mut self) -> Result<()> {
        self.undo.clear();
        let mut done = Ok(());
        for files in std::mem::take(&mut self.discarded) {
            let removed = files().and_then(|files| {
                // Another command may have done so, where nobody holds the lock.
                let is_there = |path: &&PathBuf| fs::symlink_metadata(path).is_ok();
                let mut files = files.iter().filter(is_there);
                files.try_for_each(|path| self.perform(&Action::Remove(path)))
            });
            done = done.and(removed);
        }
        done
    }

    /// Runs a command that changes something.
    pub fn run(&mut self, cmd: &Cmd) -> Result<()> {
        self.step(&Action::Run(cmd))
    }

    /// Runs two commands at once, neither of which needs what the other does.
    pub fn run_both(&mut self, one: &Cmd, other: &Cmd) -> Result<()> {
        self.begin()?;
        if self.writer.dry_run {
            return [one, other]
                .iter()
                .try_for_each(|cmd| show(&Action::Run(cmd)));
        }
        self.writer.steps.take(|| {
            let beside = one.start(Stdio::null(), Stdio::null())?;
            let result = other.run();
            let ended = beside.wait();
            result.and(ended).map(drop)
        })
    }

    /// Runs a command that changes nothing but this process' own mounts, also in a dry run.
    pub fn run_always(&mut self, cmd: &Cmd) -> Result<()> {
        if self.writer.dry_run {
            cmd.run()?;
        }
        self.run(cmd)
    }

    /// Does work of this program's own, which has to look at the interrupt now and then. A dry run
    /// shows `command`, which does the same.
    pub fn work(
        &mut self,
        command: &dyn fmt::Display,
        work: impl FnOnce(&Interrupt) -> Result<()>,
    ) -> Result<()> {
        self.begin()?;
        if self.writer.dry_run {
            return show(command);
        }
        log::debug!("+ {command}");
        let _waiting = Waiting::new(|| command.to_string());
        self.writer.steps.take(|| work(&self.writer.interrupt))
    }

    /// The same, and `undo` if the scope fails later. What fails itself takes back what it did.
    pub fn work_undoable(
        &mut self,
        command: &dyn fmt::Display,
        work: impl FnOnce(&Interrupt) -> Result<()>,
        undo: impl Fn() -> Result<()> + 'static,
    ) -> Result<()> {
        self.work(command, work)?;
        self.remember(Undo::Work(Box::new(undo)));
        Ok(())
    }

    /// Runs a command, and `undo` if the scope fails later.
    pub fn run_undoable(&mut self, cmd: &Cmd, undo: Cmd) -> Result<UndoStep> {
        self.run(cmd)?;
        Ok(self.on_failure(undo))
    }

    /// Has `undo` run if the scope fails from here on.
    pub fn on_failure(&mut self, undo: Cmd) -> UndoStep {
        self.remember(Undo::Run(undo.uninterrupted()))
    }

    /// Runs the undo of a step as a part of the verb, as unmounting what was mounted for a while.
    pub fn undo_now(&mut self, step: &UndoStep) -> Result<()> {
        let Some(at) = self.undo.iter().position(|(number, _)| *number == step.0) else {
            return Ok(());
        };
        let (number, undo) = self.undo.remove(at);
        let result = self.revert(&undo);
        if result.is_err() {
            self.undo.insert(at, (number, undo));
        }
        result
    }

    /// Writes a file as a whole: the new content is on disk before it takes the place of the old.
    /// `mode` are its permission bits.
    pub fn write(&mut self, path: &Path, content: &[u8], mode: u32) -> Result<()> {
        self.put(path, &Action::Write(path, content, mode, None))
    }

    /// Writes a file as a whole. A dry run shows `command`, which does the same.
    pub fn write_as(
        &mut self,
        path: &Path,
        content: &[u8],
        mode: u32,
        command: &Cmd,
    ) -> Result<()> {
        self.put(path, &Action::Write(path, content, mode, Some(command)))
    }

    fn put(&mut self, path: &Path, action: &Action) -> Result<()> {
        let old = self.old(path)?;
        let undo = old.unwrap_or_else(|| Undo::Remove(path.to_owned()));
        self.step_undoable(action, Some(undo))
    }

    /// What gives a file back what it holds now; `None` if it is not there.
    fn old(&self, path: &Path) -> Result<Option<Undo>> {
        if self.writer.dry_run {
            return Ok(None);
        }
        let Some(content) = read_if_there(path)? else {
            return Ok(None);
        };
        let metadata =
            fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
        let mode = metadata.permissions().mode() & 0o7777;
        Ok(Some(Undo::Restore(path.to_owned(), content, mode)))
    }

    /// Copies a file whose name says what it holds, with the same care as [`Transaction::write`]. One of
    /// that name was damaged: an undo leaves the new one in its place.
    pub fn copy(&mut self, from: &Path, to: &Path, mode: u32) -> Result<()> {
        let undo = (!to.exists()).then(|| Undo::Remove(to.to_owned()));
        self.step_undoable(&Action::Copy(from, to, mode), undo)
    }

    /// Creates a directory and those above it; nothing if it is there. It stays.
    pub fn create_dir(&mut self, path: &Path) -> Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        self.step(&Action::CreateDir(path))
    }

    /// Changes the content of a file in a volume that is still being made: owner, mode and
    /// attributes stay, and nobody sees it half-written. It is undone together with the volume.
    pub fn rewrite(&mut self, path: &Path, content: &[u8]) -> Result<()> {
        self.step(&Action::Rewrite(path, content))
    }

    pub fn rename(&mut self, from: &Path, to: &Path) -> Result<()> {
        let undo = Undo::Rename(to.to_owned(), from.to_owned());
        self.step_undoable(&Action::Rename(from, to), Some(undo))
    }

    /// Removes a small file.
    pub fn remove(&mut self, path: &Path) -> Result<()> {
        let old = self.old(path)?;
        self.step_undoable(&Action::Remove(path), old)
    }

    /// Removes files after the commit, since that is not undone. `files` says then which.
    pub fn discard(&mut self, files: impl FnOnce() -> Result<Vec<PathBuf>> + 'static) {
        self.discarded.push(Box::new(files));
    }

    /// Writes everything that the filesystem of `dir` has in memory to its disk, so that a boot
    /// loader, which replays no journal, finds it.
    pub fn flush(&mut self, dir: &Path) -> Result<()> {
        self.step(&Action::Flush(dir))
    }

    /// Writes everything to the disk, and fails if something could not be written since `opened` was: a file of the
    /// filesystem that is mounted at `dir`.
    pub fn flush_since(&mut self, dir: &Path, opened: Option<&File>) -> Result<()> {
        self.work(&Cmd::new("sync").arg("-f").arg(dir), |_| {
            let flushed = opened.map_or(Ok(()), syncfs);
            flushed.with_context(|| format!("cannot write to {}", dir.display()))
        })
    }

    /// Comes before each step.
    fn begin(&self) -> Result<()> {
        self.writer.interrupt.check()?;
        if self.unlocked == 0 {
            self.writer.retake()?;
        }
        Ok(())
    }

    fn step(&mut self, action: &Action) -> Result<()> {
        self.begin()?;
        self.perform(action)
    }

    /// A step that changes a file can fail when that is done, as when the disk does not take it: it is undone then as well.
    fn step_undoable(&mut self, action: &Action, undo: Option<Undo>) -> Result<()> {
        self.begin()?;
        if let Some(undo) = undo {
            self.remember(undo);
        }
        self.perform(action)
    }

    fn perform(&self, action: &Action) -> Result<()> {
        if self.writer.dry_run {
            return show(action);
        }
        self.writer.steps.take(|| action.perform())
    }

    /// Runs an undo step, whatever signals ask for.
    fn revert(&self, undo: &Undo) -> Result<()> {
        if undo.is_needless() {
            return Ok(());
        }
        let actions = match undo {
            Undo::Run(cmd) => return self.perform(&Action::Run(cmd)),
            Undo::Work(undo) => return self.writer.steps.take(undo),
            Undo::Remove(path) => [Action::Remove(path), Action::Flush(directory(path))],
            Undo::Restore(path, content, mode) => [
                Action::Write(path, content, *mode, None),
                Action::Flush(directory(path)),
            ],
            Undo::Rename(from, to) => [Action::Rename(from, to), Action::Flush(directory(to))],
        };
        self.writer
            .steps
            .take(|| actions.iter().try_for_each(Action::perform))
    }

    fn remember(&mut self, undo: Undo) -> UndoStep {
        let number = self.undo_steps;
        self.undo_steps += 1;
        self.undo.push((number, undo));
        UndoStep(number)
    }
}

/// How a shell writes a file, for [`Transaction::work`] that does so.
pub fn write_line(path: &Path, content: &[u8]) -> String {
    Action::Write(path, content, 0, None).to_string()
}

fn show(command: &dyn fmt::Display) -> Result<()> {
    writeln!(io::stdout().lock(), "{command}").context(STDOUT)
}

/// One transaction without the lock of the host.
#[cfg(test)]
pub fn change<T>(work: impl FnOnce(&mut Transaction) -> Result<T>) -> Result<T> {
    Writer::new("test", Duration::ZERO, false)?.transaction(work)
}

/// Begins such a transaction, and leaves it as it is before its step number `step`, as a power cut does.
/// Returns whether it came that far.
#[cfg(test)]
pub fn cut_before(step: u32, work: impl FnOnce(&mut Transaction) -> Result<()>) -> Result<bool> {
    let writer = Writer {
        steps: Steps::failing_at(step),
        ..Writer::new("test", Duration::ZERO, false)?
    };
    let mut tx = Transaction {
        writer: &writer,
        undo: Vec::new(),
        undo_steps: 0,
        discarded: Vec::new(),
        was_unlocked: false,
        unlocked: 0,
    };
    Ok(work(&mut tx).is_err())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
    use nix::sys::signal::{Signal, raise};
    use std::process::Command;
    use std::rc::Rc;
    use tempfile::TempDir;

    fn writer() -> Writer {
        Writer::new("test", Duration::ZERO, false).unwrap()
    }

    fn failing_at(step: u32) -> Writer {
        Writer {
            steps: Steps::failing_at(step),
            ..writer()
        }
    }

    fn names(dir: &TempDir) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Commands that each add a word to a file, and that file.
    struct Log(TempDir);

    impl Log {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn note(&self, text: &str) -> Cmd {
            let file = self.0.path().join("log");
            Cmd::new("sh").args(["-c", &format!("echo {text} >> {}", file.display())])
        }

        fn do_it(&self, tx: &mut Transaction, number: u32) -> Result<UndoStep> {
            tx.run_undoable(
                &self.note(&format!("do{number}")),
                self.note(&format!("undo{number}")),
            )
        }

        fn words(&self) -> String {
            let text = fs::read_to_string(self.0.path().join("log")).unwrap_or_default();
            text.split_whitespace().collect::<Vec<_>>().join(" ")
        }
    }

    #[test]
    fn a_scope_that_fails_undoes_what_it_did_and_nothing_else() {
        let log = Log::new();
        let done = writer().transaction(|tx| {
            log.do_it(tx, 1)?;
            let inner = tx.scope(|tx| {
                log.do_it(tx, 2)?;
                log.do_it(tx, 3)?;
                bail!("inside")
            });
            let inner: Result<()> = inner;
            assert_eq!(inner.unwrap_err().to_string(), "inside");
            log.do_it(tx, 4)
        });
        assert!(done.is_ok());
        assert_eq!(log.words(), "do1 do2 do3 undo3 undo2 do4");
    }

    #[test]
    fn a_scope_that_succeeds_is_undone_by_the_one_around_it() {
        let log = Log::new();
        let done: Result<()> = writer().transaction(|tx| {
            log.do_it(tx, 1)?;
            tx.scope(|tx| tx.scope(|tx| log.do_it(tx, 2)))?;
            log.do_it(tx, 3)?;
            bail!("outside")
        });
        assert_eq!(done.unwrap_err().to_string(), "outside");
        assert_eq!(log.words(), "do1 do2 do3 undo3 undo2 undo1");
    }

    #[test]
    fn a_transaction_leaves_the_one_before_it_alone() {
        let log = Log::new();
        let writer = writer();
        writer.transaction(|tx| log.do_it(tx, 1)).unwrap();
        let failed = writer.transaction(|tx| {
            log.do_it(tx, 2)?;
            tx.run(&Cmd::new("false"))
        });
        assert!(failed.is_err());
        assert_eq!(log.words(), "do1 do2 undo2");
    }

    #[test]
    fn work_of_this_program_is_undone_in_its_turn() {
        let log = Log::new();
        let words = Rc::new(RefCell::new(String::new()));
        let noted = Rc::clone(&words);
        let failed: Result<()> = writer().transaction(|tx| {
            log.do_it(tx, 1)?;
            let undo = move || {
                noted.borrow_mut().push_str("undone");
                Ok(())
            };
            tx.work_undoable(&"work", |_| Ok(()), undo)?;
            tx.work_undoable(&"work", |_| bail!("inside"), || bail!("never done"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "inside");
        assert_eq!(*words.borrow(), "undone");
        assert_eq!(log.words(), "do1 undo1");
    }

    #[test]
    fn a_step_undone_early_is_not_undone_again() {
        let log = Log::new();
        let failed: Result<()> = writer().transaction(|tx| {
            let first = log.do_it(tx, 1)?;
            log.do_it(tx, 2)?;
            let failed: Result<()> = tx.scope(|tx| {
                let third = log.do_it(tx, 3)?;
                // Of the scope around, and of this one.
                tx.undo_now(&first)?;
                log.do_it(tx, 4)?;
                tx.undo_now(&third)?;
                bail!("inside")
            });
            assert!(failed.is_err());
            assert_eq!(log.words(), "do1 do2 do3 undo1 do4 undo3 undo4");
            bail!("outside")
        });
        assert!(failed.is_err());
        assert_eq!(log.words(), "do1 do2 do3 undo1 do4 undo3 undo4 undo2");
    }

    #[test]
    fn any_step_can_fail() {
        for (step, words) in [
            (1, ""),
            (2, "do1 undo1"),
            (3, "do1 do2 undo2 undo1"),
            (4, "do1 do2 do3"),
        ] {
            let log = Log::new();
            let done = failing_at(step).transaction(|tx| {
                log.do_it(tx, 1)?;
                tx.scope(|tx| log.do_it(tx, 2))?;
                log.do_it(tx, 3)
            });
            assert_eq!(done.is_ok(), step == 4);
            assert_eq!(log.words(), words, "{step}");
        }
    }

    #[test]
    fn an_undo_that_failed_is_tried_again_after_the_others() {
        let log = Log::new();
        let failed: Result<()> = failing_at(3).transaction(|tx| {
            log.do_it(tx, 1)?;
            log.do_it(tx, 2)?;
            bail!("outside")
        });
        assert!(failed.is_err());
        assert_eq!(log.words(), "do1 do2 undo1 undo2");

        let log = Log::new();
        let failed: Result<()> = failing_at(2).transaction(|tx| {
            let step = log.do_it(tx, 1)?;
            tx.undo_now(&step)
        });
        assert!(failed.is_err());
        assert_eq!(log.words(), "do1 undo1");
    }

    #[test]
    fn files_get_back_what_they_held() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("replaced"), "old").unwrap();
        fs::set_permissions(path("replaced"), fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(path("removed"), "old").unwrap();
        fs::write(path("renamed"), "old").unwrap();
        fs::write(path("copied-over"), "damaged").unwrap();
        let change = |tx: &mut Transaction| {
            tx.write(&path("replaced"), b"new", 0o600)?;
            tx.write(&path("replaced"), b"newer", 0o600)?;
            tx.write(&path("new"), b"new", 0o600)?;
            tx.remove(&path("removed"))?;
            tx.rename(&path("renamed"), &path("other"))?;
            tx.copy(&path("replaced"), &path("copied"), 0o600)?;
            tx.copy(&path("replaced"), &path("copied-over"), 0o600)?;
            tx.flush(dir.path())
        };
        let failed: Result<()> = writer().transaction(|tx| {
            change(tx)?;
            assert_eq!(
                names(&dir),
                ["copied", "copied-over", "new", "other", "replaced"]
            );
            bail!("no")
        });
        assert!(failed.is_err());
        let are_as_before = |copied: &[u8], what: &str| {
            let there = ["copied-over", "removed", "renamed", "replaced"];
            assert_eq!(names(&dir), there, "{what}");
            for name in ["replaced", "removed", "renamed"] {
                assert_eq!(fs::read(path(name)).unwrap(), b"old", "{what}: {name}");
            }
            assert_eq!(fs::read(path("copied-over")).unwrap(), copied, "{what}");
            let mode = fs::metadata(path("replaced")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o640, "{what}");
        };
        are_as_before(b"newer", "all is undone");
        fs::write(path("copied-over"), "damaged").unwrap();
        // A step can fail when all that it does is done, as when its directory cannot be flushed.
        for step in 1..=8 {
            let copied: &[u8] = if step < 7 { b"damaged" } else { b"newer" };
            let steps = [
                (Steps::failing_at(step), step < 8),
                (Steps::failing_after(step), false),
            ];
            for (steps, is_before) in steps {
                let writer = Writer { steps, ..writer() };
                assert!(writer.transaction(change).is_err());
                let copied = if is_before { b"damaged" } else { copied };
                are_as_before(copied, &format!("step {step}"));
            }
        }

        writer().transaction(change).unwrap();
        assert_eq!(
            names(&dir),
            ["copied", "copied-over", "new", "other", "replaced"]
        );
    }

    #[test]
    fn what_is_discarded_goes_with_the_commit_and_is_chosen_then() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<PathBuf> = ["a", "b"].iter().map(|n| dir.path().join(n)).collect();
        for file in &files {
            fs::write(file, "").unwrap();
        }
        let needed = dir.path().join("a-needed");
        let discard = |tx: &mut Transaction| {
            let (files, needed) = (files.clone(), needed.clone());
            tx.discard(move || {
                let is_needed = needed.exists();
                Ok(files.into_iter().skip(usize::from(is_needed)).collect())
            });
        };
        writer()
            .transaction(|tx| {
                let failed: Result<()> = tx.scope(|tx| {
                    discard(tx);
                    bail!("no")
                });
                assert!(failed.is_err());
                Ok(())
            })
            .unwrap();
        assert_eq!(names(&dir), ["a", "b"]);
        writer()
            .transaction(|tx| {
                tx.discard(|| Ok(vec!["/nonexistent".into()]));
                discard(tx);
                assert_eq!(names(&dir), ["a", "b"]);
                tx.write(&needed, b"", 0o600)
            })
            .unwrap();
        assert_eq!(names(&dir), ["a", "a-needed"]);
        fs::write(&files[1], "").unwrap();
        let error = failing_at(1).transaction(|tx| {
            discard(tx);
            Ok(())
        });
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.starts_with("the change is made, but"), "{error}");
    }

    #[test]
    fn a_signal_fails_the_next_step_and_the_undo_goes_on() {
        let log = Log::new();
        let error = writer().transaction(|tx| {
            log.do_it(tx, 1)?;
            log.do_it(tx, 2)?;
            tx.interrupt().set();
            log.do_it(tx, 3)
        });
        let error = error.err().unwrap();
        assert_eq!(error.to_string(), "interrupted");
        assert_eq!(log.words(), "do1 do2 undo2 undo1");
    }

    /// The name of a test, which runs itself once more as the process that is killed.
    const KILLED: &str = "sys::transaction::tests::a_kill_number_can_fall_into_an_undo";

    #[test]
    fn a_kill_number_can_fall_into_an_undo() {
        if let Some(dir) = std::env::var_os("IMGBASED_TEST_DIR") {
            let note = |text: &str| {
                let file = Path::new(&dir).join("log");
                Cmd::new("sh").args(["-c", &format!("echo {text} >> {}", file.display())])
            };
            drop(writer().transaction(|tx| {
                tx.run_undoable(&note("do1"), note("undo1"))?;
                tx.scope(|tx| tx.run_undoable(&note("do2"), note("undo2")))?;
                tx.run(&note("do3"))
            }));
            return;
        }
        for (kill_after, fail_at, is_killed, words) in [
            (2, 9, true, "do1 do2"),
            (9, 9, false, "do1 do2 do3"),
            (9, 3, false, "do1 do2 undo2 undo1"),
            (4, 3, true, "do1 do2 undo2"),
            (5, 3, true, "do1 do2 undo2 undo1"),
        ] {
            let log = Log::new();
            let status = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", KILLED])
                .env("IMGBASED_TEST_DIR", log.0.path())
                .env("IMGBASED_KILL_AFTER", kill_after.to_string())
                .env("IMGBASED_FAIL_AT", fail_at.to_string())
                .output()
                .unwrap()
                .status;
            assert_eq!(status.code().is_none(), is_killed, "{kill_after} {fail_at}");
            assert_eq!(log.words(), words, "{kill_after} {fail_at}");
        }
    }

    #[test]
    fn the_lock_is_released_until_others_can_see_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let lock = || {
            Lock::take_in(
                &dir.path().join("run"),
                Duration::ZERO,
                &Interrupt::default(),
            )
        };
        let writer = writer();
        writer.lock.replace(Some(lock().unwrap()));
        let failed: Result<()> = writer.transaction(|tx| {
            tx.run_undoable(&Cmd::new("true"), Cmd::new("true"))?;
            assert!(lock().is_err());
            assert!(!tx.was_unlocked());
            assert!(tx.unlocked(|_| Ok(lock().is_ok()))?);
            assert!(tx.was_unlocked());
            assert!(lock().is_err());
            tx.write(&dir.path().join("entry"), b"", 0o600)?;
            assert!(tx.unlocked(|_| Ok(lock().is_err()))?);
            bail!("no")
        });
        assert_eq!(failed.unwrap_err().to_string(), "no");
        // Work that fails where that does no harm leaves it to nobody else.
        let harmless = writer.transaction(|tx| {
            let failed: Result<()> = tx.unlocked(|_| bail!("no harm"));
            assert!(failed.is_err() && lock().is_ok());
            tx.write(&dir.path().join("entry"), b"", 0o600)?;
            Ok(lock().is_err())
        });
        assert!(harmless.unwrap());
        // It is held between two units of work, and taken again after one that failed without it.
        assert!(lock().is_err());
        let failed: Result<()> = writer.transaction(|tx| tx.unlocked(|_| bail!("no")));
        assert!(failed.is_err() && lock().is_ok());
        assert!(writer.transaction(|_| Ok(lock().is_err())).unwrap());
        // Another has it when it is wanted again.
        let error = writer
            .transaction(|tx| tx.unlocked(|_| lock()))
            .err()
            .unwrap();
        let error = format!("{error:#}");
        assert!(
            error.contains("test: another change is being made"),
            "{error}"
        );
        drop(writer);
        assert!(lock().is_ok());
    }

    /// The name of a test, which runs itself once more as the process that is interrupted.
    const INTERRUPTED: &str =
        "sys::transaction::tests::a_signal_ends_a_dry_run_with_what_it_looks_at";

    #[test]
    fn a_signal_ends_a_dry_run_with_what_it_looks_at() {
        struct Look(PathBuf);
        impl Drop for Look {
            fn drop(&mut self) {
                fs::write(&self.0, "").unwrap();
            }
        }
        if let Some(dir) = std::env::var_os("IMGBASED_TEST_DIR") {
            let dry_run = Writer::new("test", Duration::ZERO, true).unwrap();
            let error = dry_run.transaction(|tx| {
                let _look = Look(Path::new(&dir).join("undone"));
                raise(Signal::SIGINT)?;
                tx.run(&Cmd::new("true"))
            });
            assert_eq!(error.unwrap_err().to_string(), "interrupted");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let again = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", INTERRUPTED])
            .env("IMGBASED_TEST_DIR", dir.path())
            .output()
            .unwrap();
        assert!(again.status.success(), "{again:?}");
        assert_eq!(names(&dir), ["undone"]);
    }

    #[test]
    fn a_dry_run_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let dry_run = Writer::new("test", Duration::ZERO, true).unwrap();
        let failed: Result<()> = dry_run.transaction(|tx| {
            tx.write(&path, b"x", 0o644)?;
            tx.create_dir(&dir.path().join("sub"))?;
            let touch = Cmd::new("touch").arg(&path);
            let step = tx.run_undoable(&touch, Cmd::new("rm").arg(&path))?;
            tx.undo_now(&step)?;
            tx.run_undoable(&touch, touch.clone())?;
            bail!("no")
        });
        assert!(failed.is_err());
        let kept = dir.path().join("kept");
        fs::write(&kept, "").unwrap();
        dry_run
            .transaction(|tx| {
                tx.remove(&kept)?;
                let kept = kept.clone();
                tx.discard(move || Ok(vec![kept]));
                Ok(())
            })
            .unwrap();
        assert_eq!(names(&dir), ["kept"]);
    }
}
