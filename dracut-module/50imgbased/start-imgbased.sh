#!/bin/sh
# Hook of dracut, sourced where there is no systemd: after udevd was started, before it looks for
# disks.

# A system that resumes from hibernation does so between here and the mount hook, on filesystems that
# nobody has touched.
# shellcheck disable=SC2154 # hookdir is set by dracut
if [ -e "$hookdir/initqueue/finished/imgbased.sh" ]; then
    # Beside dracut's loop, which unlocks disks and assembles arrays meanwhile.
    (
        imgbased-helper initrd mount >/dev/null 2>&1
        mkdir -p /run/imgbased
        : >/run/imgbased/tried
        : >"$hookdir/initqueue/work"
    ) &
fi
