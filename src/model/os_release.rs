//! What an os-release(5) says of an image: which product it is, and which version.

use rpm_version::rpm_evr_compare;

/// What identifies the system in a root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OsRelease {
    pub id: Option<String>,
    pub image_id: Option<String>,
    pub variant_id: Option<String>,
    pub image_version: Option<String>,
    /// That of the distribution.
    pub version_id: Option<String>,
}

/// What an os-release says of `name`, if that is not empty.
pub fn value(text: &str, name: &str) -> Option<String> {
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim().trim_matches(['"', '\'']);
    Some(value.to_owned()).filter(|value| !value.is_empty())
}

impl OsRelease {
    pub fn parse(text: &str) -> Self {
        let value = |name| value(text, name);
        Self {
            id: value("ID"),
            image_id: value("IMAGE_ID"),
            variant_id: value("VARIANT_ID"),
            image_version: value("IMAGE_VERSION"),
            version_id: value("VERSION_ID"),
        }
    }

    /// The text with this name and version of the image.
    pub fn with_image(text: &str, id: &str, version: &str) -> String {
        let is_other = |line: &&str| {
            let key = line.split('=').next();
            !matches!(key, Some("IMAGE_ID" | "IMAGE_VERSION"))
        };
        let mut lines: Vec<String> = text.lines().filter(is_other).map(str::to_owned).collect();
        lines.push(format!("IMAGE_ID={id}"));
        lines.push(format!("IMAGE_VERSION={version}"));
        lines.join("\n") + "\n"
    }

    /// That of the image, else that of the distribution.
    pub fn version(&self) -> Option<&str> {
        let version = self.image_version.as_ref().or(self.version_id.as_ref());
        version.map(String::as_str)
    }

    /// What tells that `other` is another product, if anything does: the variable, and both values. What only one
    /// of them says tells nothing.
    pub fn other_product<'a>(
        &'a self,
        other: &'a Self,
    ) -> Option<(&'static str, &'a str, &'a str)> {
        [
            ("ID", &self.id, &other.id),
            ("IMAGE_ID", &self.image_id, &other.image_id),
            ("VARIANT_ID", &self.variant_id, &other.variant_id),
        ]
        .into_iter()
        .find_map(|(name, own, other)| match (own, other) {
            (Some(own), Some(other)) if own != other => Some((name, own.as_str(), other.as_str())),
            _ => None,
        })
    }

    /// Whether `other` is of an older version, by the order of rpm(8): both versions. Those of images are compared
    /// if both have one, else those of the distribution.
    pub fn downgrade<'a>(&'a self, other: &'a Self) -> Option<(&'a str, &'a str)> {
        let images = (&self.image_version, &other.image_version);
        let (own, other) = match images {
            (Some(own), Some(other)) => (own, other),
            _ => (self.version_id.as_ref()?, other.version_id.as_ref()?),
        };
        rpm_evr_compare(other, own).is_lt().then_some((own, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_the_image_counts_before_that_of_the_distribution() {
        let text = "NAME=x\nID=debian\n VERSION_ID=1\nVERSION_ID=\"13\"\nIMAGE_ID=''\n";
        let release = OsRelease::parse(text);
        assert_eq!(release.id.as_deref(), Some("debian"));
        assert_eq!(release.version(), Some("13"));
        assert_eq!(release.image_id, None);
        let release = OsRelease::parse(&format!("{text}IMAGE_VERSION=7\n"));
        assert_eq!(release.version(), Some("7"));
        assert_eq!(OsRelease::parse(""), OsRelease::default());
    }

    #[test]
    fn an_image_gets_its_name_and_version() {
        for text in [
            "ID=x\nIMAGE_ID=a",
            "ID=x\n",
            "IMAGE_VERSION=1\nID=x\nIMAGE_ID=b\n",
        ] {
            let named = OsRelease::with_image(text, "myhost", "2.0-1");
            assert_eq!(named, "ID=x\nIMAGE_ID=myhost\nIMAGE_VERSION=2.0-1\n");
            assert_eq!(OsRelease::with_image(&named, "myhost", "2.0-1"), named);
            assert_eq!(OsRelease::parse(&named).version(), Some("2.0-1"));
        }
    }

    #[test]
    fn another_product_and_an_older_version_are_told() {
        for (own, other, product, downgrade) in [
            ("ID=a\nVERSION_ID=1", "ID=a\nVERSION_ID=2", false, false),
            ("ID=a\nVERSION_ID=9", "ID=a\nVERSION_ID=10", false, false),
            ("ID=a\nVERSION_ID=2", "ID=a\nVERSION_ID=1", false, true),
            ("ID=a\nVERSION_ID=2", "ID=a\nVERSION_ID=2", false, false),
            ("ID=a\nVERSION_ID=2", "ID=a", false, false),
            ("ID=a", "ID=b", true, false),
            ("ID=a", "", false, false),
            ("ID=a\nIMAGE_ID=x", "ID=a\nIMAGE_ID=y", true, false),
            ("ID=a\nIMAGE_ID=x", "ID=a", false, false),
            ("ID=a\nVARIANT_ID=x", "ID=a\nVARIANT_ID=y", true, false),
            (
                "ID=a\nVERSION_ID=13",
                "ID=a\nVERSION_ID=13\nIMAGE_VERSION=2",
                false,
                false,
            ),
            (
                "ID=a\nVERSION_ID=13\nIMAGE_VERSION=2",
                "ID=a\nVERSION_ID=13\nIMAGE_VERSION=1~rc1",
                false,
                true,
            ),
        ] {
            let [own, other] = [own, other].map(OsRelease::parse);
            assert_eq!(
                own.other_product(&other).is_some(),
                product,
                "{own:?} {other:?}"
            );
            assert_eq!(
                own.downgrade(&other).is_some(),
                downgrade,
                "{own:?} {other:?}"
            );
        }
    }
}
