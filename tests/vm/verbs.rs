//! The verbs that change a host, for tests that interrupt them.

/// A verb, and how to get ready for it, which must succeed whatever an earlier run of the verb has
/// come to.
pub struct Verb {
    pub name: &'static str,
    pub prepare: &'static str,
    pub run: &'static str,
    /// The layer or base that it adds or removes.
    pub subject: &'static str,
    pub adds: bool,
    /// Whether that can be booted; the base of the tests has no real kernel.
    pub is_real: bool,
}

pub const ADD_BASE: Verb = Verb {
    name: "base-add",
    prepare: "! imgbased-helper base list | grep -qx Extra || imgbased-helper base remove --yes Extra",
    run: "imgbased-helper base add --name Extra /root/Extra.img",
    subject: "Extra",
    adds: true,
    is_real: false,
};

pub const REMOVE_BASE: Verb = Verb {
    name: "base-remove",
    prepare: "{ imgbased-helper base list | grep -qx Extra || \
              imgbased-helper base add --name Extra /root/Extra.img; } && \
              { imgbased-helper layer list | grep -q '^Extra' || imgbased-helper layer add Extra; }",
    run: "imgbased-helper base remove --yes Extra",
    subject: "Extra",
    adds: false,
    is_real: false,
};

pub const ADD_LAYER: Verb = Verb {
    name: "layer-add",
    prepare: "! imgbased-helper layer list | grep -q '^Base-0.3 ' || imgbased-helper layer remove Base-0.3",
    run: "imgbased-helper layer add Base-0",
    subject: "Base-0.3",
    adds: true,
    is_real: true,
};

pub const ADD_LAYER_OF_LAYER: Verb = Verb {
    name: "layer-add-of-layer",
    run: "imgbased-helper layer add Base-0.2",
    ..ADD_LAYER
};

pub const REMOVE_LAYER: Verb = Verb {
    name: "layer-remove",
    prepare: "imgbased-helper layer list | grep -q '^Base-0.3 ' || imgbased-helper layer add Base-0",
    run: "imgbased-helper layer remove Base-0.3",
    subject: "Base-0.3",
    adds: false,
    is_real: true,
};
