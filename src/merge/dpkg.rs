//! Where a root has the records of dpkg(1).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

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

/// Whether a package has brought a file to a root. One of /usr can be listed without that, as where links lead there.
pub fn has_brought(root: &Dir, package: &str, file: &Path) -> io::Result<bool> {
    let Some(lists) = lists(root)? else {
        return Ok(false);
    };
    let below = file.strip_prefix("/usr").or(file.strip_prefix("/"));
    let below = below.unwrap_or(file);
    let files = [Path::new("/").join(below), Path::new("/usr").join(below)];
    let files = files.map(PathBuf::into_os_string);
    for name in lists.names()? {
        let of = name.to_str().and_then(|name| name.strip_suffix(".list"));
        if of.and_then(|of| of.split(':').next()) != Some(package) {
            continue;
        }
        let list = lists.node(&name)?;
        if list.stat.kind != Kind::File {
            continue;
        }
        let list = list.read(READ_MAX)?;
        let mut lines = list.split(|byte| *byte == b'\n');
        if lines.any(|line| files.iter().any(|file| file.as_bytes() == line)) {
            return Ok(true);
        }
    }
    Ok(false)
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

    #[test]
    fn a_package_has_brought_what_its_list_names() {
        let dir = tempfile::tempdir().unwrap();
        let info = dir.path().join("var/lib/dpkg/info");
        fs::create_dir_all(&info).unwrap();
        fs::write(info.join("zsh.list"), "/.\n/bin/zsh\n").unwrap();
        fs::write(info.join("ksh:amd64.list"), "/usr/bin/ksh\n").unwrap();
        let root = Dir::root(dir.path()).unwrap();
        for (package, file, wanted) in [
            ("zsh", "/bin/zsh", true),
            ("zsh", "/usr/bin/zsh", true),
            ("zsh", "/bin/ksh", false),
            ("ksh", "/bin/ksh", true),
            ("ksh:amd", "/bin/ksh", false),
            ("none", "/bin/ksh", false),
        ] {
            let found = has_brought(&root, package, Path::new(file)).unwrap();
            assert_eq!(found, wanted, "{package} {file}");
        }
    }
}
