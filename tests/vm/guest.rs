//! What runs in a machine: the scripts in `tests/guest`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// The script `name`, for [`super::Vm::ok`] and its like. It leaves the directory, the variables and the
/// options of the machine's shell alone.
pub fn script(name: &str) -> Result<String> {
    script_with(name, &[])
}

/// The same with arguments, which are `$1`, `$2` and so on in it.
pub fn script_with(name: &str, arguments: &[&str]) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/guest")
        .join(name)
        .with_extension("sh");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let arguments = arguments
        .iter()
        .map(|argument| format!(" {}", quote(argument)));
    Ok(format!(
        "(set --{}\n{})",
        arguments.collect::<String>(),
        without_comments(&text)
    ))
}

/// One word for a shell.
pub fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// What is typed on a serial line is short: no comments and no empty lines.
fn without_comments(script: &str) -> String {
    let is_code = |line: &&str| !line.trim_start().starts_with('#') && !line.trim().is_empty();
    let lines = script.lines().filter(is_code);
    lines.map(|line| format!("{line}\n")).collect()
}
