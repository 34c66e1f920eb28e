#!/bin/sh
# Leaves files of the host where updates carry them, one of them with $1 bytes. From then on nobody writes there.
set -eu

ln -sf /dev/null /root/.bash_history
mkdir -p /srv/site /opt/own
for path in /root/edited /root/gone /srv/site/x /opt/own/x /etc/gone.conf; do
    echo before >"$path"
done
echo small >/home/small
head -c "$1" /dev/urandom >/home/large
