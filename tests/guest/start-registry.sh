#!/bin/sh
# Starts a registry on this machine, which keeps all that it has in /run/server, on an empty disk, and writes
# /run/registry.log. This machine may ask it over http.
set -eu

mkfs.ext4 -q /dev/disk/by-id/virtio-spare
mkdir -p /run/server
mount /dev/disk/by-id/virtio-spare /run/server
mkdir -p /etc/containers/registries.conf.d
printf '[[registry]]\nlocation = "127.0.0.1:5000"\ninsecure = true\n' >/etc/containers/registries.conf.d/local.conf
[ -e /etc/containers/policy.json ] ||
    echo '{"default":[{"type":"insecureAcceptAnything"}]}' >/etc/containers/policy.json
cat >/run/registry.yml <<CONF
version: 0.1
log:
  level: error
storage:
  filesystem:
    rootdirectory: /run/server/registry
http:
  addr: 127.0.0.1:5000
CONF
systemd-run --quiet --unit=test-registry --property=StandardOutput=append:/run/registry.log \
    docker-registry serve /run/registry.yml
curl --silent --show-error --fail --output /dev/null --retry 10 --retry-delay 3 --retry-connrefused \
    http://127.0.0.1:5000/v2/
