//! GRUB's environment block: 1024 bytes, of which GRUB knows the place on the disk.
//! <https://www.gnu.org/software/grub/manual/grub/html_node/Environment-block.html>

use anyhow::{Result, ensure};

const SIZE: usize = 1024;
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

/// An environment block: its lines as they stand, those that we do not know as well. A backslash before
/// the end of a line belongs to a value that goes on in the next (`grub-core/lib/envblk.c`).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GrubEnv(Vec<Vec<u8>>);

impl GrubEnv {
    /// Reads a block. Refuses one that GRUB would not load.
    pub fn parse(block: &[u8]) -> Result<Self> {
        ensure!(
            block.len() == SIZE,
            "grubenv has {} bytes, {SIZE} are needed",
            block.len()
        );
        let Some(mut rest) = block.strip_prefix(SIGNATURE) else {
            let signature = String::from_utf8_lossy(SIGNATURE);
            anyhow::bail!("grubenv does not start with {:?}", signature.trim_end());
        };
        let mut lines = Vec::new();
        // What has no end is what the block is filled up with.
        while let Some(end) = end_of_line(rest) {
            lines.push(rest[..end].to_vec());
            rest = &rest[end + 1..];
        }
        ensure!(
            rest.iter().all(|byte| *byte == b'#'),
            "the last line of grubenv has no end"
        );
        Ok(Self(lines))
    }

    /// The block as GRUB loads it, which looks at the signature and not at the size; `None` if it does not.
    pub fn load(block: &[u8]) -> Option<Self> {
        let mut rest = block.strip_prefix(SIGNATURE)?;
        let mut lines = Vec::new();
        while let Some(end) = end_of_line(rest) {
            lines.push(rest[..end].to_vec());
            rest = &rest[end + 1..];
        }
        lines.push(rest.to_vec());
        Some(Self(lines))
    }

    /// What can still be read of a damaged block: lines that are plain variables, as many as fit, and the
    /// last of several with the same name.
    pub fn salvage(block: &[u8]) -> Self {
        let is_name = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
        let is_variable = |line: &[u8]| {
            let at = line.iter().position(|byte| *byte == b'=').unwrap_or(0);
            let (name, value) = line.split_at(at);
            !name.is_empty()
                && name.iter().all(is_name)
                && value
                    .iter()
                    .all(|b| (b' '..=b'~').contains(b) && *b != b'\\')
        };
        let mut env = Self::default();
        for line in block.split(|byte| *byte == b'\n') {
            if is_variable(line) {
                let name = line.split(|byte| *byte == b'=').next();
                let name = String::from_utf8_lossy(name.unwrap_or_default());
                let before = env.0.clone();
                env.0.retain(|old| value(old, &name).is_none());
                env.0.push(line.to_vec());
                if env.render().is_err() {
                    env.0 = before;
                }
            }
        }
        env
    }

    /// The block as GRUB reads it, filled up with `#`.
    pub fn render(&self) -> Result<Vec<u8>> {
        let mut block = SIGNATURE.to_vec();
        for line in &self.0 {
            block.extend_from_slice(line);
            block.push(b'\n');
        }
        ensure!(
            block.len() <= SIZE,
            "the variables of grubenv need {} bytes, there are {SIZE}",
            block.len()
        );
        block.resize(SIZE, b'#');
        Ok(block)
    }

    /// A variable that holds plain text, as all of ours do. The last of several counts, as in GRUB's
    /// `load_env`.
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut values = self.0.iter().filter_map(|line| value(line, name));
        std::str::from_utf8(values.next_back()?).ok()
    }

    /// Sets a variable to plain text. It is there once after that: GRUB's `save_env` writes to the first of
    /// several, and its `load_env` reads the last.
    pub fn set(&mut self, name: &str, text: &str) {
        let line = format!("{name}={text}").into_bytes();
        let at = self.0.iter().position(|line| value(line, name).is_some());
        let at = at.unwrap_or(self.0.len());
        self.0.retain(|line| value(line, name).is_none());
        self.0.insert(at, line);
    }

    /// Whether a variable is there more than once.
    pub fn repeats(&self, name: &str) -> bool {
        let values = self.0.iter().filter_map(|line| value(line, name));
        values.count() > 1
    }
}

fn value<'a>(line: &'a [u8], name: &str) -> Option<&'a [u8]> {
    line.strip_prefix(name.as_bytes())?.strip_prefix(b"=")
}

/// Where the first line ends. In a comment a backslash means nothing.
fn end_of_line(text: &[u8]) -> Option<usize> {
    let mut is_escaped = false;
    let is_comment = text.starts_with(b"#");
    text.iter().position(|&byte| {
        let is_end = byte == b'\n' && !is_escaped;
        is_escaped = !is_comment && byte == b'\\' && !is_escaped;
        is_end
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(lines: &[u8]) -> Vec<u8> {
        let mut block = [SIGNATURE, lines].concat();
        block.resize(SIZE, b'#');
        block
    }

    #[test]
    fn all_other_lines_stay_as_they_are() {
        let lines = b"# WARNING: Do not edit \\\nfoo=a b\r\nsaved_entry=old\nmore=two\\\nsaved_entry=x\\\\\n\xff=\xfe\nx=\n";
        let mut env = GrubEnv::parse(&block(lines)).unwrap();
        assert_eq!(env.render().unwrap(), block(lines));
        assert_eq!(env.get("saved_entry"), Some("old"));
        assert_eq!(env.get("x"), Some(""));
        assert_eq!(env.get("fo"), None);
        env.set("saved_entry", "imgbased-Base-0.1");
        env.set("next_entry", "");
        let expected = b"# WARNING: Do not edit \\\nfoo=a b\r\nsaved_entry=imgbased-Base-0.1\nmore=two\\\nsaved_entry=x\\\\\n\xff=\xfe\nx=\nnext_entry=\n";
        let rendered = env.render().unwrap();
        assert_eq!(rendered, block(expected));
        assert_eq!(GrubEnv::parse(&rendered).unwrap(), env);
    }

    #[test]
    fn what_is_left_of_a_damaged_block_is_kept() {
        let salvaged = |block: &[u8]| GrubEnv::salvage(block).render().unwrap();
        let empty = block(b"");
        for nothing in [
            &b""[..],
            &[0; SIZE],
            &[b'#'; 3000],
            b"=x\na b=c\nx=\xff\ny=\\\n",
        ] {
            assert_eq!(salvaged(nothing), empty);
        }
        let cut = b"# GRUB Environment Block\nsaved_entry=imgbased-Base-0.1\nother=1\n##";
        let kept = block(b"saved_entry=imgbased-Base-0.1\nother=1\n");
        assert_eq!(salvaged(cut), kept);
        let long = [&cut[..], b"\nlong=", &[b'x'; SIZE], b"\n"].concat();
        assert_eq!(salvaged(&long), kept);
    }

    #[test]
    fn of_a_variable_that_is_there_twice_the_last_counts_and_one_is_left() {
        let lines = b"saved_entry=first\nother=1\nsaved_entry=last\n";
        let mut env = GrubEnv::parse(&block(lines)).unwrap();
        assert!(env.repeats("saved_entry") && !env.repeats("other"));
        assert_eq!(env.get("saved_entry"), Some("last"));
        env.set("saved_entry", "new");
        assert_eq!(env.render().unwrap(), block(b"saved_entry=new\nother=1\n"));
        let salvaged = GrubEnv::salvage(lines);
        let one = block(b"other=1\nsaved_entry=last\n");
        assert_eq!(salvaged.render().unwrap(), one);
    }

    #[test]
    fn damaged_blocks_are_refused() {
        assert!(GrubEnv::parse(b"").is_err());
        assert!(GrubEnv::parse(&[b'#'; SIZE]).is_err());
        assert!(GrubEnv::parse(&[0xff; SIZE]).is_err());
        assert!(GrubEnv::parse(&block(b"saved_entry=x")).is_err());
        let mut env = GrubEnv::default();
        env.set("x", &"y".repeat(SIZE));
        assert!(env.render().is_err());
    }
}
