#!/bin/sh
# Changes the running layer after an update: what is in /etc and elsewhere is added, changed and deleted.
set -eu

echo later >/root/added
echo later >/root/edited
mkdir /srv/new
echo later >/srv/new/x
echo later >/etc/later
chmod 600 /home/small
rm -r /root/gone /srv/site /opt/own /etc/gone.conf
