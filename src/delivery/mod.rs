//! Where images come from: a web server with a signed list of files. What is configured, which file is the newest,
//! who has signed it, and how it gets here.

pub mod conf;
pub mod fetch;
pub mod held;
pub mod oci;
pub mod pattern;
pub mod ranges;
mod response;
pub mod signature;
pub mod spool;
pub mod sums;
pub mod url;
pub mod version;

use std::io::{self, Read};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use fetch::{Body, Fetcher, Small};
use oci::web::{INDEX, MARKER};
use pattern::Pattern;
use response::Validator;
use signature::{Keys, Kind, SIGNATURE_MOST, Signer};
use spool::{Spool, wrong};
use sums::{LIST_MOST, Sums};
use url::Url;
use version::compare;

/// What the list of a directory is called.
const LIST: &str = "SHA256SUMS";

/// What has something here that is not.
pub const TO_FETCH: &str = "`imgbased-helper update --download-only` fetches it";

/// What is looked for on a server.
pub struct Wanted<'a> {
    /// A file, or a directory of which the newest that fits one of the patterns is meant.
    pub url: &'a Url,
    pub patterns: &'a [Pattern],
    /// No lower version is taken.
    pub least: Option<&'a str>,
    /// Whether a list without a signature is taken.
    pub unsigned: bool,
    /// The highest version that was taken from there.
    pub seen: Option<&'a str>,
    /// Whether a list is taken whose newest version is lower than one that it had before.
    pub older: bool,
    /// Whether only those lists and images count that are here, and no server is asked.
    pub offline: bool,
}

/// An image on a server.
#[derive(Clone, Debug)]
pub struct Found {
    pub url: Url,
    /// The SHA-256 of the file.
    pub digest: String,
    /// As its name says; not of a file that was named itself.
    pub version: Option<String>,
    pub signer: Option<Signer>,
    /// Of an image in layers, whose index this is: the SHA-256 of the file that says so, if a list has it.
    pub marker: Option<String>,
    /// The list that names it.
    pub list: Option<Arc<Known>>,
    /// Whether it is the one that counts of its place, and was not asked for by its name.
    pub is_of_place: bool,
}

/// What is kept of a directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Known {
    list: Vec<u8>,
    validator: Validator,
    signature: Option<(Kind, Vec<u8>)>,
    /// The highest version that it has had.
    newest: Option<String>,
    /// The digest of an image of it, and its length in bytes.
    #[serde(default)]
    length: Option<(String, u64)>,
}

/// A list that was fetched, and who has signed it.
struct Listed {
    known: Known,
    signer: Option<Signer>,
}

impl Wanted<'_> {
    /// What tells this place and these patterns from others, in few characters.
    pub fn key(&self) -> String {
        key(self.url, self.patterns)
    }

    /// Finds the image. Costs one request if the list has not changed.
    pub fn find(&self, fetcher: &Fetcher, keys: &Keys, spool: &Spool) -> Result<Found> {
        let list = self.url.beside(LIST);
        ensure!(
            self.unsigned || !keys.kinds().is_empty(),
            "this host has no keys in /etc/imgbased/keys.d or /usr/lib/imgbased/keys.d, so nobody can tell who has made \
             {list}; put one there, or use --allow-unsigned"
        );
        if self.offline {
            return self.find_here(fetcher, keys, spool, &list);
        }
        let known: Option<Known> = spool.list(&self.key());
        let before = known
            .as_ref()
            .map(|known| (known.signature.is_some(), known.newest.clone()));
        let listed = self.list(fetcher, keys, &list, known)?;
        let mut found = self.newest(listed, &list, &|_| true)?;
        // A list that anybody could have made says nothing of one that is signed.
        let before = before.filter(|(was_signed, _)| *was_signed == found.signer.is_some());
        let before = before.and_then(|(_, newest)| newest);
        self.refuse_older(&found, &list, before.as_deref())?;
        if let (None, Some(known)) = (&found.version, found.list.as_mut().and_then(Arc::get_mut)) {
            known.newest = before;
        }
        if let Some(known) = &found.list {
            spool.keep_list(&self.key(), &**known)?;
        }
        Ok(found)
    }

    /// Finds the newest image that is here, by the list that was seen last, or that of what was fetched last.
    fn find_here(
        &self,
        fetcher: &Fetcher,
        keys: &Keys,
        spool: &Spool,
        list: &Url,
    ) -> Result<Found> {
        let newest = |known: Option<Known>, is_wanted: &dyn Fn(&str) -> bool| {
            let known = known.with_context(|| format!("{list} is not here; {TO_FETCH}"))?;
            let signer = self.verify(fetcher, keys, list, &known)?;
            self.newest(Listed { known, signer }, list, is_wanted)
        };
        let key = self.key();
        let lists = [spool.list(&key), spool.list_of_fetched(&key)];
        let found = lists.map(|known| newest(known, &|digest| spool.have(digest).1).ok());
        let version = |found: &Found| found.version.clone().unwrap_or_default();
        // What is older than what was taken already is of no use.
        let is_of_use = |found: &Found| self.refuse_older(found, list, None).is_ok();
        let found = found.into_iter().flatten().filter(is_of_use);
        let found = found.max_by(|a, b| compare(&version(a), &version(b)));
        let found = match found {
            Some(found) => found,
            // It is told then that this one is not here.
            None => newest(spool.list(&key), &|_| true)?,
        };
        self.refuse_older(&found, list, None)?;
        Ok(found)
    }

    /// The newest of those images of a list whose digests are wanted.
    fn newest(
        &self,
        listed: Listed,
        list: &Url,
        is_wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Found> {
        let Listed { mut known, signer } = listed;
        let mut sums = Sums::parse(&known.list).with_context(|| format!("{list} is refused"))?;
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        sums.check_fresh(now.as_secs())
            .with_context(|| format!("{list} is refused"))?;
        sums.retain(is_wanted);
        let (name, digest, version) = self.choose(&sums, list)?;
        let dir = name.strip_suffix(INDEX);
        let dir = dir.filter(|dir| dir.is_empty() || dir.ends_with('/'));
        let marker = dir.map(|dir| {
            let marker = format!("{dir}{MARKER}");
            let digest = sums.digest_of(&marker).map(str::to_owned);
            digest.with_context(|| format!("{list} names {name}, but not {marker}"))
        });
        if version.is_some() {
            known.newest.clone_from(&version);
        }
        Ok(Found {
            url: list.beside(&name),
            digest,
            version,
            signer,
            marker: marker.transpose()?,
            list: Some(Arc::new(known)),
            is_of_place: self.url.is_directory(),
        })
    }

    /// Refuses an image that is older than the newest that there was `before`, or that was taken.
    fn refuse_older(&self, found: &Found, list: &Url, before: Option<&str>) -> Result<()> {
        let seen = [before, self.seen].into_iter().flatten();
        let highest = seen.max_by(|a, b| compare(a, b));
        let Some(version) = found.version.as_deref() else {
            // A file that is named has none. A directory that is an image itself has none either, and may be a lure.
            let wanted = highest.or(self.least).filter(|_| found.is_of_place);
            if let (Some(wanted), false) = (wanted, self.older) {
                bail!(
                    "{list} names an image without a version, and {wanted} or a higher one is wanted; \
                     `update --allow-downgrade` takes it"
                );
            }
            return Ok(());
        };
        let highest = highest.filter(|highest| compare(version, highest).is_lt());
        let highest = highest.unwrap_or(version);
        ensure!(
            self.older || compare(version, highest).is_eq(),
            "{list} is older than one that was there before: its newest image has version {version}, and that had \
             {highest}; `update --allow-downgrade` takes it"
        );
        Ok(())
    }

    /// The name of the file, its digest, and its version.
    fn choose(&self, sums: &Sums, list: &Url) -> Result<(String, String, Option<String>)> {
        if !self.url.is_directory() {
            let name = self.url.name();
            let digest = sums
                .digest_of(&name)
                .with_context(|| format!("{list} does not name {name:?}"))?;
            return Ok((name, digest.to_owned(), None));
        }
        // The directory is an image itself, whatever else is in the list.
        if let (Some(digest), Some(_)) = (sums.digest_of(INDEX), sums.digest_of(MARKER)) {
            return Ok((INDEX.to_owned(), digest.to_owned(), None));
        }
        ensure!(
            !self.patterns.is_empty(),
            "{} is a directory, and MatchPattern= in /etc/imgbased/imgbased.conf does not say which of its files \
             are images",
            self.url
        );
        let newest = sums
            .newest(self.patterns, self.least)
            .with_context(|| format!("{list} is refused"))?;
        let least = self
            .least
            .map(|least| format!(" and has at least version {least}"));
        let (entry, version) = newest.with_context(|| {
            format!(
                "{list} names no image that fits MatchPattern={}",
                least.unwrap_or_default()
            )
        })?;
        Ok((
            entry.name.clone(),
            entry.digest.clone(),
            Some(version.to_owned()),
        ))
    }

    /// The list as it is now, and who has signed it.
    fn list(
        &self,
        fetcher: &Fetcher,
        keys: &Keys,
        url: &Url,
        known: Option<Known>,
    ) -> Result<Listed> {
        let validator = known
            .as_ref()
            .map(|known| known.validator.clone())
            .unwrap_or_default();
        let known = match (fetcher.small(url, &validator, LIST_MOST)?, known) {
            (Small::Unchanged, Some(known)) => known,
            // Some servers do not tell that it is the same.
            (Small::Content(list, validator), Some(known))
                if known.list == list && known.signature.is_some() =>
            {
                Known { validator, ..known }
            }
            (Small::Content(list, validator), _) => {
                Self::signed(fetcher, keys, url, list, validator)?
            }
            _ => bail!(
                "there is no {url}; an image is taken from a directory with that list, or by --require-digest"
            ),
        };
        match self.verify(fetcher, keys, url, &known) {
            Ok(signer) => Ok(Listed { known, signer }),
            Err(error) => {
                // The two files are not replaced at once.
                log::debug!("{url}: {error:#}; both are fetched again");
                fetcher.interrupt.check()?;
                sleep(fetcher.patience.pause * 2);
                let Small::Content(list, validator) =
                    fetcher.small(url, &Validator::default(), LIST_MOST)?
                else {
                    return Err(error);
                };
                let known = Self::signed(fetcher, keys, url, list, validator)?;
                let signer = self.verify(fetcher, keys, url, &known)?;
                Ok(Listed { known, signer })
            }
        }
    }

    /// A list with its signature: the first that one of the keys may have made.
    fn signed(
        fetcher: &Fetcher,
        keys: &Keys,
        list: &Url,
        content: Vec<u8>,
        validator: Validator,
    ) -> Result<Known> {
        let mut signature = None;
        for kind in keys.kinds() {
            let url = list.beside(&format!("{LIST}{}", kind.suffix()));
            if let Small::Content(content, _) =
                fetcher.small(&url, &Validator::default(), SIGNATURE_MOST)?
            {
                signature = Some((kind, content));
                break;
            }
        }
        Ok(Known {
            list: content,
            validator,
            signature,
            newest: None,
            length: None,
        })
    }

    fn verify(
        &self,
        fetcher: &Fetcher,
        keys: &Keys,
        list: &Url,
        known: &Known,
    ) -> Result<Option<Signer>> {
        let kinds = keys.kinds();
        let Some((kind, signature)) = &known.signature else {
            let suffixes: Vec<&str> = kinds.iter().map(|kind| kind.suffix()).collect();
            ensure!(
                self.unsigned,
                "there is no signature {list}{}, which the keys of this host could check; --allow-unsigned takes it as \
                 it is",
                suffixes.join(" or ")
            );
            return Ok(None);
        };
        // Its key may have been taken off since.
        ensure!(
            kinds.contains(kind),
            "this host has no key any more that could check {list}{}",
            kind.suffix()
        );
        let signer = keys.verify(*kind, &known.list, signature, &fetcher.interrupt);
        signer
            .map(Some)
            .with_context(|| format!("{list}{} is refused", kind.suffix()))
    }
}

/// What tells a place and its patterns from others.
fn key(url: &Url, patterns: &[Pattern]) -> String {
    key_of(&format!("{:?} {patterns:?}", url.beside("")))
}

/// What tells a place from others, in few characters.
pub fn key_of(place: &str) -> String {
    format!("{:x}", Sha256::digest(place))
        .chars()
        .take(16)
        .collect()
}

impl Found {
    /// Whether it is the index of an image in layers, and not an image in one file.
    pub fn is_index(&self) -> bool {
        self.url.name() == INDEX
    }

    /// Has it be found without a server from now on, as it was fetched from the place `key`.
    pub fn keep_list(&self, key: &str, spool: &Spool) -> Result<()> {
        let list = self.list.as_ref();
        list.map_or(Ok(()), |list| spool.keep_list_of_fetched(key, &**list))
    }

    /// Its length in bytes, if the server tells it. It is kept with the list of the place `key`, and asked for once.
    pub fn length(&self, key: &str, fetcher: &Fetcher, spool: &Spool) -> Result<Option<u64>> {
        let known: Option<Known> = spool.list(key);
        let length = known.as_ref().and_then(|known| known.length.as_ref());
        if let Some((_, length)) = length.filter(|(digest, _)| *digest == self.digest) {
            return Ok(Some(*length));
        }
        let length = fetcher.length(&self.url)?;
        if let (Some(known), Some(length)) = (known, length) {
            let length = Some((self.digest.clone(), length));
            spool.keep_list(key, &Known { length, ..known })?;
        }
        Ok(length)
    }

    /// Opens it from its beginning, for a reader that fails at the end if it is not what the list says. It has to have
    /// this length in bytes, so that there is an end.
    pub fn checked(&self, fetcher: &Fetcher, length: u64) -> Result<Checked> {
        let body = fetcher.body(&self.url, 0, Validator::default())?;
        ensure!(
            body.length() == Some(length),
            "{} has not the length of {length} bytes that it had a moment ago",
            self.url
        );
        Ok(Checked {
            body,
            hash: Sha256::new(),
            wanted: self.digest.clone(),
            url: self.url.clone(),
        })
    }
}

/// A file on a server, which is read once. The end is reached only if it was the right one.
pub struct Checked {
    body: Body,
    hash: Sha256,
    wanted: String,
    url: Url,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.body.read(buffer)?;
        self.hash.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() {
            let found = format!("{:x}", self.hash.clone().finalize());
            if found != self.wanted {
                return Err(io::Error::other(wrong(
                    &self.url,
                    &found,
                    &self.wanted,
                    self.body.is_page(),
                )));
            }
        }
        Ok(count)
    }
}
