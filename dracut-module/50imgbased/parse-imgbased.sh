#!/bin/sh
# Hook of dracut, sourced after those of lvm.

if imgbased-helper initrd is-layer; then
    # The helper finds the root by itself: dracut must neither wait for the device that root=
    # names, as its own hook has told it to, nor refuse a root= that it does not know.
    case "$root" in
    block:*) cancel_wait_for_dev "${root#block:}" ;;
    esac
    # An image that was built for one host can name the volume that was the root then. It may be gone.
    for lv in $(getargs rd.lvm.lv=); do
        cancel_wait_for_dev "/dev/$lv"
    done
    # shellcheck disable=SC2034 # both are read by dracut
    root=imgbased rootok=1
    if [ -z "${DRACUT_SYSTEMD-}" ]; then
        # Ends by itself where a boot that fails does not restart.
        imgbased-helper initrd limit >/dev/null 2>&1 &
        # Otherwise the root is mounted by the mount hook: after a system has resumed from hibernation or
        # not, and after a shell that comes before the mount.
        if { ! getarg resume= >/dev/null || getargbool 0 noresume; } &&
            ! getargs rd.break=pre-mount >/dev/null && ! getargs rd.break=mount >/dev/null; then
            # What dracut's loop ends with; the helper knows itself when to give up.
            # shellcheck disable=SC2154 # hookdir is set by dracut
            echo '[ -e /run/imgbased/tried ]' >"$hookdir/initqueue/finished/imgbased.sh"
            echo '[ -e /run/imgbased/tried ] || main_loop=0' >"$hookdir/initqueue/timeout/imgbased.sh"
        fi
    fi
fi
