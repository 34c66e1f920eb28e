//! What a root filesystem brings for booting: its kernel, initramfs, options and name.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rpm_version::rpm_evr_compare;

use super::entry;
use crate::model::grub_defaults;
use crate::model::kernel_options::without_ours;
use crate::model::os_release::OsRelease;
use crate::sys::rooted::real_path;

/// The largest text that is read of a root, in bytes.
const TEXT_MAX: u64 = 1 << 20;

/// Directories of a boot partition with what is of no system's kernel-install(8).
const OTHERS: [&str; 5] = ["EFI", "grub", "grub2", "imgbased", "loader"];

/// A kernel of a root and where its files are, if they were found.
#[derive(Debug, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    pub image: Option<Source>,
    pub initrd: Option<Source>,
}

/// A file of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    pub path: PathBuf,
    /// Whether it is of this root for certain, and not of another one that has the boot partition as well.
    pub is_own: bool,
}

pub struct Fstab {
    /// Where it is, without links.
    pub path: PathBuf,
    pub text: Vec<u8>,
}

/// A root filesystem mounted somewhere. It can come from anywhere: links in it are followed as it follows them
/// itself, and none leads out of it.
pub struct Root<'a> {
    dir: &'a Path,
    /// A boot partition, which hides the root's own /boot while it is mounted there.
    boot: Option<&'a Path>,
    /// Whether this is the root that runs: then its packages put their kernels on the boot partition.
    is_running: bool,
}

impl<'a> Root<'a> {
    pub fn at(dir: &'a Path) -> Self {
        Self {
            dir,
            boot: None,
            is_running: false,
        }
    }

    /// The same root, if it is the one that runs.
    pub fn running(self, is_running: bool) -> Self {
        Self { is_running, ..self }
    }

    /// The same root with the boot partition `boot`, where its kernels may have been installed.
    pub fn with_boot(self, boot: &'a Path) -> Self {
        Self {
            boot: Some(boot),
            ..self
        }
    }

    /// The kernels, the newest first: those that the root has modules for. In a root without modules,
    /// the images that are in it.
    pub fn kernels(&self) -> Vec<Kernel> {
        let mut versions = self.names_in("usr/lib/modules");
        versions.retain(|version| self.has_modules(version));
        if versions.is_empty() && !self.shares_boot() {
            let images = self.names_in("boot").into_iter();
            versions = images
                .filter_map(|name| Some(name.strip_prefix("vmlinuz-")?.to_owned()))
                .collect();
        }
        versions.retain(|version| is_version(version));
        versions.sort_unstable_by(|a, b| rpm_evr_compare(b, a));
        // GRUB's reader of entries would take theirs for one.
        versions.dedup_by(|a, b| rpm_evr_compare(a, b).is_eq());
        let kernel = |version: String| Kernel {
            image: self.image(&version),
            initrd: self.initrd(&version),
            version,
        };
        versions.into_iter().map(kernel).collect()
    }

    /// Fails where some of the names cannot be read among which kernels are looked for.
    pub fn check_readable(&self) -> io::Result<()> {
        for dir in ["boot", "usr/lib/modules"] {
            match real_path(self.dir, dir) {
                Ok(path) => fs::read_dir(path)?.try_for_each(|name| name.map(drop))?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What generated files a removed kernel leaves in its directory does not count.
    fn has_modules(&self, version: &str) -> bool {
        let dir = format!("usr/lib/modules/{version}");
        self.inside(&format!("{dir}/kernel"))
            .is_some_and(|path| path.is_dir())
            || self.file(&format!("{dir}/vmlinuz")).is_some()
    }

    /// Whether the root's own /boot is the boot partition, with the kernels of other roots as well.
    fn shares_boot(&self) -> bool {
        let partition = self.boot.and_then(|boot| boot.canonicalize().ok());
        partition.is_some() && self.inside("boot") == partition
    }

    fn image(&self, version: &str) -> Option<Source> {
        let [names, _] = names_of(version);
        let in_boot = self.file_in_boot(&names);
        let in_modules = || {
            let path = self.file(&format!("usr/lib/modules/{version}/vmlinuz"))?;
            Some(Source { path, is_own: true })
        };
        match in_boot {
            Some(file) if file.is_own => Some(file),
            shared => in_modules()
                .or(shared)
                .or_else(|| self.file_by_version(version, "linux")),
        }
    }

    fn initrd(&self, version: &str) -> Option<Source> {
        let [_, names] = names_of(version);
        self.file_in_boot(&names)
            .or_else(|| self.file_by_version(version, "initrd"))
    }

    /// Where kernel-install(8) puts files on the boot partition that the Boot Loader Specification describes: in a
    /// directory of the system, in one of the kernel version. The latest of several systems.
    fn file_by_version(&self, version: &str, name: &str) -> Option<Source> {
        let systems = fs::read_dir(self.boot?).ok()?.flatten();
        let is_of_others = |system: &OsStr| OTHERS.iter().any(|other| *other == system);
        let systems = systems.filter(|system| !is_of_others(&system.file_name()));
        let paths = systems.map(|system| system.path().join(version).join(name));
        let time = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
        let path = paths.filter(|path| path.is_file()).max_by_key(time)?;
        let is_own = self.is_running;
        Some(Source { path, is_own })
    }

    /// The first of these in the root's own /boot or on the boot partition: first where its packages
    /// write.
    fn file_in_boot(&self, names: &[String]) -> Option<Source> {
        let own = || {
            let mut names = names.iter();
            let path = names.find_map(|name| self.file(&format!("boot/{name}")))?;
            Some(Source { path, is_own: true })
        };
        let there = || {
            let mut paths = names.iter().map(|name| Some(self.boot?.join(name)));
            let path = paths.find_map(|path| path.filter(|path| path.is_file()))?;
            let is_own = self.is_running;
            Some(Source { path, is_own })
        };
        if self.is_running {
            there().or_else(own)
        } else {
            own().or_else(there)
        }
    }

    /// The kernel options that the root asks for: in /etc/kernel/cmdline (kernel-install(8)), else, if
    /// there are any, in /etc/default/grub.
    pub fn options(&self) -> Result<Option<String>> {
        if let Some(text) = self.text("etc/kernel/cmdline")? {
            return Ok(Some(without_ours(&text)));
        }
        // Whatever is in its comments.
        let text = self.read("etc/default/grub")?.unwrap_or_default().1;
        let text = String::from_utf8_lossy(&text);
        let options = grub_defaults::options(&text).unwrap_or_else(|error| {
            log::warn!("the kernel options in /etc/default/grub are not used: {error}");
            String::new()
        });
        let options = without_ours(&options);
        Ok(Some(options).filter(|options| !options.is_empty()))
    }

    fn text(&self, path: &str) -> Result<Option<String>> {
        let found = self.read(path)?;
        found
            .map(|(path, content)| text_of(&path, content))
            .transpose()
    }

    /// The fstab, if there is one.
    pub fn fstab(&self) -> Result<Option<Fstab>> {
        let Some((path, text)) = self.read("etc/fstab")? else {
            return Ok(None);
        };
        Ok(Some(Fstab { path, text }))
    }

    /// How often a new layer is tried, in /etc/kernel/tries (kernel-install(8)).
    pub fn tries(&self) -> Result<Option<u32>> {
        let Some((path, content)) = self.read("etc/kernel/tries")? else {
            return Ok(None);
        };
        let number = text_of(&path, content)?.trim().parse().map(Some);
        number.with_context(|| format!("cannot read {}", path.display()))
    }

    fn os_release_text(&self) -> String {
        ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|path| self.text(path).ok()?)
            .unwrap_or_default()
    }

    /// Which product the root is, and which version.
    pub fn os_release(&self) -> OsRelease {
        OsRelease::parse(&self.os_release_text())
    }

    /// For which processor its programs are: the machine in the head of one (elf(5)).
    pub fn machine(&self) -> Option<u16> {
        let mut paths = ["usr/lib/systemd/systemd", "usr/bin/sh", "bin/sh"].into_iter();
        let program = paths.find_map(|path| self.file(path))?;
        let mut head = [0; 20];
        File::open(program).ok()?.read_exact(&mut head).ok()?;
        head.starts_with(b"\x7fELF")
            .then(|| u16::from_le_bytes([head[18], head[19]]))
    }

    /// The name of the operating system (os-release(5)).
    pub fn name(&self) -> String {
        let text = self.os_release_text();
        let name = text
            .lines()
            .find_map(|line| line.strip_prefix("PRETTY_NAME="))
            .map(|value| value.trim().trim_matches(['"', '\'']))
            .filter(|value| !value.is_empty())
            .unwrap_or("Linux");
        // A backslash stands before what a shell would read as something else.
        entry::plain_title(&name.replace('\\', ""))
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

    /// A file that people write, and where it is. Refuses one that is too large for that.
    fn read(&self, path: &str) -> Result<Option<(PathBuf, Vec<u8>)>> {
        let Some(path) = self.file(path) else {
            return Ok(None);
        };
        let read = || -> Result<Vec<u8>> {
            let mut content = Vec::new();
            File::open(&path)?
                .take(TEXT_MAX + 1)
                .read_to_end(&mut content)?;
            ensure!(
                content.len() as u64 <= TEXT_MAX,
                "it has more than {} KiB",
                TEXT_MAX >> 10
            );
            Ok(content)
        };
        let content = read().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Some((path, content)))
    }

    fn file(&self, path: &str) -> Option<PathBuf> {
        self.inside(path).filter(|path| path.is_file())
    }

    /// The real path of what is there.
    fn inside(&self, path: &str) -> Option<PathBuf> {
        real_path(self.dir, path).ok()
    }
}

/// What the image and the initramfs of a kernel version are called in /boot, as Debian and Fedora do.
pub fn names_of(version: &str) -> [Vec<String>; 2] {
    [
        vec![format!("vmlinuz-{version}")],
        vec![
            format!("initrd.img-{version}"),
            format!("initramfs-{version}.img"),
        ],
    ]
}

fn text_of(path: &Path, content: Vec<u8>) -> Result<String> {
    String::from_utf8(content).with_context(|| format!("cannot read {}", path.display()))
}

/// A kernel version that can be a part of a file name and of an entry. uname(2) gives no longer one.
fn is_version(version: &str) -> bool {
    version.starts_with(|c: char| c.is_ascii_digit())
        && version.len() <= 64
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

    fn versions(system: &Root) -> Vec<String> {
        system.kernels().into_iter().map(|k| k.version).collect()
    }

    #[test]
    fn kernels_on_the_boot_partition_are_found_by_the_modules_of_the_root() {
        let root = tree(&[
            "usr/lib/modules/6.1.0-9/kernel/fs/ext4.ko",
            "usr/lib/modules/6.4.0/kernel/fs/ext4.ko",
            "usr/lib/modules/6.5.0/modules.dep",
        ]);
        let boot = tree(&[
            "vmlinuz-6.1.0-9",
            "initramfs-6.1.0-9.img",
            "vmlinuz-6.4.0",
            "vmlinuz-6.5.0",
            "initrd.img-6.5.0",
        ]);
        let kernels = Root::at(root.path()).with_boot(boot.path()).kernels();
        let on_partition = |name: &str| {
            Some(Source {
                path: boot.path().join(name),
                is_own: false,
            })
        };
        let kernel = |version: &str, image, initrd| Kernel {
            version: version.to_owned(),
            image,
            initrd,
        };
        assert_eq!(
            kernels,
            [
                kernel("6.4.0", on_partition("vmlinuz-6.4.0"), None),
                kernel(
                    "6.1.0-9",
                    on_partition("vmlinuz-6.1.0-9"),
                    on_partition("initramfs-6.1.0-9.img")
                ),
            ]
        );
    }

    #[test]
    fn the_files_are_taken_from_where_the_packages_of_the_root_write() {
        let root = tree(&["usr/lib/modules/6.1/kernel/ext4.ko", "boot/vmlinuz-6.1"]);
        let boot = tree(&["vmlinuz-6.1", "initrd.img-6.1"]);
        for (is_running, image) in [
            (false, root.path().join("boot")),
            (true, boot.path().into()),
        ] {
            let system = Root::at(root.path()).with_boot(boot.path());
            let kernel = system.running(is_running).kernels().remove(0);
            assert_eq!(kernel.image.unwrap().path, image.join("vmlinuz-6.1"));
            let initrd = kernel.initrd.unwrap();
            assert!(initrd.path.starts_with(boot.path()));
            assert_eq!(initrd.is_own, is_running);
        }
    }

    /// As kernel-install(8) does on Fedora and EL with systemd-boot.
    #[test]
    fn files_are_found_where_the_boot_loader_specification_has_them() {
        let modules = "usr/lib/modules/6.2/kernel/ext4.ko";
        let root = tree(&["usr/lib/modules/6.2/vmlinuz", modules]);
        let boot = tree(&["abc/6.2/linux", "abc/6.2/initrd", "loader/6.2/initrd"]);
        for is_running in [true, false] {
            let system = Root::at(root.path()).with_boot(boot.path());
            let kernel = system.running(is_running).kernels().remove(0);
            let image = root.path().join("usr/lib/modules/6.2/vmlinuz");
            assert_eq!(kernel.image.unwrap().path, image);
            let initrd = kernel.initrd.unwrap();
            assert_eq!(initrd.path, boot.path().join("abc/6.2/initrd"));
            assert_eq!(initrd.is_own, is_running);
        }
        fs::remove_file(root.path().join("usr/lib/modules/6.2/vmlinuz")).unwrap();
        let system = Root::at(root.path()).with_boot(boot.path());
        let image = system.kernels().remove(0).image.unwrap();
        assert_eq!(image.path, boot.path().join("abc/6.2/linux"));
    }

    #[test]
    fn a_root_whose_names_cannot_be_read_is_not_judged() {
        let dir = tree(&["etc/x"]);
        let is_readable = || Root::at(dir.path()).check_readable().is_ok();
        assert!(is_readable());
        fs::create_dir_all(dir.path().join("usr/lib/modules/6.1")).unwrap();
        assert!(is_readable());
        fs::write(dir.path().join("boot"), "").unwrap();
        assert!(!is_readable());
    }

    #[test]
    fn images_without_modules_count_in_a_root_of_its_own_only() {
        let dir = tree(&["boot/vmlinuz-6.1", "boot/initrd.img-6.1"]);
        let boot = dir.path().join("boot");
        assert_eq!(versions(&Root::at(dir.path())), ["6.1"]);
        let running = Root::at(dir.path()).with_boot(&boot).running(true);
        assert!(versions(&running).is_empty());
    }

    #[test]
    fn kernels_are_ordered_by_version_not_by_text() {
        let dir = tree(&[
            "boot/vmlinuz-6.1.0-80-amd64",
            "boot/initrd.img-6.1.0-80-amd64",
            "boot/vmlinuz-6.1.0-240-amd64",
            "boot/initrd.img-6.1.0-240-amd64",
            "boot/vmlinuz-6.1.0-300-amd64",
            "boot/vmlinuz-x y",
            "boot/initrd.img-x y",
        ]);
        let kernels = Root::at(dir.path()).kernels();
        assert_eq!(
            versions(&Root::at(dir.path())),
            ["6.1.0-300-amd64", "6.1.0-240-amd64", "6.1.0-80-amd64"]
        );
        assert_eq!(kernels[0].initrd, None);
        let initrd = fs::read_to_string(&kernels[1].initrd.as_ref().unwrap().path);
        assert_eq!(initrd.unwrap(), "boot/initrd.img-6.1.0-240-amd64");
    }

    #[test]
    fn kernels_beside_their_modules_are_found() {
        let dir = tree(&["usr/lib/modules/6.9.1/vmlinuz", "boot/initramfs-6.9.1.img"]);
        let kernels = Root::at(dir.path()).kernels();
        assert_eq!(kernels[0].version, "6.9.1");
        assert!(kernels[0].image.is_some() && kernels[0].initrd.is_some());
    }

    #[test]
    fn options_of_grub_count_where_the_root_has_no_others() {
        let dir = tree(&[]);
        let options = || Root::at(dir.path()).options().unwrap();
        fs::create_dir_all(dir.path().join("etc/default")).unwrap();
        let grub = dir.path().join("etc/default/grub");
        for (text, expected) in [
            ("GRUB_CMDLINE_LINUX=''\n", None),
            ("GRUB_CMDLINE_LINUX=\"$x\"\n", None),
            (
                "GRUB_CMDLINE_LINUX='root=x a'\nGRUB_CMDLINE_LINUX_DEFAULT=b\n",
                Some("a b"),
            ),
        ] {
            fs::write(&grub, text).unwrap();
            assert_eq!(options().as_deref(), expected, "{text}");
        }
        fs::create_dir_all(dir.path().join("etc/kernel")).unwrap();
        fs::write(dir.path().join("etc/kernel/cmdline"), "c\n").unwrap();
        assert_eq!(options().as_deref(), Some("c"));
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
        let system = Root::at(dir.path());
        assert_eq!(system.kernels()[0].image, None);
        assert_eq!(system.name(), "Linux");
        assert_eq!(system.options().unwrap(), None);
    }

    #[test]
    fn an_absolute_link_begins_at_the_root_that_it_is_in() {
        let dir = tree(&["usr/lib/boot/vmlinuz-1", "boot/initrd.img-1", "etc/x"]);
        fs::write(dir.path().join("usr/lib/os-release"), "PRETTY_NAME=Image").unwrap();
        symlink("/usr/lib/os-release", dir.path().join("etc/os-release")).unwrap();
        symlink("/usr/lib/boot/vmlinuz-1", dir.path().join("boot/vmlinuz-1")).unwrap();
        let system = Root::at(dir.path());
        let image = dir.path().canonicalize().unwrap();
        let image = image.join("usr/lib/boot/vmlinuz-1");
        let kernel = system.kernels().remove(0);
        assert_eq!(kernel.image.map(|image| image.path), Some(image));
        assert_eq!(system.name(), "Image");
    }

    #[test]
    fn a_text_that_is_too_large_is_refused() {
        let dir = tree(&["etc/kernel/x"]);
        let path = dir.path().join("etc/kernel/cmdline");
        let options = |length| {
            fs::write(&path, vec![b'a'; length]).unwrap();
            Root::at(dir.path())
                .options()
                .map(Option::unwrap_or_default)
        };
        assert_eq!(options(1 << 20).unwrap().len(), 1 << 20);
        let error = format!("{:#}", options((1 << 20) + 1).unwrap_err());
        assert!(error.contains("it has more than 1024 KiB"), "{error}");
    }

    #[test]
    fn an_fstab_that_is_a_link_is_that_of_the_root() {
        let dir = tree(&["usr/share/fstab", "etc/x"]);
        let root = dir.path().canonicalize().unwrap();
        let outside = tree(&["secret"]);
        let secret = outside.path().join("secret");
        for (target, is_found) in [
            (Path::new("/usr/share/fstab"), true),
            (Path::new("../usr/share/fstab"), true),
            (Path::new("../../../usr/share/fstab"), true),
            (Path::new("/proc/mounts"), false),
            (&secret, false),
            (Path::new("fstab"), false),
        ] {
            symlink(target, root.join("etc/fstab")).unwrap();
            let found = Root::at(dir.path()).fstab().unwrap();
            let found = found.map(|fstab| (fstab.path, fstab.text));
            let text = b"usr/share/fstab".to_vec();
            let expected = is_found.then(|| (root.join("usr/share/fstab"), text));
            assert_eq!(found, expected, "{target:?}");
            fs::remove_file(root.join("etc/fstab")).unwrap();
        }
        fs::write(root.join("etc/fstab"), b"# \xff").unwrap();
        assert_eq!(
            Root::at(dir.path()).fstab().unwrap().unwrap().text,
            b"# \xff"
        );
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
        let system = Root::at(dir.path());
        assert_eq!(
            system.options().unwrap().as_deref(),
            Some("console=ttyS0 quiet")
        );
        assert_eq!(system.name(), "Debian 13 (trixie)");
    }
}
