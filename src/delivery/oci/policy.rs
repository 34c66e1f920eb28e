//! Who has to have signed an image, as skopeo(1) is told (containers-policy.json(5)).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::sys::files::read_if_there;

/// What takes each image, whoever has made it.
const ANYBODY: &str = "insecureAcceptAnything";

#[derive(Deserialize)]
struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Deserialize)]
struct Requirement {
    #[serde(rename = "type")]
    kind: String,
}

/// Whether this host takes each image of each registry. If not, only skopeo can tell whether it takes one, and it tells
/// when it copies that. `variable` tells the environment.
pub fn takes_all(variable: &dyn Fn(&str) -> Option<OsString>) -> bool {
    let home = variable("HOME").map(|home| Path::new(&home).join(".config/containers/policy.json"));
    let system: PathBuf = "/etc/containers/policy.json".into();
    let files = home.into_iter().chain([system]);
    let found: Vec<bool> = files
        .filter_map(|path| match read_if_there(&path) {
            Ok(content) => content.map(|content| is_open(&content)),
            Err(_) => Some(false),
        })
        .collect();
    !found.is_empty() && found.iter().all(|is_open| *is_open)
}

/// Whether nothing in this policy asks for a signature of an image in a registry, or refuses one.
fn is_open(content: &[u8]) -> bool {
    let Ok(policy) = serde_json::from_slice::<Policy>(content) else {
        return false;
    };
    let takes = |all: &Vec<Requirement>| !all.is_empty() && all.iter().all(|it| it.kind == ANYBODY);
    let of_registries = policy.transports.get("docker");
    let mut scopes = of_registries.into_iter().flat_map(BTreeMap::values);
    takes(&policy.default) && scopes.all(takes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_is_open_where_nothing_asks_for_a_signature() {
        let any = r#"[{"type":"insecureAcceptAnything"}]"#;
        let signed = r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]"#;
        let reject = r#"[{"type":"reject"}]"#;
        let both = r#"[{"type":"insecureAcceptAnything"},{"type":"sigstoreSigned"}]"#;
        for (content, wanted) in [
            (format!(r#"{{"default":{any}}}"#), true),
            (
                format!(r#"{{"default":{any},"transports":{{"docker-daemon":{{"":{any}}}}}}}"#),
                true,
            ),
            (
                format!(r#"{{"default":{any},"transports":{{"docker":{{"h/x":{any}}}}}}}"#),
                true,
            ),
            // Of archives and directories.
            (
                format!(r#"{{"default":{any},"transports":{{"oci":{{"":{reject}}}}}}}"#),
                true,
            ),
            (format!(r#"{{"default":{reject}}}"#), false),
            (format!(r#"{{"default":{signed}}}"#), false),
            (format!(r#"{{"default":{both}}}"#), false),
            (r#"{"default":[]}"#.to_owned(), false),
            (
                format!(r#"{{"default":{any},"transports":{{"docker":{{"h":{signed}}}}}}}"#),
                false,
            ),
            (
                format!(
                    r#"{{"default":{any},"transports":{{"docker":{{"":{any},"h/x":{reject}}}}}}}"#
                ),
                false,
            ),
            (
                format!(r#"{{"default":{reject},"transports":{{"docker":{{"":{any}}}}}}}"#),
                false,
            ),
            (
                format!(r#"{{"transports":{{"docker":{{"":{any}}}}}}}"#),
                false,
            ),
            ("{}".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(is_open(content.as_bytes()), wanted, "{content}");
        }
    }

    #[test]
    fn each_policy_that_is_there_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".config/containers");
        std::fs::create_dir_all(&path).unwrap();
        let variable = |name: &str| (name == "HOME").then(|| dir.path().into());
        std::fs::write(
            path.join("policy.json"),
            r#"{"default":[{"type":"reject"}]}"#,
        )
        .unwrap();
        assert!(!takes_all(&variable));
        std::fs::write(path.join("policy.json"), "damaged").unwrap();
        assert!(!takes_all(&variable));
    }
}
