#!/bin/sh
# Checks the filesystem of the latest layer of the group $1 from end to end.
set -eu

layer=$(imgbased-helper --vg "$1" layer latest)
device=$(imgbased-helper --vg "$1" layer path "$layer")
lvm lvchange -qq -K -ay "$1/$layer"
case $(blkid -p -s TYPE -o value "$device") in
ext4)
    e2fsck -fn "$device"
    ;;
xfs)
    mount -o nouuid "$device" /mnt
    umount /mnt
    xfs_repair -n "$device"
    ;;
esac
lvm lvchange -qq -an "$1/$layer"
