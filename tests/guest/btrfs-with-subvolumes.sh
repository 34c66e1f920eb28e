#!/bin/sh
# Makes a btrfs with the tree and with subvolumes in subvolumes, and of its directory the base Subvolumes.
set -eu

truncate -s 300M /root/btrfs.img
mkfs.btrfs -q /root/btrfs.img
mkdir -p /mnt/btrfs
mount -o loop /root/btrfs.img /mnt/btrfs
cp -a /root/tree/. /mnt/btrfs/
cd /mnt/btrfs
for subvolume in home home/inner; do
    btrfs subvolume create $subvolume
    echo x >$subvolume/file
done
imgbased-helper base add --name Subvolumes /mnt/btrfs
