//! References to images in layers, as skopeo(1) spells them (containers-transports(5)).

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::layout::Digest;

/// Where an image in layers is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    text: String,
    pub place: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory in the OCI image layout, and a tag in it.
    Layout(PathBuf, Option<String>),
    /// A directory with a manifest and layers side by side.
    Directory(PathBuf),
    /// An archive of one of these, or as Docker has it, which skopeo reads.
    Archive(PathBuf),
    /// In a registry: its name without a tag, and the digest if it is named by that.
    Registry(String, Option<Digest>),
}

impl Reference {
    /// Whether a text means such a place, and not a path or an address.
    pub fn is_meant(text: &str) -> bool {
        [
            "oci:",
            "dir:",
            "oci-archive:",
            "docker-archive:",
            "docker://",
        ]
        .iter()
        .any(|begin| text.starts_with(begin))
    }

    pub fn parse(text: &str) -> Result<Self> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        ensure!(
            !text.chars().any(char::is_control),
            "it has control characters"
        );
        ensure!(!path.is_empty(), "it names no place");
        let place = match kind {
            "oci" => Place::Layout(path.into(), tag.filter(|tag| !tag.is_empty())),
            "dir" => Place::Directory(rest.into()),
            "docker" => registry(rest.trim_start_matches('/'))?,
            _ => Place::Archive(path.into()),
        };
        Ok(Self {
            text: text.to_owned(),
            place,
        })
    }

    /// What it is on this host.
    pub fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Layout(path, _) | Place::Directory(path) | Place::Archive(path) => Some(path),
            Place::Registry(..) => None,
        }
    }

    /// The image with this digest in the same place, where there can be several.
    pub fn pinned(&self, digest: &Digest) -> String {
        match &self.place {
            Place::Registry(name, _) => format!("docker://{name}@{digest}"),
            _ => self.text.clone(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Reads `HOST/NAME`, and a tag or a digest behind it.
fn registry(text: &str) -> Result<Place> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@[]".contains(c);
    ensure!(
        text.chars().all(is_plain),
        "it has a character that no name in a registry has"
    );
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(Digest::try_from(digest.to_owned())?)),
        None => (text, None),
    };
    // What follows a colon before the last slash is the port of the host.
    let tag = name.rfind(':').filter(|at| !name[*at..].contains('/'));
    ensure!(
        tag.is_none() || digest.is_none(),
        "it has a tag and a digest; the digest alone tells the image"
    );
    let name = &name[..tag.unwrap_or(name.len())];
    ensure!(!name.is_empty(), "it names no image");
    Ok(Place::Registry(name.to_owned(), digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_are_read_as_skopeo_spells_them() {
        let tag = || Some("v1".to_owned());
        let digest = Digest::try_from(format!("sha256:{HEX}")).unwrap();
        let of_host = || "h:5000/a/b".to_owned();
        for (text, place) in [
            ("oci:/srv/x", Place::Layout("/srv/x".into(), None)),
            ("oci:x:v1", Place::Layout("x".into(), tag())),
            ("oci:x:", Place::Layout("x".into(), None)),
            ("dir:/srv/x", Place::Directory("/srv/x".into())),
            ("oci-archive:x.tar", Place::Archive("x.tar".into())),
            (
                "docker-archive:/x.tar:name:v1",
                Place::Archive("/x.tar".into()),
            ),
            ("docker://h:5000/a/b", Place::Registry(of_host(), None)),
            ("docker://h:5000/a/b:v1", Place::Registry(of_host(), None)),
            (
                "docker://[::1]:5000/a:v1",
                Place::Registry("[::1]:5000/a".to_owned(), None),
            ),
            (
                &format!("docker://h:5000/a/b@{digest}"),
                Place::Registry(of_host(), Some(digest.clone())),
            ),
        ] {
            assert!(Reference::is_meant(text), "{text}");
            let read = Reference::parse(text).unwrap();
            assert_eq!((read.place, read.text.as_str()), (place, text), "{text}");
        }
        let read = Reference::parse("docker://h:5000/a/b:v1").unwrap();
        assert_eq!(
            read.pinned(&digest),
            format!("docker://h:5000/a/b@{digest}")
        );
        assert_eq!(read.path(), None);
        let archive = Reference::parse("oci-archive:x.tar:v1").unwrap();
        assert_eq!(archive.pinned(&digest), "oci-archive:x.tar:v1");
        assert_eq!(archive.path(), Some(Path::new("x.tar")));
    }

    #[test]
    fn odd_references_are_refused() {
        for text in [
            "oci:",
            "oci::v1",
            "dir:",
            "docker://",
            "docker://:v1",
            "docker://h/a b",
            "docker://h/a\n",
            "docker://h/a?b",
            "docker://h/a@sha256:0",
            "docker://h/a@sha512:0",
            &format!("docker://h/a:v1@sha256:{HEX}"),
            "oci:/srv/\u{1b}[2J",
        ] {
            assert!(Reference::parse(text).is_err(), "{text}");
        }
        for text in [
            "/srv/oci:x",
            "./oci:x",
            "https://h/x",
            "ocix",
            "docker:x",
            "",
        ] {
            assert!(!Reference::is_meant(text), "{text}");
        }
    }
}
