#!/bin/sh
# Makes layers that cannot be booted, each in its own way: Base-0.3 is not in the pool, the filesystem of
# Base-0.4 is damaged, Base-0.5 has none.
set -eu

mount /dev/disk/by-id/virtio-host-part2 /boot
for _ in 3 4 5; do
    imgbased-helper layer add Base-0
done
lvchange -K -ay HostVG/Base-0.3 HostVG/Base-0.4 HostVG/Base-0.5
mount /dev/HostVG/Base-0.4 /mnt
mkdir -p /mnt/srv/a/b/c
umount /mnt
debugfs -w -R 'clri /srv/a' /dev/HostVG/Base-0.4
debugfs -w -R 'ssv state 2' /dev/HostVG/Base-0.4
dd if=/dev/zero of=/dev/HostVG/Base-0.5 bs=1M count=1 conv=fsync
lvchange -an HostVG/Base-0.3 HostVG/Base-0.4 HostVG/Base-0.5
lvchange -ay HostVG/Config
id=$(lvs --noheadings -o thin_id HostVG/Base-0.3 | tr -d ' ')
dmsetup message HostVG-ImagePool-tpool 0 "delete $id"
umount /boot
