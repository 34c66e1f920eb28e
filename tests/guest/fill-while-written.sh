#!/bin/sh
# Has `base add` stop when it has written a part, fills the pool to more than 95 %, and has it go on. Prints how full the
# pool is then, and exits as it does.
set -u

cd /root || exit
imgbased-helper --vg Small base add --no-share --name Two large.img &
pid=$!
written() {
    dmsetup status Small-Two 2>/dev/null | awk '{ print int($4 / 2048) }'
}
until [ "$(written)" -ge 20 ] 2>/dev/null; do
    kill -0 $pid || exit
    sleep 0.1
done
kill -STOP $pid
# What it has asked before would be answered as it was then.
while grep -q . /proc/$pid/task/*/children; do
    kill -CONT $pid
    sleep 0.05
    kill -STOP $pid
done
lvm lvs --noheadings --nosuffix --units m -o lv_size,data_percent Small/ImagePool | {
    read -r size percent
    left=$(awk "BEGIN { print int($size * (95.5 - $percent) / 100) }")
    dd if=/dev/zero of=/dev/Small/filler bs=1M count="$left" oflag=direct status=none
}
kill -CONT $pid
wait $pid
status=$?
lvm lvs --noheadings -o data_percent Small/ImagePool
exit $status
