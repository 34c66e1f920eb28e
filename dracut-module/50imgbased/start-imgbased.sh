#!/bin/sh
# Hook of dracut, sourced where there is no systemd: after udevd was started, before it looks for
# disks.

if getarg imgbased.layer= >/dev/null; then
    # Beside dracut's loop, which unlocks disks and assembles arrays meanwhile.
    # shellcheck disable=SC2154 # hookdir is set by dracut
    (
        imgbased-helper initrd mount >/dev/null 2>&1
        mkdir -p /run/imgbased
        : >/run/imgbased/tried
        : >"$hookdir/initqueue/work"
    ) &
fi
