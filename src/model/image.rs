//! What would keep a host that is made of an image from booting or from being updated, told from a few facts.

use std::fmt;

use serde::Serialize;

use super::fstab;
use super::kernel_options;
use super::os_release::OsRelease;

/// From here on a filesystem counts as full, in percent.
const FULL: u64 = 95;
/// So many of a kind are named, the others counted.
const NAMED: usize = 4;

/// What there is of a kernel version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernel {
    pub version: String,
    pub has_image: bool,
    pub has_modules: bool,
    pub initramfs: Option<Initramfs>,
}

/// What an initramfs can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Initramfs {
    /// Why nobody can tell.
    Unread(String),
    Read {
        has_module: bool,
        is_hostonly: bool,
        /// Kernel options in it that name what is on one host only.
        of_one_host: Vec<String>,
    },
}

/// How much of a filesystem is used, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub used: u64,
    pub size: u64,
}

/// What an image holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub os_release: Option<OsRelease>,
    pub has_helper: bool,
    /// Whether its own dracut can make an initramfs that boots a layer.
    pub makes_initramfs: bool,
    pub kernels: Vec<Kernel>,
    /// Private host keys of sshd(8).
    pub host_keys: Vec<String>,
    /// What /etc/machine-id holds.
    pub machine_id: String,
    /// What /etc/kernel/cmdline holds, or in its place GRUB's defaults.
    pub options: String,
    pub fstab: Vec<u8>,
    /// Whether a unit mounts the boot partition.
    pub has_boot_unit: bool,
    /// Directories of /var that record packages.
    pub records: Vec<String>,
    /// What is wrong with users and groups.
    pub account_faults: Vec<String>,
    /// Which of them have another number than in an older image.
    pub moved: Vec<String>,
    /// Of an image that is a filesystem.
    pub space: Option<Space>,
}

/// One thing that is not as an image needs it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Names its kind for programs.
    pub id: &'static str,
    pub subject: String,
    /// What is wrong, and why that matters.
    pub problem: String,
    pub advice: &'static str,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.subject, self.problem, self.advice)
    }
}

/// All that is not as an image needs it.
pub fn findings(facts: &Facts) -> Vec<Finding> {
    let mut findings = Findings::default();
    findings.of_product(facts);
    findings.of_kernels(facts);
    findings.of_identity(facts);
    findings.of_disks(facts);
    findings.of_state(facts);
    findings.0
}

#[derive(Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, id: &'static str, subject: &str, problem: &str, advice: &'static str) {
        self.0.push(Finding {
            id,
            subject: subject.to_owned(),
            problem: problem.to_owned(),
            advice,
        });
    }

    fn of_product(&mut self, facts: &Facts) {
        match &facts.os_release {
            None => self.add(
                "os-release",
                "os-release",
                "is not there, and systemd goes from the initramfs to no root without it",
                "install the package that brings it, such as base-files",
            ),
            Some(release) if release.image_version.is_none() => self.add(
                "version",
                "os-release",
                "has no IMAGE_VERSION, so `update` cannot tell this image from an older or newer one of the same release",
                "`image prepare --name NAME-VERSION` writes it",
            ),
            Some(_) => {}
        }
        if !facts.has_helper {
            self.add(
                "helper",
                "imgbased-helper",
                "is not installed, so no layer is found to have come up, and none can be updated",
                "install its package in the image",
            );
        }
    }

    fn of_kernels(&mut self, facts: &Facts) {
        if facts.kernels.is_empty() {
            self.add(
                "kernel",
                "kernel",
                "is not there, as is usual in images of containers, so nothing of it can be booted",
                "install one in the image",
            );
        }
        for kernel in &facts.kernels {
            self.of_kernel(kernel, facts.makes_initramfs);
        }
    }

    fn of_kernel(&mut self, kernel: &Kernel, makes_initramfs: bool) {
        let subject = format!("Linux {}", kernel.version);
        if !kernel.has_modules {
            self.add(
                "kernel-pair",
                &subject,
                "has no modules in /usr/lib/modules, so no entry boots it, or nothing works that needs one",
                "install its package again, or remove the rest of it from /boot",
            );
        }
        if !kernel.has_image {
            self.add(
                "kernel-pair",
                &subject,
                "has modules, and no /boot/vmlinuz-VERSION, so no entry boots it",
                "install its package again, or remove its modules",
            );
            return;
        }
        let Some(initramfs) = &kernel.initramfs else {
            self.add(
                "initramfs",
                &subject,
                "has no initramfs in /boot, so no entry boots it",
                "run dracut for that version in the image",
            );
            return;
        };
        self.of_initramfs(
            &format!("initramfs of {subject}"),
            initramfs,
            makes_initramfs,
        );
    }

    fn of_initramfs(&mut self, subject: &str, initramfs: &Initramfs, makes_initramfs: bool) {
        let (has_module, is_hostonly, of_one_host) = match initramfs {
            Initramfs::Unread(why) => {
                let problem = format!("cannot be read by lsinitrd(1), so it boots no layer: {why}");
                let advice = "make it anew by dracut";
                return self.add("initramfs", subject, &problem, advice);
            }
            Initramfs::Read {
                has_module,
                is_hostonly,
                of_one_host,
            } => (has_module, is_hostonly, of_one_host),
        };
        if !has_module {
            let problem = if makes_initramfs {
                "has no dracut module imgbased, so each host makes another one, which takes minutes"
            } else {
                "has no dracut module imgbased, and the image cannot make one that has, so no base is made of it"
            };
            self.add(
                "module",
                subject,
                problem,
                "make it by dracut when the package imgbased-helper is installed",
            );
        }
        if *is_hostonly {
            self.add(
                "hostonly",
                subject,
                "is made for the machine that has built it, so another one may find no driver for its disks",
                "make it with hostonly=\"no\" in /etc/dracut.conf.d",
            );
        }
        if !of_one_host.is_empty() {
            let problem = format!(
                "has the kernel options {} in it, which name what is on one host only",
                named(of_one_host)
            );
            self.add(
                "initramfs-options",
                subject,
                &problem,
                "make it with hostonly_cmdline=\"no\" in /etc/dracut.conf.d",
            );
        }
    }

    fn of_identity(&mut self, facts: &Facts) {
        if !facts.host_keys.is_empty() {
            self.add(
                "host-keys",
                &named(&facts.host_keys),
                "would be the same on every host, so whoever has the image can pose as any of them",
                "`image prepare` removes host keys",
            );
        }
        // Neither of these is an id (machine-id(5)).
        if !matches!(facts.machine_id.trim(), "" | "uninitialized") {
            self.add(
                "machine-id",
                "/etc/machine-id",
                "names one machine, and would do so on every host",
                "`image prepare` has each host get its own",
            );
        }
    }

    fn of_disks(&mut self, facts: &Facts) {
        let options = kernel_options::of_one_host(&facts.options);
        if !options.is_empty() {
            let options: Vec<String> = options.into_iter().map(str::to_owned).collect();
            let problem = format!(
                "{} {} what is on one host only, which others look for in vain",
                named(&options),
                if options.len() == 1 { "names" } else { "name" }
            );
            self.add(
                "kernel-options",
                "kernel options",
                &problem,
                "`image prepare` removes such from /etc/kernel/cmdline; in /etc/default/grub remove them by hand",
            );
        }
        let directories = fstab::of_one_host(&facts.fstab);
        if !directories.is_empty() {
            let problem = format!(
                "names disks of one host for {}, so others wait for them until their boot fails",
                named(&directories)
            );
            self.add(
                "fstab",
                "/etc/fstab",
                &problem,
                "use a label, or a volume; `image prepare` removes such lines",
            );
        }
        if !facts.has_boot_unit && !fstab::has(&facts.fstab, "/boot") {
            self.add(
                "boot",
                "/etc/fstab",
                "has no line for /boot, so no entry can be written on a host, and no update be made",
                "`image prepare` adds one with LABEL=boot",
            );
        }
    }

    fn of_state(&mut self, facts: &Facts) {
        if !facts.records.is_empty() {
            self.add(
                "packages",
                &named(&facts.records),
                "are records of packages in /var: where layers share that, each has to mount its own over it",
                "`image prepare` moves such to /usr/lib/sysimage",
            );
        }
        if !facts.account_faults.is_empty() {
            let problem = format!(
                "{}; such faults have systemd-sysusers(8), usermod(8) or su(1) fail",
                named(&facts.account_faults)
            );
            self.add(
                "accounts",
                "users and groups",
                &problem,
                "pwck(8) and grpck(8) with --root put it right",
            );
        }
        if !facts.moved.is_empty() {
            let problem = format!(
                "have other numbers than in the older image: {}; hosts keep the old ones, which programs of the image \
                 that have a number of their own do not know",
                named(&facts.moved)
            );
            self.add(
                "ids",
                "users and groups",
                &problem,
                "give them the old numbers, by sysusers.d(5) before their packages are installed",
            );
        }
        let full = facts.space.map(|space| {
            let size = u128::from(space.size.max(1));
            (u128::from(space.used) * 100 / size).min(100)
        });
        if let Some(percent) = full.filter(|percent| *percent >= u128::from(FULL)) {
            let problem = format!("is {percent} % full, and a layer has no more room than it");
            let advice = "make it larger, or give --size to `base add` and `update`";
            self.add("size", "filesystem", &problem, advice);
        }
    }
}

/// The first of a list, and how many more there are.
fn named(all: &[String]) -> String {
    let (first, more) = all.split_at(all.len().min(NAMED));
    let more = match more.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    first.join(", ") + &more
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(has_module: bool, is_hostonly: bool, of_one_host: &[&str]) -> Initramfs {
        Initramfs::Read {
            has_module,
            is_hostonly,
            of_one_host: list(of_one_host),
        }
    }

    /// An image in which there is nothing to be found.
    fn right() -> Facts {
        Facts {
            os_release: Some(OsRelease::parse("ID=debian\nIMAGE_VERSION=1\n")),
            has_helper: true,
            makes_initramfs: true,
            kernels: vec![Kernel {
                version: "6.1".to_owned(),
                has_image: true,
                has_modules: true,
                initramfs: Some(read(true, false, &[])),
            }],
            machine_id: "uninitialized\n".to_owned(),
            options: "console=ttyS0 quiet".to_owned(),
            fstab: b"LABEL=boot /boot auto defaults,nofail 0 2\nUUID=1 / ext4\n".to_vec(),
            space: Some(Space {
                used: 94,
                size: 100,
            }),
            ..Facts::default()
        }
    }

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    type Change = fn(&mut Facts);

    /// What is found, what has become of the image, and what is said.
    const CASES: &[(&str, Change, &str)] = &[
        (
            "os-release",
            |f| f.os_release = None,
            "os-release: is not there",
        ),
        (
            "version",
            |f| f.os_release = Some(OsRelease::parse("VERSION_ID=13")),
            "no IMAGE_VERSION",
        ),
        ("helper", |f| f.has_helper = false, "install its package"),
        ("kernel", |f| f.kernels.clear(), "images of containers"),
        (
            "kernel-pair",
            |f| f.kernels[0].has_image = false,
            "Linux 6.1: has modules, and no /boot/vmlinuz-VERSION",
        ),
        (
            "kernel-pair",
            |f| f.kernels[0].has_modules = false,
            "has no modules",
        ),
        (
            "initramfs",
            |f| f.kernels[0].initramfs = None,
            "Linux 6.1: has no initramfs",
        ),
        (
            "initramfs",
            |f| f.kernels[0].initramfs = Some(Initramfs::Unread("cut off".to_owned())),
            "boots no layer: cut off; make it anew",
        ),
        (
            "module",
            |f| f.kernels[0].initramfs = Some(read(false, false, &[])),
            "each host makes another one",
        ),
        (
            "module",
            |f| {
                f.kernels[0].initramfs = Some(read(false, false, &[]));
                f.makes_initramfs = false;
            },
            "no base is made of it",
        ),
        (
            "hostonly",
            |f| f.kernels[0].initramfs = Some(read(true, true, &[])),
            "hostonly=\"no\"",
        ),
        (
            "initramfs-options",
            |f| f.kernels[0].initramfs = Some(read(true, false, &["root=/dev/x"])),
            "the kernel options root=/dev/x in it",
        ),
        (
            "host-keys",
            |f| f.host_keys = list(&["/a", "/b", "/c", "/d", "/e", "/f"]),
            "/a, /b, /c, /d and 2 more: would be the same",
        ),
        (
            "machine-id",
            |f| f.machine_id = "0123\n".to_owned(),
            "names one machine",
        ),
        (
            "kernel-options",
            |f| f.options = "quiet root=/dev/sda1".to_owned(),
            "root=/dev/sda1 names what",
        ),
        (
            "kernel-options",
            |f| f.options = "resume=UUID=1 rd.md.uuid=2".to_owned(),
            "resume=UUID=1, rd.md.uuid=2 name what",
        ),
        (
            "fstab",
            |f| f.fstab.extend(b"UUID=1 /srv ext4\n"),
            "names disks of one host for /srv",
        ),
        ("boot", |f| f.fstab.clear(), "has no line for /boot"),
        (
            "packages",
            |f| f.records = list(&["/var/lib/dpkg"]),
            "/var/lib/dpkg: are records",
        ),
        (
            "accounts",
            |f| f.account_faults = list(&["web is only in shadow"]),
            "web is only in shadow; such faults",
        ),
        (
            "ids",
            |f| f.moved = list(&["group web is 34, was 33"]),
            "older image: group web is 34, was 33;",
        ),
        (
            "size",
            |f| {
                f.space = Some(Space {
                    used: 95,
                    size: 100,
                });
            },
            "is 95 % full",
        ),
    ];

    #[test]
    fn each_thing_that_an_image_needs_is_missed_by_itself() {
        assert_eq!(findings(&right()), []);
        for (id, change, text) in CASES {
            let mut facts = right();
            change(&mut facts);
            let found = findings(&facts);
            let ids: Vec<&str> = found.iter().map(|finding| finding.id).collect();
            assert_eq!(ids, [*id], "{found:?}");
            let line = found[0].to_string();
            assert!(line.contains(text) && !line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn what_is_mounted_in_another_way_needs_no_line() {
        let facts = Facts {
            fstab: Vec::new(),
            has_boot_unit: true,
            space: None,
            ..right()
        };
        assert_eq!(findings(&facts), []);
    }

    #[test]
    fn each_kernel_is_looked_at() {
        let mut facts = right();
        let without_module = Kernel {
            version: "6.2".to_owned(),
            initramfs: Some(read(false, true, &["rd.lvm.lv=a/b"])),
            ..facts.kernels[0].clone()
        };
        facts.kernels.push(without_module);
        facts.kernels.push(Kernel {
            version: "6.3".to_owned(),
            ..Kernel::default()
        });
        let found = findings(&facts);
        let ids: Vec<&str> = found.iter().map(|finding| finding.id).collect();
        let wanted = [
            "module",
            "hostonly",
            "initramfs-options",
            "kernel-pair",
            "kernel-pair",
        ];
        assert_eq!(ids, wanted);
        assert!(found[0].subject.ends_with("Linux 6.2"), "{found:?}");
    }
}
