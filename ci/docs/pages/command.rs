//! What clap knows of the commands. A page has a noun with all its verbs, and each global option is told once.

use std::fmt::Write as _;

use clap::{Arg, Command};

use super::markdown::{code, inline, roff};

/// The nouns of a command line that was built.
pub fn nouns(program: &Command) -> Vec<&Command> {
    let nouns = program.get_subcommands();
    nouns.filter(|noun| noun.get_name() != "help").collect()
}

/// The noun itself, where it is a command, and its verbs.
pub fn verbs(noun: &Command) -> Vec<&Command> {
    let itself = (!noun.is_subcommand_required_set()).then_some(noun);
    let verbs = noun
        .get_subcommands()
        .filter(|verb| verb.get_name() != "help");
    itself.into_iter().chain(verbs).collect()
}

/// The synopsis of the program; its nouns and the global options.
pub fn of_program(program: &Command) -> (String, String) {
    let synopsis =
        ".SH SYNOPSIS\n.nf\n\\fBimgbased\\-helper\\fR [OPTIONS] NOUN [VERB] [ARGUMENTS]\n.fi\n";
    let mut text = ".SH COMMANDS\n".to_owned();
    for noun in nouns(program) {
        let page = format!("imgbased-helper-{}(8)", noun.get_name());
        let _ = writeln!(text, ".TP\n{}\n{}", code(&page), inline(&about(noun)));
    }
    text += ".SH GLOBAL OPTIONS\nAll commands accept them, before and after the verb.\n";
    for arg in program.get_arguments().filter(|arg| arg.is_global_set()) {
        text += &option(arg);
    }
    (synopsis.to_owned(), text)
}

/// The synopsis of a noun, and what each verb does and takes.
pub fn of_noun(noun: &Command) -> (String, String) {
    let mut synopsis = ".SH SYNOPSIS\n.nf\n".to_owned();
    let verbs = verbs(noun);
    for verb in &verbs {
        let _ = writeln!(synopsis, "\\fB{}\\fR", code(&usage(verb)));
    }
    synopsis += ".fi\n";
    let mut text = String::new();
    if verbs.len() > 1 {
        text += ".SH VERBS\n";
    }
    for verb in &verbs {
        if verbs.len() > 1 {
            let name = verb.get_bin_name().unwrap_or_default();
            let name = name.trim_start_matches("imgbased-helper ");
            let _ = writeln!(text, ".SS {}", code(name));
            text += &what_it_does(verb);
        } else {
            let _ = write!(text, ".PP\n{}.SH OPTIONS\n", what_it_does(verb));
        }
        text += &of_verb(verb);
    }
    (synopsis, text)
}

fn what_it_does(verb: &Command) -> String {
    let long = verb.get_long_about().or(verb.get_about());
    let long = long.map(ToString::to_string).unwrap_or_default();
    let paragraphs: Vec<String> = long.split("\n\n").map(sentence).collect();
    roff(&paragraphs.join("\n\n"))
}

/// What a verb takes.
fn of_verb(verb: &Command) -> String {
    let mut text = String::new();
    let aliases: Vec<String> = verb
        .get_visible_aliases()
        .map(|alias| format!("`{alias}`"))
        .collect();
    if !aliases.is_empty() {
        let _ = writeln!(
            text,
            "{}",
            inline(&format!("Also called {}.", aliases.join(", ")))
        );
    }
    let is_shown = |arg: &&Arg| !arg.is_hide_set() && !is_help(arg);
    let (global, own): (Vec<&Arg>, Vec<&Arg>) = verb
        .get_arguments()
        .filter(is_shown)
        .partition(|arg| arg.is_global_set());
    for arg in own {
        text += &option(arg);
    }
    let names: Vec<String> = global
        .iter()
        .filter_map(|arg| arg.get_long())
        .map(|long| format!("`--{long}`"))
        .collect();
    let of_all = format!(
        "Global options: {}; see imgbased-helper(8).",
        names.join(", ")
    );
    let _ = writeln!(text, ".PP\n{}", inline(&of_all));
    if let Some(status) = verb.get_after_help() {
        let _ = writeln!(text, ".PP\n{}", inline(&status.to_string()));
    }
    text
}

/// `imgbased-helper layer add [OPTIONS] [ORIGIN]`
fn usage(verb: &Command) -> String {
    let usage = verb.clone().render_usage().to_string();
    usage.trim_start_matches("Usage: ").replace('\n', " ")
}

fn about(command: &Command) -> String {
    let about = command.get_about().map(ToString::to_string);
    sentence(&about.unwrap_or_default())
}

/// clap leaves the end of a paragraph without its stop.
fn sentence(text: &str) -> String {
    if text.ends_with(['.', ':']) {
        return text.to_owned();
    }
    format!("{text}.")
}

fn is_help(arg: &Arg) -> bool {
    ["help", "version"].contains(&arg.get_id().as_str())
}

/// An option or an argument, and what it means.
fn option(arg: &Arg) -> String {
    let short = arg.get_short().map(|short| format!("-{short}"));
    let names = arg.get_visible_aliases().unwrap_or_default();
    let longs = arg.get_long().into_iter().chain(names);
    let mut tag: Vec<String> = short.into_iter().collect();
    tag.extend(longs.map(|long| format!("--{long}")));
    let mut tag = tag.join(", ");
    if arg.is_positional() || arg.get_action().takes_values() {
        let values: Vec<&str> = arg
            .get_value_names()
            .unwrap_or_default()
            .iter()
            .map(AsRef::as_ref)
            .collect();
        let space = if tag.is_empty() { "" } else { " " };
        tag = format!("{tag}{space}{}", values.join(" "));
    }
    let help = arg.get_long_help().or(arg.get_help());
    let help = help.map(ToString::to_string).unwrap_or_default();
    let mut text = format!(".TP\n\\fB{}\\fR\n", code(&tag));
    // A new paragraph would end the item.
    text += &roff(&sentence(&help)).replace(".PP\n", ".IP\n");
    let defaults = arg.get_default_values();
    if !defaults.is_empty() && !arg.is_hide_default_value_set() && arg.get_action().takes_values() {
        let defaults: Vec<String> = defaults
            .iter()
            .map(|value| value.to_string_lossy().into_owned())
            .collect();
        let _ = writeln!(
            text,
            "{}",
            inline(&format!("Default: {}.", defaults.join(", ")))
        );
    }
    text
}
