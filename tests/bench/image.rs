//! Large root filesystem images whose content is chosen.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The image, and the data of its one large file, in bytes.
const SIZE: &str = "4G";
const DATA: u64 = 2 << 30;
/// The blocks in which the second image differs, in bytes; those of thin pools have the same size.
const BLOCK: u64 = 64 << 10;
/// One block in this many differs: 5 %.
const DIFFERS: usize = 20;

/// Two raw ext4 images with a kernel.
pub struct Images {
    pub first: PathBuf,
    /// The first with other data in some of its blocks.
    pub second: PathBuf,
}

/// Makes both in the directory `dir`. They are the same each time.
pub fn make(dir: &Path) -> Result<Images> {
    let (first, second) = (dir.join("first.img"), dir.join("second.img"));
    let mut random = Random(1);
    fill_tree(&dir.join("tree"), &mut random)?;
    let tree = dir.join("tree").display().to_string();
    let image = first.display().to_string();
    output("mke2fs", &["-q", "-t", "ext4", "-d", &tree, &image, SIZE])?;
    fs::remove_dir_all(&tree).context(tree)?;
    let copy = second.display().to_string();
    output("cp", &["--sparse=always", "--", &image, &copy])?;
    change_blocks(&second, &mut random).with_context(|| format!("changing {copy}"))?;
    Ok(Images { first, second })
}

/// Makes the files of an image: what a base needs, and a large one that cannot be compressed.
fn fill_tree(tree: &Path, random: &mut Random) -> Result<()> {
    for (file, content) in [
        ("boot/vmlinuz-9.9", "kernel"),
        ("etc/os-release", "NAME=Large\n"),
        ("usr/lib/dracut/modules.txt", "imgbased\n"),
    ] {
        let path = tree.join(file);
        fs::create_dir_all(path.parent().context("it is in a directory")?)?;
        fs::write(&path, content).with_context(|| path.display().to_string())?;
    }
    // An initramfs for dracut's tools only.
    let archive = "cd \"$1\" && echo usr/lib/dracut/modules.txt | \
                   cpio --quiet -o -H newc >boot/initrd.img-9.9";
    output("sh", &["-c", archive, "cpio", &tree.display().to_string()])?;
    let mut data = BufWriter::with_capacity(1 << 20, File::create(tree.join("data"))?);
    for _ in 0..DATA / 8 {
        data.write_all(&random.next().to_ne_bytes())?;
    }
    data.flush().context("writing the large file")
}

/// Overwrites some blocks of the large file in an image, so that nothing else in it changes.
fn change_blocks(image: &Path, random: &mut Random) -> Result<()> {
    let mut blocks = data_blocks(image)?;
    let count = blocks.len() / DIFFERS;
    ensure!(count > 0, "it has only {} blocks", blocks.len());
    let file = File::options().write(true).open(image)?;
    blocks.sort_by_cached_key(|_| random.next());
    for block in &blocks[..count] {
        let words = (0..BLOCK / 8).map(|_| random.next().to_ne_bytes());
        let content: Vec<u8> = words.flatten().collect();
        file.write_all_at(&content, block * BLOCK)?;
    }
    Ok(())
}

/// The blocks of an image, by number, that hold nothing but data of the large file.
fn data_blocks(image: &Path) -> Result<Vec<u64>> {
    const FS_BLOCK: u64 = 4096;
    let image = image.display().to_string();
    // A line has nine numbers: the level and how many there are, the entry and how many there are,
    // the first and last block in the file, the first and last block in the image, and the length.
    let extents = output("debugfs", &["-R", "dump_extents -l /data", &image])?;
    let mut blocks = Vec::new();
    for line in extents.lines().skip(1) {
        let numbers: Vec<u64> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|word| word.parse().ok())
            .collect();
        let [_, _, _, _, _, _, first, last, _] = numbers[..] else {
            anyhow::bail!("unexpected line of debugfs: {line:?}");
        };
        let (start, end) = (first * FS_BLOCK, (last + 1) * FS_BLOCK);
        blocks.extend(start.div_ceil(BLOCK)..end / BLOCK);
    }
    Ok(blocks)
}

/// Runs a program that must succeed; returns its standard output.
fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}

/// Numbers that look random and are the same for the same start: `SplitMix64`.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
