//! Running skopeo(1), which has its own ways to passwords, signatures (policy.json), mirrors and proxies.

use std::env;
use std::io::Read;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::layout::{DOCUMENT_MOST, Manifest};
use super::reference::{Place, Reference};
use super::store::{Store, Watched};
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
            if let Some(value) = env::var_os(name) {
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
