#!/bin/sh
# Puts on the boot partition what is there on a host with other systems.
set -eu

cd /boot
echo kernel >vmlinuz-foreign
mkdir imgbased-foreign
printf 'title Other\nlinux /vmlinuz-foreign\noptions root=/dev/sda1\n' >loader/entries/other.conf
printf 'title Broken\noptions imgbased.layer=x;y\n\0\n' >loader/entries/imgbased-broken.conf
grub-editenv grub/grubenv set foreign=kept 'odd=a b\c'
