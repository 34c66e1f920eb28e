#!/bin/sh
# Hook of dracut, sourced after udevd was started, before it is told to look at all devices.

# The path of a multipath device looks like a disk until multipathd runs.
if imgbased-helper initrd is-layer && ! command -v multipathd >/dev/null; then
    # A unit may have loaded them.
    [ -e /run/imgbased/times.json ] || imgbased-helper initrd drivers >/dev/null 2>&1
    # A system that resumes from hibernation does so later, on volumes that nobody has touched. systemd
    # keeps the place in this variable of the firmware.
    if [ ! -e /sys/firmware/efi/efivars/HibernateLocation-8cf2644b-4b0b-428f-9387-6d876050dc67 ] &&
        { ! getarg resume= >/dev/null || getargbool 0 noresume; }; then
        # A disk that takes longer is waited for later.
        udevadm settle --timeout=5
        if imgbased-helper initrd activate >/dev/null 2>&1 && [ -n "${DRACUT_SYSTEMD-}" ]; then
            # So nothing has to be waited for in dracut's loop, which looks at all devices.
            # shellcheck disable=SC2154 # hookdir is set by dracut
            rm -f "$hookdir/initqueue/finished/imgbased.sh" "$hookdir/initqueue/timeout/zz-imgbased.sh"
        fi
    fi
fi
