#!/bin/sh
# Overwrites the begin of the pool's metadata.
set -eu

disk=/dev/disk/by-id/virtio-host-part3
extent=$(lvs -a --noheadings -o seg_pe_ranges HostVG/ImagePool_tmeta | sed 's/.*:\([0-9]*\)-.*/\1/')
start=$(pvs --noheadings --nosuffix --units k -o pe_start $disk | sed 's/\..*//')
head -c 4096 /dev/urandom | dd of=$disk bs=1K seek=$((start + extent * 4096)) conv=fsync
