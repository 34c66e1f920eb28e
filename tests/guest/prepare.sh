#!/bin/sh
# Makes a host ready for the verb $1, whatever an earlier run of the verb has come to. /root/Extra and
# /root/Extra.img are there.
set -eu

spare=/dev/disk/by-id/virtio-spare

has_base() {
    imgbased-helper base list | grep -qx "$1"
}

has_layer() {
    imgbased-helper layer list | grep -q "^$1 "
}

extra_base() {
    has_base Extra || imgbased-helper base add --name Extra /root/Extra.img
}

# Base-0.2 has never come up before, and nothing but the default is to boot.
new_layer() {
    imgbased-helper boot default --tries 0 Base-0.1
    imgbased-helper boot try --cancel
    for tag in $(lvm lvs --noheadings -o lv_tags HostVG/Base-0.2 | grep -o 'imgbased:good[^, ]*'); do
        lvm lvchange -q --deltag "$tag" HostVG/Base-0.2
    done
}

# A layer of a newer base, which holds the same, is the default, and has come up.
newer_default() {
    if ! has_base 'Base-1.*'; then
        lvm lvcreate -q -y -s -ky --addtag imgbased:base -n Base-1 HostVG/Base-0
        lvm lvchange -q -K -ay HostVG/Base-1
        e2fsck -fp /dev/HostVG/Base-1
        tune2fs -O metadata_csum_seed -U random /dev/HostVG/Base-1
        lvm lvchange -q -an HostVG/Base-1
        lvm lvchange -q -pr HostVG/Base-1
        imgbased-helper check --repair
    fi
    has_layer Base-1.1 || imgbased-helper layer add Base-1
    imgbased-helper boot bless Base-1.1
    imgbased-helper boot default Base-1.1
    lvm lvchange -q --deltag imgbased:hold HostVG/Base-1
}

# As an installer leaves it: a group, a pool and a root without any of our tags.
installed_group() {
    if ! lvm vgs Installed 2>/dev/null; then
        lvm vgcreate Installed $spare
        lvm lvcreate -y --type thin-pool -L 300M -n pool Installed
        lvm lvcreate -y -V 64M --thinpool pool -n root Installed
        dd if=/root/Extra.img of=/dev/Installed/root conv=fsync
    fi
    if lvm lvs Installed/node-1-1; then
        imgbased-helper --vg Installed base remove --yes node-1-1
    fi
    if lvm lvs Installed/Config; then
        lvm lvremove -y Installed/Config
    fi
    lvm vgchange --deltag imgbased:vg Installed
    lvm lvchange --deltag imgbased:pool Installed/pool
}

# A directory of the layer with a file, and no volume for it.
own_directory() {
    if imgbased-helper volume list | grep -q /srv/data; then
        imgbased-helper volume remove /srv/data --delete
    fi
    mkdir -p /srv/data
    echo text >/srv/data/file
}

# A path is listed, and /root/.ssh is not. Then `persist` does what the words say.
lists() {
    imgbased-helper persist add '/srv/*.conf'
    if imgbased-helper persist list | grep -qx /root/.ssh; then
        imgbased-helper persist remove /root/.ssh
    fi
    imgbased-helper persist "$@"
}

# A tree with what no image may have.
tree() {
    rm -rf /root/Tree
    mkdir -p /root/Tree/etc/ssh /root/Tree/usr /root/Tree/var/lib/dpkg /root/Tree/var/log
    cd /root/Tree
    cp -L /etc/os-release etc/os-release
    echo secret >etc/ssh/ssh_host_rsa_key
    echo 0123456789abcdef0123456789abcdef >etc/machine-id
    echo 'UUID=1 / ext4' >etc/fstab
    echo status >var/lib/dpkg/status
    echo installed >var/log/dpkg.log
}

case $1 in
base-add | base-add-of-files | update)
    if has_base Extra; then
        imgbased-helper base remove --yes Extra
    fi
    ;;
base-add-by-content)
    extra_base
    if has_base Extra2; then
        imgbased-helper base remove --yes Extra2
    fi
    echo changed >/root/Extra/etc/changed
    tar -C /root/Extra -cf /root/Extra.tar .
    rm /root/Extra/etc/changed
    ;;
base-remove | gc)
    extra_base
    has_layer 'Extra[^ ]*' || imgbased-helper layer add Extra
    ;;
layer-add | layer-add-of-layer)
    if has_layer Base-0.3; then
        imgbased-helper layer remove Base-0.3
    fi
    ;;
layer-add-with-fstab)
    extra_base
    for layer in $(imgbased-helper layer list | cut -d ' ' -f 1 | grep '^Extra'); do
        imgbased-helper layer remove "$layer"
    done
    ;;
layer-remove)
    has_layer Base-0.3 || imgbased-helper layer add Base-0
    ;;
boot-try | trial-start | boot-default)
    new_layer
    ;;
rollback)
    newer_default
    ;;
boot-bless)
    new_layer
    imgbased-helper boot default Base-0.2
    ;;
layout-init)
    if lvm vgs New 2>/dev/null; then
        lvm vgremove -y New
        lvm pvremove $spare
    fi
    ;;
layout-init-from)
    installed_group
    ;;
volume-add)
    own_directory
    ;;
volume-add-busy)
    own_directory
    systemctl is-active --quiet holder.service || systemd-run --quiet --unit=holder --property=Type=exec \
        --property=WorkingDirectory=/srv/data sleep infinity
    ;;
persist-add)
    lists list
    ;;
persist-remove)
    lists add /root/.ssh
    ;;
image-prepare)
    tree
    ;;
*)
    echo "no verb $1"
    exit 1
    ;;
esac
