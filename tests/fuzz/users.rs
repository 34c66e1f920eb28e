//! Whatever three sides hold, what they become is consistent. A side that nobody has changed gives the other one, and
//! twice is once.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};

use imgbased_helper::merge::{Merged, Name, SystemIds, UserFiles, entries, faults, merge_users};
use libfuzzer_sys::fuzz_target;

const PASSWD: usize = 0;
const GROUP: usize = 1;
const GSHADOW: usize = 3;
const RANGES: [usize; 2] = [4, 5];

/// The fields of a line, each with the names in it: one, where it is no list.
type Line = Vec<BTreeSet<Name>>;

// The files are parted by NUL. One that begins with 0x01 is not there.
fuzz_target!(|data: &[u8]| {
    let mut parts = data.split(|byte| *byte == 0);
    let sides = [(); 3].map(|()| {
        let file = |()| {
            parts
                .next()
                .filter(|part| !part.starts_with(&[1]))
                .map(<[u8]>::to_vec)
        };
        UserFiles([(); 6].map(file))
    });
    let [old, layer, new] = sides;
    // A file that is not there counts as unchanged.
    let layer = with_those_of(layer, &old);
    let merged = merge(&old, &layer, &new);
    numbers_stay(&layer, &merged.files);
    let again = merge(&old, &merged.files, &new);
    assert_eq!(
        (&again.users, &again.groups),
        (&merged.users, &merged.groups)
    );
    assert_eq!(lines(&again.files), lines(&merged.files));

    let [old, new] = [&old, &new].map(|files| merge(files, files, files).files);
    for other in [&old, &new] {
        let layer = with_those_of(layer.clone(), other);
        let layer = merge(&layer, &layer, &layer).files;
        assert_eq!(lines(&merge(other, &layer, other).files), lines(&layer));
        assert_eq!(lines(&merge(other, &layer, &layer).files), lines(&layer));
    }
    new_comes(&old, &new, &merge(&old, &old, &new).files);
});

fn merge(old: &UserFiles, layer: &UserFiles, new: &UserFiles) -> Merged {
    let merged = merge_users([old, layer, new], SystemIds::of(b""));
    assert_eq!(faults(&merged.files), Vec::<String>::new());
    merged
}

fn with_those_of(mut files: UserFiles, others: &UserFiles) -> UserFiles {
    for (file, other) in files.0.iter_mut().zip(&others.0) {
        if file.is_none() {
            file.clone_from(other);
        }
    }
    files
}

/// All lines with a name, by file and name.
fn lines(files: &UserFiles) -> BTreeMap<(usize, Name), Vec<Line>> {
    let mut found = BTreeMap::new();
    for (file, content) in files.0.iter().enumerate() {
        for (name, lines) in entries(file, content.as_deref().unwrap_or_default()) {
            let lines = lines.iter().map(|fields| line(file, fields)).collect();
            found.insert((file, name), lines);
        }
    }
    found
}

fn line(file: usize, fields: &[Vec<u8>]) -> Line {
    let names = |(at, field): (usize, &Vec<u8>)| {
        if file == GROUP && at == 3 || file == GSHADOW && at > 1 {
            let names = field.split(|byte| *byte == b',');
            let names = names.filter(|name| !name.is_empty());
            names.map(<[u8]>::to_vec).collect()
        } else {
            BTreeSet::from([field.clone()])
        }
    };
    fields.iter().enumerate().map(names).collect()
}

fn number(field: &[u8]) -> u64 {
    let digits = std::str::from_utf8(field).expect("digits");
    digits.parse().expect("a number")
}

/// The name of each line with one of its numbers.
fn numbers(files: &UserFiles, file: usize, at: usize) -> Vec<(Name, u64)> {
    let content = files.0[file].as_deref().unwrap_or_default();
    let entries = entries(file, content).into_iter();
    let number = |(name, lines): (Name, Vec<Vec<Vec<u8>>>)| {
        lines
            .into_iter()
            .map(move |fields| (name.clone(), number(&fields[at])))
    };
    entries.flat_map(number).collect()
}

/// The host's users and groups keep their numbers, and nobody gets one of another, but for that of root.
fn numbers_stay(layer: &UserFiles, merged: &UserFiles) {
    for file in [PASSWD, GROUP] {
        let mut before = numbers(layer, file, 2);
        // Of several lines the first counts.
        before.dedup_by(|next, first| next.0 == first.0);
        let now = numbers(merged, file, 2);
        for own in &before {
            assert!(now.contains(own), "{own:?}");
        }
        for (name, id) in &now {
            let is_new = before.iter().all(|(other, _)| other != name);
            let is_shared = now.iter().any(|(other, of)| other != name && of == id);
            assert!(!is_new || !is_shared || *id == 0, "{name:?} shares {id}");
        }
    }
    for file in RANGES {
        assert!(have_same_ranges(layer, file) || !have_same_ranges(merged, file));
    }
}

/// Whether two users have the same subordinate number.
fn have_same_ranges(files: &UserFiles, file: usize) -> bool {
    let counts = numbers(files, file, 2).into_iter();
    let ranges = numbers(files, file, 1).into_iter().zip(counts);
    let ranges: Vec<_> = ranges
        .map(|((name, start), (_, count))| (name, start, start + count))
        .filter(|(_, start, end)| start < end)
        .collect();
    ranges.iter().any(|(name, start, end)| {
        ranges
            .iter()
            .any(|(other, from, to)| name != other && start < to && from < end)
    })
}

/// Where the layer is as the old base, all is as in the new one, but for the numbers of those who were there.
fn new_comes(old: &UserFiles, new: &UserFiles, merged: &UserFiles) {
    let users = |files: &UserFiles| -> BTreeSet<Name> {
        let content = files.0[PASSWD].as_deref().unwrap_or_default();
        entries(PASSWD, content)
            .into_iter()
            .map(|(name, _)| name)
            .collect()
    };
    // They stay, and in their groups.
    let gone: BTreeSet<Name> = users(old).difference(&users(new)).cloned().collect();
    let (old, merged) = (lines(old), lines(merged));
    for (key, wanted) in lines(new) {
        let (before, found) = (old.get(&key), merged.get(&key));
        let (file, name) = key;
        if RANGES.contains(&file) {
            // They stay where they are. Those of nobody do not come, and none that are in use.
            let is_new = before.is_none() && found == Some(&wanted);
            assert!(found == before || is_new, "{file} {name:?}");
            continue;
        }
        let found = found.expect("the name is there");
        for (at, field) in wanted[0].iter().enumerate() {
            let is_number = file == PASSWD && (at == 2 || at == 3) || file == GROUP && at == 2;
            let is_list = file == GROUP && at == 3 || file == GSHADOW && at > 1;
            match &before {
                _ if is_list => {
                    let of_old = before.map(|lines| lines[0][at].clone()).unwrap_or_default();
                    let stays = |name: &&Name| gone.contains(*name) && of_old.contains(*name);
                    let extra = found[0][at].difference(field);
                    assert!(extra.clone().all(|name| stays(&name)), "{file} {name:?}");
                    assert!(field.is_subset(&found[0][at]), "{file} {name:?}");
                }
                Some(before) if is_number => assert_eq!(found[0][at], before[0][at]),
                None if is_number => {}
                _ => assert_eq!(&found[0][at], field, "{file} {name:?}"),
            }
        }
    }
}
