//! The commands of the README, so that what it tells people is what the tests do.

use anyhow::{Context, Result, ensure};

const README: &str = include_str!("../../README.md");

/// The commands of the first shell block below the line `heading`, in order.
pub fn commands(heading: &str) -> Result<Vec<String>> {
    let (_, below) = README
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("the README has no {heading:?}"))?;
    let block = below
        .split_once("```sh\n")
        .and_then(|(_, block)| block.split_once("```"))
        .with_context(|| format!("{heading:?} in the README has no commands"))?
        .0;
    let commands: Vec<String> = block
        .replace("\\\n", "")
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect();
    ensure!(!commands.is_empty(), "{heading:?} in the README is empty");
    Ok(commands)
}
