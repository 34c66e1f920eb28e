//! The list of a directory on a server: SHA256SUMS, as sha256sum(1) writes it. It can come from anywhere.

use anyhow::{Context, Result, bail, ensure};

use super::pattern::Pattern;
use super::version::compare;

/// The longest list that is read, in bytes.
pub const LIST_MOST: u64 = 1 << 20;
/// A file of this name and a date says until when a list is to be taken for a new one (sysupdate.d(5)).
const BEST_BEFORE: &str = "BEST-BEFORE-";
const SECONDS_OF_DAY: u64 = 86_400;

/// Names with their digests.
#[derive(Debug, PartialEq, Eq)]
pub struct Sums {
    entries: Vec<Entry>,
}

/// A file of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    /// The SHA-256, in small hexadecimal digits.
    pub digest: String,
}

impl Sums {
    /// Reads a list. One odd line has all of it refused: nobody can tell what else is odd.
    pub fn parse(list: &[u8]) -> Result<Self> {
        let list = std::str::from_utf8(list).ok().context("it is no text")?;
        let mut entries: Vec<Entry> = Vec::new();
        for (at, line) in list.split_terminator('\n').enumerate() {
            let entry = entry(line).with_context(|| format!("line {}", at + 1))?;
            entries.push(entry);
        }
        ensure!(!entries.is_empty(), "it names no file");
        let mut names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        names.sort_unstable();
        let mut pairs = names.iter().zip(names.iter().skip(1));
        if let Some((twice, _)) = pairs.find(|(a, b)| a == b) {
            bail!("{twice} is there twice");
        }
        Ok(Self { entries })
    }

    /// Refuses a list that nobody has renewed in time. `now` is in seconds since 1970.
    pub fn check_fresh(&self, now: u64) -> Result<()> {
        for entry in &self.entries {
            let Some(date) = entry.name.strip_prefix(BEST_BEFORE) else {
                continue;
            };
            let day = day(date).with_context(|| format!("{BEST_BEFORE}{date} names no day"))?;
            ensure!(
                now / SECONDS_OF_DAY < day,
                "it was best before {date}: the server shows an old one, or nobody has renewed it"
            );
        }
        Ok(())
    }

    /// Leaves those files only whose digests are wanted.
    pub fn retain(&mut self, is_wanted: &dyn Fn(&str) -> bool) {
        self.entries.retain(|entry| is_wanted(&entry.digest));
    }

    pub fn digest_of(&self, name: &str) -> Option<&str> {
        let found = self.entries.iter().find(|entry| entry.name == name);
        found.map(|entry| entry.digest.as_str())
    }

    /// The file with the highest version that fits one of the patterns, and that version. An image in layers is a
    /// directory: the file is its index then, and the pattern is for the directory.
    pub fn newest(
        &self,
        patterns: &[Pattern],
        least: Option<&str>,
    ) -> Result<Option<(&Entry, &str)>> {
        let mut newest: Option<(&Entry, &str)> = None;
        for entry in &self.entries {
            let name = entry.name.strip_suffix("/index.json");
            let is_file = name.is_none();
            let name = name.unwrap_or(&entry.name);
            let Some(named) = patterns.iter().find_map(|pattern| pattern.read(name)) else {
                continue;
            };
            ensure!(
                named
                    .digest
                    .is_none_or(|digest| is_file && digest.eq_ignore_ascii_case(&entry.digest)),
                "the name of {} has another digest than the list",
                entry.name
            );
            if least.is_some_and(|least| compare(named.version, least).is_lt()) {
                continue;
            }
            if newest.is_none_or(|(_, version)| compare(named.version, version).is_gt()) {
                newest = Some((entry, named.version));
            }
        }
        Ok(newest)
    }
}

/// Reads a line: the digest, a space, another one or an asterisk, the name.
fn entry(line: &str) -> Result<Entry> {
    ensure!(!line.starts_with('\\'), "it has a name with escapes");
    let (digest, rest) = line.split_at_checked(64).context("it is too short")?;
    let is_digit =
        |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit.to_ascii_lowercase());
    ensure!(
        digest.bytes().all(is_digit),
        "it does not begin with a SHA-256"
    );
    let name = rest.strip_prefix("  ").or_else(|| rest.strip_prefix(" *"));
    let name = name.context("two spaces, or a space and an asterisk, have to follow the digest")?;
    ensure!(is_name(name), "it has the odd name {name:?}");
    Ok(Entry {
        name: name.to_owned(),
        digest: digest.to_ascii_lowercase(),
    })
}

/// Whether a name leads to a file below the directory of the list.
fn is_name(name: &str) -> bool {
    const MOST: usize = 255;
    let is_part = |part: &str| !["", ".", ".."].contains(&part);
    name.len() <= MOST && name.chars().all(|c| !c.is_control()) && name.split('/').all(is_part)
}

/// The number of a day since 1970, of `2026-11-28`.
fn day(date: &str) -> Option<u64> {
    let is_plain = date.len() == 10
        && date
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'-');
    let mut numbers = date.split('-').map(|number| number.parse::<u64>().ok());
    let (year, month, day) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let length = |month| match month {
        2 => 28 + u64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let is_day = is_plain
        && numbers.next().is_none()
        && year >= 1970
        && (1..=12).contains(&month)
        && (1..=length(month)).contains(&day);
    let years = (1970..year).map(|year| 365 + u64::from(is_leap(year)));
    is_day.then(|| years.sum::<u64>() + (1..month).map(length).sum::<u64>() + day - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn line(name: &str) -> String {
        format!("{DIGEST}  {name}\n")
    }

    #[test]
    fn a_list_is_read_as_sha256sum_writes_it() {
        let upper = DIGEST.to_ascii_uppercase();
        let list = format!("{DIGEST}  a\n{upper} *b c\n{DIGEST}  below/d");
        let sums = Sums::parse(list.as_bytes()).unwrap();
        for (name, found) in [("a", true), ("b c", true), ("below/d", true), ("d", false)] {
            assert_eq!(sums.digest_of(name), found.then_some(DIGEST), "{name}");
        }
    }

    #[test]
    fn one_odd_line_has_the_list_refused() {
        let short = &DIGEST[1..];
        for (list, why) in [
            (String::new(), "names no file"),
            ("\n".to_owned(), "line 1: it is too short"),
            (format!("{}\n", line("a")), "line 2"),
            (format!("# a comment\n{}", line("a")), "line 1"),
            (format!("{short}  a\n"), "SHA-256"),
            (format!("{short}g  a\n"), "SHA-256"),
            (format!("{DIGEST} a\n"), "two spaces"),
            (format!("{DIGEST}\ta\n"), "two spaces"),
            (format!("{DIGEST}\n"), "two spaces"),
            (format!("\\{DIGEST}  a\\nb\n"), "escapes"),
            (line(""), "odd name"),
            (line("/etc/passwd"), "odd name"),
            (line("../a"), "odd name"),
            (line("a/../b"), "odd name"),
            (line("./a"), "odd name"),
            (line("a//b"), "odd name"),
            (line("a/"), "odd name"),
            (line("a\r"), "odd name"),
            (line("a\0b"), "odd name"),
            (line("a\u{85}b"), "odd name"),
            (line("\x1b[2J"), "odd name"),
            (line(&"a".repeat(256)), "odd name"),
            (
                format!("{}{}{}", line("a"), line("b"), line("a")),
                "a is there twice",
            ),
            (format!("\u{feff}{}", line("a")), "line 1"),
        ] {
            let error = format!("{:#}", Sums::parse(list.as_bytes()).unwrap_err());
            assert!(error.contains(why), "{list:?}: {error}");
        }
        let error = Sums::parse(b"\xff").unwrap_err().to_string();
        assert_eq!(error, "it is no text");
    }

    #[test]
    fn a_list_is_fresh_until_the_day_that_it_names() {
        let sums = |names: &[&str]| {
            let list: String = names.iter().map(|name| line(name)).collect();
            Sums::parse(list.as_bytes()).unwrap()
        };
        // 2026-11-28, 12:00.
        let now = 1_795_867_200;
        for (names, is_fresh) in [
            (&["a"][..], true),
            (&["BEST-BEFORE-2026-11-29"], true),
            (&["BEST-BEFORE-2026-11-28"], false),
            (&["BEST-BEFORE-2026-11-29", "BEST-BEFORE-2020-01-01"], false),
            (&["BEST-BEFORE-9999-12-31"], true),
            (&["BEST-BEFORE-2027-02-29"], false),
            (&["BEST-BEFORE-2028-02-29"], true),
            (&["BEST-BEFORE-2027-13-01"], false),
            (&["BEST-BEFORE-soon"], false),
            (&["BEST-BEFORE-+027-01-01"], false),
            (&["below/BEST-BEFORE-2020-01-01"], true),
        ] {
            assert_eq!(sums(names).check_fresh(now).is_ok(), is_fresh, "{names:?}");
        }
    }

    #[test]
    fn the_newest_is_told_by_its_version() {
        let patterns =
            ["x-@v.raw", "x-@v.raw.zst"].map(|text| Pattern::parse(text, &|_| None).unwrap());
        for (names, least, expected) in [
            (
                &["x-9.raw", "x-10.raw", "x-1.raw.zst"][..],
                None,
                Some("x-10.raw"),
            ),
            (&["x-1.raw", "x-1.raw.zst"], None, Some("x-1.raw")),
            (&["x-2~rc1.raw", "x-2.raw"], None, Some("x-2.raw")),
            (&["y-2.raw", "x-2.raw.sig", "below/x-3.raw"], None, None),
            (&["x-2.raw"], Some("3"), None),
            (
                &["x-2.raw/index.json", "x-1.raw", "x-3.raw/oci-layout"],
                None,
                Some("x-2.raw/index.json"),
            ),
            (&["below/x-2.raw/index.json", "index.json"], None, None),
            (&["x-2.raw", "x-3.raw"], Some("3"), Some("x-3.raw")),
        ] {
            let list: String = names.iter().map(|name| line(name)).collect();
            let sums = Sums::parse(list.as_bytes()).unwrap();
            let newest = sums.newest(&patterns, least).unwrap();
            let newest = newest.map(|(entry, _)| entry.name.as_str());
            assert_eq!(newest, expected, "{names:?}");
        }
        let digest = Pattern::parse("x-@v-@h.raw", &|_| None).unwrap();
        let list = line(&format!("x-1-{}.raw", "0".repeat(64)));
        let sums = Sums::parse(list.as_bytes()).unwrap();
        assert!(sums.newest(&[digest], None).is_err());
    }
}
