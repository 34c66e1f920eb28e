#!/bin/sh
# Makes in /home the files of a user, with what a copy can lose: owners, an attribute, an ACL, links, holes, times and a
# pipe.
set -eu

mkdir -p /home/anna/docs
cd /home/anna
echo text >docs/file
ln docs/file hard
ln -s docs/file soft
truncate -s 30M holes
echo end >>holes
mkfifo pipe
setfattr -n user.note -v text docs/file
setfacl -m u:4321:rw docs/file
setfacl -d -m u:4321:rx docs
touch -d 2001-02-03T04:05:06.123456789Z docs/old
chown -R 1234:4321 /home/anna
chmod 2750 docs
chmod 4755 hard
