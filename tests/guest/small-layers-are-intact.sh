#!/bin/sh
# Claims that every base and layer of the group Small has a filesystem without errors that can be mounted.
set -eu

mkdir -p /mnt/look
for name in One One+1 One+2 One+3; do
    lvm lvchange -qq -K -ay Small/$name
    device=$(imgbased-helper --vg Small layer path $name)
    e2fsck -fn "$device"
    mount -o ro "$device" /mnt/look
    grep -qx k /mnt/look/boot/vmlinuz-9.9
    umount /mnt/look
    lvm lvchange -qq -an Small/$name
done
