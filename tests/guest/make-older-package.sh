#!/bin/sh
# Makes /root/old.deb of /root/new.deb: the version before had no scripts, other configuration files, and a timer that
# is always on.
set -eu

rm -rf /root/old
dpkg-deb --raw-extract /root/new.deb /root/old
cd /root/old
sed -i 's/^Version: .*/Version: 0.1.0-1/' DEBIAN/control
sed -i '/imgbased.profile/d' DEBIAN/conffiles
rm DEBIAN/postinst DEBIAN/prerm DEBIAN/postrm usr/lib/systemd/system-preset/*
mkdir -p usr/lib/systemd/system/timers.target.d
printf '[Unit]\nWants=imgbased-update-check.timer\n' >usr/lib/systemd/system/timers.target.d/imgbased-timers.conf
for file in etc/grub.d/09_imgbased etc/kernel/postinst.d/zz-imgbased; do
    echo '# of the version before' >>$file
done
dpkg-deb --root-owner-group -Znone --build . /root/old.deb
