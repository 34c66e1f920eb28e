//! The passphrase of an encrypted group: from a file, from the answers, or from a person.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sys::cmd::Cmd;
use crate::sys::files::in_memory;
use crate::sys::rooted::descriptor;
use crate::sys::transaction::Transaction;

/// The longest one that cryptsetup(8) takes from a person, in bytes.
const MAX: usize = 512;

pub struct Passphrase(Vec<u8>);

impl Passphrase {
    /// In a dry run nobody needs it.
    pub fn unknown() -> Self {
        Self(Vec::new())
    }

    /// Refuses one that nobody could type.
    pub fn of(text: Vec<u8>) -> Result<Self> {
        ensure!(!text.is_empty(), "the passphrase is empty");
        ensure!(
            text.len() <= MAX && !text.iter().any(u8::is_ascii_control),
            "the passphrase has to be one line of {MAX} bytes at most, without control characters, as it is typed at each \
             start"
        );
        Ok(Self(text))
    }

    /// That in a file, or on standard input for `-`. The end of its line does not belong to it.
    pub fn read(path: &Path) -> Result<Self> {
        let mut text = Vec::new();
        let read = if path == Path::new("-") {
            io::stdin().lock().read_to_end(&mut text).map(drop)
        } else {
            fs::read(path).map(|content| text = content)
        };
        read.with_context(|| format!("cannot read the passphrase from {}", path.display()))?;
        // Also as an editor of another system ends it.
        for end in [b'\n', b'\r'] {
            text.pop_if(|last| *last == end);
        }
        Self::of(text)
    }

    /// Asks a person twice.
    pub fn ask() -> Result<Self> {
        ensure!(
            io::stdin().is_terminal(),
            "--encrypt needs a passphrase, and nobody can be asked, as standard input is no terminal; give \
             --passphrase-file"
        );
        let [first, second] = ["Passphrase for the disk:", "The same again:"].map(ask_once);
        let (first, second) = (first?, second?);
        if first != second {
            bail!("the two passphrases differ");
        }
        Self::of(first)
    }

    /// Runs cryptsetup(8) with it. A dry run shows the command without, which asks for it.
    pub fn cryptsetup(&self, tx: &mut Transaction, args: &[&str]) -> Result<()> {
        let cryptsetup = Cmd::new("cryptsetup").args(args);
        tx.work(&cryptsetup, |_| {
            // It is in no file of a disk, and on no command line.
            let file = in_memory(&self.0)?;
            let with_key = cryptsetup.clone().arg("--key-file").arg(descriptor(&file));
            with_key.uninterrupted().run().map(drop)
        })
    }
}

fn ask_once(question: &str) -> Result<Vec<u8>> {
    let ask = Cmd::new("systemd-ask-password").args(["--timeout=0", question]);
    let mut running = ask.start(Stdio::inherit(), Stdio::piped())?;
    let mut answer = Vec::new();
    if let Some(mut pipe) = running.stdout() {
        pipe.read_to_end(&mut answer)?;
    }
    running.wait()?;
    if answer.last() == Some(&b'\n') {
        answer.pop();
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_one_line_that_can_be_typed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let long = "x".repeat(MAX + 1);
        for (text, wanted) in [
            ("secret\n", Some("secret")),
            ("secret\r\n", Some("secret")),
            ("sec\rret", None),
            ("\x1bsecret", None),
            ("s\u{e9}cret", Some("s\u{e9}cret")),
            ("a b ", Some("a b ")),
            ("", None),
            ("\n", None),
            ("a\nb\n", None),
            ("a\0b", None),
            (long.as_str(), None),
        ] {
            fs::write(&path, text).unwrap();
            let read = Passphrase::read(&path).ok();
            let read = read.map(|found| String::from_utf8(found.0).unwrap());
            assert_eq!(read.as_deref(), wanted, "{text:?}");
        }
        assert!(Passphrase::read(&dir.path().join("none")).is_err());
    }
}
