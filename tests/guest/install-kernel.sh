#!/bin/sh
# Installs the packages of another kernel, from the disk `other`, into the running layer.
set -eu

mkdir /root/packages
cd /root/packages
tar -xf /dev/disk/by-id/virtio-other
# The package has update-grub make another grub.cfg, which looks for a screen unless it is told otherwise.
printf 'GRUB_TERMINAL=serial\nGRUB_TIMEOUT=2\n' >>/etc/default/grub
export DEBIAN_FRONTEND=noninteractive
dpkg --install linux-base_*.deb
dpkg --install ./*.deb
