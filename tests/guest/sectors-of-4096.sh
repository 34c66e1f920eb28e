#!/bin/sh
# Makes the group Large on a disk with sectors of 4096 bytes. Prints its size of sectors.
set -eu

# With an offset, so that lvm2 sees one disk and not two.
disk=$(losetup --find --show --sector-size 4096 --offset 1M /dev/disk/by-id/virtio-spare)
imgbased-helper --vg Large layout init --device "$disk" >/dev/null
blockdev --getss "$disk"
