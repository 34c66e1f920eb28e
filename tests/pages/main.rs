//! Each command has a page with examples and completions, each message that a person can meet has an entry in the
//! troubleshooting, and what the pages name is there.
#![allow(clippy::unwrap_used)]

#[path = "../../ci/docs/pages/mod.rs"]
mod docs;
mod messages;

use std::fs;
use std::path::Path;

use imgbased_helper::admin::cli::command;

/// The text of a page.
fn source(name: &str) -> String {
    let sources = docs::sources().unwrap();
    let source = sources.into_iter().find(|source| source.name == name);
    source
        .unwrap_or_else(|| panic!("there is no {name}"))
        .markdown
}

#[test]
fn each_command_has_a_page_with_all_its_verbs_and_examples() {
    let mut program = command();
    program.build();
    let pages = docs::all().unwrap();
    for noun in docs::command::nouns(&program) {
        let name = docs::page_of(noun.get_name());
        let page = pages.iter().find(|page| page.name == name).unwrap();
        assert!(page.roff.contains("\n.SH EXAMPLES\n"), "{name}");
        for verb in docs::command::verbs(noun) {
            let path = verb.get_bin_name().unwrap();
            assert!(page.roff.contains(&docs::markdown::code(path)), "{path}");
        }
    }
}

#[test]
fn each_command_and_option_is_completed() {
    let dir = tempfile::tempdir().unwrap();
    let files = docs::write_completions(dir.path()).unwrap();
    assert_eq!(files.len(), 3);
    let mut program = command();
    program.build();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for noun in docs::command::nouns(&program) {
            for verb in docs::command::verbs(noun) {
                let longs = verb.get_arguments().filter(|arg| !arg.is_hide_set());
                let words = longs
                    .filter_map(|arg| arg.get_long())
                    .chain([noun.get_name(), verb.get_name()]);
                for word in words {
                    assert!(text.contains(word), "{}: {word}", file.display());
                }
            }
        }
    }
}

#[test]
fn pages_and_completions_are_in_the_package() {
    let manifest = include_str!("../../Cargo.toml");
    for page in docs::all().unwrap() {
        let (_, section) = page.name.rsplit_once('.').unwrap();
        let asset =
            format!("[\"target/docs/*.{section}\", \"usr/share/man/man{section}/\", \"644\"]");
        assert!(manifest.contains(&asset), "{}: {asset}", page.name);
    }
    let dir = tempfile::tempdir().unwrap();
    for file in docs::write_completions(dir.path()).unwrap() {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(
            manifest.contains(&format!("[\"target/docs/{name}\"")),
            "{name}"
        );
    }
}

#[test]
fn links_lead_to_pages() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pages = dir.join("src/admin/pages");
    let mut texts = vec![(dir.to_owned(), include_str!("../../README.md").to_owned())];
    let sources = docs::sources().unwrap();
    texts.extend(
        sources
            .into_iter()
            .map(|source| (pages.clone(), source.markdown)),
    );
    for (dir, text) in texts {
        for link in text.split("](").skip(1) {
            let to = link.split(')').next().unwrap();
            let to = to.split('#').next().unwrap();
            let is_there = to.is_empty() || to.starts_with("http") || dir.join(to).exists();
            assert!(is_there, "{}: {to}", dir.display());
        }
    }
}

/// A page of ours is named as `imgbased-helper-layer(8)`.
#[test]
fn pages_that_are_named_are_there() {
    let there: Vec<String> = docs::all()
        .unwrap()
        .into_iter()
        .map(|page| page.name)
        .collect();
    let mut texts: Vec<String> = docs::sources()
        .unwrap()
        .into_iter()
        .map(|page| page.markdown)
        .collect();
    texts.push(include_str!("../../README.md").to_owned());
    // Units name the pages that explain them.
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("dracut-module");
    for dir in [units.join("50imgbased"), units] {
        let files = fs::read_dir(dir).unwrap().map(|file| file.unwrap().path());
        texts.extend(files.filter_map(|file| fs::read_to_string(file).ok()));
    }
    for text in texts {
        for word in text.split(|c: char| !(c.is_ascii_alphanumeric() || "-.()".contains(c))) {
            let Some((name, section)) = word.split_once('(') else {
                continue;
            };
            if name.contains("imgbase") {
                let section = section.split(')').next().unwrap();
                let page = format!("{name}.{section}");
                assert!(there.contains(&page), "{page}");
            }
        }
    }
}

/// Lines that man(1) would take for a request that there is not, or show in another way than they were written.
#[test]
fn pages_are_made_of_requests_that_there_are() {
    const REQUESTS: [&str; 14] = [
        ".TH", ".SH", ".SS", ".TP", ".TQ", ".IP", ".PP", ".RS", ".RE", ".nf", ".fi", ".br", ".nh",
        ".ad",
    ];
    for page in docs::all().unwrap() {
        assert!(page.roff.starts_with(".TH "), "{}", page.name);
        for line in page
            .roff
            .lines()
            .filter(|line| line.starts_with(['.', '\'']))
        {
            let request = line.split(' ').next().unwrap();
            assert!(REQUESTS.contains(&request), "{}: {line}", page.name);
        }
        for line in page.roff.lines() {
            let is_odd = line.matches("\\fB").count() > line.matches("\\fR").count();
            assert!(!is_odd, "{}: {line}", page.name);
        }
    }
}

#[test]
fn markdown_becomes_what_man_shows() {
    for (markdown, roff) in [
        ("## What it is", ".SH WHAT IT IS\n"),
        ("### More", ".SS More\n"),
        (
            "- one\n  more\n- two",
            ".IP \\(bu 2\none more\n.IP \\(bu 2\ntwo\n",
        ),
        ("1. one", ".IP 1. 4\none\n"),
        (
            "Say `a -n 'b'`, *or* **not**.",
            "Say \\fBa \\-n \\(aqb\\(aq\\fR, \\fIor\\fR \\fBnot\\fR.\n",
        ),
        (
            "```sh\n.x ~\\\n```",
            ".PP\n.RS 4\n.nf\n\\&.x \\(ti\\e\n.fi\n.RE\n",
        ),
        (
            "[page(7)](page.7.md) [BLS](https://x.org/a_b)",
            "page(7) BLS (https:/\\:/\\:x.org/\\:a_b)\n",
        ),
        (
            "| key | meaning | default |\n| --- | --- | --- |\n| `a\\|b`<br>`c` | it is | 90 |\n| `d` | e | |",
            ".TP\n\\fBa|b\\fR\n.TQ\n\\fBc\\fR\nit is\n.br\ndefault: 90\n.TP\n\\fBd\\fR\ne\n",
        ),
    ] {
        assert_eq!(docs::markdown::roff(markdown), roff, "{markdown}");
    }
}
