#!/bin/sh
# Makes a second group with the name HostVG on the spare disk, as a disk of another host brings it: with a
# Base-0.1, which holds no system.
set -eu

disk=/dev/disk/by-id/virtio-spare
vgchange -q -an HostVG
vgcreate -qq --addtag imgbased:vg Twin "$disk"
lvcreate -qq -y --type thin-pool -L 600M --poolmetadatasize 8M --addtag imgbased:pool -n ImagePool Twin
lvcreate -qq -y -V 300M --thinpool ImagePool --addtag imgbased:layer -n Base-0.1 Twin
mke2fs -q -t ext4 /dev/Twin/Base-0.1
vgchange -q -an Twin
udevadm settle
vgrename -qq --devices "$disk" Twin HostVG
sync
