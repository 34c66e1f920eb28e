//! Which files of /etc are merged in another way than by the table.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::lines::Format;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Made from other files: never carried.
    Derived,
    /// What tells this host from others: always as in the layer.
    Identity,
    /// Users and groups, which are merged together.
    Users,
    ByEntry(Format),
    Plain,
}

/// Written anew by programs, or a record of the moment. With all that is below.
const DERIVED: [&str; 14] = [
    "ld.so.cache",
    "udev/hwdb.bin",
    ".updated",
    ".pwd.lock",
    "mtab",
    "passwd-",
    "group-",
    "shadow-",
    "gshadow-",
    "subuid-",
    "subgid-",
    "lvm/archive",
    "lvm/backup",
    "lvm/cache",
];

const IDENTITY: [&str; 14] = [
    "machine-id",
    "hostname",
    "iscsi/initiatorname.iscsi",
    "nvme/hostid",
    "nvme/hostnqn",
    "adjtime",
    "localtime",
    "locale.conf",
    "default/locale",
    "lvm/devices/system.devices",
    "machine-info",
    "krb5.keytab",
    "resolv.conf",
    "timezone",
];

/// What a path below /etc is. `is_link`: whether nothing but links has this name, in each root that has one.
pub fn class(path: &Path, is_link: bool) -> Class {
    let bytes = path.as_os_str().as_bytes();
    let is = |name: &&str| bytes == name.as_bytes();
    if DERIVED.iter().any(|name| path.starts_with(name)) || is_derived(path, is_link) {
        return Class::Derived;
    }
    if IDENTITY.iter().any(is) || bytes.starts_with(b"ssh/ssh_host_") {
        return Class::Identity;
    }
    match bytes {
        b"passwd" | b"group" | b"shadow" | b"gshadow" | b"subuid" | b"subgid" => Class::Users,
        b"shells" | b"modules" | b"securetty" | b"ld.so.conf" | b"hosts" => {
            Class::ByEntry(Format::Lines)
        }
        b"fstab" => Class::ByEntry(Format::Fstab),
        b"crypttab" => Class::ByEntry(Format::Crypttab),
        b"kernel/cmdline" => Class::ByEntry(Format::KernelOptions),
        b"default/grub" => Class::ByEntry(Format::GrubDefaults),
        _ => Class::Plain,
    }
}

/// The compiled policies of `SELinux`, and what is made of the certificates of authorities.
fn is_derived(path: &Path, is_link: bool) -> bool {
    let mut names = path.iter();
    if let Ok(name) = path.strip_prefix("ssl/certs") {
        let name = name.as_os_str().as_bytes();
        return name == b"ca-certificates.crt" || is_link && is_hash(name);
    }
    match names.next() {
        Some(first) if first == "selinux" => names
            .nth(1)
            .is_some_and(|name| name == "policy" || name == "active"),
        _ => path.starts_with("pki/ca-trust/extracted"),
    }
}

/// Whether openssl-rehash(1) makes links of such names. A file that has one was put there by somebody.
fn is_hash(name: &[u8]) -> bool {
    name.len() > 9
        && name[..8].iter().all(u8::is_ascii_hexdigit)
        && name[8] == b'.'
        && name[9..].iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_is_in_one_class() {
        use Class::{ByEntry, Derived, Identity, Plain, Users};
        for (path, wanted) in [
            ("ld.so.cache", Derived),
            ("ld.so.cache.d", Plain),
            ("lvm/backup/vg", Derived),
            ("selinux/targeted/policy/policy.33", Derived),
            ("selinux/config", Plain),
            ("selinux/targeted/contexts", Plain),
            ("pki/ca-trust/extracted/pem/x", Derived),
            ("pki/ca-trust/source/x", Plain),
            ("ssl/certs/ca-certificates.crt", Derived),
            ("ssl/certs/5ed36f99.0", Derived),
            ("ssl/certs/ssl-cert-snakeoil.pem", Plain),
            ("ssl/certs", Plain),
            ("passwd-", Derived),
            ("passwd", Users),
            ("passwd.dpkg-old", Plain),
            ("ssh/ssh_host_rsa_key.pub", Identity),
            ("ssh/sshd_config", Plain),
            ("machine-id", Identity),
            ("fstab", ByEntry(Format::Fstab)),
            ("default/grub", ByEntry(Format::GrubDefaults)),
            ("kernel/cmdline", ByEntry(Format::KernelOptions)),
            ("hosts", ByEntry(Format::Lines)),
            ("hosts.allow", Plain),
        ] {
            assert_eq!(class(Path::new(path), true), wanted, "{path}");
            let of_file = if path.ends_with(".0") { Plain } else { wanted };
            assert_eq!(class(Path::new(path), false), of_file, "{path}");
        }
    }
}
