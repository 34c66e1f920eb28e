#!/bin/bash
# What a hostile image has for dracut. The file /etc/mode says what it does.
set -u

through=
exec 4>&2 >/dev/null 2>&1

got() {
    through="$through $1"
}

write() {
    echo hostile >"$1"
}

# node PLACE KIND MAJOR MINOR: a device node, and what is behind it.
node() {
    mknod "$@" && write "$1"
}

# What it could not do must show in the end.
tell() {
    echo "tried $1, got through:${through:- nothing}" >&4
    exit 1
}

case $(cat /etc/mode) in
attack)
    read -r major minor </etc/disk
    # Its own, where it may.
    write /run/hostile && write /tmp/hostile || exit 2
    write /hostile && got root
    write /proc/1/root/hostile && got root-of-init
    write /proc/1/cwd/hostile && got directory-of-init
    grep systemd /proc/1/comm && got process-of-host
    node /run/disk b "$major" "$minor" && got disk
    node /dev/disk b "$major" "$minor" && got disk-in-dev
    node /run/kmsg c 1 11 && got log-node
    write /dev/kmsg && got log-device
    dmesg && got log
    chmod 600 /dev/null && got null
    chmod 600 /proc/self/fd/0 && got input
    write /proc/sys/kernel/domainname && got domain-name
    write /proc/sys/kernel/core_pattern && got core-pattern
    echo h >/proc/sysrq-trigger && got sysrq
    echo -1000 >/proc/self/oom_score_adj && got priority
    write /sys/kernel/profiling && got sys
    mount -t sysfs sysfs /sys && got sysfs
    mount -o remount,rw / && got remount
    mount -t tmpfs tmpfs /tmp && got tmpfs
    unshare --user --map-root-user true && got namespace
    unshare --mount true && got mounts
    (exec 3<>/dev/tcp/127.0.0.1/4242) && got network
    write /proc/self/fd/9 && got open-file
    [[ -n ${HOSTILE-} ]] && got variable
    tell everything
    ;;
daemon)
    setsid sleep 42424 &
    (
        trap '' TERM HUP INT
        while :; do
            sleep 42424
        done
    ) &
    cp /usr/lib/good /run/initrd-9.9
    ;;
forever)
    trap '' TERM HUP INT
    while :; do
        sleep 42424
    done
    ;;
memory)
    head -c 900M /dev/zero | tail && got process
    dd if=/dev/zero of=/run/full bs=1M && got file
    tell memory
    ;;
herd)
    # Each of them may have that much.
    for _ in 1 2 3 4; do
        head -c 400M /dev/zero | tail &
    done
    wait
    tell herd
    ;;
link)
    ln -s /etc/shadow /run/initrd-9.9
    ;;
esac
