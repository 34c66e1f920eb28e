#!/bin/sh
# Has `base add` stop when it has made its volume, fills the pool, and has it go on. Exits as it does.
set -u

imgbased-helper --vg Small base add --name Two /root/t &
pid=$!
until [ -e /dev/mapper/Small-Two ]; do
    sleep 0.1
done
kill -STOP $pid
dd if=/dev/zero of=/dev/Small/filler bs=1M count=900 oflag=direct status=none
kill -CONT $pid
wait $pid
