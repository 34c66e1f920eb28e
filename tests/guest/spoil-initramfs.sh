#!/bin/sh
# Gives the layer $1 an initramfs in its /boot that cannot boot a layer.
set -eu

mkdir -p /root/usr/lib/dracut
cd /root
echo base >usr/lib/dracut/modules.txt
lvm lvchange -qq -K -ay "HostVG/$1"
mount "$(imgbased-helper layer path "$1")" /mnt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >"/mnt/boot/initrd.img-$(uname -r)"
umount /mnt
lvm lvchange -qq -an "HostVG/$1"
