//! Any index and manifest of an image in layers is read or refused, in words that do nothing to a terminal; and what a
//! layer says of its table of contents is in the layer.
#![no_main]

use std::fmt::Display;

use imgbased_helper::delivery::oci::layout::{Document, Platform, image_of, is_layout};
use imgbased_helper::tree::toc::Position;
use libfuzzer_sys::fuzz_target;

/// What most manifests begin with, so that a short input gets further.
const BEGINS: [&str; 3] = [
    "",
    r#"{"schemaVersion":2,"manifests":["#,
    r#"{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","size":2,"digest":
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},"layers":["#,
];

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first() else {
        return;
    };
    let begin = BEGINS[usize::from(*first) % BEGINS.len()];
    let mut text = [begin.as_bytes(), rest].concat();
    if !begin.is_empty() {
        text.extend(b"]}");
    }
    let host = Platform::host();
    is_plain(host.check(&text));
    let _ = is_layout(&text);
    // One that names itself has an end as well.
    is_plain(image_of(&text, None, &host, &|_| Ok(text.clone())));
    match Document::parse(&text) {
        Err(error) => is_plain::<(), _>(Err(error)),
        Ok(Document::Index(index)) => {
            is_plain(index.choose(None, &host));
            is_plain(index.choose(Some("latest"), &host));
        }
        Ok(Document::Manifest(manifest)) => {
            assert!(!manifest.layers.is_empty());
            let sizes = manifest.layers.iter().map(|layer| layer.size);
            assert_eq!(manifest.size(), sizes.sum::<u64>());
            for layer in &manifest.layers {
                assert_eq!(layer.digest.hex().len(), 64);
                let annotation = |key: &str| layer.annotation(key).map(str::to_owned);
                if let Ok(Some(place)) = Position::find(&annotation, layer.size) {
                    assert!(place.from < place.end && place.end <= layer.size);
                }
            }
        }
    }
});

fn is_plain<T, E: Display>(found: Result<T, E>) {
    if let Err(error) = found {
        let text = format!("{error:#}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}
