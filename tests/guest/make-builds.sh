#!/bin/sh
# Makes two builds of /root/tree with 80 MiB of files, in /root/first and /root/second. The second has other times for
# many files, and a few changes.
set -eu

cd /root
cp -a tree first
mkdir first/usr/share
n=0
while [ $n -lt 400 ]; do
    head -c 100000 /dev/urandom >"first/usr/share/$n"
    n=$((n + 1))
done
head -c 44M /dev/urandom >first/var/large

cp -a first second
find second/usr/share -name '*7' -exec touch {} +
rm second/usr/share/13
mkdir second/usr/share/new
head -c 1M /dev/urandom >second/usr/share/new/file
echo other >second/etc/acl
printf changed | dd of=second/var/large bs=1M seek=20 conv=notrunc status=none
touch -d 2001-01-01 second/usr/share
