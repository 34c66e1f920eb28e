#!/bin/sh
# Makes a system on a thin volume as an installer leaves it: a group, a pool and a root without any of our
# tags. The root is mounted at /mnt/root.
set -eu

lvm vgcreate -y Installed /dev/disk/by-id/virtio-spare
lvm lvcreate -y --type thin-pool -L 3G -n pool Installed
lvm lvcreate -y -V 2G --thinpool pool -n root Installed
mkfs.ext4 -q /dev/Installed/root
mkdir -p /mnt/root
mount /dev/Installed/root /mnt/root
cp -a --one-file-system / /mnt/root/
release=$(uname -r)
cp /boot/imgbased/vmlinuz-* "/boot/vmlinuz-$release"
cp /boot/imgbased/initrd-* "/boot/initrd.img-$release"
echo installed >/mnt/root/etc/mark
sync -f /mnt/root
