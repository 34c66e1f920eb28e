//! Running skopeo(1), which has its own ways to passwords, signatures (policy.json), mirrors and proxies.

use std::env;
use std::ffi::OsString;
use std::io::Read;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::layout::{DOCUMENT_MOST, Digest, Manifest};
use super::reference::{Place, Reference};
use super::store::{Store, Watched};
use crate::delivery::url::Url;
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;

/// What it may be told by the caller's environment.
const VARIABLES: [&str; 15] = [
    "HOME",
    "XDG_RUNTIME_DIR",
    "REGISTRY_AUTH_FILE",
    "DOCKER_CONFIG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "TMPDIR",
    "http_proxy",
    "HTTP_PROXY",
    "https_proxy",
    "HTTPS_PROXY",
    "all_proxy",
    "ALL_PROXY",
    "no_proxy",
    "NO_PROXY",
];
/// What the caller's environment tells it. It would look up a home by itself, and find other passwords and another
/// policy.json there than we do.
pub(super) fn variable(name: &str) -> Option<OsString> {
    let value = env::var_os(name);
    if name != "HOME" {
        return value;
    }
    let home = value.filter(|home| Path::new(home).is_absolute());
    Some(home.unwrap_or_else(|| ROOT_HOME.into()))
}

/// Units have no `HOME`.
const ROOT_HOME: &str = "/root";

/// How often it tries again what can pass.
const RETRIES: &str = "3";

/// How it is run.
#[derive(Clone)]
pub struct Skopeo {
    pub proxy: Option<String>,
    /// After so many seconds without anything it is ended.
    pub stall: u32,
    pub interrupt: Interrupt,
}

impl Skopeo {
    fn cmd(&self) -> Cmd {
        let mut cmd = Cmd::new("skopeo");
        for name in VARIABLES {
            if let Some(value) = variable(name) {
                cmd = cmd.variable(name, value);
            }
        }
        match &self.proxy {
            Some(proxy) => cmd
                .variable("HTTP_PROXY", proxy)
                .variable("HTTPS_PROXY", proxy),
            None => cmd,
        }
    }

    fn check_installed(&self, reference: &str) -> Result<()> {
        self.cmd().check_installed().with_context(|| {
            format!("{reference} is fetched by skopeo(1): install the package skopeo")
        })
    }

    /// The manifest or index that a reference leads to, as it is.
    pub fn manifest(&self, reference: &str) -> Result<Vec<u8>> {
        self.inspect(reference, &[])
    }

    /// The configuration that the manifest of an image names, as it is.
    pub fn config(&self, reference: &str) -> Result<Vec<u8>> {
        self.inspect(reference, &["--config"])
    }

    fn inspect(&self, reference: &str, more: &[&str]) -> Result<Vec<u8>> {
        self.check_installed(reference)?;
        let limit = format!("--command-timeout={}s", self.stall);
        let cmd = self.cmd().args([&limit, "inspect", "--raw"]).args(more);
        let cmd = cmd.args(["--retry-times", RETRIES]).arg(reference);
        let mut running = cmd.start(Stdio::null(), Stdio::piped())?;
        let output = running.stdout().context("skopeo writes to a pipe")?;
        let mut content = Vec::new();
        output.take(DOCUMENT_MOST + 1).read_to_end(&mut content)?;
        ensure!(
            content.len() as u64 <= DOCUMENT_MOST,
            "{reference} has a manifest of more than {} MiB",
            DOCUMENT_MOST >> 20
        );
        self.interrupt.check()?;
        running
            .wait()
            .with_context(|| format!("cannot look at {reference}"))?;
        Ok(content)
    }

    /// Where a registry has the image whose manifest has this digest: an address such as `https://HOST/v2/NAME/`. It can
    /// be a mirror, and is http only where skopeo may use that. Nothing where skopeo does not tell.
    pub(super) fn place(&self, pinned: &str, digest: &Digest) -> Result<Option<Url>> {
        let limit = format!("--command-timeout={}s", self.stall);
        let cmd = self.cmd().args(["--debug", &limit, "inspect", "--raw"]);
        let running = cmd.arg(pinned).start(Stdio::null(), Stdio::null())?;
        let said = running.wait_with(|| self.interrupt.check())?;
        Ok(place(&said, digest))
    }

    /// What brings an image into a store, as it is: what is there already does not come again.
    pub fn copy_line(&self, pinned: &str, is_oci: bool, store: &Store) -> Cmd {
        let cmd = self
            .cmd()
            .args(["copy", "--quiet", "--retry-times", RETRIES]);
        // One of Docker is written down in another way, with the same layers.
        let cmd = if is_oci {
            cmd.arg("--preserve-digests")
        } else {
            cmd
        };
        cmd.arg("--dest-oci-accept-uncompressed-layers")
            .arg("--dest-shared-blob-dir")
            .arg(store.blobs())
            .arg(pinned)
            .arg(format!("oci:{}:image", store.image().display()))
    }

    pub(super) fn copy(
        &self,
        reference: &Reference,
        pinned: &str,
        manifest: &Manifest,
        store: &Store,
        mut watched: Watched,
    ) -> Result<()> {
        self.check_installed(pinned)?;
        let cmd = self.copy_line(pinned, manifest.is_oci, store);
        let running = cmd.start(Stdio::null(), Stdio::null())?;
        let stall = Duration::from_secs(self.stall.into());
        // An archive is read through before anything comes.
        let can_stall = matches!(reference.place, Place::Registry(..));
        let mut last = (0, Instant::now());
        let ran = running.wait_with(|| {
            self.interrupt.check()?;
            let there = watched.look()?;
            if last.0 != there {
                last = (there, Instant::now());
            }
            ensure!(
                !can_stall || last.1.elapsed() < stall,
                "nothing has come for {} s",
                self.stall
            );
            Ok(())
        });
        store.end()?;
        ran.map(drop)
            .with_context(|| format!("cannot fetch {reference}"))
    }
}

/// The last place that a manifest was asked for at, as skopeo(1) tells it when it looks for errors.
fn place(said: &str, digest: &Digest) -> Option<Url> {
    let end = format!("manifests/{digest}\"");
    said.lines().rev().find_map(|line| {
        let (_, address) = line.split_once(" msg=\"GET ")?;
        Url::parse(address.trim_end().strip_suffix(&end)?).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_place_that_a_manifest_was_asked_for_at_counts() {
        let digest = Digest::of(b"");
        let other = Digest::of(b"other");
        let line = |what: &str| format!("time=\"2026-11-29T01:46:15Z\" level=debug msg=\"{what}\"");
        let asked = |dir: &str, digest: &Digest| line(&format!("GET {dir}manifests/{digest}"));
        let before = line("Using registries.d directory /etc/containers/registries.d");
        let ping = line("GET http://h:5000/v2/");
        for (lines, wanted) in [
            (
                vec![
                    before.clone(),
                    ping.clone(),
                    asked("http://h:5000/v2/a/b/", &digest),
                ],
                Some("http://h:5000/v2/a/b/"),
            ),
            (
                vec![
                    asked("https://mirror/v2/a/", &digest),
                    asked("https://h/v2/a/", &digest),
                    line("Content-Type from manifest GET is \\\"x\\\""),
                ],
                Some("https://h/v2/a/"),
            ),
            (vec![asked("https://h/v2/a/", &other)], None),
            (vec![asked("ftp://h/v2/a/", &digest)], None),
            (vec![before, ping], None),
            (Vec::new(), None),
        ] {
            let found = place(&lines.join("\n"), &digest);
            let found = found.map(|url| url.to_string());
            assert_eq!(found.as_deref(), wanted, "{lines:?}");
        }
    }
}
