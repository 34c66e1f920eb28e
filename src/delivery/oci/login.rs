//! What a registry wants to know of who fetches parts of a layer: nothing, a password, or a token that another server
//! gives for that (OCI distribution specification; "Token Authentication Specification" of distribution).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use serde::Deserialize;

use crate::delivery::fetch::Fetcher;
use crate::delivery::url::Url;

/// What stands between a registry and the name of an image in it.
const API: &str = "/v2/";
/// The longest answer that has a token, and the longest token, in bytes.
const ANSWER_MOST: u64 = 64 << 10;
const TOKEN_MOST: usize = 16 << 10;
/// The longest file with passwords, in bytes.
const FILE_MOST: u64 = 1 << 20;
/// How long a token counts that does not say so, and one at most, in seconds.
const LIFE: u64 = 60;
const LIFE_MOST: u64 = 3600;
/// What the registry of Docker is called, and where it is.
const DOCKER: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Who fetches parts of the layers of one image.
pub struct Login {
    /// Tells what the registry wants.
    api: Url,
    /// What is asked for.
    scope: String,
    /// User and password as they are sent. Never over http.
    password: Option<String>,
    known: Mutex<Option<Known>>,
}

/// What the registry takes for a while.
struct Known {
    header: Option<String>,
    until: Instant,
}

/// What a registry wants.
#[derive(Debug, PartialEq, Eq)]
enum Challenge {
    Password,
    Token {
        /// Who gives it.
        realm: String,
        service: Option<String>,
    },
}

#[derive(Deserialize)]
struct Granted {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

impl Login {
    /// For the image that is at `dir`, an address such as `https://HOST/v2/NAME/`. `variable` tells the environment,
    /// which names the files with passwords.
    pub fn new(dir: &Url, variable: &dyn Fn(&str) -> Option<OsString>) -> Result<Self> {
        let name = dir.path().strip_prefix(API).map(|it| it.trim_matches('/'));
        let name = name.filter(|name| !name.is_empty());
        let name = name.with_context(|| format!("{dir} is no place of a registry"))?;
        let place = format!("{}/{name}", dir.authority());
        let password = || {
            let mut contents = files(variable).into_iter().filter_map(|path| read(&path));
            contents.find_map(|content| password_of(&content, &place))
        };
        Ok(Self {
            api: dir.at(API),
            scope: format!("repository:{name}:pull"),
            password: dir.is_https().then(password).flatten(),
            known: Mutex::new(None),
        })
    }

    /// The header that says who asks; nothing where anybody may.
    pub fn header(&self, fetcher: &Fetcher) -> Result<Option<String>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = known.as_ref().filter(|it| Instant::now() < it.until) {
            return Ok(known.header.clone());
        }
        let asked = self.ask(fetcher);
        let (header, life) = asked.with_context(|| format!("cannot log in at {}", self.api))?;
        let until = Instant::now() + life;
        *known = Some(Known {
            header: header.clone(),
            until,
        });
        Ok(header)
    }

    /// The same, and how long it counts.
    fn ask(&self, fetcher: &Fetcher) -> Result<(Option<String>, Duration)> {
        const LONG: Duration = Duration::from_secs(LIFE_MOST);
        let (response, _) = fetcher.answer(&self.api, &[], ANSWER_MOST)?;
        if response.status != 401 {
            return Ok((None, LONG));
        }
        // Another host must not say where the password goes.
        ensure!(
            !response.is_redirected,
            "it leads to another place, which wants a password"
        );
        let basic = |password: &String| format!("Authorization: Basic {password}");
        let password = self.password.as_ref().map(basic);
        match challenge(&response.challenges) {
            Some(Challenge::Password) if password.is_some() => Ok((password, LONG)),
            Some(Challenge::Password) if !self.api.is_https() => {
                bail!("it wants a password, which is only sent over https")
            }
            Some(Challenge::Password) => {
                bail!("it wants a password, and none is in the files that are read")
            }
            Some(Challenge::Token { realm, service }) => {
                self.token(fetcher, &realm, service.as_deref(), password)
            }
            None => bail!("it wants something else than a password or a token"),
        }
    }

    /// Gets a token, as `realm` gives it.
    fn token(
        &self,
        fetcher: &Fetcher,
        realm: &str,
        service: Option<&str>,
        password: Option<String>,
    ) -> Result<(Option<String>, Duration)> {
        let url = Url::parse(realm).context("the server that gives tokens")?;
        ensure!(
            url.is_https() || !self.api.is_https(),
            "{url} gives the tokens, and is not asked over http"
        );
        let service = service.map(|service| ("service", service));
        let values = service.into_iter().chain([("scope", self.scope.as_str())]);
        let url = url.with_query(values);
        let headers: Vec<String> = password.into_iter().collect();
        let (response, content) = fetcher.answer(&url, &headers, ANSWER_MOST)?;
        ensure!(
            response.status != 401,
            "{url} gives no token for this image"
        );
        let (token, life) = token(&content).with_context(|| format!("{url} gives no token"))?;
        Ok((Some(format!("Authorization: Bearer {token}")), life))
    }
}

/// A token, and how long it is used: half as long as it counts, as it has to last for a request.
fn token(content: &[u8]) -> Result<(String, Duration)> {
    let found: Granted = serde_json::from_slice(content).context("it answers something else")?;
    let tokens = [found.token, found.access_token].into_iter().flatten();
    let is_plain = |token: &String| {
        (1..=TOKEN_MOST).contains(&token.len()) && token.bytes().all(|byte| byte.is_ascii_graphic())
    };
    let token = tokens.into_iter().find(is_plain);
    let life = found.expires_in.unwrap_or(LIFE).min(LIFE_MOST) / 2;
    let token = token.context("it answers something else")?;
    Ok((token, Duration::from_secs(life)))
}

/// The first thing that a registry wants and that is known, from its headers (RFC 9110, 11.6.1).
fn challenge(headers: &[String]) -> Option<Challenge> {
    headers.iter().find_map(|header| {
        let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
        match scheme.to_ascii_lowercase().as_str() {
            "basic" => Some(Challenge::Password),
            "bearer" => {
                let mut values = values(rest);
                Some(Challenge::Token {
                    realm: values.remove("realm")?,
                    service: values.remove("service"),
                })
            }
            _ => None,
        }
    })
}

/// Values such as `NAME="VALUE",NAME=VALUE`, up to the first odd one. Names are in small letters.
fn values(text: &str) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let mut rest = text;
    while let Some((name, after)) = rest.split_once('=') {
        let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
        let mut value = String::new();
        if let Some(quoted) = after.strip_prefix('"') {
            let mut letters = quoted.chars();
            loop {
                match letters.next() {
                    Some('"') => break,
                    Some('\\') => value.extend(letters.next()),
                    Some(letter) => value.push(letter),
                    None => return values,
                }
            }
            rest = letters.as_str();
        } else {
            let end = after.find(',').unwrap_or(after.len());
            value.push_str(after[..end].trim());
            rest = &after[end..];
        }
        values.entry(name).or_insert(value);
    }
    values
}

/// The files in which skopeo(1) looks for passwords, in its order (containers-auth.json(5)).
fn files(variable: &dyn Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    if let Some(only) = variable("REGISTRY_AUTH_FILE") {
        return vec![only.into()];
    }
    let below = |name: &str, path: &str| variable(name).map(|dir| Path::new(&dir).join(path));
    let of_user = || format!("/run/containers/{}/auth.json", Uid::current()).into();
    let run = below("XDG_RUNTIME_DIR", "containers/auth.json").unwrap_or_else(of_user);
    let home = below("HOME", ".config/containers/auth.json");
    let docker = below("DOCKER_CONFIG", "config.json");
    let docker = docker.or_else(|| below("HOME", ".docker/config.json"));
    [Some(run), home, docker].into_iter().flatten().collect()
}

/// Nothing of a file that is not there or too long: without a password the registry says itself what it lacks.
fn read(path: &Path) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    let file = File::open(path).ok()?;
    let length = file.take(FILE_MOST + 1).read_to_end(&mut content).ok()?;
    (length as u64 <= FILE_MOST).then_some(content)
}

#[derive(Deserialize)]
struct Passwords {
    auths: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    auth: Option<String>,
    /// A token for other tokens, beside which the password is none.
    identitytoken: Option<String>,
}

/// What a file with passwords has for `place`, which is HOST/NAME: the longest begin of that counts. It is user and
/// password in base64, as they are sent. Programs that know passwords are not asked.
fn password_of(content: &[u8], place: &str) -> Option<String> {
    let found: Passwords = serde_json::from_slice(content).ok()?;
    let (host, _) = place.split_once('/')?;
    let is_of_docker = DOCKER.contains(&host);
    let place = match place.strip_prefix(host) {
        Some(rest) if is_of_docker => format!("{}{rest}", DOCKER[0]),
        _ => place.to_owned(),
    };
    let begins = place.match_indices('/').map(|(at, _)| &place[..at]);
    let mut begins: Vec<&str> = begins.chain([place.as_str()]).collect();
    begins.reverse();
    let exact = begins.iter().find_map(|begin| found.auths.get(*begin));
    // `docker login` writes addresses.
    let of_host = || {
        let mut entries = found.auths.iter();
        entries.find_map(|(key, entry)| {
            let rest = key.split_once("://").map_or(key.as_str(), |(_, rest)| rest);
            let of = rest.split('/').next().unwrap_or_default();
            let is_host = of == host || is_of_docker && DOCKER.contains(&of);
            (is_host && (rest != key || rest == of)).then_some(entry)
        })
    };
    let entry = exact.or_else(of_host)?;
    if entry
        .identitytoken
        .as_ref()
        .is_some_and(|token| !token.is_empty())
    {
        return None;
    }
    let is_plain = |auth: &&String| {
        let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte);
        !auth.is_empty() && auth.bytes().all(is_digit)
    };
    entry.auth.as_ref().filter(is_plain).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_registry_wants_is_in_its_headers() {
        let token = |realm: &str, service: Option<&str>| {
            Some(Challenge::Token {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
            })
        };
        for (headers, wanted) in [
            (&["Basic realm=\"x\""][..], Some(Challenge::Password)),
            (&["basic"], Some(Challenge::Password)),
            (
                &["Bearer realm=\"https://a/t\",service=\"s t\",scope=\"x\""],
                token("https://a/t", Some("s t")),
            ),
            (
                &["bearer Realm=https://a/t, SERVICE=\"a\\\"b,c=d\""],
                token("https://a/t", Some("a\"b,c=d")),
            ),
            (
                &["Bearer realm=\"https://a/t\""],
                token("https://a/t", None),
            ),
            // The first of two counts, as it could be set twice to mislead.
            (
                &["Bearer realm=\"https://a/t\",realm=\"https://b/t\""],
                token("https://a/t", None),
            ),
            (
                &["Negotiate", "Bearer service=\"s\"", "Basic realm=\"x\""],
                Some(Challenge::Password),
            ),
            (&["Bearer realm=\"https://a/t"], None),
            (&["Bearer service=\"s\""], None),
            (&["Digest realm=\"x\""], None),
            (&[""], None),
            (&[], None),
        ] {
            let headers: Vec<String> = headers.iter().map(|&it| it.to_owned()).collect();
            assert_eq!(challenge(&headers), wanted, "{headers:?}");
        }
    }

    #[test]
    fn a_token_is_used_for_half_of_its_life() {
        for (content, wanted) in [
            (r#"{"token":"a.b-c"}"#, Some(("a.b-c", 30))),
            (r#"{"access_token":"b","expires_in":300}"#, Some(("b", 150))),
            (
                r#"{"token":"","access_token":"b","expires_in":0}"#,
                Some(("b", 0)),
            ),
            (
                r#"{"token":"a","access_token":"b","expires_in":99999999999}"#,
                Some(("a", 1800)),
            ),
            (r#"{"token":"a b"}"#, None),
            (r#"{"token":"a\r\nX: y"}"#, None),
            (r#"{"token":"ä"}"#, None),
            (r#"{"token":7}"#, None),
            (r#"{"expires_in":60}"#, None),
            ("<html>", None),
            ("", None),
        ] {
            let found = token(content.as_bytes()).ok();
            let found = found
                .as_ref()
                .map(|(token, life)| (token.as_str(), life.as_secs()));
            assert_eq!(found, wanted, "{content}");
        }
        let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(TOKEN_MOST + 1));
        assert!(token(long.as_bytes()).is_err());
    }

    #[test]
    fn the_longest_begin_of_a_place_has_its_password() {
        const FILE: &str = r#"{"auths":{
            "h.org":{"auth":"aG9zdA=="},
            "h.org/team":{"auth":"dGVhbQ=="},
            "h.org/team/image":{"auth":"aW1hZ2U="},
            "g.org:5000":{"auth":"cG9ydA=="},
            "https://index.docker.io/v1/":{"auth":"ZG9ja2Vy"},
            "https://old.org/v2/":{"auth":"b2xk"},
            "odd.org":{"auth":"a b"},
            "empty.org":{},
            "token.org":{"auth":"dTo=","identitytoken":"x"}},
            "credHelpers":{"helped.org":"pass"}}"#;
        for (place, wanted) in [
            ("h.org/other", Some("aG9zdA==")),
            ("h.org/team/other", Some("dGVhbQ==")),
            ("h.org/teams/other", Some("aG9zdA==")),
            ("h.org/team/image", Some("aW1hZ2U=")),
            ("h.org/team/image/x", Some("aW1hZ2U=")),
            ("g.org:5000/x", Some("cG9ydA==")),
            ("g.org/x", None),
            ("g.org:50/x", None),
            ("registry-1.docker.io/library/x", Some("ZG9ja2Vy")),
            ("docker.io/library/x", Some("ZG9ja2Vy")),
            ("old.org/x", Some("b2xk")),
            ("other.h.org/x", None),
            ("odd.org/x", None),
            ("empty.org/x", None),
            ("token.org/x", None),
            ("helped.org/x", None),
            ("team/image", None),
        ] {
            let found = password_of(FILE.as_bytes(), place);
            assert_eq!(found.as_deref(), wanted, "{place}");
        }
        let of_docker = r#"{"auths":{"docker.io":{"auth":"bmV3"}}}"#;
        let found = password_of(of_docker.as_bytes(), "registry-1.docker.io/a/b");
        assert_eq!(found.as_deref(), Some("bmV3"));
        for odd in ["", "{}", "[]", r#"{"auths":[]}"#] {
            assert_eq!(password_of(odd.as_bytes(), "h.org/x"), None, "{odd}");
        }
    }

    #[test]
    fn passwords_are_in_the_files_that_skopeo_reads() {
        let run = format!("/run/containers/{}/auth.json", Uid::current());
        for (set, wanted) in [
            (
                &[("HOME", "/root")][..],
                &[
                    run.as_str(),
                    "/root/.config/containers/auth.json",
                    "/root/.docker/config.json",
                ][..],
            ),
            (
                &[
                    ("HOME", "/root"),
                    ("XDG_RUNTIME_DIR", "/run/user/0"),
                    ("DOCKER_CONFIG", "/d"),
                ],
                &[
                    "/run/user/0/containers/auth.json",
                    "/root/.config/containers/auth.json",
                    "/d/config.json",
                ],
            ),
            (&[("HOME", "/root"), ("REGISTRY_AUTH_FILE", "/a")], &["/a"]),
            (&[], &[run.as_str()]),
        ] {
            let variable = |name: &str| {
                let found = set.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| OsString::from(value))
            };
            let found = files(&variable);
            assert_eq!(found, wanted.iter().map(PathBuf::from).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_password_is_only_of_https_and_an_image_has_a_name() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("auth.json");
        std::fs::write(&file, r#"{"auths":{"h:5000":{"auth":"YTpi"}}}"#).unwrap();
        let variable = |name: &str| (name == "REGISTRY_AUTH_FILE").then(|| file.clone().into());
        for (address, password) in [
            ("https://h:5000/v2/a/b/", Some("YTpi")),
            ("http://h:5000/v2/a/b/", None),
            ("https://h/v2/a/b/", None),
        ] {
            let login = Login::new(&Url::parse(address).unwrap(), &variable).unwrap();
            assert_eq!(login.password.as_deref(), password, "{address}");
            assert_eq!(login.scope, "repository:a/b:pull");
            let api = login.api.to_string();
            assert_eq!(format!("{api}a/b/"), address);
        }
        for address in ["https://h/v2/", "https://h/a/b/", "https://h/"] {
            let login = Login::new(&Url::parse(address).unwrap(), &variable);
            assert!(login.is_err(), "{address}");
        }
    }
}
