//! Ends long work when a signal asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Set when a signal asks the program to end.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Has the signals that end a program set it instead, so that what was done can be undone. System
    /// calls go on after such a signal: nothing may wait for a person from here on.
    pub fn by_signals() -> Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&interrupt.0))
                .context("cannot handle signals")?;
        }
        Ok(interrupt)
    }

    /// Fails when it is time to end.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) {
            bail!("interrupted");
        }
        Ok(())
    }

    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
