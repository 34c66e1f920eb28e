#!/bin/sh
# Writes into the system at /mnt/root what an installer, an admin and users have written there.
set -eu

chroot /mnt/root useradd --create-home --uid 1000 admin
cd /mnt/root
echo 'tmpfs /srv/scratch tmpfs nofail 0 0' >>etc/fstab
echo 'of the host' >etc/motd
mkdir -p data opt/own srv/site
for path in data/file home/admin/note root/key opt/own/data srv/site/page; do
    echo "$path" >"$path"
done
sync -f /mnt/root
