#!/bin/sh
# Makes in /root an image of a few files, small.img, and one with 200 MiB of data, large.img.
set -eu

cd /root
mkdir -p t/boot t/etc t/usr usr/lib/dracut
echo k >t/boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >t/boot/initrd.img-9.9
mke2fs -q -t ext4 -d t small.img 32M
head -c 200M /dev/urandom >t/data
mke2fs -q -t ext4 -d t large.img 300M
