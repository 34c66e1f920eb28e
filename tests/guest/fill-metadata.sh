#!/bin/sh
# Fills the metadata of the pool Small/ImagePool to $1 percent. /run/at counts the writes.
set -eu

# The kernel commits once a second, which gives back what it has held for that.
percent() {
    sleep 2
    lvm lvs --noheadings -o metadata_percent Small/ImagePool | cut -d . -f 1
}

# Writes one chunk; fails when there is no more room.
write() {
    dd if=/dev/zero of=/dev/Small/many$((at / 74)) bs=64k count=1 seek=$((at % 74 * 64)) \
        status=none oflag=direct
}

at=$(cat /run/at)
while [ "$(percent)" -lt "$1" ]; do
    for _ in $(seq 16); do
        write || break 2
        at=$((at + 1))
    done
done
echo "$at" >/run/at
[ "$(percent)" -ge "$1" ]
