#!/bin/sh
# Makes the group Large on a disk with sectors of 4096 bytes. Prints its size of sectors.
set -eu

truncate -s 1500M /root/large-sectors
disk=$(losetup --find --show --sector-size 4096 /root/large-sectors)
imgbased-helper --vg Large layout init --device "$disk" >/dev/null
blockdev --getss "$disk"
