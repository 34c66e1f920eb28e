#!/bin/sh
# Has `base remove` ask a question on a terminal, adds a layer meanwhile, and says no. Prints the exit
# status that the question ended with.
set -eu

lock=/run/imgbased/lock

imgbased-helper base add --name Extra /root/Extra.img
imgbased-helper layer add Extra
mkfifo /run/keys
script --quiet --return --command 'imgbased-helper base remove Extra' /dev/null </run/keys >/run/asked &
asks=$!
exec 3>/run/keys
until grep -qF 'Remove Extra and its layers Extra+1? [y/N]' /run/asked; do
    sleep 0.1
done
flock --nonblock $lock true
imgbased-helper layer add Base-0
printf 'n\r' >&3
status=0
timeout 20 tail --pid=$asks -f /dev/null
wait $asks || status=$?
imgbased-helper base list
echo "ended with $status"
