//! Where a root has the records of dpkg(1).

use std::io;
use std::path::Path;

use crate::tree::{Dir, Kind, READ_MAX};

/// The directories that they can be in, the first one that is there. A volume for /var can hide the usual place.
const DIRS: [&str; 2] = ["usr/lib/sysimage/dpkg", "var/lib/dpkg"];

/// The paragraphs on all packages (deb822(5)); `None` where dpkg is not used. What is no file is not read.
pub fn status(root: &Dir) -> io::Result<Option<String>> {
    for dir in DIRS {
        let status = root.resolve(&Path::new(dir).join("status"))?;
        if let Some(status) = status.filter(|status| status.stat.kind == Kind::File) {
            let text = String::from_utf8(status.read(READ_MAX)?);
            let text =
                text.unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// The directory with a list of the files of each package.
pub fn lists(root: &Dir) -> io::Result<Option<Dir>> {
    for dir in DIRS {
        let lists = root.resolve_dir(&Path::new(dir).join("info"))?;
        if lists.is_some() {
            return Ok(lists);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn records_are_found_in_either_place_and_where_links_lead() {
        let dir = tempfile::tempdir().unwrap();
        let root = |name: &str| {
            let root = dir.path().join(name);
            fs::create_dir_all(root.join("var/lib")).unwrap();
            root
        };
        let found = |root: &Path| {
            let root = Dir::root(root).unwrap();
            (status(&root).unwrap(), lists(&root).unwrap().is_some())
        };
        let put = |dir: &Path| {
            fs::create_dir_all(dir.join("info")).unwrap();
            fs::write(dir.join("status"), "x").unwrap();
        };
        let there = (Some("x".to_owned()), true);
        let usual = root("usual");
        put(&usual.join("var/lib/dpkg"));
        assert_eq!(found(&usual), there);
        let linked = root("linked");
        put(&linked.join("usr/lib/sysimage/dpkg"));
        symlink("/usr/lib/sysimage/dpkg", linked.join("var/lib/dpkg")).unwrap();
        assert_eq!(found(&linked), there);
        // What is on a volume is not seen here.
        let hidden = root("hidden");
        put(&hidden.join("usr/lib/sysimage/dpkg"));
        assert_eq!(found(&hidden), there);
        // No device is read, and no directory.
        let device = root("device");
        fs::create_dir(device.join("var/lib/dpkg")).unwrap();
        symlink("/dev/zero", device.join("var/lib/dpkg/status")).unwrap();
        assert_eq!(found(&device), (None, false));
        assert_eq!(found(&root("other")), (None, false));
    }
}
