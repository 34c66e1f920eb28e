//! What is chosen at random: something else in each run, and the same again with the seed that a run prints.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use fastrand::Rng;

use crate::vm::say;

const VARIABLE: &str = "IMGBASED_SEED";

/// A generator for the choices of `what`, which do not depend on what else runs.
pub fn rng(what: &str) -> Rng {
    let of_name = what.bytes().fold(0_u64, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(u64::from(byte))
    });
    Rng::with_seed(of_run().wrapping_add(of_name))
}

fn of_run() -> u64 {
    static SEED: OnceLock<u64> = OnceLock::new();
    *SEED.get_or_init(|| {
        let given = std::env::var(VARIABLE).ok();
        let now = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default()
        };
        let seed = given.and_then(|seed| seed.parse().ok());
        let seed = seed.unwrap_or_else(|| now().as_secs());
        say(&format!(
            "the choices at random are those of {VARIABLE}={seed}"
        ));
        seed
    })
}
