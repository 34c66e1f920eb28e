//! What was fetched, and is not needed any more when a base is made of it: images by their digest, parts of them, and
//! the lists that were seen.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, Metadata};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::slice;

use anyhow::{Context, Error, Result, bail, ensure};
use nix::sys::statvfs::statvfs;
use nix::unistd::Uid;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fetch::{Body, CHANGED, Fetcher};
use super::held::{Held, if_free, is_free, locked};
use super::oci::store;
use super::ranges::{Range, after};
use super::response::Validator;
use super::url::Url;
use crate::sys::files::{is_temporary, read_if_there, replace};
use crate::sys::interrupt::Interrupt;
use crate::sys::progress::Progress;

const IMAGE: &str = ".image";
const PART: &str = ".part";
/// Where the part is from.
const ORIGIN: &str = ".json";
const LIST: &str = ".list";
/// The list that named what was fetched last.
const FETCHED: &str = ".fetched";
/// Which files were fetched from a place.
const FILES: &str = ".files";
/// Has the layers of images, see [`super::oci::Store`].
const LAYERS: &str = "layers";
const LAYERS_LOCK: &str = "layers.lock";
/// Parts of layers.
const PIECES: &str = ".pieces";
/// The files of a spool: how many hexadecimal digits their names begin with, and what follows.
const NAMES: [(usize, &str); 7] = [
    (64, IMAGE),
    (64, PART),
    (64, ORIGIN),
    (64, PIECES),
    (16, LIST),
    (16, FETCHED),
    (16, FILES),
];
/// What stays free, in bytes.
pub const SPARE: u64 = 32 << 20;

/// A directory for what is fetched.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
    /// Whether it stays as it is.
    is_frozen: bool,
}

/// What has become of an image that was to be fetched.
#[derive(Debug)]
pub enum Fetched {
    Here(Held),
    /// There is no room for it: so many bytes are needed, and so many are free.
    TooLarge(u64, u64),
}

/// Parts of a file on a server.
pub struct Wanted {
    pub url: Url,
    /// Of the whole file, in bytes.
    pub length: u64,
    /// In their order.
    pub pieces: Vec<Range>,
}

/// Where a part is from: the file on the server, as it was.
#[derive(Serialize, Deserialize)]
struct Origin {
    url: String,
    validator: Validator,
}

impl Spool {
    pub fn at(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            is_frozen: false,
        }
    }

    /// The same, in which no list is kept if `is_frozen`, as in a dry run.
    pub fn frozen(self, is_frozen: bool) -> Self {
        Self { is_frozen, ..self }
    }

    /// Makes the directory. Refuses one that others than root can write to.
    pub fn prepare(&self) -> Result<()> {
        let failed = || format!("cannot make {}", self.dir.display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .with_context(failed)?;
        self.check_own()
    }

    /// Refuses a directory that others than root can write to.
    fn check_own(&self) -> Result<()> {
        let metadata = self.dir.metadata();
        let metadata =
            metadata.with_context(|| format!("cannot look at {}", self.dir.display()))?;
        ensure!(
            is_own(&metadata) && metadata.mode() & 0o022 == 0,
            "others than root can write to {}; what is fetched would not be safe there",
            self.dir.display()
        );
        Ok(())
    }

    fn path(&self, name: &str, suffix: &str) -> PathBuf {
        self.dir.join(format!("{name}{suffix}"))
    }

    /// The image with this digest, if all of it is here.
    pub fn kept(&self, url: &Url, digest: &str, interrupt: &Interrupt) -> Result<Option<Held>> {
        let image = self.path(digest, IMAGE);
        let Some(mut held) = Held::of(&image)? else {
            return Ok(None);
        };
        // It may have been here for long.
        let found = sum(held.file(), &url.name(), interrupt)?;
        if format!("{:x}", found.finalize()) == digest {
            return Ok(Some(held));
        }
        log::warn!("{} is damaged, and was removed", image.display());
        remove(&image)?;
        Ok(None)
    }

    /// How many bytes of an image are here, and whether these are all.
    pub fn have(&self, digest: &str) -> (u64, bool) {
        match self.length(digest, IMAGE) {
            Some(length) => (length, true),
            None => (self.length(digest, PART).unwrap_or(0), false),
        }
    }

    /// How long a file is, in bytes, if it is there.
    fn length(&self, name: &str, suffix: &str) -> Option<u64> {
        Some(self.path(name, suffix).metadata().ok()?.len())
    }

    /// How many bytes of the parts that are called `key` are here.
    pub fn have_pieces(&self, key: &str) -> u64 {
        let part = || self.length(key, PART);
        self.length(key, PIECES).or_else(part).unwrap_or(0)
    }

    /// Fetches the image with this digest, unless it is there. What there is of it already is not fetched again.
    ///
    /// Fails if the server has something else; nothing of that is left then.
    pub fn fetch(&self, fetcher: &Fetcher, url: &Url, digest: &str) -> Result<Fetched> {
        match self.fetch_here(fetcher, url, digest) {
            Err(error) if is_full(&error) => {
                log::warn!("{error:#}");
                Ok(Fetched::TooLarge(fetcher.length(url)?.unwrap_or(1), 0))
            }
            done => done,
        }
    }

    fn fetch_here(&self, fetcher: &Fetcher, url: &Url, digest: &str) -> Result<Fetched> {
        self.prepare()?;
        if let Some(image) = self.kept(url, digest, &fetcher.interrupt)? {
            return Ok(Fetched::Here(image));
        }
        let image = self.path(digest, IMAGE);
        let part = self.path(digest, PART);
        let Some(mut file) = locked(&part)? else {
            bail!("another command is fetching {url}");
        };
        let length = |file: &File| Ok::<_, io::Error>(file.metadata()?.len());
        let before = length(&file)?;
        let whole = self.fill(&mut file, fetcher, url, digest)?;
        if let Some((need, have)) = whole {
            // What came before is gone on from when there is room again.
            let goes_on = before > 0 && length(&file)? == before;
            drop(file);
            if !goes_on {
                self.forget(digest)?;
            }
            return Ok(Fetched::TooLarge(need, have));
        }
        // It is not flushed: what a loss of power makes of it shows in its digest, and a base is made of it soon.
        let held = Held::renamed(file, &part, image)?;
        remove(&self.path(digest, ORIGIN))?;
        Ok(Fetched::Here(held))
    }

    /// Fetches parts of files on servers, one after the other, into one file that is called `key`, unless it is there.
    /// Nothing where a server has no parts. Those that came before something broke are not fetched again.
    pub fn fetch_pieces(
        &self,
        fetcher: &Fetcher,
        key: &str,
        files: &[Wanted],
        label: &str,
    ) -> Result<Option<Held>> {
        self.prepare()?;
        let (pieces, part) = (self.path(key, PIECES), self.path(key, PART));
        if let Some(held) = Held::of(&pieces)? {
            return Ok(Some(held));
        }
        let Some(mut file) = locked(&part)? else {
            bail!("another command is fetching {label}");
        };
        if !fill_pieces(&mut file, fetcher, files, label)? {
            remove(&part)?;
            return Ok(None);
        }
        file.sync_all()
            .with_context(|| format!("cannot write to {}", part.display()))?;
        Held::renamed(file, &part, pieces).map(Some)
    }

    /// Has the part be the whole file, from several beginnings if need be. Returns how much it needs and what is free
    /// where that is too little.
    fn fill(
        &self,
        file: &mut File,
        fetcher: &Fetcher,
        url: &Url,
        digest: &str,
    ) -> Result<Option<(u64, u64)>> {
        let mut restarts = fetcher.patience.tries;
        loop {
            let mut hash = sum(file, &url.name(), &fetcher.interrupt)?;
            let begun = file.stream_position()?;
            if begun > 0 && format!("{:x}", hash.clone().finalize()) == digest {
                return Ok(None);
            }
            let known = self.origin(digest, url);
            let mut body = fetcher.body(url, begun, known)?;
            if body.at() != begun {
                self.begin_anew(file, digest)?;
                hash = Sha256::new();
            }
            let from = body.at();
            let have = self.room()?;
            let need = body.length().map(|length| length.saturating_sub(from));
            if let Some(need) = need.filter(|need| *need > have) {
                return Ok(Some((need, have)));
            }
            self.remember(digest, url, body.validator())?;
            let copied = copy(&mut body, file, &mut hash, &url.name(), have);
            let found = format!("{:x}", hash.finalize());
            if found == digest {
                return Ok(None);
            }
            restarts = restarts.saturating_sub(1);
            match copied {
                Err(error) if FULL.contains(&error.kind()) => {
                    return Ok(Some((from.saturating_add(have).saturating_add(1), have)));
                }
                Err(error) if error.kind() == CHANGED && restarts > 0 => {
                    log::debug!("{error}; it is fetched from the beginning");
                }
                Err(error) => return Err(error.into()),
                Ok(()) if body.is_joined() && restarts > 0 => {}
                Ok(()) => {
                    self.forget(digest)?;
                    bail!("{}", wrong(url, &found, digest, body.is_page()));
                }
            }
            self.begin_anew(file, digest)?;
        }
    }

    fn begin_anew(&self, file: &mut File, digest: &str) -> Result<()> {
        remove(&self.path(digest, ORIGIN))?;
        file.set_len(0)
            .and_then(|()| file.rewind())
            .context("cannot write to the spool")
    }

    /// What the part is of, as far as that is known.
    fn origin(&self, digest: &str, url: &Url) -> Validator {
        let text = read_if_there(&self.path(digest, ORIGIN)).ok().flatten();
        let origin = text.and_then(|text| serde_json::from_slice::<Origin>(&text).ok());
        let origin = origin.filter(|origin| origin.url == url.to_string());
        origin.map(|origin| origin.validator).unwrap_or_default()
    }

    fn remember(&self, digest: &str, url: &Url, validator: &Validator) -> Result<()> {
        let origin = Origin {
            url: url.to_string(),
            validator: validator.clone(),
        };
        write(&self.path(digest, ORIGIN), &serde_json::to_vec(&origin)?)
    }

    /// Removes what there is of an image.
    fn forget(&self, digest: &str) -> Result<()> {
        for suffix in [PART, ORIGIN] {
            remove(&self.path(digest, suffix))?;
        }
        Ok(())
    }

    /// What is kept of a list, if it can be read.
    pub fn list<T: for<'a> Deserialize<'a>>(&self, key: &str) -> Option<T> {
        self.read(key, LIST)
    }

    /// Keeps a list. Without room for that, it is fetched once more the next time.
    pub fn keep_list<T: Serialize>(&self, key: &str, list: &T) -> Result<()> {
        self.keep(key, LIST, list)
    }

    /// The list that named what was fetched last.
    pub fn list_of_fetched<T: for<'a> Deserialize<'a>>(&self, key: &str) -> Option<T> {
        self.read(key, FETCHED)
    }

    pub fn keep_list_of_fetched<T: Serialize>(&self, key: &str, list: &T) -> Result<()> {
        self.keep(key, FETCHED, list)
    }

    /// Remembers that files with these names are fetched from the place `key`.
    pub fn begin<'a>(&self, key: &str, names: impl IntoIterator<Item = &'a str>) -> Result<()> {
        let mut files = self.fetched_from(key);
        let before = files.len();
        files.extend(names.into_iter().map(str::to_owned));
        if files.len() == before {
            return Ok(());
        }
        self.keep(key, FILES, &files)
    }

    /// Removes what was fetched from the place `key` before, now that these files are here. What somebody uses stays.
    pub fn supersede(&self, key: &str, held: &[&Held]) -> Result<()> {
        let mut files = self.fetched_from(key);
        let before = files.len();
        let stays = |name: &String| {
            let mut held = held.iter();
            held.any(|held| name_of((*held).as_ref()).starts_with(name))
        };
        files.retain(|name| {
            let all = [IMAGE, PIECES, ORIGIN, PART].map(|suffix| self.path(name, suffix));
            if !stays(name) {
                for path in &all {
                    if let Err(error) = if_free(&lock_of(path), || remove(path)) {
                        log::warn!("{error:#}");
                    }
                }
            }
            stays(name) || all.iter().any(|path| path.exists())
        });
        if files.len() == before {
            return Ok(());
        }
        self.keep(key, FILES, &files)
    }

    fn fetched_from(&self, key: &str) -> BTreeSet<String> {
        let files: BTreeSet<String> = self.read(key, FILES).unwrap_or_default();
        let files = files.into_iter();
        files.filter(|name| is_digits(name, 64)).collect()
    }

    fn read<T: for<'a> Deserialize<'a>>(&self, key: &str, suffix: &str) -> Option<T> {
        let text = read_if_there(&self.path(key, suffix)).ok().flatten()?;
        serde_json::from_slice(&text).ok()
    }

    fn keep<T: Serialize>(&self, key: &str, suffix: &str, list: &T) -> Result<()> {
        if self.is_frozen {
            return Ok(());
        }
        let list = serde_json::to_vec(list)?;
        let kept = self
            .prepare()
            .and_then(|()| write(&self.path(key, suffix), &list));
        match kept {
            Err(error) if is_full(&error) => {
                log::warn!("the list is not kept: {error:#}");
                Ok(())
            }
            kept => kept,
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How many bytes can be written, so that some stay free.
    pub fn room(&self) -> Result<u64> {
        // It may not be made yet.
        let mut there = self.dir.ancestors().filter(|dir| dir.exists());
        let found = statvfs(there.next().unwrap_or(&self.dir))
            .with_context(|| format!("cannot look at {}", self.dir.display()))?;
        let free = found
            .blocks_available()
            .saturating_mul(found.fragment_size());
        Ok(free.saturating_sub(SPARE))
    }

    pub fn layers(&self) -> PathBuf {
        self.dir.join(LAYERS)
    }

    /// Is locked by who uses the layers.
    pub fn layers_lock(&self) -> PathBuf {
        self.dir.join(LAYERS_LOCK)
    }

    /// What nobody uses now, in an order in which it can be removed. What others have put there stays.
    pub fn unused(&self) -> Vec<PathBuf> {
        let mut found = self.files();
        found.retain(|path| is_free(&lock_of(path)));
        if is_free(&self.layers_lock()) {
            found.extend(self.of_layers());
        }
        found
    }

    /// The files, without those of layers.
    fn files(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = entries(&self.dir)
            .filter(|path| is_of_spool(path) && is_file(path))
            .collect();
        found.sort_unstable();
        found
    }

    /// The layers, if they are of this spool. Their lock goes with the last of them.
    fn of_layers(&self) -> Vec<PathBuf> {
        let (layers, lock) = (self.layers(), self.layers_lock());
        if !self.has_layers() {
            return Vec::new();
        }
        let [blobs, image] = [store::BLOBS, store::IMAGE].map(|name| layers.join(name));
        let of_kind = blobs.join(store::KIND);
        let mut found: Vec<PathBuf> = entries(&of_kind)
            .filter(|path| is_digits(&name_of(path), 64) && is_file(path))
            .collect();
        found.extend(is_dir(&image).then_some(image));
        for dir in [of_kind, blobs, layers.clone()] {
            let is_empty_then = entries(&dir).all(|path| found.contains(&path));
            found.extend((is_dir(&dir) && is_empty_then).then_some(dir));
        }
        let is_last = found.contains(&layers) || !layers.exists();
        found.extend(is_last.then_some(lock));
        found
    }

    /// Whether the directory for layers is one of this spool: somebody else's has no lock of root's beside it.
    pub fn has_layers(&self) -> bool {
        let lock = fs::symlink_metadata(self.layers_lock());
        lock.is_ok_and(|lock| lock.is_file() && is_own(&lock))
    }

    /// Removes what nobody uses now. Refuses a directory that others than root can write to.
    pub fn remove_unused(&self) -> Result<()> {
        self.check_own()?;
        for path in self.files() {
            if_free(&lock_of(&path), || remove(&path))?;
        }
        if_free(&self.layers_lock(), || {
            self.of_layers().iter().try_for_each(|path| {
                let removed = match is_dir(path) {
                    true if path.ends_with(store::IMAGE) => fs::remove_dir_all(path),
                    true => fs::remove_dir(path),
                    false => fs::remove_file(path),
                };
                removed.with_context(|| format!("cannot remove {}", path.display()))
            })
        })
    }
}

/// What a disk says that takes no more.
const FULL: [io::ErrorKind; 3] = [
    io::ErrorKind::StorageFull,
    io::ErrorKind::QuotaExceeded,
    io::ErrorKind::ReadOnlyFilesystem,
];

/// Whether something has failed since the disk takes no more.
pub fn is_full(error: &Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let cause = cause.downcast_ref::<io::Error>();
        cause.is_some_and(|error| FULL.contains(&error.kind()))
    })
}

/// The file that who uses another one has locked.
fn lock_of(path: &Path) -> PathBuf {
    if name_of(path).ends_with(ORIGIN) {
        return path.with_extension(&PART[1..]);
    }
    path.to_owned()
}

/// What a directory has; nothing if there is none.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let listed = fs::read_dir(dir).into_iter().flatten().flatten();
    listed.map(|entry| entry.path())
}

fn name_of(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
}

fn is_dir(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_dir())
}

/// Whether it is root's, or in a test that of who runs it.
fn is_own(found: &Metadata) -> bool {
    [0, Uid::effective().as_raw()].contains(&found.uid())
}

/// Whether a file has a name that only a spool gives. A kill leaves temporary ones as well.
fn is_of_spool(path: &Path) -> bool {
    let name = name_of(path);
    let is_named = |(digits, suffix): &(usize, &str)| {
        let begin = name.strip_suffix(suffix);
        begin.is_some_and(|begin| is_digits(begin, *digits))
    };
    is_temporary(path) || NAMES.iter().any(is_named)
}

/// Whether a text is so many hexadecimal digits, as a digest is written here.
fn is_digits(text: &str, count: usize) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.len() == count && text.bytes().all(is_digit)
}

/// Why a file is not taken.
pub fn wrong(url: &Url, found: &str, wanted: &str, is_page: bool) -> String {
    let page = if is_page {
        ", and the server calls it a web page: log in, or correct the address"
    } else {
        ""
    };
    format!("{url} has the SHA-256 {found}, and not {wanted}{page}")
}

/// The hash of a file up to its end, where it is left.
pub fn sum(file: &mut File, label: &str, interrupt: &Interrupt) -> Result<Sha256> {
    let failed = || format!("cannot read what there is of {label}");
    let mut progress = Progress::new(label, file.metadata().with_context(failed)?.len());
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut done = file.seek(SeekFrom::Start(0)).with_context(failed)?;
    loop {
        interrupt.check()?;
        let count = file.read(&mut buffer).with_context(failed)?;
        if count == 0 {
            return Ok(hash);
        }
        hash.update(&buffer[..count]);
        done += count as u64;
        progress.show(done);
    }
}

/// Appends what comes, so many bytes at most: not each server says before how many there are.
fn copy(
    body: &mut Body,
    file: &mut File,
    hash: &mut Sha256,
    label: &str,
    most: u64,
) -> io::Result<()> {
    let mut progress = Progress::new(label, body.length().unwrap_or(0)).after(body.at());
    let mut buffer = vec![0; 256 << 10];
    let mut left = most;
    loop {
        let count = body.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        left = left
            .checked_sub(count as u64)
            .ok_or(io::ErrorKind::StorageFull)?;
        file.write_all(&buffer[..count])?;
        hash.update(&buffer[..count]);
        progress.show(body.at());
    }
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    replace(path, 0o600, |file| file.write_all(content))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Fetches those parts into a file, after what it has of them already. Returns whether the servers have parts.
fn fill_pieces(file: &mut File, fetcher: &Fetcher, files: &[Wanted], label: &str) -> Result<bool> {
    let mut there = file.seek(SeekFrom::End(0))?;
    let mut done = there;
    let mut progress = Progress::new(label, bytes(files)).after(done);
    for wanted in files {
        let left = after(&wanted.pieces, there);
        there = there.saturating_sub(bytes(slice::from_ref(wanted)));
        let mut tell = |more| {
            done += more;
            progress.show(done);
        };
        if !fetcher.pieces(&wanted.url, &left, wanted.length, file, &mut tell)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// How much those parts are, in bytes.
pub fn bytes(files: &[Wanted]) -> u64 {
    let pieces = files.iter().flat_map(|file| &file.pieces);
    let bytes = pieces.map(|piece| piece.end.saturating_sub(piece.from));
    bytes.fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// The paths below a directory, without those that only lead to others.
    fn left(dir: &Path, below: &str) -> Vec<String> {
        let mut found = Vec::new();
        for path in entries(dir) {
            let name = format!("{below}{}", name_of(&path));
            let inside = if is_dir(&path) {
                left(&path, &format!("{name}/"))
            } else {
                Vec::new()
            };
            found.extend(inside.is_empty().then_some(name));
            found.extend(inside);
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn what_is_not_of_the_spool_stays() {
        let (digest, key) = ("0123456789abcdef".repeat(4), "0123456789abcdef");
        let foreign = [
            "packages.list",
            "creds.json",
            "vm.image",
            "movie.part",
            &format!("{}.image", digest.to_uppercase()),
            &format!("{digest}.raw"),
            &format!("{}.image", &digest[1..]),
            &format!("{digest}.list"),
            &format!("{key}.image"),
            "notes.tmp",
        ];
        let own = [
            format!("{digest}.image"),
            format!("{digest}.part"),
            format!("{digest}.json"),
            format!("{digest}.pieces"),
            format!("{key}.list"),
            format!("{key}.fetched"),
            format!("{key}.files"),
            ".imgbased-Ab3d.tmp".to_owned(),
        ];
        for (has_lock, of_layers, stays) in [
            (
                false,
                &["layers/a.tar", "layers/image/x"][..],
                &["layers/a.tar", "layers/image/x"][..],
            ),
            (true, &["layers/image/index.json"], &[]),
            (
                true,
                &[
                    "layers/image/x",
                    "layers/a.tar",
                    "layers/blobs/sha256/README",
                ],
                &["layers.lock", "layers/a.tar", "layers/blobs/sha256/README"],
            ),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let at = |name: &str| dir.path().join(name);
            let put = |name: &str| {
                fs::create_dir_all(at(name).parent().unwrap()).unwrap();
                fs::write(at(name), "x").unwrap();
            };
            let own = own.iter().map(String::as_str);
            for name in own.chain(foreign).chain(of_layers.iter().copied()) {
                put(name);
            }
            let blob = format!("layers/blobs/sha256/{digest}");
            if has_lock {
                put("layers.lock");
                put(&blob);
            }
            // A name of ours, but no file.
            let link = format!("{}.image", "a".repeat(64));
            symlink("creds.json", at(&link)).unwrap();
            let spool = Spool::at(dir.path());
            spool.remove_unused().unwrap();
            let mut wanted: Vec<String> = foreign
                .iter()
                .chain(stays)
                .map(|it| (*it).to_owned())
                .collect();
            wanted.push(link);
            wanted.sort_unstable();
            assert_eq!(left(dir.path(), ""), wanted);
            assert_eq!(spool.unused(), Vec::<PathBuf>::new());
        }
    }

    #[test]
    fn what_is_used_stays_until_nobody_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(dir.path());
        let name = |suffix| spool.path(&"a".repeat(64), suffix);
        for suffix in [IMAGE, PIECES, PART, ORIGIN] {
            fs::write(name(suffix), "x").unwrap();
        }
        let image = [Held::of(&name(IMAGE)), Held::of(&name(IMAGE))];
        let pieces = Held::of(&name(PIECES)).unwrap().unwrap();
        // With a part, what says where it is from stays as well.
        let part = locked(&name(PART)).unwrap().unwrap();
        assert!(locked(&name(PART)).unwrap().is_none());
        assert_eq!(spool.unused(), Vec::<PathBuf>::new());
        spool.remove_unused().unwrap();
        assert_eq!(spool.files().len(), 4);
        drop((image, part));
        spool.remove_unused().unwrap();
        assert_eq!(spool.files(), [name(PIECES)]);
        // Under its new name, what was written is not free for a moment.
        let part = locked(&name(PART)).unwrap().unwrap();
        let image = Held::renamed(part, &name(PART), name(IMAGE)).unwrap();
        assert_eq!(spool.unused(), Vec::<PathBuf>::new());
        drop((image, pieces));
        assert_eq!(spool.unused().len(), 2);
        assert!(Held::of(&name(PART)).unwrap().is_none());
    }

    #[test]
    fn what_was_fetched_before_from_a_place_gives_way() {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::at(dir.path());
        let names = ["a", "b", "c", "d"].map(|digit| digit.repeat(64));
        let [one, two, three, other] = names.each_ref().map(String::as_str);
        let [key, another] = ["0", "1"].map(|digit| digit.repeat(16));
        let put = |name: &str, suffix| fs::write(spool.path(name, suffix), "x").unwrap();
        let held = |name: &str, suffix| Held::of(&spool.path(name, suffix)).unwrap().unwrap();
        let is_here = |name: &str| {
            let all = [IMAGE, PIECES, PART, ORIGIN].map(|suffix| spool.path(name, suffix));
            all.iter().any(|path| path.exists())
        };
        spool.begin(&another, [other]).unwrap();
        put(other, IMAGE);
        spool.begin(&key, [one]).unwrap();
        put(one, IMAGE);
        // One that was never finished.
        spool.begin(&key, [one, two]).unwrap();
        put(two, PART);
        put(two, ORIGIN);
        let used = held(one, IMAGE);
        spool.begin(&key, [three]).unwrap();
        put(three, PIECES);
        assert!(names.iter().all(|name| is_here(name)));
        let now = held(three, PIECES);
        spool.supersede(&key, &[&now]).unwrap();
        assert_eq!(
            names.each_ref().map(|name| is_here(name)),
            [true, false, true, true]
        );
        // What was used then goes the next time.
        drop(used);
        spool.supersede(&key, &[&now]).unwrap();
        assert_eq!(
            names.each_ref().map(|name| is_here(name)),
            [false, false, true, true]
        );
    }

    #[test]
    fn nothing_is_removed_where_others_can_write() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o777)).unwrap();
        let error = Spool::at(dir.path()).remove_unused().unwrap_err();
        assert!(error.to_string().contains("others than root"), "{error}");
    }
}
