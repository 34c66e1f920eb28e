#!/bin/sh
# Has a web server on this machine show three images, of which that of version 10 is /mnt/next, in a list that is signed
# by a key of this host. They are on an empty disk.
set -eu

mkfs.ext4 -q /dev/disk/by-id/virtio-spare
mkdir -p /run/server
mount /dev/disk/by-id/virtio-spare /run/server
mkdir -p /run/server/images /etc/imgbased/keys.d
cd /run/server/images
mke2fs -q -t ext4 -d /mnt/next ../next.ext4 800M
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
