#!/bin/sh
# Makes a group with the least metadata that LVM makes, in a pool as imgbased leaves it, with three layers
# and with snapshots that are written to all over later: each has a tree of its own then. They are all made
# before the pool is too full for that.
set -eu

cd /root
rm t/data
lvm vgcreate -qq --addtag imgbased:vg Small /dev/disk/by-id/virtio-other
lvm lvcreate -qq --type thin-pool -L 1G --poolmetadatasize 2M --chunksize 64k --addtag imgbased:pool \
    -n ImagePool Small
imgbased-helper --vg Small base add --name One /root/small.img
for _ in 1 2 3; do
    imgbased-helper --vg Small layer add One
done
lvm lvcreate -qq -y -V 300M --thinpool ImagePool -n filler Small
dd if=/dev/zero of=/dev/Small/filler bs=1M conv=fsync status=none || true
for i in $(seq 0 39); do
    lvm lvcreate -qq -y -s -kn -ay -n "many$i" Small/filler
done
echo 0 >/run/at
