#!/bin/sh
# Restores metadata of the host's group that say of its pool another transaction than it is at, and keeps the right
# ones in /root/right.vg.
set -eu

vgcfgbackup -qq --file /root/right.vg HostVG
# Thin volumes have such a line as well.
awk '/^\t*ImagePool \{/ { inside = 1 } inside && /transaction_id = / { sub(/[0-9]+/, "99"); inside = 0 } { print }' \
    /root/right.vg >/root/wrong.vg
if cmp -s /root/right.vg /root/wrong.vg; then
    echo 'the pool has no transaction'
    exit 1
fi
vgcfgrestore -qq --force --file /root/wrong.vg HostVG
