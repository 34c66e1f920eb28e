//! Where a layer has its table of contents: what the manifest of an image says of it.

use std::io::{Read, Seek};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::table::Limits;
use crate::sys::cmd::Cmd;
use crate::sys::files::in_memory;

/// What the annotations of a layer begin with, as it is written today, and as skopeo 1.9 of Debian 12 writes it.
const PREFIXES: [&str; 2] = ["io.github.containers", "io.containers"];
/// The kind of table that is known.
const KIND: u64 = 1;
/// The longest table, in bytes, compressed.
const PACKED_MOST: u64 = 32 << 20;

/// Where the table is, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub struct Position {
    pub from: u64,
    /// The first byte that is not of it.
    pub end: u64,
    /// How long it is, decompressed.
    pub length: u64,
    /// Of the compressed table.
    sha256: String,
}

impl Position {
    /// From the annotations of a layer of `size` bytes; nothing where it has no table. Refuses one that is not in the
    /// layer, or longer than any.
    pub fn find(annotation: &dyn Fn(&str) -> Option<String>, size: u64) -> Result<Option<Self>> {
        let found = PREFIXES.iter().find_map(|prefix| {
            let of = |what: &str| annotation(&format!("{prefix}.zstd-chunked.manifest-{what}"));
            of("position").map(|position| (position, of("checksum")))
        });
        let Some((position, checksum)) = found else {
            return Ok(None);
        };
        let checksum = checksum.context("its table has no digest")?;
        let numbers: Vec<u64> = position.split(':').map_while(|n| n.parse().ok()).collect();
        let [from, packed, length, kind] = numbers[..] else {
            anyhow::bail!("the place of its table is odd");
        };
        ensure!(
            kind == KIND,
            "its table is of the kind {kind}, which is not known"
        );
        let end = from.checked_add(packed).filter(|end| *end <= size);
        let is_right = packed > 0 && packed <= PACKED_MOST && length <= Limits::TEXT_MOST;
        Ok(Some(Self {
            from,
            end: end.filter(|_| is_right).context("its table is too long")?,
            length,
            sha256: checksum,
        }))
    }

    /// The text of the table, from the bytes at its place. Refuses others than the manifest means.
    pub fn text(&self, packed: &[u8]) -> Result<Vec<u8>> {
        let found = format!("sha256:{:x}", Sha256::digest(packed));
        ensure!(
            found == self.sha256,
            "its table has the digest {found}, and not that of the manifest"
        );
        let mut input = in_memory(packed)?;
        input.rewind()?;
        let mut running = Cmd::new("zstd")
            .arg("-dc")
            .start(input.into(), Stdio::piped())?;
        let output = running.stdout().context("zstd writes to a pipe")?;
        let mut text = Vec::new();
        output.take(self.length + 1).read_to_end(&mut text)?;
        ensure!(
            text.len() as u64 == self.length,
            "its table is not as long as the manifest says"
        );
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_a_table_is_in_the_annotations() {
        let of = |position: &str, prefix: &str, has_sum: bool| {
            let find = |key: &str| match key.strip_prefix(prefix)? {
                ".zstd-chunked.manifest-position" => Some(position.to_owned()),
                ".zstd-chunked.manifest-checksum" if has_sum => Some("sha256:aa".to_owned()),
                _ => None,
            };
            Position::find(&find, 1000)
        };
        for prefix in PREFIXES {
            let found = of("100:50:300:1", prefix, true).unwrap().unwrap();
            assert_eq!((found.from, found.end, found.length), (100, 150, 300));
            assert_eq!(found.sha256, "sha256:aa");
            assert!(of("100:50:300:1", prefix, false).is_err());
        }
        assert_eq!(of("100:50:300:1", "other", true).unwrap(), None);
        for position in [
            "",
            "100",
            "100:50:300",
            "100:50:300:1:5",
            "100:50:300:2",
            "951:50:300:1",
            "100:0:300:1",
            "-1:50:300:1",
            "18446744073709551615:50:300:1",
            "100:50:100663297:1",
            "a:b:c:d",
        ] {
            assert!(of(position, PREFIXES[0], true).is_err(), "{position}");
        }
        let large = Position::find(&|_| Some("0:40000000:1:1".to_owned()), u64::MAX);
        assert!(large.is_err());
    }

    #[test]
    fn only_the_table_that_the_manifest_means_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        std::fs::write(&path, "x".repeat(1000)).unwrap();
        Cmd::new("zstd").arg("-q").arg(&path).run().unwrap();
        let packed = std::fs::read(dir.path().join("table.zst")).unwrap();
        let position = |length: u64, packed: &[u8]| Position {
            from: 0,
            end: 10,
            length,
            sha256: format!("sha256:{:x}", Sha256::digest(packed)),
        };
        let text = position(1000, &packed).text(&packed).unwrap();
        assert_eq!(text, "x".repeat(1000).as_bytes());
        assert!(position(1000, b"other").text(&packed).is_err());
        // Also where it would become longer, without an end.
        assert!(position(999, &packed).text(&packed).is_err());
        assert!(position(1001, &packed).text(&packed).is_err());
        assert!(position(1000, b"no frame").text(b"no frame").is_err());
    }
}
