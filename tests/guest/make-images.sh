#!/bin/sh
# Makes an image of each kind of /root/tree.
set -eu

cd /root
mke2fs -q -t ext4 -d tree raw.ext4 64M
truncate -s 320M raw.xfs
mkfs.xfs -q raw.xfs
mkdir -p /mnt/xfs
mount raw.xfs /mnt/xfs
cp -a tree/. /mnt/xfs/
umount /mnt/xfs

gzip -c raw.ext4 >raw.gz
xz -0 -c raw.ext4 >raw.xz
zstd -q -c raw.ext4 >raw.zst

mksquashfs tree root.squashfs -quiet -no-progress >/dev/null
mkdir -p live/LiveOS
cp --sparse=always raw.ext4 live/LiveOS/rootfs.img
mksquashfs live live.squashfs -quiet -no-progress >/dev/null

tar -C tree --xattrs --xattrs-include='*' --acls --sparse -cf tree.tar .
xz -0 -c tree.tar >tree.tar.xz
gzip -c tree.tar >tree.tar.gz
{
    # As pzstd begins.
    printf '\120\52\115\30\4\0\0\0size'
    zstd -q -c tree.tar
} >tree.tar.zst
tar -C tree --selinux --sparse -cf labels.tar .
tar -C tree --format v7 -cf old.tar boot etc usr

# Of a system that runs: its journal is not empty.
cp --sparse=always raw.ext4 unclean.ext4
mkdir -p /mnt/unclean
mount -o loop unclean.ext4 /mnt/unclean
echo late >/mnt/unclean/var/late
sync /mnt/unclean/var/late
cp --sparse=always unclean.ext4 running.ext4
umount /mnt/unclean
rm unclean.ext4
