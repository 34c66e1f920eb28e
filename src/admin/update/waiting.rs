//! An update that waits for a restart: what is kept of it until then, and what is told where the restart was not orderly.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::merge::{Merged, Told, circumstances};
use crate::admin::boot::MOTD;
use crate::admin::filesystem::mount_point;
use crate::admin::look::Look;
use crate::admin::merge_report::{self, Amount, MergeReport};
use crate::admin::roots::{self, Tree};
use crate::admin::{Context, text, view};
use crate::boot::Selection;
use crate::merge::{Ids, Record, Zones};
use crate::model::layout::{Group, Volume};
use crate::model::name::LvName;
use crate::model::persist::{Rule, Rules};
use crate::sys::run;
use crate::sys::transaction::Transaction;
use crate::tree::Dir;

/// Where the second /etc and the files are made, in the root of the layer.
pub const SCRATCH: &str = ".imgbased-again";
/// Beside the report in the layer that was updated: the layer that has all that was changed in it.
const CARRIED: &str = "carried";
/// Beside that, what /run has of the update: this layer may run once more before the new one has come up.
const KEPT: &str = "update.json";
const KEPT_RECORD: &str = "update.record";

/// What there is of an update that waits for a restart. What was merged and carried is in a record beside it.
#[derive(Clone, Deserialize, Serialize)]
pub struct Waiting {
    /// The layer that was updated.
    #[serde(default)]
    from: String,
    pub layer: String,
    pub base: String,
    /// What is knowingly left behind. A path need not be text.
    leave: Vec<OsString>,
    /// What was listed to be carried.
    listed: Vec<String>,
    /// See [`circumstances`]. `None` where they have to be looked at anew.
    circumstances: Option<String>,
    /// Where what is recorded was.
    pub zones: Zones,
    /// The packages that have not come along.
    #[serde(default)]
    pub missing_packages: Vec<String>,
    /// What is left behind, as was told.
    #[serde(default)]
    pub left: Vec<Amount>,
    /// The numbers that were changed in the layer.
    users: BTreeMap<u32, u32>,
    groups: BTreeMap<u32, u32>,
}

impl Waiting {
    pub fn new(
        [from, layer, base]: [&LvName; 3],
        merged: &Merged,
        told: &Told,
        leave: Vec<PathBuf>,
    ) -> Self {
        let listed = told.listed.0.iter();
        Self {
            from: from.to_string(),
            layer: layer.to_string(),
            base: base.to_string(),
            leave: leave.into_iter().map(PathBuf::into_os_string).collect(),
            listed: listed.map(|rule| rule.text.clone()).collect(),
            circumstances: Some(merged.circumstances.clone()),
            zones: merged.zones.clone(),
            missing_packages: merged.report.missing_packages.clone(),
            left: Amount::left(&merged.outside),
            users: merged.ids.users.clone(),
            groups: merged.ids.groups.clone(),
        }
    }

    pub fn read() -> Option<Self> {
        run::read_json(run::UPDATE)
    }

    /// Has the shutdown know of it.
    pub fn write(&self, tx: &mut Transaction, record: &Record) -> Result<()> {
        tx.create_dir(Path::new(run::DIR))?;
        tx.write(Path::new(run::UPDATE_RECORD), &record.0, 0o600)?;
        self.write_json(tx)?;
        self.keep(tx, Some(record))?;
        // Of an update before.
        forget_carried(tx)
    }

    /// Has the shutdown know once more of an update that was made before, of the layer that runs. Returns
    /// whether it still waits; if not, nothing is kept of it.
    pub fn take_up(
        tx: &mut Transaction,
        group: &Group,
        selection: &Selection,
        running: &LvName,
    ) -> Result<bool> {
        let root = Dir::root(Path::new("/"))?;
        if Path::new(run::UPDATE).exists() {
            // As after a soft reboot.
            return Ok(true);
        }
        let Some(kept) = merge_report::content(&root, KEPT)? else {
            return Ok(false);
        };
        let waiting = serde_json::from_slice(&kept).ok();
        let waits = waiting.is_some_and(|of: Self| of.waits(group, selection, running));
        let record = if waits {
            merge_report::content(&root, KEPT_RECORD)?
        } else {
            None
        };
        let Some(record) = record else {
            // Whatever the new layer does from here on, it has not got what is changed now.
            tx.work(&"what was kept of an update is removed", |_| {
                remove(&root, &[KEPT, KEPT_RECORD, CARRIED])
            })?;
            return Ok(false);
        };
        tx.create_dir(Path::new(run::DIR))?;
        tx.write(Path::new(run::UPDATE_RECORD), &record, 0o600)?;
        tx.write(Path::new(run::UPDATE), &kept, 0o600)?;
        Ok(true)
    }

    /// Has nothing be known any more of an update whose layer is about to be removed: a later layer of its name is another
    /// one.
    pub fn forget(tx: &mut Transaction, layer: &LvName) -> Result<()> {
        let is_of_it = |waiting: Self| waiting.layer == layer.as_str();
        if Self::read().is_some_and(is_of_it) {
            tx.remove(Path::new(run::UPDATE))?;
        }
        let root = Dir::root(Path::new("/"))?;
        let kept = merge_report::content(&root, KEPT).unwrap_or_default();
        let kept = kept.and_then(|kept| serde_json::from_slice(&kept).ok());
        if kept.is_some_and(is_of_it) {
            tx.work(&"what was kept of an update is removed", |_| {
                remove(&root, &[KEPT, KEPT_RECORD])
            })?;
        }
        Ok(())
    }

    /// Keeps it in the layer that runs, for a further start of that: with the record, unless it is there. Where nothing
    /// can be written there, the shutdown of this boot does without.
    fn keep(&self, tx: &mut Transaction, record: Option<&Record>) -> Result<()> {
        let content = serde_json::to_vec(self)?;
        tx.work(&"what the shutdown has to know is kept", |_| {
            let root = Dir::root(Path::new("/"))?;
            let put = |name: &str, content: &[u8]| merge_report::put(&root, name, content, 0o600);
            let record = record.map_or(Ok(()), |record| put(KEPT_RECORD, &record.0));
            if let Err(error) = record.and_then(|()| put(KEPT, &content)) {
                log::warn!(
                    "what is changed in a further start of this layer before the new one has come up does not come \
                     along: {error:#}"
                );
                // Of an update before.
                let _ = remove(&root, &[KEPT, KEPT_RECORD]);
            }
            Ok(())
        })
    }

    /// Has the shutdown know of other numbers in the layer, which stay whatever fails afterwards.
    pub fn renumber(&self, tx: &mut Transaction, ids: &Ids) -> Result<()> {
        let waiting = Self {
            users: ids.users.clone(),
            groups: ids.groups.clone(),
            ..self.clone()
        };
        tx.work(&"the numbers of accounts are kept", |_| {
            run::write_json(run::UPDATE, &waiting)
        })?;
        waiting.keep(tx, None)
    }

    /// Whether the layer `running` was updated, and the new one is to boot and has not come up yet.
    fn waits(&self, group: &Group, selection: &Selection, running: &LvName) -> bool {
        let has_come_up = group.volume(&self.layer).is_none_or(Volume::is_good);
        self.from == running.as_str() && self.is_chosen(selection) && !has_come_up
    }

    /// Whether the new layer is to boot.
    pub fn is_chosen(&self, selection: &Selection) -> bool {
        let Selection { default, trial, .. } = selection;
        let trial = trial.as_ref().map(|trial| &trial.name);
        [default.as_ref(), trial].contains(&Some(&self.layer))
    }

    fn write_json(&self, tx: &mut Transaction) -> Result<()> {
        tx.write(Path::new(run::UPDATE), &serde_json::to_vec(self)?, 0o600)
    }

    /// Removes what a power cut at shutdown has left in the layer that runs.
    pub fn clear() -> Result<()> {
        let root = Dir::root(Path::new("/"))?;
        root.remove_all(SCRATCH.as_ref())
            .with_context(|| format!("cannot remove /{SCRATCH}"))
    }

    /// How many paths of /etc were edited since the update.
    pub fn edited() -> Result<usize> {
        let root = Dir::root(Path::new("/"))?;
        let changed = Zones::of_etc().changed(&record()?, &root, &|| Ok(()))?;
        Ok(changed.edited())
    }

    /// Whether anything may have been changed since. No file of the layer is read for that.
    pub fn is_changed(&self) -> Result<bool> {
        let dir = mount_point("running");
        // What is mounted on the layer is no part of it.
        let _mounted = Look::at_running().mounted(&dir)?;
        let layer = Dir::root(&dir)?;
        let rules = self
            .listed
            .iter()
            .map(|text| Rule::new(text, Path::new("")));
        let listed = Rules(rules.collect::<Result<_>>()?);
        if self.circumstances != Some(circumstances(&listed, &layer)?) {
            return Ok(true);
        }
        self.zones.is_changed(&record()?, &layer)
    }

    pub fn leave(&self) -> Vec<PathBuf> {
        self.leave.iter().map(PathBuf::from).collect()
    }

    pub fn ids(&self) -> Ids {
        Ids {
            users: self.users.clone(),
            groups: self.groups.clone(),
        }
    }
}

/// What was merged and carried.
pub fn record() -> Result<Record> {
    let path = run::UPDATE_RECORD;
    let record = fs::read(path).with_context(|| format!("cannot read {path}"))?;
    Ok(Record(record))
}

/// Removes files beside the report of a layer, if they are there.
fn remove(root: &Dir, names: &[&str]) -> Result<()> {
    let dir = merge_report::directory(root)?;
    for name in names {
        dir.remove(name.as_ref())
            .with_context(|| format!("cannot remove {name}"))?;
    }
    Ok(())
}

/// Records that a layer has all that was changed in this one. It looks here when it has come up: to activate and mount
/// that one takes longer than all else at shutdown.
pub fn record_carried(tx: &mut Transaction, layer: &str) -> Result<()> {
    tx.work(&"all has come along", |_| {
        let root = Dir::root(Path::new("/"))?;
        let written = merge_report::put(&root, CARRIED, layer.as_bytes(), 0o644);
        written.with_context(|| format!("cannot write {CARRIED}"))
    })
}

/// Removes what says that a layer has all that was changed in this one.
pub fn forget_carried(tx: &mut Transaction) -> Result<()> {
    let root = Dir::root(Path::new("/"))?;
    if merge_report::content(&root, CARRIED)?.is_none() {
        return Ok(());
    }
    tx.work(&"what came along is not known any more", |_| {
        remove(&root, &[CARRIED])
    })
}

/// Has the shutdown look at what is listed by now, if an update waits.
pub fn lists_changed(tx: &mut Transaction) -> Result<()> {
    let Some(waiting) = Waiting::read() else {
        return Ok(());
    };
    let waiting = Waiting {
        circumstances: None,
        ..waiting
    };
    waiting.write_json(tx)?;
    waiting.keep(tx, None)
}

/// Says so where what was changed between the update and the restart is not here: where that was no orderly one, and
/// what was written where nothing is carried.
pub fn tell_of_lost_changes(context: &Context, tx: &mut Transaction, group: &Group) -> Result<()> {
    let root = Path::new("/");
    let Some(mut report) = MergeReport::read(root)? else {
        return Ok(());
    };
    let was_pending = std::mem::take(&mut report.pending);
    let left = std::mem::take(&mut report.left_since);
    if !was_pending && left.is_empty() {
        return Ok(());
    }
    let old = &report.layer;
    let has_all = !was_pending
        || has_all(context, tx, group, old).unwrap_or_else(|error| {
            log::debug!("{old} does not tell what came along: {error:#}");
            false
        });
    let mut messages = Vec::new();
    if !has_all {
        messages.push(format!(
            "what was changed in {old} between the update and a restart without a shutdown is not here; \
             `imgbased-helper diff {old} .` shows it, `imgbased-helper persist pull PATH` fetches it"
        ));
    }
    if !left.is_empty() {
        messages.push(left_since(old, &left));
    }
    if !messages.is_empty() {
        let motd = Path::new(MOTD);
        tx.create_dir(motd)?;
        let mut lines = String::new();
        for message in messages {
            log::warn!("{message}");
            lines += &format!("imgbased: {message}\n");
        }
        tx.write(&motd.join("imgbased-update"), lines.as_bytes(), 0o644)?;
    }
    report.write(tx, root)
}

/// Tells of what was written to the layer `old`, and is not here.
fn left_since(old: &str, left: &[Amount]) -> String {
    const NAMED: usize = 5;
    let named = left.iter().take(NAMED);
    let named = named.map(|of| format!("{} ({})", of.path, text::size(of.bytes)));
    let mut named = named.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = left.len().checked_sub(NAMED) {
        named += &format!(" and {more} more");
    }
    format!(
        "what was written in {old} between the update and the restart is not here, since nothing of it comes along: \
         {named}; `imgbased-helper persist pull PATH` fetches it"
    )
}

/// Whether the layer before says that nothing was changed in it that the layer which runs does not have.
fn has_all(context: &Context, tx: &mut Transaction, group: &Group, old: &str) -> Result<bool> {
    let booted = view::booted(group)?;
    let old = roots::named(group, Tree::Volume(old.parse()?))?;
    let found = roots::opened(context, tx, group, &old, |_, root| {
        merge_report::content(&Dir::root(root)?, CARRIED)
    })?;
    let layer = found.flatten();
    Ok(layer.is_some() && layer == booted.map(String::into_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::layout::tag;
    use crate::model::trial::OnTrial;
    use std::os::unix::ffi::OsStringExt;

    fn waiting() -> Waiting {
        Waiting {
            from: "Base-0.1".to_owned(),
            layer: "Base-1.1".to_owned(),
            base: "Base-1".to_owned(),
            leave: Vec::new(),
            listed: vec!["/srv/*".to_owned()],
            circumstances: None,
            zones: Zones::of_etc(),
            missing_packages: Vec::new(),
            left: vec![Amount::new(Path::new("data"), 60, 2)],
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
        }
    }

    #[test]
    fn an_update_waits_until_its_layer_has_come_up_or_is_not_chosen_any_more() {
        let waiting = waiting();
        let running: LvName = "Base-0.1".parse().unwrap();
        let choose = |default: &str, trial: Option<&str>| Selection {
            default: Some(default.to_owned()),
            trial: trial.map(|name| OnTrial {
                name: name.to_owned(),
                kernel: None,
                tries: 3,
                tried: 1,
            }),
            ..Selection::default()
        };
        let on_trial = choose("Base-0.1", Some("Base-1.1"));
        let group = |tags: &[&str]| Group::with(vec![Volume::tagged("Base-1.1", tags)]);
        let new = group(&[tag::LAYER]);
        assert!(waiting.waits(&new, &on_trial, &running));
        let other: LvName = "Base-0.2".parse().unwrap();
        assert!(!waiting.waits(&new, &on_trial, &other));
        assert!(waiting.waits(&new, &choose("Base-1.1", None), &running));
        assert!(!waiting.waits(&new, &choose("Base-0.1", None), &running));
        assert!(!waiting.waits(&group(&[tag::LAYER, tag::GOOD]), &on_trial, &running));
        assert!(!waiting.waits(&Group::with(Vec::new()), &on_trial, &running));
    }

    #[test]
    fn what_waits_can_have_paths_that_are_no_text() {
        let latin = OsString::from_vec(b"/opt/latin\xe4".to_vec());
        let waiting = Waiting {
            leave: vec![latin.clone()],
            ..waiting()
        };
        let text = serde_json::to_string(&waiting).unwrap();
        let read: Waiting = serde_json::from_str(&text).unwrap();
        assert_eq!(read.leave, [latin]);
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }
}
