//! Paths that a person names to be kept, taken or carried, without looking at any of them.

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail, ensure};

/// A path from the root, without the slash there. Refuses one that is not absolute, or leads up.
pub fn from_root(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    ensure!(path.is_absolute(), "{shown} does not begin with a slash");
    let mut below = PathBuf::new();
    for component in path.components().skip(1) {
        match component {
            Component::Normal(name) => below.push(name),
            _ => bail!("{shown} has `..` in it"),
        }
    }
    ensure!(below.iter().next().is_some(), "{shown} is everything");
    Ok(below)
}

/// A path below /etc, from the root. Refuses any other one.
pub fn below_etc(path: &Path) -> Result<PathBuf> {
    let below = from_root(path)?;
    ensure!(
        below.starts_with("etc") && below.iter().nth(1).is_some(),
        "{} is not below /etc; the rest of a layer is not merged",
        path.display()
    );
    Ok(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_etc_is_merged() {
        for (path, wanted) in [
            ("/etc/issue", Ok("etc/issue")),
            ("//etc/./ssh/", Ok("etc/ssh")),
            ("/etc", Err("not below /etc")),
            ("/etcetera/x", Err("not below /etc")),
            ("/", Err("everything")),
            ("", Err("does not begin with a slash")),
            ("etc/issue", Err("does not begin with a slash")),
            ("/etc/../root/x", Err("has `..` in it")),
        ] {
            match (below_etc(Path::new(path)), wanted) {
                (Ok(found), Ok(wanted)) => assert_eq!(found, Path::new(wanted), "{path}"),
                (Err(error), Err(wanted)) => {
                    assert!(error.to_string().contains(wanted), "{path}: {error}");
                }
                (found, _) => panic!("{path}: {found:?}"),
            }
        }
    }
}
