//! Packages of dpkg and rpm: what their names can be, and which of those that are kept as files go into a root that
//! has others (deb-control(5), deb-version(7)). No input or output.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result, ensure};
use rpm_version::rpm_evr_compare;
use serde::{Deserialize, Serialize};

/// What is between the parts of the name of a kept file. No name, version or architecture has it.
const BETWEEN: char = '@';
/// The most characters that the parts may have together: a file's name has at most 255 bytes, with its digest.
const PARTS_MAX: usize = 160;
/// The digits of a SHA-256.
const DIGITS: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Deb,
    Rpm,
}

impl Format {
    /// How the names of its files end.
    pub fn ending(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Rpm => "rpm",
        }
    }

    /// By how a file begins (deb(5); `rpmlead.h` of rpm).
    pub fn of(head: &[u8]) -> Option<Self> {
        if head.starts_with(b"!<arch>\ndebian-binary") {
            Some(Self::Deb)
        } else if head.starts_with(b"\xed\xab\xee\xdb") {
            Some(Self::Rpm)
        } else {
            None
        }
    }
}

/// A package with what it says of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Whether it can be there once for each architecture.
    is_same: bool,
    /// What it takes when it is installed, in bytes, as it says.
    pub size: u64,
    depends: String,
    conflicts: String,
    provides: String,
}

impl Package {
    /// Reads a paragraph of a control file, or of dpkg's record; `None` if it names no package.
    pub fn of(paragraph: &str) -> Option<Self> {
        let field = |name| field(paragraph, name).unwrap_or_default();
        let both = |a, b| format!("{}, {}", field(a), field(b));
        let size: u64 = field("Installed-Size").parse().unwrap_or(0);
        Some(Self {
            name: self::field(paragraph, "Package")?,
            version: self::field(paragraph, "Version")?,
            architecture: field("Architecture"),
            is_same: field("Multi-Arch") == "same",
            size: size.saturating_mul(1024),
            depends: both("Pre-Depends", "Depends"),
            conflicts: both("Conflicts", "Breaks"),
            provides: field("Provides"),
        })
    }

    /// How dpkg(1) names it in a root: its name, with its architecture where that matters.
    pub fn key(&self) -> String {
        if self.is_same {
            format!("{}:{}", self.name, self.architecture)
        } else {
            self.name.clone()
        }
    }

    /// Whether only one of the two can be there in a root, where it takes the place of the other: dpkg(1) has a name
    /// once, but for packages that both say that they can be there once for each architecture.
    pub fn is_same_in_root(&self, other: &Self) -> bool {
        let is_beside = self.is_same && other.is_same && self.architecture != other.architecture;
        self.name == other.name && !is_beside
    }

    /// Refuses one whose name, version or architecture none can have.
    pub fn check(&self) -> Result<()> {
        let Self {
            name,
            version,
            architecture,
            ..
        } = self;
        for (what, text, others) in [
            ("name", name, "+-._"),
            ("version", version, "+-._:~^"),
            ("architecture", architecture, "-_"),
        ] {
            let is_valid = |c: char| c.is_ascii_alphanumeric() || others.contains(c);
            ensure!(
                text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(is_valid),
                "{text:?} is no {what} of a package"
            );
        }
        ensure!(
            name.len() + version.len() + architecture.len() <= PARTS_MAX,
            "name, version and architecture of {name} have more than {PARTS_MAX} characters"
        );
        Ok(())
    }

    /// Whether it is among these, in this version.
    pub fn is_in(&self, others: &[Self]) -> bool {
        let is_it = |other: &Self| other.version == self.version && other.is_same_in_root(self);
        others.iter().any(is_it)
    }

    /// Whether a relation to another package is one to this.
    fn is_meant(&self, relation: &Relation) -> bool {
        if self.name == relation.name && relation.is_of(Some(&self.version)) {
            return true;
        }
        let mut provided = relations(&self.provides);
        provided.any(|provided| {
            let version = provided.version.map(|(_, version)| version);
            provided.name == relation.name && relation.is_of(version)
        })
    }
}

impl fmt::Display for Package {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.version)
    }
}

/// The packages that dpkg's record says are installed.
pub fn installed(record: &str) -> Vec<Package> {
    // Of what others have to be told of it, there is nothing missing to itself.
    let states = [" installed", " triggers-awaited", " triggers-pending"];
    let is_installed = |paragraph: &&str| {
        field(paragraph, "Status").is_some_and(|s| states.iter().any(|state| s.ends_with(state)))
    };
    let paragraphs = record.split("\n\n").filter(is_installed);
    paragraphs.filter_map(Package::of).collect()
}

/// The packages that apt's record says were installed for others, as [`Package::key`] can name them.
pub fn automatic(record: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for paragraph in record.split("\n\n") {
        let field = |name| field(paragraph, name).unwrap_or_default();
        if field("Auto-Installed") == "1" {
            let name = field("Package");
            names.insert(format!("{name}:{}", field("Architecture")));
            names.insert(name);
        }
    }
    names
}

/// The value of a field, with the lines that go on with it.
pub fn field(paragraph: &str, name: &str) -> Option<String> {
    let mut lines = paragraph.lines();
    let mut value = lines.find_map(|line| {
        let (of, value) = line.split_once(':')?;
        of.eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    })?;
    for line in lines.take_while(|line| line.starts_with([' ', '\t'])) {
        value.push(' ');
        value.push_str(line.trim());
    }
    Some(value)
}

/// A package that is meant, in which versions.
struct Relation<'a> {
    name: &'a str,
    /// How the version has to compare with that one.
    version: Option<(&'a str, &'a str)>,
}

impl<'a> Relation<'a> {
    fn new(text: &'a str) -> Self {
        let text = text.trim();
        let (name, rest) = text.split_once('(').unwrap_or((text, ""));
        let rest = rest.split(')').next().unwrap_or_default().trim();
        let end = rest.find(|c| !"<>=".contains(c)).unwrap_or(rest.len());
        let (how, version) = rest.split_at(end);
        // What is behind a colon is an architecture, or `any`.
        let name = name.split([':', ' ', '[', '<']).next().unwrap_or_default();
        Self {
            name,
            version: Some((how, version.trim())).filter(|(how, _)| !how.is_empty()),
        }
    }

    /// Whether a version is meant; `None` is that of a name that another package provides without one.
    fn is_of(&self, version: Option<&str>) -> bool {
        let Some((how, wanted)) = self.version else {
            return true;
        };
        let Some(version) = version else {
            return false;
        };
        let order = compare(version, wanted);
        match how {
            "<<" => order.is_lt(),
            "<=" | "<" => order.is_le(),
            ">=" | ">" => order.is_ge(),
            ">>" => order.is_gt(),
            _ => order.is_eq(),
        }
    }
}

/// The relations of a list, each by itself.
fn relations(list: &str) -> impl Iterator<Item = Relation<'_>> {
    let texts = list.split([',', '|']).map(str::trim);
    texts.filter(|text| !text.is_empty()).map(Relation::new)
}

/// Each need of a list: any of its relations is enough.
fn needs(list: &str) -> impl Iterator<Item = &str> {
    list.split(',')
        .map(str::trim)
        .filter(|need| !need.is_empty())
}

/// What a package needs and others do not have.
pub fn unmet<'a>(package: &'a Package, others: &[&Package]) -> Option<&'a str> {
    needs(&package.depends).find(|need| !is_met(need, others))
}

fn is_met(need: &str, by: &[&Package]) -> bool {
    relations(need).any(|relation| by.iter().any(|package| package.is_meant(&relation)))
}

/// Compares versions as dpkg does.
pub fn compare(a: &str, b: &str) -> Ordering {
    let parts = |version: &'_ str| -> [String; 3] {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        [epoch, upstream, revision].map(str::to_owned)
    };
    let pairs = parts(a).into_iter().zip(parts(b));
    let mut orders = pairs.map(|(a, b)| compare_part(a.as_bytes(), b.as_bytes()));
    orders
        .find(|order| order.is_ne())
        .unwrap_or(Ordering::Equal)
}

fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    let is_text = |c: Option<&u8>| c.is_some_and(|c| !c.is_ascii_digit());
    while !a.is_empty() || !b.is_empty() {
        while is_text(a.first()) || is_text(b.first()) {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order.is_ne() {
                return order;
            }
            (a, b) = (&a[1..], &b[1..]);
        }
        let (of_a, of_b) = (number(&mut a), number(&mut b));
        let order = of_a.len().cmp(&of_b.len()).then(of_a.cmp(of_b));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// Letters sort before all else, and a tilde before the end.
fn weight(c: Option<&u8>) -> i32 {
    match c {
        Some(b'~') => -1,
        Some(c) if c.is_ascii_alphabetic() => (*c).into(),
        Some(c) if !c.is_ascii_digit() => i32::from(*c) + 256,
        _ => 0,
    }
}

/// Takes the number that a text begins with, without zeros in front.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit());
    let (number, rest) = text.split_at(end.unwrap_or(text.len()));
    *text = rest;
    let zeros = number.iter().take_while(|c| **c == b'0').count();
    &number[zeros..]
}

/// A file that keeps a package. Its name says what it holds: `NAME@VERSION@ARCHITECTURE@SHA256.deb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    pub format: Format,
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// The SHA-256 of the file.
    pub digest: String,
}

impl Kept {
    /// Refuses a package with a name that none can have.
    pub fn new(package: &Package, format: Format, digest: String) -> Result<Self> {
        package.check()?;
        Ok(Self {
            format,
            name: package.name.clone(),
            version: package.version.clone(),
            architecture: package.architecture.clone(),
            digest,
        })
    }

    /// By the name of a file; `None` if that is no such file.
    pub fn parse(file: &str) -> Option<Self> {
        let (parts, ending) = file.rsplit_once('.')?;
        let mut formats = [Format::Deb, Format::Rpm].into_iter();
        let format = formats.find(|format| format.ending() == ending)?;
        let parts: Vec<&str> = parts.split(BETWEEN).collect();
        let [name, version, architecture, digest] = parts[..] else {
            return None;
        };
        let is_digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if digest.len() != DIGITS || !digest.bytes().all(is_digit) {
            return None;
        }
        let package = Package {
            name: name.to_owned(),
            version: version.to_owned(),
            architecture: architecture.to_owned(),
            ..Package::default()
        };
        Self::new(&package, format, digest.to_owned()).ok()
    }

    pub fn file(&self) -> String {
        let (name, version, architecture) = (&self.name, &self.version, &self.architecture);
        let (digest, ending) = (&self.digest, self.format.ending());
        format!("{name}{BETWEEN}{version}{BETWEEN}{architecture}{BETWEEN}{digest}.{ending}")
    }

    /// Whether it is of the same package in perhaps another version. One that is for all architectures takes the place
    /// of one that was for a single one, and the other way round; others may be there beside each other.
    pub fn is_of_same(&self, other: &Self) -> bool {
        (self.format, &self.name) == (other.format, &other.name)
            && self.is_in_place_of(&other.architecture)
    }

    /// Whether it takes the place of one with the same name that is for this architecture.
    fn is_in_place_of(&self, architecture: &str) -> bool {
        let is_for_all = |of: &str| matches!(of, "all" | "noarch");
        self.architecture == architecture
            || is_for_all(&self.architecture)
            || is_for_all(architecture)
    }

    /// Whether a person means it by this name, which can have an architecture: `NAME:ARCHITECTURE`.
    pub fn is_called(&self, text: &str) -> bool {
        let (name, architecture) = text.split_once(':').unwrap_or((text, &self.architecture));
        (name, architecture) == (&self.name, &self.architecture)
    }

    /// Refuses a package that is another one.
    pub fn check_is(&self, package: &Package) -> Result<()> {
        let is = (&package.name, &package.version, &package.architecture);
        ensure!(
            is == (&self.name, &self.version, &self.architecture),
            "its file holds {package}"
        );
        Ok(())
    }
}

/// What becomes of a kept package in a root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Install,
    /// In the place of this older version of the image.
    Upgrade(String),
    /// The image has this version, which is the same or newer.
    InImage(String),
    /// It cannot be installed, and why.
    Refused(String),
}

impl Verdict {
    pub fn is_installed(&self) -> bool {
        matches!(self, Self::Install | Self::Upgrade(_))
    }
}

/// Decides on packages for a root that has others. Of two that cannot be there together, the first is.
pub fn plan(kept: &[Package], image: &[Package]) -> Vec<Verdict> {
    let mut verdicts: Vec<Verdict> = kept
        .iter()
        .map(|package| by_version(package, image))
        .collect();
    // One that is refused is missed by those that need it.
    loop {
        let refused = kept.iter().enumerate().find_map(|(at, _)| {
            let is_open = verdicts[at].is_installed();
            let why = is_open.then(|| problem(at, kept, &verdicts, image))??;
            Some((at, why))
        });
        match refused {
            Some((at, why)) => verdicts[at] = Verdict::Refused(why),
            None => return verdicts,
        }
    }
}

/// Decides on a kept package of rpm for a root that has these: names with architectures, and versions. Whether it can be
/// there beside all others is known when rpm(8) is asked.
pub fn by_rpm_version(kept: &Kept, installed: &BTreeMap<String, String>) -> Verdict {
    let is_it = |key: &str| {
        let parts = key.rsplit_once('.');
        parts.is_some_and(|(name, of)| name == kept.name && kept.is_in_place_of(of))
    };
    let same = installed.iter().filter(|(key, _)| is_it(key));
    let versions = same.flat_map(|(_, versions)| versions.split(", "));
    match versions.max_by(|a, b| rpm_evr_compare(a, b)) {
        None => Verdict::Install,
        Some(version) if rpm_evr_compare(&kept.version, version).is_gt() => {
            Verdict::Upgrade(version.to_owned())
        }
        Some(version) => Verdict::InImage(version.to_owned()),
    }
}

fn by_version(package: &Package, image: &[Package]) -> Verdict {
    let same = image.iter().filter(|other| other.is_same_in_root(package));
    match same.max_by(|a, b| compare(&a.version, &b.version)) {
        None => Verdict::Install,
        Some(other) if compare(&package.version, &other.version).is_gt() => {
            Verdict::Upgrade(other.version.clone())
        }
        Some(other) => Verdict::InImage(other.version.clone()),
    }
}

/// Why a package cannot be installed beside all others that are.
fn problem(at: usize, kept: &[Package], verdicts: &[Verdict], image: &[Package]) -> Option<String> {
    let package = &kept[at];
    let mut architectures = image.iter().map(|other| &other.architecture);
    if package.architecture != "all" && !architectures.any(|of| *of == package.architecture) {
        return Some(format!(
            "it is for {}, which the image has no package for",
            package.architecture
        ));
    }
    let is_replaced = |other: &&Package| {
        let mut added = kept.iter().zip(verdicts);
        added.any(|(new, verdict)| verdict.is_installed() && new.is_same_in_root(other))
    };
    let of_image: Vec<&Package> = image.iter().filter(|other| !is_replaced(other)).collect();
    let others = kept.iter().zip(verdicts).enumerate();
    let others = others.filter(|(of, (_, verdict))| *of != at && verdict.is_installed());
    let others: Vec<(usize, &Package)> = others.map(|(of, (other, _))| (of, other)).collect();
    let before = others
        .iter()
        .filter(|(of, _)| *of < at)
        .map(|(_, other)| *other);
    if let Some(other) = before.clone().find(|other| other.is_same_in_root(package)) {
        return Some(format!(
            "{other} for {} is kept as well, and only one of them can be there",
            other.architecture
        ));
    }
    for other in of_image.iter().copied().chain(before) {
        let conflict = |a: &Package, b: &Package| {
            a.name != b.name && relations(&a.conflicts).any(|relation| b.is_meant(&relation))
        };
        if conflict(package, other) || conflict(other, package) {
            return Some(format!("it is in conflict with {other}"));
        }
    }
    let mut all = of_image.clone();
    all.extend(others.iter().map(|(_, other)| *other));
    all.push(package);
    if let Some(need) = unmet(package, &all) {
        return Some(format!(
            "it needs {need}, which is neither in the image nor kept"
        ));
    }
    // Others of the image can need the version that it would replace.
    let whole: Vec<&Package> = image.iter().collect();
    let is_lost = |need: &&str| {
        let is_of_it = |relation: Relation| relation.name == package.name;
        relations(need).any(is_of_it) && is_met(need, &whole) && !is_met(need, &all)
    };
    let mut losers = of_image.iter();
    losers.find_map(|loser| {
        let need = needs(&loser.depends).find(is_lost)?;
        Some(format!("{loser} of the image needs {need}"))
    })
}

/// The packages that are installed, by their numbers, in an order in which each finds those that it needs. Those that
/// need each other are one group.
pub fn order(kept: &[Package], verdicts: &[Verdict]) -> Vec<Vec<usize>> {
    let mut open: Vec<usize> = (0..kept.len())
        .filter(|at| verdicts[*at].is_installed())
        .collect();
    let mut reaches: Vec<Vec<bool>> = kept.iter().map(|a| direct_needs(a, kept)).collect();
    let all = open.clone();
    for over in &all {
        for from in all.iter().filter(|from| **from != *over) {
            if !reaches[*from][*over] {
                continue;
            }
            for to in &all {
                reaches[*from][*to] |= reaches[*over][*to];
            }
        }
    }
    let mut groups = Vec::new();
    // What needs nothing that is open, but what needs it as well. There always is one.
    while let Some(first) = open.iter().copied().find(|of| {
        let mut needed = open.iter().filter(|other| reaches[*of][**other]);
        needed.all(|other| other == of || reaches[*other][*of])
    }) {
        let is_of_group = |of: &usize| *of == first || reaches[first][*of];
        let group: Vec<usize> = open.iter().copied().filter(is_of_group).collect();
        open.retain(|of| !group.contains(of));
        groups.push(group);
    }
    groups
}

/// Which of `kept` a package names among those that it needs.
fn direct_needs(package: &Package, kept: &[Package]) -> Vec<bool> {
    let is_named = |other: &Package| {
        !package.is_same_in_root(other) && relations(&package.depends).any(|r| other.is_meant(&r))
    };
    kept.iter().map(is_named).collect()
}

/// What has become of a kept package, as reports have it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub name: String,
    pub version: String,
    pub result: Fate,
    /// The version that the image has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    Installed,
    InImage,
    /// It was not tried.
    Refused,
    /// It was tried in vain.
    Failed,
}

impl Outcome {
    pub fn new(kept: &Kept, verdict: &Verdict) -> Self {
        let (result, image, why) = match verdict.clone() {
            Verdict::Install => (Fate::Installed, None, None),
            Verdict::Upgrade(image) => (Fate::Installed, Some(image), None),
            Verdict::InImage(image) => (Fate::InImage, Some(image), None),
            Verdict::Refused(why) => (Fate::Refused, None, Some(why)),
        };
        Self {
            name: kept.name.clone(),
            version: kept.version.clone(),
            result,
            image,
            why,
        }
    }

    /// Whether somebody who counts on the package misses it.
    pub fn is_missed(&self) -> bool {
        matches!(self.result, Fate::Refused | Fate::Failed)
    }

    /// For people, on one line. `comes` says that it is installed, or would be.
    pub fn line(&self, comes: &str) -> String {
        let Self {
            name,
            version,
            image,
            why,
            ..
        } = self;
        let image = image.as_deref();
        let text = match (self.result, image) {
            (Fate::Installed, None) => comes.to_owned(),
            (Fate::Installed, Some(image)) => format!("{comes} in the place of {image}"),
            (Fate::InImage, _) if image == Some(version) => "is in the image".to_owned(),
            (Fate::InImage, _) => format!("is in the image, as {}", image.unwrap_or("another")),
            _ => {
                let why = why.as_deref().unwrap_or("nobody knows why");
                format!("does not come along: {why}")
            }
        };
        format!("package {name} {version} {text}\n")
    }
}

/// What is wrong, out of all that a package tool has said on one line.
pub fn reason(said: &str) -> &str {
    const ERROR: &str = "dpkg: error processing ";
    const END: &str = "; Errors were encountered";
    let said = said.split(END).next().unwrap_or(said);
    let Some(at) = said.rfind(ERROR) else {
        return said;
    };
    // What it says of the error is on the next line.
    let why = said[at..].split_once("):");
    why.map_or(&said[at..], |(_, why)| why)
        .trim_matches([';', ' '])
}

/// A name of a package as a person writes it, perhaps with its architecture. Refuses any other text.
pub fn check_name(text: &str) -> Result<()> {
    let (name, architecture) = text.split_once(':').unwrap_or((text, "all"));
    let package = Package {
        name: name.to_owned(),
        version: "0".to_owned(),
        architecture: architecture.to_owned(),
        ..Package::default()
    };
    package
        .check()
        .with_context(|| format!("{text:?} is neither a file of a package nor the name of one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME VERSION` or `NAME VERSION ARCHITECTURE`, and further fields.
    fn package(text: &str, fields: &str) -> Package {
        let words: Vec<&str> = text.split(' ').collect();
        let architecture = words.get(2).unwrap_or(&"amd64");
        let control = format!(
            "Package: {}\nVersion: {}\nArchitecture: {architecture}\n{fields}\n",
            words[0], words[1]
        );
        Package::of(&control).unwrap()
    }

    #[test]
    fn versions_compare_as_dpkg_has_it() {
        for (a, b, wanted) in [
            ("1.0", "1.0", Ordering::Equal),
            ("1.0", "1.0-0", Ordering::Equal),
            ("0:1.0", "1.0", Ordering::Equal),
            ("1.00", "1.0", Ordering::Equal),
            ("1.10", "1.9", Ordering::Greater),
            ("1:1", "2", Ordering::Greater),
            ("1.0~rc1", "1.0", Ordering::Less),
            ("1.0~~", "1.0~", Ordering::Less),
            ("1.0-1", "1.0-1+b1", Ordering::Less),
            ("1.0a", "1.0+", Ordering::Less),
            ("1.0", "1.0a", Ordering::Less),
            ("a", "1", Ordering::Greater),
            ("2.7.0-1~deb13u2", "2.7.0-1", Ordering::Less),
            ("1-2-3", "1-2-10", Ordering::Less),
            (
                "99999999999999999999999",
                "100000000000000000000000",
                Ordering::Less,
            ),
            ("", "0", Ordering::Equal),
        ] {
            assert_eq!(compare(a, b), wanted, "{a} {b}");
            assert_eq!(compare(b, a), wanted.reverse(), "{b} {a}");
        }
    }

    #[test]
    fn a_kept_file_says_what_it_holds() {
        let digest = "0123456789abcdef".repeat(4);
        for (name, version, architecture, is_valid) in [
            ("htop", "3.4.1-5", "amd64", true),
            ("g++-14", "4:14.2.0-1~exp1", "all", true),
            ("kernel_core", "6.1^git1", "x86_64", true),
            ("", "1", "amd64", false),
            ("..", "1", "amd64", false),
            ("-a", "1", "amd64", false),
            ("a/../b", "1", "amd64", false),
            ("a@b", "1", "amd64", false),
            ("a b", "1", "amd64", false),
            ("a\n", "1", "amd64", false),
            ("a", "", "amd64", false),
            ("a", "1/2", "amd64", false),
            ("a", "$(x)", "amd64", false),
            ("a", "1", "", false),
            ("a", "1", "../x", false),
            ("a", &"1".repeat(200), "amd64", false),
        ] {
            let package = Package {
                name: name.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
                ..Package::default()
            };
            let kept = Kept::new(&package, Format::Deb, digest.clone());
            assert_eq!(kept.is_ok(), is_valid, "{name} {version} {architecture}");
            let Ok(kept) = kept else { continue };
            assert!(kept.file().len() <= 255);
            assert_eq!(Kept::parse(&kept.file()), Some(kept.clone()));
            assert!(kept.check_is(&package).is_ok());
            assert!(kept.is_called(name) && kept.is_called(&format!("{name}:{architecture}")));
            assert!(!kept.is_called("other") && !kept.is_called(&format!("{name}:other")));
        }
        for file in [
            "htop_3.4.1-5_amd64.deb",
            "htop@1@amd64@0123.deb",
            &format!("htop@1@amd64@{digest}.txt"),
            &format!("htop@1@amd64@{}.deb", digest.to_uppercase()),
            &format!("../x@1@amd64@{digest}.deb"),
            &format!("a@b@1@amd64@{digest}.deb"),
            ".download",
            "",
        ] {
            assert_eq!(Kept::parse(file), None, "{file}");
        }
    }

    #[test]
    fn the_begin_of_a_file_says_what_it_is() {
        for (head, wanted) in [
            (&b"!<arch>\ndebian-binary   1"[..], Some(Format::Deb)),
            (b"\xed\xab\xee\xdb\x03", Some(Format::Rpm)),
            (b"!<arch>\nfile.o/", None),
            (b"", None),
        ] {
            assert_eq!(Format::of(head), wanted);
        }
    }

    #[test]
    fn fields_go_on_over_lines() {
        let control = "package: a\nVersion: 1\nDepends: b,\n c (>= 2)\nDescription: x\n Version: 3\nBreaks: d";
        for (name, wanted) in [
            ("Package", Some("a")),
            ("Version", Some("1")),
            ("Depends", Some("b, c (>= 2)")),
            ("Breaks", Some("d")),
            ("Conflicts", None),
        ] {
            assert_eq!(field(control, name).as_deref(), wanted, "{name}");
        }
        assert_eq!(Package::of("Package: a\n"), None);
        let same = package("libc6 2.41", "Multi-Arch: same\nInstalled-Size: 12");
        assert_eq!((same.key().as_str(), same.size), ("libc6:amd64", 12 << 10));
    }

    #[test]
    fn a_name_is_one_that_a_package_can_have() {
        for (text, is_valid) in [
            ("htop", true),
            ("libc6:i386", true),
            ("", false),
            ("a:", false),
            ("a=1", false),
            ("a b", false),
            ("--help", false),
            ("..", false),
        ] {
            assert_eq!(check_name(text).is_ok(), is_valid, "{text:?}");
        }
    }

    #[test]
    fn of_a_kept_package_it_is_decided_what_becomes_of_it() {
        let image = [
            package("base 1.0", "Provides: mail, virtual (= 2.0)"),
            package("lib 2.0", "Multi-Arch: same"),
            package("both 1.0", "Multi-Arch: same"),
            package("both 3.0 i386", "Multi-Arch: same"),
            package("user 1", "Depends: pinned (= 1.0), other | none"),
            package("pinned 1.0", ""),
            package("hater 1", "Conflicts: disliked\nBreaks: old (<< 2)"),
        ];
        for (kept, fields, wanted) in [
            ("new 1", "", "install"),
            ("new 1 all", "", "install"),
            (
                "new 1 arm64",
                "",
                "it is for arm64, which the image has no package for",
            ),
            // What says that it can be there for each architecture takes the place of what does not.
            ("lib 1.0", "", "in image 2.0"),
            ("lib 3.0", "", "upgrade 2.0"),
            ("lib 1.0 all", "", "in image 2.0"),
            ("base 0.9", "Multi-Arch: same", "in image 1.0"),
            ("base 1.1", "Multi-Arch: same", "upgrade 1.0"),
            ("lib 1.0 i386", "Multi-Arch: same", "install"),
            ("both 2.0", "", "in image 3.0"),
            ("base 1.0", "", "in image 1.0"),
            ("base 0.9", "", "in image 1.0"),
            ("base 1.1", "", "upgrade 1.0"),
            ("lib 3.0", "Multi-Arch: same", "upgrade 2.0"),
            ("pinned 2.0", "", "user 1 of the image needs pinned (= 1.0)"),
            ("pinned 2.0", "Provides: pinned (= 1.0)", "upgrade 1.0"),
            ("new 1", "Depends: base", "install"),
            ("new 1", "Depends: base:any (>= 1.0), lib (<< 3)", "install"),
            (
                "new 1",
                "Depends: base (>> 1.0)",
                "it needs base (>> 1.0), which is neither in the image nor kept",
            ),
            ("new 1", "Depends: none | mail", "install"),
            ("new 1", "Depends: virtual (>= 1.5)", "install"),
            (
                "new 1",
                "Pre-Depends: mail (>= 1)",
                "it needs mail (>= 1), which is neither in the image nor kept",
            ),
            ("new 1", "Depends: new (= 1)", "install"),
            (
                "new 1",
                "Conflicts: base",
                "it is in conflict with base 1.0",
            ),
            ("new 1", "Breaks: base (<< 1.0)", "install"),
            (
                "new 1",
                "Conflicts: mail\nProvides: mail",
                "it is in conflict with base 1.0",
            ),
            ("new 1", "Conflicts: new", "install"),
            ("disliked 1", "", "it is in conflict with hater 1"),
            ("old 1", "", "it is in conflict with hater 1"),
            ("old 2", "", "install"),
            (
                "new 1",
                "Depends: ,,|, (",
                "it needs |, which is neither in the image nor kept",
            ),
        ] {
            let verdict = plan(&[package(kept, fields)], &image).remove(0);
            let shown = match verdict {
                Verdict::Install => "install".to_owned(),
                Verdict::Upgrade(from) => format!("upgrade {from}"),
                Verdict::InImage(version) => format!("in image {version}"),
                Verdict::Refused(why) => why,
            };
            assert_eq!(shown, wanted, "{kept} {fields}");
        }
    }

    /// What is installed of the second, in which order, and why not of the others.
    fn planned(kept: &[(&str, &str)]) -> (String, Vec<String>) {
        let image = [package("base 1", "")];
        let kept: Vec<Package> = kept.iter().map(|(text, f)| package(text, f)).collect();
        let verdicts = plan(&kept, &image);
        let refused = verdicts.iter().filter_map(|verdict| match verdict {
            Verdict::Refused(why) => Some(why.clone()),
            _ => None,
        });
        let refused = refused.collect();
        let group = |group: &Vec<usize>| {
            let names = group.iter().map(|at| kept[*at].name.as_str());
            names.collect::<Vec<_>>().join("+")
        };
        let order = order(&kept, &verdicts);
        let order = order.iter().map(group).collect::<Vec<_>>().join(" ");
        (order, refused)
    }

    #[test]
    fn packages_are_installed_in_the_order_in_which_they_need_each_other() {
        for (kept, wanted) in [
            (&[][..], ""),
            (&[("b 1", ""), ("a 1", "")], "b a"),
            (&[("a 1", "Depends: b"), ("b 1", "")], "b a"),
            (
                &[
                    ("a 1", "Depends: b, base"),
                    ("b 1", "Pre-Depends: c"),
                    ("c 1", ""),
                ],
                "c b a",
            ),
            (
                &[
                    ("d 1", "Depends: a"),
                    ("a 1", "Depends: b"),
                    ("b 1", "Depends: a | none"),
                ],
                "a+b d",
            ),
            (
                &[("a 1", "Depends: virtual"), ("b 1", "Provides: virtual")],
                "b a",
            ),
        ] {
            assert_eq!(planned(kept), (wanted.to_owned(), Vec::new()), "{kept:?}");
        }
    }

    #[test]
    fn what_needs_one_that_is_refused_is_refused_as_well() {
        let (order, refused) = planned(&[
            ("a 1", "Depends: b"),
            ("b 1", "Conflicts: base"),
            ("c 1", ""),
            ("d 1", "Conflicts: c"),
        ]);
        assert_eq!(order, "c");
        assert_eq!(
            refused,
            [
                "it needs b, which is neither in the image nor kept",
                "it is in conflict with base 1",
                "it is in conflict with c 1",
            ]
        );
    }

    #[test]
    fn of_two_that_cannot_be_there_together_the_first_is_installed() {
        for (fields, wanted) in [
            (
                "",
                &["x 2 for amd64 is kept as well, and only one of them can be there"][..],
            ),
            ("Multi-Arch: same", &[]),
        ] {
            let base = package("base 1", "");
            let other = package("other 1 i386", "");
            let kept = [package("x 2", fields), package("x 1 i386", fields)];
            let verdicts = plan(&kept, &[base, other]);
            let refused: Vec<&str> = verdicts
                .iter()
                .filter_map(|verdict| match verdict {
                    Verdict::Refused(why) => Some(why.as_str()),
                    _ => None,
                })
                .collect();
            assert_eq!(refused, wanted, "{fields}");
        }
    }

    #[test]
    fn a_kept_file_takes_the_place_of_one_of_the_same_package() {
        let kept = |architecture: &str, format| Kept {
            format,
            name: "x".to_owned(),
            version: "1".to_owned(),
            architecture: architecture.to_owned(),
            digest: String::new(),
        };
        for (a, b, is_same) in [
            ("amd64", "amd64", true),
            ("amd64", "all", true),
            ("noarch", "x86_64", true),
            ("amd64", "i386", false),
        ] {
            let [one, other] = [a, b].map(|of| kept(of, Format::Deb));
            assert_eq!(one.is_of_same(&other), is_same, "{a} {b}");
            assert_eq!(other.is_of_same(&one), is_same, "{b} {a}");
            assert!(!one.is_of_same(&kept(b, Format::Rpm)));
        }
    }

    #[test]
    fn of_a_kept_package_of_rpm_its_version_decides() {
        let installed = [
            ("bash.x86_64", "5.2.26-4.fc41"),
            ("kernel.x86_64", "6.9-1, 6.12-1, 6.11-1"),
            ("libx.i686", "2.0-1"),
            ("python3.12.x86_64", "3.12.9-1"),
            ("shadow-utils.x86_64", "2:4.15-1"),
            ("tool.noarch", "1.0-1"),
        ];
        let installed = installed.map(|(key, versions)| (key.to_owned(), versions.to_owned()));
        let installed = BTreeMap::from(installed);
        let upgrade = |from: &str| Verdict::Upgrade(from.to_owned());
        let in_image = |version: &str| Verdict::InImage(version.to_owned());
        for (name, version, architecture, wanted) in [
            ("bash", "5.2.26-4.fc41", "x86_64", in_image("5.2.26-4.fc41")),
            ("bash", "5.2.9-1.fc41", "x86_64", in_image("5.2.26-4.fc41")),
            ("bash", "5.2.37~rc1-1", "x86_64", upgrade("5.2.26-4.fc41")),
            ("bash", "5.3-1", "i686", Verdict::Install),
            ("kernel", "6.12-1", "x86_64", in_image("6.12-1")),
            ("kernel", "6.13-1", "x86_64", upgrade("6.12-1")),
            ("libx", "1.0-1", "x86_64", Verdict::Install),
            ("python3", "3.11-1", "x86_64", Verdict::Install),
            ("python3.12", "3.12.9-1", "x86_64", in_image("3.12.9-1")),
            ("shadow-utils", "4.16-1", "x86_64", in_image("2:4.15-1")),
            ("tool", "1.0-1", "x86_64", in_image("1.0-1")),
            ("tool", "1.1-1", "x86_64", upgrade("1.0-1")),
            ("new", "1-1", "noarch", Verdict::Install),
        ] {
            let kept = Kept {
                format: Format::Rpm,
                name: name.to_owned(),
                version: version.to_owned(),
                architecture: architecture.to_owned(),
                digest: String::new(),
            };
            let found = by_rpm_version(&kept, &installed);
            assert_eq!(found, wanted, "{name} {version} {architecture}");
        }
    }

    #[test]
    fn a_record_tells_what_is_installed() {
        let status = "Package: bash\nStatus: install ok installed\nVersion: 5.2-1\n\n\
            Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
            Package: half\nStatus: install ok half-configured\nVersion: 1\n\n\
            Package: waits\nStatus: install ok triggers-pending\nVersion: 1\n";
        let found: Vec<String> = installed(status).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["bash 5.2-1", "waits 1"]);
    }

    #[test]
    fn of_what_a_tool_says_the_reason_is_told() {
        for (said, wanted) in [
            (
                "Selecting previously unselected package x.; dpkg: error processing package x (--install):; \
                 installed x package post-installation script subprocess returned error exit status 1; \
                 Errors were encountered while processing:; x (exit status: 1)",
                "installed x package post-installation script subprocess returned error exit status 1",
            ),
            (
                "dpkg: regarding x.deb containing x:; x conflicts with y; dpkg: error processing archive \
                 /run/x.deb (--install):; conflicting packages - not installing x",
                "conflicting packages - not installing x",
            ),
            ("it was ended after 5 s", "it was ended after 5 s"),
            ("dpkg: error processing ", "dpkg: error processing"),
            (
                "dpkg: error processing package libx:amd64 (--install):; dependency problems",
                "dependency problems",
            ),
        ] {
            assert_eq!(reason(said), wanted);
        }
    }

    #[test]
    fn an_outcome_is_one_line() {
        let kept = Kept {
            format: Format::Deb,
            name: "htop".to_owned(),
            version: "3.4".to_owned(),
            architecture: "amd64".to_owned(),
            digest: String::new(),
        };
        for (verdict, wanted) in [
            (Verdict::Install, "comes along"),
            (
                Verdict::Upgrade("3.3".to_owned()),
                "comes along in the place of 3.3",
            ),
            (Verdict::InImage("3.4".to_owned()), "is in the image"),
            (
                Verdict::InImage("3.5".to_owned()),
                "is in the image, as 3.5",
            ),
            (
                Verdict::Refused("it needs x".to_owned()),
                "does not come along: it needs x",
            ),
        ] {
            let outcome = Outcome::new(&kept, &verdict);
            assert_eq!(
                outcome.line("comes along"),
                format!("package htop 3.4 {wanted}\n")
            );
            assert_eq!(outcome.is_missed(), matches!(verdict, Verdict::Refused(_)));
        }
    }
}
