//! Names of volume groups, bases and layers: what is valid, in what order they come, which is next.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use anyhow::{Error, Result, bail, ensure};
use rpm_version::rpm_evr_compare;
use serde::Serialize;

/// The volume group where `imgbased.vg=` does not say otherwise.
pub const DEFAULT_VG: &str = "HostVG";

/// The longest name that device-mapper takes, in bytes (`DM_NAME_LEN` less the final NUL).
const DM_NAME_MAX: usize = 127;

/// Names that lvm2 keeps for itself (`lib/misc/lvm-string.c`).
const RESERVED_PREFIXES: [&str; 2] = ["pvmove", "snapshot"];
const RESERVED_PARTS: [&str; 17] = [
    "_cdata", "_cmeta", "_corig", "_cpool", "_cvol", "_wcorig", "_mimage", "_mlog", "_rimage",
    "_rmeta", "_tdata", "_tmeta", "_vdata", "_imeta", "_iorig", "_pmspare", "_vorigin",
];

/// The rules that lvm2 has for every name (lvm(8), "VALID NAMES").
fn check_charset(kind: &str, name: &str) -> Result<()> {
    ensure!(!name.is_empty(), "the {kind} name is empty");
    ensure!(
        name.len() <= DM_NAME_MAX,
        "{kind} name is {} bytes long, at most {DM_NAME_MAX} are possible",
        name.len()
    );
    ensure!(
        !name.starts_with('-') && name != "." && name != "..",
        "{name:?} is not a valid {kind} name"
    );
    if let Some(bad) = name
        .chars()
        .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '.' | '-')))
    {
        bail!("{kind} name {name:?} contains {bad:?}; letters, digits and _ + . - are possible");
    }
    Ok(())
}

/// The name of a volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgName(String);

impl FromStr for VgName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        check_charset("volume group", name)?;
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for VgName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl VgName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What the device-mapper names of this group's volumes begin with.
    pub fn dm_prefix(&self) -> String {
        self.0.replace('-', "--") + "-"
    }

    /// The device-mapper name of a volume in this group: hyphens doubled, one between the two.
    ///
    /// Refuses a pair that is too long for device-mapper.
    pub fn dm_name(&self, lv: &LvName) -> Result<String> {
        let name = self.dm_prefix() + &lv.0.replace('-', "--");
        ensure!(
            name.len() <= DM_NAME_MAX,
            "{self}/{lv} is too long: device-mapper takes {DM_NAME_MAX} bytes, this is {} with its hyphens doubled",
            name.len()
        );
        Ok(name)
    }

    /// The volume of this group with that device-mapper name; nothing if it belongs to another group, or to a
    /// part of a volume.
    pub fn lv_of(&self, dm_name: &str) -> Option<LvName> {
        let lv = dm_name.strip_prefix(&self.dm_prefix())?.replace("--", "-");
        let lv = lv.parse().ok()?;
        self.dm_name(&lv)
            .is_ok_and(|name| name == dm_name)
            .then_some(lv)
    }

    /// The group of the volume with this name, by the name that device-mapper has for it.
    pub fn of_dm_name(dm_name: &str, lv: &LvName) -> Option<Self> {
        let end = format!("-{}", lv.0.replace('-', "--"));
        let vg: Self = dm_name
            .strip_suffix(&end)?
            .replace("--", "-")
            .parse()
            .ok()?;
        vg.dm_name(lv)
            .is_ok_and(|name| name == dm_name)
            .then_some(vg)
    }
}

/// The UUID of a volume group, as lvm2 prints it: 32 letters and digits, in parts of 6, 4, 4, 4, 4, 4 and 6.
///
/// A group of LVM1 can have other characters in its UUID. An entry does not name such a group by its UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VgUuid(String);

impl FromStr for VgUuid {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        const PARTS: [usize; 7] = [6, 4, 4, 4, 4, 4, 6];
        let is_part = |part: &str| part.bytes().all(|byte| byte.is_ascii_alphanumeric());
        ensure!(
            text.split('-').map(str::len).eq(PARTS) && text.split('-').all(is_part),
            "not a UUID as vgs -o vg_uuid prints it"
        );
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for VgUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl VgUuid {
    /// In bytes.
    pub const LENGTH: usize = 38;

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a logical volume: a base, a layer, the pool or another volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct LvName(String);

impl FromStr for LvName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        check_charset("volume", name)?;
        if let Some(reserved) = RESERVED_PREFIXES.iter().find(|p| name.starts_with(*p)) {
            bail!(
                "{name:?} is not possible: lvm2 keeps names that start with {reserved:?} for itself"
            );
        }
        // Most names have no underscore at all.
        let rest = name.find('_').map_or("", |at| &name[at..]);
        if let Some(reserved) = RESERVED_PARTS.iter().find(|p| rest.contains(*p)) {
            bail!("{name:?} is not possible: lvm2 keeps names with {reserved:?} for itself");
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for LvName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl LvName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name of layer number `number` of this base.
    pub fn layer(&self, number: u64) -> Result<LvName> {
        let joint = if self.base_number().is_some() {
            '.'
        } else {
            '+'
        };
        format!("{}{joint}{number}", self.0).parse()
    }

    /// The number of this layer of `base`, or nothing if the name is not of that shape.
    pub fn layer_number(&self, base: &LvName) -> Option<u64> {
        let joint = if base.base_number().is_some() {
            '.'
        } else {
            '+'
        };
        canonical_number(self.0.strip_prefix(&base.0)?.strip_prefix(joint)?)
    }

    /// Whether GRUB takes the boot entries of both for one, and drops the other: its `blscfg` splits
    /// ids as RPM splits name-version-release, and compares the parts as RPM does.
    pub fn shares_entry_with(&self, other: &Self) -> bool {
        let [release, version, name] = self.entry_parts();
        let [other_release, other_version, other_name] = other.entry_parts();
        name == other_name
            && rpm_evr_compare(version, other_version).is_eq()
            && rpm_evr_compare(release, other_release).is_eq()
    }

    /// From the last to the first: what `blscfg` takes for release, version and name.
    fn entry_parts(&self) -> [&str; 3] {
        let mut parts = self.0.rsplitn(3, '-');
        [(); 3].map(|()| parts.next().unwrap_or_default())
    }

    /// N of `Base-<N>`.
    fn base_number(&self) -> Option<u64> {
        canonical_number(self.0.strip_prefix("Base-")?)
    }
}

/// A decimal number without sign or leading zeros, so that every number has one spelling.
fn canonical_number(digits: &str) -> Option<u64> {
    let number: u64 = digits.parse().ok()?;
    (number.to_string() == digits).then_some(number)
}

/// The next free `Base-<N>`: one more than the greatest in use.
pub fn next_base<'a>(taken: impl IntoIterator<Item = &'a str>) -> Result<LvName> {
    let last = taken
        .into_iter()
        .filter_map(|name| canonical_number(name.strip_prefix("Base-")?))
        .max();
    format!("Base-{}", last.map_or(0, |n| n.saturating_add(1))).parse()
}

/// The next free layer of `base`: one more than the greatest in use, counted from 1. Numbers whose entry
/// would be that of another volume are passed over, such as 1 of `a-4` beside the base `a-4.1`.
pub fn next_layer<'a>(base: &LvName, taken: impl IntoIterator<Item = &'a str>) -> Result<LvName> {
    let taken: Vec<LvName> = taken.into_iter().filter_map(|n| n.parse().ok()).collect();
    let last = taken
        .iter()
        .filter_map(|name| name.layer_number(base))
        .max();
    let mut number = last.unwrap_or(0);
    loop {
        number = number.saturating_add(1);
        let layer = base.layer(number)?;
        if !taken.iter().any(|name| name.shares_entry_with(&layer)) {
            return Ok(layer);
        }
    }
}

impl LvName {
    /// The name and version of an image, of `name-version-release` or `name-version`; nothing if there is no version.
    pub fn name_and_version(&self) -> Option<(&str, &str)> {
        Some(split_nvr(&self.0)).filter(|(name, version)| !name.is_empty() && !version.is_empty())
    }
}

/// Order of names: as RPM compares name-version-release, so that `Base-10` follows `Base-9` and
/// `.10` follows `.9`. Names that RPM calls equal are ordered by their bytes.
impl Ord for LvName {
    fn cmp(&self, other: &Self) -> Ordering {
        let (name, evr) = split_nvr(&self.0);
        let (other_name, other_evr) = split_nvr(&other.0);
        name.cmp(other_name)
            .then_with(|| rpm_evr_compare(evr, other_evr))
            .then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for LvName {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Splits `name-version-release` or `name-version` into the name and the rest. The version is the
/// part after the second last hyphen if a digit follows it, else after the last.
fn split_nvr(text: &str) -> (&str, &str) {
    let starts_version = |at: &usize| text[at + 1..].starts_with(|c: char| c.is_ascii_digit());
    let last = text.rfind('-');
    let second_last = last.and_then(|at| text[..at].rfind('-'));
    match second_last
        .filter(starts_version)
        .or(last.filter(starts_version))
    {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    }
}

/// Whether imgbased takes this for the name of a base: its bases are called `NAME-VERSION-RELEASE`, and layers have
/// `+N` after that.
pub fn is_base_of_imgbased(name: &str) -> bool {
    let mut parts = name.rsplitn(3, '-');
    let is_there = |part: Option<&str>| part.is_some_and(|part| !part.is_empty());
    !name.contains('+') && (0..3).all(|_| is_there(parts.next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lv(name: &str) -> LvName {
        name.parse().unwrap()
    }

    #[test]
    fn a_uuid_is_what_lvm2_prints() {
        let good = "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo";
        assert_eq!(good.parse::<VgUuid>().unwrap().as_str(), good);
        for bad in [
            "",
            "-",
            "mZ7rTq0a1B2c3D4e5F6g7H8i9JKl0mNo",
            "mZ7rT-q0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo",
            "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo-",
            "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mN",
            "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mN!",
            "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mN\"",
            "mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0m\u{e9}",
            "../../../../../../../../../../../etc/p",
        ] {
            assert!(bad.parse::<VgUuid>().is_err(), "{bad}");
        }
        let endless = format!("mZ7rTq-{}", "a".repeat(1 << 20));
        let error = endless.parse::<VgUuid>().unwrap_err().to_string();
        assert!(error.len() < 100, "{error}");
    }

    #[test]
    fn valid_names() {
        for name in [
            "Base-0",
            "Base-0.1",
            "node-4.5.1-0.el9+12",
            "_x",
            ".hidden",
            "a",
        ] {
            assert_eq!(lv(name).as_str(), name);
        }
    }

    #[test]
    fn invalid_names() {
        let long = "x".repeat(128);
        for name in [
            "",
            "-a",
            ".",
            "..",
            "a b",
            "a/b",
            "../x",
            "a;b",
            "a$b",
            "a%s",
            "a\nb",
            "a\tb",
            "ä",
            "a@b",
            "a:b",
            "snapshot",
            "snapshot1",
            "pvmove0",
            "x_tmeta",
            "a_tdata0",
            "lvol0_pmspare",
            "a_rimage_1",
            "a\0b",
            "a\"b",
            "a'b",
            "a=b",
            &long,
        ] {
            assert!(name.parse::<LvName>().is_err(), "{name:?}");
        }
        for name in ["", "-vg", "a b", "..", "vg/lv"] {
            assert!(name.parse::<VgName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn device_mapper_names_double_hyphens_and_have_a_limit() {
        let vg: VgName = "my-vg".parse().unwrap();
        assert_eq!(vg.dm_name(&lv("Base-0.1")).unwrap(), "my--vg-Base--0.1");
        assert!(vg.dm_name(&lv(&"x".repeat(121))).is_err());
        assert!(vg.dm_name(&lv(&"x".repeat(120))).is_ok());
        assert!(vg.dm_name(&lv(&format!("a{}", "-".repeat(70)))).is_err());
        for name in ["Base-0.1", "a--b", "x-tpool"] {
            assert_eq!(vg.lv_of(&vg.dm_name(&lv(name)).unwrap()), Some(lv(name)));
        }
        // Of the groups `my` and `my-vg-`, and a part of a pool.
        for foreign in [
            "my-vg",
            "my--vg--a",
            "my--vg---a",
            "my--vg-x-tpool",
            "my--vg-",
        ] {
            assert_eq!(vg.lv_of(foreign), None, "{foreign}");
        }
        let group = |dm_name| VgName::of_dm_name(dm_name, &lv("Base-0.1"));
        assert_eq!(group("my--vg-Base--0.1"), Some(vg));
        for other in [
            "my--vg-Base--0.2",
            "my-vg-Base--0.1",
            "Base--0.1",
            "vg-x--Base--0.1",
        ] {
            assert_eq!(group(other), None, "{other}");
        }
    }

    #[test]
    fn names_are_ordered_as_rpm_orders_them() {
        let sorted = [
            "Base-0",
            "Base-0.1",
            "Base-0.2",
            "Base-0.9",
            "Base-0.10",
            "Base-0.11",
            "Base-1",
            "Base-1.1",
            "Base-2",
            "Base-9",
            "Base-10",
            "Config",
            "node-4.5.1-0.el9",
            "node-4.5.1-0.el9+1",
            "node-4.5.1-0.el9+2",
            "node-4.5.1-0.el9+10",
            "node-4.5.1-1.el9",
            "node-4.5.10-0.el9",
            "node-4.10-0.el9",
            "node-image-4.4-2",
            "node-image-4.4-10",
        ];
        let mut names: Vec<LvName> = sorted.iter().rev().map(|n| lv(n)).collect();
        names.sort();
        assert_eq!(names.iter().map(LvName::as_str).collect::<Vec<_>>(), sorted);
    }

    #[test]
    fn equal_for_rpm_is_still_a_total_order() {
        assert!(lv("a-1.0") != lv("a-1_0"));
        assert_ne!(lv("a-1.0").cmp(&lv("a-1_0")), Ordering::Equal);
        assert_eq!(
            lv("a-1.0").cmp(&lv("a-1_0")),
            lv("a-1_0").cmp(&lv("a-1.0")).reverse()
        );
    }

    #[test]
    fn names_that_grub_takes_for_one() {
        for (a, b) in [
            ("Base-0.1", "Base-0.01"),
            ("node-4.4+1", "node-4.4.1"),
            ("node-4.4-1.el9", "node-4.4-1_el9"),
            ("a", "a"),
        ] {
            assert!(lv(a).shares_entry_with(&lv(b)), "{a} {b}");
        }
        for (a, b) in [
            ("Base-0.1", "Base-0.10"),
            ("node-4.4.1-0", "node-4.4-1.0"),
            ("Base-1", "base-1"),
            ("a", "b"),
        ] {
            assert!(!lv(a).shares_entry_with(&lv(b)), "{a} {b}");
        }
        let next = |taken: &[&str]| next_layer(&lv("node-4.4"), taken.iter().copied());
        assert_eq!(
            next(&["node-4.4.1", "node-4.4.3"]).unwrap(),
            lv("node-4.4+2")
        );
        assert_eq!(
            next(&["node-4.4+2", "node-4.4.3"]).unwrap(),
            lv("node-4.4+4")
        );
    }

    #[test]
    fn next_names() {
        assert_eq!(next_base([]).unwrap(), lv("Base-0"));
        assert_eq!(
            next_base([
                "Base-0", "Base-10", "Base-9", "Base-007", "Base-x", "Config"
            ])
            .unwrap(),
            lv("Base-11")
        );
        let base = lv("Base-1");
        assert_eq!(next_layer(&base, []).unwrap(), lv("Base-1.1"));
        assert_eq!(
            next_layer(
                &base,
                [
                    "Base-1.9",
                    "Base-1.10",
                    "Base-10.50",
                    "Base-1.x",
                    "Base-1+60"
                ]
            )
            .unwrap(),
            lv("Base-1.11")
        );
        let nvr = lv("node-4.5-1");
        assert_eq!(nvr.name_and_version(), Some(("node", "4.5-1")));
        assert_eq!(lv("my-node").name_and_version(), None);
        assert_eq!(
            next_layer(&nvr, ["node-4.5-1+1", "node-4.5-1.7"]).unwrap(),
            lv("node-4.5-1+2")
        );
    }

    #[test]
    fn a_layer_knows_its_number() {
        assert_eq!(lv("Base-1.2").layer_number(&lv("Base-1")), Some(2));
        assert_eq!(lv("Base-1.02").layer_number(&lv("Base-1")), None);
        assert_eq!(lv("Base-12").layer_number(&lv("Base-1")), None);
        assert_eq!(lv("x-1+3").layer_number(&lv("x-1")), Some(3));
        assert_eq!(lv("x-1.3").layer_number(&lv("x-1")), None);
    }
}
