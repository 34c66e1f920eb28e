//! The table of one layer, from its text.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::{Chunk, Content, Entry, Place, What};
use crate::tree::name::escaped;
use crate::tree::node::{self, Kind, Time, Xattrs};
use crate::tree::tar::is_of_overlay;
use crate::tree::write::Meta;

/// What is read of a table.
#[derive(Clone, Copy)]
pub struct Limits {
    /// Which layer it is of.
    pub layer: usize,
    /// Where in the layer its chunks end, in bytes.
    pub end: u64,
}

impl Limits {
    /// The longest text, in bytes. A system of 300 MiB has one of 6 MiB.
    pub const TEXT_MOST: u64 = 96 << 20;
    /// The most lines: those of paths, and those of further chunks.
    pub const LINES_MOST: usize = 500_000;
    /// What all files hold at most, in bytes. They are read through to see that they are right, also what is zeros.
    pub const CONTENT_MOST: u64 = 256 << 30;
}

/// How long a path and a name may be, in bytes (limits.h).
const PATH_MOST: usize = 4095;
const NAME_MOST: usize = 255;
/// How long the value of an attribute may be, in bytes (`XATTR_SIZE_MAX`).
const VALUE_MOST: usize = 65536;

#[derive(Deserialize)]
struct Text {
    version: u32,
    entries: Vec<Line>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct Line {
    #[serde(rename = "type")]
    kind: String,
    name: String,
    link_name: String,
    mode: u64,
    size: u64,
    uid: u32,
    gid: u32,
    modtime: Option<String>,
    dev_major: u32,
    dev_minor: u32,
    xattrs: BTreeMap<String, String>,
    digest: String,
    offset: u64,
    end_offset: u64,
    chunk_size: u64,
    chunk_offset: u64,
    chunk_digest: String,
    chunk_type: String,
}

/// Reads a table: the paths in its order.
///
/// Refuses all that no sound layer has: names that lead out or are there twice, chunks that are not in the layer,
/// overlap, leave gaps in their file or have no digest, and more lines than any system has.
pub fn parse(text: &[u8], limits: Limits) -> Result<Vec<Entry>> {
    // Each line is an object. So it is known how many there are before they take memory.
    let lines = text.split(|byte| *byte == b'{').count();
    ensure!(
        text.len() as u64 <= Limits::TEXT_MOST && lines <= Limits::LINES_MOST,
        "it has more than {} lines",
        Limits::LINES_MOST
    );
    let text: Text = serde_json::from_slice(text).context("it is not as such a table is")?;
    ensure!(
        text.version == 1,
        "it has the version {}, and 1 is known",
        text.version
    );
    let mut entries = Vec::new();
    let mut seen = BTreeSet::new();
    let mut places = Vec::new();
    let mut lines = text.entries.into_iter().peekable();
    while let Some(line) = lines.next() {
        let mut more = Vec::new();
        while let Some(chunk) = lines.next_if(|next| next.kind == "chunk") {
            more.push(chunk);
        }
        let shown = escaped(&line.name);
        let entry =
            entry(line, &more, limits, &mut places).with_context(|| format!("of {shown}"))?;
        ensure!(seen.insert(entry.path.clone()), "{shown} is there twice");
        entries.push(entry);
    }
    places.sort_unstable();
    let overlaps = places.windows(2).any(|two| two[0].end > two[1].from);
    ensure!(!overlaps, "two chunks overlap");
    let sizes = entries.iter().filter_map(Entry::content);
    let sizes = sizes.fold(0, |sum: u64, content| sum.saturating_add(content.size));
    ensure!(
        sizes <= Limits::CONTENT_MOST,
        "its files hold more than {} GiB",
        Limits::CONTENT_MOST >> 30
    );
    Ok(entries)
}

/// A path, from its line and those of its further chunks. Where the chunks are is added to `places`.
fn entry(line: Line, more: &[Line], limits: Limits, places: &mut Vec<Place>) -> Result<Entry> {
    let path = path(&line.name)?;
    let what = match line.kind.as_str() {
        "reg" => What::File(content(&line, more, limits, places)?),
        other if !more.is_empty() => bail!("a {} has chunks", escaped(other)),
        "dir" => What::Dir,
        "symlink" => {
            check_text(&line.link_name)?;
            ensure!(
                (1..=PATH_MOST).contains(&line.link_name.len()),
                "the link leads nowhere"
            );
            What::Link(line.link_name.into())
        }
        "hardlink" => What::HardLink(self::path(&line.link_name)?),
        "fifo" => What::Special(Kind::Fifo, 0),
        "char" => What::Special(Kind::Char, device(&line)?),
        "block" => What::Special(Kind::Block, device(&line)?),
        other => bail!("the type {:?} is not known", escaped(other)),
    };
    let time = line.modtime.as_deref();
    let entry = Entry {
        path,
        what,
        meta: Meta {
            uid: line.uid,
            gid: line.gid,
            // Old archives have the type of the file there as well.
            mode: u32::try_from(line.mode & 0o7777)?,
            xattrs: xattrs(&line.xattrs)?,
        },
        mtime: time
            .map_or(Some((0, 0)), read_time)
            .context("its time is odd")?,
    };
    entry.check()?;
    Ok(entry)
}

fn content(line: &Line, more: &[Line], limits: Limits, places: &mut Vec<Place>) -> Result<Content> {
    if line.size == 0 {
        ensure!(more.is_empty(), "it is empty and has chunks");
        return Ok(Content {
            size: 0,
            sha256: EMPTY.to_owned(),
            chunks: Vec::new(),
        });
    }
    let sha256 = digest(&line.digest)?;
    let mut chunks = Vec::new();
    let mut at = 0_u64;
    let lines: Vec<&Line> = std::iter::once(line).chain(more).collect();
    for (number, part) in lines.iter().enumerate() {
        ensure!(
            part.name == line.name,
            "a chunk of {} follows",
            escaped(&part.name)
        );
        let is_only = lines.len() == 1;
        let place = Place {
            layer: limits.layer,
            from: part.offset,
            end: lines
                .get(number + 1)
                .map_or(line.end_offset, |next| next.offset),
        };
        ensure!(
            place.from < place.end && place.end <= limits.end,
            "a chunk is not in the layer"
        );
        places.push(place);
        let size = match part.chunk_size {
            // One that is the whole file need not tell it.
            0 if is_only => line.size,
            size => size,
        };
        ensure!(part.chunk_offset == at && size > 0, "its chunks have gaps");
        at = at.checked_add(size).context("its chunks are too long")?;
        let is_zeros = match part.chunk_type.as_str() {
            "" => false,
            "zeros" => true,
            other => bail!("the kind {:?} of a chunk is not known", escaped(other)),
        };
        chunks.push(Chunk {
            size,
            sha256: match part.chunk_digest.as_str() {
                "" if is_only || is_zeros => sha256.clone(),
                digest => self::digest(digest)?,
            },
            place: (!is_zeros).then_some(place),
        });
    }
    ensure!(at == line.size, "its chunks are not as long as it is");
    Ok(Content {
        size: line.size,
        sha256,
        chunks,
    })
}

/// The SHA-256 of nothing.
pub(super) const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn digest(text: &str) -> Result<String> {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    ensure!(
        digits.len() == 64 && digits.bytes().all(is_digit),
        "a digest is missing, or is no SHA-256"
    );
    Ok(digits.to_owned())
}

/// A path below the root, as tar(1) takes it: a slash or `./` at the begin means nothing.
fn path(name: &str) -> Result<PathBuf> {
    check_text(name)?;
    let mut path = PathBuf::new();
    for part in name.split('/').filter(|part| !["", "."].contains(part)) {
        ensure!(part != "..", "the name leads out of the tree");
        ensure!(part.len() <= NAME_MOST, "the name is too long");
        path.push(part);
    }
    ensure!(!name.is_empty(), "a name is missing");
    ensure!(path.as_os_str().len() <= PATH_MOST, "the name is too long");
    Ok(path)
}

/// Refuses what is no name. Whoever writes such a table has this character for bytes that are no UTF-8.
fn check_text(name: &str) -> Result<()> {
    ensure!(
        !name.contains(['\0', char::REPLACEMENT_CHARACTER]),
        "a name has bytes that such a table cannot have"
    );
    Ok(())
}

fn device(line: &Line) -> Result<u64> {
    node::device(line.dev_major, line.dev_minor).context("it is a device that Linux cannot have")
}

fn xattrs(found: &BTreeMap<String, String>) -> Result<Xattrs> {
    let mut xattrs = Xattrs::new();
    for (name, value) in found {
        ensure!(
            name.contains('.') && name.len() <= NAME_MOST && !name.contains('\0'),
            "an attribute has an odd name"
        );
        let value = from_base64(value).context("the value of an attribute is odd")?;
        ensure!(
            value.len() <= VALUE_MOST,
            "the value of an attribute is longer than any file can have"
        );
        if !is_of_overlay(name) {
            xattrs.insert(OsString::from(name), value);
        }
    }
    Ok(xattrs)
}

/// RFC 4648
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut digits) = (Vec::new(), 0_u32, 0_u32);
    for digit in text.trim_end_matches('=').bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        digits += 1;
        if digits % 4 != 1 {
            let rest = 6 - 2 * ((digits - 1) % 4);
            bytes.push(u8::try_from(bits >> rest & 0xff).ok()?);
        }
    }
    Some(bytes)
}

/// A time as RFC 3339 has it.
fn read_time(text: &str) -> Option<Time> {
    let (date, rest) = text.split_once('T')?;
    let date = numbers(date, '-')?;
    let at = rest.find(['Z', '+', '-'])?;
    let (clock, zone) = rest.split_at(at);
    let (clock, fraction) = clock.split_once('.').unwrap_or((clock, "0"));
    let [hour, minute, second] = numbers(clock, ':')?;
    let offset = match zone.split_at(1) {
        ("Z", "") => 0,
        (sign, zone) => {
            let [hours, minutes, _] = numbers(&format!("{zone}:0"), ':')?;
            let offset = hours * 3600 + minutes * 60;
            if sign == "+" { offset } else { -offset }
        }
    };
    let is_plain = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    let nanoseconds = is_plain.then(|| format!("{fraction:0<9}").parse().ok())??;
    let in_range =
        (0..24).contains(&hour) && (0..60).contains(&minute) && (0..=60).contains(&second);
    let seconds = days(date)? * 86400 + hour * 3600 + minute * 60 + second - offset;
    in_range.then_some((seconds, nanoseconds))
}

/// Three numbers between separators, none of them negative.
fn numbers(text: &str, separator: char) -> Option<[i64; 3]> {
    let mut numbers = text.split(separator).map(|number| {
        let is_plain =
            (1..=4).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
        is_plain.then(|| number.parse::<i64>().ok())?
    });
    let found = [numbers.next()??, numbers.next()??, numbers.next()??];
    numbers.next().is_none().then_some(found)
}

/// The number of a day since 1970 in the calendar of Gregory, also before. Years begin with March, so that the day that
/// comes in between is the last one.
fn days([year, month, day]: [i64; 3]) -> Option<i64> {
    ((1..=12).contains(&month) && (1..=31).contains(&day)).then(|| {
        let (year, month) = if month > 2 {
            (year, month - 3)
        } else {
            (year - 1, month + 9)
        };
        let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
        year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
    })
}

/// What a layer has where something of a lower layer is gone, and what that is. Refuses an odd one.
pub(super) fn whiteout(entry: &Entry) -> Result<Option<Whiteout>> {
    let path = &entry.path;
    let begins = |name: &OsStr| name.as_encoded_bytes().starts_with(b".wh.");
    let above = path.parent().unwrap_or(Path::new(""));
    ensure!(
        !above.iter().any(begins),
        "a path is below a name that says that something is gone"
    );
    let Some(name) = path.file_name().filter(|name| begins(name)) else {
        return Ok(None);
    };
    let name = name.to_str().and_then(|name| name.strip_prefix(".wh."));
    let is_empty = entry.content().is_some_and(|content| content.size == 0);
    ensure!(
        is_empty,
        "what says that something is gone is no empty file"
    );
    Ok(Some(match name {
        Some(".wh..opq") => Whiteout::Below(above.to_owned()),
        None | Some("" | "." | "..") => bail!("something is gone that is no name"),
        Some(name) if name.starts_with(".wh.") => bail!("the whiteout {name} is not known"),
        Some(name) => Whiteout::Of(above.join(name)),
    }))
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Whiteout {
    Of(PathBuf),
    /// Of all that a directory has.
    Below(PathBuf),
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const LIMITS: Limits = Limits {
        layer: 1,
        end: 1000,
    };

    fn table(entries: &str) -> String {
        let entries = entries.replace("AAAA", &format!("sha256:{A}"));
        let entries = entries.replace("BBBB", &format!("sha256:{B}"));
        format!(r#"{{"version":1,"entries":[{entries}]}}"#)
    }

    fn read(entries: &str) -> Result<Vec<Entry>> {
        parse(table(entries).as_bytes(), LIMITS)
    }

    #[test]
    fn each_kind_of_path_is_read() {
        let entries = read(
            r#"{"type":"dir","name":"./","mode":493,"modtime":"1970-01-02T00:00:00.5Z"},
            {"type":"reg","name":"./f","mode":2541,"uid":1,"gid":2,"size":9,"xattrs":{"user.a":"AGL/"},
             "digest":"AAAA","offset":10,"endOffset":20,"accesstime":"x"},
            {"type":"reg","name":"/g","size":9,"digest":"AAAA","offset":20,"endOffset":60,"chunkSize":4,"chunkDigest":"BBBB"},
            {"type":"chunk","name":"/g","offset":30,"chunkSize":3,"chunkOffset":4,"chunkDigest":"BBBB","chunkType":"zeros"},
            {"type":"chunk","name":"/g","offset":40,"chunkSize":2,"chunkOffset":7,"chunkDigest":"AAAA"},
            {"type":"reg","name":"empty"},
            {"type":"symlink","name":"l","linkName":"../../x"},
            {"type":"hardlink","name":"h","linkName":"./f"},
            {"type":"char","name":"null","devMajor":1,"devMinor":3},
            {"type":"fifo","name":"p"}"#,
        )
        .unwrap();
        let paths: Vec<&str> = entries
            .iter()
            .map(|entry| entry.path.to_str().unwrap())
            .collect();
        assert_eq!(paths, ["", "f", "g", "empty", "l", "h", "null", "p"]);
        assert_eq!(entries[0].mtime, (86400, 500_000_000));
        let place = |from, end| {
            Some(Place {
                layer: 1,
                from,
                end,
            })
        };
        let chunk = |size, sha256: &str, place| Chunk {
            size,
            sha256: sha256.to_owned(),
            place,
        };
        assert_eq!(
            entries[1].content().unwrap().chunks,
            [chunk(9, A, place(10, 20))]
        );
        assert_eq!(
            entries[1].meta.xattrs,
            [("user.a".into(), b"\0b\xff".to_vec())].into()
        );
        assert_eq!((entries[1].meta.mode, entries[1].meta.uid), (0o4755, 1));
        assert_eq!(
            entries[2].content().unwrap().chunks,
            [
                chunk(4, B, place(20, 30)),
                chunk(3, B, None),
                chunk(2, A, place(40, 60))
            ]
        );
        assert_eq!(entries[3].content().unwrap().sha256, EMPTY);
        assert_eq!(entries[4].what, What::Link("../../x".into()));
        assert_eq!(entries[5].what, What::HardLink("f".into()));
        assert_eq!(entries[6].what, What::Special(Kind::Char, 0x103));
        assert_eq!(entries[7].what, What::Special(Kind::Fifo, 0));
    }

    fn is_refused(entries: &str, why: &str) {
        let error = format!("{:#}", read(entries).unwrap_err());
        assert!(error.contains(why), "{entries:.300}: {error}");
        assert!(!error.contains(char::is_control), "{error:?}");
    }

    #[test]
    fn chunks_that_lie_are_refused() {
        let file = |rest: &str| format!(r#"{{"type":"reg","name":"f","size":9,{rest}}}"#);
        let two = |first: &str, second: &str| {
            format!(
                r#"{{"type":"reg","name":"f","size":9,"digest":"AAAA","offset":10,"endOffset":60,"chunkDigest":"BBBB",{first}}},
                {{"type":"chunk","name":"f",{second}}}"#
            )
        };
        let good = r#""offset":30,"chunkSize":5,"chunkOffset":4,"chunkDigest":"BBBB""#;
        assert!(read(&two(r#""chunkSize":4"#, good)).is_ok());
        for (entries, why) in [
            (
                file(r#""digest":"AAAA","offset":990,"endOffset":1001"#),
                "not in the layer",
            ),
            (
                file(r#""digest":"AAAA","offset":1000,"endOffset":1000"#),
                "not in the layer",
            ),
            (
                file(r#""digest":"AAAA","offset":20,"endOffset":10"#),
                "not in the layer",
            ),
            (file(r#""digest":"AAAA""#), "not in the layer"),
            (
                file(r#""digest":"AAAA","offset":10,"endOffset":20,"chunkType":"zeros""#)
                    .replace(":9,", ":274877906945,"),
                "more than 256 GiB",
            ),
            (
                file(
                    r#""digest":"AAAA","offset":18446744073709551615,"endOffset":18446744073709551616"#,
                ),
                "not as such a table is",
            ),
            (
                file(r#""digest":"AAAA","offset":-1,"endOffset":10"#),
                "not as such a table is",
            ),
            (file(r#""offset":10,"endOffset":20"#), "a digest is missing"),
            (
                file(r#""digest":"sha256:00","offset":10,"endOffset":20"#),
                "a digest is missing",
            ),
            (
                file(r#""digest":"md5:00","offset":10,"endOffset":20"#),
                "a digest is missing",
            ),
            (
                format!(
                    r#"{},{{"type":"reg","name":"g","size":9,"digest":"AAAA","offset":19,"endOffset":25}}"#,
                    file(r#""digest":"AAAA","offset":10,"endOffset":20"#)
                ),
                "overlap",
            ),
            (
                two(r#""chunkSize":4"#, &good.replace("30", "5")),
                "not in the layer",
            ),
            (
                two(r#""chunkSize":4"#, &good.replace("30", "60")),
                "not in the layer",
            ),
            (two(r#""chunkSize":5"#, good), "gaps"),
            (two(r#""chunkSize":0"#, good), "gaps"),
            (
                two(r#""chunkSize":4"#, &good.replace(":5", ":6")),
                "not as long",
            ),
            (
                two(
                    r#""chunkSize":4"#,
                    &good.replace(":5", ":18446744073709551615"),
                ),
                "too long",
            ),
            (
                two(r#""chunkSize":4"#, &good.replace("BBBB", "")),
                "a digest is missing",
            ),
            (
                two(r#""chunkSize":4"#, &format!(r#"{good},"chunkType":"xor""#)),
                "is not known",
            ),
            (
                two(r#""chunkSize":4"#, good)
                    .replace(r#"chunk","name":"f""#, r#"chunk","name":"g""#),
                "a chunk of g follows",
            ),
        ] {
            is_refused(&entries, why);
        }
    }

    #[test]
    fn paths_that_lie_are_refused() {
        let named = |name: &str| format!(r#"{{"type":"dir","name":"{name}"}}"#);
        for (entries, why) in [
            (r#"{"type":"chunk","name":"f"}"#.to_owned(), "is not known"),
            (
                r#"{"type":"dir","name":"d"},{"type":"chunk","name":"d"}"#.to_owned(),
                "has chunks",
            ),
            (
                r#"{"type":"d\u001b","name":"d"},{"type":"chunk","name":"d"}"#.to_owned(),
                "has chunks",
            ),
            (
                r#"{"type":"d\u001b","name":"d\u001b"}"#.to_owned(),
                "is not known",
            ),
            (
                r#"{"type":"reg","name":"f"},{"type":"chunk","name":"f"}"#.to_owned(),
                "is empty",
            ),
            (named("../x"), "leads out"),
            (named("a/../../x"), "leads out"),
            (named("/.."), "leads out"),
            (named(""), "missing"),
            (named("a\\u0000b"), "cannot have"),
            (named("lat\u{fffd}n"), "cannot have"),
            (named(&"a".repeat(256)), "too long"),
            (named(&"a/".repeat(2100)), "too long"),
            (format!("{},{}", named("a/b"), named("./a//b/")), "twice"),
            (r#"{"type":"reg","name":"/"}"#.to_owned(), "the root"),
            (
                r#"{"type":"hardlink","name":"h","linkName":"../f"}"#.to_owned(),
                "leads out",
            ),
            (r#"{"type":"symlink","name":"l"}"#.to_owned(), "nowhere"),
            (r#"{"type":"char","name":"d"}"#.to_owned(), "0:0"),
            (
                r#"{"type":"char","name":"d","devMajor":4096}"#.to_owned(),
                "that Linux cannot have",
            ),
            (
                r#"{"type":"char","name":"d","devMinor":1048576}"#.to_owned(),
                "that Linux cannot have",
            ),
            (r#"{"type":"door","name":"d"}"#.to_owned(), "is not known"),
            (
                r#"{"type":"dir","name":"d","modtime":"yesterday"}"#.to_owned(),
                "time",
            ),
            (
                format!(
                    r#"{{"type":"dir","name":"d","xattrs":{{"user.a":"{}"}}}}"#,
                    "C".repeat(VALUE_MOST * 4 / 3 + 3)
                ),
                "longer than any file can have",
            ),
            (
                r#"{"type":"dir","name":"d","xattrs":{"user.a":"?"}}"#.to_owned(),
                "attribute",
            ),
            (
                r#"{"type":"dir","name":"d","xattrs":{"a":""}}"#.to_owned(),
                "attribute",
            ),
            (
                r#"{"type":"dir","name":"d","uid":4294967296}"#.to_owned(),
                "not as such a table is",
            ),
            (
                format!(
                    "{}{}",
                    named("d"),
                    r#",{"type":"dir","name":"e"}"#.repeat(1_000_000)
                ),
                "more than",
            ),
        ] {
            is_refused(&entries, why);
        }
        for text in [
            &b""[..],
            b"{}",
            b"[]",
            br#"{"version":2,"entries":[]}"#,
            br#"{"version":1}"#,
            b"\xff",
        ] {
            assert!(parse(text, LIMITS).is_err());
        }
    }

    #[test]
    fn times_are_read_with_their_zone() {
        for (text, wanted) in [
            ("1970-01-01T00:00:00Z", Some((0, 0))),
            (
                "2026-11-28T22:09:03.570521482Z",
                Some((1_795_903_743, 570_521_482)),
            ),
            (
                "2000-02-29T12:00:00.25+01:00",
                Some((951_822_000, 250_000_000)),
            ),
            ("1999-12-31T23:59:59-00:30", Some((946_686_599, 0))),
            ("1969-12-31T23:59:59Z", Some((-1, 0))),
            ("0001-01-01T00:00:00Z", Some((-62_135_596_800, 0))),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-28T24:00:00Z", None),
            ("2026-11-28 22:09:03Z", None),
            ("2026-11-28T22:09:03", None),
            ("2026-11-28T22:09:03.Z0", None),
            ("2026-11-28T22:09:03.0000000001Z", None),
            ("2026-11-28T22:09:03+\u{e4}", None),
            ("TZ", None),
        ] {
            assert_eq!(read_time(text), wanted, "{text}");
        }
    }

    #[test]
    fn whiteouts_are_told_by_their_names() {
        let of = |kind: &str, path: &str| {
            let entries = read(&format!(r#"{{"type":"{kind}","name":"{path}"}}"#));
            whiteout(&entries.unwrap()[0])
        };
        for (path, wanted) in [
            ("etc/.wh.x", Some(Whiteout::Of("etc/x".into()))),
            (".wh.x", Some(Whiteout::Of("x".into()))),
            ("etc/.wh..wh..opq", Some(Whiteout::Below("etc".into()))),
            ("etc/x.wh.", None),
            ("etc/wh.x", None),
        ] {
            assert_eq!(of("reg", path).unwrap(), wanted, "{path}");
        }
        for (kind, path) in [
            ("dir", ".wh.x"),
            ("reg", "a/.wh."),
            ("reg", ".wh..."),
            ("reg", ".wh..wh.plnk"),
            ("reg", ".wh.x/y"),
        ] {
            assert!(of(kind, path).is_err(), "{path}");
        }
    }
}
