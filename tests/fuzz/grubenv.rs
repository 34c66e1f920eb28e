//! Setting a variable in any environment block leaves all its other lines as they are.
#![no_main]

use imgbased_helper::boot::grubenv::GrubEnv;
use libfuzzer_sys::fuzz_target;

const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

fuzz_target!(|bytes: &[u8]| {
    let _ = GrubEnv::parse(bytes);
    let mut block = [SIGNATURE, bytes].concat();
    block.resize(1024, b'#');
    let Ok(mut env) = GrubEnv::parse(&block) else {
        return;
    };
    assert_eq!(env.render().expect("it fitted before"), block);
    let repeats = env.repeats("saved_entry");
    let old = env.get("saved_entry").map(str::to_owned);
    env.set("saved_entry", "imgbased-Base-0.1");
    if let Ok(changed) = env.render() {
        let mut changed = GrubEnv::parse(&changed).expect("it was written by us");
        assert_eq!(changed.get("saved_entry"), Some("imgbased-Base-0.1"));
        // Of several the last counted, and one is left.
        if let Some(old) = old.filter(|_| !repeats) {
            changed.set("saved_entry", &old);
            assert_eq!(changed.render().expect("it fitted before"), block);
        }
    }
});
