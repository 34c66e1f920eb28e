#!/bin/sh
# Hook of dracut, sourced: the helper finds the root by itself, so dracut must neither wait for
# the one that root= names nor refuse one that it does not know.

if getarg imgbased.layer= > /dev/null; then
    # shellcheck disable=SC2034 # both are read by dracut
    root=imgbased rootok=1
fi
