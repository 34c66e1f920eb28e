#!/bin/sh
# Changes the root of Base-0.2 so that it does not come up: $1 says how.
set -eu

unhealthy() {
    cat >etc/systemd/system/ill.service <<'UNIT'
[Unit]
Before=boot-complete.target
[Service]
Type=oneshot
ExecStart=false
UNIT
    mkdir etc/systemd/system/boot-complete.target.requires
    ln -s ../ill.service etc/systemd/system/boot-complete.target.requires/
}

# It reaches boot-complete.target, but never the end of the boot.
hanging() {
    cd etc/systemd/system
    mkdir -p multi-user.target.wants imgbased-give-up.timer.d
    cat >hang.service <<'UNIT'
[Unit]
Before=multi-user.target
[Service]
Type=oneshot
ExecStart=sleep infinity
UNIT
    ln -s ../hang.service multi-user.target.wants/
    printf '[Timer]\nOnActiveSec=\nOnActiveSec=60\n' >imgbased-give-up.timer.d/soon.conf
}

# It comes up all the same; Debian loads no driver of a watchdog by itself.
watched() {
    mkdir -p etc/modules-load.d
    echo i6300esb >etc/modules-load.d/watchdog.conf
}

emergency() {
    echo '/dev/disk/by-label/lost /lost ext4 x-systemd.device-timeout=5 0 2' >>etc/fstab
}

# systemd in the initramfs looks for this before /sbin/init.
without_init() {
    ln -sf /bin/false usr/lib/systemd/systemd
}

lvm lvchange -q -K -ay HostVG/Base-0.2
mount /dev/HostVG/Base-0.2 /mnt
(
    cd /mnt
    "$1"
)
umount /mnt
lvm lvchange -q -an HostVG/Base-0.2
