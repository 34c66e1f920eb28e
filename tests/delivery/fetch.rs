//! Fetching from a server that closes, stalls, lies, changes the file, or has something else: each time it ends in the
//! right file, or in a refusal that says why, and in bounded time.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use imgbased_helper::delivery::Found;
use imgbased_helper::delivery::fetch::{Fetcher, Patience};
use imgbased_helper::delivery::spool::{Fetched, Spool};
use imgbased_helper::delivery::url::Url;
use sha2::{Digest, Sha256};

use crate::child;
use crate::server::{Answer, File, Request, Server, Step, raw, status};

pub const SIZE: usize = 300_000;
pub const TRIES: u32 = 4;

/// The right file, and another one.
fn content(seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    (0..SIZE).map(|_| random.u8(..)).collect()
}

pub fn digest(content: &[u8]) -> String {
    format!("{:x}", Sha256::digest(content))
}

pub fn fetcher() -> Fetcher {
    Fetcher {
        patience: Patience {
            stall: 1,
            tries: TRIES,
            pause: Duration::from_millis(20),
            longest: Duration::from_secs(3),
        },
        ..Fetcher::default()
    }
}

pub fn fetch(dir: &Path, url: &Url) -> Result<Fetched, String> {
    let fetched = Spool::at(dir).fetch(&fetcher(), url, &digest(&content(1)));
    fetched.map_err(|error| format!("{error:#}"))
}

/// What a server does: its name, what it answers, why it is refused if so, and how often it is asked at most.
type Case = (
    &'static str,
    fn(&Request) -> Answer,
    Result<(), &'static str>,
    u32,
);

pub fn good() -> File<'static> {
    File {
        content: content(1).leak(),
        etag: "\"1\"",
        has_ranges: true,
    }
}

pub fn other() -> File<'static> {
    File {
        content: content(2).leak(),
        etag: "\"2\"",
        has_ranges: true,
    }
}

/// The file without what tells it from another one.
fn unnamed(file: File<'static>) -> File<'static> {
    File { etag: "", ..file }
}

pub fn without_ranges(file: File<'static>) -> File<'static> {
    File {
        has_ranges: false,
        ..file
    }
}

fn with_length(length: usize) -> Answer {
    let length = format!("Content-Length: {length}");
    raw(200, &[&length, "ETag: \"1\""], good().content)
}

const CASES: &[Case] = &[
    ("it is good", |request| good().answer(request), Ok(()), 1),
    (
        "it closes after each third",
        |request| good().cut(request, SIZE / 3),
        Ok(()),
        4,
    ),
    (
        "it closes once and has no ranges",
        |request| match request.before {
            0 => without_ranges(good()).cut(request, SIZE / 2),
            _ => without_ranges(good()).answer(request),
        },
        Ok(()),
        3,
    ),
    (
        "it closes each time and has no ranges",
        |request| without_ranges(good()).cut(request, SIZE / 2),
        Err("has no parts"),
        2 * TRIES,
    ),
    (
        "it stalls once",
        |request| {
            let mut answer = good().cut(request, if request.before == 0 { SIZE / 2 } else { SIZE });
            if request.before == 0 {
                answer.push(Step::Wait(Duration::from_secs(60)));
            }
            answer
        },
        Ok(()),
        2,
    ),
    (
        "it stalls before each answer",
        |_| vec![Step::Wait(Duration::from_secs(60))],
        Err("after 4 tries"),
        TRIES,
    ),
    (
        "it trickles",
        |_| {
            let mut answer = raw(200, &[&format!("Content-Length: {SIZE}")], b"");
            for byte in 0..200 {
                answer.push(Step::Send(vec![byte; 20]));
                answer.push(Step::Wait(Duration::from_millis(100)));
            }
            answer
        },
        Err("has no parts"),
        2 * TRIES,
    ),
    (
        "a part of it has no end",
        |request| match request.from() {
            None => good().cut(request, SIZE / 2),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-{}/{SIZE}", SIZE - 1);
                raw(206, &[&range], &vec![7; 2 * SIZE])
            }
        },
        Err("longer than its server says"),
        2 * TRIES,
    ),
    (
        "it has headers without an end",
        |_| {
            let mut answer = vec![Step::Send(b"HTTP/1.1 200 OK\r\n".to_vec())];
            answer.extend((0..200).map(|_| Step::Send(b"X: y\r\n".repeat(10_000))));
            answer
        },
        Err("cannot fetch"),
        TRIES,
    ),
    (
        "it says that the file is longer",
        |request| match request.from() {
            None => with_length(SIZE + 1000),
            Some(_) => good().answer(request),
        },
        Ok(()),
        2,
    ),
    (
        "it says that the file is shorter",
        |_| with_length(SIZE - 1000),
        Err("has the SHA-256"),
        TRIES,
    ),
    (
        "it says no length",
        |_| raw(200, &[], good().content),
        Ok(()),
        1,
    ),
    (
        "it says an odd length",
        |_| raw(200, &["Content-Length: -5"], good().content),
        Err("cannot fetch"),
        TRIES,
    ),
    (
        "the file changes to the right one",
        |request| match request.before {
            0 => other().cut(request, SIZE / 2),
            _ => good().answer(request),
        },
        Ok(()),
        3,
    ),
    (
        "the file changes to a wrong one",
        |request| match request.before {
            0 => good().cut(request, SIZE / 2),
            _ => other().answer(request),
        },
        Err("has the SHA-256"),
        TRIES,
    ),
    (
        "the file changes and nothing tells that",
        |request| match request.before {
            0 => unnamed(other()).cut(request, SIZE / 2),
            _ => unnamed(good()).answer(request),
        },
        Ok(()),
        3,
    ),
    (
        "the file changes each time",
        |request| {
            let etag: &str = format!("\"{}\"", request.before + 10).leak();
            File { etag, ..good() }.cut(request, SIZE / 2)
        },
        Err("another file than before"),
        2 * TRIES,
    ),
    (
        "it sends another part than was asked for",
        |request| match request.from() {
            Some(_) if request.before == 1 => raw(
                206,
                &["Content-Range: bytes 5-9/10", "Content-Length: 5"],
                b"wrong",
            ),
            _ => good().cut(request, if request.before == 0 { SIZE / 2 } else { SIZE }),
        },
        Ok(()),
        3,
    ),
    ("it has none", |_| status(404), Err("404"), 1),
    ("it forbids it", |_| status(403), Err("403"), 1),
    (
        "it is asked too often",
        |_| status(429),
        Err("after 4 tries"),
        TRIES,
    ),
    (
        "it is asked too often, and says when to ask again",
        |request| match request.before {
            0 => raw(429, &["Retry-After: 1", "Content-Length: 0"], b""),
            _ => good().answer(request),
        },
        Ok(()),
        2,
    ),
    (
        "it wants to be asked again in an hour",
        |_| raw(429, &["Retry-After: 3600", "Content-Length: 0"], b""),
        Err("asked again in 3600 s"),
        1,
    ),
    (
        "it is busy, and wants to be asked again in ages",
        |_| raw(503, &["Retry-After: 18446744073709551615"], b""),
        Err("asked again in 18446744073709551615 s"),
        1,
    ),
    (
        "it is asked too often, and says something odd",
        |request| match request.before {
            0 => raw(429, &["Retry-After: -1", "Content-Length: 0"], b""),
            _ => good().answer(request),
        },
        Ok(()),
        2,
    ),
    ("it is gone", |_| status(410), Err("410"), 1),
    ("it is broken", |_| status(503), Err("after 4 tries"), TRIES),
    (
        "it is broken twice",
        |request| match request.before {
            0 | 1 => status(503),
            _ => good().answer(request),
        },
        Ok(()),
        3,
    ),
    (
        "it redirects in a circle",
        |request| {
            let next = if request.path == "/a" { "/image" } else { "/a" };
            raw(
                302,
                &[&format!("Location: {next}"), "Content-Length: 0"],
                b"",
            )
        },
        Err("redirects"),
        6,
    ),
    (
        "it redirects to the file",
        |request| match request.path.as_str() {
            "/a" => good().answer(request),
            _ => raw(
                302,
                &["Location: /a", "Content-Length: 3", "ETag: \"x\""],
                b"see",
            ),
        },
        Ok(()),
        2,
    ),
    (
        "it redirects to a file of this host",
        |_| {
            raw(
                302,
                &["Location: file:///etc/passwd", "Content-Length: 0"],
                b"",
            )
        },
        Err("file"),
        1,
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
        1,
    ),
    (
        "it sends nothing",
        |_| status(200),
        Err("has the SHA-256"),
        1,
    ),
    (
        "it closes at once",
        |_| Vec::new(),
        Err("after 4 tries"),
        TRIES,
    ),
    (
        "it does not speak http",
        |_| vec![Step::Send(b"220 ftp ready\r\n".to_vec())],
        Err("cannot fetch"),
        TRIES,
    ),
];

#[test]
fn whatever_a_server_does_ends_in_the_right_file_or_a_refusal() {
    let run = |(name, answer, wanted, most): Case| {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        let server = Server::new(answer);
        let started = Instant::now();
        let fetched = fetch(&spool, &server.url("/image"));
        assert!(started.elapsed() < Duration::from_secs(30), "{name}");
        let requests = server.requests().len();
        assert!(requests <= most as usize, "{name}: {requests} requests");
        let left: Vec<String> = fs::read_dir(&spool)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        match (fetched, wanted) {
            (Ok(Fetched::Here(path)), Ok(())) => {
                assert_eq!(fs::read(path).unwrap(), good().content, "{name}");
                assert_eq!(left.len(), 1, "{name}: {left:?}");
            }
            (Err(error), Err(why)) => {
                assert!(error.contains(why), "{name}: {error}");
                // What a later command goes on with, and nothing else.
                let is_part =
                    |name: &String| [".part", ".json"].iter().any(|end| name.ends_with(end));
                assert!(left.iter().all(is_part), "{name}: {left:?}");
                assert!(
                    !left.is_empty() || why == "has the SHA-256" || why == "a web page",
                    "{name}"
                );
            }
            (fetched, _) => panic!("{name}: {fetched:?}"),
        }
    };
    thread::scope(|scope| {
        for case in CASES {
            scope.spawn(move || run(*case));
        }
    });
}

#[test]
fn what_was_fetched_before_is_not_fetched_again() {
    let whole = good().content;
    for tenth in 0..=10 {
        let have = SIZE * tenth / 10;
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(move |request| {
            good().cut(request, if request.before == 0 { have } else { SIZE })
        });
        let url = server.url("/image");
        // As a process that was killed leaves it.
        let mut impatient = fetcher();
        impatient.patience.tries = 1;
        let spool = Spool::at(dir.path());
        let fetched = spool.fetch(&impatient, &url, &digest(whole));
        assert_eq!(fetched.is_ok(), have == SIZE, "{have}");
        let fetched = fetch(dir.path(), &url).unwrap();
        let Fetched::Here(held) = fetched else {
            panic!("{fetched:?}")
        };
        assert_eq!(fs::read(&held).unwrap(), whole);
        let requests = server.requests();
        if have == SIZE {
            assert_eq!(requests.len(), 1);
        } else if have > 0 {
            assert_eq!(requests.last().unwrap().from(), Some(have));
            assert_eq!(requests.last().unwrap().header("if-range"), Some("\"1\""));
        }
        // It is there, and nobody is asked; where it was damaged, it is fetched once more.
        let asked = requests.len();
        fetch(dir.path(), &url).unwrap();
        assert_eq!(server.requests().len(), asked);
        // As long as it is read, it stays.
        assert_eq!(spool.unused(), Vec::<std::path::PathBuf>::new());
        let path = held.release();
        fs::write(&path, "damaged").unwrap();
        fetch(dir.path(), &url).unwrap();
        assert_eq!(fs::read(&path).unwrap(), whole);
        // All of it is for gc.
        assert_eq!(spool.unused(), [path]);
    }
}

#[test]
fn on_a_disk_that_takes_nothing_there_is_no_room_for_a_file() {
    const THIS: &str = "fetch::on_a_disk_that_takes_nothing_there_is_no_room_for_a_file";
    if child::is_done() {
        return;
    }
    let server = Server::new(|request| good().answer(request));
    for options in [
        "ro",
        "size=4k",
        "size=64m,nr_inodes=1",
        "size=64m,nr_inodes=2",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let url = server.url("/image");
        let process = child::fetching(THIS, dir.path(), &url, &digest(good().content));
        let mount = format!("mount -t tmpfs -o mode=700,{options} none \"$0\"");
        let Some(said) = child::said_with_mount(&mount, dir.path(), &process) else {
            return;
        };
        assert!(said.contains(child::WITHOUT_ROOM), "{options}: {said}");
    }
}

#[test]
fn a_part_of_another_file_or_a_longer_one_does_no_harm() {
    for part in [
        other().content.to_vec(),
        vec![0; 2 * SIZE],
        content(1)[..10].to_vec(),
        content(1),
    ] {
        for has_ranges in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            let server = Server::new(move |request| {
                File {
                    has_ranges,
                    ..good()
                }
                .answer(request)
            });
            fs::write(
                dir.path().join(format!("{}.part", digest(good().content))),
                &part,
            )
            .unwrap();
            let fetched = fetch(dir.path(), &server.url("/image")).unwrap();
            let Fetched::Here(path) = fetched else {
                panic!("{fetched:?}")
            };
            assert_eq!(fs::read(path).unwrap(), good().content);
        }
    }
}

#[test]
fn a_file_without_room_is_not_begun_and_is_read_from_the_server() {
    let server = Server::new(|request| match request.path.as_str() {
        "/large" => raw(200, &["Content-Length: 1152921504606846976"], b"x"),
        "/changed" if request.before > 0 => other().answer(request),
        "/broken" | "/changed" => good().cut(request, SIZE / 2),
        "/wrong" => other().answer(request),
        _ => good().cut(request, SIZE / 3),
    });
    let dir = tempfile::tempdir().unwrap();
    match fetch(dir.path(), &server.url("/large")).unwrap() {
        Fetched::TooLarge(need, have) => assert!(need == 1 << 60 && have < need),
        fetched @ Fetched::Here(_) => panic!("{fetched:?}"),
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    for (path, wanted) in [
        ("/image", Ok(())),
        ("/broken", Ok(())),
        ("/changed", Err("another file than before")),
        ("/wrong", Err("has the SHA-256")),
    ] {
        let found = Found {
            url: server.url(path),
            digest: digest(good().content),
            version: None,
            signer: None,
            marker: None,
            list: None,
            is_of_place: false,
        };
        let mut read = Vec::new();
        let length = SIZE as u64;
        let done = found
            .checked(&fetcher(), length)
            .unwrap()
            .read_to_end(&mut read);
        match (done, wanted) {
            (Ok(_), Ok(())) => assert_eq!(read, good().content, "{path}"),
            (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{path}: {error}"),
            (done, _) => panic!("{path}: {done:?}"),
        }
    }
    let (head, length) = fetcher().head(&server.url("/x"), 1000).unwrap();
    assert_eq!(
        (&head[..], length),
        (&good().content[..1000], Some(SIZE as u64))
    );
}

/// Whether a process has this among its arguments.
fn is_argument(text: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let arguments = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let mut arguments = arguments.map(|line| String::from_utf8_lossy(&line).into_owned());
    arguments.any(|line| line.contains(text))
}

#[test]
fn a_password_is_told_to_the_server_only() {
    const PASSWORD: &str = "not-for-others-5d1c";
    let server = Server::new(|request| {
        assert!(!is_argument(PASSWORD));
        match request.header("authorization") {
            Some(_) => good().answer(request),
            None => status(401),
        }
    });
    let url = format!(
        "http://user:{PASSWORD}@{}/image?token={PASSWORD}",
        server.address()
    );
    let url = Url::parse(&url).unwrap();
    let dir = tempfile::tempdir().unwrap();
    fetch(dir.path(), &url).unwrap();
    assert!(server.requests()[0].path.ends_with(PASSWORD));
    assert!(!format!("{url} {url:?}").contains(PASSWORD));
    let error = fetch(tempfile::tempdir().unwrap().path(), &server.url("/image")).unwrap_err();
    assert!(error.contains("401"), "{error}");
}

#[test]
fn an_interrupt_ends_it_and_another_command_waits_for_nothing() {
    let server = Server::new(|request| {
        let mut answer = good().cut(request, SIZE / 2);
        answer.push(Step::Wait(Duration::from_secs(60)));
        answer
    });
    let dir = tempfile::tempdir().unwrap();
    let fetcher = Fetcher {
        patience: Patience {
            stall: 60,
            ..Patience::default()
        },
        ..Fetcher::default()
    };
    let url = server.url("/image");
    let started = Instant::now();
    let error = thread::scope(|scope| {
        let (fetcher, url, dir) = (&fetcher, &url, dir.path());
        let first = scope.spawn(|| Spool::at(dir).fetch(fetcher, url, &digest(good().content)));
        thread::sleep(Duration::from_secs(1));
        let error = fetch(dir, url).unwrap_err();
        assert!(error.contains("another command is fetching"), "{error}");
        assert_eq!(Spool::at(dir).unused(), Vec::<std::path::PathBuf>::new());
        fetcher.interrupt.set();
        first.join().unwrap().unwrap_err()
    });
    assert!(format!("{error:#}").contains("interrupted"), "{error:#}");
    assert!(started.elapsed() < Duration::from_secs(20));
    assert_eq!(Spool::at(dir.path()).unused().len(), 2);
}
