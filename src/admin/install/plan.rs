//! What becomes of a blank disk: its partitions, and what starts the host. All of that is decided from a few facts.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};

use crate::admin::text;

const MIB: u64 = 1 << 20;
/// For the part of GRUB that a BIOS cannot read from a filesystem.
const BIOS_BOOT_SIZE: u64 = MIB;
/// Of the EFI system partition with GRUB, and of the boot partition: a kernel and an initramfs take 50 to 150 MiB.
const ESP_SIZE: u64 = 64 * MIB;
const BOOT_SIZE: u64 = 1024 * MIB;
/// Smaller ones hold no kernel, or are no FAT that each firmware reads.
const BOOT_LEAST: u64 = 128 * MIB;
/// What the partition table takes at the begin and at the end of a disk, and what is lost as partitions begin at whole
/// MiB.
const TABLE_SIZE: u64 = 3 * MIB;
/// What cryptsetup(8) takes of a partition for LUKS2.
const LUKS_HEADER: u64 = 16 * MIB;

/// The types of partitions, as sfdisk(8) takes them.
const BIOS_BOOT: &str = "21686148-6449-6E6F-744E-656564454649";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    Grub,
    SystemdBoot,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    Bios,
    Uefi,
    Both,
}

/// What a partition is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    BiosBoot,
    Esp,
    Boot,
    Group,
}

/// What is asked for; sizes are bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wanted {
    pub loader: Option<Loader>,
    pub firmware: Option<Firmware>,
    pub boot_size: Option<u64>,
    pub encrypt: bool,
    pub secure_boot: bool,
}

/// The firmware that has started the running system.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine {
    pub is_uefi: bool,
    /// Whether it starts only what is signed.
    pub is_secure: bool,
}

/// What is made of a disk.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    pub loader: Loader,
    pub firmware: Firmware,
    /// Whether the programs that the distribution has signed are used on UEFI.
    pub secure_boot: bool,
    pub is_encrypted: bool,
    /// In their order, with their sizes in bytes; the last one gets the rest of the disk.
    partitions: Vec<(Use, u64)>,
    /// What the group gets, in bytes.
    pub group: u64,
}

impl Plan {
    /// For a disk of `size` bytes. What is not asked for is as on the running machine.
    ///
    /// Refuses what does not go together, and a disk that is too small for the partitions before the group.
    pub fn new(wanted: &Wanted, machine: Machine, size: u64) -> Result<Self> {
        let loader = wanted.loader.unwrap_or(Loader::Grub);
        let firmware = match (wanted.firmware, loader) {
            (Some(firmware), _) => firmware,
            (None, Loader::SystemdBoot) => Firmware::Uefi,
            (None, Loader::Grub) if machine.is_uefi => Firmware::Uefi,
            (None, Loader::Grub) => Firmware::Bios,
        };
        let secure_boot = wanted.secure_boot || (machine.is_secure && firmware != Firmware::Bios);
        if loader == Loader::SystemdBoot && firmware != Firmware::Uefi {
            bail!("systemd-boot starts hosts on UEFI only; --loader grub starts those with a BIOS");
        }
        ensure!(
            !(secure_boot && firmware == Firmware::Bios),
            "a BIOS knows no Secure Boot; --firmware uefi or both does"
        );
        let boot_size = wanted.boot_size.unwrap_or(BOOT_SIZE);
        ensure!(
            boot_size >= BOOT_LEAST,
            "a boot partition of {} is too small for kernels and their initramfs; {} is the least",
            text::size(boot_size),
            text::size(BOOT_LEAST)
        );
        // In whole MiB, as sfdisk is told.
        let boot_size = boot_size.div_ceil(MIB).saturating_mul(MIB);
        let mut partitions = Vec::new();
        if firmware != Firmware::Uefi {
            partitions.push((Use::BiosBoot, BIOS_BOOT_SIZE));
        }
        match loader {
            // It reads FAT only, so one partition is both.
            Loader::SystemdBoot => partitions.push((Use::Esp, boot_size)),
            Loader::Grub => {
                if firmware != Firmware::Bios {
                    partitions.push((Use::Esp, ESP_SIZE));
                }
                partitions.push((Use::Boot, boot_size));
            }
        }
        let header = if wanted.encrypt { LUKS_HEADER } else { 0 };
        let before = partitions.iter().map(|(_, size)| size);
        let before = before.fold(TABLE_SIZE + header, |sum, size| sum.saturating_add(*size));
        let Some(group) = size.checked_sub(before).filter(|group| *group > 0) else {
            bail!(
                "the disk is too small: it has {}, and {} are needed before the volume group",
                text::size(size),
                text::size(before)
            );
        };
        let group = group / MIB * MIB;
        partitions.push((Use::Group, group + header));
        Ok(Self {
            loader,
            firmware,
            secure_boot,
            is_encrypted: wanted.encrypt,
            partitions,
            group,
        })
    }

    /// The lines that sfdisk(8) makes the partitions by.
    pub fn script(&self) -> Vec<String> {
        let lines = self.partitions.iter().map(|(of, size)| match of {
            Use::BiosBoot => format!("size={}MiB, type={BIOS_BOOT}", size / MIB),
            Use::Esp => format!("size={}MiB, type=uefi", size / MIB),
            Use::Boot => format!("size={}MiB, type=linux", size / MIB),
            Use::Group => "type=lvm".to_owned(),
        });
        ["label: gpt".to_owned()].into_iter().chain(lines).collect()
    }

    /// The number of the partition for something, if there is one.
    pub fn number(&self, wanted: Use) -> Option<usize> {
        let at = self.partitions.iter().position(|(of, _)| *of == wanted)?;
        Some(at + 1)
    }

    /// The same as what it is on a disk.
    pub fn device(&self, disk: &Path, wanted: Use) -> Option<PathBuf> {
        Some(partition(disk, self.number(wanted)?))
    }

    /// What the boot partition is: that with the entries and kernels.
    pub fn boot(&self) -> Use {
        match self.loader {
            Loader::Grub => Use::Boot,
            Loader::SystemdBoot => Use::Esp,
        }
    }

    /// The EFI system partition that is mounted beside the boot partition.
    pub fn has_esp_beside(&self) -> bool {
        self.loader == Loader::Grub && self.firmware != Firmware::Bios
    }

    /// The platforms for which grub-install(8) puts GRUB in place. For Secure Boot the signed one is copied.
    pub fn grub_targets(&self) -> Vec<&'static str> {
        let mut targets = Vec::new();
        if self.loader == Loader::Grub {
            if self.firmware != Firmware::Uefi {
                targets.push(BIOS_TARGET);
            }
            if self.firmware != Firmware::Bios && !self.secure_boot {
                targets.push(UEFI_TARGET);
            }
        }
        targets
    }

    /// The partitions for people.
    pub fn shown(&self, disk: &Path) -> Vec<(String, String)> {
        let rows = self.partitions.iter().enumerate();
        rows.map(|(at, (of, size))| {
            let of = match of {
                Use::BiosBoot => "GRUB for BIOS",
                Use::Esp if self.boot() == Use::Esp => "EFI system partition, with the kernels",
                Use::Esp => "EFI system partition",
                Use::Boot => "boot partition",
                Use::Group => "volume group",
            };
            let device = partition(disk, at + 1).display().to_string();
            (device, format!("{:>10}  {of}", text::size(*size)))
        })
        .collect()
    }

    /// What starts the host, for people.
    pub fn started_by(&self) -> String {
        let loader = match self.loader {
            Loader::Grub => "GRUB",
            Loader::SystemdBoot => "systemd-boot",
        };
        let firmware = match self.firmware {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
            Firmware::Both => "BIOS and UEFI",
        };
        let secure = if self.secure_boot {
            ", signed for Secure Boot"
        } else {
            ""
        };
        format!("{loader} on {firmware}{secure}")
    }
}

/// What GRUB calls them.
pub const BIOS_TARGET: &str = "i386-pc";
pub const UEFI_TARGET: &str = "x86_64-efi";

/// What the kernel calls a partition of a disk.
fn partition(disk: &Path, number: usize) -> PathBuf {
    let disk = disk.display().to_string();
    let between = if disk.ends_with(|c: char| c.is_ascii_digit()) {
        "p"
    } else {
        ""
    };
    format!("{disk}{between}{number}").into()
}

/// How a filesystem is named in an fstab, and by the program that makes it.
pub struct Ids {
    /// Of the boot partition, and of LUKS.
    boot: String,
    pub luks: String,
}

impl Ids {
    /// Of two UUIDs that nobody else has.
    pub fn of(boot: &str, luks: &str) -> Self {
        Self {
            boot: boot.trim().to_owned(),
            luks: luks.trim().to_owned(),
        }
    }

    /// That of an ext4.
    pub fn ext4(&self) -> &str {
        &self.boot
    }

    /// That of a FAT, as mkfs.vfat(8) takes it.
    pub fn fat(&self) -> &str {
        self.boot.get(..8).unwrap_or_default()
    }

    /// What the unlocked device is called, as dracut does by `rd.luks.uuid=`.
    pub fn mapped(&self) -> String {
        format!("luks-{}", self.luks)
    }

    /// The line of an fstab for the boot partition.
    pub fn boot_line(&self, boot: Use) -> String {
        if boot == Use::Boot {
            return format!("UUID={} /boot ext4 defaults,nofail 0 2", self.ext4());
        }
        // As blkid(8) shows it.
        let (a, b) = self.fat().split_at(self.fat().len() / 2);
        let id = format!("{a}-{b}").to_ascii_uppercase();
        format!("UUID={id} /boot vfat umask=0077,nofail 0 2")
    }

    /// A crypttab with a line for the disk of the group. The initramfs has unlocked it, and nothing locks it while the
    /// system goes down (crypttab(5)).
    pub fn crypttab(&self, text: &[u8]) -> Vec<u8> {
        let mut text = text.to_owned();
        if text.last().is_some_and(|last| *last != b'\n') {
            text.push(b'\n');
        }
        let (name, luks) = (self.mapped(), &self.luks);
        text.extend(format!("{name} UUID={luks} none luks,x-initrd.attach\n").as_bytes());
        text
    }

    /// The kernel option by which the initramfs unlocks the disk.
    pub fn option(&self) -> String {
        format!("rd.luks.uuid={}", self.luks)
    }
}

/// A file that the distribution has signed: where a root can have it, and where it goes on the EFI system partition.
#[derive(Debug, PartialEq, Eq)]
pub struct Signed {
    pub from: &'static [&'static str],
    pub to: Vec<String>,
    pub is_needed: bool,
}

const SHIM: &[&str] = &["usr/lib/shim/shimx64.efi.signed"];
/// It enrols keys, where a person asks for that.
const MOK_MANAGER: &[&str] = &["usr/lib/shim/mmx64.efi.signed", "usr/lib/shim/mmx64.efi"];
const GRUB: &[&str] = &["usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed"];
const SYSTEMD_BOOT: &[&str] = &["usr/lib/systemd/boot/efi/systemd-bootx64.efi.signed"];
/// The directory from which each firmware starts a disk.
const REMOVABLE: &str = "EFI/BOOT";

/// The signed files for a loader, of a distribution with this `ID` in os-release. shim starts what is called
/// grubx64.efi beside it.
pub fn signed(loader: Loader, id: &str) -> Vec<Signed> {
    let own = format!("EFI/{id}");
    let in_both =
        |first: &str, second: &str| vec![format!("{REMOVABLE}/{first}"), format!("{own}/{second}")];
    let mut second_to = in_both("grubx64.efi", "grubx64.efi");
    let second = match loader {
        Loader::Grub => GRUB,
        Loader::SystemdBoot => {
            second_to.push("EFI/systemd/systemd-bootx64.efi".to_owned());
            SYSTEMD_BOOT
        }
    };
    let signed = |from, to, is_needed| Signed {
        from,
        to,
        is_needed,
    };
    vec![
        signed(second, second_to, true),
        signed(MOK_MANAGER, in_both("mmx64.efi", "mmx64.efi"), false),
        signed(SHIM, in_both("BOOTX64.EFI", "shimx64.efi"), true),
    ]
}

/// Where a signed GRUB looks for its configuration, and what that says: it is built to find it beside itself, and ours is
/// on the boot partition, in its directory `grub`.
pub fn stubs(id: &str, boot: &str, grub: &str) -> (Vec<String>, String) {
    let places = [REMOVABLE, &format!("EFI/{id}")].map(|dir| format!("{dir}/grub.cfg"));
    let text = format!(
        "search.fs_uuid {boot} root\nset prefix=($root)'/{grub}'\nconfigfile $prefix/grub.cfg\n"
    );
    (places.into(), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;
    const BIOS: Machine = Machine {
        is_uefi: false,
        is_secure: false,
    };
    const UEFI: Machine = Machine {
        is_uefi: true,
        is_secure: false,
    };
    const SECURE: Machine = Machine {
        is_uefi: true,
        is_secure: true,
    };

    fn wanted(loader: Option<Loader>, firmware: Option<Firmware>) -> Wanted {
        Wanted {
            loader,
            firmware,
            ..Wanted::default()
        }
    }

    #[test]
    fn each_loader_and_firmware_gets_its_partitions() {
        use Firmware::{Bios, Both, Uefi};
        use Loader::{Grub, SystemdBoot};
        let bios = "size=1MiB, type=21686148-6449-6E6F-744E-656564454649";
        let (esp, boot) = ("size=64MiB, type=uefi", "size=1024MiB, type=linux");
        for (loader, firmware, machine, lines, used, targets) in [
            (None, None, BIOS, &[bios, boot][..], 1025, &["i386-pc"][..]),
            (None, None, UEFI, &[esp, boot], 1088, &["x86_64-efi"]),
            (
                Some(Grub),
                Some(Both),
                BIOS,
                &[bios, esp, boot],
                1089,
                &["i386-pc", "x86_64-efi"],
            ),
            (
                Some(Grub),
                Some(Bios),
                SECURE,
                &[bios, boot],
                1025,
                &["i386-pc"],
            ),
            (
                Some(Grub),
                Some(Both),
                SECURE,
                &[bios, esp, boot],
                1089,
                &["i386-pc"],
            ),
            (None, None, SECURE, &[esp, boot], 1088, &[]),
            (
                Some(SystemdBoot),
                None,
                BIOS,
                &["size=1024MiB, type=uefi"],
                1024,
                &[],
            ),
            (
                Some(SystemdBoot),
                Some(Uefi),
                UEFI,
                &["size=1024MiB, type=uefi"],
                1024,
                &[],
            ),
        ] {
            let plan = Plan::new(&wanted(loader, firmware), machine, 8 * GIB).unwrap();
            let script = plan.script();
            assert_eq!(script.first().unwrap(), "label: gpt");
            assert_eq!(script.last().unwrap(), "type=lvm");
            assert_eq!(script[1..script.len() - 1], *lines);
            assert_eq!(plan.group, 8 * GIB - (used + 3) * MIB, "{lines:?}");
            assert_eq!(plan.grub_targets(), targets, "{lines:?}");
        }
    }

    #[test]
    fn sizes_count_and_a_locked_group_has_a_header() {
        let wanted = Wanted {
            boot_size: Some(300 * MIB + 1),
            encrypt: true,
            ..Wanted::default()
        };
        let plan = Plan::new(&wanted, BIOS, 4 * GIB + 5).unwrap();
        assert_eq!(plan.script()[2], "size=301MiB, type=linux");
        assert_eq!(plan.group, 4 * GIB - (1 + 301 + 3 + 16) * MIB);
        let rows = plan.shown(Path::new("/dev/nvme0n1"));
        assert_eq!(rows[1].0, "/dev/nvme0n1p2");
        assert_eq!(rows[2].1, "  3.70 GiB  volume group");
        assert_eq!(plan.started_by(), "GRUB on BIOS");
    }

    #[test]
    fn what_does_not_go_together_or_has_no_room_is_refused() {
        use Firmware::{Bios, Both};
        use Loader::{Grub, SystemdBoot};
        let secure = Wanted {
            secure_boot: true,
            ..wanted(Some(Grub), Some(Bios))
        };
        let small = Wanted {
            boot_size: Some(64 * MIB),
            ..Wanted::default()
        };
        let large = Wanted {
            boot_size: Some(u64::MAX),
            ..Wanted::default()
        };
        for (wanted, size, message) in [
            (
                wanted(Some(SystemdBoot), Some(Bios)),
                8 * GIB,
                "systemd-boot starts hosts on UEFI only",
            ),
            (
                wanted(Some(SystemdBoot), Some(Both)),
                8 * GIB,
                "systemd-boot starts hosts on UEFI only",
            ),
            (secure, 8 * GIB, "a BIOS knows no Secure Boot"),
            (small, 8 * GIB, "is too small for kernels"),
            (large, 8 * GIB, "the disk is too small"),
            (Wanted::default(), 0, "the disk is too small: it has 0 B"),
            (Wanted::default(), GIB, "1.00 GiB are needed before"),
        ] {
            let error = Plan::new(&wanted, BIOS, size).unwrap_err().to_string();
            assert!(error.contains(message), "{message}: {error}");
        }
    }

    #[test]
    fn partitions_are_found_by_what_they_are_for() {
        for (disk, loader, of, device) in [
            ("/dev/vdc", Loader::Grub, Use::BiosBoot, Some("/dev/vdc1")),
            ("/dev/vdc", Loader::Grub, Use::Group, Some("/dev/vdc3")),
            (
                "/dev/nvme0n1",
                Loader::Grub,
                Use::Boot,
                Some("/dev/nvme0n1p2"),
            ),
            ("/dev/vdc", Loader::Grub, Use::Esp, None),
            ("/dev/vdc", Loader::SystemdBoot, Use::Esp, Some("/dev/vdc1")),
            ("/dev/vdc", Loader::SystemdBoot, Use::Boot, None),
        ] {
            let plan = Plan::new(&wanted(Some(loader), None), BIOS, 8 * GIB).unwrap();
            let found = plan.device(Path::new(disk), of);
            assert_eq!(found.as_deref(), device.map(Path::new), "{disk} {of:?}");
        }
    }

    #[test]
    fn the_host_finds_its_disks_by_their_ids() {
        let ids = Ids::of("0a1b2c3d-1111-4222-8333-444455556666\n", "5-6\n");
        assert_eq!(ids.fat(), "0a1b2c3d");
        assert_eq!(
            ids.boot_line(Use::Boot),
            "UUID=0a1b2c3d-1111-4222-8333-444455556666 /boot ext4 defaults,nofail 0 2"
        );
        assert_eq!(
            ids.boot_line(Use::Esp),
            "UUID=0A1B-2C3D /boot vfat umask=0077,nofail 0 2"
        );
        let line = "luks-5-6 UUID=5-6 none luks,x-initrd.attach\n";
        for (old, new) in [("", line.to_owned()), ("# a", format!("# a\n{line}"))] {
            assert_eq!(ids.crypttab(old.as_bytes()), new.as_bytes());
        }
        assert_eq!(ids.option(), "rd.luks.uuid=5-6");
    }

    #[test]
    fn shim_comes_first_and_starts_what_is_signed() {
        for (loader, source, more) in [
            (Loader::Grub, GRUB, None),
            (
                Loader::SystemdBoot,
                SYSTEMD_BOOT,
                Some("EFI/systemd/systemd-bootx64.efi"),
            ),
        ] {
            let files = signed(loader, "debian");
            let [second, _, shim] = &files[..] else {
                panic!("{files:?}");
            };
            assert_eq!(shim.to, ["EFI/BOOT/BOOTX64.EFI", "EFI/debian/shimx64.efi"]);
            assert_eq!(second.from, source);
            assert_eq!(
                second.to[..2],
                ["EFI/BOOT/grubx64.efi", "EFI/debian/grubx64.efi"]
            );
            assert_eq!(second.to.get(2).map(String::as_str), more);
        }
        let (places, text) = stubs("debian", "1-2", "grub");
        assert_eq!(places, ["EFI/BOOT/grub.cfg", "EFI/debian/grub.cfg"]);
        assert_eq!(
            text,
            "search.fs_uuid 1-2 root\nset prefix=($root)'/grub'\nconfigfile $prefix/grub.cfg\n"
        );
    }
}
