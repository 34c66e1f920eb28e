//! An image in layers of which only those parts are taken that no base of this host has: the files whose content no
//! listing of a base has. Where a layer has a table of contents, nothing but that table and the chunks of these files is
//! fetched. One that is here as a whole is read through for its table, and these files alone are written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Error, Result, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::listings;
use crate::admin::Context;
use crate::admin::roots;
use crate::delivery::fetch::Fetcher;
use crate::delivery::held::Held;
use crate::delivery::oci::layout::Descriptor;
use crate::delivery::oci::web::Web;
use crate::delivery::ranges::Range;
use crate::delivery::spool::{self, Spool, Wanted};
use crate::image::layers::Layers;
use crate::image::stream::Compression;
use crate::image::tree::{Content, Shape, Tree};
use crate::image::{Image, Opened};
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::sys::files::{in_memory, nameless};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::{Progress, Waiting};
use crate::sys::transaction::Transaction;
use crate::tree::toc::{self, Build, Entry, From, Kept, Known, Limits, Position};
use crate::tree::{Dir, Listing};

/// A file takes this much at least, in bytes.
const BLOCK: u64 = 4096;

/// What there is of an image.
pub struct Parts {
    entries: Vec<Entry>,
    chunks: Chunks,
}

/// Where the chunks are that no base has.
enum Chunks {
    /// In this file, one after the other.
    Fetched(Held),
    /// Some of them were kept when the layers were read.
    In(Layers, Kept),
}

/// Why an image is fetched as a whole.
struct Reason(Error);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

/// What is an error of the image or of its server, and no reason to end.
fn reason<T>(found: Result<T>) -> Result<T, Reason> {
    found.map_err(Reason)
}

/// What has come of a server. An error is a reason where the image can be had in another way.
fn of_server<T>(web: &Web, fetched: Result<T>, interrupt: &Interrupt) -> Result<Result<T, Reason>> {
    interrupt.check()?;
    if web.is_in_registry {
        return Ok(reason(fetched));
    }
    fetched.map(Ok)
}

impl Parts {
    /// Fetches what is needed of an image that people call `name`. Nothing where all of it has to be fetched; then it
    /// is told why. Has the lock afterwards. Earlier ones of the same place give way.
    pub fn fetch(
        context: &Context,
        tx: &mut Transaction,
        fetcher: &Fetcher,
        (spool, place): (&Spool, &str),
        web: &Web,
        name: &str,
    ) -> Result<Option<Self>> {
        let entries = match tables(fetcher, web)? {
            Ok(entries) => entries,
            Err(reason) => return Ok(told(name, &reason)),
        };
        tx.lock()?;
        let group = context.load()?;
        let bases: Vec<LvName> = group.bases().into_iter().map(|base| base.name).collect();
        let mut plan = None;
        listings::read(context, tx, &group, &bases, &mut |listings| {
            if !listings.is_empty() {
                plan = Some(planned(&entries, listings, None)?.0);
            }
            Ok(())
        })?;
        let Some(plan) = plan else {
            let reason = Reason(Error::msg(
                "no base of this host is listed yet; `imgbased-helper base verify` lists them",
            ));
            return Ok(told(name, &reason));
        };
        let files = plan.in_layers(&entries);
        let wanted = wanted(web, &entries, &files);
        let key = key(web, &wanted);
        let interrupt = tx.interrupt().clone();
        let chunks = tx.unlocked(|_| {
            let there = spool.have_pieces(&key);
            let need = spool::bytes(&wanted).saturating_sub(there);
            let have = spool.room()?;
            if need > have {
                let reason = format!("its parts have {need} bytes, and there is room for {have}");
                return Ok(Err(Reason(Error::msg(reason))));
            }
            spool.begin(place, [key.as_str()])?;
            let found = match spool.fetch_pieces(fetcher, &key, &wanted, name) {
                Err(error) if spool::is_full(&error) => return Ok(Err(Reason(error))),
                found => found,
            };
            let chunks = match of_server(web, found, &interrupt)? {
                Ok(Some(chunks)) => chunks,
                Ok(None) => {
                    let reason = "its server has no parts of files, or others than were asked for";
                    return Ok(Err(Reason(Error::msg(reason))));
                }
                Err(reason) => return Ok(Err(reason)),
            };
            let checked = check(&entries, &files, chunks.as_ref(), &interrupt);
            interrupt.check()?;
            if checked.is_err() {
                fs::remove_file(&chunks)?;
            } else {
                spool.supersede(place, &[&chunks])?;
            }
            Ok(reason(checked).map(|()| chunks))
        })?;
        Ok(match chunks {
            Ok(chunks) => Some(Self {
                entries,
                chunks: Chunks::Fetched(chunks),
            }),
            Err(reason) => told(name, &reason),
        })
    }

    /// The same of an image whose layers are here, for a base that `shares` files with others. Nothing where all of it has
    /// to be unpacked: in a dry run, where no base is listed, and where what the layers make depends on who unpacks them.
    /// Has the lock afterwards.
    pub fn of_layers(
        context: &Context,
        tx: &mut Transaction,
        layers: &Layers,
        shares: bool,
    ) -> Result<Option<Self>> {
        if !shares || context.dry_run {
            return Ok(None);
        }
        tx.lock()?;
        let group = context.load()?;
        let bases: Vec<LvName> = group.bases().into_iter().map(|base| base.name).collect();
        let mut known = None;
        let read = tx.scope(|tx| {
            listings::read(context, tx, &group, &bases, &mut |listings| {
                for (_, mut listing) in listings {
                    let known = known.get_or_insert_with(BTreeSet::new);
                    while let Some(listed) = listing.read()? {
                        known.extend(listed.content);
                    }
                }
                Ok(())
            })
        });
        if let Err(error) = &read {
            log::debug!("what the bases hold cannot be read: {error:#}");
        }
        let (Ok(()), Some(known)) = (read, known) else {
            return Ok(None);
        };
        let mut kept = Kept::new(known, nameless()?);
        let table = tx.unlocked(|tx| {
            let _waiting = Waiting::new(|| "reading the layers".to_owned());
            let table = layers.table(&mut kept, tx.interrupt());
            tx.interrupt().check()?;
            Ok::<_, Error>(table)
        })?;
        // Unpacking tells what is wrong with them, if anything is.
        let table = table.inspect_err(|error| {
            log::debug!("the layers are unpacked as a whole: {error:#}");
        });
        Ok(table.ok().map(|entries| Self {
            entries,
            chunks: Chunks::In(layers.clone(), kept),
        }))
    }

    /// The image, to be read for a base. Chunks that were fetched go when that is made.
    pub fn opened(&self, tx: &mut Transaction) -> Opened {
        if let Chunks::Fetched(chunks) = &self.chunks {
            let chunks = chunks.as_ref().to_owned();
            tx.discard(move || Ok(vec![chunks]));
        }
        let (size, shape) = self.measure();
        Opened::from(Image::Tree(Tree::Listed(size, shape)))
    }

    /// What the tree takes, and what is at its top.
    fn measure(&self) -> (Content, Shape) {
        let mut shape = Shape::default();
        let mut content = Content::default();
        for entry in &self.entries {
            shape.see(entry.path.as_os_str().as_encoded_bytes());
            let size = entry.content().map_or(0, |content| content.size);
            content.bytes = content.bytes.saturating_add(size.next_multiple_of(BLOCK));
            content.files += 1;
        }
        (content, shape)
    }

    /// Plans where the content of each file comes from, if the tree begins as a snapshot of `origin`. The lock is held.
    pub fn plan(
        &self,
        context: &Context,
        tx: &mut Transaction,
        group: &Group,
        origin: Option<&LvName>,
    ) -> Result<Planned<'_>> {
        let others = group.bases().into_iter().map(|base| base.name);
        let others = others.filter(|base| Some(base) != origin);
        // Of two bases that have a content, the first one gives it.
        let bases: Vec<LvName> = origin.cloned().into_iter().chain(others).collect();
        let mut found = None;
        listings::read(context, tx, group, &bases, &mut |listings| {
            found = Some(planned(&self.entries, listings, origin)?);
            Ok(())
        })?;
        let (plan, bases) = found.context("the listings are read")?;
        Ok(Planned {
            parts: self,
            plan,
            bases,
        })
    }
}

/// An image with what becomes of each of its files.
pub struct Planned<'a> {
    parts: &'a Parts,
    plan: toc::Plan,
    /// By their numbers in the plan.
    bases: Vec<LvName>,
}

impl Planned<'_> {
    /// Makes the filesystem that is mounted at `to` hold the tree, and nothing else: an empty one, or a snapshot of the
    /// origin, which has this `listing`. Refuses to write more than `room` bytes.
    pub fn build(
        &self,
        context: &Context,
        tx: &mut Transaction,
        (to, mut listing): (&Path, Option<Listing>),
        room: u64,
        label: &str,
    ) -> Result<()> {
        let used = self.plan.files.values().filter_map(|from| match from {
            From::Other(base, _) => Some(*base),
            _ => None,
        });
        let used: BTreeSet<usize> = used.collect();
        let used: Vec<usize> = used.into_iter().collect();
        let to = Dir::root(to)?;
        let group = context.load()?;
        let mut opened = Roots::new();
        with_bases(
            (context, &group, &self.bases),
            tx,
            &used,
            &mut opened,
            &mut |tx, roots| {
                let line = format!("# {label} gets the files that are not in its origin");
                let listing = listing.take();
                tx.work(&line, |interrupt| {
                    self.build_from(interrupt, roots, (&to, listing), room, label)
                })
            },
        )
    }

    fn build_from(
        &self,
        interrupt: &Interrupt,
        roots: &Roots,
        (to, listing): (&Dir, Option<Listing>),
        room: u64,
        label: &str,
    ) -> Result<()> {
        let entries = &self.parts.entries;
        let mut progress = Progress::new(label, 0);
        let mut build = Build::new(entries, &self.plan, to, room, interrupt, &mut progress);
        build.compare(listing)?;
        let lost = build.names(&mut |base, path| {
            let of_base = roots.get(&base).context("its base is mounted")?;
            Ok(toc::file_of(of_base, path))
        })?;
        // What is here as a whole has those as well.
        let is_fetched = matches!(self.parts.chunks, Chunks::Fetched(_));
        if let Some(number) = lost.first().filter(|_| is_fetched) {
            let base = match self.plan.files.get(number) {
                Some(From::Other(base, _)) => self.bases[*base].to_string(),
                _ => String::new(),
            };
            bail!(
                "{base} is not what its listing says, which `imgbased-helper base verify {base}` can tell more of; \
                 --no-share fetches the whole image"
            );
        }
        let mut files = self.plan.in_layers(entries);
        files.extend(lost);
        toc::sort_by_place(entries, &mut files);
        match &self.parts.chunks {
            Chunks::Fetched(chunks) => read_chunks(chunks.as_ref(), &mut |chunks| {
                build.contents(&files, chunks)
            })?,
            Chunks::In(layers, kept) => {
                let mut others = Vec::new();
                for number in files {
                    match entries[number].content().and_then(|of| kept.content(of)) {
                        Some(mut kept) => build.contents(&[number], &mut kept)?,
                        None => others.push(number),
                    }
                }
                for (number, files, places) in toc::by_layer(entries, &others) {
                    layers.read_places((number, &places), interrupt, &mut |chunks| {
                        build.contents(files, chunks)
                    })?;
                }
            }
        }
        build.end()
    }
}

/// Tells why an image is fetched as a whole.
pub fn told<T>(name: &str, reason: &dyn fmt::Display) -> Option<T> {
    log::warn!("{name} is fetched as a whole: {reason}");
    None
}

/// The tree of all layers, by their tables of contents.
fn tables(fetcher: &Fetcher, web: &Web) -> Result<Result<Vec<Entry>, Reason>> {
    let positions = match reason(positions(&web.image.manifest.layers)) {
        Ok(positions) => positions,
        Err(reason) => return Ok(Err(reason)),
    };
    let mut layers = Vec::new();
    let (mut lines, mut content) = (0, 0_u64);
    let web_layers = web.image.manifest.layers.iter();
    for (number, (layer, position)) in web_layers.zip(&positions).enumerate() {
        let mut packed = in_memory(b"")?;
        let piece = Range {
            from: position.from,
            end: position.end,
        };
        let url = web.layer(&layer.digest);
        let found = fetcher.pieces(&url, &[piece], layer.size, &mut packed, &mut |_| {});
        match of_server(web, found, &fetcher.interrupt)? {
            Ok(true) => {}
            Ok(false) => return Ok(Err(Reason(Error::msg("its server has no parts of files")))),
            Err(reason) => return Ok(Err(reason)),
        }
        match reason(table(packed, position, number)) {
            Ok(entries) => {
                lines += entries.len();
                let sizes = entries.iter().filter_map(Entry::content).map(|it| it.size);
                content = sizes.fold(content, u64::saturating_add);
                layers.push(entries);
            }
            Err(reason) => return Ok(Err(reason)),
        }
        // As much as one layer may have.
        if lines > Limits::LINES_MOST || content > Limits::CONTENT_MOST {
            return Ok(Err(Reason(Error::msg(TOO_MUCH))));
        }
    }
    Ok(reason(
        toc::merged(layers).context("its table of contents is odd"),
    ))
}

const TOO_MUCH: &str = "its tables of contents name too much";

/// Where the tables of these layers are. All of them together may be as long as one.
fn positions(layers: &[Descriptor]) -> Result<Vec<Position>> {
    let mut positions = Vec::new();
    let mut length = 0_u64;
    for layer in layers {
        let annotation = |key: &str| layer.annotation(key).map(str::to_owned);
        let position = Position::find(&annotation, layer.size)?;
        let position = position.context("a layer has no table of contents")?;
        length = length.saturating_add(position.length);
        ensure!(length <= Limits::TEXT_MOST, TOO_MUCH);
        positions.push(position);
    }
    Ok(positions)
}

fn table(mut packed: File, position: &Position, layer: usize) -> Result<Vec<Entry>> {
    let mut content = Vec::new();
    std::io::Seek::rewind(&mut packed)?;
    packed.read_to_end(&mut content)?;
    let limits = Limits {
        layer,
        end: position.from,
    };
    let text = position.text(&content)?;
    toc::parse(&text, limits).context("its table of contents is odd")
}

/// The plan for these entries, and the bases by their numbers in it.
fn planned(
    entries: &[Entry],
    listings: Vec<(LvName, Listing)>,
    origin: Option<&LvName>,
) -> Result<(toc::Plan, Vec<LvName>)> {
    let mut bases = Vec::new();
    let mut known = Vec::new();
    for (base, listing) in listings {
        known.push(Known {
            listing,
            is_origin: Some(&base) == origin,
        });
        bases.push(base);
    }
    let plan = toc::Plan::new(entries, &mut known).context("cannot read a listing")?;
    Ok((plan, bases))
}

/// The chunks of these files, by layer.
fn wanted(web: &Web, entries: &[Entry], files: &[usize]) -> Vec<Wanted> {
    let of_layer = |(number, _, places): (usize, &[usize], Vec<toc::Place>)| {
        let layer = &web.image.manifest.layers[number];
        let pieces = places.iter().map(|place| Range {
            from: place.from,
            end: place.end,
        });
        Wanted {
            url: web.layer(&layer.digest),
            length: layer.size,
            pieces: pieces.collect(),
        }
    };
    toc::by_layer(entries, files).map(of_layer).collect()
}

/// What tells these chunks from others, in few characters.
fn key(web: &Web, wanted: &[Wanted]) -> String {
    let mut text = web.image.digest.to_string();
    for Wanted { length, pieces, .. } in wanted {
        text += &format!(" {length} {pieces:?}");
    }
    format!("{:x}", Sha256::digest(text))
}

/// Refuses chunks that are not what the table says.
fn check(entries: &[Entry], files: &[usize], chunks: &Path, interrupt: &Interrupt) -> Result<()> {
    read_chunks(chunks, &mut |chunks| {
        toc::read_contents(entries, files, chunks, interrupt, &mut |_, _, _| Ok(()))
    })
}

/// Hands over the chunks in a file, decompressed: each is a frame by itself.
fn read_chunks(
    path: &Path,
    read: &mut dyn FnMut(&mut dyn std::io::Read) -> Result<()>,
) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    if file.metadata()?.len() == 0 {
        return read(&mut std::io::empty());
    }
    let mut running = Compression::Zstd
        .decompress()
        .start(file.into(), Stdio::piped())?;
    let mut output = running.stdout().context("zstd writes to a pipe")?;
    let done = read(&mut output);
    if done.is_ok() {
        running.wait()?;
    }
    done
}

/// The roots of bases, by their numbers in a plan.
type Roots = BTreeMap<usize, Dir>;
type Work<'a> = dyn FnMut(&mut Transaction, &Roots) -> Result<()> + 'a;

/// Hands over the roots of bases, by their numbers, mounted to be read.
fn with_bases(
    (context, group, names): (&Context, &Group, &[LvName]),
    tx: &mut Transaction,
    numbers: &[usize],
    opened: &mut Roots,
    work: &mut Work,
) -> Result<()> {
    let Some((number, rest)) = numbers.split_first() else {
        return work(tx, opened);
    };
    let tree = roots::Tree::Volume(names[*number].clone());
    let done = roots::opened(context, tx, group, &tree, |tx, root| {
        opened.insert(*number, Dir::root(root)?);
        let done = with_bases((context, group, names), tx, rest, opened, work);
        // Nothing is held when it is unmounted.
        opened.remove(number);
        done
    })?;
    done.context("this is no dry run")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::oci::layout::Document;

    /// What is told of the tables of layers, of which each is so long.
    fn told(lengths: &[u64]) -> Result<usize> {
        let digest = format!("sha256:{}", "a".repeat(64));
        let of = "application/vnd.oci.image";
        let layer = |length: &u64| {
            let annotation = "io.github.containers.zstd-chunked.manifest";
            format!(
                r#"{{"mediaType":"{of}.layer.v1.tar+zstd","digest":"{digest}","size":1000,
                "annotations":{{"{annotation}-position":"0:9:{length}:1","{annotation}-checksum":"x"}}}}"#
            )
        };
        let layers: Vec<String> = lengths.iter().map(layer).collect();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{of}.config.v1+json","digest":"{digest}","size":1}},
            "layers":[{}]}}"#,
            layers.join(",")
        );
        let Document::Manifest(manifest) = Document::parse(text.as_bytes())? else {
            panic!("{text}");
        };
        Ok(positions(&manifest.layers)?.len())
    }

    #[test]
    fn all_tables_together_are_no_longer_than_one_may_be() {
        let half = Limits::TEXT_MOST / 2;
        assert_eq!(told(&[Limits::TEXT_MOST]).unwrap(), 1);
        assert_eq!(told(&[half, half - 1, 1]).unwrap(), 3);
        let error = told(&[half, half, 1]).unwrap_err();
        assert_eq!(error.to_string(), TOO_MUCH);
    }
}
