//! Images of each kind become bases that hold what the image held. The machines are in `vm/`.

#[allow(dead_code, unused_imports, reason = "other tests use the rest")]
mod vm;

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use vm::{Echo, Host, Vm};

/// For copying images, under software emulation.
const SLOW: Duration = Duration::from_secs(600);

/// A root filesystem with all that a file can have: foreign owners, setuid, an ACL, attributes, a
/// capability, hard and soft links, holes, a device node, a name with a line break.
const MAKE_TREE: &str = r#"
mkdir -p /root/tree/boot /root/tree/etc /root/tree/usr/bin /root/tree/var && cd /root/tree &&
echo kernel > boot/vmlinuz-9.9 && mkdir -p usr/lib/dracut && echo imgbased > usr/lib/dracut/modules.txt &&
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc > boot/initrd.img-9.9 &&
printf 'UUID=1234-5678 / ext4 noatime 0 1\nLABEL=boot /boot ext4 defaults,nofail 0 2\n' > etc/fstab &&
head -c 300000 /dev/urandom > usr/bin/tool && ln usr/bin/tool usr/bin/hard && ln -s tool usr/bin/soft &&
chmod 4751 usr/bin/tool && cp usr/bin/tool usr/bin/capable && setcap cap_net_raw+ep usr/bin/capable &&
echo x > etc/acl && setfacl -m u:1234:rw etc/acl && setfattr -n user.note -v text etc/acl &&
setfattr -n trusted.note -v text etc/acl &&
truncate -s 30M var/holes && echo end >> var/holes && head -c 2000000 /dev/urandom > var/data &&
chown 4321:8765 var/data && mknod var/null c 1 3 && mkfifo var/fifo && mkdir -m 1777 var/sticky &&
touch "$(printf 'var/two\nlines')" && touch -d 2001-02-03 var/old"#;

const MAKE_IMAGES: &str = r"
cd /root && mke2fs -q -t ext4 -d tree raw.ext4 64M &&
truncate -s 320M raw.xfs && mkfs.xfs -q raw.xfs && mkdir -p /mnt/xfs && mount raw.xfs /mnt/xfs &&
cp -a tree/. /mnt/xfs/ && umount /mnt/xfs &&
gzip -c raw.ext4 > raw.gz && xz -0 -c raw.ext4 > raw.xz && zstd -q -c raw.ext4 > raw.zst &&
mksquashfs tree root.squashfs -quiet -no-progress >/dev/null &&
mkdir -p live/LiveOS && cp --sparse=always raw.ext4 live/LiveOS/rootfs.img &&
mksquashfs live live.squashfs -quiet -no-progress >/dev/null &&
tar -C tree --xattrs --xattrs-include='*' --acls --sparse -cf tree.tar . &&
xz -0 -c tree.tar > tree.tar.xz && gzip -c tree.tar > tree.tar.gz && zstd -q -c tree.tar > tree.tar.zst";

/// What is in the tree at $1, with everything that has to survive; no times of directories, which
/// copying changes, and not how XFS keeps its ACLs.
const LIST: &str = r#"list() { ( cd "$1" &&
find . -name lost+found -prune -o -printf '%P %y %m %U %G %n %s %l\n' | grep -v ' d [0-9]* [0-9]* [0-9]* ' | sort &&
find . -type d -name 'sticky' -printf '%P %m\n' && find . -type f -exec sha256sum {} + | sort &&
getfattr -h -R -d -m - . 2>/dev/null | sort && getfacl -n etc/acl && getcap usr/bin/capable &&
stat -c '%n %t %T %Y' var/null var/old && [ $(stat -c %b var/holes) -lt 300 ] && ls -q var ) | grep -v '^fstab\|^trusted.SGI_ACL'; }; "#;

#[test]
fn images_of_every_kind_become_bases_with_the_same_content() -> Result<()> {
    let mut vm = Host::prepared()?
        .disk("images")?
        .boot("once", Echo::Silent)?;
    vm.log_in()?;
    vm.ok(MAKE_TREE)?;
    vm.ok_for(MAKE_IMAGES, SLOW)?;
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
    assert_eq!(vm.ok("imgbased-helper check")?, "");
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
    // What is booted and the default stay, whatever their age.
    assert_eq!(vm.ok("imgbased-helper base list")?, "Base-0\nXfs-tree.tar");
    vm.ok("imgbased-helper check")?;
    Ok(())
}

#[test]
fn equal_blocks_are_stored_once_and_bases_stay_independent() -> Result<()> {
    let disk = Host::prepared()?.disk("sharing")?;
    let mut vm = disk.boot("once", Echo::Silent)?;
    vm.log_in()?;
    // 200 MiB of data, then the same with every twentieth block of 64 KiB changed.
    vm.ok_for(
        "mkdir -p /root/t/boot /root/t/usr/lib/dracut && cd /root/t && echo k > boot/vmlinuz-9.9 && \
         echo imgbased > usr/lib/dracut/modules.txt && \
         echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc > boot/initrd.img-9.9 && cd .. && \
         head -c 200M /dev/urandom > t/data && mke2fs -q -t ext4 -d t one.img 300M && rm t/data && \
         cp --sparse=always one.img two.img && \
         debugfs -R 'blocks /data' one.img 2>/dev/null | tr ' ' '\\n' | awk 'NR % 1280 == 100' > blocks && \
         while read -r block; do dd if=/dev/urandom of=two.img bs=1k seek=$((block / 64 * 64)) count=64 conv=notrunc status=none; done < blocks && wc -l < blocks",
        SLOW,
    )?;
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
    assert_eq!(verified, "Three: unchanged\nTwo: unchanged");
    let sum = vm.ok("debugfs -R 'cat /data' /root/two.img 2>/dev/null | sha256sum")?;
    assert_eq!(mounted(&mut vm, "Two", "sha256sum < data")?, sum);
    Ok(())
}

#[test]
fn an_installed_system_on_a_thin_volume_is_adopted() -> Result<()> {
    let disk = Host::prepared()?.disk("adopt")?;
    let spare = disk.spare("spare", "4G")?;
    let mut vm = disk.boot_with("once", vec![spare], Echo::Silent)?;
    vm.log_in()?;
    // As an installer leaves it: a group, a pool and a root without any of our tags.
    vm.ok_for(
        "disk=/dev/disk/by-id/virtio-spare && lvm vgcreate -y Installed $disk && \
         lvm lvcreate -y --type thin-pool -L 3G -n pool Installed && \
         lvm lvcreate -y -V 2G --thinpool pool -n root Installed && \
         mkfs.ext4 -q /dev/Installed/root && mkdir -p /mnt/root && mount /dev/Installed/root /mnt/root && \
         cp -a --one-file-system / /mnt/root/ && \
         cp /boot/imgbased/vmlinuz-* /boot/vmlinuz-$(uname -r) && \
         cp /boot/imgbased/initrd-* /boot/initrd.img-$(uname -r) && \
         echo installed > /mnt/root/etc/mark && sync -f /mnt/root",
        SLOW,
    )?;
    let before = vm.ok("lvm lvs --noheadings -o lv_name,lv_tags,lv_size,lv_uuid Installed/root; sha256sum /mnt/root/etc/mark")?;
    // While it is mounted, as / is on a host that is taken over.
    let adopted = vm.ok_for(
        "imgbased-helper layout init --from /mnt/root --name node-4.5-1",
        SLOW,
    )?;
    ensure!(adopted.ends_with("node-4.5-1\nnode-4.5-1+1"), "{adopted}");
    assert_eq!(
        vm.ok("lvm lvs --noheadings -o lv_name,lv_tags,lv_size,lv_uuid Installed/root; sha256sum /mnt/root/etc/mark")?,
        before
    );
    vm.ok("umount /mnt/root")?;
    assert_eq!(
        vm.ok("lvm vgs --noheadings -o vg_tags Installed; lvm lvs --noheadings -o lv_tags Installed/pool")?
            .replace(' ', ""),
        "imgbased:vg\nimgbased:pool"
    );
    let again = vm.run("imgbased-helper layout init --from Installed/node-4.5-1")?;
    ensure!(
        again.status == 1 && again.text.contains("is managed already"),
        "{again:?}"
    );
    let found = vm.run("imgbased-helper --vg Installed check")?;
    ensure!(
        found.text.lines().all(|line| line.starts_with("pool: ")),
        "{found:?}"
    );
    vm.ok("grub-editenv /boot/grub/grubenv set saved_entry=imgbased-Installed-node-4.5-1+1_")?;
    vm.power_off()?;

    let mut vm = disk.boot_with("adopted", vec![disk.existing("spare")], Echo::Silent)?;
    vm.log_in()?;
    assert_eq!(
        vm.ok("cat /etc/mark && imgbased-helper --vg Installed layer current")?,
        "installed\nnode-4.5-1+1"
    );
    // A group of imgbased has tags, but no base of a layer, no digest and no entry.
    vm.ok(
        "for lv in Base-7 Base-7.1; do lvm lvcreate -y -s -n $lv Installed/root; done && \
           lvm lvchange -pr --addtag imgbased:base Installed/Base-7 && \
           lvm lvchange --addtag imgbased:layer Installed/Base-7.1",
    )?;
    assert_eq!(
        vm.ok_for("imgbased-helper --vg Installed layer add Base-7", SLOW)?,
        "Base-7.2"
    );
    assert_eq!(
        vm.ok_for("imgbased-helper --vg Installed layer add node-4.5-1", SLOW)?,
        "node-4.5-1+2"
    );
    let layout = vm.ok("imgbased-helper --vg Installed layout --json")?;
    ensure!(layout.contains("\"Base-7.1\""), "{layout}");
    Ok(())
}

fn listing(vm: &mut Vm, dir: &str) -> Result<String> {
    vm.ok_for(&format!("{LIST} list {dir}"), SLOW)
}

fn without_acls(listing: &str) -> Vec<&str> {
    let is_acl = |line: &str| {
        let of_acl = ["user:", "group:", "mask:", "other:"];
        line.contains("posix_acl") || of_acl.iter().any(|kind| line.starts_with(kind))
    };
    listing.lines().filter(|line| !is_acl(line)).collect()
}

fn mounted_listing(vm: &mut Vm, name: &str) -> Result<String> {
    mounted(vm, name, &format!("{LIST} list ."))
}

/// Runs a command in the root of a base or layer.
fn mounted(vm: &mut Vm, name: &str, command: &str) -> Result<String> {
    let command = command.replace('\'', r"'\''");
    vm.ok_for(
        &format!(
            "mkdir -p /mnt/look && lvm lvchange -qq -K -ay HostVG/{name} && \
             mount -o ro $(imgbased-helper layer path {name}) /mnt/look && \
             (cd /mnt/look && eval '{command}'); status=$?; \
             umount /mnt/look && lvm lvchange -qq -an HostVG/{name} && [ $status = 0 ]"
        ),
        SLOW,
    )
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
