#!/bin/sh
# Makes in /root/tree a root filesystem with all that a file can have: foreign owners, setuid, an ACL,
# attributes, a capability, hard and soft links, holes, a device node, a name with a line break.
set -eu

mkdir -p /root/tree/boot /root/tree/etc /root/tree/usr/bin /root/tree/usr/lib/dracut /root/tree/var
cd /root/tree
echo kernel >boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >boot/initrd.img-9.9
printf 'UUID=1234-5678 / ext4 noatime 0 1\nLABEL=boot /boot ext4 defaults,nofail 0 2\n' >etc/fstab

head -c 300000 /dev/urandom >usr/bin/tool
ln usr/bin/tool usr/bin/hard
ln -s tool usr/bin/soft
chmod 4751 usr/bin/tool
cp usr/bin/tool usr/bin/capable
setcap cap_net_raw+ep usr/bin/capable
echo x >etc/acl
setfacl -m u:1234:rw etc/acl
setfattr -n user.note -v text etc/acl
setfattr -n trusted.note -v text etc/acl

truncate -s 30M var/holes
echo end >>var/holes
head -c 2000000 /dev/urandom >var/data
chown 4321:8765 var/data
mknod var/null c 1 3
mkfifo var/fifo
mkdir -m 1777 var/sticky
touch "$(printf 'var/two\nlines')"
touch -d 2001-02-03 var/old
