//! What the journal is told of a change when that is done, so that whoever reads it knows what has become of a host.
//! What a dry run would do has not happened.

use super::Context;
use super::hooks::layer_and_base;
use crate::model::layout::Group;
use crate::model::name::LvName;
use crate::model::trial::subject;
use crate::sys::journal::{
    self, BASE_ADDED, BASE_REMOVED, CAME_UP, DEFAULT_CHOSEN, LAYER_ADDED, LAYER_REMOVED, Message,
    TRIAL_FAILED, UPDATE_WAITS, VOLUME_ADDED, VOLUME_REMOVED, WENT_BACK,
};

const LAYER: &str = "IMGBASED_LAYER";
const BASE: &str = "IMGBASED_BASE";
const KERNEL: &str = "IMGBASED_KERNEL";
const TRIES: &str = "IMGBASED_TRIES";
const VOLUME: &str = "IMGBASED_VOLUME";
const PATH: &str = "IMGBASED_PATH";

/// Tells the journal alone: people are told by the verb itself. Fields without a value are left out.
fn record(context: &Context, message: &Message, text: &str, fields: &[(&str, &str)]) {
    if !context.dry_run {
        journal::record(message, text, fields);
    }
}

pub fn base_added(context: &Context, base: &LvName) {
    let text = format!("{base} was made");
    record(context, &BASE_ADDED, &text, &[(BASE, base.as_str())]);
}

pub fn layer_added(context: &Context, layer: &LvName, base: &LvName) {
    let text = format!("{layer} was made, a layer of {base}");
    let fields = [(LAYER, layer.as_str()), (BASE, base.as_str())];
    record(context, &LAYER_ADDED, &text, &fields);
}

/// The group is as it was before.
pub fn removed(context: &Context, group: &Group, name: &LvName) {
    let text = format!("{name} was removed");
    match layer_and_base(group, name) {
        (None, _) => record(context, &BASE_REMOVED, &text, &[(BASE, name.as_str())]),
        (Some(layer), base) => {
            let base = base.as_ref().map_or("", LvName::as_str);
            let fields = [(LAYER, layer.as_str()), (BASE, base)];
            record(context, &LAYER_REMOVED, &text, &fields);
        }
    }
}

pub fn update_waits(context: &Context, layer: &LvName, base: &LvName, image: &str) {
    let text = format!("{layer} waits for a restart; {base} holds {image}");
    let fields = [(LAYER, layer.as_str()), (BASE, base.as_str())];
    record(context, &UPDATE_WAITS, &text, &fields);
}

/// To a layer of a base, if it is one.
pub fn went_back(context: &Context, lines: &[String], [layer, base]: [&Option<String>; 2]) {
    let [layer, base] = [layer, base].map(|name| name.as_deref().unwrap_or_default());
    let fields = [(LAYER, layer), (BASE, base)];
    record(context, &WENT_BACK, &lines.join("; "), &fields);
}

/// `trial` says how it is tried first, if it is.
pub fn default_chosen(
    context: &Context,
    group: &Group,
    name: &LvName,
    kernel: Option<&str>,
    trial: Option<&str>,
) {
    let of = Bootable::new(group, name);
    let chosen = || format!("{} boots from now on", subject(name.as_str(), kernel));
    let text = trial.map_or_else(chosen, |trial| trial.trim_end().to_owned());
    record(context, &DEFAULT_CHOSEN, &text, &of.fields(kernel));
}

/// What is said of a trial is for people as well.
pub fn came_up(context: &Context, group: &Group, name: &LvName, kernel: &str) {
    if context.dry_run {
        return;
    }
    let of = Bootable::new(group, name);
    let text = format!("{name} has come up with Linux {kernel}");
    journal::tell(&CAME_UP, &text, &of.fields(Some(kernel)));
}

pub fn trial_failed(
    context: &Context,
    group: &Group,
    name: &LvName,
    kernel: Option<&str>,
    tries: u32,
) {
    let subject = subject(name.as_str(), kernel);
    let text = format!("{subject} did not come up in {tries} tries and boots no more by itself");
    if context.dry_run {
        log::warn!("{text}");
        return;
    }
    let of = Bootable::new(group, name);
    let tries = tries.to_string();
    let [layer, base, kernel] = of.fields(kernel);
    let fields = [layer, base, kernel, (TRIES, tries.as_str())];
    journal::tell(&TRIAL_FAILED, &text, &fields);
}

pub fn volume_added(context: &Context, volume: &LvName, path: &str) {
    let text = format!("layers mount {volume} at {path}");
    let fields = [(VOLUME, volume.as_str()), (PATH, path)];
    record(context, &VOLUME_ADDED, &text, &fields);
}

pub fn volume_removed(context: &Context, volume: &LvName, path: &str) {
    let text = format!("layers do not mount {volume} at {path} any more");
    let fields = [(VOLUME, volume.as_str()), (PATH, path)];
    record(context, &VOLUME_REMOVED, &text, &fields);
}

/// A layer or base that boots, with the base of the first.
struct Bootable<'a> {
    name: &'a LvName,
    base: Option<LvName>,
}

impl<'a> Bootable<'a> {
    fn new(group: &Group, name: &'a LvName) -> Self {
        let (_, base) = layer_and_base(group, name);
        Self { name, base }
    }

    fn fields(&'a self, kernel: Option<&'a str>) -> [(&'static str, &'a str); 3] {
        [
            (LAYER, self.name.as_str()),
            (BASE, self.base.as_ref().map_or("", LvName::as_str)),
            (KERNEL, kernel.unwrap_or_default()),
        ]
    }
}
