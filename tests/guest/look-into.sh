#!/bin/sh
# Mounts the base or layer $1 at /mnt/look, and runs $2 there.
set -eu

name=$1

leave() {
    cd /
    umount /mnt/look
    lvm lvchange -qq -an "HostVG/$name"
}

mkdir -p /mnt/look
lvm lvchange -qq -K -ay "HostVG/$name"
mount -o ro "$(imgbased-helper layer path "$name")" /mnt/look
trap leave EXIT
cd /mnt/look
eval "$2"
