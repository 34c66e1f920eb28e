//! GRUB as a program: `grub-emu` runs the same scripts on the same file systems, and writes with the same
//! `save_env`. What belongs to firmware is not there, nor is the quoting of kernel options: they come
//! with single spaces and without quotes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use imgbased_helper::sys::files::read_if_there;

/// A start takes 0.05 s, or longer on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);
/// GRUB's size of a terminal.
const ROWS: u16 = 24;
const COLUMNS: u16 = 80;

/// How an environment block begins.
pub const SIGNATURE: &str = "# GRUB Environment Block\n";

/// What GRUB shows where it waits for somebody.
pub const SIGNS: [(&str, Start); 3] = [
    (
        "Failed to boot both default and fallback entries",
        Start::Nothing,
    ),
    ("Enter username:", Start::Prompt),
    ("grub> ", Start::Prompt),
];
/// The same, each time when it draws its menu.
const MENU: &str = "keys to select which entry is highlighted";
/// GRUB goes on after ten seconds, or a key.
const ANY_KEY: &str = "Press any key to continue...";

/// What a boot loader does when the machine is switched on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Kernel(Kernel),
    /// The machine starts again.
    Restart,
    /// It shows the menu until somebody picks an entry.
    Menu,
    /// It waits for a name or a command.
    Prompt,
    /// Its default cannot be booted.
    Nothing,
}

/// What a boot loader hands over to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// Paths on the boot partition.
    pub linux: String,
    pub initrd: Option<String>,
    pub options: String,
}

impl Kernel {
    pub fn layer(&self) -> Option<&str> {
        let mut words = self.options.split(' ');
        words.find_map(|word| word.strip_prefix("imgbased.layer="))
    }

    /// As the name of the copy says, which ends in a digest.
    pub fn version(&self) -> &str {
        let name = self
            .linux
            .rsplit_once("/vmlinuz-")
            .map_or("", |(_, name)| name);
        name.rsplit_once('-').map_or(name, |(version, _)| version)
    }

    pub fn is_trial(&self) -> bool {
        self.options.split(' ').any(|word| word == "imgbased.trial")
    }
}

impl fmt::Display for Start {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(kernel) => {
                f.write_str(kernel.layer().unwrap_or("another system"))?;
                f.write_str(if kernel.is_trial() { " on trial" } else { "" })
            }
            Self::Restart => f.write_str("restart"),
            Self::Menu => f.write_str("menu"),
            Self::Prompt => f.write_str("prompt"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// What can be switched on, and has its boot partition in a directory.
pub trait Machine {
    /// What the entries of its hosts have beside the words that name a layer.
    fn options(&self) -> &'static str;

    /// Switches it on, and keeps what the boot loader has written. Types `keys` when a menu waits for
    /// somebody.
    fn start(&mut self, keys: Option<&str>) -> Result<Start>;

    /// What it has shown in the last start.
    fn screen(&self) -> String;
}

/// GRUB without a machine.
pub struct Emulator {
    boot: PathBuf,
    /// Where the emulator runs.
    dir: PathBuf,
    /// What it has shown in the last start.
    shown: Vec<u8>,
}

impl Emulator {
    pub fn new(boot: &Path, dir: &Path) -> Result<Self> {
        let image = dir.join("image");
        fs::create_dir(dir)?;
        fs::write(dir.join("map"), format!("(hd0) {}\n", image.display()))?;
        // The emulator reads everything from the image but the kernel and its initramfs.
        symlink(boot, dir.join("(hd0)"))?;
        Ok(Self {
            boot: boot.to_owned(),
            dir: dir.to_owned(),
            shown: Vec::new(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var("PATH").unwrap_or_default();
        let bin = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/grub/bin");
        command
            .current_dir(&self.dir)
            .env("PATH", format!("{bin}:{path}:/usr/sbin:/sbin"))
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "dumb")
            .stdin(Stdio::null());
        command
    }

    /// Runs the emulator until it ends, with this exit status, or waits for somebody.
    fn watch(&mut self, keys: Option<&str>) -> Result<Result<Start, i32>> {
        // It wants a terminal.
        let mut script = self.command("script");
        script.args(["-qefc", "grub-emu -X -m map -d /grub -r hd0", "/dev/null"]);
        let mut script = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let script = script
            .as_mut()
            .map_err(|error| anyhow::anyhow!("cannot run script: {error}"))?;
        let mut input = script.stdin.take().context("it is a pipe")?;
        let mut output = script.stdout.take().context("it is a pipe")?;
        let (sender, receiver) = mpsc::channel();
        let reader = thread::spawn(move || {
            let mut part = [0; 4096];
            while let Ok(length @ 1..) = output.read(&mut part) {
                if sender.send(part[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        self.shown.clear();
        let deadline = Instant::now() + LIMIT;
        let (mut menus, mut continued) = (0, 0);
        let sign = loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match receiver.recv_timeout(left) {
                Ok(part) => self.shown.extend(part),
                Err(RecvTimeoutError::Disconnected) => break None,
                Err(RecvTimeoutError::Timeout) => {
                    script.kill()?;
                    bail!("GRUB came to no end:\n{}", self.screen());
                }
            }
            let shown = String::from_utf8_lossy(&self.shown);
            if let (Some(keys), 0, 1..) = (keys, menus, shown.matches(MENU).count()) {
                input.write_all(keys.as_bytes())?;
                menus = 1;
            }
            if shown.matches(MENU).count() > menus {
                break Some(Start::Menu);
            }
            if let Some((_, start)) = SIGNS.iter().find(|(sign, _)| shown.contains(sign)) {
                break Some(start.clone());
            }
            let asked = shown.matches(ANY_KEY).count();
            for _ in continued..asked {
                input.write_all(b" ")?;
            }
            continued = asked;
        };
        if sign.is_some() {
            // Its terminal goes with it, and so does the emulator.
            script.kill()?;
        }
        let status = script.wait()?.code();
        reader
            .join()
            .map_err(|_| anyhow::anyhow!("the reader failed"))?;
        match sign {
            Some(start) => Ok(Ok(start)),
            None => Ok(Err(status.context("script was killed")?)),
        }
    }

    /// Copies the environment block from the image.
    fn keep_environment(&self) -> Result<()> {
        let path = self.boot.join("grub/grubenv");
        if path.exists() {
            run(self
                .command("debugfs")
                .args(["-R", "dump /grub/grubenv grubenv", "image"]))?;
            fs::copy(self.dir.join("grubenv"), path)?;
        }
        Ok(())
    }
}

impl Machine for Emulator {
    fn options(&self) -> &'static str {
        "quiet"
    }

    fn screen(&self) -> String {
        let mut parser = vt100::Parser::new(ROWS, COLUMNS, 0);
        parser.process(&self.shown);
        parser.screen().contents()
    }

    fn start(&mut self, keys: Option<&str>) -> Result<Start> {
        let log = self.dir.join("kexec.log");
        if log.exists() {
            fs::remove_file(&log)?;
        }
        run(self
            .command("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-d"])
            .arg(&self.boot)
            .args(["image", "8M"]))?;
        let status = match self.watch(keys)? {
            Ok(start) => return self.keep_environment().map(|()| start),
            Err(status) => status,
        };
        self.keep_environment()?;
        // Killed by our systemctl, or out of its own will.
        match (status, read_if_there(&log)?) {
            (143, Some(log)) => Ok(Start::Kernel(kernel(&String::from_utf8(log)?)?)),
            (0, None) => Ok(Start::Restart),
            _ => bail!(
                "grub-emu ended with status {status}; is it there (ci/deps installs it), and 2.12 or newer?\n{}",
                self.screen()
            ),
        }
    }
}

/// The variables that are not empty, of an environment block that must be whole.
pub fn variables(block: &[u8]) -> Result<BTreeMap<String, String>> {
    ensure!(block.len() == 1024, "grubenv has {} bytes", block.len());
    let text = std::str::from_utf8(block)?;
    let lines = text
        .strip_prefix(SIGNATURE)
        .context("it has no signature")?;
    let variables = lines.lines().filter_map(|line| line.split_once('='));
    let variables = variables.filter(|(_, value)| !value.is_empty());
    Ok(variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect())
}

/// Reads the arguments of kexec(8).
fn kernel(arguments: &str) -> Result<Kernel> {
    let value = |key: &str| arguments.lines().find_map(|line| line.strip_prefix(key));
    let on_partition = |path: &str| path.strip_prefix("(hd0)").map(str::to_owned);
    Ok(Kernel {
        linux: value("(hd0)").context("no kernel")?.to_owned(),
        initrd: value("--initrd=").and_then(on_partition),
        options: value("--command-line=").context("no options")?.to_owned(),
    })
}

/// Runs a program, which has to succeed.
pub fn run(command: &mut Command) -> Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
