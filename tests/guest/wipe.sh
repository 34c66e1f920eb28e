#!/bin/sh
# Makes the layer $1 a volume without a filesystem, so that the initramfs cannot mount it.
set -eu

lvm lvchange -q -K -ay "HostVG/$1"
wipefs -qa "/dev/HostVG/$1"
lvm lvchange -q -an "HostVG/$1"
sync
