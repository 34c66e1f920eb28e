//! What `lvm.conf(5)` can change about the reports that are read.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// The settings that shape a report, as they are by default. Messages of the log can be among its lines.
pub const REPORT: &str = "report{output_format=\"basic\" list_item_separator=\",\" \
    binary_values_as_numeric=0 compact_output=0 compact_output_cols=\"\" prefixes=0 quoted=1 \
    columns_as_rows=0 mark_hidden_devices=1 two_word_unknown_device=0} \
    log{verbose=0 prefix=\"  \" command_names=0}";

/// Where lvm2 has its configuration: no variable of the caller's that says otherwise reaches it.
const DIR: &str = "/etc/lvm";
const FILES: [&str; 2] = ["lvm.conf", "lvmlocal.conf"];

/// Whether the defaults hold because nothing at all is set, as where the configuration is the one that
/// lvm2 comes with. Other files count only where one of these says so.
pub fn sets_nothing() -> bool {
    FILES
        .iter()
        .all(|file| is_empty(&Path::new(DIR).join(file)))
}

/// Whether a file has sections and comments only, or is not there.
fn is_empty(path: &Path) -> bool {
    match fs::read_to_string(path) {
        Ok(text) => !text
            .lines()
            .any(|line| line.contains('=') && !line.trim_start().starts_with('#')),
        Err(error) => error.kind() == ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_comments_and_sections_sets_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lvm.conf");
        assert!(is_empty(&path));
        for (text, expected) in [
            ("", true),
            ("report {\n\t# prefixes = 1\n}\nlog {\n}\n", true),
            ("report {\n\tprefixes = 1\n}\n", false),
            ("report/prefixes=1", false),
            ("# a comment\rprefixes=1", true),
            ("log {\n\tprefix\n\t=\n\t\"x\"\n}\n", false),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(is_empty(&path), expected, "{text:?}");
        }
        fs::write(&path, b"# \xff\n").unwrap();
        assert!(!is_empty(&path));
        assert!(!is_empty(dir.path()));
    }
}
