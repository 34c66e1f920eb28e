//! A group together with what is booted and what boots next: the data that is shown to people and,
//! as JSON, to programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::Context;
use super::text::{self, Paint, Tone};
use crate::boot::Selection;
use crate::boot::next::Next;
use crate::lvm::living_maker;
use crate::model::boot_record::BootRecord;
use crate::model::layout::{Failure, Group, KernelFailure, Role, Volume};
use crate::model::name::{LvName, VgName};
use crate::model::percent::Percent;
use crate::model::trial::OnTrial;
use crate::model::volume::Mount;
pub use crate::sys::JSON_VERSION;
use crate::sys::{mounts, run};

/// Sizes are bytes, percentages are of the pool.
#[derive(Serialize)]
pub struct View {
    pub version: u32,
    pub vg: String,
    pub size: u64,
    pub free: u64,
    pub pool: Option<PoolView>,
    pub bases: Vec<BaseView>,
    pub volumes: Vec<VolumeView>,
    /// The layer or base that runs.
    pub booted: Option<String>,
    /// The layer or base that boots from now on.
    pub default: Option<String>,
    /// The layer or base that boots at the next start only.
    pub once: Option<String>,
    /// The layer that boots until it has come up, or its tries are used up.
    pub trial: Option<OnTrial>,
    /// What the next start boots, as the boot loader's files are now.
    pub next: Option<String>,
    /// Why that is not what was chosen, and what to do.
    pub next_problem: Option<String>,
    /// Whether it is known what was chosen to boot: the default, once, and on trial.
    #[serde(skip)]
    pub is_choice_known: bool,
}

#[derive(Serialize)]
pub struct PoolView {
    pub name: String,
    pub size: u64,
    /// Only an active one tells how full it is.
    pub active: bool,
    /// Whether new chunks are zeroed.
    pub zeroes: bool,
    pub data_percent: Option<Percent>,
    pub metadata_percent: Option<Percent>,
}

impl PoolView {
    /// How full it is; `full` is the word that follows each number.
    pub fn fullness(&self, full: &str) -> String {
        match (self.data_percent, self.metadata_percent) {
            (Some(data), Some(metadata)) => format!("data {data}{full}, metadata {metadata}{full}"),
            _ if self.active => "does not tell how full it is".to_owned(),
            _ => "not active, so it does not tell how full it is".to_owned(),
        }
    }
}

#[derive(Serialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they have nothing to do with each other"
)]
pub struct BaseView {
    pub name: String,
    pub size: u64,
    pub booted: bool,
    pub default: bool,
    pub once: bool,
    /// Whether a rollback has left it, so that `update` takes its image again only with --retry.
    pub held: bool,
    pub layers: Vec<LayerView>,
}

#[derive(Clone, Serialize)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "they have nothing to do with each other"
)]
pub struct LayerView {
    pub name: String,
    pub base: String,
    pub size: u64,
    pub active: bool,
    pub booted: bool,
    pub default: bool,
    pub once: bool,
    pub trial: bool,
    /// Whether it has come up once.
    pub good: bool,
    /// Whether a snapshot is being merged into it, or will be when it is activated next.
    pub merging: bool,
    /// Its last trial, if that failed.
    pub failure: Option<Failure>,
    /// The kernels in it whose last trial failed.
    pub failed_kernels: Vec<FailedKernel>,
    /// Whether the boot menu has it; unknown where no boot partition is mounted.
    pub bootable: Option<bool>,
}

#[derive(Clone, Serialize)]
pub struct FailedKernel {
    pub kernel: String,
    #[serde(flatten)]
    pub failure: Failure,
}

#[derive(Serialize)]
pub struct VolumeView {
    pub name: String,
    pub role: Role,
    pub size: u64,
    /// Where layers mount it.
    pub path: Option<String>,
    /// The process that is making it now.
    pub maker: Option<u32>,
}

/// Loads a group and adds what is known about booting.
pub fn load(context: &Context) -> Result<View> {
    load_with_group(context).map(|(view, _)| view)
}

/// The same, and the group as it was read to be shown.
pub fn load_with_group(context: &Context) -> Result<(View, Group)> {
    let look = || {
        let boot = context.boot_partition()?;
        let next = boot.next_start()?;
        anyhow::Ok((boot.has_entry()?, boot.selection(), next))
    };
    let (group, boot) = context.load_to_show(look)?;
    let booted = booted(&group)?;
    let (bases, orphans) = group.tree();
    let (has_entry, selection, next) = match boot {
        Ok((has_entry, selection, next)) => (Some(has_entry), selection, Some(next)),
        Err(error) => (None, Err(error), None),
    };
    let unknown = selection.as_ref().err();
    let unknown = unknown.map(|error| format!("what is chosen to boot is not known: {error:#}"));
    if let Some(unknown) = &unknown {
        log::warn!("{unknown}");
    }
    let Selection {
        default,
        once,
        trial,
    } = selection.unwrap_or_default();
    let is = |which: &Option<String>, name: &str| which.as_deref() == Some(name);
    let views: Vec<BaseView> = bases
        .iter()
        .map(|base| BaseView {
            name: base.name.as_str().to_owned(),
            size: base.volume.size,
            booted: is(&booted, base.name.as_str()),
            default: is(&default, base.name.as_str()),
            once: is(&once, base.name.as_str()),
            held: base.volume.is_held(),
            layers: base
                .layers
                .iter()
                .map(|(name, volume)| LayerView {
                    name: name.as_str().to_owned(),
                    base: base.name.as_str().to_owned(),
                    size: volume.size,
                    active: volume.active,
                    booted: is(&booted, name.as_str()),
                    default: is(&default, name.as_str()),
                    once: is(&once, name.as_str()),
                    trial: trial
                        .as_ref()
                        .is_some_and(|t| t.name == name.as_str() && t.kernel.is_none()),
                    good: volume.is_good(),
                    merging: volume.is_merging,
                    failure: volume.failure(),
                    failed_kernels: failed_kernels(volume),
                    bootable: has_entry.as_ref().map(|has_entry| has_entry(name)),
                })
                .collect(),
        })
        .collect();
    let in_tree = |role| matches!(role, Role::Pool | Role::Base | Role::Layer);
    let others = group.volumes.iter().filter(|v| !in_tree(v.role));
    let mut others: Vec<&Volume> = others.chain(orphans).collect();
    others.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let volumes = others
        .into_iter()
        .map(|volume| VolumeView {
            name: volume.name.clone(),
            role: volume.role,
            size: volume.size,
            path: Mount::of(&volume.name, &volume.tags)
                .ok()
                .flatten()
                .map(|mount| mount.path),
            maker: living_maker(&volume.tags).map(|maker| maker.pid()),
        })
        .collect();
    let view = View {
        version: JSON_VERSION,
        vg: group.name.to_string(),
        size: group.size,
        free: group.free,
        pool: group.pool().map(pool_view),
        bases: views,
        volumes,
        booted,
        default,
        once,
        trial,
        next: next.as_ref().map(ToString::to_string),
        next_problem: unknown.clone().or(next.as_ref().and_then(Next::problem)),
        is_choice_known: unknown.is_none(),
    };
    Ok((view, group))
}

fn failed_kernels(volume: &Volume) -> Vec<FailedKernel> {
    let failures = volume.kernel_failures().into_iter();
    let failed = failures.map(
        |KernelFailure {
             kernel, failure, ..
         }| FailedKernel {
            kernel: kernel.to_owned(),
            failure,
        },
    );
    failed.collect()
}

fn pool_view(pool: &Volume) -> PoolView {
    PoolView {
        name: pool.name.clone(),
        size: pool.size,
        active: pool.active,
        zeroes: pool.zeroes,
        data_percent: pool.data_percent,
        metadata_percent: pool.metadata_percent,
    }
}

/// What the running system was booted from, if the helper did it, with the name that its group has now.
pub fn boot_record() -> Option<BootRecord> {
    let mut record = recorded_boot()?;
    if let Some(vg) = group_of(&record) {
        record.vg = vg.to_string();
    }
    Some(record)
}

/// The same with the name that its group had then.
fn recorded_boot() -> Option<BootRecord> {
    run::read_json(run::BOOT_RECORD)
}

/// The command line of the kernel that runs.
pub fn kernel_command_line() -> Result<String> {
    fs::read_to_string("/proc/cmdline").context("cannot read /proc/cmdline")
}

/// What the group is called that the running system is on: vgrename(8) has device-mapper rename what is
/// active.
fn group_of(record: &BootRecord) -> Option<VgName> {
    let layer: LvName = record.layer.parse().ok()?;
    // A base is below its overlay.
    let mut places = ["/", run::BASE].into_iter().map(Path::new);
    places.find_map(|place| VgName::of_dm_name(&mounts::dm_name_at(place).ok()??, &layer))
}

/// The layer that / is on; where / is the volatile overlay of a base, what the initramfs recorded.
pub fn booted(group: &Group) -> Result<Option<String>> {
    if let Some(mounted) = mounts::dm_name_at(Path::new("/"))? {
        let name = group.name.lv_of(&mounted);
        let volume = name.and_then(|name| group.volume(name.as_str()));
        let bootable = volume.filter(|volume| volume.role.is_bootable());
        return Ok(bootable.map(|volume| volume.name.clone()));
    }
    let record = boot_record().filter(|r| r.vg == group.name.as_str());
    Ok(record.map(|record| record.layer))
}

/// The layer that / is on; nothing where a base runs.
pub fn booted_layer(group: &Group) -> Result<Option<LvName>> {
    let booted = booted(group)?.and_then(|name| group.volume(&name));
    let layer = booted.filter(|volume| volume.role == Role::Layer);
    layer.map(|layer| layer.name.parse()).transpose()
}

impl BaseView {
    /// What there is to say of it, on one line.
    pub fn marks(&self, paint: Paint) -> String {
        paint.marks(&[
            (self.booted, Tone::Good, "booted"),
            (self.default, Tone::Strong, "default"),
            (self.once, Tone::Notice, "next start only"),
            (self.held, Tone::Notice, "held"),
        ])
    }
}

impl LayerView {
    /// What there is to say of it, on one line.
    pub fn marks(&self, paint: Paint) -> String {
        let failure = text::shown(self.failure.as_ref());
        let kernels = self.failed_kernels.iter();
        let kernels: Vec<String> = kernels
            .map(|failed| format!("Linux {} {}", failed.kernel, failed.failure))
            .collect();
        let kernels = kernels.join("; ");
        let has_no_entry = self.bootable == Some(false);
        paint.marks(&[
            (self.booted, Tone::Good, "booted"),
            (self.default, Tone::Strong, "default"),
            (self.once, Tone::Notice, "next start only"),
            (self.trial, Tone::Notice, "on trial"),
            (self.failure.is_some(), Tone::Bad, &failure),
            (!kernels.is_empty(), Tone::Bad, &kernels),
            (has_no_entry, Tone::Bad, "without a boot entry"),
            (
                self.merging,
                Tone::Bad,
                "a snapshot is being merged into it",
            ),
        ])
    }
}

impl View {
    pub fn layers(&self) -> impl Iterator<Item = &LayerView> {
        self.bases.iter().flat_map(|base| &base.layers)
    }

    /// The names of the bases that a rollback has left.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        let held = self.bases.iter().filter(|base| base.held);
        held.map(|base| base.name.as_str())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A layer of which there is all to say.
    pub fn layer() -> LayerView {
        let failure = || Failure {
            tries: 3,
            at: "2026-11-23T19:20:03Z".to_owned(),
        };
        LayerView {
            name: "Base-0.1".to_owned(),
            base: "Base-0".to_owned(),
            size: 1 << 30,
            active: true,
            booted: true,
            default: false,
            once: false,
            trial: true,
            good: false,
            merging: false,
            failure: Some(failure()),
            failed_kernels: vec![FailedKernel {
                kernel: "6.13".to_owned(),
                failure: failure(),
            }],
            bootable: Some(true),
        }
    }

    /// A base with that layer, and one of which there is little to say.
    pub fn base() -> BaseView {
        let other = LayerView {
            failure: None,
            failed_kernels: Vec::new(),
            bootable: None,
            ..layer()
        };
        BaseView {
            name: "Base-0".to_owned(),
            size: 1 << 30,
            booted: false,
            default: true,
            once: false,
            held: true,
            layers: vec![layer(), other],
        }
    }

    #[test]
    fn the_group_is_a_document_as_its_schema_says() {
        let volume = |role, path: Option<&str>, maker| VolumeView {
            name: "home".to_owned(),
            role,
            size: 1 << 30,
            path: path.map(str::to_owned),
            maker,
        };
        let pool = PoolView {
            name: "ImagePool".to_owned(),
            size: 1 << 40,
            active: true,
            zeroes: true,
            data_percent: "3.26".parse().ok(),
            metadata_percent: None,
        };
        let roles = [Role::Layer, Role::Snapshot, Role::Foreign, Role::Volume];
        let volumes = roles.map(|role| volume(role, Some("/home"), None));
        let mut view = View {
            version: JSON_VERSION,
            vg: "HostVG".to_owned(),
            size: 1 << 40,
            free: 0,
            pool: Some(pool),
            bases: vec![base()],
            volumes: volumes.into(),
            booted: Some("Base-0.1".to_owned()),
            default: Some("Base-0".to_owned()),
            once: None,
            trial: Some(OnTrial {
                name: "Base-0.1".to_owned(),
                kernel: None,
                tries: 3,
                tried: 1,
            }),
            next: Some("imgbased-Base-0".to_owned()),
            next_problem: Some("the entry is gone".to_owned()),
            is_choice_known: true,
        };
        crate::schemas::assert_holds("layout", &view);
        (view.pool, view.trial, view.booted) = (None, None, None);
        (view.next, view.next_problem, view.default) = (None, None, None);
        view.volumes = vec![volume(Role::Incomplete, None, Some(7))];
        crate::schemas::assert_holds("layout", &view);
    }

    #[test]
    fn a_pool_tells_how_full_it_is_only_while_it_is_active() {
        let percent = |text: &str| text.parse().ok();
        for (active, data, metadata, full, expected) in [
            (
                true,
                percent("3.26"),
                percent("12.60"),
                " full",
                "data 3.2 % full, metadata 12.6 % full",
            ),
            (
                true,
                percent("0.00"),
                percent("1.00"),
                "",
                "data 0.0 %, metadata 1.0 %",
            ),
            (
                true,
                percent("3.26"),
                None,
                "",
                "does not tell how full it is",
            ),
            (
                false,
                None,
                None,
                "",
                "not active, so it does not tell how full it is",
            ),
        ] {
            let pool = PoolView {
                name: "ImagePool".to_owned(),
                size: 0,
                active,
                zeroes: true,
                data_percent: data,
                metadata_percent: metadata,
            };
            assert_eq!(pool.fullness(full), expected);
        }
    }
}
