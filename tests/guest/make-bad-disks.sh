#!/bin/sh
# Makes of the small disks: one with a filesystem (tiny1), two groups with one name (tiny3 and tiny4), and a
# group that is not active (tiny5).
set -eu

cd /dev/disk/by-id
mke2fs -q -t ext4 virtio-tiny1
for twin in /dev/disk/by-id/virtio-tiny3 /dev/disk/by-id/virtio-tiny4; do
    lvm vgcreate -qq --devices $twin Twin $twin
done
lvm vgcreate -qq Idle /dev/disk/by-id/virtio-tiny5
lvm lvcreate -qq -an -Zn -l 1 -n linear Idle
udevadm settle
