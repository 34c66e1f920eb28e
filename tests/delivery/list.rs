//! Which image a directory on a server has: the newest, of a list that is signed, fresh, and no older than before.

use std::fs;
use std::path::Path;
use std::time::Duration;

use imgbased_helper::delivery::fetch::{Fetcher, Patience};
use imgbased_helper::delivery::held::Held;
use imgbased_helper::delivery::pattern::Pattern;
use imgbased_helper::delivery::signature::Keys;
use imgbased_helper::delivery::spool::{Fetched, Spool};
use imgbased_helper::delivery::url::Url;
use imgbased_helper::delivery::{Found, Wanted};
use sha2::{Digest, Sha256};

use crate::server::{Answer, File, Request, Server, raw, status};
use crate::signature::Minisign;

fn fetcher() -> Fetcher {
    Fetcher {
        patience: Patience {
            stall: 5,
            tries: 2,
            pause: Duration::from_millis(20),
            ..Patience::default()
        },
        ..Fetcher::default()
    }
}

fn list(names: &[&str]) -> Vec<u8> {
    let line = |name: &&str| format!("{:x}  {name}\n", Sha256::digest(name));
    names.iter().map(line).collect::<String>().into_bytes()
}

fn served(request: &Request, content: &[u8]) -> Answer {
    let etag = format!("\"{:x}\"", Sha256::digest(content));
    File {
        content,
        etag: &etag,
        has_ranges: true,
    }
    .answer(request)
}

/// What is found below a root with these keys, and a spool in it.
fn find(root: &Path, url: &Url, change: impl FnOnce(&mut Wanted)) -> Result<Found, String> {
    let patterns = [Pattern::parse("x-@v.raw.zst", &|_| None).unwrap()];
    let mut wanted = Wanted {
        url,
        patterns: &patterns,
        least: None,
        unsigned: false,
        seen: None,
        older: false,
        offline: false,
    };
    change(&mut wanted);
    let keys = Keys::load(root).map_err(|error| format!("{error:#}"))?;
    let found = wanted.find(&fetcher(), &keys, &Spool::at(&root.join("spool")));
    found.map_err(|error| format!("{error:#}"))
}

const THREE: &[&str] = &[
    "x-9.raw.zst",
    "x-10.raw.zst",
    "x-1.raw.zst",
    "y-99.raw.zst",
    "BEST-BEFORE-9999-12-31",
];

const CONTENT: &[u8] = b"the content of the newest";

#[test]
fn the_newest_of_a_directory_is_found_and_looking_again_is_one_request() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::new(|request| match request.path.as_str() {
        "/d/SHA256SUMS" => served(request, &list(THREE)),
        _ => status(404),
    });
    let url = server.url("/d/");
    let unsigned = |wanted: &mut Wanted| wanted.unsigned = true;
    for looked in 1..4 {
        let found = find(root.path(), &url, unsigned).unwrap();
        assert_eq!(found.url, server.url("/d/x-10.raw.zst"));
        assert_eq!(found.version.as_deref(), Some("10"));
        assert_eq!(
            found.digest,
            format!("{:x}", Sha256::digest("x-10.raw.zst"))
        );
        assert_eq!(server.requests().len(), looked);
    }
    let found = find(root.path(), &server.url("/d/y-99.raw.zst"), unsigned).unwrap();
    assert_eq!(
        (found.version, found.digest),
        (None, format!("{:x}", Sha256::digest("y-99.raw.zst")))
    );
    for (path, why) in [("/d/z", "does not name \"z\""), ("/e/", "there is no")] {
        let error = find(root.path(), &server.url(path), unsigned).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
    let error = find(root.path(), &url, |_| ()).unwrap_err();
    assert!(error.contains("has no keys"), "{error}");
    let error = find(root.path(), &url, |wanted| {
        (wanted.unsigned, wanted.least) = (true, Some("11"));
    });
    assert!(error.unwrap_err().contains("at least version 11"));
}

#[test]
fn the_length_of_the_newest_is_asked_for_once() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::new(|request| match request.path.as_str() {
        "/d/SHA256SUMS" if request.before < 2 => served(request, &list(THREE)),
        "/d/SHA256SUMS" => served(request, &list(&["x-11.raw.zst"])),
        "/d/x-10.raw.zst" => served(request, CONTENT),
        _ => status(404),
    });
    let url = server.url("/d/");
    let spool = Spool::at(&root.path().join("spool"));
    let asked = || {
        let mut key = String::new();
        let found = find(root.path(), &url, |wanted| {
            wanted.unsigned = true;
            key = wanted.key();
        });
        let length = found.unwrap().length(&key, &fetcher(), &spool);
        (
            length.map_err(|error| format!("{error:#}")),
            server.requests().len(),
        )
    };
    let known = Ok(Some(CONTENT.len() as u64));
    assert_eq!(asked(), (known.clone(), 2));
    assert_eq!(server.requests()[1].header("range"), Some("bytes=0-0"));
    assert_eq!(asked(), (known, 3));
    // The list has changed, and its newest is not there.
    let (length, requests) = asked();
    assert!(length.unwrap_err().contains("404"));
    assert_eq!(requests, 5);
}

#[test]
fn what_was_fetched_before_is_found_without_a_server() {
    let root = tempfile::tempdir().unwrap();
    let line = format!("{:x}  x-10.raw.zst\n", Sha256::digest(CONTENT));
    let server = Server::new(move |request| match request.path.as_str() {
        "/d/SHA256SUMS" => served(request, line.as_bytes()),
        _ => served(request, CONTENT),
    });
    let url = server.url("/d/");
    let offline = |wanted: &mut Wanted| (wanted.unsigned, wanted.offline) = (true, true);
    let error = find(root.path(), &url, offline).unwrap_err();
    assert!(error.contains("SHA256SUMS is not here; `"), "{error}");
    find(root.path(), &url, |wanted| wanted.unsigned = true).unwrap();
    let asked = server.requests().len();
    let found = find(root.path(), &url, offline).unwrap();
    assert_eq!(found.version.as_deref(), Some("10"));
    let spool = Spool::at(&root.path().join("spool"));
    let kept = || {
        let kept = spool.kept(&found.url, &found.digest, &fetcher().interrupt);
        kept.map(|held| held.map(Held::release))
    };
    assert_eq!(kept().unwrap(), None);
    assert_eq!(server.requests().len(), asked);
    let fetched = spool.fetch(&fetcher(), &found.url, &found.digest).unwrap();
    let Fetched::Here(held) = fetched else {
        panic!("{fetched:?}")
    };
    let path = held.release();
    assert_eq!(kept().unwrap(), Some(path.clone()));
    assert_eq!(spool.have(&found.digest), (CONTENT.len() as u64, true));
    // What is damaged is not there.
    fs::write(&path, "damaged").unwrap();
    assert_eq!(kept().unwrap(), None);
    assert!(!path.exists());
    assert_eq!(server.requests().len(), asked + 1);
}

#[test]
fn what_is_here_is_found_although_a_newer_list_was_seen() {
    let root = tempfile::tempdir().unwrap();
    let line =
        |content: &[u8], version| format!("{:x}  x-{version}.raw.zst\n", Sha256::digest(content));
    let lists = [
        line(CONTENT, 10),
        line(b"newer", 12) + &line(b"new", 11),
        line(b"newer", 12) + &line(CONTENT, 10),
    ];
    let server = Server::new(move |request| match request.path.as_str() {
        "/d/SHA256SUMS" => served(request, lists[request.before.min(2)].as_bytes()),
        _ => served(request, CONTENT),
    });
    let url = server.url("/d/");
    let spool = Spool::at(&root.path().join("spool"));
    let look = || {
        let mut key = String::new();
        let found = find(root.path(), &url, |wanted| {
            wanted.unsigned = true;
            key = wanted.key();
        });
        (found.unwrap(), key)
    };
    let here = |seen: Option<&'static str>| {
        let found = find(root.path(), &url, |wanted| {
            (wanted.unsigned, wanted.offline, wanted.seen) = (true, true, seen);
        });
        found.map(|found| found.version.unwrap())
    };
    let (first, key) = look();
    spool.fetch(&fetcher(), &first.url, &first.digest).unwrap();
    first.keep_list(&key, &spool).unwrap();
    assert_eq!(here(None).unwrap(), "10");
    // That list does not have it any more, and the next one has it again.
    for _ in 0..2 {
        assert_eq!(look().0.version.as_deref(), Some("12"));
        assert_eq!(here(None).unwrap(), "10");
    }
    // What is older than what was taken does not count.
    for seen in ["11", "12"] {
        assert_eq!(here(Some(seen)).unwrap(), "12");
    }
    // Where nothing is here, the newest is meant.
    for path in spool.unused() {
        if path.extension().is_some_and(|end| end == "image") {
            fs::remove_file(path).unwrap();
        }
    }
    assert_eq!(here(None).unwrap(), "12");
}

#[test]
fn an_image_in_layers_is_a_directory_of_the_list() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::new(|request| {
        let names: &[&str] = match request.path.as_str() {
            "/d/SHA256SUMS" => &["index.json", "oci-layout"],
            "/e/SHA256SUMS" => &[
                "x-1.raw.zst",
                "x-2.raw.zst/index.json",
                "x-2.raw.zst/oci-layout",
            ],
            "/f/SHA256SUMS" => &["x-2.raw.zst/index.json"],
            "/g/SHA256SUMS" => &["index.json", "x-1.raw.zst"],
            _ => return status(404),
        };
        served(request, &list(names))
    });
    let find = |path: &str, has_patterns: bool| {
        find(root.path(), &server.url(path), |wanted| {
            wanted.unsigned = true;
            if !has_patterns {
                wanted.patterns = &[];
            }
        })
    };
    for (path, has_patterns, wanted, version) in [
        ("/d/", false, "/d/index.json", None),
        ("/d/", true, "/d/index.json", None),
        ("/d/index.json", false, "/d/index.json", None),
        ("/e/", true, "/e/x-2.raw.zst/index.json", Some("2")),
        ("/g/", true, "/g/x-1.raw.zst", Some("1")),
    ] {
        let found = find(path, has_patterns).unwrap();
        assert_eq!(found.url, server.url(wanted), "{path}");
        assert_eq!(found.version.as_deref(), version, "{path}");
        let marker = wanted.strip_suffix("index.json").map(|dir| {
            let name = format!("{}oci-layout", &dir[3..]);
            format!("{:x}", Sha256::digest(name))
        });
        assert_eq!(found.marker, marker, "{path}");
        assert_eq!(found.is_index(), marker.is_some(), "{path}");
    }
    for (path, has_patterns, why) in [
        ("/e/", false, "MatchPattern="),
        ("/f/", true, "but not x-2.raw.zst/oci-layout"),
        ("/g/index.json", true, "but not oci-layout"),
    ] {
        let error = find(path, has_patterns).unwrap_err();
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn a_list_that_is_odd_stale_or_too_long_is_refused() {
    let server = Server::new(|request| {
        let content = match request.path.as_str() {
            "/stale/SHA256SUMS" => list(&["x-1.raw.zst", "BEST-BEFORE-2020-01-01"]),
            "/odd/SHA256SUMS" => list(&["x-1.raw.zst", "../x-2.raw.zst"]),
            "/twice/SHA256SUMS" => list(&["x-1.raw.zst", "x-1.raw.zst"]),
            "/page/SHA256SUMS" => b"<html>not found</html>".to_vec(),
            "/none/SHA256SUMS" => list(&["y-1.raw.zst"]),
            "/long/SHA256SUMS" => vec![b'a'; 2 << 20],
            "/gone/SHA256SUMS" => return status(410),
            "/forbidden/SHA256SUMS" => return status(403),
            "/broken/SHA256SUMS" => return status(500),
            _ => {
                return raw(
                    302,
                    &["Location: ftp://example.org/", "Content-Length: 0"],
                    b"",
                );
            }
        };
        served(request, &content)
    });
    for (path, why) in [
        ("/stale/", "best before 2020-01-01"),
        ("/odd/", "line 2: it has the odd name"),
        ("/twice/", "is there twice"),
        ("/page/", "line 1"),
        ("/none/", "names no image"),
        ("/long/", "longer than"),
        ("/gone/", "there is no"),
        ("/forbidden/", "403"),
        ("/broken/", "after 2 tries"),
        ("/elsewhere/", "ftp"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let found = find(root.path(), &server.url(path), |wanted| {
            wanted.unsigned = true;
        });
        let error = found.unwrap_err();
        assert!(error.contains(why), "{path}: {error}");
    }
}

#[test]
fn an_old_list_is_noticed() {
    let root = tempfile::tempdir().unwrap();
    let server = Server::new(|request| {
        let names: &[&str] = if request.before == 1 {
            &["x-2.raw.zst"]
        } else {
            &["x-3.raw.zst"]
        };
        served(request, &list(names))
    });
    let url = server.url("/d/");
    let find = |seen: Option<&'static str>, older| {
        let found = find(root.path(), &url, |wanted| {
            (wanted.unsigned, wanted.seen, wanted.older) = (true, seen, older);
        });
        found.map(|found| found.version.unwrap())
    };
    assert_eq!(find(None, false).unwrap(), "3");
    let error = find(None, false).unwrap_err();
    assert!(error.contains("version 2, and that had 3"), "{error}");
    assert_eq!(find(Some("3"), false).unwrap(), "3");
    let error = find(Some("4"), false).unwrap_err();
    assert!(error.contains("version 3, and that had 4"), "{error}");
    assert_eq!(find(Some("4"), true).unwrap(), "3");
}

#[test]
fn a_look_without_a_version_forgets_none_and_leads_round_none() {
    let root = tempfile::tempdir().unwrap();
    let fresh = tempfile::tempdir().unwrap();
    let server = Server::new(|request| {
        let names: &[&str] = match request.before {
            0 => &["x-3.raw.zst"],
            1 | 2 => &["x-2.raw.zst"],
            _ => &["index.json", "oci-layout", "x-3.raw.zst"],
        };
        served(request, &list(names))
    });
    let find = |root: &Path, path: &str, least: Option<&'static str>, older| {
        let found = find(root, &server.url(path), |wanted| {
            (wanted.unsigned, wanted.least, wanted.older) = (true, least, older);
        });
        found.map(|found| found.version)
    };
    let dir = "/d/";
    assert_eq!(
        find(root.path(), dir, None, false).unwrap().as_deref(),
        Some("3")
    );
    assert_eq!(
        find(root.path(), "/d/x-2.raw.zst", None, false).unwrap(),
        None
    );
    let error = find(root.path(), dir, None, false).unwrap_err();
    assert!(error.contains("version 2, and that had 3"), "{error}");
    let error = find(root.path(), dir, None, false).unwrap_err();
    assert!(error.contains("without a version, and 3 or a"), "{error}");
    assert_eq!(find(root.path(), dir, None, true).unwrap(), None);
    // That was no version either.
    let error = find(root.path(), dir, None, false).unwrap_err();
    assert!(error.contains("without a version, and 3 or a"), "{error}");
    let error = find(fresh.path(), dir, Some("2"), false).unwrap_err();
    assert!(error.contains("without a version, and 2 or a"), "{error}");
    assert_eq!(find(fresh.path(), dir, None, false).unwrap(), None);
}

const DATE: &str = "Sat, 28 Nov 2026 12:00:00 GMT";

#[test]
fn a_signed_list_counts_with_its_own_signature_only() {
    let Some(minisign) = Minisign::new() else {
        return;
    };
    let root = tempfile::tempdir().unwrap();
    let keys = root.path().join("etc/imgbased/keys.d");
    fs::create_dir_all(&keys).unwrap();
    fs::write(keys.join("a.pub"), minisign.key()).unwrap();
    let (old, new) = (
        list(&["x-1.raw.zst"]),
        list(&["x-1.raw.zst", "x-2.raw.zst"]),
    );
    let (of_old, of_new) = (minisign.sign(&old, &[]), minisign.sign(&new, &[]));
    let without_etag = new.clone();
    let of_without_etag = of_new.clone();
    let server = Server::new(move |request| match request.path.as_str() {
        "/plain/SHA256SUMS" => raw(200, &[], &without_etag),
        "/plain/SHA256SUMS.minisig" | "/dated/SHA256SUMS.minisig" => {
            served(request, &of_without_etag)
        }
        "/dated/SHA256SUMS" if request.header("if-modified-since") == Some(DATE) => status(304),
        "/dated/SHA256SUMS" => raw(200, &[&format!("Last-Modified: {DATE}")], &without_etag),
        "/long/SHA256SUMS.minisig" => served(request, &vec![b'a'; 70_000]),
        "/long/SHA256SUMS" => served(request, &new),
        "/good/SHA256SUMS" | "/between/SHA256SUMS" | "/wrong/SHA256SUMS" | "/none/SHA256SUMS" => {
            served(request, &new)
        }
        "/good/SHA256SUMS.minisig" => served(request, &of_new),
        // The list was replaced, and its signature is a moment later.
        "/between/SHA256SUMS.minisig" if request.before > 0 => served(request, &of_new),
        "/between/SHA256SUMS.minisig" | "/wrong/SHA256SUMS.minisig" => served(request, &of_old),
        _ => status(404),
    });
    for (path, wanted, requests) in [
        ("/good/", Ok("2"), 2),
        ("/good/", Ok("2"), 1),
        ("/between/", Ok("2"), 4),
        ("/wrong/", Err("not of this list"), 4),
        ("/none/", Err("there is no signature"), 4),
        // A server that does not tell that it is the same.
        ("/plain/", Ok("2"), 2),
        ("/plain/", Ok("2"), 1),
        // One that tells it by the time.
        ("/dated/", Ok("2"), 2),
        ("/dated/", Ok("2"), 1),
        ("/long/", Err("longer than"), 2),
    ] {
        let before = server.requests().len();
        let found = find(root.path(), &server.url(path), |_| ());
        match (&found, wanted) {
            (Ok(found), Ok(version)) => {
                assert_eq!(found.version.as_deref(), Some(version));
                assert!(found.signer.is_some());
            }
            (Err(error), Err(why)) => assert!(error.contains(why), "{path}: {error}"),
            _ => panic!("{path}: {found:?}"),
        }
        assert_eq!(server.requests().len() - before, requests, "{path}");
    }
    // Not asked for a signature, it does without; a wrong one is refused all the same.
    let unsigned = |wanted: &mut Wanted| wanted.unsigned = true;
    assert!(find(root.path(), &server.url("/none/"), unsigned).is_ok());
    assert!(find(root.path(), &server.url("/wrong/"), unsigned).is_err());
    // What was seen is worth nothing once its key is gone.
    fs::remove_file(keys.join("a.pub")).unwrap();
    let error = find(root.path(), &server.url("/good/"), |_| ()).unwrap_err();
    assert!(error.contains("has no keys"), "{error}");
}
