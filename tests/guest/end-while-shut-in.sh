#!/bin/sh
# Has the image /root/hostile made a base, sends the signal $1 when its programs run, and prints what was said.
# Its exit status is that of the helper.
set -eu

imgbased-helper base add --name Hostile /root/hostile >/root/said 2>&1 &
helper=$!
until grep -lqs '4242[4]' /proc/[0-9]*/cmdline; do
    sleep 0.2
done
kill -s "$1" $helper
status=0
wait $helper || status=$?
cat /root/said
exit $status
