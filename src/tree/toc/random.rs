//! Layers at random: what is made of their table is what unpacking makes of them, in an empty directory and in the tree of
//! other layers.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::Result;
use fastrand::Rng;

use super::tests::described;
use super::*;
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::tree::Dir;
use crate::tree::layer::tests::unpack;
use crate::tree::listing::settled;
use crate::tree::tar::tests::{header, pax};

const NAMES: [&str; 5] = ["a", "b", "a.x", "c", "a\n"];

/// A path of an archive. The numbers are for its mode, its time, and an attribute.
fn member(name: &str, kind: u8, content: &[u8], target: &str, meta: [u8; 3]) -> Vec<u8> {
    let mut member = Vec::new();
    if meta[2] > 0 {
        member.extend(pax("SCHILY.xattr.user.x", &[meta[2]]));
    }
    member.extend(header(name, kind, content.len(), |block| {
        block[104] = b'5' + meta[0];
        block[146] = b'0' + meta[1];
        block[157..157 + target.len()].copy_from_slice(target.as_bytes());
    }));
    member.extend(content);
    member.resize(member.len().next_multiple_of(512), 0);
    member
}

fn path(random: &mut Rng) -> String {
    let mut name = || NAMES[random.usize(..NAMES.len())];
    let (above, below) = (name(), name());
    if random.bool() {
        format!("{above}/{below}")
    } else {
        above.to_owned()
    }
}

/// A layer, which takes something away unless it is the first. Of some the kinds and contents come often, so that much is
/// as it was in another one.
fn layer(random: &mut Rng, is_first: bool) -> Vec<u8> {
    let large: Vec<u8> = (0..9000_u32).flat_map(u32::to_le_bytes).collect();
    let mut changed = large[..20000].to_vec();
    changed[5000] ^= 1;
    let contents: [&[u8]; 6] = [b"", b"1", b"2", &large, &changed, &[0; 10000]];
    let mut archive = Vec::new();
    let mut names = BTreeSet::new();
    if random.bool() {
        archive.extend(member("./", b'5', b"", "", [2, 5, 0]));
    }
    for name in ["a", "b", "c"] {
        if is_first && random.u8(..8) > 0 {
            names.insert(name.to_owned());
            archive.extend(member(&format!("{name}/"), b'5', b"", "", [0; 3]));
        }
    }
    for _ in 0..random.usize(1..12) {
        let path = path(random);
        if !names.insert(path.clone()) {
            continue;
        }
        let meta = [
            random.u8(..2),
            random.u8(..2),
            random.u8(..3).saturating_sub(1),
        ];
        let (above, name) = path.rsplit_once('/').unwrap_or(("", &path));
        archive.extend(match random.u8(..14) {
            0..3 => member(&format!("{path}/"), b'5', b"", "", meta),
            3..8 => member(&path, b'0', contents[random.usize(..6)], "", meta),
            8 => member(&path, b'2', b"", NAMES[random.usize(..3)], meta),
            9..11 => member(&path, b'1', b"", &self::path(random), meta),
            11 => member(&path, b'6', b"", "", meta),
            _ if is_first => continue,
            12 => member(&format!("./{above}/.wh.{name}"), b'0', b"", "", [0; 3]),
            _ => member(&format!("{path}/.wh..wh..opq"), b'0', b"", "", [0; 3]),
        });
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn table(layers: &[Vec<u8>]) -> Result<Vec<Entry>> {
    let mut tables = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let mut kept = Kept::new(BTreeSet::new(), tempfile::tempfile()?);
        let (mut room, mut tell) = (10 << 20, || Ok(()));
        tables.push(of_archive(
            &mut &layer[..],
            number,
            &mut room,
            &mut kept,
            &mut tell,
        )?);
    }
    merged(tables)
}

/// Makes the tree at `to`, which is like the one at `base` if there is one.
fn build(entries: &[Entry], layers: &[Vec<u8>], to: &Path, base: Option<&Path>) -> Result<()> {
    let (interrupt, mut progress) = (Interrupt::default(), Progress::new("", 1));
    let lists = tempfile::tempdir()?;
    let root = Dir::root(to)?;
    let known = |_: &Path| Known {
        listing: settled(&root, lists.path()),
        is_origin: true,
    };
    let mut known: Vec<Known> = base.map(known).into_iter().collect();
    let plan = Plan::new(entries, &mut known)?;
    let mut build = Build::new(entries, &plan, &root, u64::MAX, &interrupt, &mut progress);
    build.compare(base.map(|_| settled(&root, lists.path())))?;
    let lost = build.names(&mut |_, path| {
        let base = base.map(|base| base.join(path));
        Ok(base.and_then(|path| File::open(path).ok()))
    })?;
    assert!(lost.is_empty(), "{lost:?}");
    let files = plan.in_layers(entries);
    for (number, files, places) in by_layer(entries, &files) {
        let mut input = &layers[number][..];
        build.contents(files, &mut Pieces::new(&mut input, &places, &interrupt))?;
    }
    build.end()
}

/// The same with one time for the root, which a layer need not tell.
fn described_below(root: &Path) -> BTreeMap<PathBuf, String> {
    let dir = File::open(root).unwrap();
    dir.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    described(root)
}

/// Empty directories.
fn dirs<const N: usize>() -> (tempfile::TempDir, [PathBuf; N]) {
    let dir = tempfile::tempdir().unwrap();
    let dirs = std::array::from_fn(|number| dir.path().join(number.to_string()));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    (dir, dirs)
}

#[test]
fn a_table_makes_what_unpacking_makes() {
    let mut compared = 0;
    for seed in 0..600 {
        let mut random = Rng::with_seed(seed);
        let count = random.usize(1..4);
        let layers: Vec<_> = (0..count).map(|n| layer(&mut random, n == 0)).collect();
        // Many are refused.
        let Ok(entries) = table(&layers) else {
            continue;
        };
        let (_dir, [unpacked, built]) = dirs();
        unpack(&unpacked, &layers, u64::MAX).unwrap();
        build(&entries, &layers, &built, None).unwrap();
        assert_eq!(
            described_below(&built),
            described_below(&unpacked),
            "seed {seed}"
        );
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}

#[test]
fn a_snapshot_of_other_layers_becomes_what_an_empty_directory_becomes() {
    let mut compared = 0;
    for seed in 0..1200 {
        let mut random = Rng::with_seed(seed);
        let old = vec![layer(&mut random, true)];
        // The same with another layer, or something else.
        let mut new = if random.u8(..3) > 0 {
            old.clone()
        } else {
            Vec::new()
        };
        new.push(layer(&mut random, new.is_empty()));
        let (_dir, [base, snapshot, built]) = dirs();
        let (Ok(entries), Ok(())) = (table(&new), unpack(&base, &old, u64::MAX)) else {
            continue;
        };
        unpack(&snapshot, &old, u64::MAX).unwrap();
        build(&entries, &new, &snapshot, Some(&base)).unwrap();
        build(&entries, &new, &built, None).unwrap();
        assert_eq!(
            described_below(&snapshot),
            described_below(&built),
            "seed {seed}"
        );
        compared += 1;
    }
    assert!(compared > 60, "{compared}");
}
