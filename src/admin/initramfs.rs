//! The initramfs of a kernel: whether it can boot a layer, and making another in the root that it is of
//! where it cannot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::{comment, filesystem, options_of};
use crate::boot::entry::BootSpec;
use crate::boot::root::Root;
use crate::boot::{BootPartition, Kernels, Known};
use crate::model::image::Initramfs;
use crate::model::kernel_options;
use crate::sys::cmd::Cmd;
use crate::sys::limited::{Limits, run_within};
use crate::sys::rooted::real_path;
use crate::sys::sandbox::{FILE_MAX, Sandbox, process_memory};
use crate::sys::transaction::Transaction;

/// What the helper needs in an initramfs (dracut.modules(7)).
const MODULE: &str = "imgbased";
/// What unlocks disks in it, for a host that has to.
const CRYPT: &str = "crypt";
/// The list of files that dracut has taken from the host because it makes an initramfs for that only, and its kernel
/// options.
const OF_HOST: &str = "*lib/dracut/hostonly-files";
const OPTIONS: &str = "*etc/cmdline.d/*.conf";
/// Of these it takes at least one then, and else none: by its modules systemd and base.
const OF_HOST_ONLY: [&str; 5] = [
    "/etc/nsswitch.conf",
    "/etc/hosts",
    "/etc/hostname",
    "/etc/machine-id",
    "/etc/modprobe.d/",
];
/// How long lsinitrd(1) may take, in seconds. It decompresses all of an initramfs, which takes seconds.
const LIST_SECONDS: u32 = 300;
/// Where that is mounted which dracut can write to.
const SCRATCH: &str = "dracut";

/// What dracut(8) itself reads of /etc, with what is below: what it makes depends on that.
const DRACUT: [&str; 2] = ["dracut.conf", "dracut.conf.d"];
/// What of /etc it can put into an initramfs, with what is below.
const HELD: [&str; 16] = [
    "crypttab",
    "default/keyboard",
    "iscsi",
    "lvm/devices",
    "lvm/lvm.conf",
    "lvm/lvmlocal.conf",
    "mdadm",
    "mdadm.conf",
    "mdadm.conf.d",
    "modprobe.d",
    "modules-load.d",
    "multipath",
    "multipath.conf",
    "nvme",
    "udev/rules.d",
    "vconsole.conf",
];

/// Kernels of a mounted root that can boot a layer. They are on their way to the boot partition: what was
/// read of that before has to be read again.
#[must_use]
pub struct Found {
    kernels: Kernels,
    sandbox: Option<Sandbox>,
    /// Whether a dry run has left an initramfs out that is made.
    lacks_initramfs: bool,
}

/// Looks for the kernels of a mounted root, and makes an initramfs for each that has none which can boot a
/// layer. That can take minutes, for which the lock is free.
pub fn kernels_of(
    tx: &mut Transaction,
    boot: &BootPartition,
    root: &Path,
    known: &Known,
) -> Result<Found> {
    let mut maker = Maker::of(root, known)?;
    let kernels = tx.unlocked(|tx| {
        boot.kernels_of(tx, root, known, &mut |tx, version, initrd| {
            maker.replace(tx, version, initrd)
        })
    })?;
    Ok(Found {
        kernels,
        sandbox: maker.sandbox,
        lacks_initramfs: maker.has_left_out,
    })
}

impl Found {
    /// Copies them to the boot partition, and returns what the entries have to boot. In a dry run that shows only when
    /// each initramfs is there: where one has to be made, nothing is returned, and `boot refresh` does the rest.
    pub fn store(
        self,
        tx: &mut Transaction,
        boot: &BootPartition,
    ) -> Result<Option<Vec<BootSpec>>> {
        if self.lacks_initramfs {
            return Ok(None);
        }
        let specs = boot.store_kernels(tx, self.kernels)?;
        close(tx, self.sandbox.as_ref())?;
        Ok(Some(specs))
    }

    /// Copies nothing.
    pub fn leave(self, tx: &mut Transaction) -> Result<()> {
        close(tx, self.sandbox.as_ref())
    }
}

fn close(tx: &mut Transaction, sandbox: Option<&Sandbox>) -> Result<()> {
    sandbox.map_or(Ok(()), |sandbox| sandbox.close(tx))
}

/// Whether an initramfs can hold a path of /etc, or depend on it.
pub fn can_hold(path: &Path) -> bool {
    let mut all = DRACUT.iter().chain(&HELD);
    all.any(|name| path.starts_with(name))
}

/// Makes the initramfs images of a root anew that hold other files than these of its /etc, which are the host's own, and
/// puts them into its /boot. Where that fails, those of the image stay: they boot as well. That can take minutes, for
/// which the lock is free. Returns whether any was made.
pub fn make_for_host(
    tx: &mut Transaction,
    boot: &BootPartition,
    root: &Path,
    known: &Known,
    host: &[PathBuf],
) -> Result<bool> {
    if host.is_empty() {
        return Ok(false);
    }
    let mut maker = Maker::of(root, known)?;
    let mut is_made = false;
    for kernel in Root::at(root).kernels() {
        let Some(initrd) = kernel.initrd else {
            continue;
        };
        let version = kernel.version;
        // An error that does no harm must not leave the lock to others.
        let made = tx.unlocked(|tx| Ok(maker.add(tx, boot, &version, &initrd.path, host)))?;
        tx.interrupt().check()?;
        match made {
            Ok(made) => is_made |= made,
            Err(error) => log::warn!(
                "the initramfs of Linux {version} stays as in the image, without what this host has changed: {error:#}"
            ),
        }
    }
    close(tx, maker.sandbox.as_ref())?;
    Ok(is_made)
}

/// Those of the host's files that belong into an initramfs which holds these paths, or what its dracut made it by.
fn wanted<'a>(host: &'a [PathBuf], held: &[PathBuf]) -> Vec<&'a Path> {
    let is_wanted = |path: &&Path| {
        let above = path.parent().filter(|above| !above.as_os_str().is_empty());
        // Of a directory that it has files of, it would have this one as well.
        let is_held = held
            .iter()
            .any(|held| held == path || above.is_some_and(|above| held.starts_with(above)));
        is_held || DRACUT.iter().any(|name| path.starts_with(name))
    };
    host.iter()
        .map(PathBuf::as_path)
        .filter(is_wanted)
        .collect()
}

/// The paths below /etc in the listing of an initramfs, as lsinitrd(1) prints it: as `ls -l` does.
fn held(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let name = line.split(" -> ").next()?.split(' ').next_back()?;
        name.strip_prefix("etc/").map(PathBuf::from)
    };
    listing.lines().filter_map(path).collect()
}

/// The root whose initramfs images are looked at.
struct Maker<'a> {
    root: &'a Path,
    /// The modules without which it cannot boot a layer of this host.
    needed: &'static [&'static str],
    /// For its dracut, from when that is needed on.
    sandbox: Option<Sandbox>,
    /// Whether one would have been made, but for a dry run.
    has_left_out: bool,
}

impl<'a> Maker<'a> {
    fn of(root: &'a Path, known: &Known) -> Result<Self> {
        let own = Root::at(root).options()?.unwrap_or_default();
        let before = options_of(known.entries);
        let mut all = [known.options, &own, &before].into_iter();
        let unlocks = all.any(kernel_options::unlocks);
        Ok(Self {
            root,
            needed: if unlocks { &[MODULE, CRYPT] } else { &[MODULE] },
            sandbox: None,
            has_left_out: false,
        })
    }

    /// The first module that an initramfs with these needs as well.
    fn lacking(&self, modules: &[String]) -> Option<&'static str> {
        let mut needed = self.needed.iter().copied();
        needed.find(|needed| modules.iter().all(|module| module != needed))
    }

    /// The file of an initramfs that is made instead of `found`, which is of this kernel version; nothing
    /// if that can boot a layer.
    ///
    /// Refuses where the root cannot make one.
    fn replace(
        &mut self,
        tx: &mut Transaction,
        version: &str,
        found: &Path,
    ) -> Result<Option<PathBuf>> {
        let reason = match modules(tx, found)? {
            Ok(modules) => match self.lacking(&modules) {
                None => return Ok(None),
                Some(module) => format!("it has no dracut module {module}"),
            },
            Err(error) => format!("lsinitrd(1) cannot read it: {error:#}"),
        };
        let reason = format!("{} cannot boot a layer, {reason}", found.display());
        self.make(tx, version, &reason, &[])
    }

    /// Has dracut add what of these files of the host belongs into an initramfs, which another one takes the place of
    /// then. Returns whether that is so.
    fn add(
        &mut self,
        tx: &mut Transaction,
        boot: &BootPartition,
        version: &str,
        initrd: &Path,
        host: &[PathBuf],
    ) -> Result<bool> {
        let held = held(&files_of_etc(tx, initrd)?);
        let wanted = wanted(host, &held);
        let Some(first) = wanted.first() else {
            return Ok(false);
        };
        let reason = format!(
            "the initramfs of Linux {version} lacks what this host has changed, such as /etc/{}",
            first.display()
        );
        let Some(made) = self.make(tx, version, &reason, &wanted)? else {
            return Ok(false);
        };
        boot.check_room_for(&made)?;
        // In its place when it is complete.
        tx.copy(&made, initrd, 0o600)?;
        Ok(true)
    }

    /// Has dracut make an initramfs, for a reason, with these files of /etc if they are there. A dry run leaves it out.
    fn make(
        &mut self,
        tx: &mut Transaction,
        version: &str,
        reason: &str,
        files: &[&Path],
    ) -> Result<Option<PathBuf>> {
        for needed in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            ensure!(
                real_path(self.root, needed).is_ok(),
                "{reason}, and the root has no /{needed} to make another: install dracut and imgbased-helper in it"
            );
        }
        if tx.is_dry_run() {
            self.has_left_out = true;
            comment(&format!(
                "{reason}: dracut makes another, which takes minutes"
            ))?;
            return Ok(None);
        }
        log::warn!("{reason}; dracut makes another, which can take minutes");
        let sandbox = match &mut self.sandbox {
            Some(sandbox) => sandbox,
            none => {
                let scratch = filesystem::mount_point(SCRATCH);
                none.insert(Sandbox::open(tx, self.root, &scratch)?)
            }
        };
        let file = format!("run/initrd-{version}");
        let target = format!("/{file}");
        // It takes a list with blanks, and leaves out what is for one host alone where it is not told of that.
        let is_plain = |path: &&&Path| path.to_str().is_some_and(|path| !path.contains(' '));
        let is_there =
            |path: &&&Path| real_path(self.root, &format!("etc/{}", path.display())).is_ok();
        let files = files.iter().filter(is_plain).filter(is_there);
        let files: Vec<String> = files
            .map(|path| format!("/etc/{}", path.display()))
            .collect();
        let mut dracut = vec![
            "dracut",
            "--quiet",
            "--force",
            "--tmpdir",
            "/run",
            "--no-hostonly",
            "--no-hostonly-cmdline",
        ];
        for file in &files {
            dracut.extend(["--install", file]);
        }
        dracut.extend([target.as_str(), version]);
        sandbox
            .run(tx, &dracut)
            .with_context(|| reason.to_owned())?;
        let made = sandbox.file(&file)?;
        let lacking = match modules(tx, &made)? {
            Ok(modules) => self.lacking(&modules),
            Err(_) => Some(MODULE),
        };
        if let Some(module) = lacking {
            bail!(
                "dracut makes no initramfs with the module {module} of this root; /etc/dracut.conf.d in it may omit it{}",
                if module == CRYPT {
                    ", or cryptsetup(8) is not installed there"
                } else {
                    ""
                }
            );
        }
        Ok(Some(made))
    }
}

/// The dracut modules of an initramfs, or why dracut's own tool cannot tell. What that reads can be made to keep it busy
/// for ever.
fn modules(tx: &Transaction, initramfs: &Path) -> Result<Result<Vec<String>>> {
    let said = told(tx, initramfs, &["--mod"])?;
    let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect();
    Ok(said.map(lines))
}

/// What lsinitrd(1) tells of an initramfs, or why it cannot.
fn told(tx: &Transaction, initramfs: &Path, args: &[&str]) -> Result<Result<String>> {
    let list = Cmd::new("lsinitrd").arg(initramfs).args(args);
    list.check_installed()?;
    limited(tx, &list)
}

/// The lines for what it holds below /etc. All of them would be too many.
fn files_of_etc(tx: &Transaction, initramfs: &Path) -> Result<String> {
    Cmd::new("lsinitrd").check_installed()?;
    let list = Cmd::new("sh").args(["-c", "lsinitrd \"$0\" | { grep ' etc/' || true; }"]);
    limited(tx, &list.arg(initramfs))?.context("lsinitrd(1) cannot read it")
}

fn limited(tx: &Transaction, list: &Cmd) -> Result<Result<String>> {
    let limits = Limits {
        seconds: LIST_SECONDS,
        memory: process_memory()?,
        file: FILE_MAX,
    };
    let said = run_within(list, &limits, tx.interrupt());
    tx.interrupt().check()?;
    Ok(said)
}

/// What an initramfs can do.
pub fn look(tx: &Transaction, initramfs: &Path) -> Result<Initramfs> {
    let modules = match modules(tx, initramfs)? {
        Ok(modules) => modules,
        Err(error) => return Ok(Initramfs::Unread(format!("{error:#}"))),
    };
    // Where it has neither of these files, nothing is told of them.
    let files = told(tx, initramfs, &[OF_HOST, OPTIONS])?;
    let files = files.inspect_err(|error| log::debug!("{}: {error:#}", initramfs.display()));
    let (is_hostonly, of_one_host) = told_of_host(&files.unwrap_or_default());
    Ok(Initramfs::Read {
        has_module: modules.iter().any(|module| module == MODULE),
        is_hostonly,
        of_one_host,
    })
}

/// Whether an initramfs is made for one host, and the kernel options in it that only such a one has, from the lists of
/// both in one text.
fn told_of_host(text: &str) -> (bool, Vec<String>) {
    let mut is_hostonly = false;
    let mut options = Vec::new();
    for line in text.lines() {
        is_hostonly |= OF_HOST_ONLY.iter().any(|file| line.starts_with(file));
        let words = kernel_options::of_one_host(line);
        options.extend(words.into_iter().map(str::to_owned));
    }
    (is_hostonly, options)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::sys::transaction::Writer;

    #[test]
    fn what_is_made_for_one_host_is_told_from_what_is_for_any() {
        const OF_ONE: &str = "initramfs:/*lib/dracut/hostonly-files\n=====\n/etc/systemd/system.conf\n\
            /etc/nsswitch.conf\n/etc/modprobe.d/mdadm.conf\n=====\n\n";
        const OPTIONS: &str = "initramfs:/*etc/cmdline.d/*.conf\n=====\n rd.driver.pre=btrfs\n root=/dev/mapper/a-b \
            rootfstype=ext4\n rd.lvm.lv=a/b\n=====\n";
        const OF_ALL: &str =
            "initramfs:/*lib/dracut/hostonly-files\n=====\n/etc/depmod.d/x.conf\n=====\n";
        for (text, is_hostonly, options) in [
            ("", false, ""),
            (OF_ONE, true, ""),
            (OF_ALL, false, ""),
            (OPTIONS, false, "root=/dev/mapper/a-b rd.lvm.lv=a/b"),
            (
                &[OF_ONE, OPTIONS].concat(),
                true,
                "root=/dev/mapper/a-b rd.lvm.lv=a/b",
            ),
        ] {
            let (found, of_one_host) = told_of_host(text);
            assert_eq!(
                (found, of_one_host.join(" ").as_str()),
                (is_hostonly, options),
                "{text}"
            );
        }
    }

    #[test]
    fn a_dry_run_makes_no_initramfs_and_stores_no_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let make = |maker: &mut Maker| {
            let writer = Writer::new("test", Duration::ZERO, true).unwrap();
            writer.transaction(|tx| maker.make(tx, "9.9", "it is odd", &[]))
        };
        let known = Known {
            entries: &[],
            options: "",
            added: None,
            removed: None,
            is_running: false,
            is_made: false,
        };
        let mut maker = Maker::of(dir.path(), &known).unwrap();
        let error = make(&mut maker).unwrap_err().to_string();
        assert!(error.contains("has no /usr/bin/dracut"), "{error}");
        assert!(!maker.has_left_out);
        for path in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        assert_eq!(make(&mut maker).unwrap(), None);
        assert!(maker.has_left_out && maker.sandbox.is_none());
    }

    #[test]
    fn an_initramfs_is_made_anew_for_what_it_holds_of_the_host() {
        let listing = "drwxr-xr-x   3 root     root            0 Jan  1  1970 etc\n\
            -rw-r--r--   1 root     root           20 Jan  1  1970 etc/vconsole.conf\n\
            -rw-r--r--   1 root     root           20 Jan  1  1970 etc/modprobe.d/lvm.conf\n\
            lrwxrwxrwx   1 root     root           20 Jan  1  1970 etc/iscsi/x -> ../y\n\
            lrwxrwxrwx   1 root     root           20 Jan  1  1970 usr/x -> etc/crypttab\n";
        let held = held(listing);
        let shown = ["vconsole.conf", "modprobe.d/lvm.conf", "iscsi/x"].map(PathBuf::from);
        assert_eq!(held, shown);
        for (path, can, is_wanted) in [
            ("vconsole.conf", true, true),
            ("vconsole.conf.d", false, false),
            ("modprobe.d/own.conf", true, true),
            ("iscsi/initiatorname.iscsi", true, true),
            // The image is for a host without.
            ("crypttab", true, false),
            ("nvme/hostnqn", true, false),
            ("dracut.conf.d/own.conf", true, true),
            ("hostname", false, false),
            ("lvm/lvm.conf", true, false),
            ("lvm/backup", false, false),
        ] {
            let host = [PathBuf::from(path)];
            assert_eq!(can_hold(&host[0]), can, "{path}");
            assert_eq!(!wanted(&host, &held).is_empty(), is_wanted, "{path}");
        }
    }
}
