#!/bin/sh
# Prints the volumes and boot entries that the host was installed with, what boots by default, and what
# belongs to others: all that no verb may change. What the verb is for is left out: $1 is its layer or base.
set -eu

lvm lvs --noheadings -o lv_name,lv_attr,lv_tags,origin --select \
    'vg_name=HostVG && (lv_name=Base-0 || lv_name=Base-0.1 || lv_name=Base-0.2 || lv_name=Config)' |
    # A kill leaves a base active that was read, and Config.
    sed 's/Vri-a-tz-k/Vri---tz-k/; s/Vwi-a-tz--/Vwi---tz--/; s/,imgbased:good[^, ]*//; s/imgbased:good[^, ]*,//' | tr -s ' '
case $1 in
srv-data)
    cat /srv/data/file
    ;;
lists)
    imgbased-helper persist list | grep -vx /root/.ssh
    ;;
esac
cd /boot
if [ "$1" = Base-0.1 ] || [ "$1" = Base-0.2 ]; then
    # What boots: those variables, the options of the entry, and whether the layer has come up.
    grep -v -e '^#' -e imgbased_ -e saved_entry -e next_entry grub/grubenv
    sed 's/ imgbased.trial//; s/ imgbased.onfail=reboot panic=30 nmi_watchdog=panic rd.shell=0 rd.emergency=reboot systemd.watchdog_sec=2min systemd.crash_reboot=yes$//' \
        loader/entries/imgbased-Base-0.2.conf
else
    # The last step of an update has its layer tried.
    if [ "$1" = Extra ]; then
        grep -v -e '^#' -e ^imgbased_ grub/grubenv
    else
        cat grub/grubenv
    fi
    cat loader/entries/imgbased-Base-0.2.conf
fi
sha256sum loader/entries/imgbased-Base-0.conf loader/entries/imgbased-Base-0.1.conf \
    loader/entries/other.conf loader/entries/imgbased-broken.conf vmlinuz-foreign
cat loader/entries/imgbased-Base-0*.conf | awk '/^(linux|initrd) / { print "." $2 }' | sort -u |
    xargs sha256sum
ls -d imgbased-foreign
