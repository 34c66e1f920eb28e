#!/bin/sh
# Claims that the files that the menu names are whole, as their names end in the begin of their digests, and
# that what boots by default is in the menu.
set -eu

menu=/boot/grub/imgbased.cfg
# shellcheck disable=SC2016 # the variable is GRUB's
sed -n 's,.*\(linux\|initrd\) $imgbased_boot\(/[^ ;]*\).*,\2,p' $menu >/run/paths
test -s /run/paths
while read -r path; do
    [ "${path##*-}" = "$(sha256sum "/boot$path" | cut -c 1-16)" ]
done </run/paths
grep -qF "'$(sed -n s/^saved_entry=//p /boot/grub/grubenv)'" $menu
