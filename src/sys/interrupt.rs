//! Ends long work when a signal asks for it, or when what it needs is not there any more.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// How often a [`Watch`] looks, if that costs little; and the longest that it waits.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(2);
/// Its looks may take this part of the time.
const PART: u32 = 20;

/// Set when a signal asks the program to end.
#[derive(Clone, Default)]
pub struct Interrupt {
    is_set: Arc<AtomicBool>,
    watch: Arc<Mutex<Option<Watch>>>,
}

/// A look at something that can end the work as well.
pub struct Watch {
    check: Box<dyn FnMut() -> Result<()> + Send>,
    next: Instant,
    /// What it has found: that stays, as a signal does.
    found: Option<String>,
}

impl Watch {
    pub fn new(check: impl FnMut() -> Result<()> + Send + 'static) -> Self {
        Self {
            check: Box::new(check),
            next: Instant::now() + PAUSE,
            found: None,
        }
    }

    fn check(&mut self) -> Result<()> {
        let begun = Instant::now();
        if self.found.is_none() && begun >= self.next {
            self.found = (self.check)().err().map(|error| format!("{error:#}"));
            let pause = begun.elapsed() * PART;
            self.next = Instant::now() + pause.clamp(PAUSE, PAUSE_MOST);
        }
        self.found.clone().map_or(Ok(()), |found| bail!(found))
    }
}

impl Interrupt {
    /// Has the signals that end a program set it instead, so that what was done can be undone. System
    /// calls go on after such a signal: nothing may wait for a person from here on.
    pub fn by_signals() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.is_set))
                .context("cannot handle signals")?;
        }
        Ok(interrupt)
    }

    /// Fails when it is time to end.
    pub fn check(&self) -> Result<()> {
        if self.is_set.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.as_mut().map_or(Ok(()), Watch::check)
    }

    pub fn set(&self) {
        self.is_set.store(true, Ordering::Relaxed);
    }

    /// Has a watch look as well from here on, instead of the one that is returned.
    pub fn watch(&self, watch: Option<Watch>) -> Option<Watch> {
        let mut place = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut place, watch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_ends_the_work_and_looks_now_and_then_only() {
        let interrupt = Interrupt::default();
        let elsewhere = interrupt.clone();
        let before = interrupt.watch(Some(Watch::new(|| bail!("it is full"))));
        assert!(before.is_none());
        for _ in 0..1000 {
            elsewhere.check().unwrap();
        }
        std::thread::sleep(PAUSE);
        for _ in 0..2 {
            assert_eq!(elsewhere.check().unwrap_err().to_string(), "it is full");
        }
        interrupt.watch(before);
        elsewhere.check().unwrap();
        interrupt.set();
        assert_eq!(elsewhere.check().unwrap_err().to_string(), "interrupted");
    }
}
