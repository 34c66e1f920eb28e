//! Kernel options: their words, and which of them are ours.

use super::name::VgName;

/// Names the layer or base to boot.
pub const LAYER: &str = "imgbased.layer=";
/// Names its volume group.
pub const VG: &str = "imgbased.vg=";
/// Names that group by its UUID. With it no other group counts, whatever its name.
pub const VGID: &str = "imgbased.vgid=";
/// Names a second layer, for when the first one cannot be mounted.
pub const FALLBACK: &str = "imgbased.fallback=";
/// The kernel's file, as GRUB adds it.
pub const BOOT_IMAGE: &str = "BOOT_IMAGE=";
/// All that say which layer boots.
const WHICH: [&str; 3] = [LAYER, VG, VGID];

/// Says that the layer has never come up, for the units that wait for the end of the boot.
const TRIAL: &str = "imgbased.trial";

/// Whatever fails on trial, the host restarts, and the boot loader goes on to another entry. These come
/// last: of several equal options the last counts.
const RESTART: [&str; 7] = [
    "imgbased.onfail=reboot",
    "panic=30",
    // A processor that is locked up panics, where the kernel watches for that. It does not on one that is only
    // slow, as with softlockup_panic: a busy hypervisor halts its guests for as long.
    "nmi_watchdog=panic",
    "rd.shell=0",
    "rd.emergency=reboot",
    // Of a watchdog device, where there is one (systemd(1)).
    "systemd.watchdog_sec=2min",
    // A systemd that fails or cannot begin stands still otherwise, and that is no panic.
    "systemd.crash_reboot=yes",
];

/// The words of kernel options as they stand, quotes and all. White space in quotes is a part of
/// the word.
pub fn words(options: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    let words = options.split(move |c: char| {
        quoted ^= c == '"';
        c.is_ascii_whitespace() && !quoted
    });
    words.filter(|word| !word.is_empty())
}

/// The value of the last option with this key, which ends in `=`.
pub fn value<'a>(options: &'a str, key: &str) -> Option<&'a str> {
    let values = words(options).filter_map(|word| word.strip_prefix(key));
    values.last()
}

/// The same options for a layer that has never come up.
pub fn on_trial(options: &str) -> String {
    if is_trial(options) {
        return options.to_owned();
    }
    let (which, others) = split(options);
    [which, vec![TRIAL], others, RESTART.to_vec()]
        .concat()
        .join(" ")
}

/// The same options, for a layer of the group with this UUID, and of no other one.
pub fn of_group(options: &str, uuid: &str) -> String {
    let vgid = format!("{VGID}{uuid}");
    let (mut which, mut others) = split(options);
    // The last of several would count.
    for words in [&mut which, &mut others] {
        words.retain(|word| !word.starts_with(VGID));
    }
    [which, vec![&vgid], others].concat().join(" ")
}

/// The same options, for a layer of that name in another group.
pub fn moved(options: &str, layer: &str, group: &[String]) -> String {
    let layer = format!("{LAYER}{layer}");
    let group = group.iter().map(String::as_str);
    let is_other = |word: &&str| WHICH.iter().all(|key| !word.starts_with(key));
    let others = words(options).filter(is_other);
    let all = [layer.as_str()].into_iter().chain(group).chain(others);
    all.collect::<Vec<_>>().join(" ")
}

/// The words at the beginning that say which layer boots, and all others.
fn split(options: &str) -> (Vec<&str>, Vec<&str>) {
    let mut which: Vec<&str> = words(options).collect();
    let names_layer = |word: &&str| WHICH.iter().any(|key| word.starts_with(key));
    let begin = which.iter().take_while(|word| names_layer(word)).count();
    let others = which.split_off(begin);
    (which, others)
}

pub fn is_trial(options: &str) -> bool {
    words(options).any(|word| word == TRIAL)
}

/// The same options without what [`on_trial`] has added. What others have put beside that stays, and so do
/// equal options of others.
pub fn confirmed(options: &str) -> String {
    if !is_trial(options) {
        return options.to_owned();
    }
    let mut words: Vec<&str> = words(options).filter(|word| *word != TRIAL).collect();
    for added in RESTART {
        if let Some(at) = words.iter().rposition(|word| *word == added) {
            words.remove(at);
        }
    }
    words.join(" ")
}

/// Options without those that we or boot loaders add, and without ways to find another root. All others
/// are for every layer and kernel. The volume that a system resumes from is no root.
pub fn without_ours(options: &str) -> String {
    let options = confirmed(options);
    let resumes = value(&options, "resume=");
    let is_ours = |word: &&str| {
        let key = key(word);
        let volume = word.strip_prefix("rd.lvm.lv=");
        if volume
            .zip(resumes)
            .is_some_and(|(volume, device)| is_device_of(volume, device))
        {
            return false;
        }
        WHICH.iter().any(|which| which.trim_end_matches('=') == key)
            || key.starts_with("rd.lvm")
            || matches!(key, "BOOT_IMAGE" | "initrd" | "root")
    };
    let words = words(&options).filter(|word| !is_ours(word));
    words.collect::<Vec<_>>().join(" ")
}

/// Whether a device is that of a logical volume, which is named with its group.
fn is_device_of(volume: &str, device: &str) -> bool {
    let Some(device) = device.strip_prefix("/dev/") else {
        return false;
    };
    let mapped = || {
        let (group, name) = volume.split_once('/')?;
        let group: VgName = group.parse().ok()?;
        let found = group.lv_of(device.strip_prefix("mapper/")?)?;
        Some(found.as_str() == name)
    };
    device == volume || mapped().unwrap_or(false)
}

/// Those that name a disk, a volume or the identity of one host: a root, a layer, or anything by its UUID. Another host
/// looks for that in vain, and waits for it.
pub fn of_one_host(options: &str) -> Vec<&str> {
    words(options).filter(|word| is_of_one_host(word)).collect()
}

/// The options without those.
pub fn of_any_host(options: &str) -> String {
    let others = words(options).filter(|word| !is_of_one_host(word));
    others.collect::<Vec<_>>().join(" ")
}

fn is_of_one_host(word: &str) -> bool {
    const NAMES: [&str; 5] = [
        "uuid=",
        "/by-uuid/",
        "/by-partuuid/",
        "/by-id/",
        "systemd.machine_id=",
    ];
    let lower = word.to_ascii_lowercase();
    without_ours(word).is_empty() || NAMES.iter().any(|name| lower.contains(name))
}

/// A way in which the initramfs reaches disks (dracut.cmdline(7)): how its words begin, and those of them that have it do
/// so, or say that there is nothing to be done. The others say how.
struct Way {
    words: &'static [&'static str],
    named: &'static [&'static str],
}

const WAYS: [Way; 3] = [
    Way {
        words: &[
            "rd.luks",
            "luks.uuid=",
            "luks.name=",
            "luks.options=",
            "luks.key=",
            "luks.data=",
            "luks.header=",
        ],
        named: &[
            "rd.luks.uuid=",
            "rd.luks.name=",
            "rd.luks.partuuid=",
            "rd.luks.serial=",
            "luks.uuid=",
            "luks.name=",
            "rd.luks=0",
            "rd.luks=no",
        ],
    },
    Way {
        words: &["rd.md"],
        named: &["rd.md.uuid=", "rd.md=0", "rd.md=no"],
    },
    // All of the network that it needs for that, or for a server that unlocks it (dracut.cmdline(7), `rd.neednet=1`).
    Way {
        words: &[
            "netroot=",
            "rd.iscsi.",
            "rd.neednet",
            "ip=",
            "ifname=",
            "vlan=",
            "bond=",
            "bridge=",
            "team=",
            "nameserver=",
            "rd.route=",
            "bootdev=",
        ],
        named: &["netroot=iscsi:", "rd.iscsi.firmware", "rd.neednet"],
    },
];

impl Way {
    fn is_word(&self, word: &str) -> bool {
        self.words.iter().any(|begin| word.starts_with(begin))
    }

    /// Whether options say of it which disks, or none.
    fn is_named(&self, options: &str) -> bool {
        let is_one = |word: &str| self.named.iter().any(|begin| word.starts_with(begin));
        words(options).any(is_one)
    }
}

/// The options with those of the host that have the initramfs assemble and unlock its disks: without them it finds no
/// group there, whatever the image says.
pub fn with_disks(options: &str, host: &str) -> String {
    with_words(options, host, |_, _| true)
}

/// The options of a root, with those that an entry of it has had for its disks: of a way to them by which the root names
/// none it knows nothing.
pub fn keeping_disks(options: &str, before: &str) -> String {
    let keys: Vec<&str> = words(options).map(key).collect();
    with_words(options, before, |way, word| {
        !way.is_named(options) && !keys.contains(&key(word))
    })
}

/// The options with those words of `from` for a way to disks that are wanted.
fn with_words(options: &str, from: &str, is_wanted: impl Fn(&Way, &str) -> bool) -> String {
    let own: Vec<&str> = words(options).collect();
    let ways = || WAYS.iter().filter(|way| way.is_named(from));
    let is_missing = |word: &&str| {
        let is_one = |way: &Way| way.is_word(word) && is_wanted(way, word);
        !own.contains(word) && ways().any(is_one)
    };
    let missing = words(from).filter(is_missing);
    let all = own.iter().copied().chain(missing);
    all.collect::<Vec<_>>().join(" ")
}

fn key(word: &str) -> &str {
    word.split('=').next().unwrap_or_default()
}

/// Whether the initramfs has to unlock a disk.
pub fn unlocks(options: &str) -> bool {
    let named = ["uuid=", "name=", "partuuid=", "serial="];
    words(options).any(|word| {
        let of = word.strip_prefix("rd.luks.").or(word.strip_prefix("luks."));
        of.is_some_and(|of| named.iter().any(|key| of.starts_with(key)))
    })
}

/// The options of a system that runs, without how its own root was mounted, which grub-mkconfig(8) adds.
pub fn without_root(options: &str) -> String {
    let options = without_ours(options);
    let is_of_root = |word: &&str| matches!(key(word), "rootflags" | "rootfstype" | "ro" | "rw");
    let words = words(&options).filter(|word| !is_of_root(word));
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_we_or_a_loader_added_is_taken_out() {
        for (options, kept) in [
            (
                "BOOT_IMAGE=(hd0,gpt2)/vmlinuz root=/dev/sda1 ro a=1 rd.lvm.lv=x/y b a=2 \
                 imgbased.layer=B imgbased.vg=V imgbased.vgid=u-1 imgbased.timeout=5 rootflags=x a=1\n",
                "ro a=1 b a=2 imgbased.timeout=5 rootflags=x a=1",
            ),
            (
                "imgbased.onfail=reboot panic=30 imgbased.fallback=Base-0.1 rootfstype=xfs",
                "imgbased.onfail=reboot panic=30 imgbased.fallback=Base-0.1 rootfstype=xfs",
            ),
            (
                "root=/dev/mapper/o-n rd.lvm.lv=o/n rd.lvm.lv=o-1/swap resume=/dev/mapper/o--1-swap",
                "rd.lvm.lv=o-1/swap resume=/dev/mapper/o--1-swap",
            ),
            (
                "rd.lvm.lv=o/swap rd.lvm.vg=o resume=/dev/o/swap",
                "rd.lvm.lv=o/swap resume=/dev/o/swap",
            ),
            ("rd.lvm.lv=o/swap resume=UUID=1", "resume=UUID=1"),
            ("root=x a=\"x ro y\" b=\"c  d\"", "a=\"x ro y\" b=\"c  d\""),
            ("dyndbg=\"file x root=1\" c", "dyndbg=\"file x root=1\" c"),
        ] {
            assert_eq!(without_ours(options), kept);
        }
        let running = "root=/dev/sda1 ro quiet rootflags=x panic=5";
        assert_eq!(without_root(running), "quiet panic=5");
    }

    #[test]
    fn what_reaches_the_disks_of_a_host_is_taken_over_and_nothing_else() {
        for (options, host, all) in [
            ("", "", ""),
            ("quiet", "console=tty0 panic=5", "quiet"),
            ("quiet", "a rd.luks.uuid=1-2 b", "quiet rd.luks.uuid=1-2"),
            (
                "rd.luks.uuid=1-2 a",
                "rd.luks.uuid=1-2",
                "rd.luks.uuid=1-2 a",
            ),
            (
                "a",
                "rd.md.uuid=1:2 rd.luks.options=discard rd.luks.uuid=1",
                "a rd.md.uuid=1:2 rd.luks.options=discard rd.luks.uuid=1",
            ),
            // What names no disk is not for one.
            ("a", "rd.luks.options=discard ip=dhcp", "a"),
            // A host that is unlocked by a server of its network.
            (
                "a",
                "rd.luks.uuid=1 rd.neednet=1 ip=dhcp",
                "a rd.luks.uuid=1 rd.neednet=1 ip=dhcp",
            ),
            (
                "a",
                "ip=dhcp netroot=iscsi:@10.0.0.1::3260::iqn.x:y",
                "a ip=dhcp netroot=iscsi:@10.0.0.1::3260::iqn.x:y",
            ),
        ] {
            assert_eq!(with_disks(options, host), all, "{options} {host}");
        }
        for (options, before, kept) in [
            ("quiet", "a rd.luks.uuid=1", "quiet rd.luks.uuid=1"),
            // A person has taken one of them out.
            (
                "rd.luks.uuid=1",
                "rd.luks.uuid=1 rd.luks.uuid=2",
                "rd.luks.uuid=1",
            ),
            ("quiet", "a", "quiet"),
            // How a disk is unlocked names none.
            (
                "rd.luks.options=discard",
                "rd.luks.options=discard rd.luks.uuid=1",
                "rd.luks.options=discard rd.luks.uuid=1",
            ),
            ("quiet", "rd.luks.partuuid=1", "quiet rd.luks.partuuid=1"),
            (
                "rd.luks=1",
                "rd.luks=1 rd.luks.uuid=1",
                "rd.luks=1 rd.luks.uuid=1",
            ),
            // Nothing is left to be assembled.
            ("rd.md=0", "rd.md.uuid=2", "rd.md=0"),
            // The address is another one now.
            (
                "ip=10.0.0.2",
                "ip=10.0.0.1 rd.neednet netroot=iscsi:x",
                "ip=10.0.0.2 rd.neednet netroot=iscsi:x",
            ),
            // One way says nothing of another one.
            (
                "rd.luks.uuid=1",
                "rd.luks.uuid=1 rd.md.uuid=2",
                "rd.luks.uuid=1 rd.md.uuid=2",
            ),
        ] {
            assert_eq!(keeping_disks(options, before), kept);
        }
        for (options, wanted) in [
            ("a rd.luks.uuid=1", true),
            ("rd.luks.name=1=x", true),
            ("luks.uuid=1", true),
            ("rd.luks.serial=1", true),
            ("rd.luks=1 rd.luks.options=discard rd.md.uuid=1", false),
            ("x=\"a rd.luks.uuid=1\" ip=dhcp", false),
        ] {
            assert_eq!(unlocks(options), wanted, "{options}");
        }
    }

    #[test]
    fn what_names_a_disk_of_one_host_is_told_from_what_is_for_all() {
        for (word, is_of_one) in [
            ("root=/dev/sda1", true),
            ("root=LABEL=x", true),
            ("rd.lvm.lv=a/b", true),
            ("imgbased.layer=Base-0.1", true),
            ("imgbased.trial", true),
            ("resume=UUID=1-2", true),
            ("rd.luks.uuid=luks-1", true),
            ("rd.md.uuid=1:2", true),
            ("resume=/dev/disk/by-id/x", true),
            ("systemd.machine_id=0", true),
            ("console=ttyS0,115200", false),
            ("imgbased.onfail=reboot", false),
            ("rootflags=x", false),
            ("resume=/dev/mapper/HostVG-swap", false),
            ("dyndbg=\"file x root=1\"", false),
        ] {
            let options = format!("quiet {word} ro");
            let wanted: &[&str] = if is_of_one { &[word] } else { &[] };
            assert_eq!(of_one_host(&options), wanted);
            let rest = if is_of_one { "quiet ro" } else { &options };
            assert_eq!(of_any_host(&options), rest);
        }
    }

    #[test]
    fn the_group_is_named_beside_the_layer() {
        let plain = "imgbased.layer=L imgbased.vg=V quiet";
        let named = of_group(plain, "u-1");
        assert_eq!(
            named,
            "imgbased.layer=L imgbased.vg=V imgbased.vgid=u-1 quiet"
        );
        let trial = on_trial(&named);
        assert!(
            trial.contains("imgbased.vgid=u-1 imgbased.trial quiet"),
            "{trial}"
        );
        assert_eq!(confirmed(&trial), named);
        assert_eq!(without_ours(&named), "quiet");
        // In the place of another one, wherever that is.
        let restored = of_group(&format!("{named} imgbased.vgid=u-0"), "u-2");
        assert_eq!(
            restored,
            "imgbased.layer=L imgbased.vg=V imgbased.vgid=u-2 quiet"
        );
    }

    #[test]
    fn a_layer_moves_with_all_other_options() {
        let trial = on_trial("imgbased.layer=L imgbased.vg=V imgbased.vgid=u-1 quiet");
        let group = ["imgbased.vg=W".to_owned(), "imgbased.vgid=u-2".to_owned()];
        let moved = moved(&(trial + " imgbased.vg=X"), "L", &group);
        assert_eq!(
            moved,
            "imgbased.layer=L imgbased.vg=W imgbased.vgid=u-2 imgbased.trial quiet \
             imgbased.onfail=reboot panic=30 nmi_watchdog=panic rd.shell=0 rd.emergency=reboot \
             systemd.watchdog_sec=2min systemd.crash_reboot=yes"
        );
    }

    #[test]
    fn a_trial_overrides_what_it_is_added_to_and_leaves_that_behind() {
        let plain = "imgbased.layer=L imgbased.vg=V quiet imgbased.onfail=shell panic=0";
        let trial = on_trial(plain);
        assert_eq!(
            trial,
            "imgbased.layer=L imgbased.vg=V imgbased.trial quiet imgbased.onfail=shell panic=0 \
             imgbased.onfail=reboot panic=30 nmi_watchdog=panic rd.shell=0 rd.emergency=reboot \
             systemd.watchdog_sec=2min systemd.crash_reboot=yes"
        );
        assert!(is_trial(&trial) && !is_trial(plain));
        assert_eq!(on_trial(&trial), trial);
        assert_eq!(confirmed(&trial), plain);
        assert_eq!(confirmed(&(trial + " debug")), format!("{plain} debug"));
        // The same words of an administrator.
        let unattended = "imgbased.layer=L imgbased.onfail=reboot panic=30";
        assert_eq!(confirmed(&on_trial(unattended)), unattended);
        assert_eq!(confirmed(unattended), unattended);
        // As they were written before.
        let old = "quiet imgbased.layer=L imgbased.trial imgbased.onfail=reboot panic=30 rd.shell=0 \
                   rd.emergency=reboot";
        assert_eq!(confirmed(old), "quiet imgbased.layer=L");
    }
}
