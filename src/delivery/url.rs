//! Addresses of files and directories on web servers.

use std::fmt;

use anyhow::{Context, Result, ensure};

/// An address that begins with http:// or https://. It can hold a password, so people see it without that.
#[derive(Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    /// Where the host begins, and where the path does.
    host: usize,
    path: usize,
}

impl Url {
    /// Whether a text means an address, and not a path.
    pub fn is_meant(text: &str) -> bool {
        text.contains("://")
    }

    /// Refuses what curl(1) could take for something else.
    pub fn parse(text: &str) -> Result<Self> {
        let lower = text.to_ascii_lowercase();
        let scheme = ["http://", "https://"]
            .into_iter()
            .find(|scheme| lower.starts_with(scheme));
        let scheme = scheme.context("it has to begin with http:// or https://")?;
        let is_plain = |c: char| ('!'..='~').contains(&c) && !"\"\\<>^`{|}#".contains(c);
        ensure!(
            text.chars().all(is_plain),
            "it has a character that has to be written as %HH"
        );
        let rest = &text[scheme.len()..];
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, place) = rest.split_at(end);
        let user = authority.rfind('@').map_or(0, |at| at + 1);
        ensure!(authority.len() > user, "it names no host");
        ensure!(!place.starts_with('?'), "it has no path");
        let slash = if place.is_empty() { "/" } else { "" };
        Ok(Self {
            text: format!("{scheme}{rest}{slash}"),
            host: scheme.len() + user,
            path: scheme.len() + end,
        })
    }

    /// As curl(1) gets it.
    pub fn secret(&self) -> &str {
        &self.text
    }

    pub fn is_https(&self) -> bool {
        self.text.starts_with("https:")
    }

    pub fn is_directory(&self) -> bool {
        self.without_query().ends_with('/')
    }

    /// The same as a directory, with a slash at the end.
    pub fn as_directory(&self) -> Self {
        let mut url = self.clone();
        if !url.is_directory() {
            url.text = format!("{}/", self.without_query());
        }
        url
    }

    /// The last part of the path, decoded, without what would do something to a terminal.
    pub fn name(&self) -> String {
        let path = self.without_query();
        let name = decoded(path.rsplit('/').next().unwrap_or_default());
        name.replace(char::is_control, "\u{fffd}")
    }

    /// Another file in the directory of this one, or in this directory.
    pub fn beside(&self, name: &str) -> Self {
        let path = self.without_query();
        let (dir, _) = path.rsplit_once('/').unwrap_or((path, ""));
        let mut url = self.clone();
        url.text = format!("{dir}/{}", encoded(name));
        url
    }

    /// The host, with its port.
    pub fn authority(&self) -> &str {
        &self.text[self.host..self.path]
    }

    /// Without what is asked there.
    pub fn path(&self) -> &str {
        &self.without_query()[self.path..]
    }

    /// Another path of this host.
    pub fn at(&self, path: &str) -> Self {
        let mut url = self.clone();
        url.text = format!("{}{}", &self.text[..self.path], encoded(path));
        url
    }

    /// The same, asked with these names and values as well.
    pub fn with_query<'a>(&self, values: impl Iterator<Item = (&'a str, &'a str)>) -> Self {
        let mut url = self.clone();
        for (name, value) in values {
            let sign = if url.text.contains('?') { '&' } else { '?' };
            // A plus sign would be a space there.
            let value = encoded(value).replace('+', "%2B");
            url.text.push_str(&format!("{sign}{name}={value}"));
        }
        url
    }

    fn without_query(&self) -> &str {
        self.text.split('?').next().unwrap_or_default()
    }
}

/// Without a user, a password and a query.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_https() { "https" } else { "http" };
        write!(f, "{scheme}://{}", &self.without_query()[self.host..])
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn encoded(name: &str) -> String {
    let mut text = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~+,=:@/".contains(&byte) {
            text.push(byte.into());
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

fn decoded(name: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = name;
    while let Some((before, after)) = rest.split_once('%') {
        bytes.extend(before.bytes());
        let byte = after
            .get(..2)
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(b'%'));
        rest = if byte.is_some() { &after[2..] } else { after };
    }
    bytes.extend(rest.bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_directories_and_names() {
        for (text, name, list, shown) in [
            (
                "https://example.org/a/b.raw",
                "b.raw",
                "https://example.org/a/SHA256SUMS",
                "https://example.org/a/b.raw",
            ),
            (
                "HTTP://u:p@[::1]:80/a%2bb?token=x/y",
                "a+b",
                "http://u:p@[::1]:80/SHA256SUMS",
                "http://[::1]:80/a%2bb",
            ),
            ("http://h", "", "http://h/SHA256SUMS", "http://h/"),
            ("http://h/d/", "", "http://h/d/SHA256SUMS", "http://h/d/"),
            (
                "http://u:p@q@h/%",
                "%",
                "http://u:p@q@h/SHA256SUMS",
                "http://h/%",
            ),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!(url.name(), name, "{text}");
            assert_eq!(url.beside("SHA256SUMS").secret(), list, "{text}");
            assert_eq!(
                format!("{url} {url:?}"),
                format!("{shown} {shown}"),
                "{text}"
            );
            assert_eq!(url.is_directory(), name.is_empty(), "{text}");
            assert!(url.as_directory().is_directory(), "{text}");
        }
        let odd = Url::parse("http://h/").unwrap().beside("a b%?#ä");
        assert_eq!(odd.secret(), "http://h/a%20b%25%3F%23%C3%A4");
        assert_eq!(Url::parse(odd.secret()).unwrap().name(), "a b%?#ä");
    }

    #[test]
    fn an_address_has_a_host_a_path_and_what_is_asked() {
        let url = Url::parse("https://u:p@h:5000/v2/a/?x=y").unwrap();
        assert_eq!((url.authority(), url.path()), ("h:5000", "/v2/a/"));
        assert_eq!(url.at("/v2/").secret(), "https://u:p@h:5000/v2/");
        for (address, wanted) in [
            ("https://h/t", "https://h/t?service=a%20b&scope=x:y%26z"),
            (
                "https://h/t?a=b",
                "https://h/t?a=b&service=a%20b&scope=x:y%26z",
            ),
        ] {
            let url = Url::parse(address).unwrap();
            let values = [("service", "a b"), ("scope", "x:y&z")];
            assert_eq!(url.with_query(values.into_iter()).secret(), wanted);
        }
    }

    #[test]
    fn what_is_no_address_of_a_web_server_is_refused() {
        for text in [
            "",
            "/srv/image",
            "file:///etc/passwd",
            "ftp://h/x",
            "https:/h",
            "http://",
            "http:///x",
            "http://u@/x",
            "http://h?x",
            "http://h/a b",
            "http://h/\n-o/etc/passwd",
            "http://h/\"",
            "http://h/#a",
            "http://h/{a,b}",
            "http://h/ä",
        ] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
        assert!(Url::is_meant("ftp://h/x") && !Url::is_meant("/srv/a:/b"));
    }
}
