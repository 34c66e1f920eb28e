#!/bin/sh
# Makes the group of a host of oVirt Node on the disk `spare`, by the commands that its installer and imgbased run: the
# installed root, the first base with a layer, the base of an update with a layer, and a volume that a unit of the first
# layer mounts. Nothing of it is active then.
set -eu

first=node-4.5.4-0.el8
second=node-4.5.5-0.el8
release=$(uname -r)

# What imgbased does for a snapshot $2 of $1.
snapshot() {
    lvm lvcreate -q -y --snapshot --permission rw --name "$2" "onn/$1"
    lvm lvchange -q --activate y --ignoreactivationskip "onn/$2"
    lvm lvchange -q --addtag "$3" "onn/$2"
    e2fsck -fp "/dev/onn/$2" >/dev/null || test $? = 1
    tune2fs -U random "/dev/onn/$2" >/dev/null
    lvm lvchange -q --setactivationskip "$4" "onn/$2"
}

lvm vgcreate -q -y onn /dev/disk/by-id/virtio-spare
lvm lvcreate -q -y --type thin-pool -L 3G -n pool00 onn
lvm lvcreate -q -y -V 1500M --thinpool pool00 -n root onn
mkfs.ext4 -q /dev/onn/root
mkdir -p /mnt/root
mount /dev/onn/root /mnt/root
cp -a --one-file-system / /mnt/root/
cp /boot/imgbased/vmlinuz-"$release"-* "/mnt/root/boot/vmlinuz-$release"
cp /boot/imgbased/initrd-"$release"-* "/mnt/root/boot/initrd.img-$release"
# What the image has of itself, before the installer writes to it.
mkdir -p /mnt/root/usr/share/imgbase/build/meta /mnt/root/usr/share/factory
echo $first >/mnt/root/usr/share/imgbase/build/meta/nvr
cp -a /mnt/root/etc /mnt/root/usr/share/factory/
echo installed >/mnt/root/etc/installer
chroot /mnt/root useradd --uid 1000 keeper
umount /mnt/root

# imgbase layout --init
lvm lvchange -q --addtag imgbased:init onn/root
lvm vgchange -q --addtag imgbased:vg onn
lvm lvchange -q --addtag imgbased:pool onn/pool00
printf 'activation {\n\tthin_pool_autoextend_threshold = 70\n\tthin_pool_autoextend_percent = 20\n}\n' \
    >/etc/lvm/profile/imgbased-pool.profile
lvm lvchange -q --metadataprofile imgbased-pool onn/pool00
snapshot root $first imgbased:layer y
snapshot $first $first+1 imgbased:layer n

# imgbase volume --create /var/log 200M
lvm lvcreate -q -y --thin --virtualsize 200M --name var_log onn/pool00
lvm lvchange -q --addtag imgbased:volume onn/var_log
mkfs.ext4 -q /dev/onn/var_log
mount /dev/onn/$first+1 /mnt/root
mkdir -p /mnt/log
mount /dev/onn/var_log /mnt/log
cp -a /mnt/root/var/log/. /mnt/log/
echo on-the-volume >/mnt/log/mark
umount /mnt/log
units=/mnt/root/etc/systemd/system
cat >$units/var-log.mount <<UNIT
[Mount]
What=/dev/onn/var_log
Where=/var/log
Options=discard

[Install]
WantedBy=local-fs.target
UNIT
mkdir -p $units/local-fs.target.wants
ln -sf /etc/systemd/system/var-log.mount $units/local-fs.target.wants/var-log.mount
echo "of the host" >/mnt/root/etc/mark
umount /mnt/root

# imgbase update: its base holds what a tar brings, here the same as the other.
snapshot root $second imgbased:base y
lvm lvchange -q --permission r onn/$second
lvm lvchange -q --activate n onn/$second
lvm lvchange -q --activate y --ignoreactivationskip onn/$second
snapshot $second $second+1 imgbased:layer n
lvm vgchange -q --activate n onn
# It goes with the package.
rm /etc/lvm/profile/imgbased-pool.profile
