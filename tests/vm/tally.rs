//! How many machines the scenario of this thread has needed.

use std::cell::Cell;

thread_local! {
    static BOOTS: Cell<usize> = const { Cell::new(0) };
    static RESTORES: Cell<usize> = const { Cell::new(0) };
}

/// Counts the kernels that a machine has started.
pub fn booted(kernels: usize) {
    BOOTS.set(BOOTS.get() + kernels);
}

/// Counts a machine that goes on from a saved state.
pub fn restored() {
    RESTORES.set(RESTORES.get() + 1);
}

/// Returns the boots and restores since the last call.
pub fn take() -> (usize, usize) {
    (BOOTS.take(), RESTORES.take())
}
