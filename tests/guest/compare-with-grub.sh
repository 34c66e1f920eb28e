#!/bin/sh
# Claims that GRUB's own code finds the file $1 of the boot partition on the disk, with the same content if
# it is there now.
set -eu

disk=/dev/disk/by-id/virtio-small
blockdev --flushbufs $disk
grub-fstest $disk cat "(loop0)/$1" >/run/seen 2>/run/unseen
[ ! -e "/boot/$1" ] || cmp /run/seen "/boot/$1"
