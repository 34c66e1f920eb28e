#!/bin/sh
# Builds in /root/packages what an admin could want to keep: own-tool, which is installed here and changed, own-user,
# which needs it, own-broken, whose script fails, own-clash and own-file, which the image keeps out, and an old
# debianutils.
set -eu

# tree NAME: where the files of a package are.
tree() {
    mkdir -p "/root/packages/$1/DEBIAN" "/root/packages/$1/etc" "/root/packages/$1/usr/bin"
    cd "/root/packages/$1"
    printf '#!/bin/sh\necho of %s\n' "$1" >"usr/bin/$1"
    chmod 755 "usr/bin/$1"
    echo "of $1" >"etc/$1.conf"
    echo "/etc/$1.conf" >DEBIAN/conffiles
}

# build VERSION FIELD: of the tree that is the directory here.
build() {
    name=$(basename "$PWD")
    printf 'Package: %s\nVersion: %s\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n%s\n' \
        "$name" "$1" "$2" >DEBIAN/control
    dpkg-deb --root-owner-group -Znone --build . "/root/packages/$name.deb" >/dev/null
}

tree own-tool
cat >DEBIAN/postinst <<'EOS'
#!/bin/sh
set -e
mkdir -p /etc/own-tool.d
echo again >/etc/own-tool.d/extra
status=0
if [ -x /usr/sbin/policy-rc.d ]; then
    /usr/sbin/policy-rc.d own-tool start || status=$?
fi
echo "$status" >/usr/share/own-tool.policy
EOS
chmod 755 DEBIAN/postinst
build 1.0 'Priority: optional'

tree own-user
build 1.0 'Depends: own-tool (>= 1.0), dpkg'

tree own-broken
printf '#!/bin/sh\nexit 3\n' >DEBIAN/postinst
chmod 755 DEBIAN/postinst
build 1.0 'Priority: optional'

tree own-clash
build 1.0 'Conflicts: e2fsprogs'

tree own-file
cp usr/bin/own-file usr/bin/ls
build 1.0 'Priority: optional'

tree debianutils
build 0 'Priority: optional'

cd /root
dpkg --install packages/own-tool.deb
echo 'of the admin' >/etc/own-tool.conf
rm /etc/own-tool.d/extra
mkdir -p /var/cache/apt/archives
cp packages/own-tool.deb /var/cache/apt/archives/own-tool_1.0_all.deb
