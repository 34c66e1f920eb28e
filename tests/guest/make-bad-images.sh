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

# put FILE OFFSET BYTES: as printf(1) writes them.
put() {
    # shellcheck disable=SC2059 # with escapes
    printf "$3" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}

# magic FILE OFFSET BYTES: a file of 1 MiB with nothing else in it.
magic() {
    truncate -s 1M "$1"
    put "$@"
}

mke2fs -q -t ext4 -d tree good.img 16M
mke2fs -q -t ext4 -d kernelless kernelless.img 16M
gzip -c kernelless.img >kernelless.gz
cp -a kernelless initrdless
mkdir initrdless/boot
echo kernel >initrdless/boot/vmlinuz-9.9
mke2fs -q -t ext4 -d initrdless initrdless.img 16M
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
zstd -q --rm damaged.xfs

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
tar -C initrdless -cf initrdless.tar .
mksquashfs kernelless kernelless.squashfs -quiet -no-progress >/dev/null
{
    head -c 512 good.tar
    head -c 100000 /dev/urandom
} >damaged.tar
mkdir -p deep/er
cp -a tree/. deep/er/
touch deep/evil
tar -C deep/er -Pcf escaping.tar . ../evil

# Filesystems that cannot be mounted, grown or changed as a base has to be.
mke2fs -q -t ext4 -O stable_inodes -d tree stable.img 16M
mke2fs -q -t ext4 -O bigalloc -C 16384 -d tree bigalloc.img 16M
mke2fs -q -F -t ext4 -b 65536 blocks.img 64M 2>/dev/null
mke2fs -q -t ext3 ext3.img 16M
mke2fs -q -O journal_dev journal.img 16M
for kind in foreign future readonly shared; do
    cp good.img $kind.img
done
put foreign.img $((1024 + 0xe0)) '\0'
put future.img $((1024 + 0x62)) '\20'
put readonly.img $((1024 + 0x65)) '\24'
put shared.img $((1024 + 0x65)) '\104'
for kind in foreign realtime needsrepair future; do
    cp --sparse=always good.xfs $kind.xfs
done
put foreign.xfs 48 '\0\0\0\0\0\0\0\0'
put realtime.xfs 23 '\1'
put needsrepair.xfs 219 '\20'
put future.xfs 216 '\1'

# What is no image of a root filesystem.
magic qcow2 0 'QFI\373'
magic vmdk 0 KDMV
magic descriptor.vmdk 0 '# Disk DescriptorFile'
magic vdi 64 '\177\20\332\276'
magic vhdx 0 vhdxfile
magic vhd 0 conectix
magic iso 32769 CD001
magic btrfs 65600 _BHRfS_M
magic luks 0 'LUKS\272\276'
magic pv 536 'LVM2 001'
magic raid 4096 '\374\116\053\251'
magic bz2 0 BZh9
magic lz4 0 '\4\042\115\30'
magic zip 0 'PK\3\4'
magic deb 0 '!<arch>\n'
magic page 0 '<!DOCTYPE html>'
magic efi 0 MZ
mkfs.vfat -C fat.img 2048 >/dev/null
truncate -s 16M mbr.img
echo , | sfdisk -q --label dos mbr.img
echo text.img | cpio --quiet -o -H newc >files.cpio
gzip -c qcow2 >qcow2.gz
zstd -q -c disk.img >disk.zst
gzip -c files.cpio >files.cpio.gz

# Trees that are one directory too deep, and an image of a container.
mkdir -p below oci/blobs
cp -a tree below/rootfs
echo '{"imageLayoutVersion": "1.0.0"}' >oci/oci-layout
tar -C below -cf below.tar rootfs
tar -C oci -cf oci.tar .
mksquashfs below below.squashfs -quiet -no-progress >/dev/null
tar --format v7 -C kernelless -cf v7.tar .
{
    printf '\120\52\115\30\4\0\0\0size'
    tar -C kernelless -c . | zstd -q -c
} >skippable.tar.zst

# Files that somebody can write to: by a mount, by a device that is made of one, and by a lock as QEMU has it.
for kind in mounted held machine; do
    cp good.img $kind.img
done
mkdir -p busy
mount -o loop mounted.img busy
held=$(losetup --find --show held.img)
dmsetup create held --table "0 $(blockdev --getsz "$held") linear $held 0"
# shellcheck disable=SC2016 # of perl
perl -e 'open my $file, "<", "machine.img" or die;
    my $lock = pack "s s x![q] q q i x![q]", 0, 0, 100, 2, 0;
    fcntl $file, 37, $lock or die;
    sleep' >/dev/null 2>&1 &
