//! Where the content of each file of a tree comes from: the tree that it begins as a snapshot of, another one of this
//! host, or the layers. What others hold is known from their listings, so that none of them is read.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use super::{Content, Entry, Place};
use crate::tree::listing::Listing;

/// A tree of this host whose listing is there.
pub struct Known {
    pub listing: Listing,
    /// Whether the new tree begins as a snapshot of it.
    pub is_origin: bool,
}

/// Where a file has its content from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum From {
    /// It is there already, at the same path, in the file with this inode number.
    Origin(u64),
    /// From this path of a tree that is known, by its number.
    Other(usize, PathBuf),
    /// From the layers.
    Layers,
    /// From another file of the new tree, by its number among all entries.
    Twin(usize),
}

/// For the number of each entry that is a file and not empty, where its content comes from.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub files: BTreeMap<usize, From>,
}

impl Plan {
    /// Reads the listings to their ends. The entries are in the order of their paths.
    pub fn new(entries: &[Entry], known: &mut [Known]) -> io::Result<Self> {
        let mut wanted: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (number, content) in contents(entries) {
            wanted.entry(&content.sha256).or_default().push(number);
        }
        let mut files = BTreeMap::new();
        let mut elsewhere: BTreeMap<&str, From> = BTreeMap::new();
        for (number, tree) in known.iter_mut().enumerate() {
            // What has one file at several paths stays at the first of them.
            let mut inodes = BTreeSet::new();
            while let Some(listed) = tree.listing.read()? {
                let Some(digest) = &listed.content else {
                    continue;
                };
                let Some((digest, _)) = wanted.get_key_value(digest.as_str()) else {
                    continue;
                };
                if tree.is_origin
                    && let Some(at) = number_of(entries, &listed.path)
                    && let Some(content) = entries[at].content()
                    && (content.size, content.sha256.as_str()) == (listed.size, *digest)
                    && inodes.insert(listed.inode)
                {
                    files.insert(at, From::Origin(listed.inode));
                }
                elsewhere
                    .entry(digest)
                    .or_insert_with(|| From::Other(number, listed.path));
            }
        }
        for (digest, numbers) in wanted {
            let mut first = None;
            for number in numbers {
                if files.contains_key(&number) {
                    continue;
                }
                let from = match (elsewhere.get(digest), first) {
                    (Some(other), _) => other.clone(),
                    (None, Some(first)) => From::Twin(first),
                    (None, None) => From::Layers,
                };
                first = first.or(Some(number));
                files.insert(number, from);
            }
        }
        Ok(Self { files })
    }

    /// The numbers of the files whose content comes from the layers, in the order in which it lies there.
    pub fn in_layers(&self, entries: &[Entry]) -> Vec<usize> {
        let is_there = |(number, from): (&usize, &From)| (*from == From::Layers).then_some(*number);
        let mut numbers: Vec<usize> = self.files.iter().filter_map(is_there).collect();
        sort_by_place(entries, &mut numbers);
        numbers
    }

    /// What has to be written of the file of this number, in bytes, where nothing is there yet.
    pub(super) fn bytes(&self, entries: &[Entry], number: usize) -> u64 {
        let (Some(from), Some(content)) = (self.files.get(&number), entries[number].content())
        else {
            return 0;
        };
        match from {
            From::Origin(_) => 0,
            From::Other(..) | From::Twin(_) => content.size,
            // What is all zeros is a hole.
            From::Layers => {
                let chunks = content.chunks.iter().filter(|chunk| chunk.place.is_some());
                chunks.map(|chunk| chunk.size).sum()
            }
        }
    }
}

/// The number of the entry with a path.
pub(super) fn number_of(entries: &[Entry], path: &Path) -> Option<usize> {
    let found = entries.binary_search_by(|entry| entry.path.as_path().cmp(path));
    found.ok()
}

/// The places of the chunks of these files, one after the other.
pub fn places(entries: &[Entry], files: &[usize]) -> Vec<Place> {
    let contents = files.iter().filter_map(|number| entries[*number].content());
    let chunks = contents.flat_map(|content| &content.chunks);
    chunks.filter_map(|chunk| chunk.place).collect()
}

/// The numbers of the layers that have any of them, each with the files and places in it. The files are in the order of
/// [`sort_by_place`].
pub fn by_layer<'a>(
    entries: &'a [Entry],
    files: &'a [usize],
) -> impl Iterator<Item = (usize, &'a [usize], Vec<Place>)> {
    let layer_of = |number: &usize| {
        let place = entries[*number].content().and_then(first_place);
        place.map(|place| place.layer)
    };
    let of_each = files.chunk_by(move |one, next| layer_of(one) == layer_of(next));
    of_each.filter_map(move |files| {
        let layer = layer_of(files.first()?)?;
        Some((layer, files, places(entries, files)))
    })
}

/// Has files come in the order in which their contents lie in the layers.
pub fn sort_by_place(entries: &[Entry], files: &mut [usize]) {
    files.sort_by_key(|number| entries[*number].content().and_then(first_place));
}

fn first_place(content: &Content) -> Option<Place> {
    content.chunks.iter().find_map(|chunk| chunk.place)
}

/// The files with a content, by their numbers.
fn contents(entries: &[Entry]) -> impl Iterator<Item = (usize, &Content)> {
    entries
        .iter()
        .enumerate()
        .filter_map(|(number, entry)| Some((number, entry.content()?)))
        .filter(|(_, content)| content.size > 0)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Seek, Write};

    use sha2::{Digest, Sha256};

    use super::*;
    use crate::tree::toc::{Chunk, What};
    use crate::tree::write::Meta;

    fn sum(text: &str) -> String {
        format!("{:x}", Sha256::digest(text))
    }

    /// Files with these contents; `path=target` is another name of a file.
    fn entries(files: &[(&str, &str)]) -> Vec<Entry> {
        let entry = |(number, (path, text)): (usize, &(&str, &str))| {
            let from = 100 * (10 - number as u64);
            let (path, what) = match path.split_once('=') {
                Some((path, target)) => (path, What::HardLink(target.into())),
                None => (
                    *path,
                    What::File(Content {
                        size: text.len() as u64,
                        sha256: sum(text),
                        chunks: vec![Chunk {
                            size: text.len() as u64,
                            sha256: sum(text),
                            place: Some(Place {
                                layer: 0,
                                from,
                                end: from + 10,
                            }),
                        }],
                    }),
                ),
            };
            Entry {
                path: path.into(),
                what,
                meta: Meta {
                    uid: 0,
                    gid: 0,
                    mode: 0o644,
                    xattrs: BTreeMap::new(),
                },
                mtime: (0, 0),
            }
        };
        files.iter().enumerate().map(entry).collect()
    }

    /// A listing of paths with their inodes and contents.
    fn listing(files: &[(&str, u64, &str)]) -> Listing {
        let mut text = "imgbased-listing 1 of\n".to_owned();
        for (path, inode, content) in files {
            let (size, sum) = (content.len(), sum(content));
            text += &format!("f 644 0 0 {size} 1.0 1.0 {inode} - {sum} {path}\n");
        }
        text += &format!("end {}\n", sum(&text));
        let dir = tempfile::tempdir().unwrap();
        let mut file = File::create(dir.path().join("l")).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file.rewind().unwrap();
        let dir = crate::tree::Dir::root(dir.path()).unwrap();
        Listing::open(&dir, "l".as_ref(), "of").unwrap().unwrap()
    }

    #[test]
    fn a_content_comes_from_where_it_is_nearest() {
        let origin = &[
            ("a", 1, "A"),
            ("b", 2, "B"),
            ("c", 3, "C"),
            ("d", 3, "C"),
            ("x", 4, "moved"),
        ];
        let other = &[("z", 1, "Z"), ("a", 2, "new")];
        let from = |number, path: &str| Some(From::Other(number, path.into()));
        for (what, files, wanted) in [
            ("the same", &[("a", "A")][..], vec![Some(From::Origin(1))]),
            ("changed", &[("a", "AA")], vec![Some(From::Layers)]),
            ("new", &[("n", "N")], vec![Some(From::Layers)]),
            ("empty", &[("n", "")], vec![None]),
            ("moved", &[("n", "moved")], vec![from(0, "x")]),
            ("of another tree", &[("z", "Z")], vec![from(1, "z")]),
            (
                "exchanged",
                &[("a", "B"), ("b", "A")],
                vec![from(0, "b"), from(0, "a")],
            ),
            (
                "the same of another tree",
                &[("a", "new")],
                vec![from(1, "a")],
            ),
            (
                "one file of two names there",
                &[("c", "C"), ("d", "changed")],
                vec![Some(From::Origin(3)), Some(From::Layers)],
            ),
            (
                "two files of one there",
                &[("c", "C"), ("d", "C")],
                vec![Some(From::Origin(3)), from(0, "c")],
            ),
            (
                "one file of two names here",
                &[("a", "A"), ("z=a", "")],
                vec![Some(From::Origin(1)), None],
            ),
            (
                "twice",
                &[("m", "N"), ("n", "N"), ("o", "N")],
                vec![Some(From::Layers), Some(From::Twin(0)), Some(From::Twin(0))],
            ),
        ] {
            let entries = entries(files);
            let mut known = [
                Known {
                    listing: listing(origin),
                    is_origin: true,
                },
                Known {
                    listing: listing(other),
                    is_origin: false,
                },
            ];
            let plan = Plan::new(&entries, &mut known).unwrap();
            let found: Vec<Option<From>> = (0..files.len())
                .map(|number| plan.files.get(&number).cloned())
                .collect();
            assert_eq!(found, wanted, "{what}");
        }
    }

    #[test]
    fn chunks_are_read_in_the_order_in_which_they_lie() {
        let entries = entries(&[("a", "A"), ("b", "B"), ("c", "A"), ("d", "D")]);
        let plan = Plan::new(&entries, &mut []).unwrap();
        let files = plan.in_layers(&entries);
        assert_eq!(files, [3, 1, 0]);
        let from: Vec<u64> = places(&entries, &files)
            .iter()
            .map(|place| place.from)
            .collect();
        assert_eq!(from, [700, 900, 1000]);
    }
}
