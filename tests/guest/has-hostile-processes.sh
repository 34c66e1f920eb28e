#!/bin/sh
# Whether any process of a hostile image is there. Its own words must not look like theirs.
set -eu

grep -lqs '4242[4]' /proc/[0-9]*/cmdline
