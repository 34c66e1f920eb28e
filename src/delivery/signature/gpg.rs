//! `OpenPGP` signatures, checked by gpgv(1). What counts are its status lines (doc/DETAILS of `GnuPG`): its exit status
//! and what it says are those of a good signature also where the key has expired or was revoked.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use super::{Kind, Signer};
use crate::sys::cmd::Cmd;
use crate::sys::files::in_memory;
use crate::sys::interrupt::Interrupt;
use crate::sys::limited::{Limits, run_within};
use crate::sys::rooted::descriptor;

/// What gpgv may take, which reads what can come from anywhere.
const LIMITS: Limits = Limits {
    seconds: 60,
    memory: 512 << 20,
    file: 1 << 20,
};
/// Hash algorithms of which another file with the same hash can be made (RFC 9580, 9.5).
const WEAK: [&str; 3] = ["MD5", "SHA1", "RIPEMD160"];
const WEAK_NUMBERS: [&str; 3] = ["1", "2", "3"];

/// Refuses what gpgv(1) cannot use, or would take for no keys at all.
pub fn check_ring(content: &[u8]) -> Result<()> {
    let is_keybox = content.get(8..12) == Some(b"KBXf".as_slice());
    // A public key packet, with a header of the old or new form (RFC 9580, 4.2).
    let is_ring = content
        .first()
        .is_some_and(|tag| matches!(tag, 0x98..=0x9b | 0xc6));
    let is_whole = if is_keybox {
        parts_fit(content, blob)
    } else {
        parts_fit(content, packet)
    };
    let is_armoured = content.trim_ascii_start().starts_with(b"-----BEGIN PGP");
    ensure!(
        !is_armoured,
        "it is armoured, and gpgv(1) reads no such keyring; `gpg --dearmor` makes one that it reads"
    );
    ensure!(
        (is_keybox || is_ring) && is_whole,
        "it is no keyring of OpenPGP, or a damaged one"
    );
    Ok(())
}

/// Whether a file is a row of parts up to its end: gpgv(1) takes what there is of one that was cut off. `length` tells
/// that of the part at the beginning.
fn parts_fit(content: &[u8], length: fn(&[u8]) -> Option<usize>) -> bool {
    let mut rest = content;
    while !rest.is_empty() {
        let part = length(rest).filter(|length| *length > 0);
        let Some(after) = part.and_then(|length| rest.get(length..)) else {
            return false;
        };
        rest = after;
    }
    true
}

/// The length of a packet with its header (RFC 9580, 4.2). Those of keys have no parts of their own.
fn packet(bytes: &[u8]) -> Option<usize> {
    let tag = *bytes.first()?;
    let at = |at: usize| bytes.get(at).map(|byte| usize::from(*byte));
    let number = |from: usize, count: usize| {
        let bytes = bytes.get(from..from + count)?;
        Some(
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    };
    let (header, length) = match (tag & 0xc0, tag & 3) {
        (0x80, 0) => (2, number(1, 1)?),
        (0x80, 1) => (3, number(1, 2)?),
        (0x80, 2) => (5, number(1, 4)?),
        (0xc0, _) => match at(1)? {
            first @ 0..192 => (2, first),
            first @ 192..224 => (3, ((first - 192) << 8) + at(2)? + 192),
            255 => (6, number(2, 4)?),
            _ => return None,
        },
        _ => return None,
    };
    length.checked_add(header)
}

/// The length of a part of a keybox (kbx/keybox-blob.c of `GnuPG`).
fn blob(bytes: &[u8]) -> Option<usize> {
    let length = bytes.first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*length)).ok()
}

/// Says who has signed `data`.
pub fn verify(
    rings: &[PathBuf],
    data: &[u8],
    signature: &[u8],
    interrupt: &Interrupt,
) -> Result<Signer> {
    let status = in_memory(b"")?;
    let (data, signature) = (in_memory(data)?, in_memory(signature)?);
    // Its own configuration could have it take keys from elsewhere.
    let mut cmd = Cmd::new("gpgv")
        .args(["--homedir", "/nonexistent", "--status-fd"])
        .arg(status.as_raw_fd().to_string());
    for name in WEAK {
        cmd = cmd.args(["--weak-digest", name]);
    }
    for ring in rings {
        cmd = cmd.arg("--keyring").arg(ring);
    }
    let cmd = cmd
        .arg("--")
        .arg(descriptor(&signature))
        .arg(descriptor(&data));
    cmd.check_installed()?;
    let ran = run_within(&cmd, &LIMITS, interrupt);
    let ran = ran.inspect_err(|error| log::debug!("gpgv: {error:#}"));
    let signer = judge(&text(status)?)?;
    // One of the keyrings may be damaged, or it was ended.
    ran.context("gpgv has failed, though the signature is good")?;
    Ok(signer)
}

fn text(mut file: File) -> Result<String> {
    let mut text = Vec::new();
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .context("cannot read what gpgv says")?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// What the status lines come to: one signature or several, and each of them good, by a key that counts.
fn judge(status: &str) -> Result<Signer> {
    let lines = status
        .lines()
        .filter_map(|line| line.strip_prefix("[GNUPG:] "));
    let mut good: Vec<&str> = Vec::new();
    let mut signers: Vec<Signer> = Vec::new();
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        let (keyword, words) = (words.next().unwrap_or_default(), words.collect::<Vec<_>>());
        let key = words.first().copied().unwrap_or("a key");
        match keyword {
            "GOODSIG" => good.push(key),
            "VALIDSIG" => signers.push(valid(&words)?),
            "BADSIG" => bail!("the signature by {key} is not of this list"),
            "EXPSIG" => bail!("the signature by {key} has expired"),
            "EXPKEYSIG" => bail!("the key {key} has expired"),
            "REVKEYSIG" => bail!("the key {key} was revoked"),
            // No public key.
            "ERRSIG" if words.get(5) == Some(&"9") => {
                bail!("it is signed by {key}, which is not among the keys of this host")
            }
            "ERRSIG" => bail!("the signature by {key} cannot be checked, or is too weak"),
            "NODATA" => bail!("what should be a signature is none"),
            _ => {}
        }
    }
    ensure!(
        !good.is_empty() && good.len() == signers.len(),
        "gpgv does not find the signature good"
    );
    signers.into_iter().next().context("gpgv names no key")
}

/// The words of VALIDSIG: fingerprint, day, time, time of expiry, version, reserved, algorithm of the key, of the hash,
/// class, and the fingerprint of the primary key.
fn valid(words: &[&str]) -> Result<Signer> {
    let [key, _, signed, _, _, _, _, hash, class, ..] = words else {
        bail!("gpgv says what nobody knows of a signature");
    };
    ensure!(
        !WEAK_NUMBERS.contains(hash),
        "the signature by {key} has a hash that is too weak"
    );
    ensure!(
        ["00", "01"].contains(class),
        "the signature by {key} is not of a document"
    );
    Ok(Signer {
        kind: Kind::Gpg,
        key: words.get(9).unwrap_or(key).to_string(),
        signed: signed.parse().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[GNUPG:] GOODSIG 0011223344556677 A Name <a@example.org>";
    const VALID: &str = "[GNUPG:] VALIDSIG AAAA 2026-11-01 1793491200 0 4 0 22 10 00 BBBB";

    #[test]
    fn only_good_signatures_by_keys_that_count_are_taken() {
        let weak = VALID.replace(" 22 10 00", " 22 2 00");
        let of_key = VALID.replace(" 22 10 00", " 22 10 13");
        let bad = "[GNUPG:] BADSIG 0011223344556677 A Name";
        let unknown = "[GNUPG:] ERRSIG 0011223344556677 22 10 00 1793491200 9 AAAA";
        let odd = "[GNUPG:] ERRSIG 0011223344556677 1 2 00 1793491200 5 AAAA";
        for (lines, wanted) in [
            (&["[GNUPG:] NEWSIG", GOOD, VALID][..], Ok("BBBB")),
            (&[GOOD, VALID, GOOD, VALID], Ok("BBBB")),
            (&[], Err("does not find")),
            (&["gpgv: Good signature"], Err("does not find")),
            (&[GOOD], Err("does not find")),
            (&[VALID], Err("does not find")),
            (&[GOOD, VALID, GOOD], Err("does not find")),
            (&[GOOD, &weak], Err("too weak")),
            (&[GOOD, &of_key], Err("not of a document")),
            (&[GOOD, "[GNUPG:] VALIDSIG AAAA"], Err("nobody knows")),
            (&["[GNUPG:] EXPKEYSIG 00 A", VALID], Err("has expired")),
            (&["[GNUPG:] EXPSIG 00 A", VALID], Err("has expired")),
            (&["[GNUPG:] REVKEYSIG 00 A", VALID], Err("was revoked")),
            (&[bad], Err("not of this list")),
            (&[GOOD, VALID, bad], Err("not of this list")),
            (&[bad, GOOD, VALID], Err("not of this list")),
            (&[unknown], Err("not among the keys")),
            (&[GOOD, VALID, unknown], Err("not among the keys")),
            (&[odd], Err("cannot be checked")),
            (&["[GNUPG:] NODATA 4"], Err("is none")),
        ] {
            match (judge(&lines.join("\n")), wanted) {
                (Ok(signer), Ok(key)) => assert_eq!(signer.key, key),
                (Err(error), Err(why)) => {
                    assert!(error.to_string().contains(why), "{lines:?}: {error}");
                }
                (found, _) => panic!("{lines:?}: {found:?}"),
            }
        }
    }

    #[test]
    fn a_keyring_that_gpgv_cannot_use_is_refused() {
        for (content, is_ring) in [
            (&b"\x99\0\x01k"[..], true),
            (b"\x98\x01k\xb4\x02id", true),
            (b"\x9a\0\0\0\x01k", true),
            (b"\xc6\x01k\xcd\xff\0\0\0\x02id", true),
            (b"\0\0\0\x10\x01\x01\0\x02KBXfabcd", true),
            // Cut off, or more than whole.
            (b"\x98\x02k", false),
            (b"\x98\x01k\xb4", false),
            (b"\x98\x01kid", false),
            (b"\xc6\xe1k", false),
            (b"\x9a\xff\xff\xff\xffk", false),
            (b"\0\0\0\x11\x01\x01\0\x02KBXfabcd", false),
            (b"\0\0\0\x10\x01\x01\0\x02KBXfabcd\0", false),
            (b"\0\0\0\0\x01\x01\0\x02KBXfabcd", false),
            (b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n", false),
            (b"\n-----BEGIN PGP PUBLIC KEY BLOCK-----\n", false),
            (b"", false),
            (b"\0\0\0\0\0\0\0\0\0\0\0\0\0\0", false),
            (b"untrusted comment: x\n", false),
            // A secret key.
            (b"\x95\x01", false),
        ] {
            assert_eq!(check_ring(content).is_ok(), is_ring, "{content:?}");
        }
    }
}
