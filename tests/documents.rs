//! What the last release wrote as JSON, which programs of hosts that are not updated yet read and write: as long as the
//! version stays the same, the schemas describe that as well.

#[allow(dead_code, reason = "the unit tests use the rest")]
mod schemas;

use std::fs;
use std::path::Path;

#[test]
fn documents_of_the_last_release_are_as_the_schemas_say() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/documents");
    let mut wrong = Vec::new();
    let mut count = 0;
    for release in fs::read_dir(dir).expect("a directory") {
        for file in fs::read_dir(release.expect("a release").path()).expect("a directory") {
            let path = file.expect("a document").path();
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.and_then(|name| name.split('.').next());
            let text = fs::read_to_string(&path).expect("a file");
            let document = serde_json::from_str(&text).expect("JSON");
            if let Err(error) = schemas::check(name.expect("a plain name"), &document) {
                wrong.push(format!("{}: {error}", path.display()));
            }
            count += 1;
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 0);
}

#[test]
fn a_document_that_is_not_as_its_schema_says_is_told() {
    let right =
        r#"{"version":1,"findings":[{"subject":"a","problem":"b","repair":"c","automatic":true}]}"#;
    for (from, to, error) in [
        ("", "", None),
        (
            "\"version\":1",
            "\"version\":2",
            Some("check.version cannot be 2"),
        ),
        ("\"version\":1,", "", Some("check has no version")),
        ("true", "1", Some("check.findings[0].automatic cannot be 1")),
        (
            "\"problem\"",
            "\"trouble\"",
            Some("check.findings[0] has no problem"),
        ),
        (
            "\"version\"",
            "\"new\":1,\"version\"",
            Some("check: no schema knows new"),
        ),
        ("[", "[null,", Some("check.findings[0] cannot be null")),
    ] {
        let document = serde_json::from_str(&right.replacen(from, to, 1)).expect("JSON");
        let found = schemas::check("check", &document).err();
        assert_eq!(found.as_deref(), error, "{to}");
    }
}
