#!/bin/sh
# Prints all that there is to say of the files in /home, but for where they are.
set -eu

cd /home
find . -path ./lost+found -prune -o -printf '%P %y %m %U:%G %T@ %l\n' | sort
find . -type f -printf '%P %s %n\n' | sort
find . -type f -exec sha256sum {} + | sort
# In the order of names, which that of a directory is not.
find anna | sort | xargs getfattr -h -d -m '^user'
find anna ! -type l | sort | xargs getfacl -n
[ "$(du -k anna/holes | cut -f 1)" -lt 100 ]
