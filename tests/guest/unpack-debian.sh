#!/bin/sh
# Unpacks onto the disk `spare` the release of Debian from the disk `other`, and mounts it at /mnt; root needs no
# password there, and has what is in /root here.
set -eu

mke2fs -q -t ext4 /dev/disk/by-id/virtio-spare
mount /dev/disk/by-id/virtio-spare /mnt
tar -C /mnt -xf /dev/disk/by-id/virtio-other
mkdir -p /mnt/dev
mknod -m 666 /mnt/dev/null c 1 3
chroot /mnt passwd --delete root
cp /root/*.deb /mnt/root/
