#!/bin/sh
# Hook of dracut, sourced before an emergency shell opens.

if imgbased-helper initrd is-layer; then
    # What the command line says decides, then the helper, which says why.
    if getarg SYSTEMD_SULOGIN_FORCE= >/dev/null; then
        getargbool 0 SYSTEMD_SULOGIN_FORCE
    else
        imgbased-helper initrd may-open-shell
    fi
    # shellcheck disable=SC2181 # of the one that was asked
    if [ $? -eq 0 ]; then
        mkdir -p /etc/cmdline.d
        echo SYSTEMD_SULOGIN_FORCE=1 >/etc/cmdline.d/50-imgbased.conf
    elif [ -n "${DRACUT_SYSTEMD-}" ]; then
        # Not with the option -e, which dracut 059 always has.
        exec sulogin
    else
        # dracut's init has a shell without a password, and no other. As with rd.shell=0, where a trial restarts the host.
        sleep 30
        [ "$(getarg rd.emergency=)" = reboot ] && reboot -f
        poweroff -f
    fi
fi
