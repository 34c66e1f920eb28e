//! The tree that several layers make, one upon the other.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::table::{Whiteout, whiteout};
use super::{Entry, What};
use crate::tree::name::escaped;

/// Each path, with a number that no other entry has.
type Paths = BTreeMap<PathBuf, (usize, Entry)>;

/// The paths of all layers, from the lowest to the highest, in the order in which they can be made: each after the
/// directory that it is in. In each layer they come in its order.
///
/// Refuses what would depend on how somebody unpacks it: paths below something that is no directory or not there yet, what
/// is gone below a link, and names of what is no file yet, or is another one in the end.
pub fn merged(layers: Vec<Vec<Entry>>) -> Result<Vec<Entry>> {
    let mut tree = Paths::new();
    // By the numbers of the entries: of each further name, the number of the file that it was given to.
    let mut named: Vec<Option<usize>> = Vec::new();
    for entries in layers {
        // What a layer takes away is of those below it, whatever its order.
        let mut put = Vec::new();
        for entry in entries {
            match whiteout(&entry)? {
                Some(Whiteout::Of(path)) => {
                    check_above(&tree, &path)?;
                    remove_below(&mut tree, &path);
                    tree.remove(&path);
                }
                Some(Whiteout::Below(path)) => {
                    check_above(&tree, &path)?;
                    remove_below(&mut tree, &path);
                }
                None => put.push(entry),
            }
        }
        for entry in put {
            let shown = || escaped(&entry.path);
            ensure!(
                is_in_dir(&tree, &entry.path),
                "{} is in no directory",
                shown()
            );
            let mut file = None;
            if let What::HardLink(target) = &entry.what {
                file = file_at(&tree, target);
                ensure!(file.is_some(), "{} is another name of no file", shown());
            }
            if entry.what != What::Dir {
                remove_below(&mut tree, &entry.path);
            }
            tree.insert(entry.path.clone(), (named.len(), entry));
            named.push(file);
        }
    }
    for (path, (number, entry)) in &tree {
        if let What::HardLink(target) = &entry.what {
            ensure!(
                file_at(&tree, target) == named[*number],
                "{} is another name of a file that is another one now",
                escaped(path)
            );
        }
    }
    Ok(tree.into_values().map(|(_, entry)| entry).collect())
}

/// Whether a path is at the top, or in a directory.
fn is_in_dir(tree: &Paths, path: &Path) -> bool {
    let above = path.parent().filter(|above| above != &Path::new(""));
    above.is_none_or(|above| {
        let above = tree.get(above);
        above.is_some_and(|(_, above)| above.what == What::Dir)
    })
}

/// The number of the file at a path.
fn file_at(tree: &Paths, path: &Path) -> Option<usize> {
    let (number, entry) = tree.get(path)?;
    matches!(entry.what, What::File(_)).then_some(*number)
}

/// Refuses that a path is gone which is below something that is no directory: who unpacks it follows a link there.
fn check_above(tree: &Paths, gone: &Path) -> Result<()> {
    for above in gone.ancestors().skip(1) {
        let is_dir = |(_, entry): &(usize, Entry)| entry.what == What::Dir;
        ensure!(
            tree.get(above).is_none_or(is_dir),
            "{} is gone below what is no directory",
            escaped(gone)
        );
    }
    Ok(())
}

/// Removes what is in a directory: it comes right after that.
fn remove_below(tree: &mut Paths, path: &Path) {
    let below = tree.range::<Path, _>((Bound::Excluded(path), Bound::Unbounded));
    let below = below.map(|(at, _)| at);
    let gone: Vec<PathBuf> = below
        .take_while(|at| at.starts_with(path))
        .cloned()
        .collect();
    for path in gone {
        tree.remove(&path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::toc::table::{Limits, parse};

    /// A layer of paths: one that ends in a slash is a directory, `a=b` is another name of b, `a>b` is a link to b, and
    /// all others are files.
    fn layer(paths: &str) -> Vec<Entry> {
        let line = |path: &str| match path.split_once('=') {
            _ if path.contains('>') => {
                let (path, target) = path.split_once('>').unwrap();
                format!(r#"{{"type":"symlink","name":"{path}","linkName":"{target}"}}"#)
            }
            Some((path, target)) => {
                format!(r#"{{"type":"hardlink","name":"{path}","linkName":"{target}"}}"#)
            }
            None if path.ends_with('/') => format!(r#"{{"type":"dir","name":"{path}"}}"#),
            None => format!(r#"{{"type":"reg","name":"{path}"}}"#),
        };
        let lines: Vec<String> = paths.split_whitespace().map(line).collect();
        let text = format!(r#"{{"version":1,"entries":[{}]}}"#, lines.join(","));
        let limits = Limits { layer: 0, end: 0 };
        parse(text.as_bytes(), limits).unwrap()
    }

    #[test]
    fn layers_lie_one_upon_the_other() {
        for (layers, wanted) in [
            (&["./ d/ d/a b"][..], Some(" b d d/a")),
            (&["d/ d/a d/b", "d/.wh.a"], Some("d d/b")),
            (
                &["d/ d/a d/e/ d/e/f", "d/ d/.wh..wh..opq d/c"],
                Some("d d/c"),
            ),
            // What a layer brings itself stays.
            (&["d/ d/a", "d/ d/a d/.wh.a"], Some("d d/a")),
            (&["d/ d/a", ".wh.d"], Some("")),
            (&["d/ d/a da", ".wh.d"], Some("da")),
            (&["d/ d/a", "d"], Some("d")),
            (&["d", "d/ d/a"], Some("d d/a")),
            (&["a", "b=a"], Some("a b")),
            (&["a b=a"], Some("a b")),
            (&["b=a a"], None),
            (&["a", "b=a a"], None),
            (&["a", "a b=a"], Some("a b")),
            // A name of what was there before.
            (&["a b=a", "a"], None),
            (&["a b=a", ".wh.a"], None),
            (&["a b=a c=b"], None),
            (&["d/ b=d"], None),
            (&["b=x"], None),
            (&["b=b"], None),
            (&["d/a"], None),
            (&["d d/a"], None),
            (&["d/a d"], None),
            (&["d/a d/"], None),
            (&["d", "d/a d/"], None),
            (&["d/a", "d/.wh.a"], None),
            // What was put below a link is not at that path.
            (&["d/ l>d", "l/x", ".wh.l"], None),
            (&["d/ l>d", "l/x", "l/"], None),
            (&["d/ l>d", "l/x l/"], None),
            (&["d/ d/a", "d d/b"], None),
            (&["d/ d/e/ d/e/f", ".wh.d d/e/g"], None),
            // Below a link, what it leads to is gone where the layers are unpacked.
            (&["d/ d/a l>d", "l/.wh.a"], None),
            (&["d/ d/e/ d/e/a l>d", "l/e/.wh..wh..opq"], None),
            (&["d/ d/a l>d", "l/ l/.wh.a"], None),
            (&["a", "a/.wh.b"], None),
            // The link itself gives way to an empty directory, there as well.
            (&["d/ d/a l>d", "l/ l/.wh..wh..opq"], Some("d d/a l")),
            (&["d/ d/a l>d", ".wh.l"], Some("d d/a")),
        ] {
            let tree = merged(layers.iter().map(|paths| layer(paths)).collect());
            let paths = tree.map(|tree| {
                let paths = tree.iter().map(|entry| entry.path.to_str().unwrap());
                paths.collect::<Vec<_>>().join(" ")
            });
            assert_eq!(paths.ok().as_deref(), wanted, "{layers:?}");
        }
    }
}
