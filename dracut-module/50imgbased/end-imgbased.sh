#!/bin/sh
# Hook of dracut, sourced where there is no systemd, before the mounted root is switched to: the time for the
# initramfs is over, as it has done its work.

if [ -e /run/imgbased/limit.pid ]; then
    kill "$(cat /run/imgbased/limit.pid)"
    rm -f /run/imgbased/limit.pid
fi
# A layer that someone has mounted in a shell gets its volumes as well.
if imgbased-helper initrd is-layer; then
    imgbased-helper initrd hand-over >/dev/null 2>&1
fi
