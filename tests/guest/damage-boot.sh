#!/bin/sh
# What happens to a boot partition: grub-mkconfig rewrites entries on some systems, a disk loses bits, and
# people lose files.
set -eu

cd /boot
sed -i 's/^options .*/options root=UUID=1 ro/' loader/entries/imgbased-Base-0.2.conf
kernel=$(ls imgbased/vmlinuz-*)
printf x | dd of="$kernel" bs=1 seek=100000 conv=notrunc status=none
rm grub/imgbased.cfg loader/entries/imgbased-Base-0.conf
