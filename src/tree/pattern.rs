//! Which paths a person has named by patterns.

use std::path::Path;

use anyhow::{Context, Result};
use glob::{MatchOptions, Pattern};

/// Patterns as in a shell. One with a slash is of whole paths, any other one of names in any directory.
#[derive(Default)]
pub struct Globs(Vec<(Pattern, bool)>);

impl Globs {
    /// Refuses what is no pattern.
    pub fn new(patterns: &[String]) -> Result<Self> {
        let parse = |text: &String| {
            let is_path = text.trim_end_matches('/').contains('/');
            let pattern = text.trim_matches('/');
            let pattern =
                Pattern::new(pattern).with_context(|| format!("{text:?} is no pattern"))?;
            Ok((pattern, is_path))
        };
        patterns.iter().map(parse).collect::<Result<_>>().map(Self)
    }

    /// Whether one of them matches `path`, which begins at the root and has no slash there.
    pub fn matches(&self, path: &Path) -> bool {
        const OPTIONS: MatchOptions = MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: false,
        };
        if self.0.is_empty() {
            return false;
        }
        let whole = path.to_string_lossy();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.0.iter().any(|(pattern, is_path)| {
            pattern.matches_with(if *is_path { &whole } else { &name }, OPTIONS)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_of_names_or_of_paths() {
        for (pattern, path, wanted) in [
            ("*.log", "var/log/x.log", true),
            ("/var/log/*", "var/log/x.log", true),
            ("/var/*", "var/log/x.log", false),
            ("/var/**", "var/log/x.log", true),
            ("log/", "var/log", true),
            ("/log/", "var/log", false),
            ("x[0-9]", "a/x7", true),
            (".*", "a/.hidden", true),
        ] {
            let globs = Globs::new(&[pattern.to_owned()]).unwrap();
            assert_eq!(globs.matches(Path::new(path)), wanted, "{pattern} {path}");
        }
        assert!(Globs::new(&["a[".to_owned()]).is_err());
        assert!(!Globs::default().matches(Path::new("a")));
    }
}
