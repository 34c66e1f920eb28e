//! The files of /etc that dpkg(1) has brought, and nobody has changed.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use super::dpkg;
use crate::tree::{Dir, Kind, Place};

/// A larger file is no default, in bytes.
const FILE_MAX: u64 = 1 << 20;

/// The MD5 that each such file had when its package was installed, by its path below /etc.
#[derive(Default)]
pub struct Conffiles(BTreeMap<PathBuf, String>);

impl Conffiles {
    /// Those that are recorded in a root; none where dpkg is not used.
    pub fn of(root: &Dir) -> io::Result<Self> {
        let status = dpkg::status(root)?;
        Ok(status.map_or_else(Self::default, |status| Self::parse(&status)))
    }

    /// Takes the lines ` PATH MD5` of the fields `Conffiles`.
    fn parse(status: &str) -> Self {
        let mut files = BTreeMap::new();
        let mut is_list = false;
        for line in status.lines() {
            let Some(entry) = line.strip_prefix(' ') else {
                is_list = line.trim_end() == "Conffiles:";
                continue;
            };
            let mut words = entry.split(' ');
            let path = words.next().and_then(|path| path.strip_prefix("/etc/"));
            if let (true, Some(path), Some(sum)) = (is_list, path, words.next()) {
                files.insert(path.into(), sum.to_owned());
            }
        }
        Self(files)
    }

    /// Whether the file at a path below /etc is one of them, and as it was then.
    pub fn is_pristine(&self, path: &Path, file: &Place) -> io::Result<bool> {
        let Some(sum) = self.0.get(path) else {
            return Ok(false);
        };
        let is_file = file.stat.kind == Kind::File && file.stat.size <= FILE_MAX;
        match file.node()?.filter(|_| is_file) {
            Some(node) => Ok(md5(&node.read(FILE_MAX)?) == *sum),
            None => Ok(false),
        }
    }
}

/// How far the steps of each round turn.
const TURNS: [[u32; 4]; 4] = [
    [7, 12, 17, 22],
    [5, 9, 14, 20],
    [4, 11, 16, 23],
    [6, 10, 15, 21],
];
/// What each step adds: the sine of its number.
const SINES: [u32; 64] = [
    0xd76a_a478,
    0xe8c7_b756,
    0x2420_70db,
    0xc1bd_ceee,
    0xf57c_0faf,
    0x4787_c62a,
    0xa830_4613,
    0xfd46_9501,
    0x6980_98d8,
    0x8b44_f7af,
    0xffff_5bb1,
    0x895c_d7be,
    0x6b90_1122,
    0xfd98_7193,
    0xa679_438e,
    0x49b4_0821,
    0xf61e_2562,
    0xc040_b340,
    0x265e_5a51,
    0xe9b6_c7aa,
    0xd62f_105d,
    0x0244_1453,
    0xd8a1_e681,
    0xe7d3_fbc8,
    0x21e1_cde6,
    0xc337_07d6,
    0xf4d5_0d87,
    0x455a_14ed,
    0xa9e3_e905,
    0xfcef_a3f8,
    0x676f_02d9,
    0x8d2a_4c8a,
    0xfffa_3942,
    0x8771_f681,
    0x6d9d_6122,
    0xfde5_380c,
    0xa4be_ea44,
    0x4bde_cfa9,
    0xf6bb_4b60,
    0xbebf_bc70,
    0x289b_7ec6,
    0xeaa1_27fa,
    0xd4ef_3085,
    0x0488_1d05,
    0xd9d4_d039,
    0xe6db_99e5,
    0x1fa2_7cf8,
    0xc4ac_5665,
    0xf429_2244,
    0x432a_ff97,
    0xab94_23a7,
    0xfc93_a039,
    0x655b_59c3,
    0x8f0c_cc92,
    0xffef_f47d,
    0x8584_5dd1,
    0x6fa8_7e4f,
    0xfe2c_e6e0,
    0xa301_4314,
    0x4e08_11a1,
    0xf753_7e82,
    0xbd3a_f235,
    0x2ad7_d2bb,
    0xeb86_d391,
];

/// MD5 as RFC 1321 describes it. It protects nothing here.
fn md5(content: &[u8]) -> String {
    let mut state: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    let mut padded = content.to_vec();
    padded.push(0x80);
    let zeros = (120 - padded.len() % 64) % 64;
    padded.resize(padded.len() + zeros, 0);
    padded.extend((content.len() as u64 * 8).to_le_bytes());
    for block in padded.chunks_exact(64) {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        let [mut a, mut b, mut c, mut d] = state;
        for (step, sine) in SINES.iter().enumerate() {
            let (mixed, word) = match step / 16 {
                0 => ((b & c) | (!b & d), step),
                1 => ((d & b) | (!d & c), 5 * step + 1),
                2 => (b ^ c ^ d, 3 * step + 5),
                _ => (c ^ (b | !d), 7 * step),
            };
            let sum = a.wrapping_add(mixed).wrapping_add(*sine);
            let sum = sum.wrapping_add(words[word % 16]);
            let turned = sum.rotate_left(TURNS[step / 16][step % 4]);
            [a, b, c, d] = [d, b.wrapping_add(turned), b, c];
        }
        for (total, part) in state.iter_mut().zip([a, b, c, d]) {
            *total = total.wrapping_add(part);
        }
    }
    let bytes = state.iter().flat_map(|word| word.to_le_bytes());
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn md5_is_that_of_md5sum() {
        for (content, wanted) in [
            (String::new(), "d41d8cd98f00b204e9800998ecf8427e"),
            ("abc".to_owned(), "900150983cd24fb0d6963f7d28e17f72"),
            ("a".repeat(55), "ef1772b6dff9a122358552954ad0df65"),
            ("a".repeat(56), "3b0c8ac703f828b04c6c197006d17218"),
            ("a".repeat(63), "b06521f39153d618550606be297466d5"),
            ("a".repeat(64), "014842d480b571495a4a0363793f7367"),
            ("a".repeat(65), "c743a45e0d2e6a95cb859adae0248435"),
            ("a".repeat(1000), "cabe45dcc9ae5b66ba86600cca6b8ba8"),
        ] {
            assert_eq!(md5(content.as_bytes()), wanted, "{content}");
        }
    }

    #[test]
    fn conffiles_are_those_of_their_field() {
        let files = Conffiles::parse(
            "Package: a\nConffiles:\n /etc/a 11\n /etc/b/c 22 obsolete\n /opt/d 33\n /etc/e\nDescription: a\n /etc/f 44\n\n\
             Package: b\nConffiles:\n newline\n /etc/g newconffile\n",
        );
        let found: Vec<_> = files
            .0
            .iter()
            .map(|(path, sum)| (path.to_str().unwrap(), sum.as_str()))
            .collect();
        assert_eq!(found, [("a", "11"), ("b/c", "22"), ("g", "newconffile")]);
    }
}
