#!/bin/sh
# Prints what a verb changes of the group $1 and of the boot partition, without what is another one each time: UUIDs,
# digests and times. With a second word, also the fstab of each base and layer, for which they are activated.
set -eu

group=$1

lvm vgs --noheadings -o vg_name,vg_tags
lvm lvs -a --noheadings -o vg_name,lv_name,lv_attr,lv_tags,lv_size,origin |
    sed 's/imgbased:sha256=[0-9a-f]*/imgbased:sha256/' | tr -s ' '
cd /boot
find . -type f ! -name grubenv -exec sha256sum {} + | sort -k 2
find . -type f -printf '%P %m\n' | sort
grep -v '^#' grub/grubenv | sort
cat loader/entries/*
cat grub/imgbased.cfg || true
cat /etc/fstab
find /run/imgbased/mounts -mindepth 2 2>/dev/null || true
findmnt -rno TARGET | grep imgbased || true
if [ -z "${2-}" ]; then
    exit
fi
names=$(lvm lvs --noheadings -o lv_name \
    --select "vg_name=$group && (lv_tags=imgbased:layer || lv_tags=imgbased:base)")
mkdir -p /mnt/look
for name in $names; do
    echo "fstab of $name"
    lvm lvchange -qq -K -ay "$group/$name"
    if mount -o ro,noload "/dev/$group/$name" /mnt/look; then
        cat -v /mnt/look/etc/fstab || true
        umount /mnt/look
    fi
done
