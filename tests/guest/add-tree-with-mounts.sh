#!/bin/sh
# Has something be mounted below /root/tree, makes the base Below of the directory, and prints what is said. What the
# mounts hide is to be in the base, and what is on them is not.
set -eu

cd /root/tree
mkdir -p srv proc var/lib/hides
echo hidden >srv/hidden
mount -t tmpfs tmpfs srv
mkdir srv/above
mount -t tmpfs tmpfs srv/above
echo seen >srv/seen
mount -t proc proc proc
imgbased-helper base add --name Below /root/tree 2>&1
umount proc srv/above srv
rm srv/hidden
rmdir srv proc var/lib/hides
