//! Where `update` and `base add` take an image from: this host, a web server, or a registry.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use super::base;
use super::base::parts::Parts;
use super::layered::Layered;
use super::{Context, text};
use crate::boot::root::Root;
use crate::delivery::conf::Conf;
use crate::delivery::fetch::Fetcher;
use crate::delivery::held::Held;
use crate::delivery::oci::layout::Descriptor;
use crate::delivery::oci::reference::Reference;
use crate::delivery::oci::web::Web;
use crate::delivery::pattern::Pattern;
use crate::delivery::signature::Keys;
use crate::delivery::spool::{Fetched, Spool};
use crate::delivery::url::Url;
use crate::delivery::version::compare;
use crate::delivery::{Found, TO_FETCH, Wanted};
use crate::image::layers::{Layer, Layers};
use crate::image::stream::{Feed, Input};
use crate::image::tree::Tree;
use crate::image::{Image, Opened, Seen, digest};
use crate::model::layout::{Group, tag};
use crate::model::volume::{decoded, encoded};
use crate::sys::cmd::Cmd;
use crate::sys::progress;
use crate::sys::transaction::Transaction;

/// What is read of an image that is not on this host, to recognise it, in bytes.
const HEAD: usize = 4 << 20;

/// What both verbs are told of it.
#[derive(Args, Clone, Default)]
pub struct Delivery {
    /// Refuse an image with another SHA-256 than this: that of the file, or of the manifest or index in a registry
    #[arg(long, value_name = "SHA256", value_parser = parse_digest)]
    require_digest: Option<String>,
    /// Take an image from a server although nobody has signed its list, or this host has no keys
    #[arg(long)]
    allow_unsigned: bool,
    /// Write the progress to this file descriptor, a line of JSON each time
    #[arg(long, value_name = "N")]
    progress_fd: Option<u32>,
    /// Whether the group that it is for is not there yet, so nothing is known of earlier images.
    #[arg(skip)]
    is_for_new_group: bool,
}

impl Delivery {
    /// The same where there is no group yet. What is not said is as in `other`.
    pub fn for_new_group(self, other: Self) -> Self {
        Self {
            require_digest: self.require_digest.or(other.require_digest),
            allow_unsigned: self.allow_unsigned || other.allow_unsigned,
            progress_fd: self.progress_fd.or(other.progress_fd),
            is_for_new_group: true,
        }
    }
}

fn parse_digest(text: &str) -> Result<String> {
    let digest = text.trim_start_matches("sha256:").to_ascii_lowercase();
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure!(is_digest, "a SHA-256 of 64 hexadecimal digits is needed");
    Ok(digest)
}

/// What of a server is taken.
#[derive(Clone, Copy, Default)]
pub struct Taken {
    /// Also an image that is older than what was there before.
    pub older: bool,
    /// Only what was fetched before.
    pub offline: bool,
}

/// An image that is to be taken.
pub enum Source {
    Here(Box<Here>),
    Server(Box<Server>),
    /// An image for containers.
    Layers(Box<Layered>),
}

/// A file, device or directory.
pub struct Here {
    path: PathBuf,
    required: Option<String>,
    /// What a file was before it was read, also for its digest.
    seen: Option<Seen>,
}

pub struct Server {
    pub found: Found,
    fetcher: Fetcher,
    spool: Spool,
    /// What the place is called in the tags of the group, with the highest version that was taken from there.
    key: String,
    is_offline: bool,
}

/// What it takes to fetch an image, in bytes.
pub struct Fetch {
    /// Of all of it, if the server tells that.
    pub size: Option<u64>,
    /// What is not here yet.
    pub download: Option<u64>,
    /// What is free where it is kept.
    pub free: u64,
    /// Where that is.
    pub spool: PathBuf,
}

impl Fetch {
    /// The same for people, with what is free in the pool.
    pub fn line(&self, pool: Option<u64>) -> String {
        let spool = self.spool.display();
        let mut line = match (self.size, self.download) {
            (_, Some(0)) => "nothing, it is here".to_owned(),
            (Some(size), Some(left)) if left < size => {
                format!("{} of {}", text::size(left), text::size(size))
            }
            (_, Some(left)) => text::size(left),
            (_, None) => "the server does not tell how much".to_owned(),
        };
        match self.download {
            Some(0) => {}
            Some(left) if left > self.free => {
                line += &format!(
                    ", straight into its volume: {} are free in {spool}",
                    text::size(self.free)
                );
            }
            _ => line += &format!("; {} are free in {spool}", text::size(self.free)),
        }
        if let Some(pool) = pool {
            line += &format!("; {} are free in the pool", text::size(pool));
        }
        line
    }
}

impl Source {
    /// Finds an image: the one that is named, else the newest of the server that is configured.
    pub fn find(
        context: &Context,
        tx: &Transaction,
        image: Option<&Path>,
        delivery: &Delivery,
        taken: Taken,
    ) -> Result<Self> {
        if let Some(descriptor) = delivery.progress_fd {
            progress::report_to(descriptor)?;
        }
        let layered = |reference: &Reference, conf, least: Option<String>| {
            if reference.path().is_none() {
                refuse_offline(reference, taken.offline)?;
            }
            let required = delivery.require_digest.as_deref();
            let found = Layered::find(reference, conf, required, tx.interrupt())?;
            if let Some(least) = least.filter(|_| !taken.older) {
                refuse_lower(reference, found.found.version.as_deref(), &least)?;
            }
            Ok(Self::Layers(Box::new(found)))
        };
        let address = match image.map(|image| (image, image.to_str())) {
            Some((_, Some(text))) if Reference::is_meant(text) => {
                let reference = Reference::parse(text).with_context(|| format!("{text:?}"))?;
                return layered(&reference, Conf::load(Path::new("/"))?, None);
            }
            Some((_, Some(text))) if Url::is_meant(text) => Some(text),
            Some((path, _)) => {
                return Ok(Self::Here(Box::new(Here {
                    path: path.to_owned(),
                    required: delivery.require_digest.clone(),
                    seen: Seen::of(path),
                })));
            }
            None => None,
        };
        let conf = Conf::load(Path::new("/"))?;
        if let (None, Some(reference)) = (address, conf.image.clone()) {
            let least = conf.least.clone();
            return layered(&reference, conf, least);
        }
        let (url, patterns) = match address {
            Some(text) => place(Url::parse(text).context("the address of the image")?, &conf),
            None => (conf.path.clone().context(NO_SOURCE)?, conf.patterns.clone()),
        };
        let fetcher = conf.fetcher(tx.interrupt());
        let root = Root::at(Path::new("/"));
        let specifier = |name| specifier(&root, name);
        let patterns = patterns.iter().map(|text| {
            Pattern::parse(text, &specifier).with_context(|| format!("the pattern {text}"))
        });
        let patterns = patterns.collect::<Result<Vec<_>>>()?;
        let spool = Spool::at(&conf.spool).frozen(context.dry_run);
        let mut wanted = Wanted {
            url: &url,
            patterns: &patterns,
            least: conf.least.as_deref(),
            unsigned: delivery.allow_unsigned || !conf.verify,
            seen: None,
            older: taken.older,
            offline: taken.offline,
        };
        let key = wanted.key();
        let found = match &delivery.require_digest {
            // Who knows the digest needs no list.
            Some(digest) if !url.is_directory() => Found {
                url: url.clone(),
                digest: digest.clone(),
                version: None,
                signer: None,
                marker: None,
                list: None,
                is_of_place: false,
            },
            required => {
                let seen = if delivery.is_for_new_group {
                    None
                } else {
                    seen(&context.load()?, &key)
                };
                wanted.seen = seen.as_deref();
                let keys = Keys::load(Path::new("/"))?;
                let found = wanted.find(&fetcher, &keys, &spool)?;
                if let Some(required) = required {
                    ensure!(
                        found.digest == *required,
                        "{} has the digest {}, not the required {required}",
                        found.url,
                        found.digest
                    );
                }
                found
            }
        };
        Ok(Self::Server(Box::new(Server {
            found,
            fetcher,
            spool,
            key,
            is_offline: taken.offline,
        })))
    }

    /// What people call it: the path, or the address without a password.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::Here(here) => here.path.clone(),
            Self::Server(server) => server.found.url.to_string().into(),
            Self::Layers(layered) => layered.found.reference.to_string().into(),
        }
    }

    /// The version, as a server or registry tells.
    pub fn version(&self) -> Option<String> {
        match self {
            Self::Here(_) => None,
            Self::Server(server) => server.found.version.clone(),
            Self::Layers(layered) => layered.found.version.clone(),
        }
    }

    /// The digest of one that is not on this host.
    pub fn digest_elsewhere(&self) -> Option<&str> {
        match self {
            Self::Server(server) => Some(&server.found.digest),
            Self::Layers(of) if of.found.is_elsewhere() => Some(of.found.digest.hex()),
            Self::Here(..) | Self::Layers(_) => None,
        }
    }

    /// Fetches what [`Self::open`] needs of one that is not on this host, and keeps it there.
    pub fn fetch(&self, context: &Context, tx: &mut Transaction, shares: bool) -> Result<()> {
        match self {
            Self::Here(..) => Ok(()),
            Self::Layers(layered) => layered.keep(context, tx, shares),
            Self::Server(server) => match server.keep(context, tx, shares)? {
                Some((need, have)) => bail!(
                    "there is no room to keep {}: it needs {}, and {} are free",
                    self.name().display(),
                    text::size(need),
                    text::size(have)
                ),
                None => Ok(()),
            },
        }
    }

    /// The SHA-256 of an image in one file or device, or of the manifest of one in layers.
    pub fn digest(&self, tx: &Transaction) -> Result<Option<String>> {
        let Here { path, required, .. } = match self {
            Self::Here(here) => &**here,
            Self::Server(server) => return Ok(Some(server.found.digest.clone())),
            Self::Layers(layered) => return Ok(Some(layered.found.digest.hex().to_owned())),
        };
        if path.is_dir() {
            ensure!(
                required.is_none(),
                "{} is a directory, which has no digest",
                path.display()
            );
            return Ok(None);
        }
        let digest = digest::of_image(path, "image", tx.interrupt())?;
        if let Some(required) = required.as_ref().filter(|required| **required != digest) {
            bail!(
                "{} has the digest {digest}, not the required {required}",
                path.display()
            );
        }
        Ok(Some(digest))
    }

    /// The same, where it costs nothing to know it, or has to be known.
    pub fn digest_if_required(&self, tx: &Transaction) -> Result<Option<String>> {
        match self {
            Self::Here(here) if here.required.is_none() => Ok(None),
            _ => self.digest(tx),
        }
    }

    /// In bytes, if it is a file of this host, or its layers are known.
    pub fn size(&self) -> Option<u64> {
        let path = match self {
            Self::Here(here) => &here.path,
            Self::Server(_) => return None,
            Self::Layers(layered) => return layered.found.size(),
        };
        let metadata = fs::metadata(path).ok();
        metadata
            .filter(fs::Metadata::is_file)
            .map(|file| file.len())
    }

    /// Of an image that is not here: the line for a shell that fetches it, if it takes one, and what it is called then.
    pub fn fetched_by(&self) -> Option<(Option<Cmd>, String)> {
        match self {
            Self::Here(..) => None,
            Self::Server(server) => {
                let (line, file) = server.line();
                Some((Some(line), file))
            }
            Self::Layers(layered) => Some((layered.line(), layered.here())),
        }
    }

    /// Opens it, to be read for a base. One on a server is fetched; where there is no room for that, it is read from
    /// there. If it `shares` files with other bases, of an image in layers only those parts are fetched that no base
    /// has.
    pub fn open(
        &self,
        context: &Context,
        tx: &mut Transaction,
        shares: bool,
    ) -> Result<(Opened, Option<Parts>)> {
        match self {
            Self::Here(here) => {
                let opened = base::open(tx, &here.path, None)?;
                Ok((opened.seen(here.seen.clone()), None))
            }
            Self::Server(server) if server.found.is_index() => {
                server.open_layers(context, tx, shares)
            }
            Self::Server(server) => Ok((server.open(tx)?, None)),
            Self::Layers(layered) => layered.open(context, tx, shares),
        }
    }
}

impl Server {
    /// Fetches what [`Source::open`] needs of it, for later. Returns how much it needs and how much is free, where
    /// that is too little.
    fn keep(
        &self,
        context: &Context,
        tx: &mut Transaction,
        shares: bool,
    ) -> Result<Option<(u64, u64)>> {
        let mut files = vec![self.found.clone()];
        if self.found.is_index() {
            let web = self.web()?;
            if self.parts(context, tx, &web, shares)?.is_some() {
                return Ok(None);
            }
            files = self.layers_of(&web);
        }
        Ok(tx.unlocked(|tx| self.fetch_all(tx, &files))?.err())
    }

    /// Fetches files of it, so that it is found without a server then, and earlier ones of the same place give way.
    /// Returns how much the first that does not fit needs, and how much is free.
    fn fetch_all(
        &self,
        tx: &mut Transaction,
        files: &[Found],
    ) -> Result<Result<Vec<Held>, (u64, u64)>> {
        let gives_way = !self.is_offline && self.found.is_of_place;
        if gives_way {
            let names = files.iter().map(|file| file.digest.as_str());
            self.spool.begin(&self.key, names)?;
        }
        let mut held = Vec::new();
        for file in files {
            match self.fetch(tx, file)? {
                Fetched::Here(file) => held.push(file),
                Fetched::TooLarge(need, have) => return Ok(Err((need, have))),
            }
        }
        if !self.is_offline {
            self.found.keep_list(&self.key, &self.spool)?;
        }
        if gives_way {
            let held: Vec<&Held> = held.iter().collect();
            self.spool.supersede(&self.key, &held)?;
        }
        Ok(Ok(held))
    }

    /// Fetches a file of it.
    fn fetch(&self, tx: &mut Transaction, found: &Found) -> Result<Fetched> {
        let mut fetched = None;
        tx.work(&line(&found.url), |interrupt| {
            let Found { url, digest, .. } = found;
            fetched = Some(if self.is_offline {
                let kept = self.spool.kept(url, digest, interrupt)?;
                Fetched::Here(kept.with_context(|| format!("{url} is not here; {TO_FETCH}"))?)
            } else {
                self.spool.fetch(&self.fetcher, url, digest)?
            });
            Ok(())
        })?;
        fetched.context("a dry run fetches nothing")
    }

    /// What it takes to fetch it.
    pub fn needs(&self) -> Result<Fetch> {
        let (found, spool) = (&self.found, &self.spool);
        if found.is_index() {
            refuse_offline(&self.found.url, self.is_offline)?;
            // Only its table of contents tells what of it is here already.
            return Ok(Fetch {
                size: None,
                download: None,
                free: spool.room()?,
                spool: spool.dir().to_owned(),
            });
        }
        let (have, is_whole) = spool.have(&found.digest);
        ensure!(
            is_whole || !self.is_offline,
            "{} is not here; {TO_FETCH}",
            found.url
        );
        let size = if is_whole {
            Some(have)
        } else {
            found.length(&self.key, &self.fetcher, spool)?
        };
        Ok(Fetch {
            size,
            download: size.map(|size| size.saturating_sub(have)),
            free: spool.room()?,
            spool: spool.dir().to_owned(),
        })
    }

    /// What fetching it comes to, for a shell, and what it is called then.
    fn line(&self) -> (Cmd, String) {
        let url = &self.found.url;
        if self.found.is_index() {
            let wget =
                Cmd::new("wget").args(["--recursive", "--no-parent", "--no-host-directories"]);
            return (wget.arg(url.beside("").to_string()), "oci:.".to_owned());
        }
        (line(url), url.name())
    }

    /// Opens the index of an image in layers.
    fn web(&self) -> Result<Web> {
        refuse_offline(&self.found.url, self.is_offline)?;
        Web::open(&self.fetcher, &self.found)
    }

    /// The layers of an image, as files of the server.
    fn layers_of(&self, web: &Web) -> Vec<Found> {
        let layers = web.image.manifest.layers.iter();
        let file = |layer: &Descriptor| Found {
            url: web.layer(&layer.digest),
            digest: layer.digest.hex().to_owned(),
            ..self.found.clone()
        };
        layers.map(file).collect()
    }

    fn parts(
        &self,
        context: &Context,
        tx: &mut Transaction,
        web: &Web,
        shares: bool,
    ) -> Result<Option<Parts>> {
        if !shares {
            return Ok(None);
        }
        let name = self.found.url.to_string();
        let to = (&self.spool, self.key.as_str());
        Parts::fetch(context, tx, &self.fetcher, to, web, &name)
    }

    /// Opens an image in layers.
    fn open_layers(
        &self,
        context: &Context,
        tx: &mut Transaction,
        shares: bool,
    ) -> Result<(Opened, Option<Parts>)> {
        let web = self.web()?;
        if let Some(parts) = self.parts(context, tx, &web, shares)? {
            return Ok((parts.opened(tx), Some(parts)));
        }
        let (name, files) = (self.found.url.to_string(), self.layers_of(&web));
        let held = tx.unlocked(|tx| self.fetch_all(tx, &files))?;
        match (held, &files[..]) {
            (Ok(held), _) => {
                let layers = held.iter().zip(&web.image.manifest.layers);
                let layers = layers.map(|(file, of)| Layer {
                    path: file.as_ref().to_owned(),
                    digest: of.digest.hex().to_owned(),
                    size: of.size,
                });
                let opened = opened(context, tx, layers.collect(), (&name, shares))?;
                tx.discard(move || {
                    // Layers can be equal, and each file is removed once.
                    let paths: BTreeSet<PathBuf> = held.into_iter().map(Held::release).collect();
                    Ok(paths.into_iter().collect())
                });
                Ok(opened)
            }
            (Err(sizes), [file]) => Ok((self.streamed(file, &name, sizes)?, None)),
            (Err((need, have)), _) => bail!(
                "there is no room for the layers of {name}: one needs {}, and {} are free; Spool= in imgbased.conf \
                 names another place",
                text::size(need),
                text::size(have)
            ),
        }
    }

    /// Opens an image in one file.
    fn open(&self, tx: &mut Transaction) -> Result<Opened> {
        let name = self.found.url.to_string();
        match self.fetch_all(tx, slice::from_ref(&self.found))? {
            Ok(mut held) => {
                let held = held.pop().context("it was fetched")?;
                let opened = base::open(tx, held.as_ref(), Some(&name))?;
                // A base is made of it then.
                tx.discard(move || Ok(vec![held.release()]));
                Ok(opened)
            }
            Err(sizes) => self.streamed(&self.found, &name, sizes),
        }
    }

    /// Opens a file of an image, which people call `name`, to be read from the server.
    fn streamed(&self, found: &Found, name: &str, (need, have): (u64, u64)) -> Result<Opened> {
        let sizes = [need, have].map(text::size);
        log::warn!(
            "there is no room to keep {name}: it needs {}, and {} are free; it goes straight into its volume",
            sizes[0],
            sizes[1]
        );
        let (head, length) = self.fetcher.head(&found.url, HEAD)?;
        let length = length.with_context(|| {
            format!("there is no room for {name}, and the server does not tell how long it is")
        })?;
        let (found, fetcher) = (found.clone(), self.fetcher.clone());
        let feed = Feed::new(move || {
            let input: Input = Box::new(found.checked(&fetcher, length)?);
            Ok(input)
        });
        Opened::remote(name, &head, length, feed)
    }

    /// Keeps the version in the tags of the group, once the image is taken.
    pub fn remember(&self, context: &Context, tx: &mut Transaction, group: &Group) -> Result<()> {
        // What anybody could have made says nothing of what is signed.
        let (Some(version), Some(_)) = (&self.found.version, &self.found.signer) else {
            return Ok(());
        };
        let prefix = format!("{}{}:", tag::NEWEST, self.key);
        let new = format!("{prefix}{}", encoded(version));
        for old in group
            .tags
            .iter()
            .filter(|tag| tag.starts_with(&prefix) && **tag != new)
        {
            tx.run_undoable(
                &context.lvm.remove_tag(None, old),
                context.lvm.add_tag(None, old),
            )?;
        }
        if !group.tags.contains(&new) {
            tx.run_undoable(
                &context.lvm.add_tag(None, &new),
                context.lvm.remove_tag(None, &new),
            )?;
        }
        Ok(())
    }
}

/// What of an image in layers is here already shows only when its server is asked.
fn refuse_offline(image: &impl Display, is_offline: bool) -> Result<()> {
    ensure!(
        !is_offline,
        "{image} is an image in layers, whose server has to be asked; leave --from-downloaded away"
    );
    Ok(())
}

/// Refuses an image in layers that has no version, or a lower one than `MinVersion=` says.
fn refuse_lower(reference: &Reference, version: Option<&str>, least: &str) -> Result<()> {
    ensure!(
        version.is_some_and(|version| compare(version, least).is_ge()),
        "{reference} has {}, and MinVersion={least} in /etc/imgbased/imgbased.conf wants no lower one; --allow-downgrade \
         takes it",
        version.map_or_else(
            || "no version".to_owned(),
            |version| format!("version {version}")
        )
    );
    Ok(())
}

/// Opens the layers of an image, which people call `name`, for a base that `shares` files with others.
fn opened(
    context: &Context,
    tx: &mut Transaction,
    layers: Vec<Layer>,
    (name, shares): (&str, bool),
) -> Result<(Opened, Option<Parts>)> {
    let one = match &layers[..] {
        [one] => Some(one.path.clone()),
        _ => None,
    };
    let layers = Layers::new(layers);
    if let Some(parts) = Parts::of_layers(context, tx, &layers, shares)? {
        return Ok((parts.opened(tx), Some(parts)));
    }
    let opened = match one {
        // tar(1) takes more than what one layer may have upon another, such as ACLs as text. All else becomes what it
        // would be from a registry.
        Some(path) if layers.measure(tx.interrupt()).is_err() => base::open(tx, &path, Some(name))?,
        _ => Opened::from(Image::Tree(Tree::Layers(layers))),
    };
    Ok((opened, None))
}

/// What fetching a file comes to, for a shell.
fn line(url: &Url) -> Cmd {
    let cmd = Cmd::new("curl").args(["--fail", "--location", "--remote-name"]);
    cmd.arg(url.to_string())
}

const NO_SOURCE: &str = "no image is named, and /etc/imgbased/imgbased.conf has no Path= below [Source] to take the \
    newest from";

/// The directory and patterns that an address means: its last part can be a pattern itself.
fn place(url: Url, conf: &Conf) -> (Url, Vec<String>) {
    let name = url.name();
    if name.contains("@v") {
        return (url.beside(""), vec![name]);
    }
    (url, conf.patterns.clone())
}

/// What stands in a pattern for a letter after % (systemd.unit(5)).
fn specifier(root: &Root, name: char) -> Option<String> {
    let release = root.os_release();
    match name {
        'a' => Some(std::env::consts::ARCH.replace('_', "-")),
        'o' => release.id,
        'w' => release.version_id,
        'M' => release.image_id,
        'A' => release.image_version,
        _ => None,
    }
}

/// The highest version that was taken from a place.
fn seen(group: &Group, key: &str) -> Option<String> {
    let prefix = format!("{}{key}:", tag::NEWEST);
    let version = group
        .tags
        .iter()
        .find_map(|tag| tag.strip_prefix(&prefix))?;
    decoded(version).ok()
}

/// Removes what was fetched, and is not being fetched now.
pub fn clean(context: &Context) -> Result<()> {
    let spool = Spool::at(&Conf::load(Path::new("/"))?.spool);
    if spool.unused().is_empty() {
        return Ok(());
    }
    context.change("gc", |tx| {
        // Another command may have had the lock until now.
        let rm = Cmd::new("rm").args(["-rf", "--"]).args(spool.unused());
        tx.work(&rm, |_| spool.remove_unused())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_with_or_without_its_kind() {
        let digest = "0123456789abcdef".repeat(4);
        for text in [
            digest.clone(),
            format!("sha256:{digest}"),
            digest.to_ascii_uppercase(),
        ] {
            assert_eq!(parse_digest(&text).unwrap(), digest);
        }
        for text in ["", "sha256:", &digest[1..], &format!("{}g", &digest[1..])] {
            assert!(parse_digest(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_lowest_version_counts_for_a_registry_as_well() {
        let reference = Reference::parse("docker://r.example.org/x:stable").unwrap();
        for (version, refused) in [
            (Some("2"), ""),
            (Some("2.1"), ""),
            (Some("1.9"), "has version 1.9, and MinVersion=2 in"),
            (None, "has no version, and MinVersion=2 in"),
        ] {
            let found = refuse_lower(&reference, version, "2");
            let error = found
                .err()
                .map_or_else(String::new, |error| error.to_string());
            assert!(error.contains(refused), "{version:?}: {error}");
            assert_eq!(error.is_empty(), refused.is_empty(), "{version:?}");
        }
    }

    #[test]
    fn what_is_to_be_fetched_is_told_with_what_is_free() {
        const MIB: u64 = 1 << 20;
        for (size, download, free, pool, wanted) in [
            (
                Some(4 * MIB),
                Some(4 * MIB),
                5 * MIB,
                Some(6 * MIB),
                "4.00 MiB; 5.00 MiB are free in /s; 6.00 MiB are free in the pool",
            ),
            (
                Some(4 * MIB),
                Some(MIB),
                5 * MIB,
                None,
                "1.00 MiB of 4.00 MiB; 5.00 MiB are free in /s",
            ),
            (
                Some(4 * MIB),
                Some(4 * MIB),
                MIB,
                None,
                "4.00 MiB, straight into its volume: 1.00 MiB are free in /s",
            ),
            (Some(4 * MIB), Some(0), 0, None, "nothing, it is here"),
            (
                None,
                None,
                MIB,
                None,
                "the server does not tell how much; 1.00 MiB are free in /s",
            ),
        ] {
            let fetch = Fetch {
                size,
                download,
                free,
                spool: "/s".into(),
            };
            assert_eq!(fetch.line(pool), wanted);
        }
    }

    #[test]
    fn an_address_means_a_file_or_a_directory_with_patterns() {
        let conf = Conf {
            patterns: vec!["x-@v".to_owned()],
            ..Conf::load(Path::new("/nonexistent")).unwrap()
        };
        for (address, shown, pattern) in [
            ("https://h/d/y-1.raw", "https://h/d/y-1.raw", "x-@v"),
            ("https://h/d/", "https://h/d/", "x-@v"),
            ("https://h/d/y-@v.raw", "https://h/d/", "y-@v.raw"),
            ("https://h/d/y-%40v.raw", "https://h/d/", "y-@v.raw"),
        ] {
            let (url, patterns) = place(Url::parse(address).unwrap(), &conf);
            assert_eq!(
                (url.to_string().as_str(), patterns),
                (shown, vec![pattern.to_owned()])
            );
        }
    }

    #[test]
    fn the_highest_version_is_found_in_the_tags_of_the_group() {
        let mut group = Group::with(Vec::new());
        let version = "2~rc1,3^x";
        group.tags = vec![
            format!("{}aa:1", tag::NEWEST),
            format!("{}bb:{}", tag::NEWEST, encoded(version)),
        ];
        for (key, wanted) in [
            ("aa", Some("1")),
            ("bb", Some(version)),
            ("cc", None),
            ("b", None),
        ] {
            assert_eq!(seen(&group, key).as_deref(), wanted, "{key}");
        }
    }
}
