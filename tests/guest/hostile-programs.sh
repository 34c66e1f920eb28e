#!/bin/sh
# Puts programs into /root/bin that nobody may run, and keeps lvm's configuration.
set -eu

mkdir -p /root/bin
cat >/root/bin/lvm <<'EOS'
#!/bin/sh
touch /root/evil
exit 1
EOS
chmod 755 /root/bin/lvm
cp /root/bin/lvm /root/bin/e2fsck
cp /etc/lvm/lvm.conf /root/lvm.conf
