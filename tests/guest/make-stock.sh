#!/bin/sh
# Installs Debian on the disk `spare` as its installer leaves a host: the root on a volume of its own, GRUB with
# the configuration of grub-mkconfig, which was made before our package came. The volume is thin, or with the argument
# `plain` one that no snapshot can be made of.
set -eu

disk=$(readlink -f /dev/disk/by-id/virtio-spare)
root=/mnt/root
release=$(uname -r)

printf '%s\n' 'label: gpt' 'size=1MiB, type=21686148-6449-6E6F-744E-656564454649' 'size=400MiB, type=linux' \
    'type=lvm' | sfdisk --quiet "$disk"
udevadm settle
mkfs.ext4 -q "${disk}2"
lvm vgcreate -q -y Debian "${disk}3"
if [ "${1-}" = plain ]; then
    lvm lvcreate -q -y -L 1200M -n root Debian
else
    lvm lvcreate -q -y --type thin-pool -L 3G -n pool Debian
    lvm lvcreate -q -y -V 2G --thinpool pool -n root Debian
fi
mkfs.ext4 -q /dev/Debian/root

mkdir -p $root
mount /dev/Debian/root $root
cp -a --one-file-system / $root/
mount "${disk}2" $root/boot
cp /boot/imgbased/vmlinuz-"$release"-* "$root/boot/vmlinuz-$release"
cp /boot/imgbased/initrd-"$release"-* "$root/boot/initrd.img-$release"
rm $root/etc/kernel/cmdline
cat >$root/etc/fstab <<FSTAB
/dev/mapper/Debian-root / ext4 errors=remount-ro 0 1
UUID=$(blkid -o value -s UUID "${disk}2") /boot ext4 defaults 0 2
FSTAB
cat >$root/etc/default/grub <<GRUB
GRUB_DEFAULT=0
GRUB_TIMEOUT=2
GRUB_DISTRIBUTOR=Debian
GRUB_CMDLINE_LINUX="$(tr ' ' '\n' </proc/cmdline | grep -e ^console= -e ^mitigations= -e ^lsm= -e ^cryptomgr | xargs)"
GRUB_TERMINAL=serial
GRUB
for dir in dev proc sys run; do
    mount --rbind /$dir $root/$dir
    mount --make-rslave $root/$dir
done
mv $root/etc/grub.d/09_imgbased /run/
chroot $root grub-install --target=i386-pc "$disk"
chroot $root update-grub
mv /run/09_imgbased $root/etc/grub.d/
umount --recursive $root
sync
