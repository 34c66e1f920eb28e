//! The text format of lvm2's configuration and metadata (lvm.conf(5), libdm's `dm_config_parse`).

use anyhow::{Result, bail, ensure};

/// Deeper than any text of lvm2.
const DEPTH_MAX: usize = 16;

/// What is between two braces: values and further sections, in their order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Section {
    values: Vec<(String, Vec<Value>)>,
    sections: Vec<(String, Section)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Value {
    Number(u64),
    Text(String),
    /// A fraction or something else that nobody here asks for.
    Other,
}

impl Section {
    pub fn section(&self, name: &str) -> Option<&Self> {
        let found = self.sections.iter().find(|(n, _)| n == name);
        found.map(|(_, section)| section)
    }

    pub fn sections(&self) -> impl Iterator<Item = (&str, &Self)> {
        self.sections.iter().map(|(name, s)| (name.as_str(), s))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.list(name).next()
    }

    pub fn number(&self, name: &str) -> Option<u64> {
        match self.values(name).first() {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// The strings of a list; a value alone is a list of one.
    pub fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        self.values(name).iter().filter_map(|value| match value {
            Value::Text(text) => Some(text.as_str()),
            _ => None,
        })
    }

    fn values(&self, name: &str) -> &[Value] {
        let found = self.values.iter().find(|(n, _)| n == name);
        found.map_or(&[], |(_, values)| values)
    }
}

/// Reads a whole text. Refuses one that ends in the middle or is nested without end.
pub fn parse(text: &str) -> Result<Section> {
    let mut reader = Reader { rest: text };
    let section = reader.section(0)?;
    ensure!(reader.rest.is_empty(), "a closing brace too many");
    Ok(section)
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Reads up to the end of the text, or to the brace that closes the section.
    fn section(&mut self, depth: usize) -> Result<Section> {
        ensure!(depth < DEPTH_MAX, "nested too deep");
        let mut section = Section::default();
        loop {
            self.skip_space();
            if self.rest.is_empty() {
                ensure!(depth == 0, "a section without an end");
                return Ok(section);
            }
            if depth > 0 && self.take('}') {
                return Ok(section);
            }
            if self.rest.starts_with('}') {
                return Ok(section);
            }
            let name = self.word()?;
            self.skip_space();
            if self.take('{') {
                let inner = self.section(depth + 1)?;
                section.sections.push((name, inner));
            } else if self.take('=') {
                section.values.push((name, self.values()?));
            } else {
                bail!("{name:?} is neither a value nor a section");
            }
        }
    }

    fn values(&mut self) -> Result<Vec<Value>> {
        self.skip_space();
        if !self.take('[') {
            return Ok(vec![self.value()?]);
        }
        let mut values = Vec::new();
        loop {
            self.skip_space();
            if self.take(']') {
                return Ok(values);
            }
            values.push(self.value()?);
            self.skip_space();
            ensure!(
                self.take(',') || self.rest.starts_with(']'),
                "a list without an end"
            );
        }
    }

    fn value(&mut self) -> Result<Value> {
        if self.rest.starts_with('"') {
            return Ok(Value::Text(self.word()?));
        }
        let word = self.word()?;
        Ok(word.parse().map_or(Value::Other, Value::Number))
    }

    /// A word, or a text in quotes, in which `\` stands before `"` and `\`.
    fn word(&mut self) -> Result<String> {
        let mut word = String::new();
        if self.take('"') {
            let mut chars = self.rest.chars();
            loop {
                match chars.next() {
                    Some('"') => break,
                    Some('\\') => word.extend(chars.next()),
                    Some(c) => word.push(c),
                    None => bail!("a string without an end"),
                }
            }
            self.rest = chars.as_str();
        } else {
            let end = |c: char| c.is_whitespace() || "{}[]=,#\"".contains(c);
            let length = self.rest.find(end).unwrap_or(self.rest.len());
            let (head, tail) = self.rest.split_at(length);
            word.push_str(head);
            self.rest = tail;
            ensure!(
                !word.is_empty(),
                "a word is missing before {:?}",
                first(tail)
            );
        }
        Ok(word)
    }

    fn take(&mut self, wanted: char) -> bool {
        let rest = self.rest.strip_prefix(wanted);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// Skips white space and comments.
    fn skip_space(&mut self) {
        loop {
            self.rest = self.rest.trim_start();
            if !self.rest.starts_with('#') {
                return;
            }
            self.rest = self.rest.split_once('\n').map_or("", |(_, rest)| rest);
        }
    }
}

fn first(text: &str) -> String {
    text.chars().take(20).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_lists_and_sections() {
        let text = "# Generated\nHostVG {\n id = \"a-b\"\n seqno = 12\n tags = [\"x\", \"y=\\\"z\\\\\"]\n\
                    empty = []\n f = 1.5\n status = \"VISIBLE\" # alone\n  \"odd name\" {\n a=1\n}\n}\n\n contents = \"T\"\nversion = 1\n";
        let all = parse(text).unwrap();
        let group = all.section("HostVG").unwrap();
        assert_eq!(group.text("id"), Some("a-b"));
        assert_eq!(group.number("seqno"), Some(12));
        assert_eq!(group.list("tags").collect::<Vec<_>>(), ["x", "y=\"z\\"]);
        assert_eq!(group.list("empty").count(), 0);
        assert_eq!((group.number("f"), group.text("none")), (None, None));
        assert_eq!(group.list("status").collect::<Vec<_>>(), ["VISIBLE"]);
        assert_eq!(group.section("odd name").unwrap().number("a"), Some(1));
        assert_eq!(all.text("contents"), Some("T"));
    }

    #[test]
    fn what_is_cut_off_or_endless_is_refused() {
        for text in [
            "a {",
            "a = ",
            "a = \"x",
            "a = \"x\\",
            "a = [\"x\"",
            "a = [1 2]",
            "a b",
            "}",
            "a { } }",
            "= 1",
            "a",
            &"a {".repeat(100_000),
        ] {
            assert!(parse(text).is_err(), "{:?}", first(text));
        }
        assert_eq!(parse("").unwrap(), Section::default());
    }
}
