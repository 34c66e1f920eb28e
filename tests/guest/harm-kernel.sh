#!/bin/sh
# Has the running layer not come up with the kernel $2: $1 says how, or `none` that it does again.
set -eu

# archived NAME MODE CONTENT: a file in a cpio archive; not every release has the program.
archived() {
    name_size=$((${#1} + 1))
    printf '070701'
    printf '%08X' 1 "$2" 0 0 1 0 ${#3} 0 0 0 0 $name_size 0
    printf '%s\0' "$1"
    head -c $(((4 - (110 + name_size) % 4) % 4)) /dev/zero
    printf '%s' "$3"
    head -c $(((4 - ${#3} % 4) % 4)) /dev/zero
}

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
    for dir in usr usr/lib usr/lib/dracut; do
        archived $dir 040755 ''
    done >"/boot/initrd.img-$version"
    {
        archived usr/lib/dracut/modules.txt 0100644 'imgbased
'
        archived 'TRAILER!!!' 0 ''
    } >>"/boot/initrd.img-$version"
    ;;
esac
sync
