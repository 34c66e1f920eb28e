#!/bin/sh
# Makes in /root a good image of each kind, and what is wrong with images.
set -eu

cd /root

# overwrite FILE OFFSET: with random bytes, of 1 KiB if no number is given.
overwrite() {
    head -c "${3-1024}" /dev/urandom | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

mkdir -p tree/boot tree/etc tree/usr/lib kernelless/etc kernelless/usr emptydir rootless/x usr/lib/dracut
echo kernel >tree/boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >tree/boot/initrd.img-9.9
head -c 3000000 /dev/urandom >tree/usr/lib/data
echo text >kernelless/etc/text

mke2fs -q -t ext4 -d tree good.img 16M
mke2fs -q -t ext4 -d kernelless kernelless.img 16M
mkfifo fifo
: >empty.img
echo text >text.img
gzip -c text.img >text.gz
head -c 2M /dev/urandom >random.img
mke2fs -q -t ext2 ext2.img 16M
truncate -s 16M swap.img
mkswap -q swap.img
truncate -s 16M disk.img
echo 'label: gpt' | sfdisk -q disk.img

head -c 9000000 good.img >truncated.img
cp good.img superblock.img
printf '\77' | dd of=superblock.img bs=1 seek=1048 conv=notrunc status=none
cp good.img damaged.img
table=$(dumpe2fs good.img 2>/dev/null | sed -n 's/.*Inode table at \([0-9]*\).*/\1/p' | head -n 1)
dd if=/dev/urandom of=damaged.img bs=1k seek="$table" count=64 conv=notrunc status=none

for kind in gz:gzip xz:xz zst:zstd; do
    suffix=${kind%:*}
    "${kind#*:}" -c <good.img >"good.$suffix"
    size=$(stat -c %s "good.$suffix")
    head -c $((size / 2)) "good.$suffix" >"truncated.$suffix"
    cp "good.$suffix" "damaged.$suffix"
    overwrite "damaged.$suffix" $((size / 2)) 100
done

truncate -s 320M good.xfs
mkfs.xfs -q good.xfs
head -c 100M good.xfs >truncated.xfs
cp --sparse=always good.xfs damaged.xfs
overwrite damaged.xfs 512 16384

mksquashfs tree good.squashfs -quiet -no-progress >/dev/null
gzip -c good.squashfs >squashfs.gz
head -c 1000000 good.squashfs >truncated.squashfs
cp good.squashfs damaged.squashfs
size=$(stat -c %s good.squashfs)
overwrite damaged.squashfs $((size - 2500)) 2000
echo evil >tree/usr/lib/AAxescape
mksquashfs tree escaping.squashfs -noI -noD -noF -quiet -no-progress >/dev/null
sed -i 's,AAxescape,../escape,' escaping.squashfs
rm tree/usr/lib/AAxescape
mksquashfs rootless rootless.squashfs -quiet -no-progress >/dev/null
mkdir -p linked/LiveOS textual/LiveOS
ln -s /root/good.img linked/LiveOS/rootfs.img
echo text >textual/LiveOS/rootfs.img
mksquashfs linked linked.squashfs -quiet -no-progress >/dev/null
mksquashfs textual textual.squashfs -quiet -no-progress >/dev/null

tar -C tree -cf good.tar .
head -c 1000000 good.tar >truncated.tar
gzip -c good.tar >good.tar.gz
head -c 1000000 good.tar.gz >truncated.tar.gz
tar -C kernelless -cf kernelless.tar .
{
    head -c 512 good.tar
    head -c 100000 /dev/urandom
} >damaged.tar
mkdir -p deep/er
cp -a tree/. deep/er/
touch deep/evil
tar -C deep/er -Pcf escaping.tar . ../evil
