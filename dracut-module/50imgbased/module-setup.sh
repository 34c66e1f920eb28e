#!/bin/bash
# dracut module, see dracut.modules(7): boots the layer that imgbased.layer= names.
# shellcheck disable=SC2154 # dracut sets moddir and initdir

check() {
    require_binaries imgbased-helper lvm thin_check e2fsck || return 1
    # Included by default: a layer whose initramfs lacks this module does not boot.
    return 0
}

depends() {
    # lvm brings dm and, from 108 on, initqueue.
    echo lvm
    # With systemd a unit mounts the layer, without it hooks do.
    if dracut_module_included systemd; then
        echo dracut-systemd
    fi
    return 0
}

installkernel() {
    # A hostonly image has drivers for the running root only, and 059 has no thin target in any.
    hostonly='' instmods dm-thin-pool ext4 xfs overlay
}

install() {
    inst_multiple imgbased-helper thin_check e2fsck modprobe mount umount
    # lvm complains about a pool whose profile it does not find.
    inst_simple /etc/lvm/profile/imgbased.profile
    inst_hook cmdline 35 "$moddir/parse-imgbased.sh"
    # After the hook of mdraid, which tells udev about arrays.
    inst_hook pre-trigger 45 "$moddir/drivers-imgbased.sh"
    inst_hook emergency 50 "$moddir/shell-imgbased.sh"
    if dracut_module_included systemd; then
        install_units
    else
        inst_hook pre-trigger 50 "$moddir/start-imgbased.sh"
        inst_hook mount 50 "$moddir/mount-imgbased.sh"
        inst_hook cleanup 50 "$moddir/end-imgbased.sh"
    fi
}

install_units() {
    local unit
    for unit in imgbased-sysroot.service imgbased-drivers.service imgbased-limit.service; do
        inst_simple "$moddir/$unit" "/usr/lib/systemd/system/$unit"
    done
    mkdir -p "$initdir/usr/lib/systemd/system-generators"
    ln -sfn ../../../bin/imgbased-helper \
        "$initdir/usr/lib/systemd/system-generators/imgbased-generator"
    # /etc comes before /usr/lib among the directories of generators.
    inst_script "$moddir/rootfs-generator.sh" \
        /etc/systemd/system-generators/dracut-rootfs-generator
}
