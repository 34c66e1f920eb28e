//! `image pack`: a root tree becomes a directory in the OCI image layout, of which hosts fetch only what they do not
//! have. A web server shows it as it is, so nobody needs a registry.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::admin::{Context, LOCK_WAIT, say};
use crate::boot::root::Root;
use crate::delivery::oci::layout::{Digest, Layout, Platform};
use crate::delivery::oci::web::{INDEX, MARKER};
use crate::image::judge;
use crate::image::tree::Shape;
use crate::sys::cmd::{Cmd, quote};
use crate::sys::transaction::{Transaction, Writer};
use crate::tree::escaped;
use crate::tree::toc::{self, Limits, Position};

/// The files that lead to all others by their digests, so that a signature of their list is one of all.
const LISTED: [&str; 2] = [INDEX, MARKER];
const LIST: &str = "SHA256SUMS";
/// The tree as one file, for skopeo.
const ARCHIVE: &str = "layer.tar";

/// What `image pack` is told.
#[derive(Args)]
pub struct Pack {
    /// Root of the tree
    dir: PathBuf,
    /// Directory that is made
    out: PathBuf,
}

/// Packs a tree, and tells what to do next.
pub fn run(context: &Context, pack: &Pack) -> Result<()> {
    check(pack)?;
    let out = pack.out.display();
    let writer = Writer::new("image pack", LOCK_WAIT, context.dry_run)?;
    writer.transaction(|tx| make(tx, pack))?;
    if context.dry_run {
        return Ok(());
    }
    say(&format!(
        "{out} is packed; sign {LIST} in it, such as by `gpg --detach-sign --output {LIST}.gpg {LIST}`, and have a web \
         server show it\n"
    ))
}

/// Refuses what cannot be packed.
fn check(pack: &Pack) -> Result<()> {
    let (dir, out) = (&pack.dir, &pack.out);
    judge::of_shape(&dir.display().to_string(), &Shape::of_directory(dir)?)?;
    ensure!(
        fs::symlink_metadata(out).is_err(),
        "{} is there already; remove it, or give another name",
        out.display()
    );
    let machines = [Path::new("/"), dir].map(|root| Root::at(root).machine());
    ensure!(
        machines.contains(&None) || machines[0] == machines[1],
        "the programs in {} are for another processor than this one, for which skopeo would say that they are; pack it on \
         a machine of that kind",
        dir.display()
    );
    let text = out.to_str();
    ensure!(
        text.is_some_and(|text| !text.contains([':', '@']) && !text.starts_with('-')),
        "skopeo takes no directory with a colon, an @ or a dash at its begin: {}",
        escaped(out)
    );
    let above = out.parent().filter(|above| above != &Path::new(""));
    let above = above.unwrap_or(Path::new(".")).canonicalize();
    let above = above.with_context(|| format!("nothing can be made at {}", out.display()))?;
    ensure!(
        !above.starts_with(dir.canonicalize()?),
        "{} is in {}, so it would be packed too; give a directory elsewhere",
        out.display(),
        dir.display()
    );
    for program in [Cmd::new("skopeo"), Cmd::new("tar"), Cmd::new("zstd")] {
        program.check_installed()?;
    }
    let said = Cmd::new("skopeo").arg("--version").run()?;
    let version = said.split_whitespace().nth(2).unwrap_or_default();
    ensure!(
        is_new_enough(version),
        "skopeo {version} can fail to write such layers, or write some that others cannot read; 1.15 or newer is \
         needed, as Debian 13 has it"
    );
    Ok(())
}

/// Whether a skopeo of this version writes whole archives (github.com/containers/storage/issues/1771).
fn is_new_enough(version: &str) -> bool {
    let mut numbers = version.split('.').map_while(|number| number.parse().ok());
    let found: (u32, u32) = (
        numbers.next().unwrap_or_default(),
        numbers.next().unwrap_or_default(),
    );
    found >= (1, 15)
}

fn make(tx: &mut Transaction, pack: &Pack) -> Result<()> {
    let Pack { dir, out } = pack;
    let archive = out.join(ARCHIVE);
    let remove = Cmd::new("rm").args(["-rf", "--"]).arg(out);
    tx.run_undoable(&Cmd::new("mkdir").arg("--").arg(out), remove)?;
    // Equal trees become equal archives. Mounts stay out.
    let tar = Cmd::new("tar")
        .args(["--create", "--format=pax", "--sort=name", "--numeric-owner"])
        .args(["--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime"])
        .args([
            "--xattrs",
            "--xattrs-include=*",
            "--acls",
            "--one-file-system",
        ])
        .arg(format!("--file={}", archive.display()))
        .arg(format!("--directory={}", dir.display()))
        .arg(".");
    tx.run(&tar)?;
    let skopeo = Cmd::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg("--dest-compress-format=zstd:chunked")
        .arg(format!("tarball:{}", archive.display()))
        .arg(format!("oci:{}:latest", out.display()));
    tx.run(&skopeo)?;
    tx.run(&Cmd::new("rm").arg("--").arg(&archive))?;
    if tx.is_dry_run() {
        let list = out.join(LIST);
        let sums = Cmd::new("sha256sum").args(LISTED);
        let (out, list) = (quote(out.as_os_str()), quote(list.as_os_str()));
        return say(&format!("(cd {out} && {sums}) > {list}\n"));
    }
    check_table(out)?;
    let mut list = String::new();
    for name in LISTED {
        let content = fs::read(out.join(name))
            .with_context(|| format!("skopeo has made no {name} in {}", out.display()))?;
        list += &format!("{}  {name}\n", Digest::of(&content).hex());
    }
    tx.write(&out.join(LIST), list.as_bytes(), 0o644)
}

/// Reads the table of contents back. An image without one can be taken, but only as a whole.
fn check_table(out: &Path) -> Result<()> {
    let layout = Layout::open(out)?;
    let image = layout.image(None, &Platform::host())?;
    for layer in &image.manifest.layers {
        let position = Position::find(&|key| layer.annotation(key).map(str::to_owned), layer.size)?;
        let position = position.context("skopeo has written no table of contents")?;
        let mut packed = vec![0; usize::try_from(position.end - position.from)?];
        let blob = File::open(layout.blob(&layer.digest))?;
        blob.read_exact_at(&mut packed, position.from)?;
        let limits = Limits {
            layer: 0,
            end: position.from,
        };
        let read = toc::parse(&position.text(&packed)?, limits);
        if let Err(error) = read {
            log::warn!(
                "hosts cannot use the table of contents of {}, and will fetch all of it: {error:#}",
                out.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_skopeo_that_writes_whole_layers_is_new_enough() {
        for (version, expected) in [
            ("1.18.0", true),
            ("1.15", true),
            ("2.0.0-dev", true),
            ("1.14.2", false),
            ("1.9.3", false),
            ("0.1.40", false),
            ("", false),
        ] {
            assert_eq!(is_new_enough(version), expected, "{version}");
        }
    }
}
