//! The verbs that change a host, for tests that interrupt them.

/// No verb has that many steps.
pub const STEPS_MAX: u32 = 60;
/// What a shell reports of a process that was killed: 128 and SIGKILL.
pub const KILLED: i32 = 137;

/// Makes the image of a small base, with the same files in a directory beside it. Its initramfs is one for
/// dracut's tools only.
pub const MAKE_EXTRA: &str = "\
    mkdir -p /root/Extra/boot /root/Extra/etc /root/Extra/usr && cd /root/Extra && \
    echo kernel >boot/vmlinuz-9.9 && mkdir -p usr/lib/dracut && \
    echo imgbased >usr/lib/dracut/modules.txt && \
    echo usr/lib/dracut/modules.txt | cpio --quiet -o -H newc >boot/initrd.img-9.9 && \
    echo 'UUID=1 / ext4 defaults 0 1' >etc/fstab && head -c 4M /dev/urandom >etc/data && cd / && \
    mke2fs -q -t ext4 -d /root/Extra /root/Extra.img 16M";

/// A verb of a group, and how to get ready for it, which must succeed whatever an earlier run of the
/// verb has come to. `$spare` is a disk that nothing needs.
pub struct Verb {
    pub name: &'static str,
    pub vg: &'static str,
    pub prepare: &'static str,
    pub run: &'static str,
    /// The layer or base that it adds or removes, or that it has boot.
    pub subject: &'static str,
    pub adds: bool,
    /// Whether it can make that the default.
    pub selects: bool,
    /// Whether that can be booted; the base of the tests has no real kernel.
    pub is_real: bool,
}

pub const ADD_BASE: Verb = Verb {
    name: "base-add",
    vg: "HostVG",
    prepare: "! imgbased-helper base list | grep -qx Extra || imgbased-helper base remove --yes Extra",
    run: "imgbased-helper base add --name Extra /root/Extra.img",
    subject: "Extra",
    adds: true,
    selects: false,
    is_real: false,
};

/// Of files, into a new filesystem.
pub const ADD_BASE_OF_FILES: Verb = Verb {
    name: "base-add-of-files",
    run: "imgbased-helper base add --name Extra /root/Extra",
    ..ADD_BASE
};

pub const REMOVE_BASE: Verb = Verb {
    name: "base-remove",
    prepare: "{ imgbased-helper base list | grep -qx Extra || \
              imgbased-helper base add --name Extra /root/Extra.img; } && \
              { imgbased-helper layer list | grep -q '^Extra' || imgbased-helper layer add Extra; }",
    run: "imgbased-helper base remove --yes Extra",
    adds: false,
    ..ADD_BASE
};

pub const COLLECT: Verb = Verb {
    name: "gc",
    run: "imgbased-helper gc --yes --keep 0",
    ..REMOVE_BASE
};

pub const ADD_LAYER: Verb = Verb {
    name: "layer-add",
    vg: "HostVG",
    prepare: "! imgbased-helper layer list | grep -q '^Base-0.3 ' || imgbased-helper layer remove Base-0.3",
    run: "imgbased-helper layer add Base-0",
    subject: "Base-0.3",
    adds: true,
    selects: false,
    is_real: true,
};

pub const ADD_LAYER_OF_LAYER: Verb = Verb {
    name: "layer-add-of-layer",
    run: "imgbased-helper layer add Base-0.2",
    ..ADD_LAYER
};

/// With a line for the root in its fstab.
pub const ADD_LAYER_OF_EXTRA: Verb = Verb {
    name: "layer-add-with-fstab",
    prepare: "{ imgbased-helper base list | grep -qx Extra || \
              imgbased-helper base add --name Extra /root/Extra.img; } && \
              for layer in $(imgbased-helper layer list | cut -d ' ' -f 1 | grep '^Extra'); do \
              imgbased-helper layer remove $layer; done",
    run: "imgbased-helper layer add Extra",
    subject: "Extra+1",
    is_real: false,
    ..ADD_LAYER
};

pub const REMOVE_LAYER: Verb = Verb {
    name: "layer-remove",
    prepare: "imgbased-helper layer list | grep -q '^Base-0.3 ' || imgbased-helper layer add Base-0",
    run: "imgbased-helper layer remove Base-0.3",
    adds: false,
    ..ADD_LAYER
};

/// Base-0.2 boots once, and has never come up before.
pub const TRY: Verb = Verb {
    name: "boot-try",
    prepare: "imgbased-helper boot default --tries 0 Base-0.1 && \
              imgbased-helper boot try --cancel && \
              { ! lvm lvs --noheadings -o lv_tags HostVG/Base-0.2 | grep -q imgbased:good || \
              lvm lvchange -q --deltag imgbased:good HostVG/Base-0.2; }",
    run: "imgbased-helper boot try Base-0.2",
    subject: "Base-0.2",
    ..ADD_LAYER
};

/// The trial of Base-0.2 begins.
pub const START_TRIAL: Verb = Verb {
    name: "trial-start",
    run: "imgbased-helper boot default Base-0.2",
    ..TRY
};

pub const SWITCH_DEFAULT: Verb = Verb {
    name: "boot-default",
    run: "imgbased-helper boot default --tries 0 Base-0.2",
    selects: true,
    ..TRY
};

/// The end of a trial.
pub const BLESS: Verb = Verb {
    name: "boot-bless",
    prepare: "imgbased-helper boot default --tries 0 Base-0.1 && \
              { ! lvm lvs --noheadings -o lv_tags HostVG/Base-0.2 | grep -q imgbased:good || \
              lvm lvchange -q --deltag imgbased:good HostVG/Base-0.2; } && \
              imgbased-helper boot default Base-0.2",
    run: "imgbased-helper boot bless Base-0.2",
    selects: true,
    ..TRY
};

pub const MAKE_GROUP: Verb = Verb {
    name: "layout-init",
    vg: "New",
    prepare: "! lvm vgs New 2>/dev/null || { lvm vgremove -y New && lvm pvremove $spare; }",
    run: "imgbased-helper --vg New layout init --device $spare",
    ..ADD_BASE
};

pub const ADOPT: Verb = Verb {
    name: "layout-init-from",
    vg: "Installed",
    prepare: "lvm vgs Installed 2>/dev/null || { lvm vgcreate Installed $spare && \
              lvm lvcreate -y --type thin-pool -L 300M -n pool Installed && \
              lvm lvcreate -y -V 64M --thinpool pool -n root Installed && \
              dd if=/root/Extra.img of=/dev/Installed/root conv=fsync; }; \
              ! lvm lvs Installed/node-1-1 || \
              imgbased-helper --vg Installed base remove --yes node-1-1; \
              ! lvm lvs Installed/Config || lvm lvremove -y Installed/Config; \
              lvm vgchange --deltag imgbased:vg Installed; \
              lvm lvchange --deltag imgbased:pool Installed/pool",
    run: "imgbased-helper --vg Installed layout init --from Installed/root --name node-1-1",
    ..ADD_BASE
};
