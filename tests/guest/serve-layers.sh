#!/bin/sh
# Has a web server on this machine show the tree at /mnt/next as an image in layers, in a list that is signed by a key
# of this host. It is on an empty disk.
set -eu

mkfs.ext4 -q /dev/disk/by-id/virtio-spare
mkdir -p /run/server
mount /dev/disk/by-id/virtio-spare /run/server
mkdir -p /etc/imgbased/keys.d
cd /run/server
# A file that only another directory has, one that has changed, and one that is new.
mv /mnt/next/usr/lib/os-release /mnt/next/usr/lib/os-release.moved
cp -a /mnt/next/usr/lib/os-release.moved /mnt/next/usr/lib/os-release
seq 100000 >/mnt/next/usr/lib/second
# What it is made from is not read any more then.
TMPDIR=/run/server imgbased-helper image pack /mnt/next /run/server/myhost
umount /mnt/next /run/changes /run/old
lvchange --activate n HostVG/Base-0
GNUPGHOME=/run/server/gnupg
export GNUPGHOME
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-gen-key tester ed25519 sign never
gpg --batch --quiet --output myhost/SHA256SUMS.gpg --detach-sign myhost/SHA256SUMS
gpg --batch --quiet --export tester >/etc/imgbased/keys.d/tester.gpg
cat >/etc/imgbased/imgbased.conf <<CONF
[Source]
Path=http://127.0.0.1:8080/myhost/
CONF
cat >/run/nginx.conf <<CONF
pid /run/nginx.pid;
error_log /run/nginx-error.log;
events {
}
http {
    log_format bytes '\$status \$body_bytes_sent \$uri';
    access_log /run/nginx.log bytes;
    server {
        listen 127.0.0.1:8080;
        root /run/server;
    }
    server {
        listen 127.0.0.1:8081;
        root /run/server;
        max_ranges 0;
    }
}
CONF
nginx -c /run/nginx.conf
