#!/bin/sh
# Makes of the tree /root/right the image /root/full.img, an ext4 that has 300 KiB left of 16 MiB.
set -eu

mke2fs -q -t ext4 -m 0 -d /root/right /root/full.img 16M
mkdir -p /mnt/full
mount -o loop /root/full.img /mnt/full
fallocate -l $(($(stat -f -c '%a * %S' /mnt/full) - 307200)) /mnt/full/filler
umount /mnt/full
