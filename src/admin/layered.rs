//! An image in layers, as `update` and `base add` take one: of this host, or of a registry. There skopeo(1) brings what
//! of its layers is new, or, where they have tables of contents, curl(1) those parts that no base has.

use anyhow::{Context as _, Result, ensure};

use super::Context;
use super::base::parts::{Parts, told};
use crate::delivery::conf::Conf;
use crate::delivery::fetch::Fetcher;
use crate::delivery::key_of;
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
    fetcher: Fetcher,
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
        let fetcher = conf.fetcher(interrupt);
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
            fetcher,
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

    /// Fetches what [`Self::open`] needs of it, for later.
    pub fn keep(&self, context: &Context, tx: &mut Transaction, shares: bool) -> Result<()> {
        if self.parts(context, tx, shares)?.is_some() {
            return Ok(());
        }
        tx.unlocked(|tx| self.fetch(tx)).map(drop)
    }

    /// Fetches the parts of its layers that no base has, if it `shares` files with bases. Nothing where it is here, or
    /// only whole layers can be fetched.
    fn parts(
        &self,
        context: &Context,
        tx: &mut Transaction,
        shares: bool,
    ) -> Result<Option<Parts>> {
        if !shares || context.dry_run {
            return Ok(None);
        }
        let name = self.found.reference.to_string();
        match self.found.partial(&self.skopeo, &self.fetcher)? {
            None => Ok(None),
            Some(Err(error)) => Ok(told(&name, &format!("{error:#}"))),
            Some(Ok(partial)) => {
                let place = key_of(&name);
                let to = (&self.spool, place.as_str());
                Parts::fetch(context, tx, &partial.fetcher, to, &partial.web, &name)
            }
        }
    }

    /// Fetches its layers. Those of other images go at the end. Nothing in a dry run, and where it is here.
    fn fetch(&self, tx: &mut Transaction) -> Result<Option<Vec<Layer>>> {
        let mut fetched = None;
        if let Some(line) = self.line() {
            tx.work(&line, |_| {
                // Parts of it that could not be completed are of no use any more.
                let place = key_of(&self.found.reference.to_string());
                self.spool.supersede(&place, &[])?;
                let store = Store::open(&self.spool)?;
                let layers = self.found.fetch(&self.skopeo, &store)?;
                fetched = Some((layers, store));
                Ok(())
            })?;
        }
        Ok(fetched.map(|(layers, store)| {
            let kept: Vec<_> = layers.iter().map(|layer| layer.path.clone()).collect();
            tx.discard(move || Ok(store.others(&kept)));
            layers
        }))
    }

    /// Has its layers here, to be read for a base. If it `shares` files with other bases, only those parts are fetched
    /// that no base has, where that can be.
    pub fn open(
        &self,
        context: &Context,
        tx: &mut Transaction,
        shares: bool,
    ) -> Result<(Opened, Option<Parts>)> {
        let layers = if let Some(layers) = self.found.layers()? {
            layers
        } else {
            if let Some(parts) = self.parts(context, tx, shares)? {
                return Ok((parts.opened(tx), Some(parts)));
            }
            let fetched = tx.unlocked(|tx| self.fetch(tx))?;
            fetched.context("a dry run fetches nothing")?
        };
        let layers = layers.into_iter().map(|layer| layers::Layer {
            digest: layer.digest.hex().to_owned(),
            path: layer.path,
            size: layer.size,
        });
        let layers = Layers::new(layers.collect());
        if let Some(parts) = Parts::of_layers(context, tx, &layers, shares)? {
            return Ok((parts.opened(tx), Some(parts)));
        }
        Ok((Opened::from(Image::Tree(Tree::Layers(layers))), None))
    }
}
