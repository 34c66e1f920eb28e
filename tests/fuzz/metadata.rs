//! Any text can stand where a disk has LVM metadata.
#![no_main]

use imgbased_helper::lvm::disk;
use imgbased_helper::model::volume::Mount;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        if let Ok(Some(metadata)) = disk::parse(text, "HostVG") {
            for (name, tags) in &metadata.shared {
                let _ = Mount::of(name, tags);
            }
        }
    }
});
