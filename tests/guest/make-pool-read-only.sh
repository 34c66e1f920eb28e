#!/bin/sh
# Has the kernel take the metadata of a pool as it does after an error when it wrote them.
set -eu

pool=Small-ImagePool-tpool
dmsetup table $pool | {
    read -r start length target metadata data chunk low _
    dmsetup load $pool --table "$start $length $target $metadata $data $chunk $low 1 read_only"
}
dmsetup suspend $pool
dmsetup resume $pool
