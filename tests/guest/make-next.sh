#!/bin/sh
# Shows at /mnt/next what a later recipe makes of the image of Base-0: a version, which is $1 or 2, another greeting, a
# unit, a file that is a directory now, an account of the host's number, and one thing less.
set -eu

lvchange --activate y --ignoreactivationskip HostVG/Base-0
mkdir -p /run/old /run/changes /mnt/next
mount -o ro,noload /dev/HostVG/Base-0 /run/old
mount -t tmpfs none /run/changes
mkdir /run/changes/upper /run/changes/work
mount -t overlay -o lowerdir=/run/old,upperdir=/run/changes/upper,workdir=/run/changes/work none /mnt/next
cd /mnt/next
sed -i '/^IMAGE_VERSION=/d' usr/lib/os-release
echo "IMAGE_VERSION=${1-2}" >>usr/lib/os-release
echo 'the second image' >etc/issue
echo 'of the second image' >etc/motd
rm etc/issue.net
mkdir etc/issue.net
echo below >etc/issue.net/below
rm etc/debian_version
# As of a system that has run.
touch etc/.updated var/.updated
: >etc/ld.so.cache
cat >usr/lib/systemd/system/second.service <<UNIT
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
UNIT
mkdir -p etc/systemd/system/multi-user.target.wants
ln -s /usr/lib/systemd/system/second.service etc/systemd/system/multi-user.target.wants/second.service
# The image gives its new account the number that the host has given to a person.
echo 'second:x:1000:1000::/nonexistent:/usr/sbin/nologin' >>etc/passwd
echo 'second:x:1000:' >>etc/group
echo 'second:!:20000::::::' >>etc/shadow
mkdir var/lib/second
chown 1000:1000 var/lib/second
