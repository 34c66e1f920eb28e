//! What starts the host: GRUB or systemd-boot, put in place by the programs of this system, and where the firmware starts
//! only what is signed, the files of the image.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::plan::{self, BIOS_TARGET, Loader, Plan, UEFI_TARGET, Use};
use crate::boot::root::Root;
use crate::sys::cmd::Cmd;
use crate::sys::files::directory;
use crate::sys::rooted::real_path;
use crate::sys::transaction::Transaction;

/// Our configuration of GRUB, as the package installs it.
const GRUB_CONFIG: &str = "/usr/share/imgbased-helper/grub.cfg";
/// Where GRUB's modules are, and the packages that bring those of a platform: of Debian, and of Fedora.
const GRUB_MODULES: &str = "/usr/lib/grub";
const GRUB_PACKAGES: [(&str, &str); 2] = [
    (BIOS_TARGET, "grub-pc-bin or grub2-pc-modules"),
    (UEFI_TARGET, "grub-efi-amd64-bin or grub2-efi-x64-modules"),
];
/// The program that installs GRUB, and the directory on the boot partition that its GRUB reads.
const GRUB_INSTALL: [(&str, &str); 2] = [("grub-install", "grub"), ("grub2-install", "grub2")];

/// What the firmware calls the disk, and what it starts there: the one that it looks for by itself, too.
const BOOT_LABEL: &str = "imgbased";
const BOOT_FILE: &str = r"\EFI\BOOT\BOOTX64.EFI";

/// Refuses where something is not installed that makes a host as planned.
pub fn check_tools(plan: &Plan) -> Result<()> {
    let mut tools = vec!["sfdisk", "wipefs", "udevadm", "mke2fs"];
    if plan.device(Path::new(""), Use::Esp).is_some() {
        tools.push("mkfs.vfat");
    }
    if plan.loader == Loader::SystemdBoot {
        tools.push("bootctl");
    }
    if plan.is_encrypted {
        tools.push("cryptsetup");
    }
    for tool in tools {
        Cmd::new(tool).check_installed()?;
    }
    if plan.loader == Loader::Grub {
        ensure!(
            Path::new(GRUB_CONFIG).is_file(),
            "{GRUB_CONFIG} is not there; the package imgbased-helper brings it"
        );
    }
    for target in plan.grub_targets() {
        grub_install()?;
        let modules = Path::new(GRUB_MODULES).join(target);
        if modules.is_dir() {
            continue;
        }
        let packages = GRUB_PACKAGES.iter().find(|(name, _)| *name == target);
        bail!(
            "GRUB for {target} is not installed here: {} is not there; install {}",
            modules.display(),
            packages.map_or("it", |(_, packages)| packages)
        );
    }
    Ok(())
}

fn grub_install() -> Result<(&'static str, &'static str)> {
    let mut programs = GRUB_INSTALL.into_iter();
    let found = programs.find(|(program, _)| Cmd::new(program).check_installed().is_ok());
    found.context("grub-install(8) is needed, but not installed")
}

/// The directory of GRUB on the boot partition.
fn grub_directory() -> &'static str {
    grub_install().map_or(GRUB_INSTALL[0].1, |(_, dir)| dir)
}

/// Puts the boot loader on a disk, whose partitions are mounted below `root`.
pub fn install(tx: &mut Transaction, plan: &Plan, disk: &Path, root: &Path) -> Result<()> {
    let (boot, esp) = (root.join("boot"), root.join("efi"));
    if plan.loader == Loader::SystemdBoot {
        let path = path_option("--esp-path", &boot);
        // Each firmware finds it by its place.
        return tx.run(&Cmd::new("bootctl").args([&path, "--no-variables", "install"]));
    }
    for target in plan.grub_targets() {
        let (program, _) = grub_install()?;
        let cmd = Cmd::new(program).arg(format!("--target={target}"));
        let directory = path_option("--boot-directory", &boot);
        if target == BIOS_TARGET {
            tx.run(&cmd.arg(directory).arg(disk))?;
        } else {
            let esp = path_option("--efi-directory", &esp);
            // That of Fedora installs for UEFI only where it is forced to.
            tx.run(&cmd.args(["--force", "--removable", &esp, &directory]))?;
        }
    }
    let dir = boot.join(grub_directory());
    tx.create_dir(&dir)?;
    tx.copy(Path::new(GRUB_CONFIG), &dir.join("grub.cfg"), 0o644)
}

/// Has the UEFI of this machine start the disk before all else, as bootctl(1) and grub-install(8) do, if it can start it.
pub fn register(tx: &mut Transaction, plan: &Plan, disk: &Path) -> Result<()> {
    let Some(number) = plan.number(Use::Esp) else {
        return Ok(());
    };
    let create = Cmd::new("efibootmgr")
        .args(["--quiet", "--create", "--label", BOOT_LABEL])
        .args(["--loader", BOOT_FILE, "--part", &number.to_string()])
        .arg("--disk")
        .arg(disk);
    create.check_installed()?;
    tx.run(&create)
}

fn path_option(name: &str, path: &Path) -> String {
    format!("{name}={}", path.display())
}

/// Copies what the distribution has signed from the image, which is mounted at `image`, to the EFI system partition at
/// `esp`. `boot` is the UUID of the boot partition.
pub fn install_signed(
    tx: &mut Transaction,
    plan: &Plan,
    image: &Path,
    esp: &Path,
    boot: &str,
) -> Result<()> {
    let id = distribution(image)?;
    let mut copies: Vec<(PathBuf, PathBuf)> = Vec::new();
    for file in plan::signed(plan.loader, &id) {
        let mut sources = file
            .from
            .iter()
            .filter_map(|path| real_path(image, path).ok());
        let Some(source) = sources.find(|path| path.is_file()) else {
            ensure!(
                !file.is_needed,
                "the image has no /{}, which Secure Boot needs; build it with shim and the signed boot loader of its \
                 distribution, such as the packages shim-signed, grub-efi-amd64-signed and \
                 systemd-boot-efi-amd64-signed",
                file.from.first().copied().unwrap_or_default()
            );
            continue;
        };
        let places = file.to.iter().map(|to| (source.clone(), esp.join(to)));
        copies.extend(places);
    }
    for (from, to) in &copies {
        tx.create_dir(directory(to))?;
        tx.copy(from, to, 0o644)?;
    }
    if plan.loader == Loader::Grub {
        let (places, text) = plan::stubs(&id, boot, grub_directory());
        for place in places {
            tx.write(&esp.join(place), text.as_bytes(), 0o644)?;
        }
    }
    Ok(())
}

/// The directory that programs of a distribution have on an EFI system partition: the `ID` of its os-release. It comes
/// from the image.
fn distribution(image: &Path) -> Result<String> {
    let id = Root::at(image).os_release().id.unwrap_or_default();
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    ensure!(
        id.starts_with(|c: char| c.is_ascii_alphanumeric()) && id.bytes().all(is_plain),
        "os-release of the image has no usable ID=, but {id:?}; the signed boot loader looks for its configuration in a \
         directory of that name"
    );
    Ok(id)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::admin::install::plan::{Firmware, Machine, Wanted};
    use crate::sys::transaction::change;

    fn secure(loader: Loader) -> Plan {
        let wanted = Wanted {
            loader: Some(loader),
            firmware: Some(Firmware::Uefi),
            secure_boot: true,
            ..Wanted::default()
        };
        Plan::new(&wanted, Machine::default(), 8 << 30).unwrap()
    }

    fn image(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/os-release"), "ID=debian\n").unwrap();
        dir
    }

    const SHIM: &str = "usr/lib/shim/shimx64.efi.signed";
    const GRUB: &str = "usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed";

    #[test]
    fn what_is_signed_is_copied_to_where_firmware_and_shim_look() {
        let image = image(&[SHIM, GRUB]);
        let esp = tempfile::tempdir().unwrap();
        let plan = secure(Loader::Grub);
        change(|tx| install_signed(tx, &plan, image.path(), esp.path(), "1-2")).unwrap();
        let read = |path: &str| fs::read_to_string(esp.path().join(path)).unwrap_or_default();
        for dir in ["EFI/BOOT", "EFI/debian"] {
            assert_eq!(read(&format!("{dir}/grubx64.efi")), GRUB);
            assert!(read(&format!("{dir}/grub.cfg")).starts_with("search.fs_uuid 1-2 root\n"));
            assert_eq!(read(&format!("{dir}/mmx64.efi")), "");
        }
        assert_eq!(read("EFI/BOOT/BOOTX64.EFI"), SHIM);
        assert_eq!(read("EFI/debian/shimx64.efi"), SHIM);
    }

    #[test]
    fn an_image_without_what_is_signed_is_refused_before_a_file_is_copied() {
        for (files, id, loader, message) in [
            (
                &[GRUB][..],
                "debian",
                Loader::Grub,
                "has no /usr/lib/shim/shimx64",
            ),
            (
                &[SHIM],
                "debian",
                Loader::Grub,
                "has no /usr/lib/grub/x86_64",
            ),
            (
                &[SHIM, GRUB],
                "debian",
                Loader::SystemdBoot,
                "has no /usr/lib/systemd/boot",
            ),
            (&[SHIM, GRUB], "../x", Loader::Grub, "no usable ID="),
        ] {
            let image = image(files);
            fs::write(image.path().join("etc/os-release"), format!("ID={id}\n")).unwrap();
            let esp = tempfile::tempdir().unwrap();
            let plan = secure(loader);
            let done = change(|tx| install_signed(tx, &plan, image.path(), esp.path(), "1-2"));
            let error = done.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
            assert_eq!(fs::read_dir(esp.path()).unwrap().count(), 0);
        }
    }
}
