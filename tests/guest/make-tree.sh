#!/bin/sh
# Makes in /root/tree a root filesystem with all that a file can have: foreign owners, setuid, ACLs, attributes, a
# label, a capability, hard and soft links, holes, device nodes, times, and odd names.
set -eu

mkdir -p /root/tree/boot /root/tree/etc /root/tree/usr/bin /root/tree/usr/lib/dracut /root/tree/var
cd /root/tree
echo kernel >boot/vmlinuz-9.9
echo imgbased >usr/lib/dracut/modules.txt
echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >boot/initrd.img-9.9
printf '# caf\351\nUUID=1234-5678 / btrfs noatime,subvol=@ 0 1\nLABEL=boot /boot ext4 defaults,nofail 0 2\n' >usr/lib/fstab
ln -s /usr/lib/fstab etc/fstab

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
setfattr -n security.selinux -v system_u:object_r:etc_t:s0 etc/acl
setfattr -n security.selinux -v system_u:object_r:bin_t:s0 usr/bin
mkdir -m 2750 var/acls
setfacl -d -m u:1234:rx var/acls
setfattr -n user.note -v text var/acls

truncate -s 30M var/holes
echo end >>var/holes
head -c 2000000 /dev/urandom >var/data
chown 4321:8765 var/data
mknod var/null c 1 3
mknod var/disk b 259 1234
mkfifo var/fifo
mkdir -m 1777 var/sticky
mkdir -m 0 var/closed
touch "$(printf 'var/two\nlines')" "$(printf 'var/\377\376')" 'var/back\slash' 'var/ space ' var/-rf "var/$(printf %0255d 0)"
touch -d 2001-02-03T04:05:06.123456789Z var/old
touch -h -d 1970-01-02T00:00:00Z usr/bin/soft
touch -d 2030-01-01T00:00:00.5Z var/sticky
