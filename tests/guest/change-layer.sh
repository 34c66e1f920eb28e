#!/bin/sh
# Changes the running layer in each way that `diff` tells of.
set -eu

echo more >>/etc/issue
chmod 600 /etc/shells
chown 1234:4321 /etc/profile
setfattr -n user.note -v text /etc/host.conf
rm /etc/debian_version /etc/issue.net
mkdir /etc/issue.net
echo added >"$(printf '/etc/two\nlines')"
ln -sfn elsewhere /etc/alternatives/awk
mkdir -p /mnt/below
mount -t tmpfs none /mnt/below
echo hidden >/mnt/below/hidden
