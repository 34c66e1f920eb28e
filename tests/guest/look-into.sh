#!/bin/sh
# Mounts the base or layer $1, of the group $3 if there is one, at /mnt/look, and runs $2 there.
set -eu

name=$1
vg=${3-HostVG}

leave() {
    cd /
    umount /mnt/look
    lvm lvchange -qq -an "$vg/$name"
}

mkdir -p /mnt/look
lvm lvchange -qq -K -ay "$vg/$name"
mount -o ro "$(imgbased-helper --vg "$vg" layer path "$name")" /mnt/look
trap leave EXIT
cd /mnt/look
eval "$2"
