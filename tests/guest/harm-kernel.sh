#!/bin/sh
# Has the running layer not come up with the kernel $2: $1 says how, or `none` that it does again.
set -eu

kind=$1 version=$2
cd /etc/systemd/system
rm -rf ill.service boot-complete.target.requires/ill.service imgbased-give-up.timer.d

case $kind in
unhealthy)
    cat >ill.service <<UNIT
[Unit]
Before=boot-complete.target
[Service]
Type=oneshot
ExecStart=sh -c '[ "\$\$(uname -r)" != $version ]'
UNIT
    mkdir -p boot-complete.target.requires
    ln -s ../ill.service boot-complete.target.requires/
    ;;
hanging)
    cat >ill.service <<UNIT
[Unit]
Before=multi-user.target boot-complete.target
[Service]
Type=oneshot
ExecStart=sh -c '[ "\$\$(uname -r)" != $version ] || sleep infinity'
UNIT
    mkdir -p boot-complete.target.requires imgbased-give-up.timer.d
    ln -s ../ill.service boot-complete.target.requires/
    printf '[Timer]\nOnActiveSec=\nOnActiveSec=60\n' >imgbased-give-up.timer.d/soon.conf
    ;;
panicking)
    # An initramfs with what dracut's tools look for, and nothing to start.
    mkdir -p /root/empty/usr/lib/dracut
    cd /root/empty
    echo imgbased >usr/lib/dracut/modules.txt
    echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >"/boot/initrd.img-$version"
    ;;
esac
sync
