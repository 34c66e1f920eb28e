#!/bin/sh
# Hook of dracut, sourced where there is no systemd, up to twenty times while nothing is mounted.

if imgbased-helper initrd is-layer && ! ismounted "$NEWROOT"; then
    if [ -e /run/imgbased/tried ] && [ ! -e /run/imgbased/late ]; then
        # dracut's loop may have gone on for longer than the helper has waited, as for a password.
        : >/run/imgbased/late
        imgbased-helper initrd activate >/dev/null 2>&1 && imgbased-helper initrd mount >/dev/null 2>&1
    fi
    if [ -e /run/imgbased/tried ] && ! ismounted "$NEWROOT"; then
        # The helper has said why. After the shell it is tried again, unless someone has mounted a root.
        emergency_shell "The layer could not be mounted; imgbased-helper initrd retry tries again"
    fi
    ismounted "$NEWROOT" || imgbased-helper initrd mount >/dev/null 2>&1
    mkdir -p /run/imgbased
    : >/run/imgbased/tried
fi
