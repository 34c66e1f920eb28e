//! The root filesystem image with the project's package in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::store;

/// The releases of Debian that machines run.
const SUITES: [&str; 3] = ["bookworm", "trixie", "forky"];

/// The directory that `ci/root-image` filled.
pub struct RootImage(PathBuf);

const DEBIAN_RECIPE: &[u8] = include_bytes!("../../ci/debian-base");

/// The directory with a release of Debian as the archive `root.tar`, without the package.
pub fn debian(suite: &str) -> Result<PathBuf> {
    store::cached(&format!("debian-{suite}"), &[DEBIAN_RECIPE], |new| {
        store::run_script("debian-base", &[Path::new(suite), new]).map(drop)
    })
}

/// An archive with the programs of a registry and of those who fetch from one, which no host has.
pub fn registry_programs() -> Result<PathBuf> {
    let recipe = include_bytes!("../../ci/registry");
    let directory = store::cached("registry-trixie", &[recipe], |new| {
        store::run_script("registry", &[Path::new("trixie"), new]).map(drop)
    })?;
    Ok(directory.join("registry.tar"))
}

/// The package, built from the sources as they are now.
pub fn package() -> Result<&'static PathBuf> {
    static PACKAGE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    store::once(&PACKAGE, || {
        store::say("package: building it");
        Ok(PathBuf::from(store::run_script("package", &[])?))
    })
}

impl RootImage {
    /// The image of the release that most machines run.
    pub fn prepared() -> Result<&'static Self> {
        Self::of("trixie")
    }

    /// The image of a release of Debian, with the package as the sources are now. All tests of this process
    /// share it.
    pub fn of(suite: &'static str) -> Result<&'static Self> {
        static IMAGES: [OnceLock<Result<RootImage, String>>; SUITES.len()] =
            [const { OnceLock::new() }; SUITES.len()];
        let at = SUITES.iter().position(|other| *other == suite);
        let at = at.with_context(|| format!("{suite} is not among {SUITES:?}"))?;
        store::once(&IMAGES[at], || Self::make(suite))
    }

    fn make(suite: &str) -> Result<Self> {
        let debian = debian(suite)?;
        let package = package()?;
        let content = fs::read(package).with_context(|| package.display().to_string())?;
        let recipe = include_bytes!("../../ci/root-image");
        let parts: [&[u8]; 3] = [DEBIAN_RECIPE, recipe, &content];
        let directory = store::cached(&format!("image-{suite}"), &parts, |new| {
            let arguments = [Path::new(suite), new, &debian, package];
            store::run_script("root-image", &arguments).map(drop)
        })?;
        Ok(Self(directory))
    }

    /// A copy of the image at `path`, with what the distribution has signed for Secure Boot.
    pub fn with_signed_loaders(&self, path: &Path) -> Result<()> {
        const PLACES: [(&str, &[&str]); 2] = [
            ("/usr/lib/shim", &["shimx64.efi.signed", "mmx64.efi.signed"]),
            ("/usr/lib/grub/x86_64-efi-signed", &["grubx64.efi.signed"]),
        ];
        let recipe = include_bytes!("../../ci/signed-loaders");
        let signed = store::cached("signed-trixie", &[recipe], |new| {
            store::run_script("signed-loaders", &[Path::new("trixie"), new]).map(drop)
        })?;
        fs::copy(self.filesystem(), path).with_context(|| path.display().to_string())?;
        let mut commands = String::new();
        for (dir, files) in PLACES {
            commands += &format!("mkdir {dir}\ncd {dir}\n");
            for file in files {
                commands += &format!("write {} {file}\n", signed.join(file).display());
            }
            commands += "cd /\n";
        }
        let script = path.with_extension("debugfs");
        fs::write(&script, commands).with_context(|| script.display().to_string())?;
        let output = Command::new("debugfs")
            .args(["-w", "-f"])
            .args([&script, path])
            .output()
            .context("starting debugfs")?;
        ensure!(output.status.success(), "debugfs: {output:?}");
        Ok(())
    }

    /// A key of all that went into the image.
    pub fn key(&self) -> Result<&[u8]> {
        store::key_of(&self.0)
    }

    /// The raw ext4 image.
    pub fn filesystem(&self) -> PathBuf {
        self.0.join("root.img")
    }

    pub fn vmlinuz(&self) -> PathBuf {
        self.0.join("vmlinuz")
    }

    /// An initramfs for any machine.
    pub fn initrd(&self) -> PathBuf {
        self.0.join("initrd.img")
    }

    /// The initramfs that is in the image, with the drivers of the tests' machines only.
    pub fn small_initrd(&self) -> PathBuf {
        self.0.join("initrd-small.img")
    }

    /// The same initramfs, made without the imgbased dracut module.
    pub fn initrd_without_module(&self) -> PathBuf {
        self.0.join("initrd-without-module.img")
    }

    /// An initramfs with the module, but without systemd.
    pub fn initrd_without_systemd(&self) -> PathBuf {
        self.0.join("initrd-without-systemd.img")
    }
}
