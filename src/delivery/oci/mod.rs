//! Images in layers, as registries of containers have them. What is not on this host is fetched by skopeo(1).

pub mod layout;
mod login;
mod policy;
pub mod reference;
mod skopeo;
pub(super) mod store;
pub mod web;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};

use layout::{Digest, Document, Image, Layout, Manifest, Platform};
pub use login::Login;
use reference::{Place, Reference};
pub use skopeo::Skopeo;
pub use store::Store;
use web::Web;

use super::fetch::Fetcher;

/// An image in layers.
#[derive(Clone, Debug)]
pub struct Found {
    pub reference: Reference,
    /// Of its manifest.
    pub digest: Digest,
    /// Of what the reference leads to: the same, or an index of images for several platforms.
    pub top: Digest,
    /// As its annotations tell.
    pub version: Option<String>,
    /// Not known of one that an index names.
    manifest: Option<Manifest>,
}

/// A layer, and where it is.
#[derive(Debug)]
pub struct Layer {
    pub path: PathBuf,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

impl Found {
    /// Finds an image. Costs one request where it is in a registry.
    pub fn find(reference: &Reference, skopeo: &Skopeo) -> Result<Self> {
        let (top, document) = match &reference.place {
            Place::Layout(dir, tag) => {
                let image = Layout::open(dir)?.image(tag.as_deref(), &Platform::host())?;
                (image.digest, Document::Manifest(image.manifest))
            }
            Place::Directory(dir) => {
                let image = Layout::flat(dir)?.image(None, &Platform::host())?;
                (image.digest, Document::Manifest(image.manifest))
            }
            Place::Archive(_) | Place::Registry(..) => {
                let content = skopeo.manifest(&reference.to_string())?;
                let document =
                    Document::parse(&content).with_context(|| format!("{reference} is refused"))?;
                (Digest::of(&content), document)
            }
        };
        if let Place::Registry(_, Some(wanted)) = &reference.place {
            ensure!(
                top == *wanted,
                "{reference} is refused: the registry has something with the digest {top} there"
            );
        }
        Self::chosen(reference, top, document).with_context(|| format!("{reference} is refused"))
    }

    fn chosen(reference: &Reference, top: Digest, document: Document) -> Result<Self> {
        let (digest, version, manifest) = match document {
            Document::Manifest(manifest) => {
                let version = manifest.version().map(str::to_owned);
                (top.clone(), version, Some(manifest))
            }
            Document::Index(index) => {
                ensure!(
                    matches!(reference.place, Place::Registry(..)),
                    "it has images for several platforms; unpack it, and name the directory as oci:DIR"
                );
                let chosen = index.choose(None, &Platform::host())?;
                let version = index.version().map(str::to_owned);
                (chosen.digest.clone(), version, None)
            }
        };
        Ok(Self {
            reference: reference.clone(),
            digest,
            top,
            version,
            manifest,
        })
    }

    /// Of all layers, in bytes, as they are packed; nothing where that is not known yet.
    pub fn size(&self) -> Option<u64> {
        self.manifest.as_ref().map(Manifest::size)
    }

    /// Whether it has to be brought here to be read.
    pub fn is_elsewhere(&self) -> bool {
        matches!(
            self.reference.place,
            Place::Archive(_) | Place::Registry(..)
        )
    }

    /// The layers of an image that is here as it is, the lowest first; nothing of one that has to be brought. Refuses one
    /// for another processor.
    pub fn layers(&self) -> Result<Option<Vec<Layer>>> {
        let layout = match &self.reference.place {
            Place::Layout(dir, _) => Layout::open(dir)?,
            Place::Directory(dir) => Layout::flat(dir)?,
            Place::Archive(_) | Place::Registry(..) => return Ok(None),
        };
        let manifest = self.manifest.as_ref().context("it was read")?;
        self.check(&layout.document(&manifest.config)?)?;
        Ok(Some(layers(manifest, &|digest| layout.blob(digest))))
    }

    /// Has skopeo(1) bring what of it is not in the store, and returns its layers.
    ///
    /// Refuses an image for another processor, and one that there is no room for.
    pub fn fetch(&self, skopeo: &Skopeo, store: &Store) -> Result<Vec<Layer>> {
        let pinned = self.reference.pinned(&self.digest);
        let manifest = self.manifest(&pinned, skopeo)?;
        let missing = store.missing(&manifest, &skopeo.interrupt)?;
        let of = store.watched(&pinned, missing)?;
        skopeo.copy(&self.reference, &pinned, &manifest, store, of)?;
        // The configuration of an image of Docker comes rewritten for OCI, so it is asked for as it is.
        let kept = manifest.is_oci.then_some(&manifest.config);
        for part in manifest.layers.iter().chain(kept) {
            let is_there = store.blob(&part.digest).is_file();
            ensure!(
                is_there,
                "skopeo has not brought {} of {pinned}",
                part.digest
            );
        }
        let config = if let Some(config) = kept {
            store.document(config)?
        } else {
            config(&manifest, &pinned, skopeo)?
        };
        self.check(&config)?;
        Ok(layers(&manifest, &|digest| store.blob(digest)))
    }

    /// Gets ready to fetch parts of its layers by `fetcher`. Nothing where it is in no registry, or no layer has a table
    /// of contents; and an error in the place of the image where only skopeo(1) can fetch it.
    ///
    /// Refuses an image for another processor.
    pub fn partial(&self, skopeo: &Skopeo, fetcher: &Fetcher) -> Result<Option<Result<Partial>>> {
        if !matches!(self.reference.place, Place::Registry(..)) {
            return Ok(None);
        }
        let pinned = self.reference.pinned(&self.digest);
        let manifest = self.manifest(&pinned, skopeo)?;
        if !manifest.layers.iter().any(layout::Descriptor::has_table) {
            return Ok(None);
        }
        let variable = |name: &str| skopeo::variable(name);
        // Skopeo looks at signatures when it copies an image, and not before.
        if !policy::takes_all(&variable) {
            let asked = "policy.json asks who has signed images of registries, which only skopeo(1) can tell";
            return Ok(Some(Err(anyhow!(asked))));
        }
        let config = match config(&manifest, &pinned, skopeo) {
            Ok(config) => config,
            Err(error) => {
                skopeo.interrupt.check()?;
                return Ok(Some(Err(error)));
            }
        };
        self.check(&config)?;
        let image = Image {
            digest: self.digest.clone(),
            manifest,
        };
        let partial = skopeo.place(&pinned, &self.digest).and_then(|place| {
            let place = place.context("skopeo(1) does not tell where it is")?;
            let login = Some(Arc::new(Login::new(&place, &variable)?));
            let fetcher = fetcher.clone();
            let fetcher = Fetcher { login, ..fetcher };
            let web = Web::in_registry(place, image);
            Ok(Partial { web, fetcher })
        });
        skopeo.interrupt.check()?;
        Ok(Some(partial))
    }

    /// Refuses an image for another processor, by its configuration.
    fn check(&self, config: &[u8]) -> Result<()> {
        let checked = Platform::host().check(config);
        checked.with_context(|| format!("{} is refused", self.reference))
    }

    fn manifest(&self, pinned: &str, skopeo: &Skopeo) -> Result<Manifest> {
        match &self.manifest {
            Some(manifest) => Ok(manifest.clone()),
            None => self.named_by_index(pinned, skopeo),
        }
    }

    fn named_by_index(&self, pinned: &str, skopeo: &Skopeo) -> Result<Manifest> {
        let content = skopeo.manifest(pinned)?;
        ensure!(
            Digest::of(&content) == self.digest,
            "{pinned} is refused: the registry has something else there"
        );
        match Document::parse(&content).with_context(|| format!("{pinned} is refused"))? {
            Document::Manifest(manifest) => Ok(manifest),
            Document::Index(_) => bail!("{pinned} is refused: it is an index in an index"),
        }
    }
}

/// An image in a registry of which parts can be fetched, and what does so.
pub struct Partial {
    pub web: Web,
    pub fetcher: Fetcher,
}

/// The configuration of an image, as its registry has it.
fn config(manifest: &Manifest, pinned: &str, skopeo: &Skopeo) -> Result<Vec<u8>> {
    let config = skopeo.config(pinned)?;
    ensure!(
        Digest::of(&config) == manifest.config.digest,
        "the configuration of {pinned} is another one than its manifest names"
    );
    Ok(config)
}

fn layers(manifest: &Manifest, path: &dyn Fn(&Digest) -> PathBuf) -> Vec<Layer> {
    let layer = |layer: &layout::Descriptor| Layer {
        path: path(&layer.digest),
        digest: layer.digest.clone(),
        size: layer.size,
    };
    manifest.layers.iter().map(layer).collect()
}
