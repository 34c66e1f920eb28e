#!/bin/sh
# Has somebody write to /srv/late in the moment before a volume is mounted there.
set -eu

mkdir -p /srv/late /etc/systemd/system/srv-late.mount.d
echo early >/srv/late/file
printf '[Service]\nType=oneshot\nExecStart=/bin/sh -c "echo late >>/srv/late/file"\n' \
    >/etc/systemd/system/late.service
printf '[Unit]\nRequires=late.service\nAfter=late.service\n' \
    >/etc/systemd/system/srv-late.mount.d/late.conf
systemctl daemon-reload
