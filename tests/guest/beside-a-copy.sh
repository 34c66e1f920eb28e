#!/bin/sh
# Has `base add` stop while it copies, and meanwhile adds twenty layers at once, installs a kernel again,
# records that the host has booted, and checks it; then has `base add` go on. Prints the names of the layers
# and of the base.
set -eu

lock=/run/imgbased/lock

imgbased-helper base add --name Large /root/large.img >/run/large 2>/run/large.log &
maker=$!
until [ -e /dev/mapper/HostVG-Large ] && flock --nonblock $lock true; do
    sleep 0.1
done
kill -STOP $maker
[ ! -s /run/large ]

pids=
for _ in $(seq 20); do
    imgbased-helper layer add Base-0 &
    pids="$pids $!"
done
/etc/kernel/postinst.d/zz-imgbased "$(uname -r)" "/boot/vmlinuz-$(uname -r)"
imgbased-helper boot bless
for pid in $pids; do
    wait "$pid"
done
imgbased-helper check --repair
lvm lvs --noheadings -o lv_tags HostVG/Large | grep -q imgbased:incomplete

kill -CONT $maker
wait $maker
cat /run/large
