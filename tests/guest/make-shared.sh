#!/bin/sh
# Makes images of 200 MiB of data, and of the same with every twentieth block of 64 KiB changed; prints how
# many blocks were changed.
set -eu

mkdir -p /root/t/boot /root/t/usr/lib/dracut
cd /root/t
echo k >boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >boot/initrd.img-9.9
cd ..
head -c 200M /dev/urandom >t/data
mke2fs -q -t ext4 -d t one.img 300M
rm t/data
cp --sparse=always one.img two.img
debugfs -R 'blocks /data' one.img 2>/dev/null | tr ' ' '\n' | awk 'NR % 1280 == 100' >blocks
while read -r block; do
    dd if=/dev/urandom of=two.img bs=1k seek=$((block / 64 * 64)) count=64 conv=notrunc status=none
done <blocks
wc -l <blocks
