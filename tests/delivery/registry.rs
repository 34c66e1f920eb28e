//! Parts of a layer from a registry that wants to know who asks, or does its worst: a token goes to the registry only, and
//! no password over http.

use std::io::{Read, Seek};
use std::sync::Arc;

use imgbased_helper::delivery::fetch::Fetcher;
use imgbased_helper::delivery::oci::Login;

use crate::pieces::{PIECES, SIZE, asked, fetcher, good, multipart, pieces, wanted};
use crate::server::{Answer, Request, Server, raw, status};

const DIR: &str = "/v2/a/b/";
const BLOB: &str = "/v2/a/b/blobs/sha256:x";
const TOKEN: &str = "Bearer secret";

/// What comes of the pieces of a blob.
fn fetch(server: &Server) -> Result<Option<Vec<u8>>, String> {
    let login = Login::new(&server.url(DIR), &|_| None).unwrap();
    let fetcher = Fetcher {
        login: Some(Arc::new(login)),
        ..fetcher()
    };
    let mut file = tempfile::tempfile().unwrap();
    let (url, size) = (server.url(BLOB), SIZE as u64);
    let found = fetcher.pieces(&url, &pieces(&PIECES), size, &mut file, &mut |_| {});
    let is_there = found.map_err(|error| format!("{error:#}"))?;
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    Ok(is_there.then_some(bytes))
}

fn challenge(text: &str) -> Answer {
    let header = format!("WWW-Authenticate: {text}");
    raw(401, &[&header, "Content-Length: 0"], b"")
}

/// Has this server give tokens itself.
fn wants_token(request: &Request) -> Answer {
    let host = request.header("host").unwrap();
    challenge(&format!(
        "Bearer realm=\"http://{host}/token?x=y\",service=\"a b\",scope=\"ignored\""
    ))
}

fn gives_token(request: &Request) -> Answer {
    assert_eq!(
        request.path,
        "/token?x=y&service=a%20b&scope=repository:a/b:pull"
    );
    assert_eq!(request.header("authorization"), None);
    raw(200, &[], br#"{"token":"secret","expires_in":300}"#)
}

fn gives_blob(request: &Request) -> Answer {
    match request.header("authorization") {
        Some(TOKEN) => good(request),
        _ => status(401),
    }
}

/// What a registry is: its name, what it answers to who asks what it wants, for a token and for a blob, and what comes
/// of it.
type Case = (
    &'static str,
    [fn(&Request) -> Answer; 3],
    Result<(), &'static str>,
);

#[test]
fn a_registry_gets_what_it_wants_to_know_or_nothing_comes() {
    let cases: [Case; 12] = [
        (
            "for anybody",
            [|_| status(200), |_| status(500), good],
            Ok(()),
        ),
        (
            "with tokens",
            [wants_token, gives_token, gives_blob],
            Ok(()),
        ),
        (
            "with tokens under another name",
            [
                wants_token,
                |_| raw(200, &[], br#"{"access_token":"secret"}"#),
                gives_blob,
            ],
            Ok(()),
        ),
        (
            "without a token for this image",
            [wants_token, |_| challenge("Basic"), gives_blob],
            Err("gives no token for this image"),
        ),
        (
            "with a page in the place of a token",
            [wants_token, |_| raw(200, &[], b"<html>"), gives_blob],
            Err("gives no token"),
        ),
        (
            "with a token that has a line more",
            [
                wants_token,
                |_| raw(200, &[], br#"{"token":"secret\r\nX: y"}"#),
                gives_blob,
            ],
            Err("gives no token"),
        ),
        (
            "with a token without an end",
            [
                wants_token,
                |_| raw(200, &[], &vec![b' '; 100_000]),
                gives_blob,
            ],
            Err("longer than"),
        ),
        (
            "with the wrong token",
            [
                wants_token,
                |_| raw(200, &[], br#"{"token":"other"}"#),
                gives_blob,
            ],
            Err("401"),
        ),
        (
            "with a password",
            [|_| challenge("Basic realm=x"), gives_token, gives_blob],
            Err("only sent over https"),
        ),
        (
            "with something else",
            [|_| challenge("Negotiate"), gives_token, gives_blob],
            Err("something else than a password or a token"),
        ),
        (
            "with tokens of a file",
            [
                |_| challenge("Bearer realm=\"file:///etc/passwd\""),
                gives_token,
                gives_blob,
            ],
            Err("has to begin with http"),
        ),
        (
            "that breaks",
            [|_| status(500), gives_token, gives_blob],
            Err("after 3 tries"),
        ),
    ];
    for (what, [api, token, blob], expected) in cases {
        let server = Server::new(move |request| match &request.path[..] {
            "/v2/" => api(request),
            BLOB => blob(request),
            _ => token(request),
        });
        match (fetch(&server), expected) {
            (Ok(Some(bytes)), Ok(())) => assert!(bytes == wanted(), "{what}"),
            (Err(error), Err(why)) => assert!(error.contains(why), "{what}: {error}"),
            (found, _) => panic!("{what}: {found:?}"),
        }
    }
}

#[test]
fn another_host_gets_no_token_and_none_is_asked_for_by_it() {
    // As most registries have their blobs elsewhere.
    let other = Arc::new(Server::new(good));
    let away = format!("Location: {}", other.url("/blob").secret());
    let server = Server::new(move |request| match &request.path[..] {
        "/v2/" => wants_token(request),
        BLOB if request.header("authorization") == Some(TOKEN) => raw(307, &[&away], b""),
        _ => gives_token(request),
    });
    assert!(fetch(&server).unwrap().unwrap() == wanted());
    let [request] = &other.requests()[..] else {
        panic!("{:?}", other.requests());
    };
    assert_eq!(request.header("authorization"), None);

    // That one wants a token itself, of a server of its own.
    let other = Server::new(wants_token);
    let away = format!("Location: {}", other.url("/v2/").secret());
    let server = Server::new(move |_| raw(307, &[&away], b""));
    let error = fetch(&server).unwrap_err();
    assert!(error.contains("leads to another place"), "{error}");
    assert_eq!(other.requests().len(), 1);
}

#[test]
fn a_token_is_asked_for_once_as_long_as_it_counts() {
    for (answer, asked_for) in [
        (r#"{"token":"secret","expires_in":300}"#, 1),
        (r#"{"token":"secret","expires_in":0}"#, 2),
    ] {
        let server = Server::new(move |request| match &request.path[..] {
            "/v2/" => wants_token(request),
            BLOB => match asked(request)[..] {
                [part] => {
                    let range = format!("Content-Range: bytes {}-{}/{SIZE}", part.0, part.1 - 1);
                    raw(206, &[&range], &vec![0; part.1 - part.0])
                }
                ref parts => multipart(parts, SIZE, usize::MAX),
            },
            _ => raw(200, &[], answer.as_bytes()),
        });
        let login = Login::new(&server.url(DIR), &|_| None).unwrap();
        let fetcher = Fetcher {
            login: Some(Arc::new(login)),
            ..fetcher()
        };
        let many: Vec<(usize, usize)> = (0..101).map(|at| (at * 1900, at * 1900 + 7)).collect();
        let mut file = tempfile::tempfile().unwrap();
        let (url, size) = (server.url(BLOB), SIZE as u64);
        let found = fetcher.pieces(&url, &pieces(&many), size, &mut file, &mut |_| {});
        assert!(found.unwrap());
        let requests = server.requests();
        let of_token = requests.iter().filter(|it| it.path.starts_with("/token"));
        assert_eq!(of_token.count(), asked_for, "{answer}");
    }
}
