#!/bin/sh
# Gives the layer that runs and the image at /mnt/next a policy of SELinux each, which has one type for all files, and
# files of the layer a label: that of its policy, another one, and none.
set -eu

policy() {
    contexts=$1/etc/selinux/targeted/contexts/files
    mkdir -p "$contexts"
    : >"$contexts/file_contexts"
    printf '%s\n' SELINUX=permissive SELINUXTYPE=targeted >"$1/etc/selinux/config"
    cat >"$1/usr/sbin/matchpathcon" <<PROGRAM
#!/bin/sh
for path; do case \$path in -*) ;; *) echo system_u:object_r:$2:s0 ;; esac done
PROGRAM
    chmod 755 "$1/usr/sbin/matchpathcon"
}

policy '' old_t
policy /mnt/next new_t
# An account of the host, so that the users' files of the new layer are not those of its image.
useradd --create-home person
for file in /etc/old /etc/own /etc/none /root/none; do
    echo "of the host" >$file
done
setfattr -n security.selinux -v system_u:object_r:old_t:s0 /etc/old
setfattr -n security.selinux -v system_u:object_r:own_t:s0 /etc/own
