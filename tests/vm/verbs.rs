//! The verbs that change a host, for tests that interrupt them.

use anyhow::Result;

use super::guest;

/// No verb has that many steps.
pub const STEPS_MAX: u32 = 60;
/// What a shell reports of a process that was killed: 128 and SIGKILL.
pub const KILLED: i32 = 137;

/// A command with variables that end a verb at one of its steps, such as `IMGBASED_KILL_AFTER=3`. They count
/// where the file is that `src/sys/steps.rs` looks for.
pub fn interrupted(variables: &str, command: &str) -> String {
    format!("mkdir -p /run/imgbased && touch /run/imgbased/testing && {variables} {command}")
}

/// A verb of a group. `tests/guest/prepare.sh` makes a host ready for it.
#[derive(Clone, Copy)]
pub struct Verb {
    pub name: &'static str,
    pub vg: &'static str,
    pub run: &'static str,
    /// How many steps it has at most, so that a sample seldom chooses one that it does not have. The scenarios with
    /// all steps count them.
    pub steps: u32,
    /// The layer or base that it adds or removes, or that it has boot.
    pub subject: &'static str,
    pub adds: bool,
    /// Whether it can make that the default.
    pub selects: bool,
    /// Whether that can be booted; the base of the tests has no real kernel.
    pub is_real: bool,
    /// What a person does after `check --repair` where the verb was interrupted; often nothing.
    pub mend: &'static str,
}

impl Verb {
    /// The commands that make a host ready for it, which must succeed whatever an earlier run of the verb has
    /// come to.
    pub fn prepare(&self) -> Result<String> {
        guest::script_with("prepare", &[self.name])
    }
}

pub const ADD_BASE: Verb = Verb {
    name: "base-add",
    vg: "HostVG",
    run: "imgbased-helper base add --name Extra /root/Extra.img",
    steps: 16,
    subject: "Extra",
    adds: true,
    selects: false,
    is_real: false,
    mend: "",
};

/// Of files, into a new filesystem.
pub const ADD_BASE_OF_FILES: Verb = Verb {
    name: "base-add-of-files",
    run: "imgbased-helper base add --name Extra /root/Extra",
    steps: 24,
    ..ADD_BASE
};

/// Of the same files, which becomes the next layer and is on trial.
pub const UPDATE: Verb = Verb {
    name: "update",
    run: "imgbased-helper update --name Extra /root/Extra",
    steps: 48,
    ..ADD_BASE
};

/// Of an archive, whose files are compared with those of the base Extra.
pub const ADD_BASE_BY_CONTENT: Verb = Verb {
    name: "base-add-by-content",
    run: "imgbased-helper base add --name Extra2 /root/Extra.tar",
    steps: 32,
    subject: "Extra2",
    ..ADD_BASE
};

pub const REMOVE_BASE: Verb = Verb {
    name: "base-remove",
    run: "imgbased-helper base remove --yes Extra",
    steps: 12,
    adds: false,
    ..ADD_BASE
};

pub const COLLECT: Verb = Verb {
    name: "gc",
    run: "imgbased-helper gc --yes --keep 0",
    steps: 12,
    ..REMOVE_BASE
};

pub const ADD_LAYER: Verb = Verb {
    name: "layer-add",
    vg: "HostVG",
    run: "imgbased-helper layer add Base-0",
    steps: 8,
    subject: "Base-0.3",
    adds: true,
    selects: false,
    is_real: true,
    mend: "",
};

pub const ADD_LAYER_OF_LAYER: Verb = Verb {
    name: "layer-add-of-layer",
    run: "imgbased-helper layer add Base-0.2",
    steps: 12,
    ..ADD_LAYER
};

/// With a line for the root in its fstab.
pub const ADD_LAYER_OF_EXTRA: Verb = Verb {
    name: "layer-add-with-fstab",
    run: "imgbased-helper layer add Extra",
    steps: 12,
    subject: "Extra+1",
    is_real: false,
    ..ADD_LAYER
};

pub const REMOVE_LAYER: Verb = Verb {
    name: "layer-remove",
    run: "imgbased-helper layer remove Base-0.3",
    steps: 5,
    adds: false,
    ..ADD_LAYER
};

/// Base-0.2 boots once, and has never come up before.
pub const TRY: Verb = Verb {
    name: "boot-try",
    run: "imgbased-helper boot try Base-0.2",
    steps: 3,
    subject: "Base-0.2",
    ..ADD_LAYER
};

/// The trial of Base-0.2 begins.
pub const START_TRIAL: Verb = Verb {
    name: "trial-start",
    run: "imgbased-helper boot default Base-0.2",
    steps: 3,
    ..TRY
};

pub const SWITCH_DEFAULT: Verb = Verb {
    name: "boot-default",
    run: "imgbased-helper boot default --tries 0 Base-0.2",
    steps: 7,
    selects: true,
    ..TRY
};

/// Base-0.1 is the default again, and the newer base of what was the default is held.
pub const ROLL_BACK: Verb = Verb {
    name: "rollback",
    run: "imgbased-helper rollback --to Base-0.1",
    steps: 4,
    subject: "Base-0.1",
    ..SWITCH_DEFAULT
};

/// The end of a trial.
pub const BLESS: Verb = Verb {
    name: "boot-bless",
    run: "imgbased-helper boot bless Base-0.2",
    steps: 8,
    selects: true,
    ..TRY
};

pub const MAKE_GROUP: Verb = Verb {
    name: "layout-init",
    vg: "New",
    run: "imgbased-helper --vg New layout init --device /dev/disk/by-id/virtio-spare",
    steps: 8,
    ..ADD_BASE
};

pub const ADOPT: Verb = Verb {
    name: "layout-init-from",
    vg: "Installed",
    run: "imgbased-helper --vg Installed layout init --from Installed/root --name node-1-1",
    steps: 30,
    ..ADD_BASE
};

/// Of a directory that nobody uses, so that the volume is there at once.
pub const ADD_VOLUME: Verb = Verb {
    name: "volume-add",
    run: "imgbased-helper volume add /srv/data --size 100M",
    steps: 22,
    subject: "srv-data",
    // One that layers mount is done, or begun again.
    mend: "if imgbased-helper volume list | grep -q /srv/data; then \
           imgbased-helper volume remove /srv/data --delete; fi",
    ..ADD_BASE
};

/// Of one that is in use, as /var always is: it moves when the system goes down.
pub const ADD_BUSY_VOLUME: Verb = Verb {
    name: "volume-add-busy",
    steps: 22,
    ..ADD_VOLUME
};

pub const LIST_PATH: Verb = Verb {
    name: "persist-add",
    run: "imgbased-helper persist add /root/.ssh",
    steps: 4,
    subject: "lists",
    adds: false,
    ..ADD_BASE
};

pub const STRIKE_PATH: Verb = Verb {
    name: "persist-remove",
    run: "imgbased-helper persist remove /root/.ssh",
    steps: 4,
    ..LIST_PATH
};

/// Of a tree that is not the host. The next run goes on where one has ended, and leaves nothing to be done.
pub const PREPARE_IMAGE: Verb = Verb {
    name: "image-prepare",
    run: "imgbased-helper image prepare --name tree-1-1 /root/Tree",
    steps: 24,
    subject: "tree",
    mend: "imgbased-helper image prepare --name tree-1-1 /root/Tree >/run/first && \
           imgbased-helper image prepare --name tree-1-1 /root/Tree >/run/second && test ! -s /run/second && \
           grep -qx status /root/Tree/var/lib/dpkg/status && test ! -e /root/Tree/etc/ssh/ssh_host_rsa_key",
    ..LIST_PATH
};
