//! How names are written for people.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

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

/// The path of which [`escaped`] has made this; `None` if it has not.
pub fn unescaped(text: &[u8]) -> Option<OsString> {
    let mut path = Vec::new();
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        rest = more;
        if *first != b'\\' {
            path.push(*first);
            continue;
        }
        let (kind, more) = rest.split_first()?;
        rest = more;
        path.push(match kind {
            b'\\' => b'\\',
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'0'..=b'7' => {
                let (last, more) = rest.split_at_checked(2)?;
                rest = more;
                let digits = [*kind, last[0], last[1]];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 8).ok()?
            }
            _ => return None,
        });
    }
    Some(OsString::from_vec(path))
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
            let name = OsStr::from_bytes(name);
            assert_eq!(escaped(name), text);
            assert_eq!(unescaped(text.as_bytes()).as_deref(), Some(name));
        }
        for text in ["\\", "\\x", "\\0", "\\01", "\\777", "\\08x", "\\+12"] {
            assert_eq!(unescaped(text.as_bytes()), None, "{text}");
        }
    }
}
