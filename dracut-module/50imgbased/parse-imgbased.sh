#!/bin/sh
# Hook of dracut, sourced.

if getarg imgbased.layer= >/dev/null; then
    # The helper finds the root by itself: dracut must neither wait for the device that root=
    # names, as its own hook has told it to, nor refuse a root= that it does not know.
    case "$root" in
    block:*) cancel_wait_for_dev "${root#block:}" ;;
    esac
    # shellcheck disable=SC2034 # both are read by dracut
    root=imgbased rootok=1
    # The pool is taken down from an initramfs that is unpacked again.
    need_shutdown
    if [ -n "${DRACUT_SYSTEMD-}" ]; then
        # Most images have no password for root here, and then the emergency shell would be locked.
        # rd.shell=0 turns it off, SYSTEMD_SULOGIN_FORCE=0 makes it ask for the password.
        echo SYSTEMD_SULOGIN_FORCE=1 >/etc/cmdline.d/50-imgbased.conf
    else
        # What dracut's loop ends with.
        # shellcheck disable=SC2154 # hookdir is set by dracut
        echo '[ -e /run/imgbased/tried ]' >"$hookdir/initqueue/finished/imgbased.sh"
    fi
fi
