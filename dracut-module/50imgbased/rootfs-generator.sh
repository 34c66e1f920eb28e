#!/bin/sh
# Comes before dracut's own generator of this name, which makes the boot wait for the device that
# root= names. Where the kernel command line names a layer, root= does not count.

imgbased-helper initrd is-layer && exit 0
exec /usr/lib/systemd/system-generators/dracut-rootfs-generator "$@"
