//! What was downloaded or built before: kept in `target/vm` under a key of all that went into it,
//! and checked before it is used again.

use std::cell::RefCell;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::fcntl::{Flock, FlockArg};

use super::emulator::forgiven;

const SUMS: &str = "SHA256SUMS";

/// The directory for everything that the tests download, build or record.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm")
}

/// The path of the log called `name`.
pub fn log(name: &str) -> Result<PathBuf> {
    let logs = root().join("logs");
    fs::create_dir_all(&logs).with_context(|| logs.display().to_string())?;
    Ok(logs.join(name).with_extension("log"))
}

thread_local! {
    /// What the scenario of this thread has asked [`scratch`] for.
    static SCRATCH: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// An empty directory for the disks of the scenario `name`.
pub fn scratch(name: &str) -> Result<PathBuf> {
    let directory = root().join("scratch").join(name);
    remove_if_there(&directory)?;
    fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
    SCRATCH.with_borrow_mut(|made| made.push(directory.clone()));
    Ok(directory)
}

/// Ends with the directories of this thread's scenario. They are kept for somebody who wants to know why the
/// scenario failed; all of them together would fill a disk.
pub fn clear_scratch(keep: bool) -> Result<()> {
    for directory in SCRATCH.take() {
        if !keep {
            remove_if_there(&directory)?;
        }
    }
    Ok(())
}

static IS_QUIET: AtomicBool = AtomicBool::new(false);

/// Has [`say`] show nothing from here on: somebody else tells what goes on.
pub fn be_quiet() {
    IS_QUIET.store(true, Ordering::Relaxed);
}

/// Shows one line of progress, also while the test runner holds back what tests print.
pub fn say(line: &str) {
    if IS_QUIET.load(Ordering::Relaxed) {
        return;
    }
    // Nobody is there to read it if this fails.
    let _ = writeln!(std::io::stderr(), "==> {line}");
}

/// Returns what `make` made when it was first called for `cell`, or the error that it met then.
pub fn once<T>(
    cell: &'static OnceLock<Result<T, String>>,
    make: impl FnOnce() -> Result<T>,
) -> Result<&'static T> {
    cell.get_or_init(|| make().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("{error}"))
}

/// Returns the directory `NAME-KEY`, the key being made of `parts`. If it is missing or its files
/// are not those that were made, `make` fills a new one, and what other keys left is removed.
pub fn cached(name: &str, parts: &[&[u8]], make: impl Fn(&Path) -> Result<()>) -> Result<PathBuf> {
    let _only_one = lock(name)?;
    let directory = root().join(format!("{name}-{}", key(parts)));
    if directory.exists() {
        if is_intact(&directory)? {
            say(&format!("{name}: as made before"));
            return Ok(directory);
        }
        say(&format!("{name}: the copy made before is damaged"));
    }
    say(&format!("{name}: making it"));
    let started = Instant::now();
    let new = root().join(format!("new-{name}"));
    // Others start from it: where the emulator fails, it is not for the scenario that came first alone.
    forgiven(name, || {
        remove_if_there(&new)?;
        fs::create_dir(&new).with_context(|| new.display().to_string())?;
        make(&new).with_context(|| format!("making {name}"))
    })?;
    seal(&new)?;
    remove_others(name)?;
    fs::rename(&new, &directory).with_context(|| directory.display().to_string())?;
    say(&format!(
        "{name}: made in {} s",
        started.elapsed().as_secs()
    ));
    Ok(directory)
}

/// The key of a directory that [`cached`] has returned, with its name.
pub fn key_of(directory: &Path) -> Result<&[u8]> {
    let name = directory
        .file_name()
        .context("a cached directory has a name")?;
    Ok(name.as_encoded_bytes())
}

/// Runs a script of `ci/` with its output in a log; returns what it printed on stdout, trimmed.
pub fn run_script(script: &str, arguments: &[&Path]) -> Result<String> {
    let log = log(script)?;
    let stderr = fs::File::create(&log).with_context(|| log.display().to_string())?;
    let output = Command::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("ci")
            .join(script),
    )
    .args(arguments)
    .stdin(Stdio::null())
    .stderr(stderr)
    .output()
    .with_context(|| format!("starting ci/{script}"))?;
    if !output.status.success() {
        let text = fs::read_to_string(&log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(30)..].join("\n");
        bail!(
            "ci/{script}: {}\n--- end of {} ---\n{tail}",
            output.status,
            log.display()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().into())
}

/// Holds other processes that want the same thing until the result is dropped.
fn lock(name: &str) -> Result<Flock<fs::File>> {
    fs::create_dir_all(root()).with_context(|| root().display().to_string())?;
    let path = root().join(format!("{name}.lock"));
    let file = fs::File::create(&path).with_context(|| path.display().to_string())?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("flock")
}

fn key(parts: &[&[u8]]) -> String {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

fn is_intact(directory: &Path) -> Result<bool> {
    let status = Command::new("sha256sum")
        .args(["--check", "--status", "--strict", SUMS])
        .current_dir(directory)
        .stderr(Stdio::null())
        .status()
        .context("starting sha256sum")?;
    Ok(status.success())
}

/// Writes the sums that [`is_intact`] checks.
fn seal(directory: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        names.push(entry?.file_name());
    }
    let output = Command::new("sha256sum")
        .arg("--")
        .args(names)
        .current_dir(directory)
        .output()
        .context("starting sha256sum")?;
    ensure!(
        output.status.success(),
        "sha256sum: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(directory.join(SUMS), output.stdout).with_context(|| directory.display().to_string())
}

fn remove_others(name: &str) -> Result<()> {
    let prefix = format!("{name}-");
    for entry in fs::read_dir(root())? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", directory.display()))
        }
        _ => Ok(()),
    }
}
