#!/bin/sh
# Makes in /root/right a root tree of a few files in which `image check` finds nothing.
set -eu

mkdir -p /root/right /root/of-initramfs/usr/lib/dracut
cd /root/right
mkdir -p boot etc/kernel etc/ssh usr/bin usr/lib/modules/9.9/kernel var/lib
echo kernel >boot/vmlinuz-9.9
(
    cd /root/of-initramfs
    echo imgbased >usr/lib/dracut/modules.txt
    echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc
) >boot/initrd.img-9.9
: >usr/bin/imgbased-helper
printf '%s\n' ID=debian VERSION_ID=13 IMAGE_VERSION=5 >usr/lib/os-release
ln -s ../usr/lib/os-release etc/os-release
echo uninitialized >etc/machine-id
echo 'LABEL=boot /boot auto defaults,nofail 0 2' >etc/fstab
echo quiet >etc/kernel/cmdline
printf '%s\n' root:x:0:0::/root:/bin/sh web:x:33:33::/:/bin/false >etc/passwd
printf '%s\n' root:x:0: web:x:33: >etc/group
printf '%s\n' 'root:*:20000::::::' 'web:!:20000::::::' >etc/shadow
