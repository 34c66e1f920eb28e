#!/bin/sh
# Has the entries of Base-0.2 boot a copy of their kernel, /boot/imgbased/lost. The kernel itself is that of
# Base-0.1 as well, and starting a trial does not render the menu.
set -eu

cd /boot/imgbased
cp vmlinuz-* lost
sed -i 's|^linux .*|linux /imgbased/lost|' ../loader/entries/imgbased-Base-0.2*.conf
find .. -name imgbased.cfg -exec \
    sed -i '/imgbased.layer=Base-0.2/s|/imgbased/vmlinuz-[^ ]*|/imgbased/lost|' {} +
