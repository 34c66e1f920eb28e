#!/bin/sh
# Lists what is in the tree at $1, with everything that has to survive; not how XFS keeps its ACLs. Times are whole
# seconds, unless $2 is ns.
set -eu

times=%Ts
if [ "${2-}" = ns ]; then
    times=%T@
fi

list() {
    find . -mindepth 1 -name lost+found -prune -o -type d -printf "%P/ %m %U %G $times\n" \
        -o -printf "%P %y %m %U %G %n %s $times %l\n" | sort
    find . -samefile usr/bin/tool | sort
    find . -type f -exec sha256sum {} + | sort
    getfattr -h -R -d -m - . 2>/dev/null | sort
    getfacl -n etc/acl var/acls
    getcap usr/bin/capable
    stat -c '%n %t %T %Y' var/null var/disk var/old
    [ "$(stat -c %b var/holes)" -lt 300 ]
    ls -q var
}

cd "$1"
list >/run/listing
grep -av '^fstab\|^trusted.SGI_ACL' /run/listing | cat -v
