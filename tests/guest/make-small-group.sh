#!/bin/sh
# Makes a group that is small enough to be filled, that nothing extends, and that has three layers.
set -eu

cd /root
truncate -s 160M t/data
sed -i 's/threshold = 80/threshold = 100/' /etc/lvm/profile/imgbased.profile
imgbased-helper --vg Small layout init --device /dev/disk/by-id/virtio-small
imgbased-helper --vg Small base add --name One /root/small.img
for _ in 1 2 3; do
    imgbased-helper --vg Small layer add One
done
lvm lvcreate -qq -y -V 900M --thinpool ImagePool -n filler Small
