//! What a web server answers, before the content: the headers as curl(1) writes them down.

use serde::{Deserialize, Serialize};

use super::ranges::{boundary, content_range};

/// What tells one content of a file from another one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Validator {
    pub etag: Option<String>,
    pub modified: Option<String>,
}

impl Validator {
    /// The value of If-Range, if there is a strong one (RFC 9110, 13.1.5).
    pub fn of_range(&self) -> Option<&str> {
        let strong = self.etag.as_deref().filter(|etag| !etag.starts_with("W/"));
        strong.or(self.modified.as_deref())
    }

    /// The headers that ask for a content only if it is another one.
    pub fn conditions(&self) -> Vec<String> {
        let etag = self
            .etag
            .as_ref()
            .map(|etag| format!("If-None-Match: {etag}"));
        let modified = self
            .modified
            .as_ref()
            .map(|time| format!("If-Modified-Since: {time}"));
        etag.into_iter().chain(modified).collect()
    }
}

/// The last answer: the one that the content belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    /// Of what follows, in bytes.
    pub length: Option<u64>,
    /// Of a part of a file: where it begins.
    pub from: Option<u64>,
    /// The first byte that is not of the part.
    pub end: Option<u64>,
    /// The length of the whole file, of which this is a part.
    pub whole: Option<u64>,
    /// What several parts are parted by.
    pub boundary: Option<String>,
    pub validator: Validator,
    pub is_page: bool,
    /// In seconds: when the server wants to be asked again.
    pub again_after: Option<u64>,
    /// What it wants to know of who asks.
    pub challenges: Vec<String>,
    /// Whether another answer has led here.
    pub is_redirected: bool,
}

/// How long what tells contents apart may be, in bytes.
const VALIDATOR_MOST: usize = 256;
/// How many challenges are read, and how long they may be, in bytes.
const CHALLENGES_MOST: usize = 4;
const CHALLENGE_MOST: usize = 2048;

impl Response {
    /// Reads the headers of several answers, of which the last counts: redirects and proxies come before it.
    pub fn parse(headers: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(headers);
        let mut response: Option<Self> = None;
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("HTTP/") {
                let status = rest.split_ascii_whitespace().nth(1)?.parse().ok()?;
                let leads = |it: &Self| it.is_redirected || (300..400).contains(&it.status);
                response = Some(Self {
                    status,
                    is_redirected: response.as_ref().is_some_and(leads),
                    ..Self::default()
                });
            } else if let (Some(response), Some((name, value))) =
                (&mut response, line.split_once(':'))
            {
                response.take(name, value.trim());
            }
        }
        response
    }

    fn take(&mut self, name: &str, value: &str) {
        let kept = |most: usize| {
            let is_plain = value.bytes().all(|byte| (b' '..=b'~').contains(&byte));
            (value.len() <= most && is_plain).then(|| value.to_owned())
        };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => self.length = value.parse().ok(),
            "content-range" => {
                let range = value.strip_prefix("bytes ").unwrap_or_default();
                let (part, whole) = range.split_once('/').unwrap_or_default();
                self.from = part.split('-').next().and_then(|from| from.parse().ok());
                self.end = content_range(value).map(|(range, _)| range.end);
                self.whole = whole.parse().ok();
            }
            "etag" => self.validator.etag = kept(VALIDATOR_MOST),
            "last-modified" => self.validator.modified = kept(VALIDATOR_MOST),
            "www-authenticate" if self.challenges.len() < CHALLENGES_MOST => {
                self.challenges.extend(kept(CHALLENGE_MOST));
            }
            // A date is left out: the clocks of both need not agree.
            "retry-after" => self.again_after = value.parse().ok(),
            "content-type" => {
                self.is_page = value.to_ascii_lowercase().starts_with("text/html");
                self.boundary = boundary(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts() {
        let headers = "HTTP/1.1 200 Connection established\r\n\r\n\
            HTTP/1.1 302 Found\r\nLocation: /b\r\nETag: \"a\"\r\nContent-Length: 5\r\n\r\n\
            HTTP/2 206 \r\ncontent-range: bytes 10-19/20\r\nETAG: \"b\"\r\nLast-Modified: Sat, 28 Nov 2026 12:00:00 GMT\r\n\
            content-length: 10\r\nContent-Type: Text/HTML; charset=x\r\nRetry-After: 5\r\nodd\r\n\r\n";
        let response = Response::parse(headers.as_bytes()).unwrap();
        let wanted = Response {
            status: 206,
            length: Some(10),
            from: Some(10),
            end: Some(20),
            whole: Some(20),
            boundary: None,
            validator: Validator {
                etag: Some("\"b\"".to_owned()),
                modified: Some("Sat, 28 Nov 2026 12:00:00 GMT".to_owned()),
            },
            is_page: true,
            again_after: Some(5),
            challenges: Vec::new(),
            is_redirected: true,
        };
        assert_eq!(response, wanted);
        for odd in ["", "HTTP/1.1", "HTTP/1.1 x y\r\n", "ETag: \"a\"\r\n"] {
            assert_eq!(Response::parse(odd.as_bytes()), None, "{odd}");
        }
        let odd = "HTTP/1.1 200 OK\r\nContent-Length: -1\r\nContent-Range: bytes */x\r\nETag: \"\x1b\"\r\n\
            Retry-After: Sat, 28 Nov 2026 12:00:00 GMT\r\n\r\n";
        let response = Response::parse(odd.as_bytes()).unwrap();
        assert_eq!(
            (response.length, response.from, response.whole),
            (None, None, None)
        );
        assert_eq!(response.validator, Validator::default());
        assert_eq!(response.again_after, None);
    }

    #[test]
    fn what_a_server_wants_to_know_is_kept_within_limits() {
        let headers = "HTTP/1.1 200 Connection established\r\n\r\n\
            HTTP/2 401\r\nWWW-Authenticate: Basic realm=\"a\"\r\nwww-authenticate: Bearer realm=\"b\"\r\n\r\n";
        let response = Response::parse(headers.as_bytes()).unwrap();
        assert_eq!(
            response.challenges,
            ["Basic realm=\"a\"", "Bearer realm=\"b\""]
        );
        assert!(!response.is_redirected);
        let long = format!("WWW-Authenticate: {}\r\n", "a".repeat(CHALLENGE_MOST + 1));
        let many = "WWW-Authenticate: Basic\r\n".repeat(9);
        let headers = format!("HTTP/1.1 401 x\r\n{long}{many}");
        let response = Response::parse(headers.as_bytes()).unwrap();
        assert_eq!(response.challenges.len(), CHALLENGES_MOST);
    }

    #[test]
    fn only_what_tells_each_byte_counts_for_a_range() {
        let validator = |etag: &str, modified: &str| Validator {
            etag: (!etag.is_empty()).then(|| etag.to_owned()),
            modified: (!modified.is_empty()).then(|| modified.to_owned()),
        };
        for (validator, wanted) in [
            (validator("\"a\"", "now"), Some("\"a\"")),
            (validator("W/\"a\"", "now"), Some("now")),
            (validator("W/\"a\"", ""), None),
            (validator("", ""), None),
        ] {
            assert_eq!(validator.of_range(), wanted);
        }
        let conditions = validator("W/\"a\"", "now").conditions();
        assert_eq!(
            conditions,
            ["If-None-Match: W/\"a\"", "If-Modified-Since: now"]
        );
    }
}
