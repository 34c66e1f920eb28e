#!/bin/sh
# Has the registry on this machine keep the tree at /mnt/next as host:chunked, with a layer of which parts can be
# fetched. The directory that it was pushed from is /run/server/chunked.
set -eu

cd /run/server
# A file that has changed, and one that is new.
echo 'of the registry' >/mnt/next/etc/motd
seq 100000 >/mnt/next/usr/lib/second
TMPDIR=/run/server imgbased-helper image pack /mnt/next /run/server/chunked
# What it was made from is not read any more.
umount /mnt/next /run/changes /run/old
lvchange --activate n HostVG/Base-0
skopeo copy --quiet --preserve-digests oci:chunked:latest docker://127.0.0.1:5000/host:chunked
: >/run/registry.log
