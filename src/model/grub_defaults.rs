//! The kernel options in /etc/default/grub, which grub-mkconfig(8) runs as a shell script. Here it is
//! only read: an assignment that a shell would have to evaluate is not understood.

use anyhow::{Result, bail, ensure};

/// In the order in which grub-mkconfig puts them together.
const VARIABLES: [&str; 2] = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"];

/// The options, empty if there are none. Refuses what is not understood.
pub fn options(text: &str) -> Result<String> {
    let mut options = String::new();
    for variable in VARIABLES {
        let assigned = text.lines().rev().find_map(|line| {
            let (name, value) = line.trim_start().split_once('=')?;
            (name.trim_end_matches('+') == variable).then_some((name, value))
        });
        if let Some((name, value)) = assigned {
            ensure!(name == variable, "{name}= is for a shell to evaluate");
            options += &self::value(value)?;
            options.push(' ');
        }
    }
    Ok(options.trim().to_owned())
}

/// The value of an assignment, from behind its `=` to the end of the line.
fn value(text: &str) -> Result<String> {
    let mut value = String::new();
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), _) if open == c => quote = None,
            (Some('\''), _) => value.push(c),
            (_, '$' | '`') => bail!("{text} is for a shell to evaluate"),
            (_, '\\') => match rest.next() {
                Some(next) if quote.is_none() || "$`\"\\".contains(next) => value.push(next),
                Some(next) => value.extend(['\\', next]),
                None => bail!("{text} goes on in the next line"),
            },
            (None, ';' | '&' | '|' | '<' | '>' | '(' | ')') => bail!("{text} is a command"),
            (None, _) if c.is_whitespace() => {
                let rest = rest.as_str().trim_start();
                ensure!(
                    rest.is_empty() || rest.starts_with('#'),
                    "{text} is a command"
                );
                break;
            }
            _ => value.push(c),
        }
    }
    ensure!(quote.is_none(), "{text} has an open quote");
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_a_shell_reads_them() {
        for (text, expected) in [
            ("", ""),
            ("# GRUB_CMDLINE_LINUX=x\nGRUB_TIMEOUT=5\n", ""),
            (
                "GRUB_CMDLINE_LINUX=\"\"\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"",
                "quiet",
            ),
            (
                "GRUB_CMDLINE_LINUX_DEFAULT='b c' # why\nGRUB_CMDLINE_LINUX=\"console=ttyS0,115200 a=\\\"x y\\\"\"\n",
                "console=ttyS0,115200 a=\"x y\" b c",
            ),
            (
                "GRUB_CMDLINE_LINUX=a\n GRUB_CMDLINE_LINUX=b'c'\"d\\e\"\\f",
                "bcd\\ef",
            ),
        ] {
            assert_eq!(options(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn nothing_is_evaluated() {
        for value in [
            "\"$OTHER x\"",
            "`id`",
            "\"$(id)\"",
            "a b",
            "a; reboot",
            "\"open",
            "'open",
            "a\\",
            "(a)",
        ] {
            let text = format!("GRUB_CMDLINE_LINUX={value}\n");
            assert!(options(&text).is_err(), "{value}");
        }
        assert!(options("GRUB_CMDLINE_LINUX=a\nGRUB_CMDLINE_LINUX+=b").is_err());
        assert_eq!(options("GRUB_CMDLINE_LINUX='$x'").unwrap(), "$x");
    }
}
