#!/bin/sh
# Changes the running layer as an admin does: an account with a password, configuration, units, and what the image
# brings and is not wanted.
set -eu

# shellcheck disable=SC2016 # a hash, not variables
useradd --create-home --uid 1000 --password '$6$salt$tOHtR7fO0R5pYL2OaoRQ0rJvH7HcBsmYd2nGyhLB8eVUJZ8p2bLMhl0l1rmwJd6Cg/eDPVnlbLTZt0TYJQO8V/' admin
echo 'of the admin' >/etc/motd
echo changed >/etc/issue
chmod 600 /etc/shells
rm /etc/networks
systemctl mask --quiet apt-daily.service
mkdir -p /etc/sysctl.d /opt/own
echo before >/opt/own/data
echo key >/root/key
echo gone >/root/gone
echo 'kernel.sysrq = 1' >/etc/sysctl.d/90-admin.conf
