//! Any kernel command line is read to its end, and only valid names come out of it.
#![no_main]

use imgbased_helper::early::cmdline;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let request = cmdline::parse(bytes);
    cmdline::on_failure(bytes);
    let is_layer_boot = cmdline::is_layer_boot(bytes);
    match request {
        Ok(Some(request)) => {
            assert!(is_layer_boot);
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "_+.-".contains(c);
            assert!(request.layer.as_str().chars().all(is_plain));
            assert!(request.vg.as_str().chars().all(is_plain));
        }
        Ok(None) => assert!(!is_layer_boot),
        Err(_) => assert!(is_layer_boot),
    }
});
