//! Whether the emergency shell opens without a password. Most images have none for root, and then nobody could
//! mend a boot that fails. But such a shell gives all that the machine has unlocked to who stands before it.

use std::fs;
use std::path::Path;

use crate::sys::cmd::Cmd;
use crate::sys::firmware::is_secure_boot;

/// The units of systemd that show a question for a password on the console or the splash screen.
const ASKING: [&str; 2] = [
    "systemd-ask-password-console.service",
    "systemd-ask-password-plymouth.service",
];

/// Why the shell does not open, as a part of a sentence; `None` if it may. `sys` is where sysfs is.
pub fn refusal(sys: &Path, is_password_asked: impl FnOnce() -> bool) -> Option<&'static str> {
    if is_secure_boot(sys) {
        Some("Secure Boot is on")
    } else if is_locked_down(sys) {
        Some("the kernel is locked down")
    } else if has_unlocked_volume(sys) && !is_password_asked() {
        Some("a volume was unlocked without a person")
    } else {
        None
    }
}

/// The brackets are around what is chosen (`kernel_lockdown(7)`).
fn is_locked_down(sys: &Path) -> bool {
    fs::read_to_string(sys.join("kernel/security/lockdown"))
        .is_ok_and(|modes| !modes.contains("[none]"))
}

/// Whether there is a volume that cryptsetup(8) has opened.
fn has_unlocked_volume(sys: &Path) -> bool {
    let devices = fs::read_dir(sys.join("block")).into_iter().flatten();
    devices
        .flatten()
        .filter_map(|device| fs::read_to_string(device.path().join("dm/uuid")).ok())
        .any(|uuid| uuid.starts_with("CRYPT-"))
}

/// Whether systemd has asked somebody for a password in this boot. Without systemd nobody can tell.
pub fn is_password_asked() -> bool {
    let started = Cmd::new("systemctl")
        .args([
            "show",
            "--property=ExecMainStartTimestampMonotonic",
            "--value",
        ])
        .args(ASKING);
    started.run().is_ok_and(|times| has_started(&times))
}

/// Whether one of the times is not zero, which is that of a unit that was never started.
fn has_started(times: &str) -> bool {
    times
        .lines()
        .any(|time| time.parse::<u64>().is_ok_and(|time| time > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECURE_BOOT: &str =
        "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
    const LOCKDOWN: &str = "kernel/security/lockdown";
    const UUID: &str = "block/dm-0/dm/uuid";

    #[test]
    fn the_shell_opens_where_nothing_is_protected() {
        type Files<'a> = &'a [(&'a str, &'a [u8])];
        // What sysfs has, whether it opens when nobody was asked for a password, and when somebody was.
        let table: [(Files, bool, bool); 9] = [
            (&[], true, true),
            (&[(SECURE_BOOT, b"\x06\0\0\0\0")], true, true),
            (&[(SECURE_BOOT, b"\x06\0\0\0\x01")], false, false),
            (
                &[(LOCKDOWN, b"[none] integrity confidentiality\n")],
                true,
                true,
            ),
            (
                &[(LOCKDOWN, b"none [integrity] confidentiality\n")],
                false,
                false,
            ),
            (&[(UUID, b"LVM-abc\n")], true, true),
            (&[(UUID, b"CRYPT-LUKS2-0123-luks\n")], false, true),
            (&[("block/vda/size", b"1\n")], true, true),
            (
                &[
                    (UUID, b"CRYPT-LUKS2-0123-luks\n"),
                    (LOCKDOWN, b"none integrity [confidentiality]\n"),
                ],
                false,
                false,
            ),
        ];
        for (files, unasked, asked) in table {
            let sys = tempfile::tempdir().unwrap();
            for (path, content) in files {
                let path = sys.path().join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            let opens = |is_asked| refusal(sys.path(), || is_asked).is_none();
            assert_eq!((opens(false), opens(true)), (unasked, asked), "{files:?}");
        }
    }

    #[test]
    fn a_unit_that_was_started_has_a_time() {
        for (times, expected) in [
            ("0\n\n0\n", false),
            ("", false),
            ("\n", false),
            ("0\n\n7012345\n", true),
            ("7012345\n\n0\n", true),
        ] {
            assert_eq!(has_started(times), expected, "{times:?}");
        }
    }
}
