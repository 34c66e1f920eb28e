//! Writes the manual pages and the shell completions into the directory that is named, from the
//! command line that the program itself parses.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::{Shell, generate_to};
use imgbased_helper::admin::cli::command;

fn main() -> Result<()> {
    let dir = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("usage: docs DIRECTORY")?,
    );
    std::fs::create_dir_all(&dir)?;
    clap_mangen::generate_to(command(), &dir)?;
    generate_to(Shell::Bash, &mut command(), "imgbased-helper", &dir)?;
    Ok(())
}
