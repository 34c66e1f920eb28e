//! Fetching over http and https, by curl(1) as a child. It is told by a file on its standard input, so that no password
//! is among its arguments.

use std::env;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::fd::AsFd;
use std::process::{ChildStdout, Stdio};
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::oci::Login;
use super::ranges::{Pieces, Range, after, header, read_part, read_parts, requests};
use super::response::{Response, Validator};
use super::url::Url;
use crate::sys::cmd::{Cmd, Running};
use crate::sys::files::in_memory;
use crate::sys::interrupt::Interrupt;
use crate::sys::rooted::descriptor;

/// Exit statuses of curl(1) after which another try can come further: no name or connection, also where it is cut while
/// both ends agree on how to encrypt it or a proxy makes it, an end before the end, nothing for too long, and what breaks
/// on the way.
const PASSING: [i32; 12] = [5, 6, 7, 16, 18, 28, 35, 52, 55, 56, 92, 97];
/// Fewer bytes each second are as good as none.
const LEAST_RATE: u32 = 1000;
/// What curl(1) ends with where it does not trust the certificate of a server.
const UNTRUSTED: i32 = 60;
/// After so many bytes all tries are there again.
const PROGRESS: u64 = 16 << 20;
/// How often an interrupt is looked at.
const TICK: u16 = 200;
/// What servers, and what stands before them, answer to a request for many parts at once, who would send the file.
const MANY_REFUSED: [u16; 5] = [400, 403, 413, 431, 501];

/// How patient a fetch is.
#[derive(Clone, Debug)]
pub struct Patience {
    /// How long nothing may come, in seconds.
    pub stall: u32,
    /// How often something is tried.
    pub tries: u32,
    /// How long to wait after the first try that failed. It becomes twice as long each time.
    pub pause: Duration,
    /// How long to wait at most, if a server wants that.
    pub longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            stall: 60,
            tries: 6,
            pause: Duration::from_secs(1),
            longest: Duration::from_secs(120),
        }
    }
}

/// Fetches files.
#[derive(Clone, Default)]
pub struct Fetcher {
    pub patience: Patience,
    /// Instead of the one that the environment names.
    pub proxy: Option<String>,
    pub interrupt: Interrupt,
    /// Who asks a registry for pieces of a file. Where that leads to another host, curl(1) does not tell that.
    pub login: Option<Arc<Login>>,
}

/// What there is to a small file.
#[derive(Debug, PartialEq, Eq)]
pub enum Small {
    Content(Vec<u8>, Validator),
    /// It is still what the validator is of.
    Unchanged,
    Missing,
}

/// Why a try has failed.
#[derive(Debug)]
enum Failed {
    /// Another one can succeed, after the usual pause or the one that the server wants.
    Now(anyhow::Error, Option<Duration>),
    ForGood(anyhow::Error),
    /// The file on the server is not the one that was begun, or has no such part.
    Changed,
}

impl Fetcher {
    /// Fetches a file of so many bytes at most, unless it is still the one that `known` is of.
    pub fn small(&self, url: &Url, known: &Validator, most: u64) -> Result<Small> {
        self.tried(url, &mut || self.small_once(url, known, most))
    }

    /// Tries something until it succeeds, or there are no tries left.
    fn tried<T>(&self, url: &Url, once: &mut dyn FnMut() -> Result<T, Failed>) -> Result<T> {
        let mut tries = Tries::of(self);
        loop {
            match once() {
                Ok(found) => return Ok(found),
                Err(failed) => tries
                    .after(failed)
                    .with_context(|| format!("cannot fetch {url}"))?,
            }
        }
    }

    fn small_once(&self, url: &Url, known: &Validator, most: u64) -> Result<Small, Failed> {
        let mut transfer = Transfer::start(self, url, &known.conditions(), None)?;
        let content = transfer.all(most, &self.interrupt)?;
        let response = transfer.response();
        match response.status {
            404 | 410 => return Ok(Small::Missing),
            304 => return Ok(Small::Unchanged),
            _ => transfer.end()?,
        }
        Ok(Small::Content(content, response.validator))
    }

    /// What a server says to who shows these headers, with so many bytes of content at most. Also that it wants to know
    /// who asks (401).
    pub(super) fn answer(
        &self,
        url: &Url,
        headers: &[String],
        most: u64,
    ) -> Result<(Response, Vec<u8>)> {
        self.tried(url, &mut || {
            let mut transfer = Transfer::start(self, url, headers, None)?;
            let content = transfer.all(most, &self.interrupt)?;
            let response = transfer.response();
            if response.status != 401 {
                transfer.end()?;
            }
            Ok((response, content))
        })
    }

    /// The first bytes of a file, so many or all that there are, and its length if the server tells it.
    pub fn head(&self, url: &Url, count: usize) -> Result<(Vec<u8>, Option<u64>)> {
        self.tried(url, &mut || self.head_once(url, count))
    }

    /// The length of a file in bytes, if the server tells it.
    pub fn length(&self, url: &Url) -> Result<Option<u64>> {
        self.tried(url, &mut || self.length_once(url))
    }

    /// Asks for the first byte: some servers answer no other question than for content.
    fn length_once(&self, url: &Url) -> Result<Option<u64>, Failed> {
        let mut transfer = Transfer::start(self, url, &[], Some("0-0"))?;
        if transfer.read(&mut [0; 2], &self.interrupt)? == 0 {
            transfer.end()?;
        }
        let response = transfer.response();
        Ok(match response.status {
            206 => response.whole,
            _ => response.length,
        })
    }

    fn head_once(&self, url: &Url, count: usize) -> Result<(Vec<u8>, Option<u64>), Failed> {
        let mut transfer = Transfer::start(self, url, &[], None)?;
        let mut head = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match transfer.read(&mut head[filled..], &self.interrupt)? {
                0 => break,
                more => filled += more,
            }
        }
        let response = transfer.response();
        if filled < count {
            transfer.end()?;
        }
        head.truncate(filled);
        Ok((head, response.length))
    }

    /// Opens a file from a place in it on, as it was when `known` was told.
    pub fn body(&self, url: &Url, from: u64, known: Validator) -> Result<Body> {
        let mut body = Body {
            fetcher: self.clone(),
            url: url.clone(),
            at: from,
            known,
            length: None,
            is_page: false,
            is_joined: from > 0,
            transfer: None,
            begun: Vec::new(),
            tries: Tries::of(self),
            is_whole: false,
        };
        body.connect()
            .with_context(|| format!("cannot fetch {url}"))?;
        Ok(body)
    }

    /// Fetches these pieces of a file of `length` bytes, which are in their order, and appends them to `to`. What breaks on
    /// the way goes on from there, and stays in `to` where that fails. Returns false where the server has no parts of it,
    /// or others than were asked for. `tell` is told how much has come.
    ///
    /// The caller has to know what the pieces hold: nothing tells that they are of one content of the file.
    pub fn pieces(
        &self,
        url: &Url,
        pieces: &[Range],
        length: u64,
        to: &mut File,
        tell: &mut dyn FnMut(u64),
    ) -> Result<bool> {
        let failed = || format!("cannot fetch parts of {url}");
        let mut rest = pieces;
        for parts in requests(pieces, length)? {
            let end = parts.last().map_or(0, |part| part.end);
            let count = rest.partition_point(|piece| piece.end <= end);
            let (pieces, others) = rest.split_at(count);
            rest = others;
            let (mut left, mut since) = (pieces.to_vec(), 0);
            let mut tries = Tries::of(self);
            loop {
                let (mut there, mut come) = (Pieces::new(&left), 0);
                let mut put = |at: u64, bytes: &[u8]| {
                    there.take(at, bytes, &mut |bytes| {
                        to.write_all(bytes)?;
                        come += bytes.len() as u64;
                        tell(bytes.len() as u64);
                        Ok(())
                    })
                };
                // What has come before needs no more parts.
                let parts = requests(&left, length)?.concat();
                let fetched = self.pieces_once(url, &parts, length, &mut put);
                left = after(&left, come);
                match fetched {
                    Ok(true) => break,
                    Ok(false) | Err(Failed::Changed) => return Ok(false),
                    Err(Failed::Now(..)) if left.is_empty() => break,
                    Err(error) => {
                        since += come;
                        if since >= PROGRESS {
                            tries.renew();
                            since = 0;
                        }
                        tries.after(error).with_context(failed)?;
                    }
                }
                log::debug!("{url}: it goes on after {come} bytes");
            }
        }
        Ok(true)
    }

    fn pieces_once(
        &self,
        url: &Url,
        parts: &[Range],
        length: u64,
        put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
    ) -> Result<bool, Failed> {
        let login = self.login.as_ref().map(|login| login.header(self));
        let login = login.transpose().map_err(Failed::ForGood)?.flatten();
        let headers: Vec<String> = login.into_iter().collect();
        let transfer = Transfer::start(self, url, &headers, Some(&header(parts)))?;
        let mut input = BufReader::with_capacity(
            64 << 10,
            Incoming {
                transfer,
                fetcher: self,
            },
        );
        // The headers are there with the first byte.
        if let Err(error) = io::BufRead::fill_buf(&mut input) {
            return Err(Failed::ForGood(error.into()));
        }
        let response = input.get_ref().transfer.response();
        if response.status == 200 {
            log::debug!("{url}: the server has no parts");
            return Ok(false);
        }
        if parts.len() > 1 && MANY_REFUSED.contains(&response.status) {
            log::debug!("{url}: the server refuses many parts");
            return Ok(false);
        }
        if response.status != 206 {
            input.get_mut().transfer.end()?;
            return Ok(false);
        }
        let read = match (&response.boundary, parts) {
            (Some(boundary), _) => read_parts(&mut input, boundary, parts, length, put),
            (None, [part]) => {
                let found = (response.from, response.end, response.whole);
                if found != (Some(part.from), Some(part.end), Some(length)) {
                    return Ok(false);
                }
                read_part(&mut input, *part, put)
            }
            (None, _) => return Ok(false),
        };
        let Err(error) = read else {
            return Ok(true);
        };
        // It may have ended before.
        self.interrupt.check().map_err(Failed::ForGood)?;
        let is_cut = error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::UnexpectedEof);
        if is_cut {
            input.get_mut().transfer.end()?;
            return Err(Failed::Now(error, None));
        }
        if error.is::<io::Error>() {
            return Err(Failed::ForGood(error));
        }
        log::debug!("{url}: {error:#}");
        Ok(false)
    }

    /// What curl(1) is told.
    fn config(
        &self,
        url: &Url,
        headers: &[String],
        range: Option<&str>,
        dump: &str,
    ) -> Result<String> {
        let mut config = String::new();
        let mut put = |name: &str, value: &str| -> Result<()> {
            ensure!(
                !value.chars().any(char::is_control),
                "{name} has a control character"
            );
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            config.push_str(&format!("{name} = \"{value}\"\n"));
            Ok(())
        };
        put("url", url.secret())?;
        put("proto", "=http,https")?;
        // What is asked for over https never comes over http.
        put(
            "proto-redir",
            if url.is_https() {
                "=https"
            } else {
                "=http,https"
            },
        )?;
        put("max-redirs", "5")?;
        put("connect-timeout", &self.patience.stall.to_string())?;
        put("speed-time", &self.patience.stall.to_string())?;
        put("speed-limit", &LEAST_RATE.to_string())?;
        put("dump-header", dump)?;
        put(
            "user-agent",
            concat!("imgbased-helper/", env!("CARGO_PKG_VERSION")),
        )?;
        put("output", "-")?;
        for header in headers {
            put("header", header)?;
        }
        if let Some(range) = range {
            put("range", range)?;
        }
        let (proxy, exceptions) = self.proxies(url);
        if let Some(proxy) = proxy {
            put("proxy", &proxy)?;
        }
        if let Some(exceptions) = exceptions {
            put("noproxy", &exceptions)?;
        }
        config.push_str("location\nfail\nsilent\nshow-error\ngloboff\n");
        // A registry has the passwords of skopeo(1), which does not look there and sends none over http.
        if self.login.is_none() {
            config.push_str("netrc-optional\n");
        }
        Ok(config)
    }

    /// The proxy, and for which hosts it is not: curl(1) gets nothing of the environment.
    fn proxies(&self, url: &Url) -> (Option<String>, Option<String>) {
        let variable = |names: &[&str]| {
            let mut values = names.iter().filter_map(|name| env::var(name).ok());
            values.find(|value| !value.is_empty())
        };
        let names: &[&str] = if url.is_https() {
            &["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]
        } else {
            // HTTP_PROXY is left out, as curl(1) does.
            &["http_proxy", "all_proxy", "ALL_PROXY"]
        };
        let proxy = self.proxy.clone().or_else(|| variable(names));
        (proxy, variable(&["no_proxy", "NO_PROXY"]))
    }
}

/// How many tries are left.
struct Tries {
    left: u32,
    most: u32,
    pause: Duration,
    first_pause: Duration,
    longest: Duration,
    interrupt: Interrupt,
}

impl Tries {
    fn of(fetcher: &Fetcher) -> Self {
        let Patience {
            tries,
            pause,
            longest,
            ..
        } = fetcher.patience;
        Self {
            left: tries,
            most: tries,
            pause,
            first_pause: pause,
            longest,
            interrupt: fetcher.interrupt.clone(),
        }
    }

    fn renew(&mut self) {
        (self.left, self.pause) = (self.most, self.first_pause);
    }

    /// Waits before the next try. Fails if there is none.
    fn after(&mut self, failed: Failed) -> Result<()> {
        self.interrupt.check()?;
        let (error, wanted) = match failed {
            Failed::Now(error, wanted) => (error, wanted.unwrap_or_default()),
            Failed::ForGood(error) => return Err(error),
            Failed::Changed => bail!("the file on the server has changed"),
        };
        self.left = self.left.saturating_sub(1);
        if self.left == 0 {
            return Err(error.context(format!("after {} tries", self.most)));
        }
        if wanted > self.longest {
            // Asked earlier, it would only be asked too often.
            let wanted = wanted.as_secs();
            return Err(error.context(format!(
                "the server wants to be asked again in {wanted} s, and not before"
            )));
        }
        let pause = self.pause.max(wanted);
        log::debug!("it is tried again in {pause:?}: {error:#}");
        let deadline = Instant::now() + pause;
        loop {
            self.interrupt.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            sleep(left.min(Duration::from_millis(TICK.into())));
        }
        self.pause = (self.pause * 2).min(Duration::from_secs(60));
        Ok(())
    }
}

/// The content of a file on a server, from its beginning or a place in it on. What breaks on the way is fetched from
/// there on, as long as the file stays the same.
pub struct Body {
    fetcher: Fetcher,
    url: Url,
    /// How many bytes of the file were read, or left out.
    at: u64,
    known: Validator,
    /// Of the whole file.
    length: Option<u64>,
    is_page: bool,
    /// Whether it came in several parts.
    is_joined: bool,
    transfer: Option<Transfer>,
    /// What was read to see that it begins.
    begun: Vec<u8>,
    tries: Tries,
    is_whole: bool,
}

/// The file is not the one that was begun.
pub const CHANGED: io::ErrorKind = io::ErrorKind::InvalidData;

impl Body {
    /// Where it begins: it is the whole file if the server has no parts, or another file than before.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// The length of the whole file in bytes, as the server tells it.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    pub fn validator(&self) -> &Validator {
        &self.known
    }

    /// Whether it is joined from parts, which need not be of one file where the server does not tell.
    pub fn is_joined(&self) -> bool {
        self.is_joined
    }

    /// Whether the server calls it a web page.
    pub fn is_page(&self) -> bool {
        self.is_page
    }

    /// Begins at the place asked for, or else at the beginning. Tries until an answer is there.
    fn connect(&mut self) -> Result<()> {
        loop {
            match self.connect_once() {
                Ok(from) => {
                    self.at = from;
                    self.is_joined = from > 0;
                    return Ok(());
                }
                Err(Failed::Changed) if self.at > 0 => {
                    self.at = 0;
                    self.known = Validator::default();
                }
                Err(failed) => self.tries.after(failed)?,
            }
        }
    }

    /// Returns where the answer begins.
    fn connect_once(&mut self) -> Result<u64, Failed> {
        let range = (self.at > 0).then_some(self.at);
        let condition = range.and_then(|_| self.known.of_range());
        let headers: Vec<String> = condition
            .map(|known| format!("If-Range: {known}"))
            .into_iter()
            .collect();
        let asked = range.map(|from| format!("{from}-"));
        let mut transfer = Transfer::start(&self.fetcher, &self.url, &headers, asked.as_deref())?;
        let mut begun = vec![0; 64 << 10];
        let count = transfer.read(&mut begun, &self.fetcher.interrupt)?;
        begun.truncate(count);
        let response = transfer.response();
        let is_ended = count == 0;
        if is_ended {
            transfer.end()?;
        }
        let (from, length) = match (response.status, range) {
            (206, Some(at)) if response.from == Some(at) => (at, response.whole),
            (206, _) => return Err(Failed::Changed),
            _ => (0, response.length),
        };
        if from == 0 {
            self.known = response.validator;
        }
        self.is_page = response.is_page;
        self.length = length;
        self.begun = begun;
        self.is_whole = is_ended;
        self.transfer = (!is_ended).then_some(transfer);
        Ok(from)
    }

    /// Goes on after a failure, where that is. Fails if it cannot.
    fn go_on(&mut self, failed: Failed) -> Result<(), io::Error> {
        let mut failed = failed;
        loop {
            self.transfer = None;
            let tried = self.tries.after(failed);
            tried.map_err(|error| {
                io::Error::other(format!("cannot fetch {}: {error:#}", self.url))
            })?;
            failed = match self.connect_once() {
                Ok(from) if from == self.at => {
                    self.is_joined = true;
                    return Ok(());
                }
                // Nothing of what is there already can be taken back here.
                Ok(_) | Err(Failed::Changed) => {
                    let changed =
                        format!("{} is another file than before, or has no parts", self.url);
                    return Err(io::Error::new(CHANGED, changed));
                }
                Err(failed) => failed,
            };
        }
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.begun.is_empty() {
                let count = self.begun.len().min(buffer.len());
                buffer[..count].copy_from_slice(&self.begun[..count]);
                self.begun.drain(..count);
                self.at += count as u64;
                return Ok(count);
            }
            let Some(transfer) = &mut self.transfer else {
                return if self.is_whole {
                    Ok(0)
                } else {
                    Err(io::ErrorKind::UnexpectedEof.into())
                };
            };
            let read = transfer.read(buffer, &self.fetcher.interrupt);
            match read.and_then(|count| {
                if count == 0 {
                    transfer.end().map(|()| 0)
                } else {
                    Ok(count)
                }
            }) {
                Ok(0) => {
                    self.transfer = None;
                    self.is_whole = true;
                }
                // A part of it can have no length of its own.
                Ok(count)
                    if self
                        .length
                        .is_some_and(|most| self.at + count as u64 > most) =>
                {
                    let longer = format!("{} is longer than its server says", self.url);
                    return Err(io::Error::new(CHANGED, longer));
                }
                Ok(count) => {
                    if self.at / PROGRESS != (self.at + count as u64) / PROGRESS {
                        self.tries.renew();
                    }
                    self.at += count as u64;
                    return Ok(count);
                }
                Err(failed) => self.go_on(failed)?,
            }
        }
    }
}

/// A curl(1) that runs.
struct Transfer {
    running: Option<Running>,
    output: ChildStdout,
    headers: File,
}

impl Transfer {
    fn start(
        fetcher: &Fetcher,
        url: &Url,
        headers: &[String],
        range: Option<&str>,
    ) -> Result<Self, Failed> {
        fetcher.interrupt.check().map_err(Failed::ForGood)?;
        Self::run(fetcher, url, headers, range).map_err(Failed::ForGood)
    }

    fn run(fetcher: &Fetcher, url: &Url, headers: &[String], range: Option<&str>) -> Result<Self> {
        let cmd = Cmd::new("curl").args(["--config", "-"]).uninterrupted();
        cmd.check_installed()?;
        let dump = in_memory(b"")?;
        let path = descriptor(&dump).display().to_string();
        let mut config = in_memory(fetcher.config(url, headers, range, &path)?.as_bytes())?;
        config.rewind()?;
        log::debug!("fetching {url}");
        let mut running = cmd.start(config.into(), Stdio::piped())?;
        let output = running.stdout().context("curl writes to a pipe")?;
        Ok(Self {
            running: Some(running),
            output,
            headers: dump,
        })
    }

    /// Waits for bytes; none at the end.
    fn read(&mut self, buffer: &mut [u8], interrupt: &Interrupt) -> Result<usize, Failed> {
        loop {
            interrupt.check().map_err(Failed::ForGood)?;
            let mut polled = [PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            match poll(&mut polled, PollTimeout::from(TICK)) {
                Ok(0) | Err(nix::errno::Errno::EINTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(Failed::ForGood(error.into())),
            }
            match self.output.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read.map_err(|error| Failed::ForGood(error.into())),
            }
        }
    }

    /// Reads all that comes, so many bytes at most.
    fn all(&mut self, most: u64, interrupt: &Interrupt) -> Result<Vec<u8>, Failed> {
        let mut content = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = self.read(&mut buffer, interrupt)?;
            if count == 0 {
                return Ok(content);
            }
            content.extend_from_slice(&buffer[..count]);
            if content.len() as u64 > most {
                return Err(Failed::ForGood(anyhow!("it is longer than {most} bytes")));
            }
        }
    }

    /// The last answer so far. Nothing of it is known where none has come.
    fn response(&self) -> Response {
        const MOST: u64 = 1 << 20;
        let mut headers = Vec::new();
        let read = (&self.headers)
            .rewind()
            .and_then(|()| (&self.headers).take(MOST).read_to_end(&mut headers));
        let response = read.ok().and_then(|_| Response::parse(&headers));
        response.unwrap_or_default()
    }

    /// Waits for the end, and says why it has failed.
    fn end(&mut self) -> Result<(), Failed> {
        let Some(running) = self.running.take() else {
            return Ok(());
        };
        let (status, said) = running.end_of().map_err(Failed::ForGood)?;
        if status == Some(0) {
            return Ok(());
        }
        let response = self.response();
        let error = match status {
            Some(UNTRUSTED) => untrusted(&said),
            _ => anyhow!("{said}"),
        };
        Err(match (response.status, status) {
            (416, _) => Failed::Changed,
            // Too many have asked, or this host too often.
            (429 | 500..=599, _) => {
                Failed::Now(error, response.again_after.map(Duration::from_secs))
            }
            (..400, Some(status)) if PASSING.contains(&status) => Failed::Now(error, None),
            // All others of 400 and more, and a circle of redirects among them.
            _ => Failed::ForGood(error),
        })
    }
}

/// What is wrong with a certificate. What curl(1) says of it goes on about what a certificate is.
fn untrusted(said: &str) -> anyhow::Error {
    let reason = said.split("; ").next().unwrap_or_default();
    let reason = reason.trim_start_matches("curl: (60) ");
    anyhow!(
        "the certificate of the server is not trusted: {reason}; where an authority of your own has signed it, have this \
         host trust that, or name its certificate as cacert in /root/.curlrc"
    )
}

/// What comes, for a reader.
struct Incoming<'a> {
    transfer: Transfer,
    fetcher: &'a Fetcher,
}

impl Read for Incoming<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.transfer.read(buffer, &self.fetcher.interrupt);
        read.map_err(|failed| match failed {
            Failed::Now(error, _) | Failed::ForGood(error) => {
                io::Error::other(format!("{error:#}"))
            }
            Failed::Changed => CHANGED.into(),
        })
    }
}
