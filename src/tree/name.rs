//! How names are written for people.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

/// A path on one line, as in C: control characters, backslashes, and bytes that are no UTF-8.
pub fn escaped(path: impl AsRef<OsStr>) -> String {
    let mut text = String::new();
    for chunk in path.as_ref().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\n' => text.push_str("\\n"),
                '\t' => text.push_str("\\t"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => {
                    let mut bytes = [0; 4];
                    text.extend(c.encode_utf8(&mut bytes).bytes().map(octal));
                }
                c => text.push(c),
            }
        }
        text.extend(chunk.invalid().iter().copied().map(octal));
    }
    text
}

fn octal(byte: u8) -> String {
    format!("\\{byte:03o}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_on_its_line() {
        for (name, text) in [
            (&b"/etc/a b"[..], "/etc/a b"),
            (b"two\nlines\t\r", "two\\nlines\\t\\r"),
            (b"back\\slash", "back\\\\slash"),
            (b"\x1b[2J\x7f", "\\033[2J\\177"),
            ("\u{85}".as_bytes(), "\\302\\205"),
            ("b\u{e4}r".as_bytes(), "b\u{e4}r"),
            (b"latin\xe4", "latin\\344"),
        ] {
            assert_eq!(escaped(OsStr::from_bytes(name)), text);
        }
    }
}
