//! Who has signed a list: by `OpenPGP`, as gpgv(1) judges it, or by minisign. The keys are the host's own.

mod gpg;
mod minisign;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};

use super::conf::merged;
use crate::sys::interrupt::Interrupt;

const KEYS_DIR: &str = "keys.d";
/// The longest signature, and the largest file with keys, in bytes.
pub const SIGNATURE_MOST: u64 = 64 << 10;
const KEYS_MOST: u64 = 16 << 20;

/// How a list is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Gpg,
    Minisign,
}

impl Kind {
    /// What the name of a signature has after that of the list.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Gpg => ".gpg",
            Self::Minisign => ".minisig",
        }
    }
}

/// Who has signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Signer {
    pub kind: Kind,
    /// The fingerprint of the key, or its id.
    pub key: String,
    /// In seconds since 1970. A list that is signed with minisign need not tell.
    pub signed: Option<u64>,
}

/// The keys of a host.
#[derive(Debug, Default)]
pub struct Keys {
    rings: Vec<PathBuf>,
    minisign: Vec<(PathBuf, minisign::Key)>,
}

impl Keys {
    /// Reads the keys of the host at `root`.
    ///
    /// Refuses a file with keys that cannot be used: what a host trusts has to be clear.
    pub fn load(root: &Path) -> Result<Self> {
        let mut keys = Self::default();
        for path in merged(root, KEYS_DIR, |name| !name.starts_with('.'))? {
            let shown = path.display().to_string();
            let extension = path.extension().and_then(|extension| extension.to_str());
            let Some("gpg" | "pgp" | "kbx" | "asc" | "pub") = extension else {
                log::warn!("{shown} holds no keys: their files end in .gpg, .pgp, .kbx or .pub");
                continue;
            };
            let content = content(&path).with_context(|| format!("the keys of {shown}"))?;
            if extension == Some("pub") {
                let key = minisign::Key::parse(&content)
                    .with_context(|| format!("{shown} is no public key of minisign"))?;
                keys.minisign.push((path, key));
            } else {
                gpg::check_ring(&content).with_context(|| shown.clone())?;
                keys.rings.push(path);
            }
        }
        Ok(keys)
    }

    /// The kinds of signatures that the keys can check.
    pub fn kinds(&self) -> Vec<Kind> {
        let gpg = (!self.rings.is_empty()).then_some(Kind::Gpg);
        let minisign = (!self.minisign.is_empty()).then_some(Kind::Minisign);
        gpg.into_iter().chain(minisign).collect()
    }

    /// Says who has signed `data`. Fails unless one of the keys has.
    pub fn verify(
        &self,
        kind: Kind,
        data: &[u8],
        signature: &[u8],
        interrupt: &Interrupt,
    ) -> Result<Signer> {
        ensure!(!signature.is_empty(), "the signature is empty");
        match kind {
            Kind::Gpg => gpg::verify(&self.rings, data, signature, interrupt),
            Kind::Minisign => minisign::verify(&self.minisign, data, signature),
        }
    }
}

/// What a file with keys holds. Refuses one that others than root can write to.
fn content(path: &Path) -> Result<Vec<u8>> {
    let failed = "cannot be read";
    let metadata = path.metadata().context(failed)?;
    let real = path.canonicalize().context(failed)?;
    ensure!(metadata.is_file(), "are in no file");
    ensure!(metadata.len() > 0, "are missing: the file is empty");
    ensure!(
        metadata.len() <= KEYS_MOST,
        "are too many: the file has {} bytes",
        metadata.len()
    );
    for part in real.ancestors() {
        let metadata = part.metadata().context(failed)?;
        let is_roots = [0, Uid::effective().as_raw()].contains(&metadata.uid());
        let is_sticky = metadata.is_dir() && metadata.mode() & 0o1000 != 0;
        if !is_roots || (metadata.mode() & 0o022 != 0 && !is_sticky) {
            bail!(
                "can be replaced by others than root, who can write to {}",
                part.display()
            );
        }
    }
    fs::read(path).context(failed)
}
