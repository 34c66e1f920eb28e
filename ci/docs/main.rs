//! Writes the manual pages and the shell completions into the directory that is named.

mod pages;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

fn main() -> Result<()> {
    let dir = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("usage: docs DIRECTORY")?,
    );
    fs::create_dir_all(&dir)?;
    for page in pages::all()? {
        fs::write(dir.join(&page.name), page.roff)?;
    }
    pages::write_completions(&dir).map(drop)
}
