#!/bin/sh
# Gives the pool another transaction than the metadata of LVM say.
set -eu

lvchange -ay HostVG/Config
id=$(dmsetup status HostVG-ImagePool-tpool | cut -d ' ' -f 4)
dmsetup message HostVG-ImagePool-tpool 0 "set_transaction_id $id $((id + 5))"
