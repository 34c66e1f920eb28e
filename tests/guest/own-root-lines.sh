#!/bin/sh
# Has the fstab of Base-0.1, which runs, and of Base-0.2 name their devices.
set -eu

echo '/dev/mapper/HostVG-Base--0.1 / ext4 defaults 0 0' >>/etc/fstab
mkdir -p /mnt/look
lvm lvchange -qq -K -ay HostVG/Base-0.2
mount /dev/HostVG/Base-0.2 /mnt/look
echo '/dev/HostVG/Base-0.2 / ext4 defaults 0 0' >>/mnt/look/etc/fstab
umount /mnt/look
lvm lvchange -qq -an HostVG/Base-0.2
