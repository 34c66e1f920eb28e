//! What the kernel command line asks for.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cmdline_words_parser::parse_posix;

use crate::model::kernel_options::{LAYER, VG, VGID};
use crate::model::name::{DEFAULT_VG, LvName, VgName, VgUuid};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(90);
/// How long a boot that restarts when it fails may take in the initramfs, beyond the time for its disks: to
/// check the pool and the filesystem, and to answer a question. Documented in dracut.imgbased(7).
const GRACE: Duration = Duration::from_secs(300);
/// A day. Nobody means to wait longer.
const TIMEOUT_MAX: u64 = 24 * 60 * 60;

/// The layer or base to boot and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub vg: VgName,
    /// With it no other group of that name counts.
    pub vgid: Option<VgUuid>,
    pub layer: LvName,
    /// How long to wait for the disks of the group.
    pub timeout: Duration,
    /// `ro`, the last of `ro` and `rw` decides.
    pub read_only: bool,
    pub rootflags: Option<String>,
    pub rootfstype: Option<String>,
    /// A second layer, for when the first cannot be mounted.
    pub fallback: Option<LvName>,
    pub check: Check,
    /// Things that were ignored, for the log.
    pub remarks: Vec<String>,
}

/// When and how the filesystem is checked (systemd-fsck@.service(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Check {
    pub mode: CheckMode,
    pub repair: Repair,
}

/// `fsck.mode=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckMode {
    Auto,
    Force,
    Skip,
}

/// `fsck.repair=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    Preen,
    Yes,
    No,
}

/// What is done when no layer can be mounted: `imgbased.onfail=`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Shell,
    Reboot,
}

/// Reads a kernel command line, as /proc/cmdline has it: nothing if it has no `imgbased.layer`.
///
/// The last of several wins. Refuses a layer or group whose name is not valid.
pub fn parse(cmdline: &[u8]) -> Result<Option<Request>> {
    let words = words(cmdline);
    let options = options(&words);
    let value = |key: &str| last(&options, key);

    if !has_key(&words, LAYER) {
        return Ok(None);
    }
    let layer = value(LAYER).unwrap_or_default();
    ensure!(
        !layer.is_empty(),
        "imgbased.layer= on the kernel command line has no readable name"
    );
    let vgid = has_key(&words, VGID)
        .then(|| value(VGID).unwrap_or_default().parse())
        .transpose()
        .context("imgbased.vgid= on the kernel command line")?;
    let mut remarks = Vec::new();
    let timeout = timeout(&options).unwrap_or_else(|remark| {
        remarks.push(remark);
        DEFAULT_TIMEOUT
    });
    if let Some(other) = value("imgbased.onfail").filter(|v| !["shell", "reboot"].contains(v)) {
        remarks.push(format!(
            "imgbased.onfail={other} is neither shell nor reboot, shell is used"
        ));
    }
    let fallback = value("imgbased.fallback").map(str::parse).transpose();
    let fallback = fallback.unwrap_or_else(|error: anyhow::Error| {
        remarks.push(format!("imgbased.fallback= is ignored: {error}"));
        None
    });
    let mode = match value("fsck.mode") {
        Some("force") => CheckMode::Force,
        Some("skip") => CheckMode::Skip,
        Some("auto") | None => CheckMode::Auto,
        Some(other) => {
            remarks.push(format!("fsck.mode={other} is unknown, auto is used"));
            CheckMode::Auto
        }
    };
    let repair = match value("fsck.repair") {
        Some("yes") => Repair::Yes,
        Some("no") => Repair::No,
        Some("preen") | None => Repair::Preen,
        Some(other) => {
            remarks.push(format!("fsck.repair={other} is unknown, preen is used"));
            Repair::Preen
        }
    };
    if let Some(root) = value("root") {
        remarks.push(format!(
            "root={root} is ignored, imgbased.layer={layer} decides"
        ));
    }
    if let Some(mode) = value("systemd.volatile").filter(|mode| *mode != "no") {
        remarks.push(format!(
            "systemd.volatile={mode} is ignored; the entry of a base forgets what is changed"
        ));
    }
    let access = options
        .iter()
        .rev()
        .find(|(k, v)| v.is_none() && matches!(*k, "ro" | "rw"));
    Ok(Some(Request {
        vg: value(VG)
            .unwrap_or(DEFAULT_VG)
            .parse()
            .context("imgbased.vg= on the kernel command line")?,
        vgid,
        layer: layer
            .parse()
            .context("imgbased.layer= on the kernel command line")?,
        timeout,
        read_only: access.is_some_and(|(key, _)| *key == "ro"),
        rootflags: value("rootflags").map(str::to_owned),
        rootfstype: value("rootfstype").map(str::to_owned),
        fallback,
        check: Check { mode, repair },
        remarks,
    }))
}

/// What to do when no layer can be mounted, also where the rest of the command line is not valid.
pub fn on_failure(cmdline: &[u8]) -> OnFailure {
    match last(&options(&words(cmdline)), "imgbased.onfail") {
        Some("reboot") => OnFailure::Reboot,
        _ => OnFailure::Shell,
    }
}

/// After what time the initramfs of this boot restarts the machine, whatever it waits for; `None` for a boot
/// that stops when it fails.
pub fn limit(cmdline: &[u8]) -> Option<Duration> {
    let words = words(cmdline);
    let is_limited = has_key(&words, LAYER) && on_failure(cmdline) == OnFailure::Reboot;
    let timeout = || timeout(&options(&words)).unwrap_or(DEFAULT_TIMEOUT);
    is_limited.then(|| timeout() + GRACE)
}

/// Whether dracut opens a shell at this point (dracut.cmdline(7), `rd.break`).
pub fn breaks_at(cmdline: &[u8], point: &str) -> bool {
    let wanted = ("rd.break", Some(point));
    options(&words(cmdline)).contains(&wanted)
}

/// Whether options of dracut say which drivers are loaded, and when (`dracut.cmdline(7)`). Those of filesystems, as
/// dracut's module for btrfs has one, are not about disks.
pub fn chooses_drivers(cmdline: &[u8]) -> bool {
    const OPTIONS: [&str; 7] = [
        "rd.driver.pre",
        "rd.driver.post",
        "rd.driver.blacklist",
        "rd.lunmask",
        // As they were called before.
        "rdloaddriver",
        "rdinsmodpost",
        "rdblacklist",
    ];
    let words = words(cmdline);
    let mut options = options(&words).into_iter();
    options.any(|(key, value)| OPTIONS.contains(&key) && value != Some("btrfs"))
}

/// Whether the command line has `imgbased.layer` at all, be its value valid or not.
pub fn is_layer_boot(cmdline: &[u8]) -> bool {
    has_key(&words(cmdline), LAYER)
}

/// How long is waited for disks; the error is a remark for the log.
fn timeout(options: &[(&str, Option<&str>)]) -> Result<Duration, String> {
    match last(options, "imgbased.timeout").map(str::parse) {
        None => Ok(DEFAULT_TIMEOUT),
        Some(Ok(seconds)) if seconds <= TIMEOUT_MAX => Ok(Duration::from_secs(seconds)),
        Some(_) => Err(format!(
            "imgbased.timeout= is not a number of seconds up to {TIMEOUT_MAX}, {} is used",
            DEFAULT_TIMEOUT.as_secs()
        )),
    }
}

/// Whether a key is there, with a value that is text or not, or without one. Keys end in `=`, as they are
/// written, or do not.
fn has_key(words: &[Vec<u8>], key: &str) -> bool {
    let key = key.trim_end_matches('=');
    words
        .iter()
        .any(|word| word.split(|b| *b == b'=').next() == Some(key.as_bytes()))
}

/// The words that are text, as key and value.
fn options(words: &[Vec<u8>]) -> Vec<(&str, Option<&str>)> {
    let words = words.iter().filter_map(|w| std::str::from_utf8(w).ok());
    words
        .map(|word| match word.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (word, None),
        })
        .collect()
}

/// The value of the last of several.
fn last<'a>(options: &[(&'a str, Option<&'a str>)], key: &str) -> Option<&'a str> {
    let key = key.trim_end_matches('=');
    let option = options.iter().rev().find(|(other, _)| *other == key);
    option.and_then(|(_, value)| *value)
}

/// The words of a kernel command line up to a lone `--`, behind which init's arguments follow.
///
/// As in the kernel (`next_arg` in lib/cmdline.c) only `"` quotes, anywhere in a word. The quotes are
/// taken out; the kernel keeps those inside a word, but no name or number has any.
fn words(cmdline: &[u8]) -> Vec<Vec<u8>> {
    let mut text = prepared(cmdline);
    parse_posix(&mut text[..])
        .take_while(|word| *word != b"--")
        .filter(|word| !word.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

/// The command line so that the parser for shell words finds the kernel's words in it: single
/// spaces outside of quotes, since after other white space it yields empty words for ever, and the
/// quoting characters that the kernel does not know escaped.
fn prepared(cmdline: &[u8]) -> Vec<u8> {
    let mut text = Vec::with_capacity(cmdline.len());
    let mut quoted = false;
    for &byte in cmdline.trim_ascii() {
        match byte {
            b'"' => quoted = !quoted,
            _ if is_kernel_space(byte) && !quoted => {
                if !text.is_empty() && text.last() != Some(&b' ') {
                    text.push(b' ');
                }
                continue;
            }
            b'\\' | b'\'' => text.push(b'\\'),
            _ => {}
        }
        text.push(byte);
    }
    text
}

/// `isspace` of the kernel, which counts the no-break space of Latin-1 (lib/ctype.c).
fn is_kernel_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r' | 0xa0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Expected<'a> {
        Layer(&'a str),
        /// No layer is named: the module does nothing.
        Nothing,
        /// A layer is named that there cannot be.
        Refused,
    }
    use Expected::{Layer, Nothing, Refused};

    const TABLE: [(&[u8], Expected<'_>); 91] = [
        (b"imgbased.layer=Base-0.1\n", Layer("Base-0.1")),
        (b"imgbased.layer=Base-0.1", Layer("Base-0.1")),
        (
            b"BOOT_IMAGE=/vmlinuz imgbased.layer=Base-0.1 quiet\n",
            Layer("Base-0.1"),
        ),
        (b"imgbased.layer=node-ng-4.4_2+1", Layer("node-ng-4.4_2+1")),
        (b"imgbased.layer=0", Layer("0")),
        (b"imgbased.layer=L imgbased.layer=L", Layer("L")),
        // The last wins, be it valid or not.
        (b"imgbased.layer=A imgbased.layer=B", Layer("B")),
        (b"imgbased.layer=../x imgbased.layer=B", Layer("B")),
        (b"imgbased.layer=A imgbased.layer=", Refused),
        (b"imgbased.layer=A imgbased.layer", Refused),
        (b"imgbased.layer=A imgbased.layer=a/b", Refused),
        // White space.
        (b"a\timgbased.layer=L\n", Layer("L")),
        (b"a\nb\nimgbased.layer=L\n\n", Layer("L")),
        (b"a\x0bimgbased.layer=L", Layer("L")),
        (b"a\x0cimgbased.layer=L\r\n", Layer("L")),
        (b"a\xa0imgbased.layer=L", Layer("L")),
        (b"  imgbased.layer=L  ", Layer("L")),
        (b"imgbased.layer= L", Refused),
        (b"imgbased.layer =L", Refused),
        (b"imgbased .layer=L", Nothing),
        (b"x=a\\ imgbased.layer=L", Layer("L")),
        // Only `"` quotes, anywhere.
        (b"imgbased.layer=\"Base-0.1\"", Layer("Base-0.1")),
        (b"\"imgbased.layer=Base-0.1\"", Layer("Base-0.1")),
        (b"imgbased.lay\"er=L\"", Layer("L")),
        (b"imgbased.layer=\"a b\"", Refused),
        (b"imgbased.layer=\"a\nb\"", Refused),
        (b"imgbased.layer=\"\"", Refused),
        (b"imgbased.layer=\"", Refused),
        (b"imgbased.layer=\"L", Layer("L")),
        (b"x=\"a  imgbased.layer=L\" y", Nothing),
        (b"x=\"a\nb\" imgbased.layer=L", Layer("L")),
        (b"x=\"open imgbased.layer=L", Nothing),
        (b"x=\"a\" \"imgbased.layer=L", Layer("L")),
        (b"x=\\\"a imgbased.layer=L\\\" imgbased.layer=M", Layer("M")),
        (b"\"\" imgbased.layer=L", Layer("L")),
        (b"\"\"", Nothing),
        (b"\"", Nothing),
        // What quotes for a shell does not for the kernel.
        (b"x='a imgbased.layer=L", Layer("L")),
        (b"x='a imgbased.layer=L'", Refused),
        (b"imgbased.layer='L'", Refused),
        (b"x=\\ imgbased.layer=L", Layer("L")),
        (b"x=it's imgbased.layer=L", Layer("L")),
        (b"imgbased.layer=\\L", Refused),
        (b"imgbased.layer=L\\", Refused),
        (b"# imgbased.layer=L", Layer("L")),
        // What follows `--` is for init.
        (b"imgbased.layer=L -- imgbased.layer=M", Layer("L")),
        (b"quiet -- imgbased.layer=M", Nothing),
        (b"imgbased.layer=L --x", Layer("L")),
        (b"\"--\" imgbased.layer=L", Nothing),
        (b"--", Nothing),
        (b"--imgbased.layer=L", Nothing),
        (b"- imgbased.layer=L", Layer("L")),
        // Other keys.
        (b"imgbased.layers=L", Nothing),
        (b"rd.imgbased.layer=L", Nothing),
        (b"imgbased-layer=L", Nothing),
        (b"imgbased_layer=L", Nothing),
        (b"IMGBASED.LAYER=L", Nothing),
        (b"x=imgbased.layer=L", Nothing),
        (b"root=/dev/sda1 ro quiet", Nothing),
        (b"", Nothing),
        (b"\n", Nothing),
        (b"\0", Nothing),
        (b" \t\n", Nothing),
        // Names that are none.
        (b"imgbased.layer", Refused),
        (b"imgbased.layer=", Refused),
        (b"imgbased.layer==L", Refused),
        (b"imgbased.layer=a=b", Refused),
        (b"imgbased.layer=../etc", Refused),
        (b"imgbased.layer=/dev/sda", Refused),
        (b"imgbased.layer=a/b", Refused),
        (b"imgbased.layer=.", Refused),
        (b"imgbased.layer=..", Refused),
        (b"imgbased.layer=a;reboot", Refused),
        (b"imgbased.layer=$(reboot)", Refused),
        (b"imgbased.layer=`reboot`", Refused),
        (b"imgbased.layer=%s", Refused),
        (b"imgbased.layer=%n%n", Refused),
        (b"imgbased.layer=-x", Refused),
        (b"imgbased.layer=a\\x2d", Refused),
        (b"imgbased.layer=a@b.service", Refused),
        (b"imgbased.layer=*", Refused),
        (b"imgbased.layer=pvmove0", Refused),
        (b"imgbased.layer=x_tmeta", Refused),
        (b"imgbased.layer=a\0b", Refused),
        (b"imgbased.layer=\xff\xfe", Refused),
        (b"x=\xff imgbased.layer=L", Layer("L")),
        (b"imgbased.layer=L imgbased.vg=a/b", Refused),
        (b"imgbased.layer=L imgbased.vgid", Refused),
        (b"imgbased.layer=L imgbased.vgid=", Refused),
        (b"imgbased.layer=L imgbased.vgid=x", Refused),
        (
            b"imgbased.layer=L imgbased.vgid=mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mN\xff",
            Refused,
        ),
    ];

    #[test]
    fn the_layer_that_each_command_line_names() {
        let long = |head: &str, tail: &str| [head, &"x=y ".repeat(1000), tail].concat();
        let (before, after) = (long("imgbased.layer=L ", ""), long("", "imgbased.layer=L"));
        let name = format!("imgbased.layer={}", "a".repeat(4096));
        let generated = [
            (before.as_bytes(), Layer("L")),
            (after.as_bytes(), Layer("L")),
            (name.as_bytes(), Refused),
        ];
        for (cmdline, expected) in TABLE.into_iter().chain(generated) {
            let request = parse(cmdline);
            let found = match &request {
                Ok(Some(request)) => Layer(request.layer.as_str()),
                Ok(None) => Nothing,
                Err(_) => Refused,
            };
            let text = String::from_utf8_lossy(cmdline);
            assert_eq!(found, expected, "{text:?}");
            assert_eq!(is_layer_boot(cmdline), expected != Nothing, "{text:?}");
        }
    }

    #[test]
    fn what_happens_on_failure_is_known_where_the_rest_is_not_valid() {
        for (cmdline, expected) in [
            (
                "imgbased.layer=../x imgbased.onfail=reboot",
                OnFailure::Reboot,
            ),
            (
                "imgbased.onfail=reboot imgbased.onfail=shell",
                OnFailure::Shell,
            ),
            ("imgbased.layer=L", OnFailure::Shell),
            ("imgbased.layer=L imgbased.onfail", OnFailure::Shell),
            (
                "imgbased.layer=L -- imgbased.onfail=reboot",
                OnFailure::Shell,
            ),
            ("imgbased.layer=L imgbased.onfail=REBOOT", OnFailure::Shell),
        ] {
            assert_eq!(on_failure(cmdline.as_bytes()), expected, "{cmdline}");
        }
    }

    #[test]
    fn a_boot_that_restarts_when_it_fails_has_a_limit() {
        for (cmdline, seconds) in [
            ("imgbased.layer=L imgbased.onfail=reboot", Some(390)),
            (
                "imgbased.layer=L imgbased.onfail=reboot imgbased.timeout=5",
                Some(305),
            ),
            (
                "imgbased.layer=../x imgbased.onfail=reboot imgbased.timeout=soon",
                Some(390),
            ),
            ("imgbased.layer=L", None),
            ("imgbased.layer=L imgbased.onfail=shell", None),
            ("root=/dev/sda1 imgbased.onfail=reboot", None),
        ] {
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(limit(cmdline.as_bytes()), expected, "{cmdline}");
        }
    }

    #[test]
    fn a_break_is_one_of_several() {
        let cmdline = b"imgbased.layer=L rd.break=pre-mount rd.break=mount rd.break";
        for (point, expected) in [("pre-mount", true), ("mount", true), ("pre-pivot", false)] {
            assert_eq!(breaks_at(cmdline, point), expected, "{point}");
        }
        assert!(!breaks_at(b"rd.break", "mount"));
    }

    #[test]
    fn drivers_are_chosen_by_options_of_dracut() {
        for (cmdline, are_chosen) in [
            ("imgbased.layer=L quiet", false),
            (" rd.driver.pre=btrfs\n imgbased.layer=L", false),
            ("rd.driver.export imgbased.layer=L", false),
            ("imgbased.layer=L rd.driver.blacklist=virtio_blk", true),
            (
                "rd.driver.pre=btrfs\nrd.driver.pre=megaraid_sas\nquiet",
                true,
            ),
            ("rd.driver.post=ahci,nvme", true),
            ("rd.lunmask=a,b,c", true),
            ("rdblacklist=x", true),
            ("quiet -- rd.driver.post=ahci", false),
        ] {
            assert_eq!(chooses_drivers(cmdline.as_bytes()), are_chosen, "{cmdline}");
        }
    }

    #[test]
    fn the_other_keys() {
        let request = |cmdline: &str| parse(cmdline.as_bytes()).unwrap().unwrap();
        let plain = request("imgbased.layer=L");
        assert_eq!(plain.vg.as_str(), "HostVG");
        assert_eq!(plain.timeout, Duration::from_secs(90));
        assert_eq!(plain.vgid, None);
        assert!(!plain.read_only && plain.remarks.is_empty());

        let all = request(
            "imgbased.layer=L imgbased.vg=my-vg imgbased.vgid=mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo imgbased.timeout=5 ro rootflags=noatime,x=1 rootfstype=ext4",
        );
        assert_eq!(all.vg.as_str(), "my-vg");
        let vgid = all.vgid.as_ref().map(VgUuid::as_str);
        assert_eq!(vgid, Some("mZ7rTq-0a1B-2c3D-4e5F-6g7H-8i9J-Kl0mNo"));
        assert_eq!(all.timeout, Duration::from_secs(5));
        assert!(all.read_only);
        assert_eq!(all.rootflags.as_deref(), Some("noatime,x=1"));
        assert_eq!(all.rootfstype.as_deref(), Some("ext4"));

        assert!(!request("ro imgbased.layer=L rw").read_only);
        assert!(request("rw ro imgbased.layer=L").read_only);
        assert_eq!(request("imgbased.layer=L root=/dev/sda1").remarks.len(), 1);
        for (volatile, remarks) in [("overlay", 1), ("yes", 1), ("no", 0)] {
            let request = request(&format!("imgbased.layer=L systemd.volatile={volatile}"));
            assert_eq!(request.remarks.len(), remarks, "{volatile}");
        }
        let all = request("imgbased.layer=L imgbased.fallback=M fsck.mode=force fsck.repair=no");
        assert_eq!(all.fallback, Some("M".parse().unwrap()));
        assert_eq!(
            (all.check.mode, all.check.repair),
            (CheckMode::Force, Repair::No)
        );
        let plain = Check {
            mode: CheckMode::Auto,
            repair: Repair::Preen,
        };
        for other in [
            "imgbased.fallback=../x",
            "imgbased.onfail=never",
            "fsck.mode=maybe",
            "fsck.repair=maybe",
        ] {
            let request = request(&format!("imgbased.layer=L {other}"));
            assert_eq!(
                (&request.fallback, request.check),
                (&None, plain),
                "{other}"
            );
            assert_eq!(request.remarks.len(), 1, "{other}");
        }
        for bad in [
            "soon",
            "",
            "-1",
            "1.5",
            "86401",
            "18446744073709551615",
            "99999999999999999999",
        ] {
            let request = request(&format!("imgbased.layer=L imgbased.timeout={bad}"));
            assert_eq!(request.timeout, Duration::from_secs(90), "{bad}");
            assert_eq!(request.remarks.len(), 1, "{bad}");
        }
    }
}
