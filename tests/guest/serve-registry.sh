#!/bin/sh
# Has the registry on this machine keep two images for containers, host:one and host:two, which are /mnt/next in a large
# layer and what they have of their own in a small one. The file of all that host:one becomes is host.tar in
# /run/server.
set -eu

cd /run/server
mkdir images

# put LAYOUT TYPE FILE: adds a blob, and prints what describes it.
put() {
    digest=$(sha256sum <"$3" | cut -d ' ' -f 1)
    size=$(stat -c %s "$3")
    mv "$3" "$1/blobs/sha256/$digest"
    printf '{"mediaType":"application/vnd.oci.image.%s","digest":"sha256:%s","size":%s}' "$2" "$digest" "$size"
}

# image NAME LAYER...: makes a layout of layers, which are packed already.
image() {
    name=images/$1
    shift
    mkdir -p "$name/blobs/sha256"
    layers=''
    diffs=''
    for layer; do
        diffs="$diffs${diffs:+,}\"sha256:$(zstd -dcf <"$layer" | sha256sum | cut -d ' ' -f 1)\""
        cp "$layer" part
        layers="$layers${layers:+,}$(put "$name" layer.v1.tar+zstd part)"
    done
    printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[%s]}}' "$diffs" >part
    config=$(put "$name" config.v1+json part)
    printf '{"schemaVersion":2,"mediaType":"%s","config":%s,"layers":[%s]}' \
        application/vnd.oci.image.manifest.v1+json "$config" "$layers" >part
    printf '{"schemaVersion":2,"manifests":[%s]}' "$(put "$name" manifest.v1+json part)" >"$name/index.json"
    echo '{"imageLayoutVersion":"1.0.0"}' >"$name/oci-layout"
}

# What the layer above takes away of it, is not in the image as an archive.
mkdir -p below/srv/gone below/srv/emptied above/srv/emptied above/etc
echo gone | tee below/srv/gone/file below/srv/emptied/file below/srv/removed >/dev/null
: >above/srv/.wh.gone
: >above/srv/.wh.removed
: >above/srv/emptied/.wh..wh..opq
echo here >above/srv/emptied/new
echo one >above/etc/of-layer
mkdir merged
tar -C /mnt/next --xattrs --xattrs-include='*' -c . | tar -C merged --xattrs --xattrs-include='*' -x
cp -a below/. merged/
# Of a directory that is in both layers, the upper one tells the time.
tar -C merged --xattrs --xattrs-include='*' -cf large.tar .
tar -C above -cf small.tar srv/.wh.gone srv/.wh.removed srv/emptied etc/of-layer
rm -r merged/srv/gone merged/srv/removed merged/srv/emptied/file
cp -a above/etc/of-layer merged/etc/
cp -a above/srv/emptied/new merged/srv/emptied/
touch -r above/srv/emptied merged/srv/emptied
touch -r below/srv merged/srv
touch -r /mnt/next/etc merged/etc
tar -C merged --xattrs --xattrs-include='*' -cf host.tar .
rm -r merged
zstd -q -1 --rm large.tar small.tar
image one large.tar.zst small.tar.zst
echo two >above/etc/of-layer
tar -C above -c srv/.wh.gone srv/.wh.removed srv/emptied etc/of-layer | zstd -q -f >small.tar.zst
image two large.tar.zst small.tar.zst
# Others are made to harm.
mkdir hostile
: >'hostile/.wh...'
tar -C hostile -c .wh... | zstd -q >up.zst
image up large.tar.zst up.zst
truncate -s 10G hostile/bomb
tar -C hostile -c bomb | zstd -q -T0 >bomb.zst
image bomb large.tar.zst bomb.zst
image damaged large.tar.zst small.tar.zst
for blob in images/damaged/blobs/sha256/*; do
    [ "$(stat -c %s "$blob")" -lt 1000000 ] || printf x | dd of="$blob" bs=1 seek=500000 conv=notrunc status=none
done

for name in one two; do
    skopeo copy --quiet "oci:images/$name" "docker://127.0.0.1:5000/host:$name"
done
: >/run/registry.log
