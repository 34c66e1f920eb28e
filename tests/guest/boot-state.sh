#!/bin/sh
# Prints what boots: the volumes of the group, and what boot loaders read.
set -eu

lvm lvs --noheadings --all --options lv_name,lv_uuid,lv_attr,lv_tags HostVG
cd /boot
find grub/*.cfg grub/grubenv imgbased loader -type f -exec sha256sum {} + | sort -k 2
