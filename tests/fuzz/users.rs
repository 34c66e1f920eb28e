//! Whatever three sides hold, what they become is consistent, and twice is once.
#![no_main]

use imgbased_helper::merge::{SystemIds, UserFiles, faults, merge_users};
use libfuzzer_sys::fuzz_target;

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
    let [old, layer, new] = &sides;
    let system = SystemIds::of(b"");
    let merged = merge_users([old, layer, new], system);
    assert_eq!(faults(&merged.files), Vec::<String>::new());
    let again = merge_users([old, &merged.files, new], system);
    assert_eq!(faults(&again.files), Vec::<String>::new());
    assert_eq!(
        (&again.users, &again.groups),
        (&merged.users, &merged.groups)
    );
});
