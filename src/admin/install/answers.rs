//! A file with answers, for an installation without a person: `KEY=VALUE` on each line, with the names of the options.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args as _, Command, FromArgMatches as _};

use super::Install;

/// Those that are said or not; the value is yes or no.
const FLAGS: [&str; 6] = [
    "allow-unsigned",
    "encrypt",
    "no-nvram",
    "secure-boot",
    "wipe",
    "yes",
];
/// The one that no command line has, as anybody can see that.
const PASSPHRASE: &str = "passphrase";
/// The one without a name there.
const IMAGE: &str = "image";
/// What would name another file, or is of the caller.
const NEVER: [&str; 3] = ["answers", "help", "progress-fd"];

/// What a file says, as a command line has it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    words: Vec<String>,
    passphrase: Option<String>,
}

/// Reads answers. Refuses what the command line would refuse.
pub fn read(path: &Path) -> Result<(Install, Option<String>)> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let Words { words, passphrase } = parse(&text).with_context(|| shown.to_string())?;
    let given = [OsString::from("--answers"), path.into()];
    let words = given
        .into_iter()
        .chain(words.into_iter().map(OsString::from));
    let command = Install::augment_args(Command::new("answers").no_binary_name(true));
    let matches = command.try_get_matches_from(words);
    let install = matches.and_then(|matches| Install::from_arg_matches(&matches));
    let install = install.map_err(|error| {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default();
        anyhow::anyhow!("{shown}: {}", first.trim_start_matches("error: "))
    })?;
    Ok((install, passphrase))
}

fn parse(text: &str) -> Result<Words> {
    let mut found = Words::default();
    let mut seen: Vec<&str> = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let at = || format!("line {}", at + 1);
        let (key, value) = line
            .split_once('=')
            .with_context(|| format!("{}: KEY=VALUE is needed", at()))?;
        let (key, value) = (key.trim(), value.trim());
        let is_name = key.starts_with(|c: char| c.is_ascii_lowercase())
            && key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-');
        ensure!(
            is_name && !NEVER.contains(&key),
            "{}: there is no key {key:?}; the keys are the long options of `install`, {IMAGE} and {PASSPHRASE}",
            at()
        );
        ensure!(!seen.contains(&key), "{}: {key} is there twice", at());
        seen.push(key);
        ensure!(!value.is_empty(), "{}: {key} has no value", at());
        match key {
            PASSPHRASE => found.passphrase = Some(value.to_owned()),
            IMAGE => found.words.extend(["--".to_owned(), value.to_owned()]),
            key if FLAGS.contains(&key) => match value {
                "yes" => found.words.insert(0, format!("--{key}")),
                "no" => {}
                _ => bail!("{}: {key} is yes or no", at()),
            },
            key => found.words.insert(0, format!("--{key}={value}")),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_line_is_an_option() {
        let text = "# a host\n\n image = /srv/my image \ndisk=/dev/vda\nencrypt=yes\nwipe=no\npassphrase= a=b c\n\
                    volumes=/var=8G,/home\n";
        let Words { words, passphrase } = parse(text).unwrap();
        assert_eq!(
            words,
            [
                "--volumes=/var=8G,/home",
                "--encrypt",
                "--disk=/dev/vda",
                "--",
                "/srv/my image"
            ]
        );
        assert_eq!(passphrase.as_deref(), Some("a=b c"));
        assert_eq!(parse("").unwrap(), Words::default());
    }

    #[test]
    fn what_says_nothing_is_refused_by_its_line() {
        for (text, message) in [
            ("disk", "line 1: KEY=VALUE is needed"),
            ("\n[Install]", "line 2: KEY=VALUE is needed"),
            ("disk=", "line 1: disk has no value"),
            ("encrypt=maybe", "line 1: encrypt is yes or no"),
            ("disk=a\ndisk=b", "line 2: disk is there twice"),
            ("answers=x", "line 1: there is no key \"answers\""),
            ("--disk=x", "line 1: there is no key \"--disk\""),
            ("a_b=x", "line 1: there is no key \"a_b\""),
            ("Disk=x", "line 1: there is no key \"Disk\""),
        ] {
            let error = parse(text).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn answers_are_read_as_the_command_line_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers");
        let told = |text: &str| {
            fs::write(&path, text).unwrap();
            read(&path)
        };
        let (install, passphrase) =
            told("image=/srv/x.img\nboot-size=512M\nloader=systemd-boot\n").unwrap();
        assert_eq!(install.image.as_deref(), Some(Path::new("/srv/x.img")));
        assert_eq!(install.boot_size, Some(512 << 20));
        assert_eq!(passphrase, None);
        for (text, message) in [
            ("loader=lilo", "expected grub or systemd-boot"),
            ("colour=red", "unexpected argument '--colour'"),
            ("boot-size=1X", "unknown unit"),
        ] {
            let error = format!("{:#}", told(text).map(|_| ()).unwrap_err());
            assert!(
                error.contains(message) && error.lines().count() == 1,
                "{error}"
            );
        }
    }
}
