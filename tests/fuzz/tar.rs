//! Any archive is read to its end or refused, in words that do nothing to a terminal. No name in it leads out of the root,
//! and nothing is unpacked beside that.
#![no_main]

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use imgbased_helper::tree::{Archive, Dir, Unpacking, What, survey};
use libfuzzer_sys::fuzz_target;

const BLOCK: usize = 512;
/// Where a header has its sum.
const SUM: std::ops::Range<usize> = 148..156;
/// How much may be unpacked, in bytes.
const ROOM: u64 = 1 << 20;

// No input that is made up has right sums. So that what comes after them is reached, each block gets one, unless the
// first byte is 0.
fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let mut archive = rest.to_vec();
    if *first != 0 {
        archive.chunks_exact_mut(BLOCK).for_each(set_sum);
    }
    let mut reader = Archive::new(&archive[..]);
    loop {
        let entry = match reader.next_entry() {
            Ok(Some(entry)) => entry,
            Ok(None) => break,
            Err(error) => {
                let text = format!("{error:#}");
                assert!(!text.contains(char::is_control), "{text:?}");
                break;
            }
        };
        is_inside(&entry.path);
        match entry.what {
            What::Name(of) => is_inside(&of),
            What::File(size) => {
                let mut content = Vec::new();
                if reader.read_to_end(&mut content).is_ok() {
                    assert_eq!(content.len() as u64, size);
                }
            }
            What::Dir | What::Link(_) | What::Special(..) => {}
        }
        assert!(entry.meta.mode <= 0o7777);
        assert!((0..1_000_000_000).contains(&entry.mtime.1));
    }
    if let Ok(found) = survey(&mut &archive[..], &mut |_| (), &mut |_| Ok(())) {
        unpack(&archive, &found.removals);
    }
});

fn set_sum(block: &mut [u8]) {
    if block.iter().all(|byte| *byte == 0) {
        return;
    }
    block[SUM].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn is_inside(path: &Path) {
    let is_name = |part: Component| matches!(part, Component::Normal(_));
    assert!(path.components().all(is_name), "{path:?}");
}

fn unpack(archive: &[u8], removals: &[imgbased_helper::tree::Removal]) {
    let top: PathBuf = format!("/dev/shm/fuzz-tar-{}", std::process::id()).into();
    let root = top.join("root");
    let _ = fs::remove_dir_all(&top);
    fs::create_dir_all(&root).expect("it is empty");
    {
        let to = Dir::root(&root).expect("it is there");
        let mut tell = |_| Ok(());
        let mut unpacking = Unpacking::new(&to, ROOM, &mut tell);
        if unpacking.add(removals, &mut &archive[..]).is_ok() {
            let _ = unpacking.finish();
        }
    }
    let beside: Vec<_> = fs::read_dir(&top).expect("it is there").collect();
    assert_eq!(beside.len(), 1, "{beside:?}");
    let _ = fs::remove_dir_all(&top);
}
