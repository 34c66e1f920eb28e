//! Writes the manual pages and the shell completions into the directory that is named, from the
//! command line that the program itself parses, and the page of imgbase from its help and its text.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap_complete::{Shell, generate_to};
use imgbased_helper::admin::cli::command;
use imgbased_helper::admin::imgbase;

const IMGBASE: &str = include_str!("../src/admin/imgbase/imgbase.md");

fn main() -> Result<()> {
    let dir = PathBuf::from(
        std::env::args_os()
            .nth(1)
            .context("usage: docs DIRECTORY")?,
    );
    fs::create_dir_all(&dir)?;
    clap_mangen::generate_to(command(), &dir)?;
    generate_to(Shell::Bash, &mut command(), "imgbased-helper", &dir)?;
    fs::write(dir.join("imgbase.8"), page_of_imgbase())?;
    Ok(())
}

/// `imgbase(8)`.
fn page_of_imgbase() -> String {
    let mut lines = imgbase::HELP.lines();
    let name = lines.next().unwrap_or_default();
    let mut page = format!(
        ".TH imgbase 8 \"\" \"imgbased-helper {}\"\n.SH NAME\n{}\n.SH SYNOPSIS\n.nf\n",
        env!("CARGO_PKG_VERSION"),
        escaped(name)
    );
    for line in lines {
        page += &escaped(line);
        page.push('\n');
    }
    page + ".fi\n" + &roff(IMGBASE) + ".SH SEE ALSO\nimgbased\\-helper(1)\n"
}

/// A page in Markdown with headings, paragraphs, lists, tables and blocks of code, as man(7) has it.
fn roff(markdown: &str) -> String {
    let mut page = String::new();
    let mut is_code = false;
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        // The heads of tables.
        if lines.next_if(|next| next.starts_with("| ---")).is_some() {
            continue;
        }
        if line.starts_with("```") {
            is_code = !is_code;
            page += if is_code {
                ".PP\n.RS 4\n.nf\n"
            } else {
                ".fi\n.RE\n"
            };
        } else if is_code {
            let _ = writeln!(page, "{}", escaped(line));
        } else if let Some(heading) = line.strip_prefix("## ").or(line.strip_prefix("# ")) {
            let _ = writeln!(page, ".SH {}", escaped(&heading.to_uppercase()));
        } else if let Some(row) = line.strip_prefix("| ") {
            let mut cells = row.trim_end_matches(" |").split(" | ");
            let (first, rest) = (cells.next().unwrap_or_default(), cells.next());
            let rest = rest.unwrap_or_default();
            let _ = writeln!(page, ".TP\n{}\n{}", escaped(first), escaped(rest));
        } else if let Some(item) = line.strip_prefix("- ") {
            let _ = writeln!(page, ".IP \\(bu 2\n{}", escaped(item));
        } else if line.is_empty() {
            page += ".PP\n";
        } else {
            let _ = writeln!(page, "{}", escaped(line.trim_start()));
        }
    }
    page
}

/// A line of text that man(7) prints as it is.
fn escaped(line: &str) -> String {
    let text = line.replace('\\', "\\e").replace('-', "\\-");
    // At the beginning of a line these start a request.
    if text.starts_with(['.', '\'']) {
        return format!("\\&{text}");
    }
    text
}
