#!/bin/sh
# Puts into the root tree $1 what a system leaves that has run, and what names disks of one host.
set -eu

cd "$1"
mkdir -p etc/ssh etc/kernel root var/lib/systemd var/log
echo secret >etc/ssh/ssh_host_rsa_key
echo 0123456789abcdef0123456789abcdef >etc/machine-id
echo seed >var/lib/systemd/random-seed
echo ls >root/.bash_history
echo installed >>var/log/dpkg.log
sed -i 's|^|root=/dev/sda1 resume=UUID=1-2 |' etc/kernel/cmdline
printf 'UUID=1-2 / ext4\nUUID=3-4 /srv ext4\n' >>etc/fstab
# What was added by hand to the other files of accounts.
echo 'second:!::' >>etc/gshadow
