#!/bin/sh
# Makes a group whose pool does not zero new chunks, which are larger than the unit in which images are compared,
# and a base in it over what a removed volume has left. Prints the digest of a file in the base, and in its image.
set -eu

disk=/dev/disk/by-id/virtio-spare

lvm vgcreate -q -y --addtag imgbased:vg Zn $disk
lvm lvcreate -q -y --type thin-pool -L 900M --poolmetadatasize 16M --chunksize 512k --discards nopassdown -Zn \
    --addtag imgbased:pool -n ImagePool Zn
lvm lvcreate -q -y -V 600M --thinpool ImagePool -n old Zn
tr '\0' '\245' </dev/zero | dd of=/dev/Zn/old bs=4M iflag=fullblock count=150 conv=fsync 2>/dev/null
lvm lvremove -q -y Zn/old

truncate -s 64M /run/img
mkfs.ext4 -q /run/img
mount /run/img /mnt
for _ in 1 2 3 4 5 6 7 8; do
    head -c 65536 /dev/urandom
    head -c 458752 /dev/zero
done >/mnt/file
mkdir -p /mnt/boot /mnt/usr/lib/modules/1.0/kernel
cp /boot/imgbased/vmlinuz-* /mnt/boot/vmlinuz-1.0
cp /boot/imgbased/initrd-* /mnt/boot/initrd.img-1.0
sha256sum </mnt/file
umount /mnt

imgbased-helper --vg Zn base add --name Img /run/img
imgbased-helper --vg Zn check || true
lvm lvchange -q -K -ay Zn/Img
mount -o ro,noload /dev/Zn/Img /mnt
sha256sum </mnt/file
