//! A download that breaks off at each tenth, and a server that does something else from then on: it ends in the right
//! file, or in a refusal that says why. What is here is not fetched again when the server is a good one again.

use std::fs;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use imgbased_helper::delivery::Found;
use imgbased_helper::delivery::spool::{Fetched, Spool};

use crate::fetch::{SIZE, digest, fetch, fetcher, good, other, without_ranges};
use crate::server::{Answer, Request, Server, Step, raw, status};

/// What a server does: its name, what it answers from the second request on, and why a file that is kept is refused, if
/// so.
type Fault = (
    &'static str,
    fn(&Request) -> Answer,
    Result<(), &'static str>,
);

const FAULTS: &[Fault] = &[
    (
        "it closes",
        |request| good().cut(request, 0),
        Err("after 4 tries"),
    ),
    (
        "it says that there is more",
        |request| {
            let from = request.from().unwrap_or(0);
            let (whole, rest) = (SIZE + 1000, &good().content[from..]);
            let length = format!("Content-Length: {}", whole - from);
            let range = format!("Content-Range: bytes {from}-{}/{whole}", whole - 1);
            match request.from() {
                Some(_) => raw(206, &[&length, &range, "ETag: \"1\""], rest),
                None => raw(200, &[&length, "ETag: \"1\""], rest),
            }
        },
        Ok(()),
    ),
    (
        "it has another file",
        |request| other().answer(request),
        Err("has the SHA-256"),
    ),
    (
        "it has no ranges",
        |request| without_ranges(good()).answer(request),
        Ok(()),
    ),
    (
        "it sends another part",
        |_| {
            raw(
                206,
                &["Content-Range: bytes 5-9/10", "Content-Length: 5"],
                b"wrong",
            )
        },
        Err("has changed"),
    ),
    ("it has none", |_| status(404), Err("404")),
    ("it forbids it", |_| status(403), Err("403")),
    (
        "it is asked too often",
        |request| match request.before {
            1 => raw(429, &["Retry-After: 1", "Content-Length: 0"], b""),
            _ => good().answer(request),
        },
        Ok(()),
    ),
    (
        "it is asked far too often",
        |_| raw(429, &["Retry-After: 3600", "Content-Length: 0"], b""),
        Err("asked again in 3600 s"),
    ),
    (
        "it is broken twice",
        |request| match request.before {
            1 | 2 => status(503),
            _ => good().answer(request),
        },
        Ok(()),
    ),
    ("it is broken", |_| status(503), Err("after 4 tries")),
    (
        "it redirects in a circle",
        |_| raw(302, &["Location: /image", "Content-Length: 0"], b""),
        Err("redirects"),
    ),
    (
        "it sends a page",
        |_| {
            raw(
                200,
                &["Content-Type: text/html", "Content-Length: 6"],
                b"<html>",
            )
        },
        Err("a web page"),
    ),
];

/// Those that take their time.
const STALLS: Fault = (
    "it stalls",
    |_| vec![Step::Wait(Duration::from_secs(60))],
    Err("after 4 tries"),
);

/// A server whose first answer ends after so many bytes, with the fault from then on, until it is good again.
fn server(have: usize, answer: fn(&Request) -> Answer) -> (Server, Arc<AtomicBool>) {
    let is_good = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&is_good);
    let server = Server::new(move |request| match request.before {
        0 => good().cut(request, have),
        _ if seen.load(Ordering::Relaxed) => good().answer(request),
        _ => answer(request),
    });
    (server, is_good)
}

/// Has a file fetched into a spool, and again when the server is good.
fn kept((name, answer, wanted): Fault, have: usize) {
    let dir = tempfile::tempdir().unwrap();
    let (server, is_good) = server(have, answer);
    let url = server.url("/image");
    let wanted = if have == SIZE { Ok(()) } else { wanted };
    let started = Instant::now();
    match (fetch(dir.path(), &url), wanted) {
        (Ok(_), Ok(())) => {}
        (Err(error), Err(why)) => assert!(error.contains(why), "{name} at {have}: {error}"),
        (fetched, _) => panic!("{name} at {have}: {fetched:?}"),
    }
    assert!(started.elapsed() < Duration::from_secs(30), "{name}");
    is_good.store(true, Ordering::Relaxed);
    let part = dir.path().join(format!("{}.part", digest(good().content)));
    let left = part.metadata().map_or(0, |file| file.len());
    let asked = server.requests().len();
    let fetched = fetch(dir.path(), &url).unwrap();
    let Fetched::Here(path) = fetched else {
        panic!("{fetched:?}")
    };
    assert_eq!(fs::read(path).unwrap(), good().content, "{name} at {have}");
    if left > 0 {
        let requests = server.requests();
        assert_eq!(left, have as u64, "{name}");
        assert_eq!(requests[asked].from(), Some(have), "{name} at {have}");
    }
    for path in Spool::at(dir.path()).unused() {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{name}");
}

/// Reads a file from the server, as where there is no room to keep it. It is the right one where it has an end, and what
/// was read cannot be taken back where it is another one.
fn streamed((name, answer, wanted): Fault, have: usize) {
    let (server, _) = server(have, answer);
    let found = Found {
        url: server.url("/image"),
        digest: digest(good().content),
        version: None,
        signer: None,
        marker: None,
        list: None,
        is_of_place: false,
    };
    let started = Instant::now();
    let mut read = Vec::new();
    let done = found.checked(&fetcher(), SIZE as u64).and_then(|mut body| {
        body.read_to_end(&mut read)?;
        Ok(())
    });
    assert!(started.elapsed() < Duration::from_secs(30), "{name}");
    if let Err(error) = done {
        let error = format!("{error:#}");
        let mut whys = vec![
            "another file than before",
            "another length",
            "has not the length",
        ];
        whys.push(wanted.err().unwrap_or("after 4 tries"));
        assert!(
            whys.iter().any(|why| error.contains(why)),
            "{name} at {have}: {error}"
        );
        assert_ne!(have, SIZE, "{name}");
    } else {
        assert_eq!(read, good().content, "{name} at {have}");
    }
}

#[test]
fn whatever_follows_a_tenth_of_a_download_it_ends_well_or_is_refused() {
    thread::scope(|scope| {
        for fault in FAULTS {
            scope.spawn(|| {
                for tenth in 0..=10 {
                    kept(*fault, SIZE * tenth / 10);
                    streamed(*fault, SIZE * tenth / 10);
                }
            });
        }
        for tenth in 0..10 {
            scope.spawn(move || kept(STALLS, SIZE * tenth / 10));
            scope.spawn(move || streamed(STALLS, SIZE * tenth / 10));
        }
    });
}
