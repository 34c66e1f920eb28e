//! Parts of a file on a server: which are asked for at once, and how they come (RFC 9110, 14 and 15.3.7).

use std::io::{self, BufRead, Read};

use anyhow::{Context, Result, bail, ensure};

/// A part of a file, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    pub from: u64,
    /// The first byte that is not of it.
    pub end: u64,
}

/// What lies between two parts, and is cheaper fetched than left out, in bytes: the header of a part is longer.
const GAP: u64 = 128;
/// So many parts are asked for at once: a server takes 8 KiB of headers, and Apache 200 parts.
const PARTS_MOST: usize = 100;
/// The longest line before a part, in bytes, and the most of them.
const LINE_MOST: u64 = 1024;
const LINES_MOST: usize = 16;

/// The parts that have all these pieces, which are in their order, for one request each. Refuses pieces that overlap,
/// or that are empty or not in a file of `length` bytes.
pub fn requests(pieces: &[Range], length: u64) -> Result<Vec<Vec<Range>>> {
    let mut parts: Vec<Range> = Vec::new();
    for piece in pieces {
        let end = parts.last().map_or(0, |last| last.end);
        ensure!(
            end <= piece.from && piece.from < piece.end && piece.end <= length,
            "the parts of a file are not in their order"
        );
        match parts.last_mut() {
            Some(last) if piece.from - last.end <= GAP => last.end = piece.end,
            _ => parts.push(*piece),
        }
    }
    Ok(parts.chunks(PARTS_MOST).map(<[Range]>::to_vec).collect())
}

/// What is left of pieces of which so many bytes have come, in their order.
pub fn after(pieces: &[Range], come: u64) -> Vec<Range> {
    let mut come = come;
    let left = pieces.iter().map(|piece| {
        let from = piece.from.saturating_add(come).min(piece.end);
        come -= from - piece.from;
        Range { from, ..*piece }
    });
    left.filter(|piece| piece.from < piece.end).collect()
}

/// As a request names them.
pub fn header(parts: &[Range]) -> String {
    let part = |part: &Range| format!("{}-{}", part.from, part.end - 1);
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

/// Of the bytes that come, in their order, those that are in a piece.
pub struct Pieces<'a> {
    left: &'a [Range],
}

impl<'a> Pieces<'a> {
    pub fn new(pieces: &'a [Range]) -> Self {
        Self { left: pieces }
    }

    /// Hands over what of `bytes`, which begin at `at` in the file, is in a piece.
    pub fn take(
        &mut self,
        at: u64,
        bytes: &[u8],
        put: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        while let Some((piece, rest)) = self.left.split_first() {
            let (from, to) = (piece.from.max(at), piece.end.min(end));
            if from < to {
                let index = |place: u64| usize::try_from(place - at).unwrap_or(usize::MAX);
                put(&bytes[index(from)..index(to)])?;
            }
            if piece.end > end {
                break;
            }
            self.left = rest;
        }
        Ok(())
    }
}

/// Where a part is that a header tells of, and the length of the whole file.
pub fn content_range(value: &str) -> Option<(Range, u64)> {
    let (part, whole) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (from, last) = part.split_once('-')?;
    let end = last.parse::<u64>().ok()?.checked_add(1)?;
    let from = from.parse().ok()?;
    Some((Range { from, end }, whole.parse().ok()?))
}

/// What the parts of a multipart answer are parted by, from its type. Nothing of another type.
pub fn boundary(content_type: &str) -> Option<String> {
    let mut fields = content_type.split(';');
    let kind = fields.next()?.trim();
    if !kind.eq_ignore_ascii_case("multipart/byteranges") {
        return None;
    }
    let boundary = fields.find_map(|field| {
        let (name, value) = field.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim()
            .eq_ignore_ascii_case("boundary")
            .then(|| value.to_owned())
    })?;
    let is_plain = (1..=70).contains(&boundary.len())
        && boundary.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    is_plain.then_some(boundary)
}

/// Reads a multipart answer that has exactly these parts of a file of `length` bytes, in this order. `put` gets the
/// bytes of each, and where in the file they are.
///
/// Refuses all else: whoever asks could not tell what it is.
pub fn read_parts(
    input: &mut dyn BufRead,
    boundary: &str,
    parts: &[Range],
    length: u64,
    put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<()> {
    let delimiter = format!("--{boundary}");
    for (number, part) in parts.iter().enumerate() {
        let mut line = read_line(input)?;
        // Each ends a part. Some servers send one before the first, too.
        if line.is_empty() {
            line = read_line(input)?;
        } else {
            ensure!(number == 0, "a part is longer than it was said to be");
        }
        ensure!(line == delimiter, "a part is missing");
        ensure!(
            part_range(input)? == Some((*part, length)),
            "another part has come than was asked for"
        );
        read_part(input, *part, put)?;
    }
    ensure!(
        read_line(input)?.is_empty() && read_line(input)? == format!("{delimiter}--"),
        "more has come than was asked for"
    );
    Ok(())
}

/// The bytes of one part.
pub fn read_part(
    input: &mut dyn BufRead,
    part: Range,
    put: &mut dyn FnMut(u64, &[u8]) -> io::Result<()>,
) -> Result<()> {
    let mut at = part.from;
    while at < part.end {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let left = usize::try_from(part.end - at).unwrap_or(usize::MAX);
        let count = bytes.len().min(left);
        put(at, &bytes[..count])?;
        input.consume(count);
        at += count as u64;
    }
    Ok(())
}

/// What the headers of a part say of it.
fn part_range(input: &mut dyn BufRead) -> Result<Option<(Range, u64)>> {
    let mut range = None;
    for _ in 0..LINES_MOST {
        let line = read_line(input)?;
        if line.is_empty() {
            return Ok(range);
        }
        let (name, value) = line.split_once(':').context("a part has an odd header")?;
        if name.eq_ignore_ascii_case("content-range") {
            ensure!(range.is_none(), "a part is said to be in two places");
            range = content_range(value.trim());
        }
    }
    bail!("a part has too many headers");
}

/// A line without its end.
fn read_line(input: &mut dyn BufRead) -> Result<String> {
    let mut line = Vec::new();
    input.take(LINE_MOST).read_until(b'\n', &mut line)?;
    if !line.ends_with(b"\n") && (line.len() as u64) < LINE_MOST {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let line = line.strip_suffix(b"\r\n").context("a part has no end")?;
    String::from_utf8(line.to_vec()).context("a part has an odd header")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(ends: &[(u64, u64)]) -> Vec<Range> {
        let range = |(from, end): &(u64, u64)| Range {
            from: *from,
            end: *end,
        };
        ends.iter().map(range).collect()
    }

    #[test]
    fn pieces_that_are_near_are_one_part() {
        for (pieces, wanted) in [
            (&[][..], &[][..]),
            (&[(0, 10)], &[(0, 10)]),
            (&[(0, 10), (10, 20)], &[(0, 20)]),
            (&[(0, 10), (138, 140)], &[(0, 140)]),
            (&[(0, 10), (139, 140)], &[(0, 10), (139, 140)]),
            (&[(5, 10), (900, 1000)], &[(5, 10), (900, 1000)]),
        ] {
            let found = requests(&ranges(pieces), 1000).unwrap();
            assert_eq!(found.concat(), ranges(wanted), "{pieces:?}");
        }
        for pieces in [
            &[(5, 5)][..],
            &[(6, 5)],
            &[(0, 1001)],
            &[(0, 10), (9, 20)],
            &[(20, 30), (0, 10)],
        ] {
            assert!(requests(&ranges(pieces), 1000).is_err(), "{pieces:?}");
        }
        let many: Vec<(u64, u64)> = (0..250).map(|at| (at * 1000, at * 1000 + 1)).collect();
        let requests = requests(&ranges(&many), 1 << 20).unwrap();
        let lengths: Vec<usize> = requests.iter().map(Vec::len).collect();
        assert_eq!(lengths, [100, 100, 50]);
        assert_eq!(header(&requests[0][..2]), "0-0,1000-1000");
        assert!(requests.iter().all(|parts| header(parts).len() < 4000));
    }

    #[test]
    fn what_has_come_is_left_out() {
        let pieces = ranges(&[(10, 20), (30, 40), (50, 51)]);
        for (come, left) in [
            (0, &[(10, 20), (30, 40), (50, 51)][..]),
            (1, &[(11, 20), (30, 40), (50, 51)]),
            (10, &[(30, 40), (50, 51)]),
            (19, &[(39, 40), (50, 51)]),
            (21, &[]),
            (u64::MAX, &[]),
        ] {
            assert_eq!(after(&pieces, come), ranges(left), "{come}");
        }
    }

    #[test]
    fn of_what_comes_only_the_pieces_are_taken() {
        let whole: Vec<u8> = (0..100).collect();
        let pieces = ranges(&[(10, 12), (12, 20), (30, 31), (60, 70)]);
        let wanted = [&whole[10..20], &whole[30..31], &whole[60..70]].concat();
        for step in [1, 3, 7, 100] {
            let (mut filter, mut found) = (Pieces::new(&pieces), Vec::new());
            let mut put = |bytes: &[u8]| {
                found.extend_from_slice(bytes);
                Ok(())
            };
            // Two parts.
            for (from, end) in [(10, 31), (55, 72)] {
                for at in (from..end).step_by(step) {
                    let bytes = &whole[at..(at + step).min(end)];
                    filter.take(at as u64, bytes, &mut put).unwrap();
                }
            }
            assert_eq!(found, wanted, "{step}");
        }
    }

    #[test]
    fn the_boundary_is_in_the_type() {
        for (kind, wanted) in [
            ("multipart/byteranges; boundary=00001", Some("00001")),
            ("Multipart/Byteranges;x=y; Boundary=\"a b\"", Some("a b")),
            ("multipart/byteranges", None),
            ("multipart/byteranges; boundary=", None),
            ("multipart/mixed; boundary=a", None),
            ("text/html; boundary=a", None),
            ("", None),
        ] {
            assert_eq!(boundary(kind).as_deref(), wanted, "{kind}");
        }
        assert_eq!(
            boundary(&format!(
                "multipart/byteranges; boundary={}",
                "a".repeat(71)
            )),
            None
        );
        for (value, wanted) in [
            ("bytes 10-19/20", Some((10, 20, 20))),
            ("bytes 0-0/1", Some((0, 1, 1))),
            ("bytes */20", None),
            ("bytes 10-19/*", None),
            ("bytes 10-/20", None),
            ("items 10-19/20", None),
            ("bytes 0-18446744073709551615/20", None),
        ] {
            let found = content_range(value);
            let found = found.map(|(range, whole)| (range.from, range.end, whole));
            assert_eq!(found, wanted, "{value}");
        }
    }

    /// What of a file of 100 bytes was taken from an answer to a request of these parts.
    fn read(answer: &[u8], parts: &[(u64, u64)]) -> Result<Vec<(u64, u8)>> {
        let mut found = Vec::new();
        let mut put = |at: u64, bytes: &[u8]| {
            found.extend((at..).zip(bytes.iter().copied()));
            Ok(())
        };
        let mut input = io::BufReader::with_capacity(5, answer);
        read_parts(&mut input, "XX", &ranges(parts), 100, &mut put).map(|()| found)
    }

    #[test]
    fn an_answer_of_several_parts_has_to_be_what_was_asked_for() {
        let parts = &[(1, 4), (50, 52)];
        let good = "\r\n--XX\r\nContent-Type: a/b\r\nContent-Range: bytes 1-3/100\r\n\r\nab\n\r\n--XX\r\n\
            content-range:bytes 50-51/100\r\n\r\n--\r\n--XX--\r\n";
        let wanted = [(1, b'a'), (2, b'b'), (3, b'\n'), (50, b'-'), (51, b'-')];
        assert_eq!(read(good.as_bytes(), parts).unwrap(), wanted);
        // As some begin.
        assert_eq!(read(&good.as_bytes()[2..], parts).unwrap(), wanted);
        for (what, from, to) in [
            ("another boundary", "\r\n--XX\r\nC", "\r\n--XY\r\nC"),
            ("no boundary", "\r\n--XX\r\nC", "\r\nC"),
            ("another place", "1-3", "2-4"),
            ("longer", "1-3", "1-4"),
            ("shorter", "1-3", "1-2"),
            ("another length", "/100", "/101"),
            ("no length", "/100", "/*"),
            ("no place", "Content-Range", "Content-Place"),
            (
                "two places",
                "Content-Type: a/b",
                "Content-Range: bytes 1-3/100",
            ),
            ("another order", "1-3", "50-51"),
            ("more bytes", "ab\n", "abc\n"),
            ("fewer bytes", "ab\n", "a\n"),
            ("no end", "--XX--\r\n", ""),
            ("another end", "--XX--", "--XX"),
            (
                "one more",
                "--XX--",
                "--XX\r\ncontent-range:bytes 60-61/100\r\n\r\nxx\r\n--XX--",
            ),
            ("plain ends of lines", "a/b\r\n", "a/b\n"),
            ("no header", "Content-Type: a/b", "Content-Type"),
        ] {
            let answer = good.replace(from, to);
            assert_ne!(answer, good, "{what}");
            assert!(read(answer.as_bytes(), parts).is_err(), "{what}");
        }
        let long = good.replace("a/b", &"a".repeat(2000));
        let many = good.replace("Content-Type: a/b", &["a: b"; 20].join("\r\n"));
        for answer in [long, many, String::new(), good[..40].to_owned()] {
            assert!(read(answer.as_bytes(), parts).is_err(), "{answer}");
        }
        for end in 0..good.len() {
            assert!(read(&good.as_bytes()[..end], parts).is_err(), "{end}");
        }
    }
}
