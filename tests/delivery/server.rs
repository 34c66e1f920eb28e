//! A web server that does what a test says, also what no server should do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::Duration;

use imgbased_helper::delivery::url::Url;

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Request {
    pub path: String,
    /// With names in small letters.
    pub headers: BTreeMap<String, String>,
    /// How often this path was asked for before.
    pub before: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// Where the part begins that is asked for.
    pub fn from(&self) -> Option<usize> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        range.strip_suffix('-')?.parse().ok()
    }
}

/// A step of an answer. After the last one the connection is closed.
pub enum Step {
    Send(Vec<u8>),
    Wait(Duration),
}

pub type Answer = Vec<Step>;

pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// A server that answers so until the test has ended.
    pub fn new(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        let answer = Arc::new(answer);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                thread::spawn(move || serve(stream.unwrap(), &seen, &*answer));
            }
        });
        Self { address, requests }
    }

    pub fn url(&self, path: &str) -> Url {
        Url::parse(&format!("http://{}{path}", self.address)).unwrap()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What was asked for so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: TcpStream, seen: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Answer) {
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let Some(Ok(first)) = lines.next() else {
        return;
    };
    let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = BTreeMap::new();
    for line in lines.map_while(Result::ok) {
        let Some((name, value)) = line.split_once(": ") else {
            break;
        };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let request = {
        let mut seen = seen.lock().unwrap();
        let before = seen.iter().filter(|other| other.path == path).count();
        let request = Request {
            path,
            headers,
            before,
        };
        seen.push(request.clone());
        request
    };
    let mut stream = stream;
    for step in answer(&request) {
        match step {
            // Whoever has asked may have gone away.
            Step::Send(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Step::Wait(time) => sleep(time),
        }
    }
}

/// An answer with this status and these headers, and a content that is as long as they say or not.
pub fn raw(status: u16, headers: &[&str], content: &[u8]) -> Answer {
    let mut head = format!("HTTP/1.1 {status} x\r\nConnection: close\r\n");
    for header in headers {
        head += &format!("{header}\r\n");
    }
    vec![
        Step::Send(format!("{head}\r\n").into_bytes()),
        Step::Send(content.to_vec()),
    ]
}

pub fn status(status: u16) -> Answer {
    raw(status, &["Content-Length: 0"], b"")
}

/// How a file is there.
#[derive(Clone, Copy)]
pub struct File<'a> {
    pub content: &'a [u8],
    pub etag: &'a str,
    pub has_ranges: bool,
}

impl File<'_> {
    /// What a good server answers.
    pub fn answer(&self, request: &Request) -> Answer {
        self.cut(request, usize::MAX)
    }

    /// The same, but the connection is closed after so many bytes of the content.
    pub fn cut(&self, request: &Request, most: usize) -> Answer {
        let whole = self.content.len();
        let etag = format!("ETag: {}", self.etag);
        let is_same = |name| request.header(name).is_none_or(|etag| etag == self.etag);
        if request.header("if-none-match") == Some(self.etag) && !self.etag.is_empty() {
            return raw(304, &[&etag], b"");
        }
        let from = request
            .from()
            .filter(|_| self.has_ranges && is_same("if-range"));
        let rest = match from {
            Some(from) if from >= whole => {
                return raw(
                    416,
                    &[
                        &format!("Content-Range: bytes */{whole}"),
                        "Content-Length: 0",
                    ],
                    b"",
                );
            }
            from => &self.content[from.unwrap_or(0)..],
        };
        if self.has_ranges && request.header("range") == Some("bytes=0-0") {
            let range = format!("Content-Range: bytes 0-0/{whole}");
            return raw(206, &[&range, "Content-Length: 1"], &rest[..1]);
        }
        let mut headers = vec![format!("Content-Length: {}", rest.len())];
        if !self.etag.is_empty() {
            headers.push(etag);
        }
        if let Some(from) = from {
            headers.push(format!("Content-Range: bytes {from}-{}/{whole}", whole - 1));
        }
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let code = if from.is_some() { 206 } else { 200 };
        raw(code, &headers, &rest[..rest.len().min(most)])
    }
}
