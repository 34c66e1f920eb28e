#!/bin/sh
# Makes the group Used with a pool of chunks of $1, which are zeroed or not as $2 says (y or n), and has old data of a
# removed volume in what the next volumes get.
set -eu

disk=/dev/disk/by-id/virtio-spare

lvm vgcreate -qq -y --addtag imgbased:vg Used $disk
lvm lvcreate -qq -y --type thin-pool -L 900M --poolmetadatasize 16M --chunksize "$1" --discards nopassdown -Z "$2" \
    --addtag imgbased:pool -n ImagePool Used
lvm lvcreate -qq -y -V 500M --thinpool ImagePool -n old Used
tr '\0' '\245' </dev/zero | dd of=/dev/Used/old bs=4M iflag=fullblock count=125 conv=fsync 2>/dev/null
lvm lvremove -qq -y Used/old
