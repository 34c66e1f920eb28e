#!/bin/sh
# Moves the boot partition to a disk with XFS.
set -eu

disk=/dev/disk/by-id/virtio-small
mkfs.xfs -q $disk
mount $disk /mnt
cp -a /boot/. /mnt
umount /mnt /boot
mount $disk /boot
