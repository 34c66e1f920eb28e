//! The names of images on a server, as the patterns of sysupdate.d(5) have them: `myhost-@v.raw.zst`.

use anyhow::{Context, Result, bail, ensure};

/// A pattern for the names of files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Field(char),
}

/// What a name says of an image.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Named<'a> {
    pub version: &'a str,
    /// The SHA-256 of the file.
    pub digest: Option<&'a str>,
}

impl Pattern {
    /// Reads a pattern. `specifier` gives what stands for `%a` and the like.
    ///
    /// Refuses one without a version, with a field twice, and with two fields side by side.
    pub fn parse(text: &str, specifier: &dyn Fn(char) -> Option<String>) -> Result<Self> {
        let mut parts: Vec<Part> = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let added = match c {
                '@' => match chars.next().context("ends in @")? {
                    '@' => "@".to_owned(),
                    field => {
                        ensure!(
                            "vufagrtmsdlh".contains(field),
                            "has the unknown field @{field}"
                        );
                        let part = Part::Field(field);
                        ensure!(!parts.contains(&part), "has @{field} twice");
                        ensure!(
                            !matches!(parts.last(), Some(Part::Field(_))),
                            "has @{field} right after another field"
                        );
                        parts.push(part);
                        continue;
                    }
                },
                '%' => match chars.next().context("ends in %")? {
                    '%' => "%".to_owned(),
                    name => specifier(name)
                        .with_context(|| format!("has %{name}, which this host has nothing for"))?,
                },
                c if is_plain(c) => c.to_string(),
                c => bail!("has {c:?}, which no name may have"),
            };
            match parts.last_mut() {
                Some(Part::Text(text)) => text.push_str(&added),
                _ => parts.push(Part::Text(added)),
            }
        }
        ensure!(parts.contains(&Part::Field('v')), "has no version, @v");
        Ok(Self { parts })
    }

    /// What a name says, if it fits.
    pub fn read<'a>(&self, name: &'a str) -> Option<Named<'a>> {
        let mut named = Named::default();
        let mut rest = name;
        for (at, part) in self.parts.iter().enumerate() {
            let field = match part {
                Part::Text(text) => {
                    rest = rest.strip_prefix(text.as_str())?;
                    continue;
                }
                Part::Field(field) => *field,
            };
            // A field ends where the text that follows it is for the first time.
            let end = match self.parts.get(at + 1) {
                Some(Part::Text(text)) => rest.find(text.as_str())?,
                _ => rest.len(),
            };
            let (value, after) = rest.split_at(end);
            if !is_value(field, value) {
                return None;
            }
            match field {
                'v' => named.version = value,
                'h' => named.digest = Some(value),
                _ => {}
            }
            rest = after;
        }
        rest.is_empty().then_some(named)
    }
}

fn is_plain(c: char) -> bool {
    (' '..='~').contains(&c) && !"$*?[]!\\|/".contains(c)
}

/// Whether a field may have such a value. Those of partitions and files say nothing of an image, but have to be right.
fn is_value(field: char, value: &str) -> bool {
    let all = |is_in: fn(&u8) -> bool| !value.is_empty() && value.bytes().all(|byte| is_in(&byte));
    match field {
        'v' => all(|byte| byte.is_ascii_alphanumeric() || b".,_-+~^".contains(byte)),
        'h' => value.len() == 64 && all(u8::is_ascii_hexdigit),
        'u' => value.len() >= 32 && all(|byte| byte.is_ascii_hexdigit() || *byte == b'-'),
        'f' => all(u8::is_ascii_hexdigit),
        'a' | 'g' | 'r' => ["0", "1", "yes", "no", "true", "false"].contains(&value),
        _ => all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Result<Pattern> {
        let specifier = |name| (name == 'a').then(|| "x86-64".to_owned());
        Pattern::parse(text, &specifier)
    }

    #[test]
    fn a_name_tells_its_version() {
        let digest = "0123456789abcdef".repeat(4);
        let with_digest = format!("x_1_{digest}.raw");
        for (text, name, version) in [
            ("myhost-@v.raw.zst", "myhost-1.2-3.raw.zst", Some("1.2-3")),
            ("myhost-@v.raw.zst", "myhost-1.raw", None),
            ("myhost-@v.raw.zst", "myhost-.raw.zst", None),
            ("myhost-@v.raw.zst", "other-1.raw.zst", None),
            ("myhost-@v.raw.zst", "myhost-1.raw.zst.sig", None),
            ("myhost-@v.raw.zst", "myhost-1.raw.zst1.raw.zst", None),
            ("myhost-@v.raw.zst", "myhost-a b.raw.zst", None),
            ("@v", "5~rc1", Some("5~rc1")),
            ("x@@@v.tar", "x@7.tar", Some("7")),
            ("x_%a_@v.raw", "x_x86-64_7.raw", Some("7")),
            ("x_%%_@v.raw", "x_%_7.raw", Some("7")),
            ("x_@v_@h.raw", &with_digest, Some("1")),
            ("x_@v_@h.raw", "x_1_00.raw", None),
            ("x_@v_@s.raw", "x_1_500.raw", Some("1")),
            ("x_@v_@s.raw", "x_1_5k.raw", None),
            (
                "x_@v_@u.raw",
                "x_1_6f6f3d1c-0a1b-4c5d-8e9f-001122334455.raw",
                Some("1"),
            ),
            ("x_@v_@r.raw", "x_1_1.raw", Some("1")),
            ("x_@v_@r.raw", "x_1_2.raw", None),
        ] {
            let pattern = pattern(text).unwrap();
            let found = pattern.read(name).map(|named| named.version);
            assert_eq!(found, version, "{text} {name}");
        }
        let read = pattern("x_@v_@h.raw").unwrap();
        let named = read.read(&with_digest).unwrap();
        assert_eq!(named.digest, Some(digest.as_str()));
    }

    #[test]
    fn a_pattern_that_says_nothing_clear_is_refused() {
        for (text, why) in [
            ("", "no version"),
            ("myhost.raw", "no version"),
            ("x@", "ends in @"),
            ("x%", "ends in %"),
            ("@v@s", "right after"),
            ("@v-@v", "twice"),
            ("@v-@x", "unknown field @x"),
            ("@v-@S", "unknown field @S"),
            ("@v-%z", "%z"),
            ("@v/x", "'/'"),
            ("@v*", "'*'"),
            ("@v\n", "'\\n'"),
        ] {
            let error = pattern(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
