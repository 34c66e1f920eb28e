//! Layers of an image for containers that are on this host, which become one root.

use std::cell::OnceCell;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::stream::{Compression, Input, feed};
use super::tree::{Content, Shape, extract};
use crate::sys::cmd::quote;
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;
use crate::tree::toc::{self, Entry, Kept, Pieces, Place};
use crate::tree::{Dir, REMOVALS_MOST, Removal, Unpacking, survey};

/// What is read to see how a layer is compressed, in bytes.
const HEAD: u64 = 64 << 10;
/// How much may follow an archive, in bytes, decompressed.
const REST_MOST: usize = 64 << 20;
/// How much of an archive is read at once, in bytes.
const PORTION: usize = 128 << 10;
/// What a table may take of the memory, in bytes: that of some 60,000 paths.
const TABLE_MOST: usize = 40 << 20;

/// A file with a layer, as the manifest has it.
#[derive(Clone, Debug)]
pub struct Layer {
    pub path: PathBuf,
    /// Its SHA-256, in hexadecimal digits.
    pub digest: String,
    /// In bytes.
    pub size: u64,
}

/// The layers of an image, the lowest first.
#[derive(Clone, Debug)]
pub struct Layers {
    layers: Vec<Layer>,
    /// What is in them, and what each takes away, once they were read.
    measured: OnceCell<(Content, Shape, Vec<Vec<Removal>>)>,
}

impl Layers {
    pub fn new(layers: Vec<Layer>) -> Self {
        Self {
            layers,
            measured: OnceCell::new(),
        }
    }

    /// Reads through all layers, the first time. What one replaces of another counts twice: it needs room meanwhile.
    pub fn measure(&self, interrupt: &Interrupt) -> Result<(Content, Shape)> {
        if let Some((content, shape, _)) = self.measured.get() {
            return Ok((*content, shape.clone()));
        }
        let mut shape = Shape::default();
        let mut content = Content::default();
        let (mut removals, mut memory) = (Vec::new(), 0);
        for layer in &self.layers {
            let found = layer.read(interrupt, &mut |input| {
                survey(input, &mut |name| shape.see(name), &mut |_| {
                    interrupt.check()
                })
            })?;
            content.bytes = content.bytes.saturating_add(found.bytes);
            content.files += found.files;
            memory += found.memory;
            // All are kept until the last layer is unpacked.
            ensure!(
                memory <= REMOVALS_MOST,
                "its layers take away too many names"
            );
            removals.push(found.removals);
        }
        let (content, shape, _) = self.measured.get_or_init(|| (content, shape, removals));
        Ok((*content, shape.clone()))
    }

    /// Reads through all layers: the tree that they make, with the digest of each file. Has contents be kept that are not
    /// known.
    ///
    /// Refuses more than [`toc::merged`] does, which is no fault of the image then.
    pub fn table(&self, kept: &mut Kept, interrupt: &Interrupt) -> Result<Vec<Entry>> {
        let mut tables = Vec::new();
        let mut room = TABLE_MOST;
        for (number, layer) in self.layers.iter().enumerate() {
            let table = layer.read(interrupt, &mut |input| {
                toc::of_archive(input, number, &mut room, kept, &mut || interrupt.check())
            })?;
            tables.push(table);
        }
        toc::merged(tables)
    }

    /// Hands over what is at these places of the layer of this number, which [`Self::table`] has read.
    pub fn read_places(
        &self,
        (number, places): (usize, &[Place]),
        interrupt: &Interrupt,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let layer = self.layers.get(number).context("there is no such layer")?;
        layer.read_places(places, interrupt, take)
    }

    /// Unpacks them into the root `to` of an empty filesystem.
    ///
    /// Refuses when that takes more than `room` bytes.
    pub fn copy(
        &self,
        to: &Path,
        room: u64,
        interrupt: &Interrupt,
        progress: &mut Progress,
    ) -> Result<()> {
        self.measure(interrupt)?;
        let (.., removals) = self.measured.get().context("they were measured")?;
        let top = Dir::root(to)?;
        let mut done = 0;
        let mut tell = |bytes| {
            done += bytes;
            progress.show(done);
            interrupt.check()
        };
        let mut unpacking = Unpacking::new(&top, room, &mut tell);
        for (layer, removals) in self.layers.iter().zip(removals) {
            layer.read(interrupt, &mut |input| unpacking.add(removals, input))?;
        }
        unpacking.finish()
    }

    /// A line for a shell that does so, but for what a layer takes away.
    pub fn copy_line(&self, to: &Path) -> String {
        let lines = self.layers.iter().map(|layer| {
            // tar(1) itself does not see how its standard input is compressed.
            let compression = layer.open().and_then(|mut file| compression(&mut file));
            let extract = extract(compression.ok().flatten(), to).arg("--exclude=.wh.*");
            format!("{extract} < {}", quote(layer.path.as_os_str()))
        });
        lines.collect::<Vec<_>>().join(" && ")
    }
}

impl Layer {
    fn open(&self) -> io::Result<File> {
        // Of a pipe nobody waits for the other end.
        OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&self.path)
    }

    /// Hands over what is at these places of its archive, decompressed. Who takes it knows what it has to be.
    fn read_places(
        &self,
        places: &[Place],
        interrupt: &Interrupt,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<()>,
    ) -> Result<()> {
        let failed = || format!("cannot read {}", self.path.display());
        let mut file = self.open().with_context(failed)?;
        let Some(compression) = compression(&mut file).with_context(failed)? else {
            return take(&mut Pieces::new(&mut file, places, interrupt));
        };
        let mut running = compression
            .decompress()
            .start(file.into(), Stdio::piped())?;
        let mut output = running
            .stdout()
            .context("a decompressor writes to a pipe")?;
        // What comes after the last place is of no interest, and neither is what becomes of the decompressor.
        take(&mut Pieces::new(&mut output, places, interrupt))
    }

    /// Hands over its archive, decompressed. Fails if the file was not what the manifest says, whatever that has led
    /// to.
    fn read<T>(
        &self,
        interrupt: &Interrupt,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        self.read_as(interrupt, take)
            .with_context(|| format!("the layer sha256:{}", self.digest))
    }

    fn read_as<T>(
        &self,
        interrupt: &Interrupt,
        take: &mut dyn FnMut(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        let failed = || format!("cannot read {}", self.path.display());
        let mut file = self.open().with_context(failed)?;
        let metadata = file.metadata().with_context(failed)?;
        ensure!(
            metadata.is_file() && metadata.len() == self.size,
            "it has {} bytes, and not {}",
            metadata.len(),
            self.size
        );
        let compression = compression(&mut file).with_context(failed)?;
        let mut checked = Checked {
            file,
            hash: Sha256::new(),
            wanted: self.digest.clone(),
        };
        let Some(compression) = compression else {
            let taken = take(&mut BufReader::with_capacity(PORTION, &mut checked));
            interrupt.check()?;
            // What was not right can be why it has failed.
            io::copy(&mut checked, &mut io::sink())?;
            return taken;
        };
        let input: Input = Box::new(checked);
        let (input, feeding) = feed(input)?;
        let mut running = compression.decompress().start(input, Stdio::piped())?;
        let output = running
            .stdout()
            .context("a decompressor writes to a pipe")?;
        // A header of an archive is read by itself.
        let mut output = BufReader::with_capacity(PORTION, output);
        let taken = take(&mut output).and_then(|taken| {
            read_rest(&mut output, interrupt)?;
            Ok(taken)
        });
        drop(output);
        let ran = match taken {
            Ok(taken) => running.wait().map(|_| taken),
            Err(error) => {
                drop(running);
                Err(error)
            }
        };
        interrupt.check()?;
        feeding.end_of_file(ran)
    }
}

/// Reads what follows an archive: what tar(1) fills it up with, and a damaged end. Refuses far more.
fn read_rest(output: &mut dyn Read, interrupt: &Interrupt) -> Result<()> {
    let mut portion = vec![0; 256 << 10];
    let mut left = REST_MOST;
    loop {
        interrupt.check()?;
        let count = output.read(&mut portion)?;
        if count == 0 {
            return Ok(());
        }
        left = left
            .checked_sub(count)
            .context("far more follows its archive than any program writes there")?;
    }
}

/// How a file is compressed, which is read from its beginning then.
fn compression(file: &mut File) -> io::Result<Option<Compression>> {
    let mut head = Vec::new();
    file.take(HEAD).read_to_end(&mut head)?;
    file.rewind()?;
    Ok(Compression::of(&head))
}

/// A file that is read once. The end is reached only if it was the right one.
struct Checked {
    file: File,
    hash: Sha256,
    wanted: String,
}

impl Read for Checked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.update(&buffer[..count]);
        if count == 0 && !buffer.is_empty() {
            let found = format!("{:x}", self.hash.clone().finalize());
            if found != self.wanted {
                let message = format!("it has the SHA-256 {found}");
                return Err(io::Error::other(message));
            }
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::cmd::Cmd;

    /// Files made by a script in an empty directory, and what they are as layers.
    fn layers(script: &str, names: &[&str]) -> (tempfile::TempDir, Vec<Layer>) {
        let dir = tempfile::tempdir().unwrap();
        let script = format!("cd {} && {script}", dir.path().display());
        Cmd::new("sh").args(["-c", &script]).run().unwrap();
        let layer = |name: &&str| {
            let path = dir.path().join(name);
            let content = fs::read(&path).unwrap();
            Layer {
                path,
                digest: format!("{:x}", Sha256::digest(&content)),
                size: content.len() as u64,
            }
        };
        let layers = names.iter().map(layer).collect();
        (dir, layers)
    }

    const TWO: &str = "mkdir -p a/etc a/usr/lib/modules/6.1 b/etc && echo 1 >a/etc/x && echo 1 >a/etc/y && \
        echo kernel >a/usr/lib/modules/6.1/vmlinuz && setfattr -n user.x -v y a/etc/y; touch b/etc/.wh.x && \
        echo 2 >b/etc/z && tar -C a --xattrs --xattrs-include='*' -c . | gzip >0 && tar -C b -c . | zstd -q >1 && \
        tar -C b -cf 2 etc/z";

    #[test]
    fn layers_of_each_kind_become_one_root() {
        let (dir, layers) = layers(TWO, &["0", "1", "2"]);
        let layers = Layers::new(layers);
        let interrupt = Interrupt::default();
        let (content, shape) = layers.measure(&interrupt).unwrap();
        assert!(
            shape.has_usr && shape.has_etc && shape.kernels().len() == 1,
            "{shape:?}"
        );
        assert_eq!(content.files, 9 + 3 + 1);
        let to = dir.path().join("to");
        fs::create_dir(&to).unwrap();
        let mut progress = Progress::new("", 1);
        layers
            .copy(&to, u64::MAX, &interrupt, &mut progress)
            .unwrap();
        let mut names: Vec<_> = fs::read_dir(to.join("etc"))
            .unwrap()
            .map(|it| it.unwrap().file_name())
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["y", "z"]);
        let error = layers
            .copy(&to, 4096, &interrupt, &mut progress)
            .unwrap_err();
        assert!(format!("{error:#}").contains("no room"), "{error:#}");
        let by_line = dir.path().join("by-line");
        fs::create_dir(&by_line).unwrap();
        let line = layers.copy_line(&by_line);
        Cmd::new("sh").args(["-c", &line]).run().unwrap();
        assert_eq!(fs::read_to_string(by_line.join("etc/z")).unwrap(), "2\n");
    }

    /// All that is in a root, as a person sees it.
    fn seen(root: &Path) -> String {
        let script = "cd $0; find . -printf '%P %y %#m %U:%G %s %T@ %l %n\n' | sort; \
            find . -type f | sort | xargs sha256sum";
        let cmd = Cmd::new("sh").args(["-ec", script]).arg(root);
        cmd.run().unwrap()
    }

    /// Makes a tree of its table, with all contents from the layers.
    fn build(layers: &Layers, to: &Path) -> Result<()> {
        let interrupt = Interrupt::default();
        let mut kept = Kept::new(BTreeSet::new(), tempfile::tempfile()?);
        let entries = layers.table(&mut kept, &interrupt)?;
        let plan = toc::Plan::new(&entries, &mut [])?;
        let to = Dir::root(to)?;
        let mut progress = Progress::new("", 1);
        let mut build = toc::Build::new(&entries, &plan, &to, u64::MAX, &interrupt, &mut progress);
        assert!(build.names(&mut |_, _| Ok(None))?.is_empty());
        let files = plan.in_layers(&entries);
        for (number, files, places) in toc::by_layer(&entries, &files) {
            layers.read_places((number, &places), &interrupt, &mut |input| {
                build.contents(files, input)
            })?;
        }
        build.end()
    }

    #[test]
    fn by_their_table_layers_become_the_root_that_unpacking_makes() {
        let script = "mkdir -p a/etc/gone a/usr/lib a/emptied b/etc b/emptied && echo 1 >a/etc/x && echo 1 >a/etc/y && \
            echo 1 >a/etc/gone/z && ln a/etc/y a/usr/hard && ln -s ../etc a/usr/soft && mkfifo a/usr/pipe && \
            seq 300000 >a/usr/large && cp a/usr/large a/usr/twin && : >a/usr/empty && echo old >a/emptied/old && \
            head -c 3000000 /dev/zero >a/usr/zeros && printf a >>a/usr/zeros && chmod 4711 a/etc/x && \
            touch -d @5 a/etc a/usr/large && \
            : >b/etc/.wh.gone && : >b/emptied/.wh..wh..opq && echo 2 >b/etc/x && seq 9 >b/emptied/new && \
            tar -C a -c . | gzip >0 && tar -C b -c . | zstd -q >1 && \
            tar -C b --format=posix --pax-option='SCHILY.xattr.user.x:=y' -cf 2 etc/x && \
            seq 200000 >b/etc/large && tar -C b -c etc/large | xz -0 >3";
        let (dir, all) = layers(script, &["0", "1", "2", "3"]);
        let layers = Layers::new(all);
        let [unpacked, built] = ["unpacked", "built"].map(|name| {
            let to = dir.path().join(name);
            fs::create_dir(&to).unwrap();
            to
        });
        let mut progress = Progress::new("", 1);
        layers
            .copy(&unpacked, u64::MAX, &Interrupt::default(), &mut progress)
            .unwrap();
        build(&layers, &built).unwrap();
        let wanted = seen(&unpacked);
        assert!(
            wanted.contains("usr/zeros f") && !wanted.contains("gone"),
            "{wanted}"
        );
        assert_eq!(seen(&built), wanted);
        for root in [&unpacked, &built] {
            let mut value = [0; 9];
            let length = rustix::fs::getxattr(root.join("etc/x"), "user.x", &mut value).unwrap();
            assert_eq!(&value[..length], b"y");
        }
    }

    #[test]
    fn what_is_not_the_same_for_everybody_has_no_table() {
        let script = "mkdir -p a/etc b/etc && echo 1 >a/etc/x && ln -s etc a/link && echo 2 >b/etc/y && \
            tar -C a -cf 0 . && tar -C b -cf 1 --transform='s,^./etc/y,link/y,' ./etc/y && \
            tar -C a -cf 2 etc etc && tar -C a -cf 3 etc/x && head -c 1000 0 >4 && cp 0 5";
        let (_dir, mut all) = layers(script, &["0", "1", "2", "3", "4", "5"]);
        all[5].digest = "0".repeat(64);
        for (numbers, why) in [
            (&[0][..], ""),
            (&[0, 1], "is in no directory"),
            (&[2], "is there twice"),
            (&[3], "is in no directory"),
            (&[4], "in the middle"),
            (&[5], "it has the SHA-256"),
        ] {
            let some = numbers.iter().map(|number| all[*number].clone());
            let mut kept = Kept::new(BTreeSet::new(), tempfile::tempfile().unwrap());
            let table = Layers::new(some.collect()).table(&mut kept, &Interrupt::default());
            let error = table
                .err()
                .map_or_else(String::new, |error| format!("{error:#}"));
            assert!(
                error.contains(why) && error.is_empty() == why.is_empty(),
                "{numbers:?}: {error}"
            );
        }
    }

    #[test]
    fn all_layers_together_take_away_no_more_than_one_may() {
        // A name of 4000 bytes, 4096 times.
        let script = "name=$(head -c 4000 /dev/zero | tr '\\0' a) && touch .wh.x && \
            tar --format=gnu --transform=\"s,^,$name/,\" -cf all .wh.x && head -c 5120 all >some && \
            for time in 1 2 3 4 5 6 7 8 9 10 11 12; do cat some some >more && mv more some; done && gzip some";
        let (_dir, layers) = layers(script, &["some.gz"]);
        let measured = |count: usize| {
            let layers = layers.iter().cycle().take(count).cloned().collect();
            Layers::new(layers).measure(&Interrupt::default())
        };
        measured(2).unwrap();
        let error = measured(3).unwrap_err().to_string();
        assert_eq!(error, "its layers take away too many names");
    }

    #[test]
    fn a_layer_that_is_not_what_the_manifest_says_is_refused() {
        // Of several blocks, so that it is known to be damaged when some of it was read.
        let odd = "head -c 100000 /dev/urandom >3 && head -c 1000 0 >4; mkfifo 5; printf x | zstd -q >6; \
            seq 600000 >a/etc/large && tar -C a -c . | zstd -q >7 && \
            printf x | dd of=7 bs=1 seek=300000 conv=notrunc status=none";
        let names = ["0", "1", "2", "3", "4", "6", "7"];
        let (dir, all) = layers(&format!("{TWO} && {odd}"), &names);
        let changed = |at: usize, change: fn(&mut Layer)| {
            let mut layer = all[at].clone();
            change(&mut layer);
            layer
        };
        let other = |layer: &mut Layer| layer.digest = "0".repeat(64);
        let link = dir.path().join("link");
        symlink("/dev/zero", &link).unwrap();
        let elsewhere = |path: PathBuf| Layer {
            path,
            ..all[0].clone()
        };
        for (layer, why) in [
            (changed(0, other), "it has the SHA-256"),
            (changed(1, other), "it has the SHA-256"),
            (changed(2, other), "it has the SHA-256"),
            // It is told also where the content makes no sense.
            (changed(3, other), "it has the SHA-256"),
            (changed(6, other), "it has the SHA-256"),
            (changed(0, |layer| layer.size += 1), "bytes, and not"),
            (changed(0, |layer| layer.size = u64::MAX), "bytes, and not"),
            (all[3].clone(), "no tar archive"),
            (all[5].clone(), "in the middle of a header"),
            (elsewhere(dir.path().join("5")), "bytes, and not"),
            (elsewhere(link), "bytes, and not"),
            (elsewhere(dir.path().to_owned()), "bytes, and not"),
            (elsewhere(dir.path().join("none")), "cannot read"),
        ] {
            let error = Layers::new(vec![layer])
                .measure(&Interrupt::default())
                .unwrap_err();
            assert!(format!("{error:#}").contains(why), "{why}: {error:#}");
        }
        let cut = Layers::new(vec![all[4].clone()]).measure(&Interrupt::default());
        // It was packed in one piece, or is cut off in the middle.
        assert!(cut.is_ok() || format!("{:#}", cut.unwrap_err()).contains("gzip"));
    }
}
