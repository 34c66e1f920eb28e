#!/bin/sh
# A hook of dracut's: suspends the device below a filesystem that has something to write, so that whatever waits
# for the disks waits for ever.
(
    exec >/dev/console 2>&1
    device=/dev/disk/by-id/virtio-spare
    until [ -b $device ]; do sleep 1; done
    device=$(readlink -f $device)
    read -r size <"/sys/class/block/${device##*/}/size"
    dmsetup create stuck --table "0 $size linear $device 0" &&
        mkdir /run/stuck &&
        mount -t ext4 /dev/mapper/stuck /run/stuck &&
        cat /usr/bin/* >/run/stuck/file &&
        dmsetup suspend --nolockfs --noflush stuck &&
        echo 'the device is suspended' &&
        sync &&
        echo 'the disks have all of it'
) &
