#!/bin/sh
# Has rpm say in the place of dpkg what is installed in the layer that runs and in the image at /mnt/next: htop is in the
# layer only.
set -eu

has() {
    root=$1
    shift
    mkdir -p "$root/var/lib/rpm"
    for dir in var/lib/dpkg usr/lib/sysimage/dpkg; do
        rm -f "$root/$dir/status"
    done
    cat >"$root/usr/bin/rpm" <<PROGRAM
#!/bin/sh
printf '%s.x86_64\\t1-1\\n' $*
PROGRAM
    chmod 755 "$root/usr/bin/rpm"
}

has '' bash htop
has /mnt/next bash
