//! The manual pages: the text in `src/admin/pages`, a file a page, and what the command line that the program
//! itself parses says of each command. The page of imgbase is made of its help and its text.

pub mod command;
pub mod markdown;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap_complete::{Shell, generate_to};
use imgbased_helper::admin::cli::command;
use imgbased_helper::admin::imgbase;

const PROGRAM: &str = "imgbased-helper";
const DIR: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/pages");
const IMGBASE: &str = include_str!("../../../src/admin/imgbase/imgbase.md");

/// What completions are made for.
const SHELLS: [Shell; 3] = [Shell::Bash, Shell::Zsh, Shell::Fish];

pub struct Page {
    /// Of the file, such as `imgbased.7`.
    pub name: String,
    pub roff: String,
}

/// The text of a page: `# NAME - what it is`, then paragraphs, then sections.
pub struct Source {
    /// Such as `imgbased.7`.
    pub name: String,
    pub markdown: String,
}

/// The texts of all pages but imgbase(8), by name.
pub fn sources() -> Result<Vec<Source>> {
    let mut found = Vec::new();
    for file in fs::read_dir(DIR).context(DIR)? {
        let path = file?.path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.with_context(|| path.display().to_string())?.to_owned();
        let markdown = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        found.push(Source { name, markdown });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// All pages. Fails where a command has no text of its own.
pub fn all() -> Result<Vec<Page>> {
    let sources = sources()?;
    let mut program = command();
    program.build();
    for noun in command::nouns(&program) {
        let wanted = page_of(noun.get_name());
        let is_there = sources.iter().any(|source| source.name == wanted);
        ensure!(is_there, "there is no {DIR}/{wanted}.md; write it");
    }
    let mut pages = vec![page_of_imgbase()];
    for Source { name, markdown } in &sources {
        let (intro, sections) = match markdown.split_once("\n## ") {
            Some((intro, sections)) => (intro, format!("## {sections}")),
            None => (markdown.as_str(), String::new()),
        };
        let (title, intro) = intro.split_once('\n').unwrap_or((intro, ""));
        let noun = command::nouns(&program)
            .into_iter()
            .find(|noun| page_of(noun.get_name()) == *name);
        let (synopsis, options) = if let Some(noun) = noun {
            command::of_noun(noun)
        } else if *name == format!("{PROGRAM}.8") {
            command::of_program(&program)
        } else {
            (String::new(), String::new())
        };
        let roff = [
            head(name, title.trim_start_matches("# ")),
            synopsis,
            ".SH DESCRIPTION\n".to_owned(),
            markdown::roff(intro.trim()),
            options,
            markdown::roff(&sections),
        ];
        pages.push(Page {
            name: name.clone(),
            roff: roff.concat(),
        });
    }
    Ok(pages)
}

/// The file of a noun's page, without the ending of its text.
pub fn page_of(noun: &str) -> String {
    format!("{PROGRAM}-{noun}.8")
}

fn page_of_imgbase() -> Page {
    let (title, help) = imgbase::HELP.split_once('\n').unwrap_or_default();
    let help: String = help
        .lines()
        .map(|line| markdown::code(line) + "\n")
        .collect();
    let roff = [
        head("imgbase.8", title),
        format!(".SH SYNOPSIS\n.nf\n{help}.fi\n"),
        markdown::roff(&IMGBASE.replacen("# ", "## ", 1)),
        format!(
            ".SH SEE ALSO\n{}\n",
            markdown::inline("imgbased-helper(8), imgbased(7)")
        ),
    ];
    Page {
        name: "imgbase.8".into(),
        roff: roff.concat(),
    }
}

/// The begin of a page; `title` is its name and what it is.
fn head(name: &str, title: &str) -> String {
    let (name, section) = name.rsplit_once('.').unwrap_or((name, "8"));
    let version = env!("CARGO_PKG_VERSION");
    let title = match title.split_once(" - ") {
        Some((name, what)) => format!("{name} \\- {}", markdown::inline(what)),
        None => markdown::inline(title),
    };
    // Words that can be copied are not hyphenated.
    let ragged = ".nh\n.ad l\n";
    format!(".TH {name} {section} \"\" \"{PROGRAM} {version}\"\n{ragged}.SH NAME\n{title}\n")
}

/// Writes the completions for all shells; returns their files.
pub fn write_completions(dir: &Path) -> Result<Vec<PathBuf>> {
    let write = |shell| generate_to(shell, &mut command(), PROGRAM, dir);
    SHELLS
        .into_iter()
        .map(|shell| write(shell).map_err(Into::into))
        .collect()
}
