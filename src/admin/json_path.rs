//! Paths in JSON, which is UTF-8, while a path is any bytes.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A path as text, and in base64 where it is no UTF-8.
pub fn of(path: &Path) -> (String, Option<String>) {
    let text = path.to_str().map(str::to_owned);
    let bytes = text.is_none().then(|| base64(path.as_os_str().as_bytes()));
    let text = text.unwrap_or_else(|| path.to_string_lossy().into_owned());
    (text, bytes)
}

/// The path of which [`of`] has made these. What is no base64 counts as not there.
pub fn read(text: &str, bytes: Option<&str>) -> PathBuf {
    let bytes = bytes.and_then(from_base64);
    bytes.map_or_else(|| text.into(), |bytes| OsString::from_vec(bytes).into())
}

/// RFC 4648
fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let value = bits >> (18 - 6 * digit) & 63;
            text.push(if digit <= chunk.len() {
                char::from(DIGITS[value as usize])
            } else {
                '='
            });
        }
    }
    text
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut digits) = (Vec::new(), 0_u32, 0_u32);
    for digit in text.trim_end_matches('=').bytes() {
        let value = DIGITS.iter().position(|known| *known == digit)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        digits += 1;
        if digits % 4 != 1 {
            let rest = 6 - 2 * ((digits - 1) % 4);
            bytes.push(u8::try_from(bits >> rest & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn bytes_are_written_as_base64_and_read_again() {
        for (bytes, text) in [
            (&b""[..], ""),
            (b"f", "Zg=="),
            (b"fo", "Zm8="),
            (b"foo", "Zm9v"),
            (b"foobar", "Zm9vYmFy"),
            (b"\xff\xfe\xfd\xfc", "//79/A=="),
        ] {
            assert_eq!(base64(bytes), text);
            assert_eq!(from_base64(text).unwrap(), bytes, "{text}");
        }
        for text in ["Zm9v\n", "Zm-v", "\u{e4}"] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }

    #[test]
    fn any_path_is_found_again() {
        for (path, has_bytes) in [
            (&b"/etc/issue"[..], false),
            (b"/etc/two\nlines", false),
            (b"/etc/latin\xe4", true),
        ] {
            let path = Path::new(OsStr::from_bytes(path));
            let (text, bytes) = of(path);
            assert_eq!(bytes.is_some(), has_bytes, "{text}");
            assert_eq!(read(&text, bytes.as_deref()), path);
        }
        assert_eq!(read("/etc/x", Some("?")), Path::new("/etc/x"));
    }
}
