#!/bin/sh
# Claims that the base below the overlay of the running system has no file that was written there.
set -eu

mkdir -p /run/base
mount -o ro,noload /dev/HostVG/Base-0 /run/base
test -d /run/base/etc
test ! -e /run/base/root/mark
umount /run/base
