#!/bin/sh
# Leaves in the layer that runs what an update that began at Base-0.2 would: changed files, and the report of a merge.
set -eu

echo ours >/etc/issue
chmod 600 /etc/issue
setfattr -n user.note -v text /etc/host.conf
rm /etc/debian_version /etc/issue.net
echo ours >/etc/own.conf
echo ours >"$(printf '/etc/latin\344')"
mkdir /etc/issue.net
touch /etc/issue.net/below

mkdir -p /mnt/look
lvm lvchange -qq -K -ay HostVG/Base-0.2
mount /dev/HostVG/Base-0.2 /mnt/look
echo before >/mnt/look/etc/issue
mkdir -m 700 /mnt/look/root/before
echo before >/mnt/look/root/before/file
umount /mnt/look
lvm lvchange -qq -an HostVG/Base-0.2

row() {
    printf '{"path":"/etc/%s","verdict":"conflict","conflict":"%s","parts":["content"],' "$1" "$2"
    printf '"ours":"%s","theirs":"%s","result":"%s"%s}' "$3" "$4" "$5" "${6-}"
}
mkdir -p /usr/lib/sysimage/imgbased
{
    printf '{"version":1,"old":"Base-0","layer":"Base-0.2","new":"Base-0","merge":[\n'
    row 'latin?' both modified modified ours ',"path_bytes":"L2V0Yy9sYXRpbuQ="'
    for name in issue host.conf; do
        printf ',\n'
        row "$name" both modified modified ours
    done
    printf ',\n'
    row debian_version deleted deleted modified deleted
    printf ',\n'
    row own.conf gone modified deleted ours
    printf ']}\n'
} >/usr/lib/sysimage/imgbased/merge.json
