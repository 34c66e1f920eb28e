#!/bin/sh
# Makes of the small disks: one with a filesystem (tiny1), two groups with one name (tiny3 and tiny4), a group
# that is not active (tiny5), one on a partition (small), and one of another system (other). Makes a disk that is too
# small (/root/toosmall), one with other sectors (/root/sectors), and a thin volume with a filesystem whose UUID cannot
# change (spare).
set -eu

cd /dev/disk/by-id
mke2fs -q -t ext4 virtio-tiny1
for twin in /dev/disk/by-id/virtio-tiny3 /dev/disk/by-id/virtio-tiny4; do
    lvm vgcreate -qq --devices $twin Twin $twin
done
lvm vgcreate -qq Idle /dev/disk/by-id/virtio-tiny5
lvm lvcreate -qq -an -Zn -l 1 -n linear Idle
echo 'type=lvm' | sfdisk --quiet --label gpt virtio-small
udevadm settle
lvm vgcreate -qq Parted /dev/disk/by-id/virtio-small-part1
lvm lvcreate -qq -an -Zn -l 1 -n linear Parted
lvm vgcreate -qq Foreign /dev/disk/by-id/virtio-other
lvm lvcreate -qq -an -Zn -l 1 -n linear Foreign
lvm vgchange -qq -y --systemid other Foreign
udevadm settle
lvm vgcreate -qq Thin /dev/disk/by-id/virtio-spare
lvm lvcreate -qq -y --type thin-pool -L 64M -n pool Thin
lvm lvcreate -qq -y -V 64M --thinpool pool -n root Thin
mke2fs -q -t ext4 -O stable_inodes /dev/Thin/root
truncate -s 24M /root/24M
ln -s "$(losetup --find --show /root/24M)" /root/toosmall
truncate -s 64M /root/64M
ln -s "$(losetup --find --show --sector-size 4096 /root/64M)" /root/sectors
