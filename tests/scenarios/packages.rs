//! The packages: what becomes of a Debian and of a layer when the .deb comes, is upgraded, removed and purged, and
//! where the .rpm has its files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{has_come_up, has_root, restart, runs};
use crate::vm::guest::{quote, script};
use crate::vm::{Host, Loader, RootImage, Vm, boot_root, debian, package, scratch, store};

scenarios![
    ;
    turns:
    the_rpm_has_its_files_where_fedora_and_el_look;
    long:
    a_fresh_debian_is_as_before_when_the_package_is_purged,
    layers_boot_when_the_package_is_purged,
];

/// For unpacking a whole system, and for making an initramfs, under software emulation.
const SLOW: Duration = Duration::from_secs(900);

/// An initramfs takes a minute, so it is made once, at the end.
const DPKG: &str = "dpkg --no-triggers --force-confdef --force-confold";
const CHECK: &str = "imgbased-update-check.timer";
const APPLY: &str = "imgbased-update-apply.timer";

fn a_fresh_debian_is_as_before_when_the_package_is_purged() -> Result<()> {
    let name = "packages-fresh";
    let packed = packed(name)?;
    let saved = Host::saved(Loader::Grub)?;
    let disk = saved.disk(name)?;
    disk.fill("other", &debian("trixie")?.join("root.tar"))?;
    disk.fill("small", &packed)?;
    let mut vm = saved.go_on(&disk, false)?;
    vm.ok("tar -C /root -xf /dev/disk/by-id/virtio-small")?;
    vm.ok(&script("make-older-package")?)?;
    vm.ok_for(&script("unpack-debian")?, SLOW)?;
    // As in the build of an image: no system runs in the tree, and nothing is mounted there.
    comes_and_goes(&mut vm, "chroot /mnt")?;
    vm.ok("umount /mnt")?;
    vm.power_off()?;

    let root = disk.path().with_file_name("spare.qcow2");
    let mut vm = boot_root(
        RootImage::prepared()?,
        &root,
        &format!("{name}-boot"),
        vec![],
    )?;
    comes_and_goes(&mut vm, "")?;
    vm.power_off().map(drop)
}

fn layers_boot_when_the_package_is_purged() -> Result<()> {
    let name = "packages-layer";
    let packed = packed(name)?;
    let saved = Host::saved(Loader::Grub)?;
    let disk = saved.disk(name)?;
    disk.fill("small", &packed)?;
    let mut vm = saved.go_on(&disk, true)?;
    vm.ok("tar -C /root -xf /dev/disk/by-id/virtio-small")?;
    vm.ok(&script("make-older-package")?)?;
    let before = vm.ok(&script("boot-state")?)?;
    vm.ok(&format!("{DPKG} --purge imgbased-helper"))?;
    comes_and_goes(&mut vm, "")?;
    // Debian makes the initramfs of a kernel in /boot anew, and without the module. The layers boot copies.
    vm.ok("cp /boot/imgbased/vmlinuz-$(uname -r)-* /boot/vmlinuz-$(uname -r)")?;
    vm.ok_for("dpkg --triggers-only --pending", SLOW)?;
    vm.ok("lsinitrd /boot/initrd.img-$(uname -r) >/run/listing")?;
    vm.ok("! grep imgbased-helper /run/listing")?;
    assert_eq!(vm.ok(&script("boot-state")?)?, before);

    restart(&mut vm)?;
    runs(&mut vm, "Base-0.1")?;
    vm.ok("! command -v imgbased-helper")?;
    vm.ok("grub-editenv /boot/grub/grubenv set next_entry=imgbased-Base-0.2")?;
    restart(&mut vm)?;
    has_root(&mut vm, "HostVG", "Base-0.2")?;
    has_come_up(&mut vm)?;
    vm.ok("imgbased-helper layout | grep -q Config")?;
    Ok(())
}

/// The life of the package on the machine, or in a tree that `within` begins commands in: the version before, this
/// one, none. /root/old.deb and /root/new.deb are there.
fn comes_and_goes(vm: &mut Vm, within: &str) -> Result<()> {
    let mut ok = |command: &str| {
        vm.say(command);
        vm.ok_for(&format!("{within} sh -c {}", quote(command)), SLOW)
    };
    let list = "find /etc /usr ! -type d | sort";
    ok(&format!("{list} >/run/before"))?;
    ok(&format!("{DPKG} --install /root/old.deb"))?;
    ok("echo '# mine' >>/etc/grub.d/09_imgbased")?;
    ok("mkdir -p /etc/imgbased /var/cache/imgbased")?;
    ok("touch /etc/imgbased/imgbased.conf /var/cache/imgbased/image")?;

    ok(&format!("{DPKG} --install /root/new.deb"))?;
    // In a tree it warns that nothing is mounted there.
    let state = |timer| format!("systemctl is-enabled {timer} 2>/dev/null || true");
    assert_eq!(ok(&state(CHECK))?, "enabled");
    assert_eq!(ok(&state(APPLY))?, "disabled");
    ok("tail -n 1 /etc/grub.d/09_imgbased | grep -qx '# mine'")?;
    ok("! grep 'of the version before' /etc/kernel/postinst.d/zz-imgbased")?;
    ok("dpkg-query --show --showformat '${Conffiles}' imgbased-helper | grep -q imgbased.profile")?;
    if within.is_empty() {
        let reload = "systemctl show --property NeedDaemonReload --value imgbased-bless.service";
        assert_eq!(ok(reload)?, "no");
    }

    // What somebody has turned off stays off, and what is off is not for a preset to turn on.
    ok(&format!("systemctl disable {CHECK}"))?;
    ok(&format!("{DPKG} --install /root/new.deb"))?;
    assert_eq!(ok(&state(CHECK))?, "disabled");
    ok(&format!(
        "systemctl --preset-mode enable-only preset {CHECK} {APPLY}"
    ))?;
    assert_eq!(ok(&state(CHECK))?, "enabled");
    assert_eq!(ok(&state(APPLY))?, "disabled");

    ok(&format!("{DPKG} --remove imgbased-helper"))?;
    ok("test ! -e /usr/bin/imgbased-helper && test -x /etc/grub.d/09_imgbased")?;
    for hook in ["postinst.d", "postrm.d"] {
        let run = format!("DEB_MAINT_PARAMS= /etc/kernel/{hook}/zz-imgbased 6.1");
        assert_eq!(ok(&run)?, "");
    }
    ok(&format!("{DPKG} --purge imgbased-helper"))?;
    ok("test ! -e /var/cache/imgbased && rm -r /etc/imgbased")?;
    assert_eq!(ok(&format!("{list} | diff /run/before - || true"))?, "");
    Ok(())
}

/// The package as new.deb in a tar archive, for a disk of a machine.
fn packed(name: &str) -> Result<PathBuf> {
    let directory = scratch(&format!("{name}-package"))?;
    fs::copy(package()?, directory.join("new.deb"))?;
    shell("cd \"$1\"; tar -cf packages.tar new.deb", &[&directory])?;
    Ok(directory.join("packages.tar"))
}

/// What Fedora and EL look for, and where, by its mode and what rpm takes it for: c is configuration, which with n stays
/// as it was edited, d documentation, l a licence.
const PLACES: [(&str, &[&str]); 7] = [
    (
        "-rwxr-xr-x",
        &[
            "/usr/bin/imgbased-helper",
            "/usr/lib/dracut/modules.d/50imgbased/module-setup.sh",
            "/usr/lib/kernel/install.d/05-imgbased.install",
            "/usr/lib/kernel/install.d/21-imgbased.install",
            "/usr/lib/kernel/install.d/95-imgbased.install",
            "/usr/lib/systemd/system-generators/imgbased-mounts-generator",
        ],
    ),
    (
        "-rw-r--r--",
        &[
            "/usr/lib/dracut/modules.d/50imgbased/imgbased-sysroot.service",
            "/usr/lib/systemd/system-preset/80-imgbased-helper.preset",
            "/usr/lib/systemd/system/imgbased-bless.service",
            "/usr/lib/systemd/system/imgbased-update-check.timer",
            "/usr/lib/systemd/system/sysinit.target.d/imgbased-sysinit.conf",
            "/usr/share/bash-completion/completions/imgbased-helper",
            "/usr/share/imgbased-helper/grub.cfg",
        ],
    ),
    ("lrwxrwxrwx", &["/usr/sbin/imgbase"]),
    ("-rwxr-xr-x cn", &["/etc/grub.d/09_imgbased"]),
    ("-rw-r--r-- cn", &["/etc/lvm/profile/imgbased.profile"]),
    ("-rw-r--r-- d", &["/usr/share/man/man8/imgbase.8.gz"]),
    (
        "-rw-r--r-- l",
        &["/usr/share/licenses/imgbased-helper/LICENSE"],
    ),
];

/// Files of the .deb that only dpkg, lintian and Debian's packages of kernels look for.
const OF_DEBIAN: [&str; 5] = [
    "/etc/kernel/postinst.d/zz-imgbased",
    "/etc/kernel/postrm.d/zz-imgbased",
    "/usr/share/doc/imgbased-helper/changelog.Debian.gz",
    "/usr/share/doc/imgbased-helper/copyright",
    "/usr/share/lintian/overrides/imgbased-helper",
];

fn the_rpm_has_its_files_where_fedora_and_el_look() -> Result<()> {
    let deb = package()?;
    let rpm = PathBuf::from(store::run_script("rpm", &[deb])?);
    let list = "rpm -qp --qf '[%{FILENAMES} %{FILEMODES:perms} %{FILEFLAGS:fflags}\n]' \"$1\"";
    let listed = shell(list, &[&rpm])?;
    for (state, paths) in PLACES {
        for path in paths {
            let line = format!("{path} {state}");
            let is_there = listed.lines().any(|other| other.trim_end() == line);
            ensure!(is_there, "{line}: {listed}");
        }
    }
    let owners = "rpm -qp --qf '[%{FILEUSERNAME}:%{FILEGROUPNAME}\n]' \"$1\" | sort -u";
    assert_eq!(shell(owners, &[&rpm])?, "root:root\n");

    // All that the .deb has and Fedora looks for, and nothing else.
    let directory = scratch("packages-rpm")?;
    let unpack = "cd \"$1\"; dpkg-deb --extract \"$2\" deb; mkdir rpm; rpm2cpio \"$3\" | cpio --quiet -D rpm -idm";
    shell(unpack, &[&directory, deb, &rpm])?;
    let compare = "cd \"$1\"; cmp deb/usr/bin/imgbased-helper rpm/usr/bin/imgbased-helper";
    shell(compare, &[&directory])?;
    let mut expected = files(&directory.join("deb"))?;
    for path in OF_DEBIAN {
        ensure!(expected.remove(path), "{path} is not in the .deb");
    }
    let expected: BTreeSet<String> = expected.iter().map(|path| place_in_fedora(path)).collect();
    assert_eq!(files(&directory.join("rpm"))?, expected);

    let scripts = shell("rpm -qp --scripts \"$1\"", &[&rpm])?;
    for verb in ["preset", "disable --now"] {
        let line = format!("systemctl --no-reload {verb} {CHECK} {APPLY} ");
        ensure!(scripts.contains(&line), "{scripts}");
    }
    ensure!(
        !scripts.contains("rm ") && !scripts.contains("/boot"),
        "{scripts}"
    );
    let parse = "for tag in POSTIN PREUN; do rpm -qp --qf \"%{$tag}\" \"$1\" | sh -n; done";
    shell(parse, &[&rpm])?;
    let requires = shell("rpm -qp --requires \"$1\"", &[&rpm])?;
    for package in ["dracut", "device-mapper-persistent-data", "lvm2 >= 2.03.12"] {
        ensure!(requires.lines().any(|line| line == package), "{requires}");
    }
    let changes = shell("rpm -qp --changelog \"$1\" | head -n 1", &[&rpm])?;
    let version = concat!(" - ", env!("CARGO_PKG_VERSION"), "-1\n");
    ensure!(changes.ends_with(version), "{changes}");
    Ok(())
}

/// Where Fedora has a file that the .deb has as `path`.
fn place_in_fedora(path: &str) -> String {
    path.replace(
        "/doc/imgbased-helper/LICENSE",
        "/licenses/imgbased-helper/LICENSE",
    )
    .replace("/zsh/vendor-completions/", "/zsh/site-functions/")
}

/// The paths of all that is no directory below `root`.
fn files(root: &Path) -> Result<BTreeSet<String>> {
    let list = shell("find \"$1\" ! -type d -printf '/%P\n'", &[root])?;
    Ok(list.lines().map(Into::into).collect())
}

/// Runs a line of shell here, with paths as `$1` and so on; returns what it printed.
fn shell(line: &str, paths: &[&Path]) -> Result<String> {
    let mut shell = Command::new("sh");
    let output = shell.args(["-euc", line, "sh"]).args(paths).output();
    let output = output.context("starting sh")?;
    ensure!(
        output.status.success(),
        "{line}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8(output.stdout)?)
}
