//! Images of each kind become bases that hold what the image held.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::claims::is_clean;
use crate::vm::guest::{script, script_with};
use crate::vm::{Host, Loader, Vm};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

scenarios![
    images_of_every_kind_become_bases_with_the_same_content,
    a_pool_that_does_not_zero_puts_nothing_old_into_a_base,
    equal_blocks_are_stored_once_and_bases_stay_independent,
];

fn images_of_every_kind_become_bases_with_the_same_content() -> Result<()> {
    let (_disk, mut vm) = Host::running(Loader::Grub, "images")?;
    vm.ok(&script("make-tree")?)?;
    vm.ok_for(&script("make-images")?, SLOW)?;
    let wanted = listing(&mut vm, "/root/tree")?;
    ensure!(
        wanted.contains("cap_net_raw") && wanted.contains("user:1234:rw-"),
        "{wanted}"
    );
    let kinds = [
        "raw.ext4",
        "raw.xfs",
        "raw.gz",
        "raw.xz",
        "raw.zst",
        "root.squashfs",
        "live.squashfs",
        "tree.tar",
        "tree.tar.gz",
        "tree.tar.xz",
        "tree.tar.zst",
        "tree",
    ];
    for kind in kinds {
        // The name of the file must not matter.
        vm.ok(&format!(
            "rm -rf /root/image && mv /root/{kind} /root/image"
        ))?;
        let name = format!("Of-{kind}");
        vm.ok_for(
            &format!("imgbased-helper base add --name {name} /root/image"),
            SLOW,
        )
        .context(kind)?;
        vm.ok(&format!("mv /root/image /root/{kind}"))?;
        // Whatever the names of others come before or after.
        assert_eq!(vm.ok("imgbased-helper base latest")?, name);
        let got = mounted_listing(&mut vm, &name)?;
        if kind == "root.squashfs" {
            // mksquashfs leaves ACLs out.
            assert_eq!(without_acls(&got), without_acls(&wanted), "{kind}");
        } else {
            assert_eq!(got, wanted, "{kind}");
        }

        let layer = vm.ok(&format!("imgbased-helper layer add {name}"))?;
        let fstab = mounted(&mut vm, &layer, "cat etc/fstab")?;
        let own = format!(
            "{} / ext4 noatime 0 1\nLABEL=boot",
            vm.ok(&format!("imgbased-helper layer path {layer}"))?
        );
        ensure!(fstab.starts_with(&own), "{kind}: {fstab}");
        vm.ok(&format!("imgbased-helper layer remove {layer}"))?;
    }
    for kind in ["tree.tar", "tree"] {
        let name = format!("Xfs-{kind}");
        let add =
            format!("imgbased-helper base add --fstype xfs --size 400M --name {name} /root/{kind}");
        vm.ok_for(&add, SLOW)?;
        assert_eq!(mounted_listing(&mut vm, &name)?, wanted, "{kind} on XFS");
        assert_eq!(filesystem(&mut vm, &name)?, "xfs");
    }
    assert_eq!(filesystem(&mut vm, "Of-raw.xfs")?, "xfs");
    is_clean(&mut vm)?;
    let verified = vm.ok_for("imgbased-helper base verify 2>/dev/null", SLOW)?;
    assert_eq!(
        verified.matches(": unchanged").count(),
        1 + kinds.len() + 2,
        "{verified}"
    );
    every_filesystem_has_its_own_uuid(&mut vm)?;
    an_altered_base_is_named(&mut vm)?;
    sizes_are_kept(&mut vm)?;
    old_bases_are_collected(&mut vm)
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
    let size = mounted(vm, "Large", "stat -f -c '%b %S' .")?;
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
    ensure!(refused.text.contains("--yes answers it"), "{refused:?}");
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
    assert_eq!(mounted(&mut vm, "Two", "sha256sum < data")?, sum);
    Ok(())
}

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

fn listing(vm: &mut Vm, dir: &str) -> Result<String> {
    vm.ok_for(&script_with("list-tree", &[dir])?, SLOW)
}

fn without_acls(listing: &str) -> Vec<&str> {
    let is_acl = |line: &str| {
        let of_acl = ["user:", "group:", "mask:", "other:"];
        line.contains("posix_acl") || of_acl.iter().any(|kind| line.starts_with(kind))
    };
    listing.lines().filter(|line| !is_acl(line)).collect()
}

fn mounted_listing(vm: &mut Vm, name: &str) -> Result<String> {
    mounted(vm, name, &script_with("list-tree", &["."])?)
}

/// Runs a command in the root of a base or layer.
fn mounted(vm: &mut Vm, name: &str, command: &str) -> Result<String> {
    vm.ok_for(&script_with("look-into", &[name, command])?, SLOW)
}

fn filesystem(vm: &mut Vm, name: &str) -> Result<String> {
    mounted(vm, name, "findmnt -no FSTYPE /mnt/look")
}

fn every_filesystem_has_its_own_uuid(vm: &mut Vm) -> Result<()> {
    let uuids = vm.ok_for(
        "for base in $(imgbased-helper base list); do lvm lvchange -qq -K -ay HostVG/$base && \
         blkid -p -s UUID -o value $(imgbased-helper layer path $base) && lvm lvchange -qq -an HostVG/$base; done",
        SLOW,
    )?;
    let mut all: Vec<&str> = uuids.lines().collect();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    ensure!(count > 10 && all.len() == count, "{uuids}");
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
