#!/bin/sh
# Puts two trees on the empty disk $1, at /mnt/trees: "first", which is the image of Base-0, and "second", as a later run
# of the same recipe would make it. That has written its files in another order, what it makes itself has other times,
# and newer packages have given it other content in 2 % of all bytes. What measures them is put into /run/tools, since
# it is no part of the layer.
set -eu

mkfs.ext4 -q "/dev/disk/by-id/virtio-$1"
mkdir -p /mnt/trees /run/base
mount "/dev/disk/by-id/virtio-$1" /mnt/trees
lvchange --activate y --ignoreactivationskip HostVG/Base-0
mount -o ro,noload /dev/HostVG/Base-0 /run/base
cd /mnt/trees
mkdir first second
pack() {
    tar -C /run/base --create --no-recursion --files-from=- --xattrs --xattrs-include='*' --acls --sparse
}
unpack() {
    tar -C "$1" --extract --preserve-permissions --xattrs --xattrs-include='*' --acls --numeric-owner
}
paths() {
    find /run/base -xdev ! -path '*/lost+found' -printf './%P\n' | sort "$@"
}
paths | pack | unpack first
paths --reverse | pack | unpack second
umount /run/base
lvchange --activate n HostVG/Base-0

total=$(find second -type f -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
if [ "$total" -lt 300000000 ]; then
    echo "the image has only $total bytes"
    exit 1
fi
# Not what an update runs.
find second/usr/share second/usr/lib/grub second/usr/lib/x86_64-linux-gnu -type f \
    ! -name 'ld-*' ! -name 'lib*.so*' -size +0 -printf '%s %p\n' |
    awk 'BEGIN { srand(1) } { print rand(), $0 }' | sort | cut -d ' ' -f 2- |
    awk -v "wanted=$((total / 50))" 'sum < wanted { sum += $1; print } END { exit sum < wanted }' >/run/changed
while read -r size path; do
    head -c "$size" /dev/urandom >"$path"
done </run/changed
find second -type d -exec touch {} +
find second/etc second/var second/boot -type f -exec touch {} +
mkdir tools /run/tools
tar -C tools --extract --file /dev/disk/by-id/virtio-tools
cp -L tools/usr/bin/rsync tools/usr/bin/time /run/tools
# Of its libraries, those that the host may lack.
for library in libpopt libxxhash; do
    cp -L tools/usr/lib/*/"$library".so.0 /run/tools || true
done
sync
mount -o remount,ro /mnt/trees
du -s -B 1000000 first second
