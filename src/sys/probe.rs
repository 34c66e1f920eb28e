//! What a device or an image holds, as libblkid sees it.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::Path;

use anyhow::{Context, Result};
use blkid::prober::{ProbeState, Prober};

/// The signature found on a device or in an image.
#[derive(Debug, PartialEq, Eq)]
pub struct Signature {
    /// A filesystem type such as `ext4`, `LVM2_member`, or a partition table such as `gpt`.
    pub kind: String,
    /// The filesystem's UUID.
    pub uuid: Option<String>,
}

/// Reads the signature of a device or file; nothing if it carries none.
///
/// Refuses what cannot be read.
pub fn signature(path: &Path) -> Result<Option<Signature>> {
    let what = || format!("cannot probe {}", path.display());
    // libblkid's own errors for files that are missing do not say why.
    File::open(path).with_context(what)?;
    let prober = Prober::new_from_filename(path).with_context(what)?;
    prober.enable_partitions(true).with_context(what)?;
    match prober.do_safe_probe().with_context(what)? {
        ProbeState::Success => {
            let value = |name| prober.lookup_value(name).ok();
            let kind = value("TYPE").or_else(|| value("PTTYPE"));
            Ok(kind.map(|kind| Signature {
                kind,
                uuid: value("UUID"),
            }))
        }
        ProbeState::Ambivalent => Ok(Some(Signature {
            kind: "several signatures at once, which wipefs(8) lists".to_owned(),
            uuid: None,
        })),
        _ => Ok(None),
    }
}

/// The size of a file or block device in bytes. A block device has no length of its own, but an end.
pub fn size(mut file: &File) -> io::Result<u64> {
    file.seek(SeekFrom::End(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::cmd::Cmd;

    #[test]
    fn filesystems_are_recognised_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image.txt");
        std::fs::File::create(&image)
            .unwrap()
            .set_len(8 << 20)
            .unwrap();
        assert_eq!(signature(&image).unwrap(), None);
        Cmd::new("mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(&image)
            .run()
            .unwrap();
        assert_eq!(signature(&image).unwrap().unwrap().kind, "ext4");
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        let error = signature(Path::new("/nonexistent")).unwrap_err();
        assert!(format!("{error:#}").contains("No such file"), "{error:#}");
    }
}
