#!/bin/sh
# Puts a kernel 99.9 into the running layer, with an initramfs for dracut's tools only.
set -eu

mkdir -p /usr/lib/modules/99.9/kernel /root/usr/lib/dracut
cd /root
echo imgbased >usr/lib/dracut/modules.txt
echo kernel >/boot/vmlinuz-99.9
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >/boot/initrd.img-99.9
