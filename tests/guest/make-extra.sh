#!/bin/sh
# Makes the image of a small base, with the same files in a directory beside it. Its initramfs is one for
# dracut's tools only.
set -eu

mkdir -p /root/Extra/boot /root/Extra/etc /root/Extra/usr/lib/dracut
cd /root/Extra
echo kernel >boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >boot/initrd.img-9.9
printf '# caf\351\nUUID=1 / ext4 defaults 0 1\n' >etc/fstab
head -c 4M /dev/urandom >etc/data
mke2fs -q -t ext4 -d /root/Extra /root/Extra.img 16M
