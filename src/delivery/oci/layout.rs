//! What an image in layers is made of, as the OCI and Docker write it down: an index names manifests, a manifest a
//! configuration and layers, each by its digest. Also a directory in the OCI image layout. All can come from anywhere.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::OFlags;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use crate::sys::rooted::open_beneath;

/// The longest document that is read, in bytes. Registries take no longer one.
pub const DOCUMENT_MOST: u64 = 4 << 20;
/// No image has more layers: overlayfs takes so many.
const LAYERS_MOST: usize = 500;
/// So many indexes name one another at most.
const DEPTH_MOST: usize = 4;
/// The largest blob that anybody can mean, in bytes.
const SIZE_MOST: u64 = 1 << 50;

/// Has the tag of an image in an index.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Says `true` of the image of an index whose layers are compressed by zstd, where others are the same for older programs.
const ZSTD: &str = "io.github.containers.compression.zstd";
/// In the annotations of a layer with a table of contents.
const TABLE: &str = ".zstd-chunked.";
/// Has its version.
const VERSION: &str = "org.opencontainers.image.version";

const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const MANIFESTS: [&str; 2] = [
    OCI_MANIFEST,
    "application/vnd.docker.distribution.manifest.v2+json",
];
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// How a layer is compressed shows in its content.
const LAYERS: [&str; 6] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
];

/// A SHA-256, in small hexadecimal digits. Displayed as `sha256:DIGITS`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Digest(String);

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self(format!("{:x}", Sha256::digest(content)))
    }

    pub fn hex(&self) -> &str {
        &self.0
    }

    /// Where it is in a layout.
    pub fn path(&self) -> String {
        format!("blobs/sha256/{}", self.0)
    }
}

impl From<Sha256> for Digest {
    fn from(sum: Sha256) -> Self {
        Self(format!("{:x}", sum.finalize()))
    }
}

impl TryFrom<String> for Digest {
    type Error = anyhow::Error;

    /// Takes `sha256:DIGITS`.
    fn try_from(text: String) -> Result<Self> {
        let hex = text.strip_prefix("sha256:").unwrap_or_default();
        let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        ensure!(
            hex.len() == 64 && hex.bytes().all(is_digit),
            "{text:?} is no digest of the kind sha256:DIGITS"
        );
        Ok(Self(hex.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.0)
    }
}

type Annotations = BTreeMap<String, String>;

/// Says what another document or a layer is.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    annotations: Option<Annotations>,
    platform: Option<Platform>,
}

impl Descriptor {
    pub fn annotation(&self, key: &str) -> Option<&str> {
        annotation(self.annotations.as_ref(), key)
    }

    /// Whether a layer says that it has a table of contents.
    pub(super) fn has_table(&self) -> bool {
        let mut keys = self.annotations.iter().flat_map(BTreeMap::keys);
        keys.any(|key| key.contains(TABLE))
    }
}

fn annotation<'a>(annotations: Option<&'a Annotations>, key: &str) -> Option<&'a str> {
    annotations?.get(key).map(String::as_str)
}

/// What an image runs on, in the names that Go has for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    architecture: String,
    os: String,
    #[serde(default)]
    variant: String,
}

impl Platform {
    /// That of this host, with the variant that each processor of that kind has.
    pub fn host() -> Self {
        let little = cfg!(target_endian = "little");
        let (architecture, variant) = match ARCH {
            "x86_64" => ("amd64", "v1"),
            "x86" => ("386", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            "powerpc64" if little => ("ppc64le", ""),
            "powerpc64" => ("ppc64", ""),
            "loongarch64" => ("loong64", ""),
            other => (other, ""),
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Whether an image for that runs here.
    fn runs(&self, other: &Self) -> bool {
        let is_variant = other.variant.is_empty() || other.variant == self.variant;
        (&self.architecture, &self.os) == (&other.architecture, &other.os) && is_variant
    }

    /// Refuses an image for something else than this host, by the configuration that its manifest names.
    pub fn check(&self, config: &[u8]) -> Result<()> {
        let of_image: Self =
            serde_json::from_slice(config).context("its configuration cannot be read")?;
        ensure!(
            self.runs(&of_image),
            "it is for {}, and this host is {self}",
            shown(&[of_image.to_string()])
        );
        Ok(())
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

/// Several images: of several tags, or one for each platform.
#[derive(Debug)]
pub struct Index {
    manifests: Vec<Descriptor>,
    annotations: Option<Annotations>,
}

impl Index {
    /// The image of this tag that runs on `host`. Without a tag, all that do have to be of one. Of several, which are
    /// the same in other compressions, it is the one by zstd, and else the first.
    pub fn choose(&self, tag: Option<&str>, host: &Platform) -> Result<&Descriptor> {
        let is_tagged = |of: &&Descriptor| tag.is_none() || of.annotation(REF_NAME) == tag;
        let tagged: Vec<&Descriptor> = self.manifests.iter().filter(is_tagged).collect();
        if let Some(tag) = tag {
            ensure!(!tagged.is_empty(), "it has no image of the tag {tag:?}");
        }
        let is_for_host = |of: &&&Descriptor| of.platform.as_ref().is_none_or(|it| host.runs(it));
        let fitting: Vec<&Descriptor> = tagged.iter().filter(is_for_host).copied().collect();
        let Some(first) = fitting.first() else {
            let others = tagged.iter().filter_map(|of| of.platform.as_ref());
            let others: Vec<String> = others.map(ToString::to_string).collect();
            bail!(
                "it has no image for {host}; it has those for: {}",
                shown(&others)
            )
        };
        let tags = fitting.iter().map(|of| of.annotation(REF_NAME));
        let tags: Vec<Option<&str>> = tags.collect();
        if tags.windows(2).any(|two| two[0] != two[1]) {
            let tags: Vec<&str> = tags.into_iter().flatten().collect();
            bail!(
                "it has several images, so a tag has to be named; it has the tags: {}",
                shown(&tags)
            )
        }
        let mut by_zstd = fitting
            .iter()
            .filter(|of| of.annotation(ZSTD) == Some("true"));
        if let Some(by_zstd) = by_zstd.next() {
            return Ok(by_zstd);
        }
        // Copies to one directory that nobody has named are of different images.
        ensure!(
            fitting.len() == 1 || fitting.iter().all(|of| of.platform.is_some()),
            "it has several images without a tag, and nothing tells which is the newest; copy each to a directory of its \
             own, or with a tag"
        );
        Ok(first)
    }

    /// As its annotations tell.
    pub fn version(&self) -> Option<&str> {
        annotation(self.annotations.as_ref(), VERSION)
    }
}

/// Some of many names, without what would do something to a terminal.
fn shown<T: AsRef<str>>(names: &[T]) -> String {
    let names: Vec<&str> = names.iter().take(20).map(AsRef::as_ref).collect();
    if names.is_empty() {
        return "none".to_owned();
    }
    names.join(", ").replace(char::is_control, "\u{fffd}")
}

/// An image: its layers, the lowest first.
#[derive(Clone, Debug)]
pub struct Manifest {
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
    annotations: Option<Annotations>,
    /// Whether it is one of the OCI, and not of Docker.
    pub is_oci: bool,
}

impl Manifest {
    /// As its annotations tell.
    pub fn version(&self) -> Option<&str> {
        annotation(self.annotations.as_ref(), VERSION)
    }

    /// Of all layers, in bytes, as they are packed.
    pub fn size(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }
}

/// What a digest or a tag leads to.
#[derive(Debug)]
pub enum Document {
    Index(Index),
    Manifest(Manifest),
}

/// As both are written: one of them has what the other has not.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    schema_version: u32,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
    annotations: Option<Annotations>,
}

impl Document {
    /// Reads one. Refuses what could be taken for both, and what has no root filesystem.
    pub fn parse(content: &[u8]) -> Result<Self> {
        ensure!(
            content.len() as u64 <= DOCUMENT_MOST,
            "it is larger than {} MiB, as no manifest is",
            DOCUMENT_MOST >> 20
        );
        let written: Written = serde_json::from_slice(content).context("it is no manifest")?;
        ensure!(
            written.schema_version == 2,
            "it is a manifest of the schema {}, and not 2; push the image anew",
            written.schema_version
        );
        let annotations = written.annotations;
        let media_type = written.media_type.as_deref();
        match (written.manifests, written.config, written.layers) {
            (Some(manifests), None, None) => {
                check_type("an index", media_type, &INDEXES)?;
                Ok(Self::Index(Index {
                    manifests,
                    annotations,
                }))
            }
            (None, Some(config), Some(layers)) => {
                check_type("a manifest", media_type, &MANIFESTS)?;
                let is_oci = media_type.is_none_or(|found| found == OCI_MANIFEST);
                Ok(Self::Manifest(Manifest {
                    config,
                    layers,
                    annotations,
                    is_oci,
                }))
                .and_then(checked)
            }
            _ => bail!("it is neither an index of images nor the manifest of one"),
        }
    }
}

/// Refuses a manifest of something else than a root filesystem.
fn checked(document: Document) -> Result<Document> {
    let Document::Manifest(manifest) = &document else {
        return Ok(document);
    };
    check_type("an image", Some(&manifest.config.media_type), &CONFIGS)?;
    ensure!(
        !manifest.layers.is_empty() && manifest.layers.len() <= LAYERS_MOST,
        "it has {} layers; 1 to {LAYERS_MOST} are needed",
        manifest.layers.len()
    );
    for (at, layer) in manifest.layers.iter().enumerate() {
        let is_right = || {
            let media_type = Some(layer.media_type.as_str());
            check_type("a layer of files in the registry", media_type, &LAYERS)?;
            check_size(layer)
        };
        is_right().with_context(|| format!("layer {}", at + 1))?;
    }
    check_size(&manifest.config)?;
    Ok(document)
}

fn check_type(what: &str, found: Option<&str>, known: &[&str]) -> Result<()> {
    let is_known = found.is_none_or(|found| known.contains(&found));
    ensure!(
        is_known,
        "it is not {what} but {:?}",
        found.unwrap_or_default()
    );
    Ok(())
}

fn check_size(descriptor: &Descriptor) -> Result<()> {
    ensure!(
        descriptor.size <= SIZE_MOST,
        "{} cannot have {} bytes",
        descriptor.digest,
        descriptor.size
    );
    Ok(())
}

/// One image of a layout.
#[derive(Clone, Debug)]
pub struct Image {
    /// Of its manifest.
    pub digest: Digest,
    pub manifest: Manifest,
}

/// The image of this tag, or the only one, of the index of a layout that runs on `host`. `document` reads what another
/// document names, and has its digest.
pub fn image_of(
    index: &[u8],
    tag: Option<&str>,
    host: &Platform,
    document: &dyn Fn(&Descriptor) -> Result<Vec<u8>>,
) -> Result<Image> {
    let Document::Index(mut index) = Document::parse(index)? else {
        bail!("index.json is no index");
    };
    let mut tag = tag;
    for _ in 0..DEPTH_MOST {
        let chosen = index.choose(tag, host)?.clone();
        match Document::parse(&document(&chosen)?)? {
            Document::Manifest(manifest) => {
                return Ok(Image {
                    digest: chosen.digest,
                    manifest,
                });
            }
            // Only the first one has tags.
            Document::Index(below) => (index, tag) = (below, None),
        }
    }
    bail!("it has more than {DEPTH_MOST} indexes in one another")
}

/// Whether this is the content of the file `oci-layout` of a layout that is known.
pub fn is_layout(marker: &[u8]) -> bool {
    let marker: Option<Marker> = serde_json::from_slice(marker).ok();
    marker.is_some_and(|marker| marker.image_layout_version == "1.0.0")
}

/// A directory in the OCI image layout, or one with a manifest and blobs side by side.
pub struct Layout {
    dir: PathBuf,
    top: File,
    is_flat: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Marker {
    image_layout_version: String,
}

impl Layout {
    pub fn open(dir: &Path) -> Result<Self> {
        let layout = Self::at(dir, false)?;
        let marker = layout
            .read("oci-layout", 1 << 10)
            .with_context(|| format!("{} is no OCI image layout", dir.display()))?;
        ensure!(
            is_layout(&marker),
            "{} is not in version 1.0.0 of the OCI image layout",
            dir.display()
        );
        Ok(layout)
    }

    /// A directory as skopeo(1) writes it for `dir:`.
    pub fn flat(dir: &Path) -> Result<Self> {
        Self::at(dir, true)
    }

    fn at(dir: &Path, is_flat: bool) -> Result<Self> {
        let top = File::open(dir).with_context(|| format!("cannot open {}", dir.display()))?;
        Ok(Self {
            dir: dir.to_owned(),
            top,
            is_flat,
        })
    }

    /// The image of this tag, or the only one, that runs on `host`.
    pub fn image(&self, tag: Option<&str>, host: &Platform) -> Result<Image> {
        self.find(tag, host)
            .with_context(|| format!("{} is refused", self.dir.display()))
    }

    fn find(&self, tag: Option<&str>, host: &Platform) -> Result<Image> {
        if self.is_flat {
            let content = self.read("manifest.json", DOCUMENT_MOST)?;
            let Document::Manifest(manifest) = Document::parse(&content)? else {
                bail!("it has images for several platforms");
            };
            return Ok(Image {
                digest: Digest::of(&content),
                manifest,
            });
        }
        let index = self.read("index.json", DOCUMENT_MOST)?;
        image_of(&index, tag, host, &|of| self.document(of))
    }

    /// A document that another one names.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let path = self.path(&descriptor.digest);
        let content = self.read(&path, DOCUMENT_MOST)?;
        let found = Digest::of(&content);
        ensure!(found == descriptor.digest, "{path} has the digest {found}");
        Ok(content)
    }

    /// Where a layer is, if it is there.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.dir.join(self.path(digest))
    }

    fn path(&self, digest: &Digest) -> String {
        if self.is_flat {
            digest.hex().to_owned()
        } else {
            digest.path()
        }
    }

    /// A file of at most `most` bytes. No link in the layout is followed.
    fn read(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let failed = || format!("cannot read {path}");
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = File::from(open_beneath(&self.top, path, flags).with_context(failed)?);
        ensure!(
            file.metadata().with_context(failed)?.is_file(),
            "{path} is no file"
        );
        let mut content = Vec::new();
        file.take(most + 1)
            .read_to_end(&mut content)
            .with_context(failed)?;
        ensure!(
            content.len() as u64 <= most,
            "{path} is larger than {most} bytes"
        );
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn descriptor(media_type: &str, more: &str) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"sha256:{HEX}","size":7{more}}}"#)
    }

    fn manifest_of(layers: &[String]) -> String {
        let config = descriptor(CONFIGS[0], "");
        let layers = layers.join(",");
        format!(r#"{{"schemaVersion":2,"config":{config},"layers":[{layers}]}}"#)
    }

    fn manifest() -> String {
        manifest_of(&[descriptor(LAYERS[1], "")])
    }

    fn index_of(manifests: &[String]) -> String {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            manifests.join(",")
        )
    }

    fn platform(text: &str) -> String {
        let mut parts = text.split('/');
        let [os, architecture, variant] = [0; 3].map(|_| parts.next().unwrap_or_default());
        format!(
            r#","platform":{{"os":"{os}","architecture":"{architecture}","variant":"{variant}"}}"#
        )
    }

    fn annotated(key: &str, value: &str) -> String {
        format!(r#","annotations":{{"{key}":"{value}","x":"y"}}"#)
    }

    fn tagged(name: &str) -> String {
        annotated(REF_NAME, name)
    }

    fn host() -> Platform {
        Platform {
            architecture: "arm64".to_owned(),
            os: "linux".to_owned(),
            variant: "v8".to_owned(),
        }
    }

    #[test]
    fn a_manifest_is_read_with_its_layers() {
        for layer in LAYERS {
            let text = manifest_of(&[descriptor(layer, ""), descriptor(layer, &tagged("z"))]);
            let Document::Manifest(read) = Document::parse(text.as_bytes()).unwrap() else {
                panic!("{text}");
            };
            assert_eq!((read.layers.len(), read.size(), read.is_oci), (2, 14, true));
            assert_eq!(read.layers[1].digest.hex(), HEX);
            assert_eq!(read.layers[1].annotation("x"), Some("y"));
            assert_eq!(read.layers[0].annotation("x"), None);
        }
        let docker = manifest().replacen('{', &format!(r#"{{"mediaType":"{}","#, MANIFESTS[1]), 1);
        let Document::Manifest(read) = Document::parse(docker.as_bytes()).unwrap() else {
            panic!("{docker}");
        };
        assert!(!read.is_oci);
    }

    #[test]
    fn what_is_no_image_of_a_root_filesystem_is_refused() {
        let layer = descriptor(LAYERS[0], "");
        let many = vec![layer.clone(); LAYERS_MOST + 1];
        let replaced = |from: &str, to: &str| manifest().replace(from, to);
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        for (text, why) in [
            (String::new(), "no manifest"),
            ("[]".to_owned(), "no manifest"),
            ("{}".to_owned(), "no manifest"),
            (replaced(":2,", ":1,"), "schema 1"),
            (replaced(HEX, &HEX[1..]), "no manifest"),
            (replaced(HEX, &HEX.to_uppercase()), "no manifest"),
            (replaced("sha256:", "sha512:"), "no manifest"),
            (replaced("sha256:", "sha256:../"), "no manifest"),
            (replaced(":7", ":-7"), "no manifest"),
            (replaced(":7", ":1e30"), "no manifest"),
            (replaced(":7", ":1152921504606846976"), "cannot have"),
            (
                replaced("\"layers\"", "\"manifests\":[],\"layers\""),
                "neither an index",
            ),
            (replaced("\"layers\"", "\"other\""), "neither an index"),
            (
                replaced("\"schemaVersion\"", "\"mediaType\":\"x\",\"schemaVersion\""),
                "not a manifest but \"x\"",
            ),
            (
                replaced(CONFIGS[0], "application/vnd.cncf.helm.config.v1+json"),
                "not an image but",
            ),
            (replaced(LAYERS[1], foreign), "layer 1: it is not a layer"),
            (
                replaced(
                    LAYERS[1],
                    "application/vnd.oci.image.layer.v1.tar+encrypted",
                ),
                "layer 1: it is not a layer",
            ),
            (manifest_of(&[]), "it has 0 layers"),
            (manifest_of(&many), "it has 501 layers"),
            (
                format!(
                    "{}{}",
                    " ".repeat(DOCUMENT_MOST.try_into().unwrap()),
                    manifest()
                ),
                "larger than 4 MiB",
            ),
        ] {
            let error = format!("{:#}", Document::parse(text.as_bytes()).unwrap_err());
            let begin: String = text.chars().take(300).collect();
            assert!(error.contains(why), "{begin}: {error}");
        }
    }

    #[test]
    fn the_image_of_the_host_is_chosen() {
        for (manifests, tag, expected) in [
            (&[String::new()][..], None, Ok(0)),
            (&[tagged("a"), tagged("b")], Some("b"), Ok(1)),
            (
                &[tagged("a"), tagged("b")],
                Some("c"),
                Err("no image of the tag \"c\""),
            ),
            (
                &[tagged("a"), tagged("b")],
                None,
                Err("it has the tags: a, b"),
            ),
            (
                &[tagged("a"), String::new()],
                None,
                Err("it has the tags: a"),
            ),
            (
                &[tagged("a"), tagged("a")],
                Some("a"),
                Err("several images"),
            ),
            // As skopeo(1) copies one after the other.
            (
                &[String::new(), String::new()],
                None,
                Err("several images without a tag"),
            ),
            // The same in two compressions.
            (
                &[platform("linux/arm64"), platform("linux/arm64")],
                None,
                Ok(0),
            ),
            (
                &[
                    platform("linux/amd64"),
                    platform("linux/arm64"),
                    annotated(ZSTD, "true"),
                ],
                None,
                Ok(2),
            ),
            (
                &[annotated(ZSTD, "false"), annotated(ZSTD, "true")],
                None,
                Ok(1),
            ),
            (
                &[platform("linux/amd64"), platform("linux/arm64/v8")],
                None,
                Ok(1),
            ),
            (
                &[platform("linux/amd64"), platform("linux/arm64")],
                None,
                Ok(1),
            ),
            (
                &[platform("unknown/unknown"), platform("linux/arm64")],
                None,
                Ok(1),
            ),
            (
                &[platform("linux/arm64/v9")],
                None,
                Err("linux/arm64/v8; it has those for: linux/arm64/v9"),
            ),
            (&[platform("windows/arm64")], None, Err("no image for")),
            (&[], None, Err("it has those for: none")),
            (
                &[platform("linux/\\u001b[2J")],
                None,
                Err("linux/\u{fffd}[2J"),
            ),
        ] {
            let descriptors = manifests.iter().map(|more| descriptor(MANIFESTS[0], more));
            let text = index_of(&descriptors.collect::<Vec<_>>());
            let Document::Index(index) = Document::parse(text.as_bytes()).unwrap() else {
                panic!("{text}");
            };
            let host = host();
            let chosen = index.choose(tag, &host);
            match (chosen, expected) {
                (Ok(chosen), Ok(at)) => assert!(
                    std::ptr::eq(chosen, &raw const index.manifests[at]),
                    "{text}"
                ),
                (Err(error), Err(why)) => assert!(error.to_string().contains(why), "{error}"),
                (chosen, expected) => panic!("{text}: {chosen:?}, not {expected:?}"),
            }
        }
    }

    #[test]
    fn an_image_for_another_processor_is_told_by_its_configuration() {
        for (config, why) in [
            (r#"{"architecture":"arm64","os":"linux","rootfs":{}}"#, ""),
            (
                r#"{"architecture":"amd64","os":"linux"}"#,
                "it is for linux/amd64",
            ),
            (r#"{"os":"linux"}"#, "cannot be read"),
        ] {
            let error = host().check(config.as_bytes()).err();
            let error = error.map(|error| error.to_string()).unwrap_or_default();
            assert!(
                error.contains(why) && error.is_empty() == why.is_empty(),
                "{config}: {error}"
            );
        }
        assert!(Platform::host().runs(&Platform::host()));
    }

    /// Writes a blob into a layout and returns what describes it.
    fn put(dir: &Path, media_type: &str, content: &str) -> String {
        let digest = Digest::of(content.as_bytes());
        fs::write(dir.join(digest.path()), content).unwrap();
        descriptor(media_type, "").replace(HEX, digest.hex())
    }

    #[test]
    fn an_image_is_found_in_a_directory_beside_its_blobs() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("manifest.json"), manifest()).unwrap();
        fs::write(dir.path().join(HEX), "").unwrap();
        let layout = Layout::flat(dir.path()).unwrap();
        let image = layout.image(None, &host()).unwrap();
        assert_eq!(image.digest, Digest::of(manifest().as_bytes()));
        assert_eq!(layout.document(&image.manifest.config).unwrap(), b"");
        fs::write(dir.path().join("manifest.json"), index_of(&[])).unwrap();
        let error = layout.image(None, &host()).unwrap_err();
        assert!(
            format!("{error:#}").contains("several platforms"),
            "{error:#}"
        );
    }

    #[test]
    fn an_image_is_found_in_a_layout() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        let refused = |tag: Option<&str>| {
            let image = Layout::open(dir).and_then(|layout| layout.image(tag, &host()));
            format!("{:#}", image.unwrap_err())
        };
        assert!(refused(None).contains("no OCI image layout"));
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"2"}"#).unwrap();
        assert!(refused(None).contains("version 1.0.0"));
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        assert!(refused(None).contains("cannot read index.json"));
        let one = put(dir, OCI_MANIFEST, &manifest());
        let inner = put(dir, INDEXES[0], &index_of(std::slice::from_ref(&one)));
        for index in [&one, &inner] {
            fs::write(
                dir.join("index.json"),
                index_of(std::slice::from_ref(index)),
            )
            .unwrap();
            let image = Layout::open(dir).unwrap().image(None, &host()).unwrap();
            assert_eq!(image.digest, Digest::of(manifest().as_bytes()));
            assert_eq!(image.manifest.layers.len(), 1);
        }
        assert!(refused(Some("x")).contains("no image of the tag"));
        let blob = dir.join(Digest::of(manifest().as_bytes()).path());
        fs::write(&blob, manifest() + " ").unwrap();
        assert!(refused(None).contains("has the digest sha256:"));
        fs::remove_file(&blob).unwrap();
        symlink("/dev/zero", &blob).unwrap();
        assert!(refused(None).contains("cannot read blobs/sha256/"));
        fs::remove_file(dir.join("index.json")).unwrap();
        fs::create_dir(dir.join("index.json")).unwrap();
        assert!(refused(None).contains("no file"));
        // An index that names itself has no digest that fits, but many can follow one another.
        let mut below = inner;
        for _ in 0..DEPTH_MOST {
            below = put(dir, INDEXES[0], &index_of(&[below]));
        }
        fs::remove_dir(dir.join("index.json")).unwrap();
        fs::write(dir.join("index.json"), index_of(&[below])).unwrap();
        assert!(refused(None).contains("more than 4 indexes"));
    }
}
