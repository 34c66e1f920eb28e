//! An image in layers, as `update` and `base add` take one: of this host, or brought by skopeo(1).

use anyhow::{Context as _, Result, ensure};

use crate::delivery::conf::Conf;
use crate::delivery::oci::reference::Reference;
use crate::delivery::oci::{Found, Layer, Skopeo, Store};
use crate::delivery::spool::Spool;
use crate::image::layers::{self, Layers};
use crate::image::tree::Tree;
use crate::image::{Image, Opened};
use crate::sys::cmd::Cmd;
use crate::sys::interrupt::Interrupt;
use crate::sys::transaction::Transaction;

/// What skopeo's copy of an image is called where a person makes one.
const COPY: &str = "oci:image";

pub struct Layered {
    pub found: Found,
    skopeo: Skopeo,
    spool: Spool,
}

impl Layered {
    /// Finds the image. Refuses one that is neither by its manifest nor by its index what is `required`.
    pub fn find(
        reference: &Reference,
        conf: Conf,
        required: Option<&str>,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let skopeo = Skopeo {
            proxy: conf.proxy,
            stall: conf.stall,
            interrupt: interrupt.clone(),
        };
        let found = Found::find(reference, &skopeo)?;
        if let Some(required) = required {
            let digests = [&found.digest, &found.top];
            ensure!(
                digests.iter().any(|digest| digest.hex() == required),
                "{reference} has the digest {}, not the required {required}",
                found.digest.hex()
            );
        }
        Ok(Self {
            found,
            skopeo,
            spool: Spool::at(&conf.spool),
        })
    }

    /// What `base add` takes when that was done which [`Self::line`] says.
    pub fn here(&self) -> String {
        if self.found.is_elsewhere() {
            return COPY.to_owned();
        }
        self.found.reference.to_string()
    }

    /// What fetching it comes to, for a shell; nothing where it is here.
    pub fn line(&self) -> Option<Cmd> {
        let pinned = self.found.reference.pinned(&self.found.digest);
        let cmd = Cmd::new("skopeo").args(["copy", pinned.as_str(), COPY]);
        self.found.is_elsewhere().then_some(cmd)
    }

    /// Fetches its layers. Nothing in a dry run, and where it is here.
    pub fn fetch(&self, tx: &mut Transaction) -> Result<Option<(Vec<Layer>, Store)>> {
        let mut fetched = None;
        if let Some(line) = self.line() {
            tx.work(&line, |_| {
                let store = Store::open(&self.spool)?;
                let layers = self.found.fetch(&self.skopeo, &store)?;
                fetched = Some((layers, store));
                Ok(())
            })?;
        }
        Ok(fetched)
    }

    /// Has its layers here, to be read for a base. Those of other images go once it is taken.
    pub fn open(&self, tx: &mut Transaction) -> Result<Opened> {
        let layers = if let Some(layers) = self.found.layers()? {
            layers
        } else {
            let fetched = self.fetch(tx)?;
            let (layers, store) = fetched.context("a dry run fetches nothing")?;
            let kept: Vec<_> = layers.iter().map(|layer| layer.path.clone()).collect();
            tx.discard(move || Ok(store.others(&kept)));
            layers
        };
        let layers = layers.into_iter().map(|layer| layers::Layer {
            digest: layer.digest.hex().to_owned(),
            path: layer.path,
            size: layer.size,
        });
        let tree = Tree::Layers(Layers::new(layers.collect()));
        Ok(Opened::from(Image::Tree(tree)))
    }
}
