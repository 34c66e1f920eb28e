#!/bin/sh
# Hook of dracut, sourced where there is no systemd, up to twenty times while nothing is mounted.

if imgbased-helper initrd is-layer && ! ismounted "$NEWROOT"; then
    if [ -e /run/imgbased/tried ]; then
        # The helper has said why. After the shell it is tried again, unless someone has mounted a root.
        emergency_shell "The layer could not be mounted; imgbased-helper initrd retry tries again"
    fi
    ismounted "$NEWROOT" || imgbased-helper initrd mount >/dev/null 2>&1
    mkdir -p /run/imgbased
    : >/run/imgbased/tried
fi
