//! The scenarios in virtual machines, all in one program: `ci/test` says how to run some or all of them.
//! `tests/README.md` tells how to add one.

#[macro_use]
mod scenario;
#[allow(dead_code, reason = "the unit tests use the rest")]
#[path = "../schemas/mod.rs"]
mod schemas;
#[allow(
    dead_code,
    unused_imports,
    reason = "the demo and the benchmarks use the rest"
)]
#[path = "../vm/mod.rs"]
mod vm;

mod adoption;
mod boot;
mod claims;
mod delivery;
mod diff;
mod down;
mod dry_run;
mod early;
mod findings;
mod groups;
mod hooks;
mod image_check;
mod images;
mod imgbase;
mod install;
mod kernels;
mod loaders;
mod media;
mod next_start;
mod packages;
mod pages;
mod persist;
mod power_cut;
mod prepare;
mod refusals;
mod registry;
mod rollback;
mod sandbox;
mod seed;
mod storage;
mod told;
mod trials;
mod update;
mod volumes;

use std::process::ExitCode;

use scenario::{Scenario, Selection};

/// The first ones of the list begin first: what others wait for, then what takes long.
fn all() -> Vec<Scenario> {
    [
        prepare::SCENARIOS,
        adoption::SCENARIOS,
        images::SCENARIOS,
        image_check::SCENARIOS,
        early::SCENARIOS,
        loaders::SCENARIOS,
        next_start::SCENARIOS,
        boot::SCENARIOS,
        down::SCENARIOS,
        dry_run::SCENARIOS,
        findings::SCENARIOS,
        told::SCENARIOS,
        trials::SCENARIOS,
        rollback::SCENARIOS,
        storage::SCENARIOS,
        refusals::SCENARIOS,
        registry::SCENARIOS,
        power_cut::SCENARIOS,
        kernels::SCENARIOS,
        groups::SCENARIOS,
        sandbox::SCENARIOS,
        diff::SCENARIOS,
        update::SCENARIOS,
        delivery::SCENARIOS,
        hooks::SCENARIOS,
        packages::SCENARIOS,
        imgbase::SCENARIOS,
        install::SCENARIOS,
        media::SCENARIOS,
        persist::SCENARIOS,
        volumes::SCENARIOS,
        pages::SCENARIOS,
    ]
    .concat()
}

fn main() -> ExitCode {
    match Selection::of_arguments(std::env::args().skip(1)) {
        Ok(selection) => scenario::run(selection.of(all())),
        Err(error) => {
            vm::say(&format!("error: {error:#}"));
            ExitCode::from(2)
        }
    }
}
