//! The commands of the README and of the manual pages, so that what they tell people is what the tests do.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const README: &str = "README.md";
const PAGES: &str = "src/admin/pages";

/// What a block of commands begins with.
const BLOCK: &str = "```sh\n";
/// The same for one that can be run as it is on a host with two layers.
const RUNNABLE: &str = "```sh run\n";

/// The commands of the first block of the README below the line `heading` that shows a terminal, with what each prints.
pub fn shown(heading: &str) -> Result<Vec<(String, String)>> {
    let text = fs::read_to_string(in_tree(README)).context(README)?;
    let (_, below) = text
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("{README} has no {heading:?}"))?;
    let (_, block) = below
        .split_once("\n```\n# ")
        .with_context(|| format!("{heading:?} in {README} shows no terminal"))?;
    let block = block.split("\n```").next().unwrap_or_default();
    let commands = block.split("\n# ").map(|shown| {
        let (command, text) = shown.split_once('\n').unwrap_or((shown, ""));
        (command.to_owned(), text.to_owned())
    });
    Ok(commands.collect())
}

/// The commands of the first shell block of the README below the line `heading`, in order.
pub fn commands(heading: &str) -> Result<Vec<String>> {
    commands_below(README, heading)
}

/// The same of a page, such as `imgbased-helper-layout.8`.
pub fn commands_of_page(page: &str, heading: &str) -> Result<Vec<String>> {
    commands_below(&format!("{PAGES}/{page}.md"), heading)
}

/// The commands of all blocks of a page that can be run, for each page that has some.
pub fn examples() -> Result<Vec<(String, Vec<String>)>> {
    let mut found = Vec::new();
    for file in fs::read_dir(in_tree(PAGES)).context(PAGES)? {
        let path = file?.path();
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let blocks = text.split(RUNNABLE).skip(1);
        let commands: Vec<String> = blocks.flat_map(commands_of_block).collect();
        if !commands.is_empty() {
            found.push((path.display().to_string(), commands));
        }
    }
    found.sort();
    Ok(found)
}

fn commands_below(file: &str, heading: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(in_tree(file)).context(file.to_owned())?;
    let (_, below) = text
        .split_once(&format!("\n{heading}\n"))
        .with_context(|| format!("{file} has no {heading:?}"))?;
    let (_, block) = below
        .split_once(BLOCK)
        .with_context(|| format!("{heading:?} in {file} has no commands"))?;
    let commands = commands_of_block(block);
    ensure!(!commands.is_empty(), "{heading:?} in {file} is empty");
    Ok(commands)
}

/// The commands of a block that begins here, up to its end.
fn commands_of_block(text: &str) -> Vec<String> {
    let block = text.split("```").next().unwrap_or_default();
    block
        .replace("\\\n", "")
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(str::to_owned)
        .collect()
}

fn in_tree(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
