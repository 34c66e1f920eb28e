//! Parts of a file, and images in layers, from a server that has them, has none, or does its worst: each time the right
//! bytes come, or none, or a refusal that says why.

use std::fs;
use std::io::{Read, Seek};
use std::time::Duration;

use imgbased_helper::delivery::Found;
use imgbased_helper::delivery::fetch::{Fetcher, Patience};
use imgbased_helper::delivery::oci::web::Web;
use imgbased_helper::delivery::ranges::Range;
use imgbased_helper::delivery::spool::{Spool, Wanted};
use imgbased_helper::delivery::url::Url;
use sha2::{Digest, Sha256};

use crate::server::{Answer, Request, Server, Step, raw, status};

pub const SIZE: usize = 200_000;
const TRIES: u32 = 3;
/// In bytes of the file. The first two are fetched as one.
pub const PIECES: [(usize, usize); 4] = [(100, 200), (250, 300), (5000, 9000), (150_000, 199_999)];

pub fn content() -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(1);
    (0..SIZE).map(|_| random.u8(..)).collect()
}

pub fn wanted() -> Vec<u8> {
    let content = content();
    let pieces = PIECES.map(|(from, end)| content[from..end].to_vec());
    pieces.concat()
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

pub fn pieces(pieces: &[(usize, usize)]) -> Vec<Range> {
    let piece = |(from, end): &(usize, usize)| Range {
        from: *from as u64,
        end: *end as u64,
    };
    pieces.iter().map(piece).collect()
}

/// The parts that are asked for.
pub fn asked(request: &Request) -> Vec<(usize, usize)> {
    let parts = request
        .header("range")
        .and_then(|range| range.strip_prefix("bytes="));
    let part = |part: &str| {
        let (from, last) = part.split_once('-').unwrap();
        (from.parse().unwrap(), last.parse::<usize>().unwrap() + 1)
    };
    parts.map_or_else(Vec::new, |parts| parts.split(',').map(part).collect())
}

/// An answer of several parts.
pub fn multipart(parts: &[(usize, usize)], whole: usize, most: usize) -> Answer {
    let content = content();
    let mut body = Vec::new();
    for (from, end) in parts {
        let head = format!(
            "\r\n--xyz\r\nContent-Type: a/b\r\nContent-Range: bytes {from}-{}/{whole}\r\n\r\n",
            end - 1
        );
        body.extend(head.bytes());
        body.extend(&content[*from..*end]);
    }
    body.extend(b"\r\n--xyz--\r\n");
    let length = format!("Content-Length: {}", body.len());
    let kind = "Content-Type: multipart/byteranges; boundary=xyz";
    body.truncate(most);
    raw(206, &[kind, &length], &body)
}

pub fn good(request: &Request) -> Answer {
    multipart(&asked(request), SIZE, usize::MAX)
}

/// What comes of the pieces: none where the server has no parts.
fn fetch(server: &Server) -> Result<Option<Vec<u8>>, String> {
    let mut file = tempfile::tempfile().unwrap();
    let (mut come, url) = (0, server.url("/f"));
    let mut tell = |more| come += more;
    let found = fetcher().pieces(&url, &pieces(&PIECES), SIZE as u64, &mut file, &mut tell);
    let is_there = found.map_err(|error| format!("{error:#}"))?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert!(come >= bytes.len() as u64 || !is_there);
    Ok(is_there.then_some(bytes))
}

/// What a server does: its name, what it answers, what comes of it, and how often it is asked.
type Case = (
    &'static str,
    fn(&Request) -> Answer,
    Result<bool, &'static str>,
    usize,
);

#[test]
fn parts_come_as_they_were_asked_for_or_not_at_all() {
    let cases: [Case; 15] = [
        ("good", good, Ok(true), 1),
        (
            "without parts",
            |_| raw(200, &["Content-Length: 200000"], &content()),
            Ok(false),
            1,
        ),
        (
            "busy, and then good",
            |request| match request.before {
                0 => status(503),
                _ => good(request),
            },
            Ok(true),
            2,
        ),
        ("gone", |_| status(404), Err("404"), 1),
        ("not satisfiable", |_| status(416), Ok(false), 1),
        ("many are forbidden", |_| status(403), Ok(false), 1),
        ("many are a bad request", |_| status(400), Ok(false), 1),
        ("empty", |_| status(204), Ok(false), 1),
        (
            "of another length",
            |request| multipart(&asked(request), SIZE + 1, usize::MAX),
            Ok(false),
            1,
        ),
        (
            "others than asked for",
            |request| {
                let parts = asked(request);
                multipart(&[parts[0], parts[0], parts[2]], SIZE, usize::MAX)
            },
            Ok(false),
            1,
        ),
        (
            "fewer than asked for",
            |request| multipart(&asked(request)[..2], SIZE, usize::MAX),
            Ok(false),
            1,
        ),
        (
            "one more",
            |request| {
                let parts = [asked(request), vec![(0, 10)]].concat();
                multipart(&parts, SIZE, usize::MAX)
            },
            Ok(false),
            1,
        ),
        (
            "one part for several",
            |_| {
                let range = "Content-Range: bytes 100-199998/200000";
                raw(
                    206,
                    &[range, "Content-Length: 199899"],
                    &content()[100..199_999],
                )
            },
            Ok(false),
            1,
        ),
        (
            "no boundary",
            |_| raw(206, &["Content-Type: multipart/byteranges"], b"x"),
            Ok(false),
            1,
        ),
        (
            "a page",
            |_| raw(200, &["Content-Type: text/html"], b"<html>log in</html>"),
            Ok(false),
            1,
        ),
    ];
    for case in cases {
        is_so(case);
    }
}

#[test]
fn parts_that_are_cut_go_on_from_there_or_it_ends() {
    let cases: [Case; 4] = [
        (
            "cut, and then good",
            |request| match request.before {
                0 => multipart(&asked(request), SIZE, 30_000),
                _ => good(request),
            },
            Ok(true),
            2,
        ),
        (
            "always cut, further each time",
            |request| multipart(&asked(request), SIZE, 30_000),
            Ok(true),
            2,
        ),
        (
            "always cut, hardly any further",
            |request| multipart(&asked(request), SIZE, 100),
            Err("after 3 tries"),
            3,
        ),
        (
            "cut after the last byte",
            |request| {
                let parts = asked(request);
                let Some(Step::Send(body)) = multipart(&parts, SIZE, usize::MAX).pop() else {
                    panic!("it has a body");
                };
                multipart(&parts, SIZE, body.len() - 5)
            },
            Ok(true),
            1,
        ),
    ];
    for case in cases {
        is_so(case);
    }
}

fn is_so((what, answer, expected, asked): Case) {
    let server = Server::new(answer);
    let found = fetch(&server);
    match (&found, expected) {
        (Ok(Some(bytes)), Ok(true)) => assert!(*bytes == wanted(), "{what}"),
        (Ok(None), Ok(false)) => {}
        (Err(error), Err(why)) => assert!(error.contains(why), "{what}: {error}"),
        (found, _) => panic!("{what}: {found:?}"),
    }
    assert_eq!(server.requests().len(), asked, "{what}");
}

#[test]
fn parts_are_asked_for_many_at_once_and_one_comes_by_itself() {
    let server = Server::new(|request| match asked(request)[..] {
        [(from, end)] => {
            let range = format!("Content-Range: bytes {from}-{}/{SIZE}", end - 1);
            let length = format!("Content-Length: {}", end - from);
            raw(206, &[&range, &length], &content()[from..end])
        }
        _ => good(request),
    });
    let all: Vec<(usize, usize)> = (0..101).map(|at| (at * 1900, at * 1900 + 7)).collect();
    let mut file = tempfile::tempfile().unwrap();
    let fetched = fetcher().pieces(
        &server.url("/f"),
        &pieces(&all),
        SIZE as u64,
        &mut file,
        &mut |_| {},
    );
    assert!(fetched.unwrap());
    let lengths: Vec<usize> = server.requests().iter().map(|of| asked(of).len()).collect();
    assert_eq!(lengths, [100, 1]);
    file.rewind().unwrap();
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).unwrap();
    let whole = content();
    let wanted: Vec<u8> = all
        .iter()
        .flat_map(|(from, end)| whole[*from..*end].to_vec())
        .collect();
    assert!(bytes == wanted);
}

/// Has one part, of which so many bytes come at most.
fn one_part(request: &Request, content: &[u8], most: usize) -> Answer {
    let parts = asked(request);
    let [(from, end)] = parts[..] else {
        panic!("{parts:?}");
    };
    let range = format!("Content-Range: bytes {from}-{}/{}", end - 1, content.len());
    let length = format!("Content-Length: {}", end - from);
    let body = &content[from..end];
    raw(206, &[&range, &length], &body[..body.len().min(most)])
}

#[test]
fn a_link_that_breaks_again_and_again_comes_to_the_end() {
    const WHOLE: usize = 80 << 20;
    const MOST: usize = 17 << 20;
    let whole = vec![7; WHOLE];
    let server = Server::new(move |request| one_part(request, &whole, MOST));
    let mut fetcher = fetcher();
    (fetcher.patience.tries, fetcher.patience.stall) = (2, 30);
    let mut file = tempfile::tempfile().unwrap();
    let (url, all) = (server.url("/f"), pieces(&[(0, WHOLE)]));
    let mut come = 0;
    let found = fetcher.pieces(&url, &all, WHOLE as u64, &mut file, &mut |more| {
        come += more;
    });
    assert!(found.unwrap());
    assert_eq!(
        (come, file.metadata().unwrap().len()),
        (WHOLE as u64, WHOLE as u64)
    );
    let requests = server.requests();
    let from: Vec<usize> = requests.iter().map(|of| asked(of)[0].0 / MOST).collect();
    assert_eq!(from, [0, 1, 2, 3, 4]);
}

#[test]
fn pieces_that_came_before_it_broke_are_not_fetched_again() {
    let server = Server::new(|request| match request.path.as_str() {
        "/g" if request.before < TRIES as usize => status(503),
        _ => good(request),
    });
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::at(&dir.path().join("spool"));
    let file = |path: &str| Wanted {
        url: server.url(path),
        length: SIZE as u64,
        pieces: pieces(&PIECES),
    };
    let files = [file("/f"), file("/g")];
    let fetched = || spool.fetch_pieces(&fetcher(), &digest("one"), &files, "x");
    assert!(fetched().is_err());
    assert!(fs::read(fetched().unwrap().unwrap()).unwrap() == wanted().repeat(2));
    let of_first = server
        .requests()
        .iter()
        .filter(|of| of.path == "/f")
        .count();
    assert_eq!(of_first, 1);
}

#[test]
fn pieces_that_are_in_the_spool_are_not_fetched_again() {
    let server = Server::new(good);
    let dir = tempfile::tempdir().unwrap();
    let spool = Spool::at(&dir.path().join("spool"));
    let file = |url: Url| Wanted {
        url,
        length: SIZE as u64,
        pieces: pieces(&PIECES),
    };
    let files = [file(server.url("/f")), file(server.url("/g"))];
    let [key, other] = ["one", "other"].map(digest);
    for _ in 0..2 {
        let path = spool.fetch_pieces(&fetcher(), &key, &files, "x").unwrap();
        assert!(fs::read(path.unwrap()).unwrap() == wanted().repeat(2));
        assert_eq!(server.requests().len(), 2);
    }
    assert_eq!(spool.unused().len(), 1);
    let without = Server::new(|_| status(416));
    let files = [file(without.url("/f"))];
    let found = spool.fetch_pieces(&fetcher(), &other, &files, "x");
    assert!(found.unwrap().is_none());
    assert_eq!(spool.unused().len(), 1);
}

fn digest(content: &str) -> String {
    format!("{:x}", Sha256::digest(content))
}

const MARKER: &str = r#"{"imageLayoutVersion":"1.0.0"}"#;

/// What a layout has at a path, and the digest of its index.
fn layout(path: &str, architecture: &str) -> (Option<String>, String) {
    let config = format!(r#"{{"architecture":"{architecture}","os":"linux"}}"#);
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json",
        "digest":"sha256:{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+zstd",
        "digest":"sha256:{}","size":9}}]}}"#,
        digest(&config),
        config.len(),
        digest("layer")
    );
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "digest":"sha256:{}","size":{}}}]}}"#,
        digest(&manifest),
        manifest.len()
    );
    let found = digest(&index);
    let blob = path.strip_prefix("/d/blobs/sha256/");
    let content = match (path, blob) {
        ("/d/oci-layout", _) => Some(MARKER.to_owned()),
        ("/d/index.json", _) => Some(index),
        (_, Some(hex)) => [config, manifest]
            .into_iter()
            .find(|text| digest(text) == hex),
        _ => None,
    };
    (content, found)
}

fn host() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[test]
fn what_an_image_is_made_of_is_checked_by_its_digests() {
    fn served(request: &Request, change: &str) -> Answer {
        let architecture = if change == "architecture" {
            "other"
        } else {
            host()
        };
        match layout(&request.path, architecture).0 {
            Some(text) if request.path.contains(change) && change != "architecture" => raw(
                200,
                &[],
                text.replace('9', "8").replace("1.0.0", "2.0.0").as_bytes(),
            ),
            Some(text) => raw(200, &[], text.as_bytes()),
            None => status(404),
        }
    }
    let found = |server: &Server, architecture: &str| Found {
        url: server.url("/d/index.json"),
        digest: layout("", architecture).1,
        version: None,
        signer: None,
        marker: Some(digest(MARKER)),
        list: None,
        is_of_place: false,
    };
    let server = Server::new(|request| served(request, "nothing"));
    let web = Web::open(&fetcher(), &found(&server, host())).map_err(|error| format!("{error:#}"));
    let web = web.unwrap();
    let [layer] = &web.image.manifest.layers[..] else {
        panic!("one layer");
    };
    assert!(found(&server, host()).is_index());
    let url = server.url(&format!("/d/blobs/sha256/{}", digest("layer")));
    assert_eq!(web.layer(&layer.digest), url);

    let server = Server::new(|request| served(request, "oci-layout"));
    let error = Web::open(&fetcher(), &found(&server, host()))
        .err()
        .unwrap();
    assert!(
        format!("{error:#}").contains("has the SHA-256"),
        "{error:#}"
    );
    let unlisted = Found {
        marker: None,
        ..found(&server, host())
    };
    let error = Web::open(&fetcher(), &unlisted).err().unwrap();
    assert!(
        format!("{error:#}").contains("no OCI image layout"),
        "{error:#}"
    );
    let server = Server::new(|request| served(request, "blobs"));
    let error = Web::open(&fetcher(), &found(&server, host()))
        .err()
        .unwrap();
    assert!(
        format!("{error:#}").contains("has the SHA-256"),
        "{error:#}"
    );
    let server = Server::new(|request| served(request, "architecture"));
    let error = Web::open(&fetcher(), &found(&server, "other"))
        .err()
        .unwrap();
    assert!(format!("{error:#}").contains("other"), "{error:#}");
    let server = Server::new(|_| status(404));
    let error = Web::open(&fetcher(), &found(&server, host()))
        .err()
        .unwrap();
    assert!(format!("{error:#}").contains("but not there"), "{error:#}");
}
