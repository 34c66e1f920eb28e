#!/bin/sh
# Has the rescue system see that the disk of the host was exchanged for a blank one, and the spare disk for one with an
# image, while it was saved.
set -eu

rm -f /run/lvm/hints
blockdev --rereadpt /dev/disk/by-id/virtio-host
udevadm trigger --settle /dev/disk/by-id/virtio-host
udevadm settle
