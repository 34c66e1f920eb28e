#!/bin/sh
# Sets the flag in the pool's metadata by which the kernel asks for a whole check (dm-thin-metadata.c in Linux).
set -eu

disk=/dev/disk/by-id/virtio-host-part3
extent=$(lvs -a --noheadings -o seg_pe_ranges HostVG/ImagePool_tmeta | sed 's/.*:\([0-9]*\)-.*/\1/')
start=$(pvs --noheadings --nosuffix --units k -o pe_start $disk | sed 's/\..*//')
# The checksum is a CRC-32C of all behind itself.
# shellcheck disable=SC2016
perl -e '
    my ($disk, $at) = @ARGV;
    open(my $file, "+<", $disk) or die;
    seek($file, $at, 0);
    read($file, my $block, 4096) == 4096 or die;
    my $sum = sub {
        my $crc = 0xffffffff;
        for my $byte (unpack("C*", substr($block, 4))) {
            $crc ^= $byte;
            $crc = $crc & 1 ? ($crc >> 1) ^ 0x82f63b78 : $crc >> 1 for 1 .. 8;
        }
        return $crc ^ 160774;
    };
    $sum->() == unpack("V", $block) or die "another checksum";
    substr($block, 4, 4) = pack("V", unpack("V", substr($block, 4, 4)) | 1);
    substr($block, 0, 4) = pack("V", $sum->());
    seek($file, $at, 0);
    print $file $block;
    close($file) or die;
' $disk $(((start + extent * 4096) * 1024))
sync
