//! Signatures of minisign(1).

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail, ensure};
use minisign_verify::{Error, PublicKey, Signature};

use super::{Kind, Signer};

/// A public key.
pub struct Key {
    key: PublicKey,
    /// As minisign prints its id.
    id: String,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)
    }
}

impl Key {
    /// Reads a file as `minisign -G` writes it: a comment and the key.
    pub fn parse(content: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(content).ok().context("it is no text")?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let comment = lines.next().context("it is empty")?;
        ensure!(
            comment.starts_with("untrusted comment:"),
            "a comment has to come first"
        );
        let line = lines.next().context("the key is missing")?;
        ensure!(lines.next().is_none(), "there is more than one key in it");
        let key = PublicKey::from_base64(line).map_err(|error| anyhow!("{error}"))?;
        Ok(Self { key, id: id(line) })
    }
}

/// The id in a key: the third to tenth of its bytes, as a number. It is base64, as was seen when it was read.
fn id(line: &str) -> String {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextets = line.chars().take(16).filter_map(|c| DIGITS.find(c));
    let bits: String = sextets.map(|sextet| format!("{sextet:06b}")).collect();
    let byte = |at: usize| u8::from_str_radix(bits.get(8 * at..8 * at + 8)?, 2).ok();
    (2..10)
        .rev()
        .filter_map(byte)
        .map(|byte| format!("{byte:02X}"))
        .collect()
}

/// Says who has signed `data`.
pub fn verify(keys: &[(PathBuf, Key)], data: &[u8], signature: &[u8]) -> Result<Signer> {
    let text = std::str::from_utf8(signature).ok();
    let text = text.context("the signature is no text")?;
    let signature = Signature::decode(text)
        .map_err(|error| anyhow!("what should be a signature is none: {error}"))?;
    for (path, key) in keys {
        // Without the hash, as minisign has signed small files for long, it is no weaker.
        match key.key.verify(data, &signature, true) {
            Ok(()) => {
                return Ok(Signer {
                    kind: Kind::Minisign,
                    key: key.id.clone(),
                    signed: signed(signature.trusted_comment()),
                });
            }
            Err(Error::UnexpectedKeyId) => {}
            Err(error) => bail!(
                "the signature by the key of {} is not of this list: {error}",
                path.display()
            ),
        }
    }
    bail!("it is signed by a key that is not among those of this host")
}

/// The time that minisign(1) writes into a comment that is signed as well.
fn signed(comment: &str) -> Option<u64> {
    let mut fields = comment.split('\t');
    fields.find_map(|field| field.trim().strip_prefix("timestamp:")?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Those of the documentation of the crate.
    const KEY: &str = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3";
    const SIGNATURE: &str = "untrusted comment: signature from minisign secret key\n\
        RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n\
        trusted comment: timestamp:1633700835\tfile:test\tprehashed\n\
        wLMDjy9FLAuxZ3q4NlEvkgtyhrr0gtTu6KC4KBJdITbbOeAi1zBIYo0v4iTgt8jJpIidRJnp94ABQkJAgAooBQ==\n";
    const LEGACY: &str = "untrusted comment: signature from minisign secret key\n\
        RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n\
        trusted comment: timestamp:1555779966\tfile:test\n\
        QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n";

    fn keys(key: &str) -> Vec<(PathBuf, Key)> {
        let text = format!("untrusted comment: minisign public key\n{key}\n");
        vec![("keys.d/a.pub".into(), Key::parse(text.as_bytes()).unwrap())]
    }

    #[test]
    fn a_signature_counts_if_one_of_the_keys_has_made_it_of_this_list() {
        let changed = SIGNATURE.replace("file:test", "file:other");
        let other = KEY.replace("RWQf6", "RWQf7");
        for (key, data, signature, wanted) in [
            (KEY, "test", SIGNATURE, Ok(1_633_700_835)),
            (KEY, "test", LEGACY, Ok(1_555_779_966)),
            (KEY, "Test", SIGNATURE, Err("not of this list")),
            (KEY, "Test", LEGACY, Err("not of this list")),
            (KEY, "test", changed.as_str(), Err("not of this list")),
            (other.as_str(), "test", SIGNATURE, Err("not among those")),
            (KEY, "test", "x\n", Err("is none")),
            (KEY, "test", &SIGNATURE[..200], Err("is none")),
        ] {
            match (
                verify(&keys(key), data.as_bytes(), signature.as_bytes()),
                wanted,
            ) {
                (Ok(signer), Ok(time)) => {
                    assert_eq!(
                        (signer.key.as_str(), signer.signed),
                        ("E7620F1842B4E81F", Some(time))
                    );
                }
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (found, _) => panic!("{data} {signature}: {found:?}"),
            }
        }
        // The right one of several.
        let both = keys(&other)
            .into_iter()
            .chain(keys(KEY))
            .collect::<Vec<_>>();
        assert!(verify(&both, b"test", SIGNATURE.as_bytes()).is_ok());
    }

    #[test]
    fn a_file_that_is_no_public_key_is_refused() {
        let comment = "untrusted comment: minisign public key E7620F1842B4E81F";
        for (text, is_key) in [
            (format!("{comment}\n{KEY}\n"), true),
            (format!("{comment}\r\n{KEY}\r\n"), true),
            (String::new(), false),
            (format!("{KEY}\n"), false),
            (format!("{comment}\n"), false),
            (format!("{comment}\n{}\n", &KEY[1..]), false),
            (format!("{comment}\n{KEY}\n{KEY}\n"), false),
        ] {
            assert_eq!(Key::parse(text.as_bytes()).is_ok(), is_key, "{text}");
        }
        assert!(Key::parse(b"\xff").is_err());
    }
}
