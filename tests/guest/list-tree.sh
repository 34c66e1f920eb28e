#!/bin/sh
# Lists what is in the tree at $1, with everything that has to survive; no times of directories, which
# copying changes, and not how XFS keeps its ACLs.
set -eu

list() {
    find . -name lost+found -prune -o -printf '%P %y %m %U %G %n %s %l\n' |
        grep -v ' d [0-9]* [0-9]* [0-9]* ' | sort
    find . -type d -name 'sticky' -printf '%P %m\n'
    find . -type f -exec sha256sum {} + | sort
    getfattr -h -R -d -m - . 2>/dev/null | sort
    getfacl -n etc/acl
    getcap usr/bin/capable
    stat -c '%n %t %T %Y' var/null var/old
    [ "$(stat -c %b var/holes)" -lt 300 ]
    ls -q var
}

cd "$1"
list >/run/listing
grep -v '^fstab\|^trusted.SGI_ACL' /run/listing
