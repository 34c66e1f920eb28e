#!/bin/sh
# Claims that the disk $1 holds nothing that is known, and that nothing of it is in use.
set -eu

test -z "$(wipefs --no-act --noheadings "$1")"
name=$(basename "$(readlink -f "$1")")
for partition in "/sys/block/$name/$name"*; do
    test ! -e "$partition"
done
test "$(dmsetup ls)" = 'No devices found'
test -z "$(lvm vgs --noheadings 2>/dev/null)"
! grep -q "^/dev/$name" /proc/mounts
