#!/bin/sh
# Has a running host do once what is slow the first time.
set -eu

imgbased-helper layout >/dev/null
lvm lvchange -q -K -ay HostVG/Base-0.2
mount -o ro,noload /dev/HostVG/Base-0.2 /mnt
umount /mnt
lvm lvchange -q -an HostVG/Base-0.2
imgbased-helper check
systemctl --quiet is-system-running
udevadm settle
sync
