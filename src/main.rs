//! Dispatches to the half that is asked for.

use std::env;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use imgbased_helper::{admin::cli::Cli, early};

/// The name under which systemd runs the binary as a generator.
const GENERATOR: &str = "imgbased-generator";

fn main() -> ExitCode {
    let called_as = env::args_os().next().unwrap_or_default();
    let result = if Path::new(&called_as).file_name() == Some(GENERATOR.as_ref()) {
        generate()
    } else {
        Cli::parse().run()
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// systemd.generator(7): the arguments are three directories, the second comes before all units.
fn generate() -> Result<ExitCode> {
    let Some(early_dir) = env::args_os().nth(2) else {
        bail!("{GENERATOR} is run by systemd, with three directories");
    };
    early::generate(Path::new(&early_dir))?;
    Ok(ExitCode::SUCCESS)
}
