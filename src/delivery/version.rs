//! The order of versions, as in the Version Format Specification of the UAPI group.

use std::cmp::Ordering;

/// Whether `a` is older than `b`, the same, or newer.
pub fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        (a, b) = (relevant(a), relevant(b));
        let (first_a, first_b) = (a.first().copied(), b.first().copied());
        // What has the mark is the older one. A tilde is older than the end, and the end than all others.
        let lower = |mark: u8| (first_a != Some(mark)).cmp(&(first_b != Some(mark)));
        let order = lower(b'~')
            .then_with(|| first_a.is_some().cmp(&first_b.is_some()))
            .then_with(|| lower(b'-'))
            .then_with(|| lower(b'^'))
            .then_with(|| lower(b'.'));
        let (Ordering::Equal, Some(first)) = (order, first_a) else {
            return order;
        };
        if b"~-^.".contains(&first) {
            (a, b) = (&a[1..], &b[1..]);
            continue;
        }
        let is_number = first.is_ascii_digit() || first_b.is_some_and(|b| b.is_ascii_digit());
        let belongs: fn(&u8) -> bool = if is_number {
            u8::is_ascii_digit
        } else {
            u8::is_ascii_alphabetic
        };
        let (part_a, rest_a) = split(a, belongs);
        let (part_b, rest_b) = split(b, belongs);
        let order = if is_number {
            number(part_a).cmp(&number(part_b))
        } else {
            part_a.cmp(part_b)
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// What follows after bytes that mean nothing.
fn relevant(text: &[u8]) -> &[u8] {
    let means = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    &text[text.iter().position(means).unwrap_or(text.len())..]
}

fn split(text: &[u8], belongs: fn(&u8) -> bool) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !belongs(byte));
    text.split_at(end.unwrap_or(text.len()))
}

/// Digits of any length, in the order of their numbers. None at all come before each number.
fn number(digits: &[u8]) -> (bool, usize, &[u8]) {
    let (_, number) = split(digits, |digit| *digit == b'0');
    (!digits.is_empty(), number.len(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the examples of the specification, and what hosts have; the older one first.
    const ORDER: &[&str] = &[
        "~",
        "",
        "a",
        "ab",
        "ba",
        "cb",
        "122.1",
        "123~rc1-1",
        "123",
        "123-a",
        "123-a.1",
        "123-a1",
        "123-3",
        "123-3.1",
        "123^patched-5",
        "123^1",
        "123.a-1",
        "123.1-1",
        "123a-1",
        "124-1",
        "20261101",
    ];

    #[test]
    fn versions_have_the_order_of_the_specification() {
        for (at, a) in ORDER.iter().enumerate() {
            for (other, b) in ORDER.iter().enumerate() {
                assert_eq!(compare(a, b), at.cmp(&other), "{a:?} {b:?}");
            }
        }
        for (a, b) in [
            ("00123", "123"),
            ("1_2", "1 2"),
            ("1.2", "1.2"),
            ("", ""),
            ("_", ""),
            ("1..2", "1..2"),
        ] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a:?} {b:?}");
        }
        let long = format!("1{}", "0".repeat(100));
        assert_eq!(compare(&long, "99999999999999999999"), Ordering::Greater);
        assert_eq!(compare("9", "10"), Ordering::Less);
    }
}
