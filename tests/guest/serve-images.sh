#!/bin/sh
# Has a web server on this machine show three images, of which that of version 10 is /mnt/next, in a list that is signed
# by a key of this host. They are on the empty disk $1. $2 is the size of that image, and $3 how many megabytes it has
# more of what such trees have.
set -eu

disk=/dev/disk/by-id/virtio-${1-spare}
mkfs.ext4 -q "$disk"
mkdir -p /run/server
mount "$disk" /run/server
mkdir -p /run/server/images /etc/imgbased/keys.d
cd /run/server/images
mke2fs -q -t ext4 -d /mnt/next ../next.ext4 "${2-800M}"
if [ $# -gt 2 ]; then
    { tar -C /mnt/next --create usr || true; } | head -c "$3M" >../more
    debugfs -w -R 'write ../more more' ../next.ext4
    rm ../more
fi
zstd -q -1 --rm ../next.ext4 -o myhost-10.raw.zst
echo 'no image' >myhost-9.raw.zst
echo 'no image' >myhost-1.raw.zst
sha256sum myhost-*.zst >SHA256SUMS
GNUPGHOME=/run/server/gnupg
export GNUPGHOME
mkdir -m 700 "$GNUPGHOME"
gpg --batch --quiet --passphrase '' --quick-gen-key tester ed25519 sign never
gpg --batch --quiet --output SHA256SUMS.gpg --detach-sign SHA256SUMS
gpg --batch --quiet --export tester >/etc/imgbased/keys.d/tester.gpg
cat >/etc/imgbased/imgbased.conf <<CONF
[Source]
Path=http://127.0.0.1:8080/images
MatchPattern=myhost-@v.raw.zst
CONF
cat >/run/nginx.conf <<CONF
pid /run/nginx.pid;
error_log /run/nginx-error.log;
events {
}
http {
    access_log /run/nginx.log;
    server {
        listen 127.0.0.1:8080;
        root /run/server;
    }
}
CONF
nginx -c /run/nginx.conf
