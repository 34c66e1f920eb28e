//! Small files: replaced as a whole, so that a boot loader never reads half of one.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::flush::flush;
use super::run;

/// What temporary files are called. A boot loader that lists the directory must not take one for an
/// entry, so they do not end in `.conf`.
const TEMPORARY: (&str, &str) = (".imgbased-", ".tmp");

/// Whether a file is a temporary one that an interrupted write has left.
pub fn is_temporary(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with(TEMPORARY.0) && name.ends_with(TEMPORARY.1)
}

/// Puts new content in the place of `path`: temporary file beside it, flush, rename, flush of the
/// directory. `mode` are its permission bits.
///
/// A boot loader replays no journal: it sees the name, the new file and the end of the old file change
/// one after the other, in any order. So the new file is in its place on the disk before its name is,
/// and the old one has a second name until then.
pub fn replace(
    path: &Path,
    mode: u32,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let dir = directory(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(TEMPORARY.0)
        .suffix(TEMPORARY.1)
        .tempfile_in(dir)?;
    fill(temporary.as_file_mut())?;
    let content = temporary.as_file();
    content.set_permissions(fs::Permissions::from_mode(mode))?;
    content.sync_all()?;
    if !path.exists() {
        temporary.persist(path)?;
        return File::open(dir)?.sync_all();
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let old = dir.join(format!("{}old-{name}{}", TEMPORARY.0, TEMPORARY.1));
    // Left by an earlier attempt. FAT has no second names, and no journal: what is open keeps its place on
    // the disk until it is closed.
    drop(fs::remove_file(&old));
    let _open = File::open(path)?;
    let is_kept = fs::hard_link(path, &old).is_ok();
    flush(dir).map_err(io::Error::other)?;
    temporary.persist(path)?;
    flush(dir).map_err(io::Error::other)?;
    if is_kept {
        fs::remove_file(&old)?;
    }
    Ok(())
}

/// The directory that a file is in.
pub fn directory(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Reads a file that need not exist.
pub fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    let mut content = Vec::new();
    match File::open(path).and_then(|mut file| file.read_to_end(&mut content)) {
        Ok(_) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// An empty file without a name, in memory as all of /run. It is gone when it is closed.
pub fn nameless() -> Result<File> {
    tempfile::tempfile_in(run::DIR).with_context(|| format!("cannot make a file in {}", run::DIR))
}

/// A file in memory, for a program to read by its descriptor: it has no name, and is gone when both have closed it.
pub fn in_memory(content: &[u8]) -> Result<File> {
    let file = memfd_create(c"file", MFdFlags::empty()).map(File::from);
    let mut file = file.context("cannot make a file in memory")?;
    file.write_all(content)
        .context("cannot write to a file in memory")?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry.conf");
        for (text, mode) in [("old", 0o644), ("new", 0o600)] {
            replace(&path, mode, |file| file.write_all(text.as_bytes())).unwrap();
            assert_eq!(read_if_there(&path).unwrap().unwrap(), text.as_bytes());
            let now = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(now & 0o777, mode);
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        let failed = replace(&path, 0o644, |_| Err(io::Error::other("no")));
        assert!(failed.is_err());
        assert_eq!(read_if_there(&path).unwrap().unwrap(), b"new");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_name_of_an_earlier_attempt_is_temporary() {
        for (name, wanted) in [
            (".imgbased-old-grubenv.tmp", true),
            (".imgbased-x1.tmp", true),
            ("imgbased-Base-0.conf", false),
            (".imgbased-x1.tmp.conf", false),
        ] {
            assert_eq!(
                is_temporary(&Path::new("/boot").join(name)),
                wanted,
                "{name}"
            );
        }
    }
}
