//! What a root filesystem brings for booting: its kernel, initramfs, options and name.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rpm_version::rpm_evr_compare;

use super::entry;

/// A kernel and its initramfs, as files of the mounted root.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    pub image: PathBuf,
    pub initrd: PathBuf,
}

pub struct Fstab {
    pub path: PathBuf,
    pub text: String,
}

/// A root filesystem mounted somewhere. Links in it that lead out of it are not followed, since it
/// can come from anywhere.
pub struct System<'a> {
    root: &'a Path,
    /// A boot partition, which hides the root's own /boot while it is mounted there.
    boot: Option<&'a Path>,
}

impl<'a> System<'a> {
    pub fn at(root: &'a Path) -> Self {
        Self { root, boot: None }
    }

    /// The same root with the boot partition `boot`, where its kernels may have been installed.
    pub fn with_boot(self, boot: &'a Path) -> Self {
        Self {
            boot: Some(boot),
            ..self
        }
    }

    /// The newest kernel that has an initramfs: of those in the root, else of those on the boot
    /// partition that the root has modules for.
    ///
    /// Refuses a root without; the error says what was looked for.
    pub fn kernel(&self) -> Result<Kernel> {
        newest(self.kernel_images(), |version| self.initrd(version))
            .or_else(|| self.kernel_on(self.boot?))
            .context(
                "no kernel with an initramfs was found: /boot/vmlinuz-VERSION or \
                 /usr/lib/modules/VERSION/vmlinuz, with /boot/initrd.img-VERSION or \
                 /boot/initramfs-VERSION.img",
            )
    }

    fn kernel_images(&self) -> Vec<(String, PathBuf)> {
        let in_boot = self.names_in("boot").into_iter().filter_map(|name| {
            let version = name.strip_prefix("vmlinuz-")?.to_owned();
            Some((version, format!("boot/{name}")))
        });
        let in_modules = self.names_in("usr/lib/modules").into_iter().map(|version| {
            (
                version.clone(),
                format!("usr/lib/modules/{version}/vmlinuz"),
            )
        });
        in_boot
            .chain(in_modules)
            .filter(|(version, _)| is_version(version))
            .filter_map(|(version, path)| Some((version, self.file(&path)?)))
            .collect()
    }

    fn kernel_on(&self, boot: &Path) -> Option<Kernel> {
        let file = |name: String| Some(boot.join(name)).filter(|path| path.is_file());
        let images = self
            .names_in("usr/lib/modules")
            .into_iter()
            .filter(|version| is_version(version))
            .filter_map(|version| Some((version.clone(), file(format!("vmlinuz-{version}"))?)))
            .collect();
        newest(images, |version| {
            initrd_names(version).into_iter().find_map(file)
        })
    }

    fn initrd(&self, version: &str) -> Option<PathBuf> {
        let mut names = initrd_names(version).into_iter();
        names.find_map(|name| self.file(&format!("boot/{name}")))
    }

    /// The kernel options that the image asks for, in /etc/kernel/cmdline (kernel-install(8)).
    pub fn options(&self) -> Result<Option<String>> {
        let Some(path) = self.file("etc/kernel/cmdline") else {
            return Ok(None);
        };
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(entry::without_layer_options(&text)))
    }

    /// The fstab, if there is one.
    pub fn fstab(&self) -> Result<Option<Fstab>> {
        let Some(path) = self.file("etc/fstab") else {
            return Ok(None);
        };
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let text =
            String::from_utf8(text).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some(Fstab { path, text }))
    }

    /// How often a new layer is tried, in /etc/kernel/tries (kernel-install(8)).
    pub fn tries(&self) -> Result<Option<u32>> {
        let Some(path) = self.file("etc/kernel/tries") else {
            return Ok(None);
        };
        let read = || format!("cannot read {}", path.display());
        let text = fs::read_to_string(&path).with_context(read)?;
        text.trim().parse().map(Some).with_context(read)
    }

    /// The name of the operating system (os-release(5)).
    pub fn name(&self) -> String {
        let text = ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|path| fs::read_to_string(self.file(path)?).ok())
            .unwrap_or_default();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map(|value| value.trim().trim_matches(['"', '\'']))
            .filter(|value| !value.is_empty())
            .unwrap_or("Linux");
        entry::plain_title(name)
    }

    fn names_in(&self, dir: &str) -> Vec<String> {
        let Some(path) = self.inside(dir) else {
            return Vec::new();
        };
        let Ok(files) = fs::read_dir(path) else {
            return Vec::new();
        };
        files
            .flatten()
            .filter_map(|file| file.file_name().into_string().ok())
            .collect()
    }

    fn file(&self, path: &str) -> Option<PathBuf> {
        self.inside(path).filter(|path| path.is_file())
    }

    /// The real path, unless a link on the way leads out of the root.
    fn inside(&self, path: &str) -> Option<PathBuf> {
        let root = self.root.canonicalize().ok()?;
        let path = root.join(path).canonicalize().ok()?;
        path.starts_with(&root).then_some(path)
    }
}

/// As Debian and Fedora name it.
fn initrd_names(version: &str) -> [String; 2] {
    [
        format!("initrd.img-{version}"),
        format!("initramfs-{version}.img"),
    ]
}

fn newest(
    images: Vec<(String, PathBuf)>,
    initrd: impl Fn(&str) -> Option<PathBuf>,
) -> Option<Kernel> {
    let kernels = images.into_iter().filter_map(|(version, image)| {
        let initrd = initrd(&version)?;
        Some(Kernel {
            version,
            image,
            initrd,
        })
    });
    kernels.max_by(|a, b| rpm_evr_compare(&a.version, &b.version))
}

/// A kernel version that can be a part of a file name and of an entry.
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.len() <= 100
        && version
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._+~-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    #[test]
    fn kernels_on_the_boot_partition_are_found_by_the_modules_of_the_root() {
        let root = tree(&["usr/lib/modules/6.1.0-9/modules.dep", "etc/fstab"]);
        let boot = tree(&[
            "vmlinuz-6.1.0-9",
            "initramfs-6.1.0-9.img",
            "vmlinuz-6.5.0",
            "initrd.img-6.5.0",
        ]);
        assert!(System::at(root.path()).kernel().is_err());
        let found = System::at(root.path())
            .with_boot(boot.path())
            .kernel()
            .unwrap();
        assert_eq!(found.version, "6.1.0-9");
        assert_eq!(found.initrd, boot.path().join("initramfs-6.1.0-9.img"));
    }

    #[test]
    fn the_newest_kernel_is_found_by_version_not_by_text() {
        let dir = tree(&[
            "boot/vmlinuz-6.1.0-80-amd64",
            "boot/initrd.img-6.1.0-80-amd64",
            "boot/vmlinuz-6.1.0-240-amd64",
            "boot/initrd.img-6.1.0-240-amd64",
            "boot/vmlinuz-6.1.0-300-amd64",
            "boot/vmlinuz-x y",
            "boot/initrd.img-x y",
        ]);
        let kernel = System::at(dir.path()).kernel().unwrap();
        assert_eq!(kernel.version, "6.1.0-240-amd64");
        assert_eq!(
            fs::read_to_string(kernel.initrd).unwrap(),
            "boot/initrd.img-6.1.0-240-amd64"
        );
    }

    #[test]
    fn kernels_beside_their_modules_are_found() {
        let dir = tree(&["usr/lib/modules/6.9.1/vmlinuz", "boot/initramfs-6.9.1.img"]);
        assert_eq!(System::at(dir.path()).kernel().unwrap().version, "6.9.1");
    }

    #[test]
    fn links_out_of_the_image_are_not_followed() {
        let dir = tree(&["boot/initrd.img-1", "etc/x"]);
        let outside = tree(&["secret"]);
        symlink(
            outside.path().join("secret"),
            dir.path().join("boot/vmlinuz-1"),
        )
        .unwrap();
        symlink(
            "../../../../../../etc/os-release",
            dir.path().join("etc/os-release"),
        )
        .unwrap();
        symlink(outside.path(), dir.path().join("etc/kernel")).unwrap();
        let system = System::at(dir.path());
        let error = system.kernel().unwrap_err().to_string();
        assert!(error.contains("no kernel with an initramfs"), "{error}");
        assert_eq!(system.name(), "Linux");
        assert_eq!(system.options().unwrap(), None);
    }

    #[test]
    fn name_and_options_of_an_image() {
        let dir = tree(&[]);
        fs::create_dir_all(dir.path().join("etc/kernel")).unwrap();
        fs::create_dir_all(dir.path().join("usr/lib")).unwrap();
        fs::write(
            dir.path().join("etc/kernel/cmdline"),
            "root=/dev/x console=ttyS0\nquiet\n",
        )
        .unwrap();
        fs::write(
            dir.path().join("usr/lib/os-release"),
            "ID=debian\nPRETTY_NAME=\"Debian 13 (trixie)\"\n",
        )
        .unwrap();
        symlink("../usr/lib/os-release", dir.path().join("etc/os-release")).unwrap();
        let system = System::at(dir.path());
        assert_eq!(
            system.options().unwrap().as_deref(),
            Some("console=ttyS0 quiet")
        );
        assert_eq!(system.name(), "Debian 13 (trixie)");
    }
}
