#!/bin/bash
# Makes a group of another name on a LUKS device on a RAID of two disks, with a layer of XFS; beside it a
# group with as many volumes as its metadata can hold, and disks that hold something else.
set -eu

volumes=4000
cd /dev/disk/by-id
mdadm --create /dev/md/stack --run --assume-clean --metadata=1.2 --level=1 \
    --uuid=11111111:22222222:33333333:44444444 --raid-devices=2 virtio-half1 virtio-half2
printf secret | cryptsetup luksFormat --batch-mode --uuid 11111111-2222-4333-8444-555555555555 \
    --pbkdf pbkdf2 --pbkdf-force-iterations 1000 /dev/md/stack -
printf secret | cryptsetup open /dev/md/stack opened -
udevadm settle

mount virtio-host-part2 /boot
lvm lvchange -qq -K -ay HostVG/Base-0
mount -o ro,noload /dev/HostVG/Base-0 /mnt
imgbased-helper --vg my-vg_1 layout init --device /dev/mapper/opened
imgbased-helper --vg my-vg_1 base add --name node-ng-4.4 --fstype xfs --size 1200M /mnt
imgbased-helper --vg my-vg_1 layer add node-ng-4.4
umount /mnt /boot

# Each of so many volumes takes udev a while.
vgcreate -qq --setautoactivation n --metadatasize 16M Foreign /dev/disk/by-id/virtio-foreign
vgcfgbackup -qq -f /tmp/foreign Foreign
awk -v volumes=$volumes '
    { print }
    /^\tphysical_volumes/ { inside = 1 }
    inside && /^\t}/ {
        inside = 0
        print "\tlogical_volumes {"
        for (n = 0; n < volumes; n++)
            printf "lv%d {\nid = \"aaaaaa-aaaa-aaaa-aaaa-aaaa-aaaa-%06d\"\n" \
                "status = [\"READ\", \"WRITE\", \"VISIBLE\"]\nflags = []\nsegment_count = 1\n" \
                "segment1 {\nstart_extent = 0\nextent_count = 1\ntype = \"striped\"\n" \
                "stripe_count = 1\nstripes = [\n\"pv0\", %d\n]\n}\n}\n", n, n, n
        print "\t}"
    }' /tmp/foreign >/tmp/crowded
vgcfgrestore -qq -f /tmp/crowded Foreign
test "$(lvs --noheadings Foreign | wc -l)" = $volumes

vgchange -q -an my-vg_1
cryptsetup close opened
mke2fs -q virtio-other1
mkswap virtio-other2
