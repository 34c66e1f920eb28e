//! A QEMU process with its disks.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use tempfile::TempDir;

use super::console::{Console, Echo};
use super::monitor;
use super::store;
use super::tally;

const QEMU: &str = "qemu-system-x86_64";
/// UEFI firmware, and its variables as they are in a new machine (Debian's package `ovmf`).
const OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.fd";
const OVMF_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";
/// The same with Secure Boot on, and the keys of Microsoft enrolled.
const SECURE_OVMF: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const SECURE_VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.ms.fd";
/// That firmware guards its variables in system management mode, and wants to be the only one who can write to them.
const GUARDED: [&str; 6] = [
    "-machine",
    "smm=on",
    "-global",
    "driver=cfi.pflash01,property=secure,value=on",
    "-global",
    "ICH9-LPC.disable_s3=1",
];
/// Where a disk can be plugged in while the machine runs.
const PORT: &str = "later";

/// A drive of a machine: `/dev/vdX` in the order given, `/dev/disk/by-id/virtio-SERIAL` inside.
pub struct Disk {
    path: PathBuf,
    format: &'static str,
    serial: &'static str,
    access: Access,
}

enum Access {
    ReadOnly,
    Write,
    /// What is written is gone with the machine.
    WriteInVain,
    /// What is written, and in which order, is also in this file (see [`super::write_log`]).
    WriteLogged(PathBuf),
}

impl Disk {
    /// A qcow2 file that the machine may write to.
    pub fn writable(path: &Path, serial: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            format: "qcow2",
            serial,
            access: Access::Write,
        }
    }

    /// A file in `format` that the machine may write to, but which stays as it is.
    pub fn forgetful(path: &Path, format: &'static str, serial: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            format,
            serial,
            access: Access::WriteInVain,
        }
    }

    /// A qcow2 file that the machine may write to, and a file for the log of its writes, which is
    /// begun anew.
    pub fn logged(path: &Path, log: &Path, serial: &'static str) -> Result<Self> {
        fs::File::create(log).with_context(|| log.display().to_string())?;
        Ok(Self {
            path: path.to_owned(),
            format: "qcow2",
            serial,
            access: Access::WriteLogged(log.to_owned()),
        })
    }

    /// A raw image that the machine may write to.
    pub fn raw(path: &Path, serial: &'static str) -> Self {
        Self {
            format: "raw",
            ..Self::writable(path, serial)
        }
    }

    /// A raw image that the machine can only read.
    pub fn raw_read_only(path: &Path, serial: &'static str) -> Self {
        Self {
            path: path.to_owned(),
            format: "raw",
            serial,
            access: Access::ReadOnly,
        }
    }

    fn arguments(&self) -> [String; 4] {
        let id = format!("disk-{}", self.serial);
        let (path, format) = (self.path.display(), self.format);
        // cache=unsafe: a flush to the disk of the machine that runs the test proves nothing, for
        // that machine does not lose its power.
        let drive =
            format!("if=none,id={id},file={path},format={format},cache=unsafe,discard=unmap");
        let (option, value) = match &self.access {
            Access::ReadOnly => ("-drive", drive + ",read-only=on"),
            Access::Write => ("-drive", drive),
            Access::WriteInVain => ("-drive", drive + ",snapshot=on"),
            Access::WriteLogged(log) => (
                "-blockdev",
                format!(
                    "driver=blklogwrites,node-name={id},discard=unmap,log-super-update-interval=1,\
                     log.driver=file,log.filename={},log.cache.no-flush=on,\
                     file.driver={format},file.discard=unmap,file.cache.no-flush=on,\
                     file.file.driver=file,file.file.filename={path}",
                    log.display()
                ),
            ),
        };
        [
            option.into(),
            value,
            "-device".into(),
            format!("virtio-blk-pci,drive={id},serial={}", self.serial),
        ]
    }
}

/// A kernel that QEMU starts itself, without firmware and boot loader.
pub struct Kernel<'a> {
    pub vmlinuz: &'a Path,
    pub initrd: &'a Path,
    pub cmdline: &'a str,
}

/// What a machine begins with: the boot sector of its first disk, unless something else is said.
#[derive(Clone, Copy, Default)]
pub struct Start<'a> {
    /// The file in which UEFI keeps its variables; without one the firmware is a BIOS.
    pub variables: Option<&'a Path>,
    /// The firmware starts only what is signed. The variables are those of [`create_secure_variables`].
    pub is_secure: bool,
    pub kernel: Option<&'a Kernel<'a>>,
    /// What [`Vm::save`] left. The disks are the same, in the same order; one that was not in use then
    /// may hold something else now.
    pub saved: Option<&'a Path>,
    /// The machine starts again when its system restarts or panics; it ends otherwise.
    pub restarts: bool,
    /// There is a hardware watchdog, which resets the machine. No saved machine has one.
    pub has_watchdog: bool,
    /// What the firmware starts from before its disks.
    pub medium: Option<Medium<'a>>,
    pub echo: Echo,
}

/// What a machine starts from that has no system on its disk.
#[derive(Clone, Copy)]
pub enum Medium<'a> {
    /// An image on a medium that is put into the machine.
    Dvd(&'a Path),
    UsbStick(&'a Path),
    /// A network. The network card's own firmware, which is iPXE, gets from this directory, by TFTP, the script
    /// `boot.ipxe`.
    Network(&'a Path),
}

impl Medium<'_> {
    fn arguments(self) -> Vec<OsString> {
        let drive = |image: &Path, kind| {
            let image = image.display();
            format!("if=none,id=medium,format=raw,readonly=on,{kind},file={image}")
        };
        // A system with all its programs, and what it writes, is in memory; from a network its image is so as well.
        let (memory, option, value, devices) = match self {
            Self::Dvd(image) => (
                "2G",
                "-drive",
                drive(image, "media=cdrom"),
                &["ide-cd,drive=medium,bootindex=0"][..],
            ),
            Self::UsbStick(image) => (
                "2G",
                "-drive",
                drive(image, "media=disk"),
                &[
                    "qemu-xhci",
                    "usb-storage,drive=medium,removable=on,bootindex=0",
                ][..],
            ),
            Self::Network(directory) => (
                "3G",
                "-netdev",
                format!(
                    "user,id=medium,ipv6=off,tftp={},bootfile=boot.ipxe",
                    directory.display()
                ),
                &["virtio-net-pci,netdev=medium,bootindex=0"][..],
            ),
        };
        let mut arguments: Vec<OsString> = ["-m", memory, option].map(Into::into).into();
        arguments.push(value.into());
        for device in devices {
            arguments.extend(["-device".into(), device.into()]);
        }
        if matches!(self, Self::Network(_)) {
            // What iPXE says goes to the serial line then.
            arguments.extend(["-machine".into(), "graphics=off".into()]);
        }
        arguments
    }
}

impl Start<'_> {
    fn arguments(&self) -> Vec<OsString> {
        let code = if self.is_secure { SECURE_OVMF } else { OVMF };
        let firmware = |variables| firmware(code, variables);
        let mut arguments = self.variables.map_or_else(Vec::new, firmware);
        if self.is_secure {
            arguments.extend(GUARDED.map(Into::into));
        }
        if let Some(kernel) = self.kernel {
            arguments.extend([
                "-kernel".into(),
                kernel.vmlinuz.into(),
                "-initrd".into(),
                kernel.initrd.into(),
                "-append".into(),
                kernel.cmdline.into(),
            ]);
        }
        if let Some(saved) = self.saved {
            let file = format!("file:{}", saved.display());
            arguments.extend(["-incoming".into(), file.into()]);
        }
        if let Some(medium) = self.medium {
            arguments.extend(medium.arguments());
        }
        if self.has_watchdog {
            arguments.extend(["-device".into(), "i6300esb".into()]);
        }
        let action = if self.restarts { "reset" } else { "shutdown" };
        arguments.extend(["-action".into(), format!("reboot={action}").into()]);
        arguments
    }
}

/// What was found in what a machine has said.
pub enum Heard<T> {
    Nothing,
    Found(T),
    /// A question, and what is to be typed.
    Answer(&'static str),
}

/// A running machine. It is killed when this is dropped.
pub struct Vm {
    child: Child,
    pub(super) console: Console,
    /// Holds the monitor's socket.
    directory: TempDir,
    name: String,
    started: Instant,
    pub(super) commands: usize,
}

impl Vm {
    /// Starts a machine with `disks`. `name` is the name of its log in `target/vm/logs`.
    pub fn start(name: &str, disks: &[Disk], start: &Start) -> Result<Self> {
        let log = store::log(name)?;
        // A socket's path is short, that of this directory can be long.
        let directory = tempfile::tempdir().context("making a directory for a socket")?;
        let monitor = directory.path().join("monitor");
        let mut child = Command::new(QEMU)
            .args(machine_arguments())
            .args(disks.iter().flat_map(Disk::arguments))
            .args(start.arguments())
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args([
                "-chardev",
                "stdio,id=line,signal=off",
                "-serial",
                "chardev:line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).with_context(|| log.display().to_string())?)
            .spawn()
            .with_context(|| format!("starting {QEMU}"))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        let console = Console::new(
            input.expect("asked for a pipe above"),
            output.expect("asked for a pipe above"),
            &log,
            start.echo,
            // Nobody is at a machine that starts again by itself. A person who looks on sees what GRUB does.
            !start.restarts && start.echo == Echo::Silent,
        )?;
        let vm = Self {
            child,
            console,
            directory,
            name: name.into(),
            started: Instant::now(),
            commands: 0,
        };
        if start.saved.is_some() {
            tally::restored();
            if let Err(error) = monitor::wait_until_restored(&vm.monitor()) {
                return vm.console.fail(&format!("{error:#}"));
            }
        } else {
            vm.say("started");
        }
        Ok(vm)
    }

    /// Writes the machine's memory and devices to the file `state` and ends it.
    pub fn save(self, state: &Path) -> Result<()> {
        monitor::save(&self.monitor(), state)?;
        self.say("saved");
        Ok(())
    }

    /// Switches the machine off, whatever runs in it. What it has written is on its disks, also what it has not
    /// flushed; a machine that is dropped can lose that.
    pub fn switch_off(mut self) -> Result<()> {
        monitor::quit(&self.monitor())?;
        let status = self.child.wait().context("waiting for QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    fn monitor(&self) -> PathBuf {
        self.directory.path().join("monitor")
    }

    /// Tells the person who waits how far this machine is.
    pub fn say(&self, what: &str) {
        store::say(&format!(
            "{}: {what} ({:.0} s)",
            self.name,
            self.started.elapsed().as_secs_f32()
        ));
    }

    /// Waits until the machine has switched itself off or wants to start again, which ends it as well.
    /// Returns what it has said.
    pub fn wait_for_power_off(mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        let mut seen = self.console.all().len();
        while self.console.wait_for_more(seen, deadline) {
            seen = self.console.all().len();
        }
        if Instant::now() >= deadline {
            return self
                .console
                .fail(&format!("not off within {} s", limit.as_secs()));
        }
        let status = self.child.wait().context("waiting for QEMU")?;
        ensure!(status.success(), "QEMU ended with {status}");
        self.say("switched off");
        Ok(String::from_utf8_lossy(&self.console.all()).into_owned())
    }

    /// Gives `look` all that the machine has said, again whenever that is more, until it finds what is looked
    /// for; `None` if the machine has ended before. Types what `look` asks for.
    pub fn look_for<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&str) -> Heard<T>,
    ) -> Result<Option<T>> {
        let deadline = Instant::now() + limit;
        loop {
            let said = self.console.all();
            match look(&String::from_utf8_lossy(&said)) {
                Heard::Found(found) => return Ok(Some(found)),
                Heard::Answer(keys) => self.console.send(keys)?,
                Heard::Nothing => {}
            }
            if self.console.wait_for_more(said.len(), deadline) {
                continue;
            }
            if Instant::now() >= deadline {
                return self
                    .console
                    .fail(&format!("no {what} within {} s", limit.as_secs()));
            }
            if self.console.all().len() == said.len() {
                return Ok(None);
            }
        }
    }

    /// All that the machine has said.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&self.console.all()).into_owned()
    }

    /// Puts a disk into the running machine.
    pub fn plug(&self, disk: &Disk) -> Result<()> {
        monitor::plug(&self.monitor(), &disk.path, disk.serial, PORT)?;
        self.say(&format!("disk {} plugged in", disk.serial));
        Ok(())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        tally::booted(self.console.starts());
        // Both fail only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// UEFI of this code that keeps its variables in this file.
fn firmware(code: &str, variables: &Path) -> Vec<OsString> {
    let flash = "if=pflash,format=raw";
    vec![
        "-drive".into(),
        format!("{flash},readonly=on,file={code}").into(),
        "-drive".into(),
        format!("{flash},file={}", variables.display()).into(),
    ]
}

/// Makes the file `path` for the variables of a machine with UEFI.
pub fn create_variables(path: &Path) -> Result<()> {
    fs::copy(OVMF_VARIABLES, path)
        .map(drop)
        .with_context(|| OVMF_VARIABLES.to_owned())
}

/// The same with Secure Boot on.
pub fn create_secure_variables(path: &Path) -> Result<()> {
    fs::copy(SECURE_VARIABLES, path)
        .map(drop)
        .with_context(|| SECURE_VARIABLES.to_owned())
}

/// Creates the empty qcow2 file `path` of `size` as qemu-img understands it.
pub fn create_disk(path: &Path, size: &str) -> Result<()> {
    qemu_img(&[
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        path.as_os_str(),
        size.as_ref(),
    ])
}

/// The same with the content of a raw file at its begin.
pub fn create_filled_disk(path: &Path, content: &Path, size: &str) -> Result<()> {
    let options = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"].map(OsStr::new);
    let files = [content.as_os_str(), path.as_os_str(), size.as_ref()];
    qemu_img(&[&options[..], &files].concat())
}

/// Creates the qcow2 file `path` that holds only what differs from `backing`, a file in `format`.
pub fn create_overlay(path: &Path, backing: &Path, format: &str) -> Result<()> {
    qemu_img(&[
        "create".as_ref(),
        "-q".as_ref(),
        "-f".as_ref(),
        "qcow2".as_ref(),
        "-b".as_ref(),
        backing.as_os_str(),
        "-F".as_ref(),
        format.as_ref(),
        path.as_os_str(),
    ])
}

/// Writes what the qcow2 file `from` holds into the raw, sparse file `to`.
pub fn convert_to_raw(from: &Path, to: &Path) -> Result<()> {
    qemu_img(&[
        "convert".as_ref(),
        "-O".as_ref(),
        "raw".as_ref(),
        from.as_os_str(),
        to.as_os_str(),
    ])
}

/// Writes what the qcow2 file `from` holds into the qcow2 file `to`, compressed.
pub fn compress(from: &Path, to: &Path) -> Result<()> {
    qemu_img(&[
        "convert".as_ref(),
        "-c".as_ref(),
        "-O".as_ref(),
        "qcow2".as_ref(),
        from.as_os_str(),
        to.as_os_str(),
    ])
}

fn qemu_img(arguments: &[&OsStr]) -> Result<()> {
    let output = Command::new("qemu-img")
        .args(arguments)
        .output()
        .context("starting qemu-img")?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "qemu-img {arguments:?}: {}",
        error.trim()
    );
    Ok(())
}

static RUNS_ALONE: AtomicBool = AtomicBool::new(true);

/// Gives each machine one processor instead of two from here on: two machines run at a time, and would only
/// wait for each other.
///
/// A second one could be plugged in. With none to come, QEMU translates a locked instruction of the guest as one
/// that is not locked. Linux takes such a one for a memory barrier, and without that the interrupt of a disk is lost
/// now and then: the machine waits for ever.
pub fn run_two_at_a_time() {
    RUNS_ALONE.store(false, Ordering::Relaxed);
}

fn machine_arguments() -> Vec<&'static str> {
    let processors = if RUNS_ALONE.load(Ordering::Relaxed) {
        "2"
    } else {
        "1,maxcpus=2"
    };
    let mut arguments = vec!["-machine", "q35", "-m", "1G", "-smp", processors];
    arguments.extend(if has_kvm() {
        ["-accel", "kvm", "-cpu", "host"]
    } else {
        // What only seems to save time when QEMU has to do it: wide vectors, and virtualisation, for which
        // the guest loads a driver. A digest is twice as fast with its own instructions.
        let cpu = "qemu64,-svm,+ssse3,+sse4.1,+sse4.2,+popcnt,+rdrand,+sha-ni";
        ["-accel", "tcg,thread=multi,tb-size=512", "-cpu", cpu]
    });
    // No screen, network or drive that nobody asked for: the guest would look at each of them.
    arguments.extend(["-nodefaults", "-display", "none"]);
    arguments.extend(["-device", "virtio-rng-pci"]);
    arguments.extend(["-device", "pcie-root-port,id=later,slot=9,chassis=9"]);
    arguments
}

/// Whether KVM works here. The device node alone proves nothing: where the processor has no
/// virtualisation of its own, opening it can hang.
fn has_kvm() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| {
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let flags = cpu
            .lines()
            .find(|line| line.starts_with("flags"))
            .unwrap_or_default();
        flags
            .split_whitespace()
            .any(|flag| flag == "vmx" || flag == "svm")
            && kvm_starts()
    })
}

/// Whether a machine without any disk starts under KVM and can be ended again.
fn kvm_starts() -> bool {
    Command::new("timeout")
        .args([
            "10",
            QEMU,
            "-accel",
            "kvm",
            "-machine",
            "none",
            "-nodefaults",
            "-display",
            "none",
        ])
        .args(["-monitor", "stdio"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
