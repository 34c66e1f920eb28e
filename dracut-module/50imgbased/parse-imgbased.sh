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
    # It would activate all volumes of all groups, beside the helper.
    [ -n "$(getargs rd.lvm.lv=)$(getargs rd.lvm.vg=)" ] || rm -f -- /etc/udev/rules.d/64-lvm*.rules
    # shellcheck disable=SC2034 # both are read by dracut
    root=imgbased rootok=1
    # What dracut's loop ends with, which meanwhile unlocks disks, assembles arrays and logs in to iSCSI targets. The
    # helper knows itself when to give up.
    ended=
    if [ -n "${DRACUT_SYSTEMD-}" ]; then
        # A disk that is unlocked after the loop (_netdev in crypttab) would never be.
        unit=imgbased-sysroot.service
        if [ -e "/run/systemd/generator.early/initrd-root-fs.target.requires/$unit" ] &&
            ! ls -d /run/systemd/generator/remote-*setup.target.[rw]* >/dev/null 2>&1; then
            ended="[ -e /run/imgbased/tried ] || systemctl -q is-failed $unit"
        fi
    else
        # Ends by itself where a boot that fails does not restart.
        imgbased-helper initrd limit >/dev/null 2>&1 &
        # Otherwise the root is mounted by the mount hook: after a system has resumed from hibernation or not.
        if ! getarg resume= >/dev/null || getargbool 0 noresume; then
            ended='[ -e /run/imgbased/tried ]'
        fi
    fi
    # A shell that comes before the mount comes after the loop.
    if [ -n "$ended" ] && ! getargs rd.break=pre-mount >/dev/null && ! getargs rd.break=mount >/dev/null; then
        # shellcheck disable=SC2154 # hookdir is set by dracut
        echo "$ended" >"$hookdir/initqueue/finished/imgbased.sh"
        # After all others: none runs any more in the round that begins anew.
        echo "{ $ended; } || main_loop=0" >"$hookdir/initqueue/timeout/zz-imgbased.sh"
    fi
fi
