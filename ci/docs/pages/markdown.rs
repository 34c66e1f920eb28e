//! Markdown as man(7) has it: headings, paragraphs, lists, tables and blocks of code.

use std::fmt::Write as _;
use std::iter::Peekable;
use std::str::Lines;

/// A text. A table becomes a list: the first cell of a row is what the others are said of.
pub fn roff(markdown: &str) -> String {
    let mut page = String::new();
    let mut heads: Vec<String> = Vec::new();
    let mut lines = markdown.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with("```") {
            page += ".PP\n.RS 4\n.nf\n";
            for line in lines.by_ref().take_while(|line| !line.starts_with("```")) {
                let _ = writeln!(page, "{}", code(line));
            }
            page += ".fi\n.RE\n";
        } else if lines.next_if(|next| next.starts_with("| ---")).is_some() {
            heads = cells(line).iter().map(|head| inline(head)).collect();
        } else if line.starts_with("| ") {
            page += &row(&heads, &cells(line));
        } else if let Some(heading) = line.strip_prefix("### ") {
            let _ = writeln!(page, ".SS {}", inline(heading));
        } else if let Some(heading) = line.strip_prefix("## ") {
            let _ = writeln!(page, ".SH {}", inline(heading).to_uppercase());
        } else if let Some(item) = line.strip_prefix("- ") {
            let _ = writeln!(page, ".IP \\(bu 2\n{}", paragraph(item, &mut lines));
        } else if let Some((number, item)) = numbered(line) {
            let _ = writeln!(page, ".IP {number}. 4\n{}", paragraph(item, &mut lines));
        } else if line.is_empty() {
            page += ".PP\n";
        } else {
            let _ = writeln!(page, "{}", paragraph(line, &mut lines));
        }
    }
    page
}

/// The rest of a paragraph whose first line was read. A span can go on in the next line.
fn paragraph(first: &str, lines: &mut Peekable<Lines>) -> String {
    let mut text = first.trim().to_owned();
    while let Some(line) = lines.next_if(|line| goes_on(line)) {
        text.push(' ');
        text += line.trim();
    }
    inline(&text)
}

/// Whether a line is a part of the paragraph above it.
fn goes_on(line: &str) -> bool {
    let is_begin = ["```", "|", "#", "- "]
        .iter()
        .any(|begin| line.starts_with(begin));
    !line.is_empty() && !is_begin && numbered(line).is_none()
}

/// `1. item`
fn numbered(line: &str) -> Option<(&str, &str)> {
    let (number, item) = line.split_once(". ")?;
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then_some((number, item))
}

/// The cells of a row. A `|` that is none between cells has a backslash before it.
pub fn cells(row: &str) -> Vec<&str> {
    let row = row.trim().trim_start_matches('|').trim_end_matches('|');
    row.split(" | ").map(str::trim).collect()
}

fn row(heads: &[String], cells: &[&str]) -> String {
    let mut text = String::new();
    let (first, rest) = cells.split_first().unwrap_or((&"", &[]));
    for (number, tag) in first.split("<br>").enumerate() {
        let request = if number == 0 { ".TP" } else { ".TQ" };
        let _ = writeln!(text, "{request}\n{}", inline(tag));
    }
    for (number, cell) in rest.iter().enumerate().filter(|(_, cell)| !cell.is_empty()) {
        // What a second cell says is told by the section.
        match heads.get(number + 1) {
            Some(head) if number > 0 => {
                let _ = writeln!(text, ".br\n{head}: {}", inline(cell));
            }
            _ => {
                let _ = writeln!(text, "{}", inline(cell));
            }
        }
    }
    text
}

/// A line of text with `code`, *emphasis*, **strong emphasis** and [links](to).
pub fn inline(line: &str) -> String {
    let mut text = String::new();
    let (mut is_bold, mut is_italic) = (false, false);
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        let (spanned, length) = if let Some((span, length)) = span(rest, "`", "`") {
            (format!("\\fB{}\\fR", escaped(span, true)), length)
        } else if let Some((label, to, length)) = link(rest) {
            let label = inline(label);
            let is_address = to.starts_with("http");
            // It may be broken where it has a slash.
            let to = escaped(to, true).replace('/', "/\\:");
            (
                if is_address {
                    format!("{label} ({to})")
                } else {
                    label
                },
                length,
            )
        } else if rest.starts_with("**") {
            is_bold = !is_bold;
            (if is_bold { "\\fB" } else { "\\fR" }.to_owned(), 2)
        } else if c == '*' {
            is_italic = !is_italic;
            (if is_italic { "\\fI" } else { "\\fR" }.to_owned(), 1)
        } else if rest.starts_with("\\|") {
            ("|".to_owned(), 2)
        } else {
            (escaped(&rest[..c.len_utf8()], false), c.len_utf8())
        };
        text += &spanned;
        rest = &rest[length..];
    }
    guarded(text)
}

/// A line that is printed as it is.
pub fn code(line: &str) -> String {
    guarded(escaped(line, true))
}

/// What is between `open`, at the beginning, and `close`, and the length of all three.
fn span<'a>(text: &'a str, open: &str, close: &str) -> Option<(&'a str, usize)> {
    let inside = text.strip_prefix(open)?;
    let end = inside.find(close)?;
    Some((&inside[..end], open.len() + end + close.len()))
}

/// The label and the place of a link at the beginning, and its length.
fn link(text: &str) -> Option<(&str, &str, usize)> {
    let (label, length) = span(text, "[", "](")?;
    let (to, end) = span(&text[length - 1..], "(", ")")?;
    Some((label, to, length - 1 + end))
}

/// Text for man(7); as code its signs are those that can be copied to a shell.
fn escaped(text: &str, is_code: bool) -> String {
    let mut escaped = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            '\\' if is_code && rest.next_if_eq(&'|').is_some() => escaped.push('|'),
            '\\' => escaped += "\\e",
            '-' if is_code => escaped += "\\-",
            '\'' if is_code => escaped += "\\(aq",
            '`' => escaped += "\\(ga",
            '^' => escaped += "\\(ha",
            '~' => escaped += "\\(ti",
            _ => escaped.push(c),
        }
    }
    escaped
}

/// At the beginning of a line these start a request.
fn guarded(line: String) -> String {
    if line.starts_with(['.', '\'']) {
        return format!("\\&{line}");
    }
    line
}
