#!/bin/sh
# Makes bases of images that are in use, but that nobody can write to: a file and a device that are mounted read-only,
# a file with a loop device that is not mounted. Prints their names.
set -eu

cd /root
mkdir -p /mnt/busy
mount -o loop,ro raw.ext4 /mnt/busy
imgbased-helper base add --name File /root/raw.ext4 2>/dev/null
imgbased-helper base add --name Device "$(findmnt -no SOURCE /mnt/busy)" 2>/dev/null
umount /mnt/busy
loop=$(losetup --find --show raw.ext4)
imgbased-helper base add --name Loop /root/raw.ext4 2>/dev/null
losetup -d "$loop"
