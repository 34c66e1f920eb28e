//! Any list of a server is read to its end, no name in it leads out of the directory, and versions have one order.
#![no_main]

use imgbased_helper::delivery::pattern::Pattern;
use imgbased_helper::delivery::sums::Sums;
use imgbased_helper::delivery::version::compare;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(sums) = Sums::parse(bytes) {
        let _ = sums.check_fresh(1_795_867_200);
        let pattern = Pattern::parse("@v.raw", &|_| None).expect("it is right");
        if let Ok(Some((entry, version))) = sums.newest(&[pattern], None) {
            assert!(!entry.name.contains('/') && entry.name.starts_with(version));
            assert_eq!(sums.digest_of(&entry.name), Some(entry.digest.as_str()));
        }
    }
    let text = String::from_utf8_lossy(bytes);
    let mut versions = text.splitn(3, '\n');
    if let (Some(a), Some(b), Some(c)) = (versions.next(), versions.next(), versions.next()) {
        assert_eq!(compare(a, b), compare(b, a).reverse());
        assert!(!(compare(a, b).is_lt() && compare(b, c).is_lt()) || compare(a, c).is_lt());
    }
});
