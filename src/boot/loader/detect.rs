//! Which boot loader starts the host, and where it keeps what it is told.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::grub::{self, Grub};
use super::systemd_boot::{SystemdBoot, Variables};
use super::{Loader, grub_menu};
use crate::boot::entry::plain_title;
use crate::boot::files::Files;
use crate::model::mount_unit;
use crate::sys::automount;
use crate::sys::files::read_if_there;

/// Where an EFI system partition is mounted, in the order of bootctl(1).
const ESP: [&str; 3] = ["efi", "boot", "boot/efi"];

/// Finds the loader of the host whose root is at `root`, and says how that is known: what the running
/// system was started by, else what is installed.
pub fn detect(root: &Path, files: &Files) -> Result<(Box<dyn Loader>, String)> {
    // Seen from a rescue system they say how that was started.
    let variables = (root == Path::new("/")).then(Variables::of_this_machine);
    let info = variables.as_ref().and_then(|variables| {
        // The kernel lets others than root read only so many a second.
        let info = variables.read("LoaderInfo");
        info.unwrap_or_else(|error| {
            log::warn!("the boot loader is taken from what is installed: {error:#}");
            None
        })
    });
    let is = |name: &str| info.as_ref().is_some_and(|info| info.starts_with(name));
    let by_variable = || {
        let info = plain_title(info.as_deref().unwrap_or_default());
        format!("the EFI variable LoaderInfo is {info}")
    };
    let dirs = ESP.map(|dir| root.join(dir));
    if is("systemd-boot") {
        for dir in &dirs {
            // What needs it is refused later.
            if let Err(error) = automount::reach(dir, &mount_unit::name(&dir.to_string_lossy())) {
                log::warn!("{error:#}");
            }
        }
    }
    let esp = dirs.into_iter().find(|dir| {
        let program = dir.join("EFI/systemd");
        program.is_dir()
    });
    let systemd_boot = |esp, variables| {
        Box::new(SystemdBoot {
            files: files.clone(),
            esp,
            variables,
        })
    };
    if is("systemd-boot") {
        return Ok((systemd_boot(esp, variables), by_variable()));
    }
    let config = grub::directory(files.dir()).join(grub::CONFIG);
    let text = read_if_there(&config)?;
    let reason = match (is("GRUB"), &text, &esp) {
        (true, ..) => by_variable(),
        (_, Some(_), _) => format!("{} is there", config.display()),
        (_, None, Some(dir)) => {
            let program = dir.join("EFI/systemd");
            let reason = format!("{} is there", program.display());
            return Ok((systemd_boot(esp, None), reason));
        }
        (_, None, None) => "no other is there".to_owned(),
    };
    let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
    let (calls_reader, has_menu) = grub_menu::reads(&text);
    let grub = Grub {
        files: files.clone(),
        // Where there is a menu to fall back to, it is GRUB's version that decides.
        reads_entries: calls_reader && (!has_menu || has_reader(&config)),
        has_menu,
    };
    Ok((Box::new(grub), reason))
}

/// Whether GRUB's modules beside its configuration are of a version that reads entries.
fn has_reader(config: &Path) -> bool {
    let platforms = config.parent().and_then(|dir| fs::read_dir(dir).ok());
    let modules = |file: fs::DirEntry| -> PathBuf { file.path().join("blsuki.mod") };
    platforms.is_some_and(|mut dirs| dirs.any(|dir| dir.is_ok_and(|dir| modules(dir).is_file())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn detect(files: &[(&str, &str)]) -> (&'static str, String) {
        let root = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let files = Files::new(&root.path().join("boot"));
        let (loader, reason) = super::detect(root.path(), &files).unwrap();
        let reason = reason.replace(root.path().to_str().unwrap(), "");
        (loader.id(), reason)
    }

    #[test]
    fn the_loader_is_what_is_installed() {
        let ours = include_str!("../../../grub/grub.cfg");
        let (config, module) = ("boot/grub/grub.cfg", "boot/grub/x86_64-efi/blsuki.mod");
        let there = "/boot/grub/grub.cfg is there";
        assert_eq!(detect(&[]), ("grub", "no other is there".into()));
        assert_eq!(detect(&[(config, "")]), ("grub", there.into()));
        assert_eq!(detect(&[(config, ours)]), ("grub", there.into()));
        assert_eq!(
            detect(&[(config, ours), (module, "")]),
            ("grub-blscfg", there.into())
        );
        let fedora = "insmod blscfg\nblscfg\n";
        assert_eq!(
            detect(&[("boot/grub2/grub.cfg", fedora)]),
            ("grub-blscfg", "/boot/grub2/grub.cfg is there".into())
        );
        let program = "efi/EFI/systemd/systemd-bootx64.efi";
        assert_eq!(
            detect(&[(program, "")]),
            ("systemd-boot", "/efi/EFI/systemd is there".into())
        );
        // One that was there before GRUB was installed, or after: without a running system the one
        // whose configuration is there counts.
        assert_eq!(
            detect(&[(program, ""), (config, "")]),
            ("grub", there.into())
        );
    }
}
