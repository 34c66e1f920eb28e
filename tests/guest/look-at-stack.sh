#!/bin/sh
# Fails unless a machine has left the RAID, the pool and the filesystem of stack.sh clean.
set -eu

# udev may put the array together.
udevadm settle
for half in half1 half2; do
    mdadm --examine "/dev/disk/by-id/virtio-$half" | grep -q 'State : clean'
done
array=/dev/disk/by-id/md-uuid-11111111:22222222:33333333:44444444
test -e $array || mdadm --assemble /dev/md/stack /dev/disk/by-id/virtio-half1 /dev/disk/by-id/virtio-half2
udevadm settle
printf secret | cryptsetup open $array opened -
udevadm settle
lvm lvchange -q -K -ay my-vg_1/node-ng-4.4+1
test -z "$(lvm lvs --noheadings -o lv_health_status,lv_check_needed my-vg_1/ImagePool | tr -d ' ')"
dmesg -C
mount -o ro /dev/my-vg_1/node-ng-4.4+1 /mnt
dmesg | grep -q 'Ending clean mount'
if dmesg | grep -q 'recovery'; then
    exit 1
fi
umount /mnt
