#!/bin/sh
# Has `base remove` ask a question on a terminal, adds a layer meanwhile, and answers: with Ctrl-C, then with no.
# Prints the exit status that each question ended with.
set -eu

lock=/run/imgbased/lock

answer() {
    rm -f /run/keys /run/asked
    mkfifo /run/keys
    # A shell has the processes in its background ignore Ctrl-C.
    env --default-signal=INT script --quiet --return --flush \
        --command 'imgbased-helper base remove Extra' /dev/null </run/keys >/run/asked &
    asks=$!
    exec 3>/run/keys
    until grep -qF 'Remove Extra and its layers Extra+1? [y/N]' /run/asked; do
        sleep 0.1
    done
    flock --nonblock $lock true
    imgbased-helper layer add Base-0
    # shellcheck disable=SC2059 # with escapes
    printf "$1" >&3
    status=0
    timeout 20 tail --pid=$asks -f /dev/null
    wait $asks || status=$?
    exec 3>&-
    echo "ended with $status"
}

imgbased-helper base add --name Extra /root/Extra.img
imgbased-helper layer add Extra
answer '\003'
answer 'n\r'
imgbased-helper base list
