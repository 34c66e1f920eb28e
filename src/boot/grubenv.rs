//! GRUB's environment block: 1024 bytes, of which GRUB knows the place on the disk.
//! <https://www.gnu.org/software/grub/manual/grub/html_node/Environment-block.html>

use anyhow::{Result, ensure};

const SIZE: usize = 1024;
const SIGNATURE: &str = "# GRUB Environment Block\n";

/// The variables of an environment block, in their order. Those that we do not know are kept.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct GrubEnv(Vec<(String, String)>);

impl GrubEnv {
    /// Reads a block. Refuses one that GRUB would not load.
    pub fn parse(block: &[u8]) -> Result<Self> {
        ensure!(
            block.len() == SIZE,
            "grubenv has {} bytes, {SIZE} are needed",
            block.len()
        );
        let text = std::str::from_utf8(block)?;
        let Some(body) = text.strip_prefix(SIGNATURE) else {
            anyhow::bail!("grubenv does not start with {:?}", SIGNATURE.trim_end());
        };
        let variables = body
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        Ok(Self(variables))
    }

    /// The block as GRUB reads it: one variable a line, filled up with `#`.
    pub fn render(&self) -> Result<Vec<u8>> {
        let mut block = SIGNATURE.as_bytes().to_vec();
        for (name, value) in &self.0 {
            block.extend_from_slice(format!("{name}={value}\n").as_bytes());
        }
        ensure!(
            block.len() <= SIZE,
            "the variables of grubenv need {} bytes, there are {SIZE}",
            block.len()
        );
        block.resize(SIZE, b'#');
        Ok(block)
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.as_str())
    }

    pub fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_variables_are_kept() {
        let mut block =
            b"# GRUB Environment Block\n# WARNING: Do not edit\nfoo=a b\nsaved_entry=old\nx=\n"
                .to_vec();
        block.resize(SIZE, b'#');
        let mut env = GrubEnv::parse(&block).unwrap();
        assert_eq!(env.get("saved_entry"), Some("old"));
        env.set("saved_entry", "imgbased-Base-0.1");
        let rendered = env.render().unwrap();
        assert_eq!(rendered.len(), SIZE);
        assert!(rendered.starts_with(
            b"# GRUB Environment Block\nfoo=a b\nsaved_entry=imgbased-Base-0.1\nx=\n####"
        ));
        assert_eq!(GrubEnv::parse(&rendered).unwrap(), env);
    }

    #[test]
    fn damaged_blocks_are_refused() {
        assert!(GrubEnv::parse(b"").is_err());
        assert!(GrubEnv::parse(&[b'#'; SIZE]).is_err());
        assert!(GrubEnv::parse(&[0xff; SIZE]).is_err());
        let mut env = GrubEnv::default();
        env.set("x", &"y".repeat(SIZE));
        assert!(env.render().is_err());
    }
}
