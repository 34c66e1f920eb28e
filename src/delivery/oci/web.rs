//! An image of which parts can be fetched. On a web server it is a directory in the OCI image layout: its index is one of
//! the files of the signed list, and names all others by their digests. In a registry, its manifest does so.

use anyhow::{Context, Result, bail, ensure};

use super::layout::{DOCUMENT_MOST, Descriptor, Digest, Image, Platform, image_of, is_layout};
use crate::delivery::Found;
use crate::delivery::fetch::{Fetcher, Small};
use crate::delivery::response::Validator;
use crate::delivery::url::Url;

/// The file of a layout that names its images.
pub const INDEX: &str = "index.json";
/// The one that says that it is a layout.
pub const MARKER: &str = "oci-layout";

/// An image of which no layer was fetched yet.
pub struct Web {
    /// What the names of layers are beside.
    url: Url,
    pub image: Image,
    /// Whether it is in a registry, so that skopeo(1) can fetch it whatever fails here.
    pub is_in_registry: bool,
}

impl Web {
    /// Fetches what says of what the image is made. `found` is the index.
    pub fn open(fetcher: &Fetcher, found: &Found) -> Result<Self> {
        let (url, host) = (&found.url, Platform::host());
        let failed = || format!("{url} is refused");
        let marker = document(fetcher, &url.beside(MARKER), found.marker.as_deref())?;
        ensure!(
            is_layout(&marker),
            "{} is of no OCI image layout of version 1.0.0",
            url.beside(MARKER)
        );
        let index = document(fetcher, url, Some(&found.digest))?;
        let named = |of: &Descriptor| {
            document(
                fetcher,
                &url.beside(&of.digest.path()),
                Some(of.digest.hex()),
            )
        };
        let image = image_of(&index, None, &host, &named).with_context(failed)?;
        let config = named(&image.manifest.config)?;
        host.check(&config).with_context(failed)?;
        Ok(Self {
            url: url.clone(),
            image,
            is_in_registry: false,
        })
    }

    /// One in a registry, at an address such as `https://HOST/v2/NAME/`.
    pub fn in_registry(url: Url, image: Image) -> Self {
        Self {
            url,
            image,
            is_in_registry: true,
        }
    }

    /// Where a layer is.
    pub fn layer(&self, of: &Digest) -> Url {
        if self.is_in_registry {
            return self.url.beside(&format!("blobs/{of}"));
        }
        self.url.beside(&of.path())
    }
}

/// A small file, which has this SHA-256 if one is known.
fn document(fetcher: &Fetcher, url: &Url, digest: Option<&str>) -> Result<Vec<u8>> {
    let Small::Content(content, _) = fetcher.small(url, &Validator::default(), DOCUMENT_MOST)?
    else {
        bail!("{url} is named by the image, but not there");
    };
    let found = Digest::of(&content);
    ensure!(
        digest.is_none_or(|digest| digest == found.hex()),
        "{url} has the SHA-256 {}, and not {}",
        found.hex(),
        digest.unwrap_or_default()
    );
    Ok(content)
}
