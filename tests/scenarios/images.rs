//! Images of each kind become bases that hold what the image held.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::{is_clean, is_refused};
use crate::seed;
use crate::vm::guest::{script, script_with};
use crate::vm::verbs::{KILLED, STEPS_MAX, interrupted};
use crate::vm::{Host, HostDisk, Loader, Vm};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

scenarios![
    ;
    turns:
    images_of_some_kinds_become_bases_with_the_same_content,
    a_pool_that_does_not_zero_puts_nothing_old_into_a_base,
    equal_blocks_are_stored_once_and_bases_stay_independent,
    odd_sources_become_bases_or_are_refused;
    long:
    images_of_every_kind_become_bases_with_the_same_content,
    bases_over_used_space_hold_what_their_images_hold,
    the_subvolumes_of_a_directory_are_copied,
    equal_files_are_stored_once_whatever_the_image,
    what_bases_hold_is_listed_and_found,
];

/// An image of the tree, and how the times of its files are compared.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    times: &'static str,
}

/// Whole seconds are all that mke2fs(8) and a squashfs keep.
const KINDS: [Kind; 12] = [
    kind("raw.ext4", "s"),
    kind("raw.xfs", "ns"),
    kind("raw.gz", "s"),
    kind("raw.xz", "s"),
    kind("raw.zst", "s"),
    kind("root.squashfs", "s"),
    kind("live.squashfs", "s"),
    kind("tree.tar", "ns"),
    kind("tree.tar.gz", "ns"),
    kind("tree.tar.xz", "ns"),
    kind("tree.tar.zst", "ns"),
    kind("tree", "ns"),
];

/// Those that are always looked at, and how many of the others if not all of them are.
const FIRST: [&str; 2] = ["tree.tar", "tree"];
const SOME: usize = 2;

const fn kind(name: &'static str, times: &'static str) -> Kind {
    Kind { name, times }
}

impl Kind {
    /// Claims that a base of the group holds what the tree does.
    fn is_same(&self, vm: &mut Vm, vg: &str, base: &str) -> Result<()> {
        let wanted = listing(vm, "/root/tree", self.times)?;
        let got = mounted_listing(vm, vg, base, self.times)?;
        if self.name == "root.squashfs" {
            // mksquashfs leaves ACLs out.
            assert_eq!(without_acls(&got), without_acls(&wanted), "{base}");
        } else {
            assert_eq!(got, wanted, "{base}");
        }
        Ok(())
    }
}

fn images_of_every_kind_become_bases_with_the_same_content() -> Result<()> {
    let (_disk, mut vm) = images_become_bases("images", &KINDS)?;
    for file in ["tree.tar", "tree"] {
        let name = format!("Xfs-{file}");
        let add =
            format!("imgbased-helper base add --fstype xfs --size 400M --name {name} /root/{file}");
        vm.ok_for(&add, SLOW)?;
        kind(file, "ns").is_same(&mut vm, "HostVG", &name)?;
        assert_eq!(filesystem(&mut vm, &name)?, "xfs");
    }
    assert_eq!(filesystem(&mut vm, "Of-raw.xfs")?, "xfs");
    they_are_bases_as_others_are(&mut vm, KINDS.len() + 2)
}

fn images_of_some_kinds_become_bases_with_the_same_content() -> Result<()> {
    let is_first = |kind: &Kind| FIRST.contains(&kind.name);
    let (mut kinds, others): (Vec<Kind>, Vec<Kind>) = KINDS.into_iter().partition(is_first);
    kinds.extend(seed::rng("kinds").choose_multiple(others, SOME));
    let (_disk, mut vm) = images_become_bases("some-images", &kinds)?;
    they_are_bases_as_others_are(&mut vm, kinds.len())
}

/// A host with a base of each of these images, which holds what the image holds.
fn images_become_bases(name: &str, kinds: &[Kind]) -> Result<(HostDisk, Vm)> {
    let (disk, mut vm) = Host::running(Loader::Grub, name)?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("make-images")?, SLOW)?;
    let wanted = listing(&mut vm, "/root/tree", "s")?;
    for part in [
        "cap_net_raw",
        "user:1234:rw-",
        "default:user:1234:r-x",
        "etc_t",
    ] {
        ensure!(wanted.contains(part), "{part}: {wanted}");
    }
    for kind in kinds {
        // The name of the file must not matter.
        let file = kind.name;
        vm.ok(&format!(
            "rm -rf /root/image && mv /root/{file} /root/image"
        ))?;
        let name = format!("Of-{file}");
        let added = vm.ok_for(
            &format!("imgbased-helper base add --name {name} /root/image"),
            SLOW,
        );
        vm.ok(&format!("mv /root/image /root/{file}"))?;
        added.context(file)?;
        // Whatever the names of others come before or after.
        assert_eq!(vm.ok("imgbased-helper base latest")?, name);
        kind.is_same(&mut vm, "HostVG", &name)?;
        the_layers_line_for_the_root_is_its_own(&mut vm, &name)?;
    }
    Ok((disk, vm))
}

/// Claims what holds of the host's own base and `count` others, whatever image they are of.
fn they_are_bases_as_others_are(vm: &mut Vm, count: usize) -> Result<()> {
    is_clean(vm)?;
    let verified = vm.ok_for("imgbased-helper base verify 2>/dev/null", SLOW)?;
    assert_eq!(
        verified.matches(": unchanged").count(),
        1 + count,
        "{verified}"
    );
    every_filesystem_has_its_own_uuid(vm, 1 + count)?;
    an_altered_base_is_named(vm)?;
    sizes_are_kept(vm)?;
    old_bases_are_collected(vm)
}

/// It has the layer's device and filesystem, though the fstab is a link from the root, and not UTF-8. What belongs to
/// another filesystem goes, with a word.
fn the_layers_line_for_the_root_is_its_own(vm: &mut Vm, base: &str) -> Result<()> {
    let said = vm.ok(&format!("imgbased-helper layer add {base} 2>&1"))?;
    ensure!(said.contains("subvol=@"), "{said}");
    let layer = vm.ok("imgbased-helper layer latest")?;
    let fstab = mounted(vm, "HostVG", &layer, "tail -n +2 usr/lib/fstab")?;
    let own = format!(
        "{} / {} noatime 0 1\nLABEL=boot",
        vm.ok(&format!("imgbased-helper layer path {layer}"))?,
        filesystem(vm, &layer)?
    );
    ensure!(fstab.starts_with(&own), "{base}: {fstab}");
    vm.ok(&format!("imgbased-helper layer remove {layer}"))?;
    Ok(())
}

fn odd_sources_become_bases_or_are_refused() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "odd-sources")?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("make-images")?, SLOW)?;

    vm.say("labels that were packed without other attributes, and an archive before POSIX");
    vm.ok_for(
        "imgbased-helper base add --name Labels /root/labels.tar",
        SLOW,
    )?;
    let label =
        |file: &str| format!("getfattr --only-values -n security.selinux {file} | tr -d '\\0'");
    for (file, expected) in [("etc/acl", "etc_t"), ("usr/bin", "bin_t")] {
        let found = mounted(&mut vm, "HostVG", "Labels", &label(file))?;
        assert_eq!(found, format!("system_u:object_r:{expected}:s0"));
    }
    vm.ok_for("imgbased-helper base add --name Old /root/old.tar", SLOW)?;
    let tool = "sha256sum usr/bin/tool usr/bin/hard; stat -c '%a %h' usr/bin/tool";
    let wanted = vm.ok(&format!("cd /root/tree; {tool}; cd"))?;
    assert_eq!(mounted(&mut vm, "HostVG", "Old", tool)?, wanted);

    vm.say("a filesystem that was not unmounted, and images in use that nobody can write to");
    vm.ok_for(
        "imgbased-helper base add --name Running /root/running.ext4",
        SLOW,
    )?;
    assert_eq!(
        mounted(&mut vm, "HostVG", "Running", "cat var/late")?,
        "late"
    );
    assert_eq!(
        vm.ok_for(&script("busy-sources")?, SLOW)?,
        "File\nDevice\nLoop"
    );

    vm.say("disks with larger sectors");
    assert_eq!(vm.ok_for(&script("sectors-of-4096")?, SLOW)?, "4096");
    is_refused(
        &mut vm,
        "--vg Large base add /root/raw.xfs",
        "for disks with sectors of 512 bytes, and those of the volume group have 4096",
    )?;
    vm.ok_for(
        "imgbased-helper --vg Large base add --fstype xfs --name X /root/tree.tar",
        SLOW,
    )?;
    kind("tree.tar", "ns").is_same(&mut vm, "Large", "X")?;

    vm.say("mounts below a directory, and a root directory that is odd");
    let said = vm.ok_for(&script("add-tree-with-mounts")?, SLOW)?;
    let expected = "what is mounted below /root/tree is left out: /root/tree/proc, /root/tree/srv";
    ensure!(said.contains(expected), "{said}");
    let found = mounted(
        &mut vm,
        "HostVG",
        "Below",
        "find srv proc var/lib/hides | sort",
    )?;
    assert_eq!(found, "proc\nsrv\nsrv/hidden\nvar/lib/hides");
    vm.ok("chmod 700 /root/tree; chown 1000:1000 /root/tree")?;
    let said = vm.ok_for("imgbased-helper base add --name Odd /root/tree 2>&1", SLOW)?;
    ensure!(
        said.contains("has the mode 0700 and belongs to 1000:1000"),
        "{said}"
    );
    Ok(())
}

fn the_subvolumes_of_a_directory_are_copied() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "subvolumes")?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("btrfs-with-subvolumes")?, SLOW)?;
    let found = mounted(&mut vm, "HostVG", "Subvolumes", "find home | sort")?;
    assert_eq!(found, "home\nhome/file\nhome/inner\nhome/inner/file");
    Ok(())
}

fn bases_over_used_space_hold_what_their_images_hold() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "used-space")?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("make-images")?, SLOW)?;
    let of_interest = [
        "raw.ext4",
        "raw.xfs",
        "raw.zst",
        "root.squashfs",
        "tree.tar",
        "tree",
    ];
    for (chunk, zero) in [
        ("64k", "y"),
        ("64k", "n"),
        ("512k", "y"),
        ("512k", "n"),
        ("2m", "y"),
        ("2m", "n"),
    ] {
        vm.say(&format!("chunks of {chunk}, zeroed: {zero}"));
        vm.ok_for(&script_with("make-used-group", &[chunk, zero])?, SLOW)?;
        for kind in KINDS.iter().filter(|kind| of_interest.contains(&kind.name)) {
            let name = format!("Of-{}", kind.name);
            let add = format!(
                "imgbased-helper --vg Used base add --name {name} /root/{}",
                kind.name
            );
            vm.ok_for(&add, SLOW)?;
            kind.is_same(&mut vm, "Used", &name)?;
            vm.ok(&format!("imgbased-helper --vg Used layer add {name}"))?;
            vm.ok_for(&script_with("layer-is-intact", &["Used"])?, SLOW)?;
            vm.ok(&format!(
                "imgbased-helper --vg Used base remove --yes {name}"
            ))?;
        }
        vm.ok("lvm vgremove -qq -y Used && lvm pvremove -qq /dev/disk/by-id/virtio-spare")?;
    }
    Ok(())
}

fn an_altered_base_is_named(vm: &mut Vm) -> Result<()> {
    vm.ok(
        "lvm lvchange --permission rw HostVG/Of-tree && lvm lvchange -K -ay HostVG/Of-tree && \
           mkdir -p /mnt/a && mount /dev/HostVG/Of-tree /mnt/a && echo y >> /mnt/a/etc/acl && \
           umount /mnt/a && lvm lvchange -an HostVG/Of-tree",
    )?;
    let found = vm.run_for(
        "imgbased-helper base verify Of-tree Of-tree.tar 2>/dev/null",
        SLOW,
    )?;
    assert_eq!(found.status, 3);
    ensure!(
        found.text.contains("Of-tree: altered since it was made"),
        "{found:?}"
    );
    ensure!(found.text.contains("Of-tree.tar: unchanged"), "{found:?}");
    // No base takes its files for those of an image any more.
    let find =
        "imgbased-helper --json base find $(sha256sum </usr/bin/env | head -c 64) 2>/dev/null";
    let found: serde_json::Value = serde_json::from_str(&vm.ok(find)?)?;
    let unknown = found["unknown"].as_array().into_iter().flatten();
    let unknown: Vec<_> = unknown.filter_map(|name| name.as_str()).collect();
    ensure!(
        unknown.contains(&"Of-tree") && !unknown.contains(&"Of-tree.tar"),
        "{found}"
    );
    let found = vm.run("imgbased-helper check")?;
    assert_eq!(found.status, 3);
    ensure!(
        found
            .text
            .contains("Of-tree: is a base, but writable; repair: make"),
        "{found:?}"
    );
    vm.ok("imgbased-helper check --repair")?;
    vm.ok("imgbased-helper check")?;
    assert_eq!(
        vm.ok("lvm lvs --noheadings -o lv_permissions HostVG/Of-tree")?,
        "read-only"
    );
    Ok(())
}

fn sizes_are_kept(vm: &mut Vm) -> Result<()> {
    vm.ok_for(
        "imgbased-helper base add --name Large --size 200M /root/raw.gz",
        SLOW,
    )?;
    let size = mounted(vm, "HostVG", "Large", "stat -f -c '%b %S' .")?;
    let mut numbers = size.split(' ').map(str::parse::<u64>);
    let (Some(Ok(blocks)), Some(Ok(block))) = (numbers.next(), numbers.next()) else {
        anyhow::bail!("unexpected {size:?}");
    };
    ensure!(
        blocks * block > 170 << 20,
        "the filesystem has {} bytes",
        blocks * block
    );
    Ok(())
}

fn old_bases_are_collected(vm: &mut Vm) -> Result<()> {
    let refused = vm.run("imgbased-helper gc")?;
    assert_eq!(refused.status, 1);
    ensure!(refused.text.contains("--yes goes on"), "{refused:?}");
    vm.ok("mkdir -p /etc/imgbased && printf '[Target]\\nInstancesMax=50\\n' >/etc/imgbased/imgbased.conf")?;
    assert_eq!(vm.ok("imgbased-helper gc --dry-run --yes")?, "");
    vm.ok_for("imgbased-helper gc --keep 1 --yes", SLOW)?;
    // What was added last stays, and what is booted and the default, whatever their age.
    assert_eq!(vm.ok("imgbased-helper base list")?, "Base-0\nLarge");
    vm.ok("imgbased-helper check")?;
    Ok(())
}

fn equal_blocks_are_stored_once_and_bases_stay_independent() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "sharing")?;
    vm.ok_for(&script("make-shared")?, SLOW)?;
    let empty = used(&mut vm)?;
    vm.ok_for("imgbased-helper base add --name One /root/one.img", SLOW)?;
    let one = used(&mut vm)? - empty;
    vm.ok_for("imgbased-helper base add --name Two /root/two.img", SLOW)?;
    let two = used(&mut vm)? - empty - one;
    vm.ok_for(
        "imgbased-helper base add --no-share --name Three /root/one.img",
        SLOW,
    )?;
    let three = used(&mut vm)? - empty - one - two;
    ensure!(one > 190 << 20, "the first takes {one} bytes");
    ensure!(two * 10 < one, "the second takes {two} bytes beside {one}");
    ensure!(
        three > 190 << 20,
        "one that is not shared takes {three} bytes"
    );

    vm.ok("imgbased-helper base remove --yes One")?;
    let verified = vm.ok_for("imgbased-helper base verify Two Three 2>/dev/null", SLOW)?;
    assert_eq!(verified, "Two: unchanged\nThree: unchanged");
    let sum = vm.ok("debugfs -R 'cat /data' /root/two.img 2>/dev/null | sha256sum")?;
    assert_eq!(mounted(&mut vm, "HostVG", "Two", "sha256sum < data")?, sum);
    Ok(())
}

/// Of two builds by one recipe: of each kind of image, the second takes what it has of its own, and no more.
fn equal_files_are_stored_once_whatever_the_image() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "content")?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("make-builds")?, SLOW)?;
    let wanted = listing(&mut vm, "/root/second", "s")?;
    // Base-0 is larger than what a size is asked for.
    vm.ok_for(
        "imgbased-helper base add --no-share --name First /root/first",
        SLOW,
    )?;
    what_shares_nothing_is_told(&mut vm)?;
    for (kind, options, first) in [
        ("", "", "First"),
        (".tar", "", "First"),
        (".squashfs", "--size 500M", "First"),
        (".zst", "--by-content", "First"),
        ("", "--fstype xfs", "X"),
        (".tar", "--fstype xfs --size 600M", "X"),
    ] {
        vm.say(&format!("second{kind} {options}"));
        let is_there = vm.run(&format!("imgbased-helper base list | grep -qx {first}"))?;
        if is_there.status != 0 {
            vm.ok_for(
                "imgbased-helper base add --fstype xfs --name X /root/first",
                SLOW,
            )?;
        }
        vm.ok_for(&script_with("pack-build", &[kind])?, SLOW)?;
        let before = used(&mut vm)?;
        // The name of the nearest base comes just before.
        let name = format!("{first}2");
        let add = format!("imgbased-helper base add --name {name} {options} /root/second{kind}");
        vm.ok_for(&add, SLOW)?;
        let mut more = used(&mut vm)?.saturating_sub(before);
        vm.say(&format!("{} KiB", more >> 10));
        if options.contains("xfs") {
            // Nobody changes the UUID of an XFS but with all of its log.
            more = more.saturating_sub(XFS_LOG);
        }
        ensure!(more * 100 < BUILD * 15, "second{kind} takes {more} bytes");
        let found = mounted_listing(&mut vm, "HostVG", &name, "s")?;
        if kind == ".squashfs" {
            assert_eq!(without_acls(&found), without_acls(&wanted));
        } else {
            assert_eq!(found, wanted, "second{kind}");
        }
        vm.ok(&format!("imgbased-helper layer add {name}"))?;
        vm.ok_for(&script_with("layer-is-intact", &["HostVG"])?, SLOW)?;
        let verify = format!("imgbased-helper base verify {first} {name} 2>/dev/null");
        let both = format!("{first}: unchanged\n{name}: unchanged");
        assert_eq!(vm.ok_for(&verify, SLOW)?, both);
        vm.ok(&format!("imgbased-helper base remove --yes {name}"))?;
    }
    is_clean(&mut vm)?;

    vm.say("the same without the option, and the first is removed");
    vm.ok_for(&script_with("pack-build", &[".zst"])?, SLOW)?;
    let said = vm.ok_for(
        "imgbased-helper base add --name First1 /root/second.zst 2>&1",
        SLOW,
    )?;
    ensure!(said.contains("--by-content stores"), "{said}");
    vm.ok("imgbased-helper base remove --yes First1")?;
    vm.ok_for("imgbased-helper base add --name First2 /root/second", SLOW)?;
    vm.ok("imgbased-helper base remove --yes First")?;
    let verified = vm.ok_for("imgbased-helper base verify First2 2>/dev/null", SLOW)?;
    assert_eq!(verified, "First2: unchanged");
    assert_eq!(
        mounted_listing(&mut vm, "HostVG", "First2", "ns")?,
        listing(&mut vm, "/root/second", "ns")?
    );
    is_clean(&mut vm)
}

/// Beside the base First, before there is one with XFS.
fn what_shares_nothing_is_told(vm: &mut Vm) -> Result<()> {
    for (arguments, reason) in [
        (
            "--size 250M /root/second",
            "second shares nothing with First: the new base gets 250 MiB",
        ),
        ("--fstype xfs /root/second", "--fstype ext4 shares them"),
        ("/root/tree", "can have little in common with it"),
        ("/root/second", ""),
        ("--no-share --size 250M /root/second", ""),
    ] {
        let add = format!("imgbased-helper -n base add --name First1 {arguments}");
        let said = vm.ok_for(&format!("{add} 2>&1 >/dev/null"), SLOW)?;
        let is_told =
            said.contains(reason) && said.lines().count() == usize::from(!reason.is_empty());
        ensure!(is_told, "{arguments}: {said}");
    }
    Ok(())
}

/// Each base has a listing in the Config volume, by which files are found. It comes and goes with the base.
fn what_bases_hold_is_listed_and_found() -> Result<()> {
    const EXTRA: &str = "/config/bases/Extra.listing";
    const MOUNT: &str = "mkdir -p /config && mount /dev/HostVG/Config /config";
    let (_disk, mut vm) = Host::running(Loader::Grub, "listings")?;
    vm.ok(&script("make-extra")?)?;
    vm.ok_for("imgbased-helper base add --name Extra /root/Extra", SLOW)?;
    vm.ok(
        "echo changed >/root/Extra/etc/changed && ln /root/Extra/etc/changed /root/Extra/boot/same",
    )?;
    vm.ok_for("imgbased-helper base add --name Extra2 /root/Extra", SLOW)?;
    vm.ok("mke2fs -q -t ext4 -d /root/Extra /root/Other.img 16M")?;
    vm.ok_for(
        "imgbased-helper base add --name Other /root/Other.img",
        SLOW,
    )?;
    let said = vm.ok(&format!(
        "imgbased-helper base find {} 2>&1",
        "0".repeat(64)
    ))?;
    ensure!(
        said.contains("base verify --record Other` lists it"),
        "{said}"
    );
    vm.ok_for("imgbased-helper base verify Other", SLOW)?;
    let find = |file: &str| {
        format!("imgbased-helper base find $(sha256sum <{file} | cut -d ' ' -f 1) 2>/dev/null")
    };
    let found = vm.ok(&find("/root/Extra/etc/data"))?;
    assert_eq!(
        found,
        "Extra: /etc/data\nExtra2: /etc/data\nOther: /etc/data"
    );
    let found = vm.ok(&find("/root/Extra/etc/changed"))?;
    assert_eq!(
        found,
        "Extra2: /boot/same\nExtra2: /etc/changed\nOther: /boot/same\nOther: /etc/changed"
    );

    vm.say("what was taken from the listing of the base before is what is read");
    vm.ok(&format!("{MOUNT} && mv /config/bases/Extra2.listing /root"))?;
    vm.ok_for("imgbased-helper base verify Extra2", SLOW)?;
    vm.ok("cmp /root/Extra2.listing /config/bases/Extra2.listing")?;

    vm.say("a listing that is damaged, and a verb that is killed while it makes another");
    vm.ok(&format!("sed -i s/data/date/ {EXTRA}"))?;
    for step in 1..STEPS_MAX {
        let kill = format!("IMGBASED_KILL_AFTER={step}");
        let got = vm.run_for(
            &interrupted(&kill, "imgbased-helper base verify Extra"),
            SLOW,
        )?;
        let is_found = vm.ok(&find("/root/Extra/etc/data"))?.contains("Extra: ");
        is_clean(&mut vm)?;
        if got.status == 0 {
            ensure!(is_found && step > 2, "{step}");
            break;
        }
        assert_eq!(got.status, KILLED, "{step}: {got:?}");
    }
    assert_eq!(
        vm.ok("ls -A /config/bases")?,
        "Extra.listing\nExtra2.listing\nOther.listing"
    );

    vm.say("what is left of bases that are gone");
    vm.ok(&format!(
        "cp {EXTRA} /config/bases/Gone.listing && touch /config/bases/notes"
    ))?;
    vm.ok("touch /config/bases/.imgbased-x1.tmp && umount /config")?;
    let left = vm.run("imgbased-helper check")?;
    let problem = "has listings of bases that are gone: .imgbased-x1.tmp Gone.listing";
    ensure!(left.status == 3 && left.text.contains(problem), "{left:?}");
    vm.ok("imgbased-helper check --repair")?;
    is_clean(&mut vm)?;
    vm.ok("imgbased-helper base remove --yes Extra2")?;
    assert_eq!(vm.ok("findmnt -S /dev/mapper/HostVG-Config || true")?, "");
    let names = vm.ok(&format!("{MOUNT} && ls -A /config/bases; umount /config"))?;
    assert_eq!(names, "Extra.listing\nOther.listing\nnotes");

    vm.say("a group without the volume");
    vm.ok("lvm lvrename -qq HostVG Config Renamed")?;
    let said = vm.ok_for(
        "imgbased-helper base add --name Extra2 /root/Extra 2>&1",
        SLOW,
    )?;
    ensure!(!said.contains("listed"), "{said}");
    is_refused(
        &mut vm,
        &format!("base find {}", "0".repeat(64)),
        "HostVG has no volume Config",
    )?;
    vm.ok("lvm lvrename -qq HostVG Renamed Config")?;
    is_clean(&mut vm)
}

/// What each build of `make-builds` takes at least, in bytes.
const BUILD: u64 = 80 << 20;
/// What mkfs.xfs(8) makes at the least, in bytes.
const XFS_LOG: u64 = 64 << 20;

fn a_pool_that_does_not_zero_puts_nothing_old_into_a_base() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "old-data")?;
    let said = vm.ok_for(&script("base-over-old-data")?, SLOW)?;
    let digests: Vec<&str> = said.lines().filter(|line| line.ends_with("  -")).collect();
    ensure!(digests.len() == 2 && digests[0] == digests[1], "{said}");
    ensure!(
        said.contains("ImagePool: does not zero new chunks"),
        "{said}"
    );
    Ok(())
}

fn listing(vm: &mut Vm, dir: &str, times: &str) -> Result<String> {
    vm.ok_for(&script_with("list-tree", &[dir, times])?, SLOW)
}

fn without_acls(listing: &str) -> Vec<&str> {
    let is_acl = |line: &str| {
        let of_acl = ["user:", "group:", "mask:", "other:", "default:"];
        line.contains("posix_acl") || of_acl.iter().any(|kind| line.starts_with(kind))
    };
    listing.lines().filter(|line| !is_acl(line)).collect()
}

fn mounted_listing(vm: &mut Vm, vg: &str, name: &str, times: &str) -> Result<String> {
    mounted(vm, vg, name, &script_with("list-tree", &[".", times])?)
}

/// Runs a command in the root of a base or layer.
fn mounted(vm: &mut Vm, vg: &str, name: &str, command: &str) -> Result<String> {
    vm.ok_for(&script_with("look-into", &[name, command, vg])?, SLOW)
}

fn filesystem(vm: &mut Vm, name: &str) -> Result<String> {
    mounted(vm, "HostVG", name, "findmnt -no FSTYPE /mnt/look")
}

fn every_filesystem_has_its_own_uuid(vm: &mut Vm, bases: usize) -> Result<()> {
    let uuids = vm.ok_for(
        "for base in $(imgbased-helper base list); do lvm lvchange -qq -K -ay HostVG/$base && \
         blkid -p -s UUID -o value $(imgbased-helper layer path $base) && lvm lvchange -qq -an HostVG/$base; done",
        SLOW,
    )?;
    let mut all: Vec<&str> = uuids.lines().collect();
    all.sort_unstable();
    all.dedup();
    ensure!(all.len() == bases, "{uuids}");
    Ok(())
}

/// How many bytes of the pool are in use.
fn used(vm: &mut Vm) -> Result<u64> {
    let line = vm.ok("sync; lvm lvs --noheadings --units b --nosuffix --separator ' ' -o lv_size,data_percent HostVG/ImagePool")?;
    let mut fields = line.split_whitespace();
    let size: u64 = fields.next().context("a size")?.parse()?;
    let percent: f64 = fields.next().context("a percentage")?.parse()?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss
    )]
    Ok((size as f64 * percent / 100.0) as u64)
}
