//! Holds documents against the published schemas of `src/admin/schemas`: what JSON Schema (draft 2020-12) has, as far as
//! they use it. A word that is not known here is refused, so that none is passed over.
//!
//! Other programs read a document of a later version, so their schemas leave room for more fields. Here a field that no
//! schema knows is a fault.

use std::fs;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

/// What several of them have.
const COMMON: &str = "common";

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src/admin/schemas"))
}

/// The documents that have a schema, in the order of their names.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(directory()).expect("the schemas are there");
    let files = entries.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = files
        .map(|name| name.into_string().expect("a plain name"))
        .filter_map(|name| name.strip_suffix(".json").map(str::to_owned))
        .filter(|name| name != COMMON)
        .collect();
    names.sort_unstable();
    names
}

fn read(name: &str) -> Value {
    let path = directory().join(format!("{name}.json"));
    let text = fs::read_to_string(&path);
    let text = text.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What is wrong with a document, if anything is.
pub fn check(name: &str, document: &Value) -> Result<(), String> {
    let schema = Schema {
        file: name.to_owned(),
        root: read(name),
    };
    schema.check(&schema.root, document, name)
}

/// Claims that a document is as its schema says.
pub fn assert_holds(name: &str, document: &impl Serialize) {
    let document = serde_json::to_value(document).expect("a document");
    if let Err(error) = check(name, &document) {
        panic!("{error}\n{document:#}");
    }
}

struct Schema {
    file: String,
    root: Value,
}

impl Schema {
    /// Checks what is at `place` of a document.
    fn check(&self, schema: &Value, value: &Value, place: &str) -> Result<(), String> {
        let schema = schema.as_object().ok_or("a schema is an object")?;
        for (word, rule) in schema {
            match word.as_str() {
                "$schema" | "$defs" | "title" | "description" | "required" | "properties" => {}
                "$ref" => self.check_reference(rule, value, place)?,
                "type" => check_type(rule, value, place)?,
                "const" => expect(value == rule, place, value)?,
                "enum" => expect(list(rule).contains(value), place, value)?,
                "minimum" => {
                    let is_less = value.as_f64() < rule.as_f64();
                    expect(!value.is_number() || !is_less, place, value)?;
                }
                "items" => {
                    for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(rule, item, &format!("{place}[{at}]"))?;
                    }
                }
                "anyOf" => {
                    let tried = list(rule).iter();
                    let tried = tried.map(|schema| self.check(schema, value, place));
                    let wrong: Vec<String> = tried.filter_map(Result::err).collect();
                    if wrong.len() == list(rule).len() {
                        return Err(wrong.join(", or "));
                    }
                }
                word => return Err(format!("{}: the word {word} is not known", self.file)),
            }
        }
        match value.as_object() {
            Some(object) if schema.contains_key("properties") => {
                self.check_fields(schema, object, place)
            }
            _ => Ok(()),
        }
    }

    fn check_fields(
        &self,
        schema: &Map<String, Value>,
        object: &Map<String, Value>,
        place: &str,
    ) -> Result<(), String> {
        for name in schema.get("required").map_or(&[][..], list) {
            let name = name.as_str().ok_or("a name is a string")?;
            if !object.contains_key(name) {
                return Err(format!("{place} has no {name}"));
            }
        }
        for (name, value) in object {
            let rule = &schema["properties"][name];
            if rule.is_null() {
                return Err(format!("{place}: no schema knows {name}"));
            }
            self.check(rule, value, &format!("{place}.{name}"))?;
        }
        Ok(())
    }

    fn check_reference(&self, rule: &Value, value: &Value, place: &str) -> Result<(), String> {
        let reference = rule.as_str().ok_or("a reference is a string")?;
        let (file, name) = reference
            .split_once("#/$defs/")
            .ok_or_else(|| format!("{reference} is no reference that is known"))?;
        let file = file.strip_suffix(".json").unwrap_or(&self.file);
        let other = Self {
            file: file.to_owned(),
            root: read(file),
        };
        let schema = &other.root["$defs"][name];
        other.check(schema, value, place)
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn check_type(rule: &Value, value: &Value, place: &str) -> Result<(), String> {
    let is_of = |kind: &Value| match kind.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    let is_right = match rule {
        Value::Array(kinds) => kinds.iter().any(is_of),
        kind => is_of(kind),
    };
    expect(is_right, place, value)
}

fn expect(is_right: bool, place: &str, value: &Value) -> Result<(), String> {
    if is_right {
        return Ok(());
    }
    Err(format!("{place} cannot be {value}"))
}
