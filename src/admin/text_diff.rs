//! How two texts differ, as diff(1) tells it for people.

use anyhow::Result;

use crate::sys::cmd::Cmd;
use crate::sys::files::in_memory;
use crate::sys::rooted::descriptor;

/// What diff(1) may take: it reads what can come from anywhere. In seconds and bytes.
const CPU: &str = "--cpu=30";
const MEMORY: &str = "--as=1073741824";

/// Refuses where diff(1) is not installed.
pub fn check_installed() -> Result<()> {
    Cmd::new("diff").check_installed()
}

/// The difference in the unified format, with these names; nothing if they are the same.
pub fn unified(from: &[u8], to: &[u8], names: [&str; 2]) -> Result<String> {
    if from == to {
        return Ok(String::new());
    }
    let files = [in_memory(from)?, in_memory(to)?];
    let cmd = Cmd::new("prlimit")
        .args([CPU, MEMORY, "diff", "-u", "--label", names[0]])
        .args(["--label", names[1], "--"])
        .args(files.each_ref().map(descriptor))
        .accept(&[0, 1]);
    Ok(shown(&cmd.run()?))
}

/// Whether a terminal shows a file as it is, at least in parts.
pub fn is_text(content: &[u8]) -> bool {
    !content.contains(&0) && std::str::from_utf8(content).is_ok()
}

/// A text without what makes a terminal do something.
fn shown(text: &str) -> String {
    let harmless = |c: char| {
        if c.is_control() && c != '\n' && c != '\t' {
            char::REPLACEMENT_CHARACTER
        } else {
            c
        }
    };
    text.chars().map(harmless).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_compared_and_nothing_reaches_a_terminal() {
        for (from, to, wanted) in [
            ("one\n", "one\n", ""),
            ("", "a\tb\n", "--- x\n+++ y\n@@ -0,0 +1 @@\n+a\tb\n"),
            (
                "one\n",
                "\u{1b}[2J",
                "--- x\n+++ y\n@@ -1 +1 @@\n-one\n+\u{fffd}[2J\n\\ No newline at end of file\n",
            ),
        ] {
            let found = unified(from.as_bytes(), to.as_bytes(), ["x", "y"]).unwrap();
            assert_eq!(found, wanted, "{from:?} {to:?}");
        }
        // A name is no option.
        let found = unified(b"a", b"b", ["--help", "-x"]).unwrap();
        assert!(found.starts_with("--- --help\n+++ -x\n"), "{found}");
    }

    #[test]
    fn what_has_zeros_or_is_no_utf_8_is_no_text() {
        for (content, wanted) in [
            (&b""[..], true),
            (b"one\n", true),
            ("\u{e4}\u{1b}".as_bytes(), true),
            (b"a\0b", false),
            (b"\xe4", false),
        ] {
            assert_eq!(is_text(content), wanted, "{content:?}");
        }
    }
}
