//! Any tables of contents of layers are read or refused. What is read can be made in its order, and its chunks can be
//! asked for.
#![no_main]

use std::collections::BTreeMap;
use std::path::{Component, Path};

use imgbased_helper::delivery::ranges::{Range, requests};
use imgbased_helper::sys::interrupt::Interrupt;
use imgbased_helper::tree::toc::{Entry, Limits, Plan, What, merged, parse, places, read_contents};
use libfuzzer_sys::fuzz_target;

/// How long each layer is, in bytes.
const LAYER: u64 = 1 << 20;
/// Files of so many bytes are read, at most.
const READ_MOST: u64 = 1 << 20;

// The lines of two layers, parted by a zero.
fuzz_target!(|bytes: &[u8]| {
    let mut layers = Vec::new();
    for (layer, lines) in bytes.split(|byte| *byte == 0).take(2).enumerate() {
        let text = [br#"{"version":1,"entries":["#, lines, b"]}"].concat();
        match parse(&text, Limits { layer, end: LAYER }) {
            Ok(entries) => layers.push(entries),
            Err(error) => {
                let text = format!("{error:#}");
                assert!(!text.chars().any(char::is_control), "{text:?}");
                return;
            }
        }
    }
    layers.iter().flatten().for_each(is_sound);
    if let Ok(entries) = merged(layers) {
        can_be_made(&entries);
        can_be_asked_for(&entries);
    }
});

fn is_sound(entry: &Entry) {
    let is_name = |part: Component| matches!(part, Component::Normal(_));
    assert!(entry.path.components().all(is_name), "{entry:?}");
    assert!(entry.meta.mode <= 0o7777 && (0..1_000_000_000).contains(&entry.mtime.1));
    if let Some(content) = entry.content() {
        let sizes = content.chunks.iter().map(|chunk| chunk.size);
        assert_eq!(sizes.sum::<u64>(), content.size);
        assert_eq!(content.sha256.len(), 64);
    }
}

/// Each path comes after the directory that it is in, and each other name is one of a file.
fn can_be_made(entries: &[Entry]) {
    let mut made: BTreeMap<&Path, &What> = BTreeMap::new();
    for entry in entries {
        let above = entry.path.parent().unwrap_or(Path::new(""));
        let is_there = above.as_os_str().is_empty() || made.get(above) == Some(&&What::Dir);
        assert!(is_there, "{entry:?}");
        assert!(made.insert(&entry.path, &entry.what).is_none(), "{entry:?}");
    }
    for entry in entries {
        if let What::HardLink(of) = &entry.what {
            assert!(
                matches!(made.get(of.as_path()), Some(What::File(_))),
                "{entry:?}"
            );
        }
    }
}

fn can_be_asked_for(entries: &[Entry]) {
    let plan = Plan::new(entries, &mut []).expect("there is no listing");
    let files = plan.in_layers(entries);
    let all = places(entries, &files);
    for layer in 0..2 {
        let of_layer = all.iter().filter(|place| place.layer == layer);
        let pieces = of_layer.map(|place| Range {
            from: place.from,
            end: place.end,
        });
        let pieces: Vec<Range> = pieces.collect();
        requests(&pieces, LAYER).expect("they are in their order");
    }
    let sizes = files.iter().filter_map(|number| entries[*number].content());
    let sizes = sizes.fold(0, |sum: u64, content| sum.saturating_add(content.size));
    if sizes <= READ_MOST {
        let input = vec![0; LAYER as usize];
        let put = &mut |_, _, _: &[u8]| Ok(());
        let _ = read_contents(entries, &files, &mut &input[..], &Interrupt::default(), put);
    }
}
