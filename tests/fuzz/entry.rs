//! What is read of any boot entry is written back as it was, and nothing in it ends a line of the menu.
#![no_main]

use imgbased_helper::boot::entry::Entry;
use libfuzzer_sys::fuzz_target;

const ID: &str = "imgbased-Base-0.1";

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(Some(entry)) = Entry::parse(ID, &text) {
        let again = Entry::parse(ID, &entry.render());
        assert_eq!(again.expect("it was read before"), Some(entry.clone()));
        let in_menu = [&entry.title, &entry.linux, &entry.initrd, &entry.options];
        let ends = |c: char| c.is_control() || "'$;&|<>{}\\#`".contains(c);
        assert!(!in_menu.iter().any(|value| value.contains(ends)));
        let trial = entry.clone().on_trial();
        let confirmed = trial.clone().confirmed();
        assert!(trial.is_trial() && !confirmed.is_trial());
        assert_eq!([trial.layer(), confirmed.layer()], [entry.layer(); 2]);
    }
});
