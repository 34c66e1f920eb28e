#!/bin/sh
# Makes in /root/hostile a root filesystem whose dracut is the script $1, with what that starts. Its initramfs
# cannot boot a layer, so that it has to make another.
set -eu

tree=/root/hostile
disk=$(readlink -f /dev/disk/by-id/virtio-tiny2)

# take FILE: with the libraries that it needs.
take() {
    ldd "$1" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$tree${library%/*}"
        cp -L "$library" "$tree$library"
    done
    cp -L "$1" "$tree/usr/bin/"
}

for dir in boot dev etc proc root run sys tmp usr/bin usr/lib/dracut/modules.d/50imgbased usr/lib64; do
    mkdir -p "$tree/$dir"
done
for dir in bin lib lib64; do
    ln -s usr/$dir "$tree/$dir"
done
for program in bash cat chmod cp dd dmesg grep head ln mknod mount setsid sleep tail unshare; do
    take "$(command -v "$program")"
done
ln -s bash "$tree/usr/bin/sh"
printf '#!/bin/bash\n%s\n' "$1" >"$tree/usr/bin/dracut"
chmod 755 "$tree/usr/bin/dracut"

cd "$tree"
printf '%d %d\n' "0x$(stat -c %t "$disk")" "0x$(stat -c %T "$disk")" >etc/disk
echo kernel >boot/vmlinuz-9.9
# initramfs MODULE: for dracut's tools only.
initramfs() {
    echo "$1" >usr/lib/dracut/modules.txt
    echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc
}
initramfs imgbased >usr/lib/good
initramfs base >boot/initrd.img-9.9

# What somebody could reach by the network, once.
cat >/root/listen.pl <<'PERL'
use IO::Socket::INET;
my $socket = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => 4242, Listen => 1) or die;
$socket->accept;
open my $file, '>', '/root/called';
PERL
perl /root/listen.pl >/dev/null 2>&1 </dev/null &
