#!/bin/sh
# Adds twenty layers at once; fails if one of them fails.
set -eu

pids=
for _ in $(seq 20); do
    imgbased-helper layer add Base-0 &
    pids="$pids $!"
done
for pid in $pids; do
    wait "$pid"
done
