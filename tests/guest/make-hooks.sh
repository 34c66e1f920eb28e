#!/bin/sh
# Makes hooks that tell in /root/hooks what they are told, and some that must not run. That of /root/hook-mode, a
# line with an event and `veto` or `sleep`, makes one of them fail.
set -eu

etc=/etc/imgbased/hooks.d
usr=/usr/lib/imgbased/hooks.d

# Writes a hook, which goes on with the text at standard input.
hook() {
    {
        # shellcheck disable=SC2016 # for the hook
        printf '%s\n' '#!/bin/sh' 'echo "$0 $*" >>/root/hooks'
        cat
    } >"$1"
    chmod 755 "$1"
}

mkdir -p $etc $usr
hook $usr/10-first </dev/null
hook $etc/10-first <<'EOT'
echo first
EOT
hook $usr/20-off </dev/null
ln -sf /dev/null $etc/20-off
hook $usr/30-open </dev/null
chmod 777 $usr/30-open
hook $usr/40-roots <<'EOT'
[ "$1" = new-layer-added ] || exit 0
env | grep ^IMGBASED_ | sort >/root/environment
echo seen >"$IMGBASED_NEW_ROOT/etc/hook"
! touch "$IMGBASED_OLD_ROOT/etc/hook"
EOT
hook $usr/50-helper <<'EOT'
[ "$1" = new-layer-added ] || exit 0
imgbased-helper status >/root/status
imgbased-helper diff "$IMGBASED_OLD_ROOT" "$IMGBASED_NEW_ROOT" --path /etc/hook >/root/diff
imgbased-helper boot once --cancel >/root/refused 2>&1
exit 0
EOT
hook $usr/60-mode <<'EOT'
[ -e /root/hook-mode ] || exit 0
read -r event mode </root/hook-mode
[ "$1" = "$event" ] || exit 0
if [ "$mode" = veto ]; then
    echo not today
    exit 7
fi
sleep 4243 &
sleep 4243
EOT
hook $etc/70-last </dev/null
