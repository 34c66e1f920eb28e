#!/bin/sh
# Makes a small group, fills its pool to more than four fifths, and waits until it has grown.
set -eu

imgbased-helper --vg Small layout init --device /dev/disk/by-id/virtio-small
size() {
    lvm lvs --noheadings --units b --nosuffix -o lv_size Small/ImagePool | tr -d ' '
}
before=$(size)
lvm lvcreate -qq -y -V "${before}b" --thinpool ImagePool -n filler Small
dd if=/dev/zero of=/dev/Small/filler bs=1M count=$((before * 83 / 100 >> 20)) oflag=direct status=none
for _ in $(seq 120); do
    [ "$(size)" -eq "$before" ] || exit 0
    sleep 1
done
lvm lvs -a -o +data_percent,seg_monitor Small
exit 1
