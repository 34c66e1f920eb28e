//! The initramfs of a kernel: whether it can boot a layer, and making another in the root that it is of
//! where it cannot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::{comment, filesystem};
use crate::boot::entry::BootSpec;
use crate::boot::{BootPartition, Kernels, Known};
use crate::sys::cmd::Cmd;
use crate::sys::limited::{Limits, run_within};
use crate::sys::rooted::real_path;
use crate::sys::sandbox::{FILE_MAX, Sandbox, process_memory};
use crate::sys::transaction::Transaction;

/// What the helper needs in an initramfs (dracut.modules(7)).
const MODULE: &str = "imgbased";
/// How long lsinitrd(1) may take, in seconds. It decompresses all of an initramfs, which takes seconds.
const LIST_SECONDS: u32 = 300;
/// Where that is mounted which dracut can write to.
const SCRATCH: &str = "dracut";

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
    let mut maker = Maker::of(root);
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

/// The root whose initramfs images are looked at.
struct Maker<'a> {
    root: &'a Path,
    /// For its dracut, from when that is needed on.
    sandbox: Option<Sandbox>,
    /// Whether one would have been made, but for a dry run.
    has_left_out: bool,
}

impl<'a> Maker<'a> {
    fn of(root: &'a Path) -> Self {
        Self {
            root,
            sandbox: None,
            has_left_out: false,
        }
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
            Ok(modules) if modules.iter().any(|module| module == MODULE) => return Ok(None),
            Ok(_) => format!("it has no dracut module {MODULE}"),
            Err(error) => format!("lsinitrd(1) cannot read it: {error:#}"),
        };
        self.make(tx, version, found, &reason)
    }

    /// Has dracut make another one than `found`, which is not used for a reason. A dry run leaves it out.
    fn make(
        &mut self,
        tx: &mut Transaction,
        version: &str,
        found: &Path,
        reason: &str,
    ) -> Result<Option<PathBuf>> {
        let shown = found.display();
        for needed in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            ensure!(
                real_path(self.root, needed).is_ok(),
                "{shown} cannot boot a layer, {reason}, and the root has no /{needed} to make one that can: \
                 install dracut and imgbased-helper in it"
            );
        }
        if tx.is_dry_run() {
            self.has_left_out = true;
            comment(&format!(
                "{shown} cannot boot a layer, {reason}: dracut makes another, which takes minutes"
            ))?;
            return Ok(None);
        }
        log::warn!("{shown} is not used, {reason}; dracut makes another, which can take minutes");
        let sandbox = match &mut self.sandbox {
            Some(sandbox) => sandbox,
            none => {
                let scratch = filesystem::mount_point(SCRATCH);
                none.insert(Sandbox::open(tx, self.root, &scratch)?)
            }
        };
        let file = format!("run/initrd-{version}");
        let dracut = [
            "dracut",
            "--quiet",
            "--force",
            "--tmpdir",
            "/run",
            "--no-hostonly",
            "--no-hostonly-cmdline",
            &format!("/{file}"),
            version,
        ];
        sandbox
            .run(tx, &dracut)
            .with_context(|| format!("{shown} cannot boot a layer, {reason}"))?;
        let made = sandbox.file(&file)?;
        ensure!(
            modules(tx, &made)?.is_ok_and(|modules| modules.iter().any(|module| module == MODULE)),
            "dracut makes no initramfs with the module {MODULE} of this root; \
             /etc/dracut.conf.d in it may omit it"
        );
        Ok(Some(made))
    }
}

/// The dracut modules of an initramfs, or why dracut's own tool cannot tell. What that reads can be made to keep it busy
/// for ever.
fn modules(tx: &Transaction, initramfs: &Path) -> Result<Result<Vec<String>>> {
    let list = Cmd::new("lsinitrd").arg("--mod").arg(initramfs);
    list.check_installed()?;
    let limits = Limits {
        seconds: LIST_SECONDS,
        memory: process_memory()?,
        file: FILE_MAX,
    };
    let said = run_within(&list, &limits, tx.interrupt());
    tx.interrupt().check()?;
    let lines = |text: String| text.lines().map(|line| line.trim().to_owned()).collect();
    Ok(said.map(lines))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::sys::transaction::Writer;

    #[test]
    fn a_dry_run_makes_no_initramfs_and_stores_no_kernels() {
        let dir = tempfile::tempdir().unwrap();
        let make = |maker: &mut Maker| {
            let writer = Writer::new("test", Duration::ZERO, true).unwrap();
            let initrd = dir.path().join("boot/initrd.img-9.9");
            writer.transaction(|tx| maker.make(tx, "9.9", &initrd, "it is odd"))
        };
        let mut maker = Maker::of(dir.path());
        let error = make(&mut maker).unwrap_err().to_string();
        assert!(error.contains("has no /usr/bin/dracut"), "{error}");
        assert!(!maker.has_left_out);
        for path in ["usr/bin/dracut", "usr/lib/dracut/modules.d/50imgbased"] {
            fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        assert_eq!(make(&mut maker).unwrap(), None);
        assert!(maker.has_left_out && maker.sandbox.is_none());
    }
}
