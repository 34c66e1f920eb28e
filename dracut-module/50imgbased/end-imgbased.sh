#!/bin/sh
# Hook of dracut, sourced where there is no systemd, before the mounted root is switched to: the time for the
# initramfs is over, as it has done its work.

if [ -e /run/imgbased/limit.pid ]; then
    kill "$(cat /run/imgbased/limit.pid)"
    rm -f /run/imgbased/limit.pid
fi
