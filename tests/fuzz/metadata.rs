//! Any text can stand where a disk has LVM metadata.
#![no_main]

use imgbased_helper::lvm::disk;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = disk::parse(text, "HostVG");
    }
});
